//! [`RunConfig::resolve`]: what a run is once backbone and data are known.

use super::{
    DENSE, DensePlan, DetectPlan, LearningRate, RunConfig, RunContext, SegmentPlan, Select, Task, TileCount, dense,
    detection,
};
use vpt_backbone::{Backbone, class_texts::TEMPLATE};
use vpt_base::{Error, Message, Result};
use vpt_data::{AugmentPolicy, Split};
use vpt_image::Preprocess;
use vpt_model::{
    head::HeadKind,
    methods::{Defaults, Epochs, HeadInit, MethodPart, MethodRequest, RANDOM, Warmup},
    model::task_file::{BackboneId, TaskMeta, TaskMetrics},
    optim::{
        self, OptimizerKind, Rate, Rates,
        schedule::{EpochSchedule, LearningRateSchedule, Schedule},
    },
    prompt::{PartShape, PartShapes},
};

/// What a rate of `auto` tries, as multiples of the method's default.
const AUTO_FACTORS: [f64; 8] = [0.1, 0.2, 0.5, 1., 2., 5., 10., 20.];
/// What it tried in earlier versions.
const EARLIER_AUTO_FACTORS: [f64; 4] = [0.2, 0.5, 1., 3.];

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
    /// Passes over the training images.
    pub epochs: usize,
    /// Images a step.
    pub batch_size: usize,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// Steps in the whole run.
    pub total_steps: u64,
    /// What the head begins as, where it is learned beside something else and that is a choice.
    pub head_init: Option<HeadInit>,
    /// Whether the head alone is the result where it is better on validation.
    pub keep_better: bool,
    /// Which epoch counts.
    pub select: Select,
    /// Threads.
    pub threads: usize,
    /// Learning rates to choose from by validation: one, unless the rate is `auto`.
    pub learning_rates: Vec<f64>,
    /// What detection and segmentation need.
    pub dense: Option<DensePlan>,
    /// What only detection needs.
    pub detect: Option<DetectPlan>,
    /// What only segmentation needs.
    pub segment: Option<SegmentPlan>,
    /// Whether there is nothing to be learned in steps: the head is computed.
    pub solved: bool,
    head_lr: f64,
    weight_decay: f64,
    /// Of each part.
    training: Vec<PartTraining>,
    defaults: Defaults,
}

/// How a part learns.
#[derive(Debug, Clone, Copy, PartialEq)]
struct PartTraining {
    /// Its learning rate as a multiple of [`Plan::learning_rates`].
    rate: f64,
    weight_decay: f64,
    dropout: f32,
}

impl Plan {
    /// Rates of the optimiser when the method learns at `lr`.
    pub fn rates(&self, lr: f64) -> Rates {
        let head = if self.parts.is_empty() { lr } else { self.head_lr };
        let parts = self.training.iter().map(|part| Rate { lr: lr * part.rate, decay: part.weight_decay });
        let head = Rate { lr: head, decay: self.weight_decay };
        Rates { parts: parts.collect(), head, epsilon: self.defaults.epsilon }
    }

    /// What a rate of `auto` tried in earlier versions.
    pub(crate) fn earlier_learning_rates(&self) -> [f64; 4] {
        EARLIER_AUTO_FACTORS.map(|factor| factor * self.defaults.lr)
    }

    /// Metadata of a task file of this run on `backbone`, whose classes are `names`.
    pub(crate) fn task_meta(
        &self,
        backbone: &Backbone,
        names: Vec<String>,
        preprocess: Preprocess,
        metrics: TaskMetrics,
    ) -> Result<TaskMeta> {
        let id = BackboneId::of(backbone)?;
        let (method, size) = (self.config.method, backbone.vit.image_size());
        Ok(TaskMeta::new(method, self.parts.clone(), self.head, id, names, size, preprocess, metrics))
    }

    /// Rates of detection and segmentation, of either stage, when the method learns at `lr`, the head alone or else the parts: prompts have
    /// no decay.
    pub fn detection_rates(&self, lr: f64) -> Rates {
        let mut rates = self.rates(lr);
        let parts = rates.parts.iter_mut().zip(self.parts.iter());
        let prompts = parts.filter(|(_, shape)| !matches!(shape, PartShape::Weights(_)));
        prompts.for_each(|(rate, _)| rate.decay = 0.);
        Rates { epsilon: optim::EPSILON, ..rates }
    }

