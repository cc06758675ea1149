//! How far a classifier's probabilities can be believed: expected calibration error, and the one temperature that mends most
//! of it (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017). It divides every logit, so no prediction
//! changes, only how sure it is.

use serde::{Deserialize, Serialize};

use crate::metrics::classify::{Metrics, Tally};
use vpt_base::{
    Error, Result,
    logits::{argmax, log_sum_exp, probability},
};

/// Bins of confidence, all equally wide.
const BINS: usize = 15;
/// The temperatures that are looked for lie between one over this and this.
const MOST: f64 = 100.;
/// Halvings of that range, which leave nothing of an f64's precision.
const HALVINGS: usize = 60;

/// Logits of a part of a data set, and what is true.
#[derive(Debug, Clone, PartialEq)]
pub struct Logits {
    classes: usize,
    values: Vec<f32>,
    labels: Vec<u32>,
}

/// The expected calibration error of one part, a fraction of one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ece {
    /// Of the logits as they are.
    pub before: f64,
    /// Of the logits divided by the temperature.
    pub after: f64,
}

/// Calibration errors of a classifier.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// On the validation images, which the temperature was fitted to.
    pub val: Ece,
    /// On the test images.
    pub test: Ece,
}

impl Logits {
    /// None yet, for `classes` classes.
    pub fn new(classes: usize) -> Self {
        Self { classes, values: Vec::new(), labels: Vec::new() }
    }

    /// Adds a batch: `logits` `[B, classes]` row by row, `labels` `[B]`.
    ///
    /// # Errors
    /// The lengths do not fit, or a label is out of range; nothing is added then.
    pub fn add(&mut self, logits: &[f32], labels: &[u32]) -> Result<()> {
        if logits.len() != labels.len() * self.classes || labels.iter().any(|&label| label as usize >= self.classes) {
            let message = format!("{} values for {} labels of {} classes", logits.len(), labels.len(), self.classes);
            return Err(Error::invalid("logits", message));
        }
        self.values.extend(logits);
        self.labels.extend(labels);
        Ok(())
    }

    /// The temperature, of at most 100, at which the mean cross-entropy is least.
    ///
    /// In one over the temperature it is convex, so its slope has one zero at most, which is found by halving. There is none
    /// when every image is right (the colder, the better), when the logits say nothing, or without images; the temperature
    /// is then 1, for there is nothing to learn it from. It is 100 where guessing would be better than the logits are.
    pub fn temperature(&self) -> f64 {
        let (mut low, mut high) = (-MOST.ln(), MOST.ln());
        if self.slope(high.exp()) <= 0. {
            return 1.;
        }
        if self.slope(low.exp()) >= 0. {
            return MOST;
        }
        for _ in 0..HALVINGS {
            let middle = f64::midpoint(low, high);
            if self.slope(middle.exp()) < 0. { low = middle } else { high = middle }
        }
        (-f64::midpoint(low, high)).exp()
    }

    /// The mean cross-entropy at the temperature between 1/100 and 100 that suits the logits best: what they tell the classes apart by,
    /// whether or not they are as sure as they should be. 0 without images.
    ///
    /// Berta et al., "Rethinking Early Stopping: Refine, Then Calibrate" (2025), judge models by it.
    pub fn calibrated_loss(&self) -> f64 {
        // All right, or not sure enough by far: the temperature is 1 then, and the lowest is what tells them apart.
        let factor = if self.slope(MOST) <= 0. { MOST } else { self.temperature().recip() };
        let loss =
            |(row, &label): (&[f32], &u32)| log_sum_exp(row, factor.recip()) - f64::from(row[label as usize]) * factor;
        self.rows().map(loss).sum::<f64>() / self.labels.len().max(1) as f64
    }

