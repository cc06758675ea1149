//! How good a model is: accuracy on classes, metrics of several classes an image, the COCO box metric, and CLIP's zero-shot
//! classifier. Metrics are named as `CLIP_benchmark` and pycocotools name them, computed over the whole split at once (never
//! as a mean of batch means), and are fractions of one.

pub mod classify;
pub mod coco;
mod detect_task;
pub mod multilabel;
mod task;
pub mod zero_shot;

pub use classify::{Confusion, Metrics, Tally};
pub use detect_task::{Detected, evaluate_boxes};
pub use task::evaluate;

use serde::{Deserialize, Serialize};

/// How good a model is on one part of a data set, by the metrics of its task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scores {
    /// One class an image.
    Classify(Metrics),
    /// Boxes.
    Detect(coco::CocoMetrics),
}

impl Scores {
    /// The metrics of classification, if that was the task.
    pub fn classify(&self) -> Option<&Metrics> {
        match self {
            Self::Classify(metrics) => Some(metrics),
            Self::Detect(_) => None,
        }
    }

    /// The metrics of detection, if that was the task.
    pub fn detect(&self) -> Option<&coco::CocoMetrics> {
        match self {
            Self::Detect(metrics) => Some(metrics),
            Self::Classify(_) => None,
        }
    }
}
