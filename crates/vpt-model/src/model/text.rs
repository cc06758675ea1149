//! Classes told by texts with learned vectors in them: the step of CoOp, CoCoOp, IVLP, MaPLe and PromptSRC, and their classifier.

use std::ops::Range;

use super::{LogitsKind, Model, StepInput, StepOutput, labels_of};
use crate::{
    head::BoundHead,
    loss::{CrossEntropy, Loss, text::TextLoss},
    prompt::{
        part::Gradients,
        text::{Beside, TextShape, chain, shifts, vectors},
    },
};
use vpt_backbone::{
    Backbone,
    class_texts::{Prompts, class_texts},
    text::{PromptedTexts, TextPrompts},
};
use vpt_base::{
    Error, Result,
    candle::Fault,
    linear_algebra::normalize_l2,
    parallel,
    params::{Group, Param},
};

/// The texts of the classes, with places for what is learned in them: the values of the model's only part.
#[derive(Debug, Clone)]
pub(super) struct LearnedTexts {
    shape: TextShape,
    texts: PromptedTexts,
}

/// What PromptSRC ties the learned embeddings to.
#[derive(Debug, Clone, Copy)]
pub struct Frozen<'a> {
    /// Unit embeddings `[C, E]` of the classes, without learned vectors ([`Model::frozen_texts`]).
    pub texts: &'a [f32],
    /// Features `[B, D]` of the images without prompts; computed if `None`.
    pub features: Option<&'a [f32]>,
}

/// A model's last part with these learned values in it: features to logits.
#[derive(Debug, Clone)]
pub struct Classifier<'a> {
    model: &'a Model,
    params: &'a [Param],
    kind: BoundClassifier,
}

/// What a [`Classifier`] has made of the learned values, to be used for any number of images.
#[derive(Debug, Clone)]
pub(super) enum BoundClassifier {
    /// A head on the features.
    Features(BoundHead),
    /// A head on their embeddings: what the texts of the classes have become.
    Embeddings(BoundHead),
    /// Texts of their own for every image.
    Images,
}

impl Classifier<'_> {
    /// Logits `[B, C]` of features `[B, D]`.
    pub fn logits(&self, features: &[f32]) -> Result<Vec<f32>> {
        self.model.classify(&self.kind, self.params, features)
    }
}

impl LearnedTexts {
    /// Texts that call `classes` classes by these names.
    ///
    /// # Errors
    /// The names are too many or too few, or the tokenizer fails on one.
    pub(super) fn new(backbone: &Backbone, shape: TextShape, names: &[String], classes: usize) -> Result<Self> {
        if names.len() != classes {
            return Err(Error::invalid("classes", format!("{} names for {classes}", names.len())));
        }
        let sentences: Vec<String> = names.iter().map(|name| format!("{name}.")).collect();
        Ok(Self { shape, texts: backbone.class_texts(&sentences, shape.tokens)? })
    }

    /// Whether they make a head, which task files keep.
    pub(super) fn keeps_head(&self) -> bool {
        self.shape.keeps_head()
    }

    /// The texts around the vectors.
    pub(super) fn texts(&self) -> &PromptedTexts {
        &self.texts
    }

    fn prompts<'a>(&self, data: &'a [f32]) -> TextPrompts<'a> {
        TextPrompts { layers: self.shape.layers, tokens: self.shape.tokens, data }
    }
}

/// Embeddings `[k, D]` of the words that vectors of this shape begin as.
///
/// # Errors
/// The words are fewer tokens than there are vectors, or the tokenizer fails on them.
pub(super) fn first_words(backbone: &Backbone, shape: &TextShape, words: &str) -> Result<Vec<f32>> {
    let embeddings = backbone.word_embeddings(words)?;
    let (found, wanted) = (embeddings.len() / backbone.text_spec()?.tower.width, shape.tokens);
    if found < wanted {
        let message = format!("'{}' is {found} tokens where {wanted} vectors are learned", words.escape_debug());
        return Err(Error::setting("context_init", message));
    }
    Ok(embeddings)
}

