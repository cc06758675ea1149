//! Lists of images with their boxes in the same line, `a.jpg 10,20,30,40,0 …`: `_annotations.txt` and `_classes.txt`, which
//! Roboflow calls YOLO v4 PyTorch and Keras TXT.

use std::path::Path;
use std::sync::Arc;

use super::named_boxes::{
    AnnotationSource, DescribedPicture, DescribedSet, NamedBoxes, NamedObject, PictureFolders, called,
};
use super::text_file::read_text;
use super::{Candidate, Format, Layout, Recognition};
use crate::boxes::{BoxExtent, PlaceInFile, Problem, ProblemKind, Remedy, normal};
use vpt_base::{Error, Result};

impl Layout {
    /// Lists of images with their boxes.
    pub const BOX_LINES: Self = Self::new("box-txt", "YOLO v4 TXT");
}

/// Lists of images with their boxes.
pub(super) const FORMAT: Format =
    Format { has_boxes: true, recognize: |candidate| Ok(Recognition::of_boxes(Layout::BOX_LINES, find(candidate))) };

/// Longest list, in bytes.
const MAX_BYTES: u64 = 1 << 30;

fn find(candidate: &Candidate<'_>) -> Option<NamedBoxes> {
    let root = candidate.path;
    let sources = if candidate.is_folder { called(root, "_annotations.txt") } else { Vec::new() };
    NamedBoxes::found(root, sources, read).map(NamedBoxes::of_texts)
}

fn read(root: &Path, source: &AnnotationSource) -> Result<DescribedSet> {
    let (_, path) = source;
    let beside = path.parent().unwrap_or(root);
    let classes = [beside.join("_classes.txt"), root.join("_classes.txt")].into_iter().find(|file| file.is_file());
    let Some(classes) = classes else {
        return Err(Error::data(path, "there is no _classes.txt beside it, so numbers of classes have no names"));
    };
    let names: Vec<String> =
        read_text(&classes, MAX_BYTES)?.lines().map(|line| line.trim().to_owned()).filter(|n| !n.is_empty()).collect();
    let text = read_text(path, MAX_BYTES)?;
    let lines: Vec<(&str, u64)> =
        text.lines().zip(1..).map(|(line, n)| (line.trim(), n)).filter(|(line, _)| !line.is_empty()).collect();
    if lines.is_empty() {
        return Err(Error::data(path, "it lists no images"));
    }
    // A name may hold spaces, a box does not: boxes are the words from the end that are numbers with commas.
    let split = |line: &str| -> (String, Vec<String>) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_box = |word: &&&str| word.split(',').count() > 1 && word.split(',').all(|n| n.parse::<f64>().is_ok());
        let boxes = words.iter().rev().take_while(is_box).count().min(words.len().saturating_sub(1));
        let (name, boxes) = words.split_at(words.len() - boxes);
        (name.join(" "), boxes.iter().map(|word| (*word).to_owned()).collect())
    };
    let lines: Vec<(String, Vec<String>, u64)> = lines
        .into_iter()
        .map(|(line, n)| {
            let (name, boxes) = split(line);
            (name, boxes, n)
        })
        .collect();
    let folder = PictureFolders::of(root, source).best(path, &lines.iter().map(|(name, ..)| name.as_str()))?;
    let shared: Arc<Path> = path.as_path().into();
    let mut found = DescribedSet { names: Some(names.clone()), ..DescribedSet::default() };
    for (name, boxes, line) in lines {
        let place = Some(PlaceInFile::Line(line));
        let mut objects = Vec::with_capacity(boxes.len());
        for text in boxes {
            match object(&text, &names) {
                Ok((name, extent)) => objects.push(NamedObject { name, place, extent, crowd: false, shape: None }),
                Err((kind, detail)) => {
                    let (file, remedy) = (path.clone(), Remedy::ObjectDropped);
                    found.problems.push(Problem { kind, remedy, file, place, detail });
                }
            }
        }
        let (path, source) = (normal(&folder.join(&name)), shared.clone());
        found.pictures.push(DescribedPicture { path, declared: None, source, place, split: None, objects });
    }
    Ok(found)
}

/// Corners as edges counted from 0, and the number of the class.
fn object(text: &str, names: &[String]) -> Result<(String, BoxExtent), (ProblemKind, String)> {
    let numbers: Vec<f64> = text.split(',').filter_map(|number| number.parse().ok()).collect();
    let &[left, top, right, bottom, class] = &numbers[..] else {
        return Err((ProblemKind::UnreadableObject, format!("{} numbers, where a box has 5", numbers.len())));
    };
    let name = names.get(class as usize).filter(|_| class >= 0. && class.fract() == 0.);
    let name = name.ok_or_else(|| (ProblemKind::UnknownCategory, format!("class {class} of {}", names.len())))?;
    Ok((name.clone(), BoxExtent::Pixels([left, top, right - left, bottom - top])))
}
