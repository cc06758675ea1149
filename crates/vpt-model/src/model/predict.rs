//! What a learned task says of images, wherever these are: in files, in archives, or in memory, where nothing touches the disk.
//!
//! Whoever asks a task goes this way, so answers are the same to the last bit, in whatever batches images come.

use std::path::PathBuf;

use serde::Serialize;

use crate::model::{AnyTask, DetectTask, Found, SegmentTask, TaskModel, sigmoid};
use vpt_backbone::Backbone;
use vpt_base::{Error, Progress, Result, logits::top_k};
use vpt_data::{
    ImageSource, Loader, Sample,
    boxes::BoxImage,
    masks::{ClassMask, MaskImage, Rle},
    visit_batches,
};
use vpt_image::Preprocess;

/// Images that go through the backbone at a time.
pub const BATCH: usize = 64;

/// Score that a detector's boxes must have where neither the user nor the task file says another.
const MIN_SCORE: f64 = 0.3;

/// A class and how likely it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Guess {
    /// The class.
    pub label: String,
    /// Its probability: softmax, at the task's temperature, over all its classes, or of the class by itself where an image has any number.
    pub probability: f64,
    /// Index into the task's classes.
    #[serde(skip)]
    pub class: usize,
}

/// An object found in an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PredictedBox {
    /// Its class.
    pub label: String,
    /// How sure the detector is, 0 to 1.
    pub score: f64,
    /// Left, top, width, height in pixels.
    pub bbox: [f64; 4],
    /// Index into the task's classes.
    #[serde(skip)]
    pub class: usize,
}

/// A class in an image, and how much of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassShare {
    /// The class.
    pub label: String,
    /// Its share of the image's pixels.
    pub share: f64,
    /// Its pixels.
    pub pixels: u64,
    /// Index into the task's classes.
    #[serde(skip)]
    pub class: usize,
}

/// The pixels of a class as pycocotools reads them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MaskRuns {
    /// Height and width.
    pub size: [usize; 2],
    /// Runs down the columns, packed into text.
    pub counts: String,
}

/// What a task says of one image.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ImageAnswer {
    /// The most likely classes of an image that has one, most likely first.
    Class(Vec<Guess>),
    /// The classes of an image that has any number: those whose probability is at least .5, most likely first.
    Classes(Vec<Guess>),
    /// The objects in an image, surest first.
    Boxes(Vec<PredictedBox>),
    /// The classes of an image's pixels, the most frequent first.
    Regions(Vec<ClassShare>),
}

impl ImageAnswer {
    /// Class and probability, or score, of what is surest; none where no class is likely enough, or nothing was found.
    pub fn best(&self) -> Option<(&str, f64)> {
        match self {
            Self::Class(guesses) | Self::Classes(guesses) => {
                guesses.first().map(|guess| (guess.label.as_str(), guess.probability))
            }
            Self::Boxes(boxes) => boxes.first().map(|found| (found.label.as_str(), found.score)),
            Self::Regions(regions) => regions.first().map(|region| (region.label.as_str(), region.share)),
        }
    }
}

/// How much an answer tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AnswerOptions {
    /// Most classes that are told of an image that has one.
    pub top: usize,
    /// Score that boxes must have; `None`: [`DetectTask::thresholds`].
    pub min_score: Option<f64>,
}

impl Default for AnswerOptions {
    /// Five classes.
    fn default() -> Self {
        Self { top: 5, min_score: None }
    }
}

/// Files as images.
pub fn sources(paths: &[PathBuf]) -> Vec<ImageSource> {
    paths.iter().cloned().map(ImageSource::File).collect()
}

/// What errors call the image at `index`: its file, or its place.
fn name(image: &ImageSource, index: usize) -> String {
    image.file().map_or_else(|| format!("image {index}"), |path| path.display().to_string())
}

/// Calls `take` with the pixels `[b, 3, s, s]` of `images` as `preprocess` makes them, batch by batch, in their order.
fn visit_pixels(
    images: &[ImageSource],
    preprocess: &Preprocess,
    threads: usize,
    progress: Progress,
    mut take: impl FnMut(&[f32]) -> Result<()>,
) -> Result<()> {
    let sample = |(i, image): (usize, &ImageSource)| Sample { image: image.clone(), label: 0, id: name(image, i) };
    let samples: Vec<Sample> = images.iter().enumerate().map(sample).collect();
    let go_on = &mut |done, total| {
        progress(done, total);
        true
    };
    let loader = Loader::plain(samples, preprocess, BATCH, threads)?;
    visit_batches(loader, images.len(), go_on, |batch| take(&batch.pixels)).map(|_| ())
}

