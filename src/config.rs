//! What a run is, as the user says it ([`RunConfig`]) and as the program needs it ([`Plan`]).
//!
//! A [`RunConfig`] leaves open whatever the user did not say. [`RunConfig::resolve`] is the one place where defaults that
//! depend on method, backbone and data are filled in and where values are checked against them. The filled-in form is what
//! a run folder's `config.toml` keeps, so a run can be repeated even when defaults change.

mod defaults;
mod rate;
mod texts;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::rate::LearningRate;
use crate::{
    Error, Result,
    backbone::Precision,
    choice::choice,
    data::{
        AugmentPolicy, Split,
        boxes::{BoxAugment, Fit},
        files,
    },
    eval::zero_shot::TEMPLATE,
    head::HeadKind,
    prompt::{
        PromptShape,
        pixels::{PatchPlace, PixelShape},
        text::{Beside, TextShape},
        tokens::{PromptLayers, TokenLayout},
    },
    suggest,
    train::{
        class_weights::ClassWeights,
        optim::{self, OptimizerKind, Rate, Rates},
        schedule::{Course, EpochSchedule, Schedule},
    },
};

/// What `context_init` says where vectors begin as no words.
const RANDOM: &str = "random";

choice! {
    /// What is learned beside the head.
    #[derive(Default)]
    pub enum Method for "--method" {
        /// Nothing: a head on features that are computed once.
        Linear = "linear",
        /// Nothing, and no head either: the texts that name the classes.
        ZeroShot = "zero-shot",
        /// A head of the classes' mean embeddings.
        Ncm = "ncm",
        /// A head that starts as the texts that name the classes.
        ZsLp = "zs-lp",
        /// The same, held near those texts class by class.
        Clap = "clap",
        /// Nothing: a cache of the training images beside the texts that name the classes.
        TipAdapter = "tip-adapter",
        /// The keys of that cache.
        TipAdapterF = "tip-adapter-f",
        /// Prompt tokens at the input of the first block.
        VptShallow = "vpt-shallow",
        /// Prompt tokens of their own for every block.
        #[default]
        VptDeep = "vpt-deep",
        /// A border of prompt pixels over the image.
        VpPad = "vp-pad",
        /// A patch of prompt pixels over the image.
        VpPatch = "vp-patch",
        /// Prompt pixels over the whole image.
        VpFull = "vp-full",
        /// The image shrunk, prompt pixels around it.
        VpFrame = "vp-frame",
        /// Vectors in the texts of the classes.
        Coop = "coop",
        /// The same, shifted by a network of the image.
        Cocoop = "cocoop",
        /// Vectors in several blocks of both towers.
        Ivlp = "ivlp",
        /// Vectors in several blocks of the text tower, and maps of them to the image tower's.
        Maple = "maple",
        /// As `ivlp`, tied to what the frozen backbone makes of images and texts, averaged over the epochs.
        Promptsrc = "promptsrc",
    }
}

impl Method {
    /// Whether prompt tokens are learned.
    pub fn has_tokens(self) -> bool {
        matches!(self, Self::VptShallow | Self::VptDeep)
    }

    /// Whether texts of the classes are learned.
    pub fn has_texts(self) -> bool {
        matches!(self, Self::Coop | Self::Cocoop) || self.has_deep_texts()
    }

    /// Whether they are learned in several blocks, beside prompts of the image tower.
    fn has_deep_texts(self) -> bool {
        matches!(self, Self::Ivlp | Self::Maple | Self::Promptsrc)
    }

    /// Whether prompt pixels are learned.
    pub fn has_pixels(self) -> bool {
        matches!(self, Self::VpPad | Self::VpPatch | Self::VpFull | Self::VpFrame)
    }

    /// Whether nothing but a head on the images' features is learned, so that each is computed once.
    pub fn on_features(self) -> bool {
        !self.has_tokens() && !self.has_pixels() && !self.has_texts()
    }

    /// Whether features are image embeddings (of CLIP the projected class token) instead of the class token after the last
    /// norm, which is what is wanted where they are compared with texts or with one another.
    pub fn on_embeddings(self) -> bool {
        self.on_features() && self != Self::Linear
    }

