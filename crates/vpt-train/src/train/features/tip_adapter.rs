//! Tip-Adapter: the cache of training images, and the weight and sharpness that do best on the validation images.
//!
//! As in the public code of Zhang et al. (2022): a key is the mean embedding of an image's augmented views, scaled to length 1;
//! 200 values of beta from 0.1 to 7 and 20 of alpha from 0.1 to 3 are tried. There the choice is among test results; here it
//! is the highest accuracy on validation, of equals the lower loss, of equals the smaller beta, then alpha.

use super::logistic::Labelled;
use vpt_base::candle::Fault;
use vpt_base::{Result, linear_algebra::normalize_l2, logits::argmax, parallel::shares};
use vpt_model::head::BoundHead;

/// Weight and sharpness while keys are learned: the public code's for `ImageNet`.
pub(crate) const ALPHA: f64 = 1.17;
pub(crate) const BETA: f64 = 1.;
/// Values that are tried, from [`LEAST`] to just below the second number.
const ALPHAS: (usize, f64) = (20, 3.);
const BETAS: (usize, f64) = (200, 7.);
const LEAST: f64 = 0.1;

/// Keys `[n, D]` of features `[views, n, D]`.
pub(crate) fn keys(views: &[f32], images: usize, width: usize) -> Vec<f32> {
    let mut sums = vec![0f64; images * width];
    for view in views.chunks_exact((images * width).max(1)) {
        sums.iter_mut().zip(view).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    let count = (views.len() / sums.len().max(1)).max(1) as f64;
    let mut keys: Vec<f32> = sums.iter().map(|sum| (sum / count) as f32).collect();
    normalize_l2(&mut keys, width);
    keys
}

/// The cache whose weight and sharpness are to be chosen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TipCache<'a> {
    /// The class weights beside it.
    pub(crate) texts: &'a BoundHead,
    /// `[N, D]`.
    pub(crate) keys: &'a [f32],
    /// The class of each key `[N]`.
    pub(crate) labels: &'a [u32],
}

/// How good a weight and a sharpness are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Choice {
    pub(crate) alpha: f64,
    pub(crate) beta: f64,
    /// Share of the validation images that are right, and their mean cross-entropy.
    pub(crate) acc1: f64,
    pub(crate) loss: f64,
}

/// The `i`-th of `count` values between [`LEAST`] and `most`.
fn value(i: usize, (count, most): (usize, f64)) -> f64 {
    i as f64 * (most - LEAST) / count as f64 + LEAST
}

/// The choice that does best on `val`.
pub(crate) fn choose(cache: TipCache, val: Labelled, threads: usize) -> Result<Choice> {
    let rows = Rows::new(cache, val)?;
    let right: Vec<usize> =
        shares(BETAS.0, threads, |betas| betas.map(|beta| rows.right(value(beta, BETAS))).collect::<Vec<_>>())
            .into_iter()
            .flatten()
            .flatten()
            .collect();
    let most = right.iter().copied().max().unwrap_or(0);
    let tied: Vec<usize> = (0..right.len()).filter(|&i| right[i] == most).collect();
    let at = |i: usize| (value(i % ALPHAS.0, ALPHAS), value(i / ALPHAS.0, BETAS));
    let losses = shares(tied.len(), threads, |range| tied[range].iter().map(|&i| rows.loss(at(i))).collect::<Vec<_>>());
    let mut best = (f64::INFINITY, 0);
    for (loss, &i) in losses.into_iter().flatten().zip(&tied) {
        if loss < best.0 {
            best = (loss, i);
        }
    }
    let (alpha, beta) = at(best.1);
    let images = val.labels.len().max(1) as f64;
    Ok(Choice { alpha, beta, acc1: most as f64 / images, loss: best.0 })
}

/// What no choice changes: the logits of the texts `[n, C]` and the affinities to the keys `[n, N]`.
struct Rows<'a> {
    texts: Vec<f32>,
    affinities: Vec<f32>,
    keys: &'a [u32],
    labels: &'a [u32],
    classes: usize,
}

impl<'a> Rows<'a> {
    fn new(cache: TipCache<'a>, val: Labelled<'a>) -> Result<Self, Fault> {
        let width = val.width();
        let mut unit = val.features.to_vec();
        normalize_l2(&mut unit, width);
        let tensor = |values: &[f32]| cache.texts.features(values);
        let affinities = tensor(&unit)?.matmul(&tensor(cache.keys)?.t()?)?.flatten_all()?.to_vec1()?;
        Ok(Self {
            texts: cache.texts.logits(val.features)?,
            affinities,
            keys: cache.labels,
            labels: val.labels,
            classes: cache.texts.head().classes,
        })
    }

    /// For each image its logits by the texts, what the cache adds to each class at a weight of 1, and its class.
    fn each(&self, beta: f64, mut see: impl FnMut(&[f32], &[f32], usize)) {
        let mut added = vec![0f32; self.classes];
        let affinities = self.affinities.chunks_exact(self.keys.len().max(1));
        for ((texts, affinities), &label) in self.texts.chunks_exact(self.classes).zip(affinities).zip(self.labels) {
            added.fill(0.);
            for (&affinity, &key) in affinities.iter().zip(self.keys) {
                added[key as usize] += (beta as f32 * (affinity - 1.)).exp();
            }
            see(texts, &added, label as usize);
        }
    }

    /// How many images are right, for each alpha.
    fn right(&self, beta: f64) -> Vec<usize> {
        let mut right = vec![0; ALPHAS.0];
        let mut logits = vec![0f32; self.classes];
        self.each(beta, |texts, added, label| {
            for (i, right) in right.iter_mut().enumerate() {
                sum(&mut logits, texts, added, value(i, ALPHAS));
                *right += usize::from(argmax(&logits) == label);
            }
        });
        right
    }

    /// Mean cross-entropy.
    fn loss(&self, (alpha, beta): (f64, f64)) -> f64 {
        let mut loss = 0.;
        let mut logits = vec![0f32; self.classes];
        self.each(beta, |texts, added, label| {
            sum(&mut logits, texts, added, alpha);
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
            loss += powers.ln() - f64::from(logits[label] - max);
        });
        loss / self.labels.len().max(1) as f64
    }
}

fn sum(logits: &mut [f32], texts: &[f32], added: &[f32], alpha: f64) {
    for ((logit, text), added) in logits.iter_mut().zip(texts).zip(added) {
        *logit = text + alpha as f32 * added;
    }
}
