//! COCO: a JSON file for each part, with lists of images, annotations and categories.
//!
//! Files are `annotations/instances_train2017.json` and the like, `train.json` beside the images, or Roboflow's
//! `train/_annotations.coco.json`. Images are looked for where such files' images usually are.

mod check;
mod file;
mod lvis;
mod segments;
mod write;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use self::check::EntryLines;
use self::file::{CocoAnnotation, CocoFile, CocoImage, MAX_BYTES};
pub(crate) use self::segments::{CocoSegments, ObjectShape, SegmentedImage, segments};
pub(super) use self::write::write;
use super::{BoxFiles, Format, Layout, Recognition};
use crate::boxes::{
    AnnotatedImage, AnnotatedObject, AnnotatedSet, BoxDataset, BoxExtent, Category, PlaceInFile, Problem, ProblemKind,
    Remedy, normal, parts, verify,
};
use crate::check::{Checking, Findings, ListedImage};
use crate::formats::text_file::beginning;
use crate::open::{Parts, entries};
use crate::{ImageSource, Split};
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};
use vpt_image::decode::has_image_extension;

/// Images that are looked for to find out which folder they are in.
const PROBES: usize = 32;

impl Layout {
    /// COCO: a JSON file for each part.
    pub const COCO: Self = Self::new("coco", "COCO");
}

/// A JSON file for each part.
pub(super) const FORMAT: Format = Format {
    has_boxes: true,
    recognize: |candidate| Ok(Recognition::of_boxes(Layout::COCO, CocoFiles::in_or_at(candidate.path))),
};

/// The annotation files of a data set.
struct CocoFiles {
    root: PathBuf,
    files: Vec<Annotations>,
    /// Whether no file of the data set is left out.
    are_all: bool,
    /// Where in them annotations stand.
    lines: EntryLines,
}

/// An annotation file.
#[derive(Clone)]
struct Annotations {
    /// What its name says of the part: `train2017`, `val`.
    tag: String,
    /// The part that this means.
    part: Option<Split>,
    path: PathBuf,
}

impl BoxFiles for CocoFiles {
    fn open(&self) -> Result<AnnotatedSet> {
        open(&self.root, &self.files, self.are_all)
    }

    fn open_piecewise(&self) -> (Vec<Problem>, Vec<Error>) {
        let (mut problems, mut errors) = (Vec::new(), Vec::new());
        for file in &self.files {
            match open(&self.root, std::slice::from_ref(file), false) {
                Ok(found) => {
                    problems.extend(found.problems);
                    let (Parts::Unsplit(images) | Parts::Split { train: images, .. }) = found.parts;
                    let checked: Vec<_> = images.into_par_iter().map(|image| verify(&found.root, image)).collect();
                    problems.extend(checked.into_iter().flat_map(|(_, problems)| problems));
                }
                Err(error) => errors.push(error),
            }
        }
        (problems, errors)
    }

    fn check_texts(&self, check: &mut Checking<'_>) {
        self.check_starts(check);
    }

    fn names_file(&self) -> Option<&Path> {
        self.files.first().map(|file| file.path.as_path())
    }

    fn line_of(&mut self, file: &Path, place: PlaceInFile, kind: ProblemKind) -> Option<u64> {
        self.lines.of(file, place, kind)
    }

    fn check_opened(&mut self, data: &BoxDataset, _listed: &[ListedImage], out: &mut Findings) {
        self.tell_repeated_boxes(data, out);
    }

    fn check_categories(&self, out: &mut Findings) {
        self.compare_categories(out);
    }
}

impl CocoFiles {
    /// Of the tags and paths of files.
    fn new(root: &Path, files: Vec<(String, PathBuf)>, are_all: bool) -> Self {
        let parts = Split::of_names(files.iter().map(|(tag, _)| tag.as_str()));
        let files = files.into_iter().zip(parts).map(|((tag, path), part)| Annotations { tag, part, path }).collect();
        Self { root: root.into(), files, are_all, lines: EntryLines::default() }
    }

