//! PyTorch's own checkpoints (`pytorch_model.bin`, `.pt`, `.pth`), read where they lie, or made safetensors for repositories that have
//! nothing else.
//!
//! Such a file is a zip archive of a pickle, which says how tensors lie in storages, and of the storages; before `PyTorch` 1.6
//! it was one pickle behind the other (`legacy`). candle's reader
//! runs the pickle; it calls nothing, so no code of the file is ever executed. It trusts the file's lengths, though, and
//! copies whatever is referred to again, so every step it takes is watched (`objects`).

mod legacy;
mod objects;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use candle_core::DType;
use candle_core::pickle::{Object, TensorInfo};
use serde_json::json;
use zip::{CompressionMethod, ZipArchive};

use self::objects::{brief, state_dict, unpickle};
use super::file::TensorEntry;
use vpt_base::contain::contain;
use vpt_base::file_at::read_exact_at;
use vpt_base::{Error, Result};

/// The file that holds a checkpoint in PyTorch's form.
pub const PICKLED: &str = "pytorch_model.bin";
/// The list of which tensor is in which file, for a checkpoint in several files of PyTorch's form.
pub const PICKLED_INDEX: &str = "pytorch_model.bin.index.json";

/// A pickle of ten thousand tensors takes two megabytes and half of the visits.
const MAX_PICKLE_BYTES: u64 = 8 << 20;
const CHUNK: usize = 1 << 18;
/// What candle says of a storage whose type it does not know.
const UNKNOWN_TYPE: &str = "unsupported storage type";

/// A tensor of a checkpoint, checked: its values lie inside its storage, and that inside the file.
struct PickledTensor {
    dtype: &'static str,
    /// Bytes of a value.
    width: usize,
    shape: Vec<usize>,
    /// From one value to the next along each dimension, in values.
    strides: Vec<usize>,
    /// The first byte in the file.
    begin: u64,
    /// Bytes from there on that are of use.
    span: u64,
    /// Bytes of its values.
    bytes: u64,
}

/// Where storages lie in the file: the first byte and the number of bytes of the one of a name.
type FindStorage<'a> = dyn FnMut(&str) -> Result<[u64; 2], String> + 'a;

fn bad(path: &Path, message: &str) -> Error {
    Error::weights(path, format!("not a PyTorch checkpoint that can be read: {message}"))
}

/// Writes the tensors of the PyTorch checkpoint `from` to the new file `to` as safetensors, in the order of their names.
///
/// # Errors
/// `from` is no PyTorch checkpoint, is damaged or crafted, or holds tensors of a kind that has no place
/// in safetensors; or a file cannot be read or written. The errors name `from` or `to`.
pub fn convert(from: &Path, to: &Path) -> Result<()> {
    let (file, tensors) = open(from)?;
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut end = 0u64;
    for (name, tensor) in &tensors {
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [end, end + tensor.bytes]});
        header.insert(name.clone(), entry);
        end += tensor.bytes;
    }
    let mut header = serde_json::Value::Object(header).to_string();
    // The values begin at a multiple of eight.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut out = BufWriter::new(File::create(to).map_err(Error::io(to))?);
    out.write_all(&(header.len() as u64).to_le_bytes())
        .and_then(|()| out.write_all(header.as_bytes()))
        .map_err(Error::io(to))?;
    for tensor in tensors.values() {
        if tensor.is_contiguous() {
            let mut buffer = vec![0; CHUNK];
            for first in (0..tensor.bytes).step_by(CHUNK) {
                let n = (tensor.bytes - first).min(CHUNK as u64) as usize;
                read_exact_at(&file, &mut buffer[..n], tensor.begin + first).map_err(Error::io(from))?;
                out.write_all(&buffer[..n]).map_err(Error::io(to))?;
            }
            continue;
        }
        // No longer than the file.
        let mut all = vec![0; tensor.span as usize];
        read_exact_at(&file, &mut all, tensor.begin).map_err(Error::io(from))?;
        let mut written = Ok(());
        each_place(&tensor.shape, &tensor.strides, |at| {
            if written.is_ok() {
                written = out.write_all(&all[at * tensor.width..(at + 1) * tensor.width]);
            }
        });
        written.map_err(Error::io(to))?;
    }
    let file = out.into_inner().map_err(|error| Error::io(to)(error.into_error()))?;
    file.sync_all().map_err(Error::io(to))
}

