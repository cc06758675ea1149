//! A learned detector on its backbone, ready to look for objects.

use std::{path::Path, sync::Arc};

use super::{
    detect::{Detector, TokenInput},
    task::{TaskOptions, open_task},
};
use crate::{
    head::detect::{BoundDetectHead, BoxScore, ClassLayer, DecodeOptions},
    model::task_file::{EXEMPLARS, TaskFile, TaskMeta},
};
use vpt_backbone::{
    Backbone,
    class_texts::class_embeddings,
    vit::{PromptSet, TokenRead},
};
use vpt_base::{Error, Message, Progress, Result, params::Param};
use vpt_data::{
    boxes::{BoxImage, BoxInput, BoxLoader, BoxLoaderOptions, Category, Rect, TiledImages, View},
    visit_batches,
};

/// Images that go through the backbone at a time.
const BATCH: usize = 16;

/// An object found in an image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// Index into the task's classes.
    pub class: usize,
    /// How sure the detector is, 0 to 1.
    pub score: f64,
    /// Where it is, in pixels of the image.
    pub rect: Rect,
}

/// A learned detector.
#[derive(Debug)]
pub struct DetectTask {
    detector: Detector,
    params: Vec<Param>,
    meta: TaskMeta,
    input: BoxInput,
    /// Tiles along the shorter side of an image, if they did not overlap.
    tiles: usize,
}

impl DetectTask {
    /// Opens the task file, or run folder, `path` together with its backbone.
    ///
    /// # Errors
    /// As [`super::TaskModel::open`]; or the task is no detector.
    pub fn open(path: &Path, options: &TaskOptions) -> Result<Self> {
        open_task(path, options, Self::with_backbone)
    }

    /// A detector on a backbone that is open already, at the task's image size.
    pub fn with_backbone(file: TaskFile, backbone: Arc<Backbone>, threads: usize) -> Result<Self> {
        file.check_backbone(&backbone)?;
        let TaskFile { meta, mut params } = file;
        let Some(detect) = &meta.detect else {
            return Err(Error::invalid("task", "learned to classify, not to detect"));
        };
        let shown = params.iter().position(|param| param.name == EXEMPLARS).map(|at| params.remove(at).values);
        let texts = match detect.head.classes {
            ClassLayer::Linear { .. } => None,
            ClassLayer::Text { .. } if shown.is_some() => shown,
            ClassLayer::Text { .. } => Some(class_embeddings(&backbone, &meta.classes, threads)?),
        };
        let input = BoxInput {
            preprocess: meta.preprocess.clone(),
            side: meta.image_size,
            grid: detect.head.grid,
            fit: detect.fit,
        };
        let detector = Detector::new(backbone, &meta.parts, detect.head, &detect.blocks, texts, threads)?;
        detector.check(&params)?;
        let params = detector.reader().in_order(params);
        let tiles = detect.tiles;
        Ok(Self { detector, params, meta, input, tiles })
    }

    /// Whether classes are told by their names, so that it can look for others.
    pub fn is_open_vocabulary(&self) -> bool {
        self.meta.detect.as_ref().is_some_and(|detect| matches!(detect.head.classes, ClassLayer::Text { .. }))
    }

    /// The same detector for other classes, given by their names.
    ///
    /// # Errors
    /// It was not learned to tell classes by their names.
    pub fn with_classes(mut self, names: Vec<String>) -> Result<Self> {
        if !self.is_open_vocabulary() {
            let knows = "the detector knows the classes that it was trained on and no others; train it with ";
            let message = Message::from(knows).field("open_vocabulary").text(" to ask for any");
            return Err(Error::setting("classes", message));
        }
        let texts = class_embeddings(self.detector.backbone(), &names, self.detector.threads())?;
        self.detector = self.detector.with_texts(texts);
        self.rename(names, false);
        Ok(self)
    }

    /// The same detector for classes with these vectors `[K, E]` in the place of text embeddings.
    pub(super) fn with_vectors(mut self, vectors: Vec<f32>, names: Vec<String>) -> Result<Self> {
        self.detector = self.detector.with_texts(vectors);
        self.detector.bind(&self.params)?;
        self.rename(names, true);
        Ok(self)
    }

    /// Takes the names of other classes, which were shown or told.
    fn rename(&mut self, names: Vec<String>, shown: bool) {
        if let Some(detect) = &mut self.meta.detect {
            detect.category_ids = (1..).take(names.len()).collect();
            detect.exemplars = shown;
            detect.thresholds = None;
        }
        self.meta.classes = names;
    }

    /// The vectors `[K, E]` of its classes, where these were shown.
    pub(super) fn shown(&self) -> Option<&[f32]> {
        self.detector.texts().filter(|_| self.meta.detect.as_ref().is_some_and(|detect| detect.exemplars))
    }

    /// What it finds, with the ids that the data it learned from has for it.
    pub fn categories(&self) -> Vec<Category> {
        let ids = self.meta.detect.iter().flat_map(|detect| detect.category_ids.iter().copied());
        ids.zip(&self.meta.classes).map(|(id, name)| Category { id, name: name.clone() }).collect()
    }

    /// The frozen part.
    pub fn backbone(&self) -> &Arc<Backbone> {
        self.detector.backbone()
    }

    /// What the task file says; the classes are those asked for last.
    pub fn meta(&self) -> &TaskMeta {
        &self.meta
    }

