//! How well a learned task does on a data set.

use std::collections::HashMap;

use crate::infer::each_batch;
use vpt_base::Progress;
use vpt_base::{Error, Result};
use vpt_data::{Batch, Dataset, MultilabelDataset, Sample, Split};
use vpt_model::metrics::{MultilabelTally, Tally};
use vpt_model::model::TaskModel;

/// Classifies one part of `dataset` and counts.
///
/// Classes are matched by name, so the data may list them in another order or lack some of them.
///
/// # Errors
/// The part is empty, a class of the data is none of the task's, or an image cannot be read.
pub fn evaluate(task: &TaskModel, dataset: &Dataset, split: Split, progress: Progress) -> Result<Tally> {
    let classes = &task.meta().classes;
    let own = positions(classes);
    let relabel = |sample: &Sample| {
        let name = dataset.classes.get(sample.label as usize).map_or("", String::as_str);
        let label = *own.get(name).ok_or_else(|| unknown(name, classes, dataset))?;
        Ok(Sample { label, ..sample.clone() })
    };
    let samples = dataset.part(split).iter().map(relabel).collect::<Result<Vec<_>>>()?;
    let mut tally = Tally::new(classes.len());
    let count = |logits: &[f32], batch: &Batch| tally.add(logits, &batch.labels);
    count_logits(task, dataset, split, samples, progress, count)?;
    Ok(tally)
}

/// As [`evaluate`] where an image has any number of classes.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_multilabel(
    task: &TaskModel,
    data: &MultilabelDataset,
    split: Split,
    progress: Progress,
) -> Result<MultilabelTally> {
    let classes = &task.meta().classes;
    let MultilabelDataset { dataset, sets, .. } = data;
    let own = positions(classes);
    let find = |name: &String| own.get(name.as_str()).copied().ok_or_else(|| unknown(name, classes, dataset));
    let sets = sets.renumbered(&dataset.classes.iter().map(find).collect::<Result<Vec<u32>>>()?, classes.len())?;
    let mut tally = MultilabelTally::new(classes.len());
    let count = |logits: &[f32], batch: &Batch| tally.add(logits, &sets.truth(&batch.labels)?);
    count_logits(task, dataset, split, dataset.part(split).to_vec(), progress, count)?;
    Ok(tally)
}

/// The position of each class by its name.
fn positions(classes: &[String]) -> HashMap<&str, u32> {
    classes.iter().zip(0..).map(|(name, class)| (name.as_str(), class)).collect()
}

fn unknown(name: &str, classes: &[String], dataset: &Dataset) -> Error {
    let known = classes.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if classes.len() > 5 { ", …" } else { "" };
    let message = format!("class '{name}' is none of the task's ({known}{more})");
    Error::invalid(format!("data set {}", dataset.name), message)
}

/// Tells `count` the logits of every batch of `samples`, which are the part `split` of `dataset`.
fn count_logits(
    task: &TaskModel,
    dataset: &Dataset,
    split: Split,
    samples: Vec<Sample>,
    progress: Progress,
    mut count: impl FnMut(&[f32], &Batch) -> Result<()>,
) -> Result<()> {
    if samples.is_empty() {
        return Err(Error::setting("split", format!("{} has no {split} images", dataset.name)));
    }
    each_batch(samples, task.preprocess(), task.model().threads(), progress, |batch| {
        count(&task.logits(&batch.pixels)?, batch)
    })
}
