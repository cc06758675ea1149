//! Any number of classes of images by a learned task.

use std::path::PathBuf;

use serde::Serialize;

use super::name;
use vpt_base::{Progress, Result};
use vpt_model::{
    model::TaskModel,
    predict::{Guess, sources},
};

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
    let guesses = task.guesses(&sources(images), usize::MAX, progress)?.into_iter();
    let predictions = images.iter().zip(guesses);
    Ok(predictions.map(|(path, labels)| MultilabelPrediction { image: name(path), labels }).collect())
}
