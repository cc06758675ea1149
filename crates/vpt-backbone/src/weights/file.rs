//! One safetensors file: its header, checked, and reads from their place.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{CHUNK, pickle};
use vpt_base::file_at::read_exact_at;
use vpt_base::{Error, Message, Result};

/// The safetensors library refuses longer headers, too.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// More dimensions than any tensor has.
const MAX_DIMENSIONS: usize = 64;

#[derive(Debug)]
pub(super) struct WeightFile {
    pub(super) path: PathBuf,
    pub(super) source: FileSource,
    pub(super) len: u64,
}

#[derive(Debug)]
pub(super) enum FileSource {
    Disk(File),
    Memory(&'static [u8]),
}

/// One line of a header, checked: its bytes lie inside the file and agree with its shape.
#[derive(Debug, Clone)]
pub(super) struct TensorEntry {
    pub(super) file: usize,
    pub(super) dtype: String,
    pub(super) shape: Vec<usize>,
    /// From the start of the file.
    offset: u64,
    bytes: u64,
    /// From one value to the next along each dimension, in values, where they do not lie in the order of `shape`; `bytes` then are
    /// those from the first to the last.
    pub(super) strides: Option<Vec<usize>>,
    /// Where the last rows are, if not behind the others.
    pub(super) last_rows: Option<Box<TensorEntry>>,
}

impl TensorEntry {
    /// A tensor whose values lie in their order from byte `offset` of its file on; whoever makes it has checked that they do.
    pub(super) fn at(file: usize, dtype: &str, shape: Vec<usize>, [offset, bytes]: [u64; 2]) -> Self {
        let dtype = dtype.to_owned();
        Self { file, dtype, shape, offset, bytes, strides: None, last_rows: None }
    }

    /// A tensor whose values lie in the bytes from `offset` on with these strides; whoever makes it has checked that they do.
    pub(super) fn strided(file: usize, dtype: &str, shape: Vec<usize>, strides: Vec<usize>, place: [u64; 2]) -> Self {
        Self { strides: Some(strides), ..Self::at(file, dtype, shape, place) }
    }

    /// The strides of it as a matrix.
    fn matrix_strides(&self) -> Option<[usize; 2]> {
        let &[_, columns] = &self.shape[..] else { return None };
        self.strides.as_ref().map_or(Some([columns, 1]), |strides| strides[..].try_into().ok())
    }

    /// Those of its rows that do not lie elsewhere.
    pub(super) fn first_rows(&self) -> Self {
        let Some(last) = &self.last_rows else { return self.clone() };
        let mut shape = self.shape.clone();
        shape[0] -= last.shape[0];
        Self { shape, last_rows: None, ..self.clone() }
    }

    /// Values from the first to the last in the file.
    fn values(&self) -> usize {
        if self.shape.contains(&0) {
            return 0;
        }
        let Some(strides) = &self.strides else { return self.shape.iter().product() };
        1 + self.shape.iter().zip(strides).map(|(d, s)| (d - 1) * s).sum::<usize>()
    }

    /// The values from the first to the last, as they lie in the file.
    pub(super) fn as_stored(&self) -> Self {
        Self { shape: vec![self.values()], strides: None, last_rows: None, ..self.clone() }
    }

    /// The rows of one of so many shares, as a third of fused query, key and value weights `[3D, …]`; `None` if they cannot be shared out.
    pub(super) fn share(&self, number: usize, of: usize) -> Option<Self> {
        let rows = *self.shape.first()?;
        if rows % of != 0 {
            return None;
        }
        let mut shape = self.shape.clone();
        shape[0] = rows / of;
        let Some(strides) = &self.strides else {
            let bytes = self.bytes / of as u64;
            return Some(Self { shape, offset: self.offset + number as u64 * bytes, bytes, ..self.clone() });
        };
        let width = self.bytes.checked_div(self.values() as u64)?;
        let offset = self.offset + (number * shape[0] * strides[0]) as u64 * width;
        let share = Self { shape, offset, ..self.clone() };
        Some(Self { bytes: share.values() as u64 * width, ..share })
    }

    /// What it is a list of one of; `None` if it is none.
    pub(super) fn only_one(&self) -> Option<Self> {
        let shape = self.shape.strip_prefix(&[1])?.to_vec();
        let strides = self.strides.as_ref().map(|strides| strides[1..].to_vec());
        Some(Self { shape, strides, ..self.clone() })
    }