/// Embeddings `[N, D]` of `images` by a frozen backbone, not normalised: see [`Backbone::embed`].
///
/// # Errors
/// An image cannot be read; the error names it.
pub fn embed_images(
    backbone: &Backbone,
    images: &[ImageSource],
    threads: usize,
    progress: Progress,
) -> Result<Vec<f32>> {
    let mut all = Vec::with_capacity(images.len() * backbone.embedding_width());
    visit_pixels(images, &backbone.preprocess, threads, progress, |pixels| {
        all.extend(backbone.embed(pixels, None, threads)?);
        Ok(())
    })?;
    Ok(all)
}

impl TaskModel {
    fn visit_images(
        &self,
        images: &[ImageSource],
        progress: Progress,
        take: impl FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        visit_pixels(images, self.preprocess(), self.model().threads(), progress, take)
    }

    /// Embeddings `[N, D]` of `images` through what was learned, not normalised.
    ///
    /// # Errors
    /// An image cannot be read; the error names it.
    pub fn embed_images(&self, images: &[ImageSource], progress: Progress) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(images.len() * self.model().backbone().embedding_width());
        self.visit_images(images, progress, |pixels| {
            all.extend(self.model().embed(self.params(), pixels)?);
            Ok(())
        })?;
        Ok(all)
    }

    /// Probabilities `[N, C]` of the classes of `images`, as [`Self::predict`] makes them of their pixels.
    ///
    /// # Errors
    /// An image cannot be read; the error names it.
    pub fn probabilities(&self, images: &[ImageSource], progress: Progress) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(images.len() * self.meta().classes.len());
        self.visit_images(images, progress, |pixels| {
            all.extend(self.predict(pixels)?);
            Ok(())
        })?;
        Ok(all)
    }

    /// The classes of each of `images`, most likely first: the `top` most likely, or, where an image has any number of classes,
    /// those whose probability is at least .5.
    ///
    /// # Errors
    /// An image cannot be read; the error names it.
    pub fn guesses(&self, images: &[ImageSource], top: usize, progress: Progress) -> Result<Vec<Vec<Guess>>> {
        let classes = self.meta().classes.len();
        let mut all = Vec::with_capacity(images.len());
        self.visit_images(images, progress, |pixels| {
            all.extend(self.logits_by_image(pixels)?.chunks_exact(classes).map(|row| self.guesses_of(row, top)));
            Ok(())
        })?;
        Ok(all)
    }

    /// [`Self::guesses`] by an image's logits `[C]`.
    pub fn guesses_of(&self, logits: &[f32], top: usize) -> Vec<Guess> {
        let meta = self.meta();
        let guess = |class: usize, probability| Guess { label: meta.classes[class].clone(), probability, class };
        if meta.multilabel {
            let there = top_k(logits, logits.len(), 1.).into_iter().filter(|&(class, _)| logits[class] >= 0.);
            return there.map(|(class, _)| guess(class, f64::from(sigmoid(logits[class])))).collect();
        }
        let likely = top_k(logits, top, meta.temperature()).into_iter();
        likely.map(|(class, probability)| guess(class, probability)).collect()
    }
}

impl DetectTask {
    /// Score above which boxes are told of unless another is asked for: where F1 was best on the validation images, if that is known.
    pub fn usual_score(&self) -> f64 {
        self.meta().detect.as_ref().and_then(|detect| detect.confidence).unwrap_or(MIN_SCORE)
    }

    /// Scores that boxes of each class must have to be told of: `min_score` for all, if that is given, else where F1 was best on the
    /// validation images, for each class if that is known.
    pub fn thresholds(&self, min_score: Option<f64>) -> Vec<f64> {
        let own = self.meta().detect.as_ref().and_then(|detect| detect.thresholds.clone());
        let same = |score| vec![score; self.meta().classes.len()];
        min_score.map_or_else(|| own.unwrap_or_else(|| same(self.usual_score())), same)
    }

