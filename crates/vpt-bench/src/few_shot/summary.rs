//! Summary of the jobs of a folder: means over seeds, means over data sets, differences between methods.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    GridMethod, Mode,
    grid::GridFile,
    job::{JobResult, PartResult},
};
use vpt_base::{Result, parallel, random::stream};
use vpt_model::metrics::bootstrap::{self, Interval, paired};

/// The part of the mean between base and new classes.
pub(super) const HARMONIC: &str = "harmonic mean";
/// The part of the mean over the other data sets.
pub(super) const TARGETS: &str = "mean of targets";

/// A mean over seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The standard deviation of a sample; `None` of a single one.
    pub sd: Option<f64>,
}

impl Spread {
    /// The mean and standard deviation of `values`, of which there must be one.
    pub(crate) fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Self { mean, sd: (values.len() > 1).then(|| (squares / (n - 1.)).sqrt()) }
    }
}

/// Metrics of a method with so many shots, over the seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cell {
    /// The data set; `None` for the mean of all.
    pub dataset: Option<String>,
    /// The method.
    pub method: GridMethod,
    /// Images a class; 0 where nothing is learned.
    pub shots: usize,
    /// Part it was measured on.
    pub part: String,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// Accuracy.
    pub acc1: Spread,
    /// Recall of each class, averaged over the classes; not for derived parts.
    pub mean_per_class_recall: Option<Spread>,
    /// Expected calibration error without a temperature; not for derived parts.
    pub ece: Option<Spread>,
}

/// How much better one method is than another, with the same draws on the same images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The data set.
    pub dataset: String,
    /// Images a class.
    pub shots: usize,
    /// Part both were measured on.
    pub part: String,
    /// The one.
    pub method: GridMethod,
    /// The other.
    pub than: GridMethod,
    /// Seeds that both have.
    pub seeds: usize,
    /// Images of the part.
    pub images: usize,
    /// Accuracy of the one less that of the other.
    #[serde(flatten)]
    pub interval: Interval,
}

/// A job that failed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Failure {
    /// Its name.
    pub job: String,
    /// Why.
    pub error: String,
}

/// Contents of a folder.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Settings its jobs have in common.
    pub grid: GridFile,
    /// The results by data set, method, shots and seed.
    pub jobs: Vec<JobResult>,
    /// Means over seeds, for each data set and then for all of them.
    pub cells: Vec<Cell>,
    /// Differences between methods.
    pub comparisons: Vec<Comparison>,
    /// Jobs that failed and were not done since.
    pub failures: Vec<Failure>,
}

/// Of one job and part: accuracy, recall, calibration error.
type PartScores = (f64, Option<f64>, Option<f64>);
/// Data set, rank of the method, shots and position of the part.
type Key = (Option<String>, usize, usize, usize);

impl Summary {
    /// Summary of `jobs`.
    pub fn new(grid: GridFile, mut jobs: Vec<JobResult>, failures: Vec<Failure>, threads: usize) -> Result<Self> {
        let key = |job: &JobResult| (job.dataset.clone(), job.method.rank(), job.shots, job.seed);
        jobs.sort_by_key(key);
        let cells = cells(&grid, &jobs);
        let comparisons = comparisons(&jobs, threads)?;
        Ok(Self { grid, jobs, cells, comparisons, failures })
    }

    /// Names of the data sets that jobs learned from, and after them `None` for their mean if there are several.
    pub fn datasets(&self) -> Vec<Option<&str>> {
        let mut names: Vec<Option<&str>> = self.jobs.iter().map(|job| Some(job.dataset.as_str())).collect();
        names.dedup();
        if self.cells.iter().any(|cell| cell.dataset.is_none()) {
            names.push(None);
        }
        names
    }

    /// The cells of a data set, or of the mean.
    pub fn cells_of<'a>(&'a self, dataset: Option<&'a str>) -> impl Iterator<Item = &'a Cell> + Clone {
        self.cells.iter().filter(move |cell| cell.dataset.as_deref() == dataset)
    }

