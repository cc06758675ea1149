//! A frozen linear layer, packed once for the forward product and, if it is ever trained through, once for the VJP.

use std::sync::OnceLock;

use crate::kernel::{Init, Mat, MatMut, Panels, matmul};

/// `y = x Wᵀ + b` with W `[out, in]`, b `[out]`. There is no weight gradient: the weights never change.
pub(crate) struct Linear {
    forward: Panels,
    bias: Vec<f32>,
    /// W as right-hand side of the VJP; made from `forward` when first needed.
    backward: OnceLock<Panels>,
}

impl Linear {
    /// Packs `weight` `[out, in]`, row-major; `bias` has `out` values.
    pub(crate) fn new(weight: &[f32], bias: Vec<f32>) -> Self {
        let (out, inputs) = (bias.len(), weight.len() / bias.len().max(1));
        Self { forward: Panels::pack(Mat::new(weight, out, inputs, inputs).t()), bias, backward: OnceLock::new() }
    }

    /// Width of the input.
    pub(crate) fn inputs(&self) -> usize {
        self.forward.k()
    }

    /// Width of the output.
    pub(crate) fn outputs(&self) -> usize {
        self.forward.n()
    }

    /// `y = x Wᵀ + b`: x `[rows, in]`, y `[rows, out]`.
    pub(crate) fn apply(&self, x: Mat, y: MatMut) {
        matmul(x, &self.forward, y, Init::Bias(&self.bias));
    }

    /// `y += x Wᵀ + b`.
    pub(crate) fn add(&self, x: Mat, y: MatMut) {
        matmul(x, &self.forward, y, Init::AddBias(&self.bias));
    }

    /// `dx = dy W` (with [`Init::Add`]: `dx += dy W`): dy `[rows, out]`, dx `[rows, in]`.
    pub(crate) fn vjp(&self, dy: Mat, dx: MatMut, init: Init) {
        matmul(dy, self.backward(), dx, init);
    }

    /// The bias `[out]`.
    pub(crate) fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// Wᵀ `[in, out]`, packed.
    pub(crate) fn forward(&self) -> &Panels {
        &self.forward
    }

    /// W `[out, in]`, packed.
    pub(crate) fn backward(&self) -> &Panels {
        self.backward.get_or_init(|| {
            // `unpack` gives Wᵀ [in, out]; its transposed view is W.
            let weight = self.forward.unpack();
            let (inputs, outputs) = (self.inputs(), self.outputs());
            Panels::pack(Mat::new(&weight, inputs, outputs, outputs).t())
        })
    }
}
