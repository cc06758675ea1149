//! Where images and masks lie: Pascal VOC, ADE20k, and folders of images beside folders of masks.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::classes::ValueRules;
use super::open::{AnnotatedMask, AnnotatedMasks, MaskFault, MaskFaultKind, MaskOrigin};
use crate::boxes::{normal, parts};
use crate::formats::image_folder::images;
use crate::open::{Parts, entries, relative_id};
use crate::{Layout, Split};
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

/// Longest list of images.
const MAX_LIST_BYTES: u64 = 1 << 28;

/// What folders of images and of masks beside them are called, in lower case, the surest first.
const IMAGES: [&str; 6] = ["images", "image", "imgs", "img", "img_dir", "jpegimages"];
const MASKS: [&str; 15] = [
    "masks",
    "mask",
    "segmentationclass",
    "segmentations",
    "segmentation",
    "ann_dir",
    "trimaps",
    "labels",
    "label",
    "annotations",
    "annotation",
    "labelids",
    "groundtruth",
    "gt",
    "gts",
];

/// What may stand behind an image's name in that of its mask.
const SUFFIXES: [&str; 12] = [
    "_mask",
    "-mask",
    "_masks",
    "_label",
    "_labels",
    "_seg",
    "_segmentation",
    "_gt",
    "_labelids",
    "_labelIds",
    "_l",
    "_L",
];

impl Layout {
    /// Pascal VOC with masks: `JPEGImages/`, `SegmentationClass/`, lists in `ImageSets/Segmentation/`.
    pub const VOC_MASKS: Self = Self::new("voc-masks", "Pascal VOC masks");
    /// ADE20k: `images/training/`, `annotations/training/`.
    pub const ADE20K: Self = Self::new("ade20k", "ADE20k");
    /// A folder of images and one of masks.
    pub const MASK_PAIRS: Self = Self::new("mask-pairs", "pairs of images and masks");
}

/// The data set of masks in the folder `root`, if it is one.
///
/// # Errors
/// A folder or list cannot be read, or two are for one part.
pub(super) fn find(root: &Path) -> Result<Option<AnnotatedMasks>> {
    if !root.is_dir() {
        return Ok(None);
    }
    let folders: Vec<(String, PathBuf)> = entries(root)?.into_iter().filter(|(_, path)| path.is_dir()).collect();
    if let [masks, training] = ["annotations/training", "images/training"].map(|folder| root.join(folder))
        && masks.is_dir()
        && training.is_dir()
    {
        return ade20k(root).map(Some);
    }
    if let Some((_, masks)) = folders.iter().find(|(name, _)| name == "SegmentationClass")
        && let Some(images) = of_names(&folders, &["jpegimages", "images"])
    {
        return voc(root, &images, masks).map(Some);
    }
    pairs(root, &folders)
}

/// The first of `folders` that is called by one of `names`, whatever the case.
fn of_names(folders: &[(String, PathBuf)], names: &[&str]) -> Option<PathBuf> {
    let called = |wanted: &&str| folders.iter().find(|(name, _)| name.to_ascii_lowercase() == **wanted);
    names.iter().find_map(called).map(|(_, path)| path.clone())
}

/// Pairs of one part, masks without images among the notes.
struct Paired {
    pairs: Vec<AnnotatedMask>,
    orphans: Vec<PathBuf>,
}

/// Images under `folder` with the masks under `masks` that have their names.
fn pair(root: &Path, folder: &Path, masks: &Path) -> Result<Paired> {
    let mut by_stem: HashMap<String, PathBuf> = HashMap::new();
    for (name, path) in images(masks, "")? {
        by_stem.insert(stem(&name).to_owned(), path);
    }
    let mut pairs = Vec::new();
    for (name, image) in images(folder, "")? {
        let own = stem(&name);
        let mut names = std::iter::once(own.to_owned())
            .chain([name.clone()])
            .chain(SUFFIXES.iter().map(|suffix| format!("{own}{suffix}")));
        let mask = names.find_map(|name| by_stem.remove(&name)).map(|path| normal(&path));
        let wanted = masks.join(format!("{own}.png"));
        let mask = mask.ok_or_else(|| format!("no mask for it: there is no {}", wanted.display()));
        let name = relative_id(root, &image);
        pairs.push(AnnotatedMask { name, image: normal(&image), mask: MaskOrigin::File(mask) });
    }
    let mut orphans: Vec<PathBuf> = by_stem.into_values().collect();
    orphans.sort();
    Ok(Paired { pairs, orphans })
}

fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// Masks without images, as one note.
fn tell(orphans: &[PathBuf]) -> Option<MaskFault> {
    let file = orphans.first()?.clone();
    let more = if orphans.len() > 1 { format!("; {} others are like it", orphans.len() - 1) } else { String::new() };
    Some(MaskFault { kind: MaskFaultKind::OrphanMask, file, detail: format!("a mask without an image{more}") })
}

fn ade20k(root: &Path) -> Result<AnnotatedMasks> {
    let mut given = [None, None, None];
    let mut notes = Vec::new();
    for (split, folder) in [(Split::Train, "training"), (Split::Val, "validation"), (Split::Test, "testing")] {
        let (images, masks) = (root.join("images").join(folder), root.join("annotations").join(folder));
        // The test images of ADE20k have no masks.
        if images.is_dir() && masks.is_dir() {
            let Paired { pairs, orphans } = pair(root, &images, &masks)?;
            notes.extend(tell(&orphans));
            given[split as usize] = Some(pairs);
        }
    }
    Ok(AnnotatedMasks {
        root: normal(root),
        layout: Layout::ADE20K,
        parts: parts(root, given)?,
        classes: None,
        values: ValueRules { from_one: true, voc_colors: false },
        notes,
    })
}

/// The parts that the lists in `ImageSets/Segmentation` say; without lists, all masks.
fn voc(root: &Path, folder: &Path, masks: &Path) -> Result<AnnotatedMasks> {
    let mut notes = Vec::new();
    let Paired { pairs, orphans } = pair(root, folder, masks)?;
    notes.extend(tell(&orphans));
    let lists = root.join("ImageSets/Segmentation");
    let is_list = |path: &Path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("txt")) && path.is_file();
    let lists: Vec<PathBuf> = if lists.is_dir() {
        entries(&lists)?.into_iter().map(|(_, path)| path).filter(|path| is_list(path)).collect()
    } else {
        Vec::new()
    };
    let stems: Vec<_> = lists.iter().map(|path| path.file_stem().unwrap_or_default().to_string_lossy()).collect();
    let named = Split::of_names(stems.iter().map(AsRef::as_ref));
    let mut by_stem: HashMap<String, AnnotatedMask> = HashMap::new();
    let prefix = relative_id(root, folder) + "/";
    for pair in pairs {
        let own = stem(pair.name.strip_prefix(&prefix).unwrap_or(&pair.name)).to_owned();
        by_stem.insert(own, pair);
    }
    let mut given = [None, None, None];
    for (split, list) in named.into_iter().zip(&lists) {
        let Some(split) = split else { continue };
        if given[split as usize].is_some() {
            return Err(Error::data(list, format!("a second list for {split} beside others")));
        }
        let bytes = read_limited(list, MAX_LIST_BYTES)?;
        let mut part = Vec::new();
        for id in String::from_utf8_lossy(&bytes).lines().map(str::trim).filter(|id| !id.is_empty()) {
            part.push(by_stem.remove(id).unwrap_or_else(|| AnnotatedMask {
                name: format!("{prefix}{id}"),
                image: normal(&folder.join(format!("{id}.jpg"))),
                mask: MaskOrigin::File(Err(format!(
                    "{} lists {id}, which is not there or listed twice",
                    list.display()
                ))),
            }));
        }
        given[split as usize] = Some(part);
    }
    let parts = if given.iter().all(Option::is_none) {
        // Most images of Pascal VOC have no mask, and no fault.
        let mut all: Vec<AnnotatedMask> =
            by_stem.into_values().filter(|pair| matches!(pair.mask, MaskOrigin::File(Ok(_)))).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        parts(root, [Some(all), None, None])?
    } else {
        parts(root, given)?
    };
    let parts = match parts {
        Parts::Split { train, val: None, test: None } if lists.is_empty() => Parts::Unsplit(train),
        parts => parts,
    };
    let values = ValueRules { from_one: false, voc_colors: true };
    Ok(AnnotatedMasks { root: normal(root), layout: Layout::VOC_MASKS, parts, classes: None, values, notes })
}

