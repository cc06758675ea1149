//! `lr = "auto"`: successive halving (Jamieson and Talwalkar, AISTATS 2016). Eight learning rates begin on the training images, after a
//! quarter of a trial's steps the half that is worse on the validation images ends, after half of them the half of the rest,
//! and the better of the last two at a trial's end is learned with from the beginning. A trial is a quarter of the
//! epochs of a run, with a schedule of its own, so all of them together take no more steps than one training.
//!
//! Better is the lower loss, of equals the higher accuracy, where there is a loss: of few images it says more than what they
//! are counted right. Detectors and segmenters are told by their metric.

mod halving;
mod quarters;

use serde::{Deserialize, Serialize};

pub(super) use self::halving::{RateSearch, trial_stages};
use super::run_folder::{self, RunFolder};
use vpt_base::{Error, Message, Result, files};
use vpt_model::metrics::Scores;

/// What a learning rate reached in a trial: a line of `lr_search.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LrTrial {
    /// The peak learning rate of what the method learns.
    pub lr: f64,
    /// In searches that earlier versions began: epochs of the trial, which they all went through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Steps that were taken with it by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// On the validation images, after that; `None` when the loss did not stay finite.
    pub val: Option<Scores>,
}

/// `lr_search.json`: the trials so far, in their order.
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

/// The rates that are alive until a step of their trials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rung {
    alive: usize,
    steps: u64,
}

/// The course of a search.
#[derive(Debug, Clone, PartialEq)]
struct Bracket {
    /// The rates that begin, rising.
    rates: Vec<f64>,
    rungs: Vec<Rung>,
}

/// What a search does next.
#[derive(Debug, Clone, Copy, PartialEq)]
struct NextTrial {
    /// Position of the rate in the bracket.
    rate: usize,
    /// Steps that it has taken, and those that it is to have taken.
    from: u64,
    to: u64,
}

/// Where the trials so far lead.
#[derive(Debug, Clone, PartialEq)]
enum Course {
    Goes(NextTrial),
    /// The best rate.
    Ends(f64),
    /// They are of another search.
    Foreign,
}

impl Bracket {
    /// A search among `rates`, which rise, in trials of `steps` steps. Where these are too few to halve them often, the rates at both
    /// ends do not begin.
    fn new(rates: &[f64], steps: u64) -> Self {
        let mut rungs = Vec::new();
        let (mut alive, mut until) = (2, steps.max(1));
        while alive <= rates.len() && until > 0 {
            rungs.insert(0, Rung { alive, steps: until });
            (alive, until) = (alive * 2, until / 2);
        }
        let begin = rungs.first().map_or(1, |rung| rung.alive).min(rates.len());
        let left_out = (rates.len() - begin) / 2;
        Self { rates: rates[left_out..left_out + begin].to_vec(), rungs }
    }

    /// Looks at the validation images, if no loss ceases to be finite.
    fn looks(&self) -> usize {
        self.rungs.iter().map(|rung| rung.alive).sum()
    }

    /// Whether what `trial` has learned may be learned on from.
    fn goes_on_after(&self, trial: NextTrial) -> bool {
        self.rungs.last().is_some_and(|last| trial.to < last.steps)
    }

    /// Where `trials` lead.
    fn course(&self, trials: &[LrTrial]) -> Course {
        let mut alive: Vec<usize> = (0..self.rates.len()).collect();
        let (mut from, mut rest) = (0, trials);
        for rung in &self.rungs {
            if alive.len() < 2 && from > 0 {
                break;
            }
            let (of_rung, later) = rest.split_at(alive.len().min(rest.len()));
            let expected = alive.iter().map(|&rate| (self.rates[rate].to_bits(), Some(rung.steps)));
            let found = of_rung.iter().map(|trial| (trial.lr.to_bits(), trial.steps));
            if !found.eq(expected.take(of_rung.len())) {
                return Course::Foreign;
            }
            if let Some(&rate) = alive.get(of_rung.len()) {
                return Course::Goes(NextTrial { rate, from, to: rung.steps });
            }
            alive = better_half(&alive, of_rung);
            (from, rest) = (rung.steps, later);
        }
        match (rest, &alive[..]) {
            // Too high were all of them.
            ([], []) => Course::Ends(self.rates[0]),
            ([], [best, ..]) => Course::Ends(self.rates[*best]),
            _ => Course::Foreign,
        }
    }
}

