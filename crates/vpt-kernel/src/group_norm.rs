//! GroupNorm followed by an activation, and its VJP, over the rows of a map of tokens.
//!
//! Rows are tokens, columns channels, so that statistics are sums down the columns, kept a channel each and joined to
//! groups at the end: a group may have any number of channels. Convolutions leave rows between the lines of a map that
//! belong to no token ([`Runs`] leaps over them).

use super::activation::{Activation, activate_row};
use super::simd::{Simd, load, store, vectors};
use super::{Mat, MatMut, dispatched};

/// Which rows are tokens: `count` runs of `len` rows, their starts `step` rows apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs {
    /// Number of runs.
    pub count: usize,
    /// Rows of a run.
    pub len: usize,
    /// Rows from the start of a run to that of the next.
    pub step: usize,
}

impl Runs {
    /// Rows up to the last token.
    pub fn rows(self) -> usize {
        if self.count == 0 { 0 } else { (self.count - 1).saturating_mul(self.step).saturating_add(self.len) }
    }

    /// The rows that are tokens, in order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..self.count).flat_map(move |run| (0..self.len).map(move |i| run * self.step + i))
    }
}

/// `f(scale x̂ + shift)` with x̂ normalised over the tokens and the channels of each group (Wu and He, "Group
/// Normalization", 2018).
#[derive(Clone, Copy)]
pub struct GroupNorm<'a> {
    /// Number of groups; divides the number of channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Scale `[C]`.
    pub scale: &'a [f32],
    /// Shift `[C]`.
    pub shift: &'a [f32],
    /// Activation behind the norm.
    pub activation: Activation,
}

impl GroupNorm<'_> {
    fn check(&self, runs: Runs, stats: usize, mats: [(usize, usize); 3]) -> usize {
        let c = self.scale.len();
        assert!(self.groups > 0 && c > 0 && c.is_multiple_of(self.groups), "{c} channels in {} groups", self.groups);
        assert_eq!((self.shift.len(), stats), (c, 2 * c), "shift and statistics");
        assert!(runs.step >= runs.len && runs.rows() > 0, "{runs:?}");
        for (rows, cols) in mats {
            assert!(rows >= runs.rows() && cols == c, "[{rows}, {cols}] for {runs:?} of {c} channels");
        }
        c
    }

    /// Of the tokens of x `[rows, C]`: the result to `out`, the activation's derivative to `derivative`. `stats` `[2, C]`
    /// takes each channel's mean and `1/√(variance + eps)`. All other rows are neither read nor written.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn forward(&self, x: Mat, runs: Runs, out: &mut MatMut, derivative: &mut MatMut, stats: &mut [f32]) {
        let shapes = [(x.rows(), x.cols()), (out.rows(), out.cols()), (derivative.rows(), derivative.cols())];
        self.check(runs, stats.len(), shapes);
        let ((x, a), (out, b), (derivative, c)) =
            (x.contiguous_rows(), out.contiguous_rows(), derivative.contiguous_rows());
        // SAFETY: `check` has compared the shapes, and rows of a view lie in its slice.
        unsafe { forward_rows(*self, x, out, derivative, [a, b, c], runs, stats) }
    }

    /// From `gradient`, the gradient of what [`Self::forward`] made of x: that of x, written to `dx`; those of scale and
    /// shift are added to `d_affine` `[2, C]`. Rows that are no tokens are left alone.
    ///
    /// # Panics
    /// If the shapes do not fit.
    #[allow(clippy::too_many_arguments, reason = "forward's arguments and the gradients")]
    pub fn vjp(
        &self,
        x: Mat,
        runs: Runs,
        derivative: Mat,
        stats: &[f32],
        gradient: Mat,
        dx: &mut MatMut,
        d_affine: &mut [f32],
    ) {
        let shapes = [(x.rows(), x.cols()), (gradient.rows(), gradient.cols()), (dx.rows(), dx.cols())];
        let channels = self.check(runs, stats.len(), shapes);
        self.check(runs, d_affine.len(), [(derivative.rows(), derivative.cols()); 3]);
        let ((x, a), (derivative, b), (gradient, c), (dx, d)) =
            (x.contiguous_rows(), derivative.contiguous_rows(), gradient.contiguous_rows(), dx.contiguous_rows());
        let mut sums = vec![0.0; 2 * channels];
        // SAFETY: `check` has compared the shapes, and rows of a view lie in its slice; `sums` holds two values a channel.
        unsafe { vjp_rows(*self, x, derivative, gradient, dx, [a, b, c, d], runs, stats, &mut sums, d_affine) }
    }

    /// Replaces each channel's value by the mean over its group of a sum over `tokens` rows.
    fn join(&self, sums: &mut [f32], tokens: usize) {
        let size = sums.len() / self.groups;
        for group in sums.chunks_exact_mut(size) {
            let mean = group.iter().sum::<f32>() / (size * tokens) as f32;
            group.fill(mean);
        }
    }
}

