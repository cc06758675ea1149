//! A linear layer, packed once. The VJP reads the same copy the other way round.

use std::sync::Arc;

use vpt_kernel::{Init, Mat, MatMut, PanelRange, Panels, Precision, matmul};

/// `y = x Wᵀ + b` with W `[out, in]`, b `[out]`. A layer whose weights are tuned is made anew when they have changed.
#[derive(Clone)]
pub(crate) struct Linear {
    /// Wᵀ `[in, out]`, shared with layers that differ in their bias only.
    weight: Arc<Panels>,
    bias: Vec<f32>,
}

impl Linear {
    /// Packs `weight` `[out, in]`, row-major; `bias` has `out` values.
    pub(crate) fn new(weight: &[f32], bias: Vec<f32>, precision: Precision) -> Self {
        let (out, inputs) = (bias.len(), weight.len() / bias.len().max(1));
        Self { weight: Arc::new(Panels::pack_as(Mat::new(weight, out, inputs, inputs).t(), precision)), bias }
    }

    /// The same weight with another bias.
    pub(crate) fn with_bias(&self, bias: Vec<f32>) -> Self {
        Self { weight: self.weight.clone(), bias }
    }

    /// Width of the input.
    pub(crate) fn inputs(&self) -> usize {
        self.weight.k()
    }

    /// Width of the output.
    pub(crate) fn outputs(&self) -> usize {
        self.weight.n()
    }

    /// `y = x Wᵀ + b`: x `[rows, in]`, y `[rows, out]`.
    pub(crate) fn apply(&self, x: Mat, y: MatMut) {
        matmul(x, &*self.weight, y, Init::Bias(&self.bias));
    }

    /// `y += x Wᵀ + b`.
    pub(crate) fn add(&self, x: Mat, y: MatMut) {
        matmul(x, &*self.weight, y, Init::AddBias(&self.bias));
    }

    /// `dx = dy W` (with [`Init::Add`]: `dx += dy W`): dy `[rows, out]`, dx `[rows, in]`.
    pub(crate) fn vjp(&self, dy: Mat, dx: MatMut, init: Init) {
        matmul(dy, self.backward(), dx, init);
    }

    /// Number format of the weight.
    pub(crate) fn precision(&self) -> Precision {
        self.weight.precision()
    }

    /// Bytes of the weight.
    pub(crate) fn bytes(&self) -> usize {
        self.weight.bytes()
    }

    /// The bias `[out]`.
    pub(crate) fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// Wᵀ `[in, out]`, packed.
    pub(crate) fn forward(&self) -> &Panels {
        &self.weight
    }

    /// W `[out, in]`, packed.
    pub(crate) fn backward(&self) -> PanelRange<'_> {
        self.weight.t()
    }
}
