//! COCO: a JSON file for each part, with lists of images, annotations and categories.
//!
//! Files are `annotations/instances_train2017.json` and the like, `train.json` beside the images, or Roboflow's
//! `train/_annotations.coco.json`. Images are looked for where such files' images usually are.

mod check;
mod lvis;
mod write;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Deserializer, de};

use self::check::EntryLines;
pub(super) use self::write::write;
use super::{BoxFiles, Format, Layout, Recognition};
use crate::boxes::{
    AnnotatedImage, AnnotatedObject, AnnotatedSet, BoxDataset, BoxExtent, Category, PlaceInFile, Problem, ProblemKind,
    Remedy, normal, parts, verify,
};
use crate::check::{Checking, Findings, ListedImage};
use crate::open::{Parts, entries};
use crate::{ImageSource, Split};
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

/// Longest file that is read, in bytes. COCO's own are half a gigabyte.
const MAX_BYTES: u64 = 1 << 32;

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
        open(&self.root, &self.files)
    }

    fn open_piecewise(&self) -> (Vec<Problem>, Vec<Error>) {
        let (mut problems, mut errors) = (Vec::new(), Vec::new());
        for file in &self.files {
            match open(&self.root, std::slice::from_ref(file)) {
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
    fn new(root: &Path, files: Vec<(String, PathBuf)>) -> Self {
        let parts = Split::of_names(files.iter().map(|(tag, _)| tag.as_str()));
        let files = files.into_iter().zip(parts).map(|((tag, path), part)| Annotations { tag, part, path }).collect();
        Self { root: root.into(), files, lines: EntryLines::default() }
    }

    /// The annotation files in the folder `path`, or `path` itself if it is one.
    fn in_or_at(path: &Path) -> Option<Self> {
        if path.is_file() {
            let parent = path.parent().unwrap_or(Path::new(""));
            let is_inside = parent.file_name().is_some_and(|name| name == "annotations");
            let root = if is_inside { parent.parent().unwrap_or(parent) } else { parent };
            let stem = path.file_stem()?.to_string_lossy().into_owned();
            let tag = stem.strip_prefix("instances_").unwrap_or(&stem).to_owned();
            return looks_like_coco(path).then(|| Self::new(root, vec![(tag, path.into())]));
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
        Some(Self::new(path, files))
    }
}

/// Whether `path` is JSON that starts like a COCO file.
fn looks_like_coco(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(4096).read_to_end(&mut start));
    let text = String::from_utf8_lossy(&start);
    let keys = ["\"images\"", "\"annotations\"", "\"categories\"", "\"info\"", "\"licenses\""];
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"))
        && read.is_ok()
        && text.trim_start_matches('\u{feff}').trim_start().starts_with('{')
        && keys.iter().any(|key| text.contains(key))
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

/// Opens the data set that `files` describe.
fn open(root: &Path, files: &[Annotations]) -> Result<AnnotatedSet> {
    let root = normal(root);
    let mut problems = Vec::new();
    let mut categories: Option<(Vec<Category>, PathBuf)> = None;
    let mut read = |file: &Annotations| -> Result<Vec<AnnotatedImage>> {
        let (found, images) = read_file(&root, file, &mut problems)?;
        match &categories {
            None => categories = Some((found, file.path.clone())),
            Some((known, first)) => agree(&file.path, &found, first, known)?,
        }
        Ok(images)
    };
    let parts = if let [file] = files
        && file.part != Some(Split::Train)
    {
        Parts::Unsplit(read(file)?)
    } else {
        if let Some(file) = files.first().filter(|_| files.iter().all(|file| file.part.is_none())) {
            let message = "this file and others beside it are named after no part (train, val, test)";
            return Err(Error::data(&file.path, message));
        }
        let mut given = [None, None, None];
        for split in Split::ALL {
            let mut these = files.iter().filter(|file| file.part == Some(split));
            let Some(file) = these.next() else { continue };
            if let Some(second) = these.next() {
                let message = format!("a second file for {split} beside {}", file.path.display());
                return Err(Error::data(&second.path, message));
            }
            given[split as usize] = Some(read(file)?);
        }
        parts(&root, given)?
    };
    let categories = categories.map(|(categories, _)| categories).unwrap_or_default();
    Ok(AnnotatedSet { root, categories, parts, has_ids: true, problems })
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

#[derive(Deserialize)]
struct CocoFile {
    images: Vec<CocoImage>,
    annotations: Vec<CocoAnnotation>,
    categories: Vec<Category>,
}

#[derive(Deserialize)]
struct CocoImage {
    id: u64,
    /// Empty where there is an address alone.
    #[serde(default)]
    file_name: String,
    coco_url: Option<String>,
    /// LVIS' categories that are known not to be in the image.
    neg_category_ids: Option<de::IgnoredAny>,
    width: Option<f64>,
    height: Option<f64>,
}

#[derive(Deserialize)]
struct CocoAnnotation {
    id: Option<u64>,
    image_id: u64,
    category_id: u64,
    /// Left, top, width, height in pixels. What is not a number is written as null by some.
    bbox: Option<Vec<Option<f64>>>,
    area: Option<f64>,
    #[serde(default, deserialize_with = "flag")]
    iscrowd: bool,
}

/// 0 or 1, false or true; null is false.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::Null => Ok(false),
        serde_json::Value::Bool(flag) => Ok(flag),
        serde_json::Value::Number(n) => Ok(n.as_f64() != Some(0.)),
        _ => Err(de::Error::custom("iscrowd is neither a number nor a boolean")),
    }
}

/// The categories in the order of their ids, and the images.
fn read_file(
    root: &Path,
    file: &Annotations,
    problems: &mut Vec<Problem>,
) -> Result<(Vec<Category>, Vec<AnnotatedImage>)> {
    let path = file.path.as_path();
    let bytes = read_limited(path, MAX_BYTES)?;
    let content = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    let CocoFile { mut images, annotations, mut categories } =
        serde_json::from_slice(content).map_err(|error| Error::data(path, error.to_string()))?;
    drop(bytes);
    categories.sort_by_key(|category| category.id);
    if categories.is_empty() {
        return Err(Error::data(path, "it lists no categories"));
    }
    if let Some(pair) = categories.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(Error::data(path, format!("category {} is listed twice", pair[0].id)));
    }
    let mut names = HashSet::new();
    if let Some(twice) = categories.iter().find(|category| !names.insert(category.name.as_str())) {
        return Err(Error::data(path, format!("two categories are called '{}'", twice.name)));
    }
    if images.is_empty() {
        return Err(Error::data(path, "it lists no images"));
    }
    lvis::name_images(path, &mut images, problems)?;
    let folder = image_folder(root, file, &images)?;
    let mut part = PartBuilder { source: path.into(), images: Vec::new(), by_id: HashMap::new(), problems };
    part.add_images(&folder, images);
    part.add_annotations(&categories, annotations);
    Ok((categories, part.images))
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
            let message =
                format!("no images: {name} is neither beside it nor in {root}, nor in {tag}/ or images/ there");
            Err(Error::data(&file.path, message))
        }
    }
}

