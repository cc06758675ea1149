//! Tables of images: CSV or TSV files with a path and a label in each line.
//!
//! One file for each part (`train.csv`, `val.csv`, `test.csv`), or one file, with or without a column that names the part.
//! Paths are relative to the table. Without a header the columns are path, label and, where there are three, part.

mod check;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

pub(super) use self::check::{ListedRows, leads_out};
use super::{Candidate, ClassFiles, Format, Layout, Recognition, unread};
use crate::check::{Checking, ListedImage};
use crate::dataset::{ImageSource, Sample, Split};
use crate::open::{LabeledSet, Parts, entries, relative_id, sort_classes};
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};
use vpt_image::decode::has_image_extension;

/// Longest table that is read, in bytes.
pub(super) const MAX_BYTES: u64 = 1 << 28;

impl Layout {
    /// Tables of paths and labels.
    pub const CSV: Self = Self::new("csv", "CSV");
}

/// A table that is named itself, or tables in a folder that are called like parts, `train` among them.
pub(super) const BY_NAME: Format = Format {
    has_boxes: false,
    recognize: |candidate| {
        let Candidate { path, is_folder } = *candidate;
        let tables = if is_folder { tables_of_parts(path)? } else { has_extension(path).then(|| whole(path.into())) };
        Ok(recognition(tables))
    },
};

/// The only table in a folder, whose header names a path and a label column, or which begins with a picture that is there.
pub(super) const WITH_HEADER: Format = Format {
    has_boxes: false,
    recognize: |candidate| Ok(recognition(single_table(candidate)?.filter(|file| speaks_of_images(file)).map(whole))),
};

/// The only table in a folder.
pub(super) const SINGLE: Format =
    Format { has_boxes: false, recognize: |candidate| Ok(recognition(single_table(candidate)?.map(whole))) };

/// Tables for parts, or one for all.
type Tables = Vec<(Option<Split>, PathBuf)>;

fn whole(table: PathBuf) -> Tables {
    vec![(None, table)]
}

fn recognition(tables: Option<Tables>) -> Recognition {
    Recognition::of_classes(Layout::CSV, tables.map(TableFiles))
}

/// The tables of parts by name, or one for all parts.
struct TableFiles(Tables);

impl ClassFiles for TableFiles {
    fn open(&self) -> Result<LabeledSet> {
        match &self.0[..] {
            [(None, file)] => open_file(file),
            files => open_split(files),
        }
    }

    fn check(&self, check: &mut Checking<'_>) -> Vec<ListedImage> {
        let mut files = self.0.clone();
        files.sort();
        if let [(None, file)] = &files[..] {
            check.places.whole.clone_from(file);
        }
        check.list_parts(&files, "table");
        check::check(&files, &mut check.out)
    }
}

const PATH_NAMES: [&str; 9] =
    ["path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img"];
const LABEL_NAMES: [&str; 6] = ["label", "class", "class_name", "classname", "category", "target"];
const SPLIT_NAMES: [&str; 4] = ["split", "set", "subset", "part"];

/// Columns that number classes, and columns that name them, where a table has both.
const NUMBER_NAMES: [&str; 3] = ["label", "class", "target"];
const NAME_NAMES: [&str; 2] = ["class_name", "classname"];

/// Whether the name of `path` ends like a table's.
fn has_extension(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    extension.is_some_and(|e| e.eq_ignore_ascii_case("csv") || e.eq_ignore_ascii_case("tsv"))
}

/// The tables in `folder` that are named after parts, by name, if there is one for `train`. Of two for a part both are among
/// them.
fn tables_of_parts(folder: &Path) -> Result<Option<Tables>> {
    let all = entries(folder)?.into_iter().map(|(_, path)| path).filter(|path| has_extension(path) && path.is_file());
    let all: Vec<PathBuf> = all.collect();
    let stems = all.iter().map(|path| path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default());
    let parts = Split::of_names(stems);
    let tables: Vec<_> = parts.into_iter().zip(all).filter(|(part, _)| part.is_some()).collect();
    if tables.iter().any(|(split, _)| *split == Some(Split::Train)) {
        return Ok(Some(tables));
    }
    refuse_second(&tables)?;
    Ok(None)
}

