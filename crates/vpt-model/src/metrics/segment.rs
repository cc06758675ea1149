//! Metrics of the classes of pixels, counted over all pixels of a part at once: mIoU, accuracy of pixels and of classes, as
//! mmsegmentation's `mIoU` and `mAcc` and torchmetrics' `JaccardIndex` define them. A class that is neither in truth nor in
//! prediction has no IoU, and one that is not in truth no accuracy; means leave it out.

use serde::{Deserialize, Serialize};

use super::Confusion;
use vpt_base::{Error, Result};
use vpt_data::masks::IGNORED;

/// How well the pixels of a class are told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassIou {
    /// The class.
    pub class: String,
    /// Pixels that are of it both in truth and prediction, as a share of those that are in one of them.
    pub iou: Option<f64>,
    /// Its pixels that are told rightly, as a share of all of its pixels.
    pub acc: Option<f64>,
}

/// How well the pixels of a part are told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentMetrics {
    /// Mean IoU of the classes.
    #[serde(rename = "mIoU")]
    pub miou: f64,
    /// Share of the pixels that are told rightly.
    pub pixel_acc: f64,
    /// Mean accuracy of the classes.
    pub mean_acc: f64,
    /// Each class.
    pub per_class: Vec<ClassIou>,
}

/// Counts of pixels by true and by predicted class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PixelTally {
    classes: usize,
    counts: Vec<u64>,
    images: usize,
}

impl PixelTally {
    /// No pixels yet, of so many classes.
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: vec![0; classes * classes], images: 0 }
    }

    /// Adds an image's pixels; those whose true class is none count for nothing.
    ///
    /// # Errors
    /// There are not as many of truth as of prediction, or a class is none.
    pub fn add(&mut self, truth: &[u16], predicted: &[u16]) -> Result<()> {
        if truth.len() != predicted.len() {
            let message = format!("{} pixels of truth, {} of prediction", truth.len(), predicted.len());
            return Err(Error::invalid("mask", message));
        }
        for (&truth, &predicted) in truth.iter().zip(predicted).filter(|(truth, _)| **truth != IGNORED) {
            let (row, column) = (usize::from(truth), usize::from(predicted));
            if row >= self.classes || column >= self.classes {
                return Err(Error::invalid("mask", format!("class {} of {}", row.max(column), self.classes)));
            }
            self.counts[row * self.classes + column] += 1;
        }
        self.images += 1;
        Ok(())
    }

    /// Adds what another has counted.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
        self.images += other.images;
    }

    /// Images that were added.
    pub fn images(&self) -> usize {
        self.images
    }

    /// The share of the pixels that is told rightly, if there are any.
    pub fn right(&self) -> Option<f64> {
        let all: u64 = self.counts.iter().sum();
        let right: u64 = self.counts.iter().step_by(self.classes + 1).sum();
        (all > 0).then(|| right as f64 / all as f64)
    }

    /// The counts as a matrix.
    pub fn confusion(&self) -> Confusion {
        Confusion::of_counts(self.classes, self.counts.clone())
    }

    /// The metrics, with the classes' `names`; 0 where there is nothing to measure.
    pub fn metrics(&self, names: &[String]) -> SegmentMetrics {
        let k = self.classes;
        let right = |class: usize| self.counts[class * k + class];
        let of_truth = |class: usize| -> u64 { self.counts[class * k..(class + 1) * k].iter().sum() };
        let of_prediction = |class: usize| -> u64 { (0..k).map(|row| self.counts[row * k + class]).sum() };
        let share = |part: u64, all: u64| (all > 0).then(|| part as f64 / all as f64);
        let per_class: Vec<ClassIou> = (0..k)
            .map(|class| ClassIou {
                class: names.get(class).cloned().unwrap_or_default(),
                iou: share(right(class), of_truth(class) + of_prediction(class) - right(class)),
                acc: share(right(class), of_truth(class)),
            })
            .collect();
        let mean = |value: fn(&ClassIou) -> Option<f64>| {
            let all: Vec<f64> = per_class.iter().filter_map(value).collect();
            if all.is_empty() { 0. } else { all.iter().sum::<f64>() / all.len() as f64 }
        };
        SegmentMetrics {
            miou: mean(|class| class.iou),
            pixel_acc: self.right().unwrap_or(0.),
            mean_acc: mean(|class| class.acc),
            per_class,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIXTURE: &str = include_str!("../../../../tests/fixtures/segment.json");

    #[derive(Deserialize)]
    struct Case {
        classes: usize,
        truth: Vec<u16>,
        predicted: Vec<u16>,
        #[serde(rename = "mIoU")]
        miou: f64,
        pixel_acc: f64,
        mean_acc: f64,
        iou: Vec<Option<f64>>,
        acc: Vec<Option<f64>>,
    }

    #[derive(Deserialize)]
    struct Fixture {
        metrics: Vec<Case>,
    }

    fn same(a: Option<f64>, b: Option<f64>) -> bool {
        match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() < 1e-9,
            (None, None) => true,
            _ => false,
        }
    }

    #[test]
    fn metrics_are_those_of_an_independent_program() {
        let fixture: Fixture = serde_json::from_str(FIXTURE).unwrap();
        assert!(fixture.metrics.len() > 5);
        for case in fixture.metrics {
            let names: Vec<String> = (0..case.classes).map(|class| class.to_string()).collect();
            // In two images, counted apart.
            let (mut tally, mut other) = (PixelTally::new(case.classes), PixelTally::new(case.classes));
            let half = case.truth.len() / 2;
            tally.add(&case.truth[..half], &case.predicted[..half]).unwrap();
            other.add(&case.truth[half..], &case.predicted[half..]).unwrap();
            tally.merge(&other);
            let found = tally.metrics(&names);
            assert_eq!(tally.images(), 2);
            for (own, expected) in
                [(found.miou, case.miou), (found.pixel_acc, case.pixel_acc), (found.mean_acc, case.mean_acc)]
            {
                assert!((own - expected).abs() < 1e-9, "{own} {expected}");
            }
            for (class, (iou, acc)) in found.per_class.iter().zip(case.iou.iter().zip(&case.acc)) {
                assert!(same(class.iou, *iou) && same(class.acc, *acc), "{class:?} {iou:?} {acc:?}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_nothing_is_zero() {
        let mut tally = PixelTally::new(2);
        assert!(tally.add(&[0, 1], &[0]).is_err() && tally.add(&[2], &[0]).is_err() && tally.add(&[0], &[2]).is_err());
        tally.add(&[IGNORED], &[1]).unwrap();
        let found = tally.metrics(&["a".into(), "b".into()]);
        assert_eq!((found.miou.to_bits(), found.per_class[0].iou), (0_f64.to_bits(), None));
    }
}
