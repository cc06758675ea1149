//! How norms, layer scale and attention's scale go into the layers of a block, and how gradients come out of them again.
//!
//! With W `[out, in]` and b of the checkpoint, scale g and shift h of the norm before, and a factor s for each output
//! (layer scale, attention's `1/√head_dim`), a block multiplies with `W' = s W g` and `b' = s (b + W h)`. From the
//! gradients of W' and b':
//!
//! ```text
//! dW = s (dW' g + db' h)      dg = Σ_out s W dW'      ds = Σ_in W g dW' + db' (b + W h)
//! db = s db'                  dh = Σ_out s W db'
//! ```

use super::block::BlockWeights;
use crate::spec::TowerSpec;
use vpt_kernel::{DEPTH, Init, Mat, MatMut, Panels, Precision, add_rows, matmul};

/// Weight `[out, in]` and bias `[out]` of a layer, or the gradients of both. An empty weight stands for a gradient that is
/// not wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layer {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

impl Layer {
    /// Zeros for the gradient of a layer; of its bias alone unless `dense`.
    fn zeros(out: usize, inputs: usize, dense: bool) -> Self {
        Self { weight: vec![0.0; if dense { out * inputs } else { 0 }], bias: vec![0.0; out] }
    }

    /// Adds the gradients of outputs from `from` on, as many as `dy` `[rows, n]` has columns; `x` `[rows, in]` is what went
    /// into the layer, packed. Sums go over the rows in their order.
    pub(super) fn add(&mut self, from: usize, dy: Mat, x: Option<&Panels>) {
        add_rows(dy, &mut self.bias[from..from + dy.cols()]);
        if let Some(x) = x {
            let (n, inputs) = (dy.cols(), x.n());
            let to = &mut self.weight[from * inputs..(from + n) * inputs];
            matmul(dy.t(), x, MatMut::new(to, n, inputs, inputs), Init::Add);
        }
    }

    /// Whether the gradient of the weight is wanted.
    pub(super) fn is_dense(&self) -> bool {
        !self.weight.is_empty()
    }

    fn add_all(&mut self, other: &Self) {
        for (a, b) in [(&mut self.weight, &other.weight), (&mut self.bias, &other.bias)] {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        }
    }
}

/// Packs `x` `[rows, n]` as the right-hand side of a weight's gradient.
pub(super) fn pack(panels: &mut Panels, x: Mat, precision: Precision) {
    panels.reset_as(x.rows(), x.cols(), precision);
    panels.fill(0, 0, x);
}

/// Bytes of such a packed copy.
pub(super) fn packed_bytes(rows: usize, n: usize) -> usize {
    (rows + DEPTH) * n * size_of::<f32>()
}

/// The layers of a block with everything folded in, or the gradients of these.
#[derive(Clone, Debug, Default)]
pub(crate) struct Folded {
    pub(crate) q: Layer,
    /// Keys, then values.
    pub(crate) kv: Layer,
    pub(crate) out: Layer,
    pub(crate) fc1: Layer,
    /// The linear branch of a gated MLP, which its hidden units are multiplied by.
    pub(crate) up: Option<Layer>,
    pub(crate) fc2: Layer,
}

/// `1/√head_dim`, which queries are multiplied by.
pub(super) fn attention_scale(spec: &TowerSpec) -> f32 {
    1.0 / (spec.head_dim() as f32).sqrt()
}

/// `b + W h` for one output.
pub(super) fn shifted(row: &[f32], bias: f32, shift: &[f32]) -> f32 {
    let sum: f64 = row.iter().zip(shift).map(|(&w, &s)| f64::from(w) * f64::from(s)).sum();
    (f64::from(bias) + sum) as f32
}

pub(super) fn fold((weight, bias): &(Vec<f32>, Vec<f32>), [scale, shift]: &[Vec<f32>; 2], dense: bool) -> Layer {
    let rows = weight.chunks_exact(scale.len());
    let bias = rows.clone().zip(bias).map(|(row, &b)| shifted(row, b, shift)).collect();
    let weight =
        if dense { rows.flat_map(|row| row.iter().zip(scale).map(|(w, s)| w * s)).collect() } else { Vec::new() };
    Layer { weight, bias }
}

fn scale_rows(layer: &mut Layer, scale: impl Fn(usize) -> f32) {
    let inputs = layer.weight.len() / layer.bias.len();
    for (i, b) in layer.bias.iter_mut().enumerate() {
        let s = scale(i);
        layer.weight[i * inputs..(i + 1) * inputs].iter_mut().for_each(|w| *w *= s);
        *b *= s;
    }
}

pub(super) fn join(a: Layer, b: Layer) -> Layer {
    Layer { weight: [a.weight, b.weight].concat(), bias: [a.bias, b.bias].concat() }
}

/// The first `n` outputs, and the others.
pub(super) fn part(mut layer: Layer, n: usize) -> (Layer, Option<Layer>) {
    if layer.bias.len() <= n {
        return (layer, None);
    }
    let inputs = layer.weight.len() / layer.bias.len();
    let rest = Layer { weight: layer.weight.split_off(n * inputs), bias: layer.bias.split_off(n) };
    (layer, Some(rest))
}

/// Queries, and keys with values, of a block; their biases alone unless `dense`.
pub(super) fn fold_qkv(spec: &TowerSpec, weights: &BlockWeights, dense: bool) -> [Layer; 2] {
    let [mut q, k, v] = weights.qkv.each_ref().map(|layer| fold(layer, &weights.norm1, dense));
    scale_rows(&mut q, |_| attention_scale(spec));
    [q, join(k, v)]
}

