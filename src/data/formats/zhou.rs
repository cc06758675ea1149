//! The `split_zhou_*.json` files of CoOp, which say for each of its data sets which image is in which part:
//! `{"train": [[path, label, class name], …], "val": …, "test": …}`, with paths relative to the folder of the images.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::data::dataset::{ImageSource, Layout, Sample, Split};
use crate::data::open::{Found, Parts, entries, relative_id};
use crate::files::read_limited;
use crate::{Error, Result};

/// Longest file that is read, in bytes.
pub(in crate::data) const MAX_BYTES: u64 = 1 << 28;

#[derive(Deserialize)]
struct Lists {
    train: Vec<Item>,
    val: Vec<Item>,
    test: Vec<Item>,
}

/// Path, label, class name.
pub(in crate::data) type Item = (String, u32, String);

/// The file of this kind in `folder`, if there is exactly one.
pub(in crate::data) fn recognise(folder: &Path) -> Result<Option<PathBuf>> {
    let is_one = |name: &str, path: &Path| {
        name.starts_with("split_zhou_") && path.extension().is_some_and(|e| e == "json") && path.is_file()
    };
    let mut files = entries(folder)?.into_iter().filter(|(name, path)| is_one(name, path)).map(|(_, path)| path);
    match (files.next(), files.next()) {
        (Some(_), Some(second)) => Err(Error::file(second, "a second file of this kind; keep one")),
        (first, _) => Ok(first),
    }
}

/// Opens the data set that `file` describes; its images lie in the file's folder or in a folder beside it.
pub(in crate::data) fn open(file: &Path) -> Result<Found> {
    let bytes = read_limited(file, MAX_BYTES)?;
    let lists: Lists = serde_json::from_slice(&bytes).map_err(|e| Error::file(file, e.to_string()))?;
    let Some((first, ..)) = lists.train.first() else { return Err(Error::file(file, "train lists no images")) };
    let folder = file.parent().unwrap_or(Path::new(""));
    let images = image_folder(folder, first)?
        .ok_or_else(|| Error::file(file, format!("{first} is neither beside it nor in a folder beside it")))?;

    let mut names = BTreeMap::new();
    for (path, label, class) in &lists.train {
        let known = names.entry(*label).or_insert(class);
        if *known != class {
            let message = format!("train, {path}: label {label} is '{class}' here and '{known}' before");
            return Err(Error::file(file, message));
        }
    }
    let classes: Vec<String> = names.values().map(|&class| class.clone()).collect();
    if let Some(twice) = classes.iter().enumerate().find(|(i, class)| classes[..*i].contains(class)) {
        return Err(Error::file(file, format!("class '{}' has two labels", twice.1)));
    }
    let labels: BTreeMap<u32, u32> = names.keys().copied().zip(0..).collect();

    let mut seen = HashSet::new();
    let mut samples = |split: Split, items: &[Item]| -> Result<Vec<Sample>> {
        let sample = |(path, label, class): &Item| {
            let at = |message: String| Error::file(file, format!("{split}, {path}: {message}"));
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
    Ok(Found { layout: Layout::SplitZhou, classes, samples: Parts::Split { train, val: some(val), test: some(test) } })
}

/// `folder`, or the folder in it, that holds an image at the relative path `image`.
pub(in crate::data) fn image_folder(folder: &Path, image: &str) -> Result<Option<PathBuf>> {
    let inside = entries(folder)?.into_iter().map(|(_, path)| path).filter(|path| path.is_dir());
    Ok(std::iter::once(folder.to_path_buf()).chain(inside).find(|f| f.join(image).is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::Dataset;
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
        assert_eq!(data.layout, Layout::SplitZhou);
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
