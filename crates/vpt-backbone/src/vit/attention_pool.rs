//! Attention pooling, the head of SigLIP (Zhai et al. 2023): one learned query looks at all tokens behind the last norm, and an
//! MLP goes over what it finds.
//!
//! With queries, keys and values of several heads, `x` `[T, D]` the tokens of an image after the last norm and `p` the
//! learned query:
//!
//! ```text
//! h = out(softmax(q(p) k(x)ᵀ / √head_dim) v(x))      features = h + fc2(f(fc1(norm(h))))
//! ```
//!
//! `q(p)` is the same for every image, so it is computed once. The last norm's scale and shift are folded into keys and
//! values, as in a block. Prompts are no keys of it: what they tell an image's own tokens is read there.

use super::attention_maps::mean_of_rows;
use super::block::BlockWeights;
use super::fold::{Folded, Layer, attention_scale, fold, join, part, shifted, unfold};
use super::grads::GradScratch;
use super::linear::Linear;
use super::mlp::{Mlp, MlpScratch, MlpTape};
use super::pool::PooledRows;
use crate::spec::TowerSpec;
use vpt_kernel::attention::AttentionScratch;
use vpt_kernel::{
    Attention, AttentionVjp, Grow, Init, Kept, Mat, MatMut, Precision, layer_norm, layer_norm_vjp, row_stride,
};

/// The tensors of an attention pooling as the checkpoint has them, or the gradients of these.
#[derive(Clone, Debug, Default)]
pub(super) struct AttentionPoolWeights {
    /// The learned query `[D]`.
    pub(super) query: Vec<f32>,
    /// Its layers, as those of a block. The norm before attention is the tower's last and stands there, not here.
    pub(super) layers: BlockWeights,
}

/// An attention pooling, ready to run. A copy shares the packed weights.
#[derive(Clone)]
pub(super) struct AttentionPool {
    heads: usize,
    eps: f32,
    precision: Precision,
    /// `q(p) / √head_dim`, `[D]`.
    query: Vec<f32>,
    kv: Linear,
    out: Linear,
    mlp: Mlp,
}

/// What its VJP needs of a forward pass, and buffers.
#[derive(Default)]
pub(super) struct AttentionPoolTape {
    /// Keys and values of all rows, `[rows, 2D]`.
    kv: Vec<f32>,
    probabilities: Kept,
    /// What attention gave, `[images, D]`.
    mixed: Vec<f32>,
    normalized: Vec<f32>,
    inverse: Vec<f32>,
    mlp: MlpTape,
    /// `[images, D]`: h, then the features; back, their gradients.
    hidden: Vec<f32>,
    gradient: Vec<f32>,
    dkv: Vec<f32>,
    attention: AttentionScratch,
    mlp_scratch: MlpScratch,
    grads: GradScratch,
}

impl AttentionPoolTape {
    /// Keeps, from the next forward pass on, what the gradients of weights need, or does not.
    pub(super) fn keep_inputs(&mut self, keep: bool) {
        self.mlp.keep_hidden(keep, Precision::F32);
    }
}

impl AttentionPool {
    /// What the query looked at in the forward pass over one image that `tape` is of: for each of its `own` rows the mean of
    /// the heads' probabilities.
    pub(super) fn attended(&self, own: usize, tape: &AttentionPoolTape) -> Vec<f32> {
        let len = self.heads * row_stride(own);
        mean_of_rows(tape.probabilities.read(0..len, &mut Vec::new()), own)
    }
}

impl AttentionPoolWeights {
    /// Everything folded that the tower's last norm and the pooling's own go into; the biases alone unless `dense`. The bias
    /// of the queries stands for the query that they are: no image's tokens go through that layer.
    pub(super) fn folded(&self, spec: &TowerSpec, post_norm: &[Vec<f32>; 2], dense: bool) -> Folded {
        let BlockWeights { qkv: [(weight, bias), k, v], out, norm2, fc1, fc2, .. } = &self.layers;
        let rows = weight.chunks_exact(spec.width).zip(bias);
        let query = rows.map(|(row, &bias)| attention_scale(spec) * shifted(row, bias, &self.query)).collect();
        let plain = |(weight, bias): &(Vec<f32>, Vec<f32>)| Layer {
            weight: if dense { weight.clone() } else { Vec::new() },
            bias: bias.clone(),
        };
        Folded {
            q: Layer { weight: Vec::new(), bias: query },
            kv: join(fold(k, post_norm, dense), fold(v, post_norm, dense)),
            out: plain(out),
            fc1: fold(fc1, norm2, dense),
            up: None,
            fc2: plain(fc2),
        }
    }

