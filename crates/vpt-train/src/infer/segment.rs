//! The class of each pixel of images by a learned task.

use std::path::PathBuf;

use serde::Serialize;

use super::name;
use vpt_base::{Progress, Result};
use vpt_data::{
    ImageSource,
    masks::{ClassMask, MaskImage},
};
use vpt_model::{model::SegmentTask, predict::ClassShare};

/// What is in one image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SegmentPrediction {
    /// The image's path as it was given.
    pub image: String,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// The classes of its pixels, the most frequent first.
    pub classes: Vec<ClassShare>,
    /// Where the class of each pixel was written, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<PathBuf>,
}

/// Tells the pixels of `images` apart, in their order, and gives each mask to `take`, which says where it was written.
///
/// # Errors
/// An image cannot be read; the error names it. And those of `take`.
pub fn predict_masks(
    task: &SegmentTask,
    images: &[PathBuf],
    progress: Progress,
    mut take: impl FnMut(usize, &ClassMask) -> Result<Option<PathBuf>>,
) -> Result<Vec<SegmentPrediction>> {
    let open = |path: &PathBuf| MaskImage::unlabelled(name(path), ImageSource::File(path.clone()));
    let opened = images.iter().map(open).collect::<Result<Vec<_>>>()?;
    let mut all = Vec::with_capacity(images.len());
    task.visit_masks(opened, progress, |image, mask| {
        let written = take(all.len(), &mask)?;
        all.push(SegmentPrediction {
            image: image.name.clone(),
            width: mask.width,
            height: mask.height,
            classes: task.shares(&mask),
            mask: written,
        });
        Ok(())
    })?;
    Ok(all)
}
