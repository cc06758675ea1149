//! Classes told by texts with learned vectors in them: the step of CoOp, CoCoOp, IVLP, MaPLe and PromptSRC, and their classifier.

use std::ops::Range;

use super::{Model, StepInput, StepOutput};
use crate::{
    Error, Result,
    backbone::{
        Backbone,
        class_texts::{Prompts, class_texts},
        text::{ClassTexts, TextPrompts},
        vit::{Pass, TokenPrompts, Want},
    },
    head::{BoundHead, Head, HeadKind},
    linear_algebra::normalize_l2,
    loss::{CrossEntropy, Loss, text::TextLoss},
    parallel,
    params::{Group, Param},
    prompt::text::{Beside, TextShape, Widths, chain, image_tokens, shifts, vectors},
};

/// The texts of the classes and what is learned of them.
#[derive(Debug, Clone)]
pub(super) struct TextPart {
    shape: TextShape,
    texts: ClassTexts,
    /// Embeddings `[k, D]` of the words that the vectors begin as.
    words: Option<Vec<f32>>,
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
    kind: Kind<'a>,
}

#[derive(Debug, Clone)]
enum Kind<'a> {
    /// A head on the features.
    Features(BoundHead),
    /// A head on their embeddings: what the texts of the classes have become.
    Embeddings(BoundHead),
    /// Texts of their own for every image.
    Images(&'a TextPart, &'a [Param]),
}

impl Classifier<'_> {
    /// Logits `[B, C]` of features `[B, D]`.
    pub fn logits(&self, features: &[f32]) -> Result<Vec<f32>> {
        match &self.kind {
            Kind::Features(head) => head.logits(features),
            Kind::Embeddings(head) => head.logits(&self.model.backbone.project(features.to_vec())),
            Kind::Images(part, params) => self.model.logits_by_image(part, params, features),
        }
    }
}

impl TextPart {
    fn prompts<'a>(&self, data: &'a [f32]) -> TextPrompts<'a> {
        TextPrompts { layers: self.shape.layers, tokens: self.shape.tokens, data }
    }
}

/// The learned texts' shape on `backbone`, and the head that they make.
pub(super) fn check(backbone: &Backbone, shape: &TextShape, classes: usize) -> Result<Head> {
    let tower = backbone.text_spec()?;
    if shape.layers == 0 || shape.layers > tower.tower.depth {
        let message = format!("{} blocks of a text tower that has {}", shape.layers, tower.tower.depth);
        return Err(Error::flag("--prompt-layers", message));
    }
    Ok(Head { kind: HeadKind::Cosine, width: tower.projection, classes, keys: 0 })
}

impl Model {
    /// The same model for classes that texts call by these names, which methods that learn texts need to know; others do not.
    ///
    /// # Errors
    /// The names are too many or too few, or the tokenizer fails on one.
    pub fn with_classes(mut self, names: &[String]) -> Result<Self> {
        let Some(shape) = self.text_shape() else { return Ok(self) };
        if names.len() != self.head.classes {
            return Err(Error::invalid("classes", format!("{} names for {}", names.len(), self.head.classes)));
        }
        let sentences: Vec<String> = names.iter().map(|name| format!("{name}.")).collect();
        let texts = self.backbone.class_texts(&sentences, shape.tokens)?;
        self.text = Some(TextPart { shape, texts, words: None });
        Ok(self)
    }

    /// The same model, whose vectors begin as the first tokens of `words`; drawn at random if `None`.
    ///
    /// # Errors
    /// The words are fewer tokens than there are vectors, or the tokenizer fails on them.
    pub fn with_context(mut self, words: Option<&str>) -> Result<Self> {
        let (Some(part), Some(words)) = (&mut self.text, words) else { return Ok(self) };
        let embeddings = self.backbone.word_embeddings(words)?;
        let (found, wanted) = (embeddings.len() / self.backbone.text_spec()?.tower.width, part.shape.tokens);
        if found < wanted {
            let message = format!("'{}' is {found} tokens where {wanted} vectors are learned", words.escape_debug());
            return Err(Error::flag("--context-init", message));
        }
        part.words = Some(embeddings);
        Ok(self)
    }

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

    pub(super) fn text_shape(&self) -> Option<TextShape> {
        self.prompt.text()
    }

