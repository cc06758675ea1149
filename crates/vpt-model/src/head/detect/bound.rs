//! The head with its weights packed: forward and VJP of one image.

use super::RawBoxes;
use super::gradients::HeadGrads;
use super::layers::{Conv, Dense, bias_vjp, weight_vjp};
use super::map::{Map, gather};
use super::output::{OutputScratch, TextLayer};
use super::shape::{ClassLayer, DEPTH, DetectRanges, DetectShape, GROUPS};
use crate::head::dense_tensors;
use vpt_base::params::Param;
use vpt_base::{Error, Result};
use vpt_kernel::{
    Activation, GroupNorm, Grow, Init, Mat, MatMut, Panels, Runs, layer_norm, layer_norm_vjp, matmul, row_stride,
};

/// Added to the variance in each LayerNorm of the neck.
pub const LAYER_EPS: f32 = 1e-6;

/// Added to the variance in each GroupNorm.
pub const GROUP_EPS: f32 = 1e-5;

/// Index of the class tower among the towers.
const CLASS: usize = 0;

/// Index of the box tower.
const BOX: usize = 1;

/// A head ready to compute; threads share it, each with a [`Workspace`] of its own.
pub struct BoundDetectHead {
    shape: DetectShape,
    places: DetectRanges,
    /// All tensors, one behind the other.
    values: Vec<f32>,
    training: bool,
    /// For each level `[D, C]`, and for the VJP `[C, D]`, with the norm's scale folded in.
    neck: Vec<Panels>,
    neck_backward: Vec<Panels>,
    /// The neck's bias `[C]` with the norms' shifts folded in.
    neck_bias: Vec<f32>,
    upsample: Option<Dense>,
    /// The first convolutions of both towers, which read one map, then each tower's second.
    first: Conv,
    second: [Conv; 2],
    class: ClassOutput,
    /// Box and quality `[5, C]`.
    boxes: Dense,
}

enum ClassOutput {
    Linear(Dense),
    Text(TextLayer),
}

/// Activations that the VJP of a GroupNorm with its activation needs of the forward pass.
#[derive(Default)]
pub(in crate::head) struct ConvStage {
    pub(in crate::head) x: Vec<f32>,
    pub(in crate::head) derivative: Vec<f32>,
    pub(in crate::head) stats: Vec<f32>,
    /// The result: the neck's as `[N, C]`, a tower's as a padded map.
    pub(in crate::head) out: Vec<f32>,
}

/// Buffers of one thread. [`BoundDetectHead::vjp`] goes back from the [`BoundDetectHead::forward`] called last.
#[derive(Default)]
pub struct Workspace {
    normalized: Vec<f32>,
    inverse: Vec<f32>,
    neck: ConvStage,
    upsampled: Vec<f32>,
    map: Vec<f32>,
    /// Results of both towers' first convolutions, `[rows, 2C]`.
    first: Vec<f32>,
    towers: [[ConvStage; DEPTH]; 2],
    outputs: [OutputScratch; 2],
    panels: Panels,
    /// Gradients: rows of a map, padded maps of each tower, tokens of the neck, rows of features.
    rows: Vec<f32>,
    padded: [Vec<f32>; 2],
    tokens: [Vec<f32>; 2],
    features: Vec<f32>,
}

/// Where the gradient of the features goes.
pub struct FeatureGradients<'a> {
    /// The first level whose gradient is wanted: earlier ones are constants where prompts enter later.
    pub first_level: usize,
    /// Takes the gradient `[levels - first_level, N, D]`; whatever it held is lost.
    pub values: &'a mut [f32],
}

impl DetectShape {
    /// Packs this head's tensors among `params` for prediction. `texts` `[K, E]` are the classes' text embeddings, of any
    /// length, for [`ClassLayer::Text`]; there may be another number of them than in training.
    ///
    /// # Errors
    /// A tensor is missing or has another shape; texts are missing, superfluous, or no whole number of embeddings.
    pub fn bind(&self, params: &[Param], texts: Option<&[f32]>) -> Result<BoundDetectHead> {
        self.pack(params, texts, false)
    }

    /// As [`Self::bind`], with what the VJP needs.
    pub fn bind_for_training(&self, params: &[Param], texts: Option<&[f32]>) -> Result<BoundDetectHead> {
        self.pack(params, texts, true)
    }

