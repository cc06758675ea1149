//! safetensors files of f32 tensors with one JSON text beside them: the form of task files and checkpoints.
//!
//! Equal content gives equal bytes: the crate orders tensors by name, and all metadata sits in one string with sorted
//! keys, because several metadata entries would come out in random order.

use std::{borrow::Cow, collections::HashMap, fs::File, hash::BuildHasher, io::Read, path::Path};

use safetensors::{Dtype, SafeTensors, View};
use serde_json::Value;

use crate::{Error, Result, contain::contain, files};

/// Larger than any task or checkpoint by far that does not hold the weights of a whole tower: 1 GiB.
pub const MAX_BYTES: u64 = 1 << 30;

/// Of the header, as much as is looked at before a file is read.
const MAX_HEADER: u64 = 4 << 20;

/// A tensor on its way to or from a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor<'a> {
    /// Its name in the file.
    pub name: String,
    /// Its shape; the product is the number of values.
    pub shape: Vec<usize>,
    /// The values, row by row.
    pub values: Cow<'a, [f32]>,
}

impl View for Tensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        4 * self.values.len()
    }
}

/// The bytes of a file of `tensors` with `meta` under the metadata key `key`.
pub fn to_bytes(tensors: Vec<Tensor>, key: &str, meta: Value) -> Result<Vec<u8>> {
    let meta = HashMap::from([(key.to_owned(), sorted(meta).to_string())]);
    let named = tensors.into_iter().map(|t| (t.name.clone(), t));
    safetensors::serialize(named, Some(meta)).map_err(|error| Error::invalid("tensors", error.to_string()))
}

/// Tensors by name, and the JSON under the metadata key `key`, of the file `path`, which `kind` says in words and which has at
/// most `limit` bytes. `accept` sees
/// the JSON before the tensors are looked at, which another version of the format may hold in another form.
///
/// # Errors
/// The file cannot be read, is too large, is no safetensors file, has no such key, is not accepted or holds something other
/// than finite f32 tensors.
pub fn read(
    path: &Path,
    key: &str,
    kind: &str,
    limit: u64,
    accept: impl FnOnce(&Value) -> Result<()>,
) -> Result<(HashMap<String, Tensor<'static>>, Value)> {
    let bad = |what: &str| Error::file(path, format!("not a {kind}, or a damaged one: {what}"));
    check_start(path)?.map_err(bad)?;
    let bytes = files::read_limited(path, limit)?;
    let (_, header) = contain(|| SafeTensors::read_metadata(&bytes))
        .map_err(|panic| bad(&panic))?
        .map_err(|error| bad(&error.to_string()))?;
    let file = contain(|| SafeTensors::deserialize(&bytes))
        .map_err(|panic| bad(&panic))?
        .map_err(|error| bad(&error.to_string()))?;
    let text = header.metadata().as_ref().and_then(|meta| meta.get(key));
    let text = text.ok_or_else(|| bad(&format!("its metadata has no key `{key}`")))?;
    let meta = serde_json::from_str(text).map_err(|error| bad(&error.to_string()))?;
    accept(&meta)?;
    let mut tensors = HashMap::new();
    for (name, view) in file.iter() {
        if view.dtype() != Dtype::F32 {
            return Err(bad(&format!("tensor `{}` is {:?}, not F32", name.escape_debug(), view.dtype())));
        }
        let values: Vec<f32> =
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        if values.iter().any(|v| !v.is_finite()) {
            return Err(bad(&format!("tensor `{}` holds values that are not finite", name.escape_debug())));
        }
        let tensor = Tensor { name: name.to_owned(), shape: view.shape().to_vec(), values: values.into() };
        tensors.insert(name.to_owned(), tensor);
    }
    Ok((tensors, meta))
}

/// Whether `path` can be a safetensors file by its first bytes, so that a large file of anything else is not read as a whole.
fn check_start(path: &Path) -> Result<std::result::Result<(), &'static str>> {
    let meta = std::fs::metadata(path).map_err(Error::io(path))?;
    if !meta.is_file() {
        return Err(Error::file(path, "not a regular file"));
    }
    if meta.len() > MAX_BYTES && is_hollow(&meta) {
        return Err(Error::file(path, "is gigabytes long and mostly holes"));
    }
    let mut start = Vec::new();
    File::open(path).and_then(|file| file.take(9).read_to_end(&mut start)).map_err(Error::io(path))?;
    let length = start.first_chunk().map(|length| u64::from_le_bytes(*length));
    Ok(match length {
        Some(length) if length > meta.len() - 8 => Err("its header is longer than the file"),
        Some(_) if start.get(8) == Some(&b'{') => Ok(()),
        _ => Err("it has no header"),
    })
}

