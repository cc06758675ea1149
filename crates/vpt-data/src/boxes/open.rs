//! Opens a data set of boxes by recognising its layout.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use rayon::prelude::*;

use super::check::{AnnotatedImage, verify};
use super::problem::{Problem, ProblemKind, Remedy};
use super::{BoxDataset, BoxImage, Category};
use crate::formats::unread::{BOX_LAYOUTS, Unread, unread};
use crate::formats::{self, BoxFiles, Candidate, Recognized};
use crate::open::{Parts, name_of};
use crate::split::{Member, complete_parts};
use crate::{Layout, Split};
use vpt_base::{Error, Message, Result};

/// A data set of boxes as its files describe it, before the images are looked at.
pub(crate) struct AnnotatedSet {
    /// The folder that images are named from.
    pub(crate) root: PathBuf,
    pub(crate) categories: Vec<Category>,
    pub(crate) parts: Parts<AnnotatedImage>,
    /// Whether images and objects have ids of their own.
    pub(crate) has_ids: bool,
    pub(crate) problems: Vec<Problem>,
}

impl BoxDataset {
    /// How the data set of boxes at `path` lies on disk; none if there is none.
    pub fn recognize(path: impl AsRef<Path>) -> Option<Layout> {
        let candidate = Candidate::at(path.as_ref()).ok()?;
        let found = formats::recognize_boxes(&candidate).ok()??;
        found.boxes.is_some_and(|files| !files.are_whole_images()).then_some(found.layout)
    }

    /// Opens the data set of boxes at `spec`, a folder in the COCO, YOLO or Pascal VOC layout, or the one JSON or YAML file
    /// that describes it. Headers of all images are read, pixels are not. Parts that it lacks are split off by `seed`; see
    /// [`split_note`](Self::split_note). What is wrong and can be lived with is in [`problems`](Self::problems).
    ///
    /// # Errors
    /// There is no such file or folder, its layout is not known, a file cannot be read at all, parts contradict each other,
    /// or a part has no images; the error names the file, and line and column where there are any.
    pub fn open(spec: impl AsRef<Path>, seed: u64) -> Result<Self> {
        Self::read(spec.as_ref(), seed).map_err(|error| error.of_kind(Error::data))
    }

    fn read(path: &Path, seed: u64) -> Result<Self> {
        let found = formats::recognize_boxes(&Candidate::at(path).map_err(Error::typed(path))?)?;
        match found {
            Some(Recognized { layout, boxes: Some(files), .. }) => {
                if files.are_whole_images() {
                    return Err(Error::data(path, several_classes(layout)));
                }
                Self::of(path, layout, &*files, seed)
            }
            _ => Err(match unread(path).into_iter().next() {
                Some(Unread { file, message }) => Error::data(file, message),
                None => Error::data(path, format!("no data set of boxes found: expected {BOX_LAYOUTS}")),
            }),
        }
    }

    /// What `files` in `layout`, which were recognised at `path`, open as.
    pub(crate) fn of(path: &Path, layout: Layout, files: &dyn BoxFiles, seed: u64) -> Result<Self> {
        complete(name_of(path), layout, files.open()?, seed)
    }
}

/// Says what a data set in `layout` without boxes is.
pub(crate) fn several_classes(layout: Layout) -> Message {
    let message = format!("a {} data set of several classes an image, which `vpt train ", layout.title());
    Message::from(message).field("task").text(" multilabel` reads")
}

impl Member for BoxImage {
    fn id(&self) -> &str {
        &self.name
    }

    fn group(&self) -> usize {
        0
    }
}

