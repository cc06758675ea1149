//! YOLO: `data.yaml` says which images belong to which part and what the classes are; the objects of `images/x.jpg` are the
//! lines of `labels/x.txt`.
//!
//! A line is `class cx cy width height` in fractions of the image, or `class x1 y1 x2 y2 …`, a polygon, of which the box
//! around it is taken. Paths are resolved as Ultralytics does. An image without a file of labels has no objects.

mod config;
pub(super) mod darknet;
mod meet;
mod points;
mod write;

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use self::config::{MAX_CONFIG_BYTES, bases, categories, read_config, resolve};
use self::meet::PartLabels;
use self::points::LongLines;
pub(super) use self::write::write;
use super::image_folder::images;
use super::{BoxFiles, Format, Layout, Recognition};
use crate::boxes::{
    AnnotatedImage, AnnotatedObject, AnnotatedSet, BoxDataset, BoxExtent, PlaceInFile, Problem, ProblemKind, Remedy,
    normal, parts,
};
use crate::check::{Checking, FindingKind, Findings, ListedImage, text};
use crate::open::{Parts, entries};
use crate::{ImageSource, Split};
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

/// Sides of boxes, in images, from which on they are taken for pixels.
const PIXELS: f64 = 2.;
/// Sides beyond which they are no number of pixels, either.
const MOST_PIXELS: f64 = 1e6;

/// Longest list of images or file of labels.
const MAX_BYTES: u64 = 1 << 28;

impl Layout {
    /// YOLO: `data.yaml` and a text file for each image.
    pub const YOLO: Self = Self::new("yolo", "YOLO");
}

/// `data.yaml` and a text file for each image.
pub(super) const FORMAT: Format = Format {
    has_boxes: true,
    recognize: |candidate| Ok(Recognition::of_boxes(Layout::YOLO, config_in_or_at(candidate.path).map(YoloFiles))),
};

/// The file that describes a data set.
struct YoloFiles(PathBuf);

impl BoxFiles for YoloFiles {
    fn open(&self) -> Result<AnnotatedSet> {
        open(&self.0)
    }

    fn open_piecewise(&self) -> (Vec<Problem>, Vec<Error>) {
        let (mut problems, mut errors) = (Vec::new(), Vec::new());
        open_piecewise(&self.0, &mut problems, &mut errors);
        (problems, errors)
    }

    fn check_texts(&self, check: &mut Checking<'_>) {
        for file in config::lists(&self.0).iter().chain([&self.0]) {
            text::check_file(file, &mut check.out);
        }
    }

    fn check_opened(&mut self, _data: &BoxDataset, listed: &[ListedImage], out: &mut Findings) {
        check_labels(listed, out);
    }
}

/// `path` if it is a file that describes such a data set, or the one that does in the folder `path`.
fn config_in_or_at(path: &Path) -> Option<PathBuf> {
    if path.is_file() {
        return describes(path).then(|| path.to_path_buf());
    }
    let usual = ["data.yaml", "data.yml"].map(|name| path.join(name));
    if let Some(file) = usual.into_iter().find(|file| file.is_file()) {
        return Some(file);
    }
    let mut others = entries(path).ok()?.into_iter().map(|(_, path)| path).filter(|path| describes(path));
    let first = others.next();
    first.filter(|_| others.next().is_none())
}

fn describes(file: &Path) -> bool {
    let is_yaml = file.extension().is_some_and(|e| e.eq_ignore_ascii_case("yaml") || e.eq_ignore_ascii_case("yml"));
    is_yaml
        && file.is_file()
        && read_limited(file, MAX_CONFIG_BYTES).is_ok_and(|bytes| {
            let text = String::from_utf8_lossy(&bytes);
            let has = |key: &str| text.lines().any(|line| line.starts_with(key));
            has("train:") && (has("names:") || has("nc:"))
        })
}

