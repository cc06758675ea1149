//! CLIP's zero-shot classifier on a part of a data set: logits are the cosines of an image's embedding with those of the texts
//! that name the classes (see [`class_texts`](crate::backbone::class_texts)) times the model's `exp(logit_scale)`.

use crate::{
    Error, Progress, Result,
    backbone::{
        Backbone,
        class_texts::{Prompts, classifier},
    },
    data::{Dataset, Split},
    infer::batches,
    linear_algebra::normalize_l2,
    metrics::{Tally, calibration::Logits},
};

/// Classifies one part of `dataset` by texts and counts, with `threads` threads.
///
/// # Errors
/// The backbone is no CLIP, the part is empty, or an image cannot be read.
pub fn zero_shot(
    backbone: &Backbone,
    dataset: &Dataset,
    split: Split,
    prompts: &Prompts,
    threads: usize,
    progress: Progress,
) -> Result<Tally> {
    let mut tally = Tally::new(prompts.classnames.len());
    each_batch(backbone, dataset, split, prompts, threads, &mut |logits, labels, total| {
        tally.add(logits, labels)?;
        progress(tally.images() as usize, total);
        Ok(true)
    })?;
    Ok(tally)
}

/// As [`zero_shot`], and keeps the logits. `go_on` is told how many images are done, of how many; once it says no, there is
/// no result.
///
/// # Errors
/// As [`zero_shot`].
pub fn zero_shot_logits(
    backbone: &Backbone,
    dataset: &Dataset,
    split: Split,
    prompts: &Prompts,
    threads: usize,
    go_on: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Option<Logits>> {
    let mut kept = Logits::new(prompts.classnames.len());
    let mut done = 0;
    let whole = each_batch(backbone, dataset, split, prompts, threads, &mut |logits, labels, total| {
        kept.add(logits, labels)?;
        done += labels.len();
        Ok(go_on(done, total))
    })?;
    Ok(whole.then_some(kept))
}

/// Told logits and labels of a batch, and how many images there are in all; says whether to go on.
type Count<'a> = &'a mut dyn FnMut(&[f32], &[u32], usize) -> Result<bool>;

/// Tells `count` logits and labels of every batch, and how many images there are in all, until it says no. Whether it did
/// not.
fn each_batch(
    backbone: &Backbone,
    dataset: &Dataset,
    split: Split,
    prompts: &Prompts,
    threads: usize,
    count: Count,
) -> Result<bool> {
    let weights = classifier(backbone, prompts, threads)?;
    let scale = backbone.logit_scale().unwrap_or(1.);
    let width = backbone.embedding_width();
    let samples = dataset.part(split).to_vec();
    if samples.is_empty() {
        return Err(Error::setting("split", format!("{} has no {split} images", dataset.name)));
    }
    let total = samples.len();
    for batch in batches(samples, &backbone.preprocess, threads)? {
        let batch = batch?;
        let mut embeds = backbone.embed(&batch.pixels, None, threads)?;
        normalize_l2(&mut embeds, width);
        let logits: Vec<f32> = embeds
            .chunks_exact(width)
            .flat_map(|image| weights.chunks_exact(width).map(move |class| scale * dot(image, class)))
            .collect();
        if !count(&logits, &batch.labels, total)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}
