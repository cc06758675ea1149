//! Data sets that come in numbered files with many images each: `train-00000-of-00002.parquet`, `val/0000.tar`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::ClassFiles;
use crate::boxes::parts;
use crate::check::{Checking, FindingKind, ListedImage};
use crate::container::ImageSource;
use crate::dataset::{Sample, Split};
use crate::open::{LabeledSet, Parts, entries, sort_classes};
use vpt_base::{Error, Result};

/// Folders that are looked into: the set's own, one of a configuration, one of a part.
const DEPTH: usize = 3;

/// Folders that say nothing of a configuration.
const PLAIN_FOLDERS: [&str; 3] = ["data", "shards", "default"];

/// The files of a data set.
pub(super) struct Shards {
    pub(super) root: PathBuf,
    pub(super) files: Vec<ShardFile>,
}

/// One of them.
#[derive(Clone)]
pub(super) struct ShardFile {
    pub(super) path: PathBuf,
    pub(super) split: Option<Split>,
    /// The word that says so.
    word: String,
    number: Option<usize>,
    /// How many there are of its part, by its name.
    of: Option<usize>,
}

impl Shards {
    /// The file `path`, or the files in it whose names end in `extension`; none if there are none. `is_meant` is asked of the
    /// first one.
    ///
    /// # Errors
    /// There are those of several data sets, or a folder cannot be read.
    pub(super) fn find(path: &Path, extension: &str, is_meant: impl Fn(&Path) -> bool) -> Result<Option<Self>> {
        let ends = |path: &Path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension));
        if path.is_file() {
            let alone = ShardFile { path: path.into(), split: None, word: String::new(), number: None, of: None };
            return Ok((ends(path) && is_meant(path)).then(|| Self { root: folder_of(path), files: vec![alone] }));
        }
        let mut found = Vec::new();
        collect(path, &mut Vec::new(), &ends, &mut found)?;
        if found.first().is_none_or(|(_, file)| !is_meant(file)) {
            return Ok(None);
        }
        let mut files = Vec::new();
        let mut sets: BTreeSet<String> = BTreeSet::new();
        for (folders, file) in found {
            let (shard, is_part_folder) = shard(&folders, file);
            let own = &folders[..folders.len() - usize::from(is_part_folder)];
            let set: Vec<&str> = own.iter().map(String::as_str).filter(|f| !PLAIN_FOLDERS.contains(f)).collect();
            sets.insert(set.join("/"));
            files.push(shard);
        }
        if sets.len() > 1 {
            let names: Vec<String> =
                sets.into_iter().map(|set| if set.is_empty() { ".".into() } else { set }).collect();
            let message = format!("several data sets are in it ({}); name the folder of one", names.join(", "));
            return Err(Error::data(path, message));
        }
        Ok(Some(Self { root: path.into(), files }))
    }

    /// The files that are used: those of parts, or all if none is of a part.
    pub(super) fn used(&self) -> impl Iterator<Item = &ShardFile> {
        let has_parts = self.files.iter().any(|file| file.split.is_some());
        self.files.iter().filter(move |file| !has_parts || file.split.is_some())
    }

    /// Puts what each used file holds together as parts.
    ///
    /// # Errors
    /// Two names stand for one part, or there is no train among several.
    pub(super) fn to_parts<M>(&self, held: Vec<Vec<M>>) -> Result<Parts<M>> {
        if let Some((second, first)) = self.second_names().first() {
            let message = format!("a second set of files for one part beside {}", first.path.display());
            return Err(Error::data(&second.path, message));
        }
        let mut given = [None, None, None];
        let mut all = Vec::new();
        for (file, held) in self.used().zip(held) {
            match file.split {
                Some(split) => given[split as usize].get_or_insert_with(Vec::new).extend(held),
                None => all.extend(held),
            }
        }
        if given.iter().all(Option::is_none) {
            return if all.is_empty() { parts(&self.root, given) } else { Ok(Parts::Unsplit(all)) };
        }
        parts(&self.root, given)
    }

    /// Files of a part that has another name in other files, with one of these.
    fn second_names(&self) -> Vec<(&ShardFile, &ShardFile)> {
        let mut first: BTreeMap<Split, &ShardFile> = BTreeMap::new();
        let mut out = Vec::new();
        for file in self.used() {
            let Some(split) = file.split else { continue };
            let known = first.entry(split).or_insert(file);
            if known.word != file.word {
                out.push((file, *known));
            }
        }
        out
    }

    /// Tells of files that are missing, by the numbers of the others, and of those that are passed by.
    pub(super) fn check(&self, check: &mut Checking<'_>) {
        for (second, first) in self.second_names().into_iter().take(1) {
            let message = format!("a second set of files for one part beside {}", first.path.display());
            check.out.error(FindingKind::AmbiguousSplit, &second.path, None, message);
        }
        let used: BTreeSet<&Path> = self.used().map(|file| file.path.as_path()).collect();
        for file in self.files.iter().filter(|file| !used.contains(file.path.as_path())) {
            let message = "of none of the parts train, val and test, by its name: passed over";
            check.out.warning(FindingKind::UnknownSplit, &file.path, None, message);
        }
        let mut groups: BTreeMap<(PathBuf, Option<Split>, String), Vec<&ShardFile>> = BTreeMap::new();
        for file in self.used() {
            if let Some(split) = file.split {
                check.places.parts[split as usize].get_or_insert_with(|| file.path.clone());
            }
            if file.number.is_some() {
                groups.entry((folder_of(&file.path), file.split, file.word.clone())).or_default().push(file);
            }
        }
        for files in groups.into_values() {
            let there: BTreeSet<usize> = files.iter().filter_map(|file| file.number).collect();
            let of = files.iter().filter_map(|file| file.of).max();
            let (first, end) = match (of, there.first(), there.last()) {
                (Some(of), ..) => (0, of),
                (None, Some(&first), Some(&last)) => (first.min(1), last + 1),
                _ => continue,
            };
            let missing = (end - first.min(end)).saturating_sub(there.len());
            let lost = (first..end).find(|number| !there.contains(number));
            if let (Some(number), true) = (lost, missing > 0) {
                let files_missing = if missing == 1 { "1 file is".to_owned() } else { format!("{missing} files are") };
                let message = format!(
                    "{files_missing} missing beside it by the numbers in the names, the first of them {number}"
                );
                check.out.warning(FindingKind::MissingFile, &files[0].path, None, message);
            }
        }
    }
}

