//! Classification metrics from logits: top-1 and top-5 accuracy, mean per-class recall, cross-entropy and the confusion
//! matrix, accumulated batch by batch in f64 so that the batch size never shows in the result.

use serde::{Deserialize, Serialize};

use super::sum;
use vpt_base::{
    Error, Result,
    logits::{argmax, log_sum_exp},
};

/// Metrics of one split. All but `loss` are fractions of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Share of images whose largest logit is the label's.
    pub acc1: f64,
    /// Share of images whose label is among the five largest logits; `None` with fewer than five classes, where it
    /// would say nothing.
    pub acc5: Option<f64>,
    /// Recall of each class, averaged over the classes that occur among the labels: scikit-learn's balanced accuracy.
    pub mean_per_class_recall: f64,
    /// Mean cross-entropy in nats, without label smoothing or class weights.
    pub loss: f64,
}

/// Counts of (true class, predicted class).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    counts: Vec<u64>,
}

impl Confusion {
    /// An empty matrix for `classes` classes.
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: vec![0; classes * classes] }
    }

    /// The matrix `[classes, classes]` of these counts, a row for each true class.
    pub(super) fn of_counts(classes: usize, counts: Vec<u64>) -> Self {
        Self { classes, counts }
    }

    /// Counts one more of class `truth` that was taken for class `predicted`.
    ///
    /// # Panics
    /// If either index is not below [`Self::classes`].
    pub fn add(&mut self, truth: usize, predicted: usize) {
        assert!(predicted < self.classes, "class {predicted} of {}", self.classes);
        self.counts[truth * self.classes + predicted] += 1;
    }

    /// Number of classes: the side of the matrix.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// How often an image of class `truth` was taken for class `predicted`.
    ///
    /// # Panics
    /// If either index is not below [`Self::classes`].
    pub fn count(&self, truth: usize, predicted: usize) -> u64 {
        self.row(truth)[predicted]
    }

    /// How the images of class `truth` were predicted: `[classes]` counts.
    ///
    /// # Panics
    /// If `truth` is not below [`Self::classes`].
    pub fn row(&self, truth: usize) -> &[u64] {
        &self.counts[truth * self.classes..][..self.classes]
    }

    /// Correct share of each class, `None` for a class without images.
    pub fn recalls(&self) -> Vec<Option<f64>> {
        (0..self.classes)
            .map(|truth| {
                let total: u64 = self.row(truth).iter().sum();
                (total > 0).then(|| self.count(truth, truth) as f64 / total as f64)
            })
            .collect()
    }
}

/// Accumulates [`Metrics`] over the batches of a split.
#[derive(Debug, Clone)]
pub struct Tally {
    confusion: Confusion,
    images: u64,
    hits1: u64,
    hits5: u64,
    /// Of each image.
    losses: Vec<f64>,
}

impl Tally {
    /// Nothing counted yet, for `classes` classes.
    pub fn new(classes: usize) -> Self {
        Self { confusion: Confusion::new(classes), images: 0, hits1: 0, hits5: 0, losses: Vec::new() }
    }

    /// Counts a batch: `logits` `[B, classes]` row by row, `labels` `[B]`. Of equal logits the lower class id ranks first.
    ///
    /// # Errors
    /// If the lengths do not fit, a label is out of range or a logit is not finite; nothing is counted then.
    pub fn add(&mut self, logits: &[f32], labels: &[u32]) -> Result<()> {
        let classes = self.confusion.classes;
        if logits.len() != labels.len() * classes {
            let message = format!("{} values for {} labels and {classes} classes", logits.len(), labels.len());
            return Err(Error::invalid("logits", message));
        }
        if let Some(label) = labels.iter().find(|&&label| label as usize >= classes) {
            return Err(Error::invalid("labels", format!("class {label} of {classes} classes")));
        }
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(Error::invalid("logits", "not finite: the model's weights or prompts hold NaN or infinity"));
        }
        for (row, &label) in logits.chunks_exact(classes.max(1)).zip(labels) {
            let label = label as usize;
            let predicted = argmax(row);
            let rank = rank(row, label);
            self.images += 1;
            self.hits1 += u64::from(rank == 0);
            self.hits5 += u64::from(rank < 5);
            self.losses.push(cross_entropy(row, label));
            self.confusion.add(label, predicted);
        }
        Ok(())
    }

    /// How many images were counted.
    pub fn images(&self) -> u64 {
        self.images
    }

    /// The counts so far.
    pub fn confusion(&self) -> &Confusion {
        &self.confusion
    }

    /// The metrics of everything counted so far; all zero when nothing was.
    pub fn metrics(&self) -> Metrics {
        let images = self.images.max(1) as f64;
        let recalls: Vec<f64> = self.confusion.recalls().into_iter().flatten().collect();
        Metrics {
            acc1: self.hits1 as f64 / images,
            acc5: (self.confusion.classes >= 5).then_some(self.hits5 as f64 / images),
            mean_per_class_recall: recalls.iter().sum::<f64>() / recalls.len().max(1) as f64,
            loss: sum(&self.losses) / images,
        }
    }
}

