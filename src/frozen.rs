//! A frozen backbone: embeddings of images and texts, and classes told by their names alone.

use std::{fmt::Display, sync::Arc, thread};

use ndarray::Array2;

use crate::{arrays::table, images::IntoImages};
use vpt_backbone::{
    Backbone, OpenOptions,
    class_texts::{Prompts, classifier},
};
use vpt_base::{Error, Result, linear_algebra::normalize_l2};
use vpt_model::predict::embed_images;

/// Threads where nobody says how many: one for each core that the process may use.
pub(crate) fn all_cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// A backbone that is open, cheap to clone: its weights are shared.
#[derive(Debug, Clone)]
pub struct FrozenBackbone {
    backbone: Arc<Backbone>,
    threads: usize,
}

impl FrozenBackbone {
    /// Opens a backbone: a known name such as `clip-nano`, which is part of the library, or `clip-vit-b32`, which is looked for in
    /// the local Hugging Face cache; `owner/name` there; or a folder in the layouts of Hugging Face, `open_clip` or `timm`.
    ///
    /// # Errors
    /// It is nowhere, or one of its files is missing or damaged.
    pub fn open(name_or_folder: &str) -> Result<Self> {
        Self::open_with(name_or_folder, &OpenOptions::default())
    }

    /// As [`Self::open`] with other images, another precision or less memory.
    ///
    /// # Errors
    /// As [`Self::open`], or the options do not fit the backbone.
    pub fn open_with(name_or_folder: &str, options: &OpenOptions) -> Result<Self> {
        Ok(Self::of(Arc::new(Backbone::open(name_or_folder, options)?)))
    }

    pub(crate) fn of(backbone: Arc<Backbone>) -> Self {
        Self { backbone, threads: all_cores() }
    }

    /// The same on so many threads. Results do not depend on it.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads: threads.max(1), ..self }
    }

    /// Its known name, or the name of its folder.
    pub fn name(&self) -> &str {
        &self.backbone.name
    }

    /// Values of an image's embedding.
    pub fn width(&self) -> usize {
        self.backbone.embedding_width()
    }

    /// Side of the images that it sees, in pixels.
    pub fn image_size(&self) -> usize {
        self.backbone.vit.image_size()
    }

    /// Whether it reads texts, as CLIP and SigLIP do.
    pub fn reads_texts(&self) -> bool {
        self.backbone.has_text_tower()
    }

    /// Embeddings `[N, D]` of images, not normalised: CLIP's projected class token, what attention makes of SigLIP's patches, the class
    /// token after the last norm of other families.
    ///
    /// # Errors
    /// An image cannot be read; the error names it, or its place.
    pub fn embed_images(&self, images: impl IntoImages) -> Result<Array2<f32>> {
        let images = images.into_images()?;
        let values = embed_images(&self.backbone, &images, self.threads, &mut |_, _| {})?;
        table(values, images.len(), self.width())
    }

    /// Embeddings `[T, D]` of texts, not normalised.
    ///
    /// # Errors
    /// The backbone reads no texts, or its tokenizer fails on one.
    pub fn embed_texts<S: AsRef<str>>(&self, texts: &[S]) -> Result<Array2<f32>> {
        let values = self.backbone.embed_texts(texts, self.threads)?;
        let width = values.len() / texts.len().max(1);
        table(values, texts.len(), width)
    }

    /// Probabilities `[N, C]` of classes that nothing was learned of, by their names alone: zero-shot classification with the text
    /// "a photo of a {}.".
    ///
    /// # Errors
    /// The backbone reads no texts, there are no classes, or an image cannot be read.
    pub fn zero_shot<S: Display>(&self, images: impl IntoImages, classes: &[S]) -> Result<Array2<f32>> {
        if classes.is_empty() {
            return Err(Error::invalid("classes", "there are none"));
        }
        let names: Vec<String> = classes.iter().map(ToString::to_string).collect();
        let texts = classifier(&self.backbone, &Prompts::of_names(&names), self.threads)?;
        let texts = table(texts, classes.len(), self.width())?;
        let mut cosines = normalized(self.embed_images(images)?).dot(&texts.t());
        let scale = self.backbone.logit_scale().unwrap_or(1.);
        for mut row in cosines.rows_mut() {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.mapv_inplace(|cosine| ((cosine - max) * scale).exp());
            let sum = row.sum();
            row /= sum;
        }
        Ok(cosines)
    }

    /// What is below: for steps of one's own with [`engine`](crate::engine).
    pub fn engine(&self) -> &Arc<Backbone> {
        &self.backbone
    }

    /// Threads that it computes on.
    pub fn threads(&self) -> usize {
        self.threads
    }
}

/// Rows scaled to length 1, so that their products are cosines; a row of zeros stays.
pub fn normalized(mut embeddings: Array2<f32>) -> Array2<f32> {
    let width = embeddings.ncols();
    if let Some(values) = embeddings.as_slice_mut() {
        normalize_l2(values, width);
        return embeddings;
    }
    // Another layout in memory.
    normalized(embeddings.as_standard_layout().into_owned())
}
