//! Runs side by side: where their configurations differ, and what runs that differ by their seed alone have in common.

use serde::Serialize;
use serde_json::Value;

use super::{ConfigEntry, Run};
use crate::config::RunConfig;
use vpt_base::Result;
use vpt_model::metrics::Scores;

/// A field that is not the same in all runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Its name.
    pub name: String,
    /// Its values, in the order of the runs; `None` where a run has no such field or its configuration cannot be read.
    pub values: Vec<Option<String>>,
}

/// Mean and standard deviation of a score over runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunSpread {
    /// The metric.
    pub metric: String,
    /// The mean.
    pub mean: f64,
    /// The standard deviation, of a sample: by n - 1.
    pub sd: f64,
}

/// Finished runs that differ by their seed alone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunGroup {
    /// Their names.
    pub runs: Vec<String>,
    /// Their seeds, in the same order.
    pub seeds: Vec<u64>,
    /// Of every metric that all have, on validation.
    pub val: Vec<RunSpread>,
    /// The same on test.
    pub test: Vec<RunSpread>,
}

/// Runs side by side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunComparison {
    /// Fields that are not the same in all runs.
    pub differences: Vec<Difference>,
    /// Groups of at least two runs.
    pub groups: Vec<RunGroup>,
}

/// Compares `runs`.
pub fn compare(runs: &[Run]) -> Result<RunComparison> {
    let settings = runs.iter().map(|run| run.config.as_ref().map(RunConfig::settings).transpose());
    let settings: Vec<Option<Vec<ConfigEntry>>> = settings.collect::<Result<_>>()?;
    let mut names: Vec<&str> = Vec::new();
    for setting in settings.iter().flatten().flatten().filter(|setting| setting.name != "out") {
        if !names.contains(&setting.name.as_str()) {
            names.push(&setting.name);
        }
    }
    let value = |of: &Option<Vec<ConfigEntry>>, name: &str| {
        of.iter().flatten().find(|setting| setting.name == name).map(|setting| setting.value.clone())
    };
    let differences = names.into_iter().filter_map(|name| {
        let values: Vec<_> = settings.iter().map(|of| value(of, name)).collect();
        let differ = values.windows(2).any(|pair| pair[0] != pair[1]);
        differ.then(|| Difference { name: name.to_owned(), values })
    });
    Ok(RunComparison { differences: differences.collect(), groups: groups(runs, &settings) })
}

fn groups(runs: &[Run], settings: &[Option<Vec<ConfigEntry>>]) -> Vec<RunGroup> {
    let same = |setting: &&ConfigEntry| setting.name != "seed" && !setting.is_place();
    let mut found: Vec<(Vec<&ConfigEntry>, Vec<&Run>)> = Vec::new();
    for (run, settings) in runs.iter().zip(settings) {
        let (Some(_), Some(settings)) = (&run.results, settings) else { continue };
        let key: Vec<&ConfigEntry> = settings.iter().filter(same).collect();
        match found.iter_mut().find(|(other, _)| *other == key) {
            Some((_, members)) => members.push(run),
            None => found.push((key, vec![run])),
        }
    }
    let seeds = |members: &[&Run]| members.iter().filter_map(|run| run.seed).collect::<Vec<_>>();
    let group = |members: Vec<&Run>| RunGroup {
        runs: members.iter().map(|run| run.name.clone()).collect(),
        seeds: seeds(&members),
        val: spreads(members.iter().filter_map(|run| run.results.as_ref()?.val.as_ref())),
        test: spreads(members.iter().filter_map(|run| Some(&run.results.as_ref()?.test))),
    };
    // The same run, or a repetition of it, says nothing of the spread.
    let differ = |members: &[&Run]| {
        let mut seeds = seeds(members);
        seeds.sort_unstable();
        seeds.windows(2).all(|pair| pair[0] != pair[1])
    };
    found.into_iter().map(|(_, runs)| runs).filter(|runs| runs.len() > 1 && differ(runs)).map(group).collect()
}

fn spreads<'a>(all: impl Iterator<Item = &'a Scores>) -> Vec<RunSpread> {
    let all: Vec<Vec<(String, f64)>> = all.map(scores).collect();
    let metrics = all.first().into_iter().flatten().map(|(metric, _)| metric);
    let spread = |metric: &String| {
        let value = |of: &Vec<(String, f64)>| of.iter().find(|(name, _)| name == metric).map(|(_, value)| *value);
        let values = all.iter().map(value).collect::<Option<Vec<f64>>>()?;
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Some(RunSpread { metric: metric.clone(), mean, sd: (squares / (n - 1.).max(1.)).sqrt() })
    };
    metrics.filter_map(spread).collect()
}

/// Every metric that has a value, by its name in `results.json`.
pub fn scores(scores: &Scores) -> Vec<(String, f64)> {
    let Ok(Value::Object(map)) = serde_json::to_value(scores) else { return Vec::new() };
    // COCO's metric is -1 where there is nothing to measure.
    let number = |(name, value): (String, Value)| Some((name, value.as_f64().filter(|&v| v >= 0.)?));
    map.into_iter().filter_map(number).collect()
}
