//! Data sets of masks: which class each pixel of an image is of, for semantic segmentation.
//!
//! Masks are images of class numbers beside the pictures (Pascal VOC, ADE20k, folders of pairs) or objects drawn with polygons
//! and runs (COCO). Each becomes a [`ClassMask`] of its image's size. Every mask is read once when a data set is opened: that
//! says which classes there are, and finds what cannot be used.

mod check;
mod classes;
mod file;
mod layout;
mod loader;
mod open;
mod rle;
mod shots;
mod summary;
#[cfg(test)]
mod tests;
mod window;

pub use crate::class_mask::ClassMask;
pub use check::check_masks;
pub use classes::{IGNORED, MaskClasses};
pub use loader::{MaskAugment, MaskBatch, MaskLoader, MaskLoaderOptions, MaskView};
pub use open::{MaskFault, MaskFaultKind};
pub use rle::Rle;
pub use shots::MaskShots;
pub use summary::{MaskClassSummary, MaskSummary};
pub use window::{MAX_RATIO, MaskInput};

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vpt_base::{Error, Result};

use super::{ImageSource, Layout, Split, SplitFile};

/// What is called the class of pixels that belong to no object.
const BACKGROUND: &str = "background";

/// What is painted of an object.
#[derive(Clone, Debug)]
struct MaskObject {
    class: u16,
    /// All of them together: an object may be in several pieces.
    pieces: Vec<Rle>,
}

/// Where the mask of an image is.
#[derive(Clone, Debug)]
enum MaskSource {
    /// In a file of class numbers.
    File(PathBuf, Arc<MaskClasses>),
    /// In runs of pixels, painted over class 0 in this order.
    Objects(Arc<[MaskObject]>),
}

/// An image with its mask.
#[derive(Clone, Debug)]
pub struct MaskImage {
    /// What the image is called in split files, unique in the data set: its path relative to the data set's folder with `/`
    /// between the parts.
    pub name: String,
    /// Where its pixels are.
    pub image: ImageSource,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Pixels of each class that occurs in it.
    pub pixels: Vec<(u16, u64)>,
    mask: MaskSource,
    digest: blake3::Hash,
}

impl MaskImage {
    /// An image called `name` of which nothing is known but its size, which is looked up.
    ///
    /// # Errors
    /// The image cannot be read, or is many times as long as wide.
    pub fn unlabelled(name: String, image: ImageSource) -> Result<Self> {
        let [width, height] = image.size()?;
        if width.max(height) > MAX_RATIO * width.min(height) {
            let message = format!("{width}x{height} pixels: one side is more than {MAX_RATIO} times the other");
            return Err(Error::image(image.file().unwrap_or(Path::new(&name)), message));
        }
        let (mask, digest) = (MaskSource::Objects(Arc::new([])), blake3::Hash::from_bytes([0; 32]));
        Ok(Self { name, image, width, height, pixels: Vec::new(), mask, digest })
    }

    /// The class of each pixel.
    ///
    /// # Errors
    /// The mask's file cannot be read, or has changed since the data set was opened.
    pub fn mask(&self) -> Result<ClassMask> {
        let Self { width, height, .. } = *self;
        let classes = match &self.mask {
            MaskSource::File(path, classes) => {
                let found = file::read(path)?;
                if (found.width, found.height) != (width, height) {
                    return Err(Error::image(path, open::of_other_size(found.width, found.height, width, height)));
                }
                classes.classes_in(&found).map_err(|message| Error::image(path, message))?
            }
            MaskSource::Objects(objects) => {
                let mut classes = vec![0; width * height];
                for MaskObject { class, pieces } in objects.iter() {
                    for piece in pieces {
                        piece.visit(|at| classes[at] = *class);
                    }
                }
                classes
            }
        };
        Ok(ClassMask { width, height, classes })
    }

    /// The file to name when something is wrong with the image: the one that holds it, else its name.
    pub fn file(&self) -> &Path {
        self.image.file().unwrap_or(Path::new(&self.name))
    }
}

/// Images with masks, in three parts, in the order of their file names.
#[derive(Clone, Debug)]
pub struct MaskDataset {
    /// A short name: the folder's or file's.
    pub name: String,
    /// How it lies on disk.
    pub layout: Layout,
    /// What pixels can be.
    pub classes: Arc<MaskClasses>,
    /// What is learned from.
    pub train: Vec<MaskImage>,
    /// What chooses epochs and hyperparameters.
    pub val: Vec<MaskImage>,
    /// What is looked at once, at the end.
    pub test: Vec<MaskImage>,
    /// Where the three parts, and the names of the classes, come from, as a sentence for the user.
    pub split_note: String,
    /// The part on disk that each of train, val and test was taken from; none where there are no parts.
    pub given: [Option<Split>; 3],
    /// Images and masks that cannot be used, and are in no part.
    pub faults: Vec<MaskFault>,
    /// What was read in a way that is worth to be told.
    pub notes: Vec<MaskFault>,
    /// What was drawn of it, where it is limited to some images.
    pub draw: Option<MaskShots>,
}

impl MaskDataset {
    /// The content of `split.json`: which image was in which part.
    pub fn split_file(&self) -> SplitFile {
        SplitFile::of(&self.name, &self.split_note, self.classes.names.clone(), |split| self.part(split))
    }

    /// The images of one part.
    pub fn part(&self, split: Split) -> &[MaskImage] {
        split.of([&self.train, &self.val, &self.test])
    }

    /// Stands for parts, classes and masks, as 64 hexadecimal digits: it changes with anything that training or evaluation sees
    /// but the pixels themselves.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut add = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        self.classes.names.iter().for_each(|name| add(name.as_bytes()));
        for split in Split::ALL {
            add(format!("{split} {}", self.part(split).len()).as_bytes());
            for image in self.part(split) {
                add(image.name.as_bytes());
                add(image.digest.as_bytes());
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}
