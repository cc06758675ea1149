//! The trainer asks a task to open its data, make a model, take a step on a batch, evaluate, and write what
//! belongs to it in the run folder. All else is the trainer's: trials of learning rates and the order of a run
//! ([`session`](super::session)), the epochs of a stage ([`fit`](super::fit)), evaluation ([`evaluate`](super::evaluate())).
//!
//! To add a task: a file here that implements [`TrainTask`], and a line in [`open`].

pub(crate) mod classify;
pub(crate) mod dense;
mod detect;
pub(crate) mod images;
pub(crate) mod multilabel;
mod segment;

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use self::{classify::Classify, detect::DetectTraining, multilabel::Multilabel, segment::SegmentTraining};
use super::{
    OpenData, Outcome,
    observer::Observer,
    process_group::ProcessGroup,
    progress::{EpochRecord, EpochSums, ProbeChoice, Stage},
    run_folder::RunFolder,
    session::Session,
};
use crate::config::{LearningRate, Plan, RunConfig, Select, Task};
use vpt_backbone::{Backbone, class_texts::Prompts};
use vpt_base::{Error, Message, Result, params::Param};
use vpt_data::{ImageCount, Split};
use vpt_energy::EnergyMeter;
use vpt_model::{
    head::{HeadKind, LabelMap, label_map::Vote},
    metrics::{Calibration, Scores, bootstrap::Interval, calibration::Logits},
    model::task_file::TaskFile,
    optim::{Rates, schedule::LearningRateSchedule},
};

/// A run that is to be opened.
pub(crate) struct RunRequest<'a> {
    /// What it is.
    pub(crate) config: &'a RunConfig,
    /// Its data, where they are open already.
    pub(crate) given: Option<OpenData>,
    /// The processes that have it in hand.
    pub(crate) group: &'a ProcessGroup,
}

impl<'a> RunRequest<'a> {
    /// A run whose data are to be opened, too.
    pub(crate) fn new(config: &'a RunConfig, group: &'a ProcessGroup) -> Self {
        Self { config, given: None, group }
    }
}

/// Opens data and backbone of a run of `task`, which is not [`Task::Auto`]; `None` when the observer asked to stop.
pub(super) fn open(task: Task, request: RunRequest, observer: &mut dyn Observer) -> Result<Option<Box<dyn OpenedRun>>> {
    match task {
        Task::Auto | Task::Classify => boxed::<Classify>(request, observer),
        Task::Multilabel => boxed::<Multilabel>(request, observer),
        Task::Detect => boxed::<DetectTraining>(request, observer),
        Task::Segment => boxed::<SegmentTraining>(request, observer),
    }
}

fn boxed<T: TrainTask>(request: RunRequest, observer: &mut dyn Observer) -> Result<Option<Box<dyn OpenedRun>>> {
    Ok(T::open(request, observer)?.map(|task| Box::new(task) as Box<dyn OpenedRun>))
}

/// A run of any task whose data and backbone are open.
pub(super) trait OpenedRun {
    /// The run with nothing left open.
    fn plan(&self) -> &Plan;

    /// The data set's name.
    fn data_name(&self) -> &str;

    /// Stands for configuration, data and backbone.
    fn fingerprint(&self) -> &RunFingerprint;

    /// Writes which images are in which part, before there is anything else in `folder`.
    fn write_parts(&self, folder: &RunFolder) -> Result<()>;

    /// Trains to the end, or until `observer` asks to stop.
    fn go(self: Box<Self>, folder: RunFolder, meter: EnergyMeter, observer: &mut dyn Observer) -> Result<Outcome>;
}

impl<T: TrainTask> OpenedRun for T {
    fn plan(&self) -> &Plan {
        TrainTask::plan(self)
    }

    fn data_name(&self) -> &str {
        self.data().name
    }

    fn fingerprint(&self) -> &RunFingerprint {
        TrainTask::fingerprint(self)
    }

    fn write_parts(&self, folder: &RunFolder) -> Result<()> {
        TrainTask::write_parts(self, folder)
    }

    fn go(self: Box<Self>, folder: RunFolder, meter: EnergyMeter, observer: &mut dyn Observer) -> Result<Outcome> {
        Session::new(*self, folder, meter).go(observer)
    }
}

