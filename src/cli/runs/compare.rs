//! `vpt runs compare`.

use serde_json::{Map, Value, json};
use vpt::metrics::Scores;
use vpt::report::table;
use vpt::runs::{Run, RunComparison, RunGroup, RunSpread, compare, scores};

use super::{cell, state};
use crate::cli::output::Output;
use crate::cli::printable;
use crate::cli::train::energy;

pub(super) fn run(runs: &[Run], out: Output) -> anyhow::Result<()> {
    let comparison = compare(runs)?;
    let json = json!({
        "runs": runs,
        "scores": runs.iter().map(|run| json!({ "val": part(run, val), "test": part(run, test) })).collect::<Vec<_>>(),
        "differences": comparison.differences,
        "groups": comparison.groups,
    });
    out.result(&json, || describe(runs, &comparison))
}

fn val(run: &Run) -> Option<&Scores> {
    run.results.as_ref().and_then(|results| results.val.as_ref())
}

fn test(run: &Run) -> Option<&Scores> {
    run.results.as_ref().map(|results| &results.test)
}

/// Every metric of a part, as JSON.
fn part(run: &Run, of: fn(&Run) -> Option<&Scores>) -> Option<Value> {
    let values = of(run).map(scores)?;
    Some(Value::Object(values.into_iter().map(|(name, value)| (name, json!(value))).collect::<Map<_, _>>()))
}

fn describe(runs: &[Run], comparison: &RunComparison) -> String {
    let names: Vec<String> = runs.iter().map(|run| printable(&run.name)).collect();
    let header: Vec<&str> = std::iter::once("").chain(names.iter().map(String::as_str)).collect();
    let row = |name: &str, values: Vec<String>| std::iter::once(name.to_owned()).chain(values).collect::<Vec<_>>();
    let mut rows = vec![row("state", runs.iter().map(state).collect())];
    for difference in &comparison.differences {
        let values = difference.values.iter().map(|value| cell(value.as_deref().map(unquoted))).collect();
        rows.push(row(&difference.name, values));
    }
    let number = |value: Option<usize>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    rows.push(row("best epoch", runs.iter().map(|run| number(run.best_epoch)).collect()));
    for (name, of) in [("val", val as fn(&Run) -> Option<&Scores>), ("test", test)] {
        let parts: Vec<_> = runs.iter().map(|run| of(run).map(scores).unwrap_or_default()).collect();
        let mut metrics: Vec<&str> = Vec::new();
        for (metric, _) in parts.iter().flatten() {
            if !metrics.contains(&metric.as_str()) {
                metrics.push(metric);
            }
        }
        for metric in metrics {
            let value = |part: &Vec<(String, f64)>| part.iter().find(|(name, _)| name == metric).map(|(_, v)| *v);
            let values = parts.iter().map(|part| value(part).map_or_else(|| "-".to_owned(), |v| shown(metric, v)));
            rows.push(row(&format!("{name} {metric}"), values.collect()));
        }
    }
    let ece = |run: &Run| table::percent(run.results.as_ref().and_then(|r| r.ece).map(|ece| ece.test.after));
    if runs.iter().any(|run| run.results.as_ref().is_some_and(|r| r.ece.is_some())) {
        rows.push(row("test ECE", runs.iter().map(ece).collect()));
    }
    let time = |run: &Run| run.results.as_ref().map_or_else(|| "-".to_owned(), |r| table::seconds(r.wall_s));
    rows.push(row("time", runs.iter().map(time).collect()));
    if runs.iter().any(|run| run.results.as_ref().is_some_and(|r| r.energy.is_some())) {
        let energy = |run: &Run| run.results.as_ref().map_or_else(|| "-".to_owned(), energy);
        rows.push(row("energy", runs.iter().map(energy).collect()));
    }
    let mut text = table::columns(&header, &rows);
    for group in &comparison.groups {
        text = text + "\n" + &means(group);
    }
    text
}

/// Means over the runs of a group.
fn means(group: &RunGroup) -> String {
    let seeds: Vec<String> = group.seeds.iter().map(u64::to_string).collect();
    let row = |spread: &RunSpread| {
        let of = |part: &[RunSpread]| {
            let spread = part.iter().find(|other| other.metric == spread.metric);
            spread.map_or_else(|| "-".to_owned(), |s| spread_text(&s.metric, s.mean, s.sd))
        };
        vec![spread.metric.clone(), of(&group.val), of(&group.test)]
    };
    let table = table::columns(&["", "val", "test"], &group.test.iter().map(row).collect::<Vec<_>>());
    let names: Vec<String> = group.runs.iter().map(|name| printable(name)).collect();
    format!("mean ± sd over seeds {}: {}\n{table}", seeds.join(", "), names.join(", "))
}

/// Whether a metric is no share.
fn is_plain(metric: &str) -> bool {
    metric == "loss"
}

fn shown(metric: &str, value: f64) -> String {
    if is_plain(metric) { format!("{value:.4}") } else { table::percent(value) }
}

fn spread_text(metric: &str, mean: f64, sd: f64) -> String {
    if is_plain(metric) { format!("{mean:.4} ± {sd:.4}") } else { format!("{:.1} ± {:.1} %", mean * 100., sd * 100.) }
}

/// A value of `config.toml` without the quotes of a plain text.
fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(value)
}
