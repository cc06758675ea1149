//! Tasks whose images have labels: one model and one way to learn, whatever the labels stand for ([`ImageLabels`]).

mod alone;
pub(crate) mod mistakes;
mod pictures;
mod prefix;
mod prompt_picture;
mod prompt_start;
pub(crate) mod setup;
pub(crate) mod source;

use std::{borrow::Cow, sync::Arc};

use self::{
    alone::HeadAlone,
    setup::Setup,
    source::{LabelledBatch, PartSource},
};
use super::{
    Averaging, BatchRequest, Batches, DataSummary, EpochMeans, Evaluator, FinishedRun, MeanOver, Refined,
    RunFingerprint, RunRequest, Scored, StagePlan, StepPosition, StepResult, TaskResults, TrainTask,
};
use crate::{
    config::{HeadInit, Plan, RunConfig, Task},
    report::MistakePart,
    train::{
        OpenData,
        features::{self, Beginning},
        observer::{Event, Observer},
        process_group::ProcessGroup,
        progress::{EpochRecord, EpochSums, ProbeChoice, Stage},
        run_folder::{self, RunFolder},
    },
};
use vpt_backbone::Backbone;
use vpt_base::{Message, Result, params::Param, random::stream};
use vpt_data::{Dataset, Split, SplitFile};
use vpt_model::{
    loss::Loss,
    metrics::{
        Confusion, Scores,
        bootstrap::{self, Interval},
        calibration::Logits,
    },
    model::{
        Frozen, Model, StepInput, StepOutput,
        task_file::{TaskFile, TaskMeta, TaskMetrics},
    },
    optim::{Rates, schedule::LearningRateSchedule},
    prompt::part::Draw,
};

/// Images that are classified at a time.
pub(crate) const EVAL_BATCH: usize = 64;

/// The name of a curve of scores, and its value for an epoch.
pub(crate) type ScoreCurve = (&'static str, fn(&EpochRecord) -> f64);

/// Meaning of the labels of images.
pub(crate) trait ImageLabels: Clone + Sized + 'static {
    /// The task.
    const TASK: Task;
    /// Whether a class without training images cannot be learned.
    const NEEDS_EVERY_CLASS: bool;
    /// Name in records of the share of training images that were right.
    const TRAIN_RIGHT: &'static str;
    /// Introduction of the page of mistakes.
    const MISTAKES: &'static str;
    /// The axis of the scores in the picture of the curves.
    const AXIS: &'static str;

    /// Counts over the images of a part.
    type Evaluation: Scored;

    /// The data set of a run, unless it is `given`, and what its labels stand for.
    fn open(config: &RunConfig, given: Option<OpenData>, observer: &mut dyn Observer) -> Result<(Dataset, Self)>;

    /// The classes that `label` stands for.
    fn classes_of(&self, label: u32) -> Result<Vec<u32>>;

    /// Their names, of those of all `classes`.
    fn names(&self, label: u32, classes: &[String]) -> Result<String>;

    /// Training loss, with weights by the numbers of training images.
    fn loss(&self, config: &RunConfig, dataset: &Dataset) -> Loss;

    /// Nothing found yet, where there are so many classes. With `details`, logits are kept if anything is made of them.
    fn found(&self, classes: usize, details: bool) -> Self::Evaluation;

    /// Adds a batch to `found`: `logits` `[B, classes]`, `labels` `[B]`.
    fn add(&self, found: &mut Self::Evaluation, logits: &[f32], labels: &[u32]) -> Result<()>;

    /// Adds to a task file's metadata what follows from the labels, and from the evaluation of the validation images.
    fn task_meta(&self, meta: TaskMeta, val: Option<&Self::Evaluation>) -> TaskMeta;

    /// Fields of `results.json` that follow from them.
    fn results(&self, val: &Self::Evaluation, test: &Self::Evaluation) -> TaskResults;

    /// Curves of scores.
    fn score_curves(&self) -> [ScoreCurve; 2];

    /// The names that `logits` `[classes]` of an image tell, and how likely they are where there is one; `val` is what was found
    /// in all validation images.
    fn prediction(&self, logits: &[f32], classes: &[String], val: &Self::Evaluation) -> Option<(String, Option<f64>)>;

    /// Confusion matrix, where an image has one class.
    fn confusion(found: &Self::Evaluation) -> Option<&Confusion>;

    /// The mistakes among `found` in the images of `split`; `val` is what was found in all validation images.
    fn mistakes(
        &self,
        dataset: &Dataset,
        split: Split,
        found: &Self::Evaluation,
        val: &Self::Evaluation,
    ) -> Result<MistakePart>;
}

