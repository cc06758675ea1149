//! The loop: epochs of steps, validation after each, the best kept, everything saved on the way.

use std::time::{Duration, Instant};

use super::{
    average::EpochAverage,
    checkpoint::TrainState,
    evaluate,
    observer::{Event, Observer},
    progress::{AVERAGE, EpochRecord, REWIND, RunProgress, Stage},
    run_writer::{NoWriter, StateWriter},
    shares::{Shares, join},
    task::{Averaging, BatchRequest, Scored, StagePlan, StepPosition, StepResult, TrainTask},
};
use vpt_base::{Error, Result, params::Param};
use vpt_data::{ImageCount, Split, epoch_order};
use vpt_model::metrics::Scores;
use vpt_model::optim::{self, Optimizer, schedule::LearningRateSchedule};

/// How a loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoopEnd {
    /// All epochs are done, or patience is out.
    Finished,
    /// The observer asked for it.
    Interrupted,
}

/// One stage of a run, or of a trial of a learning rate: everything that its loop needs and that does not change.
pub(crate) struct StageFit<'a, T: TrainTask> {
    pub(crate) task: &'a T,
    /// The stage and its number of epochs, which the schedule covers.
    pub(crate) plan: StagePlan,
    /// After which of them it is over: all of them, unless folds have chosen fewer.
    pub(crate) until: usize,
    pub(crate) train: &'a T::Source,
    pub(crate) val: &'a T::Source,
    /// Epochs of all stages.
    pub(crate) epochs: usize,
    /// Whether epochs pass without a look at the validation images, so that the last of them is the best.
    pub(crate) blind: bool,
}

/// Whether `stage` is over: so many epochs (`until`) are done, or so many (`patience`) since its best.
pub(crate) fn is_over(stage: Stage, until: usize, progress: &RunProgress, patience: Option<usize>) -> bool {
    let done = progress.of_stage(stage).count();
    let best = progress.best_of(stage).map_or(0, |best| best.epoch);
    let since = progress.of_stage(stage).filter(|record| record.epoch > best).count();
    done >= until || patience.is_some_and(|patience| since >= patience)
}

