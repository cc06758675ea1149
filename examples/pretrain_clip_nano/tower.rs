//! The blocks of both towers over packed sequences, with their backward pass.

use std::ops::Range;

use crate::layout::{NanoTower, Norm};
use crate::ops::{self, MatView, dot, layer_norm, layer_norm_backward, linear, linear_backward, matmul};
use crate::ops::{quick_gelu, quick_gelu_backward, softmax};

/// What a block keeps from its forward pass.
#[derive(Default)]
struct NanoBlockTape {
    x: Vec<f32>,
    qkv: Vec<f32>,
    weights: Vec<f32>,
    mixed: Vec<f32>,
    mid: Vec<f32>,
    hidden: Vec<f32>,
}

/// What a tower keeps from its forward pass over a few sequences; its memory is reused from step to step.
#[derive(Default)]
pub(crate) struct Tape {
    pub(crate) lengths: Vec<usize>,
    pub(crate) read: Vec<usize>,
    pub(crate) ids: Vec<u32>,
    pub(crate) patches: Vec<f32>,
    pub(crate) embedded: Vec<f32>,
    blocks: Vec<NanoBlockTape>,
    pub(crate) last: Vec<f32>,
    pub(crate) normed: Vec<f32>,
    pub(crate) norms: Vec<f32>,
    /// `[sequences, projection]`, of length one.
    pub(crate) embeddings: Vec<f32>,
}

/// Scratch memory of one thread.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) a: Vec<f32>,
    pub(crate) b: Vec<f32>,
    pub(crate) c: Vec<f32>,
    pub(crate) d: Vec<f32>,
}

/// What a thread keeps from step to step.
pub(crate) struct ThreadBuffers {
    pub(crate) scratch: Scratch,
    /// The gradients of all parameters, as far as the thread has added them up.
    pub(crate) gradient: Vec<f32>,
}

impl ThreadBuffers {
    /// Those for so many parameters.
    pub(crate) fn new(parameters: usize) -> Self {
        Self { scratch: Scratch::default(), gradient: vec![0.0; parameters] }
    }
}

/// A slice of `n` values of a reused vector; what it held is left in it.
pub(crate) fn sized(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}

/// Calls `f(sequence start row, length, start in the attention weights)` for each sequence and head.
fn for_heads(lengths: &[usize], heads: usize, mut f: impl FnMut(usize, usize, usize, usize)) {
    let (mut row, mut weight) = (0, 0);
    for &n in lengths {
        for head in 0..heads {
            f(row, n, head, weight);
            weight += n * n;
        }
        row += n;
    }
}

