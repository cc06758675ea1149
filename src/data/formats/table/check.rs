//! CSV and TSV tables, line by line: what a run would stop at, all of it, and what it would not notice.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use crate::data::Split;
use crate::data::boxes::normal;
use crate::data::check::finding::{FindingKind, Findings};
use crate::data::check::listed::Listed;
use crate::data::check::text::{self, Lines};
use crate::data::formats::table::{MAX_BYTES, column, find_columns, reader_of};
use crate::data::open::relative_id;
use crate::files::read_limited;

/// Columns that number classes, and columns that name them, where a table has both.
const NUMBER_NAMES: [&str; 3] = ["label", "class", "target"];
const NAME_NAMES: [&str; 2] = ["class_name", "classname"];

/// Tables of one data set while they are read.
#[derive(Default)]
pub(in crate::data) struct Tables {
    /// The folder that paths are relative to, where it is not the table's.
    images: Option<PathBuf>,
    pub(in crate::data) listed: Vec<Listed>,
    /// Where each image was listed, and with which label.
    seen: HashMap<String, (Arc<Path>, u64, String)>,
    /// What goes with what: a number's name and a name's number.
    pairs: HashMap<String, String>,
}

/// The images in `tables`, which are for the given part or say the part of each image themselves.
pub(in crate::data) fn check(tables: &[(Option<Split>, PathBuf)], out: &mut Findings) -> Vec<Listed> {
    let mut all = Tables::default();
    for (split, path) in tables {
        all.read(*split, path, out);
    }
    all.listed
}

/// Those of `listed` that are there; the others are told.
pub(in crate::data) fn existing(listed: Vec<Listed>, out: &mut Findings) -> Vec<Listed> {
    let there: Vec<_> = listed.par_iter().map(|image| std::fs::metadata(&image.path)).collect();
    let mut kept = Vec::with_capacity(listed.len());
    for (image, meta) in listed.into_iter().zip(there) {
        let (source, line) = &image.place;
        let path = image.path.display();
        match meta {
            Ok(meta) if meta.is_file() => kept.push(image),
            Ok(_) => out.error(FindingKind::SpecialFile, source, *line, format!("{path} is not a file")),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                out.error(FindingKind::NoAccess, source, *line, format!("{path}: {error}"));
            }
            Err(_) => {
                let hint = if path.to_string().contains('\\') { "; write paths with /" } else { "" };
                out.error(FindingKind::MissingFile, source, *line, format!("{path} is not there{hint}"));
            }
        }
    }
    kept
}

/// Whether `path`, seen from the folder of the file that names it, leads out of that folder.
pub(in crate::data) fn leads_out(path: &str) -> bool {
    let path = normal(Path::new(path));
    path.is_absolute() || path.starts_with("..")
}

impl Tables {
    /// None yet, of images in the folder `images`.
    pub(in crate::data) fn of_images_in(images: PathBuf) -> Self {
        Self { images: Some(images), ..Self::default() }
    }

    fn read(&mut self, given: Option<Split>, path: &Path, out: &mut Findings) {
        let bytes = match read_limited(path, MAX_BYTES) {
            Ok(bytes) => bytes,
            Err(error) => return out.refused(FindingKind::NoAccess, path, &error),
        };
        text::check(path, &bytes, true, out);
        let lines = Lines::new(&bytes);
        let source: Arc<Path> = path.into();
        let mut layout: Option<Columns> = None;
        for record in reader_of(path, &bytes).byte_records() {
            let record = match record {
                Ok(record) => record,
                Err(error) => return out.error(FindingKind::MalformedFile, path, None, error.to_string()),
            };
            let after_last = record.position().map_or(0, |position| position.byte() as usize);
            let line = blank_lines(path, &bytes, after_last, &lines, out);
            let record = csv::StringRecord::from_byte_record_lossy(record);
            let columns = if let Some(columns) = &layout {
                columns
            } else {
                let (found, is_header) = match find_columns(&record) {
                    Ok(found) => found,
                    Err(message) => return out.error(FindingKind::MalformedFile, path, line, message),
                };
                let columns = layout.insert(Columns::new(found, &record, is_header));
                if is_header {
                    continue;
                }
                columns
            };
            if let Some(row) = columns.row(&record, path, line, out) {
                self.add(given, &source, line, &row, out);
            }
        }
    }

    /// Takes in a row of the table `source`, which is for the part `given`.
    pub(in crate::data) fn add(
        &mut self,
        given: Option<Split>,
        source: &Arc<Path>,
        line: u64,
        row: &Row,
        out: &mut Findings,
    ) {
        let Row { path, label, split, name } = row;
        if let (Some(given), Some(split)) = (given, split)
            && given != *split
        {
            let message = format!("'{split}' in the table of {given}");
            out.error(FindingKind::UnknownSplit, source, line, message);
        }
        if leads_out(path) {
            let message = format!("{path} leads out of the data set's folder");
            out.warning(FindingKind::OutsideFolder, source, line, message);
        }
        if let Some(name) = name {
            self.compare(label, name, source, line, out);
        }
        let folder = source.parent().unwrap_or(Path::new(""));
        let folder = self.images.clone().unwrap_or_else(|| folder.to_path_buf());
        let id = relative_id(&folder, &normal(Path::new(path)));
        if let Some((other, first, with)) = self.seen.get(&id) {
            let other = if other == source { String::new() } else { format!(" of {}", other.display()) };
            let with = if with == label { String::new() } else { format!(", labelled '{with}' there") };
            let message = format!("{path} is listed already, in line {first}{other}{with}");
            out.error(FindingKind::ListedTwice, source, line, message);
            return;
        }
        self.seen.insert(id, (source.clone(), line, label.clone()));
        self.listed.push(Listed {
            path: folder.join(path).into(),
            number: None,
            split: given.or(*split),
            label: label.as_str().into(),
            place: (source.clone(), Some(line)),
        });
    }

