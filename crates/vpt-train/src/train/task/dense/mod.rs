//! Tasks on patch tokens, in two stages: the head alone on features that are computed once, then the head together with prompts, or
//! with weights of the backbone.
//!
//! A moving average of the learned values is evaluated and kept. The head as it is after the first stage is the control that
//! what learns beside it is reported with. [`DenseTask`] is what differs between such tasks; `source` makes batches, `token_cache` keeps
//! features, `setup` opens everything.

mod files;
mod setup;
mod source;
#[cfg(test)]
pub(super) mod tests;
mod token_cache;
mod token_store;

pub(super) use self::files::{curves, shown};
pub use self::setup::working_size;
use self::source::DenseSource;
pub(super) use self::source::{DenseBatch, DenseRequest, DrawnRecord, Look};
use self::token_cache::KeptTokens;
use super::{
    Averaging, BatchRequest, Batches, DataSummary, EpochMeans, Evaluator, FinishedRun, MeanOver, RunFingerprint,
    RunRequest, Scored, StagePlan, StepPosition, StepResult, TaskResults, TrainTask,
};
use crate::{
    config::{DensePlan, Plan, RunConfig, Select, Task},
    train::{
        OpenData,
        observer::Observer,
        process_group::ProcessGroup,
        progress::{EpochRecord, EpochSums, Stage},
        run_folder::{self, RunFolder},
    },
};
use rand::Rng;
use serde::{Serialize, de::DeserializeOwned};
use std::{path::Path, sync::Arc};
use vpt_backbone::Backbone;
use vpt_base::{Message, Result, params::Param, random::stream};
use vpt_data::{ChosenTiles, Split, SplitFile, boxes::BoxShots, masks::MaskShots};
use vpt_model::{
    methods::Method,
    metrics::{Scores, bootstrap::Interval},
    model::{
        task_file::{TaskFile, TaskMeta, TaskMetrics},
        token_reader::TokenReader,
    },
    optim::{
        Rates,
        schedule::{LearningRateSchedule, Schedule},
    },
    prompt::{
        PartShapes,
        part::{Draw, Drawn},
    },
};

/// How the images of a part are changed at random while they are learned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Not at all.
    Nothing,
    /// Left and right are exchanged in half of them.
    Flip,
    /// In so many ways that not all can be computed once.
    Any,
}

/// What is learned in a step.
pub(crate) struct DenseStep<'a, T> {
    /// The learned values.
    pub(super) params: &'a [Param],
    /// The images, and what is in them.
    pub(super) batch: &'a DenseBatch<T>,
    /// What was drawn at random for each part.
    pub(super) drawn: &'a [Drawn],
    /// Images whose activations are in memory at once.
    pub(super) micro_batch: Option<usize>,
}