/// Fails if `config` asks for something that validation images decide and the data set `name` has none; `val` is how many it has.
pub(super) fn refuse_without_validation(config: &RunConfig, name: &str, val: usize) -> Result<()> {
    if val > 0 {
        let message = format!("{name} has validation images, which choose in their place");
        return if config.folds.is_some() { Err(Error::setting("folds", message)) } else { Ok(()) };
    }
    let cache = &config.options.cache;
    let needs = [
        ("lr", matches!(config.lr, Some(LearningRate::Auto))),
        ("patience", config.patience.is_some()),
        ("select", config.select == Some(Select::Best)),
        // The configuration of a run says so by itself.
        ("keep_better", config.keep_better == Some(true) && config.folds.is_none() && !config.is_filled_in()),
        ("alpha", config.method.has_cache() && (cache.alpha.is_none() || cache.beta.is_none())),
    ];
    let Some((field, _)) = needs.iter().find(|(_, asked)| *asked) else { return Ok(()) };
    let lacks = match &config.draw {
        Some(path) => format!("the draw {} holds none", path.display()),
        None => format!("{name} has none"),
    };
    if *field == "alpha" {
        let message = format!("{} chooses it and ", config.method);
        let message =
            Message::from(message).field("beta").text(format!(" by validation images, and {lacks}; give both"));
        return Err(Error::setting("alpha", message));
    }
    Err(Error::setting(*field, format!("needs validation images, and {lacks}")))
}

/// Stands for a run with a plan on data and a backbone: checkpoints hold it.
#[derive(Debug, Default)]
pub(crate) struct RunFingerprint {
    hash: String,
    /// All but the backbone.
    begun: blake3::Hasher,
}

impl RunFingerprint {
    /// Of a run with this plan on this data and backbone.
    pub(crate) fn new(plan: &Plan, data: &[&[u8]], backbone: &Backbone) -> Result<Self> {
        let mut begun = blake3::Hasher::new();
        let config = plan.config.identity()?;
        for part in [&[config.as_bytes()], data].concat() {
            add(&mut begun, part);
        }
        Ok(Self { hash: with_backbone(&begun, backbone.hash()?), begun })
    }

    /// What checkpoints hold.
    pub(crate) fn as_str(&self) -> &str {
        &self.hash
    }

    /// Whether `found` stands for this run: as it is written now, or by earlier versions, which took the bytes of the weight files
    /// for the backbone.
    pub(crate) fn is(&self, found: &str, backbone: &Backbone) -> Result<bool> {
        Ok(found == self.hash || found == with_backbone(&self.begun, backbone.hash_of_files()?))
    }
}

fn add(hasher: &mut blake3::Hasher, part: &[u8]) {
    hasher.update(&(part.len() as u64).to_le_bytes());
    hasher.update(part);
}

fn with_backbone(begun: &blake3::Hasher, hash: &str) -> String {
    let mut hasher = begun.clone();
    add(&mut hasher, hash.as_bytes());
    hasher.finalize().to_hex().to_string()
}

/// Names and numbers of a run's data.
pub(crate) struct DataSummary<'a> {
    pub(crate) name: &'a str,
    pub(crate) classes: Cow<'a, [String]>,
    /// Images in train, val and test.
    pub(crate) images: [usize; 3],
    /// Stands for all of it, where the task has such a hash.
    pub(crate) content_hash: Option<&'a str>,
}

/// A stage of a run and its number of epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StagePlan {
    pub(crate) stage: Stage,
    pub(crate) epochs: usize,
}

/// Which values are evaluated and kept instead of the present ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Averaging {
    /// The present ones are.
    None,
    /// Their average over the epochs ([`EpochAverage`](super::average::EpochAverage)).
    Epochs,
    /// Their exponential moving average over the steps of a stage.
    Steps {
        /// Weight of the average so far in a step.
        decay: f64,
    },
}

/// Where in a run a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StepPosition {
    pub(crate) stage: Stage,
    /// The epoch, from 1.
    pub(crate) epoch: usize,
    /// The step in the epoch, from 0.
    pub(crate) in_epoch: u64,
    /// The step in the stage, from 0.
    pub(crate) in_stage: u64,
}

/// What a mean is over: images by their weights, tokens with a box, cells with a class.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct MeanOver {
    /// How many there are.
    pub(crate) count: f64,
    /// The least number that a sum is divided by.
    pub(crate) least: f64,
}

impl MeanOver {
    /// What a sum was divided by.
    pub(crate) fn divisor(self) -> f64 {
        self.count.max(self.least)
    }
}

/// Losses and gradients of a step.
pub(crate) struct StepResult {
    /// The loss, and the parts of it that records tell: what [`EpochSums::losses`] adds up.
    pub(crate) losses: Vec<f64>,
    /// How many images were right, where the task tells.
    pub(crate) correct: usize,
    /// The gradient of each learned tensor.
    pub(crate) gradients: Vec<Vec<f32>>,
    /// Votes for the next label mapping.
    pub(crate) votes: Vec<Vote>,
    /// What the gradients are a mean over.
    pub(crate) mean_over: MeanOver,
}

