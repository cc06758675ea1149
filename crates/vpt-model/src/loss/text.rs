//! The loss of methods that learn texts: cross-entropy of scaled cosines between images and texts, and PromptSRC's ties to what
//! the frozen backbone makes of both.
//!
//! Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023.

use candle_core::{D, Device, Tensor, Var};
use candle_nn::ops::log_softmax;

use crate::head::unit_rows;
use crate::loss::{CrossEntropy, LossGradients};
use vpt_base::candle::Fault;
use vpt_base::{Error, Result, logits::argmax};

/// Weights of the mean distances between learned and frozen embeddings of images and of texts. The divergence of the logits
/// has weight 1.
const IMAGE_WEIGHT: f64 = 10.;
const TEXT_WEIGHT: f64 = 25.;

/// The texts that images are compared with, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TextLoss<'a> {
    /// Loss of the logits.
    pub(crate) classify: &'a CrossEntropy,
    /// The factor between cosine and logit.
    pub(crate) scale: f32,
    /// Embeddings of the classes' texts `[C, E]`, of any length.
    pub(crate) texts: &'a [f32],
    /// Width E of an embedding.
    pub(crate) width: usize,
    /// The frozen texts `[C, E]` that [`Self::texts`] and images are tied to, if they are.
    pub(crate) frozen: Option<&'a [f32]>,
}

impl TextLoss<'_> {
    fn classes(&self) -> usize {
        self.texts.len() / self.width
    }

    /// A tensor `[.., E]`.
    fn rows(&self, values: &[f32]) -> Result<Tensor, Fault> {
        Ok(Tensor::from_slice(values, (values.len() / self.width, self.width), &Device::Cpu)?)
    }

    fn logits(&self, images: &Tensor, texts: &Tensor) -> Result<Tensor, Fault> {
        Ok(images.matmul(&texts.t()?)?.affine(f64::from(self.scale), 0.)?)
    }

    /// Loss and gradients for image embeddings `[m, E]` with `labels` `[m]`, part of a batch of `batch` images that weigh `total`
    /// together (see [`Loss::weight`](crate::loss::Loss::weight)) and whose mean loss is minimised; ties have no weights. `head` is the gradient of the texts. `frozen` `[m, E]` are the embeddings without prompts, which images are
    /// tied to where texts are. The tie of the texts, which no image has a part in, is [`Self::tie`].
    pub(crate) fn gradients(
        &self,
        embeds: &[f32],
        frozen: &[f32],
        labels: &[u32],
        (batch, total): (usize, f64),
    ) -> Result<LossGradients, Fault> {
        if embeds.len() != labels.len() * self.width {
            return Err(Error::invalid("labels", format!("{} labels for {} values", labels.len(), embeds.len())).into());
        }
        if let Some(label) = labels.iter().find(|&&l| l as usize >= self.classes()) {
            return Err(Error::invalid("labels", format!("class {label} where there are {}", self.classes())).into());
        }
        let (images, texts) = (Var::from_tensor(&self.rows(embeds)?)?, Var::from_tensor(&self.rows(self.texts)?)?);
        let (unit_images, unit_texts) = (unit_rows(&images)?, unit_rows(&texts)?);
        let logits = self.logits(&unit_images, &unit_texts)?;
        let targets = Tensor::from_slice(labels, labels.len(), &Device::Cpu)?;
        let mut loss = self.classify.sum(&logits, &targets)?;
        let mut mean = loss.affine(1. / total, 0.)?;
        if let Some(frozen_texts) = self.frozen {
            let frozen_images = unit_rows(&self.rows(frozen)?)?;
            let distance = (&unit_images - &frozen_images)?.abs()?.sum_all()?;
            let before = log_softmax(&self.logits(&frozen_images, &self.rows(frozen_texts)?)?, D::Minus1)?;
            let divergence = (before.exp()? * (&before - log_softmax(&logits, D::Minus1)?)?)?.sum_all()?;
            let tie = distance.affine(IMAGE_WEIGHT / self.width as f64, 0.)?;
            let tie = (tie + divergence.affine(1. / self.classes() as f64, 0.)?)?;
            mean = (mean + tie.affine(1. / batch as f64, 0.)?)?;
            loss = (loss + tie)?;
        }
        let gradients = mean.backward()?;
        let flat = |var: &Var| -> Result<Vec<f32>, Fault> {
            let gradient =
                gradients.get(var).ok_or_else(|| Error::invalid("loss", "an embedding has no part in it"))?;
            Ok(gradient.flatten_all()?.to_vec1()?)
        };
        let rows: Vec<Vec<f32>> = logits.to_vec2()?;
        Ok(LossGradients {
            loss: f64::from(loss.to_scalar::<f32>()?),
            correct: rows.iter().zip(labels).filter(|(row, label)| argmax(row) == **label as usize).count(),
            features: flat(&images)?,
            head: vec![flat(&texts)?],
        })
    }

    /// The tie of the texts to the frozen ones: 25 times the mean distance of their values, and its gradient for the texts.
    pub(crate) fn tie(&self) -> Result<Option<(f64, Vec<f32>)>, Fault> {
        let Some(frozen) = self.frozen else { return Ok(None) };
        let texts = Var::from_tensor(&self.rows(self.texts)?)?;
        let distance = (unit_rows(&texts)? - self.rows(frozen)?)?.abs()?.mean_all()?.affine(TEXT_WEIGHT, 0.)?;
        let gradients = distance.backward()?;
        let gradient = gradients.get(&texts).ok_or_else(|| Error::invalid("loss", "the texts have no part in it"))?;
        Ok(Some((f64::from(distance.to_scalar::<f32>()?), gradient.flatten_all()?.to_vec1()?)))
    }
}