/// A task whose head reads patch tokens: its data, its model, and what it makes of them.
pub(crate) trait DenseTask: Sized + 'static {
    /// Its name.
    const TASK: Task;

    /// Images that go through the backbone at a time when nothing is learned.
    const EVAL_BATCH: usize;

    /// The means behind the loss that records tell, in the order of a step's losses.
    const MEANS: &'static [&'static str];

    /// The data, open.
    type Data: DenseData;

    /// What is known of an image, or of a window of one.
    type Target: Clone + Serialize + DeserializeOwned + 'static;

    /// What a model makes of a batch of images that are evaluated.
    type Output: Serialize + DeserializeOwned;

    /// Running sums of an evaluation.
    type Tally;

    /// Its outcome.
    type Evaluation: Scored;

    /// Opens the data, unless it is `given`, without what cannot be used, and notes what there is to know of it.
    fn open(config: &RunConfig, given: Option<OpenData>, observer: &mut dyn Observer) -> Result<Self::Data>;

    /// How many tiles the training images are best seen in on `backbone`, and why.
    fn choose_tiles(data: &Self::Data, config: &RunConfig, backbone: &Backbone) -> ChosenTiles;

    /// Images that an epoch goes through, as they are seen with `config`.
    fn learned_from(data: &Self::Data, _: &RunConfig, _: &mut dyn Observer) -> Result<usize> {
        Ok(data.images(Split::Train))
    }

    /// Puts `data` and a model on `backbone` together.
    fn new(data: Self::Data, backbone: Arc<Backbone>, plan: &Plan) -> Result<Self>;

    /// The data.
    fn dataset(&self) -> &Self::Data;

    /// What the head reads, and the parts.
    fn reader(&self) -> &TokenReader;

    /// Fresh learned values: those of the parts, then those of the head.
    fn init(&self, seed: u64) -> Result<Vec<Param>>;

    /// Gives the head what it takes of the training images before the first step; `false` when the observer asked to stop.
    fn begin(&self, _: &Plan, _: &mut [Param], _: &mut dyn Observer) -> Result<bool> {
        Ok(true)
    }

    /// What happens to the images of `split` while they are learned from in `stage`. A head that something else will follow learns from
    /// what can be computed once; one that learns alone to the end sees all that was asked for.
    fn change(&self, split: Split, stage: Stage) -> Change;

    /// How many random views there are of a training image whose tokens are computed once; 0 for a new view every time.
    fn views(&self) -> usize;

    /// Images of `split` as they are seen: more than there are where an image is cut into several.
    fn seen(&self, split: Split) -> usize {
        self.dataset().images(split)
    }

    /// Windows of each image of `split`, where not all of it is seen at once.
    fn windows(&self, split: Split) -> Result<Vec<usize>>;

    /// Batches of images.
    fn load(&self, plan: &Plan, request: DenseRequest) -> Result<Batches<'static, DenseBatch<Self::Target>>>;

    /// Which of the records computed of a training image is seen in an epoch.
    fn draw_record(&self, plan: &Plan, drawn: DrawnRecord) -> usize;

    /// The loss and other means of it ([`Self::MEANS`]), what these are means over, and the gradient of each learned tensor.
    fn step(&self, step: DenseStep<Self::Target>) -> Result<(Vec<f64>, f64, Vec<Vec<f32>>)>;

    /// An evaluation of no images yet.
    fn tally(&self) -> Self::Tally;

    /// What the `learned` values make of a batch of `split`.
    fn evaluator<'a>(&'a self, split: Split, learned: LearnedValues<'a>) -> Result<DenseEvaluator<'a, Self>>;

    /// Adds what was made of the next batch to `tally`.
    fn add(&self, tally: &mut Self::Tally, output: Self::Output);

    /// Outcome of `tally`, taken over all images of `split`.
    fn conclude(&self, tally: Self::Tally, split: Split) -> Result<Self::Evaluation>;

    /// By how much the main score of the test images is higher for what was `learned` than for the head `alone`, with a paired interval
    /// over the images.
    fn moved(
        &self,
        learned: &Self::Evaluation,
        alone: &Self::Evaluation,
        rng: &mut impl Rng,
    ) -> Result<Option<Interval>>;

    /// Adds what a task file says of the head; `val` is known at the end.
    fn describe(&self, plan: &Plan, meta: TaskMeta, val: Option<&Self::Evaluation>) -> TaskMeta;

    /// Writes pictures and what else belongs to this task only.
    fn write_files(&self, plan: &Plan, title: &str, run: &FinishedRun<Self::Evaluation>) -> Result<()>;
}

/// What a [`DenseTask`] makes of a batch of images that are evaluated.
pub(crate) type DenseEvaluator<'a, D> = Evaluator<'a, DenseBatch<<D as DenseTask>::Target>, <D as DenseTask>::Output>;

/// Learned values to be evaluated.
#[derive(Clone, Copy)]
pub(crate) struct LearnedValues<'a> {
    /// All of them.
    pub(super) params: &'a [Param],
    /// Those that hold the parts; none where only the head has learned.
    pub(super) with_parts: Option<&'a [Param]>,
}

impl<'a> LearnedValues<'a> {
    /// `params` as they are in `stage`.
    pub(super) fn of(params: &'a [Param], stage: Stage) -> Self {
        Self { params, with_parts: (stage != Stage::Head).then_some(params) }
    }
}

/// The data of a [`DenseTask`].
pub(crate) trait DenseData {
    /// Images in `split`.
    fn images(&self, split: Split) -> usize;

    /// What there is to say of it.
    fn summary(&self) -> DenseSummary;

    /// The same with the `fold`th of so many folds of the training images as val and without a test.
    fn fold(&self, fold: (usize, usize), seed: u64) -> Result<Self>
    where
        Self: Sized;
}

/// What a run says of the data of a [`DenseTask`].
pub(crate) struct DenseSummary {
    /// Its name.
    pub(super) name: String,
    /// Names of the classes.
    pub(super) classes: Vec<String>,
    /// Stands for all of it.
    pub(super) fingerprint: String,
    /// Which images are in which part.
    pub(super) split_file: SplitFile,
    /// What was drawn of it, where it is limited to some.
    pub(super) draw: Option<DenseDraw>,
}

