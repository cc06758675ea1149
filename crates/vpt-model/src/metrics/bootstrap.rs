//! How sure a difference between two methods is: a paired bootstrap over test images, and over draws where there are several.
//!
//! Both methods saw the same draws and answered for the same test images, so what is resampled is their difference:
//! `d[s][i]` is 1 where the first is right about image `i` after the draw of seed `s` and the second is not, -1 the other way
//! round, else 0. The statistic is the mean of all `d`, the difference of the two mean accuracies. A resample takes as many
//! seeds and as many images as there are, with replacement and independently of each other, and averages `d` over the seeds
//! and images taken: Owen's pigeonhole bootstrap ("The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007), which
//! for such crossed factors errs on the wide side. With one seed there are only images to resample. The interval goes from
//! the 2.5th to the 97.5th percentile of 2000 resamples.
//!
//! How often each image is taken does not matter, only how often each pattern of `d` over the seeds is: a multinomial draw.

use std::collections::BTreeMap;

use rand::Rng;
use rand_distr::{Binomial, Distribution};
use serde::{Deserialize, Serialize};

/// Resamples of an interval.
const RESAMPLES: usize = 2000;
/// Share that the interval leaves out at each end.
const TAIL: f64 = 0.025;

/// A difference of two accuracies, fractions of one, and its 95 % interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The difference.
    pub difference: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// The interval of the mean of `differences`, `[seeds][images]`; `None` if there are none, or not the same images for every
/// seed.
pub fn paired(differences: &[Vec<i8>], rng: &mut impl Rng) -> Option<Interval> {
    let images = differences.first()?.len();
    if images == 0 || differences.iter().any(|of_seed| of_seed.len() != images) {
        return None;
    }
    let total: i64 = differences.iter().flatten().map(|&d| i64::from(d)).sum();
    let difference = total as f64 / (differences.len() * images) as f64;
    let mut means = resamples(differences, images, rng);
    means.sort_by(f64::total_cmp);
    Some(Interval { difference, low: percentile(&means, TAIL), high: percentile(&means, 1. - TAIL) })
}

