//! The step of methods that tune weights of the backbone (`bias`, `lora`, `full`), and what these weights make of images and
//! texts.
//!
//! The learned values are passed in, as everywhere; the packed towers that they make are kept from call to call, and only what
//! has changed is packed again.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Model, StepInput, StepOutput, text::cross_entropy};
use crate::{
    Error, Result,
    backbone::{
        Backbone,
        class_texts::Prompts,
        clip::{VISUAL_PROJECTION, product},
        text::{TunedTape, TunedTexts},
        vit::{Pass, Tune, Tuned, Want},
    },
    head::{Head, HeadKind},
    kernel::{Init, Mat, MatMut, Panels, matmul},
    linear_algebra::normalize_l2,
    loss::{Loss, text::TextLoss},
    params::{self, Group, Param},
    prompt::{
        tokens::DropoutMask,
        weights::{FACTORS, PREFIX, WeightShape, group, init_factor},
    },
};

/// The weights that are tuned.
#[derive(Debug, Clone)]
pub(super) struct WeightPart {
    shape: WeightShape,
    towers: Arc<Mutex<Towers>>,
    /// Name and shape of what is learned: of the image tower, its projection, the text tower.
    tensors: Vec<(String, Vec<usize>)>,
    /// The texts that tell the classes, once these are known.
    texts: Option<TemplateTexts>,
}

/// The towers that the values of the last call made.
#[derive(Debug)]
struct Towers {
    image: Option<Tuned>,
    projection: Option<Projection>,
    texts: Option<TunedTexts>,
}

/// CLIP's projection of image features, tuned with the tower where the head reads what it makes.
struct Projection {
    /// `[E, D]`.
    weight: Vec<f32>,
    /// `[D, E]`.
    packed: Panels,
}

impl Projection {
    fn new(weight: Vec<f32>, width: usize) -> Self {
        let rows = weight.len() / width;
        Self { packed: Panels::pack(Mat::new(&weight, rows, width, width).t()), weight }
    }
}

impl std::fmt::Debug for Projection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Projection {{ weight: {} }}", self.weight.len())
    }
}

/// The texts of classes, each in every template.
#[derive(Debug, Clone)]
struct TemplateTexts {
    /// Token ids `[C · T]`, the templates of a class one behind the other.
    ids: Vec<Vec<u32>>,
    /// Templates, T.
    templates: usize,
    /// Their embeddings `[C · T, E]`, where the text tower stays as it is.
    frozen: Option<Vec<f32>>,
}

impl WeightPart {
    fn new(backbone: &Backbone, shape: WeightShape, projects: bool) -> Result<Self> {
        let tune = match shape {
            WeightShape::Bias => Tune::Biases,
            WeightShape::Full => Tune::All,
            WeightShape::Lora(lora) => {
                lora.check()?;
                Tune::LowRank { rank: lora.rank, scale: lora.scale() }
            }
        };
        let image = shape.tunes_images().then(|| backbone.tuned(tune)).transpose()?;
        let texts = shape.lora().filter(|lora| lora.towers.text());
        let texts = texts.map(|lora| backbone.tuned_texts(lora.rank, lora.scale())).transpose()?;
        let width = backbone.vit.width();
        let projection = (projects && shape == WeightShape::Full).then(|| backbone.visual_projection()).transpose()?;
        let projection = projection.map(|weight| Projection::new(weight, width));
        let mut tensors = image.iter().flat_map(|image| image.tensors().to_vec()).collect::<Vec<_>>();
        tensors.extend(projection.iter().map(|p| (VISUAL_PROJECTION.to_owned(), vec![p.weight.len() / width, width])));
        tensors.extend(texts.iter().flat_map(TunedTexts::tensors));
        for (name, _) in &mut tensors {
            name.insert_str(0, PREFIX);
        }
        let towers = Arc::new(Mutex::new(Towers { image, projection, texts }));
        Ok(Self { shape, towers, tensors, texts: None })
    }

