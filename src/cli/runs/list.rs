//! `vpt runs list`.

use std::path::Path;

use serde_json::json;
use vpt::report::table;
use vpt::runs::{Run, State, list, sort};

use super::{List, RUNS, cell, state};
use crate::cli::output::Output;
use crate::cli::printable;

/// Characters of a problem; `vpt runs show` says it in full.
const MOST: usize = 400;

pub(super) fn run(args: &List, out: Output) -> anyhow::Result<()> {
    // Before the first run there is no such folder.
    let nothing_yet = args.dir == Path::new(RUNS) && !args.dir.exists();
    let mut runs = if nothing_yet { Vec::new() } else { list(&args.dir)? };
    sort(&mut runs, args.sort);
    out.result(&json!({ "root": args.dir.display().to_string(), "runs": runs }), || {
        if runs.is_empty() { format!("no runs in {}", args.dir.display()) } else { describe(&runs) }
    })
}

fn describe(runs: &[Run]) -> String {
    let header = [
        "name",
        "task",
        "method",
        "backbone",
        "data",
        "seed",
        "state",
        "epoch",
        "val",
        "test",
        "changed (UTC)",
        "size",
    ];
    let mut text = table::columns(&header, &runs.iter().map(row).collect::<Vec<_>>());
    for run in runs {
        let why = run.error.iter().filter(|_| run.state == State::Failed);
        for line in run.problems.iter().chain(why) {
            let line: String = printable(line).chars().take(MOST).collect();
            text = text + &printable(&run.name) + ": " + &line + "\n";
        }
    }
    text
}

fn row(run: &Run) -> Vec<String> {
    let score = |share: Option<f64>| match (share, run.metric) {
        (Some(share), Some(metric)) => format!("{metric} {}", table::percent(share)),
        _ => "-".to_owned(),
    };
    vec![
        printable(&run.name),
        cell(run.task.map(vpt::config::Task::name)),
        cell(run.method.map(vpt::config::Method::name)),
        cell(run.backbone.as_deref()),
        cell(run.data.as_deref()),
        run.seed.map_or_else(|| "-".to_owned(), |seed| seed.to_string()),
        state(run),
        run.best_epoch.map_or_else(|| "-".to_owned(), |epoch| epoch.to_string()),
        score(run.val),
        table::percent(run.test),
        // Without the seconds.
        run.changed.map_or_else(|| "-".to_owned(), |time| table::utc(time).chars().take(16).collect()),
        table::bytes(run.bytes),
    ]
}
