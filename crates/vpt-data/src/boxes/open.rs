//! Opens a data set of boxes by recognising its layout.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::check::{AnnotatedImage, AnnotatedObject, BoxExtent, verify};
use super::problem::{Problem, ProblemKind, Remedy};
use super::{BoxDataset, BoxImage, Category};
use crate::formats::unread::{BOX_LAYOUTS, Unread, unread};
use crate::formats::{self, BoxFiles, Candidate, Recognized};
use crate::open::{Parts, name_of};
use crate::split::{MadeParts, Member, complete_parts};
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
    /// Parts that are named and are not there.
    pub(crate) absent: Vec<(Split, Error)>,
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
        Self::open_with(spec, seed, MadeParts::All)
    }

    /// As [`open`](Self::open), with no other parts made than `made` says.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(spec: impl AsRef<Path>, seed: u64, made: MadeParts<'_>) -> Result<Self> {
        Self::read(spec.as_ref(), seed, made).map_err(|error| error.of_kind(Error::data))
    }

    fn read(path: &Path, seed: u64, made: MadeParts<'_>) -> Result<Self> {
        let found = formats::recognize_boxes(&Candidate::at(path).map_err(Error::typed(path))?)?;
        match found {
            Some(Recognized { layout, boxes: Some(files), .. }) => {
                if files.are_whole_images() {
                    return Err(Error::data(path, several_classes(layout)));
                }
                Self::of(path, layout, &*files, seed, made)
            }
            _ => Err(match unread(path).into_iter().next() {
                Some(Unread { file, message }) => Error::data(file, message),
                None => Error::data(path, format!("no data set of boxes found: expected {BOX_LAYOUTS}")),
            }),
        }
    }

    /// What `files` in `layout`, which were recognised at `path`, open as.
    pub(crate) fn of(
        path: &Path,
        layout: Layout,
        files: &dyn BoxFiles,
        seed: u64,
        made: MadeParts<'_>,
    ) -> Result<Self> {
        complete(name_of(path), layout, files.open()?, seed, made)
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
fn complete(name: String, layout: Layout, found: AnnotatedSet, seed: u64, made: MadeParts<'_>) -> Result<BoxDataset> {
    let measured = made.measured();
    let AnnotatedSet { root, categories, parts, has_ids, mut problems, absent } = found;
    // What is neither learned from nor measured may be elsewhere.
    if let Some((_, error)) = absent.into_iter().find(|(split, _)| measured.is_none_or(|m| m.split == *split)) {
        return Err(error);
    }
    let has_train = !matches!(&parts, Parts::Split { train, .. } if train.is_empty());
    if let (false, None, Parts::Split { val: Some(_), test: Some(_), .. }) = (has_train, measured, &parts) {
        return Err(Error::data(root, "val and test without train"));
    }
    let all = match &parts {
        Parts::Unsplit(all) => vec![all],
        Parts::Split { train, val, test } => [Some(train), val.as_ref(), test.as_ref()].into_iter().flatten().collect(),
    };
    for part in all {
        refuse_fractions(part)?;
        refuse_corners(part)?;
    }
    let mut scaled = None;
    let mut look = |images: Vec<AnnotatedImage>| -> Vec<BoxImage> {
        let declared: Vec<_> = images.iter().map(|image| (image.source.clone(), image.declared)).collect();
        let checked: Vec<_> = images.into_par_iter().map(|image| verify(&root, image)).collect();
        scaled = scaled.take().or_else(|| of_another_size(&declared, &checked));
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
                if part.as_ref().is_some_and(Vec::is_empty) && (has_train || split != Split::Train) {
                    let start = format!("in {split} ");
                    let moved =
                        problems.iter().find(|p| p.remedy == Remedy::DroppedHere && p.detail.starts_with(&start));
                    let why = moved.or_else(|| problems.iter().find(|p| p.loses_image()));
                    return Err(none_left(&name, &format!("no images for {split}"), why));
                }
            }
            let [train, val, test] = given;
            Parts::Split { train: train.unwrap_or_default(), val, test }
        }
    };
    if let Some(error) = scaled {
        return Err(error);
    }
    if let (Parts::Unsplit(images), Some(problem)) = (&parts, problems.iter().find(|p| p.loses_image()))
        && images.is_empty()
    {
        return Err(none_left(&name, "no image is left", Some(problem)));
    }
    tell_absent_objects(&root, &parts, &categories, &mut problems);
    let given = match &parts {
        Parts::Unsplit(_) => [None; 3],
        Parts::Split { val: Some(_), test: Some(_), .. } => Split::ALL.map(Some),
        Parts::Split { val: None, test: Some(_), .. } => [Split::Train, Split::Train, Split::Test].map(Some),
        Parts::Split { val: Some(_), test: None, .. } => [Split::Train, Split::Train, Split::Val].map(Some),
        Parts::Split { val: None, test: None, .. } => [Some(Split::Train); 3],
    };
    let (mut parts, split_note) = complete_parts(&name, parts, &["images".to_owned()], seed, made)?;
    if !has_ids {
        for part in &mut parts {
            renumber(part);
        }
    }
    let [train, val, test] = parts;
    Ok(BoxDataset { name, layout, categories, train, val, test, split_note, given, problems, draw: None })
}

