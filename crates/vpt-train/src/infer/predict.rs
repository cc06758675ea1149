//! Classes of images by a learned task.

use std::path::PathBuf;

use serde::Serialize;

use super::{each_batch, name, samples};
use vpt_base::Progress;
use vpt_base::Result;
use vpt_base::logits::top_k;
use vpt_model::model::TaskModel;

/// How many classes a prediction names.
const TOP: usize = 5;

/// What a task says of one image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// The image's path as it was given.
    pub image: String,
    /// The most likely class.
    pub label: String,
    /// Its probability.
    pub probability: f64,
    /// The five most likely classes (all, where there are fewer), most likely first.
    pub top5: Vec<Guess>,
}

/// A class and how likely it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Guess {
    /// The class.
    pub label: String,
    /// Its probability: softmax, at the task's temperature, over all its classes, or of the class by itself where an image has any number.
    pub probability: f64,
}

/// Classifies `images`, in their order, with `threads` threads.
///
/// # Errors
/// An image cannot be read; the error names it.
pub fn predict(task: &TaskModel, images: &[PathBuf], progress: Progress) -> Result<Vec<Prediction>> {
    let classes = &task.meta().classes;
    let mut predictions = Vec::with_capacity(images.len());
    each_batch(samples(images), task.preprocess(), task.model().threads(), progress, |batch| {
        let logits = task.logits(&batch.pixels)?;
        for row in logits.chunks_exact(classes.len()) {
            let guess = |(class, probability): (usize, f64)| Guess { label: classes[class].clone(), probability };
            let top5: Vec<Guess> = top_k(row, TOP, task.meta().temperature()).into_iter().map(guess).collect();
            predictions.push(Prediction {
                image: name(&images[predictions.len()]),
                label: top5[0].label.clone(),
                probability: top5[0].probability,
                top5,
            });
        }
        Ok(())
    })?;
    Ok(predictions)
}
