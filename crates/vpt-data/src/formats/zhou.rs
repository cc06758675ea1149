//! The `split_zhou_*.json` files of CoOp, which say for each of its data sets which image is in which part:
//! `{"train": [[path, label, class name], …], "val": …, "test": …}`, with paths relative to the folder of the images.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::table::leads_out;
use super::{Candidate, ClassFiles, Format, Layout, Recognition};
use crate::boxes::normal;
use crate::check::{Checking, FindingKind, Findings, ListedImage, classes, json, text};
use crate::dataset::{ImageSource, Sample, Split};
use crate::open::{LabeledSet, Parts, entries, relative_id};
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

/// Images that are looked for, by a check, to find the folder they are in.
const PROBES: usize = 32;

impl Layout {
    /// CoOp's list of which image is in which part.
    pub const SPLIT_ZHOU: Self = Self::new("split_zhou", "split_zhou");
}

/// CoOp's list of which image is in which part.
pub(super) const FORMAT: Format = Format { has_boxes: false, recognize };

fn recognize(candidate: &Candidate<'_>) -> Result<Recognition> {
    let Candidate { path, is_folder } = *candidate;
    let is_called = |name: &str| name.starts_with("split_zhou_");
    let files: Vec<PathBuf> = if is_folder {
        let is_one = |name: &str, path: &Path| {
            is_called(name) && path.extension().is_some_and(|e| e == "json") && path.is_file()
        };
        entries(path)?.into_iter().filter(|(name, path)| is_one(name, path)).map(|(_, path)| path).collect()
    } else {
        let is_one = path.file_name().is_some_and(|name| is_called(&name.to_string_lossy()));
        is_one.then(|| path.to_path_buf()).into_iter().collect()
    };
    let mut files = files.into_iter();
    let found = files.next().map(|file| SplitFiles { file, others: files.collect() });
    Ok(Recognition::of_classes(Layout::SPLIT_ZHOU, found))
}

/// A file of this kind, and others that leave no choice between them.
struct SplitFiles {
    file: PathBuf,
    others: Vec<PathBuf>,
}

impl ClassFiles for SplitFiles {
    fn open(&self) -> Result<LabeledSet> {
        match self.others.first() {
            Some(second) => Err(Error::data(second, "a second file of this kind; keep one")),
            None => open(&self.file),
        }
    }

    fn check(&self, check: &mut Checking<'_>) -> Vec<ListedImage> {
        check.places.whole.clone_from(&self.file);
        let listed = check_file(&self.file, &mut check.out);
        for second in &self.others {
            check.out.error(FindingKind::AmbiguousSplit, second, None, "a second file of this kind; keep one");
            check_file(second, &mut check.out);
        }
        listed
    }
}

/// Longest file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 28;

#[derive(Deserialize)]
struct SplitLists {
    train: Vec<SplitItem>,
    val: Vec<SplitItem>,
    test: Vec<SplitItem>,
}

/// Path, label, class name.
type SplitItem = (String, u32, String);