    /// `count` of its values from the one at `first` on, in the order of the file, where all are in one place; `None` where it has
    /// none of them.
    pub(super) fn part(&self, first: usize, count: usize) -> Option<Self> {
        let width = self.bytes.checked_div(self.shape.iter().product::<usize>() as u64)?;
        let [first, bytes] = [first as u64 * width, count as u64 * width];
        let inside = first.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        inside.then(|| Self { shape: vec![count], offset: self.offset + first, bytes, ..self.clone() })
    }

    /// Whether its values lie in one place and in their order.
    pub(super) fn is_in_order(&self) -> bool {
        self.strides.is_none() && self.last_rows.is_none()
    }

    /// Its rows and, behind them, those of `below`; `None` if they do not fit together.
    pub(super) fn above(self, below: Self) -> Option<Self> {
        let fit = self.shape.get(1..)? == below.shape.get(1..)? && self.last_rows.is_none();
        let rows = self.shape.first()?.checked_add(*below.shape.first()?)?;
        let shape = std::iter::once(rows).chain(self.shape[1..].iter().copied()).collect();
        fit.then(|| Self { shape, last_rows: Some(Box::new(below)), ..self })
    }

    /// Its transpose; `None` if it is no matrix.
    pub(super) fn transpose(&self) -> Option<Self> {
        let &[rows, columns] = &self.shape[..] else { return None };
        let [row, column] = self.matrix_strides()?;
        let strides = vec![column, row];
        self.last_rows.is_none().then(|| Self { shape: vec![columns, rows], strides: Some(strides), ..self.clone() })
    }