/// Of `alive` the half whose `trials` are better, in order; without those whose loss did not stay finite.
fn better_half(alive: &[usize], trials: &[LrTrial]) -> Vec<usize> {
    let finite = alive.iter().zip(trials).filter_map(|(&rate, trial)| Some((rate, rank(trial.val.as_ref()?))));
    let mut ranked: Vec<(usize, (f64, f64))> = finite.collect();
    ranked.sort_by(|(_, a), (_, b)| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)));
    ranked.truncate((alive.len() / 2).max(1));
    let mut kept: Vec<usize> = ranked.into_iter().map(|(rate, _)| rate).collect();
    kept.sort_unstable();
    kept
}

/// Sort key of what trials found, better ones higher.
fn rank(val: &Scores) -> (f64, f64) {
    val.loss().map_or_else(|| val.rank(), |loss| (-loss, val.main()))
}

/// The best of `trials`, of equals the first; `None` if none stayed finite.
fn best(trials: &[LrTrial], rank: impl Fn(&Scores) -> (f64, f64)) -> Option<f64> {
    let finite = trials.iter().filter_map(|trial| Some((trial.lr, rank(trial.val.as_ref()?))));
    finite.reduce(|best, other| if other.1 > best.1 { other } else { best }).map(|(lr, _)| lr)
}

impl LrSearch {
    /// A search of the run with the fingerprint `run`; `chosen` before there is a trial.
    fn new(run: &str, chosen: f64) -> Self {
        Self { run: run.to_owned(), chosen, trials: Vec::new() }
    }

    /// The search in `folder`, as far as it went, if it is of the run whose fingerprints `is_own` knows.
    pub(super) fn load(folder: &RunFolder, is_own: impl FnOnce(&str) -> Result<bool>) -> Result<Option<Self>> {
        if !folder.has(run_folder::LR_SEARCH) {
            return Ok(None);
        }
        let path = folder.file(run_folder::LR_SEARCH);
        let bytes = files::read_limited(&path, 1 << 20)?;
        let search: Self =
            serde_json::from_slice(&bytes).map_err(|error| Error::file(&path, Message::of_reader(&error)))?;
        Ok(is_own(&search.run)?.then_some(search))
    }

    /// Whether an earlier version began it, which tried every rate for the same time.
    fn is_earlier(&self) -> bool {
        self.trials.first().is_some_and(|trial| trial.epochs.is_some())
    }

    /// Steps that were taken in all trials; `None` in a search of an earlier version.
    pub(super) fn steps(&self) -> Option<u64> {
        let mut rates: Vec<(u64, u64)> = Vec::new();
        for trial in &self.trials {
            let (lr, steps) = (trial.lr.to_bits(), trial.steps?);
            match rates.iter_mut().find(|(other, _)| *other == lr) {
                Some((_, most)) => *most = steps.max(*most),
                None => rates.push((lr, steps)),
            }
        }
        Some(rates.iter().map(|(_, steps)| steps).sum())
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // these values are copied
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vpt_model::metrics::Metrics;

    const RATES: [f64; 8] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8];

    fn trial(lr: f64, steps: u64, found: Option<(f64, f64)>) -> LrTrial {
        let metrics = |(loss, acc1)| Scores::Classify(Metrics { acc1, acc5: None, mean_per_class_recall: acc1, loss });
        LrTrial { lr, epochs: None, steps: Some(steps), val: found.map(metrics) }
    }

    /// Goes through the whole search; a rate of `losses` has its loss and accuracy at every look, or has none.
    fn searched(bracket: &Bracket, found: impl Fn(f64) -> Option<(f64, f64)>) -> (f64, LrSearch) {
        let mut search = LrSearch::new("run", RATES[0]);
        loop {
            match bracket.course(&search.trials) {
                Course::Goes(NextTrial { rate, to, .. }) => {
                    search.trials.push(trial(bracket.rates[rate], to, found(bracket.rates[rate])));
                }
                Course::Ends(lr) => return (lr, search),
                Course::Foreign => panic!("{search:?}"),
            }
        }
    }

