//! From one layout to another. What both can hold comes out as it went in: parts, their order, names, boxes to a thousandth
//! of a pixel, categories with and without objects. What the target cannot hold is counted.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::{BoxDataset, BoxImage, Object};
use crate::examine::SplitCounts;
use crate::formats;
use crate::shapes::write_png;
use crate::{ImageSource, Split, Stored};
use vpt_base::choice::choice;
use vpt_base::files::whole;
use vpt_base::{Error, Result};
use vpt_image::decode::has_image_extension;

choice! {
    /// A layout that data sets of boxes are written in.
    pub enum BoxLayout for "to" {
        /// COCO: a JSON file for each part.
        Coco = "coco",
        /// YOLO: `data.yaml` and a text file for each image.
        Yolo = "yolo",
        /// Pascal VOC: an XML file for each image.
        Voc = "voc",
    }
}

impl BoxLayout {
    /// The name as people write it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Coco => "COCO",
            Self::Yolo => "YOLO",
            Self::Voc => "Pascal VOC",
        }
    }
}

/// Summary of what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Converted {
    /// Images in each part.
    pub images: SplitCounts,
    /// Objects in each part.
    pub objects: SplitCounts,
    /// Categories, those without objects too.
    pub categories: usize,
    /// Parts that the layout cannot hold.
    pub lost: Lost,
}

/// Parts that a layout cannot hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Boxes around crowds, which are left out: a layout without a word for them would make objects of them.
    pub crowds: usize,
    /// Areas that are not those of the boxes.
    pub areas: usize,
    /// Whether ids of categories, other than 1, 2, …, are lost.
    pub category_ids: bool,
    /// Whether ids of images and objects, other than 1, 2, … through a part, are lost.
    pub ids: bool,
}

/// Writes `data` to the new or empty folder `out` in the layout `to`. Images are hard links to the originals where the file
/// system has them, else copies.
///
/// COCO: `{train,val,test}/` and `annotations/instances_{train,val,test}.json`. YOLO: `data.yaml`, `images/` and `labels/`
/// with the parts in them. Pascal VOC: `JPEGImages/`, `Annotations/`, `ImageSets/Main/` and `classes.txt`. Images keep their
/// path below the folder that all images of their part share.
///
/// # Errors
/// `out` exists and is not an empty folder, or a file cannot be written; or the layout cannot hold a name: of two images in
/// one folder that differ in their ending only, or of a category that takes more than a line. Nothing is left in `out` then.
pub fn convert(data: &BoxDataset, to: BoxLayout, out: &Path) -> Result<Converted> {
    convert_parts(data, to, out, &Split::ALL)
}

/// As [`convert`], where nothing is written of other parts than `splits`: who reads it draws those that are missing.
///
/// # Errors
/// As [`convert`].
pub fn convert_parts(data: &BoxDataset, to: BoxLayout, out: &Path, splits: &[Split]) -> Result<Converted> {
    let names = stored_names(data, to)?;
    let count = |of: fn(&BoxImage) -> usize| Split::ALL.map(|split| data.part(split).iter().map(of).sum::<usize>());
    let (crowds, areas) = (count(|i| i.objects.iter().filter(|o| o.crowd).count()), count(own_areas));
    let objects = count(|i| i.objects.len());
    let mut lost = Lost::default();
    if to != BoxLayout::Coco {
        lost.category_ids = !data.categories.iter().zip(1..).all(|(category, id)| category.id == id);
        lost.ids = !Split::ALL.into_iter().all(|split| is_numbered(data.part(split)));
    }
    if to == BoxLayout::Yolo {
        lost.crowds = crowds.iter().sum();
        lost.areas = areas.iter().sum();
    }
    whole(out, |folder| {
        formats::write(to, &Conversion { data, names: &names, splits, out: folder })
            // The folder has another name while it is filled.
            .map_err(|error| match error {
                Error::Io { path, source } => {
                    let path = path.strip_prefix(folder).map(|inner| out.join(inner)).unwrap_or(path.clone());
                    Error::Io { path, source }
                }
                other => other,
            })
    })?;
    let counts = |[train, val, test]: [usize; 3]| SplitCounts { train, val, test };
    let written = if to == BoxLayout::Yolo { [0, 1, 2].map(|i| objects[i] - crowds[i]) } else { objects };
    Ok(Converted { images: counts(count(|_| 1)), objects: counts(written), categories: data.categories.len(), lost })
}

/// Objects, crowds aside, whose area is not the box's.
fn own_areas(image: &BoxImage) -> usize {
    image.objects.iter().filter(|object| !object.crowd && own_area(object).is_some()).count()
}

/// The area of an object, if it is not the box's.
pub(crate) fn own_area(object: &Object) -> Option<f64> {
    Some(object.area).filter(|area| (area - object.rect.area()).abs() > 1e-6 * area)
}

/// Whether ids are those that a layout without ids would give.
fn is_numbered(part: &[BoxImage]) -> bool {
    let mut objects = part.iter().flat_map(|image| &image.objects).zip(1..);
    part.iter().zip(1..).all(|(image, id)| image.id == id) && objects.all(|(object, id)| object.id == id)
}

