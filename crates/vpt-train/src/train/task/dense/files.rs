//! What the files of all runs on patch tokens have in common.

use crate::{
    config::Plan,
    report::{self, Curve},
    train::{progress::EpochRecord, task::FinishedRun},
};
use vpt_base::{Result, random::stream};
use vpt_model::metrics::Scores;

/// Validation images that are shown.
const SHOWN: usize = 12;

/// Curves of the loss and of the main score of validation, `main`, with another one beside it.
pub(crate) fn curves<E>(
    title: &str,
    run: &FinishedRun<E>,
    axis: &str,
    main: &'static str,
    (beside, score): (&'static str, impl Fn(&Scores) -> Option<f64>),
) -> Result<Option<String>> {
    let curve = |name, value: &dyn Fn(&EpochRecord) -> f64| {
        Curve::new(name, run.history.iter().map(|record| (record.epoch, value(record))))
    };
    let loss = [curve("training loss", &|record| record.train_loss)];
    let scores = [
        curve(main, &|record| record.val.as_ref().map_or(f64::NAN, Scores::main)),
        curve(beside, &|record| record.val.as_ref().and_then(&score).unwrap_or(f64::NAN)),
    ];
    report::curves_svg(title, ("loss", &loss), (axis, &scores), run.record.epoch)
}

/// Positions of some of `count` validation images, drawn by the seed.
pub(crate) fn shown(plan: &Plan, count: usize) -> Vec<usize> {
    let rng = &mut stream(plan.config.seed, "val predictions", 0, 0);
    let mut chosen = rand::seq::index::sample(rng, count, SHOWN.min(count)).into_vec();
    chosen.sort_unstable();
    chosen
}
