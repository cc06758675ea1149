//! Keeps a run's state in its folder while it goes on: a checkpoint every now and then, a line of metrics an epoch, and a task
//! file that can be used already, should the run never be finished.

use std::time::{Duration, Instant};

use super::{
    checkpoint::TrainState,
    run_folder::{self, RunFolder},
};
use vpt_base::Result;
use vpt_energy::{Energy, EnergyMeter};

/// How long steps may go unsaved within an epoch.
const SAVE_STEPS: Duration = Duration::from_secs(60);
/// How long epochs may go unsaved: short epochs would spend more time saving than learning.
const SAVE_EPOCHS: Duration = Duration::from_secs(2);
/// Saving the weights of a whole tower takes seconds: no more than one part of the time in so many.
const SAVE_SHARE: u32 = 10;

/// Keeps a run's state on disk while it goes on.
pub(crate) trait StateWriter {
    /// An epoch is over.
    fn epoch(&mut self, state: &mut TrainState) -> Result<()>;

    /// A step was taken: saves the state if that has not been done for long, or if `now`.
    fn step(&mut self, state: &mut TrainState, now: bool) -> Result<()>;
}

/// Keeps nothing: for trials.
pub(crate) struct NoWriter;

impl StateWriter for NoWriter {
    fn epoch(&mut self, _: &mut TrainState) -> Result<()> {
        Ok(())
    }

    fn step(&mut self, _: &mut TrainState, _: bool) -> Result<()> {
        Ok(())
    }
}

/// Writes the task file of the best epoch so far.
type WriteBest<'a> = &'a dyn Fn(&TrainState) -> Result<()>;

/// Keeps a run's state in its folder.
pub(super) struct RunWriter<'a> {
    folder: &'a RunFolder,
    /// Stands for the run in its checkpoints.
    fingerprint: &'a str,
    /// Measures what this process takes for the run.
    meter: &'a EnergyMeter,
    /// What the processes before this one took.
    before: Option<Energy>,
    saved: Instant,
    /// How long that took.
    saving: Duration,
    write_best: WriteBest<'a>,
    /// The epoch whose task file is written.
    best_saved: Option<usize>,
}

impl<'a> RunWriter<'a> {
    /// Goes on keeping `state`; `write_best` is called when there is a new best epoch.
    pub(super) fn new(
        folder: &'a RunFolder,
        fingerprint: &'a str,
        meter: &'a EnergyMeter,
        state: &TrainState,
        write_best: WriteBest<'a>,
    ) -> Self {
        let before = state.progress.cost();
        let (saved, saving) = (Instant::now(), Duration::ZERO);
        Self { folder, fingerprint, meter, before, saved, saving, write_best, best_saved: None }
    }

    /// What the run took so far, wall time among it.
    pub(super) fn cost(&self) -> Energy {
        let now = self.meter.energy();
        match &self.before {
            Some(before) => {
                let mut sum = before.clone();
                sum.add(&now);
                sum
            }
            None => now,
        }
    }

    /// Saves the state now, where this process writes the run.
    pub(super) fn save(&mut self, state: &mut TrainState) -> Result<()> {
        if !self.folder.is_here() {
            return Ok(());
        }
        let begun = Instant::now();
        let cost = self.cost();
        state.progress.wall_s = cost.wall_seconds;
        state.progress.energy = Some(cost);
        state.save(&self.folder.file(run_folder::CHECKPOINT), self.fingerprint)?;
        let best = state.progress.best().map(|record| record.epoch);
        if best.is_some() && self.best_saved != best {
            (self.write_best)(state)?;
            self.best_saved = best;
        }
        self.saved = Instant::now();
        self.saving = self.saved - begun;
        Ok(())
    }

    /// Whether it is time to save again, where that should not be done more often than every `least`.
    fn is_due(&self, least: Duration) -> bool {
        self.saved.elapsed() >= least.max(self.saving * SAVE_SHARE)
    }
}

impl StateWriter for RunWriter<'_> {
    fn epoch(&mut self, state: &mut TrainState) -> Result<()> {
        if let Some(record) = state.progress.history.last() {
            self.folder.append_line(run_folder::METRICS, record)?;
        }
        if self.is_due(SAVE_EPOCHS) {
            self.save(state)?;
        }
        Ok(())
    }

    fn step(&mut self, state: &mut TrainState, now: bool) -> Result<()> {
        if now || self.is_due(SAVE_STEPS) {
            self.save(state)?;
        }
        Ok(())
    }
}