/// Refuses two tables for one part.
fn refuse_second(tables: &[(Option<Split>, PathBuf)]) -> Result<()> {
    for (i, (split, path)) in tables.iter().enumerate() {
        if let (Some(split), Some((_, first))) = (split, tables[..i].iter().find(|(other, _)| other == split)) {
            return Err(Error::data(path, format!("a second table for {split} beside {}", first.display())));
        }
    }
    Ok(())
}

/// The table in a folder, if there is exactly one.
fn single_table(candidate: &Candidate<'_>) -> Result<Option<PathBuf>> {
    let all = if candidate.is_folder { entries(candidate.path)? } else { Vec::new() };
    let mut tables = all.into_iter().map(|(_, path)| path).filter(|path| has_extension(path) && path.is_file());
    let first = tables.next();
    Ok(first.filter(|_| tables.next().is_none()))
}

/// Whether the first line of `path` names a path and a label column, or is a picture that is there and its label.
fn speaks_of_images(path: &Path) -> bool {
    let first = reader(path).ok().and_then(|mut reader| reader.records().next()?.ok());
    first.is_some_and(|line| {
        let is_header = column(&line, &PATH_NAMES).is_some() && column(&line, &LABEL_NAMES).is_some();
        let image = value(&line, 0).map(|image| folder_of(path).join(image));
        is_header || (line.len() > 1 && image.is_some_and(|image| has_image_extension(&image) && image.is_file()))
    })
}

/// Opens one table.
fn open_file(path: &Path) -> Result<LabeledSet> {
    let rows = read(path)?;
    let mut builder = SampleBuilder::new(&rows);
    let samples = if rows.first().is_some_and(|r| r.split.is_some()) {
        let mut parts = [Vec::new(), Vec::new(), Vec::new()];
        for row in rows {
            let split = row.split.unwrap_or(Split::Train);
            parts[split as usize].push(builder.sample(path, folder_of(path), row)?);
        }
        let [train, val, test] = parts;
        let some = |samples: Vec<Sample>| Some(samples).filter(|s| !s.is_empty());
        Parts::Split { train, val: some(val), test: some(test) }
    } else {
        Parts::Unsplit(rows.into_iter().map(|row| builder.sample(path, folder_of(path), row)).collect::<Result<_>>()?)
    };
    Ok(LabeledSet { classes: builder.classes, samples })
}

/// Opens the tables of parts.
fn open_split(tables: &[(Option<Split>, PathBuf)]) -> Result<LabeledSet> {
    refuse_second(tables)?;
    let mut tables: Vec<(Split, &Path)> =
        tables.iter().filter_map(|(split, path)| Some(((*split)?, path.as_path()))).collect();
    // Train says what the classes are.
    tables.sort_unstable();
    let mut parts = [None, None, None];
    let mut builder: Option<SampleBuilder> = None;
    for (split, path) in tables {
        let rows = read(path)?;
        if rows.iter().any(|r| r.split.is_some_and(|s| s != split)) {
            return Err(Error::data(path, format!("its split column names other parts than {split}")));
        }
        let builder = builder.get_or_insert_with(|| SampleBuilder::new(&rows));
        let samples = rows.into_iter().map(|row| builder.sample(path, folder_of(path), row));
        parts[split as usize] = Some(samples.collect::<Result<Vec<_>>>()?);
    }
    let [train, val, test] = parts;
    let classes = builder.map_or_else(Vec::new, |b| b.classes);
    Ok(LabeledSet { classes, samples: Parts::Split { train: train.unwrap_or_default(), val, test } })
}

/// The folder that `table` lies in.
fn folder_of(table: &Path) -> &Path {
    table.parent().unwrap_or(Path::new(""))
}

/// What a line says of an image.
pub(super) struct ImageRow {
    pub(super) line: u64,
    pub(super) path: String,
    pub(super) label: String,
    pub(super) split: Option<Split>,
    /// The name that a column beside the label's says of a class that is a number.
    pub(super) name: Option<String>,
}

/// Makes samples of rows, with one set of classes and without repeating an image.
pub(super) struct SampleBuilder {
    pub(super) classes: Vec<String>,
    labels: HashMap<String, u32>,
    /// Where each image was listed.
    seen: HashMap<String, (PathBuf, u64)>,
}