    /// Methods in the order of tables.
    pub fn methods(&self) -> Vec<GridMethod> {
        let mut methods: Vec<_> = self.jobs.iter().map(|job| job.method).collect();
        methods.sort_by_key(|method| method.rank());
        methods.dedup();
        methods
    }

    /// The numbers of shots, 0 among them where there is a method that learns nothing.
    pub fn shots(&self) -> Vec<usize> {
        let mut shots: Vec<_> = self.jobs.iter().map(|job| job.shots).collect();
        shots.sort_unstable();
        shots.dedup();
        shots
    }

    /// The parts, in the order of tables.
    pub fn parts(&self) -> Vec<String> {
        parts(&self.grid)
    }
}

fn parts(grid: &GridFile) -> Vec<String> {
    match grid.mode {
        Mode::FewShot => vec!["test".to_owned()],
        Mode::BaseToNew => ["base", "new", HARMONIC].map(str::to_owned).to_vec(),
        Mode::Cross => {
            let targets = grid.targets.iter().cloned();
            std::iter::once("test".to_owned()).chain(targets).chain([TARGETS.to_owned()]).collect()
        }
    }
}

/// Metrics of `job` on `part`, which may be one that follows from others.
fn values(grid: &GridFile, job: &JobResult, part: &str) -> Option<PartScores> {
    let acc1 = |part: &str| job.part(part).map(|result| result.metrics.acc1);
    if let Some(PartResult { metrics, ece, .. }) = job.part(part) {
        return Some((metrics.acc1, Some(metrics.mean_per_class_recall), Some(ece.before)));
    }
    match (grid.mode, part) {
        (Mode::BaseToNew, HARMONIC) => Some((harmonic(acc1("base")?, acc1("new")?), None, None)),
        (Mode::Cross, TARGETS) => {
            let targets = grid.targets.iter().map(|target| acc1(target)).collect::<Option<Vec<_>>>()?;
            Some((Spread::of(&targets).mean, None, None)).filter(|_| !targets.is_empty())
        }
        _ => None,
    }
}

/// The harmonic mean of two accuracies; 0 if both are.
fn harmonic(base: f64, new: f64) -> f64 {
    if base + new > 0. { 2. * base * new / (base + new) } else { 0. }
}

fn cells(grid: &GridFile, jobs: &[JobResult]) -> Vec<Cell> {
    let parts = parts(grid);
    let mut by_seed: BTreeMap<Key, BTreeMap<u64, PartScores>> = BTreeMap::new();
    for job in jobs {
        for (i, part) in parts.iter().enumerate() {
            if let Some(values) = values(grid, job, part) {
                let key = (Some(job.dataset.clone()), job.method.rank(), job.shots, i);
                by_seed.entry(key).or_default().insert(job.seed, values);
            }
        }
    }
    let mut datasets: Vec<&String> = jobs.iter().map(|job| &job.dataset).collect();
    datasets.dedup();
    let means = if datasets.len() > 1 { over_datasets(&datasets, &by_seed) } else { BTreeMap::new() };
    let methods = GridMethod::all();
    let cell = |(key, by_seed): (Key, BTreeMap<u64, PartScores>)| {
        let (dataset, method, shots, part) = key;
        let spread = |values: Option<Vec<f64>>| values.map(|values| Spread::of(&values));
        Cell {
            dataset,
            method: methods[method],
            shots,
            part: parts[part].clone(),
            seeds: by_seed.keys().copied().collect(),
            acc1: Spread::of(&by_seed.values().map(|v| v.0).collect::<Vec<_>>()),
            mean_per_class_recall: spread(by_seed.values().map(|v| v.1).collect()),
            ece: spread(by_seed.values().map(|v| v.2).collect()),
        }
    };
    by_seed.into_iter().chain(means).map(cell).collect()
}