/// Means over the steps or images of an epoch.
pub(crate) struct EpochMeans {
    /// The loss.
    pub(crate) loss: f64,
    /// Other means that a record tells, by name.
    pub(crate) others: Vec<(&'static str, f64)>,
    /// The accuracy, where an image has one class.
    pub(crate) acc1: Option<f64>,
}

/// Outcome of the evaluation of a part.
pub(crate) trait Scored {
    /// The metrics.
    fn scores(&self) -> Scores;

    /// The logits of the images in their order, where they were asked for and an image has one class.
    fn logits(&self) -> Option<&Logits> {
        None
    }
}

/// Learned values that validation has changed after training, and what it chose for them, by name.
pub(crate) struct Refined {
    pub(crate) values: Vec<Param>,
    pub(crate) chosen: BTreeMap<String, f64>,
}

/// The fields of `results.json` that not every task has.
#[derive(Default)]
pub(crate) struct TaskResults {
    pub(crate) head: Option<HeadKind>,
    pub(crate) label_map: Option<LabelMap>,
    pub(crate) texts: Option<Prompts>,
    pub(crate) temperature: Option<f64>,
    pub(crate) ece: Option<Calibration>,
    pub(crate) chosen: BTreeMap<String, f64>,
}

/// Input of the files of a finished run.
pub(crate) struct FinishedRun<'a, F> {
    pub(crate) folder: &'a RunFolder,
    /// Every epoch.
    pub(crate) history: &'a [EpochRecord],
    /// The epoch that counts.
    pub(crate) record: &'a EpochRecord,
    /// The values that count.
    pub(crate) values: &'a [Param],
    /// Their evaluation on the validation images.
    pub(crate) val: &'a F,
    /// Their evaluation on the test images.
    pub(crate) test: &'a F,
}

/// Which batches are asked for of a part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchRequest<'a> {
    /// The stage that sees them.
    pub(crate) stage: Stage,
    /// Positions of the images, in their order.
    pub(crate) order: &'a [usize],
    /// Seed of what is random.
    pub(crate) epoch: usize,
    /// Images of a batch; the last may have fewer.
    pub(crate) size: usize,
}

/// Batches in order.
pub(crate) type Batches<'a, B> = Box<dyn Iterator<Item = Result<B>> + 'a>;

/// What a model makes of a batch.
pub(crate) type Evaluator<'a, B, O> = Box<dyn FnMut(&B) -> Result<O> + 'a>;

