//! Everything that is wrong with a data set, at once: opening one stops at the first fault, and notices none of those that
//! only make its numbers worse or too good.
//!
//! Files are read on their own here, line by line, so that a fault does not hide those behind it. What is taken for an image,
//! a part or a class is the same as in [`Dataset::open`]. At the end the data set is opened as a run would, and what stops
//! that and was not found before is a finding too.

mod boxes;
pub(super) mod classes;
mod duplicates;
pub(super) mod finding;
mod folders;
mod idx;
mod images;
mod json;
pub(super) mod listed;
#[cfg(test)]
mod tests;
pub(super) mod text;
mod tree;
mod zhou;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

pub use finding::{Finding, FindingKind, Severity};

use super::boxes::{BoxDataset, BoxLayout, Problem};
use super::dataset::{Dataset, Split};
use super::formats::image_folder as folder;
use super::formats::lists::check as lists;
use super::formats::lists::{self as image_lists, Form, Lists};
use super::formats::table::{self, check as tables};
use super::open::entries;
use crate::{Error, Result};
use finding::Findings;
use listed::Places;

/// Warnings that a run tells one by one.
const NAMED: usize = 5;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The path that was checked.
    pub data: String,
    /// How the data set lies on disk: `folder`, `csv`, `split_zhou`, `fgvc`, `list`, `idx`, `coco`, `yolo` or `voc`; none if it
    /// is none.
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
    /// What was found, by path and line.
    pub findings: Vec<Finding>,
}

/// Checks the data set at `data`. If `fast`, only headers of images are read. `progress` is told now and then how many
/// images of how many are done.
///
/// # Errors
/// There is no such file or folder. What is wrong with its content is in the report.
pub fn check(data: &Path, fast: bool, progress: &mut dyn FnMut(usize, usize)) -> Result<Report> {
    let started = Instant::now();
    let (layout, images, mut out) = examine(data, fast, progress)?;
    let is_opened = match layout {
        Layout::Boxes(_) => false,
        // Opening them reads all there is.
        Layout::Idx => !fast,
        _ => true,
    };
    if is_opened
        && !out.has_errors()
        && let Err(error) = Dataset::open(data, 1)
    {
        out.refused(FindingKind::Refused, data, &error);
    }
    let mut findings = out.0;
    findings.sort_by(|a, b| (&a.path, a.line, a.kind.name()).cmp(&(&b.path, b.line, b.kind.name())));
    findings.dedup();
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let mut kinds = BTreeMap::new();
    for finding in &findings {
        *kinds.entry(finding.kind.name()).or_default() += 1;
    }
    let wall_s = started.elapsed().as_secs_f64();
    Ok(Report {
        data: data.to_string_lossy().into_owned(),
        layout: layout.name(),
        fast,
        images,
        errors,
        warnings: findings.len() - errors,
        kinds,
        wall_s,
        images_per_minute: if wall_s > 0. { images as f64 / wall_s * 60. } else { 0. },
        findings,
    })
}

/// What a run that begins should say of `data`, a line each: the first warnings of the cheap part of a check, and where
/// to find the rest. Errors are left to the run, which stops at them.
pub(crate) fn notes(data: &Path) -> Vec<String> {
    examine(data, true, &mut |_, _| {}).map(|(_, _, out)| told(&out, data)).unwrap_or_default()
}

/// [`notes`] of a data set of boxes that is open already, and in which `problems` were found.
pub(crate) fn notes_of_boxes(problems: &[Problem], data: &Path) -> Vec<String> {
    let mut out = Findings::default();
    boxes::report(problems, &mut |_, _, _| None, &mut out);
    // None of them stops a run.
    out.0.iter_mut().for_each(|finding| finding.severity = Severity::Warning);
    told(&out, data)
}

fn told(out: &Findings, data: &Path) -> Vec<String> {
    let warnings = out.0.iter().filter(|finding| finding.severity == Severity::Warning);
    let mut lines: Vec<String> = warnings.take(NAMED).map(ToString::to_string).collect();
    // A single error is told by the run itself.
    if !lines.is_empty() || out.0.len() > 1 {
        let s = if out.0.len() == 1 { "" } else { "s" };
        lines.push(format!("{} finding{s} in the data: see `vpt data check {}`", out.0.len(), data.display()));
    }
    lines
}

/// How a data set lies on disk, as far as can be told before it is opened.
enum Layout {
    Idx,
    Boxes(BoxLayout),
    Folder { has_parts: bool },
    Tables(Vec<(Option<Split>, PathBuf)>),
    Zhou(Vec<PathBuf>),
    Lists(Lists),
    Unknown,
}

impl Layout {
    fn name(&self) -> Option<&'static str> {
        Some(match self {
            Self::Idx => "idx",
            Self::Boxes(layout) => layout.name(),
            Self::Folder { .. } => "folder",
            Self::Tables(_) => "csv",
            Self::Zhou(_) => "split_zhou",
            Self::Lists(Lists { form: Form::Json, .. }) => "fgvc",
            Self::Lists(Lists { form: Form::Text, .. }) => "list",
            Self::Unknown => return None,
        })
    }
}

