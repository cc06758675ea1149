//! Files of labels and images that do not meet: a folder of another name, files that were renamed on one side. Whatever has no
//! labels is taken for an image without objects, so it is counted and said with the path that was looked for.

use std::collections::{BTreeSet, HashSet};
use std::path::{Component, Path, PathBuf};

use super::super::image_folder::files;
use super::{Labels, MAX_BYTES, label_path};
use crate::Split;
use crate::boxes::{Problem, ProblemKind, Remedy};
use crate::open::entries;
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};
use vpt_image::decode::has_image_extension;

/// Files of other uses that lie among labels.
const NO_LABELS: [&str; 4] = ["classes", "labels", "names", "predefined_classes"];

/// The images of a part and the files of labels that were looked for.
#[derive(Default)]
pub(super) struct PartLabels {
    images: usize,
    /// Images that have a file of labels.
    labelled: usize,
    /// The first image that has none.
    missing: Option<PathBuf>,
    /// Folders that labels were looked for in.
    folders: BTreeSet<PathBuf>,
    /// Images without their endings, in the folders of their labels.
    stems: HashSet<PathBuf>,
}

impl PartLabels {
    /// Takes in an image.
    pub(super) fn add(&mut self, image: &Path, has_labels: bool) {
        self.images += 1;
        self.labelled += usize::from(has_labels);
        let label = label_path(image);
        self.folders.extend(label.parent().map(Path::to_path_buf));
        self.stems.insert(label.with_extension(""));
        if !has_labels && self.missing.is_none() {
            self.missing = Some(image.to_path_buf());
        }
    }

    /// `3 of 6 images have no file of labels: …`, if one has none.
    fn missing_line(&self) -> Option<String> {
        let first = self.missing.as_ref()?;
        let looked = label_path(first);
        let count = self.images - self.labelled;
        Some(format!(
            "{count} of {} images have no file of labels and are taken for images without objects: for {} it would be {}",
            self.images,
            first.display(),
            looked.display()
        ))
    }
}

/// Compares images and labels of all parts of the data set that `config` describes in `root`.
///
/// # Errors
/// No image, or none of train, has a file of labels, or most of these files are of no image.
pub(super) fn compare(
    config: &Path,
    root: &Path,
    parts: &[Option<PartLabels>; 3],
    labels: &Labels,
    problems: &mut Vec<Problem>,
) -> Result<()> {
    let given = || Split::ALL.into_iter().zip(parts).filter_map(|(split, part)| Some((split, part.as_ref()?)));
    let whole = |part: &PartLabels| part.images > 0 && part.labelled == 0;
    let all_images: usize = given().map(|(_, part)| part.images).sum();
    let nothing = given().all(|(_, part)| part.labelled == 0);
    if let Some(first) = given().find_map(|(split, part)| {
        (nothing || split == Split::Train).then_some(part).filter(|part| whole(part))?.missing.as_ref()
    }) {
        let looked = label_path(first);
        let elsewhere = elsewhere(root, &looked).map(|path| format!("; there is {}", path.display()));
        let who = if nothing { format!("none of the {all_images} images") } else { "no image of train".to_owned() };
        let message = format!(
            "{who} has a file of labels: for {} it would be {}{}{}",
            first.display(),
            looked.display(),
            elsewhere.unwrap_or_default(),
            if looked.to_string_lossy().contains('\\') { "; write paths with /" } else { "" }
        );
        return Err(Error::data(config, message));
    }
    let (mut orphans, mut files_of_labels) = (Vec::new(), 0);
    let stems: HashSet<&PathBuf> = given().flat_map(|(_, part)| &part.stems).collect();
    let folders: BTreeSet<&PathBuf> = given().flat_map(|(_, part)| &part.folders).collect();
    for folder in folders {
        let on_disk = images_for(folder);
        for (name, path) in entries(folder).unwrap_or_default() {
            let stem = path.with_extension("");
            let is_text = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("txt"));
            if !is_text || NO_LABELS.contains(&name.trim_end_matches(".txt")) || !path.is_file() {
                continue;
            }
            files_of_labels += 1;
            if !stems.contains(&stem) && !on_disk.contains(stem.file_name().unwrap_or_default()) && labels.may_be(&path)
            {
                orphans.push(path);
            }
        }
    }
    let missing = given().filter_map(|(_, part)| part.missing_line());
    let Some(first) = orphans.first() else {
        for (split, part) in given() {
            // A few images without objects are as they should be.
            if whole(part) || part.labelled * 2 < part.images {
                let detail = format!("{split}: {}", part.missing_line().unwrap_or_default());
                problems.push(problem(ProblemKind::NoLabels, config, detail));
            }
        }
        return Ok(());
    };
    let looked = image_of(first);
    let mut detail = format!(
        "{} of {files_of_labels} files of labels are of no image: for {} it would be {}",
        orphans.len(),
        first.display(),
        looked.display()
    );
    for line in missing {
        detail = format!("{detail}; {line}");
    }
    if orphans.len() * 2 >= files_of_labels {
        return Err(Error::data(config, detail));
    }
    problems.push(problem(ProblemKind::OrphanLabels, config, detail));
    Ok(())
}

fn problem(kind: ProblemKind, config: &Path, detail: String) -> Problem {
    let remedy = if kind == ProblemKind::OrphanLabels { Remedy::NotRead } else { Remedy::NothingDone };
    Problem { kind, remedy, file: config.to_path_buf(), place: None, detail }
}

/// The image of any ending that the file of labels `label` would belong to.
fn image_of(label: &Path) -> PathBuf {
    let folder = images_folder(label.parent().unwrap_or(Path::new("")));
    let mut name = label.file_stem().unwrap_or_default().to_os_string();
    name.push(".*");
    folder.join(name)
}

/// The folder of the images whose labels lie in `folder`.
fn images_folder(folder: &Path) -> PathBuf {
    let parts: Vec<Component<'_>> = folder.components().collect();
    let last = parts.iter().rposition(|part| part.as_os_str() == "labels");
    let images = Component::Normal("images".as_ref());
    parts.iter().enumerate().map(|(i, part)| if Some(i) == last { &images } else { part }).collect()
}

/// Names, without their endings, of the images whose labels may lie in `folder`.
fn images_for(folder: &Path) -> HashSet<std::ffi::OsString> {
    let folders = [images_folder(folder), folder.to_path_buf()];
    let all = folders.iter().flat_map(|folder| entries(folder).unwrap_or_default());
    let images = all.filter(|(_, path)| has_image_extension(path));
    images.filter_map(|(_, path)| path.file_stem().map(std::ffi::OsStr::to_os_string)).collect()
}

/// Where under `root` a file called like `label` lies.
fn elsewhere(root: &Path, label: &Path) -> Option<PathBuf> {
    // With an ending in capitals, or behind that of the image.
    let stem = label.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let is_it = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let rest = name.strip_prefix(&stem).and_then(|rest| rest.strip_suffix(".txt"));
        rest.is_some_and(|rest| rest.is_empty() || has_image_extension(Path::new(&name[..name.len() - 4])))
    };
    files(root, "", &is_it).ok()?.into_iter().next().map(|(_, path)| path)
}

impl Labels {
    /// Whether `file` holds labels: notes and lists lie among them.
    fn may_be(&self, file: &Path) -> bool {
        let Ok(bytes) = read_limited(file, MAX_BYTES) else { return true };
        let text = String::from_utf8_lossy(&bytes);
        let mut lines = text.trim_start_matches('\u{feff}').lines().filter(|line| !line.trim().is_empty());
        lines.next().is_none_or(|line| self.object(line).is_ok())
    }
}