/// `images/` and `masks/`, with parts inside of both or around both.
fn pairs(root: &Path, folders: &[(String, PathBuf)]) -> Result<Option<AnnotatedMasks>> {
    let (mut given, mut notes) = ([None, None, None], Vec::new());
    let mut take = |split: Split, images: &Path, masks: &Path| -> Result<()> {
        if given[split as usize].is_some() {
            return Err(Error::data(images, format!("a second {split} folder beside others")));
        }
        let Paired { pairs, orphans } = pair(root, images, masks)?;
        notes.extend(tell(&orphans));
        given[split as usize] = Some(pairs);
        Ok(())
    };
    let inside = |folder: &Path| -> Result<Vec<(String, PathBuf)>> {
        Ok(entries(folder)?.into_iter().filter(|(_, path)| path.is_dir()).collect())
    };
    let beside = of_names(folders, &IMAGES).zip(mask_folder(folders)?);
    if let Some((images_in, masks)) = beside {
        let of_parts = |folders: Vec<(String, PathBuf)>| -> Vec<(Split, PathBuf)> {
            let named = Split::of_names(folders.iter().map(|(name, _)| name.as_str()));
            named.into_iter().zip(folders).filter_map(|(split, (_, path))| Some((split?, path))).collect()
        };
        let (of_images, of_masks) = (of_parts(inside(&images_in)?), of_parts(inside(&masks)?));
        let both: Vec<_> = of_images
            .iter()
            .filter_map(|(split, images)| Some((*split, images, &of_masks.iter().find(|(own, _)| own == split)?.1)))
            .collect();
        if both.is_empty() {
            let Paired { pairs, orphans } = pair(root, &images_in, &masks)?;
            if !pairs.iter().any(|pair| matches!(pair.mask, MaskOrigin::File(Ok(_)))) {
                return Ok(None);
            }
            notes.extend(tell(&orphans));
            return Ok(Some(of_pairs(root, Parts::Unsplit(pairs), notes)));
        }
        for (split, images, masks) in both {
            take(split, images, masks)?;
        }
    } else {
        let named = Split::of_names(folders.iter().map(|(name, _)| name.as_str()));
        for (split, (_, folder)) in named.into_iter().zip(folders) {
            let Some(split) = split else { continue };
            let own = inside(folder)?;
            let (Some(images), Some(masks)) = (of_names(&own, &IMAGES), mask_folder(&own)?) else { continue };
            take(split, &images, &masks)?;
        }
    }
    let has_masks = |part: &Vec<AnnotatedMask>| part.iter().any(|pair| matches!(pair.mask, MaskOrigin::File(Ok(_))));
    if !given.iter().flatten().any(has_masks) {
        return Ok(None);
    }
    let parts = parts(root, given)?;
    Ok(Some(of_pairs(root, parts, notes)))
}

/// The folder of masks among `folders`: one that is called so and has images in it.
fn mask_folder(folders: &[(String, PathBuf)]) -> Result<Option<PathBuf>> {
    for name in MASKS {
        let Some((_, folder)) = folders.iter().find(|(own, _)| own.to_ascii_lowercase() == name) else { continue };
        let trimaps = folder.join("trimaps");
        let folder = if trimaps.is_dir() { trimaps } else { folder.clone() };
        if !images(&folder, "")?.is_empty() {
            return Ok(Some(folder));
        }
    }
    Ok(None)
}

fn of_pairs(root: &Path, parts: Parts<AnnotatedMask>, notes: Vec<MaskFault>) -> AnnotatedMasks {
    let values = ValueRules { from_one: false, voc_colors: false };
    AnnotatedMasks { root: normal(root), layout: Layout::MASK_PAIRS, parts, classes: None, values, notes }
}
