//! The MLP of a block, `fc2(f(fc1(x)))`, and its VJP, a few hundred hidden units at a time.
//!
//! All hidden units of a micro-batch are several megabytes, which would go out of the second-level cache and back in
//! between the two layers and between the blocks of one product. A chunk of them stays: the first layer makes it, the
//! second adds its part of the result.

use std::ops::Range;

use super::linear::Linear;
use crate::kernel::{
    Activation, DEPTH, Grow, Init, Mat, MatMut, PackedRows, matmul, matmul_activate, matmul_scale, row_stride,
};

/// Hidden units at a time.
const CHUNK: usize = DEPTH;

/// Buffers of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    hidden: Vec<f32>,
    /// What the first product of each chunk reads.
    rows: PackedRows,
}

/// Two frozen layers with an activation between them.
pub(super) struct Mlp {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Mlp {
    pub(super) fn new(fc1: Linear, fc2: Linear, activation: Activation) -> Self {
        Self { fc1, fc2, activation }
    }

    /// Number of hidden units.
    pub(super) fn hidden(&self) -> usize {
        self.fc1.outputs()
    }

    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let n = self.hidden();
        (0..n).step_by(CHUNK).map(move |from| from..(from + CHUNK).min(n))
    }

    /// `y += fc2(f(fc1(x)))`: x and y `[rows, D]`. `derivative` `[rows, hidden]` (stride `row_stride(hidden)`) is filled
    /// with `f'` if given; `scratch` is a buffer.
    pub(super) fn forward(&self, x: Mat, mut y: MatMut, mut derivative: Option<&mut [f32]>, scratch: &mut Scratch) {
        let (rows, d, n) = (x.rows(), y.cols(), self.hidden());
        let stride = row_stride(CHUNK.min(n));
        let Scratch { hidden, rows: packed } = scratch;
        let hidden = hidden.grow(rows * stride);
        packed.pack(x, self.fc1.forward());
        for units in self.chunks() {
            let (from, len) = (units.start, units.len());
            let mut derivative = derivative.as_deref_mut().map(|d| MatMut::new(d, rows, n, row_stride(n)));
            let derivative = derivative.as_mut().map(|d| d.columns(from, len));
            let layer = self.fc1.forward().part(0..self.fc1.inputs(), units.clone());
            let to = MatMut::new(hidden, rows, len, stride);
            matmul_activate(&*packed, layer, to, &self.fc1.bias()[units.clone()], self.activation, derivative);
            let init = if from == 0 { Init::AddBias(self.fc2.bias()) } else { Init::Add };
            matmul(Mat::new(hidden, rows, len, stride), self.fc2.forward().part(units, 0..d), y.columns(0, d), init);
        }
    }

    /// The gradient of x from that of y, both `[rows, D]`, and the derivative that [`Self::forward`] filled.
    pub(super) fn vjp(&self, dy: Mat, mut dx: MatMut, derivative: &[f32], scratch: &mut Scratch) {
        let (rows, d, n) = (dy.rows(), dx.cols(), self.hidden());
        let stride = row_stride(CHUNK.min(n));
        let Scratch { hidden, rows: packed } = scratch;
        let hidden = hidden.grow(rows * stride);
        packed.pack(dy, self.fc2.backward());
        let derivative = Mat::new(derivative, rows, n, row_stride(n));
        for units in self.chunks() {
            let (from, len) = (units.start, units.len());
            let layer = self.fc2.backward().part(0..self.fc2.outputs(), units.clone());
            matmul_scale(&*packed, layer, MatMut::new(hidden, rows, len, stride), derivative.columns(from, len));
            let init = if from == 0 { Init::Zero } else { Init::Add };
            matmul(Mat::new(hidden, rows, len, stride), self.fc1.backward().part(units, 0..d), dx.columns(0, d), init);
        }
    }
}