    /// The gradients of these weights from those of the folded ones; adds those of the tower's last norm to `d_post_norm`.
    pub(super) fn unfold(
        &self,
        grads: Folded,
        spec: &TowerSpec,
        post_norm: &[Vec<f32>; 2],
        d_post_norm: &mut [Vec<f32>; 2],
    ) -> Self {
        let BlockWeights { qkv: [(weight, _), k, v], norm2, fc1, .. } = &self.layers;
        let dense = grads.fc1.is_dense();
        let Folded { q, kv, out, fc1: d_fc1, fc2, .. } = grads;
        let (d_k, d_v) = part(kv, spec.width);
        let mut d_norm2 = norm2.each_ref().map(|values| vec![0.0; values.len()]);
        let d_k = unfold(d_k, k, post_norm, 1.0, d_post_norm);
        let d_v = unfold(d_v.unwrap_or_default(), v, post_norm, 1.0, d_post_norm);
        let d_fc1 = unfold(d_fc1, fc1, norm2, 1.0, &mut d_norm2);
        let d_q: Vec<f32> = q.bias.iter().map(|gradient| gradient * attention_scale(spec)).collect();
        let mut d_weight = Vec::new();
        let mut d_query = vec![0.0; self.query.len()];
        for (&d_q, row) in d_q.iter().zip(weight.chunks_exact(spec.width)) {
            d_query.iter_mut().zip(row).for_each(|(to, weight)| *to += d_q * weight);
            if dense {
                d_weight.extend(self.query.iter().map(|value| d_q * value));
            }
        }
        let layers = BlockWeights {
            qkv: [(d_weight, d_q), d_k, d_v],
            out: (out.weight, out.bias),
            norm2: d_norm2,
            fc1: d_fc1,
            fc2: (fc2.weight, fc2.bias),
            ..BlockWeights::default()
        };
        Self { query: d_query, layers }
    }
}

impl AttentionPool {
    pub(super) fn new(
        spec: &TowerSpec,
        weights: &AttentionPoolWeights,
        post_norm: &[Vec<f32>; 2],
        precision: Precision,
    ) -> Self {
        let Folded { q, kv, out, fc1, fc2, .. } = weights.folded(spec, post_norm, true);
        let linear = |Layer { weight, bias }| Linear::new(&weight, bias, precision);
        let mlp = Mlp::new(linear(fc1), None, linear(fc2), spec.activation);
        let (heads, eps) = (spec.heads, spec.eps);
        Self { heads, eps, precision, query: q.bias, kv: linear(kv), out: linear(out), mlp }
    }

    /// The same with the biases of `weights`, shifts of norms included; all else is as it was.
    pub(super) fn with_biases(
        &self,
        spec: &TowerSpec,
        weights: &AttentionPoolWeights,
        post_norm: &[Vec<f32>; 2],
    ) -> Self {
        let Folded { q, kv, out, fc1, fc2, .. } = weights.folded(spec, post_norm, false);
        Self {
            query: q.bias,
            kv: self.kv.with_bias(kv.bias),
            out: self.out.with_bias(out.bias),
            mlp: self.mlp.with_biases(fc1.bias, None, fc2.bias),
            ..self.clone()
        }
    }

    /// Zeros for the gradients of the folded layers; of biases alone unless `dense`.
    pub(super) fn zero_grads(spec: &TowerSpec, dense: bool) -> Folded {
        let spec = TowerSpec { gated: false, ..spec.clone() };
        let zeros = Folded::zeros(&spec, dense);
        Folded { q: Layer { weight: Vec::new(), bias: vec![0.0; spec.width] }, ..zeros }
    }

    /// Bytes of the weights.
    pub(super) fn weight_bytes(&self) -> usize {
        self.kv.bytes() + self.out.bytes() + self.mlp.weight_bytes()
    }

    /// Bytes that a pass over `rows` rows of so many `images` keeps and works in.
    pub(super) fn workspace_bytes(&self, rows: usize, images: usize) -> usize {
        let d = self.query.len();
        let values = 2 * rows * row_stride(2 * d) + self.heads * images * row_stride(rows / images.max(1));
        (values + images * (4 * row_stride(d) + self.mlp.kept(1))) * size_of::<f32>() + self.mlp.scratch_bytes(images)
    }

    /// One image's attention: its rows' keys and values from row `start` on, `own` of them.
    fn call<'a>(&'a self, kv: &'a [f32], start: usize, own: usize) -> Attention<'a> {
        let d = self.query.len();
        let stride = row_stride(2 * d);
        Attention {
            heads: self.heads,
            queries: Mat::new(&self.query, 1, d, d),
            keys_values: Mat::new(&kv[start * stride..], own, 2 * d, stride),
            prompts: None,
            causal: false,
            precision: self.precision,
        }
    }

