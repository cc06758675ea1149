//! `vpt predict`: classes of images.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use vpt::infer::predict::{Prediction, predict};
use vpt::report::table;

use super::Global;
use super::model::ModelArgs;
use super::output::Output;
use super::progress::Progress;

/// Classify images with a trained task file
///
/// Prints the most likely class of each image with its probability, and the next likely ones.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vpt predict --model runs/classify/photos-vpt-deep-1 new/*.jpg")]
pub(crate) struct Predict {
    #[command(flatten)]
    model: ModelArgs,
    /// Image files: JPEG, PNG, WebP, BMP, TIFF, GIF
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
}

pub(crate) fn run(args: &Predict, global: &Global, out: Output) -> anyhow::Result<()> {
    let task = args.model.open(global)?;
    let mut progress = Progress::new(global.quiet);
    let predictions =
        predict(&task, &args.images, &mut |done, total| progress.at("predicting", done, total, String::new))?;
    progress.clear();
    out.result(&json!({ "model": args.model.path(), "predictions": predictions }), || {
        table::columns(&["image", "class", "probability", "next"], &predictions.iter().map(row).collect::<Vec<_>>())
    })
}

fn row(prediction: &Prediction) -> Vec<String> {
    let next =
        prediction.top5[1..].iter().map(|guess| format!("{} {}", guess.label, table::percent(guess.probability)));
    let next = next.collect::<Vec<_>>().join(", ");
    vec![prediction.image.clone(), prediction.label.clone(), table::percent(prediction.probability), next]
}