/// Looks at the images, and fills in the parts that `found` lacks.
fn complete(name: String, layout: Layout, found: AnnotatedSet, seed: u64) -> Result<BoxDataset> {
    let AnnotatedSet { root, categories, parts, has_ids, mut problems } = found;
    let mut look = |images: Vec<AnnotatedImage>| -> Vec<BoxImage> {
        let checked: Vec<_> = images.into_par_iter().map(|image| verify(&root, image)).collect();
        let mut images = Vec::with_capacity(checked.len());
        for (image, these) in checked {
            images.extend(image);
            problems.extend(these);
        }
        images.sort_by(|a, b| a.name.cmp(&b.name));
        images
    };
    let parts = match parts {
        Parts::Unsplit(all) => Parts::Unsplit(look(all)),
        Parts::Split { train, val, test } => {
            let mut given = [Some(look(train)), val.map(&mut look), test.map(&mut look)];
            ignore_copies(&mut given, &mut problems);
            drop_repeated(&mut given, &mut problems);
            for (split, part) in Split::ALL.into_iter().zip(&given) {
                if part.as_ref().is_some_and(Vec::is_empty) {
                    let start = format!("in {split} ");
                    let moved =
                        problems.iter().find(|p| p.remedy == Remedy::DroppedHere && p.detail.starts_with(&start));
                    let why = moved.or_else(|| problems.iter().find(|p| p.loses_image()));
                    let why = why.map(|p| format!(": {p}")).unwrap_or_default();
                    return Err(Error::invalid(format!("data set {name}"), format!("no images for {split}{why}")));
                }
            }
            let [train, val, test] = given;
            Parts::Split { train: train.unwrap_or_default(), val, test }
        }
    };
    if let (Parts::Unsplit(images), Some(problem)) = (&parts, problems.iter().find(|p| p.loses_image()))
        && images.is_empty()
    {
        return Err(Error::invalid(format!("data set {name}"), format!("no image is left: {problem}")));
    }
    let given = match &parts {
        Parts::Unsplit(_) => [None; 3],
        Parts::Split { val: Some(_), test: Some(_), .. } => Split::ALL.map(Some),
        Parts::Split { val: None, test: Some(_), .. } => [Split::Train, Split::Train, Split::Test].map(Some),
        Parts::Split { val: Some(_), test: None, .. } => [Split::Train, Split::Train, Split::Val].map(Some),
        Parts::Split { val: None, test: None, .. } => [Some(Split::Train); 3],
    };
    let (mut parts, split_note) = complete_parts(&name, parts, &["images".to_owned()], seed)?;
    if !has_ids {
        for part in &mut parts {
            number(part);
        }
    }
    let [train, val, test] = parts;
    Ok(BoxDataset { name, layout, categories, train, val, test, split_note, given, problems })
}

/// A part that repeats another one whole, as the smallest examples for YOLO do, is no part.
fn ignore_copies(parts: &mut [Option<Vec<BoxImage>>; 3], problems: &mut Vec<Problem>) {
    for (copy, of) in [(Split::Test, Split::Val), (Split::Test, Split::Train), (Split::Val, Split::Train)] {
        let (Some(part), Some(other)) = (&parts[copy as usize], &parts[of as usize]) else { continue };
        if !part.is_empty() && part.iter().map(place_of).eq(other.iter().map(place_of)) {
            problems.push(Problem {
                kind: ProblemKind::ImageInTwoParts,
                remedy: Remedy::PartIgnored,
                file: part[0].file().to_path_buf(),
                place: None,
                detail: format!("{copy} has the images of {of}, this one and all others"),
            });
            parts[copy as usize] = None;
        }
    }
}

/// An image in two parts stays where it is looked at last: what is tested on must not be learned from, and a test set stays
/// comparable with itself.
fn drop_repeated(parts: &mut [Option<Vec<BoxImage>>; 3], problems: &mut Vec<Problem>) {
    let mut seen: HashMap<(PathBuf, Option<usize>), Split> = HashMap::new();
    for split in [Split::Test, Split::Val, Split::Train] {
        let Some(part) = &mut parts[split as usize] else { continue };
        part.retain(|image| {
            let (file, index) = place_of(image);
            let other = *seen.entry((file.to_path_buf(), index)).or_insert(split);
            if other != split {
                problems.push(Problem {
                    kind: ProblemKind::ImageInTwoParts,
                    remedy: Remedy::DroppedHere,
                    file: file.to_path_buf(),
                    place: None,
                    detail: format!("in {split} and in {other}"),
                });
            }
            other == split
        });
    }
}

/// The file that an image is in, and where it is in a file of many.
fn place_of(image: &BoxImage) -> (&Path, Option<usize>) {
    (image.file(), image.image.index())
}

/// Counts images and objects from 1 through a part.
fn number(part: &mut [BoxImage]) {
    let mut objects = 0;
    for (image, id) in part.iter_mut().zip(1..) {
        image.id = id;
        for object in &mut image.objects {
            objects += 1;
            object.id = objects;
        }
    }
}

/// `path` without `.` parts, and without `..` parts that follow a name.
pub(crate) fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if matches!(out.components().next_back(), Some(Component::Normal(_))) => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    if out.as_os_str().is_empty() { PathBuf::from(".") } else { out }
}

/// Three parts as they were given; a single one that is not train is a data set without parts.
pub(crate) fn parts<M>(root: &Path, [train, val, test]: [Option<Vec<M>>; 3]) -> Result<Parts<M>> {
    let some = |part: Option<Vec<M>>| part.filter(|part| !part.is_empty());
    match (some(train), some(val), some(test)) {
        (Some(train), val, test) => Ok(Parts::Split { train, val, test }),
        (None, Some(all), None) | (None, None, Some(all)) => Ok(Parts::Unsplit(all)),
        (None, Some(_), Some(_)) => Err(Error::data(root, "val and test without train")),
        (None, None, None) => Err(Error::data(root, "no images are listed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_plain() {
        let plain = |path: &str| normal(Path::new(path)).to_string_lossy().into_owned();
        assert_eq!(plain("set/../train/./images"), "train/images");
        assert_eq!(plain("../set/a"), "../set/a");
        assert_eq!(plain("/a/b/../../c"), "/c");
        assert_eq!(plain("set/.."), ".");
    }
}
