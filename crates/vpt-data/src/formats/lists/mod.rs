//! Lists of images with their labels, a file for each part: JSON objects of path and label (`train.json`, as the data of the VPT
//! paper's fine-grained tasks is described), and text files with a path and a label in each line (`train.txt`, as Caffe had
//! them and as VTAB-1k is handed out, there `train800.txt` and `val200.txt`).
//!
//! Paths are relative to the lists' folder or to a folder in it. Labels are numbers, of which a `classes.txt` or `labels.txt`
//! may hold the names, or names.

mod check;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;

use super::table::{ImageRow, MAX_BYTES, SampleBuilder, at};
use super::zhou::image_folder;
use super::{Candidate, ClassFiles, Format, Layout, Recognition};
use crate::check::{Checking, FindingKind, ListedImage};
use crate::dataset::Split;
use crate::formats::text_file::{beginning, read_text};
use crate::open::{LabeledSet, Parts, entries};
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};
use vpt_image::decode::has_image_extension;

/// Images that are looked for to find the folder they are in.
const PROBES: usize = 32;
/// Bytes that tell what a file is.
const START: u64 = 4096;
/// Files that name classes.
const NAMES: [&str; 2] = ["classes.txt", "labels.txt"];

impl Layout {
    /// JSON objects of path and label.
    pub const FGVC: Self = Self::new("fgvc", "FGVC");
    /// Text files with a path and a label in each line.
    pub const LIST: Self = Self::new("list", "list");
}

/// How a list is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Syntax {
    /// An object of path and label.
    Json,
    /// Lines of path and label.
    Text,
}

impl Syntax {
    const ALL: [Self; 2] = [Self::Json, Self::Text];

    fn extension(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "txt",
        }
    }
}

/// Lists of path and label.
pub(super) const FORMAT: Format = Format {
    has_boxes: false,
    recognize: |candidate| {
        let Candidate { path, is_folder } = *candidate;
        let found = if is_folder { lists_in(path)? } else { list_of_all(path) };
        let layout = match found.as_ref().map(|lists| lists.syntax) {
            Some(Syntax::Json) => Layout::FGVC,
            _ => Layout::LIST,
        };
        Ok(Recognition::of_classes(layout, found))
    },
};

/// The lists of a data set.
#[derive(Clone, Debug)]
struct ListFiles {
    syntax: Syntax,
    /// Train comes first; a single list that is for no part stands alone.
    files: Vec<(Option<Split>, PathBuf)>,
}

/// The lists in `folder`, if there is one for train. Of two for a part both are among them.
fn lists_in(folder: &Path) -> Result<Option<ListFiles>> {
    let all: Vec<PathBuf> = entries(folder)?.into_iter().map(|(_, path)| path).filter(|path| path.is_file()).collect();
    Ok(Syntax::ALL.into_iter().find_map(|syntax| {
        let lists: Vec<&PathBuf> = all.iter().filter(|path| looks_like(path, syntax)).collect();
        let stems = lists.iter().map(|path| path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default());
        let parts = Split::of_names(stems);
        let mut files: Vec<(Option<Split>, PathBuf)> =
            parts.into_iter().zip(&lists).filter(|(part, _)| part.is_some()).map(|(p, f)| (p, (*f).clone())).collect();
        files.sort();
        (files.first()?.0 == Some(Split::Train)).then_some(ListFiles { syntax, files })
    }))
}

/// `path` as a list, if it is one.
fn list_of_all(path: &Path) -> Option<ListFiles> {
    let syntax = Syntax::ALL.into_iter().find(|syntax| looks_like(path, *syntax))?;
    Some(ListFiles { syntax, files: vec![(None, path.into())] })
}

/// Whether `path` begins with an image and its label. Boxes, settings and notes have the same names.
fn looks_like(path: &Path, syntax: Syntax) -> bool {
    let Some(text) = beginning(path, syntax.extension(), START) else { return false };
    let text = text.trim_start();
    match syntax {
        Syntax::Json => {
            let key = text.strip_prefix('{').and_then(|rest| rest.trim_start().strip_prefix('"'));
            let key = key.and_then(|rest| rest.split_once('"')).filter(|(_, rest)| rest.trim_start().starts_with(':'));
            key.is_some_and(|(key, _)| has_image_extension(Path::new(key)))
        }
        Syntax::Text => {
            let first = text.lines().next().and_then(split_line);
            first.is_some_and(|(path, _)| has_image_extension(Path::new(path)))
        }
    }
}

