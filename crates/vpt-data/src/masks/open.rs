//! Opens a data set of masks: finds its layout, reads every mask once, and tells what cannot be used.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde::Serialize;

use super::classes::{NamedClasses, ValueRules};
use super::window::MAX_RATIO;
use super::{
    BACKGROUND, ClassMask, IGNORED, MaskClasses, MaskDataset, MaskImage, MaskObject, MaskSource, Rle, file, layout,
};
use crate::boxes::ProblemKind;
use crate::examine::unreadable_error;
use crate::formats::coco::{self, CocoSegments, ObjectShape, SegmentedImage};
use crate::formats::named_segments::{self, NamedSegments};
use crate::open::{Parts, name_of};
use crate::split::{MadeParts, Member, complete_parts};
use crate::{ImageSource, Layout, Split};
use vpt_base::choice::choice;
use vpt_base::{Error, Result};

/// Something wrong with a data set of masks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MaskFault {
    /// What is wrong.
    pub kind: MaskFaultKind,
    /// The file at fault.
    pub file: PathBuf,
    /// The case at hand, in words.
    pub detail: String,
}

/// One line, fit to be shown as it is.
impl fmt::Display for MaskFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.detail)
    }
}

choice! {
    /// Kind of a fault of a data set of masks.
    pub enum MaskFaultKind for "fault" {
        /// An image without a mask.
        MissingMask = "missing mask",
        /// A mask without an image.
        OrphanMask = "mask without image",
        /// An image that cannot be read.
        UnreadableImage = "unreadable image",
        /// A mask that cannot be read, or is no image of class numbers.
        UnreadableMask = "unreadable mask",
        /// A mask of another size than its image.
        SizeMismatch = "size mismatch",
        /// A number that stands for no class.
        UnknownIndex = "unknown index",
        /// An image that is many times as long as wide.
        ExtremeRatio = "extreme ratio",
        /// An image in two parts.
        ImageInTwoParts = "image in two parts",
        /// What covers no pixels, or is left out for another reason.
        NoPixels = "no pixels",
        /// A mask in which nothing is learned or measured.
        NothingMarked = "nothing marked",
    }
}

/// An image and what is said of its mask.
pub(super) struct AnnotatedMask {
    pub(super) name: String,
    pub(super) image: PathBuf,
    pub(super) mask: MaskOrigin,
}

/// Where a mask is, before it is read.
pub(super) enum MaskOrigin {
    /// In a file; `Err` says why there is none.
    File(Result<PathBuf, String>),
    /// In objects: the size that their file says the image has, and how each is told, to be made runs of; painted as they come, or
    /// the larger ones first.
    Objects { source: Arc<Path>, declared: Option<[usize; 2]>, objects: Vec<(u16, ObjectShape)>, by_area: bool },
}

/// A data set as its files describe it, before images and masks are looked at.
pub(super) struct AnnotatedMasks {
    pub(super) root: PathBuf,
    pub(super) layout: Layout,
    pub(super) parts: Parts<AnnotatedMask>,
    /// The classes of objects; of files their values say them.
    pub(super) classes: Option<MaskClasses>,
    /// What the layout says of the values of files.
    pub(super) values: ValueRules,
    pub(super) notes: Vec<MaskFault>,
}

/// What labelme's own converters call pixels of no object, and such as are of no class.
const LABELME_BACKGROUND: &str = "_background_";
const LABELME_IGNORED: &str = "__ignore__";

impl Member for MaskImage {
    fn id(&self) -> &str {
        &self.name
    }

    fn group(&self) -> usize {
        0
    }
}

/// What one look at an image and its mask has found.
struct Seen {
    entry: AnnotatedMask,
    size: [usize; 2],
    found: SeenMask,
}

enum SeenMask {
    /// How many pixels have each value.
    Values(BTreeMap<u32, u64>),
    Objects(Vec<MaskObject>),
}

pub(super) fn of_other_size(width: usize, height: usize, wide: usize, high: usize) -> String {
    format!("a mask of {width}x{height} pixels of an image of {wide}x{high}")
}

impl MaskDataset {
    /// How the data set of masks at `path` lies on disk; none if there is none.
    pub fn recognize(path: impl AsRef<Path>) -> Option<Layout> {
        find(path.as_ref()).ok()?.map(|found| found.layout)
    }

