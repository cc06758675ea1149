//! Names of images and what is known or predicted of each: as a table in Parquet's form, as clip-retrieval has it, or as lines of JSON.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use vpt_base::{Error, Result};
use vpt_data::ShardSample;

/// Most facts that become columns of a table.
const MAX_COLUMNS: usize = 256;

/// Where a sample says nothing.
static NOTHING: Value = Value::Null;

/// What is known of `sample` under the names that its own name and caption leave free.
pub(crate) fn facts<'a>(sample: &'a ShardSample, own: [&'a str; 2]) -> impl Iterator<Item = (&'a String, &'a Value)> {
    sample.facts.iter().filter(move |(name, _)| !own.contains(&name.as_str()))
}

/// A line of JSON with the name of `sample`, its caption, and what is known of it.
pub(crate) fn object(sample: &ShardSample) -> Map<String, Value> {
    let mut all = Map::new();
    all.insert("key".to_owned(), sample.key.clone().into());
    if let Some(caption) = &sample.caption {
        all.insert("caption".to_owned(), caption.clone().into());
    }
    all.extend(facts(sample, ["key", "caption"]).map(|(name, value)| (name.clone(), value.clone())));
    all
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CellKind {
    Flag,
    Integer,
    Number,
    Text,
}

/// A column of a table, null where a sample says nothing.
struct TableColumn<'a> {
    name: &'a str,
    kind: CellKind,
    cells: Vec<&'a Value>,
}

impl CellKind {
    /// The narrowest that all of `cells` fits into.
    fn narrowest(cells: &[&Value]) -> Self {
        let all = |fits: fn(&Value) -> bool| {
            let mut there = cells.iter().filter(|cell| !cell.is_null()).peekable();
            there.peek().is_some() && there.all(|cell| fits(cell))
        };
        if all(Value::is_boolean) {
            Self::Flag
        } else if all(Value::is_i64) {
            Self::Integer
        } else if all(Value::is_number) {
            Self::Number
        } else {
            Self::Text
        }
    }
}

/// Writes the table of `samples` to the new file `path`: `image_path` (the sample's name), `caption`, and a column for each fact. What
/// has lists or objects in it is their JSON. Says what was left out.
///
/// # Errors
/// It cannot be written.
pub(crate) fn write_table(path: &Path, samples: &[ShardSample]) -> Result<Option<String>> {
    let keys: Vec<Value> = samples.iter().map(|sample| sample.key.clone().into()).collect();
    let captions: Vec<Value> =
        samples.iter().map(|sample| sample.caption.clone().map_or(Value::Null, Value::from)).collect();
    let mut columns = vec![
        TableColumn { name: "image_path", kind: CellKind::Text, cells: keys.iter().collect() },
        TableColumn { name: "caption", kind: CellKind::Text, cells: captions.iter().collect() },
    ];
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut left_out = 0;
    for (row, sample) in samples.iter().enumerate() {
        for (name, value) in facts(sample, ["image_path", "caption"]) {
            let place = match places.get(name.as_str()) {
                Some(&place) => place,
                None if columns.len() < MAX_COLUMNS && !name.is_empty() => {
                    places.insert(name, columns.len());
                    columns.push(TableColumn { name, kind: CellKind::Text, cells: vec![&NOTHING; samples.len()] });
                    columns.len() - 1
                }
                None => {
                    left_out += 1;
                    continue;
                }
            };
            columns[place].cells[row] = value;
        }
    }
    for column in &mut columns[2..] {
        column.kind = CellKind::narrowest(&column.cells);
    }
    write_columns(path, &columns).map_err(|error| Error::file(path, error.to_string()))?;
    Ok((left_out > 0).then(|| format!("{left_out} facts beyond the first {MAX_COLUMNS} columns are left out")))
}

/// Writes `records` to the new file `path` as a table of the columns given by name and kind. What has lists or objects in it is their JSON.
///
/// # Errors
/// It cannot be written.
pub(crate) fn write_records(path: &Path, records: &[Map<String, Value>], columns: &[(&str, CellKind)]) -> Result<()> {
    let column = |&(name, kind)| {
        let cells = records.iter().map(|record| record.get(name).unwrap_or(&NOTHING)).collect();
        TableColumn { name, kind, cells }
    };
    let columns: Vec<TableColumn<'_>> = columns.iter().map(column).collect();
    write_columns(path, &columns).map_err(|error| Error::file(path, error.to_string()))
}

