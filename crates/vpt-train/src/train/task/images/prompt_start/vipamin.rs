//! Prompt tokens that begin in two parts (Park and Chung, "VIPAMIN: Visual Prompt Initialization via Embedding Selection and Subspace
//! Expansion", `NeurIPS` 2025): one from the patches that a random prompt is most alike, so that prompts attend to different things from the
//! first step on, and one whose value lies outside of what attention finds in images, so that they bring what was not there.
//!
//! Of a block, in the mean over images: keys, compared as means over the heads, choose the patches of a prompt ([`matched_of`]), whose tokens, in
//! the mean, are the first part; the second is `W⁺ (P (W r + b) - b)` of a random r, with the layer W, b that makes values of rows behind the norm
//! (its scale folded in) and the projection P outside of what the tokens find. They are mixed by [`SHARE`]. The paper tunes both numbers on
//! every data set, among 2, 8, 32 and 128 of 196 patches; these are the ones in the middle. Of fewer patches it has to be fewer: half of all
//! of them are much the same for every prompt.
//!
//! The second part is made no longer than the first. As it comes out of the inverse it is tens to hundreds of times longer than a token (on a
//! ViT-S/14 43 to 630 where tokens are 1.5 to 10), so that behind the norm nothing of the first would be left, and steps of a
//! thousandth would not turn it.

use vpt_backbone::vit::{AttentionMeans, PlainLayer};
use vpt_base::{Error, Result, linear_algebra::Cholesky};

/// The patches that a prompt begins as the mean of, of those of the paper.
const MATCHED: [usize; 2] = [32, 196];
/// The share of the part that lies outside.
const SHARE: f32 = 0.1;
/// Below this share of its length a row is within the rows before it.
const DEPENDENT: f64 = 1e-6;
/// Added to the squares of a layer's singular values, as a share of their mean, so that it has an inverse.
const RIDGE: f64 = 1e-9;

/// What prompts of one block begin by.
pub(super) struct BlockStart<'a> {
    /// Values of a row: D.
    pub(super) width: usize,
    /// Heads of attention.
    pub(super) heads: usize,
    /// Tokens before the patches.
    pub(super) prefix: usize,
    /// Tokens that enter the block, mean over images `[T, D]`.
    pub(super) tokens: &'a [f32],
    /// What attention does with them.
    pub(super) means: &'a AttentionMeans,
    /// Makes values of rows behind the norm.
    pub(super) values: &'a PlainLayer,
}

