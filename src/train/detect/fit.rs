//! The loop of a detector: epochs of steps in two stages, validation by AP after each, the best of each stage kept.

use std::time::Instant;

use super::{
    progress::{AVERAGE, DetectProgress, DetectRecord, HEAD, Stage},
    setup::Setup,
    source::{Batch, EVAL_BATCH, Source},
};
use crate::{
    Error, Message, Result,
    data::epoch_order,
    head::detect::LossSums,
    metrics::coco::{self, CocoEval, Detection},
    model::detect::DetectStep,
    optim::{self, Optimizer, schedule::Schedule},
    params::Param,
    prompt::part::Draw,
    train::{
        checkpoint::{BEST, State},
        keeper::Keeper,
        observer::{Event, Observer},
    },
};

/// A run's state.
pub(super) type DetectState = State<DetectProgress>;

/// One stage of a run.
pub(super) struct Fit<'a> {
    pub(super) setup: &'a Setup,
    pub(super) stage: Stage,
    pub(super) train: &'a Source,
    pub(super) val: &'a Source,
}

impl Fit<'_> {
    /// The first epoch of the stage, and the one behind its last, counted from 1.
    fn epochs(&self) -> (usize, usize) {
        let (head, all) = (self.setup.detect.head_epochs, self.setup.plan.epochs);
        match self.stage {
            Stage::Head => (1, head + 1),
            Stage::Prompts => (head + 1, all + 1),
        }
    }

    fn steps_per_epoch(&self) -> u64 {
        self.setup.dataset.train.len().div_ceil(self.setup.plan.batch_size) as u64
    }

    /// Trains from `state` to the end of the stage; false if the observer asked to stop.
    ///
    /// # Errors
    /// An image cannot be read, a file not written, or the loss is no longer finite; `state` is then as it was after the last
    /// good step.
    pub(super) fn run(
        &self,
        state: &mut DetectState,
        keeper: &mut dyn Keeper<DetectProgress>,
        observer: &mut dyn Observer,
    ) -> Result<bool> {
        let (begin, end) = self.epochs();
        if state.progress.history.len() + 1 == begin && state.progress.epoch_steps == 0 {
            self.begin(state);
        }
        while state.progress.history.len() + 1 < end {
            if !self.epoch(state, keeper, observer)? {
                keeper.step(state, true)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A stage starts from the best averages of the one before, with an optimiser that remembers nothing.
    fn begin(&self, state: &mut DetectState) {
        if let Some(best) = state.copies.get(HEAD) {
            state.params.clone_from(best);
        }
        state.copies.insert(AVERAGE, state.params.clone());
        state.optimizer = Optimizer::new(self.setup.plan.optimizer, &state.params);
    }

    /// The rest of the epoch that `state` is in, and the validation after it; false if the observer asked to stop.
    fn epoch(
        &self,
        state: &mut DetectState,
        keeper: &mut dyn Keeper<DetectProgress>,
        observer: &mut dyn Observer,
    ) -> Result<bool> {
        let setup = self.setup;
        let plan = &setup.plan;
        let epoch = state.progress.history.len() + 1;
        let steps = self.steps_per_epoch();
        let order = epoch_order(setup.dataset.train.len(), plan.config.seed, epoch as u64);
        let done = (state.progress.epoch_steps as usize).saturating_mul(plan.batch_size).min(order.len());
        let mut lap = Instant::now();
        for batch in self.train.batches(setup, self.stage, &order[done..], epoch, plan.batch_size)? {
            let sums = self.step(state, &batch?, epoch)?;
            state.progress.add(&sums);
            state.progress.epoch_seconds += lap.elapsed().as_secs_f64();
            lap = Instant::now();
            let (step, loss) = (state.progress.epoch_steps, state.progress.losses()[0]);
            observer.event(&Event::Step { epoch, step, steps, loss, acc1: None });
            if observer.stop() {
                return Ok(false);
            }
            keeper.step(state, false)?;
        }
        let average = state.copies.get(AVERAGE).unwrap_or(&state.params);
        let Some(found) = detections(setup, average, self.val, self.stage, observer)? else { return Ok(false) };
        let val = evaluate(setup, self.val, &found)?.metrics;
        let [train_loss, class_loss, giou_loss, l1_loss, quality_loss] = state.progress.losses();
        let stage_step = (epoch - self.epochs().0) as u64 * steps + steps - 1;
        let record = DetectRecord {
            epoch,
            stage: self.stage,
            step: epoch as u64 * steps,
            lr: plan.detection_rates().head.lr * self.schedule().factor(stage_step),
            train_loss,
            class_loss,
            giou_loss,
            l1_loss,
            quality_loss,
            val,
            train_seconds: state.progress.epoch_seconds,
            val_seconds: lap.elapsed().as_secs_f64(),
        };
        let average = average.clone();
        if state.progress.finish_epoch(record) {
            state.copies.insert(if self.stage == Stage::Head { HEAD } else { BEST }, average);
        }
        if let Some(record) = state.progress.history.last() {
            let best = state.progress.best_head == Some(epoch) || state.progress.best_prompts == Some(epoch);
            observer.event(&Event::Detected { record, of: plan.epochs, best });
        }
        keeper.epoch(state)?;
        Ok(true)
    }

    fn schedule(&self) -> Schedule {
        let (begin, end) = self.epochs();
        let total = (end - begin) as u64 * self.steps_per_epoch();
        Schedule { total, warmup: (self.setup.detect.warmup * total as f64).round() as u64 }
    }

    /// One step: gradients, clipping, update, moving average.
    fn step(&self, state: &mut DetectState, batch: &Batch, epoch: usize) -> Result<LossSums> {
        let Setup { plan, detect, model, .. } = self.setup;
        let stage_step = (epoch - self.epochs().0) as u64 * self.steps_per_epoch() + state.progress.epoch_steps;
        let dropout = plan.dropout().first().copied().filter(|_| self.stage == Stage::Prompts).unwrap_or(0.);
        let draw = Draw { seed: plan.config.seed, epoch, step: stage_step, indices: &batch.indices, dropout, part: 0 };
        let step = DetectStep {
            input: batch.input(),
            truths: &batch.truths,
            valid: batch.valid.as_deref(),
            drawn: model.draw(&draw),
            micro_batch: plan.config.micro_batch,
        };
        let (sums, mut gradients) = model.step(&state.params, &step)?;
        let norm = optim::clip_global_norm(&mut gradients, plan.config.clip_norm.unwrap_or(f64::INFINITY));
        let loss = sums.total(sums.positives);
        if !(loss.is_finite() && norm.is_finite()) {
            let what = if loss.is_finite() { "gradient" } else { "loss" };
            let step = state.progress.epoch_steps + 1;
            let message = Message::from(format!("{what} not finite in step {step} of epoch {epoch}; try a lower "));
            return Err(Error::Diverged { message: message.field("lr").text(" or ").field("head_lr") });
        }
        let rates = plan.detection_rates();
        state.optimizer.update(&mut state.params, &gradients, &rates, self.schedule().factor(stage_step));
        // At first the average follows faster: it must not remember the beginning for long.
        let t = stage_step as f64;
        let decay = detect.ema.min((1. + t) / (10. + t)) as f32;
        for (average, param) in state.copies.entry(AVERAGE).or_default().iter_mut().zip(&state.params) {
            average.values.iter_mut().zip(&param.values).for_each(|(a, v)| *a += (1. - decay) * (v - *a));
        }
        Ok(sums)
    }
}

/// What is found in the images of `source`, best first in each image; `None` when the observer asked to stop.
pub(super) fn detections(
    setup: &Setup,
    params: &[Param],
    source: &Source,
    stage: Stage,
    observer: &mut dyn Observer,
) -> Result<Option<Vec<Detection>>> {
    let images = setup.dataset.part(source.split);
    let head = setup.model.bind(params)?;
    let order: Vec<usize> = (0..images.len()).collect();
    let mut found = Vec::new();
    let mut done = 0;
    for batch in source.batches(setup, stage, &order, 0, EVAL_BATCH)? {
        let batch = batch?;
        let prompts = if stage == Stage::Head { None } else { Some(params) };
        let boxes = setup.model.detect(&head, prompts, batch.input(), batch.valid.as_deref())?;
        for ((&index, view), boxes) in batch.indices.iter().zip(&batch.views).zip(boxes) {
            found.extend(boxes.iter().filter_map(|found| {
                let rect = found.in_original(view)?;
                let category = setup.dataset.categories[found.class].id;
                Some(Detection { image: images[index].id, category, rect, score: f64::from(found.score) })
            }));
        }
        done += batch.indices.len();
        observer.event(&Event::Evaluating { split: source.split, done, total: images.len() });
        if observer.stop() {
            return Ok(None);
        }
    }
    Ok(Some(found))
}

/// How good `found` is in the images of `source`.
pub(super) fn evaluate(setup: &Setup, source: &Source, found: &[Detection]) -> Result<CocoEval> {
    coco::evaluate(setup.dataset.part(source.split), &setup.dataset.categories, found)
}