    /// Whether `path` has folders of images and masks side by side, whatever else it may be.
    pub fn lies_in_folders(path: impl AsRef<Path>) -> bool {
        layout::find(path.as_ref()).is_ok_and(|found| found.is_some())
    }

    /// Opens the data set of masks at `spec`, a folder in the layout of Pascal VOC or ADE20k, of pairs of images and masks, or COCO's
    /// with polygons or runs. Every mask is read. Parts that it lacks are split off by `seed`; see
    /// [`split_note`](Self::split_note). Images and masks that cannot be used are in [`faults`](Self::faults) and in no part.
    ///
    /// # Errors
    /// There is no such file or folder, its layout is not known, nothing says what the values of masks stand for, or a part has no
    /// images that can be used; the error names the file.
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

    /// Refuses a data set with faults, unless they are to be left out. Returns how many are.
    ///
    /// # Errors
    /// It has faults and `skip` is false: the first is told, and how many there are.
    pub fn refuse_faults(&self, skip: bool) -> Result<usize> {
        match &self.faults[..] {
            [] => Ok(0),
            all if skip => Ok(all.len()),
            [MaskFault { file, detail, .. }] => Err(Error::data(file, detail.clone())),
            [MaskFault { file, detail, .. }, more @ ..] => {
                let more = more.len();
                Err(Error::data(file, format!("{detail}; and {more} more faults: `vpt data check` lists them")))
            }
        }
    }

    /// Decodes every image, and takes those that cannot be decoded out of the data set if `skip` says so. Returns the files that were
    /// taken out.
    ///
    /// # Errors
    /// Images cannot be decoded, and `skip` is false; the error names the first few. Or nothing is left of a part.
    pub fn leave_out_unreadable(&mut self, skip: bool) -> Result<Vec<PathBuf>> {
        let (mut out, mut why) = (Vec::new(), Vec::new());
        for split in Split::ALL {
            let part = split.of([&mut self.train, &mut self.val, &mut self.test]);
            let had_images = !part.is_empty();
            let errors: Vec<_> = part.par_iter().map(|image| image.image.load().err()).collect();
            let mut errors = errors.into_iter();
            part.retain(|image| match errors.next().flatten() {
                None => true,
                Some(error) => {
                    out.push(image.file().to_path_buf());
                    why.push(error.to_string());
                    false
                }
            });
            if part.is_empty() && had_images && skip {
                return Err(Error::invalid(
                    format!("data set {}", self.name),
                    format!("no image of {split} can be read"),
                ));
            }
        }
        if !why.is_empty() && !skip {
            let all: Vec<&str> = why.iter().map(String::as_str).collect();
            return Err(unreadable_error(format!("data set {}", self.name), &all));
        }
        Ok(out)
    }

    fn read(path: &Path, seed: u64, made: MadeParts<'_>) -> Result<Self> {
        std::fs::metadata(path).map_err(Error::typed(path))?;
        let Some(found) = find(path)? else {
            let message = "no data set of masks found: expected JPEGImages/ and SegmentationClass/ (Pascal VOC), images/training/ and \
                           annotations/training/ (ADE20k), images/ and masks/ with files of the same names, COCO's JSON files \
                           with polygons or runs (segmentation), or shapes of CVAT or labelme";
            return Err(Error::data(path, message));
        };
        complete(name_of(path), found, seed, made)
    }
}

/// The data set of masks at `path`.
fn find(path: &Path) -> Result<Option<AnnotatedMasks>> {
    if let Some(found) = layout::find(path)? {
        return Ok(Some(found));
    }
    if let Some(found) = coco::segments(path)? {
        return Ok(Some(of_objects(Layout::COCO, found)));
    }
    Ok(named_segments::segments(path)?.map(|found| {
        let NamedSegments { layout, root, names, parts, notes } = found;
        let mut masks = of_objects(layout, CocoSegments { root, names, parts });
        let note = |(kind, file, detail)| {
            let kind = match kind {
                ProblemKind::MissingAnnotation => MaskFaultKind::MissingMask,
                ProblemKind::DuplicateImage => MaskFaultKind::ImageInTwoParts,
                _ => MaskFaultKind::NoPixels,
            };
            MaskFault { kind, file, detail }
        };
        masks.notes.extend(notes.into_iter().map(note));
        masks
    }))
}

