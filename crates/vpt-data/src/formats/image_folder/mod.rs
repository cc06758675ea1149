//! Image folders: a sub-folder for each class, directly or under `train`, `val` and `test`.

mod structure;

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::structure::PartFolder;
use super::{Candidate, ClassFiles, Format, Layout, Recognition};
use crate::check::tree::{self, FolderItem};
use crate::check::{Checking, Finding, FindingKind, ListedImage, Severity};
use crate::dataset::{ImageSource, Sample, Split};
use crate::open::{LabeledSet, Parts, entries, sort_classes};
use vpt_base::{Error, Result};
use vpt_image::decode::has_image_extension;

/// Folders inside folders that are followed at most.
pub(crate) const MAX_DEPTH: usize = 32;

impl Layout {
    /// A folder for each class.
    pub const FOLDER: Self = Self::new("folder", "image folder");
}

/// Class folders under folders of parts.
pub(super) const WITH_PARTS: Format = Format { has_boxes: false, recognize: |candidate| recognize(candidate, true) };

/// Class folders of all parts together.
pub(super) const FLAT: Format = Format { has_boxes: false, recognize: |candidate| recognize(candidate, false) };

fn recognize(candidate: &Candidate<'_>, has_parts: bool) -> Result<Recognition> {
    let Candidate { path, is_folder } = *candidate;
    let found = match (is_folder, has_parts) {
        (false, _) => None,
        (true, true) => structure::parts_with_classes(path)?.map(Some),
        (true, false) => structure::has_classes(path)?.then_some(None),
    };
    Ok(Recognition::of_classes(Layout::FOLDER, found.map(|parts| ClassFolders { root: path.into(), parts })))
}

/// An image folder.
struct ClassFolders {
    root: PathBuf,
    /// The folders of parts, if class folders lie under such.
    parts: Option<Vec<PartFolder>>,
}

impl ClassFiles for ClassFolders {
    fn open(&self) -> Result<LabeledSet> {
        // That nothing can be learned from it does not keep it from being measured.
        let is_fault = |fault: &Finding| fault.severity == Severity::Error && fault.kind != FindingKind::NoTrain;
        if let Some(fault) = self.faults().into_iter().find(is_fault) {
            return Err(Error::data(fault.path, structure::with_mend(&fault.message)));
        }
        self.parts.as_ref().map_or_else(|| open_flat(&self.root), |parts| open_split(parts))
    }

    fn check(&self, check: &mut Checking<'_>) -> Vec<ListedImage> {
        check.out.0.extend(self.faults());
        check_folders(&self.root, self.parts.as_deref(), check)
    }
}

/// Opens the parts of an image folder.
fn open_split(parts: &[PartFolder]) -> Result<LabeledSet> {
    let mut found = Vec::new();
    // `train` comes first and says what the classes are.
    for split in Split::ALL {
        let mut these = parts.iter().filter(|part| part.split == split);
        let Some(part) = these.next() else { continue };
        if let Some(second) = these.next() {
            return Err(Error::data(&second.path, format!("a second {split} folder beside {}", part.path.display())));
        }
        found.push((part, class_folders(&part.path)?));
    }
    let has_train = found.first().is_some_and(|(part, _)| part.split == Split::Train);
    let say = if has_train { &found[..1] } else { &found[..] };
    let names: BTreeSet<&String> = say.iter().flat_map(|(_, folders)| folders).map(|(name, _)| name).collect();
    let mut classes: Vec<String> = names.into_iter().cloned().collect();
    sort_classes(&mut classes);
    let mut given = [None, None, None];
    for (PartFolder { split, prefix, .. }, folders) in found {
        let mut samples = Vec::new();
        for (name, folder) in folders {
            let images = images(&folder, &format!("{prefix}{name}/"))?;
            let Some(label) = classes.iter().position(|class| *class == name) else {
                if images.is_empty() {
                    continue;
                }
                return Err(Error::data(folder, format!("class '{name}' does not occur in train")));
            };
            if images.is_empty() && *split == Split::Train {
                return Err(empty(&folder));
            }
            samples.extend(labelled(images, label));
        }
        given[*split as usize] = Some(samples);
    }
    let [train, val, test] = given;
    let some = |samples: Option<Vec<Sample>>| samples.filter(|s| !s.is_empty());
    let samples = Parts::Split { train: train.unwrap_or_default(), val: some(val), test: some(test) };
    Ok(LabeledSet { classes, samples })
}