    fn pack(&self, params: &[Param], texts: Option<&[f32]>, training: bool) -> Result<BoundDetectHead> {
        self.check()?;
        let places = self.places();
        let values = dense_tensors::values(params, self.tensors())?;
        let (d, c) = (self.width, self.channels);
        let mut neck_bias: Vec<f64> = values[places.neck_bias()].iter().map(|&b| f64::from(b)).collect();
        let (mut neck, mut neck_backward) = (Vec::new(), Vec::new());
        for level in 0..self.levels {
            let (scale, shift) = values[places.level_norm(level)].split_at(d);
            let mut folded = Vec::with_capacity(c * d);
            let weight = &values[places.neck_weight()];
            for (row, bias) in weight.chunks_exact(self.levels * d).zip(&mut neck_bias) {
                let row = &row[level * d..(level + 1) * d];
                folded.extend(row.iter().zip(scale).map(|(w, s)| w * s));
                *bias += row.iter().zip(shift).map(|(&w, &s)| f64::from(w) * f64::from(s)).sum::<f64>();
            }
            let folded = Mat::new(&folded, c, d, d);
            neck.push(Panels::pack(folded.t()));
            if training {
                neck_backward.push(Panels::pack(folded));
            }
        }
        let conv = |tower, i| &values[places.conv(tower, i)];
        let (weight, bias) = (&values[places.class_weight()], &values[places.class_bias()]);
        let class = match (self.classes, texts) {
            (ClassLayer::Linear { .. }, None) => ClassOutput::Linear(Dense::new(weight, bias, training)),
            (ClassLayer::Text { width, .. }, Some(texts)) if !texts.is_empty() && texts.len().is_multiple_of(width) => {
                ClassOutput::Text(TextLayer::new(weight, bias, texts, &values[places.cosine()], training))
            }
            (ClassLayer::Linear { .. }, Some(_)) => {
                return Err(Error::invalid("texts", "the head's classes are fixed: it takes no text embeddings"));
            }
            (ClassLayer::Text { width, .. }, texts) => {
                let n = texts.map_or(0, <[f32]>::len);
                return Err(Error::invalid("texts", format!("{n} values are no text embeddings of width {width}")));
            }
        };
        Ok(BoundDetectHead {
            training,
            neck,
            neck_backward,
            neck_bias: neck_bias.into_iter().map(|b| b as f32).collect(),
            upsample: self
                .upsample
                .then(|| Dense::new(&values[places.upsample_weight()], &values[places.upsample_bias()], training)),
            first: Conv::new(&[conv(CLASS, 0), conv(BOX, 0)], c, training),
            second: [CLASS, BOX].map(|tower| Conv::new(&[conv(tower, 1)], c, training)),
            class,
            boxes: Dense::new(&values[places.box_weight()], &values[places.box_bias()], training),
            shape: *self,
            places,
            values,
        })
    }
}

impl BoundDetectHead {
    /// The head's sizes.
    pub fn shape(&self) -> &DetectShape {
        &self.shape
    }

    /// Number of classes it tells apart, K: with text embeddings, as many as were bound.
    pub fn classes(&self) -> usize {
        match &self.class {
            ClassOutput::Linear(layer) => layer.outputs(),
            ClassOutput::Text(layer) => layer.outputs(),
        }
    }

    fn map(&self) -> Map {
        Map { side: self.shape.side(), channels: self.shape.channels }
    }

    /// The tokens of the neck.
    fn neck_runs(&self) -> Runs {
        let n = self.shape.grid * self.shape.grid;
        Runs { count: 1, len: n, step: n }
    }

