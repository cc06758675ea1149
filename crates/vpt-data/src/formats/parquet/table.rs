//! A table on disk: its columns, the values of those that are read whole, and the pictures, which are read a page at a time.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use parquet::basic::{ConvertedType, Type as Physical};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int32Type, Int64Type};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::page_index::offset_index::PageLocation;
use parquet::file::serialized_reader::SerializedPageReader;
use serde_json::Value;

use super::pages::{self, Page};
use super::thrift;
use crate::container::{Container, Stored};
use vpt_base::contain::contain;
use vpt_base::{Error, Result};
use vpt_image::decode::{format_of, has_image_extension};

/// Rows that are read at a time.
const BATCH: usize = 1 << 13;

/// Bytes of the file that a row takes at least. A picture takes more, even one that the table holds many times.
const MIN_ROW_BYTES: u64 = 4;

/// Bytes of pictures that are kept for the next ones of their pages.
const KEPT_BYTES: usize = 1 << 28;

/// A table.
pub(super) struct ParquetTable {
    pub(super) path: PathBuf,
    meta: ParquetMetaData,
}

/// A row of a column of lists: the values in it; none where there is none. Lists within the list are told by `starts`.
pub(super) struct ListRow<T> {
    /// Values in their order.
    pub(super) values: Vec<T>,
    /// Positions in `values` at which an entry of the outer list begins.
    pub(super) starts: Vec<usize>,
}

