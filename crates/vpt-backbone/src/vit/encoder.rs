//! One micro-batch through the tower on one thread: forward with a tape of what the VJP will need, and the VJP.

use std::ops::Range;

use super::block::{BlockScratch, BlockTape, BlockVjp, Depth, Queries, Sequences};
use super::embed::{EmbeddingScratch, EmbeddingTape};
use super::pool::{PoolTape, PooledRows};
use super::prompts::{PreparedGrads, PreparedPrompts};
use super::tuned::{TowerGrads, Tuned};
use super::{Input, Readout, SharedStep, Vit};
use crate::spec::Pool;
use vpt_kernel::{Grow, row_stride};

/// Tape and buffers of one thread that runs micro-batches, kept from step to step.
#[derive(Default)]
pub(super) struct TowerWorkspace {
    pub(super) x: Vec<f32>,
    pub(super) widened: Vec<f32>,
    pub(super) starts: Vec<usize>,
    embedding: EmbeddingTape,
    /// One for each block, or one for all where blocks are run again.
    blocks: Vec<BlockTape>,
    /// Input of each block that will be run again.
    inputs: Vec<Vec<f32>>,
    pub(super) pool: PoolTape,
    pub(super) scratch: BlockScratch,
    pub(super) embed_scratch: EmbeddingScratch,
}

/// Gradients that a thread adds to.
pub(super) struct GradSums<'a> {
    pub(super) prompts: Option<&'a mut PreparedGrads>,
    pub(super) weights: Option<&'a mut TowerGrads>,
}

fn set_starts(starts: &mut Vec<usize>, count: usize, tokens: usize) {
    starts.clear();
    starts.extend((0..=count).map(|i| i * tokens));
}

impl Vit {
    /// The first block whose VJP is needed: none below the first prompt, unless the pixels or weights learn.
    fn first_trained(&self, job: &SharedStep) -> usize {
        match job.prepared {
            _ if job.want.pixels || job.want.weights => 0,
            prepared => prepared.and_then(|p| p.first_trained(job.want)).unwrap_or(self.depth()),
        }
    }

    /// Blocks that run: what comes after the last one that is read is not needed.
    pub(super) fn last_run(&self, readout: Readout) -> usize {
        match readout {
            Readout::Features | Readout::Pooled(_) => self.depth(),
            Readout::Tokens(reads) => reads.last().map_or(0, |read| read.after),
        }
    }

    /// Tokens of an image in `block`, prompts that travel included.
    pub(super) fn tokens_in(&self, block: usize, prepared: Option<&PreparedPrompts>) -> usize {
        let travelling = prepared.filter(|p| p.inserted.as_ref().is_some_and(|(at, _)| *at <= block));
        self.tokens() + travelling.map_or(0, PreparedPrompts::tokens)
    }

    fn queries(&self, block: usize, readout: Readout) -> Queries {
        let class_only = self.pool_of(readout) == Some(Pool::ClassToken) && block + 1 == self.depth();
        if class_only { Queries::First } else { Queries::All }
    }

