//! How well a learned task does on a data set.

use std::collections::HashMap;

use super::Tally;
use crate::data::{Dataset, Sample, Split};
use crate::infer::{Progress, batches};
use crate::model::TaskModel;
use crate::{Error, Result};

/// Classifies one part of `dataset` and counts.
///
/// Classes are matched by name, so the data may list them in another order or lack some of them.
///
/// # Errors
/// The part is empty, a class of the data is none of the task's, or an image cannot be read.
pub fn evaluate(task: &TaskModel, dataset: &Dataset, split: Split, progress: Progress) -> Result<Tally> {
    let classes = &task.meta().classes;
    let own: HashMap<&str, u32> = classes.iter().zip(0..).map(|(name, class)| (name.as_str(), class)).collect();
    let relabel = |sample: &Sample| {
        let name = dataset.classes.get(sample.label as usize).map_or("", String::as_str);
        let label = *own.get(name).ok_or_else(|| {
            let known = classes.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = if classes.len() > 5 { ", …" } else { "" };
            let message = format!("class '{name}' is none of the task's ({known}{more})");
            Error::invalid(format!("data set {}", dataset.name), message)
        })?;
        Ok(Sample { label, ..sample.clone() })
    };
    let samples = dataset.part(split).iter().map(relabel).collect::<Result<Vec<_>>>()?;
    if samples.is_empty() {
        return Err(Error::flag("--split", format!("{} has no {split} images", dataset.name)));
    }
    let total = samples.len();
    let mut tally = Tally::new(classes.len());
    for batch in batches(samples, task.preprocess(), task.model().threads())? {
        let batch = batch?;
        tally.add(&task.logits(&batch.pixels)?, &batch.labels)?;
        progress(tally.images() as usize, total);
    }
    Ok(tally)
}
