//! Tables of the Hugging Face hub in Parquet's form: a column of pictures, and beside it one of classes, or lists of boxes.
//!
//! Files are `data/train-00000-of-00002.parquet`, `default/train/0000.parquet` or the like. Pictures are read where they are,
//! a page at a time. What classes are called stands in what the library `datasets` adds to a file (`features.rs`). They are put
//! in the order that they would have as folders, so that a data set in both forms is the same one. Boxes are
//! `[left, top, width, height]` in pixels, as the library's guides have them.

mod boxes;
mod features;
mod pages;
mod table;
#[cfg(test)]
mod tests;
mod thrift;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde_json::Map;

use self::boxes::BoxColumns;
use self::features::HubFeatures;
use self::table::{KeptPages, ParquetTable};
use super::samples::{ShardSample, ShardSamples};
use super::shards::{ClassShards, HIDDEN, ShardContent, ShardFile, ShardPicture, Shards};
use super::{Candidate, Format, Layout, Recognition, Recognized};
use crate::check::FindingKind;
use crate::container::{Container, ImageSource};
use vpt_base::{Error, Result};

impl Layout {
    /// Tables with pictures in them.
    pub const PARQUET: Self = Self::new("parquet", "Parquet");
}

/// Tables with pictures in them.
pub(super) const FORMAT: Format = Format { has_boxes: true, recognize };

/// What columns of pictures and of classes are called, in the order in which they are preferred.
const PICTURES: [&str; 5] = ["image", "img", "picture", "pixel_values", "jpg"];
const CLASSES: [&str; 8] = ["label", "labels", "class", "category", "target", "cls", "fine_label", "label_name"];

fn recognize(candidate: &Candidate<'_>) -> Result<Recognition> {
    let Some(shards) = Shards::find(candidate.path, "parquet", starts_like_a_table)? else {
        return Ok(Recognition::No);
    };
    let Some(first) = shards.used().next() else { return Ok(Recognition::No) };
    let table = ParquetTable::open(&first.path)?;
    let Some(picture) = PictureColumn::of(&table)? else {
        // Facts about pictures that lie elsewhere.
        return Ok(Recognition::No);
    };
    let layout = Layout::PARQUET;
    if BoxColumns::of(&table).is_some() {
        return Ok(Recognition::of_boxes(layout, Some(boxes::BoxTables(shards))));
    }
    let label = ClassColumn::of(&table);
    let kept = Arc::default();
    let files = ClassShards { shards, read: Box::new(move |path| read(path, &kept)) };
    let found = Recognized { layout, classes: Some(Box::new(files)), boxes: None };
    drop((picture, table));
    Ok(if label.is_ok() { Recognition::Yes(found) } else { Recognition::Likely(found) })
}

fn starts_like_a_table(path: &Path) -> bool {
    let mut start = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *b"PAR1"
}

/// The column of pictures: the bytes of files, and what these were called.
struct PictureColumn {
    bytes: usize,
    paths: Option<usize>,
}

impl PictureColumn {
    /// The column of `table`; none if there is none.
    ///
    /// # Errors
    /// There are several, and none of a usual name.
    fn of(table: &ParquetTable) -> Result<Option<Self>> {
        let is_flat = |names: &[&str]| table.columns().any(|(parts, many)| !many && parts.iter().eq(names.iter()));
        let structs: BTreeSet<&str> = table
            .columns()
            .filter_map(|(parts, many)| match parts {
                [name, field] if field == "bytes" && !many => Some(name.as_str()),
                _ => None,
            })
            .filter(|name| table.column(&[*name, "bytes"]).is_some_and(|column| table.is_bytes(column)))
            .collect();
        let usual = PICTURES.into_iter().find(|name| structs.contains(name));
        let name = match (usual, structs.len()) {
            (Some(name), _) => Some(name),
            (None, 1) => structs.first().copied(),
            (None, 0) => None,
            (None, _) => {
                let names = structs.into_iter().collect::<Vec<_>>().join(", ");
                let message = format!("several columns of pictures ({names}), none of which is called image");
                return Err(Error::data(&table.path, message));
            }
        };
        if let Some(bytes) = name.and_then(|name| table.column(&[name, "bytes"])) {
            let paths = name.and_then(|name| table.column(&[name, "path"]).filter(|_| is_flat(&[name, "path"])));
            return Ok(Some(Self { bytes, paths: paths.filter(|column| table.is_bytes(*column)) }));
        }
        // Bytes alone, as other libraries than `datasets` write them; a column of that name may also hold paths.
        let plain = PICTURES.into_iter().find(|name| is_flat(&[*name])).and_then(|name| table.column(&[name]));
        Ok(plain.filter(|column| table.is_picture(*column)).map(|bytes| Self { bytes, paths: None }))
    }
}

/// The column of classes, and what else could be one.
struct ClassColumn {
    column: usize,
    name: String,
    others: Vec<String>,
}