    /// Whether the texts that name the classes have a part in the head.
    pub fn reads_texts(self) -> bool {
        self.on_embeddings() && self != Self::Ncm
    }

    /// Whether the head holds a cache of the training images.
    pub fn has_cache(self) -> bool {
        matches!(self, Self::TipAdapter | Self::TipAdapterF)
    }

    /// Whether training images are seen as augmented views, whose features are computed once.
    pub fn has_views(self) -> bool {
        matches!(self, Self::ZsLp | Self::Clap) || self.has_cache()
    }

    /// The head that belongs to the method, where it leaves no choice.
    pub fn own_head(self) -> Option<HeadKind> {
        (self.on_embeddings() || self.has_texts()).then_some(HeadKind::Cosine)
    }
}

choice! {
    /// How a linear probe is fitted.
    pub enum Solver for "--solver" {
        /// In steps, with `--optimizer`.
        Sgd = "sgd",
        /// To the minimum of the cross-entropy with an L2 penalty, by L-BFGS.
        Lbfgs = "lbfgs",
    }
}

choice! {
    /// What the data asks for.
    #[derive(Default)]
    pub enum Task for "--task" {
        /// As the layout of the data says.
        #[default]
        Auto = "auto",
        /// One class an image.
        Classify = "classify",
        /// Any number of classes an image, from data with boxes.
        Multilabel = "multilabel",
        /// Boxes around objects.
        Detect = "detect",
    }
}

choice! {
    /// Which epoch a run ends with.
    pub enum Select for "--select" {
        /// The one with the highest validation accuracy, mAP or AP; of equals the one with the lower loss, then the earlier.
        Best = "best",
        /// The last one, as few-shot protocols ask for.
        Last = "last",
    }
}

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
    /// The head; linear if `None`, where the method leaves a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadKind>,
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

/// What the backbone and the data say, which defaults and checks depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// What is to be learned, never [`Task::Auto`].
    pub task: Task,
    /// Blocks of the vision tower.
    pub depth: usize,
    /// Blocks of the text tower, if there is one.
    pub text_depth: Option<usize>,
    /// Side of the images it sees.
    pub image_size: usize,
    /// Images to train on.
    pub train_images: usize,
    /// Images a class that they were drawn as, if they were.
    pub shots: Option<usize>,
}

/// A run with nothing left open.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The configuration with every default filled in: what `config.toml` keeps.
    pub config: RunConfig,
    /// The learned input.
    pub prompt: PromptShape,
    /// The head.
    pub head: HeadKind,
    /// The optimiser.
    pub optimizer: OptimizerKind,
    /// Augmented views of a training image; 0 if it is seen as it is.
    pub views: usize,
    /// Share of the values of prompt tokens that is zero in a step.
    pub prompt_dropout: f32,
    /// Passes over the training images.
    pub epochs: usize,
    /// Images a step.
    pub batch_size: usize,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// Steps in the whole run.
    pub total_steps: u64,
    /// Which epoch counts.
    pub select: Select,
    /// Threads.
    pub threads: usize,
    /// Learning rates to choose from by validation: one, unless the rate is `auto`.
    pub learning_rates: Vec<f64>,
    /// What only detection needs.
    pub detect: Option<DetectPlan>,
    /// Whether there is nothing to be learned in steps: the head is computed.
    pub solved: bool,
    head_lr: f64,
    weight_decay: f64,
}

/// The part of a plan that only detection has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DetectPlan {
    /// Epochs in which the head learns alone, on features that are computed once; the others follow.
    pub head_epochs: usize,
    /// Share of a stage's steps in which the learning rate rises.
    pub warmup: f64,
    /// Decay of the moving average of the learned values.
    pub ema: f64,
    /// How images become square.
    pub fit: Fit,
    /// Random changes to training images; a head that prompts will follow knows the flip only.
    pub augment: BoxAugment,
}

