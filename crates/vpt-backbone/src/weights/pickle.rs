//! PyTorch's own checkpoints (`pytorch_model.bin`) made safetensors, for repositories that have nothing else.
//!
//! Such a file is a zip archive of a pickle, which says how tensors lie in storages, and of the storages. candle's reader
//! runs the pickle; it calls nothing, so no code of the file is ever executed. It trusts the file's lengths, though, and
//! copies whatever is referred to again, so every step it takes is watched here: a crafted pickle of a few kilobytes could
//! otherwise fill the memory or the call stack.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use candle_core::DType;
use candle_core::pickle::{Object, Stack, TensorInfo};
use serde_json::json;
use zip::{CompressionMethod, ZipArchive};

use super::file::TensorEntry;
use vpt_base::contain::contain;
use vpt_base::{Error, Result};

/// The file that holds a checkpoint in PyTorch's form.
pub const PICKLED: &str = "pytorch_model.bin";
/// The list of which tensor is in which file, for a checkpoint in several files of PyTorch's form.
pub const PICKLED_INDEX: &str = "pytorch_model.bin.index.json";

/// A pickle of ten thousand tensors takes two megabytes and half of the visits.
const MAX_PICKLE_BYTES: u64 = 8 << 20;
const MAX_VISITS: usize = 4 << 20;
/// A tensor of a dictionary is eight levels deep.
const MAX_DEPTH: usize = 24;
const CHUNK: usize = 1 << 18;
/// What candle says of a storage whose type it does not know.
const UNKNOWN_TYPE: &str = "unsupported storage type";

/// A tensor of the archive, checked: its values lie inside its storage.
struct PickledTensor {
    entry: String,
    dtype: &'static str,
    /// Bytes of a value.
    width: usize,
    shape: Vec<usize>,
    /// From one value to the next along each dimension, in values.
    strides: Vec<usize>,
    /// The first byte in the storage.
    begin: u64,
    /// Bytes from there on that are of use.
    span: u64,
    /// Bytes of its values.
    bytes: u64,
}

/// Writes the tensors of the PyTorch checkpoint `from` to the new file `to` as safetensors, in the order of their names.
///
/// # Errors
/// `from` is no PyTorch checkpoint in a zip archive, is damaged or crafted, or holds tensors of a kind that has no place
/// in safetensors; or a file cannot be read or written. The errors name `from` or `to`.
pub fn convert(from: &Path, to: &Path) -> Result<()> {
    let bad = |message: String| Error::weights(from, format!("not a PyTorch checkpoint that can be read: {message}"));
    let len = std::fs::metadata(from).map_err(Error::io(from))?.len();
    let file = File::open(from).map_err(Error::io(from))?;
    // The zip library reads what a stranger wrote, and so does candle.
    let read = contain(|| {
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| {
            format!("{error}; files of PyTorch before 1.6 are not zip archives and must be saved again")
        })?;
        let tensors = tensors(&mut archive, len)?;
        Ok((archive, tensors))
    });
    let (mut archive, tensors) = read.and_then(|read| read).map_err(bad)?;

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
    for (name, tensor) in &tensors {
        let copied = contain(|| copy(&mut archive, tensor, &mut out)).map_err(bad)?;
        copied.map_err(|failed| match failed {
            Failed::Read(error) => bad(format!("tensor `{}`: {error}", name.escape_debug())),
            Failed::Written(error) => Error::io(to)(error),
        })?;
    }
    let file = out.into_inner().map_err(|error| Error::io(to)(error.into_error()))?;
    file.sync_all().map_err(Error::io(to))
}

/// Where the values of the tensors of the PyTorch checkpoint `path` lie in it, which is file `number` of its checkpoint.
///
/// # Errors
/// As [`convert`], or the values of a tensor do not lie in their order.
pub(super) fn entries(path: &Path, number: usize) -> Result<BTreeMap<String, TensorEntry>> {
    let bad = |message: String| Error::weights(path, format!("not a PyTorch checkpoint that can be read: {message}"));
    let file = File::open(path).map_err(Error::io(path))?;
    let len = file.metadata().map_err(Error::io(path))?.len();
    let read = contain(|| {
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| {
            format!("{error}; files of PyTorch before 1.6 are not zip archives and must be saved again")
        })?;
        let found = tensors(&mut archive, len)?;
        let place = |(name, tensor): (String, PickledTensor)| {
            let shown = name.escape_debug().to_string();
            let entry = archive.by_name(&tensor.entry).map_err(|error| error.to_string())?;
            let begin = entry.data_start().map_or(u64::MAX, |start| start.saturating_add(tensor.begin));
            if begin.saturating_add(tensor.bytes) > len {
                return Err(format!("tensor `{shown}` ends beyond the file"));
            }
            let at = |shape: Vec<usize>| TensorEntry::at(number, tensor.dtype, shape, [begin, tensor.bytes]);
            let entry = if tensor.is_contiguous() {
                Some(at(tensor.shape.clone()))
            } else if let ([rows, columns], [1, step]) = (&tensor.shape[..], &tensor.strides[..])
                && step == rows
            {
                at(vec![*columns, *rows]).transpose()
            } else {
                None
            };
            let scattered = || format!("the values of tensor `{shown}` do not lie in their order; save it contiguous");
            Ok((name, entry.ok_or_else(scattered)?))
        };
        found.into_iter().map(place).collect()
    });
    read.and_then(|read| read).map_err(bad)
}