    /// The annotation files in the folder `path`, or `path` itself if it is one.
    fn in_or_at(path: &Path) -> Option<Self> {
        if path.is_file() {
            let parent = path.parent().unwrap_or(Path::new(""));
            let is_inside = parent.file_name().is_some_and(|name| name == "annotations");
            let root = if is_inside { parent.parent().unwrap_or(parent) } else { parent };
            let stem = path.file_stem()?.to_string_lossy().into_owned();
            let tag = stem.strip_prefix("instances_").unwrap_or(&stem).to_owned();
            return looks_like_coco(path).then(|| Self::new(root, vec![(tag, path.into())], false));
        }
        let json = |folder: &Path| -> Vec<(String, PathBuf)> {
            let all = entries(folder).unwrap_or_default().into_iter();
            all.filter_map(|(name, path)| Some((name.strip_suffix(".json")?.to_owned(), path)))
                .filter(|(_, path)| path.is_file())
                .collect()
        };
        let annotations = json(&path.join("annotations"));
        let instances = annotations
            .iter()
            .filter_map(|(stem, path)| Some((stem.strip_prefix("instances_")?.to_owned(), path.clone())))
            .collect();
        let beside = entries(path).unwrap_or_default().into_iter();
        let beside = beside.map(|(name, folder)| (name, folder.join("_annotations.coco.json")));
        let of_parts = |files: Vec<(String, PathBuf)>| -> Vec<(String, PathBuf)> {
            let parts = Split::of_names(files.iter().map(|(tag, _)| tag.as_str()));
            files.into_iter().zip(parts).filter(|(_, part)| part.is_some()).map(|(file, _)| file).collect()
        };
        let named = |files: Vec<(String, PathBuf)>| -> Vec<(String, PathBuf)> {
            of_parts(files.into_iter().filter(|(_, path)| looks_like_coco(path)).collect())
        };
        let plain = json(path);
        // A file for all parts may be called anything, if it is the only one.
        let mut all = plain.iter().chain(&annotations).filter(|(_, path)| looks_like_coco(path));
        let usual = ["_annotations.coco", "annotations", "instances", "labels", "result"];
        let first = all.clone().find(|(stem, _)| usual.contains(&stem.as_str()));
        let single = first.or_else(|| all.next().filter(|(_, path)| all.next().is_none() && has_coco_lists(path)));
        let single = single.cloned().into_iter().collect();
        let choices: [Vec<(String, PathBuf)>; 5] = [
            instances,
            of_parts(beside.filter(|(_, path)| path.is_file()).collect()),
            named(annotations),
            named(plain),
            single,
        ];
        let files = choices.into_iter().find(|files| !files.is_empty())?;
        Some(Self::new(path, files, true))
    }
}

/// Whether `path` is JSON that starts like a COCO file.
fn looks_like_coco(path: &Path) -> bool {
    let text = beginning(path, "json", 4096).unwrap_or_default();
    let keys = ["\"images\"", "\"annotations\"", "\"categories\"", "\"info\"", "\"licenses\""];
    text.trim_start().starts_with('{') && keys.iter().any(|key| text.contains(key))
}

/// Whether `path` has the lists of a COCO file, whatever else it may be.
fn has_coco_lists(path: &Path) -> bool {
    let bytes = read_limited(path, MAX_BYTES).unwrap_or_default();
    let has = |key: &str| memmem(&bytes, format!("\"{key}\"").as_bytes());
    has("images") && has("annotations") && has("categories") && has("bbox")
}

/// Whether `text` holds `part`.
fn memmem(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Opens the data set that `files` describe; `are_all` if no file of it is left out.
fn open(root: &Path, files: &[Annotations], are_all: bool) -> Result<AnnotatedSet> {
    let root = normal(root);
    let mut problems = Vec::new();
    let mut read =
        ReadFiles { root: &root, known: None, supers: HashSet::new(), used: HashSet::new(), listed: BTreeMap::new() };
    let parts = if let [file] = files
        && file.part != Some(Split::Train)
    {
        Parts::Unsplit(read.file(file, &mut problems)?)
    } else {
        if let Some(file) = files.first().filter(|_| files.iter().all(|file| file.part.is_none())) {
            let message = "this file and others beside it are named after no part (train, val, test)";
            return Err(Error::data(&file.path, message));
        }
        for file in files.iter().filter(|file| file.part.is_none()) {
            problems.push(Problem {
                kind: ProblemKind::NotUsed,
                remedy: Remedy::NotRead,
                file: file.path.clone(),
                place: None,
                detail: "named after no part (train, val, test), and others beside it are".into(),
            });
        }
        let mut given = [None, None, None];
        for split in Split::ALL {
            let mut these = files.iter().filter(|file| file.part == Some(split));
            let Some(file) = these.next() else { continue };
            if let Some(second) = these.next() {
                let message = format!("a second file for {split} beside {}", file.path.display());
                return Err(Error::data(&second.path, message));
            }
            given[split as usize] = Some(read.file(file, &mut problems)?);
        }
        parts(&root, given)?
    };
    if are_all {
        read.tell_unlisted(&mut problems);
    }
    let (categories, place) = read.categories(&mut problems)?;
    let renumber = |mut images: Vec<AnnotatedImage>| {
        images
            .iter_mut()
            .flat_map(|image| &mut image.objects)
            .for_each(|object| object.category = place[&object.category]);
        images
    };
    let parts = match parts {
        Parts::Unsplit(images) => Parts::Unsplit(renumber(images)),
        Parts::Split { train, val, test } => {
            Parts::Split { train: renumber(train), val: val.map(renumber), test: test.map(renumber) }
        }
    };
    Ok(AnnotatedSet { root, categories, parts, has_ids: true, problems, absent: Vec::new() })
}

fn twice_called(path: &Path, name: &str) -> Error {
    Error::data(path, format!("two categories are called '{name}'"))
}

/// Files of a data set while they are read.
struct ReadFiles<'a> {
    root: &'a Path,
    /// The categories of the first file, and which it is.
    known: Option<(Vec<Category>, PathBuf)>,
    /// Pairs of the name of a supercategory and the id of a category that names it.
    supers: HashSet<(String, u64)>,
    /// Ids of categories that own an object.
    used: HashSet<u64>,
    /// For each folder of images a file that lists some of them, and those that are listed.
    listed: BTreeMap<PathBuf, (PathBuf, HashSet<PathBuf>)>,
}