/// Where the values of the tensors of the PyTorch checkpoint `path` lie in it, which is file `number` of its checkpoint.
///
/// # Errors
/// As [`convert`].
pub(super) fn entries(path: &Path, number: usize) -> Result<BTreeMap<String, TensorEntry>> {
    let place = |(name, tensor): (String, PickledTensor)| {
        let is_contiguous = tensor.is_contiguous();
        let PickledTensor { dtype, shape, strides, begin, span, bytes, .. } = tensor;
        let entry = if is_contiguous {
            TensorEntry::at(number, dtype, shape, [begin, bytes])
        } else {
            TensorEntry::strided(number, dtype, shape, strides, [begin, span])
        };
        (name, entry)
    };
    Ok(open(path)?.1.into_iter().map(place).collect())
}

/// Calls `f` with the place of each value, row-major, of a tensor with these strides.
pub(super) fn each_place(shape: &[usize], strides: &[usize], mut f: impl FnMut(usize)) {
    let mut index = vec![0; shape.len()];
    for _ in 0..shape.iter().product() {
        f(index.iter().zip(strides).map(|(i, s)| i * s).sum());
        for (i, &d) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < d {
                break;
            }
            *i = 0;
        }
    }
}

/// The checkpoint `path` and what it holds.
fn open(path: &Path) -> Result<(File, BTreeMap<String, PickledTensor>)> {
    let file = File::open(path).map_err(Error::io(path))?;
    let len = file.metadata().map_err(Error::io(path))?.len();
    // The zip library reads what a stranger wrote, and so does candle.
    let read = contain(|| {
        if legacy::is_legacy(&file) {
            return legacy::tensors(&file, len);
        }
        let mut archive = ZipArchive::new(BufReader::new(&file))
            .map_err(|error| format!("{error}; it is neither a zip archive nor a file of PyTorch before 1.6"))?;
        tensors_of_archive(&mut archive, len)
    });
    let tensors = read.and_then(|read| read).map_err(|message| bad(path, &message))?;
    Ok((file, tensors))
}

/// The tensors of the archive, which is `len` bytes long.
fn tensors_of_archive(
    archive: &mut ZipArchive<BufReader<&File>>,
    len: u64,
) -> Result<BTreeMap<String, PickledTensor>, String> {
    let is_pickle = |name: &str| name == "data.pkl" || name.ends_with("/data.pkl");
    let names: Vec<String> = archive.file_names().flatten().filter(|n| is_pickle(n)).map(Into::into).collect();
    let [name] = &names[..] else { return Err(format!("{} files called data.pkl in the archive", names.len())) };
    let entry = archive.by_name(name).map_err(|error| error.to_string())?;
    if entry.size() > MAX_PICKLE_BYTES {
        return Err(format!("{name} of {} bytes is too large", entry.size()));
    }
    let mut pickle = Vec::new();
    entry.take(MAX_PICKLE_BYTES).read_to_end(&mut pickle).map_err(|error| error.to_string())?;
    let (object, _) = unpickle(&pickle)?;
    let dir = Path::new(name.strip_suffix(".pkl").unwrap_or(name));
    let mut find = |name: &str| {
        let entry = archive.by_name(name).map_err(|error| format!("its storage: {error}"))?;
        if entry.compression() != CompressionMethod::Stored || entry.size() > len {
            return Err("its storage is compressed or longer than the file".to_owned());
        }
        Ok([entry.data_start().unwrap_or(u64::MAX), entry.size()])
    };
    tensors(object, dir, len, &mut find)
}

