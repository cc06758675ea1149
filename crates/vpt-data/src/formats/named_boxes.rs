//! What layouts share whose annotations name the category of each object in place: tables of boxes, Create ML, labelme, CVAT.
//!
//! Categories are the names that occur in train, in their order, unless a file lists them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::BoxFiles;
use super::coco::ObjectShape;
use super::image_folder::images;
use crate::boxes::{
    AnnotatedImage, AnnotatedObject, AnnotatedSet, BoxDataset, BoxExtent, Category, PlaceInFile, Problem, ProblemKind,
    Remedy, normal, parts,
};
use crate::check::{Checking, FindingKind, Findings, ListedImage, repeated_boxes, text};
use crate::open::{Parts, entries, sort_classes};
use crate::{ImageSource, Split};
use vpt_base::{Error, Result};

/// An image as a file describes it.
pub(super) struct DescribedPicture {
    pub(super) path: PathBuf,
    /// Width and height, where the file says them.
    pub(super) declared: Option<[usize; 2]>,
    pub(super) source: Arc<Path>,
    pub(super) place: Option<PlaceInFile>,
    /// The part that the file says.
    pub(super) split: Option<Split>,
    pub(super) objects: Vec<NamedObject>,
}

/// An object and what it is.
pub(super) struct NamedObject {
    pub(super) name: String,
    pub(super) place: Option<PlaceInFile>,
    pub(super) extent: BoxExtent,
    pub(super) crowd: bool,
    /// Its pixels, where the file tells them; none where it is a line or a point.
    pub(super) shape: Option<DrawnShape>,
}

/// The pixels of an object.
pub(super) struct DrawnShape {
    /// What lies in a higher layer hides what lies in a lower one, and in one layer what comes later what came before.
    pub(super) layer: i64,
    pub(super) pixels: ObjectShape,
}

/// What the sources of a data set say, as one.
pub(super) struct Described {
    pub(super) categories: Vec<Category>,
    pub(super) parts: Parts<DescribedPicture>,
    pub(super) problems: Vec<Problem>,
}

/// What a file or folder of annotations says.
#[derive(Default)]
pub(super) struct DescribedSet {
    pub(super) pictures: Vec<DescribedPicture>,
    pub(super) problems: Vec<Problem>,
    /// The categories, where they are listed.
    pub(super) names: Option<Vec<String>>,
}

impl DescribedSet {
    /// An object at `place` in `file` that is left out, and why.
    pub(super) fn drop_object(&mut self, file: &Path, place: Option<PlaceInFile>, detail: String) {
        self.problems.push(unreadable_object(file, place, detail));
    }
}

/// The problem of an object that cannot be read and is left out.
pub(super) fn unreadable_object(file: &Path, place: Option<PlaceInFile>, detail: String) -> Problem {
    let (kind, remedy) = (ProblemKind::UnreadableObject, Remedy::ObjectDropped);
    Problem { kind, remedy, file: file.to_path_buf(), place, detail }
}

/// A file or folder of annotations, and the part that it is of by its name.
pub(super) type AnnotationSource = (Option<Split>, PathBuf);

/// Reads one of the sources.
pub(super) type Reader = Box<dyn Fn(&AnnotationSource) -> Result<DescribedSet> + Send + Sync>;

/// The annotations of a data set.
pub(super) struct NamedBoxes {
    pub(super) root: PathBuf,
    pub(super) sources: Vec<AnnotationSource>,
    pub(super) read: Reader,
    /// Whether sources are text files, whose encoding is worth a look.
    pub(super) are_texts: bool,
    /// Whether classes are said of whole images.
    pub(super) are_whole: bool,
}

impl NamedBoxes {
    /// The data set in `root` whose `sources` are read by `read`, which is given the root; none where there are no sources.
    pub(super) fn found(
        root: &Path,
        sources: Vec<AnnotationSource>,
        read: impl Fn(&Path, &AnnotationSource) -> Result<DescribedSet> + Send + Sync + 'static,
    ) -> Option<Self> {
        (!sources.is_empty()).then(|| {
            let folder = root.to_path_buf();
            let read: Reader = Box::new(move |source| read(&folder, source));
            Self { root: root.to_path_buf(), sources, read, are_texts: false, are_whole: false }
        })
    }

    /// The same, whose sources are text files.
    pub(super) fn of_texts(self) -> Self {
        Self { are_texts: true, ..self }
    }

    fn read_all(&self) -> Vec<Result<DescribedSet>> {
        self.sources.par_iter().map(|source| (self.read)(source)).collect()
    }