/// Opens the data set that `file` describes; its images lie in the file's folder or in a folder beside it.
fn open(file: &Path) -> Result<LabeledSet> {
    let bytes = read_limited(file, MAX_BYTES)?;
    let lists: SplitLists = serde_json::from_slice(&bytes).map_err(|e| Error::data(file, e.to_string()))?;
    let Some((first, ..)) = lists.train.first() else { return Err(Error::data(file, "train lists no images")) };
    let folder = file.parent().unwrap_or(Path::new(""));
    let images = image_folder(folder, first)?
        .ok_or_else(|| Error::data(file, format!("{first} is neither beside it nor in a folder beside it")))?;

    let mut names = BTreeMap::new();
    for (path, label, class) in &lists.train {
        let known = names.entry(*label).or_insert(class);
        if *known != class {
            let message = format!("train, {path}: label {label} is '{class}' here and '{known}' before");
            return Err(Error::data(file, message));
        }
    }
    let classes: Vec<String> = names.values().map(|&class| class.clone()).collect();
    if let Some(twice) = classes.iter().enumerate().find(|(i, class)| classes[..*i].contains(class)) {
        return Err(Error::data(file, format!("class '{}' has two labels", twice.1)));
    }
    let labels: BTreeMap<u32, u32> = names.keys().copied().zip(0..).collect();

    let mut seen = HashSet::new();
    let mut samples = |split: Split, items: &[SplitItem]| -> Result<Vec<Sample>> {
        let sample = |(path, label, class): &SplitItem| {
            let at = |message: String| Error::data(file, format!("{split}, {path}: {message}"));
            let label = labels.get(label).copied().filter(|&l| classes[l as usize] == *class);
            let label = label.ok_or_else(|| at(format!("class '{class}' with this label does not occur in train")))?;
            let path = images.join(path);
            let id = relative_id(folder, &path);
            if !seen.insert(id.clone()) {
                return Err(at("is listed twice".into()));
            }
            Ok(Sample { image: ImageSource::File(path), label, id })
        };
        items.iter().map(sample).collect()
    };
    let parts =
        [samples(Split::Train, &lists.train)?, samples(Split::Val, &lists.val)?, samples(Split::Test, &lists.test)?];
    let [train, val, test] = parts;
    let some = |samples: Vec<Sample>| Some(samples).filter(|s| !s.is_empty());
    Ok(LabeledSet { classes, samples: Parts::Split { train, val: some(val), test: some(test) } })
}

/// `folder`, or the folder in it, that holds an image at the relative path `image`.
pub(super) fn image_folder(folder: &Path, image: &str) -> Result<Option<PathBuf>> {
    let inside = entries(folder)?.into_iter().map(|(_, path)| path).filter(|path| path.is_dir());
    Ok(std::iter::once(folder.to_path_buf()).chain(inside).find(|f| f.join(image).is_file()))
}