    /// The norm whose scale and shift lie in `range`.
    fn norm(&self, range: std::ops::Range<usize>) -> GroupNorm<'_> {
        let (scale, shift) = self.values[range].split_at(self.shape.channels);
        GroupNorm { groups: GROUPS, eps: GROUP_EPS, scale, shift, activation: Activation::Gelu }
    }

    /// Forward pass for an image with `features` `[levels, N, D]`: patch tokens after each block that is read,
    /// row-major.
    ///
    /// # Panics
    /// If there are more or fewer values.
    pub fn forward(&self, features: &[f32], w: &mut Workspace) -> RawBoxes {
        let (map, c) = (self.map(), self.shape.channels);
        self.neck_forward(features, w);
        self.map_forward(w);

        let first = w.first.grow(map.rows() * 2 * c);
        self.first.apply(map, &w.map, first);
        for tower in [CLASS, BOX] {
            let [one, two] = &mut w.towers[tower];
            let x = Mat::new(first, map.rows(), 2 * c, 2 * c).columns(tower * c, c);
            one.norm_map(self.norm(self.places.tower_norm(tower, 0)), map, x);
            let mut x = std::mem::take(&mut two.x);
            self.second[tower].apply(map, &one.out, x.grow(map.rows() * c));
            two.norm_map(self.norm(self.places.tower_norm(tower, 1)), map, Mat::new(&x, map.rows(), c, c));
            two.x = x;
        }

        let [class_scratch, box_scratch] = &mut w.outputs;
        let tower = map.tokens(&w.towers[CLASS][1].out);
        let class = match &self.class {
            ClassOutput::Linear(layer) => layer.tokens(map, tower, class_scratch),
            ClassOutput::Text(layer) => layer.tokens(map, tower, class_scratch),
        };
        let five = self.boxes.tokens(map, map.tokens(&w.towers[BOX][1].out), box_scratch);
        let (five, _) = five.as_chunks::<5>();
        RawBoxes {
            class,
            boxes: five.iter().flat_map(|v| &v[..4]).copied().collect(),
            quality: five.iter().map(|v| v[4]).collect(),
        }
    }

    /// What it compares with text embeddings for an image with `features` `[levels, N, D]`: a vector of length one for each token,
    /// `[T, E]`; none where classes are rows of a layer.
    pub(crate) fn vectors(&self, features: &[f32], w: &mut Workspace) -> Option<Vec<f32>> {
        self.forward(features, w);
        match &self.class {
            ClassOutput::Linear(_) => None,
            ClassOutput::Text(layer) => Some(layer.units(self.map(), &w.outputs[CLASS])),
        }
    }

    fn neck_forward(&self, features: &[f32], w: &mut Workspace) {
        let DetectShape { width: d, levels, channels: c, .. } = self.shape;
        let (runs, stride) = (self.neck_runs(), row_stride(d));
        let n = runs.len;
        assert_eq!(features.len(), levels * n * d, "features of {levels} levels, {n} tokens, {d} values");
        let normalized = w.normalized.grow(levels * n * stride);
        let inverse = w.inverse.grow(levels * n);
        let ConvStage { x, derivative, stats, out } = &mut w.neck;
        let x = x.grow(n * c);
        for level in 0..levels {
            let normalized = &mut normalized[level * n * stride..(level + 1) * n * stride];
            let source = Mat::new(&features[level * n * d..], n, d, d);
            let inverse = &mut inverse[level * n..(level + 1) * n];
            layer_norm(source, LAYER_EPS, &mut MatMut::new(normalized, n, d, stride), inverse);
            let init = if level == 0 { Init::Bias(&self.neck_bias) } else { Init::Add };
            matmul(Mat::new(normalized, n, d, stride), &self.neck[level], MatMut::new(x, n, c, c), init);
        }
        let mut out = MatMut::new(out.grow(n * c), n, c, c);
        let mut derivative = MatMut::new(derivative.grow(n * c), n, c, c);
        let norm = self.norm(self.places.neck_norm());
        norm.forward(Mat::new(x, n, c, c), runs, &mut out, &mut derivative, stats.grow(2 * c));
    }

    /// The padded map that the towers read.
    fn map_forward(&self, w: &mut Workspace) {
        let (map, c, g) = (self.map(), self.shape.channels, self.shape.grid);
        let neck = Mat::new(&w.neck.out, g * g, c, c);
        let padded = map.padded(&mut w.map);
        match &self.upsample {
            None => {
                for (i, token) in w.neck.out[..g * g * c].chunks_exact(c).enumerate() {
                    map.token_mut(padded, i / g, i % g).copy_from_slice(token);
                }
            }
            Some(layer) => {
                let four = w.upsampled.grow(g * g * 4 * c);
                layer.apply(neck, MatMut::new(four, g * g, 4 * c, 4 * c));
                for (i, parts) in four.chunks_exact(4 * c).enumerate() {
                    for (part, token) in parts.chunks_exact(c).enumerate() {
                        let (y, x) = (2 * (i / g) + part / 2, 2 * (i % g) + part % 2);
                        map.token_mut(padded, y, x).copy_from_slice(token);
                    }
                }
            }
        }
    }

    /// From the gradient of what the last [`Self::forward`] with this workspace said: adds those of the head's tensors to
    /// `grads` and, if wanted, writes that of the features.
    ///
    /// # Panics
    /// If this head was not bound for training, or lengths do not fit.
    pub fn vjp(
        &self,
        gradient: &RawBoxes,
        features: Option<FeatureGradients>,
        grads: &mut HeadGrads,
        w: &mut Workspace,
    ) {
        assert!(self.training, "a head that was not bound for training");
        let (map, c, t) = (self.map(), self.shape.channels, self.shape.tokens());
        let lengths = [gradient.class.len(), gradient.boxes.len(), gradient.quality.len(), grads.values.len()];
        assert_eq!(lengths, [t * self.classes(), t * 4, t, self.places.len()], "gradient lengths");
        let to = &mut grads.values;

        for tower in [CLASS, BOX] {
            let [one, two] = &w.towers[tower];
            let rows = w.rows.grow(map.rows() * c);
            let outputs = &mut w.outputs[tower];
            self.output_vjp(tower, map.tokens(&two.out), gradient, to, MatMut::new(rows, map.rows(), c, c), outputs);

            let norm = self.places.tower_norm(tower, 1);
            let x = Mat::new(&two.x, map.rows(), c, c);
            two.norm_map_vjp(self.norm(norm.clone()), map, x, rows, &mut w.padded[tower], &mut to[norm]);
            let dy = &w.padded[tower];
            Conv::weight_vjp(map, &one.out, &[(dy, self.places.conv(tower, 1))], to, &mut w.panels);
            self.second[tower].input_vjp(0, map, dy, rows, false);

            let norm = self.places.tower_norm(tower, 0);
            let x = Mat::new(&w.first, map.rows(), 2 * c, 2 * c).columns(tower * c, c);
            one.norm_map_vjp(self.norm(norm.clone()), map, x, rows, &mut w.padded[tower], &mut to[norm]);
        }
        let rows = w.rows.grow(map.rows() * c);
        let dy = [CLASS, BOX].map(|tower| (w.padded[tower].as_slice(), self.places.conv(tower, 0)));
        for tower in [CLASS, BOX] {
            self.first.input_vjp(tower, map, dy[tower].0, rows, tower > 0);
        }
        Conv::weight_vjp(map, &w.map, &dy, to, &mut w.panels);

        self.map_vjp(to, w);
        self.neck_vjp(features, to, w);
    }

    fn output_vjp(
        &self,
        tower: usize,
        x: Mat,
        gradient: &RawBoxes,
        to: &mut [f32],
        dx: MatMut,
        scratch: &mut OutputScratch,
    ) {
        let (map, places) = (self.map(), &self.places);
        if tower == BOX {
            let both = gradient.boxes.as_chunks::<4>().0.iter().zip(&gradient.quality);
            let five: Vec<f32> = both.flat_map(|(b, &q)| [b[0], b[1], b[2], b[3], q]).collect();
            self.boxes.tokens_vjp(map, x, &five, to, [places.box_weight(), places.box_bias()], dx, scratch);
            return;
        }
        let (weight, bias) = (places.class_weight(), places.class_bias());
        match &self.class {
            ClassOutput::Linear(layer) => {
                layer.tokens_vjp(map, x, &gradient.class, to, [weight, bias], dx, scratch);
            }
            ClassOutput::Text(layer) => {
                let ranges = [weight, bias, places.cosine()];
                layer.tokens_vjp(map, x, &gradient.class, to, ranges, dx, scratch);
            }
        }
    }

    /// From the gradient of the map's rows to that of the neck's tokens, `tokens[0]`.
    fn map_vjp(&self, to: &mut [f32], w: &mut Workspace) {
        let (map, c, g) = (self.map(), self.shape.channels, self.shape.grid);
        let [tokens, _] = &mut w.tokens;
        let Some(layer) = &self.upsample else {
            *tokens = gather(&w.rows, c, map.runs(), c);
            return;
        };
        let four = w.upsampled.grow(g * g * 4 * c);
        for (i, parts) in four.chunks_exact_mut(4 * c).enumerate() {
            for (part, token) in parts.chunks_exact_mut(c).enumerate() {
                token.copy_from_slice(map.token(&w.rows, 2 * (i / g) + part / 2, 2 * (i % g) + part % 2));
            }
        }
        bias_vjp(four, 4 * c, &mut to[self.places.upsample_bias()]);
        let dy = Mat::new(four, g * g, 4 * c, 4 * c);
        let neck = Mat::new(&w.neck.out, g * g, c, c);
        weight_vjp(dy, neck, &mut to[self.places.upsample_weight()], &mut w.panels);
        layer.input_vjp(dy, MatMut::new(tokens.grow(g * g * c), g * g, c, c));
    }

    fn neck_vjp(&self, features: Option<FeatureGradients>, to: &mut [f32], w: &mut Workspace) {
        let DetectShape { width: d, levels, channels: c, .. } = self.shape;
        let (runs, stride) = (self.neck_runs(), row_stride(d));
        let n = runs.len;
        let [gradient, dy] = &mut w.tokens;
        let range = self.places.neck_norm();
        let norm = self.norm(range.clone());
        let ConvStage { x, derivative, stats, .. } = &w.neck;
        let view = |values| Mat::new(values, n, c, c);
        let dy = dy.grow(n * c);
        let dx = &mut MatMut::new(dy, n, c, c);
        norm.vjp(view(x), runs, view(derivative), &stats[..2 * c], view(gradient), dx, &mut to[range]);
        bias_vjp(dy, c, &mut to[self.places.neck_bias()]);

        let weight = &mut to[self.places.neck_weight()];
        let normalized = |level: usize| Mat::new(&w.normalized[level * n * stride..], n, d, stride);
        for (level, weight) in weight.chunks_exact_mut(c * d).enumerate() {
            weight_vjp(view(dy), normalized(level), weight, &mut w.panels);
        }

        let Some(FeatureGradients { first_level, values }) = features else { return };
        let wanted = levels.saturating_sub(first_level);
        assert_eq!(values.len(), wanted * n * d, "feature gradients from level {first_level} of {levels}");
        values.fill(0.);
        for (level, values) in (first_level..levels).zip(values.chunks_exact_mut(n * d)) {
            let g = w.features.grow(n * stride);
            matmul(view(dy), &self.neck_backward[level], MatMut::new(g, n, d, stride), Init::Zero);
            let inverse = &w.inverse[level * n..(level + 1) * n];
            let dx = &mut MatMut::new(values, n, d, d);
            layer_norm_vjp(normalized(level), inverse, Mat::new(g, n, d, stride), dx);
        }
    }

    /// The gradients of the head's tensors, in the order of [`DetectShape::tensors`].
    ///
    /// # Panics
    /// If `grads` is of a head with another shape.
    pub fn gradients(&self, grads: &HeadGrads) -> Vec<Vec<f32>> {
        assert_eq!(grads.values.len(), self.places.len(), "gradients of another head");
        let mut all: Vec<Vec<f32>> =
            self.places.all().iter().map(|range| grads.values[range.clone()].to_vec()).collect();
        // y = W (s x̂ + t) + b: with G = dyᵀ x̂ and g the sum of dy, dW = G s + g t, ds = Σ W G, dt = Σ W g.
        let DetectShape { width: d, levels, channels: c, .. } = self.shape;
        let folded = &grads.values[self.places.neck_weight()];
        let bias = &grads.values[self.places.neck_bias()];
        let weight = &self.values[self.places.neck_weight()];
        for level in 0..levels {
            let (scale, shift) = self.values[self.places.level_norm(level)].split_at(d);
            let (mut d_scale, mut d_shift) = (vec![0.; d], vec![0.; d]);
            for row in 0..c {
                let folded = &folded[(level * c + row) * d..][..d];
                let at = (row * levels + level) * d;
                let to = &mut all[2 * levels][at..at + d];
                for i in 0..d {
                    to[i] = folded[i] * scale[i] + bias[row] * shift[i];
                    d_scale[i] += weight[at + i] * folded[i];
                    d_shift[i] += weight[at + i] * bias[row];
                }
            }
            (all[2 * level], all[2 * level + 1]) = (d_scale, d_shift);
        }
        all
    }
}

impl ConvStage {
    /// Norm and activation of the rows `x` of a map, into the padded map `out`.
    pub(in crate::head) fn norm_map(&mut self, norm: GroupNorm, map: Map, x: Mat) {
        let c = map.channels;
        let out = map.padded(&mut self.out);
        let derivative = self.derivative.grow(map.rows() * c);
        let mut derivative = MatMut::new(derivative, map.rows(), c, c);
        norm.forward(x, map.runs(), &mut map.tokens_mut(out), &mut derivative, self.stats.grow(2 * c));
    }

    /// From the gradient of the map's rows to that of `x`, a padded map in `dx`.
    pub(in crate::head) fn norm_map_vjp(
        &self,
        norm: GroupNorm,
        map: Map,
        x: Mat,
        rows: &[f32],
        dx: &mut Vec<f32>,
        d_affine: &mut [f32],
    ) {
        let c = map.channels;
        let view = |values| Mat::new(values, map.rows(), c, c);
        let dx = &mut map.tokens_mut(map.padded(dx));
        norm.vjp(x, map.runs(), view(&self.derivative), &self.stats[..2 * c], view(rows), dx, d_affine);
    }
}
