//! Evaluation while a run goes on and at its end: every image of a part, once.

use super::{
    observer::{Event, Observer},
    progress::Stage,
    task::TrainTask,
};
use vpt_base::{Result, params::Param};
use vpt_data::{ImageCount, Split, visit_batches};

/// Evaluates `params`, learned in `stage`, on `source`, the images of `split`; `None` when the observer asked to stop. With
/// `details`, what only the files at the end need is kept, too.
pub(crate) fn evaluate<T: TrainTask>(
    task: &T,
    params: &[Param],
    stage: Stage,
    (split, source): (Split, &T::Source),
    details: bool,
    observer: &mut dyn Observer,
) -> Result<Option<T::Evaluation>> {
    let total = source.images();
    let order: Vec<usize> = (0..total).collect();
    let mut tally = task.tally(details);
    let mut evaluator = task.evaluator(params, source, stage, &mut tally)?;
    let batches = task.batches(source, stage, &order, 0, T::EVAL_BATCH)?;
    let go_on = &mut |done, total| observer.goes_on(&Event::Evaluating { split, done, total });
    if !visit_batches(batches, total, go_on, |batch| evaluator(&batch))? {
        return Ok(None);
    }
    drop(evaluator);
    task.conclude(tally, split).map(Some)
}
