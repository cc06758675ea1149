//! A step: the loss of a batch and its gradient for everything that is learned.

use std::ops::Range;

use super::{Frozen, LogitsKind, Model};
use crate::{
    head::label_map::Vote,
    loss::{Loss, LossGradients},
    prompt::part::{Drawn, Gradients},
};
use vpt_base::{Error, Result, params::Param};

/// A batch to learn from.
#[derive(Debug)]
pub struct StepInput<'a> {
    /// Images `[B, 3, s, s]` as [`Model::preprocess`] makes them.
    pub images: &'a [f32],
    /// Blocks that `images` are behind, which then are tokens as [`Model::prefix`] makes them; 0: images.
    pub blocks: usize,
    /// Their labels, as the loss takes them.
    pub labels: &'a [u32],
    /// What was drawn at random for each part ([`Model::draw`]); nothing for those that are not in it.
    pub drawn: &'a [Drawn],
    /// The loss.
    pub loss: &'a Loss,
    /// What PromptSRC ties the learned embeddings to.
    pub frozen: Option<Frozen<'a>>,
    /// Images whose activations are in memory at once.
    pub micro_batch: Option<usize>,
}

/// What a step yields.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepOutput {
    /// Sum of the images' losses.
    pub loss: f64,
    /// Images that are right, as [`LossGradients::correct`].
    pub correct: usize,
    /// Gradient of the mean loss for each learned tensor, in the order of [`Model::init`].
    pub gradients: Vec<Vec<f32>>,
    /// What the images count for the label mapping of the next epoch.
    pub votes: Vec<Vote>,
}

impl StepOutput {
    /// Adds up the parts of a batch, in order.
    pub(super) fn sum(parts: Vec<LossGradients>) -> Self {
        let mut parts = parts.into_iter();
        let first = parts.next().unwrap_or_default();
        let mut sum = Self { loss: first.loss, correct: first.correct, gradients: first.head, votes: Vec::new() };
        for part in parts {
            sum.loss += part.loss;
            sum.correct += part.correct;
            for (total, gradient) in sum.gradients.iter_mut().zip(&part.head) {
                total.iter_mut().zip(gradient).for_each(|(t, g)| *t += g);
            }
        }
        sum
    }
}

impl Model {
    /// Loss and gradients of a batch.
    pub fn step(&self, params: &[Param], input: &StepInput) -> Result<StepOutput> {
        match &self.output {
            LogitsKind::LearnedTexts(texts) => self.step_of_texts(texts, params, input),
            LogitsKind::TemplateTexts(texts) => self.step_of_templates(texts, params, input),
            _ if self.parts.is_empty() => {
                let features = self.features(params, input.images)?;
                self.head_step(params, &[], &features, input.labels, input.loss)
            }
            _ => self.step_of_head(params, input),
        }
    }

    /// As [`Self::step`] on [`Self::features`] that are known already: for the head, or the texts, alone.
    pub fn head_step(
        &self,
        params: &[Param],
        drawn: &[Drawn],
        features: &[f32],
        labels: &[u32],
        loss: &Loss,
    ) -> Result<StepOutput> {
        match &self.output {
            LogitsKind::LearnedTexts(texts) => self.head_step_of_texts(texts, params, features, labels, loss),
            LogitsKind::TemplateTexts(texts) => {
                self.head_step_of_templates(texts, params, drawn.first(), features, labels, loss)
            }
            _ => Ok(StepOutput::sum(vec![loss.head_gradients(&self.bind(params)?, features, labels)?])),
        }
    }

    /// The step of a head, forward and backward through the backbone.
    fn step_of_head(&self, params: &[Param], input: &StepInput) -> Result<StepOutput> {
        let head = self.bind(params)?;
        let total = input.loss.weight(input.labels);
        let inputs = self.join(params, input.images, input.drawn)?;
        let loss = |range: Range<usize>, read: &[f32]| {
            let labels = labels_of(input.labels, range)?;
            match &self.output {
                LogitsKind::Embedding => {
                    let embeds = inputs.project(&self.backbone, read.to_vec());
                    let mut part = input.loss.gradients(&head, &embeds, labels, total)?;
                    let gradient = std::mem::take(&mut part.features);
                    let (gradient, of_projection) = inputs.project_vjp(&self.backbone, read, gradient);
                    part.head.splice(0..0, of_projection);
                    Ok((gradient, (part, Vec::new())))
                }
                output => {
                    let mut part = input.loss.gradients(&head, read, labels, total)?;
                    let votes =
                        if let LogitsKind::LabelMap(mapped) = output { mapped.votes(read, labels) } else { Vec::new() };
                    Ok((std::mem::take(&mut part.features), (part, votes)))
                }
            }
        };
        let pass = self.mapped_pass(inputs.pass(input.blocks, input.micro_batch));
        let (of_pass, parts) = self.backbone.vit.step(&pass, &loss)?;
        let (parts, votes): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let mut output = StepOutput { votes: votes.concat(), ..StepOutput::sum(parts) };
        let tuned = inputs.tunes_projection() && !output.gradients.is_empty();
        let of_projection = tuned.then(|| output.gradients.remove(0));
        let of_parts = self.take(params, input.drawn, Gradients { of_pass, of_projection })?;
        output.gradients.splice(0..0, of_parts);
        Ok(output)
    }
}

/// The labels of the images of a step at `range`.
pub(super) fn labels_of(all: &[u32], range: Range<usize>) -> Result<&[u32]> {
    all.get(range).ok_or_else(|| Error::invalid("labels", "fewer than images"))
}