impl SampleBuilder {
    /// The classes are those of `rows` that belong to `train` or to no part; of all, where there is no train.
    pub(super) fn new(rows: &[ImageRow]) -> Self {
        let is_train = |row: &&ImageRow| row.split.is_none_or(|split| split == Split::Train);
        let has_train = rows.iter().any(|row| is_train(&row));
        let train = rows.iter().filter(|row| !has_train || is_train(row));
        let mut classes: Vec<String> = train.map(|r| r.label.clone()).collect::<BTreeSet<_>>().into_iter().collect();
        sort_classes(&mut classes);
        let labels = classes.iter().cloned().zip(0..).collect();
        Self { classes, labels, seen: HashMap::new() }
    }

    /// The sample that `row` of `table` describes, whose path is relative to the folder `images`.
    pub(super) fn sample(&mut self, table: &Path, images: &Path, row: ImageRow) -> Result<Sample> {
        let ImageRow { line, path, label, .. } = row;
        let Some(&label) = self.labels.get(&label) else {
            return Err(at(table, line, format!("label '{label}' does not occur in train")));
        };
        let folder = folder_of(table);
        let file = images.join(&path);
        let id = relative_id(folder, &file);
        if let Some((other, first)) = self.seen.insert(id.clone(), (table.to_path_buf(), line)) {
            let other = if other == table { String::new() } else { format!(" of {}", other.display()) };
            return Err(at(table, line, format!("{path} is listed already, in line {first}{other}")));
        }
        Ok(Sample { image: ImageSource::File(file), label, id })
    }
}

fn read(path: &Path) -> Result<Vec<ImageRow>> {
    let bytes = read_limited(path, MAX_BYTES)?;
    let mut reader = reader_of(path, &bytes);
    let mut columns: Option<Columns> = None;
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| unreadable(path, &e))?;
        let line = record.position().map_or(0, csv::Position::line);
        let columns = if let Some(columns) = &columns {
            columns
        } else {
            let (mut found, is_header) = Columns::of(&record).map_err(|message| at(path, line, message))?;
            if is_header {
                found.find_split(path, &bytes);
            }
            let columns = columns.insert(found);
            if is_header {
                continue;
            }
            columns
        };
        let field = |column: Option<usize>, name: &str| {
            column.and_then(|c| value(&record, c)).ok_or_else(|| at(path, line, format!("no {name}")))
        };
        let split = match columns.split {
            None => None,
            column => Some(part_called(field(column, "split")?).map_err(|message| at(path, line, message))?),
        };
        let (image, label) = (field(columns.path, "path")?.to_owned(), field(columns.label, "label")?.to_owned());
        rows.push(ImageRow { line, path: image, label, split, name: None });
    }
    if rows.is_empty() {
        return Err(Error::data(path, "the table lists no images"));
    }
    Ok(rows)
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

impl Columns {
    /// The columns by the first line, and whether that is a header.
    ///
    /// # Errors
    /// It is not told which are path and label.
    fn of(first: &csv::StringRecord) -> Result<(Self, bool), String> {
        let [path, label, split] = [&PATH_NAMES[..], &LABEL_NAMES, &SPLIT_NAMES].map(|names| column(first, names));
        let count = first.len();
        if unread::has_box_columns(&first.iter().collect::<Vec<_>>().join(",")) {
            return Err(format!(
                "a table of boxes, not of pictures with one label each; boxes are read from {}",
                unread::BOX_LAYOUTS
            ));
        }
        let plain = |split| Self { path: Some(0), label: Some(1), split, pair: None, count };
        match (path, label) {
            (Some(_), Some(_)) => {
                let pair = column(first, &NUMBER_NAMES).zip(column(first, &NAME_NAMES));
                Ok((Self { path, label, split, pair, count }, true))
            }
            (None, None) => match count {
                0 | 1 => Err("path and label are expected, separated by commas (tabs in a .tsv file)".into()),
                2 => Ok((plain(None), false)),
                3 if first.get(2).is_some_and(|s| Split::from_name(s.trim()).is_some()) => Ok((plain(Some(2)), false)),
                _ => Err("no header that names the columns path and label".into()),
            },
            (missing, _) => {
                let missing = if missing.is_none() { "path" } else { "label" };
                let found = first.iter().map(str::trim).collect::<Vec<_>>().join(", ");
                Err(format!("no column called {missing} (found: {found})"))
            }
        }
    }
}