/// The tensors among what a pickle made, whose storages are called after the folder `dir`, in a file of `len` bytes.
fn tensors(
    object: Object,
    dir: &Path,
    len: u64,
    find: &mut FindStorage<'_>,
) -> Result<BTreeMap<String, PickledTensor>, String> {
    let mut tensors = BTreeMap::new();
    let mut total = 0u64;
    // Whole numbers, bits and complex numbers, of which no model is made. Who asks for one is told that it is not there.
    let mut passed_over = None;
    for (name, value) in state_dict(object)? {
        let shown = format!("`{}`", name.chars().take(80).collect::<String>().escape_debug());
        let info = match value.into_tensor_info(Object::Unicode(name), dir) {
            Ok(info) => info,
            Err(error) => {
                let why = format!("tensor {shown}: {}", brief(&error));
                if !why.contains(UNKNOWN_TYPE) {
                    return Err(why);
                }
                passed_over = Some(why);
                continue;
            }
        };
        // What is no tensor (versions, settings) is of no use.
        let Some(info) = info else { continue };
        let Some(dtype) = dtype_name(info.dtype) else {
            passed_over = Some(format!("tensor {shown}: its type {:?} is not supported", info.dtype));
            continue;
        };
        let place = find(&info.path).and_then(|storage| check(&info, dtype, storage, len));
        let tensor = place.map_err(|why| format!("tensor {shown}: {why}"))?;
        // Tensors may share a storage, but hardly more than once.
        total = total.saturating_add(tensor.bytes);
        if total / 4 > len {
            return Err(format!("its tensors are longer than {} bytes, the file has {len}", total - 1));
        }
        tensors.insert(info.name, tensor);
    }
    if tensors.is_empty() {
        return Err(passed_over.unwrap_or_else(|| "no tensors in its dictionary".to_owned()));
    }
    Ok(tensors)
}

/// What safetensors calls a type.
fn dtype_name(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => Some("F32"),
        DType::F64 => Some("F64"),
        DType::F16 => Some("F16"),
        DType::BF16 => Some("BF16"),
        DType::I64 => Some("I64"),
        DType::U8 => Some("U8"),
        _ => None,
    }
}

/// Where a tensor's values are, if they can be in its storage of `size` bytes from `start` on, and that in a file of `len` bytes.
fn check(info: &TensorInfo, dtype: &'static str, [start, size]: [u64; 2], len: u64) -> Result<PickledTensor, String> {
    let width = info.dtype.size_in_bytes();
    let (shape, strides) = (info.layout.dims().to_vec(), info.layout.stride().to_vec());
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let last =
        shape.iter().zip(&strides).try_fold(0usize, |n, (&d, &s)| n.checked_add(d.saturating_sub(1).checked_mul(s)?));
    let span = |count: usize, last: usize| if count == 0 { Some(0) } else { last.checked_add(1)?.checked_mul(width) };
    let begin = info.layout.start_offset() as u64;
    let sizes = count.zip(last).and_then(|(count, last)| Some((count.checked_mul(width)?, span(count, last)?)));
    match sizes {
        Some((bytes, span))
            if begin.checked_add(span as u64).is_some_and(|end| end <= size) && shape.len() == strides.len() =>
        {
            let (bytes, span) = (bytes as u64, span as u64);
            let begin = start.saturating_add(begin);
            if begin.saturating_add(span) > len {
                return Err("it ends beyond the file".to_owned());
            }
            Ok(PickledTensor { dtype, width, shape, strides, begin, span, bytes })
        }
        _ => Err(format!("{shape:?} values do not fit into a storage of {size} bytes")),
    }
}

