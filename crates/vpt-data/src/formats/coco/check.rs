//! What a check of COCO files says beyond what opening them finds, with the line that an annotation stands in.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Annotations, CocoFiles, MAX_BYTES, disagreement};
use crate::Split;
use crate::boxes::{BoxDataset, Category, PlaceInFile, ProblemKind};
use crate::check::{Checking, FindingKind, Findings, json, repeated_boxes, text};
use vpt_base::files::read_limited;

impl CocoFiles {
    /// How files begin; the rest is judged by the parser.
    pub(super) fn check_starts(&self, check: &mut Checking<'_>) {
        for file in &self.files {
            let mut start = Vec::new();
            if File::open(&file.path).and_then(|file| file.take(3).read_to_end(&mut start)).is_ok_and(|n| n == 3) {
                text::check_start(&file.path, &start, &mut check.out);
            }
            if let Some(split) = file.part {
                check.places.parts[split as usize] = Some(file.path.clone());
            }
        }
    }

    /// Categories of files that differ.
    pub(super) fn compare_categories(&self, out: &mut Findings) {
        let mut known: Option<(&Path, HashMap<u64, String>)> = None;
        // Train first: it says what there is.
        let mut files: Vec<_> = self.files.iter().map(|file| (file.part, &file.path)).collect();
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
            for (line, category) in found {
                let name = names.get(&category.id).map(String::as_str);
                if let Some(message) = disagreement(&category, name, first) {
                    let is_known = name.is_some();
                    let kind = if is_known { FindingKind::LabelNameMismatch } else { FindingKind::ClassNotInTrain };
                    out.error(kind, file, line, message);
                }
            }
        }
    }

    /// Boxes that an image has twice.
    pub(super) fn tell_repeated_boxes(&mut self, data: &BoxDataset, out: &mut Findings) {
        let Self { files, lines, .. } = self;
        let is_of =
            |file: &Annotations, split: Option<Split>| split.is_none() || file.part.is_none() || file.part == split;
        repeated_boxes(data, |_, object, split, first| {
            let Some(Annotations { path, .. }) = files.iter().find(|file| is_of(file, split)) else { return };
            let place = PlaceInFile::Annotation(object.id);
            let name = &data.categories[object.category].name;
            let message = format!("{place}: the same box of '{name}' as annotation {first}");
            out.warning(FindingKind::DuplicateBox, path, lines.of(path, place, ProblemKind::Crowd), message);
        });
    }
}

/// Where images and annotations stand in files, which are read again when it is first asked for.
#[derive(Default)]
pub(super) struct EntryLines {
    read: HashMap<PathBuf, LinesById>,
    /// How often a repeated id was asked for.
    asked: HashMap<(PathBuf, String), usize>,
}

/// Lines by id, in the order of the file.
#[derive(Default)]
struct LinesById {
    images: HashMap<u64, Vec<u64>>,
    annotations: HashMap<u64, Vec<u64>>,
    /// Of annotations by their number.
    order: Vec<u64>,
}

#[derive(Deserialize)]
struct Id {
    id: Option<u64>,
}

impl EntryLines {
    fn in_file(&mut self, file: &Path) -> &LinesById {
        self.read.entry(file.to_path_buf()).or_insert_with(|| {
            let mut lines = LinesById::default();
            let bytes = read_limited(file, MAX_BYTES).unwrap_or_default();
            for entry in json::entries(&bytes) {
                let id = serde_json::from_slice::<Id>(entry.text).ok().and_then(|entry| entry.id);
                let by_id = match entry.key {
                    b"images" => &mut lines.images,
                    b"annotations" => {
                        lines.order.push(entry.line);
                        &mut lines.annotations
                    }
                    _ => continue,
                };
                if let Some(id) = id {
                    by_id.entry(id).or_default().push(entry.line);
                }
            }
            lines
        })
    }

    /// The line of `place` in `file`. Of ids that occur twice, problems come in the order of the later ones.
    pub(super) fn of(&mut self, file: &Path, place: PlaceInFile, kind: ProblemKind) -> Option<u64> {
        let is_repeated = matches!(kind, ProblemKind::DuplicateImageId | ProblemKind::DuplicateAnnotationId);
        let nth = if is_repeated {
            let asked = self.asked.entry((file.to_path_buf(), place.to_string())).or_default();
            *asked += 1;
            *asked
        } else {
            0
        };
        let known = self.in_file(file);
        let lines = match place {
            PlaceInFile::Line(line) => return Some(line),
            PlaceInFile::Row(_) | PlaceInFile::Shape(_) => return None,
            PlaceInFile::Entry(number) => return known.order.get(number.saturating_sub(1) as usize).copied(),
            PlaceInFile::Image(id) => known.images.get(&id),
            PlaceInFile::Annotation(id) => known.annotations.get(&id),
        }?;
        lines.get(nth).or(lines.last()).copied()
    }
}