    /// Channels that go into low-rank changes: what a dropout mask has a value for.
    fn channels(&self) -> usize {
        self.tensors.iter().filter(|(name, _)| is_mask_for(name)).map(|(_, shape)| shape[1]).sum()
    }

    /// `values`, one for each of [`Self::tensors`], where channels are dropped: the factors A without their columns. So the
    /// change to a weight is what it would be if these channels were zero for every row, and the gradient of A goes the same
    /// way.
    fn masked<'a>(&self, values: Vec<Cow<'a, [f32]>>, mask: Option<&DropoutMask>) -> Vec<Cow<'a, [f32]>> {
        let Some(mask) = mask else { return values };
        let mut from = 0;
        let masked = |((name, shape), values): (&(String, Vec<usize>), Cow<'a, [f32]>)| {
            if !is_mask_for(name) {
                return values;
            }
            let at = from;
            from += shape[1];
            values.chunks_exact(shape[1]).flat_map(|row| mask.apply_from(at, row)).collect::<Vec<_>>().into()
        };
        self.tensors.iter().zip(values).map(masked).collect()
    }

    /// Calls `f` with the towers that `params` make.
    fn with<T>(
        &self,
        params: &[Param],
        mask: Option<&DropoutMask>,
        threads: usize,
        f: impl FnOnce(&Towers) -> Result<T>,
    ) -> Result<T> {
        let find = |(name, _): &(String, _)| Ok(Cow::from(&params::find(params, name)?.values));
        let values = self.masked(self.tensors.iter().map(find).collect::<Result<_>>()?, mask);
        let lookup = |name: &str| {
            let at = self.tensors.iter().position(|(own, _)| own.strip_prefix(PREFIX) == Some(name));
            at.map(|at| &*values[at]).ok_or_else(|| Error::invalid(name, "is not among the learned weights"))
        };
        let mut towers = self.towers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = &mut towers.image {
            image.set(&lookup, threads)?;
        }
        if let Some(texts) = &mut towers.texts {
            texts.set(&lookup, threads)?;
        }
        if let Some(projection) = &mut towers.projection {
            let weight = lookup(VISUAL_PROJECTION)?;
            if projection.weight != weight {
                *projection = Projection::new(weight.to_vec(), weight.len() / projection.packed.n());
            }
        }
        f(&towers)
    }
}

/// Whether dropout is for the columns of the tensor `name`.
fn is_mask_for(name: &str) -> bool {
    name.ends_with(FACTORS[0])
}

impl Towers {
    /// The embeddings `[m, E]` that class tokens `[m, D]` stand for.
    fn project(&self, backbone: &Backbone, tokens: Vec<f32>) -> Vec<f32> {
        match &self.projection {
            Some(projection) => product(&tokens, &projection.packed),
            None => backbone.project(tokens),
        }
    }

    /// Gradients of the tokens `[m, D]`, and of the projection if it is tuned, from those of the embeddings `[m, E]`.
    fn project_vjp(&self, backbone: &Backbone, tokens: &[f32], gradient: Vec<f32>) -> (Vec<f32>, Option<Vec<f32>>) {
        let Some(Projection { packed, .. }) = &self.projection else { return (backbone.project_vjp(gradient), None) };
        let (d, e) = (packed.k(), packed.n());
        let rows = tokens.len() / d;
        let mut of_weight = vec![0.; e * d];
        let inputs = Panels::pack(Mat::new(tokens, rows, d, d));
        matmul(Mat::new(&gradient, rows, e, e).t(), &inputs, MatMut::new(&mut of_weight, e, d, d), Init::Zero);
        (product(&gradient, packed.t()), Some(of_weight))
    }
}