    /// The patch embedding `[D, 3, p, p]` that it holds as rows `[D, p p 3]`; `None` if it holds none so.
    pub(super) fn patch_rows(&self) -> Option<Self> {
        let &[outputs, values] = &self.shape[..] else { return None };
        let side = (values / 3).isqrt();
        let shape = vec![outputs, 3, side, side];
        let [row, value] = self.matrix_strides()?;
        let strides = vec![row, value, 3 * side * value, 3 * value];
        let is_one = 3 * side * side == values && self.last_rows.is_none();
        is_one.then(|| Self { shape, strides: Some(strides), ..self.clone() })
    }
}

/// The entries of a header by their tensors' names. What else is in it is passed over as it is read: kept, a hundred megabytes
/// of small values would take a gigabyte.
struct Header(BTreeMap<String, HeaderEntry>);

#[derive(serde::Deserialize)]
struct HeaderEntry {
    dtype: String,
    #[serde(deserialize_with = "dimensions")]
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

fn dimensions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    struct Dimensions;
    impl<'de> Visitor<'de> for Dimensions {
        type Value = Vec<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of whole numbers")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<u64>, A::Error> {
            let mut shape = Vec::new();
            while let Some(dimension) = list.next_element()? {
                if shape.len() == MAX_DIMENSIONS {
                    return Err(de::Error::custom(format!("a shape of more than {MAX_DIMENSIONS} dimensions")));
                }
                shape.push(dimension);
            }
            Ok(shape)
        }
    }
    deserializer.deserialize_seq(Dimensions)
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tensors by their names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let entry = map
                        .next_value()
                        .map_err(|error| de::Error::custom(format!("tensor `{}`: {error}", name.escape_debug())))?;
                    entries.insert(name, entry);
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl WeightFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let len = file.metadata().map_err(Error::io(path))?.len();
        Ok(Self { path: path.to_path_buf(), source: FileSource::Disk(file), len })
    }

    pub(super) fn error(&self, message: impl Into<Message>) -> Error {
        Error::weights(&self.path, message)
    }

    /// Fills `buffer` from `offset` on.
    pub(super) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        match &self.source {
            FileSource::Disk(file) => read_exact_at(file, buffer, offset).map_err(Error::io(&self.path)),
            FileSource::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(buffer.len());
                let part = bytes.get(start..end).ok_or_else(|| self.error("ends too early"))?;
                buffer.copy_from_slice(part);
                Ok(())
            }
        }
    }

    /// Reads a tensor whose values take N bytes each.
    pub(super) fn read_values<const N: usize>(
        &self,
        tensor: &TensorEntry,
        out: &mut [f32],
        value: impl Fn([u8; N]) -> f32,
    ) -> Result<()> {
        let mut buffer = vec![0; CHUNK.min(out.len() * N)];
        let mut offset = tensor.offset;
        for part in out.chunks_mut(CHUNK / N) {
            let bytes = &mut buffer[..part.len() * N];
            self.read_exact_at(bytes, offset)?;
            offset += bytes.len() as u64;
            for (to, from) in part.iter_mut().zip(bytes.as_chunks().0) {
                *to = value(*from);
            }
        }
        Ok(())
    }

    /// The tensors of this file, number `number` of its checkpoint: safetensors, or PyTorch's own form by the end of its name.
    pub(super) fn tensors(&self, number: usize) -> Result<BTreeMap<String, TensorEntry>> {
        let is_pickled = self.path.extension().is_some_and(|extension| extension == "bin");
        if is_pickled { pickle::entries(&self.path, number) } else { self.header(number) }
    }

    /// The tensors of this safetensors file, number `number` of its checkpoint.
    ///
    /// The format (<https://huggingface.co/docs/safetensors>): the header's length as a little-endian u64, the header in
    /// JSON, then the tensors' bytes without gap or overlap.
    pub(super) fn header(&self, number: usize) -> Result<BTreeMap<String, TensorEntry>> {
        if self.len < 8 {
            return Err(self.error("not a safetensors file: shorter than 8 bytes"));
        }
        let mut length = [0; 8];
        self.read_exact_at(&mut length, 0)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES || length > self.len - 8 {
            let message = format!("not a safetensors file, or truncated: a header of {length} bytes in {}", self.len);
            return Err(self.error(message));
        }
        let mut text = vec![0; length as usize];
        self.read_exact_at(&mut text, 8)?;
        let Header(entries) =
            serde_json::from_slice(&text).map_err(|e| self.error(format!("not a safetensors file: header: {e}")))?;
        drop(text);
        let (data, data_len) = (8 + length, self.len - 8 - length);
        let mut tensors = BTreeMap::new();
        for (name, entry) in entries {
            let shown = name.escape_debug();
            let [start, end] = entry.data_offsets;
            if start > end || end > data_len {
                let message = format!("tensor `{shown}`: bytes {start} to {end} of {data_len}: truncated or damaged");
                return Err(self.error(message));
            }
            let product = entry.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
            let bytes = product.and_then(|n| n.checked_mul(dtype_bytes(&entry.dtype).unwrap_or(0)));
            // Of a type that is not known the shape cannot be checked; it is refused when it is asked for.
            if dtype_bytes(&entry.dtype).is_some() && bytes != Some(end - start) {
                let message = format!("tensor `{shown}`: {} {:?} in {} bytes", entry.dtype, entry.shape, end - start);
                return Err(self.error(message));
            }
            let shape = entry.shape.iter().map(|&d| d as usize).collect();
            let tensor = TensorEntry::at(number, &entry.dtype, shape, [data + start, end - start]);
            tensors.insert(name, tensor);
        }
        self.check_layout(&tensors, data)?;
        Ok(tensors)
    }

    /// That the tensors cover the bytes from `data` to the end of the file, each byte once.
    fn check_layout(&self, tensors: &BTreeMap<String, TensorEntry>, data: u64) -> Result<()> {
        let mut order: Vec<_> = tensors.iter().collect();
        order.sort_by_key(|(_, t)| (t.offset, t.bytes));
        let mut end = data;
        for (name, tensor) in order {
            if tensor.offset != end {
                let what = if tensor.offset < end { "overlaps the one before it" } else { "follows a gap" };
                return Err(self.error(format!("tensor `{}` {what}", name.escape_debug())));
            }
            end += tensor.bytes;
        }
        if end == self.len { Ok(()) } else { Err(self.error(format!("{} bytes too long", self.len - end))) }
    }
}

/// Bytes a value of this type takes; `None` for types this crate does not know.
fn dtype_bytes(dtype: &str) -> Option<u64> {
    match dtype {
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" => Some(1),
        "U16" | "I16" | "F16" | "BF16" => Some(2),
        "U32" | "I32" | "F32" => Some(4),
        "U64" | "I64" | "F64" => Some(8),
        _ => None,
    }
}
