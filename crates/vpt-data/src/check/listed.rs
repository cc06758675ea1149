//! Facts about an image that a data set lists, before anything is decoded.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::finding::{FindingKind, Findings};
use crate::{ImageSource, Split};

/// An image, and what its data set says of it.
#[derive(Clone)]
pub(crate) struct ListedImage {
    /// Where it is.
    pub(crate) image: ImageSource,
    /// The part; none if parts are still to be drawn.
    pub(crate) split: Option<Split>,
    /// Its class, or whatever else must be equal for two images to have the same label.
    pub(crate) label: Arc<str>,
    /// The class folder, or the file and line, that says so.
    pub(crate) place: (Arc<Path>, Option<u64>),
}

impl ListedImage {
    /// The file that holds it.
    pub(crate) fn file(&self) -> &Path {
        self.image.file().unwrap_or(&self.place.0)
    }

    /// Name of the image in the message about another one.
    pub(crate) fn name(&self) -> String {
        let file = self.file().display();
        self.image.member().map_or_else(|| file.to_string(), |member| format!("{member} of {file}"))
    }

    /// The beginning of a message about the image: its name in the file where the path says too little.
    pub(crate) fn prefix(&self) -> String {
        self.image.member().map(|member| format!("{member}: ")).unwrap_or_default()
    }
}

/// The files or folders that stand for a data set and its parts where no line can be named.
pub(crate) struct PartPlaces {
    /// The data set.
    pub(crate) whole: PathBuf,
    /// Each part.
    pub(crate) parts: [Option<PathBuf>; 3],
}

impl PartPlaces {
    pub(crate) fn new(whole: &Path) -> Self {
        Self { whole: whole.into(), parts: [None, None, None] }
    }

    pub(crate) fn part(&self, split: Split) -> &Path {
        self.parts[split as usize].as_deref().unwrap_or(&self.whole)
    }
}

/// `listed` without the images that a line of a file names and that are not there; these are told.
pub(crate) fn existing(listed: Vec<ListedImage>, out: &mut Findings) -> Vec<ListedImage> {
    let look = |image: &ListedImage| image.place.1.is_some().then(|| std::fs::metadata(image.file()));
    let there: Vec<_> = listed.par_iter().map(look).collect();
    let mut kept = Vec::with_capacity(listed.len());
    for (image, meta) in listed.into_iter().zip(there) {
        let (source, line) = &image.place;
        let path = || image.file().display().to_string();
        match meta {
            None => kept.push(image),
            Some(Ok(meta)) if meta.is_file() => kept.push(image),
            Some(Ok(_)) => out.error(FindingKind::SpecialFile, source, *line, format!("{} is not a file", path())),
            Some(Err(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                out.error(FindingKind::NoAccess, source, *line, format!("{}: {error}", path()));
            }
            Some(Err(_)) => {
                let path = path();
                let hint = if path.contains('\\') { "; write paths with /" } else { "" };
                out.error(FindingKind::MissingFile, source, *line, format!("{path} is not there{hint}"));
            }
        }
    }
    kept
}