impl ParquetTable {
    /// The table in the file `path`; its columns are not read yet.
    ///
    /// # Errors
    /// It is none, is cut off, or claims more than it can hold.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(Error::io(path))?;
        thrift::check_footer(&mut file).map_err(|message| Error::data(path, message))?;
        let length = file.metadata().map_err(Error::io(path))?.len();
        let policy = PageIndexPolicy::Skip;
        let meta = contained(path, || {
            ParquetMetaDataReader::new()
                .with_page_index_policy(policy)
                .parse_and_finish(&file)
                .map_err(|e| e.to_string())
        })?;
        let rows = meta.file_metadata().num_rows();
        let groups = meta.row_groups().iter().try_fold(0_i64, |sum, group| sum.checked_add(group.num_rows()));
        if groups != Some(rows) || meta.row_groups().iter().any(|group| group.num_rows() < 0) {
            return Err(Error::data(path, format!("it claims {rows} rows, and its parts hold other numbers of them")));
        }
        if u64::try_from(rows).map_or(true, |rows| rows > length / MIN_ROW_BYTES) {
            return Err(Error::data(path, format!("it claims {rows} rows in {length} bytes")));
        }
        Ok(Self { path: path.into(), meta })
    }

    pub(super) fn rows(&self) -> usize {
        self.meta.file_metadata().num_rows() as usize
    }

    /// The value of `key` in the file's own remarks.
    pub(super) fn remark(&self, key: &str) -> Option<&str> {
        let all = self.meta.file_metadata().key_value_metadata()?;
        all.iter().find(|pair| pair.key == key)?.value.as_deref()
    }

    /// The columns: the names from the outermost on, and whether there are many values in a row.
    pub(super) fn columns(&self) -> impl Iterator<Item = (&[String], bool)> {
        let columns = self.meta.file_metadata().schema_descr().columns();
        columns.iter().map(|column| (column.path().parts(), column.max_rep_level() > 0))
    }

    /// The number of the column with these names.
    pub(super) fn column(&self, names: &[&str]) -> Option<usize> {
        self.columns().position(|(parts, _)| parts.iter().eq(names.iter()))
    }

    fn physical(&self, column: usize) -> Physical {
        self.meta.file_metadata().schema_descr().column(column).physical_type()
    }

    /// Whether a column holds bytes or text.
    pub(super) fn is_bytes(&self, column: usize) -> bool {
        self.physical(column) == Physical::BYTE_ARRAY
    }

    /// Whether a column holds text, by what it says of itself.
    pub(super) fn is_text(&self, column: usize) -> bool {
        let descriptor = self.meta.file_metadata().schema_descr().column(column);
        self.is_bytes(column) && descriptor.converted_type() == ConvertedType::UTF8
    }

    /// What a column of one text, number or flag a row says in each, as JSON has it, null where it says nothing; none of columns of other
    /// things.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn values(&self, column: usize) -> Result<Option<Vec<Value>>> {
        let number = |row: ListRow<f64>| row.values.first().copied().map_or(Value::Null, Value::from);
        Ok(match self.physical(column) {
            Physical::BYTE_ARRAY if self.is_text(column) => {
                Some(self.texts(column)?.into_iter().map(|text| text.map_or(Value::Null, Value::from)).collect())
            }
            Physical::INT32 | Physical::INT64 => {
                let integer = |text: Option<String>| text.and_then(|text| text.parse::<i64>().ok());
                Some(
                    self.texts(column)?
                        .into_iter()
                        .map(|text| integer(text).map_or(Value::Null, Value::from))
                        .collect(),
                )
            }
            Physical::FLOAT | Physical::DOUBLE => Some(self.numbers(column)?.into_iter().map(number).collect()),
            Physical::BOOLEAN => {
                let flag = |row: ListRow<f64>| row.values.first().map_or(Value::Null, |&flag| Value::from(flag > 0.));
                Some(self.flags(column)?.into_iter().map(flag).collect())
            }
            _ => None,
        })
    }

    /// Whether a column holds integers.
    pub(super) fn is_integer(&self, column: usize) -> bool {
        matches!(self.physical(column), Physical::INT32 | Physical::INT64)
    }

    /// What a column of one value a row says in each, as text; none where it says nothing.
    ///
    /// # Errors
    /// It cannot be read, or holds neither integers nor text.
    pub(super) fn texts(&self, column: usize) -> Result<Vec<Option<String>>> {
        let rows = self.lists(column)?;
        Ok(rows.into_iter().map(|row| row.values.into_iter().next()).collect())
    }

    /// The texts or integers of a column of lists.
    ///
    /// # Errors
    /// As [`Self::texts`].
    pub(super) fn lists(&self, column: usize) -> Result<Vec<ListRow<String>>> {
        match self.physical(column) {
            Physical::BYTE_ARRAY => {
                self.rows_of::<ByteArrayType, _>(column, |bytes| String::from_utf8_lossy(bytes.data()).into_owned())
            }
            Physical::INT32 => self.rows_of::<Int32Type, _>(column, ToString::to_string),
            Physical::INT64 => self.rows_of::<Int64Type, _>(column, ToString::to_string),
            other => {
                Err(self.error(column, &format!("values of the type {other}, where integers or texts are expected")))
            }
        }
    }

    /// The numbers of a column of lists of lists.
    ///
    /// # Errors
    /// It cannot be read, or does not hold numbers.
    pub(super) fn numbers(&self, column: usize) -> Result<Vec<ListRow<f64>>> {
        match self.physical(column) {
            Physical::FLOAT => self.rows_of::<FloatType, _>(column, |v| f64::from(*v)),
            Physical::DOUBLE => self.rows_of::<DoubleType, _>(column, |v| *v),
            Physical::INT32 => self.rows_of::<Int32Type, _>(column, |v| f64::from(*v)),
            Physical::INT64 => self.rows_of::<Int64Type, _>(column, |v| *v as f64),
            other => Err(self.error(column, &format!("values of the type {other}, where numbers are expected"))),
        }
    }

    /// The flags of a column of lists, written as integers or as booleans.
    ///
    /// # Errors
    /// As [`Self::numbers`].
    pub(super) fn flags(&self, column: usize) -> Result<Vec<ListRow<f64>>> {
        match self.physical(column) {
            Physical::BOOLEAN => self.rows_of::<BoolType, _>(column, |flag| f64::from(*flag)),
            _ => self.numbers(column),
        }
    }

    /// Whether the first value of a column of bytes begins as a picture does.
    pub(super) fn is_picture(&self, column: usize) -> bool {
        let first = || {
            let chunk = ColumnChunk {
                table: self,
                group: 0,
                column,
                rows: self.meta.row_groups().first()?.num_rows() as usize,
            };
            let mut file = File::open(&self.path).ok()?;
            pages::of(&mut file, chunk.meta()).ok()?;
            let (mut defs, mut values) = (Vec::new(), Vec::new());
            chunk.reader::<ByteArrayType>(None).ok()?.read_records(1, Some(&mut defs), None, &mut values).ok()?;
            format_of(values.first()?.data())
        };
        self.is_bytes(column) && contain(first).ok().flatten().is_some()
    }

    fn error(&self, column: usize, message: &str) -> Error {
        let name = self.meta.file_metadata().schema_descr().column(column).path().string();
        Error::data(&self.path, format!("column {name}: {message}"))
    }

    /// Calls `read` with each chunk of a column and the rows in it.
    fn chunks<T>(
        &self,
        column: usize,
        mut read: impl FnMut(&ColumnChunk<'_>, &mut File) -> Result<T, String>,
    ) -> Result<Vec<T>> {
        let mut out = Vec::new();
        for (group, meta) in self.meta.row_groups().iter().enumerate() {
            let mut file = File::open(&self.path).map_err(Error::io(&self.path))?;
            let rows = meta.num_rows() as usize;
            let found = contain(|| {
                let chunk = ColumnChunk { table: self, group, column, rows };
                read(&chunk, &mut file)
            });
            let found = found.unwrap_or_else(|panic| Err(format!("the Parquet reader failed: {panic}")));
            out.push(found.map_err(|message| self.error(column, &message))?);
        }
        Ok(out)
    }

    /// The rows of a column, whose values `of` makes.
    fn rows_of<D: DataType, T>(&self, column: usize, of: impl Fn(&D::T) -> T) -> Result<Vec<ListRow<T>>>
    where
        D::T: Clone,
    {
        let chunks = self.chunks(column, |chunk, file| {
            let pages = pages::of(file, chunk.meta())?;
            let mut rows = Vec::new();
            let mut reader = chunk.reader::<D>(None)?;
            let (mut defs, mut reps, mut values) = (Vec::new(), Vec::new(), Vec::new());
            let descriptor = chunk.table.meta.file_metadata().schema_descr().column(column);
            let (most, is_list) = (descriptor.max_def_level(), descriptor.max_rep_level() > 0);
            let may_be_null = is_list && descriptor.self_type().is_optional();
            // A list may be long, but not longer than what was promised to be there.
            let levels_expected: usize = pages.iter().map(|page| page.values).sum();
            if !is_list && levels_expected != chunk.rows {
                return Err(format!("{levels_expected} values in {} rows", chunk.rows));
            }
            // Values that are not there, or all the same, take no room in the file, but here.
            let bytes = usize::try_from(chunk.meta().compressed_size()).unwrap_or(0);
            let most_values = (chunk.rows.saturating_mul(16)).saturating_add(bytes.saturating_mul(8)).max(1 << 12);
            if levels_expected > most_values {
                return Err(format!("it claims {levels_expected} values in {} rows and {bytes} bytes", chunk.rows));
            }
            loop {
                defs.clear();
                reps.clear();
                values.clear();
                let (records, _, levels) = reader
                    .read_records(BATCH, Some(&mut defs), Some(&mut reps), &mut values)
                    .map_err(|e| e.to_string())?;
                if records == 0 && levels == 0 {
                    break;
                }
                let mut values = values.iter();
                for level in 0..levels {
                    let rep = reps.get(level).copied().unwrap_or(0);
                    if rep == 0 {
                        rows.push(ListRow { values: Vec::new(), starts: Vec::new() });
                    }
                    if rows.is_empty() {
                        return Err("it begins inside a row".into());
                    }
                    let is_there = defs.get(level).is_none_or(|def| *def == most);
                    if may_be_null && defs.get(level) == Some(&(most - 1)) {
                        return Err(format!("row {}: nothing where a value is expected", rows.len() - 1));
                    }
                    if is_there && let (Some(value), Some(row)) = (values.next(), rows.last_mut()) {
                        if rep <= 1 {
                            row.starts.push(row.values.len());
                        }
                        row.values.push(of(value));
                    }
                }
            }
            if rows.len() != chunk.rows {
                return Err(format!("it holds {} rows and claims {}", rows.len(), chunk.rows));
            }
            Ok(rows)
        })?;
        Ok(chunks.into_iter().flatten().collect())
    }

    /// The pictures in the column of bytes `column`, called by the last part of what is in `paths` where that tells them apart.
    ///
    /// # Errors
    /// The pages of the column are damaged.
    pub(super) fn pictures(
        self: &Arc<Self>,
        column: usize,
        paths: Option<Vec<Option<String>>>,
        kept: &Arc<KeptPages>,
    ) -> Result<Pictures> {
        let found = self.chunks(column, |chunk, file| {
            let pages = pages::of(file, chunk.meta())?;
            let values: usize = pages.iter().map(|page| page.values).sum();
            if values != chunk.rows {
                return Err(format!("{values} values in {} rows", chunk.rows));
            }
            Ok(pages)
        })?;
        let mut places = Vec::with_capacity(self.rows());
        for (group, pages) in found.iter().enumerate() {
            for (number, page) in pages.iter().enumerate() {
                places.extend((0..page.values).map(|row| PicturePlace { group, page: number, row }));
            }
        }
        let mut pictures =
            Pictures { table: self.clone(), column, groups: found, places, names: Vec::new(), kept: kept.clone() };
        pictures.names = pictures.names_of(paths);
        Ok(pictures)
    }
}

