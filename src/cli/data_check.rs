//! `vpt data check`: everything that is wrong with a data set, a line each.

use std::path::PathBuf;

use clap::Args;
use vpt::data::check::{FindingKind, Report, check};
use vpt::data::masks::check_masks;
use vpt::report::table;

use super::Global;
use super::data::is_of_masks;
use super::output::Output;
use super::progress::ProgressDisplay;

/// Find what is wrong with a data set: files, images, duplicates, classes, tables, annotations; reads every image
///
/// Prints a line for each finding, `path:line: message [kind]`, the line where the file is text, and how many there are of
/// each kind. It does not stop at the first: data that `vpt train` refuses is looked at to its end.
///
/// An error stops `vpt train`, makes it leave something out, or makes its numbers wrong: the same image in train and in test.
/// A warning can be lived with. Exit code 1 if anything was found, warnings too; 0 if nothing was.
///
/// --json: data, layout (folder, csv, `split_zhou`, fgvc, list, idx, coco, yolo, voc, `voc-masks`, ade20k, `mask-pairs` or null), fast, images, errors, warnings, kinds (how
/// many of each), `wall_s`, `images_per_minute`, findings (a list of kind, severity, path, line or null, message).
///
/// `vpt train` runs the part that --fast leaves before anything else, and tells the first warnings.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vpt data check photos/\n  vpt data check cells/ --fast --json", after_long_help = kinds())]
pub(super) struct Check {
    /// Folder or file of the data set
    #[arg(value_name = "DIR")]
    data: PathBuf,
    /// Read lists and the headers of images only: finds no damage behind headers and no duplicates
    #[arg(long)]
    fast: bool,
    /// Take the data set for one of masks, where it is also one of boxes
    #[arg(long, value_name = "TASK", value_parser = ["segment"])]
    task: Option<String>,
}

fn kinds() -> String {
    let examples = "Examples:\n  vpt data check photos/\n  vpt data check cells/ --fast --json";
    format!("Kinds of findings:\n  {}\n\n{examples}", FindingKind::NAMES.join("\n  "))
}

pub(super) fn run(args: &Check, global: &Global, out: Output) -> anyhow::Result<()> {
    let mut progress = ProgressDisplay::new(global.quiet);
    let tell = &mut |done, total| progress.at("checking", done, total, String::new);
    let report = if is_of_masks(&args.data, args.task.as_deref()) {
        check_masks(&args.data, args.fast, tell)?
    } else {
        check(&args.data, args.fast, tell)?
    };
    progress.clear();
    out.result(&report, || describe(&report))?;
    anyhow::ensure!(report.findings.is_empty(), "{}: {}", args.data.display(), found(&report));
    Ok(())
}

fn found(Report { errors, warnings, .. }: &Report) -> String {
    let counted = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    match (errors, warnings) {
        (0, 0) => "nothing".to_owned(),
        (&errors, 0) => counted(errors, "error"),
        (0, &warnings) => counted(warnings, "warning"),
        (&errors, &warnings) => format!("{}, {}", counted(errors, "error"), counted(warnings, "warning")),
    }
}

fn describe(report: &Report) -> String {
    let lines: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    let mut text = lines.join("\n");
    if !report.findings.is_empty() {
        let rows: Vec<Vec<String>> =
            report.kinds.iter().map(|(kind, count)| vec![(*kind).to_owned(), count.to_string()]).collect();
        text += "\n\n";
        text += &table::columns(&["kind", "times"], &rows);
        text.push('\n');
    }
    let speed = format!("{:.0} images a minute", report.images_per_minute);
    text + &table::pairs(&[
        ("layout", report.layout.unwrap_or("none that is known").to_owned()),
        ("images", report.images.to_string()),
        ("time", format!("{}, {speed}", table::seconds(report.wall_s))),
        ("found", found(report)),
    ])
}
