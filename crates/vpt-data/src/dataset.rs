//! A data set: images with labels in three parts.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use super::container::ImageSource;
pub use super::formats::Layout;
use vpt_base::Result;
use vpt_image::decode::Rgb8;

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Training part.
    Train,
    /// Validation part, which chooses epochs and hyperparameters.
    Val,
    /// Test part, which is looked at once, at the end.
    Test,
}

impl Split {
    /// The three parts in their usual order.
    pub const ALL: [Self; 3] = [Self::Train, Self::Val, Self::Test];

    /// `train`, `val` or `test`.
    pub fn name(self) -> &'static str {
        self.of(["train", "val", "test"])
    }

    /// Its one of train's, val's and test's.
    pub(crate) fn of<T>(self, [train, val, test]: [T; 3]) -> T {
        match self {
            Self::Train => train,
            Self::Val => val,
            Self::Test => test,
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An image and its label.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The image.
    pub image: ImageSource,
    /// Index into [`Dataset::classes`]; in a [`MultilabelDataset`](super::MultilabelDataset) into its sets of classes.
    pub label: u32,
    /// Id of the sample in split and index files, unique in the data set: its path relative to the data set's
    /// folder with `/` between the parts, or the name of the file that holds it and its position, `train-images:123`.
    pub id: String,
}

impl Sample {
    /// The decoded image.
    ///
    /// # Errors
    /// As [`ImageSource::load`]; images that are in memory always load.
    pub fn load(&self) -> Result<Rgb8> {
        self.image.load()
    }

    /// The file to name when something is wrong with the image: its path, else its id.
    pub fn path(&self) -> &Path {
        match &self.image {
            ImageSource::File(path) => path,
            _ => Path::new(&self.id),
        }
    }
}

/// Images with labels, split in three.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// A short name: the folder's or file's.
    pub name: String,
    /// How it lies on disk.
    pub layout: Layout,
    /// Class names; a label is an index into them.
    pub classes: Vec<String>,
    /// Training part.
    pub train: Vec<Sample>,
    /// Validation part, which chooses epochs and hyperparameters.
    pub val: Vec<Sample>,
    /// Test part, which is looked at once, at the end.
    pub test: Vec<Sample>,
    /// Where the three parts come from, as a sentence for the user.
    pub split_note: String,
}

impl Dataset {
    /// The samples of one part.
    pub fn part(&self, split: Split) -> &[Sample] {
        split.of([&self.train, &self.val, &self.test])
    }

    /// The same with the classes alone that `keep` wants, in their order, and their images.
    #[must_use]
    pub fn of_classes(&self, keep: impl Fn(&str) -> bool) -> Self {
        let kept: Vec<usize> = (0..self.classes.len()).filter(|&class| keep(&self.classes[class])).collect();
        let part = |samples: &[Sample]| {
            let renumber = |sample: &Sample| {
                let label = kept.binary_search(&(sample.label as usize)).ok()? as u32;
                Some(Sample { label, ..sample.clone() })
            };
            samples.iter().filter_map(renumber).collect()
        };
        Self {
            classes: kept.iter().map(|&class| self.classes[class].clone()).collect(),
            train: part(&self.train),
            val: part(&self.val),
            test: part(&self.test),
            ..self.clone()
        }
    }

    /// The samples of one part.
    pub fn part_mut(&mut self, split: Split) -> &mut Vec<Sample> {
        split.of([&mut self.train, &mut self.val, &mut self.test])
    }
}