/// Opens `root`, which is a folder of class folders.
fn open_flat(root: &Path) -> Result<LabeledSet> {
    let folders = class_folders(root)?;
    let mut classes: Vec<String> = folders.iter().map(|(name, _)| name.clone()).collect();
    sort_classes(&mut classes);
    let mut samples = Vec::new();
    for (name, folder) in &folders {
        let images = images(folder, &format!("{name}/"))?;
        if images.is_empty() {
            return Err(empty(folder));
        }
        samples.extend(labelled(images, classes.iter().position(|class| class == name).unwrap_or_default()));
    }
    Ok(LabeledSet { classes, samples: Parts::Unsplit(samples) })
}

fn empty(folder: &Path) -> Error {
    Error::data(folder, "a class folder without images; fill it or remove it")
}

fn labelled(images: Vec<(String, PathBuf)>, label: usize) -> impl Iterator<Item = Sample> {
    images.into_iter().map(move |(id, path)| Sample { image: ImageSource::File(path), label: label as u32, id })
}

fn sub_folders(root: &Path) -> Result<Vec<(String, PathBuf)>> {
    Ok(entries(root)?.into_iter().filter(|(_, path)| path.is_dir()).collect())
}

fn class_folders(root: &Path) -> Result<Vec<(String, PathBuf)>> {
    let folders = sub_folders(root)?;
    if folders.is_empty() {
        return Err(Error::data(root, "no class folders in it"));
    }
    Ok(folders)
}

/// The images under `folder`, by name; names start with `prefix`.
pub(crate) fn images(folder: &Path, prefix: &str) -> Result<Vec<(String, PathBuf)>> {
    files(folder, prefix, &has_image_extension)
}

/// The files under `folder` that are `wanted`, by name; names start with `prefix`.
pub(crate) fn files(folder: &Path, prefix: &str, wanted: &dyn Fn(&Path) -> bool) -> Result<Vec<(String, PathBuf)>> {
    let mut out = Vec::new();
    walk(folder, prefix, 0, &mut HashSet::new(), &mut |name, path| {
        if wanted(&path) {
            out.push((name, path));
        }
        false
    })?;
    out.sort();
    Ok(out)
}