impl Plan {
    /// Rates of the optimiser when the method learns at `lr`.
    pub fn rates(&self, lr: f64) -> Rates {
        let head = match self.prompt {
            PromptShape::None => lr,
            _ => self.head_lr,
        };
        let rate = |lr| Rate { lr, decay: self.weight_decay };
        let epsilon = defaults::epsilon(self.config.method);
        Rates { prompt: rate(lr), head: rate(head), epsilon }
    }

    /// Rates of detection, of either stage.
    pub fn detection_rates(&self) -> Rates {
        let lr = self.learning_rates[0];
        let head = if self.prompt == PromptShape::None { lr } else { self.head_lr };
        let head = Rate { lr: head, decay: self.weight_decay };
        Rates { prompt: Rate { lr, decay: 0. }, head, epsilon: optim::EPSILON }
    }

    /// How the learning rate goes over `epochs` epochs of `per_epoch` steps: a trial of the rate may have fewer than the run.
    pub fn course(&self, epochs: usize, per_epoch: usize) -> Course {
        let total = (epochs * per_epoch) as u64;
        if matches!(self.config.method, Method::ZsLp | Method::Clap) && self.config.warmup.is_none() {
            let first = defaults::PROBE_FIRST_LR / self.learning_rates[0];
            return Course::Epochs(EpochSchedule { epochs: epochs as u64, per_epoch: per_epoch as u64, first });
        }
        // A shorter loop (a trial) warms up in proportion.
        let warmup = (self.warmup_steps as f64 * total as f64 / self.total_steps as f64).round() as u64;
        Course::Steps(Schedule { total, warmup })
    }

    /// Whether the features of the images of `split` never change, so that they are computed once.
    pub fn has_constant_features(&self, split: Split) -> bool {
        let untouched = match self.prompt {
            PromptShape::None => self.config.method.on_features(),
            PromptShape::Text(shape) => shape.image_tokens().is_none(),
            _ => false,
        };
        untouched && !(self.augments() && split == Split::Train)
    }

    /// Whether training images of a classifier are changed at random.
    pub fn augments(&self) -> bool {
        let RunConfig { flip, random_resized_crop, augment, .. } = &self.config;
        *flip == Some(true) || random_resized_crop.is_some() || *augment != AugmentPolicy::None
    }

    /// The words that the vectors of the texts begin as, unless at random.
    pub fn context_words(&self) -> Option<&str> {
        self.config.context_init.as_deref().filter(|words| *words != RANDOM)
    }