/// The layout of `data`, recognised in the same order as when it is opened, but in spite of what that would refuse.
fn recognise(data: &Path) -> Result<Layout> {
    let is_folder = fs::metadata(data).map_err(Error::io(data))?.is_dir();
    if is_folder && idx::recognise(data) {
        return Ok(Layout::Idx);
    }
    if let Some(layout) = BoxDataset::recognise(data) {
        return Ok(Layout::Boxes(layout));
    }
    let is_zhou = |name: &str| name.starts_with("split_zhou_");
    if !is_folder {
        let name = data.file_name().unwrap_or_default().to_string_lossy();
        return Ok(if table::has_extension(data) {
            Layout::Tables(vec![(None, data.into())])
        } else if is_zhou(&name) {
            Layout::Zhou(vec![data.into()])
        } else {
            image_lists::recognise_file(data).map_or(Layout::Unknown, Layout::Lists)
        });
    }
    if folder::has_split_classes(data).unwrap_or(false) {
        return Ok(Layout::Folder { has_parts: true });
    }
    let files: Vec<(String, PathBuf)> = entries(data)?.into_iter().filter(|(_, path)| path.is_file()).collect();
    let tables = || files.iter().map(|(_, path)| path).filter(|path| table::has_extension(path));
    let part = |path: &Path| path.file_stem().and_then(|stem| stem.to_str()).and_then(Split::from_name);
    let mut parts: Vec<_> = tables().filter_map(|path| Some((Some(part(path)?), path.clone()))).collect();
    parts.sort();
    if parts.first().is_some_and(|(split, _)| *split == Some(Split::Train)) {
        return Ok(Layout::Tables(parts));
    }
    let zhou = files.iter().filter(|(name, path)| is_zhou(name) && path.extension().is_some_and(|e| e == "json"));
    let zhou: Vec<PathBuf> = zhou.map(|(_, path)| path.clone()).collect();
    if !zhou.is_empty() {
        return Ok(Layout::Zhou(zhou));
    }
    if let Some(lists) = image_lists::recognise(data)? {
        return Ok(Layout::Lists(lists));
    }
    let single = tables().next().filter(|_| tables().count() == 1);
    if let Some(file) = single.filter(|file| table::has_header(file)) {
        return Ok(Layout::Tables(vec![(None, file.clone())]));
    }
    if folder::has_classes(data).unwrap_or(false) {
        return Ok(Layout::Folder { has_parts: folders::has_parts(data) });
    }
    Ok(single.map_or(Layout::Unknown, |file| Layout::Tables(vec![(None, file.clone())])))
}

/// The layout of `data`, the number of its images, and what is wrong short of what only opening it tells.
fn examine(data: &Path, fast: bool, progress: &mut dyn FnMut(usize, usize)) -> Result<(Layout, usize, Findings)> {
    let mut out = Findings::default();
    let mut places = Places::new(data);
    // Classes whose absence is told already.
    let mut absent = HashSet::new();
    let layout = recognise(data)?;
    let mut hashes = None;
    let listed = match &layout {
        Layout::Idx => {
            let (listed, found) = idx::check(data, fast, &mut places, &mut out);
            hashes = Some(found);
            listed
        }
        Layout::Boxes(_) => boxes::check(data, &mut places, &mut out),
        Layout::Folder { has_parts } => folders::check(data, *has_parts, &mut places, &mut absent, &mut out),
        Layout::Tables(tables) => {
            for pair in tables.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
                let message = format!("a second table for one part beside {}", pair[0].1.display());
                out.error(FindingKind::AmbiguousSplit, &pair[1].1, None, message);
            }
            if let [(None, file)] = &tables[..] {
                places.whole.clone_from(file);
            }
            for (split, file) in tables.iter().filter_map(|(split, file)| Some(((*split)?, file))) {
                places.parts[split as usize].get_or_insert_with(|| file.clone());
            }
            tables::check(tables, &mut out)
        }
        Layout::Zhou(files) => {
            for second in files.iter().skip(1) {
                out.error(FindingKind::AmbiguousSplit, second, None, "a second file of this kind; keep one");
            }
            let all: Vec<_> = files.iter().map(|file| zhou::check(file, &mut out)).collect();
            places.whole.clone_from(&files[0]);
            all.into_iter().next().unwrap_or_default()
        }
        Layout::Lists(found) => {
            for pair in found.files.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
                let message = format!("a second list for one part beside {}", pair[0].1.display());
                out.error(FindingKind::AmbiguousSplit, &pair[1].1, None, message);
            }
            for (split, file) in found.files.iter().filter_map(|(split, file)| Some(((*split)?, file))) {
                places.parts[split as usize].get_or_insert_with(|| file.clone());
            }
            lists::check(found, &mut out)
        }
        Layout::Unknown => Vec::new(),
    };
    let has_boxes = matches!(layout, Layout::Boxes(_));
    if !has_boxes {
        classes::check(&listed, &places, &absent, &mut out);
        classes::gaps(&classes::numbers(&listed), &mut out);
    }
    let listed = match layout {
        Layout::Tables(_) | Layout::Zhou(_) | Layout::Lists(_) => tables::existing(listed, &mut out),
        _ => listed,
    };
    let hashes = hashes.unwrap_or_else(|| images::check(&listed, fast, &mut out, progress));
    duplicates::check(&listed, &hashes, has_boxes, &mut out);
    Ok((layout, listed.len(), out))
}
