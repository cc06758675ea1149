//! The MLP of a block, `fc2(f(fc1(x)))` or gated `fc2(f(fc1(x)) · up(x))`, and its VJP, a few hundred hidden units at a time.
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
    /// What a gated MLP's hidden units are multiplied by.
    up: Vec<f32>,
    /// What the first product of each chunk reads.
    rows: PackedRows,
}

/// Two frozen layers with an activation between them; of a gated MLP, a third beside the first.
pub(super) struct Mlp {
    fc1: Linear,
    up: Option<Linear>,
    fc2: Linear,
    activation: Activation,
}

impl Mlp {
    pub(super) fn new(fc1: Linear, up: Option<Linear>, fc2: Linear, activation: Activation) -> Self {
        Self { fc1, up, fc2, activation }
    }

    /// Number of hidden units.
    fn hidden(&self) -> usize {
        self.fc1.outputs()
    }

    /// Values of a row that the VJP needs: the derivative of each hidden unit by its part of `fc1(x)`, and behind them, if
    /// the MLP is gated, by its part of `up(x)`.
    pub(super) fn kept(&self) -> usize {
        if self.up.is_some() { 2 * self.hidden() } else { self.hidden() }
    }

    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let n = self.hidden();
        (0..n).step_by(CHUNK).map(move |from| from..(from + CHUNK).min(n))
    }

    /// `y += fc2(f(fc1(x)))`: x and y `[rows, D]`. `derivative` `[rows, kept]` (stride `row_stride(kept)`) is filled if
    /// given; `scratch` is a buffer.
    pub(super) fn forward(&self, x: Mat, mut y: MatMut, mut derivative: Option<&mut [f32]>, scratch: &mut Scratch) {
        let (rows, d, n) = (x.rows(), y.cols(), self.hidden());
        let stride = row_stride(CHUNK.min(n));
        let (kept, kept_stride) = (self.kept(), row_stride(self.kept()));
        let Scratch { hidden, up: ups, rows: packed } = scratch;
        let hidden = hidden.grow(rows * stride);
        packed.pack(x, self.fc1.forward());
        for units in self.chunks() {
            let (from, len) = (units.start, units.len());
            let mut view = derivative.as_deref_mut().map(|d| MatMut::new(d, rows, kept, kept_stride));
            let view = view.as_mut().map(|d| d.columns(from, len));
            let layer = self.fc1.forward().part(0..self.fc1.inputs(), units.clone());
            let to = MatMut::new(hidden, rows, len, stride);
            matmul_activate(&*packed, layer, to, &self.fc1.bias()[units.clone()], self.activation, view);
            if let Some(up) = &self.up {
                let layer = up.forward().part(0..up.inputs(), units.clone());
                let ups = ups.grow(rows * stride);
                matmul(&*packed, layer, MatMut::new(ups, rows, len, stride), Init::Bias(&up.bias()[units.clone()]));
                for (row, (h, u)) in hidden.chunks_mut(stride).zip(ups.chunks(stride)).enumerate().take(rows) {
                    let (h, u) = (&mut h[..len], &u[..len]);
                    if let Some(derivative) = derivative.as_deref_mut() {
                        let (by_fc1, by_up) = derivative[row * kept_stride..][..kept].split_at_mut(n);
                        by_up[units.clone()].copy_from_slice(h);
                        by_fc1[units.clone()].iter_mut().zip(u).for_each(|(d, u)| *d *= u);
                    }
                    h.iter_mut().zip(u).for_each(|(h, u)| *h *= u);
                }
            }
            let init = if from == 0 { Init::AddBias(self.fc2.bias()) } else { Init::Add };
            matmul(Mat::new(hidden, rows, len, stride), self.fc2.forward().part(units, 0..d), y.columns(0, d), init);
        }
    }

    /// The gradient of x from that of y, both `[rows, D]`, and the derivative that [`Self::forward`] filled.
    pub(super) fn vjp(&self, dy: Mat, mut dx: MatMut, derivative: &[f32], scratch: &mut Scratch) {
        let (rows, d, n) = (dy.rows(), dx.cols(), self.hidden());
        let stride = row_stride(CHUNK.min(n));
        let (kept, kept_stride) = (self.kept(), row_stride(self.kept()));
        let Scratch { hidden, up: ups, rows: packed } = scratch;
        let hidden = hidden.grow(rows * stride);
        packed.pack(dy, self.fc2.backward());
        for units in self.chunks() {
            let (from, len) = (units.start, units.len());
            let layer = self.fc2.backward().part(0..self.fc2.outputs(), units.clone());
            let init = if from == 0 { Init::Zero } else { Init::Add };
            let Some(up) = &self.up else {
                let derivative = Mat::new(derivative, rows, kept, kept_stride).columns(from, len);
                matmul_scale(&*packed, layer, MatMut::new(hidden, rows, len, stride), derivative);
                let layer = self.fc1.backward().part(units, 0..d);
                matmul(Mat::new(hidden, rows, len, stride), layer, dx.columns(0, d), init);
                continue;
            };
            // The gradient of the hidden units serves both layers.
            matmul(&*packed, layer, MatMut::new(hidden, rows, len, stride), Init::Zero);
            let ups = ups.grow(rows * stride);
            for (row, (h, u)) in hidden.chunks_mut(stride).zip(ups.chunks_mut(stride)).enumerate().take(rows) {
                let (by_fc1, by_up) = derivative[row * kept_stride..][..kept].split_at(n);
                let (h, u) = (&mut h[..len], &mut u[..len]);
                for (((h, u), f), g) in h.iter_mut().zip(u).zip(&by_fc1[units.clone()]).zip(&by_up[units.clone()]) {
                    *u = *h * g;
                    *h *= f;
                }
            }
            for (from, layer, init) in [(&*hidden, &self.fc1, init), (&*ups, up, Init::Add)] {
                let layer = layer.backward().part(units.clone(), 0..d);
                matmul(Mat::new(from, rows, len, stride), layer, dx.columns(0, d), init);
            }
        }
    }
}
