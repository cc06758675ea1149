//! Detection, in two stages: the head alone on features that are computed once, then prompts and head together.
//!
//! A moving average of the learned values is evaluated and kept. The head as it is after the first stage is the
//! control that prompts are reported beside. `token_store` keeps features, `source` makes batches, `setup` opens everything.

mod files;
mod mistakes;
mod setup;
mod source;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

pub(crate) use self::setup::{DetectTraining, working_size};
use self::source::{BoxSource, DetectBatch};
use super::{
    Averaging, Batches, DataSummary, EpochMeans, Evaluator, FinishedRun, RunFingerprint, Scored, StagePlan,
    StepPosition, StepResult, TaskResults, TrainTask,
};
use crate::{
    config::{Plan, RunConfig},
    train::{
        OpenData,
        observer::Observer,
        progress::{EpochRecord, EpochSums, Stage},
        run_folder::{self, RunFolder},
    },
};
use vpt_backbone::Backbone;
use vpt_base::{Message, Result, params::Param};
use vpt_data::Split;
use vpt_model::{
    head::detect::LossSums,
    metrics::{
        Scores,
        coco::{self, Detected, Detection},
    },
    model::{
        detect::DetectStep,
        task_file::{TaskFile, TaskMetrics},
    },
    optim::{
        Rates,
        schedule::{LearningRateSchedule, Schedule},
    },
    prompt::{PartShapes, part::Draw},
};

/// The parts of the loss behind the whole, in the order of a step's losses.
const PARTS: [&str; 4] = ["class_loss", "giou_loss", "l1_loss", "quality_loss"];

impl Scored for Detected {
    fn scores(&self) -> Scores {
        Scores::Detect(self.eval.metrics)
    }
}

impl TrainTask for DetectTraining {
    const EVAL_BATCH: usize = source::EVAL_BATCH;
    type Source = BoxSource;
    type Batch = DetectBatch;
    type Tally = Vec<Detection>;
    type Evaluation = Detected;

    fn open(config: &RunConfig, given: Option<OpenData>, observer: &mut dyn Observer) -> Result<Option<Self>> {
        Self::new(config, given, observer).map(Some)
    }

    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn backbone(&self) -> &Backbone {
        self.model.backbone()
    }