/// The mean over `datasets` for each seed that all of them have.
fn over_datasets(
    datasets: &[&String],
    by_seed: &BTreeMap<Key, BTreeMap<u64, PartScores>>,
) -> BTreeMap<Key, BTreeMap<u64, PartScores>> {
    let mut means: BTreeMap<Key, BTreeMap<u64, PartScores>> = BTreeMap::new();
    for ((_, method, shots, part), seeds) in by_seed.iter().filter(|(key, _)| key.0.as_ref() == Some(datasets[0])) {
        for seed in seeds.keys() {
            let of = |dataset: &&String| {
                by_seed.get(&(Some((*dataset).clone()), *method, *shots, *part))?.get(seed).copied()
            };
            let Some(all) = datasets.iter().map(of).collect::<Option<Vec<PartScores>>>() else { continue };
            let mean = |values: Option<Vec<f64>>| values.map(|values| Spread::of(&values).mean);
            let acc1 = Spread::of(&all.iter().map(|v| v.0).collect::<Vec<_>>()).mean;
            let others = (mean(all.iter().map(|v| v.1).collect()), mean(all.iter().map(|v| v.2).collect()));
            let key = (None, *method, *shots, *part);
            means.entry(key).or_default().insert(*seed, (acc1, others.0, others.1));
        }
    }
    means
}

/// Every pair of methods that learned from the same draws, and each of them beside those that learn nothing.
fn comparisons(jobs: &[JobResult], threads: usize) -> Result<Vec<Comparison>> {
    let mut groups: BTreeMap<(&str, usize), BTreeMap<usize, Vec<&JobResult>>> = BTreeMap::new();
    for job in jobs {
        groups.entry((&job.dataset, job.shots)).or_default().entry(job.method.rank()).or_default().push(job);
    }
    let unlearned = |dataset: &str| groups.get(&(dataset, 0)).cloned().unwrap_or_default();
    let mut pairs = Vec::new();
    for (&(dataset, shots), methods) in &groups {
        let mut methods = methods.clone();
        if shots > 0 {
            methods.extend(unlearned(dataset));
        }
        let methods: Vec<_> = methods.into_values().collect();
        for (i, one) in methods.iter().enumerate() {
            pairs.extend(methods[..i].iter().map(|other| (dataset, shots, one.clone(), other.clone())));
        }
    }
    let parts = parallel::shares(pairs.len(), threads, |range| {
        pairs[range].iter().map(|(_, shots, one, other)| compare(*shots, one, other)).collect::<Result<Vec<_>>>()
    });
    Ok(parts.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().flatten().collect())
}

/// How much better `one` is than `other` on each part; both are of one data set.
pub(crate) fn compare(shots: usize, one: &[&JobResult], other: &[&JobResult]) -> Result<Vec<Comparison>> {
    let mut found = Vec::new();
    for part in &one[0].parts {
        let mut differences = Vec::new();
        for job in one {
            // What learns nothing stands beside every seed.
            let beside = other.iter().find(|o| o.seed == job.seed || o.shots == 0);
            let Some(than) = beside.and_then(|other| other.part(&part.name)) else { continue };
            let Some(this) = job.part(&part.name) else { continue };
            if this.images_hash != part.images_hash || than.images_hash != part.images_hash {
                continue;
            }
            differences.push(bootstrap::differences(&this.correct()?, &than.correct()?));
        }
        let (method, than, dataset) = (one[0].method, other[0].method, one[0].dataset.clone());
        let purpose = format!("paired {dataset} {shots} {} {method} {than}", part.name);
        if let Some(interval) = paired(&differences, &mut stream(0, &purpose, 0, 0)) {
            let (part, seeds, images) = (part.name.clone(), differences.len(), part.images);
            found.push(Comparison { dataset, shots, part, method, than, seeds, images, interval });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_those_of_a_sample() {
        let spread = Spread::of(&[0.5, 0.7, 0.9]);
        assert!((spread.mean - 0.7).abs() < 1e-12 && (spread.sd.unwrap() - 0.2).abs() < 1e-12);
        assert_eq!(Spread::of(&[0.5]), Spread { mean: 0.5, sd: None });
    }

    #[test]
    fn the_harmonic_mean_is_nearer_to_the_lower() {
        assert!((harmonic(0.8, 0.4) - 0.64 / 1.2).abs() < 1e-12);
        assert!(harmonic(0., 0.).abs() < 1e-12);
    }
}