/// What is written in the place of a label that is kept back.
pub(super) const HIDDEN: &str = "-1";

/// A picture and its class.
pub(super) struct ShardPicture {
    pub(super) image: ImageSource,
    /// None if the label is kept back.
    pub(super) label: Option<Arc<str>>,
}

impl ShardPicture {
    /// What to say of it where its class is at fault.
    fn name(&self) -> String {
        self.image.member().unwrap_or_default()
    }
}

/// What a file holds.
pub(super) struct ShardContent {
    pub(super) pictures: Vec<ShardPicture>,
    /// What is to be said of it.
    pub(super) notes: Vec<(FindingKind, String)>,
}

/// Reads one of the files.
pub(super) type ShardReader = Box<dyn Fn(&Path) -> Result<ShardContent> + Send + Sync>;

/// Files of pictures with a class each.
pub(super) struct ClassShards {
    pub(super) shards: Shards,
    /// Reads one of the files.
    pub(super) read: ShardReader,
}

impl ClassFiles for ClassShards {
    fn open(&self) -> Result<LabeledSet> {
        let Self { shards, read } = self;
        let files: Vec<&ShardFile> = shards.used().collect();
        let all: Vec<_> = files.par_iter().map(|file| read(&file.path)).collect();
        let mut held = Vec::with_capacity(files.len());
        for content in all {
            held.push(content?.pictures);
        }
        // A part whose labels are kept back is none.
        let hidden = hidden_parts(&files, &held);
        for (file, pictures) in files.iter().zip(&mut held) {
            if hidden.contains(&file.split) {
                pictures.clear();
            }
        }
        let parts = shards.to_parts(held)?;
        let train = match &parts {
            Parts::Unsplit(train) | Parts::Split { train, .. } => train,
        };
        let names: BTreeSet<&str> = train.iter().filter_map(|picture| picture.label.as_deref()).collect();
        let mut classes: Vec<String> = names.into_iter().map(str::to_owned).collect();
        sort_classes(&mut classes);
        let labels: HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
        let sample = |picture: ShardPicture| {
            let at = |message: String| {
                Error::data(picture.image.file().unwrap_or(&shards.root), format!("{}: {message}", picture.name()))
            };
            let Some(name) = &picture.label else {
                return Err(at(format!("no class ({HIDDEN} stands for one that is kept back)")));
            };
            let Some(&label) = labels.get(&**name) else {
                return Err(at(format!("class '{name}' does not occur in train")));
            };
            let id = picture.image.id(&shards.root);
            Ok(Sample { image: picture.image, label, id })
        };
        let samples = |pictures: Vec<ShardPicture>| pictures.into_iter().map(sample).collect::<Result<Vec<_>>>();
        let samples = match parts {
            Parts::Unsplit(all) => Parts::Unsplit(samples(all)?),
            Parts::Split { train, val, test } => Parts::Split {
                train: samples(train)?,
                val: val.map(samples).transpose()?,
                test: test.map(samples).transpose()?,
            },
        };
        Ok(LabeledSet { classes, samples })
    }

