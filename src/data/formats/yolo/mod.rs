//! YOLO: `data.yaml` says which images belong to which part and what the classes are; the objects of `images/x.jpg` are the
//! lines of `labels/x.txt`.
//!
//! A line is `class cx cy width height` in fractions of the image, or `class x1 y1 x2 y2 …`, a polygon, of which the box
//! around it is taken. Paths are resolved as Ultralytics does. An image without a file of labels has no objects.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::contain::contain;
use crate::data::Split;
use crate::data::boxes::Category;
use crate::data::boxes::check::{Extent, FoundImage, FoundObject};
use crate::data::boxes::open::{Found, normal, parts};
use crate::data::boxes::problem::{Mend, Place, Problem, ProblemKind};
use crate::data::formats::image_folder::images;
use crate::data::open::entries;
use crate::files::read_limited;
use crate::{Error, Result};

/// Longest `data.yaml` that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 23;

/// Longest list of images or file of labels.
const MAX_BYTES: u64 = 1 << 28;

/// `path` if it is a file that describes such a data set, or the one that does in the folder `path`.
pub(in crate::data) fn recognise(path: &Path) -> Option<PathBuf> {
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

#[derive(Deserialize)]
struct Config {
    path: Option<String>,
    train: Option<Sources>,
    #[serde(alias = "valid", alias = "validation")]
    val: Option<Sources>,
    test: Option<Sources>,
    nc: Option<usize>,
    names: Option<Names>,
    /// There for poses: five numbers of a box come before the points.
    kpt_shape: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "train, val and test are a path or a list of paths")]
enum Sources {
    One(String),
    Many(Vec<String>),
}

impl Sources {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(source) => std::slice::from_ref(source),
            Self::Many(sources) => sources,
        }
    }
}

/// Class names, as a list or as a map from 0, 1, ….
struct Names(Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NamesVisitor)
    }
}

struct NamesVisitor;

impl<'de> Visitor<'de> for NamesVisitor {
    type Value = Names;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list or a map of class names")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Names, A::Error> {
        let mut names = Vec::new();
        while let Some(name) = list.next_element()? {
            names.push(name);
        }
        Ok(Names(names))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
        let mut names = Vec::new();
        while let Some(entry) = map.next_entry::<u64, String>()? {
            names.push(entry);
        }
        names.sort();
        match names.iter().zip(0..).find(|((class, _), expected)| class != expected) {
            Some((_, missing)) => Err(de::Error::custom(format!("names: there is no class {missing} between others"))),
            None => Ok(Names(names.into_iter().map(|(_, name)| name).collect())),
        }
    }
}

/// Opens the data set that `file` describes.
pub(in crate::data) fn open(file: &Path) -> Result<Found> {
    let config = read_config(file)?;
    let categories = categories(file, &config)?;
    let folder = normal(file.parent().unwrap_or(Path::new("")));
    let bases = bases(file, &config);
    let labels = Labels { classes: categories.len(), has_points: config.kpt_shape.is_some() };
    let mut given = [None, None, None];
    let mut problems = Vec::new();
    let mut root = folder.clone();
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
                return Err(Error::file(file, message));
            };
            if split == Split::Train && !path.starts_with(&folder) {
                root.clone_from(base);
            }
            listed(&path, &bases, &mut found, &mut problems)?;
        }
        let read: Vec<_> = found.into_par_iter().map(|image| labels.of(image)).collect::<Result<_>>()?;
        let mut images = Vec::with_capacity(read.len());
        for (image, these) in read {
            images.push(image);
            problems.extend(these);
        }
        given[split as usize] = Some(images);
    }
    Ok(Found { parts: parts(file, given)?, root, categories, has_ids: false, problems })
}

/// The folders that paths in `file` are relative to, first of all the one that it names.
fn bases(file: &Path, config: &Config) -> Vec<PathBuf> {
    let folder = normal(file.parent().unwrap_or(Path::new("")));
    let named = config.path.as_deref().filter(|path| !path.is_empty()).map(|path| normal(&folder.join(path)));
    named.into_iter().chain([folder]).collect()
}