/// Why nothing is left: in the file at fault, if one is known.
fn none_left(name: &str, what: &str, why: Option<&Problem>) -> Error {
    match why {
        Some(Problem { file, place, detail, .. }) => {
            let place = place.map(|place| format!("{place}: ")).unwrap_or_default();
            Error::data(file, format!("{place}{detail}; {what}"))
        }
        None => Error::invalid(format!("data set {name}"), what.to_owned()),
    }
}

/// Boxes in pixels that all lie between 0 and 1, several of them and not all at whole numbers, are shares of the image. In an image
/// of one pixel the two are the same.
fn refuse_fractions(images: &[AnnotatedImage]) -> Result<()> {
    let wider = images.iter().filter(|image| image.declared != Some([1, 1]));
    let objects = || wider.clone().flat_map(|image| image.objects.iter().map(move |object| (image, object)));
    let share = |object: &AnnotatedObject| match object.extent {
        BoxExtent::Pixels(extent) => Some(extent).filter(|all| all.iter().all(|value| (0. ..=1.).contains(value))),
        BoxExtent::Fractions(_) => None,
    };
    if objects().count() < FEWEST_SHARES || !objects().all(|(_, object)| share(object).is_some()) {
        return Ok(());
    }
    let mut shares = objects().filter_map(|(image, object)| Some((image, share(object)?)));
    let Some((image, extent)) = shares.find(|(_, extent)| extent.iter().any(|value| value.fract() != 0.)) else {
        return Ok(());
    };
    let message = format!(
        "all boxes lie between 0 and 1 ({extent:?}), as shares of the image; they are to be in pixels: multiply them by width and \
         height"
    );
    Err(Error::data(&*image.source, message))
}

/// Boxes that reach past the border, most of them, and that all fit if their last two numbers are the right and lower edge.
fn refuse_corners(images: &[AnnotatedImage]) -> Result<()> {
    let (mut all, mut beyond, mut first) = (0, 0, None);
    for image in images {
        let Some([width, height]) = image.declared.map(|sides| sides.map(|side| side as f64)) else { return Ok(()) };
        for object in &image.objects {
            let BoxExtent::Pixels([x, y, right, bottom]) = object.extent else { return Ok(()) };
            if !(right > x && bottom > y && right <= width + 1. && bottom <= height + 1.) {
                return Ok(());
            }
            all += 1;
            if x + right > width + 1. || y + bottom > height + 1. {
                beyond += 1;
                first.get_or_insert((image, object.extent));
            }
        }
    }
    match first {
        Some((image, BoxExtent::Pixels(extent))) if all >= FEWEST_CORNERS && beyond * 2 > all => {
            let message = format!(
                "most boxes reach past the border, and all fit as left, top, right and bottom ({extent:?}); they are to be left, top, \
                 width and height"
            );
            Err(Error::data(&*image.source, message))
        }
        _ => Ok(()),
    }
}

