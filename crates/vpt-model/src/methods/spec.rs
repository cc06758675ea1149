//! What every method says of itself, and what it is asked.

use super::{HeadInit, MethodOptions, Task};
use crate::{
    head::{HeadKind, LabelMap},
    optim::{EPSILON, OptimizerKind},
    prompt::PartShape,
};
use vpt_base::Result;

/// The settings of a head that is learned beside something else.
pub(super) const HEAD_OPTIONS: &[&str] = &["head_lr", "head_init", "keep_better"];

/// A method: its name, what it learns, and what follows from that. One constant for each, in a file of its own, as a line
/// of the table in [`super`]; a family's constant holds what its members share.
#[derive(Debug)]
pub struct MethodSpec {
    /// The name in flags and files.
    pub name: &'static str,
    /// What is learned beside the head, in a phrase, for help texts and the README.
    pub summary: &'static str,
    /// Where it is from: authors and year.
    pub source: &'static str,
    /// The paragraph of the help that it is listed in.
    pub family: &'static MethodFamily,
    /// What is learned of, or before, the backbone.
    pub learns: Learns,
    /// The part that the texts of the classes have in it.
    pub texts: Texts,
    /// The head.
    pub head: MethodHead,
    /// The augmented views of a training image, whose features are computed once; as it is if `None`.
    pub views: Option<Views>,
    /// The tasks it is for.
    pub tasks: &'static [Task],
    /// Whether there is nothing to learn in steps.
    pub solved: fn(&MethodOptions) -> bool,
    /// The settings that it has and others lack, by name, in groups.
    pub options: &'static [&'static [&'static str]],
    /// Whether it learns at once with others that learn something else.
    pub combines: bool,
    /// Whether its memory can be kept to a limit.
    pub limits_memory: bool,
    /// What cannot be, whatever backbone and data are.
    pub check: fn(&MethodOptions, Option<HeadKind>) -> Result<()>,
    /// How it trains well.
    pub defaults: fn(&MethodRequest<'_>) -> Defaults,
    /// The part that is learned beside the head, if one is; the options that it is made of are filled in.
    pub part: fn(&MethodRequest<'_>, &mut MethodOptions) -> Result<Option<MethodPart>>,
}

/// Methods that a help text tells of together.
#[derive(Debug)]
pub struct MethodFamily {
    /// What comes before the list; may be empty.
    pub intro: &'static str,
}

/// What is learned of, or before, the backbone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learns {
    /// Nothing, so that an image's features are computed once.
    Nothing,
    /// Prompt tokens.
    Tokens,
    /// Prompt pixels.
    Pixels,
    /// Vectors in the texts of the classes.
    Texts,
    /// Changes to weights of the backbone, which stay as they are beneath.
    Changes,
    /// Weights of the backbone themselves.
    Weights,
}

impl Learns {
    /// Its name among what can be learned at once, one of each.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Nothing => "nothing before the head",
            Self::Tokens => "prompt tokens",
            Self::Pixels => "prompt pixels",
            Self::Texts => "texts",
            Self::Changes | Self::Weights => "weights of the backbone",
        }
    }
}

/// The part that the texts of the classes have in a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Texts {
    /// None.
    Unread,
    /// The head is made of them, or begins as they are.
    Head,
    /// They tell the classes where the backbone has a text tower, the task is [`Task::Classify`] and no head is asked for.
    HeadIfAny,
    /// Vectors in them are learned.
    Learned {
        /// Texts without learned vectors, with `{}` for the class, that the learned ones are tied to.
        tied_to: &'static [&'static str],
    },
}

/// The head of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MethodHead {
    /// Any, learned in steps on the class token after the last norm.
    Any,
    /// A cosine head on image embeddings, made and learned so.
    Embeddings(HeadStart),
    /// A cosine head whose weights are texts with learned vectors.
    LearnedTexts,
}

/// What a head on image embeddings begins as, and what of it is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadStart {
    /// The texts that name the classes; nothing is learned.
    Texts,
    /// The mean embedding of each class; nothing is learned.
    ClassMeans,
    /// The texts; class weights are learned.
    TextWeights {
        /// Whether they are held near the texts class by class.
        held: bool,
    },
    /// The texts beside a cache of the training images.
    Cache {
        /// Whether its keys are learned.
        learned: bool,
    },
}

/// Augmented views of training images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Views {
    /// How many of each by default.
    pub count: usize,
    /// Least and greatest share of the area that one shows.
    pub area: (f32, f32),
    /// Whether every epoch learns from all of them; else they make the cache.
    pub in_every_epoch: bool,
    /// Whether there is another one for every epoch.
    pub one_more_an_epoch: bool,
}

/// What backbone and data say, which defaults and checks depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunContext {
    /// What is to be learned, never [`Task::Auto`].
    pub task: Task,
    /// Blocks of the vision tower.
    pub depth: usize,
    /// Blocks of the text tower, if there is one.
    pub text_depth: Option<usize>,
    /// Side of the images the backbone sees.
    pub image_size: usize,
    /// Images to train on.
    pub train_images: usize,
    /// Images a class that they were drawn as, if they were.
    pub shots: Option<usize>,
}