dispatched! {
    /// # Safety
    /// As for [`forward_body`], less the instructions.
    unsafe fn forward_rows(norm: GroupNorm, x: &[f32], out: &mut [f32], derivative: &mut [f32], strides: [usize; 3], runs: Runs, stats: &mut [f32]) = forward_body
}

/// # Safety
/// With C the length of `norm.scale`: `norm.shift` is as long, `stats` twice as long, and every row of `runs` has C values in `x`,
/// `out` and `derivative` at their strides; `S` is available.
#[inline(always)]
unsafe fn forward_body<S: Simd>(
    norm: GroupNorm,
    x: &[f32],
    out: &mut [f32],
    derivative: &mut [f32],
    strides: [usize; 3],
    runs: Runs,
    stats: &mut [f32],
) {
    let d = norm.scale.len();
    let (means, inverses) = stats.split_at_mut(d);
    let tokens = runs.count * runs.len;
    // SAFETY: all that is read and written by pointer are the C values of a row of `runs`, of the halves of `stats`, of scale or of
    // shift, which the caller promises, and `vectors!` stays inside C values.
    unsafe {
        // Pointers are taken anew whenever the slices have been used in between.
        means.fill(0.0);
        let mean = means.as_mut_ptr();
        for row in runs.iter() {
            let x = x.as_ptr().add(row * strides[0]);
            vectors!(S, d, |i, n| {
                store::<S>(mean.add(i), S::add(load::<S>(mean.add(i), n), load::<S>(x.add(i), n)), n);
            });
        }
        norm.join(means, tokens);
        let mean = means.as_ptr();
        // A second pass: the one-pass form loses digits where the mean is large.
        inverses.fill(0.0);
        let inverse = inverses.as_mut_ptr();
        for row in runs.iter() {
            let x = x.as_ptr().add(row * strides[0]);
            vectors!(S, d, |i, n| {
                let centred = S::sub(load::<S>(x.add(i), n), load::<S>(mean.add(i), n));
                store::<S>(inverse.add(i), S::fma(centred, centred, load::<S>(inverse.add(i), n)), n);
            });
        }
        norm.join(inverses, tokens);
        for value in inverses.iter_mut() {
            *value = 1.0 / (*value + norm.eps).sqrt();
        }
        let inverse = inverses.as_ptr();
        let (scale, shift) = (norm.scale.as_ptr(), norm.shift.as_ptr());
        for row in runs.iter() {
            let x = x.as_ptr().add(row * strides[0]);
            let out = out.as_mut_ptr().add(row * strides[1]);
            let derivative = derivative.as_mut_ptr().add(row * strides[2]);
            vectors!(S, d, |i, n| {
                let centred = S::sub(load::<S>(x.add(i), n), load::<S>(mean.add(i), n));
                let factor = S::mul(load::<S>(inverse.add(i), n), load::<S>(scale.add(i), n));
                store::<S>(out.add(i), S::fma(centred, factor, load::<S>(shift.add(i), n)), n);
            });
            activate_row::<S>(norm.activation, out, derivative, d);
        }
    }
}

