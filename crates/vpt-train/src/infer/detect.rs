//! Objects in images by a learned detector.

use std::path::PathBuf;

use serde::Serialize;

use super::name;
use vpt_base::Progress;
use vpt_base::Result;
use vpt_data::ImageSource;
use vpt_data::boxes::BoxImage;
use vpt_image::decode;
use vpt_model::model::{DetectTask, Found};

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

/// An object found in an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PredictedBox {
    /// Its class.
    pub label: String,
    /// How sure the detector is, 0 to 1.
    pub score: f64,
    /// Left, top, width, height in pixels.
    pub bbox: [f64; 4],
    /// Index into the task's classes.
    #[serde(skip)]
    pub class: usize,
}

/// Looks for objects in `images`, in their order, and keeps those with a score of at least `min_score`.
///
/// # Errors
/// An image cannot be read; the error names it.
pub fn predict_boxes(
    task: &DetectTask,
    images: &[PathBuf],
    min_score: f64,
    progress: Progress,
) -> Result<Vec<DetectPrediction>> {
    let open = |path: &PathBuf| -> Result<BoxImage> {
        let [width, height] = decode::size(path)?;
        Ok(BoxImage {
            id: 0,
            name: name(path),
            image: ImageSource::File(path.clone()),
            width,
            height,
            objects: Vec::new(),
        })
    };
    let opened = images.iter().map(open).collect::<Result<Vec<_>>>()?;
    let sizes: Vec<[usize; 2]> = opened.iter().map(|image| [image.width, image.height]).collect();
    let all = task.detect(opened, progress)?;
    let classes = &task.meta().classes;
    let found = |found: &Found| PredictedBox {
        label: classes.get(found.class).cloned().unwrap_or_default(),
        score: found.score,
        bbox: [found.rect.x, found.rect.y, found.rect.width, found.rect.height],
        class: found.class,
    };
    let predictions = images.iter().zip(sizes).zip(all).map(|((path, [width, height]), boxes)| DetectPrediction {
        image: name(path),
        width,
        height,
        boxes: boxes.iter().filter(|b| b.score >= min_score).map(found).collect(),
    });
    Ok(predictions.collect())
}
