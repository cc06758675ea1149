//! Tables of boxes: a line an object, with the image, the class and the corners. Roboflow's `_annotations.csv`, the
//! `train_labels.csv` of TensorFlow's tutorials, Open Images' `train-annotations-bbox.csv`.
//!
//! Corners are edges counted from 0, in pixels; in fractions of the image if none is above 1. Open Images names images
//! without ending and classes by codes, which the table of class descriptions beside it explains; its groups of objects are
//! crowds.

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::named_boxes::{
    AnnotationSource, DescribedPicture, DescribedSet, NamedBoxes, NamedObject, PictureFolders, alone, by_stem, called,
    with_parts,
};
use super::text_file::first_bytes;
use super::{Candidate, Format, Layout, Recognition};
use crate::Split;
use crate::boxes::{BoxExtent, PlaceInFile, Problem, ProblemKind, Remedy, normal};
use crate::open::entries;
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

impl Layout {
    /// Tables of boxes.
    pub const BOX_TABLE: Self = Self::new("box-csv", "CSV");
}

/// Tables of boxes.
pub(super) const FORMAT: Format =
    Format { has_boxes: true, recognize: |candidate| Ok(Recognition::of_boxes(Layout::BOX_TABLE, find(candidate))) };

/// Longest table, in bytes. Open Images' is 1.4 gigabytes.
const MAX_BYTES: u64 = 1 << 32;

/// Longest list of classes.
const MAX_LIST_BYTES: u64 = 1 << 24;

/// Names of columns, in lower case and without what stands between words.
const IMAGE: [&str; 9] = ["filename", "file", "image", "imagepath", "img", "path", "filepath", "imagename", "imageid"];
const CLASS: [&str; 8] = ["class", "label", "classname", "labelname", "category", "categoryname", "name", "classid"];
const CORNERS: [&[&str]; 4] = [
    &["xmin", "x1", "left", "bboxx1", "x0"],
    &["ymin", "y1", "top", "bboxy1", "y0"],
    &["xmax", "x2", "right", "bboxx2"],
    &["ymax", "y2", "bottom", "bboxy2"],
];
const SPLIT: [&str; 4] = ["split", "set", "subset", "part"];

/// Where columns are.
struct BoxColumnPlaces {
    image: usize,
    class: usize,
    corners: [usize; 4],
    width: Option<usize>,
    height: Option<usize>,
    split: Option<usize>,
    group: Option<usize>,
    /// Whether images are named as Open Images does: without an ending.
    are_ids: bool,
}

impl BoxColumnPlaces {
    fn of(header: &csv::StringRecord) -> Option<Self> {
        let plain = |name: &str| -> String {
            name.trim_start_matches('\u{feff}')
                .chars()
                .filter(|c| c.is_alphanumeric())
                .flat_map(char::to_lowercase)
                .collect()
        };
        let header: Vec<String> = header.iter().map(plain).collect();
        let find = |names: &[&str]| names.iter().find_map(|name| header.iter().position(|column| column == name));
        let mut corners = [0; 4];
        for (corner, names) in corners.iter_mut().zip(CORNERS) {
            *corner = find(names)?;
        }
        let image = find(&IMAGE)?;
        Some(Self {
            image,
            class: find(&CLASS)?,
            corners,
            width: find(&["width", "imagewidth"]),
            height: find(&["height", "imageheight"]),
            split: find(&SPLIT),
            group: find(&["isgroupof", "iscrowd"]),
            are_ids: header[image] == "imageid",
        })
    }
}

fn find(candidate: &Candidate<'_>) -> Option<NamedBoxes> {
    let Candidate { path, is_folder } = *candidate;
    let (root, sources) = if is_folder {
        let named = called(path, "_annotations.csv");
        let mut sources: Vec<AnnotationSource> = named.into_iter().filter(|(_, file)| is_table(file)).collect();
        for folder in ["", "data", "annotations", "labels", "csv"] {
            if sources.is_empty() {
                sources = tables_in(&path.join(folder));
            }
        }
        if sources.is_empty() {
            // FiftyOne's form of Open Images: a folder a part, with the table in its labels.
            sources = ["labels/detections.csv", "labels/annotations.csv"]
                .into_iter()
                .map(|name| called(path, name).into_iter().filter(|(_, file)| is_table(file)).collect::<Vec<_>>())
                .find(|found| !found.is_empty())
                .unwrap_or_default();
        }
        (path, sources)
    } else {
        (path.parent().unwrap_or(Path::new("")), alone(path, is_table(path)))
    };
    NamedBoxes::found(root, sources, read).map(NamedBoxes::of_texts)
}

