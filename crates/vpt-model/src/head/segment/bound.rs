//! The head with its weights packed: forward and VJP of one window.

use super::shape::{CELLS, DEPTH, DecodeHead, SegmentRanges, SegmentShape};
use crate::head::dense_tensors;
use crate::head::detect::bound::ConvStage;
use crate::head::detect::layers::{Conv, Dense, bias_vjp, weight_vjp};
use crate::head::detect::map::{Map, gather};
use crate::head::detect::output::OutputScratch;
use crate::head::detect::{FeatureGradients, GROUP_EPS, GROUPS, LAYER_EPS};
use vpt_base::{Result, params::Param};
use vpt_kernel::{Activation, GroupNorm, Grow, Mat, MatMut, Panels, Runs, layer_norm, layer_norm_vjp, row_stride};

/// A head ready to compute; threads share it, each with a [`SegmentWorkspace`] of its own.
pub struct BoundSegmentHead {
    shape: SegmentShape,
    places: SegmentRanges,
    /// All tensors, one behind the other.
    values: Vec<f32>,
    training: bool,
    /// What a head of several blocks has before its last layer.
    tower: Option<ConvTower>,
    class: Dense,
}

struct ConvTower {
    neck: Dense,
    convs: [Conv; DEPTH],
}

/// Buffers of one thread. [`BoundSegmentHead::vjp`] goes back from the [`BoundSegmentHead::forward`] called last.
#[derive(Default)]
pub struct SegmentWorkspace {
    /// `[N, levels D]`, and one over the standard deviation of each token.
    normalized: Vec<f32>,
    inverse: Vec<f32>,
    neck: ConvStage,
    map: Vec<f32>,
    tower: [ConvStage; DEPTH],
    output: OutputScratch,
    panels: Panels,
    rows: Vec<f32>,
    padded: Vec<f32>,
    tokens: Vec<f32>,
    features: Vec<f32>,
}

impl SegmentShape {
    /// Packs this head's tensors among `params` for prediction.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn bind(&self, params: &[Param]) -> Result<BoundSegmentHead> {
        self.pack(params, false)
    }

    /// As [`Self::bind`], with what the VJP needs.
    pub fn bind_for_training(&self, params: &[Param]) -> Result<BoundSegmentHead> {
        self.pack(params, true)
    }

    fn pack(&self, params: &[Param], training: bool) -> Result<BoundSegmentHead> {
        self.check()?;
        let places = self.places();
        let values = dense_tensors::values(params, self.tensors())?;
        let dense = |[weight, bias]: [std::ops::Range<usize>; 2]| Dense::new(&values[weight], &values[bias], training);
        let tower = (self.kind == DecodeHead::MultiBlock).then(|| ConvTower {
            neck: dense(places.neck()),
            convs: [0, 1].map(|i| Conv::new(&[&values[places.conv(i)]], self.channels, training)),
        });
        let class = dense(places.class());
        Ok(BoundSegmentHead { shape: *self, training, tower, class, places, values })
    }
}

impl BoundSegmentHead {
    /// The head's sizes.
    pub fn shape(&self) -> &SegmentShape {
        &self.shape
    }

    fn map(&self) -> Map {
        Map { side: self.shape.grid, channels: self.shape.channels }
    }

    /// Tokens of a window.
    fn tokens(&self) -> usize {
        self.shape.grid * self.shape.grid
    }