    /// What all sources say.
    ///
    /// # Errors
    /// A file cannot be read at all, or parts contradict each other.
    pub(super) fn described(&self) -> Result<Described> {
        for (i, (split, path)) in self.sources.iter().enumerate() {
            let first = self.sources[..i].iter().find(|(other, _)| split.is_some() && other == split);
            if let (Some((_, first)), Some(split)) = (first, split) {
                let message = format!("a second one for {split} beside {}", first.display());
                return Err(Error::data(path, message));
            }
        }
        let (mut given, mut loose) = ([None, None, None], Vec::new());
        let (mut problems, mut names) = (Vec::new(), None);
        for ((split, _), found) in self.sources.iter().zip(self.read_all()) {
            let found = found?;
            problems.extend(found.problems);
            names = names.or(found.names);
            for picture in found.pictures {
                match split.or(picture.split) {
                    Some(split) => given[split as usize].get_or_insert_with(Vec::new).push(picture),
                    None => loose.push(picture),
                }
            }
        }
        let has_parts = given.iter().any(Option::is_some);
        if let (true, Some(picture)) = (has_parts, loose.first()) {
            let name = picture.path.display();
            return Err(Error::data(&*picture.source, format!("no part is said of {name}, though there are parts")));
        }
        let mut described = if has_parts { parts(&self.root, given)? } else { Parts::Unsplit(loose) };
        if let Parts::Unsplit(all) = &described
            && all.is_empty()
        {
            return Err(Error::data(&self.root, "no images are listed"));
        }
        let categories = categories(&self.root, &described, names)?;
        join_repeated(&mut described, &mut problems);
        problems.extend(unlisted(&described));
        Ok(Described { categories, parts: described, problems })
    }
}

impl BoxFiles for NamedBoxes {
    fn open(&self) -> Result<AnnotatedSet> {
        let Described { categories, parts: described, mut problems } = self.described()?;
        let index: HashMap<&str, usize> = categories.iter().zip(0..).map(|(c, i)| (c.name.as_str(), i)).collect();
        let mut finish = |all: Vec<DescribedPicture>| -> Vec<AnnotatedImage> {
            all.into_iter().map(|picture| finished(picture, &index, &mut problems)).collect()
        };
        let parts = match described {
            Parts::Unsplit(all) => Parts::Unsplit(finish(all)),
            Parts::Split { train, val, test } => {
                Parts::Split { train: finish(train), val: val.map(&mut finish), test: test.map(&mut finish) }
            }
        };
        Ok(AnnotatedSet { root: normal(&self.root), categories, parts, has_ids: false, problems, absent: Vec::new() })
    }

    fn are_whole_images(&self) -> bool {
        self.are_whole
    }

    fn open_piecewise(&self) -> (Vec<Problem>, Vec<Error>) {
        let (mut problems, mut errors) = (Vec::new(), Vec::new());
        for found in self.read_all() {
            match found {
                Ok(found) => problems.extend(found.problems),
                Err(error) => errors.push(error),
            }
        }
        (problems, errors)
    }

    fn check_texts(&self, check: &mut Checking<'_>) {
        for (split, file) in &self.sources {
            if self.are_texts {
                text::check_file(file, &mut check.out);
            }
            if let Some(split) = split {
                check.places.parts[*split as usize].get_or_insert_with(|| file.clone());
            }
        }
    }

    fn check_opened(&mut self, data: &BoxDataset, _listed: &[ListedImage], out: &mut Findings) {
        repeated_boxes(data, |image, object, _, _| {
            let message = format!("two equal boxes of '{}'", data.categories[object.category].name);
            out.warning(FindingKind::DuplicateBox, image.file(), None, message);
        });
    }
}

fn all_of(described: &Parts<DescribedPicture>) -> impl Iterator<Item = &DescribedPicture> {
    let (first, second, third) = match described {
        Parts::Unsplit(all) => (all, None, None),
        Parts::Split { train, val, test } => (train, val.as_ref(), test.as_ref()),
    };
    first.iter().chain(second.into_iter().flatten()).chain(third.into_iter().flatten())
}