/// The tables of boxes in `folder`.
fn tables_in(folder: &Path) -> Vec<AnnotationSource> {
    let all = entries(folder).unwrap_or_default().into_iter().filter(|(_, path)| is_table(path));
    with_parts(all.filter_map(|(name, path)| Some((name.rsplit_once('.')?.0.to_owned(), path))).collect())
}

/// Whether `path` is a table whose header names corners.
fn is_table(path: &Path) -> bool {
    is_csv(path) && path.is_file() && {
        let start = first_bytes(path, 4096).unwrap_or_default();
        let line = start.split(|&b| b == b'\n').next().unwrap_or_default();
        reader(path, line.to_vec())
            .records()
            .next()
            .and_then(Result::ok)
            .is_some_and(|line| BoxColumnPlaces::of(&line).is_some())
    }
}

fn is_csv(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv") || e.eq_ignore_ascii_case("tsv"))
}

fn reader(path: &Path, bytes: Vec<u8>) -> csv::Reader<Cursor<Vec<u8>>> {
    let first = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
    let delimiter = match first {
        _ if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv")) => b'\t',
        line if !line.contains(&b',') && line.contains(&b';') => b';',
        _ => b',',
    };
    let mut builder = csv::ReaderBuilder::new();
    builder.has_headers(false).flexible(true).delimiter(delimiter).from_reader(Cursor::new(bytes))
}

/// A line of a table.
struct BoxRow {
    line: u64,
    class: String,
    /// Left, top, right, bottom.
    corners: [f64; 4],
    crowd: bool,
}

/// The lines about an image.
struct ImageRows {
    line: u64,
    declared: Option<[usize; 2]>,
    split: Option<Split>,
    rows: Vec<BoxRow>,
}

fn read(root: &Path, source: &AnnotationSource) -> Result<DescribedSet> {
    let (_, path) = source;
    let bytes = read_limited(path, MAX_BYTES)?;
    let mut reader = reader(path, bytes);
    let mut records = reader.records();
    let broken = |error: csv::Error| match error.kind() {
        csv::ErrorKind::Utf8 { pos, .. } => {
            Error::data(path, format!("line {}: not valid UTF-8", pos.as_ref().map_or(0, csv::Position::line)))
        }
        _ => Error::data(path, error.to_string()),
    };
    let header = records.next().transpose().map_err(broken)?;
    let columns =
        header.as_ref().and_then(BoxColumnPlaces::of).ok_or_else(|| Error::data(path, "no header with corners"))?;
    let (mut images, mut problems): (BTreeMap<String, ImageRows>, Vec<Problem>) = (BTreeMap::new(), Vec::new());
    for record in records {
        let record = record.map_err(broken)?;
        let line = record.position().map_or(0, csv::Position::line);
        let mut lose = |detail: String| {
            let place = Some(PlaceInFile::Line(line));
            let (kind, remedy) = (ProblemKind::UnreadableObject, Remedy::ObjectDropped);
            problems.push(Problem { kind, remedy, file: path.clone(), place, detail });
        };
        let field = |column: usize| record.get(column).map(str::trim).filter(|value| !value.is_empty());
        let Some(image) = field(columns.image) else {
            lose("no image".into());
            continue;
        };
        let side = |column: Option<usize>| field(column?)?.parse::<f64>().ok().filter(|v| *v >= 1.).map(|v| v as usize);
        let split = match columns.split.and_then(field) {
            Some(name) => Some(Split::from_name(name).ok_or_else(|| {
                Error::data(path, format!("line {line}: split '{name}' is none of train, val and test"))
            })?),
            None => None,
        };
        let entry = images.entry(image.to_owned()).or_insert_with(|| ImageRows {
            line,
            declared: side(columns.width).zip(side(columns.height)).map(|(w, h)| [w, h]),
            split,
            rows: Vec::new(),
        });
        let values = columns.corners.map(field);
        if values.iter().all(Option::is_none) {
            // Known to hold nothing.
            continue;
        }
        let numbers = values.map(|value| value.and_then(|value| value.parse::<f64>().ok()));
        let [Some(left), Some(top), Some(right), Some(bottom)] = numbers else {
            lose("it has no four numbers as corners".into());
            continue;
        };
        let Some(class) = field(columns.class) else {
            lose("no class".into());
            continue;
        };
        let crowd = columns.group.and_then(field).is_some_and(|flag| flag == "1" || flag.eq_ignore_ascii_case("true"));
        entry.rows.push(BoxRow { line, class: class.to_owned(), corners: [left, top, right, bottom], crowd });
    }
    if images.is_empty() {
        return Err(Error::data(path, "the table lists no images"));
    }
    let are_fractions = are_fractions(&images);
    let names = if columns.are_ids { descriptions(root, path)? } else { HashMap::new() };
    let place = places(root, source, &columns, &images, &mut problems)?;
    let shared: Arc<Path> = path.as_path().into();
    let mut pictures = Vec::with_capacity(images.len());
    for (image, ImageRows { line, declared, split, rows }) in images {
        let Some(file) = place(&image) else { continue };
        let object = |BoxRow { line, class, corners, crowd }: BoxRow| {
            let [left, top, right, bottom] = corners;
            let extent = [left, top, right - left, bottom - top];
            let extent = if are_fractions { BoxExtent::Fractions(extent) } else { BoxExtent::Pixels(extent) };
            let name = names.get(&class).cloned().unwrap_or(class);
            NamedObject { name, place: Some(PlaceInFile::Line(line)), extent, crowd, shape: None }
        };
        let objects = rows.into_iter().map(object).collect();
        let place = Some(PlaceInFile::Line(line));
        pictures.push(DescribedPicture { path: file, declared, source: shared.clone(), place, split, objects });
    }
    Ok(DescribedSet { pictures, problems, names: None })
}

