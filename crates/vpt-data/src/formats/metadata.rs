//! Folders of images with a `metadata.jsonl` or `metadata.csv`, as the library `datasets` reads them: a line an image, with
//! `file_name` and `label`, or with `objects`, whose boxes are `[left, top, width, height]` in pixels.
//!
//! The file stands beside the images of all parts, or in the folder of each. Where it says nothing of classes or boxes, it is
//! passed by, and classes are the folders.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::named_boxes::{AnnotationSource, DescribedPicture, DescribedSet, NamedBoxes, NamedObject, called};
use super::table::{ImageRow, ListedRows, at};
use super::text_file::read_text;
use super::unread::has_box_sides;
use super::{Candidate, ClassFiles, Format, Layout, Recognition};
use crate::boxes::{BoxExtent, PlaceInFile, normal, parts};
use crate::check::{Checking, FindingKind, ListedImage, text};
use crate::dataset::Sample;
use crate::open::{LabeledSet, Parts, relative_id, sort_classes};
use crate::{ImageSource, Split};
use vpt_base::{Error, Result};

impl Layout {
    /// Images with a file of metadata.
    pub const METADATA: Self = Self::new("metadata", "image folder with metadata");
}

/// Images with a file of metadata.
pub(super) const FORMAT: Format = Format { has_boxes: true, recognize: |candidate| Ok(recognition(candidate)) };

/// Longest file, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// What fields are called: of the image, its class, its objects, and in these of the category.
const FILE: [&str; 2] = ["file_name", "image_file_name"];
const CLASS: [&str; 7] = ["label", "labels", "class", "class_name", "category", "target", "label_name"];
const OBJECTS: [&str; 3] = ["objects", "annotations", "object"];
const BOXES: [&str; 3] = ["bbox", "bboxes", "boxes"];
const CATEGORIES: [&str; 7] = ["categories", "category", "labels", "label", "category_id", "classes", "class"];

/// A line of the file.
struct Record {
    line: u64,
    fields: Map<String, Value>,
}

fn recognition(candidate: &Candidate<'_>) -> Recognition {
    let root = candidate.path.to_path_buf();
    if !candidate.is_folder {
        return Recognition::No;
    }
    let named = ["metadata.jsonl", "metadata.csv"].map(|name| called(&root, name));
    let Some(sources) = named.into_iter().find(|sources| !sources.is_empty()) else { return Recognition::No };
    // The first line tells what the others hold; one that cannot be read is told on opening.
    let first = records(&sources[0].1, Some(1)).map(|records| records.into_iter().next());
    let has = |names: &[&str]| match &first {
        Ok(Some(record)) => names.iter().any(|name| record.fields.contains_key(*name)),
        _ => false,
    };
    if has(&OBJECTS) {
        let files = NamedBoxes::found(&root, sources, |_, source| read_boxes(source)).map(NamedBoxes::of_texts);
        return Recognition::of_boxes(Layout::METADATA, files);
    }
    let is_one = first.is_err() || has(&FILE) && has(&CLASS);
    Recognition::of_classes(Layout::METADATA, is_one.then_some(MetadataFiles { root, sources }))
}

/// Lines that are looked at to know what a file says.
const PROBES: usize = 32;

/// Parts of names of fields that may say something of classes or boxes.
const TELLING: [&str; 7] = ["label", "class", "categor", "target", "object", "annotation", "box"];

/// Whether `path` is a file of metadata that describes pictures, as captions do, and says nothing of classes or boxes.
pub(super) fn only_describes(path: &Path) -> bool {
    let is_called_so = ["metadata.jsonl", "metadata.csv"].into_iter().any(|name| path.ends_with(name));
    if !is_called_so {
        return false;
    }
    let Ok(records) = records(path, Some(PROBES)) else { return false };
    let fields: BTreeSet<&str> = records.iter().flat_map(|record| record.fields.keys().map(String::as_str)).collect();
    let tells = |field: &&str| TELLING.iter().any(|part| field.to_lowercase().contains(part));
    let columns: Vec<&str> = fields.into_iter().collect();
    FILE.iter().any(|name| columns.contains(name)) && !columns.iter().any(tells) && !has_box_sides(&columns)
}