/// A task whose images have labels.
pub(crate) struct ImageTask<L> {
    pub(crate) setup: Setup,
    pub(crate) labels: L,
    /// Initial values and penalty of a method on frozen features.
    pub(crate) beginning: Beginning,
    /// The head alone, where the run begins with it or is held against it.
    alone: Option<HeadAlone>,
    /// Features of the training images without prompts, where `promptsrc` is tied to these and they never change.
    frozen_features: Option<Vec<f32>>,
}

impl<L: ImageLabels> ImageTask<L> {
    pub(crate) fn new(setup: Setup, labels: L) -> Self {
        Self { setup, labels, beginning: Beginning::default(), alone: None, frozen_features: None }
    }

    /// Puts features in the place of the images of train and val, and makes what the run begins with; `None` when the observer
    /// asked to stop.
    fn begin_on_features(&mut self, fresh: bool, observer: &mut dyn Observer) -> Result<Option<Vec<Param>>> {
        let Some(train) = features::of_split(&self.setup, Split::Train, observer)? else { return Ok(None) };
        let Some(val) = features::of_split(&self.setup, Split::Val, observer)? else { return Ok(None) };
        let Some((beginning, train)) = features::begin(&self.setup, train, &val, fresh, observer)? else {
            return Ok(None);
        };
        (self.setup.train, self.setup.val) =
            (Arc::new(PartSource::Features(train)), Arc::new(PartSource::Features(val)));
        let initial = beginning.params.clone();
        self.beginning = beginning;
        Ok(Some(initial))
    }

    /// The label mapping of the first epoch, if there is one: counted over the training images without a prompt. `false` when the
    /// observer asked to stop.
    fn map_labels(&self, initial: &mut [Param], observer: &mut dyn Observer) -> Result<bool> {
        let Setup { model, train, group, .. } = &self.setup;
        if !model.label_map().is_some_and(|(kind, _)| kind.counts()) {
            return Ok(true);
        }
        if let Some((kind, source)) = model.label_map() {
            let (from, to) = (source.classes(), model.head().classes);
            let note = format!(
                "label map {kind}: counting which of {from} classes of the backbone stand for {to} of the data"
            );
            observer.event(&Event::Note(&note));
        }
        let own = group.own_images(&(0..train.len()).collect::<Vec<_>>(), EVAL_BATCH);
        let batches = train.batches(&own, 0, EVAL_BATCH)?;
        let go_on = &mut |done, total| observer.goes_on(&Event::Evaluating { split: Split::Train, done, total });
        let first = initial.to_vec();
        let compute = |batch: LabelledBatch| model.votes_of(&first, &batch.values, &batch.labels);
        let all = group.visit(batches, (train.len(), EVAL_BATCH), go_on, compute, |votes| {
            model.add_votes(initial, &votes);
            Ok(())
        })?;
        if all {
            model.renew_map(initial, true);
        }
        Ok(all)
    }

