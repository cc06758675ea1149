//! `NumPy`'s files of arrays, by its format description: `.npy` holds one array, `.npz` is a zip archive of several, not compressed.
//!
//! Written is version 1.0, little-endian, row by row. Read are versions 1.0 to 3.0 of the types of [`NpyValues`]; arrays of other types,
//! by columns or with the larger byte first, are refused by name. A few lines of our own, since the crates for it bring a parser
//! generator for the one line of Python in the header.

use std::io::{Cursor, Read, Write};
use std::path::Path;

use vpt_base::{
    Error, Result,
    contain::contain,
    files::{read_limited, write_atomic},
    params::element_count,
};
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

/// Most bytes of a file that is read.
const MAX_BYTES: u64 = 32 << 30;
/// Longest header; `NumPy` itself reads no longer one unless told to.
const MAX_HEADER: usize = 10_000;
/// Most arrays of an archive.
const MAX_ARRAYS: usize = 10_000;

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// An array of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct NpyArray {
    /// Length of each axis; none for a single value.
    pub shape: Vec<usize>,
    /// The values, the last axis fastest.
    pub values: NpyValues,
}

macro_rules! values {
    ($($(#[$meta:meta])* $variant:ident($kind:ty) = $descr:literal,)*) => {
        /// Values of an array by their type.
        #[derive(Debug, Clone, PartialEq)]
        pub enum NpyValues {
            $($(#[$meta])* $variant(Vec<$kind>),)*
        }

        impl NpyValues {
            /// How many there are.
            pub fn len(&self) -> usize {
                match self { $(Self::$variant(values) => values.len(),)* }
            }

            /// Whether there are none.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// The type as files have it: `<f4`.
            pub fn descr(&self) -> &'static str {
                match self { $(Self::$variant(_) => $descr,)* }
            }

            fn to_bytes(&self) -> Vec<u8> {
                match self { $(Self::$variant(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),)* }
            }

            /// Bytes of one value of the type `descr`, and what makes values of bytes; `None` for types that are not read.
            #[allow(clippy::type_complexity, reason = "a size and a function")]
            fn reader(descr: &str) -> Option<(usize, fn(&[u8]) -> Self)> {
                match descr {
                    $($descr => Some((size_of::<$kind>(), |bytes| {
                        let one = |bytes: &[u8]| {
                            let mut value = [0; size_of::<$kind>()];
                            value.copy_from_slice(bytes);
                            <$kind>::from_le_bytes(value)
                        };
                        Self::$variant(bytes.chunks_exact(size_of::<$kind>()).map(one).collect())
                    })),)*
                    _ => None,
                }
            }
        }

        $(impl From<Vec<$kind>> for NpyValues {
            fn from(values: Vec<$kind>) -> Self {
                Self::$variant(values)
            }
        })*
    };
}

values! {
    /// 8-bit, as pixels are.
    U8(u8) = "|u1",
    /// 32-bit integers.
    I32(i32) = "<i4",
    /// 64-bit integers, `NumPy`'s default.
    I64(i64) = "<i8",
    /// 32-bit floats, as features are.
    F32(f32) = "<f4",
    /// 64-bit floats, as boxes are.
    F64(f64) = "<f8",
}

impl NpyArray {
    /// An array of this shape.
    ///
    /// # Errors
    /// The values do not fill it.
    pub fn new(shape: &[usize], values: impl Into<NpyValues>) -> Result<Self> {
        let values = values.into();
        if element_count(shape) != Some(values.len()) {
            return Err(Error::invalid("array", format!("{} values do not fill shape {shape:?}", values.len())));
        }
        Ok(Self { shape: shape.to_vec(), values })
    }

    /// The content of an `.npy`: the same for the same array, always.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = npy_header(self.values.descr(), &self.shape);
        bytes.extend(self.values.to_bytes());
        bytes
    }

    /// The array in the content of an `.npy`.
    ///
    /// # Errors
    /// It is none, is cut off, or is of a type or an order that is not read; says why.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let rest = bytes.strip_prefix(MAGIC).ok_or("no array of NumPy")?;
        let (version, rest) = rest.split_at_checked(2).ok_or(CUT_OFF)?;
        let (length, rest) = match version[0] {
            1 => rest.split_first_chunk::<2>().map(|(n, rest)| (usize::from(u16::from_le_bytes(*n)), rest)),
            2 | 3 => rest.split_first_chunk::<4>().map(|(n, rest)| (u32::from_le_bytes(*n) as usize, rest)),
            other => return Err(format!("version {other} of NumPy's format, which is not known")),
        }
        .ok_or(CUT_OFF)?;
        if length > MAX_HEADER {
            return Err(format!("a header of {length} bytes"));
        }
        let (header, data) = rest.split_at_checked(length).ok_or(CUT_OFF)?;
        let NpyHeader { descr, by_columns, shape } = NpyHeader::parse(header)?;
        let Some((size, read)) = NpyValues::reader(&descr) else {
            let why = if descr.starts_with('>') { ", with the larger byte first" } else { "" };
            return Err(format!("values of type {descr}{why}, which are not read: make them float32, uint8 or int64"));
        };
        // Of one axis, or of none, both orders are the same.
        if by_columns && shape.iter().filter(|&&axis| axis > 1).count() > 1 {
            return Err("values by columns (Fortran order), which are not read: save np.ascontiguousarray".to_owned());
        }
        let expected = element_count(&shape).and_then(|count| count.checked_mul(size));
        if expected != Some(data.len()) {
            return Err(format!("{} bytes of values are not those of shape {shape:?} of type {descr}", data.len()));
        }
        Ok(Self { shape, values: read(data) })
    }
}

/// What stands before the values of an `.npy`, whose type is `descr` and which lie row by row.
pub fn npy_header(descr: &str, shape: &[usize]) -> Vec<u8> {
    let axes = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    // A single axis has a comma behind it, as Python writes it.
    let axes = if shape.len() == 1 { axes + "," } else { axes };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({axes}), }}");
    // So that the values begin at a multiple of 64 bytes.
    let length = (MAGIC.len() + 4 + header.len() + 1).next_multiple_of(64) - MAGIC.len() - 4;
    header.push_str(&" ".repeat(length - header.len() - 1));
    header.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(header.into_bytes());
    bytes
}