    /// Share of values that a step drops, for each part.
    pub fn dropout(&self) -> Vec<f32> {
        self.training.iter().map(|part| part.dropout).collect()
    }

    /// How the learning rate goes over `epochs` epochs of `per_epoch` steps: a trial of the rate may have fewer than the run.
    pub fn course(&self, epochs: usize, per_epoch: usize) -> LearningRateSchedule {
        let total = (epochs * per_epoch) as u64;
        // A run of a single epoch would learn next to nothing in it.
        if self.defaults.warmup == Warmup::SlowFirstEpoch && self.config.warmup.is_none() && epochs > 1 {
            // With a rate that is looked for, by the lowest that earlier versions tried.
            let lr = if let [lr] = self.learning_rates[..] { lr } else { self.earlier_learning_rates()[0] };
            let first = (Warmup::FIRST_EPOCH_LR / lr).min(1.);
            return LearningRateSchedule::Epochs(EpochSchedule {
                epochs: epochs as u64,
                per_epoch: per_epoch as u64,
                first,
            });
        }
        // A shorter loop (a trial) warms up in proportion.
        let warmup = (self.warmup_steps as f64 * total as f64 / self.total_steps as f64).round() as u64;
        LearningRateSchedule::Steps(Schedule { total, warmup })
    }

    /// Whether the features of the images of `split` never change, so that they are computed once.
    pub fn has_constant_features(&self, split: Split) -> bool {
        (!self.parts.is_empty() || self.config.method.on_features())
            && self.parts.keep_features()
            && !(self.augments() && split == Split::Train)
    }

    /// Whether `lora` tells the classes by their texts, and learns no head.
    pub fn told_by_texts(&self) -> bool {
        self.parts.told_by_texts()
    }

    /// Whether a classifier knows what the head alone reaches on frozen features: where the head begins as that, or is held against it.
    pub fn knows_head_alone(&self) -> bool {
        self.dense.is_none() && (self.head_init == Some(HeadInit::Probe) || self.keep_better)
    }

    /// Whether training images of a classifier are changed at random.
    pub fn augments(&self) -> bool {
        let RunConfig { flip, random_resized_crop, augment, .. } = &self.config;
        *flip == Some(true) || random_resized_crop.is_some() || *augment != AugmentPolicy::None
    }

    /// The words that the vectors of the texts begin as, unless at random.
    pub fn context_words(&self) -> Option<&str> {
        self.config.options.texts.context_init.as_deref().filter(|words| *words != RANDOM)
    }

    /// Steps in an epoch: the last batch may be smaller.
    pub fn steps_per_epoch(&self) -> u64 {
        self.total_steps / self.epochs as u64
    }
}

