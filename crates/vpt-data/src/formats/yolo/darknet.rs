//! Darknet: `obj.data` says where the lists of images and the names of classes are (CVAT exports it as YOLO 1.1). Labels are
//! YOLO's, beside the images.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::{Labels, MAX_BYTES, PartLabels, ReadLabels, check_labels, meet};
use crate::Split;
use crate::boxes::{AnnotatedSet, BoxDataset, Category, PlaceInFile, Problem, ProblemKind, Remedy, normal, parts};
use crate::check::{Checking, Findings, ListedImage, text};
use crate::formats::text_file::beginning;
use crate::formats::{BoxFiles, Format, Layout, Recognition};
use crate::open::entries;
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

impl Layout {
    /// Darknet: `obj.data` with lists of images.
    pub const DARKNET: Self = Self::new("darknet", "Darknet");
}

/// `obj.data` with lists of images.
pub(in crate::formats) const FORMAT: Format = Format {
    has_boxes: true,
    recognize: |candidate| {
        let file = if candidate.is_folder { config_in(candidate.path) } else { Some(candidate.path.to_path_buf()) };
        Ok(Recognition::of_boxes(Layout::DARKNET, file.filter(|file| describes(file)).map(DarknetFiles)))
    },
};

/// The file that describes a data set.
struct DarknetFiles(PathBuf);

fn config_in(folder: &Path) -> Option<PathBuf> {
    let usual = folder.join("obj.data");
    if usual.is_file() {
        return Some(usual);
    }
    let mut others = entries(folder).ok()?.into_iter().map(|(_, path)| path).filter(|path| describes(path));
    let first = others.next();
    first.filter(|_| others.next().is_none())
}

fn describes(file: &Path) -> bool {
    let keys = values(&beginning(file, "data", 4096).unwrap_or_default());
    ["train", "valid", "names"].iter().any(|key| keys.iter().any(|(k, _)| k == key))
}

/// The pairs of `key = value`.
fn values(text: &str) -> Vec<(String, String)> {
    let lines = text.trim_start_matches('\u{feff}').lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.filter_map(|line| line.split_once('=')).map(|(k, v)| (k.trim().to_lowercase(), v.trim().to_owned())).collect()
}

/// What the file says.
struct DarknetConfig {
    root: PathBuf,
    names: Vec<String>,
    lists: Vec<(Split, PathBuf)>,
}

impl DarknetConfig {
    fn read(file: &Path) -> Result<Self> {
        let root = file.parent().unwrap_or(Path::new("")).to_path_buf();
        let bytes = read_limited(file, MAX_BYTES)?;
        let values = values(&String::from_utf8_lossy(&bytes));
        let value = |key: &str| values.iter().find(|(k, v)| k == key && !v.is_empty()).map(|(_, v)| v.as_str());
        let names = value("names").and_then(|path| find(&root, path)).or_else(|| find(&root, "obj.names"));
        let names = names.ok_or_else(|| {
            Error::data(file, format!("the file of names ({}) is not there", value("names").unwrap_or("obj.names")))
        })?;
        let bytes = read_limited(&names, MAX_BYTES)?;
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_start_matches('\u{feff}');
        let names: Vec<String> = text.lines().map(|line| line.trim().to_owned()).filter(|n| !n.is_empty()).collect();
        if names.is_empty() {
            return Err(Error::data(file, "there are no names of classes"));
        }
        if let Some(count) = value("classes").and_then(|count| count.parse::<usize>().ok())
            && count != names.len()
        {
            return Err(Error::data(file, format!("{count} classes here and {} names", names.len())));
        }
        let mut lists = Vec::new();
        for (key, split) in [
            ("train", Split::Train),
            ("valid", Split::Val),
            ("val", Split::Val),
            ("eval", Split::Test),
            ("test", Split::Test),
        ] {
            let Some(path) = value(key) else { continue };
            match find(&root, path) {
                Some(list) if lists.iter().all(|(known, _)| *known != split) => lists.push((split, list)),
                Some(_) => {}
                None => return Err(Error::data(file, format!("{key}: {path} is not there"))),
            }
        }
        Ok(Self { root, names, lists })
    }
}

/// The file that `path` means: as it is, or without the folders at its beginning, which are those of another machine.
fn find(root: &Path, path: &str) -> Option<PathBuf> {
    let path = path.replace('\\', "/");
    let mut rest = path.as_str();
    loop {
        let found = root.join(rest);
        if found.is_file() {
            return Some(normal(&found));
        }
        rest = rest.split_once('/')?.1;
    }
}

impl BoxFiles for DarknetFiles {
    fn open(&self) -> Result<AnnotatedSet> {
        let DarknetConfig { root, names, lists } = DarknetConfig::read(&self.0)?;
        let labels = Labels { classes: names.len(), has_points: false };
        let (mut given, mut met) = ([None, None, None], [None, None, None]);
        let mut problems = Vec::new();
        for (split, list) in lists {
            let bytes = read_limited(&list, MAX_BYTES)?;
            let source: Arc<Path> = list.as_path().into();
            let (mut found, mut seen) = (Vec::new(), HashSet::new());
            let text = String::from_utf8_lossy(&bytes);
            for (line, n) in text.trim_start_matches('\u{feff}').lines().zip(1..) {
                let line = line.trim();
                if line.is_empty() {
                    continue;
                }
                let place = Some(PlaceInFile::Line(n));
                let path = find(&root, line).unwrap_or_else(|| normal(&root.join(line)));
                if seen.insert(path.clone()) {
                    found.push((path, source.clone(), place));
                } else {
                    let (kind, remedy) = (ProblemKind::DuplicateImage, Remedy::Joined);
                    let detail = format!("{line} is listed already");
                    problems.push(Problem { kind, remedy, file: list.clone(), place, detail });
                }
            }
            let read: Vec<_> = found.into_par_iter().map(|image| labels.of(image)).collect::<Result<_>>()?;
            let mut images = Vec::with_capacity(read.len());
            let mut part = PartLabels::default();
            for ReadLabels { image, problems: these, is_labelled, .. } in read {
                part.add(image.image.file().unwrap_or(&root), is_labelled);
                images.push(image);
                problems.extend(these);
            }
            given[split as usize] = Some(images);
            met[split as usize] = Some(part);
        }
        meet::compare(&self.0, &root, &met, &labels, &mut problems)?;
        let categories = (1..).zip(names).map(|(id, name)| Category { id, name }).collect();
        Ok(AnnotatedSet {
            parts: parts(&self.0, given)?,
            root: normal(&root),
            categories,
            has_ids: false,
            problems,
            absent: Vec::new(),
        })
    }

    fn open_piecewise(&self) -> (Vec<Problem>, Vec<Error>) {
        (Vec::new(), self.open().err().into_iter().collect())
    }

    fn check_texts(&self, check: &mut Checking<'_>) {
        let lists = DarknetConfig::read(&self.0).map(|config| config.lists).unwrap_or_default();
        for file in lists.iter().map(|(_, list)| list).chain([&self.0]) {
            text::check_file(file, &mut check.out);
        }
    }

    fn check_opened(&mut self, _data: &BoxDataset, listed: &[ListedImage], out: &mut Findings) {
        check_labels(listed, out);
    }
}