/// The lists of images that `file` names.
pub(in crate::data) fn lists(file: &Path) -> Vec<PathBuf> {
    let Ok(config) = read_config(file) else { return Vec::new() };
    let bases = bases(file, &config);
    let sources = [&config.train, &config.val, &config.test].into_iter().flatten().flat_map(Sources::as_slice);
    sources.filter_map(|source| resolve(&bases, source)).map(|(_, path)| path).filter(|path| path.is_file()).collect()
}

/// What is wrong with the labels of all parts that are there, where [`open`] stops at the first that is not.
pub(in crate::data) fn inspect(file: &Path, problems: &mut Vec<Problem>, errors: &mut Vec<Error>) {
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
                Ok((_, these)) => problems.extend(these),
                Err(error) => errors.push(error),
            }
        }
    }
}

fn read_config(file: &Path) -> Result<Config> {
    let bytes = read_limited(file, MAX_CONFIG_BYTES)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| Error::file(file, "not UTF-8 text"))?;
    let parsed = contain(|| serde_saphyr::from_str(text).map_err(|e| e.without_snippet().to_string()));
    parsed
        .unwrap_or_else(|panic| Err(format!("the YAML reader failed: {panic}")))
        .map_err(|message| Error::file(file, message.split_whitespace().collect::<Vec<_>>().join(" ")))
}

fn categories(file: &Path, config: &Config) -> Result<Vec<Category>> {
    let names = match (&config.names, config.nc) {
        (Some(Names(names)), Some(nc)) if names.len() != nc => {
            return Err(Error::file(file, format!("nc is {nc}, but there are {} names", names.len())));
        }
        (Some(Names(names)), _) => names.clone(),
        (None, Some(nc @ 1..=100_000)) => (0..nc).map(|i| format!("class_{i}")).collect(),
        (None, _) => Vec::new(),
    };
    if names.is_empty() {
        return Err(Error::file(file, "it names no classes (`names:`)"));
    }
    let mut seen = std::collections::HashSet::new();
    if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str())) {
        return Err(Error::file(file, format!("names: two classes are called '{twice}'")));
    }
    Ok((1..).zip(names).map(|(id, name)| Category { id, name }).collect())
}

/// Where `source` is, and from which of `bases`. Like Ultralytics, a leading `../` that leads nowhere is left out: Roboflow
/// writes one too many.
fn resolve<'a>(bases: &'a [PathBuf], source: &str) -> Option<(&'a PathBuf, PathBuf)> {
    let forms = |base: &'a PathBuf| {
        let without = source.strip_prefix("../").map(|rest| (base, normal(&base.join(rest))));
        std::iter::once((base, normal(&base.join(source)))).chain(without)
    };
    bases.iter().flat_map(forms).find(|(_, path)| path.exists())
}

/// An image, the list or folder that names it, and the line of a list.
type Listed = (PathBuf, Arc<Path>, Option<Place>);

/// Adds the images in the folder or list `source`.
fn listed(source: &Path, bases: &[PathBuf], out: &mut Vec<Listed>, problems: &mut Vec<Problem>) -> Result<()> {
    let shared: Arc<Path> = source.into();
    let all: Vec<(PathBuf, Option<Place>)> = if source.is_dir() {
        images(source, "")?.into_iter().map(|(_, path)| (path, None)).collect()
    } else {
        let bytes = read_limited(source, MAX_BYTES)?;
        let beside = source.parent().unwrap_or(Path::new(""));
        let lines = String::from_utf8_lossy(&bytes);
        let lines = lines.lines().zip(1..).map(|(line, n)| (line.trim(), n)).filter(|(line, _)| !line.is_empty());
        let place = |(line, n): (&str, u64)| {
            let mut places = std::iter::once(beside).chain(bases.iter().map(PathBuf::as_path)).map(|f| f.join(line));
            let path = places.find(|path| path.is_file()).unwrap_or_else(|| beside.join(line));
            (normal(&path), Some(Place::Line(n)))
        };
        lines.map(place).collect()
    };
    let mut seen: std::collections::HashSet<PathBuf> = out.iter().map(|(path, ..)| path.clone()).collect();
    for (path, place) in all {
        if seen.insert(path.clone()) {
            out.push((path, shared.clone(), place));
        } else {
            let (kind, mend) = (ProblemKind::DuplicateImage, Mend::Joined);
            let detail = format!("{} is listed already", path.display());
            problems.push(Problem { kind, mend, file: source.into(), place, detail });
        }
    }
    Ok(())
}

