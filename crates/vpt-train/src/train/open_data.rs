//! Data that a program has opened, or made, in the place of what a configuration names.

use crate::config::{RunConfig, Task};
use vpt_base::{Error, Result};
use vpt_data::{Dataset, MultilabelDataset, boxes::BoxDataset, masks::MaskDataset};

/// What `data` is in the configuration of a run on such data.
pub const IN_MEMORY: &str = "(in memory)";

/// A data set that is open.
#[derive(Debug, Clone)]
pub enum OpenData {
    /// One class an image.
    Classify(Dataset),
    /// Any number of classes an image.
    Multilabel(MultilabelDataset),
    /// Boxes.
    Detect(BoxDataset),
    /// A class for each pixel.
    Segment(MaskDataset),
}

impl OpenData {
    /// What can be learned from it.
    pub fn task(&self) -> Task {
        match self {
            Self::Classify(_) => Task::Classify,
            Self::Multilabel(_) => Task::Multilabel,
            Self::Detect(_) => Task::Detect,
            Self::Segment(_) => Task::Segment,
        }
    }

    /// What `config` learns from it.
    ///
    /// # Errors
    /// That is another task than it is for, or a run on other data.
    pub(super) fn task_of(&self, config: &RunConfig) -> Result<Task> {
        let own = self.task();
        if config.data != IN_MEMORY {
            return Err(Error::setting("data", format!("the run learns from {}, not from what is given", config.data)));
        }
        if config.task != Task::Auto && config.task != own {
            return Err(Error::setting("task", format!("{}, and the data is for {own}", config.task)));
        }
        Ok(own)
    }

    pub(super) fn classify(self) -> Result<Dataset> {
        match self {
            Self::Classify(dataset) => Ok(dataset),
            other => Err(other.of_another_task()),
        }
    }

    pub(super) fn multilabel(self) -> Result<MultilabelDataset> {
        match self {
            Self::Multilabel(dataset) => Ok(dataset),
            other => Err(other.of_another_task()),
        }
    }

    pub(super) fn detect(self) -> Result<BoxDataset> {
        match self {
            Self::Detect(dataset) => Ok(dataset),
            other => Err(other.of_another_task()),
        }
    }

    pub(super) fn segment(self) -> Result<MaskDataset> {
        match self {
            Self::Segment(dataset) => Ok(dataset),
            other => Err(other.of_another_task()),
        }
    }

    fn of_another_task(&self) -> Error {
        Error::setting("task", format!("the data is for {}", self.task()))
    }
}
