//! `lr = "auto"`: a few learning rates are tried in short runs on the training images and judged on the validation images; the
//! best one is learned with from the beginning.

use serde::{Deserialize, Serialize};

use super::run_folder::{self, RunFolder};
use vpt_base::{Error, Message, Result, files};
use vpt_model::metrics::Scores;

/// A trial of a learning rate: a line of `lr_search.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LrTrial {
    /// The peak learning rate of what the method learns.
    pub lr: f64,
    /// Epochs of the trial, with a schedule of their own.
    pub epochs: usize,
    /// On the validation images, after the epoch that counts; `None` when the loss did not stay finite.
    pub val: Option<Scores>,
}

/// `lr_search.json`: the trials so far, in the order of the rates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LrSearch {
    /// Stands for the run, as in its checkpoints.
    run: String,
    /// The best rate of those tried so far.
    chosen: f64,
    /// The trials.
    pub(super) trials: Vec<LrTrial>,
}

impl LrSearch {
    /// A search among `rates` for the run with the fingerprint `run`.
    pub(super) fn new(run: &str, rates: &[f64]) -> Self {
        Self { run: run.to_owned(), chosen: rates.first().copied().unwrap_or_default(), trials: Vec::new() }
    }

    /// The search that is in `folder`, as far as it went, if it is of the run whose fingerprints `is_own` knows: trials of `epochs` epochs of the first
    /// few of `rates`.
    pub(super) fn load(
        folder: &RunFolder,
        is_own: impl FnOnce(&str) -> Result<bool>,
        rates: &[f64],
        epochs: usize,
    ) -> Result<Option<Self>> {
        if !folder.has(run_folder::LR_SEARCH) {
            return Ok(None);
        }
        let path = folder.file(run_folder::LR_SEARCH);
        let bytes = files::read_limited(&path, 1 << 20)?;
        let search: Self =
            serde_json::from_slice(&bytes).map_err(|error| Error::file(&path, Message::of_reader(&error)))?;
        let tried = search.trials.iter().map(|trial| (trial.lr.to_bits(), trial.epochs));
        let expected = rates.iter().map(|lr| (lr.to_bits(), epochs));
        let usable = is_own(&search.run)?
            && search.trials.len() <= rates.len()
            && tried.eq(expected.take(search.trials.len()))
            && search.chosen.to_bits() == best(&search.trials, rates).to_bits();
        Ok(usable.then_some(search))
    }

    /// Adds the next trial.
    pub(super) fn add(&mut self, trial: LrTrial, rates: &[f64]) {
        self.trials.push(trial);
        self.chosen = best(&self.trials, rates);
    }

    /// The best rate of those tried so far.
    pub(super) fn chosen(&self) -> f64 {
        self.chosen
    }
}

/// The rate of the best of `trials`, of equals the first; the first of `rates` if none stayed finite.
fn best(trials: &[LrTrial], rates: &[f64]) -> f64 {
    let mut best: Option<(&Scores, f64)> = None;
    for trial in trials {
        if let Some(val) = &trial.val
            && best.is_none_or(|(best, _)| val.rank() > best.rank())
        {
            best = Some((val, trial.lr));
        }
    }
    best.map_or(rates.first().copied().unwrap_or_default(), |(_, lr)| lr)
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // these values are copied
mod tests {
    use super::*;
    use vpt_model::metrics::Metrics;

    const RATES: [f64; 3] = [0.1, 0.2, 0.3];

    fn trial(lr: f64, acc1: Option<f64>) -> LrTrial {
        let metrics = |acc1| Scores::Classify(Metrics { acc1, acc5: None, mean_per_class_recall: acc1, loss: 0.1 });
        LrTrial { lr, epochs: 5, val: acc1.map(metrics) }
    }

    #[test]
    fn the_best_on_validation_is_chosen_of_equals_the_first_and_never_one_that_diverged() {
        let mut search = LrSearch::new("run", &RATES);
        assert_eq!(search.chosen(), 0.1);
        search.add(trial(0.1, None), &RATES);
        assert_eq!(search.chosen(), 0.1, "there is no other yet");
        search.add(trial(0.2, Some(0.7)), &RATES);
        search.add(trial(0.3, Some(0.7)), &RATES);
        assert_eq!(search.chosen(), 0.2);
    }

    #[test]
    fn a_search_goes_on_from_its_file_if_it_is_of_the_same_run() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(dir.path()).unwrap();
        let load = |run: &str, rates: &[f64], epochs| {
            LrSearch::load(&folder, |found| Ok(found == run), rates, epochs).unwrap()
        };
        assert_eq!(load("run", &RATES, 5), None);
        let mut search = LrSearch::new("run", &RATES);
        search.add(trial(0.1, Some(0.123_456_789_012_345_67)), &RATES);
        folder.write_json(run_folder::LR_SEARCH, &search).unwrap();
        assert_eq!(load("run", &RATES, 5), Some(search.clone()));
        for (run, rates, epochs) in
            [("other", &RATES[..], 5), ("run", &RATES[1..], 5), ("run", &[], 5), ("run", &RATES, 6)]
        {
            assert_eq!(load(run, rates, epochs), None, "{run} {rates:?} {epochs}");
        }
        folder.write(run_folder::LR_SEARCH, "{").unwrap();
        assert!(LrSearch::load(&folder, |_| Ok(true), &RATES, 5).unwrap_err().to_string().contains("lr_search.json"));
    }
}
