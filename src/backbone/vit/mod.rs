//! The image tower of every family: features of images, and the gradients of prompts and pixels.
//!
//! The backbone never changes, so the backward pass carries the gradient of activations only, and only as far as
//! something is learned: not below the first prompted block, in that block not past the prompts' keys and values, and in
//! the last block only from the class token. Images are dealt out to threads in fixed shares and each thread works
//! through its own in micro-batches; gradients are added up in the order of the images. So results depend on the number
//! of threads but not on their timing, and the memory of a step on the micro-batch but not on the batch.
//!
//! | file | what |
//! |---|---|
//! | `embed` | pixels to tokens, and back |
//! | `block` | one transformer block and its VJP |
//! | `linear` | a frozen layer, packed |
//! | `mlp` | a block's MLP and its VJP |
//! | `prompts` | which block sees which prompts, and how |
//! | `encoder` | one micro-batch through all of it, on one thread |
//! | `load` | tensors of each family |
//! | `reference` | the same network in plain tensor operations: what the kernels must equal |

mod block;
mod embed;
mod encoder;
mod linear;
mod load;
mod mlp;
mod prompts;
pub mod reference;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

pub(crate) use block::{Block, Queries, Scratch as BlockScratch, Sequences};
use embed::Embedding;
use encoder::Workspace;
pub(crate) use load::{clip_block, norm};
use prompts::{Prepared, PreparedGrads};
pub use prompts::{PromptLayers, TokenPrompts};

use crate::{Error, Result};

/// Rows that a thread works on at a time, about: enough to keep the products efficient, few enough to stay in the cache.
const ROWS: usize = 400;

/// A frozen image tower at one image size.
pub struct Vit {
    embedding: Embedding,
    blocks: Vec<Block>,
    /// Scale and shift `[D]` of the last norm.
    post_norm: [Vec<f32>; 2],
    eps: f32,
    /// Buffers, one set per thread, kept from step to step.
    workspaces: Mutex<Vec<Workspace>>,
}

/// Which gradients a step is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// Of the token prompts.
    pub tokens: bool,
    /// Of the pixels.
    pub pixels: bool,
}

/// The gradients of a step.
#[derive(Debug, Default)]
pub struct Grads {
    /// Of the token prompts `[layers, P, D]`, summed over the images.
    pub tokens: Option<Vec<f32>>,
    /// Of the pixels `[B, 3, S, S]`, image by image.
    pub pixels: Option<Vec<f32>>,
}

/// What a step does with the features of a micro-batch: given the images' indices and their features `[m, D]`, returns the
/// gradient of the features `[m, D]` and whatever else the caller wants to add up.
pub type Loss<'a, T> = dyn Fn(Range<usize>, &[f32]) -> Result<(Vec<f32>, T)> + Sync + 'a;

impl Vit {
    /// Width D of a token and of the features.
    pub fn width(&self) -> usize {
        self.embedding.width()
    }

    /// Number of blocks L.
    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// Side of the images S, in pixels.
    pub fn image_size(&self) -> usize {
        self.embedding.image_size()
    }

    /// Tokens of an image: class token, registers, patches.
    pub fn tokens(&self) -> usize {
        self.embedding.tokens()
    }

    /// Images that a thread takes at a time unless told otherwise, in a batch of `batch`.
    pub fn micro_batch(&self, prompts: Option<&TokenPrompts>, batch: usize, threads: usize) -> usize {
        let tokens = self.tokens() + prompts.map_or(0, |p| if self.travels(p) { p.tokens } else { 0 });
        let most = (ROWS / tokens).max(1);
        // Equal portions: a share of 9 in portions of at most 8 is 5 and 4.
        let share = batch.div_ceil(threads.max(1)).max(1);
        share.div_ceil(share.div_ceil(most))
    }

    fn travels(&self, prompts: &TokenPrompts) -> bool {
        prompts.start + prompts.layers < self.depth()
    }

    /// Features of `images` `[B, 3, S, S]`: the class token after the last norm, `[B, D]`.
    ///
    /// # Errors
    /// `images` is no whole number of images of this size, or `prompts` does not fit the tower.
    pub fn features(&self, images: &[f32], prompts: Option<TokenPrompts>, threads: usize) -> Result<Vec<f32>> {
        let none = |range: Range<usize>, features: &[f32]| Ok((Vec::new(), (range, features.to_vec())));
        let (_, parts) = self.step(images, prompts, Want::default(), None, threads, &none)?;
        Ok(parts.into_iter().flat_map(|(_, features)| features).collect())
    }