    /// Texts and image features that `promptsrc` is tied to, these in the order of the training images.
    fn frozen(&self) -> Option<Frozen<'_>> {
        let texts = self.setup.frozen_texts.as_deref()?;
        Some(Frozen { texts, features: self.frozen_features.as_deref() })
    }

    /// The model that the values of the epoch `record` are for.
    fn model_of(&self, record: &EpochRecord) -> &Model {
        match &self.alone {
            Some(alone) if record.is_head_alone() => &alone.model,
            _ => &self.setup.model,
        }
    }

    /// Heading of the pictures of a run whose epoch `record` counts.
    fn title_of(&self, record: &EpochRecord) -> String {
        let title = self.setup.title();
        if record.is_head_alone() { format!("{title}; the probe") } else { title }
    }

    fn gradients(
        &self,
        params: &[Param],
        source: &PartSource,
        batch: &LabelledBatch,
        at: StepPosition,
    ) -> Result<StepOutput> {
        let Setup { plan, model, loss, .. } = &self.setup;
        let config = &plan.config;
        let (epoch, step) = (at.epoch, at.in_stage);
        let draw = Draw { seed: config.seed, epoch, step, indices: &batch.indices, dropout: 0., part: 0 };
        let drawn = model.draw(&draw, &plan.dropout());
        if source.holds_features() {
            let (values, labels) = (&batch.values, &batch.labels);
            let mut output = model.head_step(params, &drawn, values, labels, loss)?;
            if let Some(penalty) = &self.beginning.penalty {
                penalty.add_to(&mut output, params, loss.weight(&batch.labels))?;
            }
            return Ok(output);
        }
        let frozen = self.frozen();
        let features = frozen.and_then(|frozen| frozen.features).map(|all| {
            let width = all.len() / source.len();
            batch.indices.iter().flat_map(|&i| &all[i * width..(i + 1) * width]).copied().collect::<Vec<f32>>()
        });
        let input = StepInput {
            images: &batch.values,
            blocks: source.blocks(),
            labels: &batch.labels,
            drawn: &drawn,
            loss,
            frozen: frozen.map(|frozen| Frozen { features: features.as_deref(), ..frozen }),
            micro_batch: config.micro_batch,
        };
        model.step(params, &input)
    }
}

impl<L: ImageLabels> TrainTask for ImageTask<L> {
    const EVAL_BATCH: usize = EVAL_BATCH;
    const LOSSES_ARE_MEANS: bool = false;
    type Source = Arc<PartSource>;
    type Batch = LabelledBatch;
    /// Logits `[B, classes]`, labels `[B]`.
    type Output = (Vec<f32>, Vec<u32>);
    type Tally = L::Evaluation;
    type Evaluation = L::Evaluation;

    fn open(request: RunRequest, observer: &mut dyn Observer) -> Result<Option<Self>> {
        Ok(Setup::new(request, observer)?.map(|(setup, labels)| Self::new(setup, labels)))
    }

    fn group(&self) -> &ProcessGroup {
        &self.setup.group
    }

    fn plan(&self) -> &Plan {
        &self.setup.plan
    }

    fn backbone(&self) -> &Backbone {
        self.setup.model.backbone()
    }

