//! `vpt zero-shot`: CLIP classifies by texts, without training.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use vpt::backbone::{Backbone, OpenOptions};
use vpt::data::{Dataset, Split};
use vpt::report::table;
use vpt::{backbone::class_texts::Prompts, eval::zero_shot::zero_shot};

use super::output::Output;
use super::progress::ProgressDisplay;
use super::{Global, metrics, split};

/// Classify with CLIP by class names alone
///
/// Computed as `CLIP_benchmark` does: every template is filled with every class name and embedded; embeddings are normalised, averaged over the templates and
/// normalised again. Published numbers hold for published class names and templates only: the output says which were used.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vpt zero-shot --data shapes\n  \
                        vpt zero-shot --backbone clip-vit-b32 --data pets/ --templates templates.txt --classnames names.txt")]
pub(crate) struct ZeroShot {
    /// CLIP backbone: known name or folder in the Hugging Face layout
    #[arg(long, value_name = "NAME|DIR", default_value = "clip-nano")]
    backbone: String,
    /// Folder to look for known backbones in, before the local Hugging Face cache
    #[arg(long, value_name = "DIR")]
    weights_dir: Option<PathBuf>,
    /// Image folder, CSV/TSV file, folder of IDX files, or `shapes`
    #[arg(long, value_name = "PATH|shapes")]
    data: PathBuf,
    /// The part to measure: train, val or test
    #[arg(long, value_name = "SPLIT", default_value = "test", value_parser = split)]
    split: Split,
    /// Texts with {} or {c} for the class name, one a line or a JSON list [default: "a photo of a {}."]
    #[arg(long, value_name = "FILE")]
    templates: Option<PathBuf>,
    /// A name for each class in class order, one a line or a JSON list [default: the data's, with spaces for _]
    #[arg(long, value_name = "FILE")]
    classnames: Option<PathBuf>,
    /// Side of the images the backbone sees, in pixels; a multiple of its patch size [default: the backbone's]
    #[arg(long, allow_negative_numbers = true, value_name = "PIXELS")]
    image_size: Option<usize>,
}

pub(crate) fn run(args: &ZeroShot, global: &Global, out: Output) -> anyhow::Result<()> {
    let mut progress = ProgressDisplay::new(global.quiet);
    let dataset = Dataset::open(&args.data, global.seed())?;
    progress.line(&format!("{}: {}", dataset.name, dataset.split_note));
    let mut prompts = Prompts::of_names(&dataset.classes);
    if let Some(path) = &args.templates {
        prompts.templates = Prompts::read_templates(path)?;
    }
    if let Some(path) = &args.classnames {
        prompts.classnames = Prompts::read_classnames(path, &dataset.classes)?;
    }
    let options = OpenOptions {
        weights_dir: args.weights_dir.clone(),
        image_size: args.image_size,
        precision: global.precision(),
        max_memory: global.max_memory(),
    };
    let backbone = Backbone::open(&args.backbone, &options)?;
    let tally = zero_shot(&backbone, &dataset, args.split, &prompts, global.threads(), &mut |done, total| {
        progress.at("classifying", done, total, String::new);
    })?;
    progress.clear();
    let scores = tally.metrics();
    let result = json!({
        "backbone": backbone.name,
        "data": dataset.name,
        "split": args.split,
        "images": tally.images(),
        "classnames": prompts.classnames,
        "templates": prompts.templates,
        "metrics": scores,
    });
    out.result(&result, || {
        let mut rows = vec![
            ("backbone", backbone.name.clone()),
            (
                "data",
                format!(
                    "{}, {}: {} images, {} classes",
                    dataset.name,
                    args.split,
                    tally.images(),
                    dataset.classes.len()
                ),
            ),
            ("class names", listed(&prompts.classnames, args.classnames.as_ref(), "of the data")),
            ("templates", listed(&prompts.templates, args.templates.as_ref(), "built in")),
        ];
        rows.extend(metrics(&scores));
        table::pairs(&rows)
    })
}

/// The first few of `texts` and where they are from.
fn listed(texts: &[String], file: Option<&PathBuf>, otherwise: &str) -> String {
    let shown = texts.iter().take(4).map(|text| format!("\"{text}\"")).collect::<Vec<_>>().join(", ");
    let more = if texts.len() > 4 { format!(", … ({} in all)", texts.len()) } else { String::new() };
    let from = file.map_or_else(|| otherwise.to_owned(), |path| format!("from {}", path.display()));
    format!("{shown}{more}; {from}")
}
