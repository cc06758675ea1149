//! Image folders: a folder for each class, directly or under `train`, `val` and `test`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::classes::Absent;
use super::finding::{FindingKind, Findings, Severity};
use super::listed::{Listed, Places};
use super::tree::{self, Item};
use crate::data::Split;
use crate::image::decode::has_image_extension;

/// The images of `root`, whose class folders lie under parts if `has_parts`. Classes whose folder is empty are told here
/// and added to `told`.
pub(super) fn check(
    root: &Path,
    has_parts: bool,
    places: &mut Places,
    told: &mut HashSet<Absent>,
    out: &mut Findings,
) -> Vec<Listed> {
    let mut listed = Vec::new();
    let top = tree::items(root, out);
    if !has_parts {
        let folders = top.iter().filter(|item| item.is_folder);
        if folders.clone().count() > 0 && folders.clone().all(|item| Split::from_name(&item.name).is_some()) {
            let message = "folders called like parts and no train among them: they are taken for classes";
            out.error(FindingKind::NoTrain, root, None, message);
        }
        classes(None, top, told, &mut listed, out);
        return listed;
    }
    for item in top.into_iter().filter(|item| item.is_folder) {
        let Some(split) = Split::from_name(&item.name) else { continue };
        if let Some(first) = &places.parts[split as usize] {
            let message = format!("a second {split} folder beside {}", first.display());
            out.error(FindingKind::AmbiguousSplit, &item.path, None, message);
        } else {
            places.parts[split as usize] = Some(item.path.clone());
        }
        classes(Some(split), tree::items(&item.path, out), told, &mut listed, out);
    }
    listed
}

/// Whether `root` has the folders of parts, if only empty ones. A class may be called `train`: its folder holds images.
pub(super) fn has_parts(root: &Path) -> bool {
    let folders = |folder: &Path| tree::items(folder, &mut Findings::default());
    let all = folders(root).into_iter().filter(|item| item.is_folder);
    let parts: Vec<_> = all.filter_map(|item| Split::from_name(&item.name).zip(Some(item.path))).collect();
    let is_train = |(split, path): &(Split, PathBuf)| {
        *split == Split::Train && folders(path).iter().all(|item| item.is_folder || !has_image_extension(&item.path))
    };
    parts.len() > 1 && parts.iter().any(is_train)
}

fn classes(
    split: Option<Split>,
    items: Vec<Item>,
    told: &mut HashSet<Absent>,
    listed: &mut Vec<Listed>,
    out: &mut Findings,
) {
    for Item { name, path, is_folder } in items {
        if !is_folder {
            if has_image_extension(&path) {
                out.warning(
                    FindingKind::StrayImage,
                    &path,
                    None,
                    "beside the class folders, so it belongs to no class",
                );
            }
            continue;
        }
        let images = tree::images(&path, out);
        if images.is_empty() {
            let is_needed = split.is_none_or(|split| split == Split::Train);
            let severity = if is_needed { Severity::Error } else { Severity::Warning };
            out.add(FindingKind::EmptyClass, severity, &path, None, "a class folder without images");
            told.insert((split, name));
            continue;
        }
        let (label, place): (Arc<str>, Arc<Path>) = (name.into(), path.into());
        listed.extend(images.into_iter().map(|image| Listed {
            path: image.into(),
            number: None,
            split,
            label: label.clone(),
            place: (place.clone(), None),
        }));
    }
}