/// Objects, painted over a background.
fn of_objects(layout: Layout, CocoSegments { root, names, parts }: CocoSegments) -> AnnotatedMasks {
    let by_area = layout == Layout::COCO;
    let is_background =
        |name: &str| name.eq_ignore_ascii_case(BACKGROUND) || (layout == Layout::LABELME && name == LABELME_BACKGROUND);
    let own = names.iter().position(|name| is_background(name));
    let is_ignored = |name: &str| layout == Layout::LABELME && name == LABELME_IGNORED;
    // What no object covers is of the first class.
    let mut classes = vec![BACKGROUND.to_owned()];
    let class_of: Vec<u16> = names
        .into_iter()
        .enumerate()
        .map(|(at, name)| {
            if Some(at) == own {
                return 0;
            }
            if is_ignored(&name) {
                return IGNORED;
            }
            classes.push(name);
            classes.len() as u16 - 1
        })
        .collect();
    let annotated = |image: SegmentedImage| {
        let SegmentedImage { name, path, source, declared, objects } = image;
        let objects = objects.into_iter().map(|(category, shape)| (class_of[category], shape)).collect();
        AnnotatedMask { name, image: path, mask: MaskOrigin::Objects { source, declared, objects, by_area } }
    };
    let all = |images: Vec<SegmentedImage>| images.into_iter().map(annotated).collect();
    let parts = match parts {
        Parts::Unsplit(images) => Parts::Unsplit(all(images)),
        Parts::Split { train, val, test } => Parts::Split { train: all(train), val: val.map(all), test: test.map(all) },
    };
    let seen = if by_area { "the smaller one" } else { "the upper one" };
    let note = format!("pixels of no object are background; of objects that overlap {seen} is seen");
    let classes = Some(MaskClasses::painted(classes, note));
    let values = ValueRules { from_one: false, voc_colors: false };
    AnnotatedMasks { root, layout, parts, classes, values, notes: Vec::new() }
}

/// Reads all masks, and fills in the parts that `found` lacks.
fn complete(name: String, found: AnnotatedMasks, seed: u64, made: MadeParts<'_>) -> Result<MaskDataset> {
    let measured = made.measured();
    let AnnotatedMasks { root, layout, parts, classes, values, mut notes } = found;
    let given = given_parts(&parts);
    let mut faults = Vec::new();
    let mut look = |entries: Vec<AnnotatedMask>| -> Vec<Seen> {
        let all: Vec<Result<Seen, MaskFault>> = entries.into_par_iter().map(see).collect();
        all.into_iter().filter_map(|seen| seen.map_err(|fault| faults.push(fault)).ok()).collect()
    };
    let mut parts = match parts {
        Parts::Unsplit(all) => [Some(look(all)), None, None],
        Parts::Split { train, val, test } => [Some(look(train)), val.map(&mut look), test.map(&mut look)],
    };
    drop_repeated(&mut parts, &mut faults);
    let classes = if let Some(classes) = classes {
        classes
    } else {
        let seen: BTreeSet<u32> = parts.iter().flatten().flatten().flat_map(Seen::values).collect();
        let named = NamedClasses::beside(&root, values)?;
        MaskClasses::of(&seen, named, values).map_err(|message| match first_in_colors(&parts) {
            Some(file) => Error::data(file, message),
            None => Error::data(&root, message),
        })?
    };
    let classes = Arc::new(classes);
    let finish = |seen: Vec<Seen>| -> Vec<Result<MaskImage, MaskFault>> {
        seen.into_par_iter().map(|seen| seen.finish(&classes)).collect()
    };
    let mut keep = |seen: Option<Vec<Seen>>| {
        seen.map(|seen| {
            let kept = finish(seen).into_iter().filter_map(|image| image.map_err(|fault| faults.push(fault)).ok());
            let mut kept: Vec<MaskImage> = kept.collect();
            kept.sort_by(|a, b| a.name.cmp(&b.name));
            kept
        })
    };
    let [train, val, test] = parts.map(&mut keep);
    let train = train.unwrap_or_default();
    faults.sort_by(|a, b| a.file.cmp(&b.file));
    for (split, part) in Split::ALL.into_iter().zip([Some(&train), val.as_ref(), test.as_ref()]) {
        let is_needed = split != Split::Train || measured.is_none();
        if let (Some([]), Some(MaskFault { file, detail, .. }), true) =
            (part.map(Vec::as_slice), faults.first(), is_needed)
        {
            return Err(Error::data(file, format!("{detail}; no images are left for {split}")));
        }
    }
    let marked = |part: &[MaskImage]| part.iter().any(|image| image.pixels.iter().any(|(class, _)| *class != IGNORED));
    if measured.is_none() && !train.is_empty() && !marked(&train) {
        return Err(Error::data(
            &root,
            "no pixel of the training images is of a class: there is nothing to learn from",
        ));
    }
    for image in [Some(&train), val.as_ref(), test.as_ref()].into_iter().flatten().flatten() {
        if !marked(std::slice::from_ref(image)) {
            let detail = "no pixel of its mask is of a class".to_owned();
            notes.push(MaskFault { kind: MaskFaultKind::NothingMarked, file: image.file().to_path_buf(), detail });
        }
    }
    let parts = if given == [None; 3] { Parts::Unsplit(train) } else { Parts::Split { train, val, test } };
    let (parts, note) = complete_parts(&name, parts, &["images".to_owned()], seed, made)?;
    let [train, val, test] = parts;
    let split_note = format!("{note}; {}", classes.note);
    Ok(MaskDataset { name, layout, classes, train, val, test, split_note, given, faults, notes, draw: None })
}