/// The tensors of the archive, which is `len` bytes long.
fn tensors(archive: &mut ZipArchive<BufReader<File>>, len: u64) -> Result<BTreeMap<String, PickledTensor>, String> {
    let is_pickle = |name: &str| name == "data.pkl" || name.ends_with("/data.pkl");
    let names: Vec<String> = archive.file_names().flatten().filter(|n| is_pickle(n)).map(Into::into).collect();
    let [name] = &names[..] else { return Err(format!("{} files called data.pkl in the archive", names.len())) };
    let entry = archive.by_name(name).map_err(|error| error.to_string())?;
    if entry.size() > MAX_PICKLE_BYTES {
        return Err(format!("{name} of {} bytes is too large", entry.size()));
    }
    let mut pickle = Vec::new();
    entry.take(MAX_PICKLE_BYTES).read_to_end(&mut pickle).map_err(|error| error.to_string())?;
    let Object::Dict(items) = unpickle(&pickle)? else { return Err("no dictionary of tensors".to_owned()) };
    let items = state_dict(items);
    let dir = Path::new(name.strip_suffix(".pkl").unwrap_or(name));

    let mut tensors = BTreeMap::new();
    let mut total = 0u64;
    // Whole numbers, bits and complex numbers, of which no model is made. Who asks for one is told that it is not there.
    let mut passed_over = None;
    for (key, value) in items {
        let Object::Unicode(name) = &key else { continue };
        let shown = format!("`{}`", name.chars().take(80).collect::<String>().escape_debug());
        let info = match value.into_tensor_info(key, dir) {
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
        let tensor = check(archive, &info, dtype, len).map_err(|why| format!("tensor {shown}: {why}"))?;
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

/// The dictionary of tensors in what a training program saves beside other things: under `state_dict` or `model`.
fn state_dict(items: Vec<(Object, Object)>) -> Vec<(Object, Object)> {
    let is_inner = |(key, value): &(Object, Object)| {
        matches!(key, Object::Unicode(name) if ["state_dict", "model"].contains(&name.as_str()))
            && matches!(value, Object::Dict(_))
    };
    let Some(at) = items.iter().position(is_inner) else { return items };
    match items.into_iter().nth(at) {
        Some((_, Object::Dict(inner))) => inner,
        _ => Vec::new(),
    }
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

/// Where a tensor's values are, if they can be there.
fn check(
    archive: &mut ZipArchive<BufReader<File>>,
    info: &TensorInfo,
    dtype: &'static str,
    len: u64,
) -> Result<PickledTensor, String> {
    let entry = archive.by_name(&info.path).map_err(|error| format!("its storage: {error}"))?;
    if entry.compression() != CompressionMethod::Stored || entry.size() > len {
        return Err("its storage is compressed or longer than the file".to_owned());
    }
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
            if begin.checked_add(span as u64).is_some_and(|end| end <= entry.size())
                && shape.len() == strides.len() =>
        {
            let (bytes, span) = (bytes as u64, span as u64);
            Ok(PickledTensor { entry: info.path.clone(), dtype, width, shape, strides, begin, span, bytes })
        }
        _ => Err(format!("{shape:?} values do not fit into a storage of {} bytes", entry.size())),
    }
}

enum Failed {
    Read(io::Error),
    Written(io::Error),
}

/// Copies a tensor's values to `out`, row-major.
fn copy(archive: &mut ZipArchive<BufReader<File>>, tensor: &PickledTensor, out: &mut impl Write) -> Result<(), Failed> {
    let error = |error| Failed::Read(io::Error::other(error));
    let mut entry = archive.by_name(&tensor.entry).map_err(error)?;
    let skipped = io::copy(&mut (&mut entry).take(tensor.begin), &mut io::sink()).map_err(Failed::Read)?;
    let too_short = || Failed::Read(io::ErrorKind::UnexpectedEof.into());
    if skipped != tensor.begin {
        return Err(too_short());
    }
    let mut values = entry.take(tensor.span);
    if tensor.is_contiguous() {
        let mut buffer = vec![0; CHUNK];
        let mut left = tensor.bytes;
        while left > 0 {
            let n = values.read(&mut buffer).map_err(Failed::Read)?;
            if n == 0 {
                return Err(too_short());
            }
            out.write_all(&buffer[..n]).map_err(Failed::Written)?;
            left -= n as u64;
        }
        return Ok(());
    }
    // No longer than the file, by the check of its storage.
    let mut all = Vec::new();
    values.read_to_end(&mut all).map_err(Failed::Read)?;
    if all.len() as u64 != tensor.span {
        return Err(too_short());
    }
    let mut index = vec![0; tensor.shape.len()];
    for _ in 0..tensor.bytes / tensor.width as u64 {
        let at: usize = index.iter().zip(&tensor.strides).map(|(i, s)| i * s).sum();
        out.write_all(&all[at * tensor.width..(at + 1) * tensor.width]).map_err(Failed::Written)?;
        for (i, &d) in index.iter_mut().zip(&tensor.shape).rev() {
            *i += 1;
            if *i < d {
                break;
            }
            *i = 0;
        }
    }
    Ok(())
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

/// The object a pickle makes, every step of which is watched.
fn unpickle(pickle: &[u8]) -> Result<Object, String> {
    let mut stack = Stack::empty();
    let mut rest = pickle;
    let mut visits = MAX_VISITS;
    loop {
        let Some(&op) = rest.first() else { return Err("the pickle ends too early".to_owned()) };
        // A string's length is believed, and memory taken for it.
        if op == b'X' {
            let length = rest.get(1..5).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
            if length.is_none_or(|n| n as usize > rest.len() - 5) {
                return Err("a string of the pickle is longer than the pickle".to_owned());
            }
        }
        let done = stack.read(&mut rest).map_err(|error| brief(&error))?;
        if done {
            return stack.finalize().map_err(|error| brief(&error));
        }
        // What is on top has grown, or been copied to or from the memory of what was seen before.
        let weighed =
            matches!(op, b'q' | b'r' | b'h' | b'j' | b't' | b'R' | b'Q' | b's' | b'u' | b'd' | b'b' | b'a' | b'e')
                || (0x81..=0x87).contains(&op);
        if let (true, Some(top)) = (weighed, stack.stack().last()) {
            weigh(top, MAX_DEPTH, &mut visits)?;
        }
    }
}

/// Candle's message, without the backtrace that may follow.
fn brief(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Takes the number of objects in `object` from `visits`; fails if that is used up, or they are nested too deep.
fn weigh(object: &Object, depth: usize, visits: &mut usize) -> Result<(), String> {
    let (Some(depth), Some(left)) = (depth.checked_sub(1), visits.checked_sub(1)) else {
        return Err("the pickle is nested too deep or too large".to_owned());
    };
    *visits = left;
    match object {
        Object::Tuple(items) | Object::List(items) => items.iter().try_for_each(|item| weigh(item, depth, visits)),
        Object::Dict(items) => items.iter().try_for_each(|(key, value)| {
            weigh(key, depth, visits)?;
            weigh(value, depth, visits)
        }),
        Object::Reduce { callable, args } | Object::Build { callable, args } => {
            weigh(callable, depth, visits)?;
            weigh(args, depth, visits)
        }
        Object::PersistentLoad(id) => weigh(id, depth, visits),
        // A long string takes as much as many small objects.
        Object::Unicode(text) => {
            *visits = visits.saturating_sub(text.len() / 64);
            Ok(())
        }
        _ => Ok(()),
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

    // `torch.save` and `safetensors.torch.save_file` of the same tensors.
    #[test]
    fn checkpoints_of_pytorch_hold_what_their_safetensors_hold() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SINGLE);
        convert(&fixture("pytorch_model.bin"), &path).unwrap();
        let read = |path: &Path| {
            safetensors::SafeTensors::deserialize(&std::fs::read(path).unwrap())
                .map(|s| {
                    s.tensors()
                        .into_iter()
                        .map(|(n, t)| (n, t.dtype(), t.shape().to_vec(), t.data().to_vec()))
                        .collect::<Vec<_>>()
                })
                .unwrap()
        };
        let mut want = read(&fixture("model.safetensors"));
        let mut got = read(&path);
        want.sort_by(|a, b| a.0.cmp(&b.0));
        got.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(got.len(), 8);
        assert_eq!(got, want);
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
        let message = read(&[2], &[3], 0).unwrap_err().to_string();
        assert!(message.contains("tensor `w` do not lie in their order"), "{message}");
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
        assert!(refused(file.path()).contains("before 1.6"));
    }

    #[test]
    fn no_change_of_one_byte_makes_a_panic() {
        let whole = std::fs::read(fixture("pytorch_model.bin")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join(PICKLED), dir.path().join(SINGLE));
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