    /// The part that learns texts, if the method does.
    pub(super) fn text_part(&self) -> Result<Option<&TextPart>> {
        match (&self.text, self.text_shape()) {
            (None, Some(_)) => Err(Error::invalid("classes", "texts cannot be made without their names")),
            (part, _) => Ok(part.as_ref()),
        }
    }

    pub(super) fn widths(&self) -> Result<Widths> {
        let text = self.backbone.text_spec()?;
        Ok(Widths { text: text.tower.width, image: self.backbone.vit.width(), embedding: text.projection })
    }

    pub(super) fn init_texts(&self, part: &TextPart, rng: &mut impl rand::Rng) -> Result<Vec<Param>> {
        part.shape.init(self.widths()?, part.words.as_deref(), rng)
    }

    /// Features to logits, with these learned values, which may be those of training or those of a task file.
    ///
    /// # Errors
    /// The values are not this model's.
    pub fn classifier<'a>(&'a self, params: &'a [Param]) -> Result<Classifier<'a>> {
        if let Some(part) = self.weights.as_ref().filter(|_| self.told_by_texts()) {
            let kept = params.iter().any(|param| param.name == "head.weight");
            let head = if kept { self.head.bind(params) } else { self.head.bind(&self.template_head(part, params)?) };
            return Ok(Classifier { model: self, kind: Kind::Features(head?) });
        }
        let kind = match self.text_part()? {
            None => Kind::Features(self.bind(params)?),
            Some(part) if !part.shape.keeps_head() => Kind::Images(part, params),
            Some(_) if params.iter().any(|param| param.group != Group::Prompt) => {
                Kind::Embeddings(self.head.bind(params)?)
            }
            Some(part) => Kind::Embeddings(self.head.bind(&self.text_head(part, params)?)?),
        };
        Ok(Classifier { model: self, kind })
    }

    /// What a task file keeps: the learned values, and the head that texts make, unless each image makes its own.
    ///
    /// # Errors
    /// The values are not this model's.
    pub fn task_params(&self, learned: &[Param]) -> Result<Vec<Param>> {
        let mut params = Self::without_votes(learned);
        if let Some(part) = self.text_part()?.filter(|part| part.shape.keeps_head()) {
            params.extend(self.text_head(part, learned)?);
        }
        if let Some(part) = self.weights.as_ref().filter(|_| self.told_by_texts()) {
            params.extend(self.template_head(part, learned)?);
        }
        Ok(params)
    }

    /// The texts of the classes as a cosine head.
    fn text_head(&self, part: &TextPart, params: &[Param]) -> Result<Vec<Param>> {
        let prompts = part.prompts(&vectors(params)?.values);
        let mut texts = self.backbone.text_tower()?.embed_prompted(&prompts, &part.texts, self.threads)?;
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

    /// Features `[B, D]` with the prompt tokens that the image tower gets of these methods.
    pub(super) fn text_features(&self, part: &TextPart, params: &[Param], images: &[f32]) -> Result<Vec<f32>> {
        let tokens = image_tokens(&part.shape, params)?;
        let prompts = tokens.as_ref().and_then(|tokens| part.shape.image_prompts(&tokens.values));
        self.backbone.vit.features(images, prompts, self.threads)
    }

    /// Loss and gradients of a batch of images.
    pub(super) fn text_step(&self, part: &TextPart, params: &[Param], input: &StepInput) -> Result<StepOutput> {
        let Some(tokens) = image_tokens(&part.shape, params)? else {
            let features = self.backbone.vit.features(input.images, None, self.threads)?;
            return self.text_head_step(part, params, &features, input.labels, input.loss);
        };
        let tower = self.backbone.text_tower()?;
        let (texts, tape) = tower.prompted(&part.prompts(&vectors(params)?.values), &part.texts, self.threads)?;
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
            let labels =
                input.labels.get(range.clone()).ok_or_else(|| Error::invalid("labels", "fewer than images"))?;
            let embeds = self.backbone.project(features.to_vec());
            let frozen = frozen.get(range.start * width..range.end * width).unwrap_or_default();
            let mut part = loss.gradients(&embeds, frozen, labels, (batch, total))?;
            Ok((self.backbone.project_vjp(std::mem::take(&mut part.features)), part))
        };
        let pass = Pass {
            prompts: part.shape.image_prompts(&tokens.values),
            want: Want { tokens: true, ..Want::default() },
            micro_batch: input.micro_batch,
            ..Pass::forward(input.images, self.threads)
        };
        let (gradients, parts) = self.backbone.vit.step(&pass, &of_part)?;
        let mut output = StepOutput::sum(parts);
        let mut d_texts = output.gradients.pop().unwrap_or_default();
        if let Some((tie, gradient)) = loss.tie()? {
            output.loss += tie * batch as f64;
            add(&mut d_texts, &gradient);
        }
        let mut d_vectors = tower.prompted_vjp(tape, &part.texts, &d_texts)?;
        let mut beside = chain(&tokens.vars, &tokens.tokens, gradients.tokens.unwrap_or_default())?;
        if part.shape.beside == Beside::Map {
            // The image tower's prompts are made of the same vectors.
            add(&mut d_vectors, &beside.remove(0));
        }
        output.gradients = std::iter::once(d_vectors).chain(beside).collect();
        Ok(output)
    }