/// What is learned from, where that is limited.
pub(crate) enum DenseDraw {
    /// These boxes.
    Boxes(BoxShots),
    /// These images.
    Masks(MaskShots),
}

impl DenseDraw {
    /// Boxes or images a class.
    fn shots(&self) -> usize {
        match self {
            Self::Boxes(draw) => draw.shots,
            Self::Masks(draw) => draw.shots,
        }
    }

    fn write(&self, path: &Path) -> Result<()> {
        match self {
            Self::Boxes(draw) => draw.write(path),
            Self::Masks(draw) => draw.write(path),
        }
    }
}

/// A run of a [`DenseTask`] with everything it needs that does not change.
pub(crate) struct DenseTraining<D: DenseTask> {
    /// The processes that have the run in hand.
    group: ProcessGroup,
    plan: Plan,
    dense: DensePlan,
    own: D,
    data: DenseSummary,
    kept: KeptTokens<D::Target>,
    /// Stands for configuration, data and backbone in checkpoints.
    fingerprint: RunFingerprint,
}

impl<D: DenseTask> TrainTask for DenseTraining<D> {
    const EVAL_BATCH: usize = D::EVAL_BATCH;
    const LOSSES_ARE_MEANS: bool = true;
    type Source = DenseSource<D::Target>;
    type Batch = DenseBatch<D::Target>;
    type Output = D::Output;
    type Tally = D::Tally;
    type Evaluation = D::Evaluation;

    fn open(request: RunRequest, observer: &mut dyn Observer) -> Result<Option<Self>> {
        Self::new(request, observer).map(Some)
    }

    fn group(&self) -> &ProcessGroup {
        &self.group
    }

    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn backbone(&self) -> &Backbone {
        self.own.reader().backbone()
    }

