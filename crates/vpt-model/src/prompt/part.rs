//! What a learned part is to a model: it owns its tensors, joins a pass through the image tower with what it adds to it, and
//! takes its own gradient from what the pass gives back.
//!
//! A model holds a list of parts and gives each the slice of the learned values that is its own. What parts add to a pass has
//! a place each in `Inputs`, so several of them join without knowing of each other. A new kind of part is a file with a
//! shape that is a `Kind` and a part that is a `Part`, and a line in [`super::PartShape`].

use std::{borrow::Cow, collections::HashMap, path::Path, sync::Arc, sync::MutexGuard};

use rand::RngCore;

use super::{
    pixels::Places,
    tokens::{DropoutMask, TokenLayout},
    weights::{Projection, Towers, WeightShape},
};
use vpt_backbone::{
    Backbone,
    vit::{Grads, Input, KeyValuePrompts, Pass, Readout, Want},
};
use vpt_base::{
    Error, Result,
    params::{Group, Param},
    tensor_file::{self, Tensor},
};

/// Name and shape of a tensor.
pub type TensorShape = (String, Vec<usize>);

/// Where a part is put.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site<'a> {
    /// What the tower is of.
    pub(crate) backbone: &'a Backbone,
    /// Whether the head reads image embeddings.
    pub(crate) embeds: bool,
    /// Whether classes of the backbone's own classifier are counted before the first step.
    pub(crate) maps_labels: bool,
    /// Embeddings `[k, D]` of words that vectors in texts begin as.
    pub(crate) words: Option<&'a [f32]>,
}

/// What a file says of a part: kind and place, from which the part itself follows.
pub(crate) trait Kind {
    /// The part on a backbone.
    ///
    /// # Errors
    /// It does not fit the backbone.
    fn build(&self, site: &Site) -> Result<Arc<dyn Part>>;

    /// Takes its values out of the tensors of the task file `path`: everything is checked that does not depend on the
    /// backbone.
    ///
    /// # Errors
    /// One is missing, or of another shape.
    fn take(&self, tensors: &mut FileTensors, path: &Path) -> Result<Vec<Param>>;

    /// What it is, in words.
    fn describe(&self) -> String;

    /// Whether an image's features change as it learns.
    fn changes_features(&self) -> bool {
        true
    }

    /// Whether it is pruned after training, and learns again.
    fn prunes(&self) -> bool {
        false
    }

    /// Adds what it asks of a step on images of `side` pixels with patches of `patch`.
    fn add_work(&self, side: usize, patch: usize, work: &mut Work);
}

/// What is learned beside the head, as far as the least work of a step follows from it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Prompt tokens.
    pub tokens: Option<TokenLayout>,
    /// Patches that hold at least one prompt pixel, where there are prompt pixels.
    pub patches: Option<usize>,
    /// Weights of the backbone.
    pub weights: Option<WeightShape>,
}

/// Tensors of a file by their names.
pub(crate) type FileTensors = HashMap<String, Tensor<'static>>;

/// A part of a model: learned values beside the head.
///
/// A program may have parts of its own, and put them into a model by [`Model::of_parts`](crate::model::Model::of_parts).
pub trait Part: std::fmt::Debug + Send + Sync {
    /// Name and shape of its tensors, in the order of its values and of their gradients.
    fn tensors(&self) -> &[TensorShape];

    /// Fresh values.
    fn init(&self, rng: &mut dyn RngCore) -> Result<Vec<Param>>;

    /// What a step draws at random for it.
    fn draw(&self, _: &Draw) -> Drawn {
        Drawn::Nothing
    }

    /// Blocks of the image tower that come before everything that it changes.
    fn prefix_blocks(&self) -> usize {
        0
    }

    /// Side of the images that it is put on, where that is not the backbone's.
    fn input_side(&self) -> Option<usize> {
        None
    }

    /// Joins a pass without values: enough to say what memory it takes.
    fn outline<'a>(&'a self, inputs: &mut Inputs<'a>);

    /// Joins a pass with these values of its own.
    ///
    /// # Errors
    /// The values do not fit.
    fn join<'a>(&'a self, values: &'a [Param], drawn: &Drawn, inputs: &mut Inputs<'a>) -> Result<()>;

    /// Takes the gradient of its values, one for each of [`Self::tensors`], from what a pass that it has joined gave.
    ///
    /// # Errors
    /// The values do not fit.
    fn take_gradient(&self, values: &[Param], drawn: &Drawn, gradients: &mut Gradients) -> Result<Vec<Vec<f32>>>;

    /// Takes away what matters least of the values that it has `learned`, by their mean `gradients` over the training images, in
    /// those that it begins with `again`.
    ///
    /// # Errors
    /// The values do not fit.
    fn prune(&self, _learned: &[Param], _gradients: &[Vec<f32>], _again: &mut [Param]) -> Result<()> {
        Ok(())
    }
}

/// What draws of a step depend on.
#[derive(Debug, Clone, Copy)]
pub struct Draw<'a> {
    /// The run's seed.
    pub seed: u64,
    /// The epoch, from 1.
    pub epoch: usize,
    /// The step, from 0.
    pub step: u64,
    /// The images of the step among those of the data set.
    pub indices: &'a [usize],
    /// Share of values that are dropped.
    pub dropout: f32,
    /// Place of the part among those of the model.
    pub part: u64,
}

/// What a step has drawn at random for a part.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Drawn {
    /// Nothing.
    #[default]
    Nothing,
    /// Which of its values are dropped.
    Mask(DropoutMask),
    /// Where prompt patches lie.
    Places(Places),
}

