//! How well a learned detector does on a data set of boxes.

use vpt_base::Progress;
use vpt_base::{Error, Result};
use vpt_data::Split;
use vpt_data::boxes::BoxDataset;
use vpt_model::metrics::coco::{self, Detected, Detection};
use vpt_model::model::DetectTask;

/// Looks for objects in one part of `dataset` and compares with the truth.
///
/// Categories are matched by name, so the data may list them in another order or lack some of them: what is found of a
/// class that the data does not have is left out.
///
/// # Errors
/// The part is empty, a category of the data is none of the task's classes, or an image cannot be read.
pub fn evaluate_boxes(task: &DetectTask, dataset: &BoxDataset, split: Split, progress: Progress) -> Result<Detected> {
    let classes = &task.meta().classes;
    if let Some(unknown) = dataset.categories.iter().find(|category| !classes.contains(&category.name)) {
        let known = classes.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if classes.len() > 5 { ", …" } else { "" };
        let message = format!("category '{}' is none of the task's classes ({known}{more})", unknown.name);
        return Err(Error::invalid(format!("data set {}", dataset.name), message));
    }
    let images = dataset.part(split);
    if images.is_empty() {
        return Err(Error::invalid(format!("data set {}", dataset.name), format!("has no {split} images")));
    }
    let category = |class: usize| dataset.categories.iter().find(|category| category.name == classes[class]);
    let found = task.detect(images.to_vec(), progress)?;
    let detections: Vec<Detection> = images
        .iter()
        .zip(&found)
        .flat_map(|(image, found)| {
            found.iter().filter_map(|found| {
                let category = category(found.class)?.id;
                Some(Detection { image: image.id, category, rect: found.rect, score: found.score })
            })
        })
        .collect();
    let eval = coco::evaluate(images, &dataset.categories, &detections)?;
    Ok(Detected { detections, eval })
}