    fn data(&self) -> DataSummary<'_> {
        let DenseSummary { name, classes, .. } = &self.data;
        let images = Split::ALL.map(|split| self.own.dataset().images(split));
        DataSummary { name, classes: classes.into(), images, content_hash: None }
    }

    fn fingerprint(&self) -> &RunFingerprint {
        &self.fingerprint
    }

    fn fold(&self, fold: (usize, usize), _: Option<f64>, observer: &mut dyn Observer) -> Result<Option<Self>> {
        let data = self.own.dataset().fold(fold, self.plan.config.seed)?;
        let config = RunConfig { select: Some(Select::Last), folds: None, ..self.plan.config.clone() };
        Self::on(&config, data, self.own.reader().backbone().clone(), &self.group, observer).map(Some)
    }

    fn write_parts(&self, folder: &RunFolder) -> Result<()> {
        folder.write(run_folder::SPLIT, self.data.split_file.to_json())?;
        self.data.draw.as_ref().map_or(Ok(()), |draw| draw.write(&folder.file(run_folder::FEW_SHOT)))
    }

    fn stages(&self) -> Vec<StagePlan> {
        let head = self.dense.head_epochs;
        let beside = if self.plan.parts.weights().is_some() { Stage::Tuned } else { Stage::Prompts };
        let stages = [(Stage::Head, head), (beside, self.plan.epochs - head)];
        let stages = stages.map(|(stage, epochs)| StagePlan { stage, epochs });
        stages.into_iter().filter(|stage| stage.epochs > 0).collect()
    }

    fn averaging(&self) -> Averaging {
        Averaging::Steps { decay: self.dense.ema }
    }

    fn schedule(&self, epochs: usize) -> LearningRateSchedule {
        let total = (epochs * self.epoch_images().div_ceil(self.plan.batch_size)) as u64;
        LearningRateSchedule::Steps(Schedule { total, warmup: (self.dense.warmup * total as f64).round() as u64 })
    }

    fn rates(&self, lr: f64) -> Rates {
        self.plan.detection_rates(lr)
    }

    fn recorded_lr(&self, lr: f64) -> f64 {
        self.rates(lr).head.lr
    }

    fn initial(&mut self, fresh: bool, observer: &mut dyn Observer) -> Result<Option<Vec<Param>>> {
        let mut params = self.own.init(self.plan.config.seed)?;
        let begun = !fresh || self.own.begin(&self.plan, &mut params, observer)?;
        Ok(begun.then_some(params))
    }

    fn moved(&self, learned: &D::Evaluation, alone: &D::Evaluation) -> Result<Option<Interval>> {
        self.own.moved(learned, alone, &mut stream(self.plan.config.seed, "paired with the head", 0, 0))
    }

    fn epoch_images(&self) -> usize {
        self.own.seen(Split::Train)
    }

    fn sources(
        &self,
        stage: Stage,
        folder: &RunFolder,
        observer: &mut dyn Observer,
    ) -> Result<Option<[Self::Source; 2]>> {
        let mut source = |split| DenseSource::new(self, (split, stage), folder.path(), observer);
        let Some(train) = source(Split::Train)? else { return Ok(None) };
        Ok(source(Split::Val)?.map(|val| [train, val]))
    }

    fn final_source(&self, split: Split, _: &mut dyn Observer) -> Result<Option<Self::Source>> {
        Ok(Some(DenseSource::of_images(&self.own, split)))
    }

    fn batches<'a>(&'a self, source: &'a Self::Source, request: BatchRequest<'a>) -> Result<Batches<'a, Self::Batch>> {
        source.batches(&self.own, &self.plan, request)
    }

    fn step(&self, params: &[Param], _: &Self::Source, batch: &Self::Batch, at: StepPosition) -> Result<StepResult> {
        let Self { plan, own, .. } = self;
        let (seed, epoch, step) = (plan.config.seed, at.epoch, at.in_stage);
        let dropout = if at.stage == Stage::Head { Vec::new() } else { plan.dropout() };
        let draw = Draw { seed, epoch, step, indices: &batch.indices, dropout: 0., part: 0 };
        let (drawn, micro_batch) = (own.reader().draw(&draw, &dropout), plan.config.micro_batch);
        let (losses, count, gradients) = own.step(DenseStep { params, batch, drawn: &drawn, micro_batch })?;
        let mean_over = MeanOver { count, least: 1. };
        Ok(StepResult { losses, correct: 0, gradients, votes: Vec::new(), mean_over })
    }

    fn diverged(&self, what: &str, at: StepPosition, _: f64) -> Message {
        let (step, epoch) = (at.in_epoch + 1, at.epoch);
        let message = Message::from(format!("{what} not finite in step {step} of epoch {epoch}; try a lower "));
        message.field("lr").text(" or ").field("head_lr")
    }

    fn means(&self, sums: &EpochSums) -> EpochMeans {
        let mut means = sums.losses.iter().map(|sum| sum / sums.steps.max(1) as f64);
        let loss = means.next().unwrap_or_default();
        EpochMeans { loss, others: D::MEANS.iter().copied().zip(means).collect(), acc1: None }
    }

    fn tally(&self, _: bool) -> D::Tally {
        self.own.tally()
    }

    fn evaluator<'a>(
        &'a self,
        params: &'a [Param],
        source: &'a Self::Source,
        stage: Stage,
    ) -> Result<Evaluator<'a, Self::Batch, D::Output>> {
        self.own.evaluator(source.split(), LearnedValues::of(params, stage))
    }

    fn add(&self, tally: &mut D::Tally, output: D::Output) -> Result<()> {
        self.own.add(tally, output);
        Ok(())
    }

    fn conclude(&self, tally: D::Tally, split: Split) -> Result<D::Evaluation> {
        self.own.conclude(tally, split)
    }

    fn task_file(
        &self,
        values: &[Param],
        record: &EpochRecord,
        test: Option<Scores>,
        val: Option<&D::Evaluation>,
    ) -> Result<TaskFile> {
        let Self { plan, own, .. } = self;
        let metrics = TaskMetrics { epoch: record.epoch, val: record.val.clone(), test };
        let backbone = self.backbone();
        let meta = plan.task_meta(backbone, self.data.classes.clone(), backbone.preprocess.clone(), metrics)?;
        let mut meta = own.describe(plan, meta, val);
        let params = if record.stage == Stage::Head {
            // Parts that have not learned yet would only disturb.
            (meta.method, meta.parts) = (Method::LINEAR, PartShapes::NONE);
            own.reader().without_parts(values)
        } else {
            values.to_vec()
        };
        Ok(TaskFile { meta, params })
    }

    fn results(&self, _: &D::Evaluation, _: &D::Evaluation) -> TaskResults {
        TaskResults::default()
    }

    fn write_files(&self, run: &FinishedRun<D::Evaluation>) -> Result<()> {
        let (backbone, data) = (&self.backbone().name, &self.data.name);
        let title = format!("{}, {backbone} on {data}", self.plan.config.method);
        let alone = run.record.stage == Stage::Head && !self.plan.config.method.on_features();
        let title = if alone { format!("{title}; the head alone") } else { title };
        self.own.write_files(&self.plan, &title, run)
    }
}
