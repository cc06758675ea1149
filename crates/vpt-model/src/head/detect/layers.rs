//! Layers with weight gradients: 3x3 convolutions over padded maps and linear layers over rows.
//!
//! Weights are packed once a step. A gradient of weights is `dyᵀ x` with x packed, which gives it in the weight's own layout;
//! rows between the lines of a map add nothing because dy is zero there.

use std::ops::Range;

use super::map::Map;
use vpt_kernel::{Init, Mat, MatMut, Panels, matmul};

/// Convolutions 3x3 that read one map, `[C, 3, 3, C]` each, without bias; zeros outside the map.
pub(in crate::head) struct Conv {
    /// For each line of the kernel `[3C, n C]`: all convolutions side by side.
    forward: [Panels; 3],
    /// For each convolution and line of the turned kernel `[3C, C]`; none unless trained.
    backward: Vec<[Panels; 3]>,
}

impl Conv {
    pub(in crate::head) fn new(weights: &[&[f32]], channels: usize, training: bool) -> Self {
        let c = channels;
        let line = |weight, y: usize| Mat::new(weight, c, 9 * c, 9 * c).columns(y * 3 * c, 3 * c);
        let forward = [0, 1, 2].map(|y| {
            let mut panels = Panels::default();
            panels.reset(3 * c, weights.len() * c);
            for (i, weight) in weights.iter().enumerate() {
                panels.fill(0, i * c, line(weight, y).t());
            }
            panels
        });
        let turned = |weight, y: usize| {
            let mut panels = Panels::default();
            panels.reset(3 * c, c);
            for x in 0..3 {
                panels.fill(x * c, 0, line(weight, 2 - y).columns((2 - x) * c, c));
            }
            panels
        };
        let trained = if training { weights } else { &[] };
        let backward = trained.iter().map(|weight| [0, 1, 2].map(|y| turned(weight, y))).collect();
        Self { forward, backward }
    }

    /// Rows `[rows, n C]` of the results, from the first token of the padded map `x` to the last.
    pub(in crate::head) fn apply(&self, map: Map, x: &[f32], out: &mut [f32]) {
        let cols = self.forward[0].n();
        for (y, panels) in self.forward.iter().enumerate() {
            let init = if y == 0 { Init::Zero } else { Init::Add };
            matmul(map.taps(x, y), panels, MatMut::new(out, map.rows(), cols, cols), init);
        }
    }

    /// The gradient of the input `[rows, C]` from the padded map `dy`, the gradient of convolution `i`; with `add` it is
    /// added to `dx`.
    pub(in crate::head) fn input_vjp(&self, i: usize, map: Map, dy: &[f32], dx: &mut [f32], add: bool) {
        let c = map.channels;
        for (y, panels) in self.backward[i].iter().enumerate() {
            let init = if y == 0 && !add { Init::Zero } else { Init::Add };
            matmul(map.taps(dy, y), panels, MatMut::new(dx, map.rows(), c, c), init);
        }
    }

    /// Adds the gradients of weights to their ranges of `to`, from the padded maps x and, for each weight, dy.
    pub(in crate::head) fn weight_vjp(
        map: Map,
        x: &[f32],
        dy: &[(&[f32], Range<usize>)],
        to: &mut [f32],
        panels: &mut Panels,
    ) {
        let c = map.channels;
        for y in 0..3 {
            panels.reset(map.rows(), 3 * c);
            panels.fill(0, 0, map.taps(x, y));
            for (dy, range) in dy {
                let gradient = &mut to[range.clone()][y * 3 * c..];
                matmul(map.tokens(dy).t(), &*panels, MatMut::new(gradient, c, 3 * c, 9 * c), Init::Add);
            }
        }
    }
}

/// `y = x Wᵀ + b` with W `[out, in]`.
pub(in crate::head) struct Dense {
    forward: Panels,
    bias: Vec<f32>,
    /// W as right-hand side of the VJP; empty unless trained.
    backward: Panels,
}

impl Dense {
    pub(in crate::head) fn new(weight: &[f32], bias: &[f32], training: bool) -> Self {
        let (out, inputs) = (bias.len(), weight.len() / bias.len());
        let weight = Mat::new(weight, out, inputs, inputs);
        Self {
            forward: Panels::pack(weight.t()),
            bias: bias.to_vec(),
            backward: if training { Panels::pack(weight) } else { Panels::default() },
        }
    }

    pub(in crate::head) fn outputs(&self) -> usize {
        self.bias.len()
    }

    /// `y = x Wᵀ + b`: x `[rows, in]`, y `[rows, out]`.
    pub(in crate::head) fn apply(&self, x: Mat, y: MatMut) {
        matmul(x, &self.forward, y, Init::Bias(&self.bias));
    }

    /// `dx = dy W`: dy `[rows, out]`, dx `[rows, in]`.
    pub(in crate::head) fn input_vjp(&self, dy: Mat, dx: MatMut) {
        matmul(dy, &self.backward, dx, Init::Zero);
    }
}

/// Adds `dyᵀ x` `[out, in]` to `to`: dy `[rows, out]`, x `[rows, in]`.
pub(in crate::head) fn weight_vjp(dy: Mat, x: Mat, to: &mut [f32], panels: &mut Panels) {
    let inputs = x.cols();
    panels.reset(x.rows(), inputs);
    panels.fill(0, 0, x);
    matmul(dy.t(), &*panels, MatMut::new(to, dy.cols(), inputs, inputs), Init::Add);
}

/// Adds the sums over rows of `dy`, rows of `to.len()` values `stride` apart.
pub(in crate::head) fn bias_vjp(dy: &[f32], stride: usize, to: &mut [f32]) {
    for row in dy.chunks(stride) {
        for (sum, d) in to.iter_mut().zip(row) {
            *sum += d;
        }
    }
}
