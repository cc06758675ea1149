//! Results of jobs on boxes: what a run found in the test images, kept so that AP of any resample of them can be told.

use std::path::Path;

use super::job::{Job, PartResult};
use vpt_base::Result;
use vpt_data::{
    Split,
    boxes::{BoxDataset, BoxImage},
};
use vpt_model::metrics::{
    Scores,
    coco::{MatchedDetections, read_results},
};
use vpt_train::train::run_folder;

/// What the finished run in the folder `run` found in the test images of `job`, with the `scores` that it has from there.
pub(super) fn found(job: &Job, name: &str, run: &Path, scores: Scores) -> Result<PartResult> {
    let dataset = BoxDataset::open(&job.config.data, job.config.seed_of_parts())?;
    let images = dataset.part(Split::Test);
    let detections = read_results(&run.join(run_folder::TEST_DETECTIONS))?;
    let matched = MatchedDetections::new(images, &dataset.categories, &detections)?;
    Ok(PartResult {
        name: name.to_owned(),
        images: images.len(),
        metrics: scores,
        ece: None,
        images_hash: hash(images),
        correct: String::new(),
        matched: Some(matched),
        pixels: None,
    })
}

/// Stands for the images in the order of their ids.
fn hash(images: &[BoxImage]) -> String {
    let mut order: Vec<&BoxImage> = images.iter().collect();
    order.sort_by_key(|image| image.id);
    let mut hasher = blake3::Hasher::new();
    for image in order {
        hasher.update(format!("{} {}\n{}", image.id, image.name.len(), image.name).as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}