/// The categories that are listed, else those of train; what occurs in another part must occur in train.
fn categories(root: &Path, described: &Parts<DescribedPicture>, names: Option<Vec<String>>) -> Result<Vec<Category>> {
    let names = if let Some(names) = names {
        names
    } else {
        let (Parts::Unsplit(train) | Parts::Split { train, .. }) = described;
        // Where nothing is learned, all parts say what the categories are.
        let say: Vec<&DescribedPicture> =
            if train.is_empty() { all_of(described).collect() } else { train.iter().collect() };
        let known: BTreeSet<&str> = say.into_iter().flat_map(|i| &i.objects).map(|o| o.name.as_str()).collect();
        for picture in all_of(described) {
            if let Some(object) = picture.objects.iter().find(|object| !known.contains(object.name.as_str())) {
                let place = object.place.map(|place| format!("{place}: ")).unwrap_or_default();
                return Err(Error::data(&*picture.source, format!("{place}'{}' does not occur in train", object.name)));
            }
        }
        let mut names: Vec<String> = known.into_iter().map(str::to_owned).collect();
        sort_classes(&mut names);
        names
    };
    if names.is_empty() {
        return Err(Error::data(root, "no object is in any image, so there is nothing to find"));
    }
    Ok((1..).zip(names).map(|(id, name)| Category { id, name }).collect())
}

/// An image that is listed twice in a part is one, with the objects of both.
fn join_repeated(described: &mut Parts<DescribedPicture>, problems: &mut Vec<Problem>) {
    let mut join = |all: &mut Vec<DescribedPicture>| {
        let mut first: HashMap<PathBuf, usize> = HashMap::new();
        let mut kept: Vec<DescribedPicture> = Vec::with_capacity(all.len());
        for picture in all.drain(..) {
            if let Some(&at) = first.get(&picture.path) {
                problems.push(Problem {
                    kind: ProblemKind::DuplicateImage,
                    remedy: Remedy::Joined,
                    file: picture.source.to_path_buf(),
                    place: picture.place,
                    detail: format!("{} is described already", picture.path.display()),
                });
                kept[at].objects.extend(picture.objects);
            } else {
                first.insert(picture.path.clone(), kept.len());
                kept.push(picture);
            }
        }
        *all = kept;
    };
    match described {
        Parts::Unsplit(all) => join(all),
        Parts::Split { train, val, test } => {
            [Some(train), val.as_mut(), test.as_mut()].into_iter().flatten().for_each(join);
        }
    }
}

/// Pictures beside those that are described, of which nothing is said: a problem for each folder of them.
fn unlisted(described: &Parts<DescribedPicture>) -> Vec<Problem> {
    let known = all_of(described).map(|picture| (picture.path.as_path(), &*picture.source));
    let problem = |(source, detail)| Problem {
        kind: ProblemKind::MissingAnnotation,
        remedy: Remedy::ImageDropped,
        file: source,
        place: None,
        detail,
    };
    pictures_beside(known).into_iter().map(problem).collect()
}

/// For each folder of the pictures `known`, each with the file that speaks of it, that holds others: that file, and a sentence about them.
pub(super) fn pictures_beside<'a>(known: impl Iterator<Item = (&'a Path, &'a Path)>) -> Vec<(PathBuf, String)> {
    let mut folders: HashMap<PathBuf, (&Path, HashSet<PathBuf>)> = HashMap::new();
    for (path, source) in known {
        let path = normal(path);
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        folders.entry(folder).or_insert_with(|| (source, HashSet::new())).1.insert(path);
    }
    let mut out: Vec<(PathBuf, String)> = folders
        .into_iter()
        .filter_map(|(folder, (source, known))| {
            let there = entries(&folder).ok()?.into_iter().map(|(_, path)| path);
            let is_other = |path: &PathBuf| {
                vpt_image::decode::has_image_extension(path) && !known.contains(&normal(path)) && path.is_file()
            };
            let there: Vec<PathBuf> = there.collect();
            // Paths that lead nowhere say nothing of what is there.
            if !there.iter().any(|path| known.contains(&normal(path))) {
                return None;
            }
            let others: Vec<PathBuf> = there.into_iter().filter(is_other).collect();
            let first = others.first()?;
            let count = others.len();
            let detail = format!(
                "nothing is said of {count} picture{} in {}, such as {}",
                if count == 1 { "" } else { "s" },
                folder.display(),
                first.file_name().unwrap_or_default().to_string_lossy()
            );
            Some((source.to_path_buf(), detail))
        })
        .collect();
    out.sort();
    out
}

fn finished(picture: DescribedPicture, index: &HashMap<&str, usize>, problems: &mut Vec<Problem>) -> AnnotatedImage {
    let DescribedPicture { path, declared, source, place, objects, .. } = picture;
    let mut kept = Vec::with_capacity(objects.len());
    for NamedObject { name, place, extent, crowd, .. } in objects {
        let Some(&category) = index.get(name.as_str()) else {
            problems.push(Problem {
                kind: ProblemKind::UnknownCategory,
                remedy: Remedy::ObjectDropped,
                file: source.to_path_buf(),
                place,
                detail: format!("'{name}' is not among the categories that are listed"),
            });
            continue;
        };
        kept.push(AnnotatedObject { id: 0, place, category, extent, area: None, crowd });
    }
    AnnotatedImage { id: 0, image: ImageSource::File(path), declared, source, place, objects: kept }
}

