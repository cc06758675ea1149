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

    /// What [`Self::main`] is called.
    pub fn main_name(&self) -> &'static str {
        match self {
            Self::Classify(_) => "accuracy",
            Self::Multilabel(_) => "mAP",
            Self::Detect(_) => "AP",
            Self::Segment(_) => "mIoU",
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

/// The mean of the scores of parts with so many images; `None` if there are none, or they are of several tasks. What is counted an image
/// (accuracies, exact matches, losses) is that of all images together; all else is the mean of the parts', each by its images: average
/// precision of all together would need all predictions.
pub fn mean_of_parts<'a>(parts: impl IntoIterator<Item = (usize, &'a Scores)>) -> Option<Scores> {
    let parts: Vec<(f64, &Scores)> = parts.into_iter().map(|(images, scores)| (images as f64, scores)).collect();
    match parts.first()?.1 {
        Scores::Classify(first) => {
            let parts = all_of(&parts, Scores::classify)?;
            Some(Scores::Classify(Metrics {
                acc1: mean(&parts, |metrics| metrics.acc1)?,
                acc5: match first.acc5 {
                    Some(_) => mean(&parts, |metrics| metrics.acc5.unwrap_or_default()),
                    None => None,
                },
                mean_per_class_recall: mean(&parts, |metrics| metrics.mean_per_class_recall)?,
                loss: mean(&parts, |metrics| metrics.loss)?,
            }))
        }
        Scores::Multilabel(_) => {
            let parts = all_of(&parts, Scores::multilabel)?;
            Some(Scores::Multilabel(MultilabelMetrics {
                map: mean(&parts, |metrics| metrics.map)?,
                micro_f1: mean(&parts, |metrics| metrics.micro_f1)?,
                macro_f1: mean(&parts, |metrics| metrics.macro_f1)?,
                exact_match: mean(&parts, |metrics| metrics.exact_match)?,
                loss: mean(&parts, |metrics| metrics.loss)?,
            }))
        }
        Scores::Detect(_) => {
            let parts = all_of(&parts, Scores::detect)?;
            // -1 where a part has nothing to measure.
            let of = |i: usize| {
                let measured: Vec<_> = parts.iter().copied().filter(|(_, metrics)| metrics.values()[i] >= 0.).collect();
                mean(&measured, |metrics| metrics.values()[i]).unwrap_or(-1.)
            };
            Some(Scores::Detect(std::array::from_fn(of).into()))
        }
        Scores::Segment(first) => {
            let parts = all_of(&parts, Scores::segment)?;
            // Of a class those parts that have it.
            let of_class = |class: usize, value: fn(&ClassIou) -> Option<f64>| {
                let own = parts.iter().filter_map(|(images, metrics)| Some((*images, metrics.per_class.get(class)?)));
                let (sum, count) = own
                    .filter_map(|(images, class)| Some((images, value(class)?)))
                    .fold((0., 0.), |(sum, count), (images, value)| (sum + images * value, count + images));
                (count > 0.).then(|| sum / count)
            };
            let per_class = first.per_class.iter().enumerate().map(|(i, class)| ClassIou {
                class: class.class.clone(),
                iou: of_class(i, |class| class.iou),
                acc: of_class(i, |class| class.acc),
            });
            Some(Scores::Segment(SegmentMetrics {
                miou: mean(&parts, |metrics| metrics.miou)?,
                pixel_acc: mean(&parts, |metrics| metrics.pixel_acc)?,
                mean_acc: mean(&parts, |metrics| metrics.mean_acc)?,
                per_class: per_class.collect(),
            }))
        }
    }
}

/// The metrics of one task in every part; `None` if one is of another.
fn all_of<'a, M>(parts: &[(f64, &'a Scores)], of: fn(&Scores) -> Option<&M>) -> Option<Vec<(f64, &'a M)>> {
    parts.iter().map(|(images, scores)| Some((*images, of(scores)?))).collect()
}

/// The mean of what is counted in parts, each by its images.
fn mean<M>(parts: &[(f64, &M)], of: impl Fn(&M) -> f64) -> Option<f64> {
    let images: f64 = parts.iter().map(|(images, _)| images).sum();
    (images > 0.).then(|| parts.iter().map(|(images, metrics)| images * of(metrics)).sum::<f64>() / images)
}

/// The sum of `values`, in an order of their own: neither the order of the images nor their batches show in it.
fn sum(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.iter().sum()
}