impl TemplateTexts {
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

/// The part of a model on `backbone` that tunes weights of this `shape`, and its head.
pub(super) fn part(
    backbone: &Backbone,
    shape: WeightShape,
    head: Head,
    on_embeddings: bool,
) -> Result<(WeightPart, Head)> {
    let head = if shape.told_by_texts() {
        backbone.text_spec()?;
        Head { kind: HeadKind::Cosine, width: backbone.embedding_width(), ..head }
    } else {
        head
    };
    Ok((WeightPart::new(backbone, shape, on_embeddings && backbone.clip.is_some())?, head))
}

impl Model {
    /// The same model, whose classes are told by these texts, where `lora` has no head to learn; others do not need them.
    ///
    /// # Errors
    /// The names are too many or too few, or the tokenizer fails on a text.
    pub(crate) fn with_texts(mut self, prompts: &Prompts) -> Result<Self> {
        let Some(part) = self.weights.as_mut().filter(|part| part.shape.told_by_texts()) else { return Ok(self) };
        let (classes, templates) = (prompts.classnames.len(), prompts.templates.len());
        if classes != self.head.classes || templates == 0 {
            let message = format!("{classes} names in {templates} templates for {}", self.head.classes);
            return Err(Error::invalid("classes", message));
        }
        let texts: Vec<String> = (0..classes).flat_map(|class| prompts.texts(class)).collect();
        let tuned = part.shape.lora().is_some_and(|lora| lora.towers.text());
        let frozen = if tuned { None } else { Some(self.backbone.embed_texts(&texts, self.threads)?) };
        part.texts = Some(TemplateTexts { ids: self.backbone.token_ids(&texts)?, templates, frozen });
        Ok(self)
    }

    /// Whether classes are told by texts that the task makes of templates, and there is no head to learn.
    pub(super) fn told_by_texts(&self) -> bool {
        self.weights.as_ref().is_some_and(|part| part.shape.told_by_texts())
    }

    /// Name and shape of the weights that are tuned.
    pub(super) fn weight_tensors(&self) -> &[(String, Vec<usize>)] {
        self.weights.as_ref().map_or(&[], |part| &part.tensors)
    }

    /// Values that a mask drops to keep what is learned from depending on single ones, if there are any such.
    pub fn dropout_len(&self) -> Option<usize> {
        match (self.prompt.tokens(), &self.weights) {
            (Some(layout), _) => Some(layout.layers * layout.tokens * self.backbone.vit.width()),
            (_, Some(part)) => Some(part.channels()).filter(|&channels| channels > 0),
            _ => None,
        }
    }

    /// The weights as they are, and fresh low-rank changes.
    pub(super) fn init_weights(&self, part: &WeightPart, rng: &mut impl rand::Rng) -> Result<Vec<Param>> {
        if part.shape.lora().is_some() {
            return part.tensors.iter().map(|(name, shape)| init_factor(name, shape, rng)).collect();
        }
        let mut towers = part.towers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut values = towers.image.as_mut().map(Tuned::values).transpose()?.unwrap_or_default();
        values.extend(towers.projection.is_some().then(|| self.backbone.visual_projection()).transpose()?);
        let param =
            |((name, shape), values): (&(String, Vec<usize>), _)| Param::new(name, shape, values, group(name, shape));
        part.tensors.iter().zip(values).map(param).collect()
    }

    /// The class tokens after the last norm `[B, D]`, or with `projected` the embeddings that they stand for, `[B, E]`.
    pub(super) fn tuned_features(
        &self,
        part: &WeightPart,
        params: &[Param],
        images: &[f32],
        projected: bool,
    ) -> Result<Vec<f32>> {
        part.with(params, None, self.threads, |towers| {
            let pass = Pass { tuned: towers.image.as_ref(), ..Pass::forward(images, self.threads) };
            let tokens = self.backbone.vit.read(&pass)?;
            Ok(if projected { towers.project(&self.backbone, tokens) } else { tokens })
        })
    }

