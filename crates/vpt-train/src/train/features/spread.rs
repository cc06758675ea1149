//! How the features of a linear probe are spread, which is most of what its Hessian is: steps that know it need not find it out.
//!
//! With equal probabilities of `C` classes the Hessian of the mean cross-entropy is, for each class and but for what classes share,
//! `X^T X / (n C)` of features `X` that have a one behind them for the bias. Features of one backbone have much in common, so these
//! curvatures differ by orders of magnitude: of 1024 images of 64 classes, a gradient of 1e-5 at a penalty of 1 takes L-BFGS 986 steps, and 185
//! from this matrix on (Nocedal and Wright 2006, section 7.2, have it for the scaled identity).

use candle_core::Tensor;
use rayon::prelude::*;
use vpt_base::{
    candle::Fault,
    linear_algebra::{Cholesky, dot},
};

/// The least curvature of a direction, as a share of the mean one: in the others are few images or rounding alone, and steps along these are
/// as careful as without all this.
const LEAST: f64 = 1e-2;

/// Mean and second moments of features.
#[derive(Debug)]
pub(super) struct FeatureSpread {
    /// `[D]`.
    mean: Vec<f64>,
    /// Of the features less their mean `[D, D]`.
    covariance: Vec<f64>,
}

impl FeatureSpread {
    /// Of features `[n, D]`.
    pub(super) fn new(features: &Tensor) -> Result<Self, Fault> {
        let mean = features.mean_keepdim(0)?;
        let apart = features.broadcast_sub(&mean)?;
        let covariance = (apart.t()?.matmul(&apart)? / features.dim(0)?.max(1) as f64)?;
        Ok(Self { mean: mean.flatten_all()?.to_vec1()?, covariance: covariance.flatten_all()?.to_vec1()? })
    }

    /// The curvature of the weights of one of `classes` with a penalty of `decay / 2` times their squares; `None` where the features
    /// have no such matrix.
    pub(super) fn factor(&self, classes: usize, decay: f64) -> Option<Cholesky> {
        let width = self.mean.len();
        let scale = 1. / classes as f64;
        let mut matrix: Vec<f64> = self.covariance.iter().map(|v| v * scale).collect();
        let diagonal = |i: usize| i * (width + 1);
        let mean = (0..width).map(|i| matrix[diagonal(i)]).sum::<f64>() / width.max(1) as f64;
        (0..width).for_each(|i| matrix[diagonal(i)] += decay.max(LEAST * mean));
        Cholesky::new(matrix, width)
    }

    /// The gradient `[C, D]`, then `[C]` of the biases, times the inverse of those curvatures. The bias of features that are
    /// not centred has as much to do with the weights as their mean is long: it is that of centred ones, and put back.
    pub(super) fn inverse(&self, factor: &Cholesky, classes: usize, gradient: &[f64]) -> Vec<f64> {
        let mut out = gradient.to_vec();
        let (weights, biases) = out.split_at_mut(classes * self.mean.len());
        let rows = weights.par_chunks_exact_mut(self.mean.len().max(1)).zip(biases.par_iter_mut());
        rows.for_each(|(row, bias)| {
            row.iter_mut().zip(&self.mean).for_each(|(w, mean)| *w -= *bias * mean);
            factor.solve(row);
            *bias = *bias * classes as f64 - dot(row, &self.mean);
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Against the matrix itself: the inverse of what multiplies by it is what was multiplied.
    #[test]
    fn it_is_the_inverse_of_the_second_moments_with_a_one_behind_the_features() {
        let (n, d, classes, decay) = (12, 3, 4, 0.02);
        let x = |i: usize, k: usize| if k == d { 1. } else { 2. + ((5 * i + 3 * k) as f64).sin() };
        let rows: Vec<f64> = (0..n * d).map(|place| x(place / d, place % d)).collect();
        let spread = FeatureSpread::new(&Tensor::from_vec(rows, (n, d), &Device::Cpu).unwrap()).unwrap();
        let value = |c: usize, k: usize| ((11 * c + k) as f64).cos();
        let place = |c: usize, k: usize| if k == d { classes * d + c } else { c * d + k };
        let (mut product, mut expected) = (vec![0.; classes * (d + 1)], vec![0.; classes * (d + 1)]);
        for c in 0..classes {
            for k in 0..=d {
                expected[place(c, k)] = value(c, k);
                let moment = |l: usize| (0..n).map(|i| x(i, k) * x(i, l)).sum::<f64>() / (n * classes) as f64;
                let of_penalty = if k == d { 0. } else { decay * value(c, k) };
                product[place(c, k)] = (0..=d).map(|l| moment(l) * value(c, l)).sum::<f64>() + of_penalty;
            }
        }
        let found = spread.inverse(&spread.factor(classes, decay).unwrap(), classes, &product);
        assert!(found.iter().zip(&expected).all(|(f, e)| (f - e).abs() < 1e-9), "{found:?}, {expected:?}");
    }
}