/// Whether the metadata of the safetensors file `path` holds this text, as JSON in JSON has it; no more than its first megabytes
/// are read.
pub fn mentions(path: &Path, text: &str) -> bool {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let mut header = Vec::new();
        file.take(u64::from_le_bytes(length).min(MAX_HEADER)).read_to_end(&mut header)?;
        Ok(header)
    };
    read().is_ok_and(|header| String::from_utf8_lossy(&header).contains(text))
}

/// Whether a file claims far more bytes than it has: learned weights leave no holes.
#[cfg(unix)]
fn is_hollow(meta: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    meta.blocks().saturating_mul(2 * 512) < meta.len()
}

#[cfg(not(unix))]
fn is_hollow(_: &std::fs::Metadata) -> bool {
    false
}

/// Takes the tensor `name` of this `shape` out of `tensors`.
pub fn take<S: BuildHasher>(
    tensors: &mut HashMap<String, Tensor<'static>, S>,
    name: &str,
    shape: &[usize],
    path: &Path,
) -> Result<Vec<f32>> {
    let tensor = tensors.remove(name).ok_or_else(|| Error::file(path, format!("has no tensor `{name}`")))?;
    if tensor.shape != shape {
        let message = format!("tensor `{name}` has shape {:?} where {shape:?} is expected", tensor.shape);
        return Err(Error::file(path, message));
    }
    Ok(tensor.values.into_owned())
}

/// The same value with the keys of every object in order.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().map(|(key, value)| (key, sorted(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tensors() -> Vec<Tensor<'static>> {
        vec![
            Tensor { name: "b".into(), shape: vec![2], values: vec![1., -0.5].into() },
            Tensor { name: "a".into(), shape: vec![1, 1], values: vec![f32::MIN_POSITIVE].into() },
        ]
    }

    #[test]
    fn content_comes_back_and_order_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let bytes = to_bytes(tensors(), "k", json!({"z": 1, "a": {"y": 0.1, "b": [1, {"d": 1, "c": 2}]}})).unwrap();
        let mut reversed = tensors();
        reversed.reverse();
        let again = to_bytes(reversed, "k", json!({"a": {"b": [1, {"c": 2, "d": 1}], "y": 0.1}, "z": 1})).unwrap();
        assert_eq!(bytes, again);
        std::fs::write(&path, &bytes).unwrap();
        let (mut found, meta) = read(&path, "k", "thing", MAX_BYTES, |_| Ok(())).unwrap();
        assert_eq!(meta["a"]["y"], 0.1);
        assert_eq!(take(&mut found, "b", &[2], &path).unwrap(), [1., -0.5]);
        assert!(take(&mut found, "b", &[2], &path).unwrap_err().to_string().contains("no tensor `b`"));
        assert!(take(&mut found, "a", &[1], &path).unwrap_err().to_string().contains("[1, 1] where [1]"));
    }

    #[test]
    #[cfg(unix)]
    fn gigabytes_of_holes_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let header =
            br#"{"a":{"dtype":"F32","shape":[1073741824],"data_offsets":[0,4294967296]},"__metadata__":{"k":"1"}}"#;
        std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header].concat()).unwrap();
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len((4 << 30) + 8 + header.len() as u64)
            .unwrap();
        let message = read(&path, "k", "thing", 8 << 30, |_| Ok(())).unwrap_err().to_string();
        assert!(message.ends_with("mostly holes"), "{message}");
        assert!(!mentions(&path, "float") && mentions(&path, "data_offsets"));
    }

    #[test]
    fn damaged_files_are_errors_that_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let message = read(&path, "k", "thing", MAX_BYTES, |_| Ok(())).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{}: not a thing, or a damaged one: ", path.display())), "{message}");
            message
        };
        let bytes = to_bytes(tensors(), "k", json!({"a": 1})).unwrap();
        for len in [0, 7, 8, 40, bytes.len() - 1] {
            refused(&bytes[..len]);
        }
        refused(&[&u64::MAX.to_le_bytes()[..], &bytes[8..]].concat());
        refused(&[&bytes[..], b"tail"].concat());
        assert!(refused(&to_bytes(tensors(), "other", json!({})).unwrap()).contains("no key `k`"));
        let nan = vec![Tensor { name: "a".into(), shape: vec![1], values: vec![f32::NAN].into() }];
        assert!(refused(&to_bytes(nan, "k", json!({})).unwrap()).contains("not finite"));
        let half = br#"{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"__metadata__":{"k":"{}"}}"#;
        let file = [&(half.len() as u64).to_le_bytes()[..], half, &[0, 0]].concat();
        assert!(refused(&file).contains("F16"));
        let huge =
            br#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]},"__metadata__":{"k":"{}"}}"#;
        refused(&[&(huge.len() as u64).to_le_bytes()[..], huge].concat());
    }
}