/// The lines of `path`, or the first of them.
fn records(path: &Path, most: Option<usize>) -> Result<Vec<Record>> {
    let text = read_text(path, MAX_BYTES)?;
    let most = most.unwrap_or(usize::MAX);
    if path.extension().is_some_and(|e| e == "jsonl") {
        let lines = text.lines().zip(1..).filter(|(text, _)| !text.trim().is_empty()).take(most);
        let parse = |(text, line): (&str, u64)| match serde_json::from_str(text) {
            Ok(fields) => Ok(Record { line, fields }),
            // The column, but not the line, which is always the first.
            Err(error) => {
                let message = error.to_string();
                let message = message.split(" at line").next().unwrap_or_default();
                Err(at(path, line, format!("{message}, column {}", error.column())))
            }
        };
        return lines.map(parse).collect();
    }
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
    let header = reader.headers().map_err(|error| Error::data(path, error.to_string()))?.clone();
    let mut out = Vec::new();
    for record in reader.records().take(most) {
        let record = record.map_err(|error| Error::data(path, error.to_string()))?;
        let line = record.position().map_or(0, csv::Position::line);
        let filled = header.iter().zip(record.iter()).filter(|(_, value)| !value.trim().is_empty());
        let fields = filled.map(|(name, value)| (name.trim().to_owned(), value.trim().into())).collect();
        out.push(Record { line, fields });
    }
    Ok(out)
}

impl Record {
    fn file_name(&self, path: &Path) -> Result<&str> {
        let name = FILE.iter().find_map(|name| self.fields.get(*name)).and_then(Value::as_str);
        name.filter(|name| !name.is_empty()).ok_or_else(|| at(path, self.line, "no file_name"))
    }

