//! The loop: epochs of steps, validation after each, the best kept, everything saved on the way.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    average::Average,
    checkpoint::{AVERAGE, BEST, EpochRecord, Progress, State},
    features::clap::Penalty,
    keeper::Keeper,
    observer::{Event, Observer},
    source::{Batch, Source},
};
use crate::{
    Error, Message, Result,
    config::{Plan, Select},
    data::{LabelSets, Split, epoch_order},
    metrics::{AnyTally, calibration::Logits},
    model::{Frozen, Model, StepInput, StepOutput},
    params::Param,
    prompt::part::Draw,
};
use crate::{
    loss::Loss,
    optim::{self, schedule::Course},
};

/// How a loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// All epochs are done, or patience is out.
    Finished,
    /// The observer asked for it.
    Interrupted,
}

/// Everything a loop needs that does not change.
pub(crate) struct Fit<'a> {
    pub(crate) model: &'a Model,
    pub(crate) plan: &'a Plan,
    pub(crate) train: &'a Source,
    pub(crate) val: &'a Source,
    /// What labels stand for where they are not classes.
    pub(crate) sets: Option<&'a Arc<LabelSets>>,
    /// What is minimised.
    pub(crate) loss: &'a Loss,
    /// What holds the head's weights, where the method has it.
    pub(crate) penalty: Option<&'a Penalty>,
    /// What `promptsrc` ties texts and images to, these in the order of `train`; its values are averaged over the epochs.
    pub(crate) frozen: Option<Frozen<'a>>,
    /// Passes over the training images; the schedule covers exactly these.
    pub(crate) epochs: usize,
}

impl Fit<'_> {
    /// Trains from `state` to the end.
    ///
    /// # Errors
    /// An image cannot be read, a file not written, or the loss is no longer finite; `state` is then as it was after the
    /// last good step.
    pub(crate) fn run(
        &self,
        state: &mut State,
        keeper: &mut dyn Keeper<Progress>,
        observer: &mut dyn Observer,
    ) -> Result<Ended> {
        while state.progress.history.len() < self.epochs && !self.out_of_patience(state) {
            if self.epoch(state, keeper, observer)? == Ended::Interrupted {
                keeper.step(state, true)?;
                return Ok(Ended::Interrupted);
            }
        }
        Ok(Ended::Finished)
    }

    fn out_of_patience(&self, state: &State) -> bool {
        let since = state.progress.history.len() - state.progress.best_epoch.unwrap_or(0);
        self.plan.config.patience.is_some_and(|patience| since >= patience)
    }

    /// The rest of the epoch that `state` is in, and the validation after it.
    fn epoch(
        &self,
        state: &mut State,
        keeper: &mut dyn Keeper<Progress>,
        observer: &mut dyn Observer,
    ) -> Result<Ended> {
        let epoch = state.progress.history.len() + 1;
        if state.progress.epoch_steps == 0 {
            // The logits of the epoch before have told it.
            self.model.renew_map(&mut state.params, false);
        }
        let per_epoch = self.train.len().div_ceil(self.plan.batch_size) as u64;
        let order = epoch_order(self.train.len(), self.plan.config.seed, epoch as u64);
        let done = (state.progress.epoch_steps as usize).saturating_mul(self.plan.batch_size).min(order.len());
        let mut lap = Instant::now();
        let schedule = self.schedule();
        let mut batches = self.train.batches(&order[done..], epoch, self.plan.batch_size)?;
        let mut waited = Duration::ZERO;
        while let Some(batch) = timed(&mut waited, || batches.next()) {
            let batch = batch?;
            let step = (epoch as u64 - 1) * per_epoch + state.progress.epoch_steps;
            let factor = schedule.factor(step);
            let output = self.gradients(state, &batch, epoch, step)?;
            self.update(state, output, &batch, factor, step)?;
            state.progress.epoch_seconds += restart(&mut lap).as_secs_f64();
            let progress = &state.progress;
            let images = progress.epoch_images.max(1) as f64;
            observer.event(&Event::Step {
                epoch,
                step: progress.epoch_steps,
                steps: per_epoch,
                loss: progress.epoch_loss / images,
                acc1: self.sets.is_none().then_some(progress.epoch_correct as f64 / images),
            });
            if observer.stop() {
                return Ok(Ended::Interrupted);
            }
            keeper.step(state, false)?;
        }
        let seconds = state.progress.epoch_seconds;
        tracing::info!("epoch {epoch}: waited {:.2} s of {seconds:.2} s for images", waited.as_secs_f64());
        // Kept only with the epoch's record: an epoch whose validation is cut off is averaged in again.
        let average = self.frozen.map(|_| {
            let before = state.copies.get(AVERAGE).cloned();
            Average { epochs: self.epochs }.after(epoch, before, &state.params)
        });
        let values = average.as_ref().unwrap_or(&state.params);
        let Some(tally) = evaluate(self.model, values, self.val, self.sets, Split::Val, None, observer)? else {
            return Ok(Ended::Interrupted);
        };
        let last_step = epoch as u64 * per_epoch;
        let progress = &mut state.progress;
        let images = progress.epoch_images.max(1) as f64;
        let right = progress.epoch_correct as f64 / images;
        let record = EpochRecord {
            epoch,
            step: last_step,
            lr: progress.lr * schedule.factor(last_step - 1),
            train_loss: progress.epoch_loss / images,
            train_acc1: self.sets.is_none().then_some(right),
            train_exact_match: self.sets.is_some().then_some(right),
            val: tally.scores(),
            train_seconds: progress.epoch_seconds,
            val_seconds: lap.elapsed().as_secs_f64(),
        };
        let best = progress.best().is_none_or(|best| record.better_than(best));
        state.copies.extend(average.map(|average| (AVERAGE, average)));
        observer.event(&Event::Epoch { record: &record, of: self.epochs, best });
        progress.history.push(record);
        (progress.epoch_steps, progress.epoch_images, progress.epoch_correct) = (0, 0, 0);
        (progress.epoch_loss, progress.epoch_seconds) = (0., 0.);
        if best {
            progress.best_epoch = Some(epoch);
            state.copies.insert(BEST, state.current().to_vec());
        }
        keeper.epoch(state)?;
        Ok(Ended::Finished)
    }

    fn schedule(&self) -> Course {
        self.plan.course(self.epochs, self.train.len().div_ceil(self.plan.batch_size))
    }

    fn gradients(&self, state: &State, batch: &Batch, epoch: usize, step: u64) -> Result<StepOutput> {
        let (config, loss) = (&self.plan.config, self.loss);
        let draw = Draw { seed: config.seed, epoch, step, indices: &batch.indices, dropout: 0., part: 0 };
        let drawn = self.model.draw(&draw, &self.plan.dropout());
        if self.train.holds_features() {
            let (values, labels) = (&batch.values, &batch.labels);
            let mut output = self.model.head_step(&state.params, &drawn, values, labels, loss)?;
            if let Some(penalty) = self.penalty {
                penalty.add_to(&mut output, &state.params, loss.weight(&batch.labels))?;
            }
            return Ok(output);
        }
        let features = self.frozen.and_then(|frozen| frozen.features).map(|all| {
            let width = all.len() / self.train.len();
            batch.indices.iter().flat_map(|&i| &all[i * width..(i + 1) * width]).copied().collect::<Vec<f32>>()
        });
        let input = StepInput {
            images: &batch.values,
            blocks: self.train.blocks(),
            labels: &batch.labels,
            drawn: &drawn,
            loss,
            frozen: self.frozen.map(|frozen| Frozen { features: features.as_deref(), ..frozen }),
            micro_batch: config.micro_batch,
        };
        self.model.step(&state.params, &input)
    }

    fn update(&self, state: &mut State, mut output: StepOutput, batch: &Batch, factor: f64, step: u64) -> Result<()> {
        let clip = self.plan.config.clip_norm.unwrap_or(f64::INFINITY);
        let norm = optim::clip_global_norm(&mut output.gradients, clip);
        if !(output.loss.is_finite() && norm.is_finite()) {
            let (epoch, step) = (state.progress.history.len() + 1, step + 1);
            let what = if output.loss.is_finite() { "gradient" } else { "loss" };
            let lr = state.progress.lr;
            let at = format!("{what} not finite in step {step} (epoch {epoch}) at a learning rate of {lr}");
            return Err(Error::Diverged { message: Message::from(at).text("; try a lower ").field("lr") });
        }
        let rates = self.plan.rates(state.progress.lr);
        state.optimizer.update(&mut state.params, &output.gradients, &rates, factor);
        self.model.add_votes(&mut state.params, &output.votes);
        state.progress.epoch_steps += 1;
        state.progress.epoch_loss += output.loss;
        state.progress.epoch_correct += output.correct as u64;
        state.progress.epoch_images += batch.labels.len() as u64;
        Ok(())
    }
}

