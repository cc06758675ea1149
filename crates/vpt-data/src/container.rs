//! Where the pixels of an image are: in a file of its own, in a file that holds many, or in memory.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::open::relative_id;
use image::metadata::Orientation;
use vpt_base::{Error, Result};
use vpt_image::decode::{Rgb8, decode, decode_bytes, orientation_of, orientation_of_bytes, size, size_of_bytes};

/// A file that holds many images: an archive, a table with pictures in it, the files of MNIST.
pub trait Container: fmt::Debug + Send + Sync {
    /// The file.
    fn path(&self) -> &Path;

    /// What the image at `index` is called in messages about the file: its path in an archive, else its number.
    fn name(&self, index: usize) -> String;

    /// The image at `index` as the file holds it.
    ///
    /// # Errors
    /// It cannot be read.
    fn read(&self, index: usize) -> Result<Stored<'_>>;

    /// Whether images lie decoded in memory, so that one can always be had.
    fn is_decoded(&self) -> bool {
        false
    }
}

/// An image as a container holds it.
#[derive(Clone, Debug)]
pub enum Stored<'a> {
    /// As a file in one of the formats of images would.
    Encoded(Cow<'a, [u8]>),
    /// A byte for each pixel, `[height, width]`.
    Grey {
        /// The pixels.
        pixels: &'a [u8],
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// Decoded already, or part of what was.
    Decoded(Rgb8),
}

/// Where the pixels of an image are.
#[derive(Clone, Debug)]
pub enum ImageSource {
    /// In a file, decoded on each use.
    File(PathBuf),
    /// In memory.
    Memory(Arc<Rgb8>),
    /// In a file that holds many images.
    Member {
        /// The file.
        container: Arc<dyn Container>,
        /// Which of its images.
        index: usize,
    },
}

impl From<Rgb8> for ImageSource {
    fn from(image: Rgb8) -> Self {
        Self::Memory(Arc::new(image))
    }
}

impl ImageSource {
    /// The decoded image.
    ///
    /// # Errors
    /// The image cannot be read or decoded; the error names the file.
    pub fn load(&self) -> Result<Rgb8> {
        match self {
            Self::File(path) => decode(path),
            Self::Memory(image) => {
                image.check()?;
                Ok(image.as_ref().clone())
            }
            Self::Member { container, index } => match container.read(*index)? {
                Stored::Grey { pixels, width, height } => Ok(Rgb8::from_grey(width, height, pixels)),
                Stored::Decoded(image) => Ok(image),
                Stored::Encoded(bytes) => decode_bytes(&bytes).map_err(|message| {
                    Error::image(container.path(), format!("{}: {message}", container.name(*index)))
                }),
            },
        }
    }

    /// Width and height, the right way up; by the header alone.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn size(&self) -> Result<[usize; 2]> {
        match self {
            Self::File(path) => size(path),
            Self::Memory(image) => {
                image.check()?;
                Ok([image.width, image.height])
            }
            Self::Member { container, index } => match container.read(*index)? {
                Stored::Grey { width, height, .. } | Stored::Decoded(Rgb8 { width, height, .. }) => Ok([width, height]),
                Stored::Encoded(bytes) => size_of_bytes(&bytes).map_err(|message| {
                    Error::image(container.path(), format!("{}: {message}", container.name(*index)))
                }),
            },
        }
    }

    /// How the image is to be turned to be the right way up; not at all if nothing is said of it, or it cannot be read.
    pub(crate) fn orientation(&self) -> Orientation {
        match self {
            Self::File(path) => orientation_of(path),
            Self::Memory(_) => Orientation::NoTransforms,
            Self::Member { container, index } => match container.read(*index) {
                Ok(Stored::Encoded(bytes)) => orientation_of_bytes(&bytes),
                _ => Orientation::NoTransforms,
            },
        }
    }

    /// Whether the image is in memory, so that loading it never fails.
    pub fn is_decoded(&self) -> bool {
        match self {
            Self::File(_) => false,
            Self::Memory(_) => true,
            Self::Member { container, .. } => container.is_decoded(),
        }
    }

    /// The file that holds the image; none of an image that never was in one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Memory(_) => None,
            Self::Member { container, .. } => Some(container.path()),
        }
    }

    /// The number of the image in a file that holds many.
    pub(crate) fn index(&self) -> Option<usize> {
        match self {
            Self::Member { index, .. } => Some(*index),
            _ => None,
        }
    }

    /// What the image is called in a file that holds many.
    pub(crate) fn member(&self) -> Option<String> {
        match self {
            Self::Member { container, index } => Some(container.name(*index)),
            _ => None,
        }
    }

    /// What the image is called in split files of a data set in the folder `root`.
    pub(crate) fn id(&self, root: &Path) -> String {
        let file = self.file().map(|file| relative_id(root, file)).unwrap_or_default();
        self.member().map(|name| format!("{file}/{name}")).unwrap_or(file)
    }
}

/// Whether it is the same place, not whether pixels are equal.
impl PartialEq for ImageSource {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Memory(a), Self::Memory(b)) => Arc::ptr_eq(a, b),
            _ => self.file().is_some() && self.file() == other.file() && self.index() == other.index(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pictures one after another, as an archive has them.
    #[derive(Debug)]
    struct PictureFile(Vec<Vec<u8>>);

    impl Container for PictureFile {
        fn path(&self) -> &Path {
            Path::new("set/pictures.tar")
        }

        fn name(&self, index: usize) -> String {
            format!("{index}.png")
        }

        fn read(&self, index: usize) -> Result<Stored<'_>> {
            Ok(Stored::Encoded(Cow::Borrowed(&self.0[index])))
        }
    }

    #[test]
    fn members_are_decoded_named_and_told_apart() {
        let mut png = std::io::Cursor::new(Vec::new());
        ::image::GrayImage::new(5, 3).write_to(&mut png, ::image::ImageFormat::Png).unwrap();
        let container: Arc<dyn Container> = Arc::new(PictureFile(vec![png.into_inner(), b"no image".to_vec()]));
        let at = |index| ImageSource::Member { container: container.clone(), index };
        assert_eq!(at(0).size().unwrap(), [5, 3]);
        assert!(!at(0).is_decoded());
        assert_eq!(at(0).id(Path::new("set")), "pictures.tar/0.png");
        assert!(at(0) == at(0) && at(0) != at(1) && at(0) != ImageSource::File("set/pictures.tar".into()));
        let message = at(1).load().unwrap_err().to_string();
        assert!(message.starts_with("set/pictures.tar: 1.png: "), "{message}");
    }
}
