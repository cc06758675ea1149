//! Opens a data set by recognising its layout.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::boxes::several_classes;
use super::dataset::{Dataset, Sample};
use super::formats::unread::{BOX_LAYOUTS, Unread, unread};
use super::formats::{self, Candidate};
use super::shapes::{self, ShapesConfig};
use super::split::{self, MadeParts};
use vpt_base::{Error, Message, Result, suggest};

/// A data set of images with a class each as it was found, before parts that are missing are made.
pub(crate) struct LabeledSet {
    pub(super) classes: Vec<String>,
    pub(super) samples: Parts<Sample>,
}

/// The parts that a data set comes in.
pub(crate) enum Parts<M> {
    /// None: all samples together.
    Unsplit(Vec<M>),
    /// At least the first.
    Split { train: Vec<M>, val: Option<Vec<M>>, test: Option<Vec<M>> },
}

impl Dataset {
    /// Opens the data set at `spec`: an image folder, a CSV or TSV table or a folder with such tables, a folder with a
    /// `split_zhou_*.json`, lists of path and label (`train.json`, `train.txt`), or the IDX files of the MNIST family. Parts
    /// that it lacks are split off by `seed`; see [`split_note`](Self::split_note). Images in files are not decoded yet.
    /// `shapes`, where nothing has that name, is the default set of [`shapes`], the same for every seed.
    ///
    /// # Errors
    /// There is no such file or folder, its layout is not known, a class occurs in one part but not in `train`, or what was
    /// found contradicts itself; the error names the file, and the line in a table.
    pub fn open(spec: impl AsRef<Path>, seed: u64) -> Result<Self> {
        Self::open_with(spec, seed, MadeParts::All)
    }

    /// As [`open`](Self::open), with no other parts made than `made` says.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(spec: impl AsRef<Path>, seed: u64, made: MadeParts<'_>) -> Result<Self> {
        Self::read(spec.as_ref(), seed, made)
    }

    fn read(path: &Path, seed: u64, made: MadeParts<'_>) -> Result<Self> {
        if path == Path::new("shapes") && !path.exists() {
            return shapes::dataset(&ShapesConfig::default());
        }
        if !path.exists()
            && let Some(name) = suggest::nearest(&path.to_string_lossy(), ["shapes"])
        {
            return Err(Error::data(path, format!("no such file or folder; did you mean {name}?")));
        }
        let candidate = Candidate::at(path).map_err(|error| Error::typed(path)(error).of_kind(Error::data))?;
        let Some(found) = formats::recognize(&candidate).map_err(|error| error.of_kind(Error::data))? else {
            if let Some(Unread { file, message }) = unread(path).into_iter().next() {
                return Err(Error::data(file, message));
            }
            let message = if candidate.is_folder {
                format!(
                    "no data set found: expected a sub-folder of images for each class (with train, val and test above \
                     them or without), a .csv or .tsv table of path,label, lists of path and label (train.json or \
                     train.txt), a split_zhou_*.json, the IDX files of the MNIST family, or boxes as {BOX_LAYOUTS}"
                )
            } else {
                "not a data set: expected a folder, a .csv or .tsv table, or a .json or .txt list of path and label"
                    .to_owned()
            };
            return Err(Error::data(path, message));
        };
        // Data sets of boxes are not to be mistaken for image folders.
        let Some(files) = found.classes else {
            if found.boxes.is_some_and(|files| files.are_whole_images()) {
                return Err(Error::data(path, several_classes(found.layout)));
            }
            let message = format!(
                "a {} data set of boxes, where images with one label each are needed; `vpt data info`, `vpt data \
                 convert` and `vpt train ",
                found.layout.title()
            );
            return Err(Error::data(path, Message::from(message).field("task").text(" detect|multilabel` read boxes")));
        };
        let set = files.open().map_err(|error| error.of_kind(Error::data))?;
        split::complete(name_of(path), found.layout, set, seed, made)
    }
}

/// Puts the names of classes in the order of their labels: numbers, if all are, by value, so that 2 comes before 10.
pub(super) fn sort_classes(classes: &mut [String]) {
    classes.sort();
    if classes.iter().all(|class| class.parse::<i64>().is_ok()) {
        classes.sort_by_key(|class| class.parse::<i64>().unwrap_or_default());
    }
}

/// What a data set is called: the last part of its path, without the ending of a file.
pub(super) fn name_of(path: &Path) -> String {
    // For `.`, `..` and links the last part says nothing.
    let full = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let name = if full.is_dir() { full.file_name() } else { full.file_stem() };
    name.map_or_else(|| "data".into(), |n| n.to_string_lossy().into_owned())
}

/// Folders that systems leave behind: archives of a Mac, previews and bins of storage servers, bins of Windows, checks of disks.
const SYSTEM: [&str; 9] = [
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "@Recycle",
    "@Recently-Snapshot",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    "__pycache__",
];

/// Whether what is called `name` is hidden, or not the user's, and so no part of any data set.
pub(crate) fn is_passed_by(name: &str) -> bool {
    name.starts_with('.') || SYSTEM.contains(&name)
}

/// The entries of a folder that are not hidden, by name.
pub(super) fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !is_passed_by(&name) {
            out.push((name, path));
        }
    }
    out.sort();
    Ok(out)
}

/// What `file` is called in `folder`: without the folder's own path and without `.` parts, parts separated by `/`. Only a
/// path that leads elsewhere stays absolute.
pub(super) fn relative_id(folder: &Path, file: &Path) -> String {
    let file = file.strip_prefix(folder).unwrap_or(file);
    let start = if file.is_absolute() { "/" } else { "" };
    let parts = file.components().filter_map(|part| match part {
        Component::Normal(part) => Some(part.to_string_lossy()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    start.to_string() + &parts.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::super::dataset::Layout;
    use super::*;

    #[test]
    fn shapes_are_drawn_and_the_same_for_every_seed() {
        let data = Dataset::open("shapes", 1).unwrap();
        assert_eq!(data.layout, Layout::GENERATED);
        assert_eq!(data.content_hash().unwrap(), Dataset::open("shapes", 2).unwrap().content_hash().unwrap());
    }

    #[test]
    fn ids_are_relative_to_the_folder() {
        let id = |folder: &str, file: &str| relative_id(Path::new(folder), Path::new(file));
        assert_eq!(id("/data/set", "/data/set/a/b.png"), "a/b.png");
        assert_eq!(id("/data/set", "./a//b.png"), "a/b.png");
        assert_eq!(id("set", "../a.png"), "../a.png");
        assert_eq!(id("set", "/elsewhere/a.png"), "/elsewhere/a.png");
        assert_eq!(id("", "a.png"), "a.png");
    }
}
