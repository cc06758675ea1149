//! The pictures of a finished run: curves, confusion matrix, and some validation images with their predictions.

use rand::seq::index;

use super::{
    checkpoint::EpochRecord,
    run_folder::{self, RunFolder},
    setup::Setup,
    source::Source,
};
use crate::{
    Result,
    data::multilabel::join,
    logits::top_k,
    metrics::Confusion,
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
    /// What logits are divided by before they become probabilities.
    pub(super) temperature: f64,
    /// On the test images, where an image has one class.
    pub(super) confusion: Option<&'a Confusion>,
}

impl Pictures<'_> {
    /// Draws all of them into `folder`.
    pub(super) fn write(&self, folder: &RunFolder) -> Result<()> {
        let Setup { plan, model, dataset, .. } = self.setup;
        let title = format!("{}, {} on {}", plan.config.method, model.backbone().name, dataset.name);
        let curve = |name, value: &dyn Fn(&EpochRecord) -> f64| {
            Curve::new(name, self.history.iter().map(|record| (record.epoch, value(record))))
        };
        let losses = [curve("train", &|r| r.train_loss), curve("validation", &|r| r.val.loss().unwrap_or(f64::NAN))];
        let f1 = |r: &EpochRecord| r.val.multilabel().map_or(f64::NAN, |metrics| metrics.micro_f1);
        let (axis, scores) = if self.setup.sets.is_some() {
            ("mAP, F1", [curve("validation mAP", &|r| r.val.main()), curve("validation micro F1", &f1)])
        } else {
            let train = curve("train", &|r| r.train_acc1.unwrap_or(f64::NAN));
            ("accuracy (top 1)", [train, curve("validation", &|r| r.val.main())])
        };
        let svg = report::curves_svg(&title, ("loss", &losses), (axis, &scores), self.selected)?;
        folder.write(run_folder::CURVES, svg)?;
        if let Some(confusion) = self.confusion {
            let test = format!("{title}: test images, % of each true class");
            folder.write(run_folder::CONFUSION, report::confusion_svg(&test, confusion, &dataset.classes)?)?;
        }
        folder.write(run_folder::VAL_PREDICTIONS, report::contact_sheet_jpeg(&self.tiles()?)?)
    }

    /// Some validation images, drawn by the seed, in the order of the data.
    fn tiles(&self) -> Result<Vec<Tile>> {
        let Setup { plan, model, dataset, sets, .. } = self.setup;
        let samples = &dataset.val;
        let rng = &mut stream(plan.config.seed, "val predictions", 0, 0);
        let mut chosen = index::sample(rng, samples.len(), SHOWN.min(samples.len())).into_vec();
        chosen.sort_unstable();
        let preprocess = model.preprocess()?;
        let mut images = Vec::with_capacity(chosen.len());
        let mut pixels = Vec::new();
        for &i in &chosen {
            let image = samples[i].load()?;
            if !self.setup.val.holds_features() {
                pixels.extend(preprocess.apply(&image)?);
            }
            images.push(image);
        }
        let logits = match &self.setup.val {
            Source::Features(features) => model.classifier(self.values)?.logits(&features.rows(&chosen, 0))?,
            Source::Images(_) | Source::Tokens { .. } => model.logits(self.values, &pixels)?,
        };
        let rows = logits.chunks_exact(dataset.classes.len());
        let names = &dataset.classes;
        let mut tiles = Vec::with_capacity(chosen.len());
        for ((&i, image), row) in chosen.iter().zip(images).zip(rows) {
            let label = samples[i].label;
            let (truth, predicted, probability) = if let Some(sets) = sets {
                let there = row.iter().zip(names).filter(|(logit, _)| **logit >= 0.).map(|(_, name)| name.as_str());
                (sets.names(label, names)?, join(there), None)
            } else {
                let Some(&(class, probability)) = top_k(row, 1, self.temperature).first() else { continue };
                (names[label as usize].clone(), names[class].clone(), Some(probability))
            };
            tiles.push(Tile { image, truth, predicted, probability });
        }
        Ok(tiles)
    }
}