    fn class(&self, path: &Path) -> Result<String> {
        let value = CLASS.iter().find_map(|name| self.fields.get(*name));
        let class = value.and_then(scalar).filter(|class| !class.is_empty());
        class.ok_or_else(|| {
            let message = match value {
                Some(Value::Array(_)) => "several labels of one picture, where one is expected",
                _ => "no label",
            };
            at(path, self.line, message)
        })
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// Files that say the class of each image.
struct MetadataFiles {
    root: PathBuf,
    sources: Vec<AnnotationSource>,
}

impl MetadataFiles {
    /// The rows of a file, with the parts that the first folders of paths mean where the file is for all.
    fn rows(&(split, ref path): &AnnotationSource) -> Result<Vec<ImageRow>> {
        let records = records(path, None)?;
        if records.is_empty() {
            return Err(Error::data(path, "it lists no images"));
        }
        let mut rows = Vec::with_capacity(records.len());
        for record in &records {
            let (file, label) = (record.file_name(path)?.to_owned(), record.class(path)?);
            rows.push(ImageRow { line: record.line, path: file, label, split, name: None });
        }
        if split.is_none() {
            let first = |row: &ImageRow| Some(row.path.split_once(['/', '\\'])?.0.to_owned());
            let folders: BTreeSet<String> = rows.iter().filter_map(first).collect();
            let meant = Split::of_names(folders.iter().map(String::as_str));
            let of =
                |folder: String| folders.iter().zip(&meant).find(|(name, _)| **name == folder).and_then(|(_, p)| *p);
            for row in &mut rows {
                row.split = first(row).and_then(of);
            }
        }
        Ok(rows)
    }
}

impl ClassFiles for MetadataFiles {
    fn open(&self) -> Result<LabeledSet> {
        let Self { root, sources } = self;
        let mut all = Vec::new();
        for (i, source) in sources.iter().enumerate() {
            if let Some((_, first)) = sources[..i].iter().find(|(split, _)| *split == source.0) {
                return Err(Error::data(&source.1, format!("a second one for a part beside {}", first.display())));
            }
            all.push((source, Self::rows(source)?));
        }
        let train = all.iter().flat_map(|(_, rows)| rows).filter(|row| row.split.is_none_or(|s| s == Split::Train));
        let names: BTreeSet<&str> = train.map(|row| row.label.as_str()).collect();
        let mut classes: Vec<String> = names.into_iter().map(str::to_owned).collect();
        sort_classes(&mut classes);
        let mut seen: HashMap<PathBuf, u64> = HashMap::new();
        let mut given: [Option<Vec<Sample>>; 3] = [None, None, None];
        let mut loose = Vec::new();
        for ((_, path), rows) in all {
            let folder = path.parent().unwrap_or(Path::new(""));
            for ImageRow { line, path: name, label, split, .. } in rows {
                let Some(label) = classes.iter().position(|class| *class == label) else {
                    return Err(at(path, line, format!("label '{label}' does not occur in train")));
                };
                let file = normal(&folder.join(&name));
                if let Some(first) = seen.insert(file.clone(), line) {
                    return Err(at(path, line, format!("{name} is listed already, in line {first}")));
                }
                let id = relative_id(&normal(root), &file);
                let sample = Sample { image: ImageSource::File(file), label: label as u32, id };
                match split {
                    Some(split) => given[split as usize].get_or_insert_with(Vec::new).push(sample),
                    None => loose.push((sample, path, line)),
                }
            }
        }
        if let Some((_, path, line)) = loose.first().filter(|_| given.iter().any(Option::is_some)) {
            return Err(at(path, *line, "no part is said of it, though there are parts"));
        }
        let loose = loose.into_iter().map(|(sample, ..)| sample).collect();
        let samples = if given.iter().all(Option::is_none) { Parts::Unsplit(loose) } else { parts(root, given)? };
        Ok(LabeledSet { classes, samples })
    }

    fn check(&self, check: &mut Checking<'_>) -> Vec<ListedImage> {
        let Self { sources, .. } = self;
        check.list_parts(sources, "file of metadata");
        if let [(None, file)] = &sources[..] {
            check.places.whole.clone_from(file);
        }
        let mut listed = Vec::new();
        for source in sources {
            text::check_file(&source.1, &mut check.out);
            let shared: Arc<Path> = source.1.as_path().into();
            // Paths count from the folder of their file, and only there may one be listed twice.
            let mut rows = ListedRows::default();
            match Self::rows(source) {
                Ok(all) => all.iter().for_each(|row| rows.add(row.split, &shared, row, &mut check.out)),
                Err(error) => check.out.refused(FindingKind::MalformedFile, &source.1, &error),
            }
            listed.extend(rows.listed);
        }
        listed
    }
}

fn read_boxes(source: &AnnotationSource) -> Result<DescribedSet> {
    let (_, path) = source;
    let folder = path.parent().unwrap_or(Path::new(""));
    let shared: Arc<Path> = path.as_path().into();
    let mut found = DescribedSet::default();
    for record in records(path, None)? {
        let place = Some(PlaceInFile::Line(record.line));
        let file: PathBuf = normal(&folder.join(record.file_name(path)?));
        let side = |name: &str| record.fields.get(name)?.as_f64().filter(|v| *v >= 1.).map(|v| v as usize);
        let declared = side("width").zip(side("height")).map(|(w, h)| [w, h]);
        let objects = OBJECTS.iter().find_map(|name| record.fields.get(*name)).unwrap_or(&Value::Null);
        let mut kept = Vec::new();
        for object in entries(objects).map_err(|message| at(path, record.line, message))? {
            match object {
                Ok((name, extent)) => {
                    kept.push(NamedObject {
                        name,
                        place,
                        extent: BoxExtent::Pixels(extent),
                        crowd: false,
                        shape: None,
                    });
                }
                Err(detail) => found.drop_object(path, place, detail),
            }
        }
        let source = shared.clone();
        found.pictures.push(DescribedPicture { path: file, declared, source, place, split: None, objects: kept });
    }
    Ok(found)
}

/// A category and a box, or what is wrong with them.
type ObjectEntry = Result<(String, [f64; 4]), String>;

/// The objects of an image: lists of boxes and of categories, or a list of objects.
fn entries(objects: &Value) -> Result<Vec<ObjectEntry>, String> {
    let field = |of: &Value, names: &[&str]| names.iter().find_map(|name| of.get(name).cloned());
    let entry = |bbox: &Value, category: Option<&Value>| -> ObjectEntry {
        let numbers: Option<Vec<f64>> =
            bbox.as_array().map(|all| all.iter().map(|v| v.as_f64().unwrap_or(f64::NAN)).collect());
        let extent = numbers.and_then(|numbers| <[f64; 4]>::try_from(numbers).ok());
        let extent = extent.ok_or("a bbox that is not four numbers")?;
        let name = category.and_then(scalar).filter(|name| !name.is_empty()).ok_or("an object without a category")?;
        Ok((name, extent))
    };
    match objects {
        Value::Null => Ok(Vec::new()),
        Value::Array(all) => Ok(all
            .iter()
            .map(|object| entry(&field(object, &BOXES).unwrap_or_default(), field(object, &CATEGORIES).as_ref()))
            .collect()),
        Value::Object(_) => {
            let list = |names: &[&str]| match field(objects, names) {
                Some(Value::Array(list)) => list,
                _ => Vec::new(),
            };
            let (boxes, categories) = (list(&BOXES), list(&CATEGORIES));
            if boxes.len() != categories.len() {
                return Err(format!("{} boxes and {} categories", boxes.len(), categories.len()));
            }
            Ok(boxes.iter().zip(&categories).map(|(bbox, category)| entry(bbox, Some(category))).collect())
        }
        _ => Err("objects that are neither an object nor a list".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Dataset;
    use crate::check::check;
    use crate::formats::testing::folder_with_images;

    fn set(files: &[(&str, &str)], images: &[&str]) -> tempfile::TempDir {
        folder_with_images(files, images, [20, 10])
    }

    #[test]
    fn the_file_says_the_classes_and_folders_the_parts() {
        let lines = |names: &[&str]| {
            let line = |(i, name): (usize, &&str)| format!("{{\"file_name\": \"{name}\", \"label\": {}}}\n", i % 2);
            names.iter().enumerate().map(line).collect::<String>()
        };
        let table = "file_name,width,label\nx/1.png,20,0\nx/2.png,20,1\nx/3.png,20,0\nx/4.png,20,1\n";
        let names = ["x/1.png", "x/2.png", "x/3.png", "x/4.png"];
        let (train, test) = (names.map(|n| format!("train/{n}")), names.map(|n| format!("test/{n}")));
        let all: Vec<&str> = train.iter().chain(&test).map(String::as_str).collect();
        for files in [
            vec![("train/metadata.csv", table.to_owned()), ("test/metadata.csv", table.to_owned())],
            vec![("train/metadata.jsonl", lines(&names)), ("test/metadata.jsonl", lines(&names))],
            vec![("metadata.jsonl", lines(&all))],
        ] {
            let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
            let dir = set(&files, &all);
            let data = Dataset::open(dir.path(), 1).unwrap();
            assert_eq!((data.layout, &data.classes[..]), (Layout::METADATA, &["0".to_owned(), "1".into()][..]));
            assert_eq!((data.test.len(), data.test[1].label), (4, 1));
            assert_eq!(data.test[0].id, "test/x/1.png");
            let report = check(dir.path(), false, &mut |_, _| {}).unwrap();
            assert_eq!((report.layout, report.images, &report.findings[..]), (Some("metadata"), 8, &[][..]));
        }
    }

    #[test]
    fn a_file_without_classes_is_passed_by() {
        let dir = set(
            &[("metadata.csv", "file_name,text\na/1.png,a photo\n")],
            &["a/1.png", "a/2.png", "b/1.png", "b/2.png", "b/3.png", "a/3.png"],
        );
        assert_eq!(Dataset::open(dir.path(), 1).unwrap().layout, Layout::FOLDER);
        // What may be a label is not.
        fs::write(dir.path().join("metadata.csv"), "file_name,text,image_label\na/1.png,a photo,x\n").unwrap();
        assert!(Dataset::open(dir.path(), 1).unwrap_err().to_string().contains("metadata.csv: "));
    }

    #[test]
    fn faults_name_file_and_line() {
        let image = ["a.png", "b.png"];
        for (text, expected) in [
            ("{\"file_name\": \"a.png\", \"label\": 1}\n{\"file_name\": 3, \"label\": 1}", "line 2: no file_name"),
            ("{\"file_name\": \"a.png\", \"label\": 1}\n\n{\"file_name\": \"b.png\"}", "line 3: no label"),
            ("{\"file_name\": \"a.png\", \"label\": [1, 2]}", "line 1: several labels of one picture"),
            (
                "{\"file_name\": \"a.png\", \"label\": 1}\n{\"file_name\": ",
                "line 2: EOF while parsing a value, column 14",
            ),
            (
                "{\"file_name\": \"a.png\", \"label\": 1}\n{\"file_name\": \"./a.png\", \"label\": 1}",
                "line 2: ./a.png is listed already, in line 1",
            ),
        ] {
            let dir = set(&[("metadata.jsonl", text)], &image);
            let message = Dataset::open(dir.path(), 1).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
            assert!(check(dir.path(), true, &mut |_, _| {}).unwrap().errors > 0, "{text}");
        }
    }
}