fn given_parts(parts: &Parts<AnnotatedMask>) -> [Option<Split>; 3] {
    match parts {
        Parts::Unsplit(_) => [None; 3],
        Parts::Split { val: Some(_), test: Some(_), .. } => Split::ALL.map(Some),
        Parts::Split { val: None, test: Some(_), .. } => [Split::Train, Split::Train, Split::Test].map(Some),
        Parts::Split { val: Some(_), test: None, .. } => [Split::Train, Split::Train, Split::Val].map(Some),
        Parts::Split { val: None, test: None, .. } => [Some(Split::Train); 3],
    }
}

/// An image in two parts stays where it is looked at last.
fn drop_repeated(parts: &mut [Option<Vec<Seen>>; 3], faults: &mut Vec<MaskFault>) {
    let mut seen: HashSet<PathBuf> = HashSet::new();
    for split in [Split::Test, Split::Val, Split::Train] {
        let Some(part) = &mut parts[split as usize] else { continue };
        part.retain(|image| {
            let is_new = seen.insert(image.entry.image.clone());
            if !is_new {
                let detail = format!("in {split} and in another part, or twice in {split}");
                let file = image.entry.image.clone();
                faults.push(MaskFault { kind: MaskFaultKind::ImageInTwoParts, file, detail });
            }
            is_new
        });
    }
}

/// The first mask whose pixels are colors.
fn first_in_colors(parts: &[Option<Vec<Seen>>; 3]) -> Option<&Path> {
    let mut all = parts.iter().flatten().flatten();
    let seen = all.find(|seen| seen.values().any(|value| value & file::COLOR != 0))?;
    match &seen.entry.mask {
        MaskOrigin::File(Ok(path)) => Some(path),
        _ => None,
    }
}

/// Looks at an image and its mask.
fn see(entry: AnnotatedMask) -> Result<Seen, MaskFault> {
    let fault = |kind, file: &Path, detail: String| MaskFault { kind, file: file.to_path_buf(), detail };
    let message = |error: Error, file: &Path| {
        let text = error.to_string();
        text.strip_prefix(&format!("{}: ", file.display())).map_or(text.clone(), str::to_owned)
    };
    let image = &entry.image;
    let size = ImageSource::File(image.clone()).size();
    let [width, height] = size.map_err(|error| fault(MaskFaultKind::UnreadableImage, image, message(error, image)))?;
    if width.max(height) > MAX_RATIO * width.min(height) {
        let detail = format!("{width}x{height} pixels: one side is more than {MAX_RATIO} times the other");
        return Err(fault(MaskFaultKind::ExtremeRatio, image, detail));
    }
    let found = match &entry.mask {
        MaskOrigin::File(Err(why)) => return Err(fault(MaskFaultKind::MissingMask, image, why.clone())),
        MaskOrigin::File(Ok(path)) => {
            let mask =
                file::read(path).map_err(|error| fault(MaskFaultKind::UnreadableMask, path, message(error, path)))?;
            if (mask.width, mask.height) != (width, height) {
                let detail = of_other_size(mask.width, mask.height, width, height);
                return Err(fault(MaskFaultKind::SizeMismatch, path, detail));
            }
            let mut counts = BTreeMap::new();
            for run in mask.values.chunk_by(|a, b| a == b) {
                *counts.entry(run[0]).or_default() += run.len() as u64;
            }
            SeenMask::Values(counts)
        }
        MaskOrigin::Objects { source, declared, objects, by_area } => {
            if let Some([w, h]) = declared.filter(|size| *size != [width, height]) {
                let detail =
                    format!("{}: objects of an image of {w}x{h} pixels, which has {width}x{height}", source.display());
                return Err(fault(MaskFaultKind::SizeMismatch, image, detail));
            }
            let runs = objects.iter().map(|(class, shape)| {
                let pieces = runs(shape, [width, height])?;
                Ok::<_, String>(MaskObject { class: *class, pieces })
            });
            let mut all = runs.collect::<Result<Vec<_>, String>>().map_err(|what| {
                fault(MaskFaultKind::UnreadableMask, source, format!("image {}: {what}", entry.name))
            })?;
            if *by_area {
                // What is small lies on what is large: a plate on its table.
                all.sort_by_key(|object| std::cmp::Reverse(object.pieces.iter().map(Rle::area).sum::<u64>()));
            }
            SeenMask::Objects(all)
        }
    };
    Ok(Seen { entry, size: [width, height], found })
}

