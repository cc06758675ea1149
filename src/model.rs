//! A frozen backbone with a learned input and a learned output, or with weights of its own: what training steps through and
//! what a task file brings back to life.

pub mod detect;
mod detect_task;
mod label_map;
pub mod run_origin;
mod task;
pub mod task_file;
#[cfg(test)]
mod tests;
mod text;
mod tuned;

use std::{borrow::Cow, sync::Arc};

pub use detect_task::{DetectTask, Found};
use label_map::Mapped;
pub(crate) use task::sigmoid;
pub use task::{AnyTask, TaskModel, TaskOptions};
use text::TextPart;
pub use text::{Classifier, Frozen};
use tuned::WeightPart;

use crate::{
    Error, Result,
    backbone::{
        Backbone,
        vit::{Course, Input, Pass, Read, Readout, Rows, TokenPrompts, Want},
    },
    head::{
        BoundHead, Head, HeadKind,
        label_map::{VOTES, Vote},
    },
    image::Preprocess,
    loss::{Loss, LossGradients},
    params::{self, Group, Param},
    prompt::{
        PartShapes,
        pixels::{PixelPrompt, Places},
        tokens::{DropoutMask, TokenLayout},
    },
    random::stream,
};

/// Standard deviation of fresh prompt pixels, in units of the normalised image.
const PIXEL_STD: f32 = 0.01;

/// The frozen and the learned parts put together; the learned values are passed in.
#[derive(Debug, Clone)]
pub struct Model {
    backbone: Arc<Backbone>,
    prompt: PartShapes,
    pixels: Option<PixelPrompt>,
    /// Where texts are learned, once the names of the classes are known.
    text: Option<TextPart>,
    /// Where weights of the backbone are tuned.
    weights: Option<WeightPart>,
    head: Head,
    /// Where classes of the backbone's own classifier stand for those of the head.
    mapped: Option<Mapped>,
    threads: usize,
    /// Whether features are image embeddings, not the class token after the last norm.
    on_embeddings: bool,
}

/// A batch to learn from.
#[derive(Debug)]
pub struct StepInput<'a> {
    /// Images `[B, 3, s, s]` as [`Model::preprocess`] makes them.
    pub images: &'a [f32],
    /// Blocks that `images` are behind, which then are tokens as [`Model::prefix`] makes them; 0: images.
    pub blocks: usize,
    /// Their labels, as the loss takes them.
    pub labels: &'a [u32],
    /// Where prompt patches lie.
    pub places: Places,
    /// Dropout on prompt tokens, or on what goes into low-rank changes: see [`Model::dropout_len`].
    pub mask: Option<DropoutMask>,
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

impl Model {
    /// Puts `backbone`, a prompt and a head for `classes` classes together.
    ///
    /// # Errors
    /// The prompt does not fit the backbone's depth or image size, or is one of texts and the backbone has no text tower.
    pub fn new(
        backbone: Arc<Backbone>,
        parts: &PartShapes,
        head: HeadKind,
        classes: usize,
        threads: usize,
    ) -> Result<Self> {
        if head == HeadKind::Text && backbone.clip.is_none() {
            let message =
                format!("text is for CLIP backbones, which {} ({}) is not", backbone.name, backbone.spec.family);
            return Err(Error::flag("--head", message));
        }
        let told_by_texts = parts.told_by_texts();
        let on_embeddings = head == HeadKind::Text || told_by_texts;
        let width = if on_embeddings { backbone.embedding_width() } else { backbone.vit.width() };
        let mut head = Head { kind: head, width, classes, keys: 0 };
        let mut layout = parts.tokens();
        if let Some(shape) = parts.text() {
            head = text::check(&backbone, &shape, classes)?;
            layout = shape.image_tokens();
        }
        let weights = if let Some(shape) = parts.weights() {
            let (part, own_head) = tuned::part(&backbone, shape, head, on_embeddings)?;
            head = own_head;
            Some(part)
        } else {
            None
        };
        let Preprocess { mean, std, .. } = backbone.preprocess;
        let pixels = parts.pixels().map(|shape| PixelPrompt::new(shape, backbone.vit.image_size(), mean, std));
        let pixels = pixels.transpose()?;
        if let Some(TokenLayout { start, layers, .. }) = layout {
            let depth = backbone.vit.depth();
            if layers == 0 || start.checked_add(layers).is_none_or(|end| end > depth) {
                let message = format!("{layers} prompted blocks from block {start} on, where the backbone has {depth}");
                return Err(Error::flag("--prompt-layers", message));
            }
        }
        Ok(Self {
            backbone,
            prompt: parts.clone(),
            pixels,
            text: None,
            weights,
            head,
            mapped: None,
            threads,
            on_embeddings,
        })
    }

