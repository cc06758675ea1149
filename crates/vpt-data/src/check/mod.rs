//! Everything that is wrong with a data set, at once: opening one stops at the first fault, and notices none of those that
//! only make its numbers worse or too good.
//!
//! Files are read on their own here, line by line, so that a fault does not hide those behind it. What is taken for an image,
//! a part or a class is the same as in [`Dataset::open`]. At the end the data set is opened as a run would, and what stops
//! that and was not found before is a finding too.

mod boxes;
pub(super) mod classes;
mod duplicates;
mod finding;
pub(super) mod images;
pub(super) mod json;
mod listed;
#[cfg(test)]
mod tests;
pub(super) mod text;
pub(super) mod tree;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

pub(super) use boxes::{repeated_boxes, report as report_problems};
pub(super) use finding::Findings;
pub use finding::{Finding, FindingKind, Severity};
pub(super) use listed::{ListedImage, PartPlaces};
pub use tree::images_in;

use super::boxes::Problem;
use super::dataset::{Dataset, Layout, Split};
use super::formats::{self, Candidate, Recognized};
use classes::Absent;
use vpt_base::{Error, Result};

/// Warnings that a run tells one by one.
const NAMED: usize = 5;

/// Result of a check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The path that was checked.
    pub data: String,
    /// How the data set lies on disk: `folder`, `csv`, `split_zhou`, `fgvc`, `list`, `idx`, `parquet`, `webdataset`,
    /// `metadata`, `coco`, `yolo`, `voc`, `box-csv`, `box-txt`, `createml`, `cvat`, `darknet` or `labelme`; of masks
    /// `voc-masks`, `ade20k`, `mask-pairs` or `coco`; none if it is none.
    pub layout: Option<&'static str>,
    /// Whether headers and lists alone were read, and so neither damaged nor duplicate images could be found.
    pub fast: bool,
    /// Images that were looked at.
    pub images: usize,
    /// Findings with [`Severity::Error`].
    pub errors: usize,
    /// Findings with [`Severity::Warning`].
    pub warnings: usize,
    /// Findings of each kind.
    pub kinds: BTreeMap<&'static str, usize>,
    /// How long it took.
    pub wall_s: f64,
    /// How fast it was.
    pub images_per_minute: f64,
    /// Findings, by path and line.
    pub findings: Vec<Finding>,
}

/// Checks the data set at `data`. If `fast`, only headers of images are read. `progress` is told now and then how many
/// images of how many are done.
///
/// # Errors
/// There is no such file or folder. What is wrong with its content is in the report.
pub fn check(data: &Path, fast: bool, progress: &mut dyn FnMut(usize, usize)) -> Result<Report> {
    let started = Instant::now();
    let Examination { layout, images, needs_opening, findings: mut out } = examine(data, fast, progress)?;
    if needs_opening
        && !out.has_errors()
        && let Err(error) = Dataset::open(data, 1)
    {
        out.refused(FindingKind::Refused, data, &error);
    }
    Ok(Report::of(data, layout.map(Layout::name), fast, images, out, started))
}

impl Report {
    /// What was found in `images` images of `data` since a check was `started`.
    pub(crate) fn of(
        data: &Path,
        layout: Option<&'static str>,
        fast: bool,
        images: usize,
        out: Findings,
        started: Instant,
    ) -> Self {
        let mut findings = out.0;
        findings.sort_by(|a, b| (&a.path, a.line, a.kind.name()).cmp(&(&b.path, b.line, b.kind.name())));
        findings.dedup();
        let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
        let mut kinds = BTreeMap::new();
        for finding in &findings {
            *kinds.entry(finding.kind.name()).or_default() += 1;
        }
        let wall_s = started.elapsed().as_secs_f64();
        Self {
            data: data.to_string_lossy().into_owned(),
            layout,
            fast,
            images,
            errors,
            warnings: findings.len() - errors,
            kinds,
            wall_s,
            images_per_minute: if wall_s > 0. { images as f64 / wall_s * 60. } else { 0. },
            findings,
        }
    }
}

/// Looks at the images of a data set of masks: whether they can be read, and which are the same.
pub(crate) fn check_listed(
    listed: &[ListedImage],
    fast: bool,
    out: &mut Findings,
    progress: &mut dyn FnMut(usize, usize),
) {
    let hashes = images::check(listed, fast, out, progress);
    duplicates::check(listed, &hashes, duplicates::LabelForm::Masks, out);
}

