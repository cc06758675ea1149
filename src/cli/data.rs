//! `vpt data`: look into data sets and make them.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;
use vpt::data::Dataset;
use vpt::data::examine::{Counts, Summary};
use vpt::data::shapes::{self, Pairs, ShapesConfig, Style, Task};
use vpt::report::table;

use super::output::Output;
use super::{Global, one_of};

/// Look into a data set, or generate one
#[derive(Debug, Args)]
pub(crate) struct Data {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Info(Info),
    /// Generate a data set
    #[command(subcommand)]
    Make(Make),
}

#[derive(Debug, Subcommand)]
enum Make {
    Shapes(Shapes),
}

/// Layout, classes, splits and image sizes of a data set; reads every image
///
/// Layouts: image folder (train/ val/ test/ or flat; a folder for each class), CSV or TSV of path and label, IDX (the MNIST
/// family, gz or not). Missing splits are drawn by --seed and said. The content hash is the same for the same images,
/// classes and splits in any lossless layout. Exit code 1 if an image cannot be read.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vpt data info photos/")]
struct Info {
    /// Folder or file of the data set, or `shapes`
    #[arg(value_name = "PATH|shapes")]
    data: PathBuf,
}

/// Draw pictures of coloured shapes, with train, val and test
///
/// Classification: one object in each image, an image folder with a class for each pair of colour and shape ("red circle").
/// Detection: up to five objects, the COCO layout with a category for each shape. The same --seed draws the same bytes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vpt data make shapes --out shapes/\n  \
                        vpt data make shapes --out shifted/ --style shifted --images 2048 --seed 7\n  \
                        vpt data make shapes --out boxes/ --task detect --images 300 --size 256")]
struct Shapes {
    /// The folder to fill; new or empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What the data is for
    #[arg(long, value_name = "TASK", default_value = "classify", value_parser = one_of::<Task>(Task::NAMES))]
    task: Task,
    /// Images in all: about five eighths train, an eighth val, a quarter test
    #[arg(long, value_name = "N", default_value_t = ShapesConfig::default().images)]
    images: usize,
    /// Side of the images, in pixels
    #[arg(long, value_name = "PIXELS", default_value_t = ShapesConfig::default().size)]
    size: usize,
    /// As clip-nano saw them in pre-training, or shifted: turned, wobbly, pale, over hatching and noise
    #[arg(long, value_name = "STYLE", default_value = "plain", value_parser = one_of::<Style>(Style::NAMES))]
    style: Style,
    /// Colour-shape pairs: all 64, the 48 that clip-nano has seen, or the 16 that it has not
    #[arg(long, value_name = "PAIRS", default_value = "all", value_parser = one_of::<Pairs>(Pairs::NAMES))]
    pairs: Pairs,
}

pub(crate) fn run(args: Data, global: &Global, out: Output) -> anyhow::Result<()> {
    match args.command {
        Command::Info(args) => {
            let summary = Dataset::open(&args.data, global.seed())?.summary();
            out.result(&summary, || describe(&summary))?;
            let bad = summary.unreadable.len();
            anyhow::ensure!(bad == 0, "{}: {bad} unreadable images", args.data.display());
            Ok(())
        }
        Command::Make(Make::Shapes(args)) => make_shapes(&args, global, out),
    }
}

fn make_shapes(args: &Shapes, global: &Global, out: Output) -> anyhow::Result<()> {
    let Shapes { images, size, style, pairs, task, .. } = *args;
    let config = ShapesConfig { images, seed: global.seed(), style, pairs, task, size };
    let [train, val, test] = match task {
        Task::Classify => shapes::write_folder(&args.out, &config)?,
        Task::Detect => shapes::write_coco(&args.out, &config)?,
    };
    let result = json!({
        "out": args.out,
        "task": task,
        "images": { "train": train, "val": val, "test": test },
        "size": size,
        "style": style,
        "pairs": pairs,
        "seed": config.seed,
    });
    out.result(&result, || {
        format!("{train} train, {val} val and {test} test images of {size}x{size} pixels in {}", args.out.display())
    })
}

/// Most unreadable images that are listed.
const LISTED: usize = 20;

fn describe(summary: &Summary) -> String {
    let size = |range: Option<[usize; 2]>| match range {
        Some([least, most]) if least == most => least.to_string(),
        Some([least, most]) => format!("{least} to {most}"),
        None => "-".to_owned(),
    };
    let Counts { train, val, test } = summary.images;
    let mut text = table::pairs(&[
        ("name", summary.name.clone()),
        ("layout", format!("{:?}", summary.layout).to_lowercase()),
        ("splits", summary.split_note.clone()),
        ("images", format!("{} ({train} train, {val} val, {test} test)", train + val + test)),
        ("width", format!("{} pixels", size(summary.width))),
        ("height", format!("{} pixels", size(summary.height))),
        ("content hash", summary.content_hash.clone().unwrap_or_else(|| "-".to_owned())),
    ]);
    let rows: Vec<Vec<String>> = summary
        .classes
        .iter()
        .map(|class| {
            let Counts { train, val, test } = class.images;
            [train, val, test].iter().fold(vec![class.name.clone()], |mut row, n| {
                row.push(n.to_string());
                row
            })
        })
        .collect();
    text.push('\n');
    text += &table::columns(&["class", "train", "val", "test"], &rows);
    if !summary.unreadable.is_empty() {
        let mut lines = vec!["\nunreadable".to_owned()];
        lines.extend(summary.unreadable.iter().take(LISTED).map(|image| image.error.clone()));
        if summary.unreadable.len() > LISTED {
            lines.push(format!("… and {} more", summary.unreadable.len() - LISTED));
        }
        text += &lines.join("\n");
    }
    text
}
