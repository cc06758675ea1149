//! Which folders are those of parts and of classes, and which only look like them: a folder that is called like a part, or after
//! what it holds, is no class unless `classes.txt` says so.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::{ClassFolders, images, sub_folders, walk};
use crate::Split;
use crate::check::{Finding, FindingKind, Findings};
use crate::formats::metadata::only_describes;
use crate::formats::unread::unread;
use crate::open::entries;
use crate::part_names::are_parts_of_classes;
use vpt_base::files::read_limited;
use vpt_base::{Message, Result};
use vpt_image::decode::has_image_extension;

/// The file that lists classes whose names would not be taken for those of classes.
const CLASSES: &str = "classes.txt";

/// Longest such file, in bytes.
const MAX_BYTES: u64 = 1 << 24;

/// Folders inside each other that have the name of one part.
const MOST_WRAPPERS: usize = 3;

/// Names of folders that hold the pictures of a data set, whatever is in them.
const PICTURES: [&str; 13] = [
    "images",
    "image",
    "imgs",
    "img",
    "jpegimages",
    "pngimages",
    "jpgs",
    "jpg",
    "pngs",
    "objtraindata",
    "objvaliddata",
    "objvaldata",
    "objtestdata",
];

/// Names of folders that hold what belongs to pictures.
const PARTNERS: [&str; 19] = [
    "labels",
    "label",
    "annotations",
    "annotation",
    "anns",
    "ann",
    "gt",
    "gts",
    "groundtruth",
    "groundtruths",
    "segmentation",
    "segmentations",
    "segmentationclass",
    "segmentationobject",
    "labelids",
    "bboxes",
    "xmls",
    "jsons",
    "imagesets",
];

/// Names of such folders that may also be those of classes, where no pictures' folder is beside them.
const MASKS: [&str; 6] = ["mask", "masks", "maps", "trimaps", "boxes", "frames"];

/// Names of folders of pictures without labels.
const UNLABELLED: [&str; 7] =
    ["unlabeled", "unlabelled", "unlabled", "nolabel", "nolabels", "unannotated", "withoutlabels"];

/// What folders are called that a data set was dealt out to by number.
const DEALT: [&str; 7] = ["fold", "folds", "cv", "batch", "chunk", "shard", "part"];

/// A folder of a part.
pub(super) struct PartFolder {
    pub(super) split: Split,
    /// What the names of its images begin with.
    pub(super) prefix: String,
    pub(super) path: PathBuf,
}

impl PartFolder {
    /// The folder `path` called `name`, or the one in it that has its name again: archives are often unpacked so.
    fn of(split: Split, name: &str, path: PathBuf) -> Result<Self> {
        let mut part = Self { split, prefix: format!("{name}/"), path };
        for _ in 0..MOST_WRAPPERS {
            let all = entries(&part.path)?;
            let [(inner, path)] = &all.iter().filter(|(_, path)| path.is_dir()).collect::<Vec<_>>()[..] else { break };
            let holds_images = all.iter().any(|(_, path)| has_image_extension(path));
            if holds_images || !(inner == name || Split::from_name(inner) == Some(split)) {
                break;
            }
            part = Self { split, prefix: format!("{}{inner}/", part.prefix), path: path.clone() };
        }
        Ok(part)
    }
}

/// Names that `classes.txt` in `root` says are classes.
fn said_classes(root: &Path) -> HashSet<String> {
    let bytes = read_limited(&root.join(CLASSES), MAX_BYTES).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim_start_matches('\u{feff}').lines().map(|line| line.trim().to_owned()).collect()
}

/// The folders in `root` that are called like parts, by name.
fn part_folders(root: &Path) -> Result<Vec<PartFolder>> {
    let said = said_classes(root);
    let all: Vec<_> = sub_folders(root)?.into_iter().filter(|(name, _)| !said.contains(name)).collect();
    let parts = Split::of_names(all.iter().map(|(name, _)| name.as_str()));
    let named = parts.into_iter().zip(all).filter_map(|(split, (name, path))| Some((split?, name, path)));
    named.map(|(split, name, path)| PartFolder::of(split, &name, path)).collect()
}

/// The folders of parts in `root`, if class folders lie under train, or under other parts where nothing else is there. A folder
/// called `train` that only holds images is none.
pub(super) fn parts_with_classes(root: &Path) -> Result<Option<Vec<PartFolder>>> {
    let parts = part_folders(root)?;
    let (mut train, mut any) = (false, false);
    for part in &parts {
        let has_classes = has_classes(&part.path)?;
        train |= has_classes && part.split == Split::Train;
        any |= has_classes;
    }
    let is_one = train || (any && others(root, &parts)?.is_empty());
    Ok(is_one.then_some(parts))
}

/// The folders in `root` that hold images and are none of `parts`.
fn others(root: &Path, parts: &[PartFolder]) -> Result<Vec<(String, PathBuf)>> {
    let mut out = Vec::new();
    for (name, path) in sub_folders(root)? {
        if !parts.iter().any(|part| part.path.starts_with(&path)) && holds_images(&path)? {
            out.push((name, path));
        }
    }
    Ok(out)
}