impl ReadFiles<'_> {
    /// The images of `file`; objects have ids in the place of positions of categories.
    fn file(&mut self, file: &Annotations, problems: &mut Vec<Problem>) -> Result<Vec<AnnotatedImage>> {
        let path = file.path.as_path();
        let CocoFile { mut images, annotations, categories, text_id } = file::read(path)?;
        if categories.is_empty() {
            return Err(Error::data(path, "it lists no categories"));
        }
        if let Some(pair) = categories.windows(2).find(|pair| pair[0].category.id == pair[1].category.id) {
            return Err(Error::data(path, format!("category {} is listed twice", pair[0].category.id)));
        }
        if images.is_empty() {
            return Err(Error::data(path, "it lists no images"));
        }
        let named = categories.iter().filter_map(|c| Some((c.supercategory.clone()?, c.category.id)));
        self.supers.extend(named);
        let categories: Vec<Category> = categories.into_iter().map(|category| category.category).collect();
        if let Some((known, first)) = &self.known {
            agree(path, &categories, first, known)?;
        } else {
            self.refuse_equal_names(path, &categories)?;
        }
        if let Some(text) = text_id {
            problems.push(Problem {
                kind: ProblemKind::TextIds,
                remedy: Remedy::Numbered,
                file: path.to_path_buf(),
                place: None,
                detail: format!("ids of images are text ('{text}')"),
            });
        }
        lvis::name_images(path, &mut images, problems)?;
        let folder = image_folder(self.root, file, &images)?;
        let listed = &mut self.listed.entry(folder.clone()).or_insert_with(|| (path.to_path_buf(), HashSet::new())).1;
        listed.extend(images.iter().map(|image| normal(&folder.join(&image.file_name))));
        let mut part = PartBuilder { source: path.into(), images: Vec::new(), by_id: HashMap::new(), problems };
        part.add_images(&folder, images);
        self.used.extend(annotations.iter().filter_map(|annotation| annotation.category.clone().ok()));
        part.add_annotations(&categories, annotations);
        self.known.get_or_insert_with(|| (categories, path.to_path_buf()));
        Ok(part.images)
    }

    /// Refuses categories of one name of which none can be a heading.
    fn refuse_equal_names(&self, path: &Path, categories: &[Category]) -> Result<()> {
        let may_head = |c: &&Category| self.supers.iter().any(|(name, by)| *name == c.name && *by != c.id);
        let mut names = HashSet::new();
        let twice = categories.iter().filter(|c| !may_head(c)).find(|c| !names.insert(c.name.as_str()));
        twice.map_or(Ok(()), |category| Err(twice_called(path, &category.name)))
    }

    /// The categories, and the position of each by its id: without headings, which others name as theirs and own no object.
    fn categories(self, problems: &mut Vec<Problem>) -> Result<(Vec<Category>, HashMap<usize, usize>)> {
        let (all, first) = self.known.unwrap_or_default();
        let is_heading = |category: &Category| {
            let is_named = self.supers.iter().any(|(name, by)| *name == category.name && *by != category.id);
            is_named && !self.used.contains(&category.id)
        };
        let (headings, categories): (Vec<Category>, Vec<Category>) = all.into_iter().partition(is_heading);
        for Category { id, name } in headings {
            problems.push(Problem {
                kind: ProblemKind::Heading,
                remedy: Remedy::CategoryDropped,
                file: first.clone(),
                place: None,
                detail: format!("category {id} ('{name}') is the supercategory of others and owns no object"),
            });
        }
        let mut names = HashSet::new();
        if let Some(twice) = categories.iter().find(|category| !names.insert(category.name.as_str())) {
            return Err(twice_called(&first, &twice.name));
        }
        let place = categories.iter().zip(0..).map(|(category, at)| (category.id as usize, at)).collect();
        Ok((categories, place))
    }

    /// Counts images beside those that are listed.
    fn tell_unlisted(&self, problems: &mut Vec<Problem>) {
        for (folder, (file, listed)) in &self.listed {
            let all = entries(folder).unwrap_or_default().into_iter().map(|(_, path)| normal(&path));
            let others: Vec<PathBuf> =
                all.filter(|path| has_image_extension(path) && !listed.contains(path) && path.is_file()).collect();
            if let Some(first) = others.first() {
                problems.push(Problem {
                    kind: ProblemKind::NotUsed,
                    remedy: Remedy::NothingDone,
                    file: file.clone(),
                    place: None,
                    detail: format!(
                        "{} images in {} are listed in no file, {} among them",
                        others.len(),
                        folder.display(),
                        first.file_name().unwrap_or_default().display()
                    ),
                });
            }
        }
    }
}