impl Columns {
    /// Takes the column for that of parts whose values are names of parts, two of them at least, where none is called so: `phase`, `usage`.
    fn find_split(&mut self, path: &Path, bytes: &[u8]) {
        if self.split.is_some() || self.count < 3 {
            return;
        }
        let mut found: Vec<Option<BTreeSet<Split>>> = (0..self.count)
            .map(|column| (Some(column) != self.path && Some(column) != self.label).then(BTreeSet::new))
            .collect();
        for record in reader_of(path, bytes).records().skip(1) {
            let Ok(record) = record else { return };
            for (column, parts) in found.iter_mut().enumerate() {
                match value(&record, column).and_then(Split::from_name) {
                    Some(part) => parts.as_mut().is_some_and(|parts| parts.insert(part)),
                    None => parts.take().is_some(),
                };
            }
            if found.iter().all(Option::is_none) {
                return;
            }
        }
        self.split = found.iter().position(|parts| parts.as_ref().is_some_and(|parts| parts.len() > 1));
    }
}

/// What a row says in `column`; none if that is nothing.
fn value(record: &csv::StringRecord, column: usize) -> Option<&str> {
    record.get(column).map(str::trim).filter(|value| !value.is_empty())
}

/// The part that a split column means by `name`.
fn part_called(name: &str) -> Result<Split, String> {
    Split::from_name(name).ok_or_else(|| format!("split '{name}' is none of train, val and test"))
}

fn column(header: &csv::StringRecord, names: &[&str]) -> Option<usize> {
    header.iter().position(|field| names.iter().any(|name| field.trim().eq_ignore_ascii_case(name)))
}

fn reader(path: &Path) -> Result<csv::Reader<std::io::Cursor<Vec<u8>>>> {
    Ok(reader_of(path, read_limited(path, MAX_BYTES)?))
}

/// A reader of the table `path`, which holds `bytes`.
fn reader_of<B: AsRef<[u8]>>(path: &Path, bytes: B) -> csv::Reader<std::io::Cursor<B>> {
    let tsv = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv"));
    let first = bytes.as_ref().split(|&b| b == b'\n').next().unwrap_or_default();
    let delimiter = match first {
        _ if tsv => b'\t',
        // Spreadsheets in many countries write semicolons.
        line if !line.contains(&b',') && line.contains(&b';') => b';',
        _ => b',',
    };
    let mut builder = csv::ReaderBuilder::new();
    builder.has_headers(false).flexible(true).delimiter(delimiter).from_reader(std::io::Cursor::new(bytes))
}

pub(super) fn at(path: &Path, line: u64, message: impl std::fmt::Display) -> Error {
    Error::data(path, format!("line {line}: {message}"))
}