impl Drawn {
    /// The dropout mask, if there is one.
    pub(crate) fn mask(&self) -> Option<&DropoutMask> {
        if let Self::Mask(mask) = self { Some(mask) } else { None }
    }

    /// Where prompt patches lie.
    pub(crate) fn places(&self) -> &Places {
        if let Self::Places(places) = self { places } else { &Places::Same }
    }
}

/// What goes into a pass through the image tower once every part has joined.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// Images `[B, 3, S, S]`, or tokens `[B, T, D]` that have passed some blocks.
    pub images: Cow<'a, [f32]>,
    /// Prompt tokens: where, and `[layers, P, D]`.
    pub tokens: Option<(TokenLayout, Cow<'a, [f32]>)>,
    /// Key and value prompts.
    pub keys_values: Option<KeysValues<'a>>,
    /// Towers with weights of the task's own.
    pub(crate) towers: Option<MutexGuard<'a, Towers>>,
    /// The gradients that parts will ask for.
    pub want: Want,
    /// Threads that compute.
    pub threads: usize,
}

/// Key and value prompts, as [`KeyValuePrompts`].
#[derive(Debug)]
pub struct KeysValues<'a> {
    /// First prompted block.
    pub start: usize,
    /// Number of prompted blocks.
    pub layers: usize,
    /// Keys and values a block.
    pub rows: usize,
    /// `[layers, rows, 2D]`.
    pub data: Cow<'a, [f32]>,
}

impl KeysValues<'_> {
    fn prompts(&self) -> KeyValuePrompts<'_> {
        KeyValuePrompts { start: self.start, layers: self.layers, rows: self.rows, data: &self.data }
    }
}

impl<'a> Inputs<'a> {
    /// Images that no part has joined yet.
    pub(crate) fn new(images: &'a [f32], threads: usize) -> Self {
        Self { images: images.into(), tokens: None, keys_values: None, towers: None, want: Want::default(), threads }
    }

    /// The pass that reads the class token, of images or, if `blocks` is not 0, of tokens behind so many blocks.
    pub(crate) fn pass(&self, blocks: usize, micro_batch: Option<usize>) -> Pass<'_> {
        let input = match blocks {
            0 => Input::Images(&self.images),
            blocks => Input::Tokens { blocks, tokens: &self.images },
        };
        Pass {
            input,
            prompts: self.tokens.as_ref().map(|(layout, values)| layout.prompts(values)),
            keys_values: self.keys_values.as_ref().map(KeysValues::prompts),
            tuned: self.towers.as_ref().and_then(|towers| towers.image()),
            readout: Readout::Features,
            want: self.want,
            micro_batch,
            threads: self.threads,
        }
    }

    /// The embeddings `[m, E]` that class tokens `[m, D]` stand for.
    pub(crate) fn project(&self, backbone: &Backbone, tokens: Vec<f32>) -> Vec<f32> {
        match self.projection() {
            Some(projection) => projection.project(&tokens),
            None => backbone.project(tokens),
        }
    }

    /// Gradients of the tokens `[m, D]`, and of the projection if it is tuned, from those of the embeddings `[m, E]`.
    pub(crate) fn project_vjp(
        &self,
        backbone: &Backbone,
        tokens: &[f32],
        gradient: Vec<f32>,
    ) -> (Vec<f32>, Option<Vec<f32>>) {
        let Some(projection) = self.projection() else { return (backbone.project_vjp(gradient), None) };
        let (of_tokens, of_weight) = projection.vjp(tokens, &gradient);
        (of_tokens, Some(of_weight))
    }

    /// The projection, where it is tuned.
    fn projection(&self) -> Option<&Projection> {
        self.towers.as_ref()?.projection()
    }

    /// Whether the projection is tuned, so that [`Self::project_vjp`] gives its gradient.
    pub(crate) fn tunes_projection(&self) -> bool {
        self.projection().is_some()
    }
}

/// What a pass gives back, of which each part takes its own.
#[derive(Debug, Default)]
pub struct Gradients {
    /// Of tokens, keys and values, pixels and weights.
    pub of_pass: Grads,
    /// Of CLIP's projection of image features.
    pub(crate) of_projection: Option<Vec<f32>>,
}

/// The only tensor of a part called `name`.
pub(crate) fn only<'a>(values: &'a [Param], name: &str) -> Result<&'a Param> {
    match values {
        [value] => Ok(value),
        _ => Err(Error::invalid(name, "no such tensor among the learned ones")),
    }
}

/// Name and shape of a tensor; a dimension that depends on the backbone is `None`.
pub(crate) type OpenTensor = (&'static str, Vec<Option<usize>>);

/// Takes these tensors out of those of the task file `path`.
pub(crate) fn take_open(expected: Vec<OpenTensor>, tensors: &mut FileTensors, path: &Path) -> Result<Vec<Param>> {
    if expected.iter().any(|(_, shape)| shape.contains(&Some(0))) {
        return Err(Error::task_file(path, "task metadata: a prompt without tokens or layers"));
    }
    let take = |(name, expected): (&str, Vec<Option<usize>>)| {
        let shape = tensors.get(name).map(|t| t.shape.clone()).unwrap_or_default();
        let values = tensor_file::take(tensors, name, &shape, path)?;
        let fits = |(n, expected): (&usize, &Option<usize>)| expected.is_none_or(|expected| *n == expected);
        if shape.len() != expected.len() || !shape.iter().zip(&expected).all(fits) {
            let message = format!("the shape {shape:?} of `{name}` is not what its metadata says");
            return Err(Error::task_file(path, message));
        }
        Param::new(name, &shape, values, Group::Part(0))
    };
    expected.into_iter().map(take).collect()
}