impl Model {
    /// Unit vectors `[C, E]` that stand for classes as the frozen backbone sees them: of each the mean of its embeddings in all
    /// templates, as PromptSRC takes it, which does not normalise them first.
    ///
    /// # Errors
    /// The backbone has no text tower.
    pub fn frozen_texts(&self, prompts: &Prompts) -> Result<Vec<f32>> {
        let mut texts = class_texts(prompts, |texts| self.backbone.embed_texts(texts, self.threads))?.mean;
        normalize_l2(&mut texts, self.backbone.embedding_width());
        Ok(texts)
    }

    /// Features to logits, with these learned values, which may be those of training or those of a task file.
    ///
    /// # Errors
    /// The values are not this model's.
    pub fn classifier<'a>(&'a self, params: &'a [Param]) -> Result<Classifier<'a>> {
        Ok(Classifier { model: self, params, kind: self.bind_classifier(params)? })
    }

    /// What [`Self::classify`] needs of these learned values.
    pub(super) fn bind_classifier(&self, params: &[Param]) -> Result<BoundClassifier> {
        let (kept, learned) = (self.head_values(params), self.learned(params));
        Ok(match &self.output {
            LogitsKind::TemplateTexts(texts) if kept.is_empty() => {
                BoundClassifier::Features(self.head.bind(&self.head_of_templates(texts, learned)?)?)
            }
            LogitsKind::TemplateTexts(_) => BoundClassifier::Features(self.head.bind(kept)?),
            LogitsKind::LearnedTexts(texts) if !texts.keeps_head() => BoundClassifier::Images,
            LogitsKind::LearnedTexts(texts) if kept.is_empty() => {
                BoundClassifier::Embeddings(self.head.bind(&self.head_of_texts(texts, learned)?)?)
            }
            LogitsKind::LearnedTexts(_) => BoundClassifier::Embeddings(self.head.bind(kept)?),
            _ => BoundClassifier::Features(self.bind(params)?),
        })
    }

    /// Logits `[B, C]` of features `[B, D]` by what [`Self::bind_classifier`] made of `params`.
    pub(super) fn classify(&self, bound: &BoundClassifier, params: &[Param], features: &[f32]) -> Result<Vec<f32>> {
        match (bound, &self.output) {
            (BoundClassifier::Features(head), _) => head.logits(features),
            (BoundClassifier::Embeddings(head), _) => head.logits(&self.backbone.project(features.to_vec())),
            (BoundClassifier::Images, LogitsKind::LearnedTexts(texts)) => {
                self.logits_by_image(texts, self.learned(params), features)
            }
            (BoundClassifier::Images, _) => Err(Error::invalid("parameters", "not those of this model")),
        }
    }