impl BlockStart<'_> {
    /// Prompts `[P, D]` for random ones whose keys are `keys` `[P, D]`, with other random rows `outside` `[P, D]`; and whether there is
    /// anything outside of what attention finds.
    ///
    /// # Errors
    /// The layer of values is not finite.
    pub(super) fn prompts(&self, keys: &[f32], outside: &[f32]) -> Result<(Vec<f32>, bool)> {
        let mut prompts = self.matched(keys);
        let basis = self.basis();
        let whole = basis.len() >= self.width;
        if !whole {
            let inverse = Inverse::of(&self.values.weight, self.width)?;
            for (prompt, random) in prompts.chunks_exact_mut(self.width).zip(outside.chunks_exact(self.width)) {
                let other = self.outside(&inverse, &basis, random);
                let [most, length] = [&*prompt, &other].map(|row| row.iter().map(|v| v * v).sum::<f32>().sqrt());
                let scale = SHARE * (most / length.max(f32::MIN_POSITIVE)).min(1.);
                prompt.iter_mut().zip(&other).for_each(|(value, other)| *value = (1. - SHARE) * *value + scale * other);
            }
        }
        Ok((prompts, !whole))
    }

    /// The mean token of the patches whose keys are most alike those of each prompt.
    fn matched(&self, keys: &[f32]) -> Vec<f32> {
        let d = self.width;
        let patches: Vec<Vec<f32>> =
            self.means.keys.chunks_exact(d).skip(self.prefix).map(|row| self.mean_head(row)).collect();
        let matched = matched_of(patches.len());
        keys.chunks_exact(d)
            .flat_map(|key| {
                let key = self.mean_head(key);
                let alike = |patch: &[f32]| patch.iter().zip(&key).map(|(a, b)| a * b).sum::<f32>();
                let mut order: Vec<(f32, usize)> = patches.iter().map(|patch| alike(patch)).zip(0..).collect();
                order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                let mut mean = vec![0.; d];
                for &(_, patch) in &order[..matched] {
                    let token = &self.tokens[(self.prefix + patch) * d..][..d];
                    mean.iter_mut().zip(token).for_each(|(sum, value)| *sum += value / matched as f32);
                }
                mean
            })
            .collect()
    }

    /// The mean of a row's heads, of length 1.
    fn mean_head(&self, row: &[f32]) -> Vec<f32> {
        let width = self.width / self.heads;
        let mut mean = vec![0.; width];
        for head in row.chunks_exact(width) {
            mean.iter_mut().zip(head).for_each(|(sum, value)| *sum += value);
        }
        vpt_base::linear_algebra::normalize_l2(&mut mean, width);
        mean
    }

    /// Orthonormal rows that span what the tokens find.
    fn basis(&self) -> Vec<Vec<f64>> {
        let mut basis: Vec<Vec<f64>> = Vec::new();
        for row in self.means.found.chunks_exact(self.width) {
            let mut row: Vec<f64> = row.iter().map(|&value| f64::from(value)).collect();
            let before = norm(&row);
            // Twice, since once leaves roundings that are not small beside what is left.
            remove(&mut row, &basis);
            remove(&mut row, &basis);
            let left = norm(&row);
            if left > DEPENDENT * before {
                for value in &mut row {
                    *value /= left;
                }
                basis.push(row);
            }
        }
        basis
    }

    /// The row whose value is that of `random` without what lies within the basis.
    fn outside(&self, inverse: &Inverse, basis: &[Vec<f64>], random: &[f32]) -> Vec<f32> {
        let PlainLayer { weight, bias } = self.values;
        let of_bias = |i: usize| bias.get(i).map_or(0., |&value| f64::from(value));
        let product = |row: &[f32]| row.iter().zip(random).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
        let mut value: Vec<f64> =
            weight.chunks_exact(self.width).enumerate().map(|(i, row)| product(row) + of_bias(i)).collect();
        remove(&mut value, basis);
        value.iter_mut().enumerate().for_each(|(i, value)| *value -= of_bias(i));
        inverse.apply(&value)
    }
}

/// How many of so many patches a prompt begins as the mean of.
fn matched_of(patches: usize) -> usize {
    (patches * MATCHED[0]).div_ceil(MATCHED[1])
}

fn norm(row: &[f64]) -> f64 {
    row.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// Takes from `row` what lies within `basis`.
fn remove(row: &mut [f64], basis: &[Vec<f64>]) {
    for unit in basis {
        let along: f64 = unit.iter().zip(&*row).map(|(a, b)| a * b).sum();
        row.iter_mut().zip(unit).for_each(|(value, unit)| *value -= along * unit);
    }
}

/// The inverse of a square matrix in the sense of least squares: `(WᵀW + ridge)⁻¹ Wᵀ`, by Cholesky's factor.
struct Inverse<'a> {
    weight: &'a [f32],
    factor: Cholesky,
    width: usize,
}

impl<'a> Inverse<'a> {
    /// Of `weight` `[D, D]`.
    fn of(weight: &'a [f32], width: usize) -> Result<Self> {
        let mut squares = vec![0.; width * width];
        for row in weight.chunks_exact(width) {
            for (i, &a) in row.iter().enumerate() {
                let a = f64::from(a);
                squares[i * width..=i * width + i].iter_mut().zip(row).for_each(|(sum, &b)| *sum += a * f64::from(b));
            }
        }
        let mean = (0..width).map(|i| squares[i * width + i]).sum::<f64>() / width as f64;
        (0..width).for_each(|i| squares[i * width + i] += RIDGE * mean);
        let factor = Cholesky::new(squares, width);
        let factor = factor.ok_or_else(|| Error::invalid("the layer of values", "has no inverse"))?;
        Ok(Self { weight, factor, width })
    }