    fn check(&self, check: &mut Checking<'_>) -> Vec<ListedImage> {
        let Self { shards, read } = self;
        shards.check(check);
        let files: Vec<&ShardFile> = shards.used().collect();
        let all: Vec<_> = files.par_iter().map(|file| read(&file.path)).collect();
        let (mut held, mut told) = (Vec::new(), BTreeSet::new());
        for (file, content) in files.iter().zip(all) {
            held.push(match content {
                Ok(ShardContent { pictures, notes }) => {
                    for (kind, note) in notes.into_iter().filter(|(_, note)| told.insert(note.clone())) {
                        check.out.warning(kind, &file.path, None, note);
                    }
                    pictures
                }
                Err(error) => {
                    check.out.refused(FindingKind::MalformedFile, &file.path, &error);
                    Vec::new()
                }
            });
        }
        let hidden = hidden_parts(&files, &held);
        for split in &hidden {
            let Some(file) = files.iter().find(|file| file.split == *split) else { continue };
            let part = split.map_or("the data set", Split::name);
            let message = format!("no picture of {part} has a class ({HIDDEN} everywhere): {part} is taken as missing");
            check.out.warning(FindingKind::MissingValue, &file.path, None, message);
        }
        let mut listed = Vec::new();
        for (file, pictures) in files.iter().zip(held).filter(|(file, _)| !hidden.contains(&file.split)) {
            let place: (Arc<Path>, Option<u64>) = (file.path.as_path().into(), None);
            for picture in pictures {
                if let Some(label) = &picture.label {
                    let (split, label) = (file.split, label.clone());
                    listed.push(ListedImage { image: picture.image, split, label, place: place.clone() });
                } else {
                    let message = format!("{}: no class", picture.name());
                    check.out.error(FindingKind::MissingValue, &file.path, None, message);
                }
            }
        }
        listed
    }
}

/// The parts of which no picture has a label.
fn hidden_parts(files: &[&ShardFile], held: &[Vec<ShardPicture>]) -> Vec<Option<Split>> {
    let mut splits: Vec<Option<Split>> = files.iter().map(|file| file.split).collect();
    splits.sort_unstable();
    splits.dedup();
    splits.retain(|split| {
        let of_part = files.iter().zip(held).filter(|(file, _)| file.split == *split);
        let mut pictures = of_part.flat_map(|(_, pictures)| pictures).peekable();
        pictures.peek().is_some() && pictures.all(|picture| picture.label.is_none())
    });
    splits
}

fn folder_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).to_path_buf()
}

fn collect(
    folder: &Path,
    below: &mut Vec<String>,
    ends: &impl Fn(&Path) -> bool,
    found: &mut Vec<(Vec<String>, PathBuf)>,
) -> Result<()> {
    for (name, path) in entries(folder)? {
        if path.is_dir() {
            if below.len() + 1 < DEPTH {
                below.push(name);
                collect(&path, below, ends, found)?;
                below.pop();
            }
        } else if ends(&path) {
            found.push((below.clone(), path));
        }
    }
    Ok(())
}

/// What the names of a file in `folders` say, and whether it is the last folder that names its part.
fn shard(folders: &[String], path: PathBuf) -> (ShardFile, bool) {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let words: Vec<&str> = stem.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let by_name = words.iter().find_map(|word| Some((Split::from_name(word)?, (*word).to_owned())));
    let by_folder = || folders.last().and_then(|folder| Some((Split::from_name(folder)?, folder.clone())));
    let is_part_folder = by_folder().is_some();
    let (split, word) = by_name.or_else(by_folder).map_or((None, String::new()), |(split, word)| (Some(split), word));
    let of = words.iter().position(|word| *word == "of");
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<usize>().ok()).filter(|n| *n < 1 << 32);
    let (number, of) = match of {
        Some(at) if at > 0 => (number(at - 1), number(at + 1)),
        _ => (words.len().checked_sub(1).and_then(number), None),
    };
    (ShardFile { path, split, word: word.to_lowercase(), number, of }, is_part_folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// The part and the number of each file, in a folder of empty files.
    fn found(files: &[&str]) -> Result<Vec<(Option<Split>, Option<usize>)>> {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            fs::create_dir_all(dir.path().join(file).parent().unwrap()).unwrap();
            fs::write(dir.path().join(file), "").unwrap();
        }
        let shards = Shards::find(dir.path(), "tar", |_| true)?;
        Ok(shards.map_or_else(Vec::new, |s| s.files.into_iter().map(|file| (file.split, file.number)).collect()))
    }

    #[test]
    fn parts_and_numbers_are_in_the_names() {
        let (train, test) = (Some(Split::Train), Some(Split::Test));
        assert_eq!(
            found(&["data/test-00000-of-00001.tar", "data/train-00000-of-00002-3fa.tar"]).unwrap(),
            [(test, Some(0)), (train, Some(0))]
        );
        assert_eq!(found(&["default/train/0003.tar"]).unwrap(), [(train, Some(3))]);
        assert_eq!(found(&["imagenet-train-000001.tar", "notes.txt"]).unwrap(), [(train, Some(1))]);
        assert_eq!(found(&["000001.tar", "000002.tar"]).unwrap(), [(None, Some(1)), (None, Some(2))]);
        assert_eq!(found(&["a.png"]).unwrap(), []);
    }

    #[test]
    fn files_of_two_sets_are_told_apart() {
        let message = found(&["plain/train/0.tar", "cropped/train/0.tar"]).unwrap_err().to_string();
        assert!(message.contains("several data sets are in it (cropped, plain); name the folder of one"), "{message}");
    }
}