/// Names of the images in each part: paths with `/` between the parts.
type StoredNames = [Vec<String>; 3];

/// A data set of boxes that is written to a folder in another layout.
pub(crate) struct Conversion<'a> {
    pub(crate) data: &'a BoxDataset,
    names: &'a StoredNames,
    /// The parts that are written.
    pub(crate) splits: &'a [Split],
    /// The folder.
    pub(crate) out: &'a Path,
}

impl<'a> Conversion<'a> {
    /// The images of a part, and what they are called in it.
    pub(crate) fn part(&self, split: Split) -> impl Iterator<Item = (&'a BoxImage, &'a str)> {
        self.data.part(split).iter().zip(self.names[split as usize].iter().map(String::as_str))
    }

    /// Writes a file whose folders are made.
    pub(crate) fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
        let path = self.out.join(path);
        create_folder_of(&path)?;
        fs::write(&path, content).map_err(Error::io(&path))
    }

    /// Puts an image at `path`: one that is a file as a hard link, where the file system has them.
    pub(crate) fn place(&self, image: &BoxImage, path: impl AsRef<Path>) -> Result<()> {
        let to = self.out.join(path);
        create_folder_of(&to)?;
        if let ImageSource::Member { container, index } = &image.image {
            let bytes = match container.read(*index)? {
                Stored::Encoded(bytes) => bytes,
                Stored::Grey { .. } | Stored::Decoded(_) => return write_png(&to, &image.image.load()?),
            };
            return fs::write(&to, bytes).map_err(Error::io(&to));
        }
        link_or_copy(image.file(), &to)
    }
}

/// Puts the file `from` at `to` as well: as a hard link, where the file system has them.
pub(crate) fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    // A link to a symbolic link would point elsewhere from its new place.
    let from = fs::canonicalize(from).map_err(Error::io(from))?;
    if fs::hard_link(&from, to).is_err() {
        fs::copy(&from, to).map_err(Error::io(&from))?;
    }
    Ok(())
}

pub(crate) fn create_folder_of(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), |folder| fs::create_dir_all(folder).map_err(Error::io(folder)))
}

fn stored_names(data: &BoxDataset, to: BoxLayout) -> Result<StoredNames> {
    let mut names = Split::ALL.map(|split| below_shared_folder(data.part(split)));
    let refuse =
        |name: &str, why: &str| Err(Error::invalid(format!("data set {}", data.name), format!("{name}: {why}")));
    let stem = |name: &str| name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_owned();
    if to == BoxLayout::Voc {
        // One folder holds all parts.
        let mut seen = HashSet::new();
        if !names.iter().flatten().all(|name| seen.insert(stem(name))) {
            for (split, part) in Split::ALL.into_iter().zip(&mut names) {
                for name in part {
                    *name = format!("{split}/{name}");
                }
            }
        }
        let is_line = |name: &str| !name.is_empty() && name.trim() == name && !name.contains(char::is_control);
        if let Some(category) = data.categories.iter().find(|category| !is_line(&category.name)) {
            return refuse(&category.name, "Pascal VOC cannot hold this name of a category");
        }
        if let Some(name) = names.iter().flatten().find(|name| !is_line(&stem(name))) {
            return refuse(name, "Pascal VOC cannot hold this name of an image");
        }
    }
    let mut seen = HashSet::new();
    for (split, name) in
        Split::ALL.into_iter().zip(&names).flat_map(|(split, part)| part.iter().map(move |n| (split, n)))
    {
        let is_found = has_image_extension(Path::new(name)) && !name.split('/').any(|part| part.starts_with('.'));
        if to != BoxLayout::Coco && !is_found {
            return refuse(name, &format!("{} finds images by their ending, and none that are hidden", to.title()));
        }
        let key = if to == BoxLayout::Coco { name.clone() } else { stem(name) };
        if !seen.insert((split, key)) {
            return refuse(name, &format!("{} has one place for this image and another one; rename one", to.title()));
        }
    }
    Ok(names)
}

/// Names of images without the folders that all of them begin with, and without what could lead out of a folder.
fn below_shared_folder(part: &[BoxImage]) -> Vec<String> {
    let plain = |name: &str| -> Vec<String> {
        let parts = name.split(['/', '\\']).filter(|part| !matches!(*part, "" | "." | ".."));
        parts.map(|part| part.replace(':', "_")).collect()
    };
    let mut names: Vec<Vec<String>> = part.iter().map(|image| plain(&image.name)).collect();
    let folders = |name: &[String]| name.len().saturating_sub(1);
    let mut shared = names.first().map_or(0, |first| folders(first));
    for name in &names {
        let same = name.iter().zip(&names[0]).take_while(|(a, b)| a == b).count();
        shared = shared.min(same).min(folders(name));
    }
    names.iter_mut().map(|name| name.split_off(shared).join("/")).collect()
}
