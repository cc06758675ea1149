//! Where the batches of a segmentation run come from: windows made ahead of it, or features that were computed once.

use std::path::Path;

use rand::Rng;

use super::setup::SegmentTraining;
use crate::train::{
    observer::{Event, Observer},
    progress::Stage,
    task::{Batches, token_store::Store},
};
use vpt_base::{Error, Result, params::Param, random::stream};
use vpt_data::{
    ImageCount, Split,
    masks::{MaskBatch, MaskImage, MaskLoader, MaskLoaderOptions, MaskView},
    visit_batches,
};
use vpt_model::{
    head::segment::DecodeHead,
    model::segment::{TokenInput, TokenStatistics},
};

/// Images that go through the backbone at a time when nothing is learned.
pub(super) const EVAL_BATCH: usize = 8;

/// Training images whose tokens say mean and variance to a linear head.
const NORM_IMAGES: usize = 128;

/// Kind of input that is read of every window of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WindowForm {
    /// The window itself, every time.
    Pixels,
    /// Tokens in front of the first prompted block, computed once.
    Prefix,
    /// All that the head reads of it, once.
    Features,
}

/// A part of a data set.
pub(crate) struct MaskPart {
    split: Split,
    images: usize,
    kind: WindowForm,
    cache: Option<WindowFeatures>,
}

/// Values computed once, for each window of each image and, where the flip is wanted, for its mirrored form behind it.
struct WindowFeatures {
    store: Store,
    forms: usize,
    /// The first window of each image, and behind it how many there are in all.
    first: Vec<usize>,
    /// Of each record, where labels are learned.
    labels: Vec<Vec<u16>>,
}

/// Windows in one form or another.
pub(crate) struct SegmentBatch {
    kind: WindowForm,
    values: Vec<f32>,
    /// `[W, L, L]`; none where nothing is learned.
    pub(super) labels: Vec<u16>,
    /// Windows of each image.
    pub(super) windows: Vec<usize>,
    /// Positions of the images in the part.
    pub(super) indices: Vec<usize>,
}

impl ImageCount for MaskPart {
    fn images(&self) -> usize {
        self.images
    }
}

impl ImageCount for SegmentBatch {
    fn images(&self) -> usize {
        self.indices.len()
    }
}

impl SegmentBatch {
    /// Input of the model.
    pub(super) fn input(&self) -> TokenInput<'_> {
        match self.kind {
            WindowForm::Pixels => TokenInput::Images(&self.values),
            WindowForm::Prefix => TokenInput::Prefix(&self.values),
            WindowForm::Features => TokenInput::Features(&self.values),
        }
    }

    fn of_windows(batch: MaskBatch) -> Self {
        let MaskBatch { pixels, labels, windows, indices } = batch;
        Self { kind: WindowForm::Pixels, values: pixels, labels, windows, indices }
    }
}

/// Gives a linear head the statistics of the training images; `false` when the observer asked to stop.
pub(super) fn begin(
    task: &SegmentTraining,
    params: &mut [Param],
    fresh: bool,
    observer: &mut dyn Observer,
) -> Result<bool> {
    if task.model.head().kind != DecodeHead::Linear || !fresh {
        return Ok(true);
    }
    let count = task.dataset.train.len();
    let total = count.min(NORM_IMAGES);
    let rng = &mut stream(task.plan.config.seed, "norm of tokens", 0, 0);
    let mut order = rand::seq::index::sample(rng, count, total).into_vec();
    order.sort_unstable();
    let loader = MaskLoader::new(task.images(Split::Train), order, task.loader_options())?;
    let mut statistics = TokenStatistics::new(task.model.head().width);
    let go_on = &mut |done, total| observer.goes_on(&Event::Features { split: Split::Train, done, total });
    let all = visit_batches(loader, total, go_on, |batch| {
        statistics.add(&task.model.reader().features(&batch.pixels)?);
        Ok(())
    })?;
    if all {
        task.model.set_norm(params, &statistics)?;
    }
    Ok(all)
}

impl MaskPart {
    /// The part.
    pub(super) fn split(&self) -> Split {
        self.split
    }

    /// The images of `split`, to be read as they are every time.
    pub(super) fn of_images(task: &SegmentTraining, split: Split) -> Self {
        Self { split, images: task.dataset.part(split).len(), kind: WindowForm::Pixels, cache: None }
    }

