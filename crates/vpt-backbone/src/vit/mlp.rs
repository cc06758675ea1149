//! The MLP of a block, `fc2(f(fc1(x)))` or gated `fc2(f(fc1(x)) · up(x))`, and its VJP, a few hundred hidden units at a time.
//!
//! All hidden units of a micro-batch are several megabytes, which would go out of the second-level cache and back in
//! between the two layers and between the blocks of one product. A chunk of them stays: the first layer makes it, the
//! second adds its part of the result.

use std::ops::Range;

use super::fold::{Folded, pack};
use super::linear::Linear;
use vpt_kernel::{
    Activation, DEPTH, Grow, Init, Kept, Mat, MatMut, PackedRows, Panels, Precision, matmul, matmul_activate,
    matmul_scale, row_stride,
};

/// Hidden units at a time.
const CHUNK: usize = DEPTH;

/// Buffers of one thread.
#[derive(Default)]
pub(super) struct MlpScratch {
    hidden: Vec<f32>,
    /// The linear branch of a gated MLP, which its hidden units are multiplied by.
    up: Vec<f32>,
    /// Packed input of each chunk's first product.
    rows: PackedRows,
    /// A chunk's derivatives.
    derivative: Vec<f32>,
    /// Right-hand sides of weights' gradients: what went into the first layer, and a chunk of what went into the second.
    inputs: Panels,
    units: Panels,
}

/// Activations that the VJP needs of a forward pass.
#[derive(Default)]
pub(super) struct MlpTape {
    derivative: Kept,
    /// The hidden units, where the second layer's weight is tuned.
    hidden: Option<Kept>,
}

impl MlpTape {
    pub(super) fn new(precision: Precision) -> Self {
        Self { derivative: Kept::new(precision), hidden: None }
    }

    /// Keeps, from the next forward pass on, the hidden units too, or does not.
    pub(super) fn keep_hidden(&mut self, keep: bool, precision: Precision) {
        if keep != self.hidden.is_some() {
            self.hidden = keep.then(|| Kept::new(precision));
        }
    }
}

/// Two layers with an activation between them; of a gated MLP, a third beside the first.
#[derive(Clone)]
pub(super) struct Mlp {
    fc1: Linear,
    up: Option<Linear>,
    fc2: Linear,
    activation: Activation,
}

/// A chunk of hidden units, and where its derivatives are kept.
struct Chunk {
    units: Range<usize>,
    /// Of the units behind `fc1`, `[rows, units]`, and behind them those of `up`.
    kept: Range<usize>,
}

impl Mlp {
    pub(super) fn new(fc1: Linear, up: Option<Linear>, fc2: Linear, activation: Activation) -> Self {
        Self { fc1, up, fc2, activation }
    }

    /// The same with other biases.
    pub(super) fn with_biases(&self, fc1: Vec<f32>, up: Option<Vec<f32>>, fc2: Vec<f32>) -> Self {
        Self {
            fc1: self.fc1.with_bias(fc1),
            up: self.up.as_ref().zip(up).map(|(layer, bias)| layer.with_bias(bias)),
            fc2: self.fc2.with_bias(fc2),
            activation: self.activation,
        }
    }

    /// Number of hidden units.
    pub(super) fn hidden(&self) -> usize {
        self.fc1.outputs()
    }

    /// Bytes of the weights.
    pub(super) fn weight_bytes(&self) -> usize {
        [Some(&self.fc1), self.up.as_ref(), Some(&self.fc2)].into_iter().flatten().map(Linear::bytes).sum()
    }

    /// Values that the VJP needs of `rows` rows.
    pub(super) fn kept(&self, rows: usize) -> usize {
        self.chunks(rows).map(|chunk| chunk.kept.len()).sum()
    }

    /// Bytes of one thread's buffers for `rows` rows.
    pub(super) fn scratch_bytes(&self, rows: usize) -> usize {
        let chunk = row_stride(CHUNK.min(self.hidden())) * if self.up.is_some() { 2 } else { 1 };
        // Hidden units and, in bfloat16, their derivatives; the packed rows.
        rows * (2 * chunk + row_stride(self.fc1.inputs())) * size_of::<f32>()
    }

    fn chunks(&self, rows: usize) -> impl Iterator<Item = Chunk> + use<> {
        let n = self.hidden();
        let each = rows * row_stride(CHUNK.min(n)) * if self.up.is_some() { 2 } else { 1 };
        let units = (0..n).step_by(CHUNK).map(move |from| from..(from + CHUNK).min(n));
        units.enumerate().map(move |(i, units)| Chunk { units, kept: i * each..(i + 1) * each })
    }