fn write_columns(path: &Path, columns: &[TableColumn<'_>]) -> Result<(), ParquetError> {
    let field = |column: &TableColumn<'_>| {
        let physical = match column.kind {
            CellKind::Flag => Physical::BOOLEAN,
            CellKind::Integer => Physical::INT64,
            CellKind::Number => Physical::DOUBLE,
            CellKind::Text => Physical::BYTE_ARRAY,
        };
        let field = Type::primitive_type_builder(column.name, physical).with_repetition(Repetition::OPTIONAL);
        let is_text = column.kind == CellKind::Text;
        let field = field.with_logical_type(is_text.then_some(LogicalType::String));
        let field = field.with_converted_type(if is_text { ConvertedType::UTF8 } else { ConvertedType::NONE });
        field.build().map(Arc::new)
    };
    let fields = columns.iter().map(field).collect::<Result<Vec<_>, _>>()?;
    let schema = Arc::new(Type::group_type_builder("schema").with_fields(fields).build()?);
    // Without the version of the library, so that bytes stay the same.
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).set_created_by("vpt".to_owned());
    let mut writer = SerializedFileWriter::new(File::create(path)?, schema, Arc::new(properties.build()))?;
    let mut group = writer.next_row_group()?;
    for column in columns {
        let Some(mut out) = group.next_column()? else { break };
        let there: Vec<i16> = column.cells.iter().map(|cell| i16::from(!cell.is_null())).collect();
        let cells = column.cells.iter().filter(|cell| !cell.is_null());
        match out.untyped() {
            ColumnWriter::BoolColumnWriter(out) => {
                out.write_batch(&cells.filter_map(|cell| cell.as_bool()).collect::<Vec<_>>(), Some(&there), None)?
            }
            ColumnWriter::Int64ColumnWriter(out) => {
                out.write_batch(&cells.filter_map(|cell| cell.as_i64()).collect::<Vec<_>>(), Some(&there), None)?
            }
            ColumnWriter::DoubleColumnWriter(out) => {
                out.write_batch(&cells.filter_map(|cell| cell.as_f64()).collect::<Vec<_>>(), Some(&there), None)?
            }
            ColumnWriter::ByteArrayColumnWriter(out) => {
                let text = |cell: &&Value| match cell {
                    Value::String(text) => ByteArray::from(text.as_str()),
                    other => ByteArray::from(other.to_string().into_bytes()),
                };
                out.write_batch(&cells.map(text).collect::<Vec<_>>(), Some(&there), None)?
            }
            _ => 0,
        };
        out.close()?;
    }
    group.close()?;
    writer.into_inner()?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use serde_json::json;
    use vpt_data::ImageSource;

    fn sample(key: &str, caption: Option<&str>, facts: &Value) -> ShardSample {
        ShardSample {
            key: key.to_owned(),
            image: ImageSource::File("x.png".into()),
            caption: caption.map(str::to_owned),
            facts: facts.as_object().unwrap().clone(),
        }
    }

    #[test]
    fn facts_become_columns_of_the_narrowest_kind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.parquet");
        let samples = [
            sample("a", Some("a cat"), &json!({"url": "http://x", "width": 8, "score": 0.5, "caption": "other"})),
            sample("b", None, &json!({"width": null, "score": 1, "nsfw": false, "exif": {"A": [1]}, "url": 3})),
        ];
        assert_eq!(write_table(&path, &samples).unwrap(), None);
        let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
        let rows: Vec<String> = reader.get_row_iter(None).unwrap().map(|row| row.unwrap().to_string()).collect();
        assert_eq!(
            rows,
            [
                r#"{image_path: "a", caption: "a cat", url: "http://x", width: 8, score: 0.5, nsfw: null, exif: null}"#,
                r#"{image_path: "b", caption: null, url: "3", width: null, score: 1.0, nsfw: false, exif: "{"A":[1]}"}"#,
            ]
        );
        let bytes = std::fs::read(&path).unwrap();
        write_table(&path, &samples).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        write_table(&path, &[]).unwrap();
        assert_eq!(
            SerializedFileReader::new(File::open(&path).unwrap()).unwrap().metadata().file_metadata().num_rows(),
            0
        );
    }

    #[test]
    fn columns_have_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let many: Map<String, Value> = (0..300).map(|i| (format!("f{i}"), json!(i))).collect();
        let said = write_table(&dir.path().join("m"), &[sample("a", None, &Value::Object(many))]).unwrap().unwrap();
        assert!(said.starts_with("46 facts beyond"), "{said}");
    }

    #[test]
    fn a_line_has_name_caption_and_facts() {
        let line = Value::Object(object(&sample("a", Some("c"), &json!({"key": 1, "url": "u"}))));
        assert_eq!(line.to_string(), r#"{"key":"a","caption":"c","url":"u"}"#);
    }
}