/// The part of a column that lies together.
struct ColumnChunk<'a> {
    table: &'a ParquetTable,
    group: usize,
    column: usize,
    rows: usize,
}

impl ColumnChunk<'_> {
    fn meta(&self) -> &parquet::file::metadata::ColumnChunkMetaData {
        self.table.meta.row_group(self.group).column(self.column)
    }

    /// A reader of its values; with `pages`, which are those of it, one that need not read what it passes over.
    fn reader<D: DataType>(&self, pages: Option<&[Page]>) -> Result<ColumnReaderImpl<D>, String> {
        let mut row = 0;
        let locations = pages.map(|pages| {
            let location = |page: &Page| {
                let first_row_index = row;
                row += page.values as i64;
                let (offset, size) = (page.offset as i64, i32::try_from(page.size).unwrap_or(i32::MAX));
                PageLocation { offset, compressed_page_size: size, first_row_index }
            };
            pages.iter().map(location).collect()
        });
        let file = File::open(&self.table.path).map_err(|e| e.to_string())?;
        let reader = SerializedPageReader::new(Arc::new(file), self.meta(), self.rows, locations);
        let descriptor = self.table.meta.file_metadata().schema_descr().column(self.column);
        Ok(ColumnReaderImpl::new(descriptor, Box::new(reader.map_err(|e| e.to_string())?)))
    }
}