/// Whether any folder in `root` holds an image.
pub(super) fn has_classes(root: &Path) -> Result<bool> {
    for (_, path) in sub_folders(root)? {
        if holds_images(&path)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn holds_images(folder: &Path) -> Result<bool> {
    walk(folder, "", 0, &mut HashSet::new(), &mut |_, path| has_image_extension(&path))
}

/// `name` without signs and capitals.
fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// Whether `name` is among `names`, with a number behind it or not: KITTI has `image_2/` and `label_2/`.
fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.contains(&plain(name).trim_end_matches(|c: char| c.is_ascii_digit()))
}

/// Whether `name` says nothing but a number of a fold.
fn is_dealt(name: &str) -> bool {
    let name = plain(name);
    let word = name.trim_end_matches(|c: char| c.is_ascii_digit());
    word.len() < name.len() && DEALT.contains(&word)
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("{name}/")).collect::<Vec<_>>().join(", ")
}

impl ClassFolders {
    /// Folders that are not what they are taken for, files that are not read, and folders that are not used.
    pub(super) fn faults(&self) -> Vec<Finding> {
        let mut out = Findings::default();
        for file in unread(&self.root).into_iter().filter(|unread| !only_describes(&unread.file)) {
            out.error(FindingKind::AnnotationNotRead, file.file, None, file.message);
        }
        // Such files say why folders look as they do.
        if out.has_errors() {
            return out.0;
        }
        match &self.parts {
            Some(parts) => parts_faults(&self.root, parts, &mut out),
            None => flat_faults(&self.root, &mut out),
        }
        out.0
    }
}

fn parts_faults(root: &Path, parts: &[PartFolder], out: &mut Findings) {
    if !parts.iter().any(|part| part.split == Split::Train) {
        let names: Vec<&str> = parts.iter().map(|part| part.split.name()).collect();
        let message = format!(
            "no train among its parts ({}): there is nothing to learn from; `vpt eval` measures it",
            names.join(", ")
        );
        out.error(FindingKind::NoTrain, root, None, message);
    }
    for PartFolder { split, path, .. } in parts {
        let folders = sub_folders(path).unwrap_or_default();
        let loose = entries(path).unwrap_or_default().iter().filter(|(_, path)| has_image_extension(path)).count();
        if folders.is_empty() && loose > 0 {
            let message = format!(
                "{loose} pictures and no class folders: without labels they are no {split}; move the folder out of {}, and give \
                 its pictures to `vpt predict`",
                root.display()
            );
            out.error(FindingKind::UnlabelledPart, path, None, message);
        }
        let names: Vec<&str> = folders.iter().map(|(name, _)| name.as_str()).collect();
        class_faults(path, &names, root, out);
    }
    for (name, path) in others(root, parts).unwrap_or_default() {
        let count = images(&path, "").map_or(0, |images| images.len());
        let message = format!("{count} pictures that are not used: {name}/ is the name of no part (train, val, test)");
        out.warning(FindingKind::NotUsed, path, None, message);
    }
}

fn flat_faults(root: &Path, out: &mut Findings) {
    let Ok(folders) = others(root, &[]) else { return };
    let names: Vec<&str> = folders.iter().map(|(name, _)| name.as_str()).collect();
    let said = said_classes(root);
    let parts = Split::of_names(names.iter().copied());
    for ((name, path), part) in folders.iter().zip(parts) {
        let Some(split) = part.or_else(|| Split::from_name(name)).filter(|_| !said.contains(name)) else { continue };
        let what = if sub_folders(path).is_ok_and(|folders| !folders.is_empty()) {
            "has folders in it, but there is no train of that kind beside it; put the class folders of each part into a folder of \
             its own (train/CLASS/, test/CLASS/)"
                .to_owned()
        } else {
            format!("holds pictures without labels; move it out of {}", root.display())
        };
        let message = format!(
            "called like a part ({split}) and taken for no class: it {what}. If it is a class, list all classes in {}",
            root.join(CLASSES).display()
        );
        out.error(FindingKind::NotAClass, path, None, message);
    }
    let all: Vec<&str> = names.iter().copied().filter(|name| !said.contains(*name)).collect();
    if are_parts_of_classes(all.iter().copied()) {
        let message = format!(
            "{} say part and class in one; put class folders into a folder for each part (train/CLASS/, test/CLASS/)",
            quoted(&all)
        );
        out.error(FindingKind::NotAClass, root, None, message);
    }
    if all.len() > 1 && all.iter().all(|name| is_dealt(name)) {
        let message = format!(
            "{} are folds of one set, and taken for no classes; put their class folders into a folder for each part \
             (train/CLASS/, test/CLASS/). If they are classes, list all classes in {}",
            quoted(&all),
            root.join(CLASSES).display()
        );
        out.error(FindingKind::NotAClass, root, None, message);
    } else {
        tell_same_folders(root, &folders, &said, out);
    }
    class_faults(root, &all, root, out);
    for (name, path) in &folders {
        let inner = sub_folders(path).unwrap_or_default();
        let parts = Split::of_names(inner.iter().map(|(name, _)| name.as_str()));
        let named: Vec<&str> =
            parts.iter().zip(&inner).filter(|(part, _)| part.is_some()).map(|(_, (name, _))| name.as_str()).collect();
        let has_train = parts.contains(&Some(Split::Train));
        let is_wrapper = names.len() == 1 && (has_train || inner.len() > 1);
        if !is_wrapper && (named.len() < 2 || !has_train) {
            continue;
        }
        let message = if is_wrapper {
            let names: Vec<&str> = inner.iter().map(|(name, _)| name.as_str()).take(3).collect();
            format!("the only folder, with folders in it ({}): open it itself, as {}", quoted(&names), path.display())
        } else {
            format!(
                "parts inside a class ({}), which would be mixed; put the class folders into the folders of parts (train/{name}/)",
                quoted(&named)
            )
        };
        out.error(FindingKind::NotAClass, path, None, message);
    }
}