impl NanoTower {
    /// Runs the blocks over `x` `[rows, D]`; the last block goes on with the rows `read` only. Fills `last`
    /// `[sequences, D]`.
    pub(crate) fn forward(&self, theta: &[f32], x: &[f32], tape: &mut TapeParts, scratch: &mut Scratch) {
        let d = self.config.width;
        let heads = self.config.heads;
        let head_width = d / heads;
        let scale = (head_width as f32).powf(-0.5);
        tape.blocks.resize_with(self.blocks.len(), NanoBlockTape::default);
        let rows = x.len() / d;
        let squares: usize = tape.lengths.iter().map(|n| n * n).sum();
        tape.blocks[0].x.clear();
        tape.blocks[0].x.extend_from_slice(x);
        for (index, block) in self.blocks.iter().enumerate() {
            let is_last = index + 1 == self.blocks.len();
            let (left, right) = tape.blocks.split_at_mut(index + 1);
            let t = &mut left[index];
            let n1 = sized(&mut scratch.a, rows * d);
            layer_norm(&t.x, &theta[block.norm1.w.clone()], &theta[block.norm1.b.clone()], n1);
            t.qkv.resize(rows * 3 * d, 0.0);
            linear(n1, &theta[block.qkv_w.clone()], Some(&theta[block.qkv_b.clone()]), d, &mut t.qkv);
            t.weights.resize(squares * heads, 0.0);
            let mixed = sized(&mut scratch.b, rows * d);
            for_heads(tape.lengths, heads, |row, n, head, weight| {
                let at = |part: usize| &t.qkv[row * 3 * d + part * d + head * head_width..];
                let weights = &mut t.weights[weight..weight + n * n];
                let (q, k, v) = (MatView::rows(at(0), 3 * d), MatView::rows(at(1), 3 * d), MatView::rows(at(2), 3 * d));
                matmul((n, head_width, n), q, k.t(), weights, n, false);
                ops::scale(weights, scale);
                for (i, row) in weights.chunks_exact_mut(n).enumerate() {
                    softmax(row, if self.causal { i + 1 } else { n });
                }
                let out = &mut mixed[row * d + head * head_width..];
                matmul((n, n, head_width), MatView::rows(weights, n), v, out, d, false);
            });
            t.mixed.clear();
            t.mid.clear();
            if is_last {
                for &row in tape.read {
                    t.mixed.extend_from_slice(&mixed[row * d..][..d]);
                    t.mid.extend_from_slice(&t.x[row * d..][..d]);
                }
            } else {
                t.mixed.extend_from_slice(mixed);
                t.mid.extend_from_slice(&t.x);
            }
            let rows = t.mid.len() / d;
            // mid = x + mixed · Woᵀ + bo
            add_bias(&mut t.mid, &theta[block.out_b.clone()]);
            let w = MatView::rows(&theta[block.out_w.clone()], d).t();
            matmul((rows, d, d), MatView::rows(&t.mixed, d), w, &mut t.mid, d, true);
            let n2 = sized(&mut scratch.a, rows * d);
            layer_norm(&t.mid, &theta[block.norm2.w.clone()], &theta[block.norm2.b.clone()], n2);
            t.hidden.resize(rows * 4 * d, 0.0);
            linear(n2, &theta[block.fc1_w.clone()], Some(&theta[block.fc1_b.clone()]), d, &mut t.hidden);
            let gelu = sized(&mut scratch.c, rows * 4 * d);
            quick_gelu(&t.hidden, gelu);
            let y = if is_last { &mut *tape.last } else { &mut right[0].x };
            y.clear();
            y.extend_from_slice(&t.mid);
            add_bias(y, &theta[block.fc2_b.clone()]);
            let w = MatView::rows(&theta[block.fc2_w.clone()], 4 * d).t();
            matmul((rows, 4 * d, d), MatView::rows(gelu, 4 * d), w, y, d, true);
        }
    }