    #[test]
    fn the_worse_half_ends_at_every_rung() {
        let bracket = Bracket::new(&RATES, 16);
        let rung = |alive, steps| Rung { alive, steps };
        assert_eq!(bracket.rungs, [rung(8, 4), rung(4, 8), rung(2, 16)]);
        // The nearer to 0.61 the lower the loss.
        let (chosen, search) = searched(&bracket, |lr| Some(((lr - 0.61).abs(), 0.5)));
        assert_eq!(chosen, 0.6);
        let tried = |steps| {
            let of_rung = search.trials.iter().filter(move |trial| trial.steps == Some(steps));
            of_rung.map(|trial| trial.lr).collect::<Vec<f64>>()
        };
        assert_eq!((tried(4), tried(16)), (RATES.to_vec(), vec![0.6, 0.7]));
        assert_eq!(tried(8), [0.5, 0.6, 0.7, 0.8]);
        assert_eq!((search.trials.len(), search.steps()), (bracket.looks(), Some(64)));
    }

    #[test]
    fn the_lower_loss_wins_then_the_accuracy_then_the_lower_rate_and_never_one_that_diverged() {
        let bracket = Bracket::new(&RATES, 16);
        assert_eq!(searched(&bracket, |lr| Some((1., lr))).0, 0.8);
        assert_eq!(searched(&bracket, |_| Some((1., 0.5))).0, 0.1);
        assert_eq!(searched(&bracket, |lr| (lr < 0.25).then_some((9. - lr, 0.))).0, 0.2);
        let (chosen, search) = searched(&bracket, |lr| (lr == 0.7).then_some((9., 0.)));
        assert_eq!((chosen, search.trials.len()), (0.7, 8), "with one left nothing is to be found out");
        assert_eq!(searched(&bracket, |_| None).0, 0.1);
    }

    #[test]
    fn short_trials_begin_with_the_rates_in_the_middle() {
        assert_eq!(Bracket::new(&RATES, 3).rates, [0.3, 0.4, 0.5, 0.6]);
        assert_eq!(Bracket::new(&RATES, 1).rates, [0.4, 0.5]);
        assert_eq!(Bracket::new(&RATES[..1], 9).rates, [0.1]);
        assert_eq!(Bracket::new(&RATES[..1], 9).course(&[]), Course::Ends(0.1));
    }

    proptest! {
        #[test]
        fn a_search_takes_no_more_steps_than_four_trials(steps in 1u64..500, losses in prop::collection::vec(0f64..1., 8)) {
            let bracket = Bracket::new(&RATES, steps);
            let at = |lr: f64| RATES.iter().position(|rate| *rate == lr).unwrap();
            let (chosen, search) = searched(&bracket, |lr| Some((losses[at(lr)], 0.5)));
            prop_assert!(search.steps().unwrap() <= 4 * steps);
            // What is the best at every look is found.
            let best = bracket.rates.iter().copied().reduce(|a, b| if losses[at(b)] < losses[at(a)] { b } else { a });
            prop_assert_eq!(Some(chosen), best);
        }
    }

    #[test]
    fn a_search_goes_on_from_its_file_if_it_is_of_the_same_run() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(dir.path()).unwrap();
        let load = |run: &str| LrSearch::load(&folder, |found| Ok(found == run)).unwrap();
        assert_eq!(load("run"), None);
        let mut search = LrSearch::new("run", RATES[0]);
        search.trials.push(trial(0.1, 4, Some((0.123_456_789_012_345_67, 0.5))));
        folder.write_json(run_folder::LR_SEARCH, &search).unwrap();
        assert_eq!((load("run"), load("other")), (Some(search.clone()), None));
        let course = |rates: &[f64], steps| Bracket::new(rates, steps).course(&search.trials);
        assert_eq!(course(&RATES, 16), Course::Goes(NextTrial { rate: 1, from: 0, to: 4 }));
        assert_eq!(course(&RATES, 32), Course::Foreign);
        assert_eq!(course(&RATES[1..], 16), Course::Foreign);
        folder.write(run_folder::LR_SEARCH, "{").unwrap();
        assert!(LrSearch::load(&folder, |_| Ok(true)).unwrap_err().to_string().contains("lr_search.json"));
    }

    #[test]
    fn searches_of_earlier_versions_are_known() {
        let text = r#"{"run":"run","chosen":0.2,"trials":[{"lr":0.1,"epochs":6,"val":null}]}"#;
        let search: LrSearch = serde_json::from_str(text).unwrap();
        assert!(search.is_earlier() && search.steps().is_none());
        assert_eq!(serde_json::to_string(&search).unwrap(), text);
    }
}
