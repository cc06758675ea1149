//! Classes told by their names in templates, through towers with low-rank changes: the step of `lora` without a head of its own.

use std::ops::Range;
use std::sync::Arc;

use super::{LogitsKind, Model, StepInput, StepOutput, labels_of, text::cross_entropy};
use crate::{
    loss::{Loss, text::TextLoss},
    prompt::{
        part::Drawn,
        weights::{Towers, WeightTuning},
    },
};
use vpt_backbone::{
    Backbone,
    class_texts::Prompts,
    text::TunedTape,
    vit::{Pass, Want},
};
use vpt_base::{
    Error, Result,
    linear_algebra::normalize_l2,
    params::{Group, Param},
};

/// Texts of classes in templates and the weights that they are read through: the model's only part.
#[derive(Debug, Clone)]
pub(super) struct TemplateTexts {
    weights: Arc<WeightTuning>,
    /// The texts, once they are known.
    texts: Option<EmbeddedTexts>,
}

/// The texts of classes, each in every template.
#[derive(Debug, Clone)]
struct EmbeddedTexts {
    /// Token ids `[C · T]`, the templates of a class one behind the other.
    ids: Vec<Vec<u32>>,
    /// Templates, T.
    templates: usize,
    /// Their embeddings `[C · T, E]`, where the text tower stays as it is.
    frozen: Option<Vec<f32>>,
}

impl TemplateTexts {
    /// The texts that `prompts` make, if these are known already, read through the towers of `weights`.
    ///
    /// # Errors
    /// The names are too many or too few, or the tokenizer fails on a text.
    pub(super) fn new(
        backbone: &Backbone,
        weights: Arc<WeightTuning>,
        prompts: Option<&Prompts>,
        classes: usize,
        threads: usize,
    ) -> Result<Self> {
        let Some(prompts) = prompts else { return Ok(Self { weights, texts: None }) };
        let (named, templates) = (prompts.classnames.len(), prompts.templates.len());
        if named != classes || templates == 0 {
            return Err(Error::invalid("classes", format!("{named} names in {templates} templates for {classes}")));
        }
        let texts: Vec<String> = (0..classes).flat_map(|class| prompts.texts(class)).collect();
        let frozen = if weights.tunes_texts() { None } else { Some(backbone.embed_texts(&texts, threads)?) };
        let texts = EmbeddedTexts { ids: backbone.token_ids(&texts)?, templates, frozen };
        Ok(Self { weights, texts: Some(texts) })
    }

    fn texts(&self) -> Result<&EmbeddedTexts> {
        self.texts.as_ref().ok_or_else(|| Error::invalid("classes", "texts cannot be made without their names"))
    }
}

impl EmbeddedTexts {
    /// Of each class the mean of its unit embeddings, `[C, E]`, from the embeddings `[C · T, E]`.
    fn means(&self, mut embeds: Vec<f32>, width: usize) -> Vec<f32> {
        normalize_l2(&mut embeds, width);
        let mean = |class: &[f32]| {
            let mut mean = vec![0.; width];
            class.chunks_exact(width).for_each(|row| mean.iter_mut().zip(row).for_each(|(m, v)| *m += v));
            mean.into_iter().map(|m| m / self.templates as f32).collect::<Vec<_>>()
        };
        embeds.chunks_exact(self.templates * width).flat_map(mean).collect()
    }

    /// The VJP of [`Self::means`]: `[C · T, E]` from `[C, E]`.
    fn means_vjp(&self, embeds: &[f32], gradient: &[f32], width: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(embeds.len());
        for (class, gradient) in embeds.chunks_exact(self.templates * width).zip(gradient.chunks_exact(width)) {
            for row in class.chunks_exact(width) {
                let length = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
                let along = row.iter().zip(gradient).map(|(v, g)| v * g).sum::<f32>() / (length * length);
                let share = 1. / (length * self.templates as f32);
                out.extend(row.iter().zip(gradient).map(|(v, g)| share * (g - along * v)));
            }
        }
        out
    }
}

impl Model {
    /// Loss and gradients of a batch of images.
    pub(super) fn step_of_templates(
        &self,
        own: &TemplateTexts,
        params: &[Param],
        input: &StepInput,
    ) -> Result<StepOutput> {
        let images = StepImages::Pixels(input.images, input.micro_batch);
        self.step_by_texts(own, params, input.drawn.first(), &images, input.labels, input.loss)
    }

    /// As [`Model::head_step`], where the image tower is as it was.
    pub(super) fn head_step_of_templates(
        &self,
        own: &TemplateTexts,
        params: &[Param],
        drawn: Option<&Drawn>,
        embeds: &[f32],
        labels: &[u32],
        loss: &Loss,
    ) -> Result<StepOutput> {
        self.step_by_texts(own, params, drawn, &StepImages::Embeddings(embeds), labels, loss)
    }