    fn data(&self) -> DataSummary<'_> {
        DataSummary {
            name: &self.dataset.name,
            classes: Cow::Owned(self.dataset.names()),
            images: Split::ALL.map(|split| self.dataset.part(split).len()),
            content_hash: None,
        }
    }

    fn fingerprint(&self) -> &RunFingerprint {
        &self.fingerprint
    }

    fn write_parts(&self, folder: &RunFolder) -> Result<()> {
        folder.write(run_folder::SPLIT, self.dataset.split_file().to_json())
    }

    fn stages(&self) -> Vec<StagePlan> {
        let head = self.detect.head_epochs;
        let prompts = self.plan.epochs - head;
        let stages =
            [(Stage::Head, head), (Stage::Prompts, prompts)].map(|(stage, epochs)| StagePlan { stage, epochs });
        stages.into_iter().filter(|stage| stage.epochs > 0).collect()
    }

    fn averaging(&self) -> Averaging {
        Averaging::Steps { decay: self.detect.ema }
    }

    fn schedule(&self, epochs: usize) -> LearningRateSchedule {
        let total = (epochs * self.dataset.train.len().div_ceil(self.plan.batch_size)) as u64;
        LearningRateSchedule::Steps(Schedule { total, warmup: (self.detect.warmup * total as f64).round() as u64 })
    }

    fn rates(&self, lr: f64) -> Rates {
        self.plan.detection_rates(lr)
    }

    fn recorded_lr(&self, lr: f64) -> f64 {
        self.rates(lr).head.lr
    }

    fn initial(&mut self, _: bool, _: &mut dyn Observer) -> Result<Option<Vec<Param>>> {
        self.model.init(self.plan.config.seed).map(Some)
    }

    fn epoch_images(&self) -> usize {
        self.dataset.train.len()
    }

    fn source(
        &self,
        split: Split,
        stage: Stage,
        folder: &RunFolder,
        observer: &mut dyn Observer,
    ) -> Result<Option<BoxSource>> {
        BoxSource::new(self, split, stage, folder.path(), observer)
    }

    fn final_source(&self, split: Split, _: &mut dyn Observer) -> Result<Option<BoxSource>> {
        Ok(Some(BoxSource::of_images(self, split)))
    }

    fn batches<'a>(
        &'a self,
        source: &'a BoxSource,
        stage: Stage,
        order: &'a [usize],
        epoch: usize,
        size: usize,
    ) -> Result<Batches<'a, DetectBatch>> {
        source.batches(self, stage, order, epoch, size)
    }

    fn step(&self, params: &[Param], _: &BoxSource, batch: &DetectBatch, at: StepPosition) -> Result<StepResult> {
        let Self { plan, model, .. } = self;
        let (seed, epoch, step) = (plan.config.seed, at.epoch, at.in_stage);
        let dropout = plan.dropout().first().copied().filter(|_| at.stage == Stage::Prompts).unwrap_or(0.);
        let draw = Draw { seed, epoch, step, indices: &batch.indices, dropout, part: 0 };
        let step = DetectStep {
            input: batch.input(),
            truths: &batch.truths,
            valid: batch.valid.as_deref(),
            drawn: model.draw(&draw),
            micro_batch: plan.config.micro_batch,
        };
        let (sums, gradients) = model.step(params, &step)?;
        let LossSums { positives, class, giou, l1, quality, .. } = sums;
        let n = positives.max(1) as f64;
        let losses = vec![sums.total(positives), class / n, giou / n, l1 / n, quality / n];
        Ok(StepResult { losses, correct: 0, gradients, votes: Vec::new() })
    }

    fn diverged(&self, what: &str, at: StepPosition, _: f64) -> Message {
        let (step, epoch) = (at.in_epoch + 1, at.epoch);
        let message = Message::from(format!("{what} not finite in step {step} of epoch {epoch}; try a lower "));
        message.field("lr").text(" or ").field("head_lr")
    }

    fn means(&self, sums: &EpochSums) -> EpochMeans {
        let mut means = sums.losses.iter().map(|sum| sum / sums.steps.max(1) as f64);
        let loss = means.next().unwrap_or_default();
        EpochMeans { loss, others: PARTS.into_iter().zip(means).collect(), acc1: None }
    }

    fn tally(&self, _: bool) -> Vec<Detection> {
        Vec::new()
    }

    fn evaluator<'a>(
        &'a self,
        params: &'a [Param],
        source: &'a BoxSource,
        stage: Stage,
        tally: &'a mut Vec<Detection>,
    ) -> Result<Evaluator<'a, DetectBatch>> {
        let images = self.dataset.part(source.split());
        let head = self.model.bind(params)?;
        let prompts = if stage == Stage::Head { None } else { Some(params) };
        Ok(Box::new(move |batch| {
            let boxes = self.model.detect(&head, prompts, batch.input(), batch.valid.as_deref())?;
            for ((&index, view), boxes) in batch.indices.iter().zip(&batch.views).zip(boxes) {
                tally.extend(boxes.iter().filter_map(|found| {
                    let rect = found.in_original(view)?;
                    let category = self.dataset.categories[found.class].id;
                    Some(Detection { image: images[index].id, category, rect, score: f64::from(found.score) })
                }));
            }
            Ok(())
        }))
    }

    fn conclude(&self, detections: Vec<Detection>, split: Split) -> Result<Detected> {
        let eval = coco::evaluate(self.dataset.part(split), &self.dataset.categories, &detections)?;
        Ok(Detected { detections, eval })
    }

    fn task_file(
        &self,
        values: &[Param],
        record: &EpochRecord,
        test: Option<Scores>,
        val: Option<&Detected>,
    ) -> Result<TaskFile> {
        let metrics = TaskMetrics { epoch: record.epoch, val: record.val.clone(), test };
        let confidence = val.and_then(|val| val.eval.best_confidence()).map(|(confidence, _)| confidence);
        let mut meta = self.task_meta(metrics, confidence)?;
        let params = if record.stage == Stage::Head {
            // Prompts that have not learned yet would only disturb.
            meta.parts = PartShapes::NONE;
            self.model.without_prompts(values)
        } else {
            values.to_vec()
        };
        Ok(TaskFile { meta, params })
    }

    fn results(&self, _: &Detected, _: &Detected) -> TaskResults {
        TaskResults::default()
    }

    fn write_files(&self, run: &FinishedRun<Detected>) -> Result<()> {
        files::write(self, run)
    }
}