    /// One forward and, for what `want` names, backward pass over `images` `[B, 3, S, S]`.
    ///
    /// `loss` is called from several threads, once per micro-batch of up to `micro_batch` consecutive images (`None`: a
    /// number that keeps products efficient). What it returns beside the gradient comes back in the order of the images.
    /// Gradients are sums, so a mean over the batch is the caller's division.
    ///
    /// # Errors
    /// `images` is no whole number of images of this size, `prompts` does not fit the tower, `loss` fails or returns a
    /// gradient of another shape.
    pub fn step<T: Send>(
        &self,
        images: &[f32],
        prompts: Option<TokenPrompts>,
        want: Want,
        micro_batch: Option<usize>,
        threads: usize,
        loss: &Loss<T>,
    ) -> Result<(Grads, Vec<T>)> {
        let pixels = self.embedding.pixels();
        if !images.len().is_multiple_of(pixels) {
            let size = self.image_size();
            return Err(Error::invalid(
                "images",
                format!("{} values are no images of 3 x {size} x {size}", images.len()),
            ));
        }
        if let Some(prompts) = &prompts {
            prompts.check(self.depth(), self.width())?;
        }
        let batch = images.len() / pixels;
        let prepared = prompts.map(|p| Prepared::new(&p, &self.embedding, &self.blocks, threads));
        let want = Want { tokens: want.tokens && prepared.is_some(), ..want };
        let micro_batch =
            micro_batch.unwrap_or_else(|| self.micro_batch(prompts.as_ref(), batch, threads)).clamp(1, batch.max(1));
        let mut pixel_grads = want.pixels.then(|| vec![0.0; images.len()]);

        let threads = threads.clamp(1, batch.max(1));
        let share = |thread: usize| thread * batch / threads;
        let mut shares = Vec::new();
        let mut rest = pixel_grads.as_deref_mut().unwrap_or_default();
        for thread in 0..threads {
            let range = share(thread)..share(thread + 1);
            let (mine, others) = rest.split_at_mut(if want.pixels { range.len() * pixels } else { 0 });
            rest = others;
            shares.push((range, mine));
        }
        let work = |(range, pixel_grads): (Range<usize>, &mut [f32])| {
            let mut workspace = self.take_workspace();
            let job = Job { images, prepared: prepared.as_ref(), want, micro_batch };
            let result = self.share(&job, range, pixel_grads, loss, &mut workspace);
            self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
            result
        };
        let results: Vec<_> = std::thread::scope(|scope| {
            let mut shares = shares.into_iter();
            let first = shares.next();
            let others: Vec<_> = shares.map(|share| scope.spawn(|| work(share))).collect();
            let first = first.map(work);
            let others = others.into_iter().map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
            first.into_iter().chain(others).collect()
        });

        let mut sums = prepared.as_ref().filter(|_| want.tokens).map(|p| PreparedGrads::zeros(p, self.width()));
        let mut values = Vec::new();
        for result in results {
            let (grads, mut part) = result?;
            if let (Some(sums), Some(grads)) = (&mut sums, grads) {
                sums.add(&grads);
            }
            values.append(&mut part);
        }
        let tokens = prepared.zip(sums).map(|(p, sums)| p.vjp(&sums, &self.embedding, &self.blocks, threads));
        Ok((Grads { tokens, pixels: pixel_grads }, values))
    }

    /// One thread's share of a step.
    fn share<T>(
        &self,
        job: &Job,
        range: Range<usize>,
        mut pixel_grads: &mut [f32],
        loss: &Loss<T>,
        workspace: &mut Workspace,
    ) -> Result<(Option<PreparedGrads>, Vec<T>)> {
        let pixels = self.embedding.pixels();
        let prepared = job.prepared.filter(|_| job.want.tokens);
        let mut grads = prepared.map(|p| PreparedGrads::zeros(p, self.width()));
        let mut values = Vec::new();
        let mut start = range.start;
        while start < range.end {
            let images = start..(start + job.micro_batch).min(range.end);
            let input = &job.images[images.start * pixels..images.end * pixels];
            let features = self.forward(input, job.prepared, job.want, workspace);
            let (d_features, value) = loss(images.clone(), &features)?;
            values.push(value);
            if job.want != Want::default() {
                if d_features.len() != features.len() {
                    let message = format!("{} values for {} features", d_features.len(), features.len());
                    return Err(Error::invalid("gradient of the features", message));
                }
                let (mine, others) = std::mem::take(&mut pixel_grads).split_at_mut(if job.want.pixels {
                    images.len() * pixels
                } else {
                    0
                });
                pixel_grads = others;
                self.backward(images.len(), job.prepared, &d_features, grads.as_mut(), mine, workspace);
            }
            start = images.end;
        }
        Ok((grads, values))
    }

    fn take_workspace(&self) -> Workspace {
        self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }
}

/// What all threads of a step share.
struct Job<'a> {
    images: &'a [f32],
    prepared: Option<&'a Prepared>,
    want: Want,
    micro_batch: usize,
}

impl std::fmt::Debug for Vit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (width, depth, size) = (self.width(), self.depth(), self.image_size());
        write!(f, "Vit {{ width: {width}, depth: {depth}, image_size: {size} }}")
    }
}
