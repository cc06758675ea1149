//! Where a loop's batches come from: images decoded ahead of it, or features or tokens that were computed once.

use std::{
    cell::RefCell,
    ops::Range,
    sync::{Arc, OnceLock},
};

use rayon::prelude::*;

use crate::train::{
    features::logistic::Labelled,
    observer::{Event, Observer},
    process_group::ProcessGroup,
    task::Batches,
};
use vpt_base::Result;
use vpt_data::{self, Augment, Digest, ImageCount, Loader, LoaderOptions, PixelCache, Sample, Split, digest};
use vpt_image::Preprocess;

/// Images that a rank reads before it tells the others.
const READ_CHUNK: usize = 256;

/// Images of one part of a data set, or their features.
pub(crate) enum PartSource {
    /// Images.
    Images(PartImages),
    /// Their features.
    Features(Features),
    /// Output of their first blocks.
    Tokens {
        /// How many blocks.
        blocks: usize,
        /// The tokens of an image as a row, in one view.
        tokens: Features,
    },
}

/// Features of images.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Features {
    /// `[views, n, D]`: epoch e, counted from 1, sees view e - 1, and begins again with the first when there are no more.
    pub(crate) values: Vec<f32>,
    /// The class of each image `[n]`.
    pub(crate) labels: Vec<u32>,
    /// At least 1.
    pub(crate) views: usize,
}

impl Features {
    /// The first view of each image.
    pub(crate) fn labelled(&self) -> Labelled<'_> {
        Labelled { features: &self.values[..self.labels.len() * self.width()], labels: &self.labels }
    }

    /// The same as so many more images of one view each.
    pub(crate) fn flattened(self) -> Self {
        Self { labels: self.labels.repeat(self.views), values: self.values, views: 1 }
    }

    /// The rows of `indices` in the view of `epoch`.
    pub(crate) fn rows(&self, indices: &[usize], epoch: usize) -> Vec<f32> {
        let width = self.width();
        let first = epoch.saturating_sub(1) % self.views.max(1) * self.labels.len();
        let mut rows = Vec::with_capacity(indices.len() * width);
        for i in indices {
            rows.extend_from_slice(&self.values[(first + i) * width..(first + i + 1) * width]);
        }
        rows
    }

    fn width(&self) -> usize {
        self.values.len() / (self.labels.len() * self.views).max(1)
    }
}

/// Images and how they are made ready.
pub(crate) struct PartImages {
    samples: Arc<[Sample]>,
    options: LoaderOptions,
}

/// Result of reading every image.
pub(crate) struct ReadOutcome {
    /// Digests of the pixels of those that can be read, in order.
    pub(crate) digests: Vec<Digest>,
    /// Position of those that cannot, and why.
    pub(crate) unreadable: Vec<(usize, String)>,
}

/// Digests of some of them, and those of these that cannot be read.
pub(crate) type ReadPart = (Vec<Digest>, Vec<(usize, String)>);

/// A batch of either.
pub(crate) struct LabelledBatch {
    /// Positions in the source.
    pub(crate) indices: Vec<usize>,
    /// Classes.
    pub(crate) labels: Vec<u32>,
    /// Images `[B, 3, s, s]`, features `[B, D]` or tokens `[B, n, D]`.
    pub(crate) values: Vec<f32>,
}

impl ImageCount for LabelledBatch {
    fn images(&self) -> usize {
        self.labels.len()
    }
}

impl ImageCount for PartSource {
    fn images(&self) -> usize {
        self.len()
    }
}

impl PartImages {
    /// `samples` behind `preprocess` and `augment`, with up to `room` bytes for pixels that are kept; what is taken is
    /// subtracted from `room`.
    pub(crate) fn new(
        samples: Vec<Sample>,
        preprocess: Preprocess,
        augment: Augment,
        seed: u64,
        threads: usize,
        room: &mut usize,
    ) -> Self {
        let (width, height) = preprocess.output_size().unwrap_or_default();
        let each = if preprocess.unrounded { size_of::<f32>() } else { 1 };
        let wanted = samples.len().saturating_mul(3 * width * height * each);
        let kept = if augment.keeps_crop() { wanted.min(*room) } else { 0 };
        *room -= kept;
        let cache = (kept > 0).then(|| Arc::new(PixelCache::new(samples.len(), preprocess.clone(), kept)));
        let options = LoaderOptions { preprocess, augment, seed, epoch: 0, batch: 1, threads, cache, digests: None };
        Self { samples: samples.into(), options }
    }

