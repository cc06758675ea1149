//! `vpt runs show`.

use serde_json::json;
use vpt::metrics::Scores;
use vpt::report::table;
use vpt::runs::{ConfigEntry, Epoch, Run, State};

use super::{cell, state, with_fields};
use crate::cli::flags::words;
use crate::cli::output::Output;
use crate::cli::printable;
use crate::cli::train::{beside_alone, calibration, energy, scores};

/// Characters of a curve.
const WIDTH: usize = 48;

pub(super) fn run(run: &Run, out: Output) -> anyhow::Result<()> {
    let changed = run.changed_settings()?;
    let files = run.files();
    let configuration = run.config.as_ref().map(vpt::config::RunConfig::to_toml).transpose()?;
    let configuration: Option<toml::Table> = configuration.as_deref().map(toml::from_str).transpose()?;
    let names: Vec<&str> = changed.iter().map(|setting| setting.name.as_str()).collect();
    let more = json!({
        "configuration": configuration,
        "changed_settings": names,
        "results": run.results,
        "history": run.history,
        "files": files.iter().map(|(name, bytes)| json!({ "name": name, "bytes": bytes })).collect::<Vec<_>>(),
    });
    out.result(&with_fields(run, more)?, || describe(run, &changed, &files))
}

fn describe(run: &Run, changed: &[ConfigEntry], files: &[(String, u64)]) -> String {
    let mut rows = vec![
        ("run", printable(&run.name)),
        ("folder", printable(&run.path.display().to_string())),
        ("state", state(run)),
        ("task", cell(run.task.map(vpt::config::Task::name))),
        (
            "method",
            format!(
                "{} on {}",
                cell(run.method.map(vpt::methods::Method::name).as_deref()),
                cell(run.backbone.as_deref())
            ),
        ),
        ("data", cell(run.data.as_deref())),
        ("seed", run.seed.map_or_else(|| "-".to_owned(), |seed| seed.to_string())),
    ];
    rows.extend(run.changed.map(|time| ("changed", format!("{} UTC", table::utc(time)))));
    if let Some(results) = &run.results {
        let learned = table::count(results.trainable_params as u64);
        let frozen = table::count(results.backbone_params);
        rows.push(("learned", format!("{learned} values beside {frozen} frozen ones")));
        rows.push(("images", format!("{} to learn from, {} classes", results.train_images, results.classes)));
        rows.extend(calibration(results).map(|text| ("calibration", text)));
        rows.extend(beside_alone(results));
        rows.push(("time", format!("{}, {:.0} images/s", table::seconds(results.wall_s), results.img_per_s)));
        rows.extend(results.peak_rss_bytes.map(|bytes| ("memory", table::bytes(bytes))));
        rows.extend(results.energy.as_ref().map(|_| ("energy", energy(results))));
    }
    rows.extend(run.best_epoch.map(|epoch| ("epoch", epoch.to_string())));
    rows.extend(run.error.iter().map(|error| ("error", printable(error))));
    rows.extend(run.problems.iter().map(|problem| ("problem", printable(&words(problem)))));
    if run.resumable {
        rows.push(("go on", format!("vpt train --resume {}", printable(&run.path.display().to_string()))));
    } else if run.state == State::Failed {
        rows.push(("go on", "not possible: it ended before it began".to_owned()));
    }
    let mut text = table::pairs(&rows);
    if let Some(results) = &run.results {
        text = text + "\n" + &scores(results);
    }
    text += &history(&run.history);
    if run.config.is_some() {
        text += "\nsettings that are not the defaults\n";
        let shown: Vec<_> = changed.iter().map(|s| vec![format!("  {}", s.name), printable(&s.value)]).collect();
        text += &if shown.is_empty() { "  none\n".to_owned() } else { indented(&shown) };
    }
    text += "\nfiles\n";
    let shown: Vec<_> =
        files.iter().map(|(name, size)| vec![format!("  {}", printable(name)), table::bytes(*size)]).collect();
    text + &indented(&shown)
}

/// A table without a header.
fn indented(rows: &[Vec<String>]) -> String {
    let table = table::columns(&["", ""], rows);
    table.split_once('\n').map_or_else(String::new, |(_, rows)| rows.to_owned())
}

/// How training went: each curve with its first value, its best and its last.
fn history(epochs: &[Epoch]) -> String {
    let (Some(first), Some(last)) = (epochs.first(), epochs.last()) else { return String::new() };
    let curve = |of: fn(&Epoch) -> f64| table::sparkline(&epochs.iter().map(of).collect::<Vec<_>>(), WIDTH);
    let score = |epoch: &Epoch| epoch.val.as_ref().map_or(f64::NAN, Scores::main);
    let best = epochs.iter().map(score).fold(f64::MIN, f64::max);
    let percent = |share: f64| table::percent((share >= 0.).then_some(share));
    let least = epochs.iter().map(|epoch| epoch.train_loss).fold(f64::MAX, f64::min);
    let loss = |value: f64| format!("{value:.4}");
    let mut rows = vec![
        vec![
            "training loss".to_owned(),
            loss(first.train_loss),
            loss(least),
            loss(last.train_loss),
            curve(|epoch| epoch.train_loss),
        ],
        vec!["val score".to_owned(), percent(score(first)), percent(best), percent(score(last)), curve(score)],
    ];
    if last.val.is_none() {
        rows.pop();
    }
    format!("\n{}", table::columns(&["", "first", "best", "last", ""], &rows))
}
