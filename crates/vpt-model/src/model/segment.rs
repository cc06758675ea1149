//! Pixels told apart: a backbone with learned prompts or tuned weights, and a head on the patch tokens of some of its blocks.
//!
//! A window of an image is what the backbone sees; a step treats one window at a time behind it, and sums over windows have a
//! fixed order.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

pub use super::token_reader::TokenInput;
use super::token_reader::{TokenReader, levels};
use crate::{
    head::{
        detect::FeatureGradients,
        segment::{
            BoundSegmentHead, CellLoss, DecodeHead, NORM_MEAN, NORM_SCALE, SegmentLoss, SegmentShape, SegmentWorkspace,
        },
    },
    prompt::{PartShapes, part::Drawn},
};
use vpt_backbone::Backbone;
use vpt_base::{Error, Result, parallel, params::Param, random::stream};

/// Channels of the map of a head of several blocks.
const CHANNELS: usize = 128;

/// Added to the variance of tokens, as in BatchNorm.
const BATCH_EPS: f64 = 1e-5;

/// Windows to learn from.
#[derive(Debug)]
pub struct SegmentStep<'a> {
    /// The windows.
    pub input: TokenInput<'a>,
    /// The classes in their cells, `[B, L, L]`.
    pub labels: &'a [u16],
    /// What was drawn at random for each part ([`TokenReader::draw`]); nothing for those that are not in it.
    pub drawn: &'a [Drawn],
    /// Windows whose activations are in memory at once.
    pub micro_batch: Option<usize>,
}

/// The backbone and what is learned put together; the learned values are passed in.
pub struct Segmenter {
    reader: TokenReader,
    shape: SegmentShape,
    /// Pixels whose class is less probable are of no class in masks.
    pub(super) least: f32,
    /// Buffers, one set a thread, kept from step to step.
    pool: Mutex<Vec<SegmentSums>>,
}

/// What one thread adds up over its windows.
#[derive(Default)]
struct SegmentSums {
    workspace: SegmentWorkspace,
    head: Vec<f32>,
    loss: SegmentLoss,
}

impl Segmenter {
    /// The head's sizes for `backbone` at its image size, and the blocks that it reads.
    pub fn shape(backbone: &Backbone, kind: DecodeHead, classes: usize) -> (SegmentShape, Vec<usize>) {
        let depth = backbone.vit.depth();
        let blocks = match kind {
            DecodeHead::Linear => vec![depth],
            DecodeHead::MultiBlock => levels(depth),
        };
        let grid = backbone.vit.image_size() / backbone.spec.patch_size;
        let (width, levels) = (backbone.vit.width(), blocks.len());
        (SegmentShape { kind, width, levels, grid, channels: CHANNELS, classes }, blocks)
    }

    /// Puts `backbone`, the parts that are learned and a head together that reads patches behind `blocks`.
    ///
    /// # Errors
    /// The parts do not fit each other.
    pub fn new(
        backbone: Arc<Backbone>,
        parts: &PartShapes,
        shape: SegmentShape,
        blocks: &[usize],
        threads: usize,
    ) -> Result<Self> {
        shape.check()?;
        let reader = TokenReader::new(backbone, parts, blocks, threads)?;
        let width = reader.backbone().vit.width();
        if (shape.width, shape.grid, shape.levels) != (width, reader.grid(), blocks.len()) {
            let message = format!("made for tokens of {} values on a grid of {}", shape.width, shape.grid);
            return Err(Error::invalid("head", message));
        }
        Ok(Self { reader, shape, least: 0., pool: Mutex::default() })
    }

    /// What the head reads, and the parts.
    pub fn reader(&self) -> &TokenReader {
        &self.reader
    }

    /// The head's sizes.
    pub fn head(&self) -> &SegmentShape {
        &self.shape
    }

    /// Fresh learned values: those of the parts, then those of the head.
    pub fn init(&self, seed: u64) -> Result<Vec<Param>> {
        let mut params = self.reader.init(seed)?;
        params.extend(self.shape.init(&mut stream(seed, "head init", 0, 0))?);
        Ok(params)
    }

    /// Gives a linear head the statistics of `features`, records `[levels, N, D]` of windows without prompts.
    ///
    /// # Errors
    /// `params` are not those of this model.
    pub fn set_norm(&self, params: &mut [Param], statistics: &TokenStatistics) -> Result<()> {
        for (name, values) in [(NORM_MEAN, statistics.mean()), (NORM_SCALE, statistics.scale())] {
            let own = params.iter_mut().find(|param| param.name == name && param.values.len() == values.len());
            own.ok_or_else(|| Error::invalid(name, "no such tensor"))?.values = values;
        }
        Ok(())
    }

    /// Checks that learned values from a file are the ones this model has, by name and shape.
    pub fn check(&self, params: &[Param]) -> Result<()> {
        self.reader.check(params, self.shape.tensors())
    }