/// The intervals of the mean over `seeds` draws of differences that are no means over images, as differences of AP: `statistic` says what they are
/// for a draw where each of `images` images counts so many times, `None` where that is nothing. `None` if there are no images or draws, or no
/// statistic of all images once.
///
/// The resamples are those of [`paired`], image by image, and half as many: each costs as much as an evaluation.
pub fn paired_statistics<const N: usize>(
    seeds: usize,
    images: usize,
    statistic: impl Fn(usize, &[u32]) -> Option<[f64; N]>,
    rng: &mut impl Rng,
) -> Option<[Interval; N]> {
    if images == 0 || seeds == 0 {
        return None;
    }
    let mean = |taken: &[usize], times: &[u32]| {
        let mut known: BTreeMap<usize, [f64; N]> = BTreeMap::new();
        let mut sums = [0.; N];
        for &seed in taken {
            let values = match known.get(&seed) {
                Some(values) => *values,
                None => *known.entry(seed).or_insert(statistic(seed, times)?),
            };
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        Some(sums.map(|sum| sum / taken.len() as f64))
    };
    let differences = mean(&(0..seeds).collect::<Vec<_>>(), &vec![1; images])?;
    let mut means = Vec::with_capacity(RESAMPLES / 2);
    for _ in 0..RESAMPLES / 2 {
        let mut times = vec![0; images];
        (0..images).for_each(|_| times[rng.random_range(0..images)] += 1);
        let taken: Vec<usize> = (0..seeds).map(|_| rng.random_range(0..seeds)).collect();
        means.extend(mean(&taken, &times));
    }
    if means.is_empty() {
        return None;
    }
    Some(std::array::from_fn(|i| {
        let mut values: Vec<f64> = means.iter().map(|values| values[i]).collect();
        values.sort_by(f64::total_cmp);
        Interval { difference: differences[i], low: percentile(&values, TAIL), high: percentile(&values, 1. - TAIL) }
    }))
}

/// `d` of one draw: the first right about an image and the second not, the other way round, or neither.
pub fn differences(first: &[bool], second: &[bool]) -> Vec<i8> {
    first.iter().zip(second).map(|(&first, &second)| i8::from(first) - i8::from(second)).collect()
}

/// The means of [`RESAMPLES`] resamples.
fn resamples(differences: &[Vec<i8>], images: usize, rng: &mut impl Rng) -> Vec<f64> {
    let seeds = differences.len();
    let mut patterns: BTreeMap<Vec<i8>, u64> = BTreeMap::new();
    for i in 0..images {
        *patterns.entry(differences.iter().map(|of_seed| of_seed[i]).collect()).or_default() += 1;
    }
    let mean = |_| {
        let mut sums = vec![0i64; seeds];
        let (mut images_left, mut share_left) = (images as u64, images as u64);
        for (pattern, &share) in &patterns {
            let taken = binomial(images_left, share as f64 / share_left as f64, rng);
            images_left -= taken;
            share_left -= share;
            sums.iter_mut().zip(pattern).for_each(|(sum, &d)| *sum += taken as i64 * i64::from(d));
        }
        let taken: i64 = (0..seeds).map(|_| sums[rng.random_range(0..seeds as u32) as usize]).sum();
        taken as f64 / (seeds * images) as f64
    };
    (0..RESAMPLES).map(mean).collect()
}

/// How many of `n` come out where each does with probability `p`.
fn binomial(n: u64, p: f64, rng: &mut impl Rng) -> u64 {
    match Binomial::new(n, p.min(1.)) {
        Ok(distribution) => distribution.sample(rng),
        // Not reached: `p` is a share.
        Err(_) => 0,
    }
}

/// The value below which the share `share` of `sorted` lies, between two of them in proportion, as `numpy.percentile` has it.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_base::random::stream;

    /// The mean of every way to take seeds and images, one after another.
    fn every_resample(differences: &[Vec<i8>]) -> Vec<f64> {
        let (seeds, images) = (differences.len(), differences[0].len());
        let ways = |n: usize| (0..n.pow(n as u32)).map(move |way| (0..n).map(move |i| way / n.pow(i as u32) % n));
        let mut means = Vec::new();
        for taken_seeds in ways(seeds) {
            for taken_images in ways(images) {
                let sum: i32 = taken_seeds
                    .clone()
                    .flat_map(|s| taken_images.clone().map(move |i| i32::from(differences[s][i])))
                    .sum();
                means.push(f64::from(sum) / (seeds * images) as f64);
            }
        }
        means.sort_by(f64::total_cmp);
        means
    }

    #[test]
    fn resamples_are_those_of_brute_force() {
        for differences in [
            vec![vec![1, 0, 1, 0, -1, 0]],
            vec![vec![1, 0, 1, 0, 0], vec![1, 1, 0, -1, 0]],
            vec![vec![1, 0, -1, 0], vec![0, 1, 1, 0], vec![1, 1, 0, 1]],
        ] {
            let exact = every_resample(&differences);
            let images = differences[0].len();
            let drawn: Vec<f64> =
                (0..10).flat_map(|i| resamples(&differences, images, &mut stream(i, "t", 0, 0))).collect();
            let moments = |values: &[f64]| {
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64)
            };
            let (exact_moments, drawn_moments) = (moments(&exact), moments(&drawn));
            assert!((exact_moments.0 - drawn_moments.0).abs() < 0.01, "{exact_moments:?} {drawn_moments:?}");
            assert!((exact_moments.1 / drawn_moments.1 - 1.).abs() < 0.05, "{exact_moments:?} {drawn_moments:?}");
            for at in [-0.3, -0.1, 0.05, 0.2, 0.35, 0.6] {
                let below = |values: &[f64]| values.iter().filter(|&&v| v < at).count() as f64 / values.len() as f64;
                assert!((below(&exact) - below(&drawn)).abs() < 0.015, "at {at} in {differences:?}");
            }
            let interval = paired(&differences, &mut stream(1, "t", 0, 0)).unwrap();
            assert!((interval.difference - exact_moments.0).abs() < 1e-12);
            // An atom of the distribution is 1 / (seeds * images) wide.
            let atom = 1. / (differences.len() * images) as f64 + 1e-9;
            assert!((interval.low - percentile(&exact, TAIL)).abs() <= atom, "{interval:?}");
            assert!((interval.high - percentile(&exact, 1. - TAIL)).abs() <= atom, "{interval:?}");
        }
    }

    #[test]
    fn of_a_mean_over_images_both_ways_find_the_same_interval() {
        let differences = [vec![1, 0, 1, 0, -1, 0, 1, 1, 0, 0], vec![0, 1, 1, 0, 0, 0, -1, 1, 1, 0]];
        let mean = |seed: usize, times: &[u32]| {
            let sum: f64 =
                differences[seed].iter().zip(times).map(|(&d, &n): (&i8, _)| f64::from(d) * f64::from(n)).sum();
            Some([sum / 10., -sum / 10.])
        };
        let expected = paired(&differences, &mut stream(1, "t", 0, 0)).unwrap();
        let [found, negative] = paired_statistics(2, 10, mean, &mut stream(2, "t", 0, 0)).unwrap();
        assert!((found.difference - expected.difference).abs() < 1e-12, "{found:?} {expected:?}");
        assert!((found.low - expected.low).abs() < 0.051 && (found.high - expected.high).abs() < 0.051, "{found:?}");
        assert!((negative.low + found.high).abs() < 1e-12 && (negative.high + found.low).abs() < 1e-12);
        assert_eq!(paired_statistics(0, 10, mean, &mut stream(2, "t", 0, 0)), None);
        assert_eq!(paired_statistics(2, 0, mean, &mut stream(2, "t", 0, 0)), None);
        assert_eq!(paired_statistics(2, 10, |_, _| None::<[f64; 1]>, &mut stream(2, "t", 0, 0)), None);
    }

    #[test]
    fn equal_methods_differ_by_nothing_and_nothing_has_no_interval() {
        let none = paired(&[vec![0; 50], vec![0; 50]], &mut stream(1, "t", 0, 0)).unwrap();
        assert_eq!(none, Interval { difference: 0., low: 0., high: 0. });
        assert_eq!(paired(&[], &mut stream(1, "t", 0, 0)), None);
        assert_eq!(paired(&[vec![]], &mut stream(1, "t", 0, 0)), None);
        assert_eq!(paired(&[vec![1], vec![1, 0]], &mut stream(1, "t", 0, 0)), None);
    }

    // By numpy.percentile([1, 2, 4, 8], [2.5, 50, 97.5]).
    #[test]
    fn percentiles_are_numpys() {
        let values = [1., 2., 4., 8.];
        for (share, expected) in [(0.025, 1.075), (0.5, 3.), (0.975, 7.7)] {
            assert!((percentile(&values, share) - expected).abs() < 1e-12);
        }
    }
}