    /// Features `[images, D]` of `normalized` rows, at stride [`row_stride`]`(D)`, of which each image's own are read.
    pub(super) fn forward(&self, normalized: &[f32], rows: PooledRows, tape: &mut AttentionPoolTape) -> Vec<f32> {
        let d = self.query.len();
        let (stride, kv_stride) = (row_stride(d), row_stride(2 * d));
        let (images, all) = (rows.images, rows.all());
        let AttentionPoolTape { kv, probabilities, mixed, normalized: of_hidden, inverse, mlp, hidden, .. } = tape;
        let kv = kv.grow(all * kv_stride);
        self.kv.apply(Mat::new(normalized, all, d, stride), MatMut::new(kv, all, 2 * d, kv_stride));
        let mixed = mixed.grow(images * stride);
        let mut kept = 0;
        for (image, mixed) in mixed.chunks_exact_mut(stride).enumerate() {
            let call = self.call(kv, image * rows.each, rows.own);
            let keep = Some((&mut *probabilities, kept));
            call.forward(&mut MatMut::new(mixed, 1, d, stride), keep, &mut tape.attention);
            kept += call.probability_len();
        }
        let hidden = hidden.grow(images * stride);
        self.out.apply(Mat::new(mixed, images, d, stride), MatMut::new(hidden, images, d, stride));
        let of_hidden = of_hidden.grow(images * stride);
        let view = &mut MatMut::new(of_hidden, images, d, stride);
        layer_norm(Mat::new(hidden, images, d, stride), self.eps, view, inverse.grow(images));
        let to = MatMut::new(hidden, images, d, stride);
        self.mlp.forward(Mat::new(of_hidden, images, d, stride), to, Some(mlp), &mut tape.mlp_scratch);
        hidden.chunks_exact(stride).flat_map(|row| &row[..d]).copied().collect()
    }

    /// The VJP of [`Self::forward`] over the same rows: writes the gradient of the normalised rows to `d_rows` and adds those
    /// of the layers to `grads`.
    pub(super) fn vjp(
        &self,
        d_features: &[f32],
        normalized: &[f32],
        rows: PooledRows,
        tape: &mut AttentionPoolTape,
        d_rows: &mut Vec<f32>,
        mut grads: Option<&mut Folded>,
    ) {
        let d = self.query.len();
        let (stride, kv_stride) = (row_stride(d), row_stride(2 * d));
        let (images, all) = (rows.images, rows.all());
        let AttentionPoolTape { kv, probabilities, mixed, normalized: of_hidden, inverse, mlp, .. } = tape;
        let AttentionPoolTape { hidden, gradient, dkv, attention, mlp_scratch, grads: grad_scratch, .. } = tape;

        let hidden = hidden.grow(images * stride);
        for (to, from) in hidden.chunks_exact_mut(stride).zip(d_features.chunks_exact(d)) {
            to[..d].copy_from_slice(from);
        }
        let gradient = gradient.grow(images * stride);
        let of_hidden = Mat::new(of_hidden, images, d, stride);
        let of_mlp = grads.as_deref_mut().map(|grads| (grads, of_hidden));
        let to = MatMut::new(gradient, images, d, stride);
        self.mlp.vjp(Mat::new(hidden, images, d, stride), to, mlp, of_mlp, mlp_scratch);
        let from = Mat::new(gradient, images, d, stride);
        layer_norm_vjp(of_hidden, &inverse[..images], from, &mut MatMut::new(hidden, images, d, stride));

        let d_hidden = Mat::new(hidden, images, d, stride);
        if let Some(grads) = grads.as_deref_mut() {
            grad_scratch.add(&mut grads.out, d_hidden, Some(Mat::new(mixed, images, d, stride)), self.precision);
        }
        self.out.vjp(d_hidden, MatMut::new(gradient, images, d, stride), Init::Zero);
        // Rows behind an image's own are prompts, which nothing has read.
        let dkv = dkv.zeroed(all * kv_stride);
        let mut dq = vec![0.0; d];
        let mut kept = 0;
        for (image, gradient) in gradient.chunks_exact(stride).enumerate() {
            let start = image * rows.each;
            let call = self.call(kv, start, rows.own);
            let mut of_query = MatMut::new(&mut dq, 1, d, d);
            let mut of_rows = MatMut::new(&mut dkv[start * kv_stride..], rows.own, 2 * d, kv_stride);
            let to = AttentionVjp { tokens: Some((&mut of_query, &mut of_rows)), prompts: None };
            call.vjp((probabilities, kept), Mat::new(gradient, 1, d, stride), to, attention);
            kept += call.probability_len();
            if let Some(grads) = grads.as_deref_mut() {
                grads.q.bias.iter_mut().zip(&dq).for_each(|(sum, part)| *sum += part);
            }
        }
        let dkv = Mat::new(dkv, all, 2 * d, kv_stride);
        if let Some(grads) = grads {
            grad_scratch.add(&mut grads.kv, dkv, Some(Mat::new(normalized, all, d, stride)), self.precision);
        }
        self.kv.vjp(dkv, MatMut::new(d_rows.grow(all * stride), all, d, stride), Init::Zero);
    }
}