    /// The same with a head on image embeddings, as [`Backbone::embed`] makes them, and with `keys` keys of a cache in it.
    #[must_use]
    pub fn on_embeddings(self, keys: usize) -> Self {
        let head = Head { width: self.backbone.embedding_width(), keys, ..self.head };
        Self { head, on_embeddings: true, ..self }
    }

    /// The frozen part.
    pub fn backbone(&self) -> &Arc<Backbone> {
        &self.backbone
    }

    /// The head's shape.
    pub fn head(&self) -> Head {
        self.head
    }

    /// What is learned beside the head.
    pub fn parts(&self) -> &PartShapes {
        &self.prompt
    }

    /// The prompt pixels, where the method has any.
    pub fn pixels(&self) -> Option<&PixelPrompt> {
        self.pixels.as_ref()
    }

    /// Threads a step or a prediction uses.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// How a step of `batch` images goes through the image tower.
    ///
    /// # Errors
    /// The memory limit is too low for it.
    pub fn course(&self, micro_batch: Option<usize>, batch: usize) -> Result<Course> {
        if let Some(part) = &self.weights {
            return self.with_pass(part, micro_batch, |pass| self.backbone.vit.course(pass, batch));
        }
        let layout = self.prompt.tokens().or_else(|| self.prompt.text()?.image_tokens());
        let prompts =
            layout.map(|TokenLayout { start, layers, tokens }| TokenPrompts { start, layers, tokens, data: &[] });
        let want = Want { tokens: prompts.is_some(), pixels: self.pixels.is_some(), ..Want::default() };
        let mut reads = Vec::new();
        let pass = Pass { prompts, want, micro_batch, ..Pass::forward(&[], self.threads) };
        self.backbone.vit.course(&self.mapped_pass(pass, &mut reads), batch)
    }

    /// How images are made ready for [`Self::logits`] and [`Self::step`].
    pub fn preprocess(&self) -> Result<Preprocess> {
        let side = self.pixels.as_ref().map_or(self.backbone.vit.image_size(), PixelPrompt::input_side);
        self.backbone.preprocess.for_image_size(side)
    }

    /// Fresh learned values: the prompt, if there is one, then the head.
    pub fn init(&self, seed: u64) -> Result<Vec<Param>> {
        let rng = &mut stream(seed, "prompt init", 0, 0);
        if let Some(part) = self.text_part()? {
            return self.init_texts(part, rng);
        }
        let mut params = Vec::new();
        match (self.prompt.tokens(), &self.pixels) {
            (Some(layout), _) => {
                params.push(layout.init(self.backbone.vit.width(), self.backbone.spec.patch_size, rng)?);
            }
            // The mapping is counted without a prompt, and learning begins there.
            (_, Some(pixels)) if self.mapped.is_some() => params.push(pixels.init(0., rng)?),
            (_, Some(pixels)) => params.push(pixels.init(PIXEL_STD, rng)?),
            _ => {}
        }
        if let Some(part) = &self.weights {
            params = self.init_weights(part, rng)?;
            if self.told_by_texts() {
                return Ok(params);
            }
        }
        if self.mapped.is_some() {
            params.extend(self.init_map(seed)?);
            return Ok(params);
        }
        params.extend(self.head.init(&mut stream(seed, "head init", 0, 0))?);
        Ok(params)
    }

    /// Name and shape of every learned tensor, in the order of [`Self::init`].
    pub fn tensors(&self) -> Vec<(Cow<'static, str>, Vec<usize>)> {
        let known = |(name, shape)| (Cow::Borrowed(name), shape);
        if let (Some(shape), Ok(widths)) = (self.text_shape(), self.widths()) {
            return shape.tensors_on(widths).into_iter().map(known).collect();
        }
        let weights = self.weight_tensors().iter().map(|(name, shape)| (Cow::Owned(name.clone()), shape.clone()));
        let weights: Vec<_> = weights.collect();
        if self.told_by_texts() {
            return weights;
        }
        let prompt = match (self.prompt.tokens(), &self.pixels) {
            (Some(layout), _) => Some(("prompt.tokens", vec![layout.layers, layout.tokens, self.backbone.vit.width()])),
            (_, Some(pixels)) => Some(("prompt.pixels", vec![3, pixels.len() / 3])),
            _ => None,
        };
        let head = if self.mapped.is_some() { self.map_tensors() } else { self.head.tensors() };
        weights.into_iter().chain(prompt.into_iter().chain(head).map(known)).collect()
    }

    /// Checks that the values of a task file are the ones this model has, by name and shape.
    pub fn check(&self, params: &[Param]) -> Result<()> {
        let mut tensors = self.tensors();
        if self.text_shape().is_some_and(|shape| shape.keeps_head()) || self.told_by_texts() {
            tensors.extend(self.head.tensors().into_iter().map(|(name, shape)| (name.into(), shape)));
        }
        tensors.retain(|(name, _)| name.as_ref() != VOTES);
        // A file tells its weights in the order of their names.
        let weights = self.weight_tensors().len();
        tensors[..weights].sort();
        params::check(params, &tensors)
    }