    /// Reads every image of `split` once, each on one rank of `group`; `None` when the observer asked to stop. What is read is kept
    /// where there is room.
    pub(crate) fn read(
        &self,
        split: Split,
        group: &ProcessGroup,
        observer: &mut dyn Observer,
    ) -> Result<Option<ReadOutcome>> {
        let total = self.samples.len();
        if self.samples.iter().all(|s| s.image.is_decoded()) {
            let digests =
                self.samples.par_iter().map(|s| s.load().map(|image| digest(&image))).collect::<Result<_>>()?;
            return Ok(Some(ReadOutcome { digests, unreadable: Vec::new() }));
        }
        // One process reads ahead over all of them.
        let chunk = if group.is_alone() { total.max(1) } else { READ_CHUNK };
        let digests: Arc<[OnceLock<Digest>]> = (0..total).map(|_| OnceLock::new()).collect();
        let mut read = ReadOutcome { digests: Vec::with_capacity(total), unreadable: Vec::new() };
        let observer = RefCell::new(observer);
        let goes_on = |done| observer.borrow_mut().goes_on(&Event::Reading { split, done, total });
        let compute = |piece: usize| {
            let images = piece * chunk..total.min((piece + 1) * chunk);
            self.read_range(images, &digests, &|done| !group.is_alone() || goes_on(done))
        };
        let all = group.share(total.div_ceil(chunk), compute, |part: Option<ReadPart>| {
            let Some((digests, unreadable)) = part else { return Ok(false) };
            read.digests.extend(digests);
            read.unreadable.extend(unreadable);
            Ok(group.is_alone() || goes_on(read.digests.len() + read.unreadable.len()))
        })?;
        Ok(all.then_some(read))
    }

    /// Reads the images at `range`, with their `digests` among those of all, and says so after each to `go_on`; `None` when that says not
    /// to go on.
    fn read_range(
        &self,
        range: Range<usize>,
        digests: &Arc<[OnceLock<Digest>]>,
        go_on: &dyn Fn(usize) -> bool,
    ) -> Result<Option<ReadPart>> {
        let options = LoaderOptions { digests: Some(digests.clone()), ..self.options.clone() };
        let (mut unreadable, mut next) = (Vec::new(), range.start);
        // A pass ends at the first image it cannot read; another one begins behind it.
        while next < range.end {
            for batch in Loader::new(self.samples.clone(), (next..range.end).collect(), options.clone())? {
                if let Err(error) = batch {
                    unreadable.push((next, error.to_string()));
                }
                next += 1;
                if !go_on(next) {
                    return Ok(None);
                }
            }
        }
        let is_bad = |i: usize| unreadable.iter().any(|(bad, _)| *bad == i);
        let read = range.filter(|i| !is_bad(*i)).map(|i| digests[i].get().copied().unwrap_or_default());
        Ok(Some((read.collect(), unreadable)))
    }

    /// The same images with the one at `order[i]` at `i`.
    pub(crate) fn reordered(mut self, order: &[usize]) -> Self {
        self.samples = order.iter().map(|&from| self.samples[from].clone()).collect();
        // Passes that are over have let go of it.
        let cache = self.options.cache.and_then(|cache| Arc::try_unwrap(cache).ok());
        self.options.cache = cache.map(|cache| Arc::new(cache.reordered(order)));
        self
    }

    fn batches(
        &self,
        order: &[usize],
        epoch: usize,
        batch: usize,
    ) -> Result<impl Iterator<Item = Result<LabelledBatch>> + use<>> {
        let options = LoaderOptions { epoch: epoch as u64, batch, ..self.options.clone() };
        let loader = Loader::new(self.samples.clone(), order.to_vec(), options)?;
        Ok(loader.map(|batch| {
            let vpt_data::Batch { pixels, labels, indices } = batch?;
            Ok(LabelledBatch { indices, labels, values: pixels })
        }))
    }
}

impl PartSource {
    /// Number of images.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Images(images) => images.samples.len(),
            Self::Features(features) | Self::Tokens { tokens: features, .. } => features.labels.len(),
        }
    }

    /// Blocks of the backbone that batches are behind: 0 for images, and for features, which are behind all of it.
    pub(crate) fn blocks(&self) -> usize {
        if let Self::Tokens { blocks, .. } = self { *blocks } else { 0 }
    }

    /// Whether every epoch sees the same.
    pub(crate) fn is_constant(&self) -> bool {
        match self {
            Self::Images(images) => images.options.augment.is_none(),
            Self::Features(features) | Self::Tokens { tokens: features, .. } => features.views == 1,
        }
    }

    /// Whether batches are features, not images.
    pub(crate) fn holds_features(&self) -> bool {
        matches!(self, Self::Features(_))
    }

    /// The images at `order` in batches of `batch`; the last may be smaller. `epoch` seeds the augmentation.
    pub(crate) fn batches<'a>(
        &'a self,
        order: &'a [usize],
        epoch: usize,
        batch: usize,
    ) -> Result<Batches<'a, LabelledBatch>> {
        Ok(match self {
            Self::Images(images) => Box::new(images.batches(order, epoch, batch)?),
            Self::Features(features) | Self::Tokens { tokens: features, .. } => {
                Box::new(order.chunks(batch).map(move |indices| {
                    Ok(LabelledBatch {
                        indices: indices.to_vec(),
                        labels: indices.iter().map(|&i| features.labels[i]).collect(),
                        values: features.rows(indices, epoch),
                    })
                }))
            }
        })
    }
}
