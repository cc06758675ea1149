//! Data sets of boxes: what opening them finds, with the line in files that know none, and the text around it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde::Deserialize;

use super::finding::{FindingKind, Findings, Severity};
use super::listed::{Listed, Places};
use super::{classes, images, json, text, tree};
use crate::data::Split;
use crate::data::boxes::{
    BoxDataset, BoxImage, BoxLayout, Category, Mend, Place, Problem, ProblemKind, Rect, inspect, label_file,
};
use crate::files::read_limited;

/// Longest text that is looked at, in bytes.
const MAX_BYTES: u64 = 1 << 32;

/// The images of the data set at `path`.
pub(super) fn check(path: &Path, places: &mut Places, out: &mut Findings) -> Vec<Listed> {
    let texts = inspect::texts(path).unwrap_or_default();
    for file in &texts.lines {
        match read_limited(file, MAX_BYTES) {
            Ok(bytes) => text::check(file, &bytes, true, out),
            Err(error) => out.refused(FindingKind::NoAccess, file, &error),
        }
    }
    for (split, file) in &texts.json {
        let mut start = Vec::new();
        // The rest is judged by the parser.
        if File::open(file).and_then(|file| file.take(3).read_to_end(&mut start)).is_ok_and(|n| n == 3) {
            text::check_start(file, &start, out);
        }
        if let Some(split) = split {
            places.parts[*split as usize] = Some(file.clone());
        }
    }
    let mut lines = JsonLines::new(texts.json);
    match BoxDataset::open(path, 1) {
        Ok(data) => {
            report(&data.problems, &mut |file, place, kind| lines.of(file, place, kind), out);
            let source = lines.files.first().map_or(path, |(_, file)| file.as_path());
            classes::similar_names(data.categories.iter().map(|category| category.name.as_str()), source, out);
            let listed = listed(&data);
            match data.layout {
                BoxLayout::Yolo => label_texts(&listed, out),
                layout => repeated_boxes(&data, layout, &mut lines, out),
            }
            listed
        }
        Err(error) => {
            let (problems, errors) = inspect::piecewise(path);
            report(&problems, &mut |file, place, kind| lines.of(file, place, kind), out);
            let before = out.0.len();
            categories(&lines, out);
            for error in &errors {
                out.refused(FindingKind::MalformedFile, path, error);
            }
            if out.0.len() == before {
                out.refused(FindingKind::Refused, path, &error);
            }
            let root = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
            let images = tree::images(root, &mut Findings::default()).into_iter().map(Arc::from);
            let place: (Arc<Path>, Option<u64>) = (root.into(), None);
            images
                .map(|path| Listed { path, number: None, split: None, label: "".into(), place: place.clone() })
                .collect()
        }
    }
}

/// The images of `data`; what must be equal of images with the same content is what is in them.
fn listed(data: &BoxDataset) -> Vec<Listed> {
    let mut out = Vec::new();
    for (split, given) in Split::ALL.into_iter().zip(data.given) {
        out.extend(data.part(split).iter().map(|image| {
            let mut objects: Vec<String> =
                image.objects.iter().map(|o| format!("{} {:?}", o.category, o.rect)).collect();
            objects.sort();
            let path: Arc<Path> = image.path.as_path().into();
            let label = objects.join(", ").into();
            Listed { place: (path.clone(), None), path, number: None, split: given, label }
        }));
    }
    out
}

/// Says `problems` as findings. `locate` finds the line of what has an id.
pub(super) fn report(
    problems: &[Problem],
    locate: &mut dyn FnMut(&Path, Place, ProblemKind) -> Option<u64>,
    out: &mut Findings,
) {
    for problem in problems {
        let Some(mut kind) = FindingKind::of_problem(problem.kind) else { continue };
        let Problem { mend, file, place, detail, .. } = problem;
        if problem.kind == ProblemKind::UnreadableImage
            && let Some((image, message)) = detail.split_once(": ")
        {
            let mut start = Vec::new();
            let read = File::open(image).and_then(|file| file.take(64).read_to_end(&mut start));
            kind = if read.is_ok() { images::kind_of(&start, message) } else { FindingKind::NoAccess };
        }
        let loses = matches!(mend, Mend::ObjectDropped | Mend::ImageDropped | Mend::DroppedHere);
        let severity = if loses { Severity::Error } else { Severity::Warning };
        let (line, at) = match place {
            None => (None, String::new()),
            Some(Place::Line(line)) => (Some(*line), String::new()),
            Some(place) => (locate(file, *place, problem.kind), format!("{place}: ")),
        };
        out.add(kind, severity, file, line, format!("{at}{detail}; {mend}"));
    }
}

/// Where images and annotations stand in COCO's files, which are read again when it is first asked for.
struct JsonLines {
    files: Vec<(Option<Split>, PathBuf)>,
    read: HashMap<PathBuf, Ids>,
    /// How often a repeated id was told.
    told: HashMap<(PathBuf, String), usize>,
}