/// The file of labels of `image`: `images` becomes `labels`, the ending `.txt`.
pub(in crate::data) fn label_path(image: &Path) -> PathBuf {
    let parts: Vec<Component<'_>> = image.components().collect();
    let folders = &parts[..parts.len().saturating_sub(1)];
    let last = folders.iter().rposition(|part| part.as_os_str() == "images");
    let labels = Component::Normal("labels".as_ref());
    let moved: PathBuf =
        parts.iter().enumerate().map(|(i, part)| if Some(i) == last { &labels } else { part }).collect();
    moved.with_extension("txt")
}

/// The file of labels that is read for `image`: beside it if there is none in `labels`.
pub(in crate::data) fn label_file(image: &Path) -> PathBuf {
    let beside = image.with_extension("txt");
    Some(label_path(image)).filter(|file| file.is_file() || !beside.is_file()).unwrap_or(beside)
}

/// How lines of labels are to be read.
struct Labels {
    classes: usize,
    has_points: bool,
}

impl Labels {
    /// An image with its objects, and what is wrong with its labels.
    fn of(&self, (path, list, place): Listed) -> Result<(FoundImage, Vec<Problem>)> {
        let file = label_file(&path);
        let mut problems = Vec::new();
        let bytes = match read_limited(&file, MAX_BYTES) {
            // The second is a name that no file can have.
            Err(Error::Io { source, .. }) if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => {
                let image = FoundImage { id: 0, path, declared: None, source: list, place, objects: Vec::new() };
                return Ok((image, problems));
            }
            other => other?,
        };
        let source: Arc<Path> = file.as_path().into();
        let mut objects = Vec::new();
        for (line, n) in String::from_utf8_lossy(&bytes).lines().zip(1..) {
            if line.trim().is_empty() {
                continue;
            }
            match self.object(line) {
                Ok((category, extent)) => {
                    let place = Some(Place::Line(n));
                    objects.push(FoundObject { id: 0, place, category, extent, area: None, crowd: false });
                }
                Err((kind, detail)) => {
                    let (file, place, mend) = (file.clone(), Some(Place::Line(n)), Mend::ObjectDropped);
                    problems.push(Problem { kind, mend, file, place, detail });
                }
            }
        }
        Ok((FoundImage { id: 0, path, declared: None, source, place: None, objects }, problems))
    }

    fn object(&self, line: &str) -> Result<(usize, Extent), (ProblemKind, String)> {
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
            _ => return Err(unreadable(format!("{} numbers, neither a box (5) nor a polygon", numbers.len()))),
        };
        Ok((*class as usize, Extent::Fractions(extent)))
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
    fn paths_are_resolved_as_ultralytics_does() {
        let dir = tempfile::tempdir().unwrap();
        let set = dir.path().join("set");
        std::fs::create_dir_all(set.join("train/images")).unwrap();
        let bases = [set.join("moved"), set.clone()];
        let resolved = |source: &str| resolve(&bases, source).map(|(_, path)| path);
        let images = Some(set.join("train/images"));
        assert_eq!(resolved("train/images"), images);
        assert_eq!(resolved("../train/images"), images);
        assert_eq!(resolved(set.join("train/images").to_str().unwrap()), images);
        assert_eq!(resolved("val/images"), None);
    }

    #[test]
    fn lines_are_boxes_or_polygons() {
        let read = |line: &str, has_points| {
            let found = Labels { classes: 2, has_points }.object(line);
            found.map(|(class, extent)| match extent {
                Extent::Fractions(f) => (class, f.map(|v| (v * 1e6).round() / 1e6)),
                Extent::Pixels(_) => panic!("pixels"),
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
