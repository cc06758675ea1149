//! CLAP's penalty, which holds each class's weights near the texts that name it the more, the better those texts do.
//!
//! Silva-Rodríguez et al., "A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models" (CVPR 2024), in the form
//! of its public code: the loss of a batch gains `mean_c lambda_c ||w_c - t_c||²`, with `t_c` the mean text embedding of
//! class c, not scaled to length 1, where `w_c` starts. The multiplier `lambda_c` is the mean probability that the texts give
//! class c for the (augmented) training images of class c; it stays as it is.

use vpt_base::{Error, Result, params::Param};
use vpt_model::{head::BoundHead, model::StepOutput};

use super::logistic::Labelled;

/// The penalty.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Penalty {
    /// `[C]`.
    multipliers: Vec<f32>,
    /// `[C, D]`.
    texts: Vec<f32>,
}

impl Penalty {
    /// The penalty of weights that start at `texts` `[C, D]`; `zero_shot` is the head of these texts and `train` what is
    /// learned from.
    pub(crate) fn new(texts: Vec<f32>, zero_shot: &BoundHead, train: Labelled) -> Result<Self> {
        let classes = zero_shot.head().classes;
        let logits = zero_shot.logits(train.features)?;
        let mut sums = vec![(0f64, 0u32); classes];
        for (row, &label) in logits.chunks_exact(classes).zip(train.labels) {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: f64 = row.iter().map(|&logit| f64::from(logit - max).exp()).sum();
            let (sum, images) = &mut sums[label as usize];
            *sum += f64::from(row[label as usize] - max).exp() / powers;
            *images += 1;
        }
        let multipliers = sums.iter().map(|&(sum, images)| (sum / f64::from(images.max(1))) as f32).collect();
        Ok(Self { multipliers, texts })
    }

    /// Adds value and gradient, for the weights among `params`, to those of a batch whose images weigh `total` together, as in
    /// [`vpt_model::loss::Loss::weight`].
    pub(crate) fn add_to(&self, output: &mut StepOutput, params: &[Param], total: f64) -> Result<()> {
        let position = params.iter().position(|param| param.name == "head.weight");
        let Some((weight, gradient)) = position.and_then(|i| Some((&params[i].values, output.gradients.get_mut(i)?)))
        else {
            return Err(Error::invalid("head.weight", "no such tensor among the learned ones"));
        };
        let classes = self.multipliers.len();
        let width = self.texts.len() / classes;
        let mut value = 0f64;
        for (i, ((g, w), t)) in gradient.iter_mut().zip(weight).zip(&self.texts).enumerate() {
            let multiplier = f64::from(self.multipliers[i / width]) / classes as f64;
            let way = f64::from(*w) - f64::from(*t);
            value += multiplier * way * way;
            *g += (2. * multiplier * way) as f32;
        }
        output.loss += value * total;
        Ok(())
    }

    /// The multipliers `[C]`.
    #[cfg(test)]
    pub(crate) fn multipliers(&self) -> &[f32] {
        &self.multipliers
    }
}
