//! The files of a finished detection run: what was found, curves, confusion matrix, drawn boxes, page of mistakes.

use super::{mistakes, setup::DetectTraining};
use crate::{
    report::{self, Curve},
    train::{progress::EpochRecord, run_folder, task::FinishedRun},
};
use vpt_base::{Result, random::stream};
use vpt_model::metrics::{
    Scores,
    coco::{self, Detected, Detection},
};

/// Validation images that are shown.
const SHOWN: usize = 12;

/// Writes all of them.
pub(super) fn write(task: &DetectTraining, run: &FinishedRun<Detected>) -> Result<()> {
    let FinishedRun { folder, val, test, .. } = *run;
    let DetectTraining { plan, model, dataset, .. } = task;
    folder.write(run_folder::VAL_DETECTIONS, coco::results_json(&val.detections)?)?;
    folder.write(run_folder::TEST_DETECTIONS, coco::results_json(&test.detections)?)?;
    let title = format!("{}, {} on {}", plan.config.method, model.backbone().name, dataset.name);
    let names = dataset.names();
    folder.write_drawn(run_folder::CURVES, curves(&title, run)?)?;
    let on_test = format!("{title}: test images");
    folder.write_drawn(run_folder::PR_CURVE, report::pr_curve_svg(&on_test, &test.eval, &names)?)?;
    folder.write_drawn(run_folder::F1_CURVE, report::f1_curve_svg(&on_test, &test.eval, &names)?)?;
    let confidence = test.eval.best_confidence().map_or(0.5, |(confidence, _)| confidence);
    let confusion = coco::confusion(&dataset.test, &dataset.categories, &test.detections, confidence)?;
    let mut rows = names.clone();
    rows.push(coco::BACKGROUND.to_owned());
    let on_test = format!("{on_test}, scores above {confidence:.2}, % of each true class");
    folder.write_drawn(run_folder::CONFUSION, report::confusion_svg(&on_test, &confusion, &rows)?)?;
    let confidence = val.eval.best_confidence().map_or(0.5, |(confidence, _)| confidence);
    folder.write(run_folder::VAL_PREDICTIONS, sheet(task, &val.detections, confidence, &names)?)?;
    let page = mistakes::page(task, &title, &val.detections, confidence, &names)?;
    folder.write(run_folder::MISTAKES, page)
}

fn curves(title: &str, run: &FinishedRun<Detected>) -> Result<Option<String>> {
    let curve = |name, value: &dyn Fn(&EpochRecord) -> f64| {
        Curve::new(name, run.history.iter().map(|record| (record.epoch, value(record))))
    };
    let ap50 =
        |record: &EpochRecord| record.val.as_ref().and_then(Scores::detect).map_or(f64::NAN, |metrics| metrics.ap50);
    let loss = [curve("training loss", &|r| r.train_loss)];
    let scores =
        [curve("validation AP", &|r| r.val.as_ref().map_or(f64::NAN, Scores::main)), curve("validation AP50", &ap50)];
    report::curves_svg(title, ("loss", &loss), ("average precision", &scores), run.record.epoch)
}

/// Some validation images, drawn by the seed, with the boxes of truth and prediction.
fn sheet(task: &DetectTraining, found: &[Detection], confidence: f64, names: &[String]) -> Result<Vec<u8>> {
    let rng = &mut stream(task.plan.config.seed, "val predictions", 0, 0);
    let count = task.dataset.val.len();
    let mut chosen = rand::seq::index::sample(rng, count, SHOWN.min(count)).into_vec();
    chosen.sort_unstable();
    let tiles = chosen.into_iter().map(|i| mistakes::tile(task, &task.dataset.val[i], found, confidence));
    report::box_sheet_jpeg(&tiles.collect::<Result<Vec<_>>>()?, names)
}