impl PickledTensor {
    /// Whether its values lie in their order without gaps.
    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&d, &s)| {
            let fits = d == 1 || s == expected;
            expected *= d;
            fits
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::weights::{SINGLE, Weights};

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/pickle").join(name)
    }

    /// An archive whose storages are these bytes.
    fn archive(pickle: &[u8], storages: &[&[u8]]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut zip = zip::ZipWriter::new(file.reopen().unwrap());
        let options = zip::write::SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        zip.start_file("a/data.pkl", options).unwrap();
        zip.write_all(pickle).unwrap();
        for (i, storage) in storages.iter().enumerate() {
            zip.start_file(format!("a/data/{i}"), options).unwrap();
            zip.write_all(storage).unwrap();
        }
        zip.finish().unwrap();
        file
    }

    fn refused(path: &Path) -> String {
        let dir = tempfile::tempdir().unwrap();
        let message = convert(path, &dir.path().join(SINGLE)).unwrap_err().to_string();
        assert!(
            message.contains("not a PyTorch checkpoint that can be read: ") && !message.contains('\n'),
            "{message}"
        );
        message
    }

    /// A dictionary of one tensor `w` of floats, as `torch.save` writes it.
    fn one(shape: &[u8], strides: &[u8], offset: u8, storage: &str) -> Vec<u8> {
        let string = |s: &str| [&b"X"[..], &(s.len() as u32).to_le_bytes(), s.as_bytes()].concat();
        let tuple = |v: &[u8]| [&b"("[..], &v.iter().flat_map(|&n| [b'K', n]).collect::<Vec<u8>>(), b"t"].concat();
        [
            &b"\x80\x02}"[..],
            &string("w"),
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            &string("storage"),
            format!("ctorch\n{storage}\n").as_bytes(),
            &string("0"),
            &string("cpu"),
            b"K\x06tQK",
            &[offset],
            &tuple(shape),
            &tuple(strides),
            b"\x89ccollections\nOrderedDict\n)RtRs.",
        ]
        .concat()
    }

    fn converted(path: &Path) -> (tempfile::TempDir, Weights) {
        let dir = tempfile::tempdir().unwrap();
        convert(path, &dir.path().join(SINGLE)).unwrap();
        let weights = Weights::open(dir.path()).unwrap();
        (dir, weights)
    }

    // `torch.save` as it is and as it was, `torch.jit.save`, and `safetensors.torch.save_file` of the same tensors.
    #[test]
    fn checkpoints_of_pytorch_hold_what_their_safetensors_hold() {
        let read = |path: &Path| {
            let bytes = std::fs::read(path).unwrap();
            let found = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let mut found: Vec<_> = found
                .tensors()
                .into_iter()
                .map(|(name, view)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()))
                .collect();
            found.sort_by(|a, b| a.0.cmp(&b.0));
            found
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SINGLE);
        for (name, same, tensors) in [
            ("pytorch_model.bin", "model.safetensors", 8),
            ("legacy.pth", "model.safetensors", 8),
            ("scripted.pt", "scripted.safetensors", 5),
        ] {
            convert(&fixture(name), &path).unwrap();
            let got = read(&path);
            assert_eq!(got.len(), tensors, "{name}");
            assert_eq!(got, read(&fixture(same)), "{name}");
        }
    }

    #[test]
    fn values_are_read_where_they_are() {
        let values: Vec<u8> = [0f32, 1., 2., 3., 4., 5., 6.].iter().flat_map(|v| v.to_le_bytes()).collect();
        let dir = tempfile::tempdir().unwrap();
        let name = crate::open_clip::WEIGHTS[2];
        let read = |shape: &[u8], strides: &[u8], offset: u8| {
            let checkpoint = archive(&one(shape, strides, offset, "FloatStorage"), &[&values]);
            std::fs::copy(checkpoint.path(), dir.path().join(name)).unwrap();
            let shape: Vec<usize> = shape.iter().map(|&d| usize::from(d)).collect();
            Weights::open_open_clip(dir.path()).and_then(|weights| weights.get("w", &shape))
        };
        assert_eq!(read(&[2, 3], &[3, 1], 1).unwrap(), [1., 2., 3., 4., 5., 6.]);
        // The transpose of a matrix that lies there.
        assert_eq!(read(&[2, 3], &[1, 2], 0).unwrap(), [0., 2., 4., 1., 3., 5.]);
        // Some of the values that lie there, apart, in another order, or more than once.
        assert_eq!(read(&[2], &[3], 0).unwrap(), [0., 3.]);
        assert_eq!(read(&[2, 1, 2], &[1, 6, 3], 1).unwrap(), [1., 4., 2., 5.]);
        assert_eq!(read(&[2, 3], &[0, 2], 1).unwrap(), [1., 3., 5., 1., 3., 5.]);
        assert_eq!(read(&[0, 3], &[3, 1], 0).unwrap(), [0f32; 0]);
    }

    #[test]
    fn a_checkpoint_of_pytorch_is_the_same_one_where_it_lies() {
        let values: Vec<u8> = [1f32, 2., 3., 4., 5., 6.].iter().flat_map(|v| v.to_le_bytes()).collect();
        let checkpoint = archive(&one(&[2, 3], &[3, 1], 0, "FloatStorage"), &[&values]);
        let dir = tempfile::tempdir().unwrap();
        let names = ["w".to_owned()];
        let content = || Weights::open(dir.path()).unwrap().content(&names, &[]).unwrap();
        convert(checkpoint.path(), &dir.path().join(SINGLE)).unwrap();
        let expected = content();
        std::fs::remove_file(dir.path().join(SINGLE)).unwrap();
        std::fs::copy(checkpoint.path(), dir.path().join(PICKLED)).unwrap();
        assert_eq!(content(), expected);
        std::fs::rename(dir.path().join(PICKLED), dir.path().join("one.bin")).unwrap();
        std::fs::write(dir.path().join(PICKLED_INDEX), json!({"weight_map": {"w": "one.bin"}}).to_string()).unwrap();
        assert_eq!(content(), expected);
    }

    #[test]
    fn values_are_found_by_offset_and_strides() {
        let values: Vec<u8> = [0f32, 1., 2., 3., 4., 5.].iter().flat_map(|v| v.to_le_bytes()).collect();
        for (shape, strides, offset, want) in [
            (&[2, 3][..], &[3, 1][..], 0, vec![0., 1., 2., 3., 4., 5.]),
            (&[3, 2], &[1, 3], 0, vec![0., 3., 1., 4., 2., 5.]),
            (&[2], &[2], 1, vec![1., 3.]),
            (&[2, 2], &[0, 1], 4, vec![4., 5., 4., 5.]),
            (&[1, 2], &[9, 1], 4, vec![4., 5.]),
        ] {
            let file = archive(&one(shape, strides, offset, "FloatStorage"), &[&values]);
            let (_dir, weights) = converted(file.path());
            let shape: Vec<usize> = shape.iter().map(|&d| usize::from(d)).collect();
            assert_eq!(weights.get("w", &shape).unwrap(), want);
        }
    }

    #[test]
    fn crafted_checkpoints_are_refused() {
        let values = [0; 24];
        for (pickle, part) in [
            (one(&[7], &[1], 0, "FloatStorage"), "tensor `w`: [7] values do not fit into a storage of 24 bytes"),
            (one(&[2], &[6], 0, "FloatStorage"), "do not fit"),
            (one(&[6], &[1], 1, "FloatStorage"), "do not fit"),
            (one(&[255; 40], &[0; 40], 0, "FloatStorage"), "do not fit"),
            (one(&[255, 255], &[0, 0], 0, "FloatStorage"), "its tensors are longer than"),
            (one(&[1], &[1, 1], 0, "FloatStorage"), "do not fit"),
            (one(&[1], &[1], 0, "IntStorage"), "tensor `w`: unsupported storage type IntStorage"),
            (b"\x80\x02}.".to_vec(), "no tensors in its dictionary"),
            (b"\x80\x02K\x01.".to_vec(), "no dictionary"),
            (b"\x80\x02}".to_vec(), "ends too early"),
            (b"\x80\x02X\xff\xff\xff\xffa".to_vec(), "longer than the pickle"),
            (b"\x80\x02X\xff".to_vec(), "longer than the pickle"),
            (b"\x80\x02\x8b".to_vec(), "unknown op-code"),
            // A tuple of a tuple of ... and the memo that doubles its content each time.
            ([&b"\x80\x02)"[..], &vec![0x85; 100_000][..], b"."].concat(), "nested too deep"),
            ([&b"\x80\x02)"[..], &b"q\x01h\x01h\x01\x86".repeat(40)[..], b"."].concat(), "nested too deep"),
            (
                [&b"\x80\x02]("[..], &b"K\x01".repeat(50_000)[..], b"e", &b"q\x01".repeat(50_000)[..], b"."].concat(),
                "too large",
            ),
        ] {
            let message = refused(archive(&pickle, &[&values]).path());
            assert!(message.contains(part), "{message}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.").unwrap();
        assert!(refused(file.path()).contains("neither a zip archive nor a file of PyTorch before 1.6"));
    }

    #[test]
    fn no_change_of_one_byte_makes_a_panic() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join(PICKLED), dir.path().join(SINGLE));
        let legacy = std::fs::read(fixture("legacy.pth")).unwrap();
        for at in 0..legacy.len() {
            for byte in [0, legacy[at] ^ 1, 255] {
                let mut bytes = legacy.clone();
                bytes[at] = byte;
                std::fs::write(&from, bytes).unwrap();
                if let Err(error) = convert(&from, &to) {
                    assert!(!error.to_string().contains('\n'), "{error}");
                }
            }
            std::fs::write(&from, &legacy[..at]).unwrap();
            assert!(!convert(&from, &to).unwrap_err().to_string().contains('\n'));
        }
        let whole = std::fs::read(fixture("pytorch_model.bin")).unwrap();
        // The pickle comes first, the archive's list of files last.
        for at in (0..1500.min(whole.len())).chain(whole.len() - 600..whole.len()).step_by(7) {
            for byte in [0, whole[at] ^ 1, 255] {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                std::fs::write(&from, bytes).unwrap();
                if let Err(error) = convert(&from, &to) {
                    assert!(!error.to_string().contains('\n'), "{error}");
                }
            }
        }
    }
}