fn unreadable(path: &Path, error: &csv::Error) -> Error {
    match error.kind() {
        csv::ErrorKind::Utf8 { pos, .. } => at(path, pos.as_ref().map_or(0, csv::Position::line), "not valid UTF-8"),
        _ => Error::data(path, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Dataset;
    use crate::{MadeParts, MeasuredPart};
    use std::fs;

    fn write(files: &[(&str, &str)]) -> tempfile::TempDir {
        crate::formats::testing::folder_of(files)
    }

    fn one(name: &str, text: &str) -> Result<LabeledSet> {
        let dir = write(&[(name, text)]);
        open_file(&dir.path().join(name))
    }

    fn unsplit(found: LabeledSet) -> Vec<(String, u32)> {
        let Parts::Unsplit(samples) = found.samples else { panic!("split") };
        samples.into_iter().map(|s| (s.id, s.label)).collect()
    }

    #[test]
    fn header_delimiter_and_quotes_are_optional() {
        let expected = vec![("a.png".to_string(), 1), ("d/b.png".to_string(), 0)];
        for (name, text) in [
            ("t.csv", "path,label\na.png,dog\nd/b.png,cat\n"),
            ("t.csv", "\u{feff}Label, Filename\r\ndog,a.png\r\n\r\n\"cat\",\"./d/b.png\"\r\n"),
            ("t.csv", "a.png,dog\nd/b.png,cat"),
            ("t.csv", "a.png;dog\nd/b.png;cat\n"),
            ("t.tsv", "id\timage\tclass\n7\ta.png\tdog\n8\td/b.png\tcat\n"),
        ] {
            let found = one(name, text).unwrap();
            assert_eq!(found.classes, ["cat", "dog"], "{text}");
            assert_eq!(unsplit(found), expected, "{text}");
        }
    }

    #[test]
    fn numbers_are_ordered_as_numbers() {
        let found = one("t.csv", "a.png,10\nb.png,2\nc.png,-1\n").unwrap();
        assert_eq!(found.classes, ["-1", "2", "10"]);
    }

    #[test]
    fn a_split_column_makes_the_parts() {
        for text in ["path,label,split\na,x,train\nb,x,Validation\nc,x,test\n", "a,x,train\nb,x,val\nc,x,test\n"] {
            let Parts::Split { train, val, test } = one("t.csv", text).unwrap().samples else { panic!("unsplit") };
            assert_eq!((train.len(), val.unwrap().len(), test.unwrap().len()), (1, 1, 1));
        }
    }

    #[test]
    fn a_column_whose_values_are_parts_makes_the_parts() {
        let text = "image,label,phase\na,x,train\nb,x,validation\nc,x,test\n";
        let Parts::Split { train, .. } = one("t.csv", text).unwrap().samples else { panic!("unsplit") };
        assert_eq!(train.len(), 1);
        // What else a column may say is nothing of parts.
        for text in ["image,label,kind\na,x,train\nb,y,train\n", "image,label,kind\na,x,train\nb,y,test\nc,y,bus\n"] {
            assert!(matches!(one("t.csv", text).unwrap().samples, Parts::Unsplit(_)), "{text}");
        }
    }

    #[test]
    fn a_table_of_test_alone_is_measured_and_not_learned_from() {
        let dir = write(&[("t.csv", "path,label,split\na.png,x,test\nb.png,y,test\n")]);
        let message = Dataset::open(dir.path(), 1).unwrap_err().to_string();
        assert!(message.contains("no train among its parts (test alone)"), "{message}");
        let measured = MadeParts::Measured(MeasuredPart { split: Split::Test, learned: None });
        assert_eq!(Dataset::open_with(dir.path(), 1, measured).unwrap().test.len(), 2);
    }

    #[test]
    fn tables_of_parts_share_their_classes() {
        let dir = write(&[("train.csv", "a.png,x\nb.png,y\n"), ("test.csv", "c.png,y\n"), ("val.csv", "d.png,x\n")]);
        let data = Dataset::open(dir.path(), 1).unwrap();
        assert_eq!((data.train.len(), data.val.len(), data.test.len()), (2, 1, 1));
        assert_eq!((data.test[0].label, data.layout), (1, Layout::CSV));
    }

    #[test]
    fn faults_name_file_and_line() {
        for (text, expected) in [
            ("path,kind\na.png,x\n", "line 1: no column called label (found: path, kind)"),
            ("name,label\na.png,x\n", "line 1: no column called path (found: name, label)"),
            ("path,label\na.png,x\nb.png\n", "line 3: no label"),
            ("path,label\n,x\n", "line 2: no path"),
            ("path,label,split\na.png,x,extra\n", "line 2: split 'extra'"),
            ("path,label\na.png,x\n./a.png,y\n", "line 3: ./a.png is listed already, in line 2"),
            ("path,label,split\na.png,x,train\nb.png,y,test\n", "line 3: label 'y' does not occur in train"),
            ("path,label\n", "lists no images"),
            ("a.png\n", "line 1: path and label are expected"),
            ("", "lists no images"),
        ] {
            let message = one("t.csv", text).err().unwrap().to_string();
            assert!(message.contains("t.csv: ") && message.contains(expected), "{text:?}: {message}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.csv");
        fs::write(&path, b"a.png,x\nb\xff.png,x\n").unwrap();
        assert!(open_file(&path).err().unwrap().to_string().contains("line 2: not valid UTF-8"));
    }

    #[test]
    fn a_table_with_a_header_speaks_for_the_pictures_beside_it() {
        let dir = write(&[("labels.csv", "path,label\nx/a.png,x\nx/b.png,x\nx/c.png,x\ny/a.png,y\n")]);
        for name in ["x/a", "x/b", "x/c", "y/a"] {
            let path = dir.path().join(format!("{name}.png"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        assert_eq!(Dataset::open(dir.path(), 1).unwrap().layout, Layout::CSV);
        fs::write(dir.path().join("labels.csv"), "a note,that is\nno,table\n").unwrap();
        assert_eq!(Dataset::open(dir.path(), 1).unwrap().layout, Layout::FOLDER);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_a_panic(text in "(path|label|split|train|a|b|,|;|\\t|\\n|\\r|\"| |\\.|/|é){0,60}") {
            let _ = one("t.csv", &text);
            let _ = one("t.tsv", &text);
        }
    }
}
