//! Evaluation while a run goes on and at its end: every image of a part, once, by one of the processes that train.

use super::{
    observer::{Event, Observer},
    progress::Stage,
    task::{BatchRequest, TrainTask},
};
use vpt_base::{Result, params::Param};
use vpt_data::{ImageCount, Split};

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
    let (group, total) = (task.group(), source.images());
    let own = group.own_images(&(0..total).collect::<Vec<_>>(), T::EVAL_BATCH);
    let mut tally = task.tally(details);
    let mut evaluator = task.evaluator(params, source, stage)?;
    let batches = task.batches(source, BatchRequest { stage, order: &own, epoch: 0, size: T::EVAL_BATCH })?;
    let go_on = &mut |done, total| observer.goes_on(&Event::Evaluating { split, done, total });
    let compute = |batch| evaluator(&batch);
    let all = group.visit(batches, (total, T::EVAL_BATCH), go_on, compute, |output| task.add(&mut tally, output))?;
    if !all {
        return Ok(None);
    }
    task.conclude(tally, split).map(Some)
}
