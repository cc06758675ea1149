//! Metrics of the classes of pixels, counted over all pixels of a part at once: mIoU, accuracy of pixels and of classes, as
//! mmsegmentation's `mIoU` and `mAcc` and torchmetrics' `JaccardIndex` define them. A class that is neither in truth nor in
//! prediction has no IoU, and one that is not in truth no accuracy; means leave it out.

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::{
    Confusion,
    bootstrap::{self, Interval},
};
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

/// Pixels of a class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u64; 3]", into = "[u64; 3]")]
pub struct ClassPixels {
    /// In truth and in prediction.
    pub right: u64,
    /// In truth.
    pub truth: u64,
    /// In prediction.
    pub predicted: u64,
}

impl From<[u64; 3]> for ClassPixels {
    fn from([right, truth, predicted]: [u64; 3]) -> Self {
        Self { right, truth, predicted }
    }
}

impl From<ClassPixels> for [u64; 3] {
    fn from(ClassPixels { right, truth, predicted }: ClassPixels) -> Self {
        [right, truth, predicted]
    }
}

impl ClassPixels {
    /// Intersection over union; `None` where there are none.
    fn iou(self) -> Option<f64> {
        share(self.right, (self.truth + self.predicted).saturating_sub(self.right))
    }
}

/// A part of all, if there are any.
fn share(part: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| part as f64 / all as f64)
}

/// mIoU of `images`, the pixels of each class in each of them, where each counts as often as its weight says; `None` where there are no
/// pixels.
pub fn weighted_miou(images: &[Vec<ClassPixels>], weights: &[u32]) -> Option<f64> {
    let classes = images.first()?.len();
    let mut sums = vec![ClassPixels::default(); classes];
    for (image, &weight) in images.iter().zip(weights).filter(|(_, weight)| **weight > 0) {
        let weight = u64::from(weight);
        for (sum, own) in sums.iter_mut().zip(image) {
            sum.right += weight * own.right;
            sum.truth += weight * own.truth;
            sum.predicted += weight * own.predicted;
        }
    }
    let (sum, count) =
        sums.into_iter().filter_map(ClassPixels::iou).fold((0., 0.), |(sum, count), iou| (sum + iou, count + 1.));
    (count > 0.).then(|| sum / count)
}

/// mIoU of `first` less that of `second`, the pixels of each class in each of the same images, with its paired 95 % interval over these;
/// `None` if there are none.
pub fn miou_difference([first, second]: [&[Vec<ClassPixels>]; 2], rng: &mut impl Rng) -> Option<Interval> {
    let difference = |_, times: &[u32]| Some([weighted_miou(first, times)? - weighted_miou(second, times)?]);
    bootstrap::paired_statistics(1, first.len().min(second.len()), difference, rng).map(|[interval]| interval)
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

    /// What the IoU of each class is made of.
    pub fn of_classes(&self) -> Vec<ClassPixels> {
        let k = self.classes;
        let of_class = |class: usize| ClassPixels {
            right: self.counts[class * k + class],
            truth: self.counts[class * k..(class + 1) * k].iter().sum(),
            predicted: (0..k).map(|row| self.counts[row * k + class]).sum(),
        };
        (0..k).map(of_class).collect()
    }

    /// The counts as a matrix.
    pub fn confusion(&self) -> Confusion {
        Confusion::of_counts(self.classes, self.counts.clone())
    }

    /// The metrics, with the classes' `names`; 0 where there is nothing to measure.
    pub fn metrics(&self, names: &[String]) -> SegmentMetrics {
        let of_classes = self.of_classes().into_iter().enumerate();
        let per_class: Vec<ClassIou> = of_classes
            .map(|(class, pixels)| ClassIou {
                class: names.get(class).cloned().unwrap_or_default(),
                iou: pixels.iou(),
                acc: share(pixels.right, pixels.truth),
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
    fn a_difference_of_two_miou_has_an_interval_over_images() {
        let truth: Vec<Vec<u16>> = (0..12).map(|i| vec![0, 1, (i % 2) as u16, 1]).collect();
        let tallies = |predicted: &dyn Fn(usize) -> Vec<u16>| -> Vec<PixelTally> {
            let one = |(i, truth): (usize, &Vec<u16>)| {
                let mut tally = PixelTally::new(2);
                tally.add(truth, &predicted(i)).unwrap();
                tally
            };
            truth.iter().enumerate().map(one).collect()
        };
        let (right, half) = (tallies(&|i| truth[i].clone()), tallies(&|i| vec![0, 1, 0, (i % 3 > 0).into()]));
        let miou = |tallies: &[PixelTally]| {
            let mut all = PixelTally::new(2);
            for tally in tallies {
                all.merge(tally);
            }
            all.metrics(&["a".into(), "b".into()]).miou
        };
        let pixels = |tallies: &[PixelTally]| tallies.iter().map(PixelTally::of_classes).collect::<Vec<_>>();
        let of = |first: &[PixelTally], second: &[PixelTally]| {
            miou_difference([&pixels(first), &pixels(second)], &mut vpt_base::random::stream(1, "t", 0, 0))
        };
        let apart = of(&right, &half).unwrap();
        assert!((apart.difference - (miou(&right) - miou(&half))).abs() < 1e-12, "{apart:?}");
        assert!(0. < apart.low && apart.low < apart.difference && apart.difference < apart.high, "{apart:?}");
        // An image that counts twice is one that is there twice.
        let twice = [&half[..], &half[..1]].concat();
        let mut weights = vec![1; 12];
        weights[0] = 2;
        assert!((weighted_miou(&pixels(&half), &weights).unwrap() - miou(&twice)).abs() < 1e-12);
        assert_eq!(of(&[], &[]), None);
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
