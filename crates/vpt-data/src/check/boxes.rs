//! Data sets of boxes: what opening them finds, with the line in files that know none, and the text around it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::finding::{FindingKind, Findings, Severity};
use super::listed::ListedImage;
use super::{Checking, classes, images, tree};
use crate::boxes::{BoxDataset, BoxImage, Object, PlaceInFile, Problem, ProblemKind, Rect, Remedy};
use crate::formats::text_file::first_bytes;
use crate::formats::{BoxFiles, Layout};
use crate::split::MadeParts;
use crate::{ImageSource, Split};

/// The images of the data set that `files` in `layout` are.
pub(super) fn check(layout: Layout, files: &mut dyn BoxFiles, check: &mut Checking<'_>) -> Vec<ListedImage> {
    files.check_texts(check);
    let Checking { data: path, out, .. } = check;
    match BoxDataset::of(path, layout, files, 1, MadeParts::All) {
        Ok(data) => {
            report(&data.problems, &mut |file, place, kind| files.line_of(file, place, kind), out);
            let source = files.names_file().unwrap_or(path);
            classes::similar_names(data.categories.iter().map(|category| category.name.as_str()), source, out);
            let listed = listed(&data);
            files.check_opened(&data, &listed, out);
            listed
        }
        Err(error) => {
            let (problems, errors) = files.open_piecewise();
            report(&problems, &mut |file, place, kind| files.line_of(file, place, kind), out);
            let before = out.0.len();
            files.check_categories(out);
            for error in &errors {
                out.refused(FindingKind::MalformedFile, path, error);
            }
            if out.0.len() == before {
                out.refused(FindingKind::Refused, path, &error);
            }
            let root = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
            let place: (Arc<Path>, Option<u64>) = (root.into(), None);
            let listed = |path| {
                let image = ImageSource::File(path);
                ListedImage { image, split: None, label: "".into(), place: place.clone() }
            };
            tree::images(root, &mut Findings::default()).into_iter().map(listed).collect()
        }
    }
}

/// The images of `data`; what must be equal of images with the same content is what is in them.
fn listed(data: &BoxDataset) -> Vec<ListedImage> {
    let mut out = Vec::new();
    for (split, given) in Split::ALL.into_iter().zip(data.given) {
        out.extend(data.part(split).iter().map(|image| {
            let mut objects: Vec<String> =
                image.objects.iter().map(|o| format!("{} {:?}", o.category, o.rect)).collect();
            objects.sort();
            let place = (image.file().into(), None);
            ListedImage { image: image.image.clone(), split: given, label: objects.join(", ").into(), place }
        }));
    }
    out
}

/// Says `problems` as findings. `locate` finds the line of what has an id.
pub(crate) fn report(
    problems: &[Problem],
    locate: &mut dyn FnMut(&Path, PlaceInFile, ProblemKind) -> Option<u64>,
    out: &mut Findings,
) {
    for problem in problems {
        let Some(mut kind) = FindingKind::of_problem(problem.kind) else { continue };
        let Problem { remedy, file, place, detail, .. } = problem;
        if problem.kind == ProblemKind::UnreadableImage
            && let Some((image, message)) = detail.split_once(": ")
        {
            let start = first_bytes(Path::new(image), 64);
            kind = start.map_or(FindingKind::NoAccess, |start| images::kind_of(&start, message));
        }
        let loses = matches!(
            remedy,
            Remedy::ObjectDropped | Remedy::ImageDropped | Remedy::DroppedHere | Remedy::NothingToLearn
        );
        let severity = if loses { Severity::Error } else { Severity::Warning };
        let (line, at) = match place {
            None => (None, String::new()),
            Some(PlaceInFile::Line(line)) => (Some(*line), String::new()),
            Some(place) => (locate(file, *place, problem.kind), format!("{place}: ")),
        };
        out.add(kind, severity, file, line, format!("{at}{detail}; {remedy}"));
    }
}

/// Calls `tell` with each box that an image has twice, the part on disk that the image is of, and the id of the first.
pub(crate) fn repeated_boxes(data: &BoxDataset, mut tell: impl FnMut(&BoxImage, &Object, Option<Split>, u64)) {
    for (split, given) in Split::ALL.into_iter().zip(data.given) {
        for image in data.part(split) {
            let mut seen: HashMap<[u64; 5], u64> = HashMap::new();
            for object in image.objects.iter().filter(|object| !object.crowd) {
                let Rect { x, y, width, height } = object.rect;
                let [x, y, width, height] = [x, y, width, height].map(f64::to_bits);
                if let Some(first) = seen.insert([object.category as u64, x, y, width, height], object.id) {
                    tell(image, object, given, first);
                }
            }
        }
    }
}