const CUT_OFF: &str = "cut off";

/// What the header of an array says.
struct NpyHeader {
    descr: String,
    by_columns: bool,
    shape: Vec<usize>,
}

impl NpyHeader {
    /// Of `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "a header that is no text")?.trim();
        let unreadable = || format!("a header that cannot be read: {:?}", &text.chars().take(80).collect::<String>());
        let value = |key: &str| {
            let (_, rest) = text.split_once(&format!("'{key}'"))?;
            rest.trim_start().strip_prefix(':').map(str::trim_start)
        };
        let descr = value("descr").and_then(|rest| rest.strip_prefix('\'')?.split_once('\'')).map(|(descr, _)| descr);
        let order = value("fortran_order").and_then(|rest| match rest {
            _ if rest.starts_with("False") => Some(false),
            _ if rest.starts_with("True") => Some(true),
            _ => None,
        });
        let axes = value("shape").and_then(|rest| rest.strip_prefix('(')?.split_once(')')).map(|(axes, _)| axes);
        let (Some(descr), Some(by_columns), Some(axes)) = (descr, order, axes) else { return Err(unreadable()) };
        let axes = axes.split(',').map(str::trim).filter(|axis| !axis.is_empty());
        let shape = axes.map(|axis| axis.parse().map_err(|_| unreadable())).collect::<Result<_, _>>()?;
        Ok(Self { descr: descr.to_owned(), by_columns, shape })
    }
}

/// Writes `array` as an `.npy`, whole or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn write_npy(path: &Path, array: &NpyArray) -> Result<()> {
    write_atomic(path, &array.to_bytes())
}

/// Reads an `.npy`.
///
/// # Errors
/// It cannot be read, or as [`NpyArray::from_bytes`].
pub fn read_npy(path: &Path) -> Result<NpyArray> {
    NpyArray::from_bytes(&read_limited(path, MAX_BYTES)?).map_err(|why| Error::file(path, why))
}

/// Writes `arrays` with their names as an `.npz`, whole or not at all; equal arrays give equal bytes.
///
/// # Errors
/// The file cannot be written.
pub fn write_npz(path: &Path, arrays: &[(&str, NpyArray)]) -> Result<()> {
    let refuse = |error: zip::result::ZipError| Error::file(path, error.to_string());
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, array) in arrays {
        let bytes = array.to_bytes();
        let is_large = bytes.len() >= u32::MAX as usize;
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(is_large);
        archive.start_file(format!("{name}.npy"), options).map_err(refuse)?;
        archive.write_all(&bytes).map_err(Error::io(path))?;
    }
    write_atomic(path, archive.finish().map_err(refuse)?.get_ref())
}

/// Reads the arrays of an `.npz` with their names, in their order.
///
/// # Errors
/// It cannot be read, is compressed, or holds what is no array; the error names the array.
pub fn read_npz(path: &Path) -> Result<Vec<(String, NpyArray)>> {
    let bytes = read_limited(path, MAX_BYTES)?;
    // The zip library reads what a stranger wrote.
    contain(|| arrays_of(&bytes)).unwrap_or_else(Err).map_err(|why| Error::file(path, why))
}