impl RunConfig {
    /// Fills in every default and checks every value against the backbone and the data.
    pub fn resolve(&self, context: &RunContext) -> Result<Plan> {
        self.validate()?;
        self.refuse_other_tasks_fields(context.task)?;
        if context.train_images == 0 {
            return Err(Error::invalid("data", "there are no images to train on"));
        }
        let head_init = self.head_init.or_else(|| self.default_head_init(context.task));
        let request = MethodRequest {
            options: &self.options,
            head: self.head,
            head_init,
            label_map: self.label_map,
            alone: self.method.specs().count() == 1,
            context: *context,
        };
        let method = self.method.leading();
        let mut options = self.options.clone();
        let defaults = (method.defaults)(&request);
        let mut parts = PartShapes::NONE;
        let mut training = Vec::new();
        for spec in self.method.specs() {
            let Some(MethodPart { shape, dropout }) = (spec.part)(&request, &mut options)? else { continue };
            let Defaults { lr, weight_decay, .. } = (spec.defaults)(&request);
            parts.push(shape);
            training.push(PartTraining {
                // What is said is said of all parts.
                rate: if matches!(self.lr, Some(LearningRate::Value(_))) { 1. } else { lr / defaults.lr },
                weight_decay: self.weight_decay.unwrap_or(weight_decay),
                dropout,
            });
        }
        // Rates and decays of several parts differ, which the configuration can only leave open.
        let one_rate = !parts.are_several();
        let by_texts = parts.told_by_texts();
        let head = if by_texts { HeadKind::Cosine } else { self.head_kind() };
        self.refuse_fields_of_texts(by_texts)?;
        let views = self.method.views();
        options.views.views = views.map(|views| self.options.views.views.unwrap_or(views.count));
        let views_seen = options.views.views.filter(|_| views.is_some_and(|views| views.in_every_epoch)).unwrap_or(1);
        let train_images = context.train_images.saturating_mul(views_seen.max(1));
        let solved = self.is_solved();
        let batch_size = self.batch_size.unwrap_or(defaults.batch_size).min(train_images);
        let shares = self.shares.filter(|&shares| shares > 1);
        if let Some(shares) = shares.filter(|shares| !batch_size.is_multiple_of(*shares)) {
            let message = Message::from(format!("{shares} do not divide a batch of {batch_size} images; see "));
            return Err(Error::setting("shares", message.field("batch_size")));
        }
        let per_epoch = train_images.div_ceil(batch_size);
        let tiled = self.tile_count()? > 1;
        let wanted = match defaults.epochs {
            Epochs::Steps { steps, most, .. } if context.task == Task::Detect && tiled => {
                Epochs::Steps { steps, least: detection::TILED_EPOCHS, most }
            }
            epochs => epochs,
        };
        let epochs = self.epochs.unwrap_or_else(|| if solved { 1 } else { wanted.count(per_epoch, context.shots) });
        let total_steps = (per_epoch as u64).checked_mul(epochs as u64).filter(|&steps| steps <= 1 << 40);
        let total_steps = total_steps.ok_or_else(|| Error::setting("epochs", format!("{epochs} are too many")))?;
        let is_dense = DENSE.contains(&context.task);
        let dense = is_dense
            .then(|| self.dense_plan(context.task, parts.weights().is_some(), [epochs, per_epoch]))
            .transpose()?;
        let detect = (context.task == Task::Detect).then(|| self.detect_plan()).transpose()?;
        let segment = (context.task == Task::Segment).then(|| self.segment_plan()).transpose()?;
        let augment = detect.map(|detect| (detect.augment.flip, detect.augment.scale));
        let augment = augment.or(segment.map(|segment| (segment.augment.flip, segment.augment.scale)));
        // What has to be said since nothing is zoomed.
        let still = Some([1.; 2]).filter(|_| segment.is_some() || !self.method.on_features());
        let warmup = self.warmup.or(match defaults.warmup {
            // Its first epoch stands for it.
            Warmup::SlowFirstEpoch => None,
            Warmup::Share(share) => Some(dense.map_or(share, |dense| dense.warmup)),
        });
        let threads = self.threads.unwrap_or_else(vpt_cluster::threads);
        let few_shot = self.shots.is_some() || self.draw.is_some();
        let blind = few_shot || self.folds.is_some();
        let select = self.select.unwrap_or(if blind { Select::Last } else { Select::Best });
        let lr = self.lr.unwrap_or(LearningRate::Value(defaults.lr));
        let head_lr = self.head_lr.unwrap_or(defaults.head_lr);
        let weight_decay = self.weight_decay.unwrap_or(defaults.weight_decay);
        let optimizer = self.optimizer.unwrap_or(defaults.optimizer);
        let beside = !by_texts && self.label_map.is_none();
        let head_init = head_init.filter(|_| beside);
        let beside_head =
            head_init.is_some() || dense.is_some_and(|dense| dense.head_epochs < epochs && dense.head_epochs > 0);
        let keep_better = beside_head.then(|| self.keep_better.unwrap_or(head != HeadKind::Cosine));
        if is_dense && self.keep_better == Some(true) && !beside_head {
            let message = Message::from("there is no head alone with ").field("head_epochs");
            return Err(Error::setting("keep_better", message.text(" 0")));
        }
        let config = Self {
            // Of texts that tell the classes, and of a label map, there is no head to ask for.
            head: Some(head).filter(|_| beside),
            epochs: (!solved).then_some(epochs),
            batch_size: (!solved).then_some(batch_size),
            lr: Some(lr).filter(|_| !solved && one_rate).or(self.lr),
            head_init,
            keep_better,
            head_lr: (beside && self.method.has_option("head_lr")).then_some(head_lr),
            optimizer: (!solved).then_some(optimizer),
            weight_decay: Some(weight_decay).filter(|_| !solved && one_rate).or(self.weight_decay),
            warmup: warmup.filter(|_| !solved),
            select: (!solved).then_some(select),
            image_size: Some(context.image_size),
            head_epochs: dense.map(|dense| dense.head_epochs),
            ema: dense.map(|dense| dense.ema).or(self.ema),
            fit: detect.map(|detect| detect.fit),
            cached_views: dense.map(|dense| dense.cached_views),
            scale_jitter: augment.and_then(|(_, scale)| scale.or(still)),
            decode_head: segment.map(|segment| segment.decode_head),
            tiles: segment
                .map(|segment| segment.tiles)
                .or(detect.map(|detect| detect.tiles).filter(|tiles| *tiles > 1))
                .map(TileCount::Value),
            templates: match (&self.templates, self.method.tied_to()) {
                (None, _) if self.reads_texts() || by_texts => Some(vec![TEMPLATE.to_owned()]),
                (None, Some(texts)) => Some(texts.iter().map(|&text| text.to_owned()).collect()),
                (templates, _) => templates.clone(),
            },
            flip: Some(augment.map_or(self.flip.unwrap_or(false), |(flip, _)| flip)),
            clip_norm: self.clip_norm.or(dense.map(|_| dense::CLIP_NORM)),
            task: context.task,
            threads: Some(threads),
            shares,
            // Repeating a run must not aim at the folder that is full already.
            out: None,
            options,
            ..self.clone()
        };
        Ok(Plan {
            parts,
            head,
            optimizer,
            views: config.options.views.views.unwrap_or(0),
            epochs,
            batch_size,
            warmup_steps: (warmup.unwrap_or(0.) * total_steps as f64).round() as u64,
            total_steps,
            head_init,
            keep_better: keep_better == Some(true),
            select,
            threads,
            learning_rates: match lr {
                LearningRate::Value(lr) => vec![lr],
                LearningRate::Auto => AUTO_FACTORS.iter().map(|f| f * defaults.lr).collect(),
            },
            head_lr,
            weight_decay,
            dense,
            detect,
            segment,
            solved,
            training,
            defaults,
            config,
        })
    }

