//! Results of jobs on masks: the pixels of each class in each test image, kept so that mIoU of any resample of them can be told.

use std::path::Path;

use super::{
    job::{Job, PartResult},
    work::task_options,
};
use vpt_base::Result;
use vpt_data::{Split, masks::MaskDataset};
use vpt_model::{
    metrics::{PixelTally, Scores},
    model::SegmentTask,
};
use vpt_train::train::{Event, Observer};

/// What the finished run in the folder `run` tells of the pixels of the test images of `job`; `None` when the observer asked to stop.
pub(super) fn told(job: &Job, name: &str, run: &Path, observer: &mut dyn Observer) -> Result<Option<PartResult>> {
    let dataset = MaskDataset::open(&job.config.data, job.config.seed_of_parts())?;
    let task = SegmentTask::open(run, &task_options(job))?;
    let images = dataset.part(Split::Test);
    let names = &dataset.classes.names;
    let (mut all, mut pixels) = (PixelTally::new(names.len()), Vec::with_capacity(images.len()));
    let mut hasher = blake3::Hasher::new();
    let progress = &mut |done, total| observer.event(&Event::Evaluating { split: Split::Test, done, total });
    task.visit_masks(images.to_vec(), progress, |image, found| {
        let mut own = PixelTally::new(names.len());
        own.add(&image.mask()?.classes, &found.classes)?;
        hasher.update(format!("{}\n{}", image.name.len(), image.name).as_bytes());
        pixels.push(own.of_classes());
        all.merge(&own);
        Ok(())
    })?;
    if observer.stop() {
        return Ok(None);
    }
    Ok(Some(PartResult {
        name: name.to_owned(),
        images: images.len(),
        metrics: Scores::Segment(all.metrics(names)),
        ece: None,
        images_hash: hasher.finalize().to_hex()[..16].to_owned(),
        correct: String::new(),
        matched: None,
        pixels: Some(pixels),
    }))
}