    /// From the gradient of `last` to that of the input, which is left in `dx` `[rows, D]`; adds to `grad`.
    pub(crate) fn backward(
        &self,
        theta: &[f32],
        tape: &TapeParts,
        dx: &mut Vec<f32>,
        grad: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let d = self.config.width;
        let heads = self.config.heads;
        let head_width = d / heads;
        let scale = (head_width as f32).powf(-0.5);
        let all_rows: usize = tape.lengths.iter().sum();
        let longest = tape.lengths.iter().copied().max().unwrap_or(0);
        for (index, block) in self.blocks.iter().enumerate().rev() {
            let is_last = index + 1 == self.blocks.len();
            let t = &tape.blocks[index];
            let rows = dx.len() / d;
            // The MLP: dx is the gradient of its sum with mid.
            let gelu = sized(&mut scratch.c, rows * 4 * d);
            quick_gelu(&t.hidden, gelu);
            let dhidden = sized(&mut scratch.d, rows * 4 * d);
            let (dw, db) = two(grad, &block.fc2_w, &block.fc2_b);
            linear_backward(gelu, &theta[block.fc2_w.clone()], 4 * d, dx, dw, Some(db), Some(dhidden));
            quick_gelu_backward(&t.hidden, dhidden);
            let layer = (&block.norm2, &block.fc1_w, &block.fc1_b);
            normed_linear_backward(theta, &t.mid, layer, dhidden, (grad, dx), [&mut scratch.a, &mut scratch.b]);
            // Attention: dx is the gradient of mid.
            let dmixed = sized(&mut scratch.a, rows * d);
            let (dw, db) = two(grad, &block.out_w, &block.out_b);
            linear_backward(&t.mixed, &theta[block.out_w.clone()], d, dx, dw, Some(db), Some(dmixed));
            if is_last {
                let narrow = std::mem::take(dx);
                dx.resize(all_rows * d, 0.0);
                let wide = sized(&mut scratch.b, all_rows * d);
                wide.fill(0.0);
                for (from, &to) in tape.read.iter().enumerate() {
                    wide[to * d..][..d].copy_from_slice(&dmixed[from * d..][..d]);
                    dx[to * d..][..d].copy_from_slice(&narrow[from * d..][..d]);
                }
                std::mem::swap(&mut scratch.a, &mut scratch.b);
            }
            let dmixed = &scratch.a[..all_rows * d];
            let dqkv = sized(&mut scratch.c, all_rows * 3 * d);
            let dweights = sized(&mut scratch.d, longest * longest);
            for_heads(tape.lengths, heads, |row, n, head, weight| {
                let at = row * 3 * d + head * head_width;
                let part = |part: usize| MatView::rows(&t.qkv[at + part * d..], 3 * d);
                let weights = &t.weights[weight..weight + n * n];
                let dout = MatView::rows(&dmixed[row * d + head * head_width..], d);
                let dweights = &mut dweights[..n * n];
                matmul((n, head_width, n), dout, part(2).t(), dweights, n, false);
                let view = MatView::rows(weights, n);
                matmul((n, n, head_width), view.t(), dout, &mut dqkv[at + 2 * d..], 3 * d, false);
                for (dw, w) in dweights.chunks_exact_mut(n).zip(weights.chunks_exact(n)) {
                    let mean = dot(dw, w);
                    dw.iter_mut().zip(w).for_each(|(dw, w)| *dw = scale * w * (*dw - mean));
                }
                let view = MatView::rows(dweights, n);
                matmul((n, n, head_width), view, part(1), &mut dqkv[at..], 3 * d, false);
                matmul((n, n, head_width), view.t(), part(0), &mut dqkv[at + d..], 3 * d, false);
            });
            let layer = (&block.norm1, &block.qkv_w, &block.qkv_b);
            normed_linear_backward(theta, &t.x, layer, dqkv, (grad, dx), [&mut scratch.a, &mut scratch.b]);
        }
    }
}

/// Backward of a layer norm of `x` and the linear layer behind it, of weight `w` and bias `b`, from the gradient `dy` of its
/// outcome: adds to `grad` and to `dx`. The buffers hold the norm's outcome and its gradient.
fn normed_linear_backward(
    theta: &[f32],
    x: &[f32],
    (norm, w, b): (&Norm, &Range<usize>, &Range<usize>),
    dy: &[f32],
    (grad, dx): (&mut [f32], &mut [f32]),
    [normed, dnormed]: [&mut Vec<f32>; 2],
) {
    let scale = &theta[norm.w.clone()];
    let (normed, dnormed) = (sized(normed, x.len()), sized(dnormed, x.len()));
    layer_norm(x, scale, &theta[norm.b.clone()], normed);
    let (dw, db) = two(grad, w, b);
    linear_backward(normed, &theta[w.clone()], scale.len(), dy, dw, Some(db), Some(dnormed));
    let (dw, db) = two(grad, &norm.w, &norm.b);
    layer_norm_backward(x, scale, dnormed, dw, db, dx);
}

/// The parts of a [`Tape`] the blocks use.
pub(crate) struct TapeParts<'a> {
    lengths: &'a [usize],
    read: &'a [usize],
    blocks: &'a mut Vec<NanoBlockTape>,
    last: &'a mut Vec<f32>,
}

impl Tape {
    pub(crate) fn parts(&mut self) -> TapeParts<'_> {
        TapeParts { lengths: &self.lengths, read: &self.read, blocks: &mut self.blocks, last: &mut self.last }
    }
}

/// Two neighbouring or separate ranges of one slice, the first before the second.
pub(crate) fn two<'a>(all: &'a mut [f32], a: &Range<usize>, b: &Range<usize>) -> (&'a mut [f32], &'a mut [f32]) {
    let (left, right) = all.split_at_mut(b.start);
    (&mut left[a.clone()], &mut right[..b.len()])
}

fn add_bias(rows: &mut [f32], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
    }
}