/// How many classes rank before `label`.
fn rank(logits: &[f32], label: usize) -> usize {
    let own = logits[label];
    logits.iter().enumerate().filter(|&(class, &other)| other > own || (class < label && other >= own)).count()
}

fn cross_entropy(logits: &[f32], label: usize) -> f64 {
    log_sum_exp(logits, 1.) - f64::from(logits[label])
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // these values are exact
mod tests {
    use crate::metrics::classify::*;
    use vpt_base::logits::top_k;

    fn tally(classes: usize, rows: &[(&[f32], u32)]) -> Tally {
        let mut tally = Tally::new(classes);
        for (row, label) in rows {
            tally.add(row, &[*label]).unwrap();
        }
        tally
    }

    #[test]
    fn metrics_of_a_small_example_by_hand() {
        let tally = tally(3, &[(&[2., 0., 0.], 0), (&[0., 1., 0.], 0), (&[0., 0., 3.], 2), (&[0., 1., 0.], 2)]);
        let metrics = tally.metrics();
        assert_eq!(metrics.acc1, 0.5);
        assert_eq!(metrics.acc5, None);
        assert_eq!(metrics.mean_per_class_recall, 0.5, "class 1 has no images and does not count");
        let expected = ((2f64.exp() + 2.).ln() - 2. + 2. * (1f64.exp() + 2.).ln() + (3f64.exp() + 2.).ln() - 3.) / 4.;
        assert!((metrics.loss - expected).abs() < 1e-12, "{} {expected}", metrics.loss);
        assert_eq!(tally.confusion().row(0), [1, 1, 0]);
        assert_eq!(tally.confusion().recalls(), [Some(0.5), None, Some(0.5)]);
    }

    #[test]
    fn mean_per_class_recall_weighs_classes_not_images() {
        let tally = tally(2, &[(&[1., 0.], 0), (&[1., 0.], 0), (&[1., 0.], 0), (&[1., 0.], 1)]);
        assert_eq!(tally.metrics().acc1, 0.75);
        assert_eq!(tally.metrics().mean_per_class_recall, 0.5);
    }

    #[test]
    fn equal_logits_rank_by_class_id_everywhere() {
        let row = [1f32; 7];
        assert_eq!(argmax(&row), 0);
        assert_eq!(top_k(&row, 3, 1.).iter().map(|(class, _)| *class).collect::<Vec<_>>(), [0, 1, 2]);
        let metrics = tally(7, &[(&row, 0), (&row, 4), (&row, 5)]).metrics();
        assert_eq!(metrics.acc1, 1. / 3.);
        assert_eq!(metrics.acc5, Some(2. / 3.));
    }

    #[test]
    fn batches_do_not_change_the_result() {
        let logits: Vec<f32> = (0u16..60).map(|i| f32::from(i * 37 % 23) / 7.).collect();
        let labels: Vec<u32> = (0..10).map(|i| i * 5 % 6).collect();
        let mut whole = Tally::new(6);
        whole.add(&logits, &labels).unwrap();
        let mut parts = Tally::new(6);
        for (rows, labels) in logits.chunks(18).zip(labels.chunks(3)) {
            parts.add(rows, labels).unwrap();
        }
        assert_eq!(whole.metrics(), parts.metrics());
        assert_eq!(whole.confusion(), parts.confusion());
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let metrics = tally(2, &[(&[1e30, -1e30], 0)]).metrics();
        assert_eq!(metrics.loss, 0.);
        assert_eq!(top_k(&[1000., 0.], 1, 1.), [(0, 1.)]);
    }

    #[test]
    fn what_does_not_fit_is_an_error_and_counts_nothing() {
        let mut tally = Tally::new(2);
        assert!(tally.add(&[0.; 3], &[0]).is_err());
        assert!(tally.add(&[0.; 2], &[2]).is_err());
        assert!(tally.add(&[0., f32::NAN], &[0]).is_err());
        assert_eq!(tally.images(), 0);
    }
}