    /// Runs `f` with a pass over `images` that learns the weights.
    pub(super) fn with_pass<T>(
        &self,
        part: &WeightPart,
        micro_batch: Option<usize>,
        f: impl FnOnce(&Pass) -> Result<T>,
    ) -> Result<T> {
        let towers = part.towers.lock().unwrap_or_else(PoisonError::into_inner);
        let want = Want { weights: true, ..Want::default() };
        f(&Pass { tuned: towers.image.as_ref(), want, micro_batch, ..Pass::forward(&[], self.threads) })
    }

    /// Loss and gradients of a batch of images.
    pub(super) fn weights_step(&self, part: &WeightPart, params: &[Param], input: &StepInput) -> Result<StepOutput> {
        let mask = input.mask.as_ref();
        if part.shape.told_by_texts() {
            let images = Images::Pixels(input.images, input.micro_batch);
            return self.step_by_texts(part, params, mask, &images, input.labels, input.loss);
        }
        let head = self.head.bind(params)?;
        let total = input.loss.weight(input.labels);
        part.with(params, mask, self.threads, |towers| {
            let loss = |range: Range<usize>, tokens: &[f32]| {
                let labels = labels(input.labels, range)?;
                if !self.on_embeddings {
                    let mut part = input.loss.gradients(&head, tokens, labels, total)?;
                    return Ok((std::mem::take(&mut part.features), part));
                }
                let embeds = towers.project(&self.backbone, tokens.to_vec());
                let mut part = input.loss.gradients(&head, &embeds, labels, total)?;
                let gradient = std::mem::take(&mut part.features);
                let (gradient, of_projection) = towers.project_vjp(&self.backbone, tokens, gradient);
                part.head.splice(0..0, of_projection);
                Ok((gradient, part))
            };
            let want = Want { weights: true, ..Want::default() };
            let (tuned, micro_batch) = (towers.image.as_ref(), input.micro_batch);
            let pass = Pass { tuned, want, micro_batch, ..Pass::forward(input.images, self.threads) };
            let (gradients, parts) = self.backbone.vit.step(&pass, &loss)?;
            let mut output = StepOutput::sum(parts);
            output.gradients.splice(0..0, part.unmask(gradients.weights.unwrap_or_default(), mask));
            Ok(output)
        })
    }

    /// As [`Model::head_step`] where the image tower is as it was.
    pub(super) fn weights_head_step(
        &self,
        part: &WeightPart,
        params: &[Param],
        mask: Option<&DropoutMask>,
        embeds: &[f32],
        labels: &[u32],
        loss: &Loss,
    ) -> Result<StepOutput> {
        self.step_by_texts(part, params, mask, &Images::Embeddings(embeds), labels, loss)
    }

