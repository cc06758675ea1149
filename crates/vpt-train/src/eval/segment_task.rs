//! How well a learned task tells the pixels of a data set of masks apart.

use vpt_base::Progress;
use vpt_base::{Error, Result};
use vpt_data::Split;
use vpt_data::masks::{IGNORED, MaskDataset};
use vpt_model::metrics::PixelTally;
use vpt_model::model::SegmentTask;

/// Tells the pixels of one part of `dataset` apart and compares with the truth.
///
/// Classes are matched by name, so the data may list them in another order or lack some of them.
///
/// # Errors
/// The part is empty, a class of the data is none of the task's, or an image or mask cannot be read.
pub fn evaluate_masks(
    task: &SegmentTask,
    dataset: &MaskDataset,
    split: Split,
    progress: Progress,
) -> Result<PixelTally> {
    let classes = &task.meta().classes;
    let refuse = |message: String| Err(Error::invalid(format!("data set {}", dataset.name), message));
    let mut own = Vec::with_capacity(dataset.classes.names.len());
    for name in &dataset.classes.names {
        let Some(class) = classes.iter().position(|own| own == name) else {
            let known = classes.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = if classes.len() > 5 { ", …" } else { "" };
            return refuse(format!("class '{name}' is none of the task's ({known}{more})"));
        };
        own.push(class as u16);
    }
    let images = dataset.part(split);
    if images.is_empty() {
        return refuse(format!("has no {split} images"));
    }
    let mut tally = PixelTally::new(classes.len());
    task.visit_masks(images.to_vec(), progress, |image, found| {
        let class = |class: &u16| own.get(usize::from(*class)).copied().unwrap_or(IGNORED);
        let truth: Vec<u16> = image.mask()?.classes.iter().map(class).collect();
        tally.add(&truth, &found.classes)
    })?;
    Ok(tally)
}
