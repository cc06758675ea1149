//! Where a detector's batches come from: images made ahead of it, or features that were computed once.

use std::path::Path;

use rand::Rng;

use super::setup::DetectTraining;
use crate::train::{
    observer::{Event, Observer},
    progress::Stage,
    task::{Batches, token_store::Store},
};
use vpt_base::{Error, Result, random::stream};
use vpt_data::{
    ImageCount, Split,
    boxes::{BoxBatch, BoxLoader, BoxLoaderOptions, Target, View},
    visit_batches,
};
use vpt_model::{head::detect::Truth, model::detect::TokenInput};

/// Images that go through the backbone at a time when nothing is learned.
pub(super) const EVAL_BATCH: usize = 16;

/// Kind of input that is read of every image of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InputForm {
    /// The image itself, every time.
    Images,
    /// Tokens in front of the first prompted block, computed once.
    Prefix,
    /// All that the head reads of it, once.
    Features,
}

/// A part of a data set.
pub(crate) struct BoxSource {
    split: Split,
    images: usize,
    kind: InputForm,
    cache: Option<BoxFeatures>,
}

/// Values computed once, for each image and, where the flip is wanted, for its mirrored form behind it.
struct BoxFeatures {
    store: Store,
    forms: usize,
    truths: Vec<Vec<Truth>>,
    valid: Vec<Option<Vec<bool>>>,
    views: Vec<View>,
}

/// A batch of images in one form or another.
pub(crate) struct DetectBatch {
    kind: InputForm,
    values: Vec<f32>,
    pub(super) truths: Vec<Vec<Truth>>,
    /// `[B, G, G]`.
    pub(super) valid: Option<Vec<bool>>,
    pub(super) views: Vec<View>,
    /// Positions in the part.
    pub(super) indices: Vec<usize>,
}

impl ImageCount for BoxSource {
    fn images(&self) -> usize {
        self.images
    }
}

impl ImageCount for DetectBatch {
    fn images(&self) -> usize {
        self.indices.len()
    }
}

impl DetectBatch {
    /// Input of the detector.
    pub(super) fn input(&self) -> TokenInput<'_> {
        match self.kind {
            InputForm::Images => TokenInput::Images(&self.values),
            InputForm::Prefix => TokenInput::Prefix(&self.values),
            InputForm::Features => TokenInput::Features(&self.values),
        }
    }

    fn of_images(batch: BoxBatch) -> Self {
        let truths = batch.targets.iter().map(|targets| targets.iter().map(truth).collect()).collect();
        let BoxBatch { pixels, views, valid, indices, .. } = batch;
        Self { kind: InputForm::Images, values: pixels, truths, valid, views, indices }
    }
}

/// Objects that are not to be learned are treated as crowds are: nothing is learned in them.
fn truth(target: &Target) -> Truth {
    Truth { rect: target.bbox, class: target.category, crowd: target.crowd || target.ignore }
}

impl BoxSource {
    /// The part.
    pub(super) fn split(&self) -> Split {
        self.split
    }

    /// The images of `split`, to be read as they are every time.
    pub(super) fn of_images(task: &DetectTraining, split: Split) -> Self {
        Self { split, images: task.dataset.part(split).len(), kind: InputForm::Images, cache: None }
    }