/// Opens the data set that `file` describes.
fn open(file: &Path) -> Result<AnnotatedSet> {
    let config = read_config(file)?;
    let categories = categories(file, &config)?;
    let folder = normal(file.parent().unwrap_or(Path::new("")));
    let bases = bases(file, &config);
    let labels = Labels { classes: categories.len(), has_points: config.kpt_shape.is_some() };
    let mut given = [None, None, None];
    let (mut problems, mut absent) = (Vec::new(), Vec::new());
    let mut root = folder.clone();
    let mut met = [None, None, None];
    let mut long = LongLines::default();
    for (split, sources) in Split::ALL.into_iter().zip([&config.train, &config.val, &config.test]) {
        let Some(sources) = sources else { continue };
        let mut found = Vec::new();
        for source in sources.as_slice() {
            let Some((base, path)) = resolve(&bases, source) else {
                // It is named by habit where there is none.
                if split == Split::Test {
                    continue;
                }
                let message = format!("{split}: {source} is not there, seen from {}", folder.display());
                absent.push((split, Error::data(file, message)));
                continue;
            };
            if split == Split::Train && !path.starts_with(&folder) {
                root.clone_from(base);
            }
            listed(&path, &bases, &mut found, &mut problems)?;
        }
        if absent.iter().any(|(other, _)| *other == split) {
            continue;
        }
        let read: Vec<_> = found.into_par_iter().map(|image| labels.of(image)).collect::<Result<_>>()?;
        let mut images = Vec::with_capacity(read.len());
        let mut part = PartLabels::default();
        for ReadLabels { image, problems: these, long: lines, is_labelled } in read {
            part.add(image.image.file().unwrap_or(&folder), is_labelled);
            long.extend(&lines);
            images.push(image);
            problems.extend(these);
        }
        given[split as usize] = Some(images);
        met[split as usize] = Some(part);
    }
    meet::compare(file, &folder, &met, &labels, &mut problems)?;
    refuse_pixels(&given)?;
    if let Some(shape) = long.shape().filter(|_| !labels.has_points && !config.has_polygons()) {
        let message = format!(
            "lines of labels look like boxes with keypoints; say so by kpt_shape: {shape}, or by task: segment that they are polygons"
        );
        return Err(Error::data(file, message));
    }
    if given.iter().all(Option::is_none)
        && let Some((_, error)) = absent.pop()
    {
        return Err(error);
    }
    // What is named and is not there is no reason to take another part for all there is.
    let parts = match given {
        [None, val, test] if absent.iter().any(|(split, _)| *split == Split::Train) => {
            Parts::Split { train: Vec::new(), val, test }
        }
        given => parts(file, given)?,
    };
    Ok(AnnotatedSet { parts, root, categories, has_ids: false, problems, absent })
}

/// Boxes several times as large as their images, all of them, are in pixels.
fn refuse_pixels(given: &[Option<Vec<AnnotatedImage>>; 3]) -> Result<()> {
    let images = || given.iter().flatten().flatten();
    let is_pixels = |object: &AnnotatedObject| match object.extent {
        BoxExtent::Fractions([_, _, width, height]) => {
            [width, height].iter().all(|side| (PIXELS..=MOST_PIXELS).contains(side))
        }
        BoxExtent::Pixels(_) => false,
    };
    let mut objects = images().flat_map(|image| &image.objects);
    let all = objects.next().is_some_and(is_pixels) && objects.all(is_pixels);
    match images().find(|image| !image.objects.is_empty()).filter(|_| all) {
        Some(image) => {
            let message = "all boxes are larger than their images, as if they were in pixels; they are to be shares: divide them by \
                           width and height";
            Err(Error::data(&*image.source, message))
        }
        None => Ok(()),
    }
}

/// What is wrong with the labels of all parts that are there, where [`open`] stops at the first that is not.
fn open_piecewise(file: &Path, problems: &mut Vec<Problem>, errors: &mut Vec<Error>) {
    let Ok(config) = read_config(file) else { return };
    let Ok(categories) = categories(file, &config) else { return };
    let labels = Labels { classes: categories.len(), has_points: config.kpt_shape.is_some() };
    let bases = bases(file, &config);
    for sources in [&config.train, &config.val, &config.test].into_iter().flatten() {
        let mut found = Vec::new();
        for (_, path) in sources.as_slice().iter().filter_map(|source| resolve(&bases, source)) {
            errors.extend(listed(&path, &bases, &mut found, problems).err());
        }
        for read in found.into_par_iter().map(|image| labels.of(image)).collect::<Vec<_>>() {
            match read {
                Ok(read) => problems.extend(read.problems),
                Err(error) => errors.push(error),
            }
        }
    }
}

/// An image, the list or folder that names it, and the line of a list.
type NamedImage = (PathBuf, Arc<Path>, Option<PlaceInFile>);

/// Adds the images in the folder or list `source`.
fn listed(source: &Path, bases: &[PathBuf], out: &mut Vec<NamedImage>, problems: &mut Vec<Problem>) -> Result<()> {
    let shared: Arc<Path> = source.into();
    let all: Vec<(PathBuf, Option<PlaceInFile>)> = if source.is_dir() {
        images(source, "")?.into_iter().map(|(_, path)| (path, None)).collect()
    } else {
        let bytes = read_limited(source, MAX_BYTES)?;
        let beside = source.parent().unwrap_or(Path::new(""));
        let text = String::from_utf8_lossy(&bytes);
        let lines = text
            .trim_start_matches('\u{feff}')
            .lines()
            .zip(1..)
            .map(|(line, n)| (line.trim(), n))
            .filter(|(line, _)| !line.is_empty());
        let place = |(line, n): (&str, u64)| {
            let mut places = std::iter::once(beside).chain(bases.iter().map(PathBuf::as_path)).map(|f| f.join(line));
            let path = places.find(|path| path.is_file()).unwrap_or_else(|| beside.join(line));
            (normal(&path), Some(PlaceInFile::Line(n)))
        };
        lines.map(place).collect()
    };
    let mut seen: HashSet<PathBuf> = out.iter().map(|(path, ..)| path.clone()).collect();
    for (path, place) in all {
        if seen.insert(path.clone()) {
            out.push((path, shared.clone(), place));
        } else {
            let (kind, remedy) = (ProblemKind::DuplicateImage, Remedy::Joined);
            let detail = format!("{} is listed already", path.display());
            problems.push(Problem { kind, remedy, file: source.into(), place, detail });
        }
    }
    Ok(())
}