    /// The step where classes are told by texts.
    fn step_by_texts(
        &self,
        own: &TemplateTexts,
        params: &[Param],
        drawn: Option<&Drawn>,
        images: &StepImages,
        all_labels: &[u32],
        loss: &Loss,
    ) -> Result<StepOutput> {
        let (classify, width, batch) = (cross_entropy(loss)?, self.head.width, all_labels.len());
        let total = loss.weight(all_labels);
        let drawn = drawn.unwrap_or(&Drawn::Nothing);
        let template_texts = own.texts()?;
        let towers = &*own.weights.towers(self.values(params, 0)?, drawn, self.threads)?;
        let (embeds, tape) = self.template_embeds(template_texts, towers, true)?;
        let texts = template_texts.means(embeds.clone(), width);
        let loss = TextLoss { classify, scale: self.logit_scale(), texts: &texts, width, frozen: None };
        let of_part = |range: Range<usize>, tokens: &[f32]| {
            let labels = labels_of(all_labels, range)?;
            let embeds = self.backbone.project(tokens.to_vec());
            let mut part = loss.gradients(&embeds, &[], labels, (batch, total))?;
            Ok((self.backbone.project_vjp(std::mem::take(&mut part.features)), part))
        };
        let (mut gradients, mut output) = match (images, towers.image()) {
            (StepImages::Pixels(pixels, micro_batch), tuned @ Some(_)) => {
                let (want, micro_batch) = (Want { weights: true, ..Want::default() }, *micro_batch);
                let pass = Pass { tuned, want, micro_batch, ..Pass::forward(pixels, self.threads) };
                let (gradients, parts) = self.backbone.vit.step(&pass, &of_part)?;
                (gradients.weights.unwrap_or_default(), StepOutput::sum(parts))
            }
            (StepImages::Pixels(pixels, _), None) => {
                let tokens = self.backbone.vit.features(pixels, None, self.threads)?;
                (Vec::new(), StepOutput::sum(vec![of_part(0..batch, &tokens)?.1]))
            }
            (StepImages::Embeddings(embeds), _) => {
                let part = loss.gradients(embeds, &[], all_labels, (batch, total))?;
                (Vec::new(), StepOutput::sum(vec![part]))
            }
        };
        let d_texts = output.gradients.pop().unwrap_or_default();
        if let Some(tuned) = towers.texts() {
            let d_embeds = template_texts.means_vjp(&embeds, &d_texts, width);
            gradients.extend(self.backbone.text_tower()?.tuned_vjp(tuned, tape, &template_texts.ids, &d_embeds));
        }
        output.gradients = own.weights.unmask(gradients, drawn);
        Ok(output)
    }

    /// Embeddings of the classes' texts `[C · T, E]`, and what their VJP needs if `keep`.
    fn template_embeds(&self, texts: &EmbeddedTexts, towers: &Towers, keep: bool) -> Result<(Vec<f32>, TunedTape)> {
        match (&texts.frozen, towers.texts()) {
            (Some(frozen), _) => Ok((frozen.clone(), TunedTape::default())),
            (None, Some(tuned)) => Ok(self.backbone.text_tower()?.embed_tuned(tuned, &texts.ids, keep, self.threads)),
            (None, None) => Err(Error::invalid("texts", "there is no tower for them")),
        }
    }

    /// The texts of the classes as a cosine head.
    pub(super) fn head_of_templates(&self, own: &TemplateTexts, params: &[Param]) -> Result<Vec<Param>> {
        let (texts, width) = (own.texts()?, self.head.width);
        let towers = own.weights.towers(self.values(params, 0)?, &Drawn::Nothing, self.threads)?;
        let mut weight = texts.means(self.template_embeds(texts, &towers, false)?.0, width);
        normalize_l2(&mut weight, width);
        Ok(vec![
            Param::new("head.weight", &[self.head.classes, width], weight, Group::Fixed)?,
            Param::new("head.log_scale", &[1], vec![self.logit_scale().ln()], Group::Fixed)?,
        ])
    }

    /// Text embeddings `[T, E]` of CLIP, not normalised, through what the task has made of its text tower.
    ///
    /// # Errors
    /// As [`Backbone::embed_texts`], or the values are not this model's.
    pub fn embed_texts<S: AsRef<str>>(&self, params: &[Param], texts: &[S]) -> Result<Vec<f32>> {
        let weights = match &self.output {
            LogitsKind::TemplateTexts(own) if own.weights.tunes_texts() => &own.weights,
            _ => return self.backbone.embed_texts(texts, self.threads),
        };
        let ids = self.backbone.token_ids(texts)?;
        let texts = EmbeddedTexts { ids, templates: 1, frozen: None };
        let towers = weights.towers(self.values(params, 0)?, &Drawn::Nothing, self.threads)?;
        Ok(self.template_embeds(&texts, &towers, false)?.0)
    }
}

/// What a step that tells classes by texts sees of its images.
enum StepImages<'a> {
    /// Pixels, and how many images a thread takes at a time.
    Pixels(&'a [f32], Option<usize>),
    /// Embeddings, which never change.
    Embeddings(&'a [f32]),
}

#[cfg(test)]
mod tests;
