//! The image tower of every family: features of images, and the gradients of prompts and pixels.
//!
//! Unless a task tunes them, weights never change, so the backward pass carries the gradient of activations only, and only as
//! far as something is learned: not below the first prompted block, in that block not past the prompts' keys and values, and
//! in the last block only from the class token. Of weights, the gradients that are asked for are computed and no others. Images are dealt out to threads in fixed shares and each thread works
//! through its own in micro-batches; gradients are added up in the order of the images. So results depend on the number
//! of threads but not on their timing, and the memory of a step on the micro-batch but not on the batch.
//!
//! | file | what |
//! |---|---|
//! | `embed` | pixels to tokens, and back |
//! | `block` | one transformer block and its VJP |
//! | `linear` | a layer, packed |
//! | `tower` | all packed weights |
//! | `fold` | norms and scales folded into layers, and gradients unfolded |
//! | `grads` | gradients of a block's weights |
//! | `tuned` | a tower whose weights are tuned |
//! | `low_rank` | low-rank changes to queries, keys and values |
//! | `mlp` | a block's MLP and its VJP |
//! | `prompts` | which block sees which prompts, and how |
//! | `encoder` | one micro-batch through all of it, on one thread |
//! | `mixed` | images with prompts of their own each, in one pass |
//! | `pool` | features: class token, mean of the patches, or what attention makes of all |
//! | `attention_pool` | the layers of attention pooling and their VJP |
//! | `load` | tensors of a checkpoint |
//! | `attention_maps` | where the class token and prompts look |
//! | `plain` | weights before they are packed, for other programs |
//! | `memory` | what a step takes, and how it keeps to a limit |
//! | `engine` | where another engine takes the place of this one |
//! | `candle` | the same network in candle's operations: the second engine, and what the kernels must equal |

mod attention_maps;
mod attention_means;
mod attention_pool;
mod block;
#[cfg(any(test, feature = "candle"))]
mod candle;
mod embed;
mod encoder;
mod engine;
mod fold;
mod grads;
mod linear;
mod load;
mod low_rank;
mod memory;
mod mixed;
mod mlp;
mod plain;
mod pool;
mod prompts;
#[cfg(test)]
mod tests;
mod tower;
mod tuned;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

pub use attention_maps::{AttentionMap, AttentionMaps, AttentionOf};
pub use attention_means::AttentionMeans;
pub(crate) use block::{Block, BlockScratch, BlockTape, BlockVjp, BlockWeights, Depth, Queries, Sequences};
use encoder::{GradSums, TowerWorkspace};
use engine::TowerEngine;
pub(crate) use grads::BlockGrads;
pub(crate) use load::{Get, norm};
pub(crate) use low_rank::LowRankBlocks;
pub use memory::MemoryPlan;
pub use mixed::{MixedRow, PromptSet};
pub use plain::{OwnWeights, PlainBlock, PlainEmbedding, PlainLayer, PlainPool, PlainTower};
pub use prompts::{KeyValuePrompts, PromptLayers, TokenPrompts};
use prompts::{PreparedGrads, PreparedPrompts};
use tower::Tower;
pub use tuned::Lookup;
use tuned::TowerGrads;
pub use tuned::{Tune, Tuned};

use super::engine::Compute;
use super::spec::Pool;
#[cfg(doc)]
use super::spec::Spec;
use vpt_base::{Error, Result, parallel};
use vpt_kernel::{Precision, with_team};

/// Rows that a thread works on at a time, about: enough to keep the products efficient, few enough to keep the tape small
/// (measured on b32: 400 rows are 2 % faster and take 12 % more memory).
const ROWS: usize = 320;

/// A frozen image tower at one image size.
pub struct Vit {
    tower: Tower,
    /// What makes features of tokens.
    pool: Pool,
    class_token: bool,
    /// Number of blocks, which are on another engine if there is one.
    depth: usize,
    precision: Precision,
    compute: Compute,
    /// What computes in the place of this engine.
    other: Option<Box<dyn TowerEngine>>,
    /// Bytes that the process may take.
    limit: Option<usize>,
    /// Buffers, one set per thread, kept from step to step.
    workspaces: Mutex<Vec<TowerWorkspace>>,
}