/// What is wrong if most images are larger or smaller than the annotations say, at the same ratio of sides: then the boxes are
/// those of images of another size.
fn of_another_size(
    declared: &[(Arc<Path>, Option<[usize; 2]>)],
    checked: &[(Option<BoxImage>, Vec<Problem>)],
) -> Option<Error> {
    let is_scaled = |declared: [usize; 2], image: &BoxImage| {
        let [x, y] = [declared[0] as f64 / image.width as f64, declared[1] as f64 / image.height as f64];
        (x / y - 1.).abs() < SAME_RATIO && (x - 1.).abs() > SAME_RATIO
    };
    let pairs = declared.iter().zip(checked).filter_map(|((source, declared), (image, _))| {
        let (declared, image) = ((*declared)?, image.as_ref()?);
        (!image.objects.is_empty() && is_scaled(declared, image)).then_some((source, declared, image))
    });
    let with_objects =
        checked.iter().filter(|(image, _)| image.as_ref().is_some_and(|i| !i.objects.is_empty())).count();
    let count = pairs.clone().count();
    let (source, [w, h], image) = pairs.clone().next().filter(|_| count * 2 > with_objects)?;
    let message = format!(
        "boxes of images of {w}x{h} pixels, but {} has {}x{}, and {count} of {with_objects} images are like it: scale the boxes with \
         the images, or correct width and height where the boxes are right",
        image.file().display(),
        image.width,
        image.height
    );
    Some(Error::data(&**source, message))
}

/// Fewest boxes that are taken for corners.
const FEWEST_CORNERS: usize = 4;

/// Fewest boxes between 0 and 1 that are taken for shares: a single one may be smaller than a pixel.
const FEWEST_SHARES: usize = 2;

/// How far two ratios of sides may differ: a pixel of rounding in a hundred.
const SAME_RATIO: f64 = 0.02;

/// Most categories of a data set whose every category is expected in train.
const FEW_CATEGORIES: usize = 20;

/// Share of the objects of a part from which on a category of many is expected in train.
const EXPECTED: f64 = 0.03;

/// Tells parts without objects, and categories with objects in val or test and none in train.
fn tell_absent_objects(root: &Path, parts: &Parts<BoxImage>, categories: &[Category], problems: &mut Vec<Problem>) {
    let given: Vec<(Option<Split>, &Vec<BoxImage>)> = match parts {
        Parts::Unsplit(all) => vec![(None, all)],
        Parts::Split { train, val, test } => {
            let all = [Some(train), val.as_ref(), test.as_ref()];
            Split::ALL.into_iter().zip(all).filter_map(|(split, part)| Some((Some(split), part?))).collect()
        }
    };
    let counts = |part: &[BoxImage]| {
        let mut counts = vec![0_usize; categories.len()];
        part.iter().flat_map(|image| &image.objects).for_each(|object| counts[object.category] += 1);
        counts
    };
    let train = given.iter().find(|(split, part)| *split == Some(Split::Train) && !part.is_empty());
    let train = train.map(|(_, part)| counts(part));
    for (split, part) in given {
        let found = counts(part);
        let all: usize = found.iter().sum();
        let file = part.first().map_or(root, |image| image.file().parent().unwrap_or(root)).to_path_buf();
        let name = split.map_or_else(|| "the data set".to_owned(), |split| split.to_string());
        let teaches = split.is_none_or(|split| split == Split::Train);
        if all == 0 && !part.is_empty() {
            let remedy = if teaches { Remedy::NothingToLearn } else { Remedy::NothingToMeasure };
            let detail = format!("none of the {} images of {name} has an object", part.len());
            problems.push(Problem { kind: ProblemKind::NoObjects, remedy, file, place: None, detail });
            continue;
        }
        let Some(train) = train.as_ref().filter(|_| !teaches) else { continue };
        for (category, (&here, &learned)) in categories.iter().zip(found.iter().zip(train)) {
            let is_expected = categories.len() <= FEW_CATEGORIES || here as f64 >= EXPECTED * all as f64;
            if here > 0 && learned == 0 && is_expected {
                let detail = format!("class '{}' has {here} objects in {name} and none in train", category.name);
                let (kind, remedy) = (ProblemKind::NotInTrain, Remedy::NothingDone);
                problems.push(Problem { kind, remedy, file: file.clone(), place: None, detail });
            }
        }
    }
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
pub(crate) fn renumber(part: &mut [BoxImage]) {
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
        // Both can be measured.
        (None, val, test) if val.is_some() && test.is_some() => Ok(Parts::Split { train: Vec::new(), val, test }),
        (None, _, _) => Err(Error::data(root, "no images are listed")),
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
