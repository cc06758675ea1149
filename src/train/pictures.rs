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
    report::{self, Curve, Tile},
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
        let curve = |name, value: &dyn Fn(&EpochRecord) -> f64| {
            Curve::new(name, self.history.iter().map(|record| (record.epoch, value(record))))
        };
        let losses = [curve("train", &|r| r.train_loss), curve("validation", &|r| r.val.loss)];
        let scores = [curve("train", &|r| r.train_acc1), curve("validation", &|r| r.val.acc1)];
        let svg = report::curves_svg(&title, ("loss", &losses), ("accuracy (top 1)", &scores), self.selected)?;
        folder.write(run_folder::CURVES, svg)?;
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