/// Input of the tower.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Images `[B, 3, S, S]`.
    Images(&'a [f32]),
    /// All tokens `[B, T, D]` of images that have passed the first `blocks` blocks already, as [`TokenRows::All`] reads them.
    Tokens {
        /// Blocks behind them.
        blocks: usize,
        /// `[B, T, D]`.
        tokens: &'a [f32],
    },
}

/// Tokens read as they leave a block, before any norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRead {
    /// Blocks passed: 0 is the first block's input, L the last block's output.
    pub after: usize,
    /// Which of them.
    pub rows: TokenRows,
}

/// Which tokens of an image. Prompts are never read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenRows {
    /// The patches, `[N, D]`, row by row of the image.
    Patches,
    /// Class token, registers and patches, `[T, D]`.
    All,
}

/// Tokens that are read as features, which [`FeatureLoss`] gets. The work done follows from it.
#[derive(Clone, Copy, Debug)]
pub enum Readout<'a> {
    /// The features of an image as its backbone makes them ([`Spec::pool`]): `[m, D]`.
    Features,
    /// What this [`Pool`] makes of an image's tokens after the last norm: `[m, D]` or `[m, 2 D]`.
    Pooled(Pool),
    /// Tokens at some depths, in ascending order, of each image one read behind the other: `[m, R, D]`, where R is the
    /// number of rows of all reads.
    Tokens(&'a [TokenRead]),
}

/// A pass through the tower.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Images, or tokens behind some block.
    pub input: Input<'a>,
    /// Token prompts.
    pub prompts: Option<TokenPrompts<'a>>,
    /// Key and value prompts.
    pub keys_values: Option<KeyValuePrompts<'a>>,
    /// The weights, where a task has tuned them.
    pub tuned: Option<&'a Tuned>,
    /// Tokens that are read as features.
    pub readout: Readout<'a>,
    /// Gradients wanted.
    pub want: Want,
    /// Images that a thread takes at a time; a number that keeps products efficient if `None`.
    pub micro_batch: Option<usize>,
    /// Threads.
    pub threads: usize,
}

impl<'a> Pass<'a> {
    /// A forward pass over `images` `[B, 3, S, S]` that reads their features.
    pub fn forward(images: &'a [f32], threads: usize) -> Self {
        let (input, readout) = (Input::Images(images), Readout::Features);
        let want = Want::default();
        Self { input, prompts: None, keys_values: None, tuned: None, readout, want, micro_batch: None, threads }
    }
}

/// Which gradients a step is asked for.
#[allow(clippy::struct_excessive_bools, reason = "each gradient is wanted or not")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// Of the token prompts.
    pub tokens: bool,
    /// Of the key and value prompts.
    pub keys_values: bool,
    /// Of the pixels.
    pub pixels: bool,
    /// Of the weights that are tuned.
    pub weights: bool,
}

impl Want {
    /// Whether prompts of either kind learn.
    fn any_prompts(self) -> bool {
        self.tokens || self.keys_values
    }
}

/// The gradients of a step.
#[derive(Debug, Default)]
pub struct Grads {
    /// Of the token prompts `[layers, P, D]`, summed over the images.
    pub tokens: Option<Vec<f32>>,
    /// Of the key and value prompts `[layers, N, 2D]`, summed over the images.
    pub keys_values: Option<Vec<f32>>,
    /// Of the pixels `[B, 3, S, S]`, image by image.
    pub pixels: Option<Vec<f32>>,
    /// Of the tuned weights, in the order of [`Tuned::tensors`], summed over the images.
    pub weights: Option<Vec<Vec<f32>>>,
}

/// Loss callback: called once a micro-batch with the images' indices and their features (see [`Readout`]), returns the gradient
/// of the features, of the same shape, and whatever else the caller wants to add up.
pub type FeatureLoss<'a, T> = dyn Fn(Range<usize>, &[f32]) -> Result<(Vec<f32>, T)> + Sync + 'a;