/// Path and label of a line. Either may hold spaces: the path ends like an image's.
fn split_line(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    let mut spaces = line.char_indices().filter(|(_, c)| c.is_whitespace()).map(|(at, _)| at);
    let is_end = |at: &usize| has_image_extension(Path::new(&line[..*at]));
    let end = spaces.find(is_end).or_else(|| line.rfind(char::is_whitespace))?;
    let (path, label) = line.split_at(end);
    Some((path.trim_end(), label.trim_start()))
}

impl ClassFiles for ListFiles {
    fn open(&self) -> Result<LabeledSet> {
        let mut parts = [None, None, None];
        let mut whole = None;
        let mut made: Option<(SampleBuilder, PathBuf)> = None;
        for (i, (split, file)) in self.files.iter().enumerate() {
            if let Some((_, first)) = self.files[..i].last().filter(|(other, _)| other == split) {
                return Err(Error::data(file, format!("a second list for one part beside {}", first.display())));
            }
            let rows = read(file, self.syntax)?;
            let (builder, images) = match &mut made {
                Some(made) => made,
                none => none.insert((SampleBuilder::new(&rows), images(file, &rows)?)),
            };
            let samples = rows.into_iter().map(|row| builder.sample(file, images, row)).collect::<Result<Vec<_>>>()?;
            match split {
                Some(split) => parts[*split as usize] = Some(samples),
                None => whole = Some(samples),
            }
        }
        let Some((builder, _)) = made else { return Err(Error::invalid("data", "no list of images")) };
        let classes = named(builder.classes, &self.files[0].1)?;
        let [train, val, test] = parts;
        let samples = match whole {
            Some(samples) => Parts::Unsplit(samples),
            None => Parts::Split { train: train.unwrap_or_default(), val, test },
        };
        Ok(LabeledSet { classes, samples })
    }

    fn check(&self, check: &mut Checking<'_>) -> Vec<ListedImage> {
        check.list_parts(&self.files, "list");
        check::check(self, &mut check.out)
    }
}

/// The folder that the paths in `rows`, which `list` holds, are relative to.
fn images(list: &Path, rows: &[ImageRow]) -> Result<PathBuf> {
    let folder = list.parent().unwrap_or(Path::new(""));
    for row in rows.iter().take(PROBES) {
        if let Some(found) = image_folder(folder, &row.path)? {
            return Ok(found);
        }
    }
    let first = rows.first().map_or("", |row| row.path.as_str());
    Err(Error::data(list, format!("{first} is neither beside it nor in a folder beside it")))
}

fn read(path: &Path, syntax: Syntax) -> Result<Vec<ImageRow>> {
    let bytes = read_limited(path, MAX_BYTES)?;
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let line = bytes[..e.valid_up_to()].split(|&b| b == b'\n').count() as u64;
        at(path, line, "not valid UTF-8")
    })?;
    let mut rows = Vec::new();
    for entry in entries_of(text, syntax).map_err(|e| Error::data(path, e.to_string()))? {
        match entry {
            ListLine::Row(row) => rows.push(row),
            ListLine::Blank { .. } => {}
            ListLine::Unusable { line, message, .. } => return Err(at(path, line, message)),
        }
    }
    if rows.is_empty() {
        return Err(Error::data(path, "lists no images"));
    }
    Ok(rows)
}

/// An entry of a list.
enum ListLine {
    /// An image and its label.
    Row(ImageRow),
    /// An empty line.
    Blank { line: u64 },
    /// One that says too little.
    Unusable { line: u64, kind: FindingKind, message: String },
}

/// The entries of `text`.
///
/// # Errors
/// It is to be JSON and is none.
fn entries_of(text: &str, syntax: Syntax) -> serde_json::Result<Vec<ListLine>> {
    let text = text.trim_start_matches('\u{feff}');
    let row =
        |line: u64, path: String, label: String| ListLine::Row(ImageRow { line, path, label, split: None, name: None });
    Ok(match syntax {
        Syntax::Json => {
            serde_json::from_str::<IgnoredAny>(text)?;
            let entry = |JsonPair { line, key, value }: JsonPair<'_>| match parse(key, value) {
                Ok((path, label)) => row(line, path, label),
                Err(message) => ListLine::Unusable { line, kind: FindingKind::MissingValue, message },
            };
            pairs(text.as_bytes()).into_iter().map(entry).collect()
        }
        Syntax::Text => {
            let entry = |(number, line): (u64, &str)| match split_line(line) {
                _ if line.trim().is_empty() => ListLine::Blank { line: number },
                Some((path, label)) => row(number, path.into(), label.into()),
                None => ListLine::Unusable { line: number, kind: FindingKind::ShortRow, message: "no label".into() },
            };
            (1..).zip(text.lines()).map(entry).collect()
        }
    })
}

