//! Zero-shot classification of a part of a data set by CLIP or SigLIP: logits are the cosines of an image's embedding with those of the texts
//! that name the classes (see [`class_texts`](vpt_backbone::class_texts)) times the model's `exp(logit_scale)`.
//! SigLIP was trained to tell each class by itself: with its bias added, the sigmoid of a logit is the probability that image and text
//! belong together, and an image may have any number of classes.

use crate::infer::batches;
use vpt_backbone::{
    Backbone,
    class_texts::{Prompts, classifier},
};
use vpt_base::{Error, Progress, Result, linear_algebra::normalize_l2};
use vpt_data::{Dataset, Split, visit_batches};
use vpt_model::metrics::{MultilabelTally, Tally, calibration::Logits};

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
    let go_on = &mut |done, total| {
        progress(done, total);
        true
    };
    each_batch(backbone, dataset, split, prompts, threads, go_on, |logits, labels| tally.add(logits, labels))?;
    Ok(tally)
}

/// Tells each class of one part of `dataset` by itself, by the sigmoid of its logit, and counts. `truth` says whether images with
/// these labels have each class, `[B, classes]`.
///
/// # Errors
/// As [`zero_shot`]; or the backbone was not trained so.
pub fn zero_shot_sigmoid(
    backbone: &Backbone,
    dataset: &Dataset,
    truth: &dyn Fn(&[u32]) -> Result<Vec<bool>>,
    split: Split,
    prompts: &Prompts,
    threads: usize,
    progress: Progress,
) -> Result<MultilabelTally> {
    let Some(bias) = backbone.logit_bias() else {
        backbone.text_spec()?;
        let message = format!("sigmoid is for backbones that were trained by it, as SigLIP; {} was not", backbone.name);
        return Err(Error::setting("scores", message));
    };
    let mut tally = MultilabelTally::new(prompts.classnames.len());
    let go_on = &mut |done, total| {
        progress(done, total);
        true
    };
    each_batch(backbone, dataset, split, prompts, threads, go_on, |logits, labels| {
        let logits: Vec<f32> = logits.iter().map(|logit| logit + bias).collect();
        tally.add(&logits, &truth(labels)?)
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
    let count = |logits: &[f32], labels: &[u32]| kept.add(logits, labels);
    let whole = each_batch(backbone, dataset, split, prompts, threads, go_on, count)?;
    Ok(whole.then_some(kept))
}

/// Tells `count` logits and labels of every batch, and `go_on` how many images are done, of how many, until it says no. Whether
/// it did not.
fn each_batch(
    backbone: &Backbone,
    dataset: &Dataset,
    split: Split,
    prompts: &Prompts,
    threads: usize,
    go_on: &mut dyn FnMut(usize, usize) -> bool,
    mut count: impl FnMut(&[f32], &[u32]) -> Result<()>,
) -> Result<bool> {
    let weights = classifier(backbone, prompts, threads)?;
    let scale = backbone.logit_scale().unwrap_or(1.);
    let width = backbone.embedding_width();
    let samples = dataset.part(split).to_vec();
    if samples.is_empty() {
        return Err(Error::setting("split", format!("{} has no {split} images", dataset.name)));
    }
    let total = samples.len();
    visit_batches(batches(samples, &backbone.preprocess, threads)?, total, go_on, |batch| {
        let mut embeds = backbone.embed(&batch.pixels, None, threads)?;
        normalize_l2(&mut embeds, width);
        let logits: Vec<f32> = embeds
            .chunks_exact(width)
            .flat_map(|image| weights.chunks_exact(width).map(move |class| scale * dot(image, class)))
            .collect();
        count(&logits, &batch.labels)
    })
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}