impl Folded {
    /// The folded layers of a block of these weights; the biases alone unless `dense`.
    pub(super) fn of(spec: &TowerSpec, weights: &BlockWeights, dense: bool) -> Self {
        let [q, kv] = fold_qkv(spec, weights, dense);
        let (fc1, up) = part(fold(&weights.fc1, &weights.norm2, dense), spec.mlp);
        let plain = |(weight, bias): &(Vec<f32>, Vec<f32>)| Layer {
            weight: if dense { weight.clone() } else { Vec::new() },
            bias: bias.clone(),
        };
        let (mut out, mut fc2) = (plain(&weights.out), plain(&weights.fc2));
        if let Some([s1, s2]) = &weights.layer_scale {
            scale_rows(&mut out, |i| s1[i]);
            scale_rows(&mut fc2, |i| s2[i]);
        }
        Self { q, kv, out, fc1, up, fc2 }
    }

    /// Zeros for the gradients; of the biases alone unless `dense`.
    pub(super) fn zeros(spec: &TowerSpec, dense: bool) -> Self {
        let (d, mlp) = (spec.width, spec.mlp);
        let zeros = |out, inputs| Layer::zeros(out, inputs, dense);
        let up = spec.gated.then(|| zeros(mlp, d));
        Self { q: zeros(d, d), kv: zeros(2 * d, d), out: zeros(d, d), fc1: zeros(mlp, d), up, fc2: zeros(d, mlp) }
    }

    /// Adds another thread's gradients.
    pub(super) fn add(&mut self, other: &Self) {
        let Self { q, kv, out, fc1, up, fc2 } = self;
        let pairs = [(q, &other.q), (kv, &other.kv), (out, &other.out), (fc1, &other.fc1), (fc2, &other.fc2)];
        pairs.into_iter().chain(up.as_mut().zip(other.up.as_ref())).for_each(|(a, b)| a.add_all(b));
    }

    /// The gradients of the `weights` themselves from these. Without dense gradients only biases have one, shifts of norms
    /// included; the other values are empty then.
    pub(super) fn unfold(self, spec: &TowerSpec, weights: &BlockWeights) -> BlockWeights {
        let Self { q, kv, out, fc1, up, fc2 } = self;
        let mut grads = BlockWeights {
            norm1: zeros_like(&weights.norm1),
            norm2: zeros_like(&weights.norm2),
            ..BlockWeights::default()
        };
        let (k, v) = part(kv, spec.width);
        let scales = [attention_scale(spec), 1.0, 1.0];
        for (i, layer) in [q, k, v.unwrap_or_default()].into_iter().enumerate() {
            grads.qkv[i] = unfold(layer, &weights.qkv[i], &weights.norm1, scales[i], &mut grads.norm1);
        }
        let fc1 = if let Some(up) = up { join(fc1, up) } else { fc1 };
        grads.fc1 = unfold(fc1, &weights.fc1, &weights.norm2, 1.0, &mut grads.norm2);
        let scales = weights.layer_scale.as_ref();
        let mut layer_scale = [Vec::new(), Vec::new()];
        for (i, (grad, weight, to)) in
            [(out, &weights.out, &mut grads.out), (fc2, &weights.fc2, &mut grads.fc2)].into_iter().enumerate()
        {
            let scale = scales.map(|scales| &scales[i][..]);
            (*to, layer_scale[i]) = unscale(grad, weight, scale);
        }
        grads.layer_scale = weights.layer_scale.as_ref().map(|_| layer_scale);
        grads
    }
}

fn zeros_like(norm: &[Vec<f32>; 2]) -> [Vec<f32>; 2] {
    norm.each_ref().map(|values| vec![0.0; values.len()])
}

/// The gradient of a layer behind a norm; adds that of the norm to `d_norm`.
pub(super) fn unfold(
    grad: Layer,
    (weight, _): &(Vec<f32>, Vec<f32>),
    [scale, shift]: &[Vec<f32>; 2],
    factor: f32,
    [d_scale, d_shift]: &mut [Vec<f32>; 2],
) -> (Vec<f32>, Vec<f32>) {
    let Layer { weight: mut dw, bias: mut db } = grad;
    let inputs = scale.len();
    for (out, (db, row)) in db.iter_mut().zip(weight.chunks_exact(inputs)).enumerate() {
        *db *= factor;
        d_shift.iter_mut().zip(row).for_each(|(d, w)| *d += w * *db);
        let Some(dw) = dw.get_mut(out * inputs..(out + 1) * inputs) else { continue };
        for (i, dw) in dw.iter_mut().enumerate() {
            d_scale[i] += factor * row[i] * *dw;
            *dw = factor * *dw * scale[i] + *db * shift[i];
        }
    }
    (dw, db)
}

/// The gradient of a layer behind no norm, and that of the layer scale behind it.
fn unscale(
    grad: Layer,
    (weight, bias): &(Vec<f32>, Vec<f32>),
    scale: Option<&[f32]>,
) -> ((Vec<f32>, Vec<f32>), Vec<f32>) {
    let Layer { weight: mut dw, bias: mut db } = grad;
    let Some(scale) = scale else { return ((dw, db), Vec::new()) };
    if dw.is_empty() {
        db.iter_mut().zip(scale).for_each(|(db, s)| *db *= s);
        return ((dw, db), Vec::new());
    }
    let inputs = weight.len() / bias.len();
    let mut d_scale = vec![0.0; scale.len()];
    for (i, (dw, w)) in dw.chunks_exact_mut(inputs).zip(weight.chunks_exact(inputs)).enumerate() {
        let along: f32 = dw.iter().zip(w).map(|(d, w)| d * w).sum();
        d_scale[i] = along + db[i] * bias[i];
        for d in dw.iter_mut() {
            *d *= scale[i];
        }
        db[i] *= scale[i];
    }
    ((dw, db), d_scale)
}
