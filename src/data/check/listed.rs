//! What a data set says of an image before anything is decoded.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::data::Split;

/// An image, and what its data set says of it.
#[derive(Clone)]
pub(in crate::data) struct Listed {
    /// The file.
    pub(in crate::data) path: Arc<Path>,
    /// Its number in a file of many images.
    pub(in crate::data) number: Option<usize>,
    /// The part; none if parts are still to be drawn.
    pub(in crate::data) split: Option<Split>,
    /// Its class, or whatever else must be equal for two images to have the same label.
    pub(in crate::data) label: Arc<str>,
    /// The class folder, or the file and line, that says so.
    pub(in crate::data) place: (Arc<Path>, Option<u64>),
}

impl Listed {
    /// What to call the image in the message about another one.
    pub(in crate::data) fn name(&self) -> String {
        match self.number {
            Some(number) => format!("image {number} of {}", self.path.display()),
            None => self.path.display().to_string(),
        }
    }

    /// The beginning of a message about the image: its number where the path says too little.
    pub(in crate::data) fn prefix(&self) -> String {
        self.number.map(|number| format!("image {number}: ")).unwrap_or_default()
    }
}

/// The files or folders that stand for a data set and its parts where no line can be named.
pub(in crate::data) struct Places {
    /// The data set.
    pub(in crate::data) whole: PathBuf,
    /// Each part.
    pub(in crate::data) parts: [Option<PathBuf>; 3],
}

impl Places {
    pub(in crate::data) fn new(whole: &Path) -> Self {
        Self { whole: whole.into(), parts: [None, None, None] }
    }

    pub(in crate::data) fn part(&self, split: Split) -> &Path {
        self.parts[split as usize].as_deref().unwrap_or(&self.whole)
    }
}
