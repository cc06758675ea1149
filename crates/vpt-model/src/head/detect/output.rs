//! Output layers behind a head's tower, which give a token's logits and offsets.
//!
//! Their rows are those of a map from its first token to its last. Gradients come as the tokens' values alone and are spread
//! over these rows, zeros between the lines.

use std::ops::Range;

use super::layers::{Dense, bias_vjp, weight_vjp};
use super::map::Map;
use vpt_kernel::{Grow, Mat, MatMut, Panels, row_stride};

/// Keeps the length of a zero vector, and its gradient, finite.
const EPSILON: f32 = 1e-12;

/// Buffers of an output layer, reused from image to image.
#[derive(Default)]
pub(in crate::head) struct OutputScratch {
    rows: Vec<f32>,
    /// Projected tokens of length one, and the inverse of the length they had.
    unit: Vec<f32>,
    inverse: Vec<f32>,
    d_unit: Vec<f32>,
    panels: Panels,
}

impl Dense {
    /// The tokens' outputs `[T, out]` from the rows of a tower.
    pub(in crate::head) fn tokens(&self, map: Map, tower: Mat, scratch: &mut OutputScratch) -> Vec<f32> {
        let n = self.outputs();
        let stride = row_stride(n);
        let rows = scratch.rows.grow(map.rows() * stride);
        self.apply(tower, MatMut::new(rows, map.rows(), n, stride));
        super::map::gather(rows, stride, map.runs(), n)
    }

    /// From `gradient` `[T, out]` of [`Self::tokens`]: adds those of weight and bias to their ranges of `to` and writes that
    /// of the tower's rows.
    #[allow(clippy::too_many_arguments, reason = "forward's arguments and the gradients")]
    pub(in crate::head) fn tokens_vjp(
        &self,
        map: Map,
        tower: Mat,
        gradient: &[f32],
        to: &mut [f32],
        [weight, bias]: [Range<usize>; 2],
        d_tower: MatMut,
        scratch: &mut OutputScratch,
    ) {
        let n = self.outputs();
        let dy = spread(&mut scratch.rows, map, gradient, n);
        weight_vjp(dy, tower, &mut to[weight], &mut scratch.panels);
        bias_vjp(gradient, n, &mut to[bias]);
        self.input_vjp(dy, d_tower);
    }
}

/// Rows of a map with the values `[T, n]` in its tokens and zeros elsewhere.
fn spread<'a>(buffer: &'a mut Vec<f32>, map: Map, values: &[f32], n: usize) -> Mat<'a> {
    let stride = row_stride(n);
    let rows = buffer.zeroed(map.rows() * stride);
    for (row, values) in map.runs().iter().zip(values.chunks_exact(n)) {
        rows[row * stride..row * stride + n].copy_from_slice(values);
    }
    Mat::new(rows, map.rows(), n, stride)
}

/// Cosines with text embeddings: `exp(log_scale) cos(W x + b, text) + shift`.
pub(super) struct TextLayer {
    project: Dense,
    /// Texts of length one times the scale `[K, E]`; the shift is the bias.
    texts: Dense,
}

impl TextLayer {
    /// `texts` `[K, E]` of any length but zero; `cosine` is the scale's logarithm and the shift.
    pub(super) fn new(weight: &[f32], bias: &[f32], texts: &[f32], cosine: &[f32], training: bool) -> Self {
        let width = bias.len();
        let scale = cosine[0].exp();
        let mut scaled = texts.to_vec();
        for text in scaled.chunks_exact_mut(width) {
            let inverse = inverse_length(text);
            for v in text {
                *v *= inverse * scale;
            }
        }
        let shift = vec![cosine[1]; texts.len() / width];
        Self { project: Dense::new(weight, bias, training), texts: Dense::new(&scaled, &shift, training) }
    }

    pub(super) fn outputs(&self) -> usize {
        self.texts.outputs()
    }

    /// The tokens' logits `[T, K]` from the rows of a tower.
    pub(in crate::head) fn tokens(&self, map: Map, tower: Mat, scratch: &mut OutputScratch) -> Vec<f32> {
        let (rows, width) = (map.rows(), self.project.outputs());
        let stride = row_stride(width);
        let mut unit = std::mem::take(&mut scratch.unit);
        let values = unit.grow(rows * stride);
        self.project.apply(tower, MatMut::new(values, rows, width, stride));
        for (row, inverse) in values.chunks_exact_mut(stride).zip(scratch.inverse.grow(rows)) {
            *inverse = inverse_length(&row[..width]);
            for v in &mut row[..width] {
                *v *= *inverse;
            }
        }
        let logits = self.texts.tokens(map, Mat::new(values, rows, width, stride), scratch);
        scratch.unit = unit;
        logits
    }

    /// What the [`Self::tokens`] called last with this scratch compared with the texts: a vector of length one for each token, `[T, E]`.
    pub(super) fn units(&self, map: Map, scratch: &OutputScratch) -> Vec<f32> {
        let width = self.project.outputs();
        super::map::gather(&scratch.unit, row_stride(width), map.runs(), width)
    }

    /// From `gradient` `[T, K]` of the [`Self::tokens`] called last with this scratch: adds those of weight, bias and, side
    /// by side, log scale and shift to their ranges of `to` and writes that of the tower's rows.
    #[allow(clippy::too_many_arguments, reason = "forward's arguments and the gradients")]
    pub(super) fn tokens_vjp(
        &self,
        map: Map,
        tower: Mat,
        gradient: &[f32],
        to: &mut [f32],
        [weight, bias, cosine]: [Range<usize>; 3],
        d_tower: MatMut,
        scratch: &mut OutputScratch,
    ) {
        let (rows, width) = (map.rows(), self.project.outputs());
        let stride = row_stride(width);
        let OutputScratch { rows: spread_rows, unit, inverse, d_unit, panels } = scratch;
        let d_unit = d_unit.grow(rows * stride);
        let dy = spread(spread_rows, map, gradient, self.outputs());
        self.texts.input_vjp(dy, MatMut::new(d_unit, rows, width, stride));
        // The projection's gradient is what is left across its direction; along it lies that of the scale.
        let mut d_log_scale = 0.;
        for ((d, unit), inverse) in d_unit.chunks_exact_mut(stride).zip(unit.chunks_exact(stride)).zip(inverse.iter()) {
            let (d, unit) = (&mut d[..width], &unit[..width]);
            let along = dot(d, unit);
            d_log_scale += along;
            for (d, u) in d.iter_mut().zip(unit) {
                *d = inverse * (*d - along * u);
            }
        }
        to[cosine.start] += d_log_scale;
        to[cosine.start + 1] += gradient.iter().sum::<f32>();
        bias_vjp(d_unit, stride, &mut to[bias]);
        let d_unit = Mat::new(d_unit, rows, width, stride);
        weight_vjp(d_unit, tower, &mut to[weight], panels);
        self.project.input_vjp(d_unit, d_tower);
    }
}

fn inverse_length(x: &[f32]) -> f32 {
    1. / (dot(x, x) + EPSILON).sqrt()
}

/// The product of two vectors, in sixteen partial sums that fit vector registers.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    let mut sums = [0.; 16];
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