    /// The reads behind `after` blocks: rows of the features of an image, and the rows of its tokens that they are.
    pub(super) fn reads<'a>(
        &'a self,
        readout: Readout<'a>,
        after: usize,
    ) -> impl Iterator<Item = (usize, Range<usize>)> + 'a {
        let reads = if let Readout::Tokens(reads) = readout { reads } else { &[] };
        let mut at = 0;
        reads.iter().filter_map(move |read| {
            let rows = self.read_rows(read.rows);
            let begin = at;
            at += rows.len();
            (read.after == after).then_some((begin, rows))
        })
    }

    /// Features (see [`Readout`]) of the `images` of a job; `workspace` keeps what [`Vit::backward`] needs.
    pub(super) fn forward(&self, job: &SharedStep, images: Range<usize>, workspace: &mut TowerWorkspace) -> Vec<f32> {
        let d = self.width();
        let stride = row_stride(d);
        let count = images.len();
        let first = self.first_trained(job);
        let (prepared, readout, last) = (job.prepared, job.readout, self.last_run(job.readout));
        let tower = job.tower;
        let TowerWorkspace { x, widened, starts, embedding, blocks, inputs, pool: pool_tape, scratch, embed_scratch } =
            workspace;
        let keep = job.want.weights && job.tuned.is_some_and(Tuned::keeps_inputs);
        if first < last {
            let tapes = if job.plan.recompute { 1 } else { self.depth() };
            blocks.resize_with(tapes, || BlockTape::new(self.precision));
            for tape in blocks.iter_mut() {
                tape.keep_inputs(keep, self.precision);
            }
            inputs.resize_with(if job.plan.recompute { self.depth() } else { 0 }, Vec::new);
        }
        let mut features = Vec::new();
        if let Readout::Tokens(_) = readout {
            features.resize(count * self.feature_rows(readout) * d, 0.0);
        }
        let inserted = prepared.and_then(|p| p.inserted.as_ref());
        let begin = match job.input {
            Input::Images(pixels) => {
                let each = tower.embedding.pixels();
                let at_input = inserted.filter(|(at, _)| *at == 0).map_or(&[][..], |(_, tokens)| tokens);
                // Deep prompts learn no further down than the first block's keys and values.
                let wanted = job.want.pixels || job.want.weights || job.want.any_prompts() && !at_input.is_empty();
                let tape = wanted.then_some(embedding);
                tower.embedding.forward(
                    &pixels[images.start * each..images.end * each],
                    at_input,
                    x,
                    tape,
                    embed_scratch,
                );
                0
            }
            Input::Tokens { blocks, tokens } => {
                let rows = images.start * self.tokens()..images.end * self.tokens();
                let to = x.grow(rows.len() * stride).chunks_exact_mut(stride);
                for (to, from) in to.zip(tokens[rows.start * d..rows.end * d].chunks_exact(d)) {
                    to[..d].copy_from_slice(from);
                }
                blocks
            }
        };
        #[allow(clippy::needless_range_loop, reason = "tapes are only the second thing that a depth is the index of")]
        for i in begin..=last {
            // Reads come before what enters here: prompts are not read.
            let rows = if i == 0 { self.tokens_in(0, prepared) } else { self.tokens_in(i - 1, prepared) };
            let rows = if i == begin && i > 0 { self.tokens() } else { rows };
            self.each_read(readout, i, count, rows, |from, to| {
                features[to..to + d].copy_from_slice(&x[from..from + d]);
            });
            let Some(block) = tower.blocks[..last].get(i) else { break };
            if let Some((_, tokens)) = inserted.filter(|(at, _)| *at == i && i > 0) {
                insert(x, widened, count, self.tokens(), tokens, d);
                std::mem::swap(x, widened);
            }
            set_starts(starts, count, self.tokens_in(i, prepared));
            let sequences = Sequences { starts, causal: false, turn: tower.turn.as_deref() };
            let prompts = prepared.and_then(|p| p.keys_values(i, d));
            let tape = match job.plan.recompute {
                _ if i < first => None,
                true => {
                    let len = sequences.rows() * stride;
                    inputs[i].grow(len).copy_from_slice(&x[..len]);
                    None
                }
                false => Some(&mut blocks[i]),
            };
            block.forward(x, sequences, prompts, self.queries(i, readout), tape, scratch);
        }
        match self.pool_of(readout) {
            Some(pool) => {
                pool_tape.keep_inputs(keep);
                tower.pool(pool, x, self.pooled_rows(pool, count, prepared), pool_tape)
            }
            None => features,
        }
    }

    /// The rows behind the last block, of so many images, that are read by `pool`.
    fn pooled_rows(&self, pool: Pool, images: usize, prepared: Option<&PreparedPrompts>) -> PooledRows {
        let each = if pool == Pool::ClassToken { 1 } else { self.tokens_in(self.depth() - 1, prepared) };
        PooledRows { images, each, own: each.min(self.tokens()) }
    }

    /// Calls `f(place in the rows x, place in the features)` for every row that is read behind `after` blocks, where each
    /// of `count` images has `rows` rows in x.
    fn each_read(&self, readout: Readout, after: usize, count: usize, rows: usize, mut f: impl FnMut(usize, usize)) {
        let d = self.width();
        let stride = row_stride(d);
        for (begin, read) in self.reads(readout, after) {
            for image in 0..count {
                for (i, row) in read.clone().enumerate() {
                    f((image * rows + row) * stride, (image * self.feature_rows(readout) + begin + i) * d);
                }
            }
        }
    }

    /// Adds the gradient of what is read behind `after` blocks to `dx`; see [`Vit::each_read`].
    fn add_reads(&self, dx: &mut [f32], readout: Readout, after: usize, rows: (usize, usize), d_features: &[f32]) {
        let d = self.width();
        self.each_read(readout, after, rows.0, rows.1, |to, from| {
            dx[to..to + d].iter_mut().zip(&d_features[from..from + d]).for_each(|(x, g)| *x += g);
        });
    }

    /// The VJP of the last [`Vit::forward`] on this workspace: from the gradient of the features of the same `images`, adds
    /// to `grads` and writes `pixel_grads` `[m, 3, S, S]` (empty: not wanted).
    pub(super) fn backward(
        &self,
        job: &SharedStep,
        images: Range<usize>,
        d_features: &[f32],
        GradSums { prompts: mut grads, mut weights }: GradSums,
        pixel_grads: &mut [f32],
        workspace: &mut TowerWorkspace,
    ) {
        let d = self.width();
        let stride = row_stride(d);
        let (tower, count) = (job.tower, images.len());
        let (prepared, want, readout) = (job.prepared, job.want, job.readout);
        let (first, last) = (self.first_trained(job), self.last_run(readout));
        let TowerWorkspace {
            x: dx,
            widened,
            starts,
            embedding,
            blocks,
            inputs,
            pool: pool_tape,
            scratch,
            embed_scratch,
        } = workspace;
        if let Some(pool) = self.pool_of(readout) {
            let rows = self.pooled_rows(pool, count, prepared);
            let to = (&mut *dx, &mut *widened);
            tower.pool_vjp(pool, d_features, rows, pool_tape, to, weights.as_deref_mut());
        } else {
            dx.zeroed(count * self.tokens_in(last.saturating_sub(1), prepared) * stride);
        }
        let inserted = prepared.and_then(|p| p.inserted.as_ref()).map(|(at, _)| *at);
        for (i, block) in tower.blocks[..last].iter().enumerate().skip(first).rev() {
            let tokens = self.tokens_in(i, prepared);
            self.add_reads(dx, readout, i + 1, (count, tokens), d_features);
            set_starts(starts, count, tokens);
            let sequences = Sequences { starts, causal: false, turn: tower.turn.as_deref() };
            let prompts = prepared.and_then(|p| p.keys_values(i, d));
            let of_embedding = weights.as_ref().is_some_and(|weights| weights.embedding.is_some());
            let lowest = i == first && !want.pixels && !of_embedding;
            let depth = match (lowest, prepared) {
                (true, Some(p)) if inserted == Some(i) => Depth::LastRows(p.tokens()),
                (true, _) if want.weights => Depth::Weights,
                (true, _) => Depth::Prompts,
                _ => Depth::Rows,
            };
            let d_prompts = grads.as_deref_mut().filter(|_| prompts.is_some()).map(|g| g.shared[i].as_mut_slice());
            let queries = self.queries(i, readout);
            let tape = if job.plan.recompute {
                block.forward(&mut inputs[i], sequences, prompts, queries, Some(&mut blocks[0]), scratch);
                &blocks[0]
            } else {
                &blocks[i]
            };
            let of_weights = job.tuned.zip(weights.as_deref_mut());
            let of_weights = of_weights.map(|(tuned, weights)| (tuned.learned(i), &mut weights.blocks[i]));
            let pass =
                BlockVjp { prompts, queries, depth, d_prompts, weights: of_weights, ..BlockVjp::of(sequences, tape) };
            block.vjp(dx, pass, scratch);
            if i == 0 && (inserted == Some(0) || want.pixels || of_embedding) {
                self.add_reads(dx, readout, 0, (count, tokens), d_features);
                let grads = weights.as_deref_mut().and_then(|weights| weights.embedding.as_mut());
                tower.embedding.vjp_pre_norm(dx, count * tokens, embedding, grads, embed_scratch);
            }
            if let (Some(p), true) = (prepared, inserted == Some(i)) {
                take_inserted(
                    dx,
                    widened,
                    count,
                    tokens - p.tokens(),
                    grads.as_deref_mut().map(|g| &mut *g.inserted),
                    (p.tokens(), d),
                );
                std::mem::swap(dx, widened);
            }
        }
        let of_embedding = weights.and_then(|weights| weights.embedding.as_mut());
        if let (Some(grads), Input::Images(pixels)) = (of_embedding, job.input) {
            let each = tower.embedding.pixels();
            let pixels = &pixels[images.start * each..images.end * each];
            tower.embedding.add_grads(pixels, &dx[..count * self.tokens() * stride], grads, embed_scratch);
        }
        if want.pixels {
            tower.embedding.vjp_pixels(dx, self.tokens(), pixel_grads, embed_scratch);
        }
    }
}

