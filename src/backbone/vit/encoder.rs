//! One micro-batch through the tower on one thread: forward with a tape of what the VJP will need, and the VJP.

use super::block::{BlockTape, Depth, Queries, Scratch, Sequences};
use super::embed::{EmbeddingTape, Scratch as EmbedScratch};
use super::prompts::{Prepared, PreparedGrads};
use super::{Vit, Want};
use crate::kernel::{Grow, Mat, MatMut, normalize, normalize_vjp, row_stride};

/// What one thread needs to run micro-batches, kept from step to step: the tape and the buffers.
#[derive(Default)]
pub(super) struct Workspace {
    x: Vec<f32>,
    widened: Vec<f32>,
    starts: Vec<usize>,
    embedding: EmbeddingTape,
    blocks: Vec<BlockTape>,
    normalized: Vec<f32>,
    inverse: Vec<f32>,
    scratch: Scratch,
    embed_scratch: EmbedScratch,
}

fn set_starts(starts: &mut Vec<usize>, count: usize, tokens: usize) {
    starts.clear();
    starts.extend((0..=count).map(|i| i * tokens));
}

impl Vit {
    /// The first block whose VJP is needed: none below the first prompt, unless the pixels learn.
    fn first_trained(&self, prepared: Option<&Prepared>, want: Want) -> usize {
        match prepared {
            _ if want.pixels => 0,
            Some(p) if want.tokens => p.start,
            _ => self.depth(),
        }
    }

    /// Tokens of an image in `block`, prompts that travel included.
    fn tokens_in(&self, block: usize, prepared: Option<&Prepared>) -> usize {
        let travelling = prepared.filter(|p| p.inserted.as_ref().is_some_and(|(at, _)| *at <= block));
        self.tokens() + travelling.map_or(0, |p| p.tokens)
    }

    fn queries(&self, block: usize) -> Queries {
        if block + 1 == self.depth() { Queries::First } else { Queries::All }
    }

    /// Features `[m, D]` of `images` `[m, 3, S, S]`; `workspace` keeps what [`Vit::backward`] needs.
    pub(super) fn forward(
        &self,
        images: &[f32],
        prepared: Option<&Prepared>,
        want: Want,
        workspace: &mut Workspace,
    ) -> Vec<f32> {
        let d = self.width();
        let stride = row_stride(d);
        let count = images.len() / self.embedding.pixels();
        let first = self.first_trained(prepared, want);
        let Workspace { x, widened, starts, embedding, blocks, normalized, inverse, scratch, embed_scratch } =
            workspace;
        if first < self.depth() {
            blocks.resize_with(self.depth(), BlockTape::default);
        }
        let inserted = prepared.and_then(|p| p.inserted.as_ref());
        let at_input = inserted.filter(|(at, _)| *at == 0).map_or(&[][..], |(_, tokens)| tokens);
        self.embedding.forward(images, at_input, x, (first == 0).then_some(embedding), embed_scratch);
        for (i, block) in self.blocks.iter().enumerate() {
            if let Some((_, tokens)) = inserted.filter(|(at, _)| *at == i && i > 0) {
                insert(x, widened, count, self.tokens(), tokens, d);
                std::mem::swap(x, widened);
            }
            set_starts(starts, count, self.tokens_in(i, prepared));
            let sequences = Sequences { starts, causal: false };
            let prompts = prepared.and_then(|p| p.keys_values(i, d));
            let tape = if i >= first { Some(&mut blocks[i]) } else { None };
            block.forward(x, sequences, prompts, self.queries(i), tape, scratch);
        }
        let normalized = normalized.grow(count * stride);
        let view = &mut MatMut::new(normalized, count, d, stride);
        normalize(Mat::new(x, count, d, stride), self.eps, view, inverse.grow(count));
        let [scale, shift] = &self.post_norm;
        normalized.chunks_exact(stride).flat_map(|row| (0..d).map(|i| row[i] * scale[i] + shift[i])).collect()
    }

    /// The VJP of the last [`Vit::forward`] on this workspace: from the gradient of the features `[m, D]`, adds to
    /// `grads` and writes `pixel_grads` `[m, 3, S, S]` (empty: not wanted).
    pub(super) fn backward(
        &self,
        count: usize,
        prepared: Option<&Prepared>,
        d_features: &[f32],
        mut grads: Option<&mut PreparedGrads>,
        pixel_grads: &mut [f32],
        workspace: &mut Workspace,
    ) {
        let d = self.width();
        let stride = row_stride(d);
        let want = Want { tokens: grads.is_some(), pixels: !pixel_grads.is_empty() };
        let first = self.first_trained(prepared, want);
        let Workspace { x: dx, widened, starts, embedding, blocks, normalized, inverse, scratch, embed_scratch } =
            workspace;
        dx.zeroed(count * stride);
        let gradient = widened.grow(count * stride);
        for (to, from) in gradient.chunks_exact_mut(stride).zip(d_features.chunks_exact(d)) {
            for (i, to) in to.iter_mut().enumerate().take(d) {
                *to = from[i] * self.post_norm[0][i];
            }
        }
        normalize_vjp(
            Mat::new(normalized, count, d, stride),
            &inverse[..count],
            Mat::new(gradient, count, d, stride),
            &mut MatMut::new(dx, count, d, stride),
        );
        let inserted = prepared.and_then(|p| p.inserted.as_ref()).map(|(at, _)| *at);
        for (i, block) in self.blocks.iter().enumerate().skip(first).rev() {
            let tokens = self.tokens_in(i, prepared);
            set_starts(starts, count, tokens);
            let sequences = Sequences { starts, causal: false };
            let prompts = prepared.and_then(|p| p.keys_values(i, d));
            let lowest = i == first && !want.pixels;
            let depth = match (lowest, prepared) {
                (true, Some(p)) if inserted == Some(i) => Depth::LastRows(p.tokens),
                (true, _) => Depth::Prompts,
                _ => Depth::Rows,
            };
            let shared = prepared.and_then(|p| p.shared_index(i));
            let d_prompts = shared.zip(grads.as_deref_mut()).map(|(at, g)| g.shared[at].as_mut_slice());
            block.vjp(dx, sequences, prompts, self.queries(i), &blocks[i], depth, d_prompts, scratch);
            if i == 0 && (inserted == Some(0) || want.pixels) {
                self.embedding.vjp_pre_norm(dx, count * tokens, embedding, embed_scratch);
            }
            if let (Some(p), true) = (prepared, inserted == Some(i)) {
                take_inserted(
                    dx,
                    widened,
                    count,
                    tokens - p.tokens,
                    grads.as_deref_mut().map(|g| &mut *g.inserted),
                    (p.tokens, d),
                );
                std::mem::swap(dx, widened);
            }
        }
        if want.pixels {
            self.embedding.vjp_pixels(dx, self.tokens(), pixel_grads, embed_scratch);
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
