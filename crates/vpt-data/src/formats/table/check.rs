//! CSV and TSV tables, line by line: what a run would stop at, all of it, and what it would not notice.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Columns, ImageRow, MAX_BYTES, part_called, reader_of, value};
use crate::boxes::normal;
use crate::check::text::{self, Lines};
use crate::check::{FindingKind, Findings, ListedImage, Severity};
use crate::formats::named_boxes::pictures_beside;
use crate::open::relative_id;
use crate::{ImageSource, Split};
use vpt_base::files::read_limited;

/// Rows of the lists of one data set while they are read.
#[derive(Default)]
pub(crate) struct ListedRows {
    /// The folder that paths are relative to, where it is not the table's.
    images: Option<PathBuf>,
    pub(crate) listed: Vec<ListedImage>,
    /// Where each image was listed, and with which label.
    seen: HashMap<String, (Arc<Path>, u64, String)>,
    /// Name of each number, and number of each name.
    pairs: HashMap<String, String>,
}

/// The images in `tables`, which are for the given part or say the part of each image themselves.
pub(crate) fn check(tables: &[(Option<Split>, PathBuf)], out: &mut Findings) -> Vec<ListedImage> {
    let mut all = ListedRows::default();
    let before = out.0.len();
    for (split, path) in tables {
        all.read(*split, path, out);
    }
    // A row that cannot be read may speak of a picture.
    if out.0[before..].iter().any(|finding| finding.severity == Severity::Error) {
        return all.listed;
    }
    let known = all.listed.iter().map(|image| (image.file(), &*image.place.0));
    for (table, message) in pictures_beside(known) {
        out.warning(FindingKind::NotUsed, table, None, message);
    }
    all.listed
}

/// Whether a column called `name` deals images out in a way that is not read.
fn is_fold(name: &str) -> bool {
    let names = ["fold", "folds", "kfold", "k_fold", "is_valid", "is_val", "is_test", "is_train"];
    names.iter().any(|known| name.trim().eq_ignore_ascii_case(known))
}

/// Whether `path`, seen from the folder of the file that names it, leads out of that folder.
pub(crate) fn leads_out(path: &str) -> bool {
    let path = normal(Path::new(path));
    path.is_absolute() || path.starts_with("..")
}

impl ListedRows {
    /// None yet, of images in the folder `images`.
    pub(crate) fn of_images_in(images: PathBuf) -> Self {
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
        let mut columns: Option<Columns> = None;
        for record in reader_of(path, &bytes).byte_records() {
            let record = match record {
                Ok(record) => record,
                Err(error) => return out.error(FindingKind::MalformedFile, path, None, error.to_string()),
            };
            let after_last = record.position().map_or(0, |position| position.byte() as usize);
            let line = blank_lines(path, &bytes, after_last, &lines, out);
            let record = csv::StringRecord::from_byte_record_lossy(record);
            let columns = if let Some(columns) = &columns {
                columns
            } else {
                let (mut found, is_header) = match Columns::of(&record) {
                    Ok(found) => found,
                    Err(message) => return out.error(FindingKind::MalformedFile, path, line, message),
                };
                if is_header {
                    found.find_split(path, &bytes);
                    if let Some(name) = record.iter().find(|name| found.split.is_none() && is_fold(name)) {
                        let message = format!(
                            "the column {} is not used; parts are read from a column split with train, val and test",
                            name.trim()
                        );
                        out.warning(FindingKind::NotUsed, path, line, message);
                    }
                }
                let columns = columns.insert(found);
                if is_header {
                    continue;
                }
                columns
            };
            if let Some(row) = columns.row(&record, path, line, out) {
                self.add(given, &source, &row, out);
            }
        }
    }

    /// Takes in a row of the table `source`, which is for the part `given`.
    pub(crate) fn add(&mut self, given: Option<Split>, source: &Arc<Path>, row: &ImageRow, out: &mut Findings) {
        let ImageRow { line, path, label, split, name } = row;
        let line = *line;
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
        self.listed.push(ListedImage {
            image: ImageSource::File(folder.join(path)),
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

impl Columns {
    /// Facts of the row; nothing if it lacks what is needed.
    fn row(&self, record: &csv::StringRecord, file: &Path, line: u64, out: &mut Findings) -> Option<ImageRow> {
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
        let mut needed = |column: Option<usize>, what: &str| {
            let value = column.and_then(|column| value(record, column));
            if value.is_none() {
                out.error(FindingKind::MissingValue, file, line, format!("no {what}"));
            }
            value.map(str::to_owned)
        };
        let (path, label) = (needed(self.path, "path"), needed(self.label, "label"));
        let mut split = None;
        if self.split.is_some() {
            let name = needed(self.split, "split")?;
            match part_called(&name) {
                Ok(found) => split = Some(found),
                Err(message) => {
                    out.error(FindingKind::UnknownSplit, file, line, message);
                    return None;
                }
            }
        }
        let pair = self.pair.and_then(|(number, name)| Some((value(record, number)?, value(record, name)?)));
        let name = pair.filter(|(number, _)| number.parse::<i64>().is_ok()).map(|(_, name)| name.to_owned());
        Some(ImageRow { line, path: path?, label: label?, split, name })
    }
}
