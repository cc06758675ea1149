//! Any number of classes of images by a learned task.

use std::path::PathBuf;

use serde::Serialize;

use super::predict::Guess;
use super::{each_batch, name, samples};
use vpt_base::Progress;
use vpt_base::Result;
use vpt_base::logits::top_k;
use vpt_model::model::{TaskModel, sigmoid};

/// What a task says of one image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MultilabelPrediction {
    /// The image's path as it was given.
    pub image: String,
    /// The classes whose probability is at least .5, most likely first.
    pub labels: Vec<Guess>,
}

/// Finds the classes of `images`, in their order.
///
/// # Errors
/// An image cannot be read; the error names it.
pub fn predict_multilabel(
    task: &TaskModel,
    images: &[PathBuf],
    progress: Progress,
) -> Result<Vec<MultilabelPrediction>> {
    let classes = &task.meta().classes;
    let mut predictions = Vec::with_capacity(images.len());
    each_batch(samples(images), task.preprocess(), task.model().threads(), progress, |batch| {
        let logits = task.logits(&batch.pixels)?;
        for row in logits.chunks_exact(classes.len()) {
            let there = top_k(row, classes.len(), 1.).into_iter().filter(|&(class, _)| row[class] >= 0.);
            let guess = |(class, _): (usize, f64)| Guess {
                label: classes[class].clone(),
                probability: f64::from(sigmoid(row[class])),
            };
            let labels = there.map(guess).collect();
            predictions.push(MultilabelPrediction { image: name(&images[predictions.len()]), labels });
        }
        Ok(())
    })?;
    Ok(predictions)
}