    /// The images of `split` with what `stage` can compute once; `folder` has room for what memory has none for. `None` when
    /// the observer asked to stop.
    pub(super) fn new(
        task: &SegmentTraining,
        split: Split,
        stage: Stage,
        folder: &Path,
        observer: &mut dyn Observer,
    ) -> Result<Option<Self>> {
        let augment = task.augment(split, stage);
        let reader = task.model.reader();
        let (kind, width) = match stage {
            _ if augment.scale.is_some() => return Ok(Some(Self::of_images(task, split))),
            Stage::Whole | Stage::Head => (WindowForm::Features, reader.features_len()),
            Stage::Prompts if reader.layout().is_some_and(|layout| layout.start > 0) => {
                (WindowForm::Prefix, reader.prefix_len())
            }
            // There are no other stages.
            _ => return Ok(Some(Self::of_images(task, split))),
        };
        let part = task.dataset.part(split);
        let learned = split == Split::Train;
        let forms = if augment.flip && learned { 2 } else { 1 };
        let mut first = vec![0];
        for MaskImage { width, height, .. } in part {
            first.push(first[first.len() - 1] + task.input.windows(*width, *height)?.len());
        }
        let records = first[part.len()] * forms;
        let labels = vec![Vec::new(); if learned { records } else { 0 }];
        let mut cache = WindowFeatures { store: Store::new(records, width, folder)?, forms, first, labels };
        for form in 0..forms {
            let view = MaskView::Windows { mirror: form == 1 };
            let options = MaskLoaderOptions { view, labels: learned, ..task.loader_options() };
            let loader = MaskLoader::new(task.images(split), (0..part.len()).collect(), options)?;
            let go_on = &mut |done, _| {
                let (done, total) = (form * part.len() + done, part.len() * forms);
                observer.goes_on(&Event::Features { split, done, total })
            };
            let all = visit_batches(loader, part.len(), go_on, |batch| {
                let computed = match kind {
                    WindowForm::Features => reader.features(&batch.pixels)?,
                    _ => reader.prefix(&batch.pixels)?,
                };
                let windows = batch.indices.iter().zip(&batch.windows);
                let windows = windows.flat_map(|(&index, &count)| (0..count).map(move |window| (index, window)));
                let cells = task.input.cells * task.input.cells;
                for (i, ((index, window), values)) in windows.zip(computed.chunks_exact(width)).enumerate() {
                    let record = (cache.first[index] + window) * forms + form;
                    cache.store.put(record, values)?;
                    if learned {
                        cache.labels[record] = batch.labels[i * cells..(i + 1) * cells].to_vec();
                    }
                }
                Ok(())
            })?;
            if !all {
                return Ok(None);
            }
        }
        Ok(Some(Self { split, images: part.len(), kind, cache: Some(cache) }))
    }

    /// The images at `order` in batches of `size`; the last may be smaller. Of a training image a window is drawn, by `epoch`.
    pub(super) fn batches<'a>(
        &'a self,
        task: &'a SegmentTraining,
        stage: Stage,
        order: &'a [usize],
        epoch: usize,
        size: usize,
    ) -> Result<Batches<'a, SegmentBatch>> {
        let learned = self.split == Split::Train;
        if let Some(cache) = &self.cache {
            let drawn = learned.then_some(epoch);
            return Ok(Box::new(order.chunks(size).map(move |chunk| cache.batch(self.kind, chunk, task, drawn))));
        }
        let view = match self.split {
            Split::Train => MaskView::Random(task.augment(self.split, stage)),
            _ => MaskView::Windows { mirror: false },
        };
        let options =
            MaskLoaderOptions { view, labels: learned, epoch: epoch as u64, batch: size, ..task.loader_options() };
        let loader = MaskLoader::new(task.images(self.split), order.to_vec(), options)?;
        Ok(Box::new(loader.map(|batch| Ok(SegmentBatch::of_windows(batch?)))))
    }
}

impl WindowFeatures {
    /// A window of each of `images`, drawn in this epoch; all of them if there is none.
    fn batch(
        &self,
        kind: WindowForm,
        images: &[usize],
        task: &SegmentTraining,
        epoch: Option<usize>,
    ) -> Result<SegmentBatch> {
        let mut batch = SegmentBatch {
            kind,
            values: Vec::new(),
            labels: Vec::new(),
            windows: Vec::new(),
            indices: images.to_vec(),
        };
        for &index in images {
            let windows = self.first[index]..self.first[index + 1];
            let Some(epoch) = epoch else {
                batch.windows.push(windows.len());
                windows.into_iter().try_for_each(|window| self.store.get(window * self.forms, &mut batch.values))?;
                continue;
            };
            let rng = &mut stream(task.plan.config.seed, "cached window", epoch as u64, index as u64);
            let record = rng.random_range(windows) * self.forms + rng.random_range(0..self.forms);
            self.store.get(record, &mut batch.values)?;
            batch.labels.extend_from_slice(&self.labels[record]);
            batch.windows.push(1);
        }
        if batch.values.is_empty() {
            return Err(Error::invalid("batch", "empty"));
        }
        Ok(batch)
    }
}