    /// The derivative of the summed cross-entropy of the logits times `factor` by `factor`: expected less true logit.
    fn slope(&self, factor: f64) -> f64 {
        let of_row = |(row, &label): (&[f32], &u32)| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let (mut weights, mut expected) = (0., 0.);
            for &logit in row {
                // Counted from the largest, so that nothing overflows and no digits are lost.
                let below = f64::from(logit) - f64::from(max);
                let weight = (factor * below).exp();
                weights += weight;
                expected += weight * below;
            }
            expected / weights - (f64::from(row[label as usize]) - f64::from(max))
        };
        self.rows().map(of_row).sum()
    }

    /// The expected calibration error of the logits divided by `temperature`: over 15 bins of confidence, which hold their
    /// upper edge, the distance between confidence and accuracy, weighted by the share of images. 0 without images.
    pub fn ece(&self, temperature: f64) -> f64 {
        let mut bins = [const { (0_u64, Vec::new()) }; BINS];
        for (row, &label) in self.rows() {
            let top = argmax(row);
            let confidence = probability(row, top, temperature);
            let bin = ((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
            let (right, confidences) = &mut bins[bin];
            *right += u64::from(top == label as usize);
            confidences.push(confidence);
        }
        let gaps = bins.iter_mut().map(|(right, confidences)| {
            // In an order that the images' does not change.
            confidences.sort_by(f64::total_cmp);
            (*right as f64 - confidences.iter().sum::<f64>()).abs()
        });
        gaps.sum::<f64>() / self.labels.len().max(1) as f64
    }

    /// The metrics of classification.
    ///
    /// # Errors
    /// A logit is not finite.
    pub fn metrics(&self) -> Result<Metrics> {
        let mut tally = Tally::new(self.classes);
        tally.add(&self.values, &self.labels)?;
        Ok(tally.metrics())
    }

    /// Whether the class of the largest logit is the true one, image by image.
    pub fn correct(&self) -> Vec<bool> {
        self.rows().map(|(row, &label)| argmax(row) == label as usize).collect()
    }

    /// The error before and after.
    pub fn eces(&self, temperature: f64) -> Ece {
        Ece { before: self.ece(1.), after: self.ece(temperature) }
    }

    /// The logits of each image, and what it is.
    pub fn rows(&self) -> impl Iterator<Item = (&[f32], &u32)> {
        self.values.chunks_exact(self.classes.max(1)).zip(&self.labels)
    }
}

#[cfg(test)]
mod tests {
    use crate::metrics::calibration::*;

    /// 200 images of 5 classes by a formula, 101 of them right.
    fn logits() -> Logits {
        let mut logits = Logits::new(5);
        for i in 0..200usize {
            let row: Vec<f32> =
                (0..5).map(|c| (((i * 37 + c * 101 + i * c * 7) % 89) as f64 / 89. * 6. - 3.) as f32).collect();
            let label = if (i * i + 3 * i) % 5 < 3 { argmax(&row) } else { i * 13 % 5 };
            logits.add(&row, &[label as u32]).unwrap();
        }
        logits
    }

    // By NumPy: a golden-section search for the least mean cross-entropy in ln T, and bins by their edges.
    #[test]
    fn temperature_and_error_are_those_of_an_independent_computation() {
        let logits = logits();
        let temperature = logits.temperature();
        assert!((temperature - 2.831_260_311).abs() < 1e-6, "{temperature}");
        for (temperature, ece) in
            [(1., 0.166_050_722_217_934_32), (2.831_260_311_007, 0.159_250_681_306_4), (0.5, 0.301_209_345_221_538_13)]
        {
            assert!((logits.ece(temperature) - ece).abs() < 1e-9, "{temperature}: {}", logits.ece(temperature));
        }
    }

    #[test]
    fn scaled_logits_have_a_scaled_temperature() {
        let plain = logits();
        let mut scaled = Logits::new(5);
        let values: Vec<f32> = plain.values.iter().map(|v| v * 4.).collect();
        scaled.add(&values, &plain.labels).unwrap();
        assert!((scaled.temperature() / plain.temperature() - 4.).abs() < 1e-9);
        assert!((scaled.ece(4.) - plain.ece(1.)).abs() < 1e-12);
    }

    // By NumPy, as above, and without a temperature.
    #[test]
    fn calibrated_loss_is_that_of_an_independent_computation() {
        let logits = logits();
        assert!((logits.calibrated_loss() - 1.472_474_246_793_5).abs() < 1e-9, "{}", logits.calibrated_loss());
        let with = |scale: f32| {
            let mut scaled = Logits::new(5);
            let values: Vec<f32> = logits.values.iter().map(|v| v * scale).collect();
            scaled.add(&values, &logits.labels).unwrap();
            scaled.calibrated_loss()
        };
        assert!((with(4.) - with(0.25)).abs() < 1e-9, "how sure they are does not count");
        assert!(with(1e-9) > with(1.) + 0.01, "what says next to nothing is not made to say more");
        let mut right = Logits::new(2);
        assert!(right.calibrated_loss().abs() < f64::EPSILON);
        right.add(&[1., 0.], &[0]).unwrap();
        assert!(right.calibrated_loss() < 1e-40, "nothing is wrong");
    }

    #[test]
    fn where_there_is_nothing_to_learn_it_from_the_temperature_is_one() {
        let with = |rows: &[(&[f32], u32)]| {
            let mut logits = Logits::new(2);
            for (row, label) in rows {
                logits.add(row, &[*label]).unwrap();
            }
            logits
        };
        let right = with(&[(&[3., 0.], 0), (&[0., 1.], 1)]);
        let wrong = with(&[(&[3., 0.], 1), (&[0., 1.], 0)]);
        for logits in [with(&[]), with(&[(&[2., 2.], 0)]), right, with(&[(&[1e30, -1e30], 0)])] {
            assert!((logits.temperature() - 1.).abs() < f64::EPSILON, "{logits:?}");
        }
        assert!((wrong.temperature() - MOST).abs() < f64::EPSILON, "the less it is sure, the better");
        let huge = with(&[(&[1e30, -1e30], 0), (&[1e30, -1e30], 1)]);
        assert!(huge.temperature().is_finite() && huge.ece(1.).is_finite());
        assert!((huge.ece(1.) - 0.5).abs() < 1e-12, "sure of all, right in half");
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let mut logits = Logits::new(2);
        assert!(logits.add(&[0.; 3], &[0]).is_err() && logits.add(&[0.; 2], &[2]).is_err());
        assert_eq!(logits, Logits::new(2));
    }
}