    /// `y += fc2(f(fc1(x)))`: x and y `[rows, D]`. The derivatives are kept if wanted: of each hidden unit
    /// by its part of `fc1(x)` and, if the MLP is gated, by its part of `up(x)`; `scratch` is
    /// a buffer.
    pub(super) fn forward(&self, x: Mat, mut y: MatMut, keep: Option<&mut MlpTape>, scratch: &mut MlpScratch) {
        let (rows, d) = (x.rows(), y.cols());
        let stride = row_stride(CHUNK.min(self.hidden()));
        let MlpScratch { hidden, up: ups, rows: packed, derivative: buffer, .. } = scratch;
        let hidden = hidden.grow(rows * stride);
        let (mut keep, mut keep_hidden) =
            keep.map_or((None, None), |MlpTape { derivative, hidden }| (Some(derivative), hidden.as_mut()));
        if let Some(keep) = &mut keep {
            keep.expect(self.kept(rows));
        }
        packed.pack(x, self.fc1.forward());
        for (i, Chunk { units, kept }) in self.chunks(rows).enumerate() {
            let (from, len) = (units.start, units.len());
            let mut derivatives =
                keep.as_deref_mut().map(|keep| keep.room(kept.clone(), buffer).split_at_mut(rows * stride));
            let view = derivatives.as_mut().map(|(by_fc1, _)| MatMut::new(by_fc1, rows, len, stride));
            let layer = self.fc1.forward().part(0..self.fc1.inputs(), units.clone());
            let to = MatMut::new(hidden, rows, len, stride);
            matmul_activate(&*packed, layer, to, &self.fc1.bias()[units.clone()], self.activation, view);
            if let Some(up) = &self.up {
                let layer = up.forward().part(0..up.inputs(), units.clone());
                let ups = ups.grow(rows * stride);
                matmul(&*packed, layer, MatMut::new(ups, rows, len, stride), Init::Bias(&up.bias()[units.clone()]));
                if let Some((by_fc1, by_up)) = &mut derivatives {
                    by_up.copy_from_slice(hidden);
                    by_fc1.iter_mut().zip(&*ups).for_each(|(d, u)| *d *= u);
                }
                hidden.iter_mut().zip(&*ups).for_each(|(h, u)| *h *= u);
            }
            if let Some(keep) = &mut keep {
                keep.keep(kept, buffer);
            }
            if let Some(keep) = &mut keep_hidden {
                let at = i * rows * stride..(i + 1) * rows * stride;
                keep.room(at.clone(), buffer).copy_from_slice(hidden);
                keep.keep(at, buffer);
            }
            let init = if from == 0 { Init::AddBias(self.fc2.bias()) } else { Init::Add };
            matmul(Mat::new(hidden, rows, len, stride), self.fc2.forward().part(units, 0..d), y.columns(0, d), init);
        }
    }

    /// The gradient of x from that of y, both `[rows, D]`, and the derivatives that [`Self::forward`] kept. The gradients of
    /// the layers are added to the given ones, for which x is needed again.
    pub(super) fn vjp(
        &self,
        dy: Mat,
        mut dx: MatMut,
        keep: &MlpTape,
        mut grads: Option<(&mut Folded, Mat)>,
        scratch: &mut MlpScratch,
    ) {
        let (rows, d) = (dy.rows(), dx.cols());
        let stride = row_stride(CHUNK.min(self.hidden()));
        let precision = self.fc1.precision();
        let MlpScratch { hidden, up: ups, rows: packed, derivative: buffer, inputs, units: of_units } = scratch;
        let hidden = hidden.grow(rows * stride);
        packed.pack(dy, self.fc2.backward());
        let mut x_packed = None;
        if let Some((grads, x)) = &mut grads {
            grads.fc2.add(0, dy, None);
            if grads.fc1.is_dense() {
                pack(inputs, *x, precision);
                x_packed = Some(&*inputs);
            }
        }
        for (i, Chunk { units, kept }) in self.chunks(rows).enumerate() {
            let (from, len) = (units.start, units.len());
            if let (Some((grads, _)), Some(kept)) = (&mut grads, &keep.hidden)
                && grads.fc2.is_dense()
            {
                let chunk = kept.read(i * rows * stride..(i + 1) * rows * stride, buffer);
                pack(of_units, Mat::new(chunk, rows, len, stride), precision);
                let all = self.hidden();
                let mut to = MatMut::new(&mut grads.fc2.weight, d, all, all);
                matmul(dy.t(), &*of_units, to.columns(from, len), Init::Add);
            }
            let (by_fc1, by_up) = keep.derivative.read(kept, buffer).split_at(rows * stride);
            let layer = self.fc2.backward().part(0..self.fc2.outputs(), units.clone());
            let init = if from == 0 { Init::Zero } else { Init::Add };
            let Some(up) = &self.up else {
                let derivative = Mat::new(by_fc1, rows, len, stride);
                matmul_scale(&*packed, layer, MatMut::new(hidden, rows, len, stride), derivative);
                if let Some((grads, _)) = &mut grads {
                    grads.fc1.add(from, Mat::new(hidden, rows, len, stride), x_packed);
                }
                let layer = self.fc1.backward().part(units, 0..d);
                matmul(Mat::new(hidden, rows, len, stride), layer, dx.columns(0, d), init);
                continue;
            };
            // The gradient of the hidden units serves both layers.
            matmul(&*packed, layer, MatMut::new(hidden, rows, len, stride), Init::Zero);
            let ups = ups.grow(rows * stride);
            for (((h, u), f), g) in hidden.iter_mut().zip(&mut *ups).zip(by_fc1).zip(by_up) {
                *u = *h * g;
                *h *= f;
            }
            if let Some((grads, _)) = &mut grads {
                let layers = [(&mut grads.fc1, &*hidden)].into_iter().chain(grads.up.as_mut().map(|up| (up, &*ups)));
                layers.for_each(|(layer, dy)| layer.add(from, Mat::new(dy, rows, len, stride), x_packed));
            }
            for (from, layer, init) in [(&*hidden, &self.fc1, init), (&*ups, up, Init::Add)] {
                let layer = layer.backward().part(units.clone(), 0..d);
                matmul(Mat::new(from, rows, len, stride), layer, dx.columns(0, d), init);
            }
        }
    }
}
