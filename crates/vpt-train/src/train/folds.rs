//! Without validation images: folds of the training images choose the number of epochs.
//!
//! Each fold in turn is left out, a run as long as the whole one learns from the others, and what is left out is looked at after every epoch.
//! All folds together are every training image seen once by what has not learned from it. The epochs after which they are right most
//! often (have the highest main score), of equals those with the lower loss, are what the run takes, of the schedule that it would have had: a run of
//! other steps would fall at another pace than the one that was looked at.

use serde::{Deserialize, Serialize};

use super::{
    checkpoint::TrainState,
    evaluate,
    fit::{LoopEnd, StageFit},
    observer::{Event, Observer},
    progress::{EpochRecord, RunProgress, Stage},
    run_folder::{self, RunFolder},
    run_writer::NoWriter,
    task::{Scored, TrainTask},
};
use vpt_base::{Error, Message, Result, files};
use vpt_data::{ImageCount, Split};
use vpt_model::metrics::{Scores, mean_of_parts};

/// What folds of the training images found, in the place of validation images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FoldResults {
    /// How many folds there were.
    pub folds: usize,
    /// The epochs that they chose, which are those of the run.
    pub epochs: usize,
    /// How many there would have been.
    pub of: usize,
    /// What the folds found after these epochs, all together.
    pub val: Scores,
    /// What the head alone found in the same images, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Scores>,
    /// What they found after each epoch.
    pub curve: Vec<Scores>,
}

/// `folds.json`: the folds so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Folds {
    /// Stands for the run, as in its checkpoints.
    run: String,
    folds: Vec<Fold>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fold {
    /// Images that were left out.
    images: usize,
    /// What the head alone found in them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    probe: Option<Scores>,
    /// What was found in them after each epoch.
    epochs: Vec<Scores>,
}

/// Cross-validates the run `task` in `folder` at the rate `lr`, with the `penalty` of its head alone, or goes on with that; `None` when the observer asked to stop.
pub(super) fn cross_validate<T: TrainTask>(
    task: &T,
    folder: &RunFolder,
    (lr, penalty): (f64, Option<f64>),
    observer: &mut dyn Observer,
) -> Result<Option<FoldResults>> {
    let Some(count) = task.plan().config.folds else { return Ok(None) };
    let epochs = task.stages().last().map_or(0, |stage| stage.epochs);
    let path = folder.file(run_folder::FOLDS);
    let mut found = Folds { run: task.fingerprint().as_str().to_owned(), folds: Vec::new() };
    if folder.has(run_folder::FOLDS) {
        let bytes = files::read_limited(&path, 1 << 24)?;
        let read: Folds =
            serde_json::from_slice(&bytes).map_err(|error| Error::file(&path, Message::of_reader(&error)))?;
        let is_whole = read.folds.iter().all(|fold| fold.epochs.len() == epochs && fold.images > 0);
        if task.fingerprint().is(&read.run, task.backbone())? && read.folds.len() <= count && is_whole {
            found = read;
        }
    }
    for number in found.folds.len()..count {
        observer.event(&Event::Note(&format!("fold {} of {count}", number + 1)));
        let Some(fold) = run_fold(task, (number, count), folder, (lr, penalty), observer)? else { return Ok(None) };
        found.folds.push(fold);
        folder.write_json(run_folder::FOLDS, &found)?;
    }
    let results = chosen(&found.folds);
    if let Some(FoldResults { epochs, of, val, .. }) = &results {
        let what = if val.classify().is_some() { "right" } else { val.main_name() };
        let note = format!(
            "{count} folds: {:.1} % {what} after {epochs} of {of} epochs, which are learned from all images",
            100. * val.main()
        );
        observer.event(&Event::Note(&note));
    }
    Ok(results)
}