    /// As [`Self::text_step`] on features `[B, D]` that are known already, where the image tower has no prompts.
    pub(super) fn text_head_step(
        &self,
        part: &TextPart,
        params: &[Param],
        features: &[f32],
        labels: &[u32],
        loss: &Loss,
    ) -> Result<StepOutput> {
        let (classify, batch) = (cross_entropy(loss)?, (labels.len(), loss.weight(labels)));
        let embeds = self.backbone.project(features.to_vec());
        if part.shape.beside == Beside::MetaNet {
            return self.step_by_image(part, params, embeds, labels, classify, batch);
        }
        let tower = self.backbone.text_tower()?;
        let (texts, tape) = tower.prompted(&part.prompts(&vectors(params)?.values), &part.texts, self.threads)?;
        let width = self.head.width;
        let loss = TextLoss { classify, scale: self.logit_scale(), texts: &texts, width, frozen: None };
        let mut output = StepOutput::sum(vec![loss.gradients(&embeds, &[], labels, batch)?]);
        let d_texts = output.gradients.pop().unwrap_or_default();
        output.gradients = vec![tower.prompted_vjp(tape, &part.texts, &d_texts)?];
        Ok(output)
    }

    /// The step of CoCoOp: every image has texts of its own.
    fn step_by_image(
        &self,
        part: &TextPart,
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
        let shift_rows: Vec<Vec<f32>> = shifts.to_vec2()?;
        for ((shift, embed), label) in shift_rows.iter().zip(embeds.chunks_exact(width)).zip(labels) {
            let shifted = shifted(vectors, shift);
            let (texts, tape) = tower.prompted(&part.prompts(&shifted), &part.texts, self.threads)?;
            let loss = TextLoss { classify, scale: self.logit_scale(), texts: &texts, width, frozen: None };
            let output = loss.gradients(embed, &[], &[*label], batch)?;
            let gradient = tower.prompted_vjp(tape, &part.texts, &output.head[0])?;
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
    fn logits_by_image(&self, part: &TextPart, params: &[Param], features: &[f32]) -> Result<Vec<f32>> {
        let (tower, width) = (self.backbone.text_tower()?, self.head.width);
        let mut embeds = self.backbone.project(features.to_vec());
        normalize_l2(&mut embeds, width);
        let shifts: Vec<Vec<f32>> = shifts(params, &embeds)?.1.to_vec2()?;
        let (vectors, scale) = (&vectors(params)?.values, self.logit_scale());
        let shares = parallel::shares(shifts.len(), self.threads, |range| {
            let mut logits = Vec::new();
            for i in range {
                let shifted = shifted(vectors, &shifts[i]);
                let mut texts = tower.embed_prompted(&part.prompts(&shifted), &part.texts, 1)?;
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

impl TextShape {
    /// `data` as prompts of the image tower.
    fn image_prompts<'a>(&self, data: &'a [f32]) -> Option<TokenPrompts<'a>> {
        let layout = self.image_tokens()?;
        Some(TokenPrompts { start: layout.start, layers: layout.layers, tokens: layout.tokens, data })
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