/// The file of labels of `image`: `images` becomes `labels`, the ending `.txt`.
fn label_path(image: &Path) -> PathBuf {
    let parts: Vec<Component<'_>> = image.components().collect();
    let folders = &parts[..parts.len().saturating_sub(1)];
    let last = folders.iter().rposition(|part| part.as_os_str() == "images");
    let labels = Component::Normal("labels".as_ref());
    let moved: PathBuf =
        parts.iter().enumerate().map(|(i, part)| if Some(i) == last { &labels } else { part }).collect();
    moved.with_extension("txt")
}

/// The file of labels that is read for `image`: beside it if there is none in `labels`.
fn label_file(image: &Path) -> PathBuf {
    let beside = image.with_extension("txt");
    Some(label_path(image)).filter(|file| file.is_file() || !beside.is_file()).unwrap_or(beside)
}

/// How lines of labels are to be read.
struct Labels {
    classes: usize,
    has_points: bool,
}

/// An image and what its file of labels says.
struct ReadLabels {
    image: AnnotatedImage,
    problems: Vec<Problem>,
    /// Lines of more numbers than a box has.
    long: LongLines,
    /// Whether there is such a file.
    is_labelled: bool,
}

impl Labels {
    /// An image with its objects, and what is wrong with its labels.
    fn of(&self, (path, list, place): NamedImage) -> Result<ReadLabels> {
        let file = label_file(&path);
        let (mut problems, mut long) = (Vec::new(), LongLines::default());
        let bytes = match read_limited(&file, MAX_BYTES) {
            // The second is a name that no file can have.
            Err(Error::Io { source, .. }) if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => {
                let image = AnnotatedImage {
                    id: 0,
                    image: ImageSource::File(path),
                    declared: None,
                    source: list,
                    place,
                    objects: Vec::new(),
                };
                return Ok(ReadLabels { image, problems, long, is_labelled: false });
            }
            other => other?,
        };
        let source: Arc<Path> = file.as_path().into();
        let mut objects = Vec::new();
        let text = String::from_utf8_lossy(&bytes);
        for (line, n) in text.trim_start_matches('\u{feff}').lines().zip(1..) {
            if line.trim().is_empty() {
                continue;
            }
            let numbers: Option<Vec<f64>> = line.split_whitespace().skip(1).map(|word| word.parse().ok()).collect();
            if let Some(numbers) = numbers.filter(|numbers| numbers.len() > 4) {
                long.add(&numbers);
            }
            match self.object(line) {
                Ok((category, extent)) => {
                    let place = Some(PlaceInFile::Line(n));
                    objects.push(AnnotatedObject { id: 0, place, category, extent, area: None, crowd: false });
                }
                Err((kind, detail)) => {
                    let (file, place, remedy) = (file.clone(), Some(PlaceInFile::Line(n)), Remedy::ObjectDropped);
                    problems.push(Problem { kind, remedy, file, place, detail });
                }
            }
        }
        let image = ImageSource::File(path);
        let image = AnnotatedImage { id: 0, image, declared: None, source, place: None, objects };
        Ok(ReadLabels { image, problems, long, is_labelled: true })
    }

    fn object(&self, line: &str) -> Result<(usize, BoxExtent), (ProblemKind, String)> {
        let unreadable = |detail: String| (ProblemKind::UnreadableObject, detail);
        let numbers = line
            .split_whitespace()
            .map(|word| word.parse::<f64>().map_err(|_| unreadable(format!("'{}' is no number", shortened(word)))));
        let numbers = numbers.collect::<Result<Vec<f64>, _>>()?;
        let [class, shape @ ..] = &numbers[..] else { return Err(unreadable("an empty line".into())) };
        if class.fract() != 0. || *class < 0. || *class >= self.classes as f64 {
            let last = self.classes - 1;
            return Err((ProblemKind::UnknownCategory, format!("class {class} is not one of 0 to {last}")));
        }
        let extent = match shape {
            [cx, cy, w, h] => [cx - w / 2., cy - h / 2., *w, *h],
            [cx, cy, w, h, ..] if self.has_points => [cx - w / 2., cy - h / 2., *w, *h],
            polygon if polygon.len() >= 6 && polygon.len() % 2 == 0 => around(polygon),
            _ => {
                let hint = match numbers.len() {
                    6 => "; a sixth, as predictions have it, is a confidence: leave it out",
                    n if n > 7 => "; keypoints need kpt_shape in data.yaml",
                    _ => "",
                };
                return Err(unreadable(format!("{} numbers, neither a box (5) nor a polygon{hint}", numbers.len())));
            }
        };
        Ok((*class as usize, BoxExtent::Fractions(extent)))
    }
}

