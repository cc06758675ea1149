//! A frozen backbone, the parts that are learned beside it and what makes logits of its features: what training steps through
//! and what a task file brings back to life.

pub mod attention;
pub mod constants;
pub mod detect;
mod detect_task;
mod exemplars;
mod label_map;
mod parts;
pub mod predict;
pub mod ready;
pub mod run_origin;
pub mod segment;
mod segment_task;
mod step;
mod task;
pub mod task_file;
mod templates;
#[cfg(test)]
mod tests;
mod text;
pub mod token_reader;

use std::sync::Arc;

pub use detect_task::{DetectTask, Found};
use label_map::Mapped;
use parts::ModelParts;
pub use segment_task::SegmentTask;
use step::labels_of;
pub use step::{StepInput, StepOutput};
pub use task::sigmoid;
pub use task::{AnyTask, BackboneOrigin, TaskModel, TaskOptions};
use templates::TemplateTexts;
use text::LearnedTexts;
pub use text::{Classifier, Frozen};

use crate::{
    head::{
        Head, HeadKind,
        label_map::{LabelMap, VOTES},
    },
    prompt::{
        PartShape, PartShapes,
        part::{Draw, Drawn, Gradients, Inputs, Part, Site, TensorShape},
        pixels::PixelPrompt,
        weights::WeightTuning,
    },
};
use vpt_backbone::{
    Backbone,
    class_texts::Prompts,
    vit::{AttentionMaps, MemoryPlan, Pass, PromptSet, Readout, TokenRead, TokenRows},
};
use vpt_base::{
    Error, Result,
    params::{Group, Param},
    random::stream,
};
use vpt_image::Preprocess;

/// A frozen backbone and what is learned put together; the learned values are passed in: those of the parts in their order, then
/// those of the head.
#[derive(Debug, Clone)]
pub struct Model {
    backbone: Arc<Backbone>,
    /// Kind and place of the parts.
    shapes: PartShapes,
    parts: ModelParts,
    head: Head,
    output: LogitsKind,
    threads: usize,
}

/// How features become logits.
#[derive(Debug, Clone)]
enum LogitsKind {
    /// The head reads the class token after the last norm.
    ClassToken,
    /// The head reads image embeddings, as [`Backbone::embed`] makes them.
    Embedding,
    /// Classes of the backbone's own classifier stand for those of the head.
    LabelMap(Mapped),
    /// The head is made of texts with learned vectors in them.
    LearnedTexts(LearnedTexts),
    /// The head is made of texts in templates, through a tuned tower.
    TemplateTexts(TemplateTexts),
}

/// What tells classes, for [`Model::new`].
#[derive(Debug, Clone, Copy)]
pub enum ClassifierSpec<'a> {
    /// A learned head on the class token; that of [`HeadKind::Text`] is on image embeddings.
    Head(HeadKind),
    /// A head on image embeddings, as [`Backbone::embed`] makes them, with so many keys of a cache in it.
    OnEmbeddings {
        /// Which.
        kind: HeadKind,
        /// Keys.
        keys: usize,
    },
    /// The backbone's own classifier, some of whose classes stand for these.
    LabelMap(LabelMap),
    /// Texts with learned vectors in them, for methods that learn such.
    Texts {
        /// What texts call the classes.
        names: &'a [String],
        /// What the vectors begin as; drawn at random if `None`.
        words: Option<&'a str>,
    },
    /// Texts in templates, for low-rank changes that are told by texts; only steps and task files need to know them.
    Templates(Option<&'a Prompts>),
}

