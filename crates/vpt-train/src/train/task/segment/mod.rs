//! Segmentation, in two stages as detection: the head alone on features that are computed once, then prompts and head.
//!
//! A moving average of the learned values is evaluated and kept. Evaluation is over whole images at their own resolution, put
//! together of windows. `source` makes batches, `setup` opens everything.

mod files;
mod setup;
mod source;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

pub(crate) use self::setup::SegmentTraining;
use self::source::{MaskPart, SegmentBatch};
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
use vpt_data::{Split, masks::MaskImage};
use vpt_model::{
    metrics::{PixelTally, Scores, SegmentMetrics},
    model::{
        segment::SegmentStep,
        task_file::{TaskFile, TaskMetrics},
    },
    optim::{
        Rates,
        schedule::{LearningRateSchedule, Schedule},
    },
    prompt::{PartShapes, part::Draw},
};

/// Counts over the images of a part.
pub(crate) struct PartTally {
    pixels: PixelTally,
    /// Positions of images, and the share of their pixels that is told rightly; of those that have pixels of a class.
    images: Vec<(usize, f64)>,
}

/// What was found in the images of a part.
pub(crate) struct PixelsFound {
    tally: PartTally,
    metrics: SegmentMetrics,
}

impl Scored for PixelsFound {
    fn scores(&self) -> Scores {
        Scores::Segment(self.metrics.clone())
    }
}

impl TrainTask for SegmentTraining {
    const EVAL_BATCH: usize = source::EVAL_BATCH;
    type Source = MaskPart;
    type Batch = SegmentBatch;
    type Tally = PartTally;
    type Evaluation = PixelsFound;

    fn open(config: &RunConfig, given: Option<OpenData>, observer: &mut dyn Observer) -> Result<Option<Self>> {
        Self::new(config, given, observer).map(Some)
    }

    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn backbone(&self) -> &Backbone {
        self.model.reader().backbone()
    }

    fn data(&self) -> DataSummary<'_> {
        DataSummary {
            name: &self.dataset.name,
            classes: Cow::Borrowed(&self.dataset.classes.names),
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
        let head = self.segment.head_epochs;
        let prompts = self.plan.epochs - head;
        let stages =
            [(Stage::Head, head), (Stage::Prompts, prompts)].map(|(stage, epochs)| StagePlan { stage, epochs });
        stages.into_iter().filter(|stage| stage.epochs > 0).collect()
    }

    fn averaging(&self) -> Averaging {
        Averaging::Steps { decay: self.segment.ema }
    }

    fn schedule(&self, epochs: usize) -> LearningRateSchedule {
        let total = (epochs * self.dataset.train.len().div_ceil(self.plan.batch_size)) as u64;
        LearningRateSchedule::Steps(Schedule { total, warmup: (self.segment.warmup * total as f64).round() as u64 })
    }

    fn rates(&self, lr: f64) -> Rates {
        self.plan.detection_rates(lr)
    }

    fn recorded_lr(&self, lr: f64) -> f64 {
        self.rates(lr).head.lr
    }

    fn initial(&mut self, fresh: bool, observer: &mut dyn Observer) -> Result<Option<Vec<Param>>> {
        let mut params = self.model.init(self.plan.config.seed)?;
        Ok(source::begin(self, &mut params, fresh, observer)?.then_some(params))
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
    ) -> Result<Option<MaskPart>> {
        MaskPart::new(self, split, stage, folder.path(), observer)
    }

    fn final_source(&self, split: Split, _: &mut dyn Observer) -> Result<Option<MaskPart>> {
        Ok(Some(MaskPart::of_images(self, split)))
    }

    fn batches<'a>(
        &'a self,
        source: &'a MaskPart,
        stage: Stage,
        order: &'a [usize],
        epoch: usize,
        size: usize,
    ) -> Result<Batches<'a, SegmentBatch>> {
        source.batches(self, stage, order, epoch, size)
    }

    fn step(&self, params: &[Param], _: &MaskPart, batch: &SegmentBatch, at: StepPosition) -> Result<StepResult> {
        let Self { plan, model, .. } = self;
        let (seed, epoch, step) = (plan.config.seed, at.epoch, at.in_stage);
        let dropout = plan.dropout().first().copied().filter(|_| at.stage == Stage::Prompts).unwrap_or(0.);
        let draw = Draw { seed, epoch, step, indices: &batch.indices, dropout, part: 0 };
        let step = SegmentStep {
            input: batch.input(),
            labels: &batch.labels,
            drawn: model.reader().draw(&draw),
            micro_batch: plan.config.micro_batch,
        };
        let (loss, gradients) = model.step(params, &step)?;
        let cells = loss.cells.max(1) as f64;
        let losses = vec![loss.sum / cells, loss.right as f64 / cells];
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
        EpochMeans { loss, others: means.map(|right| ("train_pixel_acc", right)).collect(), acc1: None }
    }

    fn tally(&self, _: bool) -> PartTally {
        PartTally { pixels: PixelTally::new(self.dataset.classes.names.len()), images: Vec::new() }
    }

    fn evaluator<'a>(
        &'a self,
        params: &'a [Param],
        source: &'a MaskPart,
        stage: Stage,
        tally: &'a mut PartTally,
    ) -> Result<Evaluator<'a, SegmentBatch>> {
        let part = self.dataset.part(source.split());
        let head = self.model.bind(params)?;
        let prompts = if stage == Stage::Head { None } else { Some(params) };
        Ok(Box::new(move |batch| {
            let images: Vec<&MaskImage> = batch.indices.iter().map(|&index| &part[index]).collect();
            let found = self.model.masks(&head, prompts, batch.input(), &batch.windows, &images, &self.input)?;
            for ((&index, image), found) in batch.indices.iter().zip(images).zip(found) {
                let mut own = PixelTally::new(self.dataset.classes.names.len());
                own.add(&image.mask()?.classes, &found.classes)?;
                tally.images.extend(own.right().map(|share| (index, share)));
                tally.pixels.merge(&own);
            }
            Ok(())
        }))
    }

    fn conclude(&self, tally: PartTally, _: Split) -> Result<PixelsFound> {
        let metrics = tally.pixels.metrics(&self.dataset.classes.names);
        Ok(PixelsFound { tally, metrics })
    }

    fn task_file(
        &self,
        values: &[Param],
        record: &EpochRecord,
        test: Option<Scores>,
        _: Option<&PixelsFound>,
    ) -> Result<TaskFile> {
        let metrics = TaskMetrics { epoch: record.epoch, val: record.val.clone(), test };
        let mut meta = self.task_meta(metrics)?;
        let params = if record.stage == Stage::Head {
            // Prompts that have not learned yet would only disturb.
            meta.parts = PartShapes::NONE;
            self.model.reader().without_prompts(values)
        } else {
            values.to_vec()
        };
        Ok(TaskFile { meta, params })
    }

    fn results(&self, _: &PixelsFound, _: &PixelsFound) -> TaskResults {
        TaskResults::default()
    }

    fn write_files(&self, run: &FinishedRun<PixelsFound>) -> Result<()> {
        files::write(self, run)
    }
}
