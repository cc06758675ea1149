//! Arrays in files of `NumPy`, and tables of the crates below as arrays.

use std::path::Path;

use ndarray::{Array, Array2, ArrayBase, Data, Dimension, IxDyn};
use vpt_base::{Error, Result};
use vpt_train::infer::npy::{self, NpyArray, NpyValues};

/// Types of values that files of `NumPy` are read and written with: `u8`, `i32`, `i64`, `f32`, `f64`.
pub trait NpyElement: Copy {
    /// Values as a file holds them.
    fn to_npy(values: Vec<Self>) -> NpyValues;

    /// Values of a file, if they are of this type.
    fn from_npy(values: NpyValues) -> Option<Vec<Self>>;
}

macro_rules! elements {
    ($($kind:ty: $variant:ident),*) => {
        $(impl NpyElement for $kind {
            fn to_npy(values: Vec<Self>) -> NpyValues {
                NpyValues::$variant(values)
            }

            fn from_npy(values: NpyValues) -> Option<Vec<Self>> {
                if let NpyValues::$variant(values) = values { Some(values) } else { None }
            }
        })*
    };
}

elements!(u8: U8, i32: I32, i64: I64, f32: F32, f64: F64);

fn file_array<A: NpyElement, D: Dimension>(array: &ArrayBase<impl Data<Elem = A>, D>) -> Result<NpyArray> {
    NpyArray::new(array.shape(), A::to_npy(array.iter().copied().collect()))
}

fn of_file<A: NpyElement, D: Dimension>(array: NpyArray, path: &Path, name: &str) -> Result<Array<A, D>> {
    let NpyArray { shape, values } = array;
    let refuse = |why: String| Error::file(path, format!("{name}{why}"));
    let (descr, wanted) = (values.descr(), A::to_npy(Vec::new()).descr());
    let values = A::from_npy(values).ok_or_else(|| refuse(format!("holds values of type {descr}, not {wanted}")))?;
    let axes = shape.len();
    let all = Array::from_shape_vec(IxDyn(&shape), values).map_err(|error| refuse(error.to_string()))?;
    let other = D::NDIM.unwrap_or_default();
    all.into_dimensionality().map_err(|_| refuse(format!("has {axes} axes, shape {shape:?}, not {other}")))
}

/// Writes `array` as an `.npy`, whole or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn write_npy<A: NpyElement, D: Dimension>(
    path: impl AsRef<Path>,
    array: &ArrayBase<impl Data<Elem = A>, D>,
) -> Result<()> {
    npy::write_npy(path.as_ref(), &file_array(array)?)
}

/// Reads an `.npy` of these values and so many axes.
///
/// # Errors
/// It cannot be read, or holds values of another type or another number of axes.
pub fn read_npy<A: NpyElement, D: Dimension>(path: impl AsRef<Path>) -> Result<Array<A, D>> {
    let path = path.as_ref();
    of_file(npy::read_npy(path)?, path, "")
}

/// Writes `arrays` with their names as an `.npz`, whole or not at all.
///
/// # Errors
/// The file cannot be written.
pub fn write_npz<A: NpyElement, D: Dimension>(path: impl AsRef<Path>, arrays: &[(&str, &Array<A, D>)]) -> Result<()> {
    let arrays = arrays.iter().map(|(name, array)| Ok((*name, file_array(array)?))).collect::<Result<Vec<_>>>()?;
    npy::write_npz(path.as_ref(), &arrays)
}

/// Reads the array called `name` of an `.npz`.
///
/// # Errors
/// The file cannot be read, has no such array, or that has values of another type or another number of axes.
pub fn read_npz<A: NpyElement, D: Dimension>(path: impl AsRef<Path>, name: &str) -> Result<Array<A, D>> {
    let path = path.as_ref();
    let all = npy::read_npz(path)?;
    let names = all.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    let found = all.into_iter().find(|(own, _)| own == name);
    let (_, array) = found.ok_or_else(|| Error::file(path, format!("no array called {name}, but {names}")))?;
    of_file(array, path, &format!("{name} "))
}

/// Values `[N, width]`.
pub(crate) fn table(values: Vec<f32>, rows: usize, width: usize) -> Result<Array2<f32>> {
    Array2::from_shape_vec((rows, width), values).map_err(|error| Error::invalid("values", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array1, Array3, array};

    #[test]
    fn arrays_go_to_files_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        let features = array![[1_f32, 2.5], [3., -4.], [5., 6.]];
        write_npy(&path, &features).unwrap();
        assert_eq!(read_npy::<f32, ndarray::Ix2>(&path).unwrap(), features);
        // By columns in memory, by rows in the file.
        write_npy(&path, &features.t()).unwrap();
        assert_eq!(read_npy::<f32, ndarray::Ix2>(&path).unwrap(), features.t());
        let message = read_npy::<u8, ndarray::Ix2>(&path).unwrap_err().to_string();
        assert!(message.ends_with("holds values of type <f4, not |u1"), "{message}");
        let message = read_npy::<f32, ndarray::Ix3>(&path).unwrap_err().to_string();
        assert!(message.ends_with("has 2 axes, shape [2, 3], not 3"), "{message}");
        let image = Array3::<u8>::from_elem((2, 2, 3), 7);
        write_npy(&path, &image).unwrap();
        assert_eq!(read_npy::<u8, ndarray::Ix3>(&path).unwrap(), image);
    }

    #[test]
    fn archives_are_read_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npz");
        write_npz(&path, &[("x", &Array1::from(vec![1_i64, 2])), ("y", &Array1::from(vec![3]))]).unwrap();
        assert_eq!(read_npz::<i64, ndarray::Ix1>(&path, "y").unwrap(), array![3]);
        let message = read_npz::<i64, ndarray::Ix1>(&path, "z").unwrap_err().to_string();
        assert!(message.ends_with("no array called z, but x, y"), "{message}");
        let message = read_npz::<f32, ndarray::Ix1>(&path, "x").unwrap_err().to_string();
        assert!(message.ends_with("x holds values of type <i8, not <f4"), "{message}");
    }
}
