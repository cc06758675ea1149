//! Searches that earlier versions began go on as they were: four rates, a quarter of the epochs each, the best epoch on validation.

use super::{LrSearch, LrTrial, RateSearch, best, halving::trial_stages};
use crate::train::{
    fit::{LoopEnd, StageFit},
    observer::{Event, Observer},
    run_folder,
    run_writer::NoWriter,
    task::{StagePlan, TrainTask},
};
use vpt_base::{Error, Result};
use vpt_model::metrics::Scores;

/// A trial takes this share of the epochs of each stage, rounded up.
const TRIAL_SHARE: usize = 4;

impl<T: TrainTask> RateSearch<'_, T> {
    /// `search`, which an earlier version began, if it is of this run.
    pub(super) fn quarters(&self, search: &LrSearch) -> Option<LrSearch> {
        let rates = self.task.plan().earlier_learning_rates();
        let epochs = epochs(&self.longer_stages());
        let tried = search.trials.iter().map(|trial| (trial.lr.to_bits(), trial.epochs));
        let expected = rates.iter().map(|lr| (lr.to_bits(), Some(epochs)));
        let usable = search.trials.len() <= rates.len() && tried.eq(expected.take(search.trials.len()));
        usable.then(|| search.clone())
    }

    fn longer_stages(&self) -> Vec<StagePlan> {
        let whole = self.task.stages().into_iter().zip(trial_stages(self.task));
        whole.map(|(whole, trial)| StagePlan { epochs: whole.epochs.div_ceil(TRIAL_SHARE), ..trial }).collect()
    }

    /// Tries the rates that `search` has not tried yet, and chooses; `None` if the observer asked to stop.
    pub(super) fn try_quarters(&self, mut search: LrSearch, observer: &mut dyn Observer) -> Result<Option<f64>> {
        let (plan, stages) = (self.task.plan(), self.longer_stages());
        let rates = plan.earlier_learning_rates();
        let Some((last, before)) = stages.split_last() else { return Ok(Some(search.chosen)) };
        let Some([train, val]) = self.task.sources(last.stage, self.folder, observer)? else { return Ok(None) };
        let epochs = epochs(&stages);
        let until = last.epochs;
        let fit = StageFit { task: self.task, plan: *last, until, train: &train, val: &val, epochs, blind: false };
        let mut shared = None;
        for (i, &lr) in rates.iter().enumerate().skip(search.trials.len()) {
            observer.event(&Event::Trial { lr, number: i + 1, of: rates.len() });
            let Some(mut state) = self.begin(&mut shared, before, lr, observer)? else { return Ok(None) };
            let val = match fit.run(&mut state, &mut NoWriter, observer) {
                Ok(LoopEnd::Interrupted) => return Ok(None),
                Ok(LoopEnd::Finished) => state.selected(plan.select).and_then(|(_, record)| record.val.clone()),
                Err(Error::Diverged { .. }) => None,
                Err(error) => return Err(error),
            };
            search.trials.push(LrTrial { lr, epochs: Some(epochs), steps: None, val });
            search.chosen = best(&search.trials, Scores::rank).unwrap_or(rates[0]);
            self.folder.write_json(run_folder::LR_SEARCH, &search)?;
        }
        Ok(Some(search.chosen))
    }
}

/// Epochs of all `stages`.
fn epochs(stages: &[StagePlan]) -> usize {
    stages.iter().map(|stage| stage.epochs).sum()
}
