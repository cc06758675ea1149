//! Metrics of images that have any number of classes, from logits: mean average precision, F1 and exact match, each as
//! scikit-learn computes it, and binary cross-entropy.

use serde::{Deserialize, Serialize};

use super::sum;
use vpt_base::{Error, Result};

/// Metrics of one split. All but `loss` are fractions of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MultilabelMetrics {
    /// Average precision of each class, averaged over the classes that occur.
    #[serde(rename = "mAP")]
    pub map: f64,
    /// F1 of all decisions together, at probability .5.
    pub micro_f1: f64,
    /// F1 of each class at probability .5, averaged over all classes; 0 for one that neither occurs nor is predicted.
    pub macro_f1: f64,
    /// Share of images whose classes are all right at probability .5, and no others.
    pub exact_match: f64,
    /// Mean binary cross-entropy of an image and class, in nats.
    pub loss: f64,
}

/// Accumulates [`MultilabelMetrics`] over the batches of a split.
#[derive(Debug, Clone)]
pub struct MultilabelTally {
    /// For each class the logits and whether the class is there, image by image.
    classes: Vec<Vec<(f32, bool)>>,
    images: usize,
    exact: usize,
    /// Of each image, summed over the classes.
    losses: Vec<f64>,
}

impl MultilabelTally {
    /// Nothing counted yet, for `classes` classes.
    pub fn new(classes: usize) -> Self {
        Self { classes: vec![Vec::new(); classes], images: 0, exact: 0, losses: Vec::new() }
    }

    /// Counts a batch: `logits` `[B, classes]` row by row, and `truth` of the same shape, whether the class is in the image.
    ///
    /// # Errors
    /// If the lengths do not fit or a logit is not finite; nothing is counted then.
    pub fn add(&mut self, logits: &[f32], truth: &[bool]) -> Result<()> {
        let classes = self.classes.len();
        if classes == 0 || logits.len() != truth.len() || !logits.len().is_multiple_of(classes) {
            let message = format!("{} values for {} truths and {classes} classes", logits.len(), truth.len());
            return Err(Error::invalid("logits", message));
        }
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(Error::invalid("logits", "not finite: the model's weights or prompts hold NaN or infinity"));
        }
        for (logits, truth) in logits.chunks_exact(classes).zip(truth.chunks_exact(classes)) {
            let pairs = || logits.iter().copied().zip(truth.iter().copied());
            self.images += 1;
            self.exact += usize::from(pairs().all(|(logit, there)| predicted(logit) == there));
            self.losses.push(pairs().map(|(logit, there)| cross_entropy(logit, there)).sum());
            self.classes.iter_mut().zip(pairs()).for_each(|(class, pair)| class.push(pair));
        }
        Ok(())
    }

    /// How many images were counted.
    pub fn images(&self) -> usize {
        self.images
    }

    /// Of each class the logit of an image, and whether the class is there.
    pub fn of_image(&self, image: usize) -> impl Iterator<Item = (f32, bool)> + '_ {
        self.classes.iter().filter_map(move |class| class.get(image).copied())
    }

    /// Average precision of each class, `None` for one that does not occur.
    pub fn average_precisions(&self) -> Vec<Option<f64>> {
        self.classes.iter().map(|class| average_precision(class)).collect()
    }

    /// The metrics of everything counted so far; all zero when nothing was.
    pub fn metrics(&self) -> MultilabelMetrics {
        let precisions: Vec<f64> = self.average_precisions().into_iter().flatten().collect();
        let counts: Vec<Counts> = self.classes.iter().map(|class| Counts::of(class)).collect();
        let all = counts.iter().fold(Counts::default(), |all, class| Counts {
            right: all.right + class.right,
            predicted: all.predicted + class.predicted,
            there: all.there + class.there,
        });
        let (images, classes) = (self.images.max(1) as f64, self.classes.len().max(1) as f64);
        MultilabelMetrics {
            map: precisions.iter().sum::<f64>() / precisions.len().max(1) as f64,
            micro_f1: all.f1(),
            macro_f1: counts.iter().map(Counts::f1).sum::<f64>() / classes,
            exact_match: self.exact as f64 / images,
            loss: sum(&self.losses) / (images * classes),
        }
    }
}

/// Whether the probability is at least .5.
fn predicted(logit: f32) -> bool {
    logit >= 0.
}

/// Binary cross-entropy in nats, in a form that cannot overflow.
fn cross_entropy(logit: f32, there: bool) -> f64 {
    let logit = f64::from(logit);
    let against = if there { -logit } else { logit };
    against.max(0.) + (-logit.abs()).exp().ln_1p()
}

