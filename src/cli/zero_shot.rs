//! `vpt zero-shot`: CLIP or SigLIP classifies by texts, without training.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;
use vpt::backbone::Backbone;
use vpt::data::cards::{Card, CardTexts};
use vpt::data::{Dataset, MadeParts, MeasuredPart, MultilabelDataset, Split};
use vpt::energy::EnergyMeter;
use vpt::report::table;
use vpt::{backbone::class_texts::Prompts, eval::zero_shot::ZeroShotPass};

use super::carbon::CarbonArgs;
use super::output::Output;
use super::progress::ProgressDisplay;
use super::{Global, metrics, multilabel_metrics, split};

/// Classify with CLIP or SigLIP by class names alone
///
/// Every class name is put into every template, as in "a photo of a cat.", and each image goes to the class whose texts are nearest. This is
/// computed as `CLIP_benchmark` does: embeddings of texts are normalised, averaged over the templates and normalised again.
///
/// Published numbers hold for published class names and templates only. Where the data is a public set that `vpt data list` knows, these are taken from
/// its card. The output says which were used.
///
/// With --scores sigmoid, which SigLIP was trained for, each class is judged by itself, and an image may have several.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vpt zero-shot --data shapes\n  \
                        vpt zero-shot --backbone clip-vit-b32 --data pets/ --templates templates.txt --classnames names.txt")]
pub(crate) struct ZeroShot {
    /// CLIP or SigLIP backbone: known name or folder in the Hugging Face layout
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
    /// The public data set whose card (`vpt data info NAME`) names the classes and has the templates: auto recognises it, none leaves it
    /// at the data's names
    #[arg(long, value_name = "NAME|auto|none", default_value = "auto")]
    dataset_card: String,
    /// Side of the images the backbone sees, in pixels; a multiple of its patch size [default: the backbone's]
    #[arg(long, allow_negative_numbers = true, value_name = "PIXELS")]
    image_size: Option<usize>,
    /// What logits become: one class an image (softmax), or each class by itself, of data with any number of classes an image too (sigmoid)
    #[arg(long, value_enum, value_name = "WAY", default_value = "softmax")]
    scores: ScoreFunction,
    #[command(flatten)]
    carbon: CarbonArgs,
}

/// What logits become.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScoreFunction {
    Softmax,
    Sigmoid,
}

/// What is classified: images with a class each, or with any number of them.
enum ClassifiedImages {
    Single(Dataset),
    Several(MultilabelDataset),
}

impl ClassifiedImages {
    /// What lies at the path of the arguments. Several classes an image can only be told by themselves.
    fn open(args: &ZeroShot, seed: u64) -> anyhow::Result<Self> {
        let several = match args.scores {
            ScoreFunction::Softmax => None,
            ScoreFunction::Sigmoid => {
                let measured = MeasuredPart { split: args.split, learned: None };
                MultilabelDataset::open_with(&args.data, seed, false, MadeParts::Measured(measured)).ok()
            }
        };
        Ok(match several {
            Some(data) => Self::Several(data),
            None => Self::Single(Dataset::open(&args.data, seed)?),
        })
    }

    fn dataset(&self) -> &Dataset {
        match self {
            Self::Single(dataset) => dataset,
            Self::Several(data) => &data.dataset,
        }
    }

    /// Whether images with these labels have each class.
    fn truth(&self, labels: &[u32]) -> vpt::Result<Vec<bool>> {
        match self {
            Self::Single(dataset) => {
                let classes = 0..dataset.classes.len();
                Ok(labels.iter().flat_map(|&label| classes.clone().map(move |class| class == label as usize)).collect())
            }
            Self::Several(data) => data.sets.truth(labels),
        }
    }
}

pub(crate) fn run(args: &ZeroShot, global: &Global, out: Output) -> anyhow::Result<()> {
    args.carbon.carbon()?;
    let meter = EnergyMeter::start();
    let mut progress = ProgressDisplay::new(global.quiet);
    let images = ClassifiedImages::open(args, global.seed())?;
    let dataset = images.dataset();
    progress.line(&format!("{}: {}", dataset.name, dataset.split_note));
    let mut prompts = Prompts::of_names(&dataset.classes);
    let card = if args.templates.is_some() && args.classnames.is_some() {
        None
    } else {
        Card::choose(Some(&args.dataset_card), &dataset.name, &dataset.classes)?
    };
    let mut taken = card.as_ref().map_or_else(CardTexts::default, |card| card.texts(false));
    if let Some(path) = &args.templates {
        prompts.templates = Prompts::read_templates(path, Some(&dataset.name))?;
        taken.templates.clear();
    } else if !taken.templates.is_empty() {
        prompts.templates.clone_from(&taken.templates);
    }
    if let Some(path) = &args.classnames {
        prompts.classnames = Prompts::read_classnames(path, &dataset.name, &dataset.classes)?;
        taken.names.clear();
    } else if !taken.names.is_empty() {
        prompts.classnames.clone_from(&taken.names);
    }
    if let Some(card) = &card {
        progress
            .line(&format!("{}; --dataset-card none leaves it at the data's names", card.note(&dataset.name, &taken)));
    }
    let options = global.open_options(args.weights_dir.as_deref(), args.image_size);
    let backbone = Backbone::open(&args.backbone, &options)?;
    backbone.note().iter().for_each(|note| progress.line(note));
    let (threads, split) = (global.threads(), args.split);
    let show = &mut |done, total| progress.at("classifying", done, total, String::new);
    let pass = ZeroShotPass { backbone: &backbone, dataset, split, prompts: &prompts, threads };
    let (count, scores, shown) = match args.scores {
        ScoreFunction::Softmax => {
            let tally = pass.one_class(show)?;
            let scores = tally.metrics();
            (tally.images(), json!(scores), metrics(&scores))
        }
        ScoreFunction::Sigmoid => {
            let truth = |labels: &[u32]| images.truth(labels);
            let tally = pass.each_class(&truth, show)?;
            let scores = tally.metrics();
            (tally.images() as u64, json!(scores), multilabel_metrics(&scores))
        }
    };
    progress.clear();
    let took = args.carbon.took(&meter, &format!("zero-shot of {} on {}", backbone.name, dataset.name))?;
    let mut result = json!({
        "backbone": backbone.name,
        "data": dataset.name,
        "split": args.split,
        "images": count,
        "classnames": prompts.classnames,
        "templates": prompts.templates,
        "metrics": scores,
    });
    took.tell(&mut result);
    let card = card.map(|found| found.card.name);
    if let Some(card) = &card {
        result["dataset_card"] = json!(card);
    }
    let card = card.map(|card| format!("of the card {card}"));
    let from =
        |is_taken: bool, otherwise: &str| card.clone().filter(|_| is_taken).unwrap_or_else(|| otherwise.to_owned());
    let (names_from, templates_from) =
        (from(!taken.names.is_empty(), "of the data"), from(!taken.templates.is_empty(), "built in"));
    out.result(&result, || {
        let mut rows = vec![
            ("backbone", backbone.name.clone()),
            ("data", format!("{}, {}: {} images, {} classes", dataset.name, args.split, count, dataset.classes.len())),
            ("class names", listed(&prompts.classnames, args.classnames.as_ref(), &names_from)),
            ("templates", listed(&prompts.templates, args.templates.as_ref(), &templates_from)),
        ];
        rows.extend(shown);
        rows.extend(took.if_asked());
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