/// The images that `file` lists.
fn check_file(file: &Path, out: &mut Findings) -> Vec<ListedImage> {
    let bytes = match read_limited(file, MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(error) => {
            out.refused(FindingKind::NoAccess, file, &error);
            return Vec::new();
        }
    };
    text::check(file, &bytes, false, out);
    if let Err(error) = serde_json::from_slice::<IgnoredAny>(&bytes) {
        out.error(FindingKind::MalformedFile, file, error.line() as u64, error.to_string());
        return Vec::new();
    }
    let mut items: Vec<(Split, u64, SplitItem)> = Vec::new();
    for entry in json::entries(&bytes) {
        let keys: [&[u8]; 3] = [b"train", b"val", b"test"];
        let Some(split) = Split::ALL.into_iter().zip(keys).find(|(_, key)| *key == entry.key) else { continue };
        if let Ok(item) = serde_json::from_slice::<SplitItem>(entry.text) {
            items.push((split.0, entry.line, item));
        } else {
            let message = "not a list of path, label and class name";
            out.error(FindingKind::MalformedFile, file, entry.line, message);
        }
    }
    // Train says what the classes are, wherever it stands in the file.
    items.sort_by_key(|(split, ..)| *split);
    let folder = file.parent().unwrap_or(Path::new(""));
    let probes = items.iter().take(PROBES).find_map(|(_, _, (path, ..))| image_folder(folder, path).ok().flatten());
    let images = probes.unwrap_or_else(|| folder.to_path_buf());
    let (mut names, mut numbers): (HashMap<u32, String>, HashMap<String, u32>) = (HashMap::new(), HashMap::new());
    let mut seen: HashMap<String, u64> = HashMap::new();
    let source: Arc<Path> = file.into();
    let mut listed = Vec::new();
    for (split, line, (path, number, name)) in items {
        let known_name = names.get(&number).filter(|known| **known != name);
        let known_number = numbers.get(&name).filter(|known| **known != number);
        if let Some(known) = known_name {
            let message = format!("{path}: label {number} is '{name}' here and '{known}' before");
            out.error(FindingKind::LabelNameMismatch, file, line, message);
        } else if let Some(known) = known_number {
            let message = format!("{path}: class '{name}' has the label {number} here and {known} before");
            out.error(FindingKind::LabelNameMismatch, file, line, message);
        }
        names.entry(number).or_insert_with(|| name.clone());
        numbers.entry(name.clone()).or_insert(number);
        if leads_out(&path) {
            let message = format!("{path} leads out of the data set's folder");
            out.warning(FindingKind::OutsideFolder, file, line, message);
        }
        let file_of_it = images.join(&path);
        let id = relative_id(folder, &normal(&file_of_it));
        if let Some(first) = seen.get(&id) {
            let message = format!("{path} is listed already, in line {first}");
            out.error(FindingKind::ListedTwice, file, line, message);
            continue;
        }
        seen.insert(id, line);
        let (image, label, place) = (ImageSource::File(file_of_it), name.as_str().into(), (source.clone(), Some(line)));
        listed.push((number, ListedImage { image, split: Some(split), label, place }));
    }
    let mut first = BTreeMap::new();
    for (number, image) in listed.iter().filter(|(_, image)| image.split == Some(Split::Train)) {
        first.entry(i64::from(*number)).or_insert_with(|| image.place.clone());
    }
    classes::gaps(&first, out);
    listed.into_iter().map(|(_, image)| image).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Dataset;
    use std::fs;

    fn set(json: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("2750/Forest")).unwrap();
        fs::write(dir.path().join("2750/Forest/1.jpg"), "").unwrap();
        fs::write(dir.path().join("split_zhou_EuroSAT.json"), json).unwrap();
        dir
    }

    #[test]
    fn parts_labels_and_names_are_the_files() {
        let dir = set(r#"{"train": [["Forest/1.jpg", 1, "Forest"], ["Sea/1.jpg", 0, "Sea or Lake"]],
                          "val": [["Sea/2.jpg", 0, "Sea or Lake"]], "test": [["Forest/3.jpg", 1, "Forest"]]}"#);
        let data = Dataset::open(dir.path(), 1).unwrap();
        assert_eq!(data.classes, ["Sea or Lake", "Forest"]);
        assert_eq!(data.layout, Layout::SPLIT_ZHOU);
        assert_eq!((data.train[0].id.as_str(), data.train[0].label), ("2750/Forest/1.jpg", 1));
        assert_eq!((data.val.len(), data.test.len(), data.split_note.as_str()), (1, 1, "train, val and test as given"));
        assert!(matches!(&data.train[0].image, ImageSource::File(path) if path.is_file()));
    }

    #[test]
    fn contradictions_name_file_part_and_image() {
        let train = r#"["Forest/1.jpg", 1, "Forest"], ["Sea/1.jpg", 0, "Sea"]"#;
        for (json, expected) in [
            (r#"{"train": [["x.jpg", 0, "x"]], "val": [], "test": []}"#.to_string(), "x.jpg is neither"),
            (format!(r#"{{"train": [{train}, ["a.jpg", 1, "Sea"]], "val": [], "test": []}}"#), "train, a.jpg: label 1"),
            (format!(r#"{{"train": [{train}, ["a.jpg", 2, "Sea"]], "val": [], "test": []}}"#), "has two labels"),
            (format!(r#"{{"train": [{train}], "val": [["a.jpg", 7, "y"]], "test": []}}"#), "val, a.jpg: class 'y'"),
            (
                format!(r#"{{"train": [{train}], "val": [["Sea/1.jpg", 0, "Sea"]], "test": []}}"#),
                "val, Sea/1.jpg: is listed",
            ),
            (r#"{"train": [], "val": [], "test": []}"#.to_string(), "train lists no images"),
            (r#"{"train": [["a.jpg", -1, "x"]]}"#.to_string(), "invalid value"),
        ] {
            let dir = set(&json);
            let message = Dataset::open(dir.path(), 1).unwrap_err().to_string();
            assert!(message.contains("split_zhou_EuroSAT.json: ") && message.contains(expected), "{message}");
        }
    }
}