impl Vit {
    /// Width D of a token and of [`Readout::Features`].
    pub fn width(&self) -> usize {
        self.tower.embedding.width()
    }

    /// Number of blocks L.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// What computes it.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// Number format of the weights and of what is kept for the VJP.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Side of the images S, in pixels.
    pub fn image_size(&self) -> usize {
        self.tower.embedding.image_size()
    }

    /// Tokens of an image: class token, registers, patches.
    pub fn tokens(&self) -> usize {
        self.tower.embedding.tokens()
    }

    /// Images that a thread takes at a time unless told otherwise, in a batch of `batch`.
    fn micro_batch(&self, prompts: Option<&TokenPrompts>, batch: usize, threads: usize) -> usize {
        let tokens = self.tokens() + prompts.map_or(0, |p| if self.travels(p) { p.tokens } else { 0 });
        let most = ((ROWS + tokens / 2) / tokens).max(1);
        // Equal portions: a share of 9 in portions of at most 6 is 5 and 4.
        let share = batch.div_ceil(threads.max(1)).max(1);
        share.div_ceil(share.div_ceil(most))
    }

    fn travels(&self, prompts: &TokenPrompts) -> bool {
        prompts.start + prompts.layers < self.depth()
    }

    /// Features of `images` `[B, 3, S, S]`, as [`Readout::Features`]: `[B, D]`.
    ///
    /// # Errors
    /// `images` is no whole number of images of this size, or `prompts` does not fit the tower.
    pub fn features(&self, images: &[f32], prompts: Option<TokenPrompts>, threads: usize) -> Result<Vec<f32>> {
        self.read(&Pass { prompts, ..Pass::forward(images, threads) })
    }

