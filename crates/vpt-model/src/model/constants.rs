//! A classifier's task as constants: all that a program has to know that computes it by itself.

use super::{LogitsKind, Model};
use crate::{
    head::label_map::{self, MAP},
    prompt::{
        PartShape,
        part::{Drawn, Inputs},
        pixels::PixelPrompt,
        text,
        tokens::TokenLayout,
    },
};
use vpt_backbone::{spec::Pool, text::PromptedTexts, vit::OwnWeights};
use vpt_base::{
    Result,
    params::{self, Param},
};

/// What a task is made of.
#[derive(Debug)]
pub struct TaskConstants<'a> {
    /// Prompt pixels and their values.
    pub pixels: Option<(PixelPrompt, &'a [f32])>,
    /// Where prompt tokens are, and they `[layers, P, D]`.
    pub tokens: Option<(TokenLayout, Vec<f32>)>,
    /// Key and value prompts.
    pub keys_values: Option<KeyValueRows>,
    /// Weights of the backbone that are the task's own.
    pub weights: OwnWeights<'a>,
    /// What is made of the tokens of an image.
    pub pool: Pool,
    /// Whether the head reads CLIP's projection of that.
    pub embeds: bool,
    /// What makes logits of it.
    pub classifier: ClassifierConstants<'a>,
}

/// Rows of keys and values beside those of the tokens.
#[derive(Debug)]
pub struct KeyValueRows {
    /// First block that has them.
    pub start: usize,
    /// Blocks that have them.
    pub layers: usize,
    /// Rows a block, N.
    pub rows: usize,
    /// `[layers, N, 2D]`: a row's key, then its value.
    pub data: Vec<f32>,
}

/// What makes logits of features.
#[derive(Debug)]
pub enum ClassifierConstants<'a> {
    /// A head, by the names of its tensors: `head.weight` with `head.bias` (linear) or `head.log_scale` (cosine), and
    /// `cache.keys`, `cache.labels`, `cache.alpha_beta`.
    Head(Vec<Param>),
    /// Texts of each image's own.
    ImageTexts(ImageTexts<'a>),
}

/// Texts with vectors in them that a network shifts by the image's embedding.
#[derive(Debug)]
pub struct ImageTexts<'a> {
    /// The vectors `[1, n, D]`.
    pub vectors: &'a Param,
    /// Weights and biases of the network's two layers.
    pub network: [&'a Param; 4],
    /// The texts of the classes around the vectors.
    pub texts: &'a PromptedTexts,
    /// The factor between cosine and logit.
    pub scale: f32,
}

impl Model {
    /// The task of these learned values as constants.
    ///
    /// # Errors
    /// The values are not this model's.
    pub fn constants<'a>(&'a self, params: &'a [Param]) -> Result<TaskConstants<'a>> {
        let mut inputs = Inputs::new(&[], self.threads);
        let mut weights = OwnWeights::default();
        for (place, (part, shape)) in self.parts.iter().zip(self.shapes.iter()).enumerate() {
            let values = self.values(params, place)?;
            match shape {
                PartShape::Pixels(_) => {}
                PartShape::Weights(shape) => weights = shape.own_weights(values),
                _ => part.join(values, &Drawn::Nothing, &mut inputs)?,
            }
        }
        let pool = match self.label_map() {
            Some((_, source)) => source.pool(),
            None => self.backbone.spec.pool,
        };
        let embeds =
            matches!(self.output, LogitsKind::Embedding | LogitsKind::TemplateTexts(_) | LogitsKind::LearnedTexts(_));
        Ok(TaskConstants {
            pixels: self.pixels(params)?,
            tokens: inputs.tokens.take().map(|(layout, values)| (layout, values.into_owned())),
            keys_values: inputs.keys_values.take().map(|rows| KeyValueRows {
                start: rows.start,
                layers: rows.layers,
                rows: rows.rows,
                data: rows.data.into_owned(),
            }),
            weights,
            pool,
            embeds,
            classifier: self.classifier_constants(params)?,
        })
    }

    fn classifier_constants<'a>(&'a self, params: &'a [Param]) -> Result<ClassifierConstants<'a>> {
        let own = self.head_values(params);
        let head = match &self.output {
            LogitsKind::LabelMap(_) => {
                let Some((_, source)) = self.label_map() else { return Ok(ClassifierConstants::Head(Vec::new())) };
                let map = &params::find(own, MAP)?.values;
                label_map::fold(map, source.weight(), source.bias(), self.head.classes)?
            }
            LogitsKind::LearnedTexts(texts) if !texts.keeps_head() => {
                let network = text::network(params)?;
                let (texts, scale) = (texts.texts(), self.logit_scale());
                let vectors = text::vectors(params)?;
                return Ok(ClassifierConstants::ImageTexts(ImageTexts { vectors, network, texts, scale }));
            }
            _ => own.to_vec(),
        };
        Ok(ClassifierConstants::Head(head))
    }
}
