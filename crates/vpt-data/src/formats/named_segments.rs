//! The pixels of objects in layouts whose annotations name the category of each in place: CVAT and labelme.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::coco::{ObjectShape, SegmentedImage};
use super::named_boxes::{Described, DescribedPicture, NamedBoxes};
use super::{Candidate, Layout, cvat, labelme};
use crate::boxes::{ProblemKind, normal};
use crate::open::{Parts, relative_id};
use vpt_base::{Error, Result};

/// A data set of objects whose pixels are told.
pub(crate) struct NamedSegments {
    pub(crate) layout: Layout,
    pub(crate) root: PathBuf,
    pub(crate) names: Vec<String>,
    /// The objects of each image as they are painted, one over the other.
    pub(crate) parts: Parts<SegmentedImage>,
    /// What was left out, and the file that says it.
    pub(crate) notes: Vec<(ProblemKind, PathBuf, String)>,
}

/// The objects of the data set at `path`, if it is one of such a layout.
///
/// # Errors
/// There is no such file or folder, a file cannot be read, an object of it cannot be told, or none has pixels.
pub(crate) fn segments(path: &Path) -> Result<Option<NamedSegments>> {
    let candidate = Candidate::at(path).map_err(Error::io(path))?;
    let layouts = [(Layout::CVAT, cvat::find(&candidate)), (Layout::LABELME, labelme::find(&candidate))];
    let found = layouts.into_iter().find_map(|(layout, found)| Some((layout, found?)));
    found.map(|(layout, found)| segmented(layout, &found)).transpose()
}

fn segmented(layout: Layout, found: &NamedBoxes) -> Result<NamedSegments> {
    let Described { categories, parts, problems } = found.described()?;
    let mut notes = Vec::new();
    for problem in problems {
        let place = problem.place.map(|place| format!("{place}: ")).unwrap_or_default();
        let detail = format!("{place}{}", problem.detail);
        match problem.kind {
            // Of the pixels of such shapes nothing is lost.
            ProblemKind::OtherShape => {}
            // What is not painted would be background.
            ProblemKind::UnreadableObject => return Err(Error::data(&problem.file, detail)),
            kind => notes.push((kind, problem.file, detail)),
        }
    }
    let root = normal(&found.root);
    let index: HashMap<&str, usize> = categories.iter().zip(0..).map(|(c, i)| (c.name.as_str(), i)).collect();
    let (mut drawn, mut lines) = (0, None);
    let mut one = |picture: DescribedPicture| -> Result<SegmentedImage> {
        let DescribedPicture { path, declared, source, objects, .. } = picture;
        let mut kept = Vec::with_capacity(objects.len());
        for object in objects {
            let Some(shape) = object.shape else {
                lines.get_or_insert_with(|| (source.to_path_buf(), 0)).1 += 1;
                continue;
            };
            let Some(&category) = index.get(object.name.as_str()) else {
                let place = object.place.map(|place| format!("{place}: ")).unwrap_or_default();
                let message = format!("{place}'{}' is not among the categories that are listed", object.name);
                return Err(Error::data(&*source, message));
            };
            kept.push((shape.layer, (category, shape.pixels)));
        }
        drawn += kept.len();
        kept.sort_by_key(|(layer, _)| *layer);
        let objects: Vec<(usize, ObjectShape)> = kept.into_iter().map(|(_, object)| object).collect();
        Ok(SegmentedImage { name: relative_id(&root, &path), path, source, declared, objects })
    };
    let mut all = |pictures: Vec<DescribedPicture>| pictures.into_iter().map(&mut one).collect::<Result<Vec<_>>>();
    let parts = match parts {
        Parts::Unsplit(pictures) => Parts::Unsplit(all(pictures)?),
        Parts::Split { train, val, test } => {
            let (train, val, test) = (all(train)?, val.map(&mut all).transpose()?, test.map(&mut all).transpose()?);
            Parts::Split { train, val, test }
        }
    };
    if let Some((file, count)) = lines {
        if drawn == 0 {
            return Err(Error::data(&file, "its shapes are lines or points, which cover no pixels (segmentation)"));
        }
        let detail = format!("{count} lines, points or the like that cover no pixels, here or in files after it");
        notes.push((ProblemKind::OtherShape, file, detail));
    }
    let names = categories.into_iter().map(|category| category.name).collect();
    Ok(NamedSegments { layout, root, names, parts, notes })
}
