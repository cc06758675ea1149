//! The pictures of a finished run: curves, confusion matrix, and some validation images with their predictions.

use rand::seq::index;

use super::{
    checkpoint::EpochRecord,
    run_folder::{self, RunFolder},
    setup::Setup,
};
use crate::{
    Result,
    eval::{Confusion, classify::top_k},
    params::Param,
    random::stream,
    report::{self, EpochPoint, Tile},
};

/// Validation images that are shown: four rows of the sheet.
const SHOWN: usize = 24;

/// What the pictures are drawn from.
pub(super) struct Pictures<'a> {
    pub(super) setup: &'a Setup,
    /// Every finished epoch.
    pub(super) history: &'a [EpochRecord],
    /// The epoch that counts.
    pub(super) selected: usize,
    /// What was learned by then.
    pub(super) values: &'a [Param],
    /// On the test images.
    pub(super) confusion: &'a Confusion,
}

impl Pictures<'_> {
    /// Draws all of them into `folder`.
    pub(super) fn write(&self, folder: &RunFolder) -> Result<()> {
        let Setup { plan, model, dataset, .. } = self.setup;
        let title = format!("{}, {} on {}", plan.config.method, model.backbone().name, dataset.name);
        let points: Vec<EpochPoint> = self.history.iter().map(point).collect();
        folder.write(run_folder::CURVES, report::curves_svg(&title, &points, self.selected)?)?;
        let test = format!("{title}: test images, % of each true class");
        folder.write(run_folder::CONFUSION, report::confusion_svg(&test, self.confusion, &dataset.classes)?)?;
        folder.write(run_folder::VAL_PREDICTIONS, report::contact_sheet_jpeg(&self.tiles()?)?)
    }

    /// Some validation images, drawn by the seed, in the order of the data.
    fn tiles(&self) -> Result<Vec<Tile>> {
        let Setup { plan, model, dataset, .. } = self.setup;
        let samples = &dataset.val;
        let rng = &mut stream(plan.config.seed, "val predictions", 0, 0);
        let mut chosen = index::sample(rng, samples.len(), SHOWN.min(samples.len())).into_vec();
        chosen.sort_unstable();
        let preprocess = model.preprocess()?;
        let mut images = Vec::with_capacity(chosen.len());
        let mut pixels = Vec::new();
        for &i in &chosen {
            let image = samples[i].load()?;
            pixels.extend(preprocess.apply(&image)?);
            images.push(image);
        }
        let logits = model.logits(self.values, &pixels)?;
        let rows = logits.chunks_exact(dataset.classes.len());
        let tiles = chosen.iter().zip(images).zip(rows).filter_map(|((&i, image), row)| {
            let &(class, probability) = top_k(row, 1).first()?;
            Some(Tile {
                image,
                truth: dataset.classes[samples[i].label as usize].clone(),
                predicted: dataset.classes[class].clone(),
                probability,
            })
        });
        Ok(tiles.collect())
    }
}

fn point(record: &EpochRecord) -> EpochPoint {
    EpochPoint {
        epoch: record.epoch,
        train_loss: record.train_loss,
        train_acc1: Some(record.train_acc1),
        val_loss: record.val.loss,
        val_acc1: record.val.acc1,
    }
}
