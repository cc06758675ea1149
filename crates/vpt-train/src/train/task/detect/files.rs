//! The files of a finished detection run: what was found, curves, confusion matrix, drawn boxes, page of mistakes.

use super::{Boxes, mistakes};
use crate::{
    config::Plan,
    report,
    train::{
        run_folder,
        task::{
            FinishedRun,
            dense::{curves, shown},
        },
    },
};
use vpt_base::Result;
use vpt_model::metrics::{
    Scores,
    coco::{self, Detected, Detection},
};

/// Writes all of them.
pub(super) fn write(task: &Boxes, plan: &Plan, title: &str, run: &FinishedRun<Detected>) -> Result<()> {
    let FinishedRun { folder, val, test, .. } = *run;
    let Boxes { dataset, .. } = task;
    folder.write(run_folder::VAL_DETECTIONS, coco::results_json(&val.detections)?)?;
    folder.write(run_folder::TEST_DETECTIONS, coco::results_json(&test.detections)?)?;
    let names = dataset.names();
    let ap50 = |scores: &Scores| scores.detect().map(|metrics| metrics.ap50);
    let curves = curves(title, run, "average precision", "validation AP", ("validation AP50", ap50))?;
    folder.write_drawn(run_folder::CURVES, curves)?;
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
    folder.write(run_folder::VAL_PREDICTIONS, sheet(task, plan, &val.detections, confidence, &names)?)?;
    let page = mistakes::page(task, title, &val.detections, confidence, &names)?;
    folder.write(run_folder::MISTAKES, page)
}

/// Some validation images, drawn by the seed, with the boxes of truth and prediction.
fn sheet(task: &Boxes, plan: &Plan, found: &[Detection], confidence: f64, names: &[String]) -> Result<Vec<u8>> {
    let images = &task.dataset.val;
    let tiles = shown(plan, images.len()).into_iter().map(|i| mistakes::tile(task, &images[i], found, confidence));
    report::box_sheet_jpeg(&tiles.collect::<Result<Vec<_>>>()?, names)
}
