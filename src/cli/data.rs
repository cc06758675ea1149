//! `vpt data`: look into data sets and make them.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use vpt::data::Dataset;
use vpt::data::examine::{Counts, Summary};
use vpt::report::table;

use super::Global;
use super::output::Output;

/// Look into a data set, or generate one
#[derive(Debug, Args)]
pub(crate) struct Data {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Info(Info),
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

pub(crate) fn run(args: Data, global: &Global, out: Output) -> anyhow::Result<()> {
    match args.command {
        Command::Info(args) => {
            let summary = Dataset::open(&args.data, global.seed())?.summary();
            out.result(&summary, || describe(&summary))?;
            let bad = summary.unreadable.len();
            anyhow::ensure!(bad == 0, "{}: {bad} unreadable images", args.data.display());
            Ok(())
        }
    }
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