impl ClassColumn {
    /// The column of `table`.
    ///
    /// # Errors
    /// There is none; the columns are named.
    fn of(table: &ParquetTable) -> Result<Self> {
        let features = HubFeatures::parse(table.remark("huggingface"));
        let declared = features.class_columns();
        let flat: Vec<(usize, &str)> = table
            .columns()
            .enumerate()
            .filter_map(|(column, (parts, many))| match parts {
                [name] if !many => Some((column, name.as_str())),
                _ => None,
            })
            .filter(|(column, _)| table.is_bytes(*column) || table.is_integer(*column))
            .collect();
        let find = |wanted: &str| flat.iter().find(|(_, name)| *name == wanted);
        let usual = CLASSES.iter().copied();
        let known = usual.clone().filter(|name| declared.contains(name)).chain(declared.iter().copied());
        let found = known.chain(usual).find_map(find);
        let Some(&(column, name)) = found else {
            let mut names: Vec<&str> = table.columns().filter_map(|(parts, _)| Some(parts.first()?.as_str())).collect();
            names.dedup();
            let message =
                format!("no column of one class a picture, such as label (the columns are: {})", names.join(", "));
            return Err(Error::data(&table.path, message));
        };
        let others = declared.iter().filter(|other| **other != name).map(|other| (*other).to_owned()).collect();
        Ok(Self { column, name: name.to_owned(), others })
    }
}

/// The pictures of the file `path` with their classes.
fn read(path: &Path, kept: &Arc<KeptPages>) -> Result<ShardContent> {
    let table = Arc::new(ParquetTable::open(path)?);
    let ClassColumn { column, name, others } = ClassColumn::of(&table)?;
    let names = HubFeatures::parse(table.remark("huggingface")).class_names(&[&name]);
    let labels = table.texts(column)?;
    let container = pictures(&table, kept)?;
    let at = |row: usize, message: String| Error::data(path, format!("row {row}, {name}: {message}"));
    let mut known: HashMap<String, Option<Arc<str>>> = HashMap::new();
    let mut pictures = Vec::with_capacity(labels.len());
    for (row, label) in labels.into_iter().enumerate() {
        let label = label.ok_or_else(|| at(row, "no class".into()))?;
        let label = if let Some(label) = known.get(&label) {
            label.clone()
        } else {
            let text = match &names {
                _ if label == HIDDEN => None,
                None => Some(label.trim().to_owned()).filter(|text| !text.is_empty()),
                Some(names) => match label.parse::<usize>() {
                    // A column of texts needs no names.
                    Err(_) => Some(label.clone()),
                    Ok(number) => match names.get(number) {
                        Some(name) => Some(name.clone()),
                        None => return Err(at(row, format!("class {number} of {}", names.len()))),
                    },
                },
            };
            let text = text.map(Arc::from);
            known.insert(label, text.clone());
            text
        };
        pictures.push(ShardPicture { image: ImageSource::Member { container: container.clone(), index: row }, label });
    }
    let note =
        |other| (FindingKind::UnsupportedFile, format!("{other} is another column of classes, which is not used"));
    Ok(ShardContent { pictures, notes: others.into_iter().map(note).collect() })
}

/// What columns of captions, of links and of names are called.
const CAPTIONS: [&str; 5] = ["caption", "text", "TEXT", "txt", "sentence"];
const KEYS: [&str; 3] = ["key", "__key__", "image_path"];

/// The pictures of the table `path` in the order of its rows, with captions and what else stands in plain columns beside them, whatever
/// their classes. Rows are called as their column of names says, else as their pictures are.
pub(super) fn samples(path: &Path) -> Result<ShardSamples> {
    let table = Arc::new(ParquetTable::open(path)?);
    let container = pictures(&table, &Arc::default())?;
    let flat: Vec<(usize, String)> = table
        .columns()
        .enumerate()
        .filter_map(|(column, (parts, many))| match parts {
            [name] if !many => Some((column, name.clone())),
            _ => None,
        })
        .collect();
    let text_of = |names: &[&str]| {
        let found =
            names.iter().find_map(|name| flat.iter().find(|(column, own)| own == name && table.is_text(*column)));
        found.map(|(column, name)| table.texts(*column).map(|texts| (name.as_str(), texts))).transpose()
    };
    let (captions, keys) = (text_of(&CAPTIONS)?, text_of(&KEYS)?);
    let used = [captions.as_ref().map(|(name, _)| *name), keys.as_ref().map(|(name, _)| *name)];
    let mut rows = vec![Map::new(); table.rows()];
    for (column, name) in flat.iter().filter(|(_, name)| !used.contains(&Some(name.as_str()))) {
        for (facts, value) in rows.iter_mut().zip(table.values(*column)?.into_iter().flatten()) {
            facts.insert(name.clone(), value);
        }
    }
    let cell = |column: &Option<(&str, Vec<Option<String>>)>, row: usize| column.as_ref()?.1.get(row)?.clone();
    let sample = |(row, facts)| ShardSample {
        key: cell(&keys, row).unwrap_or_else(|| container.name(row)),
        image: ImageSource::Member { container: container.clone(), index: row },
        caption: cell(&captions, row),
        facts,
    };
    Ok(ShardSamples { samples: rows.into_iter().enumerate().map(sample).collect(), ..ShardSamples::default() })
}

/// The pictures of `table`.
fn pictures(table: &Arc<ParquetTable>, kept: &Arc<KeptPages>) -> Result<Arc<dyn Container>> {
    let column = PictureColumn::of(table)?.ok_or_else(|| Error::data(&table.path, "no column of pictures"))?;
    let paths = column.paths.map(|column| table.texts(column)).transpose()?;
    Ok(Arc::new(table.pictures(column.bytes, paths, kept)?))
}
