//! `vpt runs list`.

use std::path::Path;

use serde_json::json;
use vpt::report::table;
use vpt::runs::{Run, State, list, sort};

use super::{List, RUNS, cell, state, with_fields};
use crate::cli::flags::words;
use crate::cli::output::Output;
use crate::cli::printable;

/// Characters of a problem; `vpt runs show` says it in full.
const MOST: usize = 400;

pub(super) fn run(args: &List, out: Output) -> anyhow::Result<()> {
    // Before the first run there is no such folder.
    let nothing_yet = args.dir == Path::new(RUNS) && !args.dir.exists();
    let mut runs = if nothing_yet { Vec::new() } else { list(&args.dir)? };
    sort(&mut runs, args.sort);
    let json = runs.iter().map(|run| with_fields(run, json!({}))).collect::<anyhow::Result<Vec<_>>>()?;
    out.result(&json!({ "root": args.dir.display().to_string(), "runs": json }), || {
        if runs.is_empty() { format!("no runs in {}", args.dir.display()) } else { describe(&runs) }
    })
}

/// Columns, and in which order they are left out where there is no room; 0 stay.
const COLUMNS: [(&str, u8); 12] = [
    ("name", 0),
    ("task", 2),
    ("method", 4),
    ("backbone", 5),
    ("data", 3),
    ("seed", 7),
    ("state", 0),
    ("epoch", 6),
    ("val", 0),
    ("test", 0),
    ("changed (UTC)", 8),
    ("size", 1),
];
/// Characters of a line.
const WIDTH: usize = 100;

/// The table of `runs`, without the columns that do not fit into [`WIDTH`].
fn fitting(runs: &[Run]) -> String {
    let rows: Vec<Vec<String>> = runs.iter().map(row).collect();
    let last = COLUMNS.iter().map(|(_, order)| *order).max().unwrap_or(0);
    let with = |left_out: u8| {
        let kept: Vec<usize> = (0..COLUMNS.len()).filter(|&i| !(1..=left_out).contains(&COLUMNS[i].1)).collect();
        let header: Vec<&str> = kept.iter().map(|&i| COLUMNS[i].0).collect();
        let cells: Vec<Vec<String>> = rows.iter().map(|row| kept.iter().map(|&i| row[i].clone()).collect()).collect();
        table::columns(&header, &cells)
    };
    let fits = |text: &String| text.lines().all(|line| line.chars().count() <= WIDTH);
    (0..last).map(with).find(fits).unwrap_or_else(|| with(last))
}

fn describe(runs: &[Run]) -> String {
    let mut text = fitting(runs);
    for run in runs {
        let why = run.error.clone().filter(|_| run.state == State::Failed);
        for line in run.problems.iter().map(words).chain(why) {
            let line: String = printable(&line).chars().take(MOST).collect();
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
        cell(run.method.map(vpt::methods::Method::name).as_deref()),
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