    /// What the head of a run begins as where nothing is said; `None` where there is none that is learned beside something else.
    fn default_head_init(&self, task: Task) -> Option<HeadInit> {
        let beside = task == Task::Classify && self.label_map.is_none() && self.method.has_option("head_init");
        beside.then_some(match self.head_kind() {
            HeadKind::Linear => HeadInit::Probe,
            HeadKind::Cosine => HeadInit::Random,
            HeadKind::Text => HeadInit::Text,
        })
    }

    /// Of a method that leaves it to texts to tell the classes: texts where none are read, and a head's learning rate where there
    /// is no head, are mistakes.
    fn refuse_fields_of_texts(&self, by_texts: bool) -> Result<()> {
        let by_head = self.method.prefers_texts() && !by_texts && !self.reads_texts();
        let told_by_a_head = "the classes are told by a head, not by texts";
        let no_head = "texts tell the classes, so there is no head beside";
        let fields = [
            (
                "head_lr",
                by_texts && self.head_lr.is_some(),
                "texts tell the classes, so there is no head beside: use {lr}",
            ),
            ("head_init", by_texts && self.head_init.is_some(), no_head),
            ("keep_better", by_texts && self.keep_better.is_some(), no_head),
            ("templates", by_head && self.templates.is_some(), told_by_a_head),
            ("classnames", by_head && self.classnames.is_some(), told_by_a_head),
        ];
        match fields.into_iter().find(|(_, refused, _)| *refused) {
            Some((name, _, message)) => Err(Error::setting(name, Message::naming(message))),
            None => Ok(()),
        }
    }
}