    /// Steps in an epoch: the last batch may be smaller.
    pub fn steps_per_epoch(&self) -> u64 {
        self.total_steps / self.epochs as u64
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
            head: None,
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

    /// Checks what can be checked without backbone and data, so that a wrong flag is told before anything is read.
    pub fn validate(&self) -> Result<()> {
        at_least_one("--prompt-tokens", self.prompt_tokens)?;
        if self.prompt_tokens.is_some_and(|n| n > defaults::MAX_PROMPT_TOKENS) {
            return Err(Error::flag("--prompt-tokens", format!("more than {}", defaults::MAX_PROMPT_TOKENS)));
        }
        at_least_one("--shots", self.shots)?;
        at_least_one("--epochs", self.epochs)?;
        at_least_one("--batch-size", self.batch_size)?;
        at_least_one("--micro-batch", self.micro_batch)?;
        at_least_one("--patience", self.patience)?;
        at_least_one("--image-size", self.image_size)?;
        at_least_one("--threads", self.threads)?;
        if self.threads.is_some_and(|n| n > defaults::MAX_THREADS) {
            return Err(Error::flag("--threads", format!("more than {}", defaults::MAX_THREADS)));
        }
        if let Some(LearningRate::Value(lr)) = self.lr {
            positive("--lr", lr)?;
        }
        for (flag, value) in
            [("--head-lr", self.head_lr), ("--l2", self.l2), ("--alpha", self.alpha), ("--beta", self.beta)]
        {
            if let Some(value) = value {
                positive(flag, value)?;
            }
        }
        if self.views.is_some_and(|views| views > defaults::MAX_VIEWS) {
            return Err(Error::flag("--views", format!("more than {}", defaults::MAX_VIEWS)));
        }
        if self.alpha.is_some() != self.beta.is_some() {
            let flag = if self.alpha.is_some() { "--alpha" } else { "--beta" };
            return Err(Error::flag(flag, "--alpha and --beta are given together or not at all"));
        }
        if let Some(norm) = self.clip_norm {
            positive("--clip-norm", norm)?;
        }
        if let Some(decay) = self.weight_decay
            && !(decay.is_finite() && decay >= 0.)
        {
            return Err(Error::flag("--weight-decay", format!("{decay} is not a number of 0 or more")));
        }
        if let Some(warmup) = self.warmup
            && !(0. ..=1.).contains(&warmup)
        {
            return Err(Error::flag("--warmup", format!("{warmup} is not a share between 0 and 1")));
        }
        share("--label-smoothing", self.label_smoothing)?;
        share("--prompt-dropout", self.prompt_dropout.unwrap_or(0.))?;
        if let Some([low, high]) = self.random_resized_crop
            && !(0. < low && low <= high && high <= 1.)
        {
            let message = format!("{low} to {high} are not shares of the area with 0 < least <= most <= 1");
            return Err(Error::flag("--random-resized-crop", message));
        }
        // TOML has no larger integers, and a run that cannot be saved cannot be repeated.
        for (flag, seed) in [("--seed", self.seed), ("--split-seed", self.split_seed.unwrap_or(0))] {
            if i64::try_from(seed).is_err() {
                return Err(Error::flag(flag, format!("{seed} is larger than {}", i64::MAX)));
            }
        }
        if self.shots.is_some() && self.draw.is_some() {
            return Err(Error::flag("--draw", "its file says which images are learned from; leave out --shots"));
        }
        self.check_texts()?;
        self.refuse_other_methods_fields()
    }

    /// A field that the method does not use is a mistake, not something to pass over.
    fn refuse_other_methods_fields(&self) -> Result<()> {
        let method = self.method;
        let fields = [
            (
                "--prompt-tokens",
                self.prompt_tokens.is_some(),
                method.has_tokens() || method.has_texts(),
                "prompt tokens",
            ),
            (
                "--prompt-layers",
                self.prompt_layers.is_some(),
                method == Method::VptDeep || method.has_deep_texts(),
                "choice of blocks",
            ),
            ("--context-init", self.context_init.is_some(), method.has_texts(), "words of texts to learn"),
            ("--prompt-dropout", self.prompt_dropout.is_some(), method.has_tokens(), "prompt tokens"),
            ("--pad", self.pad.is_some(), method == Method::VpPad, "border"),
            ("--patch-size", self.patch_size.is_some(), method == Method::VpPatch, "patch"),
            ("--patch-place", self.patch_place.is_some(), method == Method::VpPatch, "patch"),
            ("--inner-size", self.inner_size.is_some(), method == Method::VpFrame, "shrunk image"),
            (
                "--head-lr",
                self.head_lr.is_some(),
                !method.on_features() && !method.has_texts(),
                "prompt beside its head: use --lr",
            ),
            ("--solver", self.solver.is_some(), method == Method::Linear, "choice of solvers"),
            ("--l2", self.l2.is_some(), self.solver == Some(Solver::Lbfgs), "such penalty without --solver lbfgs"),
            ("--views", self.views.is_some(), method.has_views(), "augmented views"),
            ("--alpha", self.alpha.is_some(), method.has_cache(), "cache"),
        ];
        for (flag, given, used, what) in fields {
            if given && !used {
                return Err(Error::flag(flag, format!("method {method} has no {what}")));
            }
        }
        if let (Some(own), Some(head)) = (method.own_head(), self.head)
            && own != head
        {
            return Err(Error::flag(
                "--head",
                format!("{head} is not for method {method}, which has a head of its own"),
            ));
        }
        if let Some(head) = self.head.filter(|&head| self.solver == Some(Solver::Lbfgs) && head != HeadKind::Linear) {
            return Err(Error::flag("--head", format!("{head} is not for --solver lbfgs, which fits a linear head")));
        }
        if self.is_solved() { self.refuse_fields_of_steps() } else { Ok(()) }
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

    /// Nothing that says how to take steps makes sense where none are taken.
    fn refuse_fields_of_steps(&self) -> Result<()> {
        let fields = [
            ("--epochs", self.epochs.is_some()),
            ("--batch-size", self.batch_size.is_some()),
            ("--micro-batch", self.micro_batch.is_some()),
            ("--lr", self.lr.is_some()),
            ("--optimizer", self.optimizer.is_some()),
            ("--weight-decay", self.weight_decay.is_some()),
            ("--warmup", self.warmup.is_some()),
            ("--clip-norm", self.clip_norm.is_some()),
            ("--label-smoothing", self.label_smoothing > 0.),
            ("--class-weights", self.class_weights != ClassWeights::None),
            ("--patience", self.patience.is_some()),
            ("--select", self.select.is_some()),
        ];
        match fields.iter().find(|(_, given)| *given) {
            Some((flag, _)) if self.method == Method::Linear => Err(Error::flag(*flag, "not with --solver lbfgs")),
            Some((flag, _)) => Err(Error::flag(*flag, format!("method {} learns nothing in steps", self.method))),
            None => Ok(()),
        }
    }

    /// A field that is for another task is a mistake too; `task` is never [`Task::Auto`].
    pub(crate) fn refuse_other_tasks_fields(&self, task: Task) -> Result<()> {
        let detects = task == Task::Detect;
        if task == Task::Multilabel {
            if self.head == Some(HeadKind::Text) {
                let message = "text is for one class an image: CLIP compares classes, it does not say which are there";
                return Err(Error::flag("--head", message));
            }
            let fields = [
                ("--shots", self.shots.is_some()),
                ("--draw", self.draw.is_some()),
                ("--label-smoothing", self.label_smoothing > 0.),
            ];
            for (flag, given) in fields {
                if given {
                    return Err(Error::flag(flag, "not for multi-label classification"));
                }
            }
        }
        let fields = [
            ("--head-epochs", self.head_epochs.is_some(), true),
            ("--ema", self.ema.is_some(), true),
            ("--fit", self.fit.is_some(), true),
            ("--scale-jitter", self.scale_jitter.is_some(), true),
            ("--box-crop", self.box_crop, true),
            ("--mosaic", self.mosaic.is_some(), true),
            ("--open-vocabulary", self.open_vocabulary, true),
            ("--shots", self.shots.is_some(), false),
            ("--draw", self.draw.is_some(), false),
            ("--random-resized-crop", self.random_resized_crop.is_some(), false),
            ("--augment", self.augment != AugmentPolicy::None, false),
            ("--label-smoothing", self.label_smoothing > 0., false),
            ("--class-weights", self.class_weights != ClassWeights::None, false),
            ("--patience", self.patience.is_some(), false),
            ("--lr", detects && self.lr == Some(LearningRate::Auto), false),
        ];
        for (flag, given, for_detection) in fields {
            if given && for_detection != detects {
                let message = if detects { "not for detection" } else { "only for detection, from data with boxes" };
                return Err(Error::flag(flag, message));
            }
        }
        if !detects && self.method.on_features() {
            let random = [
                ("--flip", self.flip == Some(true)),
                ("--random-resized-crop", self.random_resized_crop.is_some()),
                ("--augment", self.augment != AugmentPolicy::None),
            ];
            if let Some((flag, _)) = random.into_iter().find(|(_, given)| *given) {
                let how = if self.method.has_views() { "from --views augmented views" } else { "without augmentation" };
                let message = format!("method {} computes the features of an image once, {how}", self.method);
                return Err(Error::flag(flag, message));
            }
        }
        if task != Task::Classify && (self.method.own_head().is_some() || self.solver.is_some()) {
            let (flag, what) = match self.solver {
                Some(solver) => ("--solver", solver.to_string()),
                None => ("--method", self.method.to_string()),
            };
            let is = if detects { "detection" } else { "multi-label classification" };
            return Err(Error::flag(flag, format!("{what} is not for {is}")));
        }
        if detects && self.method.has_pixels() {
            let message = format!("{} is not for detection; take linear, vpt-shallow or vpt-deep", self.method);
            return Err(Error::flag("--method", message));
        }
        if let Some(head) = self.head.filter(|&head| detects && head != HeadKind::Linear) {
            let mend = if head == HeadKind::Text { "; see --open-vocabulary" } else { "" };
            let message = format!("{head} is not for detection, which has a head of its own{mend}");
            return Err(Error::flag("--head", message));
        }
        Ok(())
    }

    /// Fills in every default and checks every value against the backbone and the data.
    pub fn resolve(&self, facts: &Facts) -> Result<Plan> {
        self.validate()?;
        self.refuse_other_tasks_fields(facts.task)?;
        if facts.train_images == 0 {
            return Err(Error::invalid("data", "there are no images to train on"));
        }
        let head = self.head_kind();
        let defaults = defaults::of(facts.task, self.method, head);
        let prompt = self.prompt_shape(facts)?;
        let deep = self.method == Method::VptDeep;
        let prompt_dropout = self.prompt_dropout.unwrap_or(defaults::prompt_dropout(facts.task, self.method));
        let texts = self.method.has_texts();
        let views = if self.method.has_views() { self.views.unwrap_or(defaults::views(self.method)) } else { 0 };
        // A linear probe learns from all views in every epoch.
        let seen = if self.method.has_cache() { 1 } else { views.max(1) };
        let train_images = facts.train_images.saturating_mul(seen);
        let solved = self.is_solved();
        let batch_size = self.batch_size.unwrap_or(defaults.batch_size).min(train_images);
        let per_epoch = train_images.div_ceil(batch_size);
        let detects = facts.task == Task::Detect;
        let epochs = self.epochs.unwrap_or_else(|| match self.method {
            _ if solved => 1,
            _ if detects => defaults::detection_epochs(per_epoch),
            method => defaults.epochs(method, per_epoch, facts.shots),
        });
        let total_steps = (per_epoch as u64).checked_mul(epochs as u64).filter(|&steps| steps <= 1 << 40);
        let total_steps = total_steps.ok_or_else(|| Error::flag("--epochs", format!("{epochs} are too many")))?;
        let detect = detects.then(|| self.detect_plan(epochs, per_epoch)).transpose()?;
        let warmup = self.warmup.or_else(|| match self.method {
            // Its first epoch stands for it.
            Method::ZsLp | Method::Clap => None,
            Method::TipAdapterF => Some(0.),
            _ if texts => Some(1. / epochs as f64),
            _ => Some(detect.map_or(defaults::WARMUP, |detect| detect.warmup)),
        });
        let threads = match self.threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let few_shot = self.shots.is_some() || self.draw.is_some();
        let select = self.select.unwrap_or(if few_shot { Select::Last } else { Select::Best });
        let lr = self.lr.unwrap_or(LearningRate::Value(defaults.lr));
        let head_lr = self.head_lr.unwrap_or(defaults.head_lr);
        let weight_decay = self.weight_decay.unwrap_or(defaults.weight_decay);
        let prompted = !self.method.on_features();
        let optimizer = self.optimizer.unwrap_or(defaults::optimizer(self.method));
        let mut config = Self {
            head: Some(head),
            solver: (self.method == Method::Linear && facts.task == Task::Classify)
                .then_some(self.solver.unwrap_or(Solver::Sgd)),
            views: self.method.has_views().then_some(views),
            prompt_tokens: None,
            prompt_layers: None,
            prompt_dropout: None,
            epochs: (!solved).then_some(epochs),
            batch_size: (!solved).then_some(batch_size),
            lr: (!solved).then_some(lr),
            head_lr: (prompted && !texts).then_some(head_lr),
            optimizer: (!solved).then_some(optimizer),
            weight_decay: (!solved).then_some(weight_decay),
            warmup: warmup.filter(|_| !solved),
            select: (!solved).then_some(select),
            image_size: Some(facts.image_size),
            head_epochs: detect.map(|detect| detect.head_epochs),
            ema: detect.map(|detect| detect.ema),
            fit: detect.map(|detect| detect.fit),
            scale_jitter: detect.and_then(|detect| detect.augment.scale.or(Some([1.; 2]).filter(|_| prompted))),
            templates: match &self.templates {
                None if self.reads_texts() => Some(vec![TEMPLATE.to_owned()]),
                None if self.method == Method::Promptsrc => Some(defaults::templates()),
                templates => templates.clone(),
            },
            flip: Some(detect.map_or(self.flip.unwrap_or(false), |detect| detect.augment.flip)),
            clip_norm: self.clip_norm.or(detects.then_some(defaults::DETECTION_CLIP)),
            task: facts.task,
            threads: Some(threads),
            // Repeating a run must not aim at the folder that is full already.
            out: None,
            ..self.clone()
        };
        match prompt {
            PromptShape::None | PromptShape::Pixels(PixelShape::Full) => {}
            PromptShape::Tokens(layout) => {
                config.prompt_tokens = Some(layout.tokens);
                config.prompt_dropout = Some(prompt_dropout);
                let layers = self.prompt_layers.unwrap_or(defaults::layers(facts.task, facts.depth));
                config.prompt_layers = deep.then_some(layers);
            }
            PromptShape::Pixels(PixelShape::Pad { width }) => config.pad = Some(width),
            PromptShape::Pixels(PixelShape::Patch { side, place }) => {
                (config.patch_size, config.patch_place) = (Some(side), Some(place));
            }
            PromptShape::Pixels(PixelShape::Frame { inner }) => config.inner_size = Some(inner),
            PromptShape::Text(shape) => {
                config.prompt_tokens = Some(shape.tokens);
                // Towers of different depths have different defaults, which `first:K` cannot say.
                let equal = shape.image_tokens().is_some_and(|layout| layout.layers == shape.layers);
                let layers = equal.then_some(PromptLayers::First(shape.layers));
                config.prompt_layers = self.prompt_layers.or(layers);
                config.context_init = Some(self.context_words(shape.tokens).to_owned());
            }
        }
        Ok(Plan {
            prompt,
            head,
            optimizer,
            views,
            prompt_dropout,
            epochs,
            batch_size,
            warmup_steps: (warmup.unwrap_or(0.) * total_steps as f64).round() as u64,
            total_steps,
            select,
            threads,
            learning_rates: match lr {
                LearningRate::Value(lr) => vec![lr],
                LearningRate::Auto => defaults::AUTO_FACTORS.iter().map(|f| f * defaults.lr).collect(),
            },
            head_lr,
            weight_decay,
            detect,
            solved,
            config,
        })
    }

    /// What only detection needs, for a run of `epochs` of `per_epoch` steps.
    fn detect_plan(&self, epochs: usize, per_epoch: usize) -> Result<DetectPlan> {
        let alone = self.method == Method::Linear;
        let head_epochs = self.head_epochs.unwrap_or(if alone { epochs } else { defaults::head_epochs(epochs) });
        if alone && head_epochs != epochs {
            let message = format!("{head_epochs} of {epochs} epochs, where method linear learns nothing but the head");
            return Err(Error::flag("--head-epochs", message));
        }
        if !alone && head_epochs >= epochs {
            let message = format!("{head_epochs} of {epochs} epochs leave none for the prompts");
            return Err(Error::flag("--head-epochs", message));
        }
        let augment = BoxAugment {
            flip: self.flip.unwrap_or(true),
            scale: match self.scale_jitter {
                None if !alone => Some(defaults::SCALE_JITTER),
                Some([1., 1.]) => None,
                given => given,
            },
            crop: self.box_crop,
            mosaic: self.mosaic.unwrap_or(0.),
        };
        augment.check().map_err(|error| match error {
            Error::Invalid { what, message } if what == "mosaic" => Error::flag("--mosaic", message),
            Error::Invalid { message, .. } => Error::flag("--scale-jitter", message),
            error => error,
        })?;
        let steps = (head_epochs.max(1) * per_epoch) as f64;
        let warmup = self.warmup.unwrap_or(defaults::WARMUP.min(defaults::DETECTION_WARMUP_STEPS / steps));
        let ema = self.ema.unwrap_or(defaults::EMA);
        if !(0. ..1.).contains(&ema) {
            return Err(Error::flag("--ema", format!("{ema} is not a number from 0 to below 1")));
        }
        Ok(DetectPlan { head_epochs, warmup, ema, fit: self.fit.unwrap_or_default(), augment })
    }

    /// What is learned at the input, checked against the backbone.
    fn prompt_shape(&self, facts: &Facts) -> Result<PromptShape> {
        let side = facts.image_size;
        let tokens = self.prompt_tokens.unwrap_or(defaults::PROMPT_TOKENS);
        Ok(match self.method {
            Method::VptShallow => PromptShape::Tokens(TokenLayout { start: 0, layers: 1, tokens }),
            Method::VptDeep => {
                let (start, layers) =
                    self.prompt_layers.unwrap_or(defaults::layers(facts.task, facts.depth)).resolve(facts.depth)?;
                PromptShape::Tokens(TokenLayout { start, layers, tokens })
            }
            Method::VpPad => PromptShape::Pixels(PixelShape::Pad { width: self.pad.unwrap_or(defaults::pad(side)) }),
            Method::VpPatch => PromptShape::Pixels(PixelShape::Patch {
                side: self.patch_size.unwrap_or(defaults::patch(side)),
                place: self.patch_place.unwrap_or_default(),
            }),
            Method::VpFull => PromptShape::Pixels(PixelShape::Full),
            Method::VpFrame => {
                PromptShape::Pixels(PixelShape::Frame { inner: self.inner_size.unwrap_or(defaults::inner(side)) })
            }
            Method::Coop | Method::Cocoop | Method::Ivlp | Method::Maple | Method::Promptsrc => {
                PromptShape::Text(self.text_shape(facts)?)
            }
            _ => PromptShape::None,
        })
    }

    /// What is learned in the texts and beside them.
    fn text_shape(&self, facts: &Facts) -> Result<TextShape> {
        let method = self.method;
        let Some(text_depth) = facts.text_depth else {
            let message = format!("{method} learns texts, and the backbone has no text tower; take a CLIP");
            return Err(Error::flag("--method", message));
        };
        let words = || self.context_init.as_deref().filter(|w| *w != RANDOM).map(|w| w.split_whitespace().count());
        let tokens = self.prompt_tokens.or_else(words).unwrap_or(defaults::text_tokens(method));
        let blocks = |depth: usize| match self.prompt_layers {
            None => Ok(defaults::deep_text_layers(depth)),
            Some(PromptLayers::Last(_)) => {
                Err(Error::flag("--prompt-layers", format!("{method} prompts the first blocks: take all or first:K")))
            }
            Some(layers) => layers.resolve(depth).map(|(_, count)| count),
        };
        let (layers, beside) = match method {
            Method::Coop => (1, Beside::Nothing),
            Method::Cocoop => (1, Beside::MetaNet),
            Method::Maple => (blocks(text_depth.min(facts.depth))?, Beside::Map),
            _ => {
                let layout = TokenLayout { start: 0, layers: blocks(facts.depth)?, tokens };
                (blocks(text_depth)?, Beside::Tokens(layout))
            }
        };
        Ok(TextShape { tokens, layers, beside })
    }

    /// The words, or `random`, that `tokens` vectors begin as.
    fn context_words(&self, tokens: usize) -> &str {
        let few = tokens <= defaults::CONTEXT.split_whitespace().count();
        let default = if self.method != Method::Coop && few { defaults::CONTEXT } else { RANDOM };
        self.context_init.as_deref().unwrap_or(default)
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

fn at_least_one(flag: &str, value: Option<usize>) -> Result<()> {
    match value {
        Some(0) => Err(Error::flag(flag, "must be at least 1")),
        _ => Ok(()),
    }
}

fn positive(flag: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0. {
        return Ok(());
    }
    Err(Error::flag(flag, format!("{value} is not a number above 0")))
}

fn share(flag: &str, value: f32) -> Result<()> {
    if (0. ..1.).contains(&value) {
        return Ok(());
    }
    Err(Error::flag(flag, format!("{value} is not a share from 0 to below 1")))
}

#[cfg(test)]
mod tests;