    /// What the head takes, of class tokens after the last norm `[B, width]`: themselves or their embeddings `[B, D]`.
    pub fn readout(&self, tokens: Vec<f32>) -> Vec<f32> {
        if self.on_embeddings { self.backbone.project(tokens) } else { tokens }
    }

    /// What the head takes of images `[B, 3, s, s]`, prompts applied: the class token after the last norm or its embedding,
    /// `[B, D]`.
    pub fn features(&self, params: &[Param], images: &[f32]) -> Result<Vec<f32>> {
        if let Some(pixels) = self.pixels.as_ref().filter(|_| self.is_pooled()) {
            let values = &params::find(params, "prompt.pixels")?.values;
            let (images, mut reads) = (pixels.apply(values, images, &Places::Same)?, Vec::new());
            let pass = self.mapped_pass(Pass::forward(&images, self.threads), &mut reads);
            return Ok(self.backbone.vit.pool(&self.backbone.vit.read(&pass)?)?.0);
        }
        match &self.weights {
            Some(part) => self.tuned_features(part, params, images, self.on_embeddings),
            None => Ok(self.readout(self.class_tokens(params, images)?)),
        }
    }

    /// Blocks that no prompt changes anything in, as the first one comes behind them.
    pub fn prefix_blocks(&self) -> usize {
        self.prompt.tokens().map_or(0, |layout| layout.start)
    }

    /// Values that [`Self::prefix`] makes of an image.
    pub fn prefix_len(&self) -> usize {
        self.backbone.vit.tokens() * self.backbone.vit.width()
    }

    /// What comes out of the first [`Self::prefix_blocks`] blocks of images `[B, 3, s, s]`: tokens `[B, n, width]`.
    pub fn prefix(&self, images: &[f32]) -> Result<Vec<f32>> {
        let reads = [Read { after: self.prefix_blocks(), rows: Rows::All }];
        self.backbone.vit.read(&Pass { readout: Readout::Tokens(&reads), ..Pass::forward(images, self.threads) })
    }

    /// [`Self::features`] of what comes out of the first `blocks` blocks, if that is not 0.
    pub fn features_behind(&self, params: &[Param], values: &[f32], blocks: usize) -> Result<Vec<f32>> {
        if blocks == 0 {
            return self.features(params, values);
        }
        let prompts = self.token_prompts(&params::find(params, "prompt.tokens")?.values);
        Ok(self.readout(self.backbone.vit.read(&Pass { prompts, ..self.pass_from(values, blocks) })?))
    }