    /// The images of `split` with what `stage` can compute once; `folder` has room for what memory has none for. `None` when
    /// the observer asked to stop.
    pub(super) fn new(
        task: &DetectTraining,
        split: Split,
        stage: Stage,
        folder: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>> {
        let augment = task.augment(split, stage);
        let (kind, width) = match stage {
            _ if !augment.only_flip() => return Ok(Some(Self::of_images(task, split))),
            Stage::Whole | Stage::Head => (InputForm::Features, task.model.features_len()),
            Stage::Prompts if task.model.layout().is_some_and(|layout| layout.start > 0) => {
                (InputForm::Prefix, task.model.prefix_len())
            }
            // Detectors have no other stages.
            _ => return Ok(Some(Self::of_images(task, split))),
        };
        let count = task.dataset.part(split).len();
        let forms = if augment.flip { 2 } else { 1 };
        let mut cache = BoxFeatures {
            store: Store::new(count * forms, width, folder)?,
            forms,
            truths: vec![Vec::new(); count * forms],
            valid: vec![None; count * forms],
            views: Vec::new(),
        };
        for form in 0..forms {
            let options = BoxLoaderOptions { mirror: form == 1, batch: EVAL_BATCH, ..task.loader_options() };
            let loader = BoxLoader::new(task.images(split), (0..count).collect(), options)?;
            let go_on = &mut |done, _| {
                observer.goes_on(&Event::Features { split, done: form * count + done, total: count * forms })
            };
            let all = visit_batches(loader, count, go_on, |batch| {
                let batch = DetectBatch::of_images(batch);
                let computed = match kind {
                    InputForm::Features => task.model.features(&batch.values)?,
                    _ => task.model.prefix(&batch.values)?,
                };
                for (i, (&index, values)) in batch.indices.iter().zip(computed.chunks_exact(width)).enumerate() {
                    let record = index * forms + form;
                    cache.store.put(record, values)?;
                    cache.truths[record].clone_from(&batch.truths[i]);
                    cache.valid[record] = batch.valid.as_ref().map(|all| {
                        let each = all.len() / batch.indices.len();
                        all[i * each..(i + 1) * each].to_vec()
                    });
                }
                if form == 0 {
                    cache.views.extend(&batch.views);
                }
                Ok(())
            })?;
            if !all {
                return Ok(None);
            }
        }
        Ok(Some(Self { split, images: count, kind, cache: Some(cache) }))
    }

    /// The images at `order` in batches of `size`; the last may be smaller. `epoch` seeds what is random.
    pub(super) fn batches<'a>(
        &'a self,
        task: &'a DetectTraining,
        stage: Stage,
        order: &'a [usize],
        epoch: usize,
        size: usize,
    ) -> Result<Batches<'a, DetectBatch>> {
        if let Some(cache) = &self.cache {
            return Ok(Box::new(order.chunks(size).map(move |chunk| cache.batch(self.kind, chunk, task, epoch))));
        }
        let augment = task.augment(self.split, stage);
        let options = BoxLoaderOptions { augment, epoch: epoch as u64, batch: size, ..task.loader_options() };
        let loader = BoxLoader::new(task.images(self.split), order.to_vec(), options)?;
        Ok(Box::new(loader.map(|batch| Ok(DetectBatch::of_images(batch?)))))
    }
}

impl BoxFeatures {
    fn batch(&self, kind: InputForm, images: &[usize], task: &DetectTraining, epoch: usize) -> Result<DetectBatch> {
        let mut batch = DetectBatch {
            kind,
            values: Vec::new(),
            truths: Vec::new(),
            valid: None,
            views: Vec::new(),
            indices: images.to_vec(),
        };
        let mut valid = Vec::new();
        for &index in images {
            let seed = task.plan.config.seed;
            let mirrored = self.forms == 2 && stream(seed, "cached flip", epoch as u64, index as u64).random_bool(0.5);
            let record = index * self.forms + usize::from(mirrored);
            self.store.get(record, &mut batch.values)?;
            batch.truths.push(self.truths[record].clone());
            valid.push(self.valid[record].clone());
            batch.views.push(self.views[index]);
        }
        if valid.iter().any(Option::is_some) {
            let tokens = task.input.grid * task.input.grid;
            batch.valid = Some(valid.into_iter().flat_map(|v| v.unwrap_or_else(|| vec![true; tokens])).collect());
        }
        if batch.values.is_empty() {
            return Err(Error::invalid("batch", "empty"));
        }
        Ok(batch)
    }
}