impl State {
    /// The learned values that `select` asks for, and the record of their epoch.
    pub(crate) fn selected(&self, select: Select) -> Option<(&[Param], &EpochRecord)> {
        match select {
            Select::Best => Some((self.copies.get(BEST)?, self.progress.best()?)),
            Select::Last => Some((self.current(), self.progress.history.last()?)),
        }
    }

    /// The values that are evaluated and kept: the average over the epochs, where there is one.
    pub(crate) fn current(&self) -> &[Param] {
        self.copies.get(AVERAGE).unwrap_or(&self.params)
    }
}

/// Counts right and wrong over `source`, and keeps the logits in `kept` if asked to; `None` when the observer asked to stop.
pub(crate) fn evaluate(
    model: &Model,
    params: &[Param],
    source: &Source,
    sets: Option<&Arc<LabelSets>>,
    split: Split,
    mut kept: Option<&mut Logits>,
    observer: &mut dyn Observer,
) -> Result<Option<AnyTally>> {
    let mut tally = AnyTally::new(model.head().classes, sets);
    let classifier = model.classifier(params)?;
    let order: Vec<usize> = (0..source.len()).collect();
    for batch in source.batches(&order, 0, EVAL_BATCH)? {
        let batch = batch?;
        let logits = if source.holds_features() {
            classifier.logits(&batch.values)?
        } else {
            classifier.logits(&model.features_behind(params, &batch.values, source.blocks())?)?
        };
        tally.add(&logits, &batch.labels)?;
        if let Some(kept) = &mut kept {
            kept.add(&logits, &batch.labels)?;
        }
        observer.event(&Event::Evaluating { split, done: tally.images(), total: source.len() });
        if observer.stop() {
            return Ok(None);
        }
    }
    Ok(Some(tally))
}

/// Images that are classified at a time.
pub(crate) const EVAL_BATCH: usize = 64;

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