    /// The norm whose scale and shift lie in `range`.
    fn norm(&self, range: std::ops::Range<usize>) -> GroupNorm<'_> {
        let (scale, shift) = self.values[range].split_at(self.shape.channels);
        GroupNorm { groups: GROUPS, eps: GROUP_EPS, scale, shift, activation: Activation::Gelu }
    }

    /// Logits `[M, M, K]` of a window with `features` `[levels, N, D]`: patch tokens after each block that is read, row-major.
    ///
    /// # Panics
    /// If there are more or fewer values.
    pub fn forward(&self, features: &[f32], w: &mut SegmentWorkspace) -> Vec<f32> {
        let SegmentShape { width: d, levels, channels: c, classes: k, .. } = self.shape;
        let n = self.tokens();
        assert_eq!(features.len(), levels * n * d, "features of {levels} levels, {n} tokens, {d} values");
        let wide = row_stride(levels * d);
        let normalized = w.normalized.grow(n * wide);
        let Some(ConvTower { neck, convs }) = &self.tower else {
            let (mean, scale) = self.values[self.places.norm()].split_at(d);
            for (token, to) in features.chunks_exact(d).zip(normalized.chunks_exact_mut(wide)) {
                for (((to, value), mean), scale) in to.iter_mut().zip(token).zip(mean).zip(scale) {
                    *to = (value - mean) * scale;
                }
            }
            let stride = row_stride(k);
            let rows = w.rows.grow(n * stride);
            self.class.apply(Mat::new(normalized, n, d, wide), MatMut::new(rows, n, k, stride));
            return gather(rows, stride, Runs { count: 1, len: n, step: n }, k);
        };
        let inverse = w.inverse.grow(levels * n);
        for level in 0..levels {
            let source = Mat::new(&features[level * n * d..], n, d, d);
            let inverse = &mut inverse[level * n..(level + 1) * n];
            layer_norm(source, LAYER_EPS, &mut MatMut::new(&mut normalized[level * d..], n, d, wide), inverse);
        }
        let ConvStage { x, derivative, stats, out } = &mut w.neck;
        let x = x.grow(n * c);
        neck.apply(Mat::new(normalized, n, levels * d, wide), MatMut::new(x, n, c, c));
        let runs = Runs { count: 1, len: n, step: n };
        let mut derivative = MatMut::new(derivative.grow(n * c), n, c, c);
        let mut to = MatMut::new(out.grow(n * c), n, c, c);
        let norm = self.norm(self.places.neck_norm());
        norm.forward(Mat::new(x, n, c, c), runs, &mut to, &mut derivative, stats.grow(2 * c));

        let (map, g) = (self.map(), self.shape.grid);
        let padded = map.padded(&mut w.map);
        for (i, token) in w.neck.out[..n * c].chunks_exact(c).enumerate() {
            map.token_mut(padded, i / g, i % g).copy_from_slice(token);
        }
        for (i, conv) in convs.iter().enumerate() {
            let (before, rest) = w.tower.split_at_mut(i);
            let source = before.last().map_or(&w.map, |stage| &stage.out);
            let stage = &mut rest[0];
            let mut x = std::mem::take(&mut stage.x);
            conv.apply(map, source, x.grow(map.rows() * c));
            stage.norm_map(self.norm(self.places.tower_norm(i)), map, Mat::new(&x, map.rows(), c, c));
            stage.x = x;
        }
        let tower = map.tokens(&w.tower[DEPTH - 1].out);
        let parts = self.class.tokens(map, tower, &mut w.output);
        self.shuffled(&parts)
    }

    /// Calls `f` with the place of each value of the last layer, and that of the same value in logits `[M, M, K]`.
    fn each_part(&self, mut f: impl FnMut(usize, usize)) {
        let (g, k, m) = (self.shape.grid, self.shape.classes, self.shape.side());
        for token in 0..g * g {
            for class in 0..k {
                for part in 0..CELLS * CELLS {
                    let (y, x) = (token / g * CELLS + part / CELLS, token % g * CELLS + part % CELLS);
                    f((token * k + class) * CELLS * CELLS + part, (y * m + x) * k + class);
                }
            }
        }
    }

    /// Logits of the parts of tokens, put beside each other.
    fn shuffled(&self, parts: &[f32]) -> Vec<f32> {
        let mut logits = vec![0.; parts.len()];
        self.each_part(|from, to| logits[to] = parts[from]);
        logits
    }

    /// From the gradient `[M, M, K]` of what the last [`Self::forward`] with this workspace said: adds those of the head's tensors to
    /// `to`, one behind the other, and, if wanted, writes that of the features.
    ///
    /// # Panics
    /// If this head was not bound for training, or lengths do not fit.
    pub fn vjp(&self, gradient: &[f32], features: Option<FeatureGradients>, to: &mut [f32], w: &mut SegmentWorkspace) {
        assert!(self.training, "a head that was not bound for training");
        let SegmentShape { width: d, levels, channels: c, classes: k, .. } = self.shape;
        let (n, m) = (self.tokens(), self.shape.side());
        assert_eq!([gradient.len(), to.len()], [m * m * k, self.places.len()], "gradient lengths");
        let wide = row_stride(levels * d);
        let normalized = Mat::new(&w.normalized, n, levels * d, wide);
        let [class_weight, class_bias] = self.places.class();
        let Some(ConvTower { neck, convs }) = &self.tower else {
            let dy = Mat::new(gradient, n, k, k);
            weight_vjp(dy, normalized, &mut to[class_weight], &mut w.panels);
            bias_vjp(gradient, k, &mut to[class_bias]);
            let Some(FeatureGradients { values, .. }) = features else { return };
            self.class.input_vjp(dy, MatMut::new(values, n, d, d));
            let scale = &self.values[self.places.norm()][d..];
            for token in values.chunks_exact_mut(d) {
                token.iter_mut().zip(scale).for_each(|(value, scale)| *value *= scale);
            }
            return;
        };
        let map = self.map();
        let mut parts = vec![0.; gradient.len()];
        self.each_part(|to, from| parts[to] = gradient[from]);
        let rows = w.rows.grow(map.rows() * c);
        let tower = map.tokens(&w.tower[DEPTH - 1].out);
        let d_tower = MatMut::new(rows, map.rows(), c, c);
        self.class.tokens_vjp(map, tower, &parts, to, [class_weight, class_bias], d_tower, &mut w.output);
        for (i, conv) in convs.iter().enumerate().rev() {
            let norm = self.places.tower_norm(i);
            let stage = &w.tower[i];
            let x = Mat::new(&stage.x, map.rows(), c, c);
            stage.norm_map_vjp(self.norm(norm.clone()), map, x, rows, &mut w.padded, &mut to[norm]);
            let source = if i == 0 { &w.map } else { &w.tower[i - 1].out };
            Conv::weight_vjp(map, source, &[(&w.padded, self.places.conv(i))], to, &mut w.panels);
            conv.input_vjp(0, map, &w.padded, rows, false);
        }

        let d_out = gather(rows, c, map.runs(), c);
        let (range, runs) = (self.places.neck_norm(), Runs { count: 1, len: n, step: n });
        let ConvStage { x, derivative, stats, .. } = &w.neck;
        let view = |values| Mat::new(values, n, c, c);
        let dy = w.tokens.grow(n * c);
        let dx = &mut MatMut::new(dy, n, c, c);
        let norm = self.norm(range.clone());
        norm.vjp(view(x), runs, view(derivative), &stats[..2 * c], view(&d_out), dx, &mut to[range]);
        let [neck_weight, neck_bias] = self.places.neck();
        bias_vjp(dy, c, &mut to[neck_bias]);
        weight_vjp(view(dy), normalized, &mut to[neck_weight], &mut w.panels);

        let Some(FeatureGradients { first_level, values }) = features else { return };
        let wanted = levels.saturating_sub(first_level);
        assert_eq!(values.len(), wanted * n * d, "feature gradients from level {first_level} of {levels}");
        values.fill(0.);
        let all = w.features.grow(n * wide);
        neck.input_vjp(view(dy), MatMut::new(all, n, levels * d, wide));
        for (level, values) in (first_level..levels).zip(values.chunks_exact_mut(n * d)) {
            let inverse = &w.inverse[level * n..(level + 1) * n];
            let normalized = Mat::new(&w.normalized[level * d..], n, d, wide);
            let gradient = Mat::new(&all[level * d..], n, d, wide);
            layer_norm_vjp(normalized, inverse, gradient, &mut MatMut::new(values, n, d, d));
        }
    }

    /// The sums `to` of [`Self::vjp`] as the gradients of the head's tensors, in the order of [`SegmentShape::tensors`]; zeros for what
    /// is not learned.
    pub fn gradients(&self, to: &[f32]) -> Vec<Vec<f32>> {
        self.places.all().iter().map(|range| to[range.clone()].to_vec()).collect()
    }
}

impl std::fmt::Debug for BoundSegmentHead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BoundSegmentHead").field("shape", &self.shape).finish_non_exhaustive()
    }
}