fn arrays_of(bytes: &[u8]) -> Result<Vec<(String, NpyArray)>, String> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| error.to_string())?;
    if archive.len() > MAX_ARRAYS {
        return Err(format!("{} arrays, more than {MAX_ARRAYS}", archive.len()));
    }
    let mut arrays = Vec::with_capacity(archive.len());
    // What overlaps in a crafted archive must not be read again and again.
    let mut left = bytes.len() as u64;
    for index in 0..archive.len() {
        let said = archive.by_index_raw(index).map_err(|error| error.to_string())?;
        let name = said.name().map_err(|error| error.to_string())?.into_owned();
        let (size, compression) = (said.size(), said.compression());
        drop(said);
        if compression != CompressionMethod::Stored {
            return Err(format!("{name} is compressed, which is not read: write it with np.savez"));
        }
        left = left.checked_sub(size).ok_or_else(|| format!("{name} is larger than the file"))?;
        let member = archive.by_index(index).map_err(|error| format!("{name}: {error}"))?;
        let mut content = Vec::new();
        member.take(size).read_to_end(&mut content).map_err(|error| format!("{name}: {error}"))?;
        let array = NpyArray::from_bytes(&content).map_err(|why| format!("{name}: {why}"))?;
        arrays.push((name.strip_suffix(".npy").unwrap_or(&name).to_owned(), array));
    }
    Ok(arrays)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `np.save` of NumPy 2 writes of `np.array([[1., -2.5], [3., 4.]], dtype=np.float32)`.
    fn of_numpy() -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        bytes.extend(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }");
        bytes.resize(127, b' ');
        bytes.push(b'\n');
        bytes.extend([1_f32, -2.5, 3., 4.].iter().flat_map(|value| value.to_le_bytes()));
        bytes
    }

    #[test]
    fn bytes_are_those_of_numpy() {
        let array = NpyArray::new(&[2, 2], vec![1_f32, -2.5, 3., 4.]).unwrap();
        assert_eq!(array.to_bytes(), of_numpy());
        assert_eq!(NpyArray::from_bytes(&of_numpy()).unwrap(), array);
        assert!(NpyArray::new(&[2, 3], vec![1_f32]).is_err());
    }

    #[test]
    fn every_type_and_shape_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        for array in [
            NpyArray::new(&[3], vec![1_u8, 2, 255]).unwrap(),
            NpyArray::new(&[], vec![-7_i64]).unwrap(),
            NpyArray::new(&[0, 5], Vec::<f64>::new()).unwrap(),
            NpyArray::new(&[1, 2, 1], vec![i32::MIN, 9]).unwrap(),
            NpyArray::new(&[2], vec![f64::NEG_INFINITY, 1e-300]).unwrap(),
        ] {
            write_npy(&path, &array).unwrap();
            assert_eq!(read_npy(&path).unwrap(), array);
            assert_eq!(array.to_bytes().len() % 64, array.values.to_bytes().len() % 64);
        }
    }

    #[test]
    fn archives_hold_arrays_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npz");
        let arrays = [
            ("images", NpyArray::new(&[2], vec![1_f32, 2.]).unwrap()),
            ("b", NpyArray::new(&[1], vec![3_u8]).unwrap()),
        ];
        write_npz(&path, &arrays).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let read = read_npz(&path).unwrap();
        assert_eq!(read, arrays.clone().map(|(name, array)| (name.to_owned(), array)));
        write_npz(&path, &arrays).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        for length in [0, 10, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(read_npz(&path).is_err(), "{length}");
        }
    }

    #[test]
    fn what_is_not_read_is_refused_in_words() {
        let with = |from: &str, to: &str| {
            let bytes = of_numpy();
            let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
            let mut changed = bytes;
            changed[at..at + from.len()].copy_from_slice(to.as_bytes());
            NpyArray::from_bytes(&changed).unwrap_err()
        };
        assert!(with("<f4", ">f4").contains("larger byte first"));
        assert!(with("<f4", "<c8").contains("type <c8"));
        assert!(with("False", "True ").contains("Fortran"));
        assert!(with("(2, 2)", "(2, 3)").contains("16 bytes of values are not those of shape [2, 3]"));
        assert!(with("(2, 2)", "(2,-2)").contains("cannot be read"));
        assert!(with("'shape'", "'shapx'").contains("cannot be read"));
        let mut whole = of_numpy();
        for length in 0..whole.len() {
            assert!(NpyArray::from_bytes(&whole[..length]).is_err(), "{length}");
        }
        whole[6] = 9;
        assert!(NpyArray::from_bytes(&whole).unwrap_err().contains("version 9"));
        let huge = b"{'descr': '<f8', 'fortran_order': False, 'shape': (9223372036854775807, 9), }\n";
        let mut crafted = b"\x93NUMPY\x01\x00".to_vec();
        crafted.extend((huge.len() as u16).to_le_bytes());
        crafted.extend(huge);
        assert!(NpyArray::from_bytes(&crafted).is_err());
    }
}
