//! Classes of images by a learned task.

use std::path::PathBuf;

use serde::Serialize;

use super::name;
use vpt_base::{Error, Progress, Result};
use vpt_model::{
    model::TaskModel,
    predict::{Guess, sources},
};

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

/// Classifies `images`, in their order, with `threads` threads.
///
/// # Errors
/// An image cannot be read; the error names it.
pub fn predict(task: &TaskModel, images: &[PathBuf], progress: Progress) -> Result<Vec<Prediction>> {
    let guesses = task.guesses(&sources(images), TOP, progress)?.into_iter();
    let prediction = |(path, top5): (&PathBuf, Vec<Guess>)| {
        let best = top5.first().ok_or_else(|| Error::invalid("task", "has no classes"))?;
        Ok(Prediction { image: name(path), label: best.label.clone(), probability: best.probability, top5 })
    };
    images.iter().zip(guesses).map(prediction).collect()
}