/// Checks that `found` in `file` says nothing that `known` in `first` does not.
fn agree(file: &Path, found: &[Category], first: &Path, known: &[Category]) -> Result<()> {
    for category in found {
        let name = known.iter().find(|c| c.id == category.id).map(|c| c.name.as_str());
        if let Some(message) = disagreement(category, name, first) {
            return Err(Error::data(file, message));
        }
    }
    Ok(())
}

/// What is wrong with a category that is called `known` in `first`, or is not there.
fn disagreement(Category { id, name }: &Category, known: Option<&str>, first: &Path) -> Option<String> {
    let first = first.display();
    match known {
        Some(known) if known == name => None,
        Some(known) => Some(format!("category {id} is '{name}' here and '{known}' in {first}")),
        None => Some(format!("category {id} ('{name}') does not occur in {first}")),
    }
}

/// The folder that most of the first images are in.
fn image_folder(root: &Path, file: &Annotations, images: &[CocoImage]) -> Result<PathBuf> {
    let part = file.part.map_or("", Split::name);
    let other = if part == "val" { "valid" } else { part };
    let beside = file.path.parent().unwrap_or(root);
    let inside = ["images", "data", "JPEGImages"].map(|name| root.join(name));
    let mut folders = vec![beside.to_path_buf(), root.join(&file.tag), root.join(part), root.join(other)];
    folders.extend(inside.iter().flat_map(|inside| [&file.tag, part, other].map(|name| inside.join(name))));
    folders.push(root.to_path_buf());
    folders.extend(inside);
    let hits = |folder: &Path| images.iter().take(PROBES).filter(|i| folder.join(&i.file_name).is_file()).count();
    let best = folders.iter().enumerate().map(|(i, folder)| (hits(folder), std::cmp::Reverse(i))).max();
    match best {
        Some((hits, std::cmp::Reverse(i))) if hits > 0 => Ok(normal(&folders[i])),
        _ => {
            let (name, tag, root) = (&images[0].file_name, &file.tag, root.display());
            let hint = if name.contains('\\') { "; write paths with /" } else { "" };
            let message =
                format!("no images: {name} is neither beside it nor in {root}, nor in {tag}/ or images/ there{hint}");
            Err(Error::data(&file.path, message))
        }
    }
}

/// A part while it is put together.
struct PartBuilder<'a> {
    source: Arc<Path>,
    images: Vec<AnnotatedImage>,
    /// Positions in `images`; none of an id that several images have.
    by_id: HashMap<u64, Option<usize>>,
    problems: &'a mut Vec<Problem>,
}