    /// The same detector, which keeps the boxes of an image that `decode` says.
    ///
    /// # Errors
    /// [`DecodeOptions::check`].
    pub fn with_decode(mut self, decode: DecodeOptions) -> Result<Self> {
        decode.check()?;
        self.detector = self.detector.with_decode(decode);
        Ok(self)
    }

    /// The same detector, which looks at images in so many tiles along their shorter side, if these did not overlap, and as a whole;
    /// 1: as a whole alone.
    ///
    /// # Errors
    /// There are none, or too many.
    pub fn with_tiles(mut self, tiles: usize) -> Result<Self> {
        TiledImages::new(Vec::new(), tiles)?;
        self.tiles = tiles;
        Ok(self)
    }

    /// Tiles along the shorter side of an image.
    pub fn tiles(&self) -> usize {
        self.tiles
    }

    /// Backbone, parts and head.
    pub fn detector(&self) -> &Detector {
        &self.detector
    }

    /// The learned values.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// How images are made ready for the detector.
    pub fn input(&self) -> &BoxInput {
        &self.input
    }

    /// Whether prompts go into the image tower of a pass with other tasks.
    pub(super) fn is_prompted(&self) -> bool {
        self.detector.layout().is_some() && !self.is_tuned()
    }

    /// Whether it has weights of the image tower of its own.
    pub(super) fn is_tuned(&self) -> bool {
        self.detector.reader().shapes().weights().is_some()
    }

    /// The keys and values of its prompts, if it has any.
    pub(super) fn prompt_set(&self, threads: usize) -> Result<Option<PromptSet>> {
        self.detector.prompt_set(&self.params, threads)
    }

    /// What is found in an image `[3, S, S]` that lies as `view` says, with weights of its own.
    pub(super) fn found_alone(
        &self,
        ready: &ReadyDetector,
        pixels: &[f32],
        view: &View,
        valid: Option<&[bool]>,
    ) -> Result<Vec<Found>> {
        let found = self.detector.detect(&ready.head, Some(&self.params), TokenInput::Images(pixels), valid)?;
        Ok(found.iter().flat_map(|boxes| placed(boxes, view)).collect())
    }

    /// The embedding of an image `[3, S, S]`, with weights of its own.
    pub(super) fn embed(&self, pixels: &[f32]) -> Result<Vec<f32>> {
        self.detector.reader().embed(&self.params, pixels)
    }

    /// What is made once for many images.
    pub(super) fn ready(&self) -> Result<ReadyDetector> {
        Ok(ReadyDetector { head: self.detector.bind(&self.params)?, reads: self.detector.reads().to_vec() })
    }

    /// What is found in an image that lies as `view` says, by what was read of it.
    pub(super) fn found_in(
        &self,
        ready: &ReadyDetector,
        read: &[f32],
        view: &View,
        valid: Option<&[bool]>,
    ) -> Vec<Found> {
        placed(&self.detector.boxes_in(&ready.head, read, valid), view)
    }

    /// What is found in each of `images`, best first.
    ///
    /// # Errors
    /// An image cannot be read; the error names it.
    pub fn detect(&self, images: Vec<BoxImage>, progress: Progress) -> Result<Vec<Vec<Found>>> {
        let head = self.detector.bind(&self.params)?;
        let count = images.len();
        let TiledImages { views, tiles } = TiledImages::new(images, self.tiles)?;
        let total = views.len();
        let options =
            BoxLoaderOptions { batch: BATCH, ..BoxLoaderOptions::plain(self.input.clone(), self.detector.threads()) };
        let mut all = vec![Vec::new(); count];
        let loader = BoxLoader::new(views.into(), (0..total).collect(), options)?;
        let go_on = &mut |done: usize, total: usize| {
            progress(done * count / total.max(1), count);
            true
        };
        visit_batches(loader, total, go_on, |batch| {
            let input = TokenInput::Images(&batch.pixels);
            let found = self.detector.detect(&head, Some(&self.params), input, batch.valid.as_deref())?;
            for ((&index, view), found) in batch.indices.iter().zip(&batch.views).zip(found) {
                let tile = &tiles[index];
                let place = |found: Found| Some(Found { rect: tile.in_image(found.rect)?, ..found });
                all[tile.image].extend(placed(&found, view).into_iter().filter_map(place));
            }
            Ok(())
        })?;
        if self.tiles > 1 {
            let of = |found: &Found| (found.class, found.score, found.rect);
            all = all.into_iter().map(|found| self.detector.decode().merged(found, of)).collect();
        }
        Ok(all)
    }
}

/// Boxes where they lie in the image.
fn placed(boxes: &[BoxScore], view: &View) -> Vec<Found> {
    let place = |found: &BoxScore| {
        let rect = found.in_original(view)?;
        Some(Found { class: found.class, score: f64::from(found.score), rect })
    };
    boxes.iter().filter_map(place).collect()
}

/// The head of a [`DetectTask`] with its weights, and what it reads.
pub(super) struct ReadyDetector {
    head: BoundDetectHead,
    reads: Vec<TokenRead>,
}

impl ReadyDetector {
    /// The tokens that it reads.
    pub(super) fn reads(&self) -> &[TokenRead] {
        &self.reads
    }
}

impl std::fmt::Debug for ReadyDetector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadyDetector").field("head", self.head.shape()).field("reads", &self.reads).finish()
    }
}