/// Where pictures are that files of annotations name.
pub(super) struct PictureFolders {
    root: PathBuf,
    folders: Vec<PathBuf>,
}

/// Pictures that are looked for to find out which folder they are in.
const PROBES: usize = 32;

impl PictureFolders {
    /// Folders in which the pictures of `source` in the data set `root` may be.
    pub(super) fn of(root: &Path, (split, source): &AnnotationSource) -> Self {
        let beside = if source.is_dir() { source.clone() } else { source.parent().unwrap_or(root).to_path_buf() };
        let mut folders = vec![beside.clone()];
        let inside = ["images", "data", "JPEGImages", "imgs", "img", "photos"];
        // Folders that are called after the part, with whatever else is in their names.
        let of_part = |folder: &Path| -> Vec<PathBuf> {
            let all = entries(folder).unwrap_or_default().into_iter().filter(|(_, path)| path.is_dir());
            all.filter(|(name, _)| split.is_some() && Split::from_name(name) == *split).map(|(_, path)| path).collect()
        };
        for base in [beside.as_path(), beside.parent().unwrap_or(root), root] {
            if !base.starts_with(root) {
                continue;
            }
            for inside in inside.map(|name| base.join(name)) {
                folders.extend(of_part(&inside));
                folders.push(inside);
            }
            for part in of_part(base) {
                folders.extend(inside.map(|name| part.join(name)));
                folders.push(part);
            }
            folders.push(base.to_path_buf());
        }
        Self { root: root.into(), folders }
    }

    /// The folder that most of the first of `names` are in.
    ///
    /// # Errors
    /// None of them is found; the error, which is about `source`, names the first.
    pub(super) fn best<'a>(&self, source: &Path, names: &(impl Iterator<Item = &'a str> + Clone)) -> Result<PathBuf> {
        let hits = |folder: &PathBuf| names.clone().take(PROBES).filter(|name| folder.join(name).is_file()).count();
        let best = self.folders.iter().enumerate().map(|(i, folder)| (hits(folder), std::cmp::Reverse(i))).max();
        match best {
            Some((hits, std::cmp::Reverse(i))) if hits > 0 => Ok(normal(&self.folders[i])),
            _ => {
                let first = names.clone().next().unwrap_or_default();
                let root = self.root.display();
                let hint = if first.contains('\\') { "; write paths with /" } else { "" };
                let message = format!("no images: {first} is neither beside it nor in {root} or images/ there{hint}");
                Err(Error::data(source, message))
            }
        }
    }
}

/// `path` alone, if it `is_one`.
pub(super) fn alone(path: &Path, is_one: bool) -> Vec<AnnotationSource> {
    if is_one { vec![(None, path.into())] } else { Vec::new() }
}

/// The files in `root` and in the folders of parts there that are called `name`.
pub(super) fn called(root: &Path, name: &str) -> Vec<AnnotationSource> {
    let own = root.join(name);
    if own.is_file() {
        return vec![(None, own)];
    }
    let folders: Vec<_> = entries(root).unwrap_or_default().into_iter().filter(|(_, path)| path.is_dir()).collect();
    let parts = Split::of_names(folders.iter().map(|(name, _)| name.as_str()));
    let files = parts.into_iter().zip(folders).map(|(split, (_, folder))| (split, folder.join(name)));
    files.filter(|(split, file)| split.is_some() && file.is_file()).collect()
}

/// `all` with the parts that their names, which stand beside each other, mean.
pub(super) fn with_parts(all: Vec<(String, PathBuf)>) -> Vec<AnnotationSource> {
    let whole = Split::of_names(all.iter().map(|(name, _)| name.as_str()));
    let by_word = |name: &str| name.split(|c: char| !c.is_alphanumeric()).find_map(Split::from_name);
    let has_whole = whole.iter().any(Option::is_some);
    let split = |(whole, name): (Option<Split>, &str)| if has_whole { whole } else { by_word(name) };
    let splits: Vec<_> = whole.into_iter().zip(all.iter().map(|(name, _)| name.as_str())).map(split).collect();
    splits.into_iter().zip(all).map(|(split, (_, path))| (split, path)).collect()
}

/// Pictures under `folder`, by their names without the ending.
pub(super) fn by_stem(folder: &Path) -> Result<HashMap<String, PathBuf>> {
    let all = images(folder, "")?.into_iter();
    Ok(all.filter_map(|(name, path)| Some((name.rsplit_once('.')?.0.to_owned(), normal(&path)))).collect())
}