    /// The objects in each of `images` whose score is at least that in `thresholds` of their class, surest first.
    ///
    /// # Errors
    /// An image cannot be read; the error names it.
    pub fn boxes(
        &self,
        images: Vec<BoxImage>,
        thresholds: &[f64],
        progress: Progress,
    ) -> Result<Vec<Vec<PredictedBox>>> {
        let all = self.detect(images, progress)?.into_iter().map(|found| self.boxes_of(found, thresholds));
        Ok(all.collect())
    }

    /// Those of the objects found in an image whose score is at least that in `thresholds` of their class.
    pub(crate) fn boxes_of(&self, found: Vec<Found>, thresholds: &[f64]) -> Vec<PredictedBox> {
        let classes = &self.meta().classes;
        let sure = found.into_iter().filter(|found| thresholds.get(found.class).is_some_and(|&t| found.score >= t));
        let told = |found: Found| PredictedBox {
            label: classes.get(found.class).cloned().unwrap_or_default(),
            score: found.score,
            bbox: [found.rect.x, found.rect.y, found.rect.width, found.rect.height],
            class: found.class,
        };
        sure.map(told).collect()
    }
}

impl SegmentTask {
    /// The classes in `mask`, the most frequent first.
    pub fn shares(&self, mask: &ClassMask) -> Vec<ClassShare> {
        let names = &self.meta().classes;
        let mut counts = vec![0_u64; names.len()];
        for class in &mask.classes {
            if let Some(count) = counts.get_mut(usize::from(*class)) {
                *count += 1;
            }
        }
        let found = counts.into_iter().enumerate().filter(|(_, pixels)| *pixels > 0);
        let mut shares: Vec<ClassShare> = found
            .map(|(class, pixels)| {
                let share = pixels as f64 / mask.classes.len() as f64;
                ClassShare { label: names[class].clone(), share, pixels, class }
            })
            .collect();
        shares.sort_by_key(|share| std::cmp::Reverse(share.pixels));
        shares
    }

    /// The pixels of `class` in `mask`.
    ///
    /// # Errors
    /// The mask has no pixels, or more than an image may have.
    pub fn runs(&self, mask: &ClassMask, class: usize) -> Result<MaskRuns> {
        let inside: Vec<bool> = mask.classes.iter().map(|own| usize::from(*own) == class).collect();
        let runs = Rle::from_pixels(mask.width, mask.height, &inside).map_err(|why| Error::invalid("mask", why))?;
        Ok(MaskRuns { size: [mask.height, mask.width], counts: runs.to_text() })
    }
}

impl AnyTask {
    /// What the task says of each of `images`, in their order.
    ///
    /// # Errors
    /// An image cannot be read; the error names it, or its place if it is in no file.
    pub fn answer(
        &self,
        images: &[ImageSource],
        options: &AnswerOptions,
        progress: Progress,
    ) -> Result<Vec<ImageAnswer>> {
        match self {
            Self::Classify(task) => {
                let guesses = task.guesses(images, options.top, progress)?;
                Ok(guesses.into_iter().map(ImageAnswer::Class).collect())
            }
            Self::Multilabel(task) => {
                let guesses = task.guesses(images, options.top, progress)?;
                Ok(guesses.into_iter().map(ImageAnswer::Classes).collect())
            }
            Self::Detect(task) => {
                let opened = |(i, image): (usize, &ImageSource)| BoxImage::unlabelled(name(image, i), image.clone());
                let images = images.iter().enumerate().map(opened).collect::<Result<_>>()?;
                let boxes = task.boxes(images, &task.thresholds(options.min_score), progress)?;
                Ok(boxes.into_iter().map(ImageAnswer::Boxes).collect())
            }
            Self::Segment(task) => {
                let opened = |(i, image): (usize, &ImageSource)| MaskImage::unlabelled(name(image, i), image.clone());
                let images = images.iter().enumerate().map(opened).collect::<Result<_>>()?;
                let mut all = Vec::new();
                task.visit_masks(images, progress, |_, mask| {
                    all.push(ImageAnswer::Regions(task.shares(&mask)));
                    Ok(())
                })?;
                Ok(all)
            }
        }
    }
}