/// Decisions about one class.
#[derive(Default)]
struct Counts {
    right: usize,
    predicted: usize,
    there: usize,
}

impl Counts {
    fn of(class: &[(f32, bool)]) -> Self {
        let count = |wanted: &dyn Fn(&(f32, bool)) -> bool| class.iter().filter(|pair| wanted(pair)).count();
        Self {
            right: count(&|&(logit, there)| there && predicted(logit)),
            predicted: count(&|&(logit, _)| predicted(logit)),
            there: count(&|&(_, there)| there),
        }
    }

    fn f1(&self) -> f64 {
        2. * self.right as f64 / (self.predicted + self.there).max(1) as f64
    }
}

/// Σ (Rₙ - Rₙ₋₁) Pₙ over falling scores, without interpolation; equal scores are one step. `None` if nothing is true.
fn average_precision(scored: &[(f32, bool)]) -> Option<f64> {
    let positives = scored.iter().filter(|(_, there)| *there).count();
    let mut sorted = scored.to_vec();
    // Finite; 0 and -0 are equal.
    sorted.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(std::cmp::Ordering::Equal));
    let (mut seen, mut right, mut sum) = (0, 0, 0.);
    for step in sorted.chunk_by(|a, b| a.0 <= b.0) {
        let new = step.iter().filter(|(_, there)| *there).count();
        seen += step.len();
        right += new;
        sum += new as f64 * right as f64 / seen as f64;
    }
    (positives > 0).then(|| sum / positives as f64)
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // these values are exact
mod tests {
    use crate::metrics::multilabel::*;

    /// `scripts/make_multilabel_fixture.py`
    #[derive(Deserialize)]
    struct MultilabelFixture {
        logits: Vec<Vec<f32>>,
        truth: Vec<Vec<u8>>,
        average_precisions: Vec<f64>,
        micro_f1: f64,
        macro_f1: f64,
        exact_match: f64,
        loss: f64,
    }

    #[test]
    fn the_numbers_are_those_of_scikit_learn_for_any_batch_size() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/multilabel.json");
        let fixture: MultilabelFixture = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let expected = MultilabelMetrics {
            map: fixture.average_precisions.iter().sum::<f64>() / fixture.average_precisions.len() as f64,
            micro_f1: fixture.micro_f1,
            macro_f1: fixture.macro_f1,
            exact_match: fixture.exact_match,
            loss: fixture.loss,
        };
        for batch in [1, 7, 30] {
            let mut tally = MultilabelTally::new(5);
            for (logits, truth) in fixture.logits.chunks(batch).zip(fixture.truth.chunks(batch)) {
                let truth: Vec<bool> = truth.concat().into_iter().map(|there| there == 1).collect();
                tally.add(&logits.concat(), &truth).unwrap();
            }
            let found = tally.metrics();
            let numbers = |m: &MultilabelMetrics| [m.map, m.micro_f1, m.macro_f1, m.exact_match, m.loss];
            for (found, expected) in numbers(&found).into_iter().zip(numbers(&expected)) {
                assert!((found - expected).abs() < 1e-12, "{found} {expected}, batches of {batch}");
            }
            let precisions = tally.average_precisions();
            assert_eq!(precisions[4], None);
            for (found, expected) in precisions.iter().flatten().zip(&fixture.average_precisions) {
                assert!((found - expected).abs() < 1e-12, "{found} {expected}");
            }
        }
    }

    #[test]
    fn equal_logits_are_one_step_whatever_their_order() {
        for truth in [[true, false, false, false], [false, false, false, true]] {
            let scored: Vec<(f32, bool)> = [0., -0., 0., 0.].into_iter().zip(truth).collect();
            assert_eq!(average_precision(&scored), Some(0.25));
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error_and_counts_nothing() {
        let mut tally = MultilabelTally::new(2);
        assert!(tally.add(&[0.; 3], &[true; 3]).is_err());
        assert!(tally.add(&[0.; 2], &[true; 4]).is_err());
        assert!(tally.add(&[0., f32::NAN], &[true; 2]).is_err());
        assert!(MultilabelTally::new(0).add(&[], &[]).is_err());
        assert_eq!(tally.images(), 0);
        assert_eq!(tally.metrics().map, 0.);
        tally.add(&[1e30, -1e30], &[true, true]).unwrap();
        assert!((tally.metrics().loss / 5e29 - 1.).abs() < 1e-6, "large logits do not overflow");
    }
}