/// Lines by id, in the order of the file.
#[derive(Default)]
struct Ids {
    images: HashMap<u64, Vec<u64>>,
    annotations: HashMap<u64, Vec<u64>>,
    /// Of annotations by their number.
    order: Vec<u64>,
}

#[derive(Deserialize)]
struct Id {
    id: Option<u64>,
}

impl JsonLines {
    fn new(files: Vec<(Option<Split>, PathBuf)>) -> Self {
        Self { files, read: HashMap::new(), told: HashMap::new() }
    }

    fn ids(&mut self, file: &Path) -> &Ids {
        self.read.entry(file.to_path_buf()).or_insert_with(|| {
            let mut ids = Ids::default();
            let bytes = read_limited(file, MAX_BYTES).unwrap_or_default();
            for entry in json::entries(&bytes) {
                let id = serde_json::from_slice::<Id>(entry.text).ok().and_then(|entry| entry.id);
                let by_id = match entry.key {
                    b"images" => &mut ids.images,
                    b"annotations" => {
                        ids.order.push(entry.line);
                        &mut ids.annotations
                    }
                    _ => continue,
                };
                if let Some(id) = id {
                    by_id.entry(id).or_default().push(entry.line);
                }
            }
            ids
        })
    }

    /// The line of `place` in `file`. Of ids that occur twice, problems come in the order of the later ones.
    fn of(&mut self, file: &Path, place: Place, kind: ProblemKind) -> Option<u64> {
        let is_repeated = matches!(kind, ProblemKind::DuplicateImageId | ProblemKind::DuplicateAnnotationId);
        let nth = if is_repeated {
            let told = self.told.entry((file.to_path_buf(), place.to_string())).or_default();
            *told += 1;
            *told
        } else {
            0
        };
        let ids = self.ids(file);
        let lines = match place {
            Place::Line(line) => return Some(line),
            Place::Entry(number) => return ids.order.get(number.saturating_sub(1) as usize).copied(),
            Place::Image(id) => ids.images.get(&id),
            Place::Annotation(id) => ids.annotations.get(&id),
        }?;
        lines.get(nth).or(lines.last()).copied()
    }
}

/// Categories of COCO's files that differ.
fn categories(lines: &JsonLines, out: &mut Findings) {
    let mut known: Option<(&Path, HashMap<u64, String>)> = None;
    // Train first: it says what there is.
    let mut files: Vec<_> = lines.files.iter().collect();
    files.sort();
    for (_, file) in files {
        let bytes = read_limited(file, MAX_BYTES).unwrap_or_default();
        let entries = json::entries(&bytes).into_iter().filter(|entry| entry.key == b"categories");
        let found: Vec<(u64, Category)> =
            entries.filter_map(|entry| Some((entry.line, serde_json::from_slice(entry.text).ok()?))).collect();
        let Some((first, names)) = &known else {
            let names = found.into_iter().map(|(_, Category { id, name })| (id, name)).collect();
            known = Some((file.as_path(), names));
            continue;
        };
        for (line, Category { id, name }) in found {
            let first = first.display();
            match names.get(&id) {
                Some(other) if *other == name => {}
                Some(other) => {
                    let message = format!("category {id} is '{name}' here and '{other}' in {first}");
                    out.error(FindingKind::LabelNameMismatch, file, line, message);
                }
                None => {
                    let message = format!("category {id} ('{name}') does not occur in {first}");
                    out.error(FindingKind::ClassNotInTrain, file, line, message);
                }
            }
        }
    }
}

/// Boxes that an image has twice.
fn repeated_boxes(data: &BoxDataset, layout: BoxLayout, lines: &mut JsonLines, out: &mut Findings) {
    let mut tell = |image: &BoxImage, split: Option<Split>| {
        let mut seen: HashMap<[u64; 5], u64> = HashMap::new();
        for object in image.objects.iter().filter(|object| !object.crowd) {
            let Rect { x, y, width, height } = object.rect;
            let [x, y, width, height] = [x, y, width, height].map(f64::to_bits);
            let Some(first) = seen.insert([object.category as u64, x, y, width, height], object.id) else { continue };
            let name = data.categories.get(object.category).map_or("", |category| category.name.as_str());
            let file = lines.files.iter().find(|(part, _)| split.is_none() || part.is_none() || *part == split);
            if let Some((_, file)) = file.cloned().filter(|_| layout == BoxLayout::Coco) {
                let place = Place::Annotation(object.id);
                let line = lines.of(&file, place, ProblemKind::Crowd);
                let message = format!("{place}: the same box of '{name}' as annotation {first}");
                out.warning(FindingKind::DuplicateBox, file, line, message);
            } else {
                out.warning(FindingKind::DuplicateBox, &image.path, None, format!("two equal boxes of '{name}'"));
            }
        }
    };
    for (split, given) in Split::ALL.into_iter().zip(data.given) {
        data.part(split).iter().for_each(|image| tell(image, given));
    }
}

/// YOLO's files of labels: their encoding, and lines that are there twice.
fn label_texts(listed: &[Listed], out: &mut Findings) {
    let look = |image: &Listed| {
        let mut found = Findings::default();
        let file = label_file(&image.path);
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