/// A pair of the outermost object of a JSON text.
#[derive(Debug, PartialEq)]
struct JsonPair<'a> {
    /// The line that it begins in, from 1.
    line: u64,
    /// The key, as it is written.
    key: &'a [u8],
    /// The value, as it is written.
    value: &'a [u8],
}

/// Path and label of a pair as it is written, or what is wrong with them.
fn parse(key: &[u8], value: &[u8]) -> Result<(String, String), String> {
    let key: String = serde_json::from_slice(key).map_err(|_| "a path that is no text".to_owned())?;
    let label = match serde_json::from_slice(value) {
        Ok(serde_json::Value::String(name)) if !name.trim().is_empty() => name.trim().to_owned(),
        Ok(serde_json::Value::Number(number)) if number.is_i64() => number.to_string(),
        _ => return Err(format!("the label of {key} is neither a whole number nor a name")),
    };
    Ok((key, label))
}

/// The pairs of the object that `text`, which is JSON, consists of. A parser would pass over those that are repeated.
fn pairs(text: &[u8]) -> Vec<JsonPair<'_>> {
    let mut out = Vec::new();
    let (mut depth, mut line) = (0_usize, 1);
    // Where the key lies, in which line, and where the value begins.
    let mut key: Option<(usize, usize, u64)> = None;
    let mut value = None;
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let ends = depth == 1 && matches!(byte, b',' | b'}');
        if let (true, Some((from, to, line)), Some(start)) = (ends, key, value) {
            out.push(JsonPair { line, key: &text[from..to], value: text[start..at].trim_ascii() });
            (key, value) = (None, None);
        }
        match byte {
            b'\n' => line += 1,
            b':' if depth == 1 && value.is_none() => value = Some(at + 1),
            b'"' => {
                let from = at;
                at += 1;
                while let Some(&inner) = text.get(at).filter(|&&b| b != b'"') {
                    at += if inner == b'\\' { 2 } else { 1 };
                }
                if depth == 1 && value.is_none() {
                    key = Some((from, (at + 1).min(text.len()), line));
                }
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    out
}

/// `labels` by their names, if they are numbers and a file beside `list` holds names.
fn named(labels: Vec<String>, list: &Path) -> Result<Vec<String>> {
    let numbers: Option<Vec<i64>> = labels.iter().map(|label| label.parse().ok()).collect();
    let folder = list.parent().unwrap_or(Path::new(""));
    let file = NAMES.iter().map(|name| folder.join(name)).find(|file| file.is_file());
    let (Some(numbers), Some(file)) = (numbers, file) else { return Ok(labels) };
    let text = read_text(&file, 1 << 24)?;
    let names = without_numbers(text.lines().map(str::trim).filter(|line| !line.is_empty()).collect());
    let (least, most) = (numbers.iter().min().copied().unwrap_or(0), numbers.iter().max().copied().unwrap_or(0));
    // Labels that count from 1 reach the number of names.
    let first = i64::from(least >= 1 && most == names.len() as i64);
    let name = |number: &i64| {
        let name = usize::try_from(number - first).ok().and_then(|at| names.get(at));
        let message =
            || Error::data(&file, format!("{} names, and a label {number} in {}", names.len(), list.display()));
        name.map(|name| (*name).to_owned()).ok_or_else(message)
    };
    let named = numbers.iter().map(name).collect::<Result<Vec<String>>>()?;
    let mut seen = HashSet::new();
    if let Some(twice) = named.iter().find(|name| !seen.insert(*name)) {
        return Err(Error::data(&file, format!("two classes are called '{twice}'")));
    }
    Ok(named)
}

/// `lines` without the numbers that they begin with, if they all do and count from 0 or 1.
fn without_numbers(lines: Vec<&str>) -> Vec<&str> {
    let split = |line: &'_ &'_ str| -> Option<(i64, usize)> {
        let (number, rest) = line.split_once(char::is_whitespace)?;
        Some((number.parse().ok()?, line.len() - rest.trim_start().len()))
    };
    let found: Option<Vec<(i64, usize)>> = lines.iter().map(split).collect();
    let Some(found) = found else { return lines };
    let first = found.first().map_or(0, |(number, _)| *number);
    if !(0..=1).contains(&first) || !found.iter().zip(first..).all(|((number, _), expected)| *number == expected) {
        return lines;
    }
    lines.iter().zip(found).map(|(line, (_, start))| &line[start..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{Dataset, ImageSource};
    use crate::formats::testing::folder_of;
    use std::fs;

    fn set(files: &[(&str, &str)]) -> tempfile::TempDir {
        folder_of(files)
    }

    fn labels(data: &Dataset) -> Vec<(&str, &str)> {
        let all = [&data.train, &data.val, &data.test].into_iter().flatten();
        all.map(|s| (s.id.as_str(), data.classes[s.label as usize].as_str())).collect()
    }

    #[test]
    fn json_objects_are_read_with_images_in_their_usual_folder() {
        let dir = set(&[
            ("images/001.Albatross/a b.jpg", ""),
            ("train.json", "{\"001.Albatross/a b.jpg\": 1,\n \"010.Crow/x.jpg\": 10, \"002.Auk/\\u0061.jpg\": 2}"),
            ("val.json", "{\"002.Auk/b.jpg\": 2}"),
            ("test.json", "{\"010.Crow/c.jpg\": 10}"),
        ]);
        let data = Dataset::open(dir.path(), 1).unwrap();
        assert_eq!((data.layout, data.split_note.as_str()), (Layout::FGVC, "train, val and test as given"));
        assert_eq!(data.classes, ["1", "2", "10"]);
        assert_eq!(
            labels(&data),
            [
                ("images/001.Albatross/a b.jpg", "1"),
                ("images/010.Crow/x.jpg", "10"),
                ("images/002.Auk/a.jpg", "2"),
                ("images/002.Auk/b.jpg", "2"),
                ("images/010.Crow/c.jpg", "10"),
            ]
        );
        assert!(matches!(&data.train[0].image, ImageSource::File(path) if path.is_file()));
        // One list alone has no parts.
        let whole = Dataset::open(dir.path().join("train.json"), 1);
        assert!(whole.unwrap_err().to_string().contains("too few images"));
    }

    #[test]
    fn lines_of_path_and_label_are_read_under_the_names_of_vtab() {
        let dir = set(&[
            ("images/train/0.jpg", ""),
            ("train800.txt", "images/train/0.jpg 12\nimages/train/1.jpg\t3\r\n\nimages/train/my cat.JPG  12\n"),
            ("val200.txt", "images/val/0.jpg 3\n"),
            ("train800val200.txt", "images/train/0.jpg 12\n"),
            ("test.txt", "images/test/0.jpg 12\n"),
        ]);
        let data = Dataset::open(dir.path(), 1).unwrap();
        assert_eq!((data.layout, data.classes.join(" ")), (Layout::LIST, "3 12".into()));
        let expected = [("train/0", "12"), ("train/1", "3"), ("train/my cat", "12"), ("val/0", "3"), ("test/0", "12")];
        let found: Vec<_> = labels(&data).iter().map(|(id, label)| (id[7..id.len() - 4].to_owned(), *label)).collect();
        assert_eq!(found, expected.map(|(id, label)| (id.to_owned(), label)));
        // Without it the list of both is what there is to learn from.
        fs::remove_file(dir.path().join("train800.txt")).unwrap();
        fs::write(dir.path().join("train800val200.txt"), "images/train/0.jpg 12\nimages/train/1.jpg 3\n").unwrap();
        assert_eq!(Dataset::open(dir.path(), 1).unwrap().train.len(), 2);
    }

    #[test]
    fn names_stand_for_numbers() {
        let list = |labels: [&str; 3]| -> String {
            labels.iter().enumerate().map(|(i, label)| format!("{i}.jpg {label}\n")).collect::<Vec<_>>().concat()
        };
        let classes = |labels: [&str; 3], names: &str| {
            let val = format!("3.jpg {}\n", labels[0]);
            let dir = set(&[
                ("0.jpg", ""),
                ("train.txt", &list(labels)),
                ("val.txt", &val),
                ("test.txt", "4.jpg cat"),
                ("classes.txt", names),
            ]);
            fs::write(dir.path().join("test.txt"), format!("4.jpg {}\n", labels[0])).unwrap();
            Dataset::open(dir.path(), 1).map(|data| data.classes.join(", ")).map_err(|e| e.to_string())
        };
        assert_eq!(classes(["2", "0", "1"], "cat\nbig dog\nowl\n").unwrap(), "cat, big dog, owl");
        assert_eq!(classes(["3", "1", "2"], "1 cat\n2 big dog\n3 owl\n").unwrap(), "cat, big dog, owl");
        assert_eq!(classes(["0", "1", "1"], "cat\ndog\nowl\n").unwrap(), "cat, dog");
        assert_eq!(classes(["big dog", "cat", "cat"], "cat\ndog\n").unwrap(), "big dog, cat");
        assert!(classes(["0", "2", "1"], "cat\ndog\n").unwrap_err().contains("classes.txt: 2 names, and a label 2 in"));
        assert!(classes(["0", "1", "1"], "cat\ncat\n").unwrap_err().contains("two classes are called 'cat'"));
    }

    #[test]
    fn what_has_the_names_of_lists_and_is_none_is_left_alone() {
        for (name, text) in [
            ("train.json", "{\"images\": [], \"annotations\": []}"),
            ("train.json", "{\"lr\": 0.1}"),
            ("train.json", "[1, 2]"),
            ("train.txt", "images/0.jpg\nimages/1.jpg\n"),
            ("train.txt", "trained for 3 epochs\n"),
            ("val.txt", "a.jpg 1\n"),
            ("train.txt", ""),
        ] {
            let dir = set(&[("cat/a.jpg", ""), ("dog/a.jpg", ""), (name, text)]);
            assert!(lists_in(dir.path()).unwrap().is_none(), "{text}");
        }
        let dir = set(&[("train.json", "{\"a.jpg\": 0}")]);
        assert!(crate::boxes::BoxDataset::recognize(dir.path()).is_none());
    }

    #[test]
    fn faults_name_file_and_line() {
        for (name, text, expected) in [
            ("train.json", "{\"a.jpg\": 0,\n\"b.jpg\": [1]}", "line 2: the label of b.jpg is neither"),
            ("train.json", "{\"a.jpg\": 0,\n\"b.jpg\": 1.5}", "line 2: the label of b.jpg is neither"),
            ("train.json", "{\"a.jpg\": 0,\n\n\"a.jpg\": 1}", "line 3: a.jpg is listed already, in line 1"),
            ("train.json", "{\"a.jpg\": 0,\n", "EOF while parsing"),
            ("train.json", "{\"b.jpg\": 0}", "b.jpg is neither beside it nor in a folder"),
            ("train.txt", "a.jpg 0\nb.jpg\n", "line 2: no label"),
            ("train.txt", "a.jpg 0\n./a.jpg 1\n", "line 2: ./a.jpg is listed already, in line 1"),
        ] {
            let dir = set(&[("a.jpg", ""), (name, text)]);
            let message = Dataset::open(dir.path(), 1).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(expected), "{message}");
        }
        let dir = set(&[("a.jpg", ""), ("train.txt", "a.jpg 0\nb.jpg 1\n"), ("test.txt", "c.jpg 7\n")]);
        assert!(Dataset::open(dir.path(), 1).unwrap_err().to_string().contains("line 1: label '7' does not occur"));
        fs::write(dir.path().join("train.txt"), b"a.jpg 0\nb\xff.jpg 1\n").unwrap();
        assert!(Dataset::open(dir.path(), 1).unwrap_err().to_string().contains("line 2: not valid UTF-8"));
        fs::write(dir.path().join("train.txt"), "a.jpg 0\n").unwrap();
        fs::write(dir.path().join("train9.txt"), "a.jpg 0\n").unwrap();
        assert!(Dataset::open(dir.path(), 1).unwrap_err().to_string().contains("a second list for one part"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_a_panic(text in r#"[\[\]{}",:\\a1 \n]{0,40}"#) {
            pairs(text.as_bytes());
            split_line(&text);
        }

        #[test]
        fn pairs_are_those_of_the_parser(object in proptest::collection::btree_map(".{0,6}", "[a-z\"{,:}]{0,5}", 0..6)) {
            let text = serde_json::to_string_pretty(&object).unwrap();
            let found = pairs(text.as_bytes());
            let lines: Vec<u64> = found.iter().map(|pair| pair.line).collect();
            proptest::prop_assert_eq!(lines, (2..).take(object.len()).collect::<Vec<_>>());
            let parsed: Vec<(String, String)> = found.iter().map(|pair| {
                (serde_json::from_slice(pair.key).unwrap(), serde_json::from_slice(pair.value).unwrap())
            }).collect();
            proptest::prop_assert_eq!(parsed, object.into_iter().collect::<Vec<_>>());
        }
    }
}
