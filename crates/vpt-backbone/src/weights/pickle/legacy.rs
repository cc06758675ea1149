//! Files that `torch.save` wrote before `PyTorch` 1.6, and writes today with `_use_new_zipfile_serialization=False`.
//!
//! Five pickles, one behind the other (a number that tells the form, its version, what the machine was, the object, the keys of its
//! storages in their order), then each storage: the number of its values, and these.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use candle_core::pickle::Object;

use super::objects::unpickle;
use super::{MAX_PICKLE_BYTES, PickledTensor, tensors as named_tensors};
use vpt_base::file_at::read_exact_at;

/// The first two pickles: `0x1950a86a20f9469cfc6c` and 1001.
const BEGINNING: &[u8] = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";

/// Whether the file begins as such a file does.
pub(super) fn is_legacy(file: &File) -> bool {
    let mut beginning = [0; BEGINNING.len()];
    read_exact_at(file, &mut beginning, 0).is_ok() && beginning == BEGINNING
}

/// The tensors of the file, which is `len` bytes long.
pub(super) fn tensors(file: &File, len: u64) -> Result<BTreeMap<String, PickledTensor>, String> {
    let mut pickles = vec![0; len.min(MAX_PICKLE_BYTES) as usize];
    read_exact_at(file, &mut pickles, 0).map_err(|error| error.to_string())?;
    let rest = pickles.get(BEGINNING.len()..).unwrap_or_default();
    let (machine, rest) = unpickle(rest)?;
    if !is_little_endian(&machine) {
        return Err("it was written on a machine whose numbers begin at their other end".to_owned());
    }
    let (object, rest) = unpickle(rest)?;
    let (keys, rest) = unpickle(rest)?;
    let Object::List(keys) = keys else { return Err("no list of storages behind its object".to_owned()) };
    let mut widths = BTreeMap::new();
    find_storages(&object, &mut widths)?;

    let mut places = BTreeMap::new();
    let mut at = (pickles.len() - rest.len()) as u64;
    for key in keys {
        let Object::Unicode(key) = key else { return Err("a storage whose key is no text".to_owned()) };
        let mut count = [0; 8];
        read_exact_at(file, &mut count, at).map_err(|_| "it ends among its storages".to_owned())?;
        let width = widths.get(&key).ok_or_else(|| "a storage that nothing is in".to_owned())?;
        let bytes = u64::from_le_bytes(count).checked_mul(*width).filter(|bytes| *bytes <= len - at);
        let bytes = bytes.ok_or_else(|| "a storage that is longer than the file".to_owned())?;
        places.insert(key, [at + 8, bytes]);
        at += 8 + bytes;
        if at > len {
            return Err("it ends among its storages".to_owned());
        }
    }
    let mut find = |path: &str| {
        let key = path.trim_start_matches('/');
        places.get(key).copied().ok_or_else(|| "its storage is not in the file".to_owned())
    };
    named_tensors(object, Path::new(""), len, &mut find)
}

fn is_little_endian(machine: &Object) -> bool {
    let Object::Dict(fields) = machine else { return false };
    fields.iter().any(|(key, value)| {
        matches!(key, Object::Unicode(name) if name == "little_endian") && matches!(value, Object::Bool(true))
    })
}

/// Adds the bytes of a value of each storage that `object` refers to, by its key.
fn find_storages(object: &Object, widths: &mut BTreeMap<String, u64>) -> Result<(), String> {
    let mut each = |items: &[Object]| items.iter().try_for_each(|item| find_storages(item, widths));
    match object {
        Object::PersistentLoad(id) => {
            let Object::Tuple(id) = &**id else { return Ok(()) };
            let [_, Object::Class { class_name, .. }, Object::Unicode(key), _, _, rest @ ..] = &id[..] else {
                return Err("a storage that is referred to in an unknown way".to_owned());
            };
            if rest.iter().any(|view| *view != Object::None) {
                return Err("a storage that is a part of another; it must be saved again".to_owned());
            }
            let width = match class_name.as_str() {
                "ComplexDoubleStorage" => 16,
                "DoubleStorage" | "LongStorage" | "ComplexFloatStorage" => 8,
                "FloatStorage" | "IntStorage" => 4,
                "HalfStorage" | "BFloat16Storage" | "ShortStorage" => 2,
                "CharStorage" | "ByteStorage" | "BoolStorage" => 1,
                other => return Err(format!("unsupported storage type {}", other.escape_debug())),
            };
            match widths.insert(key.clone(), width) {
                Some(other) if other != width => Err("a storage of two types".to_owned()),
                _ => Ok(()),
            }
        }
        Object::Tuple(items) | Object::List(items) => each(items),
        Object::Dict(items) => items.iter().try_for_each(|(key, value)| {
            find_storages(key, widths)?;
            find_storages(value, widths)
        }),
        Object::Reduce { callable, args } | Object::Build { callable, args } => {
            find_storages(callable, widths)?;
            find_storages(args, widths)
        }
        _ => Ok(()),
    }
}
