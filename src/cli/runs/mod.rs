//! `vpt runs`: look after run folders.

mod compare;
mod list;
mod remove;
mod show;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use vpt::runs::{Run, Sort, State, find};

use super::flags;
use super::output::Output;
use super::{Global, one_of, printable};

/// Where runs are, unless told otherwise.
pub(crate) const RUNS: &str = "runs";

/// List, show, compare and remove runs
///
/// A run is given by its folder, by its name below the folder of runs (classify/photos-vpt-deep-1), or by the last part of that
/// where no other run has it.
#[derive(Debug, Args)]
pub(crate) struct RunsArgs {
    #[command(subcommand)]
    command: RunsCommand,
}

#[derive(Debug, Subcommand)]
enum RunsCommand {
    List(List),
    Show(Show),
    Compare(Compare),
    Rm(Remove),
}

/// Every run with its state and its scores
///
/// Running: a process works on it. Interrupted and failed runs go on with `vpt train --resume RUN`, except those that failed
/// before they began. Of runs that are not finished, the epoch and the score are the best so far. Times are in UTC.
/// Columns that do not fit into 100 characters are left out, those of the name first; --json has all.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vpt runs list\n  vpt runs list --sort test\n  vpt runs list experiments/ --json")]
struct List {
    /// Folder of runs, or of folders of runs
    #[arg(value_name = "DIR", default_value = RUNS)]
    dir: PathBuf,
    /// By what they are sorted: the latest, the best and the largest come first
    #[arg(long, value_name = "BY", default_value = "time", value_parser = one_of::<Sort>(Sort::NAMES))]
    sort: Sort,
}

/// Everything about one run
///
/// Its result, the course of its training, its files, and those of its settings that are not what the defaults would be.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vpt runs show photos-vpt-deep-1")]
struct Show {
    /// Folder or name of the run
    #[arg(value_name = "RUN")]
    run: String,
    #[command(flatten)]
    root: Root,
}

/// Compare runs side by side
///
/// Settings that are not the same in all, and scores. Finished runs that differ by their seed alone are also put together: mean
/// and standard deviation (by n - 1) of each score.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  vpt runs compare photos-vpt-deep-1 photos-linear-1\n  \
                        vpt runs compare runs/classify/photos-vpt-deep-*")]
struct Compare {
    /// Folders or names of the runs
    #[arg(value_name = "RUN", required = true, num_args = 2..)]
    runs: Vec<String>,
    #[command(flatten)]
    root: Root,
}

/// Remove runs with all their files
///
/// Nothing is removed if one of them is running, or is no run folder, or holds a folder, which no run makes. Asks before, where
/// it can; elsewhere --yes is needed.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vpt runs rm photos-vpt-deep-1 photos-linear-1 --yes")]
struct Remove {
    /// Folders or names of the runs
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    root: Root,
}

/// Where names are looked up.
#[derive(Debug, Args)]
struct Root {
    /// Folder of the runs that names stand for
    #[arg(long = "runs", value_name = "DIR", default_value = RUNS)]
    dir: PathBuf,
}

impl Root {
    fn find(&self, names: &[String]) -> vpt::Result<Vec<Run>> {
        names.iter().map(|name| find(&self.dir, name)).collect()
    }
}

pub(crate) fn run(args: &RunsArgs, global: &Global, out: Output) -> anyhow::Result<()> {
    match &args.command {
        RunsCommand::List(args) => list::run(args, out),
        RunsCommand::Show(args) => show::run(&find(&args.root.dir, &args.run)?, out),
        RunsCommand::Compare(args) => compare::run(&args.root.find(&args.runs)?, out),
        RunsCommand::Rm(args) => remove::run(args, &args.root.find(&args.runs)?, global, out),
    }
}

/// The state in words.
fn state(run: &Run) -> String {
    let of = run.epochs.map_or_else(String::new, |epochs| format!(" of {epochs}"));
    match run.state {
        State::Running if run.epochs.is_none() => "running".to_owned(),
        State::Running | State::Interrupted => format!("{}, {}{of} epochs", run.state, run.epochs_done),
        State::Failed if run.epochs_done > 0 => format!("failed, {}{of} epochs", run.epochs_done),
        state => state.to_string(),
    }
}

/// What was read from a file, fit for a cell of a table; a dash for nothing.
fn cell(text: Option<&str>) -> String {
    text.map_or_else(|| "-".to_owned(), printable)
}

/// `value` as JSON, with `more` fields after its own.
fn with_fields(run: &Run, more: serde_json::Value) -> anyhow::Result<serde_json::Value> {
    let mut value = serde_json::to_value(run).context("run")?;
    value["problems"] = run.problems.iter().map(flags::words).collect();
    if let (Some(all), serde_json::Value::Object(more)) = (value.as_object_mut(), more) {
        all.extend(more);
    }
    Ok(value)
}