/// Runs `read`, whose faults and panics are the file's.
fn contained<T>(path: &Path, read: impl FnOnce() -> Result<T, String>) -> Result<T> {
    let found = contain(read).unwrap_or_else(|panic| Err(format!("the Parquet reader failed: {panic}")));
    found.map_err(|message| Error::data(path, message))
}

/// Where a picture is: in which group of rows, page of it, and row of that.
#[derive(Clone, Copy)]
struct PicturePlace {
    group: usize,
    page: usize,
    row: usize,
}

/// The pictures in a column of a table.
pub(super) struct Pictures {
    table: Arc<ParquetTable>,
    column: usize,
    /// The pages of each group of rows.
    groups: Vec<Vec<Page>>,
    places: Vec<PicturePlace>,
    names: Vec<String>,
    kept: Arc<KeptPages>,
}

impl fmt::Debug for Pictures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pictures").field("path", &self.table.path).field("column", &self.column).finish_non_exhaustive()
    }
}

impl Pictures {
    /// The names of the files that the pictures were, if these are names of images and all different; else the number of the
    /// row, with the ending that belongs to the first picture.
    fn names_of(&self, paths: Option<Vec<Option<String>>>) -> Vec<String> {
        let file_name = |path: &Option<String>| {
            let name = path.as_deref()?.rsplit(['/', '\\']).next()?;
            let is_plain = !name.starts_with('.') && !name.contains(char::is_control);
            (is_plain && has_image_extension(Path::new(name))).then(|| name.to_owned())
        };
        let names: Option<Vec<String>> = paths.and_then(|paths| paths.iter().map(file_name).collect());
        let is_unique = |names: &Vec<String>| {
            names.len() == self.places.len() && names.iter().collect::<HashSet<_>>().len() == names.len()
        };
        if let Some(names) = names.filter(is_unique) {
            return names;
        }
        let first = (0..self.places.len()).find_map(|index| self.bytes(index).ok());
        let format = first.and_then(|bytes| format_of(bytes.data()));
        let extension = format.and_then(|(_, ends)| ends.first().copied()).unwrap_or("png");
        let digits = self.places.len().saturating_sub(1).to_string().len();
        (0..self.places.len()).map(|row| format!("{row:0digits$}.{extension}")).collect()
    }

