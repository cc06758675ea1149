//! What a run is, as the user says it ([`RunConfig`]) and as the program needs it ([`Plan`]).
//!
//! A [`RunConfig`] leaves open whatever the user did not say. [`RunConfig::resolve`] is the one place where defaults that
//! depend on method, backbone and data are filled in and where values are checked against them. The filled-in form is what
//! a run folder's `config.toml` keeps, so a run can be repeated even when defaults change.

mod choices;
mod defaults;
mod plan;
mod rate;
mod texts;
mod validate;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::choices::{Select, Task};
pub use self::plan::{DetectPlan, Facts, Plan};
pub use self::rate::LearningRate;
pub use crate::methods::{Method, Solver};
use crate::{
    Error, Result,
    backbone::Precision,
    data::{AugmentPolicy, boxes::Fit},
    files,
    head::{HeadKind, LabelMap},
    loss::class_weights::ClassWeights,
    optim::OptimizerKind,
    prompt::{pixels::PatchPlace, tokens::PromptLayers, weights::LoraTowers},
    suggest,
};

/// What a run is. `None` means: the default for the method, the backbone and the data (see [`RunConfig::resolve`]).
///
/// The field names are the flags' names with `_` for `-`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// A known backbone's name or a folder in the Hugging Face layout.
    pub backbone: String,
    /// Where to look for known backbones first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights_dir: Option<PathBuf>,
    /// A data set's folder or file, or `shapes` for generated pictures.
    pub data: String,
    /// What to learn from it.
    pub task: Task,
    /// What to learn beside the head.
    pub method: Method,
    /// The head; linear if `None`, where the method leaves a choice; of `lora` on a CLIP backbone none, as texts tell the classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadKind>,
    /// How classes of the backbone's own classifier become those of the data, in the place of a head beside prompt pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_map: Option<LabelMap>,
    /// Texts with `{}` or `{c}` for the class name, for a text head and for methods that read texts; `promptsrc` ties the learned
    /// texts to the mean of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub templates: Option<Vec<String>>,
    /// A name for each class, in class order, for templates and learned texts; the data's names, with spaces for `_`, if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classnames: Option<Vec<String>>,
    /// How `linear` is fitted; in steps if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solver: Option<Solver>,
    /// Strength of the L2 penalty of `--solver lbfgs`, one over scikit-learn's `C`; chosen by validation if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l2: Option<f64>,
    /// Augmented views of a training image, for the methods that have them; 0 for the image as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub views: Option<usize>,
    /// Weight of Tip-Adapter's cache beside the texts; chosen by validation if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Sharpness of Tip-Adapter's cache; chosen by validation if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// Prompt tokens a block: 1 to 1000. Of methods that learn texts: vectors in a text, and as many tokens in an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<usize>,
    /// Prompted blocks of `vpt-deep`: `all`, `first:K` or `last:K`; of both towers where texts are learned: not `last:K`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_layers: Option<PromptLayers>,
    /// Share of prompt values set to zero in a step, in [0, 1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_dropout: Option<f32>,
    /// Words that the vectors of the texts begin as, or `random`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_init: Option<String>,
    /// Width of `vp-pad`'s border in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pad: Option<usize>,
    /// Side of `vp-patch`'s patch in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch_size: Option<usize>,
    /// Where `vp-patch`'s patch lies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch_place: Option<PatchPlace>,
    /// Side of the shrunk image of `vp-frame` in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inner_size: Option<usize>,
    /// Rank of `lora`'s changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_rank: Option<usize>,
    /// Strength of `lora`'s changes: their factor is this over the root of the rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_alpha: Option<f32>,
    /// Share of the channels into `lora`'s changes that are zero in a step, in [0, 1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_dropout: Option<f32>,
    /// Which towers `lora` changes; both if `None`, where there are two and no head is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_towers: Option<LoraTowers>,
    /// Training images a class, drawn by the seed; all of them if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shots: Option<usize>,
    /// A written draw of images to learn from and to validate on, as `few_shot.json` is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draw: Option<PathBuf>,
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// Seed of the parts that the data lacks; `seed` if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_seed: Option<u64>,
    /// Passes over the training images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Images a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
    /// Images whose activations are in memory at once; the result is the same, the memory less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<usize>,
    /// Peak learning rate of what the method learns (the head for `linear`), or `auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<LearningRate>,
    /// Peak learning rate of the head beside prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_lr: Option<f64>,
    /// The optimiser; the method's own if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<OptimizerKind>,
    /// Weight decay of prompts and head weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Share of all steps in which the learning rate rises, in [0, 1].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup: Option<f64>,
    /// Bound on the length of the gradient; no bound if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Share of the target spread over all classes, in [0, 1).
    pub label_smoothing: f32,
    /// How much an image counts in the loss, by its class.
    pub class_weights: ClassWeights,
    /// Epochs without a better validation result after which training ends; never if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
    /// Which epoch counts; `last` with `shots` or `draw`, else `best`, if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub select: Option<Select>,
    /// Side of the images the backbone sees, in pixels; its own if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// Mirror half of the training images; for detection, not for classification, if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flip: Option<bool>,
    /// Cut a random part of this share of the area, at least and at most, out of each training image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random_resized_crop: Option<[f32; 2]>,
    /// What else is done to training images.
    pub augment: AugmentPolicy,
    /// Detection: epochs, of all, in which the head learns alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_epochs: Option<usize>,
    /// Detection: decay of the moving average of the learned values, which is what is evaluated and kept, in [0, 1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Detection: how images that are not square become the square that the backbone sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fit: Option<Fit>,
    /// Detection: zoom training images by a factor from this to that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_jitter: Option<[f32; 2]>,
    /// Detection: cut training images at random so that boxes are kept.
    pub box_crop: bool,
    /// Detection: share of training inputs that are put together of four images, in [0, 1].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mosaic: Option<f32>,
    /// Detection: tell classes by the text embeddings of their names, so that other names can be asked for later.
    pub open_vocabulary: bool,
    /// Leave unreadable images out instead of stopping.
    pub skip_bad_images: bool,
    /// Number format of frozen weights and of what is multiplied with them.
    pub precision: Precision,
    /// Bytes that the process should take at most: images are taken fewer at a time, and blocks run again, to keep to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory: Option<u64>,
    /// Folder in which features of images and texts are kept for other runs; nowhere if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
    /// Threads; as many as the machine has if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// The run folder; a fresh one below `runs/` if `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            backbone: "clip-nano".to_owned(),
            weights_dir: None,
            data: "shapes".to_owned(),
            task: Task::default(),
            method: Method::default(),
            head: None,
            label_map: None,
            templates: None,
            classnames: None,
            solver: None,
            l2: None,
            views: None,
            alpha: None,
            beta: None,
            prompt_tokens: None,
            prompt_layers: None,
            prompt_dropout: None,
            context_init: None,
            pad: None,
            patch_size: None,
            patch_place: None,
            inner_size: None,
            lora_rank: None,
            lora_alpha: None,
            lora_dropout: None,
            lora_towers: None,
            shots: None,
            draw: None,
            seed: 1,
            split_seed: None,
            epochs: None,
            batch_size: None,
            micro_batch: None,
            lr: None,
            head_lr: None,
            optimizer: None,
            weight_decay: None,
            warmup: None,
            clip_norm: None,
            label_smoothing: 0.,
            class_weights: ClassWeights::default(),
            patience: None,
            select: None,
            image_size: None,
            flip: None,
            random_resized_crop: None,
            augment: AugmentPolicy::default(),
            head_epochs: None,
            ema: None,
            fit: None,
            scale_jitter: None,
            box_crop: false,
            mosaic: None,
            open_vocabulary: false,
            skip_bad_images: false,
            precision: Precision::default(),
            max_memory: None,
            cache_dir: None,
            threads: None,
            out: None,
        }
    }
}