    /// The loss of a batch, summed over its windows, and the gradient of its mean over cells for each learned tensor, in the order of
    /// [`Self::init`]. On [`TokenInput::Features`] those of the parts are empty.
    ///
    /// # Errors
    /// Lengths do not fit.
    pub fn step(&self, params: &[Param], step: &SegmentStep) -> Result<(SegmentLoss, Vec<Vec<f32>>)> {
        let head = self.shape.bind_for_training(params)?;
        let cells = self.shape.cells() * self.shape.cells();
        let count = step.labels.len() / cells;
        let valid = step.labels.iter().filter(|class| usize::from(**class) < self.shape.classes).count();
        let loss = CellLoss::new(&self.shape, valid as u64);
        let ranges: Vec<Range<usize>> = parallel::cut(count, self.reader.threads()).collect();
        let sums: Vec<Mutex<SegmentSums>> = ranges.iter().map(|_| Mutex::new(self.take_sums())).collect();
        // The windows of a share are treated in order, by one thread: its sums are only ever asked for by that one.
        let learn = |window: usize, features: &[f32], gradient: Option<FeatureGradients>| {
            let share = ranges.iter().position(|range| range.contains(&window)).unwrap_or_default();
            let sums = &mut *sums[share].lock().unwrap_or_else(PoisonError::into_inner);
            let logits = head.forward(features, &mut sums.workspace);
            let (own, d_logits) = loss.gradients(&logits, &step.labels[window * cells..(window + 1) * cells]);
            sums.loss.add(&own);
            head.vjp(&d_logits, gradient, &mut sums.head, &mut sums.workspace);
        };
        let inputs = self.reader.join(params, step.drawn, step.input)?;
        let of_pass = self.reader.visit(&inputs, step.input, step.micro_batch, true, &learn)?;

        let mut total = vec![0.; self.head_len()];
        let mut losses = SegmentLoss::default();
        for sums in sums {
            let sums = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
            total.iter_mut().zip(&sums.head).for_each(|(sum, value)| *sum += value);
            losses.add(&sums.loss);
            self.pool.lock().unwrap_or_else(PoisonError::into_inner).push(sums);
        }
        let mut gradients = head.gradients(&total);
        gradients.splice(0..0, self.reader.take(params, step.drawn, of_pass)?);
        Ok((losses, gradients))
    }

    /// Values of the head's tensors in all.
    fn head_len(&self) -> usize {
        self.shape.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    fn take_sums(&self) -> SegmentSums {
        let mut sums = self.pool.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        sums.head.clear();
        sums.head.resize(self.head_len(), 0.);
        sums.loss = SegmentLoss::default();
        sums
    }

    /// The head with its weights, for [`Self::logits`].
    ///
    /// # Errors
    /// `params` are not those of this model.
    pub fn bind(&self, params: &[Param]) -> Result<BoundSegmentHead> {
        self.shape.bind(params)
    }

    /// Logits `[M, M, K]` of each window. `head` is [`Self::bind`] of the learned values; `params` are the same, or `None` for what
    /// the head says without the parts.
    ///
    /// # Errors
    /// Lengths do not fit.
    pub fn logits(
        &self,
        head: &BoundSegmentHead,
        params: Option<&[Param]>,
        input: TokenInput,
    ) -> Result<Vec<Vec<f32>>> {
        let look = |_: usize, features: &[f32]| {
            let mut sums = self.take_sums();
            let logits = head.forward(features, &mut sums.workspace);
            self.pool.lock().unwrap_or_else(PoisonError::into_inner).push(sums);
            logits
        };
        let inputs = params.map_or_else(|| Ok(self.reader.bare()), |params| self.reader.join(params, &[], input))?;
        self.reader.each(&inputs, input, look)
    }
}

impl std::fmt::Debug for Segmenter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segmenter").field("reader", &self.reader).field("head", &self.shape).finish_non_exhaustive()
    }
}

/// Mean and variance of each value of tokens, added up one record after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenStatistics {
    count: u64,
    sums: Vec<f64>,
    squares: Vec<f64>,
}

impl TokenStatistics {
    /// Of no tokens of `width` values yet.
    pub fn new(width: usize) -> Self {
        Self { count: 0, sums: vec![0.; width], squares: vec![0.; width] }
    }

    /// Adds the tokens of `features`, `[…, D]`.
    pub fn add(&mut self, features: &[f32]) {
        for token in features.chunks_exact(self.sums.len()) {
            for ((value, sum), square) in token.iter().zip(&mut self.sums).zip(&mut self.squares) {
                let value = f64::from(*value);
                *sum += value;
                *square += value * value;
            }
            self.count += 1;
        }
    }

    fn mean(&self) -> Vec<f32> {
        self.sums.iter().map(|sum| (sum / self.count.max(1) as f64) as f32).collect()
    }

    /// One over the standard deviation.
    fn scale(&self) -> Vec<f32> {
        let n = self.count.max(1) as f64;
        let variance = |(sum, square): (&f64, &f64)| (square / n - (sum / n) * (sum / n)).max(0.);
        let moments = self.sums.iter().zip(&self.squares);
        moments.map(|both| (1. / (variance(both) + BATCH_EPS).sqrt()) as f32).collect()
    }
}

#[cfg(test)]
mod tests;