    /// A forward pass over images, or over what comes out of the first `blocks` blocks.
    fn pass_from<'a>(&self, values: &'a [f32], blocks: usize) -> Pass<'a> {
        let pass = Pass::forward(values, self.threads);
        if blocks == 0 { pass } else { Pass { input: Input::Tokens { blocks, tokens: values }, ..pass } }
    }

    /// Embeddings of images `[B, 3, s, s]`, prompts applied, as [`Backbone::embed`] makes them without.
    pub fn embed(&self, params: &[Param], images: &[f32]) -> Result<Vec<f32>> {
        match &self.weights {
            Some(part) => self.tuned_features(part, params, images, true),
            None => Ok(self.backbone.project(self.class_tokens(params, images)?)),
        }
    }

    /// The class tokens after the last norm, `[B, D]`.
    fn class_tokens(&self, params: &[Param], images: &[f32]) -> Result<Vec<f32>> {
        if let Some(part) = self.text_part()? {
            return self.text_features(part, params, images);
        }
        let vit = &self.backbone.vit;
        match (self.prompt.tokens(), &self.pixels) {
            (Some(_), _) => {
                let prompts = self.token_prompts(&params::find(params, "prompt.tokens")?.values);
                vit.features(images, prompts, self.threads)
            }
            (_, Some(pixels)) => {
                let values = &params::find(params, "prompt.pixels")?.values;
                vit.features(&pixels.apply(values, images, &Places::Same)?, None, self.threads)
            }
            _ => vit.features(images, None, self.threads),
        }
    }

    /// Logits `[B, C]` of images `[B, 3, s, s]`.
    pub fn logits(&self, params: &[Param], images: &[f32]) -> Result<Vec<f32>> {
        self.classifier(params)?.logits(&self.features(params, images)?)
    }

    /// Loss and gradients of a batch.
    pub fn step(&self, params: &[Param], input: &StepInput) -> Result<StepOutput> {
        if let Some(part) = self.text_part()? {
            return self.text_step(part, params, input);
        }
        if let Some(part) = &self.weights {
            return self.weights_step(part, params, input);
        }
        let head = self.bind(params)?;
        match (self.prompt.tokens(), &self.pixels) {
            (Some(_), _) => {
                let values = &params::find(params, "prompt.tokens")?.values;
                let masked = input.mask.as_ref().map(|mask| mask.apply(values));
                let prompts = self.token_prompts(masked.as_ref().unwrap_or(values));
                let (gradient, output) = self.backbone_step(input, input.images, prompts, &head)?;
                let gradient = input.mask.as_ref().map_or_else(|| gradient.clone(), |mask| mask.apply(&gradient));
                Ok(output.with_prompt(gradient))
            }
            (_, Some(pixels)) => {
                let values = &params::find(params, "prompt.pixels")?.values;
                let images = pixels.apply(values, input.images, &input.places)?;
                let (gradient, output) = self.backbone_step(input, &images, None, &head)?;
                Ok(output.with_prompt(pixels.vjp(values, &gradient, &input.places)?))
            }
            _ => {
                let features = self.features(params, input.images)?;
                self.head_step(params, &features, input.labels, input.loss)
            }
        }
    }

    /// As [`Self::step`] on [`Self::features`] that are known already: for the head, or the texts, alone.
    pub fn head_step(&self, params: &[Param], features: &[f32], labels: &[u32], loss: &Loss) -> Result<StepOutput> {
        self.masked_head_step(params, None, features, labels, loss)
    }

    /// As [`Self::head_step`], with dropout as in [`StepInput::mask`].
    pub(crate) fn masked_head_step(
        &self,
        params: &[Param],
        mask: Option<&DropoutMask>,
        features: &[f32],
        labels: &[u32],
        loss: &Loss,
    ) -> Result<StepOutput> {
        if let Some(part) = &self.weights {
            return self.weights_head_step(part, params, mask, features, labels, loss);
        }
        if let Some(part) = self.text_part()? {
            return self.text_head_step(part, params, features, labels, loss);
        }
        let parts = vec![loss.head_gradients(&self.bind(params)?, features, labels)?];
        Ok(StepOutput::sum(parts))
    }

    /// Forward and backward through the backbone; returns the gradient of the tokens or else of the pixels.
    fn backbone_step(
        &self,
        input: &StepInput,
        images: &[f32],
        prompts: Option<TokenPrompts>,
        head: &BoundHead,
    ) -> Result<(Vec<f32>, StepOutput)> {
        let want = Want { tokens: prompts.is_some(), pixels: prompts.is_none(), ..Want::default() };
        let total = input.loss.weight(input.labels);
        let loss = |range: std::ops::Range<usize>, features: &[f32]| {
            let labels = Self::labels_of(input, range)?;
            if self.is_pooled() {
                let (features, tape) = self.backbone.vit.pool(features)?;
                let mut part = input.loss.gradients(head, &features, labels, total)?;
                let gradient = self.backbone.vit.pool_vjp(&tape, &std::mem::take(&mut part.features));
                return Ok((gradient, (part, self.votes(&features, labels))));
            }
            if !self.on_embeddings {
                let mut part = input.loss.gradients(head, features, labels, total)?;
                return Ok((std::mem::take(&mut part.features), (part, self.votes(features, labels))));
            }
            let mut part = input.loss.gradients(head, &self.readout(features.to_vec()), labels, total)?;
            Ok((self.backbone.project_vjp(std::mem::take(&mut part.features)), (part, Vec::new())))
        };
        let mut reads = Vec::new();
        let pass = Pass { prompts, want, micro_batch: input.micro_batch, ..self.pass_from(images, input.blocks) };
        let (gradients, parts) = self.backbone.vit.step(&self.mapped_pass(pass, &mut reads), &loss)?;
        let gradient = gradients.tokens.or(gradients.pixels).unwrap_or_default();
        let (parts, votes): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        Ok((gradient, StepOutput { votes: votes.concat(), ..StepOutput::sum(parts) }))
    }

    fn token_prompts<'a>(&self, data: &'a [f32]) -> Option<TokenPrompts<'a>> {
        let layout = self.prompt.tokens()?;
        Some(TokenPrompts { start: layout.start, layers: layout.layers, tokens: layout.tokens, data })
    }
}

impl StepOutput {
    /// Adds up the parts of a batch, in order.
    fn sum(parts: Vec<LossGradients>) -> Self {
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

    fn with_prompt(mut self, gradient: Vec<f32>) -> Self {
        self.gradients.insert(0, gradient);
        self
    }
}

/// Number of learned values outside the head.
pub fn prompt_params(params: &[Param]) -> usize {
    params.iter().filter(|p| matches!(p.group, Group::Prompt | Group::PromptBias)).map(|p| p.values.len()).sum()
}