/// One fold, learned to its end.
fn run_fold<T: TrainTask>(
    whole: &T,
    fold: (usize, usize),
    folder: &RunFolder,
    (lr, penalty): (f64, Option<f64>),
    observer: &mut dyn Observer,
) -> Result<Option<Fold>> {
    let Some(mut task) = whole.fold(fold, penalty, observer)? else { return Ok(None) };
    let Some(initial) = task.initial(true, observer)? else { return Ok(None) };
    if task.prepare(observer)?.is_none() {
        return Ok(None);
    }
    let mut probe = None;
    if let Some((head, _)) = task.head_alone() {
        let Some(alone) = task.evaluate_alone(head, Split::Val, observer)? else { return Ok(None) };
        probe = Some(alone.scores());
    }
    let mut state = TrainState::new(initial, task.plan().optimizer, RunProgress::new(lr));
    state.begin_pruning(&task.stages());
    let stages = task.stages();
    let Some(last) = stages.last() else { return Ok(None) };
    let all = stages.iter().map(|stage| stage.epochs).sum();
    let mut images = 0;
    for &stage in &stages {
        let Some([train, val]) = task.sources(stage.stage, folder, observer)? else { return Ok(None) };
        images = val.images();
        // A stage before the last ends as it does in the run, which has nothing to choose its epoch by.
        let blind = stage.stage != last.stage;
        let until = stage.epochs;
        let fit = StageFit { task: &task, plan: stage, until, train: &train, val: &val, epochs: all, blind };
        if fit.run(&mut state, &mut NoWriter, observer)? == LoopEnd::Interrupted {
            return Ok(None);
        }
        if stage.stage == Stage::Head && blind {
            let found = evaluate(&task, state.current(), stage.stage, (Split::Val, &val), false, observer)?;
            let Some(found) = found else { return Ok(None) };
            probe = Some(found.scores());
        }
    }
    let records: Vec<&EpochRecord> = state.progress.of_stage(last.stage).collect();
    let epochs = records.iter().filter_map(|record| record.val.clone()).collect();
    Ok(Some(Fold { images, probe, epochs }))
}

/// What all `folds` together chose; `None` if there are none.
fn chosen(folds: &[Fold]) -> Option<FoldResults> {
    let of = folds.iter().map(|fold| fold.epochs.len()).min()?;
    let mean = |at: fn(&Fold, usize) -> Option<&Scores>, epoch: usize| {
        let parts: Option<Vec<_>> = folds.iter().map(|fold| Some((fold.images, at(fold, epoch)?))).collect();
        mean_of_parts(parts?)
    };
    let curve: Vec<Scores> = (0..of).map_while(|epoch| mean(|fold, epoch| fold.epochs.get(epoch), epoch)).collect();
    let better = |best: usize, epoch: usize| if curve[epoch].rank() > curve[best].rank() { epoch } else { best };
    let best = (0..curve.len()).reduce(better)?;
    let probe = mean(|fold, _| fold.probe.as_ref(), 0);
    Some(FoldResults { folds: folds.len(), epochs: best + 1, of, val: curve[best].clone(), probe, curve })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_model::metrics::{Metrics, MultilabelMetrics};

    fn metrics(acc1: f64, loss: f64) -> Scores {
        Scores::Classify(Metrics { acc1, acc5: None, mean_per_class_recall: acc1, loss })
    }

    #[test]
    fn the_epoch_that_is_right_most_often_in_all_images_is_chosen_of_equals_the_lower_loss() {
        let fold = |images, epochs: &[(f64, f64)]| {
            let epochs = epochs.iter().map(|&(acc1, loss)| metrics(acc1, loss)).collect();
            Fold { images, probe: Some(metrics(0.5, 1.)), epochs }
        };
        // Of the larger fold an image counts as much as of the smaller.
        let folds = [fold(3, &[(0., 1.), (1., 2.), (0., 1.)]), fold(1, &[(1., 1.), (0., 2.), (1., 1.)])];
        let found = chosen(&folds).unwrap();
        assert_eq!((found.epochs, found.of, found.folds), (2, 3, 2));
        assert_eq!((found.val, found.probe), (metrics(0.75, 2.), Some(metrics(0.5, 1.))));
        let equal = [fold(2, &[(0.5, 3.), (0.5, 1.), (0.5, 1.)]), fold(2, &[(0.5, 3.), (0.5, 2.), (0.5, 2.)])];
        assert_eq!(chosen(&equal).unwrap().epochs, 2);
        assert_eq!(chosen(&[]), None);
        // Where an image has several classes the mean of precisions counts, that of a part by its images.
        let several = |images, map: [f64; 2]| {
            let score = |map| MultilabelMetrics { map, micro_f1: map, macro_f1: map, exact_match: map, loss: 1. };
            Fold { images, probe: None, epochs: map.map(score).map(Scores::Multilabel).into() }
        };
        let found = chosen(&[several(3, [0.5, 0.25]), several(1, [0.25, 0.75])]).unwrap();
        assert_eq!((found.epochs, found.val.main()), (1, 0.4375));
        assert_eq!(chosen(&[several(3, [0.5, 0.25]), fold(1, &[(1., 1.), (1., 1.)])]), None);
    }
}