    /// The features of a pass, of all images one behind the other.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn read(&self, pass: &Pass) -> Result<Vec<f32>> {
        let keep = |_: Range<usize>, features: &[f32]| Ok((Vec::new(), features.to_vec()));
        let (_, parts) = self.step(&Pass { want: Want::default(), ..*pass }, &keep)?;
        Ok(parts.concat())
    }

    /// Rows `[.., D]` of the features of one image.
    pub fn feature_rows(&self, readout: Readout) -> usize {
        match readout {
            Readout::Features => self.pool.vectors(),
            Readout::Pooled(pool) => pool.vectors(),
            Readout::Tokens(reads) => reads.iter().map(|read| self.read_rows(read.rows).len()).sum(),
        }
    }

    /// What pools the tokens for this readout, if anything does.
    fn pool_of(&self, readout: Readout) -> Option<Pool> {
        match readout {
            Readout::Features => Some(self.pool),
            Readout::Pooled(pool) => Some(pool),
            Readout::Tokens(_) => None,
        }
    }

    /// The rows of an image's tokens that are read.
    fn read_rows(&self, rows: TokenRows) -> Range<usize> {
        match rows {
            TokenRows::All => 0..self.tokens(),
            TokenRows::Patches => self.tokens() - self.tower.embedding.patches()..self.tokens(),
        }
    }

    /// One forward and, for what the pass wants, backward pass.
    ///
    /// `loss` is called from several threads, once per micro-batch of consecutive images. What it returns beside the
    /// gradient comes back in the order of the images. Gradients are sums, so a mean over the batch is the caller's
    /// division. No more blocks run than are read; the backward pass goes no further than something is learned.
    ///
    /// # Errors
    /// The input is no whole number of images of this size, the prompts or reads do not fit the tower or the input,
    /// `loss` fails or returns a gradient of another shape.
    pub fn step<T: Send>(&self, pass: &Pass, loss: &FeatureLoss<T>) -> Result<(Grads, Vec<T>)> {
        let batch = self.check(pass)?;
        if let Some(engine) = &self.other {
            return self.step_on(engine.as_ref(), pass, batch, loss);
        }
        let tower = pass.tuned.map_or(&self.tower, Tuned::tower);
        let prepared = PreparedPrompts::new(pass, tower);
        let want = Want { weights: pass.want.weights && pass.tuned.is_some(), ..pass.want };
        let want = PreparedPrompts::wanted(prepared.as_ref(), want);
        let plan = self.memory_plan(&Pass { want, ..*pass }, batch)?;
        let pixels = if want.pixels { self.tower.embedding.pixels() } else { 0 };
        let mut pixel_grads = want.pixels.then(|| vec![0.0; batch * pixels]);

        let mut shares = Vec::new();
        let mut rest = pixel_grads.as_deref_mut().unwrap_or_default();
        for range in parallel::cut(batch, pass.threads) {
            let (mine, others) = rest.split_at_mut(range.len() * pixels);
            rest = others;
            shares.push((range, mine));
        }
        let Pass { input, readout, tuned, .. } = *pass;
        let job = SharedStep { input, readout, tower, tuned, prepared: prepared.as_ref(), want, plan };
        // Threads without images of their own help those that have some.
        let team = pass.threads / shares.len();
        let work = |(range, pixel_grads): (Range<usize>, &mut [f32])| {
            let mut workspace = self.take_workspace();
            let result = with_team(team, || self.share(&job, range, pixel_grads, loss, &mut workspace));
            self.keep_workspace(workspace);
            result
        };
        let results = parallel::with_shares(shares, work);

        let (mut sums, mut values) = (None::<PreparedGrads>, Vec::new());
        let mut weights: Option<TowerGrads> = None;
        for result in results {
            let Share { prompts, weights: of_share, values: mut part } = result?;
            match (&mut sums, prompts) {
                (Some(sums), Some(grads)) => sums.add(&grads),
                (sums, grads) => *sums = sums.take().or(grads),
            }
            match (&mut weights, of_share) {
                (Some(sums), Some(grads)) => sums.add(&grads),
                (sums, grads) => *sums = sums.take().or(grads),
            }
            values.append(&mut part);
        }
        let (mut tokens, mut keys_values) = (None, None);
        if let Some((prepared, sums)) = prepared.zip(sums) {
            if let Some((tuned, weights)) = pass.tuned.zip(weights.as_mut()) {
                prepared.add_weights(&sums, tower, tuned, weights, self.precision);
            }
            tokens = want.tokens.then(|| prepared.vjp(&sums, tower, pass.threads));
            keys_values = want.keys_values.then(|| prepared.of_keys_values(&sums, self.width()));
        }
        let weights = pass.tuned.zip(weights).map(|(tuned, grads)| tuned.unfold(grads)).transpose()?;
        Ok((Grads { tokens, keys_values, pixels: pixel_grads, weights }, values))
    }

    /// The number of images of a pass that fits the tower.
    fn check(&self, pass: &Pass) -> Result<usize> {
        let (depth, size) = (self.depth(), self.image_size());
        if let Some(prompts) = &pass.prompts {
            prompts.check(depth, self.width())?;
        }
        if let Some(rows) = &pass.keys_values {
            rows.check(depth, self.width())?;
        }
        let pool = self.pool_of(pass.readout);
        let of_images = matches!(pass.input, Input::Images(_));
        if pass.tuned.is_some_and(|tuned| !of_images || !tuned.fits(self)) {
            return Err(Error::invalid("tuned weights", "are for images, on the backbone they are of"));
        }
        self.check_readout(pass.readout, pass.want != Want::default())?;
        let (values, each, what) = match pass.input {
            Input::Images(images) => (images.len(), self.tower.embedding.pixels(), format!("3 x {size} x {size}")),
            Input::Tokens { blocks, tokens } => {
                let early = pass.prompts.is_some_and(|p| p.start < blocks)
                    || pass.keys_values.is_some_and(|rows| rows.start < blocks)
                    || matches!(pass.readout, Readout::Tokens(reads) if reads.iter().any(|read| read.after < blocks));
                let most = depth - usize::from(pool.is_some());
                if blocks > most || early || pass.want.pixels {
                    let message = format!("what happens before {blocks} of {depth} blocks is behind these tokens");
                    return Err(Error::invalid("tokens", message));
                }
                (tokens.len(), self.tokens() * self.width(), format!("{} x {}", self.tokens(), self.width()))
            }
        };
        if !values.is_multiple_of(each) {
            return Err(Error::invalid("images", format!("{values} values are no images of {what}")));
        }
        Ok(values / each)
    }

    /// Fails unless this tower has what is read, and something to go back from if it `learns`.
    fn check_readout(&self, readout: Readout, learns: bool) -> Result<()> {
        let (pool, depth) = (self.pool_of(readout), self.depth());
        if pool.is_some_and(Pool::reads_class_token) && !self.class_token {
            return Err(Error::invalid("readout", "a class token, of a backbone that has none"));
        }
        if pool == Some(Pool::Attention) && self.pool != Pool::Attention {
            return Err(Error::invalid("readout", "attention pooling, of a backbone that has none"));
        }
        if let Readout::Tokens(reads) = readout {
            let ascending = reads.windows(2).all(|pair| pair[0].after <= pair[1].after);
            let last = reads.last().map_or(0, |read| read.after);
            // Reading the embedding alone teaches nothing, and has no backward pass.
            if !ascending || last > depth || last == 0 && learns || reads.is_empty() {
                let depths: Vec<_> = reads.iter().map(|read| read.after).collect();
                let message = format!("tokens after {depths:?} blocks cannot be read of a backbone of {depth} blocks");
                return Err(Error::invalid("readout", message));
            }
        }
        Ok(())
    }

    /// One thread's share of a step.
    fn share<T>(
        &self,
        job: &SharedStep,
        range: Range<usize>,
        mut pixel_grads: &mut [f32],
        loss: &FeatureLoss<T>,
        workspace: &mut TowerWorkspace,
    ) -> Result<Share<T>> {
        let pixels = if job.want.pixels { self.tower.embedding.pixels() } else { 0 };
        // Weights learn from what prompts make of them, too.
        let prepared = job.prepared.filter(|_| job.want.any_prompts() || job.want.weights);
        let mut grads = prepared.map(|p| PreparedGrads::zeros(p, self.width()));
        let mut weights = job.tuned.filter(|_| job.want.weights).map(Tuned::zero_grads);
        let mut values = Vec::new();
        let mut start = range.start;
        while start < range.end {
            let images = start..(start + job.plan.micro_batch).min(range.end);
            let features = self.forward(job, images.clone(), workspace);
            let (d_features, value) = loss(images.clone(), &features)?;
            values.push(value);
            if job.want != Want::default() {
                if d_features.len() != features.len() {
                    let message = format!("{} values for {} features", d_features.len(), features.len());
                    return Err(Error::invalid("gradient of the features", message));
                }
                let (mine, others) = std::mem::take(&mut pixel_grads).split_at_mut(images.len() * pixels);
                pixel_grads = others;
                let sums = GradSums { prompts: grads.as_mut(), weights: weights.as_mut() };
                self.backward(job, images.clone(), &d_features, sums, mine, workspace);
            }
            start = images.end;
        }
        Ok(Share { prompts: grads, weights, values })
    }

    fn keep_workspace(&self, workspace: TowerWorkspace) {
        self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
    }

    fn take_workspace(&self) -> TowerWorkspace {
        self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }
}

/// Result of one thread's share of a step.
struct Share<T> {
    prompts: Option<PreparedGrads>,
    weights: Option<TowerGrads>,
    values: Vec<T>,
}

/// Inputs of a step, shared by its threads.
struct SharedStep<'a> {
    input: Input<'a>,
    readout: Readout<'a>,
    tower: &'a Tower,
    tuned: Option<&'a Tuned>,
    prepared: Option<&'a PreparedPrompts>,
    want: Want,
    plan: MemoryPlan,
}

impl std::fmt::Debug for Vit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (width, depth, size) = (self.width(), self.depth(), self.image_size());
        write!(f, "Vit {{ width: {width}, depth: {depth}, image_size: {size} }}")
    }
}
