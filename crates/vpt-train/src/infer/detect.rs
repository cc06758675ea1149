//! Objects in images by a learned detector.

use std::path::PathBuf;

use serde::Serialize;

use super::name;
use vpt_base::{Progress, Result};
use vpt_data::{ImageSource, boxes::BoxImage};
use vpt_model::{model::DetectTask, predict::PredictedBox};

/// Detections in one image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DetectPrediction {
    /// The image's path as it was given.
    pub image: String,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Boxes, best first.
    pub boxes: Vec<PredictedBox>,
}

/// Looks for objects in `images`, in their order, and keeps those whose score is at least that in `thresholds` of their class.
///
/// # Errors
/// An image cannot be read; the error names it.
pub fn predict_boxes(
    task: &DetectTask,
    images: &[PathBuf],
    thresholds: &[f64],
    progress: Progress,
) -> Result<Vec<DetectPrediction>> {
    let open = |path: &PathBuf| BoxImage::unlabelled(name(path), ImageSource::File(path.clone()));
    let opened = images.iter().map(open).collect::<Result<Vec<_>>>()?;
    let sizes: Vec<[usize; 2]> = opened.iter().map(|image| [image.width, image.height]).collect();
    let all = task.boxes(opened, thresholds, progress)?;
    let predictions = images.iter().zip(sizes).zip(all).map(|((path, [width, height]), boxes)| DetectPrediction {
        image: name(path),
        width,
        height,
        boxes,
    });
    Ok(predictions.collect())
}