dispatched! {
    /// # Safety
    /// As for [`vjp_body`], less the instructions.
    unsafe fn vjp_rows(norm: GroupNorm, x: &[f32], derivative: &[f32], gradient: &[f32], dx: &mut [f32], strides: [usize; 4], runs: Runs, stats: &[f32], sums: &mut [f32], d_affine: &mut [f32]) = vjp_body
}

/// # Safety
/// With C the length of `norm.scale`: `stats`, `sums` and `d_affine` are twice as long, and every row of `runs` has C values in
/// `x`, `derivative`, `gradient` and `dx` at their strides; `S` is available.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn vjp_body<S: Simd>(
    norm: GroupNorm,
    x: &[f32],
    derivative: &[f32],
    gradient: &[f32],
    dx: &mut [f32],
    strides: [usize; 4],
    runs: Runs,
    stats: &[f32],
    sums: &mut [f32],
    d_affine: &mut [f32],
) {
    let d = norm.scale.len();
    let tokens = runs.count * runs.len;
    let (along, plain) = sums.split_at_mut(d);
    // SAFETY: all that is read and written by pointer are the C values of a row of `runs`, of the halves of `stats` and `sums`, or of
    // scale, which the caller promises, and `vectors!` stays inside C values.
    unsafe {
        let (mean, inverse) = (stats.as_ptr(), stats.as_ptr().add(d));
        // Sums over tokens of g x̂ and g, g the gradient in front of the activation, which is written to dx.
        let (a, p) = (along.as_mut_ptr(), plain.as_mut_ptr());
        for row in runs.iter() {
            let x = x.as_ptr().add(row * strides[0]);
            let derivative = derivative.as_ptr().add(row * strides[1]);
            let gradient = gradient.as_ptr().add(row * strides[2]);
            let dx = dx.as_mut_ptr().add(row * strides[3]);
            vectors!(S, d, |i, n| {
                let g = S::mul(load::<S>(gradient.add(i), n), load::<S>(derivative.add(i), n));
                store::<S>(dx.add(i), g, n);
                let centred = S::sub(load::<S>(x.add(i), n), load::<S>(mean.add(i), n));
                let normalized = S::mul(centred, load::<S>(inverse.add(i), n));
                store::<S>(a.add(i), S::fma(g, normalized, load::<S>(a.add(i), n)), n);
                store::<S>(p.add(i), S::add(g, load::<S>(p.add(i), n)), n);
            });
        }
        for (to, &sum) in d_affine.iter_mut().zip(along.iter().chain(plain.iter())) {
            *to += sum;
        }
        for i in 0..d {
            along[i] *= norm.scale[i];
            plain[i] *= norm.scale[i];
        }
        norm.join(along, tokens);
        norm.join(plain, tokens);
        // dx = inverse (scale g - mean(scale g) - x̂ mean(scale g x̂))
        let scale = norm.scale.as_ptr();
        let (a, p) = (along.as_ptr(), plain.as_ptr());
        for row in runs.iter() {
            let x = x.as_ptr().add(row * strides[0]);
            let dx = dx.as_mut_ptr().add(row * strides[3]);
            vectors!(S, d, |i, n| {
                let inverse = load::<S>(inverse.add(i), n);
                let centred = S::sub(load::<S>(x.add(i), n), load::<S>(mean.add(i), n));
                let normalized = S::mul(centred, inverse);
                let g = S::mul(load::<S>(dx.add(i), n), load::<S>(scale.add(i), n));
                let rest = S::sub(S::sub(g, load::<S>(p.add(i), n)), S::mul(normalized, load::<S>(a.add(i), n)));
                store::<S>(dx.add(i), S::mul(inverse, rest), n);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_base::testing::{assert_close, central_differences, random};

    const EPS: f32 = 1e-5;

    /// The textbook form over `[tokens, c]`.
    fn plain(x: &[f64], scale: &[f32], shift: &[f32], groups: usize) -> Vec<f64> {
        let c = scale.len();
        let size = c / groups;
        let mut out = vec![0.0; x.len()];
        for group in 0..groups {
            let places: Vec<usize> = (0..x.len()).filter(|i| i % c / size == group).collect();
            let n = places.len() as f64;
            let mean = places.iter().map(|&i| x[i]).sum::<f64>() / n;
            let variance = places.iter().map(|&i| (x[i] - mean).powi(2)).sum::<f64>() / n;
            for &i in &places {
                let normalized = (x[i] - mean) / (variance + f64::from(EPS)).sqrt();
                let h = normalized * f64::from(scale[i % c]) + f64::from(shift[i % c]);
                out[i] = Activation::Gelu.reference(h).0;
            }
        }
        out
    }

    /// Rows at `stride` of the tokens of `runs`, NaN between them.
    fn spread(x: &[f32], runs: Runs, c: usize, stride: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; runs.rows() * stride];
        for (row, x) in runs.iter().zip(x.chunks_exact(c)) {
            out[row * stride..row * stride + c].copy_from_slice(x);
        }
        out
    }

    #[test]
    fn forward_and_vjp_equal_the_textbook_form_and_its_central_differences() {
        let runs = Runs { count: 3, len: 4, step: 5 };
        for (c, groups) in [(8, 8), (24, 8), (40, 2), (128, 8)] {
            let stride = c + 3;
            let values: Vec<f32> = random(1, 12 * c).iter().map(|x| x + 3.0).collect();
            let (scale, shift) = (random(2, c), random(3, c));
            let x = spread(&values, runs, c, stride);
            let norm = GroupNorm { groups, eps: EPS, scale: &scale, shift: &shift, activation: Activation::Gelu };
            let rows = runs.rows();
            let (mut out, mut derivative) = (vec![7.0; rows * c], vec![7.0; rows * c]);
            let mut stats = vec![0.0; 2 * c];
            norm.forward(
                Mat::new(&x, rows, c, stride),
                runs,
                &mut MatMut::new(&mut out, rows, c, c),
                &mut MatMut::new(&mut derivative, rows, c, c),
                &mut stats,
            );
            let wide: Vec<f64> = values.iter().map(|&x| f64::from(x)).collect();
            let want = plain(&wide, &scale, &shift, groups);
            for (i, row) in runs.iter().enumerate() {
                for j in 0..c {
                    assert_close(out[row * c + j], want[i * c + j], 1e-5);
                }
            }
            assert_eq!(out[4 * c..5 * c], vec![7.0; c], "a row between two runs");

            let g = random(4, 12 * c);
            let (mut dx, mut affine) = (vec![7.0; rows * c], vec![0.0; 2 * c]);
            norm.vjp(
                Mat::new(&x, rows, c, stride),
                runs,
                Mat::new(&derivative, rows, c, c),
                &stats,
                Mat::new(&spread(&g, runs, c, c), rows, c, c),
                &mut MatMut::new(&mut dx, rows, c, c),
                &mut affine,
            );
            if cfg!(miri) {
                // The differences would take it an hour, and have nothing to hide from it.
                continue;
            }
            let along = |out: Vec<f64>| out.iter().zip(&g).map(|(y, &g)| y * f64::from(g)).sum::<f64>();
            let slopes = central_differences(&wide, |x| along(plain(x, &scale, &shift, groups)));
            for (i, row) in runs.iter().enumerate() {
                for j in 0..c {
                    assert_close(dx[row * c + j], slopes[i * c + j], 2e-5);
                }
            }
            assert_eq!(dx[4 * c..5 * c], vec![7.0; c], "a row between two runs");
            let h = 1.0 / 64.0;
            for i in 0..c {
                for (at, which) in [(i, 0), (c + i, 1)] {
                    let moved = |by: f32| {
                        let (mut scale, mut shift) = (scale.clone(), shift.clone());
                        if which == 0 {
                            scale[i] += by;
                        } else {
                            shift[i] += by;
                        }
                        along(plain(&wide, &scale, &shift, groups))
                    };
                    let slope = (moved(h) - moved(-h)) / (2.0 * f64::from(h));
                    assert_close(affine[at], slope, 2e-3);
                }
            }
        }
    }
}
