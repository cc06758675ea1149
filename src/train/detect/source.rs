//! Where a detector's batches come from: images made ahead of it, or features that were computed once.

use std::path::Path;

use rand::Rng;

use super::{progress::Stage, setup::Setup, store::Store};
use crate::{
    Error, Result,
    data::{
        Split,
        boxes::{BoxBatch, BoxLoader, BoxLoaderOptions, Target, View},
    },
    head::detect::Truth,
    model::detect::DetectInput,
    random::stream,
    train::observer::{Event, Observer},
};

/// Images that go through the backbone at a time when nothing is learned.
pub(super) const EVAL_BATCH: usize = 16;

/// Kind of input that is read of every image of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The image itself, every time.
    Images,
    /// Tokens in front of the first prompted block, computed once.
    Prefix,
    /// All that the head reads of it, once.
    Features,
}

/// A part of a data set.
pub(super) struct Source {
    pub(super) split: Split,
    kind: Kind,
    cache: Option<Cache>,
}

/// Values computed once, for each image and, where the flip is wanted, for its mirrored form behind it.
struct Cache {
    store: Store,
    forms: usize,
    truths: Vec<Vec<Truth>>,
    valid: Vec<Option<Vec<bool>>>,
    views: Vec<View>,
}

/// A batch of images in one form or another.
pub(super) struct Batch {
    kind: Kind,
    values: Vec<f32>,
    pub(super) truths: Vec<Vec<Truth>>,
    /// `[B, G, G]`.
    pub(super) valid: Option<Vec<bool>>,
    pub(super) views: Vec<View>,
    /// Positions in the part.
    pub(super) indices: Vec<usize>,
}

impl Batch {
    /// Input of the detector.
    pub(super) fn input(&self) -> DetectInput<'_> {
        match self.kind {
            Kind::Images => DetectInput::Images(&self.values),
            Kind::Prefix => DetectInput::Prefix(&self.values),
            Kind::Features => DetectInput::Features(&self.values),
        }
    }

    fn of_images(batch: BoxBatch) -> Self {
        let truths = batch.targets.iter().map(|targets| targets.iter().map(truth).collect()).collect();
        let BoxBatch { pixels, views, valid, indices, .. } = batch;
        Self { kind: Kind::Images, values: pixels, truths, valid, views, indices }
    }
}

/// Objects that are not to be learned are treated as crowds are: nothing is learned in them.
fn truth(target: &Target) -> Truth {
    Truth { rect: target.bbox, class: target.category, crowd: target.crowd || target.ignore }
}

impl Source {
    /// The images of `split`, to be read as they are every time.
    pub(super) fn images(split: Split) -> Self {
        Self { split, kind: Kind::Images, cache: None }
    }

    /// The images of `split` with what `stage` can compute once; `folder` has room for what memory has none for. `None` when
    /// the observer asked to stop.
    pub(super) fn new(
        setup: &Setup,
        split: Split,
        stage: Stage,
        folder: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>> {
        let augment = setup.augment(split, stage);
        let (kind, width) = match stage {
            _ if !augment.only_flip() => return Ok(Some(Self::images(split))),
            Stage::Head => (Kind::Features, setup.model.features_len()),
            Stage::Prompts if setup.model.layout().is_some_and(|layout| layout.start > 0) => {
                (Kind::Prefix, setup.model.prefix_len())
            }
            Stage::Prompts => return Ok(Some(Self::images(split))),
        };
        let count = setup.dataset.part(split).len();
        let forms = if augment.flip { 2 } else { 1 };
        let mut cache = Cache {
            store: Store::new(count * forms, width, folder)?,
            forms,
            truths: vec![Vec::new(); count * forms],
            valid: vec![None; count * forms],
            views: Vec::new(),
        };
        for form in 0..forms {
            let options = BoxLoaderOptions { mirror: form == 1, batch: EVAL_BATCH, ..setup.loader_options() };
            for batch in BoxLoader::new(setup.images(split), (0..count).collect(), options)? {
                let batch = Batch::of_images(batch?);
                let computed = match kind {
                    Kind::Features => setup.model.features(&batch.values)?,
                    _ => setup.model.prefix(&batch.values)?,
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
                let done = form * count + batch.indices.last().map_or(0, |&last| last + 1);
                observer.event(&Event::Features { split, done, total: count * forms });
                if observer.stop() {
                    return Ok(None);
                }
            }
        }
        Ok(Some(Self { split, kind, cache: Some(cache) }))
    }

    /// The images at `order` in batches of `size`; the last may be smaller. `epoch` seeds what is random.
    pub(super) fn batches<'a>(
        &'a self,
        setup: &'a Setup,
        stage: Stage,
        order: &'a [usize],
        epoch: usize,
        size: usize,
    ) -> Result<Box<dyn Iterator<Item = Result<Batch>> + 'a>> {
        if let Some(cache) = &self.cache {
            return Ok(Box::new(order.chunks(size).map(move |chunk| cache.batch(self.kind, chunk, setup, epoch))));
        }
        let augment = setup.augment(self.split, stage);
        let options = BoxLoaderOptions { augment, epoch: epoch as u64, batch: size, ..setup.loader_options() };
        let loader = BoxLoader::new(setup.images(self.split), order.to_vec(), options)?;
        Ok(Box::new(loader.map(|batch| Ok(Batch::of_images(batch?)))))
    }
}

impl Cache {
    fn batch(&self, kind: Kind, images: &[usize], setup: &Setup, epoch: usize) -> Result<Batch> {
        let mut batch = Batch {
            kind,
            values: Vec::new(),
            truths: Vec::new(),
            valid: None,
            views: Vec::new(),
            indices: images.to_vec(),
        };
        let mut valid = Vec::new();
        for &index in images {
            let seed = setup.plan.config.seed;
            let mirrored = self.forms == 2 && stream(seed, "cached flip", epoch as u64, index as u64).random_bool(0.5);
            let record = index * self.forms + usize::from(mirrored);
            self.store.get(record, &mut batch.values)?;
            batch.truths.push(self.truths[record].clone());
            valid.push(self.valid[record].clone());
            batch.views.push(self.views[index]);
        }
        if valid.iter().any(Option::is_some) {
            let tokens = setup.input.grid * setup.input.grid;
            batch.valid = Some(valid.into_iter().flat_map(|v| v.unwrap_or_else(|| vec![true; tokens])).collect());
        }
        if batch.values.is_empty() {
            return Err(Error::invalid("batch", "empty"));
        }
        Ok(batch)
    }
}
