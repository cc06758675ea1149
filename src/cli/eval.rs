//! `vpt eval`: metrics of a task file on a data set.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use vpt::data::{Dataset, Split};
use vpt::eval;
use vpt::report::table;

use super::model::ModelArgs;
use super::output::Output;
use super::progress::Progress;
use super::{Global, metrics, split};

/// Measure a trained task file on a data set
///
/// Classes are matched by name. The backbone is found as the task file names it and must be the one it was trained on.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vpt eval --model runs/classify/photos-vpt-deep-1 --data photos/ --split test")]
pub(crate) struct Eval {
    #[command(flatten)]
    model: ModelArgs,
    /// Image folder, CSV/TSV file, folder of IDX files, or `shapes`
    #[arg(long, value_name = "PATH|shapes")]
    data: PathBuf,
    /// The part to measure: train, val or test
    #[arg(long, value_name = "SPLIT", default_value = "test", value_parser = split)]
    split: Split,
}

pub(crate) fn run(args: &Eval, global: &Global, out: Output) -> anyhow::Result<()> {
    let mut progress = Progress::new(global.quiet);
    let dataset = Dataset::open(&args.data, global.seed())?;
    progress.line(&format!("{}: {}", dataset.name, dataset.split_note));
    let task = args.model.open(global)?;
    let tally = eval::evaluate(&task, &dataset, args.split, &mut |done, total| {
        progress.at("evaluating", done, total, String::new);
    })?;
    progress.clear();
    let (scores, meta) = (tally.metrics(), task.meta());
    let result = json!({
        "model": args.model.path(),
        "method": meta.method,
        "backbone": meta.backbone.name,
        "data": dataset.name,
        "split": args.split,
        "images": tally.images(),
        "classes": meta.classes.len(),
        "metrics": scores,
    });
    out.result(&result, || {
        let mut rows = vec![
            ("model", format!("{}, {} on {}", args.model.path().display(), meta.method, meta.backbone.name)),
            (
                "data",
                format!("{}, {}: {} images, {} classes", dataset.name, args.split, tally.images(), meta.classes.len()),
            ),
        ];
        rows.extend(metrics(&scores));
        table::pairs(&rows)
    })
}