    fn apply(&self, value: &[f64]) -> Vec<f32> {
        let mut x = vec![0.; self.width];
        for (row, value) in self.weight.chunks_exact(self.width).zip(value) {
            x.iter_mut().zip(row).for_each(|(sum, &w)| *sum += f64::from(w) * value);
        }
        self.factor.solve(&mut x);
        x.into_iter().map(|value| value as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;
    use vpt_base::random::stream;

    const D: usize = 24;

    fn random(seed: u64, count: usize) -> Vec<f32> {
        let rng = &mut stream(seed, "vipamin", 0, 0);
        (0..count).map(|_| rng.random_range(-1f32..1.)).collect()
    }

    #[test]
    fn the_parts_are_a_mean_of_the_most_alike_patches_and_a_value_outside_of_what_is_found() {
        // 40 patches of which the found values span 9 directions.
        let (prefix, count) = (2, 42);
        let tokens = random(1, count * D);
        let directions = random(2, 9 * D);
        let weights = random(3, count * 9);
        let found: Vec<f32> = (0..count * D)
            .map(|at| (0..9).map(|k| weights[at / D * 9 + k] * directions[k * D + at % D]).sum())
            .collect();
        let means = AttentionMeans { keys: random(4, count * D), found };
        let values = PlainLayer { weight: random(5, D * D), bias: random(6, D) };
        let start = BlockStart { width: D, heads: 3, prefix, tokens: &tokens, means: &means, values: &values };
        assert_eq!(start.basis().len(), 9);
        let (keys, outside) = (random(7, 5 * D), random(8, 5 * D));
        let (prompts, is_outside) = start.prompts(&keys, &outside).unwrap();
        assert!(is_outside);
        let matched = start.matched(&keys);
        let inverse = Inverse::of(&values.weight, D).unwrap();
        for i in 0..5 {
            let of = |rows: &[f32]| rows[i * D..][..D].to_vec();
            // By hand: cosines of means over three heads of eight.
            let head = |row: &[f32]| (0..8).map(|j| (row[j] + row[j + 8] + row[j + 16]) / 3.).collect::<Vec<f32>>();
            let cosine = |a: &[f32], b: &[f32]| {
                let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
                dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
            };
            let key = head(&of(&keys));
            let mut order: Vec<usize> = (prefix..count).collect();
            order.sort_by(|&a, &b| {
                let alike = |row: usize| cosine(&head(&means.keys[row * D..][..D]), &key);
                alike(b).total_cmp(&alike(a))
            });
            for j in 0..D {
                // A sixth of the 40, rounded up.
                let mean = order[..7].iter().map(|&row| tokens[row * D + j]).sum::<f32>() / 7.;
                assert!((matched[i * D + j] - mean).abs() < 1e-5);
            }
            let other = start.outside(&inverse, &start.basis(), &of(&outside));
            let value: Vec<f32> = (0..D)
                .map(|k| {
                    values.weight[k * D..][..D].iter().zip(&other).map(|(w, x)| w * x).sum::<f32>() + values.bias[k]
                })
                .collect();
            for direction in directions.chunks_exact(D) {
                assert!(cosine(direction, &value).abs() < 1e-3, "{}", cosine(direction, &value));
            }
            let length = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>().sqrt();
            let scale = SHARE * (length(&of(&matched)) / length(&other)).min(1.);
            for j in 0..D {
                let mixed = (1. - SHARE) * matched[i * D + j] + scale * other[j];
                assert!((prompts[i * D + j] - mixed).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn where_all_directions_are_found_the_first_part_is_all() {
        let (tokens, keys) = (random(1, 40 * D), random(4, 3 * D));
        let means = AttentionMeans { keys: random(2, 40 * D), found: random(3, 40 * D) };
        let values = PlainLayer { weight: random(5, D * D), bias: Vec::new() };
        let start = BlockStart { width: D, heads: 3, prefix: 1, tokens: &tokens, means: &means, values: &values };
        assert_eq!(start.prompts(&keys, &keys).unwrap(), (start.matched(&keys), false));
    }
}