/// Class folders that all hold the same folders: these may be the classes.
fn tell_same_folders(root: &Path, folders: &[(String, PathBuf)], said: &HashSet<String>, out: &mut Findings) {
    let inner = |path: &Path| -> Vec<String> {
        let is_loose = entries(path).unwrap_or_default().iter().any(|(_, path)| has_image_extension(path));
        let all = if is_loose { Vec::new() } else { sub_folders(path).unwrap_or_default() };
        all.into_iter().map(|(name, _)| name).collect()
    };
    let Some(((name, path), rest)) = folders.split_first() else { return };
    let first = inner(path);
    let have_parts = Split::of_names(first.iter().map(String::as_str)).iter().any(Option::is_some);
    if rest.is_empty() || first.len() < 2 || have_parts || said.contains(name) {
        return;
    }
    if rest.iter().all(|(_, path)| inner(path) == first) {
        let names: Vec<&str> = first.iter().map(String::as_str).take(3).collect();
        let message = format!(
            "each of the {} class folders holds folders of the same names ({}): if these are the classes, put them into a folder \
             for each part (train/{}/)",
            folders.len(),
            quoted(&names),
            first[0]
        );
        out.warning(FindingKind::NotAClass, root, None, message);
    }
}

/// What lies in folders that are named after pictures and what belongs to these.
const BESIDE: &str =
    "labels that lie beside pictures, pixel by pixel or file by file, are not read from an image folder";

/// The message of a fault, and which task reads what lies there if it is masks.
pub(super) fn with_mend(fault: &str) -> Message {
    let message = Message::from(fault.to_owned());
    if !fault.contains(BESIDE) {
        return message;
    }
    message.text("; masks are read by `vpt train ").field("task").text(" segment`")
}

/// Class folders in `folder` that are called after what they hold.
fn class_faults(folder: &Path, names: &[&str], root: &Path, out: &mut Findings) {
    for name in names.iter().filter(|name| UNLABELLED.contains(&plain(name).as_str())) {
        if !said_classes(root).contains(*name) {
            let message = format!(
                "called as what has no labels, and taken for no class; move it out of {}. If it is a class, list all classes in {}",
                root.display(),
                root.join(CLASSES).display()
            );
            out.error(FindingKind::NotAClass, folder.join(name), None, message);
        }
    }
    let pictures: Vec<&str> = names.iter().copied().filter(|name| is_one_of(name, &PICTURES)).collect();
    let mut partners: Vec<&str> = names.iter().copied().filter(|name| is_one_of(name, &PARTNERS)).collect();
    let said = said_classes(root);
    if !pictures.is_empty() || !partners.is_empty() {
        partners.extend(names.iter().copied().filter(|name| is_one_of(name, &MASKS)));
    }
    let all: Vec<&str> = pictures.iter().chain(&partners).copied().filter(|name| !said.contains(*name)).collect();
    if all.is_empty() {
        return;
    }
    let mend = if !pictures.is_empty() && !partners.is_empty() {
        BESIDE.to_owned()
    } else if all.len() == names.len() {
        "a picture's class is the name of its folder, or stands in a .csv of path,label".to_owned()
    } else {
        "move what is no class out of the folder".to_owned()
    };
    let message = format!(
        "{} are named for what they hold, and taken for no classes: {mend}. If they are classes, list all classes in {}",
        quoted(&all),
        root.join(CLASSES).display()
    );
    let message = if all.len() == 1 {
        message
            .replacen(
                " are named for what they hold, and taken for no classes",
                " is named for what it holds, and taken for no class",
                1,
            )
            .replacen("If they are classes", "If it is a class", 1)
    } else {
        message
    };
    out.error(FindingKind::NotAClass, folder, None, message);
}