/// Copies `count` images of `own` rows from `x` to `widened`, with `tokens` `[P, D]` behind each.
fn insert(x: &[f32], widened: &mut Vec<f32>, count: usize, own: usize, tokens: &[f32], d: usize) {
    let stride = row_stride(d);
    let per_image = own * stride + tokens.len() / d * stride;
    let widened = widened.grow(count * per_image);
    for (from, to) in x.chunks_exact(own * stride).zip(widened.chunks_exact_mut(per_image)) {
        to[..own * stride].copy_from_slice(from);
        for (row, token) in to[own * stride..].chunks_exact_mut(stride).zip(tokens.chunks_exact(d)) {
            row[..d].copy_from_slice(token);
        }
    }
}

/// The reverse of [`insert`]: copies the images' own rows of `dx` to `narrowed` and adds those behind to `grad` `[P, D]`.
fn take_inserted(
    dx: &[f32],
    narrowed: &mut Vec<f32>,
    count: usize,
    own: usize,
    mut grad: Option<&mut [f32]>,
    (prompts, d): (usize, usize),
) {
    let stride = row_stride(d);
    let per_image = (own + prompts) * stride;
    let narrowed = narrowed.grow(count * own * stride);
    for (from, to) in dx.chunks_exact(per_image).zip(narrowed.chunks_exact_mut(own * stride)) {
        let (rows, behind) = from.split_at(own * stride);
        to.copy_from_slice(rows);
        for (grad, row) in grad.iter_mut().flat_map(|g| g.chunks_exact_mut(d)).zip(behind.chunks_exact(stride)) {
            grad.iter_mut().zip(row).for_each(|(g, r)| *g += r);
        }
    }
}
