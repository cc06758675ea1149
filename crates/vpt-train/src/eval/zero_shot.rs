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

/// One part of a data set, to be classified by texts.
pub struct ZeroShotPass<'a> {
    /// Whose towers see images and texts.
    pub backbone: &'a Backbone,
    /// Whose images.
    pub dataset: &'a Dataset,
    /// Which part.
    pub split: Split,
    /// Classes and the templates of their texts.
    pub prompts: &'a Prompts,
    /// Threads to compute with.
    pub threads: usize,
}

impl ZeroShotPass<'_> {
    /// Gives each image a class and counts.
    ///
    /// # Errors
    /// The backbone has no text tower, the part is empty, or an image cannot be read.
    pub fn one_class(&self, progress: Progress) -> Result<Tally> {
        let mut tally = Tally::new(self.prompts.classnames.len());
        self.each_batch(&mut to_the_end(progress), |logits, labels| tally.add(logits, labels))?;
        Ok(tally)
    }

    /// Tells each class by itself, by the sigmoid of its logit, and counts. `truth` says whether images with these labels have
    /// each class, `[B, classes]`.
    ///
    /// # Errors
    /// As [`Self::one_class`]; or the backbone was not trained so.
    pub fn each_class(
        &self,
        truth: &dyn Fn(&[u32]) -> Result<Vec<bool>>,
        progress: Progress,
    ) -> Result<MultilabelTally> {
        let Some(bias) = self.backbone.logit_bias() else {
            self.backbone.text_spec()?;
            let name = &self.backbone.name;
            let message = format!("sigmoid is for backbones that were trained by it, as SigLIP; {name} was not");
            return Err(Error::setting("scores", message));
        };
        let mut tally = MultilabelTally::new(self.prompts.classnames.len());
        self.each_batch(&mut to_the_end(progress), |logits, labels| {
            let logits: Vec<f32> = logits.iter().map(|logit| logit + bias).collect();
            tally.add(&logits, &truth(labels)?)
        })?;
        Ok(tally)
    }

    /// The logits of all images. `go_on` is told how many are done, of how many; once it says no, there is no result.
    ///
    /// # Errors
    /// As [`Self::one_class`].
    pub fn logits(&self, go_on: &mut dyn FnMut(usize, usize) -> bool) -> Result<Option<Logits>> {
        let mut kept = Logits::new(self.prompts.classnames.len());
        let whole = self.each_batch(go_on, |logits, labels| kept.add(logits, labels))?;
        Ok(whole.then_some(kept))
    }

    /// Tells `count` logits and labels of every batch, and `go_on` how many images are done, of how many, until it says no.
    /// Whether it did not.
    fn each_batch(
        &self,
        go_on: &mut dyn FnMut(usize, usize) -> bool,
        mut count: impl FnMut(&[f32], &[u32]) -> Result<()>,
    ) -> Result<bool> {
        let Self { backbone, dataset, split, prompts, threads } = *self;
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
}

/// What `progress` is told by, and never stops.
fn to_the_end(progress: Progress<'_>) -> impl FnMut(usize, usize) -> bool + '_ {
    move |done, total| {
        progress(done, total);
        true
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}
