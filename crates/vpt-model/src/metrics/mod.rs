//! How good a model is: accuracy on classes and how far its confidence can be believed, how sure a difference is, metrics of several classes an image,
//! the COCO box metric, mIoU of pixels. Metrics are named as `CLIP_benchmark` and pycocotools name them, computed over the whole split at once
//! (never as a mean of batch means), and are fractions of one.

pub mod bootstrap;
pub mod calibration;
pub mod classify;
pub mod coco;
pub mod multilabel;
pub mod segment;

pub use calibration::{Calibration, Ece};
pub use classify::{Confusion, Metrics, Tally};
pub use multilabel::{MultilabelMetrics, MultilabelTally};
pub use segment::{ClassIou, PixelTally, SegmentMetrics};

use serde::{Deserialize, Serialize};

/// How good a model is on one part of a data set, by the metrics of its task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scores {
    /// One class an image.
    Classify(Metrics),
    /// Any number of classes an image.
    Multilabel(MultilabelMetrics),
    /// Boxes.
    Detect(coco::CocoMetrics),
    /// A class for each pixel.
    Segment(SegmentMetrics),
}

impl Scores {
    /// The metrics of classification, if that was the task.
    pub fn classify(&self) -> Option<&Metrics> {
        match self {
            Self::Classify(metrics) => Some(metrics),
            _ => None,
        }
    }

    /// The metrics of multi-label classification, if that was the task.
    pub fn multilabel(&self) -> Option<&MultilabelMetrics> {
        match self {
            Self::Multilabel(metrics) => Some(metrics),
            _ => None,
        }
    }

    /// The metrics of detection, if that was the task.
    pub fn detect(&self) -> Option<&coco::CocoMetrics> {
        match self {
            Self::Detect(metrics) => Some(metrics),
            _ => None,
        }
    }

    /// The metrics of segmentation, if that was the task.
    pub fn segment(&self) -> Option<&SegmentMetrics> {
        match self {
            Self::Segment(metrics) => Some(metrics),
            _ => None,
        }
    }

    /// The fraction of one by which epochs are compared: accuracy, mAP, AP or mIoU.
    pub fn main(&self) -> f64 {
        match self {
            Self::Classify(metrics) => metrics.acc1,
            Self::Multilabel(metrics) => metrics.map,
            Self::Detect(metrics) => metrics.ap,
            Self::Segment(metrics) => metrics.miou,
        }
    }

    /// The mean loss, where it is one of the metrics.
    pub fn loss(&self) -> Option<f64> {
        match self {
            Self::Classify(metrics) => Some(metrics.loss),
            Self::Multilabel(metrics) => Some(metrics.loss),
            Self::Detect(_) | Self::Segment(_) => None,
        }
    }

    /// Sort key of results, better ones higher: [`Self::main`], of equals the lower loss, or the higher AP50 or
    /// accuracy of pixels.
    pub fn rank(&self) -> (f64, f64) {
        match self {
            Self::Classify(metrics) => (metrics.acc1, -metrics.loss),
            Self::Multilabel(metrics) => (metrics.map, -metrics.loss),
            Self::Detect(metrics) => (metrics.ap, metrics.ap50),
            Self::Segment(metrics) => (metrics.miou, metrics.pixel_acc),
        }
    }
}

/// The mean of metrics of one class an image over parts with so many images; `None` if there are none. Accuracies and the loss are
/// those of all images together, recalls the mean of the parts'.
pub fn mean_of_parts<'a>(parts: impl IntoIterator<Item = (usize, &'a Metrics)>) -> Option<Metrics> {
    let parts: Vec<(f64, &Metrics)> = parts.into_iter().map(|(images, metrics)| (images as f64, metrics)).collect();
    let images: f64 = parts.iter().map(|(images, _)| images).sum();
    let mean =
        |of: fn(&Metrics) -> f64| parts.iter().map(|(images, metrics)| images * of(metrics)).sum::<f64>() / images;
    (images > 0.).then(|| Metrics {
        acc1: mean(|metrics| metrics.acc1),
        acc5: parts[0].1.acc5.map(|_| mean(|metrics| metrics.acc5.unwrap_or_default())),
        mean_per_class_recall: mean(|metrics| metrics.mean_per_class_recall),
        loss: mean(|metrics| metrics.loss),
    })
}

/// The sum of `values`, in an order of their own: neither the order of the images nor their batches show in it.
fn sum(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.iter().sum()
}