/// What a method is asked: the user's choices that it depends on, and what is known of backbone and data.
#[derive(Debug, Clone, Copy)]
pub struct MethodRequest<'a> {
    /// The options of all methods.
    pub options: &'a MethodOptions,
    /// The head that was asked for.
    pub head: Option<HeadKind>,
    /// What the head begins as, where one is learned beside something else.
    pub head_init: Option<HeadInit>,
    /// The label map that was asked for.
    pub label_map: Option<LabelMap>,
    /// Whether no other method learns at once.
    pub alone: bool,
    /// Backbone and data.
    pub context: RunContext,
}

impl MethodRequest<'_> {
    /// Whether the head begins as the probe on frozen features.
    pub fn begins_as_probe(&self) -> bool {
        self.head_init == Some(HeadInit::Probe)
    }

    /// Whether boxes or pixels are learned, by a head on patch tokens.
    pub fn is_dense(&self) -> bool {
        self.dense_defaults().is_some()
    }

    /// What a head on patch tokens learns well with, where one is learned.
    pub fn dense_defaults(&self) -> Option<Defaults> {
        match self.context.task {
            Task::Detect => Some(Defaults::DETECTION),
            Task::Segment => Some(Defaults::SEGMENTATION),
            _ => None,
        }
    }
}

/// The part that a method learns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MethodPart {
    /// Its kind and place.
    pub shape: PartShape,
    /// Share of it that is zero in a step.
    pub dropout: f32,
}

impl MethodPart {
    /// A part of which nothing is dropped out.
    pub fn whole(shape: PartShape) -> Self {
        Self { shape, dropout: 0. }
    }
}

/// What a method needs to train well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Defaults {
    /// Peak learning rate of what the method learns.
    pub lr: f64,
    /// Peak learning rate of the head beside it.
    pub head_lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Images a step.
    pub batch_size: usize,
    /// Passes over the training images.
    pub epochs: Epochs,
    /// How the learning rate begins.
    pub warmup: Warmup,
    /// The optimiser.
    pub optimizer: OptimizerKind,
    /// What keeps `AdamW`'s division finite.
    pub epsilon: f64,
}

impl Defaults {
    /// Those of prompt tokens on a classifier, which others differ from.
    pub const BASE: Self = Self {
        lr: 5e-3,
        head_lr: 1e-3,
        weight_decay: 1e-2,
        batch_size: 32,
        epochs: Epochs::of_steps(1000),
        warmup: Warmup::Share(Warmup::SHARE),
        optimizer: OptimizerKind::Adamw,
        epsilon: EPSILON,
    };
    /// Those of a segmenter.
    pub const SEGMENTATION: Self = Self {
        lr: 1e-2,
        weight_decay: 1e-4,
        batch_size: 8,
        // Both stages together, whatever the size of the data.
        epochs: Epochs::Steps { steps: 2150, least: 40, most: 160 },
        ..Self::BASE
    };
    /// Those of a detector: in steps of half the images it is as good after two thirds of the images (docs/what-helps.md).
    pub const DETECTION: Self =
        Self { batch_size: 4, epochs: Epochs::Steps { steps: 2700, least: 40, most: 160 }, ..Self::SEGMENTATION };
}

/// How the learning rate begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Warmup {
    /// It rises in this share of all steps.
    Share(f64),
    /// The first epoch goes at [`Self::FIRST_EPOCH_LR`]; then the rate falls along a cosine from epoch to epoch, as in the public
    /// codes of `CoOp` and of those that follow it.
    SlowFirstEpoch,
}

impl Warmup {
    /// The VPT paper's 10 epochs of 100.
    pub const SHARE: f64 = 0.1;
    /// The rate of a slow first epoch.
    pub const FIRST_EPOCH_LR: f64 = 1e-5;
}

/// How many epochs a method has by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epochs {
    /// Enough for so many steps, whatever the size of the data, within bounds.
    Steps {
        /// Wanted steps.
        steps: usize,
        /// Least epochs.
        least: usize,
        /// Most epochs.
        most: usize,
    },
    /// As published, whatever the data.
    Fixed(usize),
    /// As published with 1, with 2 to 4 and with more images a class; else as many as make [`Self::STEPS`].
    ByShots([usize; 3]),
    /// So many steps for each image of a class; else as many as make [`Self::STEPS`].
    StepsPerShot(usize),
}

impl Epochs {
    /// Steps of a method that was published with epochs for few shots, where there are more.
    pub const STEPS: usize = 1000;

    /// Enough for so many steps, but at least 10 epochs and at most 100.
    pub const fn of_steps(steps: usize) -> Self {
        Self::Steps { steps, least: 10, most: 100 }
    }

    /// Epochs of `per_epoch` steps, with `shots` images a class if they were drawn so.
    pub fn count(self, per_epoch: usize, shots: Option<usize>) -> usize {
        match (self, shots) {
            (Self::Steps { steps, least, most }, _) => steps.div_ceil(per_epoch).clamp(least, most),
            (Self::Fixed(epochs), _) => epochs,
            (Self::ByShots([one, few, many]), Some(shots)) => match shots {
                0..=1 => one,
                2..=4 => few,
                _ => many,
            },
            (Self::StepsPerShot(steps), Some(shots)) => shots.saturating_mul(steps).div_ceil(per_epoch),
            (Self::ByShots(_) | Self::StepsPerShot(_), None) => Self::of_steps(Self::STEPS).count(per_epoch, None),
        }
    }
}
