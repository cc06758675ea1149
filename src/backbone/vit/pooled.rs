//! The class token and the mean of the patches after the last norm, and back: what DINOv2's classifiers read.

use super::{Rows, Vit};
use crate::kernel::{Mat, MatMut, norm};
use crate::{Error, Result};

/// Activations that the VJP of [`Vit::pool`] needs.
pub(crate) struct PoolTape {
    /// All tokens after the last norm, without its scale and shift: `[m T, D]`.
    normalized: Vec<f32>,
    /// One over their deviations `[m T]`.
    inverse: Vec<f32>,
}

impl Vit {
    /// Of all tokens `[m, T, D]` as they leave the last block ([`Rows::All`]): the class token after the last norm, behind it
    /// the mean of the patches, `[m, 2 D]`.
    ///
    /// # Errors
    /// The tokens are those of no whole number of images.
    pub(crate) fn pool(&self, tokens: &[f32]) -> Result<(Vec<f32>, PoolTape)> {
        let (d, t) = (self.width(), self.tokens());
        let rows = tokens.len() / d;
        if tokens.len() != rows * d || !rows.is_multiple_of(t) {
            return Err(Error::invalid("tokens", format!("{} values are not whole rows [{t}, {d}]", tokens.len())));
        }
        let (mut normalized, mut inverse) = (vec![0.; rows * d], vec![0.; rows]);
        let out = &mut MatMut::new(&mut normalized, rows, d, d);
        norm::normalize(Mat::new(tokens, rows, d, d), self.tower.eps, out, &mut inverse);
        let patches = self.read_rows(Rows::Patches);
        let [scale, shift] = &self.tower.post_norm;
        let mut pooled = Vec::with_capacity(rows / t * 2 * d);
        for image in normalized.chunks_exact(t * d) {
            pooled.extend((0..d).map(|i| image[i] * scale[i] + shift[i]));
            let mut mean = vec![0.; d];
            for row in image[patches.start * d..patches.end * d].chunks_exact(d) {
                mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            let count = patches.len() as f32;
            pooled.extend((0..d).map(|i| mean[i] / count * scale[i] + shift[i]));
        }
        Ok((pooled, PoolTape { normalized, inverse }))
    }

    /// The vector-Jacobian product of [`Self::pool`]: from gradients `[m, 2 D]` those of the tokens, `[m, T, D]`.
    pub(crate) fn pool_vjp(&self, tape: &PoolTape, gradient: &[f32]) -> Vec<f32> {
        let (d, t) = (self.width(), self.tokens());
        let (rows, patches) = (tape.inverse.len(), self.read_rows(Rows::Patches));
        let scale = &self.tower.post_norm[0];
        let count = patches.len() as f32;
        let mut scaled = vec![0.; rows * d];
        for (image, gradient) in scaled.chunks_exact_mut(t * d).zip(gradient.chunks_exact(2 * d)) {
            let (class, mean) = gradient.split_at(d);
            (0..d).for_each(|i| image[i] = class[i] * scale[i]);
            for row in image[patches.start * d..patches.end * d].chunks_exact_mut(d) {
                (0..d).for_each(|i| row[i] = mean[i] / count * scale[i]);
            }
        }
        let mut out = vec![0.; rows * d];
        norm::normalize_vjp(
            Mat::new(&tape.normalized, rows, d, d),
            &tape.inverse,
            Mat::new(&scaled, rows, d, d),
            &mut MatMut::new(&mut out, rows, d, d),
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use crate::backbone::{Backbone, OpenOptions};
    use crate::random::{normal, stream};

    #[test]
    fn the_gradient_of_pooled_tokens_equals_finite_differences() {
        for family in ["dinov2", "dinov2-registers"] {
            let dir = format!("{}/tests/fixtures/{family}", env!("CARGO_MANIFEST_DIR"));
            let vit = Backbone::open(&dir, &OpenOptions::default()).unwrap().vit;
            let mut rng = stream(2, "pooled", 0, 0);
            let mut random = |n: usize| (0..n).map(|_| normal(&mut rng)).collect::<Vec<f32>>();
            let (tokens, weights) = (random(2 * vit.tokens() * vit.width()), random(2 * 2 * vit.width()));
            let loss = |tokens: &[f32]| -> f64 {
                let pooled = vit.pool(tokens).unwrap().0;
                pooled.iter().zip(&weights).map(|(p, w)| f64::from(*p) * f64::from(*w)).sum()
            };
            let (_, tape) = vit.pool(&tokens).unwrap();
            let gradient = vit.pool_vjp(&tape, &weights);
            for i in (0..tokens.len()).step_by(7) {
                let at = |by: f32| {
                    let mut tokens = tokens.clone();
                    tokens[i] += by;
                    loss(&tokens)
                };
                let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
                assert!((slope - f64::from(gradient[i])).abs() < 1e-3, "{family} {i}: {slope} {}", gradient[i]);
            }
            assert!(vit.pool(&tokens[1..]).is_err());
        }
    }
}