impl<T: TrainTask> StageFit<'_, T> {
    /// Trains from `state` to the end of the stage.
    ///
    /// # Errors
    /// An image cannot be read, a file not written, or the loss is no longer finite; `state` is then as it was after the
    /// last good step.
    pub(crate) fn run(
        &self,
        state: &mut TrainState,
        writer: &mut dyn StateWriter,
        observer: &mut dyn Observer,
    ) -> Result<LoopEnd> {
        let begins = self.done(state) == 0 && state.progress.sums.steps == 0;
        if begins && !self.begin(state, observer)? {
            return Ok(LoopEnd::Interrupted);
        }
        while !is_over(self.plan.stage, self.until, &state.progress, self.task.plan().config.patience) {
            if self.epoch(state, writer, observer)? == LoopEnd::Interrupted {
                writer.step(state, true)?;
                return Ok(LoopEnd::Interrupted);
            }
        }
        Ok(LoopEnd::Finished)
    }

    /// Takes steps, without a look at validation after an epoch, until `steps` of the stage are taken in all.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(crate) fn advance(&self, state: &mut TrainState, steps: u64, observer: &mut dyn Observer) -> Result<LoopEnd> {
        if self.done(state) == 0 && state.progress.sums.steps == 0 && !self.begin(state, observer)? {
            return Ok(LoopEnd::Interrupted);
        }
        let per_epoch = self.per_epoch();
        loop {
            let left = steps.saturating_sub(self.done(state) * per_epoch + state.progress.sums.steps);
            if left == 0 {
                return Ok(LoopEnd::Finished);
            }
            if self.steps(state, left, &mut NoWriter, observer)? == LoopEnd::Interrupted {
                return Ok(LoopEnd::Interrupted);
            }
            if state.progress.sums.steps == per_epoch {
                let average = self.average(state);
                let record = self.record(state, None, Duration::ZERO);
                state.copies.extend(average.map(|average| (AVERAGE, average)));
                state.progress.finish_epoch(record);
                state.copies.insert(self.plan.stage.copy_name(), state.current().to_vec());
            }
        }
    }

    /// Epochs of this stage that are done.
    fn done(&self, state: &TrainState) -> u64 {
        state.progress.of_stage(self.plan.stage).count() as u64
    }

    /// A stage behind another starts from its best values, or from the first without what matters least in these, with an
    /// optimiser that remembers nothing. `false` when the observer asked to stop.
    fn begin(&self, state: &mut TrainState, observer: &mut dyn Observer) -> Result<bool> {
        if let Some(best) = state.progress.best() {
            if let Some(values) = state.best_copy(best).map(<[Param]>::to_vec) {
                state.params = values;
            }
            if let (Stage::Pruned, Some(first)) = (self.plan.stage, state.copies.get(REWIND)) {
                let Some(pruned) = self.task.prune(&state.params, first, self.train, observer)? else {
                    return Ok(false);
                };
                state.params = pruned;
            }
            state.optimizer = Optimizer::new(self.task.plan().optimizer, &state.params);
        }
        if let Averaging::Steps { .. } = self.task.averaging() {
            state.copies.insert(AVERAGE, state.params.clone());
        }
        Ok(true)
    }

    /// Steps in an epoch: the last batch may be smaller.
    fn per_epoch(&self) -> u64 {
        self.train.images().div_ceil(self.task.plan().batch_size) as u64
    }

    /// The rest of the epoch that `state` is in, and the validation after it.
    fn epoch(
        &self,
        state: &mut TrainState,
        writer: &mut dyn StateWriter,
        observer: &mut dyn Observer,
    ) -> Result<LoopEnd> {
        let (task, stage) = (self.task, self.plan.stage);
        if self.steps(state, u64::MAX, writer, observer)? == LoopEnd::Interrupted {
            return Ok(LoopEnd::Interrupted);
        }
        self.agree_on(&state.params)?;
        let begun = Instant::now();
        // Kept only with the epoch's record: an epoch whose validation is cut off is averaged in again.
        let average = self.average(state);
        let values = average.as_deref().unwrap_or(state.current());
        let mut val = None;
        if !self.blind {
            let Some(found) = evaluate(task, values, stage, (Split::Val, self.val), false, observer)? else {
                return Ok(LoopEnd::Interrupted);
            };
            val = (task.data().images[Split::Val as usize] > 0).then(|| found.scores());
        }
        let record = self.record(state, val, begun.elapsed());
        state.copies.extend(average.map(|average| (AVERAGE, average)));
        let best = state.progress.finish_epoch(record);
        if best {
            state.copies.insert(stage.copy_name(), state.current().to_vec());
        }
        if let Some(record) = state.progress.history.last() {
            observer.event(&Event::Epoch { record, of: self.epochs, best });
        }
        writer.epoch(state)?;
        Ok(LoopEnd::Finished)
    }

    /// Takes up to `most` steps of the epoch that `state` is in.
    fn steps(
        &self,
        state: &mut TrainState,
        most: u64,
        writer: &mut dyn StateWriter,
        observer: &mut dyn Observer,
    ) -> Result<LoopEnd> {
        let Self { task, train, .. } = *self;
        let (stage, images, plan) = (self.plan.stage, train.images(), task.plan());
        let epoch = state.progress.history.len() + 1;
        if state.progress.sums.steps == 0 {
            task.begin_epoch(&mut state.params);
        }
        let per_epoch = self.per_epoch();
        let first = self.done(state) * per_epoch;
        let order = epoch_order(images, plan.config.seed, epoch as u64);
        let done = (state.progress.sums.steps as usize).saturating_mul(plan.batch_size).min(order.len());
        let most = usize::try_from(most).unwrap_or(usize::MAX).saturating_mul(plan.batch_size);
        let wanted = &order[done..done.saturating_add(most).min(order.len())];
        let mut lap = Instant::now();
        let schedule = task.schedule(self.plan.epochs);
        let shares = Shares::new(plan, task.group())?;
        let own = shares.own_images(wanted);
        let mut batches = task.batches(train, BatchRequest { stage, order: &own, epoch, size: shares.size })?;
        let mut waited = Duration::ZERO;
        for images in wanted.chunks(plan.batch_size).map(<[usize]>::len) {
            let in_epoch = state.progress.sums.steps;
            let at = StepPosition { stage, epoch, in_epoch, in_stage: first + in_epoch };
            let mut share = || {
                let batch = timed(&mut waited, || batches.next());
                let batch = batch.ok_or_else(|| Error::invalid("batches", "fewer than an epoch has"))??;
                Ok((batch.images(), task.step(&state.params, train, &batch, at)?))
            };
            let (step, found) = if shares.are_one() {
                let (found, step) = share()?;
                (step, found)
            } else {
                join(task.group(), (0..shares.of_batch(images)).map(|_| share()), T::LOSSES_ARE_MEANS)?
            };
            self.update(state, step, found, &schedule, at)?;
            state.progress.epoch_seconds += restart(&mut lap).as_secs_f64();
            let means = task.means(&state.progress.sums);
            let (step, loss, acc1) = (state.progress.sums.steps, means.loss, means.acc1);
            observer.event(&Event::Step { epoch, step, steps: per_epoch, loss, acc1 });
            if observer.stop() {
                return Ok(LoopEnd::Interrupted);
            }
            writer.step(state, false)?;
        }
        let seconds = state.progress.epoch_seconds;
        tracing::info!("epoch {epoch}: waited {:.2} s of {seconds:.2} s for images", waited.as_secs_f64());
        Ok(LoopEnd::Finished)
    }

    /// The average over the epochs with the one that is over, where that is what is kept.
    fn average(&self, state: &TrainState) -> Option<Vec<Param>> {
        let epoch = state.progress.history.len() + 1;
        (self.task.averaging() == Averaging::Epochs).then(|| {
            let before = state.copies.get(AVERAGE).cloned();
            EpochAverage { epochs: self.plan.epochs }.after(epoch, before, &state.params)
        })
    }

    /// The record of the epoch that is over, with what it found in the validation images and how long that took.
    fn record(&self, state: &TrainState, val: Option<Scores>, val_time: Duration) -> EpochRecord {
        let (task, epoch, per_epoch) = (self.task, state.progress.history.len() + 1, self.per_epoch());
        let means = task.means(&state.progress.sums);
        let last = self.done(state) * per_epoch + per_epoch - 1;
        EpochRecord {
            epoch,
            stage: self.plan.stage,
            step: epoch as u64 * per_epoch,
            lr: task.recorded_lr(state.progress.lr) * task.schedule(self.plan.epochs).factor(last),
            train_loss: means.loss,
            train: means.others.into_iter().map(|(name, mean)| (name.to_owned(), mean)).collect(),
            val,
            train_seconds: state.progress.epoch_seconds,
            val_seconds: val_time.as_secs_f64(),
        }
    }

    /// All ranks have changed `params` in the same way; if not, their processors or libraries differ, and what they went on to would be
    /// nobody's.
    fn agree_on(&self, params: &[Param]) -> Result<()> {
        let group = self.task.group();
        if group.is_alone() {
            return Ok(());
        }
        let mut hasher = blake3::Hasher::new();
        params.iter().flat_map(|param| &param.values).for_each(|value| {
            hasher.update(&value.to_le_bytes());
        });
        group.agree("hash of the learned values", hasher.finalize().to_hex().to_string())
    }

    /// One update of the learned values: clipping, optimiser, moving average.
    fn update(
        &self,
        state: &mut TrainState,
        mut step: StepResult,
        images: usize,
        schedule: &LearningRateSchedule,
        at: StepPosition,
    ) -> Result<()> {
        let clip = self.task.plan().config.clip_norm.unwrap_or(f64::INFINITY);
        let norm = optim::clip_global_norm(&mut step.gradients, clip);
        let loss = step.losses.first().copied().unwrap_or_default();
        if !(loss.is_finite() && norm.is_finite()) {
            let what = if loss.is_finite() { "gradient" } else { "loss" };
            return Err(Error::Diverged { message: self.task.diverged(what, at, state.progress.lr) });
        }
        let rates = self.task.rates(state.progress.lr);
        state.optimizer.update(&mut state.params, &step.gradients, &rates, schedule.factor(at.in_stage));
        self.task.updated(&mut state.params, &step);
        if let Averaging::Steps { decay } = self.task.averaging() {
            // At first the average follows faster: it must not remember the beginning for long.
            let t = at.in_stage as f64;
            let decay = decay.min((1. + t) / (10. + t)) as f32;
            for (average, param) in state.copies.entry(AVERAGE).or_default().iter_mut().zip(&state.params) {
                average.values.iter_mut().zip(&param.values).for_each(|(a, v)| *a += (1. - decay) * (v - *a));
            }
        }
        state.progress.sums.add(&step.losses, step.correct, images);
        Ok(())
    }
}

/// Calls `work`, whose time is added to `total`.
fn timed<T>(total: &mut Duration, work: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = work();
    *total += begin.elapsed();
    result
}

fn restart(lap: &mut Instant) -> Duration {
    let now = Instant::now();
    let passed = now - *lap;
    *lap = now;
    passed
}