    fn bytes(&self, index: usize) -> Result<ByteArray> {
        let path = &self.table.path;
        let Some(place) = self.places.get(index) else {
            return Err(Error::data(path, format!("there is no row {index}")));
        };
        let page = self.page(*place)?;
        match page.get(place.row) {
            Some(Some(bytes)) => Ok(bytes.clone()),
            _ => Err(Error::image(path, format!("row {index}: no picture in it"))),
        }
    }

    /// What the rows of a page hold.
    fn page(&self, PicturePlace { group, page, .. }: PicturePlace) -> Result<Arc<PageValues>> {
        let path = &self.table.path;
        let key = (path.clone(), group, page);
        self.kept.get(key, || {
            let table = &*self.table;
            let pages = &self.groups[group];
            let chunk = ColumnChunk {
                table,
                group,
                column: self.column,
                rows: table.meta.row_group(group).num_rows() as usize,
            };
            contained(path, || {
                let mut reader = chunk.reader::<ByteArrayType>(Some(pages))?;
                let before = pages[..page].iter().map(|page| page.values).sum();
                let (mut defs, mut values) = (Vec::new(), Vec::new());
                let rows = pages[page].values;
                reader.skip_records(before).map_err(|e| e.to_string())?;
                let (read, ..) =
                    reader.read_records(rows, Some(&mut defs), None, &mut values).map_err(|e| e.to_string())?;
                if read != rows {
                    return Err(format!("a page of {read} rows claims {rows}"));
                }
                let descriptor = table.meta.file_metadata().schema_descr().column(self.column);
                let most = descriptor.max_def_level();
                let mut values = values.into_iter();
                let is_there = |row: usize| defs.get(row).is_none_or(|def| *def == most);
                Ok((0..rows).map(|row| if is_there(row) { values.next() } else { None }).collect())
            })
        })
    }
}

impl Container for Pictures {
    fn path(&self) -> &Path {
        &self.table.path
    }

    fn name(&self, index: usize) -> String {
        self.names.get(index).cloned().unwrap_or_else(|| format!("row {index}"))
    }

    fn read(&self, index: usize) -> Result<Stored<'_>> {
        self.bytes(index).map(|bytes| Stored::Encoded(Cow::Owned(bytes.data().to_vec())))
    }
}

/// The pictures in a page.
type PageValues = Vec<Option<ByteArray>>;

/// A page of a file: file, group of rows, number.
type PageKey = (PathBuf, usize, usize);

/// Pages that were read last, of all tables of a data set: pictures are mostly asked for in their order, and a page holds many.
#[derive(Default)]
pub(super) struct KeptPages(Mutex<PageQueue>);

#[derive(Default)]
struct PageQueue {
    pages: HashMap<PageKey, Arc<Mutex<Option<Arc<PageValues>>>>>,
    /// The oldest first, with the bytes of each.
    order: VecDeque<(PageKey, usize)>,
    bytes: usize,
}

impl KeptPages {
    /// The page `key`, which `read` reads. Two that ask for one page at once read it once.
    fn get(&self, key: PageKey, read: impl FnOnce() -> Result<PageValues>) -> Result<Arc<PageValues>> {
        let place = self.0.lock().unwrap_or_else(PoisonError::into_inner).pages.entry(key.clone()).or_default().clone();
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(values) = &*place {
            return Ok(values.clone());
        }
        let values = match read() {
            Ok(values) => Arc::new(values),
            Err(error) => {
                self.0.lock().unwrap_or_else(PoisonError::into_inner).pages.remove(&key);
                return Err(error);
            }
        };
        *place = Some(values.clone());
        let bytes = values.iter().flatten().map(ByteArray::len).sum::<usize>();
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queue.order.push_back((key, bytes));
        queue.bytes += bytes;
        while queue.bytes > KEPT_BYTES && queue.order.len() > 1 {
            if let Some((oldest, bytes)) = queue.order.pop_front() {
                queue.pages.remove(&oldest);
                queue.bytes -= bytes;
            }
        }
        Ok(values)
    }
}