/// A part while it is put together.
struct PartBuilder<'a> {
    source: Arc<Path>,
    images: Vec<AnnotatedImage>,
    /// Positions in `images`.
    by_id: HashMap<u64, usize>,
    problems: &'a mut Vec<Problem>,
}

impl PartBuilder<'_> {
    fn report(&mut self, kind: ProblemKind, remedy: Remedy, place: PlaceInFile, detail: String) {
        let (file, place) = (self.source.to_path_buf(), Some(place));
        self.problems.push(Problem { kind, remedy, file, place, detail });
    }

    fn add_images(&mut self, folder: &Path, images: Vec<CocoImage>) {
        let mut by_path: HashMap<PathBuf, usize> = HashMap::new();
        for CocoImage { id, file_name, width, height, .. } in images {
            let path = normal(&folder.join(&file_name));
            let place = PlaceInFile::Image(id);
            if let Some(&first) = self.by_id.get(&id) {
                let other = self.images[first].image.file().unwrap_or(&self.source);
                let detail = format!("its id is also that of {}", other.display());
                let remedy = if other == path { Remedy::Joined } else { Remedy::ImageDropped };
                self.report(ProblemKind::DuplicateImageId, remedy, place, format!("{file_name}: {detail}"));
                continue;
            }
            if let Some(&first) = by_path.get(&path) {
                let detail = format!("{file_name} is listed already, as image {}", self.images[first].id);
                self.report(ProblemKind::DuplicateImage, Remedy::Joined, place, detail);
                self.by_id.insert(id, first);
                continue;
            }
            self.by_id.insert(id, self.images.len());
            by_path.insert(path.clone(), self.images.len());
            let declared = width.zip(height).map(|(w, h)| [w as usize, h as usize]);
            let (source, place) = (self.source.clone(), Some(place));
            let image = ImageSource::File(path);
            self.images.push(AnnotatedImage { id, image, declared, source, place, objects: Vec::new() });
        }
    }

    fn add_annotations(&mut self, categories: &[Category], annotations: Vec<CocoAnnotation>) {
        let given: HashSet<u64> = annotations.iter().filter_map(|a| a.id).collect();
        let mut free = (1..).filter(|id| !given.contains(id));
        let mut seen = HashSet::new();
        for (annotation, number) in annotations.into_iter().zip(1..) {
            let mut id = annotation.id.unwrap_or_default();
            let place = annotation.id.map_or(PlaceInFile::Entry(number), PlaceInFile::Annotation);
            let Some(&image) = self.by_id.get(&annotation.image_id) else {
                let detail = format!("image {} is not listed", annotation.image_id);
                self.report(ProblemKind::UnknownImage, Remedy::ObjectDropped, place, detail);
                continue;
            };
            let Ok(category) = categories.binary_search_by_key(&annotation.category_id, |c| c.id) else {
                let detail = format!("category {} is not listed", annotation.category_id);
                self.report(ProblemKind::UnknownCategory, Remedy::ObjectDropped, place, detail);
                continue;
            };
            let bbox = annotation.bbox.unwrap_or_default();
            let Ok(extent) = <[Option<f64>; 4]>::try_from(bbox) else {
                let detail = "it has no bbox of four numbers".into();
                self.report(ProblemKind::UnreadableObject, Remedy::ObjectDropped, place, detail);
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
            let extent = BoxExtent::Pixels(extent.map(|v| v.unwrap_or(f64::NAN)));
            let (place, area, crowd) = (Some(place), annotation.area, annotation.iscrowd);
            self.images[image].objects.push(AnnotatedObject { id, place, category, extent, area, crowd });
        }
    }
}