    /// A number has one name, and a name one number.
    fn compare(&mut self, number: &str, name: &str, source: &Path, line: u64, out: &mut Findings) {
        for (key, value, form) in [(format!("n{number}"), name, "class"), (format!("t{name}"), number, "class name")] {
            let known = self.pairs.entry(key.clone()).or_insert_with(|| value.to_owned());
            if known != value {
                let message = format!("{form} {} is '{value}' here and '{known}' before", &key[1..]);
                out.error(FindingKind::LabelNameMismatch, source, line, message);
                return;
            }
        }
    }
}

/// Tells of the empty lines from `at` on, and returns the line of the row after them.
fn blank_lines(path: &Path, bytes: &[u8], mut at: usize, lines: &Lines, out: &mut Findings) -> u64 {
    // The reader stops between the two characters of a Windows line end.
    if at > 0 && bytes.get(at - 1..=at) == Some(b"\r\n") {
        at += 1;
    }
    let start = bytes.get(at..).unwrap_or_default().iter().position(|&b| b != b'\n' && b != b'\r');
    let (first, line) = (lines.of(at), lines.of(at + start.unwrap_or_default()));
    if first < line {
        let message = match line - first {
            1 => "an empty line".to_owned(),
            n => format!("{n} empty lines"),
        };
        out.warning(FindingKind::BlankRow, path, first, message);
    }
    line
}

/// The columns of a table.
struct Columns {
    path: Option<usize>,
    label: Option<usize>,
    split: Option<usize>,
    /// Of a number and a name for the same class.
    pair: Option<(usize, usize)>,
    count: usize,
}

/// What a line says of an image.
pub(in crate::data) struct Row {
    pub(in crate::data) path: String,
    pub(in crate::data) label: String,
    pub(in crate::data) split: Option<Split>,
    /// What a second column says of the class.
    pub(in crate::data) name: Option<String>,
}

impl Columns {
    fn new([path, label, split]: [Option<usize>; 3], first: &csv::StringRecord, is_header: bool) -> Self {
        let of = |names: &[&str]| column(first, names).filter(|_| is_header);
        let pair = of(&NUMBER_NAMES).zip(of(&NAME_NAMES));
        Self { path, label, split, pair, count: first.len() }
    }

    /// What the row says; nothing if it lacks what is needed.
    fn row(&self, record: &csv::StringRecord, file: &Path, line: u64, out: &mut Findings) -> Option<Row> {
        if record.iter().all(|field| field.trim().is_empty()) {
            out.error(FindingKind::BlankRow, file, line, "a row with nothing in it");
            return None;
        }
        let (found, expected) = (record.len(), self.count);
        let needed = [(self.path, "path"), (self.label, "label"), (self.split, "split")];
        let lost = needed.iter().find(|(column, _)| column.is_some_and(|column| column >= found));
        if let Some((_, what)) = lost {
            let message = format!("{found} fields where there are {expected} columns: no {what}");
            out.error(FindingKind::ShortRow, file, line, message);
            return None;
        }
        if found < expected {
            let message = format!("{found} fields where there are {expected} columns");
            out.warning(FindingKind::ShortRow, file, line, message);
        } else if found > expected {
            let message = format!("{found} fields where there are {expected} columns; a comma in a field needs quotes");
            out.warning(FindingKind::LongRow, file, line, message);
        }
        let field = |column: usize| record.get(column).map(str::trim).filter(|value| !value.is_empty());
        let mut value = |column: Option<usize>, what: &str| {
            let value = column.and_then(field);
            if value.is_none() {
                out.error(FindingKind::MissingValue, file, line, format!("no {what}"));
            }
            value.map(str::to_owned)
        };
        let (path, label) = (value(self.path, "path"), value(self.label, "label"));
        let mut split = None;
        if self.split.is_some() {
            let name = value(self.split, "split")?;
            split = Split::from_name(&name);
            if split.is_none() {
                let message = format!("split '{name}' is none of train, val and test");
                out.error(FindingKind::UnknownSplit, file, line, message);
                return None;
            }
        }
        let pair = self.pair.and_then(|(number, name)| Some((field(number)?, field(name)?)));
        let name = pair.filter(|(number, _)| number.parse::<i64>().is_ok()).map(|(_, name)| name.to_owned());
        Some(Row { path: path?, label: label?, split, name })
    }
}