/// Warnings about `data` for a run that begins, a line each: the first of the cheap part of a check, and where
/// to find the rest. Errors are left to the run, which stops at them.
pub fn notes(data: &Path) -> Vec<String> {
    examine(data, true, &mut |_, _| {}).map(|examined| note_lines(&examined.findings, data)).unwrap_or_default()
}

/// [`notes`] of a data set of boxes that is open already, and in which `problems` were found.
pub fn notes_of_boxes(problems: &[Problem], data: &Path) -> Vec<String> {
    let mut out = Findings::default();
    boxes::report(problems, &mut |_, _, _| None, &mut out);
    // None of them stops a run.
    out.0.iter_mut().for_each(|finding| finding.severity = Severity::Warning);
    note_lines(&out, data)
}

fn note_lines(out: &Findings, data: &Path) -> Vec<String> {
    let warnings = out.0.iter().filter(|finding| finding.severity == Severity::Warning);
    let mut lines: Vec<String> = warnings.take(NAMED).map(ToString::to_string).collect();
    // A single error is told by the run itself.
    if !lines.is_empty() || out.0.len() > 1 {
        let s = if out.0.len() == 1 { "" } else { "s" };
        lines.push(format!("{} finding{s} in the data: see `vpt data check {}`", out.0.len(), data.display()));
    }
    lines
}

/// A check while it goes on.
pub(crate) struct Checking<'a> {
    /// The path that is checked.
    pub(crate) data: &'a Path,
    /// Whether headers and lists alone are read.
    pub(crate) fast: bool,
    /// What stands for the data set and its parts.
    pub(crate) places: PartPlaces,
    /// Classes whose absence is told already.
    pub(crate) absent: HashSet<Absent>,
    pub(crate) out: Findings,
}

impl Checking<'_> {
    /// Takes in the lists that a data set consists of, sorted by part; `kind` is what to call one.
    pub(crate) fn list_parts(&mut self, files: &[(Option<Split>, PathBuf)], kind: &str) {
        for pair in files.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            let message = format!("a second {kind} for one part beside {}", pair[0].1.display());
            self.out.error(FindingKind::AmbiguousSplit, &pair[1].1, None, message);
        }
        for (split, file) in files.iter().filter_map(|(split, file)| Some(((*split)?, file))) {
            self.places.parts[split as usize].get_or_insert_with(|| file.clone());
        }
    }
}

/// What is known of a data set short of what only opening it tells.
struct Examination {
    layout: Option<Layout>,
    images: usize,
    /// Whether opening it may find more.
    needs_opening: bool,
    findings: Findings,
}

fn examine(data: &Path, fast: bool, progress: &mut dyn FnMut(usize, usize)) -> Result<Examination> {
    let candidate = Candidate::at(data).map_err(Error::io(data))?;
    if candidate.is_folder {
        std::fs::read_dir(data).map_err(Error::io(data))?;
    }
    let (places, out) = (PartPlaces::new(data), Findings::default());
    let mut check = Checking { data, fast, places, absent: HashSet::new(), out };
    let (mut layout, mut has_classes, mut needs_opening) = (None, true, true);
    let listed = match formats::recognize_to_check(&candidate) {
        None => Vec::new(),
        Some(Recognized { layout: known, classes, boxes }) => {
            layout = Some(known);
            has_classes = classes.is_some();
            needs_opening = classes.as_ref().is_some_and(|files| !fast || files.opens_fast());
            let boxes = boxes.filter(|_| !has_classes);
            let of_classes = classes.map(|files| files.check(&mut check));
            let of_boxes = boxes.map(|mut files| boxes::check(known, &mut *files, &mut check));
            of_classes.or(of_boxes).unwrap_or_default()
        }
    };
    let Checking { places, absent, out: mut findings, .. } = check;
    if has_classes {
        classes::check(&listed, &places, &absent, &mut findings);
        classes::gaps(&classes::numbers(&listed), &mut findings);
    }
    let listed = if has_classes { listed::existing(listed, &mut findings) } else { listed };
    let hashes = images::check(&listed, fast, &mut findings, progress);
    let labels = if has_classes { duplicates::LabelForm::Classes } else { duplicates::LabelForm::Boxes };
    duplicates::check(&listed, &hashes, labels, &mut findings);
    Ok(Examination { layout, images: listed.len(), needs_opening, findings })
}