/// Whether corners are fractions: none is above 1, and one is between.
fn are_fractions(images: &BTreeMap<String, ImageRows>) -> bool {
    let corners = || images.values().flat_map(|image| &image.rows).flat_map(|row| row.corners);
    corners().all(|v| v.is_nan() || v <= 1.) && corners().any(|v| v > 0. && v < 1.)
}

/// Finds the file of an image; none if it is passed over.
type Find = Box<dyn Fn(&str) -> Option<PathBuf>>;

fn places(
    root: &Path,
    source: &AnnotationSource,
    columns: &BoxColumnPlaces,
    images: &BTreeMap<String, ImageRows>,
    problems: &mut Vec<Problem>,
) -> Result<Find> {
    let (_, path) = source;
    let folders = PictureFolders::of(root, source);
    if !columns.are_ids {
        let folder = folders.best(path, &images.keys().map(String::as_str))?;
        return Ok(Box::new(move |image| Some(normal(&folder.join(image)))));
    }
    let first: Vec<String> =
        images.keys().flat_map(|id| ["jpg", "png", "jpeg"].map(|end| format!("{id}.{end}"))).collect();
    let folder = folders.best(path, &first.iter().map(String::as_str)).or_else(|error| {
        // Most of what a table lists may not have been fetched.
        let all = [root.to_path_buf(), root.join("images"), root.join("data")];
        let holds =
            |folder: &PathBuf| by_stem(folder).is_ok_and(|found| images.keys().any(|id| found.contains_key(id)));
        all.into_iter().find(holds).ok_or(error)
    })?;
    let there = by_stem(&folder)?;
    let missing = images.keys().filter(|id| !there.contains_key(*id)).count();
    if missing > 0 {
        problems.push(Problem {
            kind: ProblemKind::MissingImage,
            remedy: Remedy::ImageDropped,
            file: path.clone(),
            place: None,
            detail: format!("{missing} of the {} images that it lists are not in {}", images.len(), folder.display()),
        });
    }
    Ok(Box::new(move |id| there.get(id).cloned()))
}

/// What codes of classes mean, by the tables of class descriptions beside the table `path` and in `root`.
fn descriptions(root: &Path, path: &Path) -> Result<HashMap<String, String>> {
    let beside = path.parent().unwrap_or(root);
    let mut folders = vec![beside.to_path_buf(), root.to_path_buf(), root.join("metadata")];
    folders.extend(beside.parent().map(|above| above.join("metadata")));
    let is_one = |name: &str| {
        let name = name.to_lowercase();
        is_csv(Path::new(&name)) && (name.contains("class-descriptions") || name == "classes.csv")
    };
    for folder in folders {
        let Some((_, file)) = entries(&folder).unwrap_or_default().into_iter().find(|(name, _)| is_one(name)) else {
            continue;
        };
        let mut out = HashMap::new();
        for record in reader(&file, read_limited(&file, MAX_LIST_BYTES)?).records() {
            let record = record.map_err(|error| Error::data(&file, error.to_string()))?;
            if let (Some(code), Some(name)) = (record.get(0), record.get(1)) {
                out.insert(code.trim().to_owned(), name.trim().to_owned());
            }
        }
        return Ok(out);
    }
    Ok(HashMap::new())
}