/// The box around points x1 y1 x2 y2 …; of numbers that are none if a point is.
fn around(points: &[f64]) -> [f64; 4] {
    let range = |start: usize| {
        let values = || points.iter().skip(start).step_by(2).copied();
        if values().any(f64::is_nan) {
            return (f64::NAN, f64::NAN);
        }
        (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max))
    };
    let ((left, right), (top, bottom)) = (range(0), range(1));
    [left, top, right - left, bottom - top]
}

/// `word`, or its beginning if it is long.
fn shortened(word: &str) -> String {
    let start: String = word.chars().take(24).collect();
    if start.len() < word.len() { start + "…" } else { start }
}

/// Files of labels: their encoding, and lines that are there twice.
fn check_labels(listed: &[ListedImage], out: &mut Findings) {
    let look = |image: &ListedImage| {
        let mut found = Findings::default();
        let file = label_file(image.file());
        let Ok(bytes) = read_limited(&file, MAX_BYTES) else { return found };
        text::check(&file, &bytes, true, &mut found);
        let mut seen: HashMap<&[u8], u64> = HashMap::new();
        for (line, number) in bytes.split(|&b| b == b'\n').map(<[u8]>::trim_ascii).zip(1..) {
            let first = *seen.entry(line).or_insert(number);
            if first != number && !line.is_empty() {
                let message = format!("the same box as in line {first}");
                found.warning(FindingKind::DuplicateBox, &file, number, message);
            }
        }
        found
    };
    let found: Vec<Findings> = listed.par_iter().map(look).collect();
    out.0.extend(found.into_iter().flat_map(|found| found.0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_lie_where_the_last_images_becomes_labels() {
        let label = |image: &str| label_path(Path::new(image)).to_string_lossy().into_owned();
        assert_eq!(label("images/train/a.jpg"), "labels/train/a.txt");
        assert_eq!(label("/images/set/train/images/sub/a.b.png"), "/images/set/train/labels/sub/a.b.txt");
        assert_eq!(label("set/my_images/a.jpg"), "set/my_images/a.txt");
        assert_eq!(label("images"), "images.txt");
    }

    #[test]
    fn lines_are_boxes_or_polygons() {
        let read = |line: &str, has_points| {
            let found = Labels { classes: 2, has_points }.object(line);
            found.map(|(class, extent)| match extent {
                BoxExtent::Fractions(f) => (class, f.map(|v| (v * 1e6).round() / 1e6)),
                BoxExtent::Pixels(_) => panic!("pixels"),
            })
        };
        assert_eq!(read("1 0.5 0.5 0.2 0.1", false).unwrap(), (1, [0.4, 0.45, 0.2, 0.1]));
        assert_eq!(read("0.0\t.5 5e-1 0.2 0.1 ", false).unwrap(), (0, [0.4, 0.45, 0.2, 0.1]));
        assert_eq!(read("0 0.1 0.5 0.3 0.2 0.2 0.9", false).unwrap(), (0, [0.1, 0.2, 0.2, 0.7]));
        assert_eq!(read("0 0.5 0.5 0.2 0.1 0.3 0.3 2", true).unwrap(), (0, [0.4, 0.45, 0.2, 0.1]));
        assert!(read("0 nan 0.5 0.3 0.2 0.2 0.9", false).unwrap().1[0].is_nan());
        for (line, kind) in [
            ("2 0.5 0.5 0.2 0.1", ProblemKind::UnknownCategory),
            ("-1 0.5 0.5 0.2 0.1", ProblemKind::UnknownCategory),
            ("0.5 0.5 0.5 0.2 0.1", ProblemKind::UnknownCategory),
            ("nan 0.5 0.5 0.2 0.1", ProblemKind::UnknownCategory),
            ("0 0.5 0.5 0.2", ProblemKind::UnreadableObject),
            ("0 0.5 0.5 0.2 0.1 0.9", ProblemKind::UnreadableObject),
            ("cat 0.5 0.5 0.2 0.1", ProblemKind::UnreadableObject),
        ] {
            assert_eq!(read(line, false).unwrap_err().0, kind, "{line}");
        }
    }
}
