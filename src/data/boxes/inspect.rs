//! Data sets of boxes piece by piece, for a check that goes on where opening stops.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::check::check;
use super::open::{Recognised, recognise};
use super::problem::Problem;
use crate::Error;
use crate::data::Split;
use crate::data::formats::coco::{self, Annotations};
use crate::data::formats::{voc, yolo};
use crate::data::open::{Parts, entries};

/// The text files that describe a data set, besides those of single images.
#[derive(Default)]
pub(in crate::data) struct Texts {
    /// COCO's annotations, with the part that the name says.
    pub(in crate::data) json: Vec<(Option<Split>, PathBuf)>,
    /// Files that are read line by line.
    pub(in crate::data) lines: Vec<PathBuf>,
}

/// The text files of the data set at `path`; none if there is none.
pub(in crate::data) fn texts(path: &Path) -> Option<Texts> {
    let ends_in_txt = |folder: &Path| -> Vec<PathBuf> {
        let all = entries(folder).unwrap_or_default().into_iter().map(|(_, path)| path);
        all.filter(|path| path.extension().is_some_and(|e| e == "txt") && path.is_file()).collect()
    };
    let mut texts = Texts::default();
    match recognise(path)? {
        Recognised::Coco(files) => {
            texts.json = files.files.into_iter().map(|file| (coco::part(&file.tag), file.path)).collect();
        }
        Recognised::Yolo(file) => {
            texts.lines = yolo::lists(&file);
            texts.lines.push(file);
        }
        Recognised::Voc(files) => {
            let root = files.root();
            texts.lines = ends_in_txt(&root.join("ImageSets/Main"));
            texts.lines.extend(Some(root.join("classes.txt")).filter(|file| file.is_file()));
        }
    }
    Some(texts)
}

/// What is wrong with the parts and files of the data set at `path` when each is read by itself: what can be lived with,
/// and what cannot.
pub(in crate::data) fn piecewise(path: &Path) -> (Vec<Problem>, Vec<Error>) {
    let (mut problems, mut errors) = (Vec::new(), Vec::new());
    match recognise(path) {
        Some(Recognised::Coco(files)) => {
            for Annotations { path, tag } in files.files {
                let one = coco::Files { root: files.root.clone(), files: vec![Annotations { tag, path }] };
                match coco::open(&one) {
                    Ok(found) => {
                        problems.extend(found.problems);
                        let (Parts::Unsplit(images) | Parts::Split { train: images, .. }) = found.parts;
                        let checked: Vec<_> = images.into_par_iter().map(|image| check(&found.root, image)).collect();
                        problems.extend(checked.into_iter().flat_map(|(_, problems)| problems));
                    }
                    Err(error) => errors.push(error),
                }
            }
        }
        Some(Recognised::Yolo(file)) => yolo::inspect(&file, &mut problems, &mut errors),
        Some(Recognised::Voc(files)) => errors = voc::inspect(files.root()),
        None => {}
    }
    (problems, errors)
}
