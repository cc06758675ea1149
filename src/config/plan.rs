//! [`RunConfig::resolve`]: what a run is once backbone and data are known.

use super::{LearningRate, PromptLayers, RunConfig, Select, Task, defaults};
use crate::methods::{Method, Solver};
use crate::{
    Error, Result,
    backbone::class_texts::TEMPLATE,
    data::{
        AugmentPolicy, Split,
        boxes::{BoxAugment, Fit},
    },
    head::HeadKind,
    optim::{
        self, OptimizerKind, Rate, Rates,
        schedule::{Course, EpochSchedule, Schedule},
    },
    prompt::{
        PartShape, PartShapes,
        pixels::PixelShape,
        text::{Beside, TextShape},
        tokens::TokenLayout,
        weights::{LoraShape, LoraTowers, WeightShape},
    },
};

/// What `context_init` says where vectors begin as no words.
const RANDOM: &str = "random";

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
    /// What is learned beside the head.
    pub parts: PartShapes,
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
        let head = if self.parts.is_empty() { lr } else { self.head_lr };
        let rate = |lr| Rate { lr, decay: self.weight_decay };
        let epsilon = defaults::epsilon(self.config.method);
        Rates { parts: vec![rate(lr); self.parts.len()], head: rate(head), epsilon }
    }

    /// Rates of detection, of either stage.
    pub fn detection_rates(&self) -> Rates {
        let lr = self.learning_rates[0];
        let head = if self.parts.is_empty() { lr } else { self.head_lr };
        let head = Rate { lr: head, decay: self.weight_decay };
        Rates { parts: vec![Rate { lr, decay: 0. }; self.parts.len()], head, epsilon: optim::EPSILON }
    }

    /// Share of values that a step drops, for each part.
    pub fn dropout(&self) -> Vec<f32> {
        vec![self.prompt_dropout; self.parts.len()]
    }

    /// How the learning rate goes over `epochs` epochs of `per_epoch` steps: a trial of the rate may have fewer than the run.
    pub fn course(&self, epochs: usize, per_epoch: usize) -> Course {
        let total = (epochs * per_epoch) as u64;
        // A run of a single epoch would learn next to nothing in it.
        if defaults::has_slow_first_epoch(self.config.method) && self.config.warmup.is_none() && epochs > 1 {
            let first = (defaults::FIRST_EPOCH_LR / self.learning_rates[0]).min(1.);
            return Course::Epochs(EpochSchedule { epochs: epochs as u64, per_epoch: per_epoch as u64, first });
        }
        // A shorter loop (a trial) warms up in proportion.
        let warmup = (self.warmup_steps as f64 * total as f64 / self.total_steps as f64).round() as u64;
        Course::Steps(Schedule { total, warmup })
    }

    /// Whether the features of the images of `split` never change, so that they are computed once.
    pub fn has_constant_features(&self, split: Split) -> bool {
        let untouched = |part: &PartShape| match part {
            PartShape::Text(shape) => shape.image_tokens().is_none(),
            PartShape::Weights(shape) => !shape.tunes_images(),
            PartShape::Tokens(_) | PartShape::Pixels(_) => false,
        };
        (!self.parts.is_empty() || self.config.method.on_features())
            && self.parts.iter().all(untouched)
            && !(self.augments() && split == Split::Train)
    }

    /// Whether `lora` tells the classes by their texts, and learns no head.
    pub fn told_by_texts(&self) -> bool {
        self.parts.told_by_texts()
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
    /// Fills in every default and checks every value against the backbone and the data.
    pub fn resolve(&self, facts: &Facts) -> Result<Plan> {
        self.validate()?;
        self.refuse_other_tasks_fields(facts.task)?;
        if facts.train_images == 0 {
            return Err(Error::invalid("data", "there are no images to train on"));
        }
        let parts = self.part_shapes(facts)?;
        let by_texts = parts.told_by_texts();
        let head = if by_texts { HeadKind::Cosine } else { self.head_kind() };
        let defaults = defaults::of(facts.task, self.method, head, self.label_map);
        self.refuse_fields_of_texts(by_texts)?;
        let deep = self.method == Method::VptDeep;
        let prompt_dropout = match self.method {
            Method::Lora => self.lora_dropout.unwrap_or(defaults::LORA_DROPOUT),
            method => self.prompt_dropout.unwrap_or(defaults::prompt_dropout(facts.task, method)),
        };
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
            method if defaults::has_slow_first_epoch(method) => None,
            Method::TipAdapterF | Method::Lora => Some(0.),
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
            // Of texts that tell the classes, and of a label map, there is no head to ask for.
            head: Some(head).filter(|_| !by_texts && self.label_map.is_none()),
            solver: (self.method == Method::Linear && facts.task == Task::Classify)
                .then_some(self.solver.unwrap_or(Solver::Sgd)),
            views: self.method.has_views().then_some(views),
            prompt_tokens: None,
            prompt_layers: None,
            prompt_dropout: None,
            epochs: (!solved).then_some(epochs),
            batch_size: (!solved).then_some(batch_size),
            lr: (!solved).then_some(lr),
            head_lr: (prompted && !texts && !by_texts && self.label_map.is_none()).then_some(head_lr),
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
                None if self.reads_texts() || by_texts => Some(vec![TEMPLATE.to_owned()]),
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
        for part in parts.iter() {
            match *part {
                PartShape::Pixels(PixelShape::Full) => {}
                PartShape::Weights(shape) => {
                    if let Some(LoraShape { rank, alpha, towers, .. }) = shape.lora() {
                        (config.lora_rank, config.lora_alpha) = (Some(rank), Some(alpha));
                        (config.lora_dropout, config.lora_towers) = (Some(prompt_dropout), Some(towers));
                    }
                }
                PartShape::Tokens(layout) => {
                    config.prompt_tokens = Some(layout.tokens);
                    config.prompt_dropout = Some(prompt_dropout);
                    let layers = self.prompt_layers.unwrap_or(defaults::layers(facts.task, facts.depth));
                    config.prompt_layers = deep.then_some(layers);
                }
                PartShape::Pixels(PixelShape::Pad { width }) => config.pad = Some(width),
                PartShape::Pixels(PixelShape::Patch { side, place }) => {
                    (config.patch_size, config.patch_place) = (Some(side), Some(place));
                }
                PartShape::Pixels(PixelShape::Frame { inner }) => config.inner_size = Some(inner),
                PartShape::Text(shape) => {
                    config.prompt_tokens = Some(shape.tokens);
                    // Towers of different depths have different defaults, which `first:K` cannot say.
                    let equal = shape.image_tokens().is_some_and(|layout| layout.layers == shape.layers);
                    let layers = equal.then_some(PromptLayers::First(shape.layers));
                    config.prompt_layers = self.prompt_layers.or(layers);
                    config.context_init = Some(self.context_words(shape.tokens).to_owned());
                }
            }
        }
        Ok(Plan {
            parts,
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

    /// What is learned beside the head, checked against the backbone.
    fn part_shapes(&self, facts: &Facts) -> Result<PartShapes> {
        let side = facts.image_size;
        let tokens = self.prompt_tokens.unwrap_or(defaults::PROMPT_TOKENS);
        let part = match self.method {
            Method::VptShallow => PartShape::Tokens(TokenLayout { start: 0, layers: 1, tokens }),
            Method::VptDeep => {
                let (start, layers) =
                    self.prompt_layers.unwrap_or(defaults::layers(facts.task, facts.depth)).resolve(facts.depth)?;
                PartShape::Tokens(TokenLayout { start, layers, tokens })
            }
            Method::VpPad => PartShape::Pixels(PixelShape::Pad { width: self.pad.unwrap_or(defaults::pad(side)) }),
            Method::VpPatch => PartShape::Pixels(PixelShape::Patch {
                side: self.patch_size.unwrap_or(defaults::patch(side)),
                place: self.patch_place.unwrap_or_default(),
            }),
            Method::VpFull => PartShape::Pixels(PixelShape::Full),
            Method::VpFrame => PartShape::Pixels(PixelShape::Frame {
                inner: self.inner_size.unwrap_or(defaults::inner(side, self.label_map)),
            }),
            Method::Coop | Method::Cocoop | Method::Ivlp | Method::Maple | Method::Promptsrc => {
                PartShape::Text(self.text_shape(facts)?)
            }
            Method::Bias => PartShape::Weights(WeightShape::Bias),
            Method::Full => PartShape::Weights(WeightShape::Full),
            Method::Lora => {
                let by_texts = facts.task == Task::Classify && facts.text_depth.is_some() && self.head.is_none();
                if self.lora_towers.is_some_and(LoraTowers::text) && facts.text_depth.is_none() {
                    let message = "the backbone has no text tower; take image, or a CLIP backbone";
                    return Err(Error::flag("--lora-towers", message));
                }
                let shape = self.lora(by_texts);
                shape.check()?;
                PartShape::Weights(WeightShape::Lora(shape))
            }
            _ => return Ok(PartShapes::NONE),
        };
        Ok(part.into())
    }

    /// The changes of `lora`, where classes are told by texts or by a head.
    pub(super) fn lora(&self, by_texts: bool) -> LoraShape {
        LoraShape {
            rank: self.lora_rank.unwrap_or(defaults::LORA_RANK),
            alpha: self.lora_alpha.unwrap_or(defaults::LORA_ALPHA),
            towers: self.lora_towers.unwrap_or(if by_texts { LoraTowers::Both } else { LoraTowers::Image }),
            texts: by_texts,
        }
    }

    /// Of `lora`: texts where none are read, and a head's learning rate where there is no head, are mistakes.
    fn refuse_fields_of_texts(&self, by_texts: bool) -> Result<()> {
        let fields = [
            (
                "--head-lr",
                by_texts && self.head_lr.is_some(),
                "texts tell the classes, so there is no head beside: use --lr",
            ),
            (
                "--templates",
                self.method == Method::Lora && !by_texts && !self.reads_texts() && self.templates.is_some(),
                "the classes are told by a head, not by texts",
            ),
            (
                "--classnames",
                self.method == Method::Lora && !by_texts && !self.reads_texts() && self.classnames.is_some(),
                "the classes are told by a head, not by texts",
            ),
        ];
        match fields.into_iter().find(|(_, refused, _)| *refused) {
            Some((flag, _, message)) => Err(Error::flag(flag, message)),
            None => Ok(()),
        }
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