impl Model {
    /// Puts `backbone`, the parts that are learned and what tells `classes` classes together.
    ///
    /// # Errors
    /// A part does not fit the backbone or another part, or the backbone has not what tells the classes.
    pub fn new(
        backbone: Arc<Backbone>,
        shapes: &PartShapes,
        classifier: ClassifierSpec,
        classes: usize,
        threads: usize,
    ) -> Result<Self> {
        check_together(shapes, &classifier)?;
        if matches!(classifier, ClassifierSpec::Head(HeadKind::Text)) && backbone.clip.is_none() {
            let message =
                format!("text is for CLIP backbones, which {} ({}) is not", backbone.name, backbone.spec.family);
            return Err(Error::setting("head", message));
        }
        let words = match (&classifier, shapes.text()) {
            (ClassifierSpec::Texts { words: Some(words), .. }, Some(shape)) => {
                Some(text::first_words(&backbone, &shape, words)?)
            }
            _ => None,
        };
        let site = Site {
            backbone: &backbone,
            embeds: !matches!(
                classifier,
                ClassifierSpec::Head(HeadKind::Linear | HeadKind::Cosine) | ClassifierSpec::LabelMap(_)
            ),
            maps_labels: matches!(classifier, ClassifierSpec::LabelMap(_)),
            words: words.as_deref(),
        };
        let head = |kind, keys| {
            let width = if site.embeds { backbone.embedding_width() } else { backbone.vit.width() };
            Head { kind, width, classes, keys, logit_bias: false }
        };
        if let (ClassifierSpec::Templates(prompts), Some(shape)) = (&classifier, shapes.weights()) {
            backbone.text_spec()?;
            let (head, weights) = (head(HeadKind::Cosine, 0), Arc::new(WeightTuning::new(shape, &site)?));
            let texts = TemplateTexts::new(&backbone, weights.clone(), *prompts, classes, threads)?;
            let (parts, output) = (ModelParts::from(vec![weights as Arc<dyn Part>]), LogitsKind::TemplateTexts(texts));
            return Ok(Self { shapes: shapes.clone(), parts, head, output, threads, backbone });
        }
        let parts = ModelParts::new(shapes, &site)?;
        let (head, output) = match (classifier, shapes.text()) {
            (ClassifierSpec::Texts { names, .. }, Some(shape)) => {
                let texts = LearnedTexts::new(&backbone, shape, names, classes)?;
                (head(HeadKind::Cosine, 0), LogitsKind::LearnedTexts(texts))
            }
            (ClassifierSpec::LabelMap(kind), _) => {
                let (mapped, head) = label_map::mapped(&backbone, kind, classes)?;
                (head, LogitsKind::LabelMap(mapped))
            }
            (ClassifierSpec::OnEmbeddings { kind, keys }, _) => (head(kind, keys), LogitsKind::Embedding),
            (ClassifierSpec::Head(kind), _) if site.embeds => (head(kind, 0), LogitsKind::Embedding),
            (ClassifierSpec::Head(kind), _) => (head(kind, 0), LogitsKind::ClassToken),
            (ClassifierSpec::Texts { .. } | ClassifierSpec::Templates(_), _) => {
                return Err(Error::invalid("parts", "no texts are learned"));
            }
        };
        Ok(Self { shapes: shapes.clone(), parts, head, output, threads, backbone })
    }

    /// Puts `backbone`, parts of a program's own ([`Part`]) and a head of this kind for `classes` classes together. It learns and
    /// answers as every model; that parts fit each other is the program's business, and a task file has no entry for them.
    ///
    /// # Errors
    /// The head is made of texts, which the backbone does not read.
    pub fn of_parts(
        backbone: Arc<Backbone>,
        parts: Vec<Arc<dyn Part>>,
        head: HeadKind,
        classes: usize,
        threads: usize,
    ) -> Result<Self> {
        let bare = Self::new(backbone, &PartShapes::NONE, ClassifierSpec::Head(head), classes, threads)?;
        Ok(Self { parts: parts.into(), ..bare })
    }

    /// The same with `keys` keys of a cache in its head.
    #[must_use]
    pub fn with_keys(self, keys: usize) -> Self {
        Self { head: Head { keys, ..self.head }, ..self }
    }

    /// The same with a bias of all logits in its head, see [`Head::logit_bias`].
    #[must_use]
    pub fn with_logit_bias(self) -> Self {
        Self { head: Head { logit_bias: true, ..self.head }, ..self }
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
        &self.shapes
    }

