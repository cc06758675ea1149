//! `vpt runs rm`.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;
use serde_json::json;
use vpt::report::table;
use vpt::runs::{Doomed, Run, doom};

use super::Remove;
use crate::cli::output::{Output, stderr_is_terminal};
use crate::cli::{Global, Usage, printable};

pub(super) fn run(args: &Remove, runs: &[Run], global: &Global, out: Output) -> anyhow::Result<()> {
    // All are looked at before the first is touched. A run that was named twice goes once.
    let mut doomed: Vec<(&Run, Doomed)> = Vec::new();
    for run in runs {
        let path = run.path.canonicalize().with_context(|| run.path.display().to_string())?;
        if doomed.iter().all(|(_, other)| other.path() != path) {
            doomed.push((run, doom(&run.path)?));
        }
    }
    let bytes: u64 = doomed.iter().map(|(run, _)| run.bytes).sum();
    let names: Vec<String> = doomed.iter().map(|(run, _)| printable(&run.name)).collect();
    if !args.yes && !confirmed(&format!("remove {} ({})?", names.join(", "), table::bytes(bytes)), global, out)? {
        doomed.clear();
    }
    let mut removed = Vec::new();
    for (run, folder) in doomed {
        removed.push(folder.path().display().to_string());
        folder.remove().with_context(|| run.name.clone())?;
    }
    let bytes = if removed.is_empty() { 0 } else { bytes };
    out.result(&json!({ "removed": removed, "bytes": bytes }), || {
        if removed.is_empty() {
            return "nothing was removed".to_owned();
        }
        format!("removed {} ({})", names.join(", "), table::bytes(bytes))
    })
}

/// Whether the user says yes to `question`.
fn confirmed(question: &str, global: &Global, out: Output) -> anyhow::Result<bool> {
    if out.is_json() || global.quiet || !io::stdin().is_terminal() || !stderr_is_terminal() {
        return Err(Usage("--yes is needed to remove runs where nobody can be asked".to_owned()).into());
    }
    let mut stderr = io::stderr().lock();
    write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush()).context("stderr")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("stdin")?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}