impl PartBuilder<'_> {
    fn report(&mut self, kind: ProblemKind, remedy: Remedy, place: PlaceInFile, detail: String) {
        let (file, place) = (self.source.to_path_buf(), Some(place));
        self.problems.push(Problem { kind, remedy, file, place, detail });
    }

    fn add_images(&mut self, folder: &Path, images: Vec<CocoImage>) {
        // Of several images with one id nobody knows which one an annotation is of.
        let mut first_of: HashMap<u64, PathBuf> = HashMap::new();
        let mut shared: HashMap<u64, PathBuf> = HashMap::new();
        for CocoImage { id, file_name, .. } in &images {
            let path = normal(&folder.join(file_name));
            let first = first_of.entry(*id).or_insert_with(|| path.clone());
            if *first != path {
                shared.insert(*id, first.clone());
            }
        }
        let mut by_path: HashMap<PathBuf, usize> = HashMap::new();
        for CocoImage { id, file_name, size, .. } in images {
            let path = normal(&folder.join(&file_name));
            let place = PlaceInFile::Image(id);
            if let Some(first) = shared.get(&id) {
                let detail = if *first == path {
                    format!("{file_name}: its id is also that of others")
                } else {
                    format!("{file_name}: its id is also that of {}", first.display())
                };
                self.report(ProblemKind::DuplicateImageId, Remedy::ImageDropped, place, detail);
                self.by_id.insert(id, None);
                continue;
            }
            if self.by_id.contains_key(&id) {
                let detail = format!("{file_name}: its id is also that of {}", path.display());
                self.report(ProblemKind::DuplicateImageId, Remedy::Joined, place, detail);
                continue;
            }
            if let Some(&first) = by_path.get(&path) {
                let detail = format!("{file_name} is listed already, as image {}", self.images[first].id);
                self.report(ProblemKind::DuplicateImage, Remedy::Joined, place, detail);
                self.by_id.insert(id, Some(first));
                continue;
            }
            self.by_id.insert(id, Some(self.images.len()));
            by_path.insert(path.clone(), self.images.len());
            let (source, place) = (self.source.clone(), Some(place));
            let image = ImageSource::File(path);
            self.images.push(AnnotatedImage { id, image, declared: size, source, place, objects: Vec::new() });
        }
    }

    fn add_annotations(&mut self, categories: &[Category], annotations: Vec<CocoAnnotation>) {
        let given: HashSet<u64> = annotations.iter().filter_map(|a| a.id).collect();
        let mut free = (1..).filter(|id| !given.contains(id));
        let mut seen = HashSet::new();
        for (annotation, number) in annotations.into_iter().zip(1..) {
            let mut id = annotation.id.unwrap_or_default();
            let place = annotation.id.map_or(PlaceInFile::Entry(number), PlaceInFile::Annotation);
            let dropped = |part: &mut Self, kind, detail| part.report(kind, Remedy::ObjectDropped, place, detail);
            let image = match &annotation.image {
                Ok(image) => self.by_id.get(image).copied().ok_or_else(|| image.to_string()),
                Err(text) => Err(text.clone()),
            };
            let image = match image {
                Ok(Some(image)) => image,
                Ok(None) => {
                    let detail = "it is of one of several images with one id".to_owned();
                    dropped(self, ProblemKind::DuplicateImageId, detail);
                    continue;
                }
                Err(image) => {
                    dropped(self, ProblemKind::UnknownImage, format!("image {image} is not listed"));
                    continue;
                }
            };
            let is_known = |id: &u64| categories.binary_search_by_key(id, |category| category.id).is_ok();
            let category = match &annotation.category {
                Ok(category) if is_known(category) => *category as usize,
                other => {
                    let category = other.as_ref().map_or_else(Clone::clone, ToString::to_string);
                    dropped(self, ProblemKind::UnknownCategory, format!("category {category} is not listed"));
                    continue;
                }
            };
            let Ok(extent) = <[f64; 4]>::try_from(annotation.bbox.unwrap_or_default()) else {
                dropped(self, ProblemKind::UnreadableObject, "it has no bbox of four numbers".into());
                continue;
            };
            if id == 0 || !seen.insert(id) {
                let (kind, detail) = match annotation.id {
                    None => (ProblemKind::ZeroAnnotationId, "it has no id"),
                    Some(0) => (ProblemKind::ZeroAnnotationId, "ids count from 1"),
                    Some(_) => (ProblemKind::DuplicateAnnotationId, "an annotation before it has the same id"),
                };
                self.report(kind, Remedy::Renumbered, place, detail.into());
                id = free.next().unwrap_or_default();
            }
            let extent = BoxExtent::Pixels(extent);
            let (place, area, crowd) = (Some(place), annotation.area, annotation.crowd);
            self.images[image].objects.push(AnnotatedObject { id, place, category, extent, area, crowd });
        }
    }
}
