//! The trials of a search, one after the other. What a rate that is alive has learned lies in the run folder until the search is over:
//! the weights of a whole tower would not fit into memory eight times, and a search that was killed goes on from there.

use std::{fs, path::PathBuf};

use super::{Bracket, Course, LrSearch, LrTrial, NextTrial};
use crate::train::{
    checkpoint::TrainState,
    evaluate,
    fit::{LoopEnd, StageFit},
    observer::{Event, Observer},
    progress::{RunProgress, Stage},
    run_folder::{self, RunFolder},
    run_writer::NoWriter,
    task::{Scored, StagePlan, TrainTask},
};
use vpt_base::{Error, Result, params::Param};
use vpt_data::Split;

/// A trial of a learning rate takes this share of the epochs of each stage.
const TRIAL_SHARE: usize = 4;

/// The stages of a trial.
pub(in crate::train) fn trial_stages(task: &impl TrainTask) -> Vec<StagePlan> {
    // What is pruned learns with the rate of what it is pruned from.
    let stages = task.stages().into_iter().filter(|stage| stage.stage != Stage::Pruned);
    stages.map(|stage| StagePlan { epochs: (stage.epochs / TRIAL_SHARE).max(1), ..stage }).collect()
}

/// The search of a run in its folder.
pub(in crate::train) struct RateSearch<'a, T: TrainTask> {
    pub(in crate::train) task: &'a T,
    pub(in crate::train) folder: &'a RunFolder,
    /// The learned values before the first step.
    pub(in crate::train) initial: &'a [Param],
}

impl<T: TrainTask> RateSearch<'_, T> {
    /// The learning rate that validation chooses; `None` when the observer asked to stop.
    pub(in crate::train) fn choose(&self, observer: &mut dyn Observer) -> Result<Option<f64>> {
        let is_own = |run: &str| self.task.fingerprint().is(run, self.task.backbone());
        let earlier = LrSearch::load(self.folder, is_own)?;
        if let Some(search) = earlier.as_ref().filter(|search| search.is_earlier())
            && let Some(search) = self.quarters(search)
        {
            return self.try_quarters(search, observer);
        }
        let stages = trial_stages(self.task);
        let Some((&last, before)) = stages.split_last() else {
            return Ok(self.task.plan().learning_rates.first().copied());
        };
        let per_epoch = self.task.plan().steps_per_epoch();
        let bracket = Bracket::new(&self.task.plan().learning_rates, last.epochs as u64 * per_epoch);
        let is_of_this = |search: &LrSearch| bracket.course(&search.trials) != Course::Foreign;
        let mut search = earlier
            .filter(is_of_this)
            .unwrap_or_else(|| LrSearch::new(self.task.fingerprint().as_str(), bracket.rates[0]));
        if !self.halve(&mut search, &bracket, (last, before), observer)? {
            return Ok(None);
        }
        for rate in 0..bracket.rates.len() {
            let state = self.state_file(rate);
            if state.exists() {
                fs::remove_file(&state).map_err(Error::io(&state))?;
            }
        }
        Ok(Some(search.chosen))
    }

    /// Goes on with `search` to its end; false if the observer asked to stop. Only the `last` of a trial's stages is learned at the
    /// rate that is looked for.
    fn halve(
        &self,
        search: &mut LrSearch,
        bracket: &Bracket,
        (last, before): (StagePlan, &[StagePlan]),
        observer: &mut dyn Observer,
    ) -> Result<bool> {
        let mut course = bracket.course(&search.trials);
        if matches!(course, Course::Ends(_)) {
            return Ok(true);
        }
        let Some([train, val]) = self.task.sources(last.stage, self.folder, observer)? else { return Ok(false) };
        let epochs = last.epochs + before.iter().map(|stage| stage.epochs).sum::<usize>();
        let until = last.epochs;
        let fit = StageFit { task: self.task, plan: last, until, train: &train, val: &val, epochs, blind: false };
        let mut shared = None;
        while let Course::Goes(next) = course {
            let lr = bracket.rates[next.rate];
            observer.event(&Event::Trial { lr, number: search.trials.len() + 1, of: bracket.looks() });
            let state = if next.from > 0 { self.saved(next.rate)? } else { None };
            let Some(mut state) =
                state.map_or_else(|| self.begin(&mut shared, before, lr, observer), |s| Ok(Some(s)))?
            else {
                return Ok(false);
            };
            let val = match fit.advance(&mut state, next.to, observer) {
                Ok(LoopEnd::Interrupted) => return Ok(false),
                Ok(LoopEnd::Finished) => {
                    let found = evaluate(self.task, state.current(), last.stage, (Split::Val, &val), false, observer)?;
                    let Some(found) = found else { return Ok(false) };
                    Some(found.scores()).filter(|scores| scores.loss().is_none_or(f64::is_finite))
                }
                // A rate too high for the loss to stay finite has lost; other errors are errors.
                Err(Error::Diverged { .. }) => None,
                Err(error) => return Err(error),
            };
            // Before the trial is told, so that what goes on from there is there.
            if bracket.goes_on_after(next) {
                self.save(next, &state)?;
            }
            search.trials.push(LrTrial { lr, epochs: None, steps: Some(next.to), val });
            course = bracket.course(&search.trials);
            search.chosen = match course {
                Course::Ends(lr) => lr,
                _ => super::best(&search.trials, super::rank).unwrap_or(bracket.rates[0]),
            };
            self.folder.write_json(run_folder::LR_SEARCH, search)?;
        }
        Ok(true)
    }

    /// A trial at its beginning: behind the stages `before`, which have rates of their own and are the same in every trial. `None` when
    /// the observer asked to stop.
    pub(super) fn begin(
        &self,
        shared: &mut Option<TrainState>,
        before: &[StagePlan],
        lr: f64,
        observer: &mut dyn Observer,
    ) -> Result<Option<TrainState>> {
        if shared.is_none() {
            let plan = self.task.plan();
            let mut state = TrainState::new(self.initial.to_vec(), plan.optimizer, RunProgress::new(lr));
            let epochs = trial_stages(self.task).iter().map(|stage| stage.epochs).sum();
            for &stage in before {
                let note = "before the trials of learning rates: what is the same in all of them";
                observer.event(&Event::Note(note));
                let Some([train, val]) = self.task.sources(stage.stage, self.folder, observer)? else {
                    return Ok(None);
                };
                let fit = StageFit {
                    task: self.task,
                    plan: stage,
                    until: stage.epochs,
                    train: &train,
                    val: &val,
                    epochs,
                    blind: false,
                };
                if fit.run(&mut state, &mut NoWriter, observer)? == LoopEnd::Interrupted {
                    return Ok(None);
                }
            }
            *shared = Some(state);
        }
        let mut state = shared.clone();
        if let Some(state) = &mut state {
            state.progress.lr = lr;
        }
        Ok(state)
    }

    fn state_file(&self, rate: usize) -> PathBuf {
        self.folder.file(&format!("lr_search-{}.safetensors", rate + 1))
    }

    fn save(&self, next: NextTrial, state: &TrainState) -> Result<()> {
        state.save(&self.state_file(next.rate), self.task.fingerprint().as_str())
    }

    /// What a rate has learned so far, unless its file was taken away.
    fn saved(&self, rate: usize) -> Result<Option<TrainState>> {
        let (path, plan) = (self.state_file(rate), self.task.plan());
        if !path.exists() {
            return Ok(None);
        }
        let is_own = |run: &str| self.task.fingerprint().is(run, self.task.backbone());
        TrainState::load(&path, is_own, self.initial, plan.optimizer, self.task.averaging()).map(Some)
    }
}