    /// The values beside the head.
    fn learned<'a>(&self, params: &'a [Param]) -> &'a [Param] {
        &params[..params.len().min(self.part_tensors())]
    }

    /// What a task file keeps: the learned values, and the head that texts make, unless each image makes its own.
    ///
    /// # Errors
    /// The values are not this model's.
    pub fn task_params(&self, learned: &[Param]) -> Result<Vec<Param>> {
        let mut params = Self::without_votes(learned);
        match &self.output {
            LogitsKind::LearnedTexts(texts) if texts.keeps_head() => params.extend(self.head_of_texts(texts, learned)?),
            LogitsKind::TemplateTexts(texts) => params.extend(self.head_of_templates(texts, learned)?),
            _ => {}
        }
        Ok(params)
    }

    /// The texts of the classes as a cosine head.
    fn head_of_texts(&self, texts: &LearnedTexts, learned: &[Param]) -> Result<Vec<Param>> {
        let prompts = texts.prompts(&vectors(learned)?.values);
        let mut texts = self.backbone.text_tower()?.embed_prompted(&prompts, &texts.texts, self.threads)?;
        normalize_l2(&mut texts, self.head.width);
        let log_scale = self.logit_scale().ln();
        Ok(vec![
            Param::new("head.weight", &[self.head.classes, self.head.width], texts, Group::Head)?,
            Param::new("head.log_scale", &[1], vec![log_scale], Group::HeadBias)?,
        ])
    }

    pub(super) fn logit_scale(&self) -> f32 {
        self.backbone.logit_scale().unwrap_or(1.)
    }

    /// The step of texts with learned vectors in them, on a batch of images.
    pub(super) fn step_of_texts(&self, own: &LearnedTexts, params: &[Param], input: &StepInput) -> Result<StepOutput> {
        let LearnedTexts { shape, texts: class_texts } = own;
        if shape.image_tokens().is_none() {
            let features = self.features(params, input.images)?;
            return self.head_step_of_texts(own, params, &features, input.labels, input.loss);
        }
        let tower = self.backbone.text_tower()?;
        let (texts, tape) = tower.prompted(&own.prompts(&vectors(params)?.values), class_texts, self.threads)?;
        let frozen = match input.frozen {
            Some(Frozen { features: Some(features), .. }) => features.to_vec(),
            Some(_) => self.backbone.vit.features(input.images, None, self.threads)?,
            None => Vec::new(),
        };
        let (frozen, width) = (self.backbone.project(frozen), self.head.width);
        let loss = TextLoss {
            classify: cross_entropy(input.loss)?,
            scale: self.logit_scale(),
            texts: &texts,
            width,
            frozen: input.frozen.map(|frozen| frozen.texts),
        };
        let batch = input.labels.len();
        let total = input.loss.weight(input.labels);
        let of_part = |range: Range<usize>, features: &[f32]| {
            let labels = labels_of(input.labels, range.clone())?;
            let embeds = self.backbone.project(features.to_vec());
            let frozen = frozen.get(range.start * width..range.end * width).unwrap_or_default();
            let mut part = loss.gradients(&embeds, frozen, labels, (batch, total))?;
            Ok((self.backbone.project_vjp(std::mem::take(&mut part.features)), part))
        };
        let inputs = self.join(params, input.images, input.drawn)?;
        let (of_pass, parts) = self.backbone.vit.step(&inputs.pass(0, input.micro_batch), &of_part)?;
        let mut output = StepOutput::sum(parts);
        let mut d_texts = output.gradients.pop().unwrap_or_default();
        if let Some((tie, gradient)) = loss.tie()? {
            output.loss += tie * batch as f64;
            add(&mut d_texts, &gradient);
        }
        let mut d_vectors = tower.prompted_vjp(tape, class_texts, &d_texts)?;
        output.gradients = self.take(params, input.drawn, Gradients { of_pass, of_projection: None })?;
        if let Some(first) = output.gradients.first_mut() {
            // With a map, the image tower's prompts are made of the same vectors.
            add(&mut d_vectors, first);
            *first = d_vectors;
        }
        Ok(output)
    }

    /// As [`Self::step_of_texts`] on features `[B, D]` that are known already, where the image tower has no prompts.
    pub(super) fn head_step_of_texts(
        &self,
        own: &LearnedTexts,
        params: &[Param],
        features: &[f32],
        labels: &[u32],
        loss: &Loss,
    ) -> Result<StepOutput> {
        let (classify, batch) = (cross_entropy(loss)?, (labels.len(), loss.weight(labels)));
        let embeds = self.backbone.project(features.to_vec());
        if own.shape.beside == Beside::MetaNet {
            return self.step_by_image(own, params, embeds, labels, classify, batch);
        }
        let tower = self.backbone.text_tower()?;
        let (texts, tape) = tower.prompted(&own.prompts(&vectors(params)?.values), &own.texts, self.threads)?;
        let width = self.head.width;
        let loss = TextLoss { classify, scale: self.logit_scale(), texts: &texts, width, frozen: None };
        let mut output = StepOutput::sum(vec![loss.gradients(&embeds, &[], labels, batch)?]);
        let d_texts = output.gradients.pop().unwrap_or_default();
        output.gradients = vec![tower.prompted_vjp(tape, &own.texts, &d_texts)?];
        Ok(output)
    }

    /// The step of CoCoOp: every image has texts of its own.
    fn step_by_image(
        &self,
        own: &LearnedTexts,
        params: &[Param],
        mut embeds: Vec<f32>,
        labels: &[u32],
        classify: &CrossEntropy,
        batch: (usize, f64),
    ) -> Result<StepOutput> {
        let (tower, width) = (self.backbone.text_tower()?, self.head.width);
        normalize_l2(&mut embeds, width);
        let (vars, shifts) = shifts(params, &embeds)?;
        let vectors = &vectors(params)?.values;
        let mut sum = StepOutput { gradients: vec![vec![0.; vectors.len()]], ..StepOutput::default() };
        let mut d_shifts = Vec::new();
        let shift_rows: Vec<Vec<f32>> = shifts.to_vec2().map_err(Fault::from)?;
        for ((shift, embed), label) in shift_rows.iter().zip(embeds.chunks_exact(width)).zip(labels) {
            let shifted = shifted(vectors, shift);
            let (texts, tape) = tower.prompted(&own.prompts(&shifted), &own.texts, self.threads)?;
            let loss = TextLoss { classify, scale: self.logit_scale(), texts: &texts, width, frozen: None };
            let output = loss.gradients(embed, &[], &[*label], batch)?;
            let gradient = tower.prompted_vjp(tape, &own.texts, &output.head[0])?;
            sum.loss += output.loss;
            sum.correct += output.correct;
            add(&mut sum.gradients[0], &gradient);
            // All vectors are shifted alike.
            let mut d_shift = vec![0.; shift.len()];
            gradient.chunks_exact(shift.len()).for_each(|row| add(&mut d_shift, row));
            d_shifts.extend(d_shift);
        }
        sum.gradients.extend(chain(&vars, &shifts, d_shifts)?);
        Ok(sum)
    }

    /// Logits `[B, C]` of features `[B, D]` where every image has texts of its own; images are dealt out to threads.
    fn logits_by_image(&self, own: &LearnedTexts, params: &[Param], features: &[f32]) -> Result<Vec<f32>> {
        let (tower, width) = (self.backbone.text_tower()?, self.head.width);
        let mut embeds = self.backbone.project(features.to_vec());
        normalize_l2(&mut embeds, width);
        let shifts: Vec<Vec<f32>> = shifts(params, &embeds)?.1.to_vec2().map_err(Fault::from)?;
        let (vectors, scale) = (&vectors(params)?.values, self.logit_scale());
        let shares = parallel::shares(shifts.len(), self.threads, |range| {
            let mut logits = Vec::new();
            for i in range {
                let shifted = shifted(vectors, &shifts[i]);
                let mut texts = tower.embed_prompted(&own.prompts(&shifted), &own.texts, 1)?;
                normalize_l2(&mut texts, width);
                let image = &embeds[i * width..(i + 1) * width];
                let cosine = |text: &[f32]| text.iter().zip(image).map(|(t, i)| t * i).sum::<f32>();
                logits.extend(texts.chunks_exact(width).map(|text| scale * cosine(text)));
            }
            Ok(logits)
        });
        Ok(shares.into_iter().collect::<Result<Vec<_>>>()?.concat())
    }
}

pub(super) fn cross_entropy(loss: &Loss) -> Result<&CrossEntropy> {
    match loss {
        Loss::CrossEntropy(loss) => Ok(loss),
        Loss::Binary(_) => Err(Error::invalid("loss", "texts tell one class an image")),
    }
}

/// `vectors` `[n, D]`, each with `shift` `[D]` added.
fn shifted(vectors: &[f32], shift: &[f32]) -> Vec<f32> {
    vectors.chunks_exact(shift.len()).flat_map(|row| row.iter().zip(shift).map(|(v, s)| v + s)).collect()
}

fn add(sum: &mut [f32], part: &[f32]) {
    sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
}

#[cfg(test)]
mod tests;