    /// The prompt pixels and their values among `params`, if there are any.
    pub fn pixels<'a>(&self, params: &'a [Param]) -> Result<Option<(PixelPrompt, &'a [f32])>> {
        let found = self.shapes.iter().position(|shape| matches!(shape, PartShape::Pixels(_)));
        let Some((place, shape)) = found.zip(self.shapes.pixels()) else { return Ok(None) };
        let values = self.values(params, place)?.first().map_or(&[][..], |param| &param.values);
        Ok(Some((PixelPrompt::on(shape, &self.backbone)?, values)))
    }

    /// Threads a step or a prediction uses.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// How a step of `batch` images goes through the image tower.
    ///
    /// # Errors
    /// The memory limit is too low for it.
    pub fn memory_plan(&self, micro_batch: Option<usize>, batch: usize) -> Result<MemoryPlan> {
        let mut inputs = Inputs::new(&[], self.threads);
        self.parts.iter().for_each(|part| part.outline(&mut inputs));
        self.backbone.vit.memory_plan(&self.mapped_pass(inputs.pass(0, micro_batch)), batch)
    }

    /// How images are made ready for [`Self::logits`] and [`Self::step`].
    pub fn preprocess(&self) -> Result<Preprocess> {
        let side = self.parts.iter().find_map(|part| part.input_side());
        self.backbone.preprocess.for_image_size(side.unwrap_or(self.backbone.vit.image_size()))
    }

    /// Fresh learned values: those of the parts, then those of the head.
    pub fn init(&self, seed: u64) -> Result<Vec<Param>> {
        let mut params = self.parts.init(seed)?;
        match &self.output {
            LogitsKind::ClassToken | LogitsKind::Embedding => {
                params.extend(self.head.init(&mut stream(seed, "head init", 0, 0))?);
            }
            LogitsKind::LabelMap(mapped) => params.extend(mapped.init(self.head.classes, seed)?),
            LogitsKind::LearnedTexts(_) | LogitsKind::TemplateTexts(_) => {}
        }
        Ok(params)
    }

    /// Name and shape of every learned tensor, in the order of [`Self::init`].
    pub fn tensors(&self) -> Vec<TensorShape> {
        let of_output = match &self.output {
            LogitsKind::ClassToken | LogitsKind::Embedding => self.head.tensors(),
            LogitsKind::LabelMap(mapped) => mapped.tensors(self.head.classes),
            LogitsKind::LearnedTexts(_) | LogitsKind::TemplateTexts(_) => Vec::new(),
        };
        let of_output = of_output.into_iter().map(|(name, shape)| (name.to_owned(), shape));
        self.parts.tensors().into_iter().chain(of_output).collect()
    }

    /// The learned tensors beside the head: how many of them come first.
    pub fn part_tensors(&self) -> usize {
        self.parts.tensor_count()
    }

    /// The values of the part at `place`.
    fn values<'a>(&self, params: &'a [Param], place: usize) -> Result<&'a [Param]> {
        self.parts.values(params, place)
    }

    /// The values behind those of the parts: the head's.
    fn head_values<'a>(&self, params: &'a [Param]) -> &'a [Param] {
        params.get(self.part_tensors()..).unwrap_or_default()
    }

    /// Checks that the values of a task file are the ones this model has, by name and shape.
    pub fn check(&self, params: &[Param]) -> Result<()> {
        let mut tensors = self.tensors();
        let of_texts = match &self.output {
            LogitsKind::LearnedTexts(texts) => texts.keeps_head(),
            LogitsKind::TemplateTexts(_) => true,
            _ => false,
        };
        if of_texts {
            tensors.extend(self.head.tensors().into_iter().map(|(name, shape)| (name.to_owned(), shape)));
        }
        tensors.retain(|(name, _)| name != VOTES);
        self.parts.check(params, tensors)
    }

    /// The values of a task file in the order of this model.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub(crate) fn adopt(&self, params: Vec<Param>) -> Result<Vec<Param>> {
        self.check(&params)?;
        Ok(self.parts.in_order(params))
    }

    /// What the parts draw at random for a step on the images at `indices`, each with its own rate of `dropout`.
    pub fn draw(&self, draw: &Draw, dropout: &[f32]) -> Vec<Drawn> {
        self.parts.draw(draw, dropout)
    }

    /// What goes into a pass: `images`, which all parts have joined.
    fn join<'a>(&'a self, params: &'a [Param], images: &'a [f32], drawn: &[Drawn]) -> Result<Inputs<'a>> {
        self.parts.join(params, Inputs::new(images, self.threads), drawn)
    }

    /// The gradient of every tensor of the parts from what a pass gave that they have joined.
    fn take(&self, params: &[Param], drawn: &[Drawn], gradients: Gradients) -> Result<Vec<Vec<f32>>> {
        self.parts.take(params, drawn, gradients)
    }

    /// Whether a part is pruned after training, and learns again.
    pub fn prunes(&self) -> bool {
        self.shapes.prunes()
    }

    /// What learns after pruning: the values `again`, those of the beginning, without what matters least in those that were
    /// `learned`, by their mean `gradients` over the training images.
    ///
    /// # Errors
    /// The values are not those of this model.
    pub fn prune(&self, learned: &[Param], gradients: &[Vec<f32>], again: &[Param]) -> Result<Vec<Param>> {
        let mut again = again.to_vec();
        for (place, part) in self.parts.iter().enumerate() {
            let range = self.parts.range(place);
            let (Some(gradients), Some(again)) = (gradients.get(range.clone()), again.get_mut(range)) else {
                return Err(Error::invalid("parameters", "not those of this model"));
            };
            part.prune(self.values(learned, place)?, gradients, again)?;
        }
        Ok(again)
    }

    /// What the head takes, of class tokens after the last norm `[B, width]` of the frozen tower: themselves or their embeddings
    /// `[B, D]`.
    pub fn readout(&self, tokens: Vec<f32>) -> Vec<f32> {
        match &self.output {
            LogitsKind::Embedding | LogitsKind::TemplateTexts(_) => self.backbone.project(tokens),
            _ => tokens,
        }
    }

    /// What the head takes of images `[B, 3, s, s]`, parts applied: the class token after the last norm or its embedding,
    /// `[B, D]`.
    pub fn features(&self, params: &[Param], images: &[f32]) -> Result<Vec<f32>> {
        self.features_behind(params, images, 0)
    }

    /// Blocks that no part changes anything in, as the first that it does comes behind them; 0 if nothing is learned.
    pub fn prefix_blocks(&self) -> usize {
        self.parts.prefix_blocks().unwrap_or(0)
    }

    /// Values that [`Self::prefix`] makes of an image.
    pub fn prefix_len(&self) -> usize {
        self.backbone.vit.tokens() * self.backbone.vit.width()
    }

    /// What comes out of the first [`Self::prefix_blocks`] blocks of images `[B, 3, s, s]`: tokens `[B, n, width]`.
    pub fn prefix(&self, images: &[f32]) -> Result<Vec<f32>> {
        let reads = [TokenRead { after: self.prefix_blocks(), rows: TokenRows::All }];
        self.backbone.vit.read(&Pass { readout: Readout::Tokens(&reads), ..Pass::forward(images, self.threads) })
    }

    /// [`Self::features`] of what comes out of the first `blocks` blocks, if that is not 0.
    pub fn features_behind(&self, params: &[Param], values: &[f32], blocks: usize) -> Result<Vec<f32>> {
        let inputs = self.join(params, values, &[])?;
        let read = self.backbone.vit.read(&self.mapped_pass(inputs.pass(blocks, None)))?;
        match &self.output {
            LogitsKind::Embedding | LogitsKind::TemplateTexts(_) => Ok(inputs.project(&self.backbone, read)),
            _ => Ok(read),
        }
    }

    /// Whether a part puts tokens, keys or values into the image tower.
    pub(crate) fn puts_prompts_in(&self) -> bool {
        let mut inputs = Inputs::new(&[], self.threads);
        self.parts.iter().for_each(|part| part.outline(&mut inputs));
        inputs.tokens.is_some() || inputs.keys_values.is_some()
    }

    /// What the parts put into the image tower, ready for passes with others.
    pub(crate) fn prompt_set(&self, params: &[Param], threads: usize) -> Result<Option<PromptSet>> {
        let inputs = self.join(params, &[], &[])?;
        let Pass { prompts, keys_values, .. } = inputs.pass(0, None);
        if prompts.is_none() && keys_values.is_none() {
            return Ok(None);
        }
        self.backbone.vit.prepare(prompts, keys_values, threads).map(Some)
    }

    /// What a pass reads for the head.
    pub(crate) fn readout_of_pass(&self) -> Readout<'static> {
        self.label_map().map_or(Readout::Features, |(_, source)| Readout::Pooled(source.pool()))
    }

    /// Where the tower looks in each of `images` `[B, 3, s, s]`, parts applied.
    ///
    /// # Errors
    /// As [`Self::features`].
    pub fn attention_maps(&self, params: &[Param], images: &[f32]) -> Result<Vec<AttentionMaps>> {
        self.backbone.vit.attention_maps(&self.join(params, images, &[])?.pass(0, None))
    }

    /// Embeddings of images `[B, 3, s, s]`, parts applied, as [`Backbone::embed`] makes them without.
    pub fn embed(&self, params: &[Param], images: &[f32]) -> Result<Vec<f32>> {
        let inputs = self.join(params, images, &[])?;
        Ok(inputs.project(&self.backbone, self.backbone.vit.read(&inputs.pass(0, None))?))
    }

    /// Logits `[B, C]` of images `[B, 3, s, s]`.
    pub fn logits(&self, params: &[Param], images: &[f32]) -> Result<Vec<f32>> {
        self.classifier(params)?.logits(&self.features(params, images)?)
    }
}

/// Fails unless parts of these shapes can learn together, and with what tells the classes.
fn check_together(shapes: &PartShapes, classifier: &ClassifierSpec) -> Result<()> {
    shapes.check()?;
    let texts = [shapes.text().is_some(), matches!(classifier, ClassifierSpec::Texts { .. })];
    let templates = [shapes.told_by_texts(), matches!(classifier, ClassifierSpec::Templates(_))];
    if texts[0] != texts[1] || templates[0] != templates[1] {
        return Err(Error::invalid("parts", "classes are told by texts where texts, or what reads them, learn"));
    }
    if matches!(classifier, ClassifierSpec::LabelMap(_)) && (shapes.are_several() || shapes.pixels().is_none()) {
        return Err(Error::invalid("parts", "a label map stands beside prompt pixels alone"));
    }
    Ok(())
}

/// Number of learned values outside the head.
pub fn prompt_params(params: &[Param]) -> usize {
    params.iter().filter(|p| matches!(p.group, Group::Part(_) | Group::PartBias(_))).map(|p| p.values.len()).sum()
}
