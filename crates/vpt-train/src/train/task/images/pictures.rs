//! The pictures of a finished run: curves, confusion matrix, and some validation images with their predictions.

use rand::seq::index;

use super::{ImageLabels, ImageTask, setup::Setup, source::PartSource};
use crate::{
    report::{self, Curve, SheetTile},
    train::{progress::EpochRecord, run_folder, task::FinishedRun},
};
use vpt_base::{Result, random::stream};
use vpt_model::metrics::Scores;

/// Validation images that are shown: four rows of the sheet.
const SHOWN: usize = 24;

/// Draws all of them into the folder of `run`.
pub(super) fn write<L: ImageLabels>(task: &ImageTask<L>, run: &FinishedRun<L::Evaluation>) -> Result<()> {
    let title = task.title_of(run.record);
    let curve = |name, value: &dyn Fn(&EpochRecord) -> f64| {
        Curve::new(name, run.history.iter().map(|record| (record.epoch, value(record))))
    };
    let losses = [
        curve("train", &|r| r.train_loss),
        curve("validation", &|r| r.val.as_ref().and_then(Scores::loss).unwrap_or(f64::NAN)),
    ];
    let scores = task.labels.score_curves().map(|(name, value)| curve(name, &value));
    let svg = report::curves_svg(&title, ("loss", &losses), (L::AXIS, &scores), run.record.epoch)?;
    run.folder.write_drawn(run_folder::CURVES, svg)?;
    if let Some(confusion) = L::confusion(run.test) {
        let title = format!("{title}: test images, % of each true class");
        let svg = report::confusion_svg(&title, confusion, &task.setup.dataset.classes)?;
        run.folder.write_drawn(run_folder::CONFUSION, svg)?;
    }
    run.folder.write(run_folder::VAL_PREDICTIONS, report::contact_sheet_jpeg(&tiles(task, run)?)?)
}

/// Some validation images, drawn by the seed, in the order of the data.
fn tiles<L: ImageLabels>(task: &ImageTask<L>, run: &FinishedRun<L::Evaluation>) -> Result<Vec<SheetTile>> {
    let Setup { plan, dataset, val, .. } = &task.setup;
    let model = task.model_of(run.record);
    let samples = &dataset.val;
    let rng = &mut stream(plan.config.seed, "val predictions", 0, 0);
    let mut chosen = index::sample(rng, samples.len(), SHOWN.min(samples.len())).into_vec();
    chosen.sort_unstable();
    let preprocess = model.preprocess()?;
    let mut images = Vec::with_capacity(chosen.len());
    let mut pixels = Vec::new();
    for &i in &chosen {
        let image = samples[i].load()?;
        if !val.holds_features() {
            pixels.extend(preprocess.apply(&image)?);
        }
        images.push(image);
    }
    let logits = match &**val {
        PartSource::Features(features) => model.classifier(run.values)?.logits(&features.rows(&chosen, 0))?,
        PartSource::Images(_) | PartSource::Tokens { .. } => model.logits(run.values, &pixels)?,
    };
    let rows = logits.chunks_exact(dataset.classes.len());
    let mut tiles = Vec::with_capacity(chosen.len());
    for ((&i, image), row) in chosen.iter().zip(images).zip(rows) {
        let prediction = task.labels.prediction(row, &dataset.classes, run.val);
        let Some((predicted, probability)) = prediction else { continue };
        let truth = task.labels.names(samples[i].label, &dataset.classes)?;
        tiles.push(SheetTile { image, truth, predicted, probability });
    }
    Ok(tiles)
}