    /// The step where classes are told by texts.
    fn step_by_texts(
        &self,
        part: &WeightPart,
        params: &[Param],
        mask: Option<&DropoutMask>,
        images: &Images,
        all_labels: &[u32],
        loss: &Loss,
    ) -> Result<StepOutput> {
        let (classify, width, batch) = (cross_entropy(loss)?, self.head.width, all_labels.len());
        let total = loss.weight(all_labels);
        let template_texts = part.template_texts()?;
        part.with(params, mask, self.threads, |towers| {
            let (embeds, tape) = self.template_embeds(template_texts, towers, true)?;
            let texts = template_texts.means(embeds.clone(), width);
            let loss = TextLoss { classify, scale: self.logit_scale(), texts: &texts, width, frozen: None };
            let of_part = |range: Range<usize>, tokens: &[f32]| {
                let labels = labels(all_labels, range)?;
                let embeds = self.backbone.project(tokens.to_vec());
                let mut part = loss.gradients(&embeds, &[], labels, (batch, total))?;
                Ok((self.backbone.project_vjp(std::mem::take(&mut part.features)), part))
            };
            let (mut gradients, mut output) = match (images, &towers.image) {
                (Images::Pixels(pixels, micro_batch), Some(_)) => {
                    let (tuned, micro_batch) = (towers.image.as_ref(), *micro_batch);
                    let want = Want { weights: true, ..Want::default() };
                    let pass = Pass { tuned, want, micro_batch, ..Pass::forward(pixels, self.threads) };
                    let (gradients, parts) = self.backbone.vit.step(&pass, &of_part)?;
                    (gradients.weights.unwrap_or_default(), StepOutput::sum(parts))
                }
                (Images::Pixels(pixels, _), None) => {
                    let tokens = self.backbone.vit.features(pixels, None, self.threads)?;
                    (Vec::new(), StepOutput::sum(vec![of_part(0..batch, &tokens)?.1]))
                }
                (Images::Embeddings(embeds), _) => {
                    let part = loss.gradients(embeds, &[], all_labels, (batch, total))?;
                    (Vec::new(), StepOutput::sum(vec![part]))
                }
            };
            let d_texts = output.gradients.pop().unwrap_or_default();
            if let Some(tuned) = &towers.texts {
                let d_embeds = template_texts.means_vjp(&embeds, &d_texts, width);
                gradients.extend(self.backbone.text_tower()?.tuned_vjp(tuned, tape, &template_texts.ids, &d_embeds));
            }
            output.gradients = part.unmask(gradients, mask);
            Ok(output)
        })
    }

    /// Embeddings of the classes' texts `[C · T, E]`, and what their VJP needs if `keep`.
    fn template_embeds(&self, texts: &TemplateTexts, towers: &Towers, keep: bool) -> Result<(Vec<f32>, TunedTape)> {
        match (&texts.frozen, &towers.texts) {
            (Some(frozen), _) => Ok((frozen.clone(), TunedTape::default())),
            (None, Some(tuned)) => Ok(self.backbone.text_tower()?.embed_tuned(tuned, &texts.ids, keep, self.threads)),
            (None, None) => Err(Error::invalid("texts", "there is no tower for them")),
        }
    }

    /// The texts of the classes as a cosine head: see [`Model::told_by_texts`].
    pub(super) fn template_head(&self, part: &WeightPart, params: &[Param]) -> Result<Vec<Param>> {
        let (texts, width) = (part.template_texts()?, self.head.width);
        let embeds = part.with(params, None, self.threads, |towers| self.template_embeds(texts, towers, false))?.0;
        let mut weight = texts.means(embeds, width);
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
        let Some(part) = self.weights.as_ref().filter(|part| part.shape.lora().is_some_and(|l| l.towers.text())) else {
            return self.backbone.embed_texts(texts, self.threads);
        };
        let ids = self.backbone.token_ids(texts)?;
        let texts = TemplateTexts { ids, templates: 1, frozen: None };
        part.with(params, None, self.threads, |towers| Ok(self.template_embeds(&texts, towers, false)?.0))
    }
}

impl WeightPart {
    /// The gradients of the first tensors, as many as there are, from those of what a mask has left of their values.
    fn unmask(&self, gradients: Vec<Vec<f32>>, mask: Option<&DropoutMask>) -> Vec<Vec<f32>> {
        let gradients = gradients.into_iter().map(Cow::Owned).collect();
        self.masked(gradients, mask).into_iter().map(Cow::into_owned).collect()
    }

    fn template_texts(&self) -> Result<&TemplateTexts> {
        self.texts.as_ref().ok_or_else(|| Error::invalid("classes", "texts cannot be made without their names"))
    }
}

/// What a step that tells classes by texts sees of its images.
enum Images<'a> {
    /// Pixels, and how many images a thread takes at a time.
    Pixels(&'a [f32], Option<usize>),
    /// Embeddings, which never change.
    Embeddings(&'a [f32]),
}

fn labels(all: &[u32], range: Range<usize>) -> Result<&[u32]> {
    all.get(range).ok_or_else(|| Error::invalid("labels", "fewer than images"))
}

#[cfg(test)]
mod tests;