impl RunConfig {
    /// Reads a `config.toml`.
    ///
    /// # Errors
    /// It cannot be read or is none, or a value in it makes no sense.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = files::read_limited(path, 1 << 20)?;
        let text = String::from_utf8(bytes).map_err(|_| Error::file(path, "not UTF-8 text"))?;
        let config: Self = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            Error::file(path, format!("line {line}: {}", with_hint(message)))
        })?;
        config.validate().map_err(|error| error.in_file(path))?;
        Ok(config)
    }

    /// The content of a `config.toml`.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| Error::invalid("config", error.to_string()))
    }

    /// The same run with another method: what was said for the old one (prompt, learning rates, epochs) is left open again.
    #[must_use]
    pub fn with_method(self, method: Method) -> Self {
        if method == self.method {
            return self;
        }
        Self {
            method,
            prompt_tokens: None,
            prompt_layers: None,
            prompt_dropout: None,
            context_init: None,
            pad: None,
            patch_size: None,
            patch_place: None,
            inner_size: None,
            lora_rank: None,
            lora_alpha: None,
            lora_dropout: None,
            lora_towers: None,
            head: None,
            label_map: None,
            solver: None,
            l2: None,
            views: None,
            alpha: None,
            beta: None,
            epochs: None,
            batch_size: None,
            lr: None,
            head_lr: None,
            optimizer: None,
            weight_decay: None,
            warmup: None,
            ..self
        }
    }

    /// The head that the run has.
    fn head_kind(&self) -> HeadKind {
        self.head.or(self.method.own_head()).unwrap_or_default()
    }

    /// Whether the texts that name the classes have a part in the head.
    pub fn reads_texts(&self) -> bool {
        self.method.reads_texts() || self.head == Some(HeadKind::Text)
    }

    /// Seed of the parts that the data lacks.
    pub fn seed_of_parts(&self) -> u64 {
        self.split_seed.unwrap_or(self.seed)
    }

    /// Whether there is nothing to be learned in steps.
    pub(crate) fn is_solved(&self) -> bool {
        match self.method {
            Method::ZeroShot | Method::Ncm | Method::TipAdapter => true,
            Method::Linear => self.solver == Some(Solver::Lbfgs),
            _ => false,
        }
    }

    /// The same without what says how to take steps, for one that takes none.
    #[must_use]
    pub(crate) fn without_steps(self) -> Self {
        Self {
            epochs: None,
            batch_size: None,
            micro_batch: None,
            lr: None,
            optimizer: None,
            weight_decay: None,
            warmup: None,
            clip_norm: None,
            label_smoothing: 0.,
            class_weights: ClassWeights::None,
            patience: None,
            select: None,
            ..self
        }
    }
}

/// The parser's `message`; of a misspelt field not the list of all fields, if one of them may have been meant.
fn with_hint(message: String) -> String {
    let Some((given, known)) = message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) else {
        return message;
    };
    match suggest::nearest(given, known.split('`').skip(1).step_by(2)) {
        Some(meant) => format!("unknown field `{given}`; did you mean {meant}?"),
        None => message,
    }
}

#[cfg(test)]
mod tests;