/// Calls `visit` with the files under `folder`, which is `depth` folders below the first, until it returns true, and says
/// whether it did. `seen` are the folders that were entered: one that a link leads to again is not.
fn walk(
    folder: &Path,
    prefix: &str,
    depth: usize,
    seen: &mut HashSet<PathBuf>,
    visit: &mut dyn FnMut(String, PathBuf) -> bool,
) -> Result<bool> {
    let real = fs::canonicalize(folder).map_err(Error::io(folder))?;
    if depth >= MAX_DEPTH || !seen.insert(real) {
        return Ok(false);
    }
    for (name, path) in entries(folder)? {
        let name = format!("{prefix}{name}");
        let stop =
            if path.is_dir() { walk(&path, &format!("{name}/"), depth + 1, seen, visit)? } else { visit(name, path) };
        if stop {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The images of `root`, whose class folders lie under `parts`. Classes whose folder is empty are told here.
fn check_folders(root: &Path, parts: Option<&[PartFolder]>, check: &mut Checking<'_>) -> Vec<ListedImage> {
    let mut listed = Vec::new();
    let top = tree::items(root, &mut check.out);
    let Some(parts) = parts else {
        check_classes(None, top, check, &mut listed);
        return listed;
    };
    for PartFolder { split, path, .. } in parts {
        if let Some(first) = &check.places.parts[*split as usize] {
            let message = format!("a second {split} folder beside {}", first.display());
            check.out.error(FindingKind::AmbiguousSplit, path, None, message);
        } else {
            check.places.parts[*split as usize] = Some(path.clone());
        }
        let items = tree::items(path, &mut check.out);
        check_classes(Some(*split), items, check, &mut listed);
    }
    listed
}

fn check_classes(
    split: Option<Split>,
    items: Vec<FolderItem>,
    check: &mut Checking<'_>,
    listed: &mut Vec<ListedImage>,
) {
    for FolderItem { name, path, is_folder } in items {
        if !is_folder {
            if has_image_extension(&path) {
                let message = "beside the class folders, so it belongs to no class";
                check.out.warning(FindingKind::StrayImage, &path, None, message);
            }
            continue;
        }
        let images = tree::images(&path, &mut check.out);
        if images.is_empty() {
            let is_needed = split.is_none_or(|split| split == Split::Train);
            let severity = if is_needed { Severity::Error } else { Severity::Warning };
            check.out.add(FindingKind::EmptyClass, severity, &path, None, "a class folder without images");
            check.absent.insert((split, name));
            continue;
        }
        let (label, place): (Arc<str>, Arc<Path>) = (name.into(), path.into());
        listed.extend(images.into_iter().map(|image| ListedImage {
            image: ImageSource::File(image),
            split,
            label: label.clone(),
            place: (place.clone(), None),
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Dataset;
    use crate::formats::testing::folder_of;

    /// A folder of empty files; nothing here looks into them.
    fn tree(files: &[&str]) -> tempfile::TempDir {
        folder_of(&files.iter().map(|name| (*name, "")).collect::<Vec<_>>())
    }

    fn ids(samples: &[Sample]) -> Vec<&str> {
        samples.iter().map(|s| s.id.as_str()).collect()
    }

    #[test]
    fn split_folders_are_read_in_name_order_under_their_usual_names() {
        let dir = tree(&[
            "train/b/2.png",
            "train/b/10.JPG",
            "train/a/deep/1.jpeg",
            "train/a/notes.txt",
            "train/a/.hidden.png",
            "train/.cache/x.png",
            "valid/a/v.png",
            "test/b/t.png",
            "test/a/t.png",
            "readme.png",
        ]);
        let data = Dataset::open(dir.path(), 1).unwrap();
        assert_eq!(data.classes, ["a", "b"]);
        assert_eq!(ids(&data.train), ["train/a/deep/1.jpeg", "train/b/10.JPG", "train/b/2.png"]);
        assert_eq!(ids(&data.val), ["valid/a/v.png"]);
        assert_eq!(ids(&data.test), ["test/a/t.png", "test/b/t.png"]);
        assert_eq!(data.train.iter().map(|s| s.label).collect::<Vec<_>>(), [0, 1, 1]);
        assert_eq!(data.layout, Layout::FOLDER);
    }

    #[test]
    fn parts_may_be_called_as_people_call_them() {
        for [train, val, test] in [
            ["train", "dev", "test"],
            ["Training_Set", "validation-set", "test_set"],
            ["train2020", "val2020", "eval2020"],
            ["seg_train", "seg_val", "seg_test"],
            ["train", "eval", "test"],
            ["trainval", "valid", "holdout"],
        ] {
            let files = [train, val, test].map(|part| ["a", "b"].map(|class| format!("{part}/{class}/{part}.png")));
            let dir = tree(&files.as_flattened().iter().map(String::as_str).collect::<Vec<_>>());
            let data = Dataset::open(dir.path(), 1).unwrap();
            for (part, samples) in [(train, &data.train), (val, &data.val), (test, &data.test)] {
                assert_eq!(ids(samples), ["a", "b"].map(|class| format!("{part}/{class}/{part}.png")));
            }
        }
    }

    #[test]
    fn a_class_may_be_called_train_where_the_user_says_so() {
        let dir = tree(&["train/1.png", "train/2.png", "train/3.png", "car/1.png", "bus/1.png"]);
        let message = Dataset::open(dir.path(), 1).unwrap_err().to_string();
        assert!(message.contains("train: called like a part (train)") && message.contains("classes.txt"), "{message}");
        fs::write(dir.path().join("classes.txt"), "bus\ncar\ntrain\n").unwrap();
        assert_eq!(Dataset::open(dir.path(), 1).unwrap().classes, ["bus", "car", "train"]);
    }

    #[test]
    fn folds_and_pictures_without_labels_are_no_classes() {
        for (files, expected) in [
            (
                &["fold0/a/1.png", "fold0/b/1.png", "fold1/a/1.png", "fold1/b/1.png"][..],
                "fold0/, fold1/ are folds of one set",
            ),
            (&["cat/1.png", "dog/1.png", "unlabeled/1.png"], "called as what has no labels"),
            (&["train/image_2/1.png", "train/label_2/1.txt", "test/image_2/2.png"], "image_2/ is named for what"),
        ] {
            let message = Dataset::open(tree(files).path(), 1).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        // Places, or times of day: it is said, and goes on.
        let files: Vec<String> = ["day", "night"]
            .iter()
            .flat_map(|top| ["cat", "dog"].map(|inner| (0..4).map(move |i| format!("{top}/{inner}/{i}.png"))))
            .flatten()
            .collect();
        let dir = tree(&files.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(Dataset::open(dir.path(), 1).unwrap().classes, ["day", "night"]);
        let found = crate::check::check(dir.path(), true, &mut |_, _| {}).unwrap().findings;
        assert!(found.iter().any(|f| f.kind == FindingKind::NotAClass && f.severity == Severity::Warning), "{found:?}");
    }

    #[test]
    fn classes_must_agree_across_parts() {
        let dir = tree(&["train/a/1.png", "val/a/1.png", "val/cat/1.png"]);
        let message = Dataset::open(dir.path(), 1).unwrap_err().to_string();
        assert!(message.contains("val/cat") && message.contains("'cat'"), "{message}");
        // Fewer are fine.
        let dir = tree(&["train/a/1.png", "train/b/1.png", "val/a/1.png", "test/a/1.png"]);
        assert_eq!(Dataset::open(dir.path(), 1).unwrap().classes.len(), 2);
    }

    #[test]
    fn classes_that_are_numbers_are_in_the_order_of_numbers() {
        for prefix in ["", "train/"] {
            let files =
                ["10/1.png", "10/2.png", "10/3.png", "9/1.png", "9/2.png", "9/3.png"].map(|f| format!("{prefix}{f}"));
            let data = Dataset::open(tree(&files.each_ref().map(String::as_str)).path(), 1).unwrap();
            assert_eq!(data.classes, ["9", "10"]);
            let all = [&data.train, &data.val, &data.test].into_iter().flatten();
            assert!(all.into_iter().all(|s| s.id.starts_with(&format!("{prefix}{}/", data.classes[s.label as usize]))));
        }
    }

    #[test]
    fn an_empty_class_folder_is_named() {
        for files in [&["train/a/1.png", "train/empty/x.txt"][..], &["a/1.png", "empty/x.txt"][..]] {
            let dir = tree(files);
            let message = Dataset::open(dir.path(), 1).unwrap_err().to_string();
            assert!(message.contains("empty: a class folder without images"), "{message}");
        }
    }

    #[test]
    fn two_names_for_one_part_are_refused() {
        let dir = tree(&["train/a/1.png", "val/a/1.png", "valid/a/1.png"]);
        assert!(Dataset::open(dir.path(), 1).unwrap_err().to_string().contains("a second val folder"));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_leads_back_is_not_followed_for_ever() {
        let dir = tree(&["a/1.png", "b/1.png"]);
        std::os::unix::fs::symlink(dir.path(), dir.path().join("a/loop")).unwrap();
        let found = open_flat(dir.path()).unwrap();
        let Parts::Unsplit(samples) = found.samples else { panic!("split") };
        // Through the link the other class is seen once; nothing is seen twice by one way.
        assert_eq!(ids(&samples), ["a/1.png", "a/loop/b/1.png", "b/1.png"]);
    }

    #[test]
    fn what_is_no_data_set_is_refused_with_what_was_expected() {
        let dir = tree(&["1.png", "2.png"]);
        assert!(Dataset::open(dir.path(), 1).unwrap_err().to_string().contains("expected"));
        let dir = tree(&["annotations/instances_train.json", "train/1.jpg"]);
        assert!(Dataset::open(dir.path(), 1).unwrap_err().to_string().contains("COCO"));
        let message = Dataset::open("/no/such/folder", 1).unwrap_err().to_string();
        assert!(message.starts_with("/no/such/folder: "), "{message}");
    }
}