/// A task, with its data, its model and everything else that a run needs and that does not change.
pub(crate) trait TrainTask: Sized + 'static {
    /// Images that are evaluated at a time.
    const EVAL_BATCH: usize;

    /// Whether the losses of a step are means, as its gradients are, or sums over its images.
    const LOSSES_ARE_MEANS: bool;

    /// The images of a part, or what was made of them once.
    type Source: ImageCount;

    /// A batch of them.
    type Batch: ImageCount;

    /// What a model makes of a batch of images that are evaluated.
    type Output: Serialize + DeserializeOwned;

    /// Running sums of an evaluation.
    type Tally;

    /// Its outcome.
    type Evaluation: Scored;

    /// Opens data and backbone; `None` when the observer asked to stop.
    fn open(request: RunRequest, observer: &mut dyn Observer) -> Result<Option<Self>>;

    /// The processes that have the run in hand.
    fn group(&self) -> &ProcessGroup;

    /// The run with nothing left open.
    fn plan(&self) -> &Plan;

    /// The frozen part of the model.
    fn backbone(&self) -> &Backbone;

    /// Names and numbers of the data.
    fn data(&self) -> DataSummary<'_>;

    /// Stands for configuration, data and backbone in checkpoints.
    fn fingerprint(&self) -> &RunFingerprint;

    /// The same on a fold of the training images, the first of `fold` of so many, which is validated on in place of being learned from;
    /// its head alone has the `penalty` of the run. `None` when the observer asked to stop.
    ///
    /// # Errors
    /// There are too few images.
    fn fold(&self, fold: (usize, usize), penalty: Option<f64>, observer: &mut dyn Observer) -> Result<Option<Self>>;

    /// Writes which images are in which part to `folder`.
    fn write_parts(&self, folder: &RunFolder) -> Result<()>;

    /// The stages of a run in their order, none of them without epochs. What is learned before the last does not depend on the
    /// rate that `lr = "auto"` looks for.
    fn stages(&self) -> Vec<StagePlan>;

    /// Which values are evaluated and kept.
    fn averaging(&self) -> Averaging;

    /// How the learning rate goes over `epochs` epochs: a trial of the rate may have fewer than the run.
    fn schedule(&self, epochs: usize) -> LearningRateSchedule;

    /// Rates of the optimiser when the method learns at `lr`.
    fn rates(&self, lr: f64) -> Rates;

    /// The rate that records tell when the method learns at `lr`.
    fn recorded_lr(&self, lr: f64) -> f64;

    /// The learned values before the first step, after whatever has to be computed for them; where nothing is learned in
    /// steps, the final ones. With a checkpoint (not `fresh`) only their shape is needed. `None` when the observer asked to
    /// stop.
    fn initial(&mut self, fresh: bool, observer: &mut dyn Observer) -> Result<Option<Vec<Param>>>;

    /// Computes what never changes in training, once it is known that there is something to learn; `None` when the observer
    /// asked to stop.
    fn prepare(&mut self, _observer: &mut dyn Observer) -> Result<Option<()>> {
        Ok(Some(()))
    }

    /// The head alone on frozen features, which a run without a checkpoint has computed by [`Self::initial`], and what was
    /// chosen for it; `None` where the run has nothing to do with one.
    fn head_alone(&self) -> Option<(&[Param], &ProbeChoice)> {
        None
    }

    /// What the head alone, with these `values`, finds in the images of `split`, with details; `None` when the observer asked
    /// to stop.
    fn evaluate_alone(&self, _: &[Param], _: Split, _: &mut dyn Observer) -> Result<Option<Self::Evaluation>> {
        Ok(None)
    }

    /// By how much the main score of the test images is higher for what was `learned` than for the head `alone`, with a paired interval
    /// over the images; `None` where nothing can be measured in them.
    fn moved(&self, _learned: &Self::Evaluation, _alone: &Self::Evaluation) -> Result<Option<Interval>> {
        Ok(None)
    }

    /// What learns after pruning: the `first` values of the run without what matters least in those that it has `learned`, by the
    /// training images; `None` when the observer asked to stop.
    fn prune(
        &self,
        _: &[Param],
        first: &[Param],
        _: &Self::Source,
        _: &mut dyn Observer,
    ) -> Result<Option<Vec<Param>>> {
        Ok(Some(first.to_vec()))
    }

    /// Images that an epoch goes through.
    fn epoch_images(&self) -> usize;

    /// The images of train and val for `stage`; `folder` has room for what memory has none for. `None` when the observer asked
    /// to stop.
    fn sources(
        &self,
        stage: Stage,
        folder: &RunFolder,
        observer: &mut dyn Observer,
    ) -> Result<Option<[Self::Source; 2]>>;

    /// The images of val or test for the last look; `None` when the observer asked to stop.
    fn final_source(&self, split: Split, observer: &mut dyn Observer) -> Result<Option<Self::Source>>;

    /// Batches of the images of `source`.
    fn batches<'a>(&'a self, source: &'a Self::Source, request: BatchRequest<'a>) -> Result<Batches<'a, Self::Batch>>;

    /// Called before the first step of an epoch.
    fn begin_epoch(&self, _params: &mut [Param]) {}

    /// Loss and gradients of a batch of the training images `source`.
    fn step(
        &self,
        params: &[Param],
        source: &Self::Source,
        batch: &Self::Batch,
        at: StepPosition,
    ) -> Result<StepResult>;

    /// Called when the optimiser has changed `params` by what `step` yielded.
    fn updated(&self, _params: &mut [Param], _step: &StepResult) {}

    /// The error of a step at the rate `lr` whose `what` (loss or gradient) is not finite.
    fn diverged(&self, what: &str, at: StepPosition, lr: f64) -> Message;

    /// Means of `sums`.
    fn means(&self, sums: &EpochSums) -> EpochMeans;

    /// An evaluation of no images yet. With `details`, it also keeps what only the files at the end need.
    fn tally(&self, details: bool) -> Self::Tally;

    /// What `params` make of a batch of `source`.
    fn evaluator<'a>(
        &'a self,
        params: &'a [Param],
        source: &'a Self::Source,
        stage: Stage,
    ) -> Result<Evaluator<'a, Self::Batch, Self::Output>>;

    /// Adds what was made of the next batch to `tally`.
    fn add(&self, tally: &mut Self::Tally, output: Self::Output) -> Result<()>;

    /// Outcome of `tally`, taken over all images of `split`.
    fn conclude(&self, tally: Self::Tally, split: Split) -> Result<Self::Evaluation>;

    /// Changes the learned values by validation when training is over.
    fn refine(&self, _values: &[Param]) -> Result<Option<Refined>> {
        Ok(None)
    }

    /// The task file of `values`, those of the epoch `record` or of the head alone; `test` and `val`, what they found in the validation images,
    /// are known at the end.
    fn task_file(
        &self,
        values: &[Param],
        record: &EpochRecord,
        test: Option<Scores>,
        val: Option<&Self::Evaluation>,
    ) -> Result<TaskFile>;

    /// Fields of `results.json` that this task has.
    fn results(&self, val: &Self::Evaluation, test: &Self::Evaluation) -> TaskResults;

    /// Writes pictures and what else belongs to this task only.
    fn write_files(&self, run: &FinishedRun<Self::Evaluation>) -> Result<()>;
}