    fn data(&self) -> DataSummary<'_> {
        let Setup { dataset, content_hash, .. } = &self.setup;
        DataSummary {
            name: &dataset.name,
            classes: Cow::Borrowed(&dataset.classes),
            images: Split::ALL.map(|split| dataset.part(split).len()),
            content_hash: Some(content_hash),
        }
    }

    fn fingerprint(&self) -> &RunFingerprint {
        &self.setup.fingerprint
    }

    fn fold(&self, fold: (usize, usize), penalty: Option<f64>, observer: &mut dyn Observer) -> Result<Option<Self>> {
        let Some(setup) = self.setup.fold(&self.labels, fold, penalty, observer)? else { return Ok(None) };
        Ok(Some(Self::new(setup, self.labels.clone())))
    }

    fn write_parts(&self, folder: &RunFolder) -> Result<()> {
        folder.write(run_folder::SPLIT, SplitFile::new(&self.setup.dataset).to_json())?;
        self.setup.few_shot.as_ref().map_or(Ok(()), |draw| draw.write(&folder.file(run_folder::FEW_SHOT)))
    }

    fn stages(&self) -> Vec<StagePlan> {
        let epochs = self.setup.plan.epochs;
        let stages = if self.setup.model.prunes() { &[Stage::Unpruned, Stage::Pruned][..] } else { &[Stage::Whole] };
        stages.iter().map(|&stage| StagePlan { stage, epochs }).collect()
    }

    fn averaging(&self) -> Averaging {
        match self.setup.plan.config.ema.filter(|&decay| decay > 0.) {
            _ if self.setup.frozen_texts.is_some() => Averaging::Epochs,
            Some(decay) => Averaging::Steps { decay },
            None => Averaging::None,
        }
    }

    fn schedule(&self, epochs: usize) -> LearningRateSchedule {
        self.setup.plan.course(epochs, self.setup.train.len().div_ceil(self.setup.plan.batch_size))
    }

    fn rates(&self, lr: f64) -> Rates {
        self.setup.plan.rates(lr)
    }

    fn recorded_lr(&self, lr: f64) -> f64 {
        lr
    }

    fn initial(&mut self, fresh: bool, observer: &mut dyn Observer) -> Result<Option<Vec<Param>>> {
        if self.setup.plan.config.method.on_features() {
            return self.begin_on_features(fresh, observer);
        }
        let mut initial = self.setup.initial(fresh, observer)?;
        if fresh && !prompt_start::begin(&self.setup, &mut initial, observer)? {
            return Ok(None);
        }
        if self.setup.plan.knows_head_alone() {
            let Some(alone) = HeadAlone::new(&self.setup, &initial, fresh, observer)? else { return Ok(None) };
            if self.setup.plan.head_init == Some(HeadInit::Probe)
                && let Some((values, _)) = &alone.start
            {
                initial.truncate(self.setup.model.part_tensors());
                initial.extend_from_slice(values);
            }
            self.alone = Some(alone);
        }
        if fresh && !self.map_labels(&mut initial, observer)? {
            return Ok(None);
        }
        Ok(prefix::keep(&mut self.setup, observer)?.then_some(initial))
    }

    /// Where texts are learned and features never change: puts these in the place of images, and keeps those that `promptsrc` is
    /// tied to.
    fn prepare(&mut self, observer: &mut dyn Observer) -> Result<Option<()>> {
        let Setup { plan, frozen_texts, .. } = &self.setup;
        if !plan.config.method.has_texts() && !plan.told_by_texts() {
            return Ok(Some(()));
        }
        let [of_train, of_val] = [Split::Train, Split::Val].map(|split| plan.has_constant_features(split));
        let tied = frozen_texts.is_some() && !plan.augments();
        if of_train || tied {
            let Some(features) = features::of_split(&self.setup, Split::Train, observer)? else { return Ok(None) };
            if tied {
                self.frozen_features = Some(features.values);
            } else {
                self.setup.train = Arc::new(PartSource::Features(features));
            }
        }
        if of_val {
            let Some(features) = features::of_split(&self.setup, Split::Val, observer)? else { return Ok(None) };
            self.setup.val = Arc::new(PartSource::Features(features));
        }
        Ok(Some(()))
    }

    fn prune(
        &self,
        learned: &[Param],
        first: &[Param],
        source: &Arc<PartSource>,
        observer: &mut dyn Observer,
    ) -> Result<Option<Vec<Param>>> {
        observer.event(&Event::Note(
            "pruning: what matters least in the training images is taken away, the rest begins again",
        ));
        let Setup { plan, model, loss, group, .. } = &self.setup;
        let own = group.own_images(&(0..source.len()).collect::<Vec<_>>(), plan.batch_size);
        let batches = source.batches(&own, 0, plan.batch_size)?;
        let mut sums: Vec<Vec<f32>> = learned.iter().map(|param| vec![0.; param.values.len()]).collect();
        let go_on = &mut |done, total| observer.goes_on(&Event::Evaluating { split: Split::Train, done, total });
        let compute = |LabelledBatch { labels, values, .. }| {
            let input = StepInput {
                images: &values,
                blocks: source.blocks(),
                labels: &labels,
                drawn: &[],
                loss,
                frozen: None,
                micro_batch: plan.config.micro_batch,
            };
            Ok((model.step(learned, &input)?.gradients, labels.len()))
        };
        let add = |(gradients, images): (Vec<Vec<f32>>, usize)| {
            // A batch's are of its mean loss; each image is to count the same.
            let share = images as f32 / source.len() as f32;
            for (sum, gradient) in sums.iter_mut().zip(&gradients) {
                sum.iter_mut().zip(gradient).for_each(|(sum, gradient)| *sum += share * gradient);
            }
            Ok(())
        };
        let all = group.visit(batches, (source.len(), plan.batch_size), go_on, compute, add)?;
        if all { model.prune(learned, &sums, first).map(Some) } else { Ok(None) }
    }

    fn head_alone(&self) -> Option<(&[Param], &ProbeChoice)> {
        let (values, choice) = self.alone.as_ref()?.start.as_ref()?;
        Some((values, choice))
    }

    fn evaluate_alone(
        &self,
        values: &[Param],
        split: Split,
        observer: &mut dyn Observer,
    ) -> Result<Option<L::Evaluation>> {
        let Some(alone) = &self.alone else { return Ok(None) };
        let Some(source) = alone.source(&self.setup, split, observer)? else { return Ok(None) };
        let mut found = self.tally(true);
        let classifier = alone.model.classifier(values)?;
        let order: Vec<usize> = (0..source.len()).collect();
        for batch in source.batches(&order, 0, EVAL_BATCH)? {
            let LabelledBatch { values, labels, .. } = batch?;
            self.labels.add(&mut found, &classifier.logits(&values)?, &labels)?;
        }
        Ok(Some(found))
    }

    fn moved(&self, learned: &L::Evaluation, alone: &L::Evaluation) -> Result<Option<Interval>> {
        let correct = |found: &L::Evaluation| found.logits().map(Logits::correct).unwrap_or_default();
        let moved = bootstrap::differences(&correct(learned), &correct(alone));
        let seed = self.setup.plan.config.seed;
        Ok(bootstrap::paired(&[moved], &mut stream(seed, "paired with the probe", 0, 0)))
    }

    fn epoch_images(&self) -> usize {
        self.setup.train.len()
    }

    fn sources(&self, _: Stage, _: &RunFolder, _: &mut dyn Observer) -> Result<Option<[Arc<PartSource>; 2]>> {
        let Setup { train, val, .. } = &self.setup;
        Ok(Some([train.clone(), val.clone()]))
    }

    fn final_source(&self, split: Split, observer: &mut dyn Observer) -> Result<Option<Arc<PartSource>>> {
        let Setup { val, test, .. } = &self.setup;
        if split == Split::Val || !val.holds_features() {
            return Ok(Some(if split == Split::Val { val } else { test }.clone()));
        }
        let features = features::of_split(&self.setup, split, observer)?;
        Ok(features.map(|features| Arc::new(PartSource::Features(features))))
    }

    fn batches<'a>(
        &'a self,
        source: &'a Arc<PartSource>,
        BatchRequest { order, epoch, size, .. }: BatchRequest<'a>,
    ) -> Result<Batches<'a, LabelledBatch>> {
        source.batches(order, epoch, size)
    }

    fn begin_epoch(&self, params: &mut [Param]) {
        // The logits of the epoch before have told the label mapping.
        self.setup.model.renew_map(params, false);
    }

    fn step(
        &self,
        params: &[Param],
        source: &Arc<PartSource>,
        batch: &LabelledBatch,
        at: StepPosition,
    ) -> Result<StepResult> {
        let StepOutput { loss, correct, gradients, votes } = self.gradients(params, source, batch, at)?;
        let mean_over = MeanOver { count: self.setup.loss.weight(&batch.labels), least: f64::MIN_POSITIVE };
        Ok(StepResult { losses: vec![loss], correct, gradients, votes, mean_over })
    }

    fn updated(&self, params: &mut [Param], step: &StepResult) {
        self.setup.model.add_votes(params, &step.votes);
    }

    fn diverged(&self, what: &str, at: StepPosition, lr: f64) -> Message {
        let (step, epoch) = (at.in_stage + 1, at.epoch);
        let at = format!("{what} not finite in step {step} (epoch {epoch}) at a learning rate of {lr}");
        Message::from(at).text("; try a lower ").field("lr")
    }

    fn means(&self, sums: &EpochSums) -> EpochMeans {
        let images = sums.images.max(1) as f64;
        let loss = sums.losses.first().copied().unwrap_or_default() / images;
        let right = sums.correct as f64 / images;
        let acc1 = (L::TASK == Task::Classify).then_some(right);
        EpochMeans { loss, others: vec![(L::TRAIN_RIGHT, right)], acc1 }
    }

    fn tally(&self, details: bool) -> L::Evaluation {
        self.labels.found(self.setup.model.head().classes, details)
    }

    fn evaluator<'a>(
        &'a self,
        params: &'a [Param],
        source: &'a Arc<PartSource>,
        _: Stage,
    ) -> Result<Evaluator<'a, LabelledBatch, Self::Output>> {
        let model = &self.setup.model;
        let classifier = model.classifier(params)?;
        Ok(Box::new(move |batch| {
            let logits = if source.holds_features() {
                classifier.logits(&batch.values)?
            } else {
                classifier.logits(&model.features_behind(params, &batch.values, source.blocks())?)?
            };
            Ok((logits, batch.labels.clone()))
        }))
    }

    fn add(&self, tally: &mut L::Evaluation, (logits, labels): Self::Output) -> Result<()> {
        self.labels.add(tally, &logits, &labels)
    }

    fn conclude(&self, tally: L::Evaluation, _: Split) -> Result<L::Evaluation> {
        Ok(tally)
    }

    fn refine(&self, values: &[Param]) -> Result<Option<Refined>> {
        let Setup { plan, model, val, .. } = &self.setup;
        let PartSource::Features(features) = &**val else { return Ok(None) };
        if plan.solved {
            return Ok(None);
        }
        let chosen = features::choose(plan, model.head(), values, features)?;
        Ok(chosen.map(|(values, chosen)| Refined { values, chosen }))
    }

    fn task_file(
        &self,
        values: &[Param],
        record: &EpochRecord,
        test: Option<Scores>,
        val: Option<&L::Evaluation>,
    ) -> Result<TaskFile> {
        let metrics = TaskMetrics { epoch: record.epoch, val: record.val.clone(), test };
        if let (Some(alone), true) = (&self.alone, record.is_head_alone()) {
            let meta = self.labels.task_meta(alone.task_meta(&self.setup, metrics)?, val);
            return Ok(TaskFile { meta, params: values.to_vec() });
        }
        let mut meta = self.labels.task_meta(self.setup.task_meta(metrics)?, val);
        let params = self.setup.model.task_params(values)?;
        if let (Some(map), Some((_, source))) = (&mut meta.label_map, self.setup.model.label_map()) {
            map.name(source.names(), &params)?;
        }
        Ok(TaskFile { meta, params })
    }

    fn results(&self, val: &L::Evaluation, test: &L::Evaluation) -> TaskResults {
        let plan = &self.setup.plan;
        TaskResults {
            head: Some(plan.head).filter(|_| plan.config.label_map.is_none()),
            label_map: plan.config.label_map,
            texts: self.setup.texts.clone(),
            chosen: self.beginning.chosen.clone(),
            ..self.labels.results(val, test)
        }
    }

    fn write_files(&self, run: &FinishedRun<L::Evaluation>) -> Result<()> {
        if !self.beginning.trials.is_empty() {
            run.folder.write_json(run_folder::L2_SEARCH, &self.beginning.trials)?;
        }
        pictures::write(self, run)?;
        prompt_picture::write(self, run)?;
        mistakes::write(self, run)
    }
}