/// The pixels of an object, in an image of this width and height.
fn runs(shape: &ObjectShape, [width, height]: [usize; 2]) -> Result<Vec<Rle>, String> {
    let fits = |[w, h]: [usize; 2]| {
        if [w, h] == [width, height] { Ok(()) } else { Err(of_other_size(w, h, width, height)) }
    };
    match shape {
        ObjectShape::Polygons(pieces) => {
            pieces.iter().map(|corners| Rle::from_polygon(width, height, corners)).collect()
        }
        ObjectShape::Counts(size, counts) => {
            fits(*size)?;
            Ok(vec![Rle::from_counts(width, height, counts.clone())?])
        }
        ObjectShape::Text(size, text) => {
            fits(*size)?;
            Ok(vec![Rle::from_text(width, height, text.as_bytes())?])
        }
        ObjectShape::Rows(rectangle, counts) => Ok(vec![Rle::from_rows(width, height, *rectangle, counts)?]),
        ObjectShape::Unknown(what) => Err(what.clone()),
    }
}

impl Seen {
    /// The values of its file.
    fn values(&self) -> impl Iterator<Item = u32> + '_ {
        let counts = match &self.found {
            SeenMask::Values(counts) => Some(counts),
            SeenMask::Objects(_) => None,
        };
        counts.into_iter().flat_map(|counts| counts.keys().copied())
    }

    fn finish(self, classes: &Arc<MaskClasses>) -> Result<MaskImage, MaskFault> {
        let Self { entry: AnnotatedMask { name, image, mask }, size: [width, height], found } = self;
        let source = match (mask, found) {
            (MaskOrigin::File(Ok(path)), SeenMask::Values(counts)) => {
                if let Some(bad) = counts.keys().find(|value| classes.class_of(**value).is_none()) {
                    let read = file::read(&path).ok().and_then(|mask| classes.classes_in(&mask).err());
                    let detail = read.unwrap_or_else(|| format!("value {bad} is none of the classes"));
                    return Err(MaskFault { kind: MaskFaultKind::UnknownIndex, file: path, detail });
                }
                MaskSource::File(path, classes.clone())
            }
            (_, SeenMask::Objects(objects)) => MaskSource::Objects(objects.into()),
            (_, SeenMask::Values(_)) => MaskSource::Objects(Arc::new([])),
        };
        let no_digest = blake3::Hash::from_bytes([0; 32]);
        let image = ImageSource::File(image);
        let mut out = MaskImage { name, image, width, height, pixels: Vec::new(), mask: source, digest: no_digest };
        let ClassMask { classes, .. } = out.mask().map_err(|error| {
            let (kind, file) = (MaskFaultKind::UnreadableMask, out.file().to_path_buf());
            MaskFault { kind, file, detail: error.to_string() }
        })?;
        let mut counts: BTreeMap<u16, u64> = BTreeMap::new();
        let mut hasher = blake3::Hasher::new();
        for run in classes.chunk_by(|a, b| a == b) {
            *counts.entry(run[0]).or_default() += run.len() as u64;
            hasher.update(&run[0].to_le_bytes());
            hasher.update(&(run.len() as u64).to_le_bytes());
        }
        out.pixels = counts.into_iter().collect();
        out.digest = hasher.finalize();
        Ok(out)
    }
}
