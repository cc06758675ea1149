//! Summary of the jobs of a folder: means over seeds, means over data sets, differences between methods.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    GridMethod, Mode,
    grid::GridFile,
    job::{JobResult, PartResult},
};
use vpt_base::{Error, Result, parallel, random::stream};
use vpt_model::metrics::{
    Scores,
    bootstrap::{self, Interval, paired, paired_statistics},
    coco::MatchedDetections,
    segment::{ClassPixels, weighted_miou},
};
use vpt_train::config::Task;

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
    /// Images, or boxes, a class; 0 where nothing is learned.
    pub shots: usize,
    /// Part it was measured on.
    pub part: String,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// The metrics of the task.
    #[serde(flatten)]
    pub scores: CellScores,
}

/// Metrics over the seeds, by the task.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum CellScores {
    /// One class an image.
    Classify {
        /// Accuracy.
        acc1: Spread,
        /// Recall of each class, averaged over the classes; not for derived parts.
        mean_per_class_recall: Option<Spread>,
        /// Expected calibration error without a temperature; not for derived parts.
        ece: Option<Spread>,
    },
    /// Boxes.
    Detect {
        /// Average precision.
        #[serde(rename = "AP")]
        ap: Spread,
        /// The same at IoU .5.
        #[serde(rename = "AP50")]
        ap50: Option<Spread>,
        /// The same at IoU .75.
        #[serde(rename = "AP75")]
        ap75: Option<Spread>,
    },
    /// Masks.
    Segment {
        /// Mean IoU.
        #[serde(rename = "mIoU")]
        miou: Spread,
        /// Share of the pixels that are told rightly.
        pixel_acc: Option<Spread>,
        /// Mean accuracy of the classes.
        mean_acc: Option<Spread>,
    },
}

impl Cell {
    /// What methods are compared by: accuracy, AP, mIoU.
    pub fn main(&self) -> &Spread {
        match &self.scores {
            CellScores::Classify { acc1, .. } => acc1,
            CellScores::Detect { ap, .. } => ap,
            CellScores::Segment { miou, .. } => miou,
        }
    }

    /// The metric that stands beside it in tables: AP50.
    pub fn second(&self) -> Option<&Spread> {
        match &self.scores {
            CellScores::Classify { .. } | CellScores::Segment { .. } => None,
            CellScores::Detect { ap50, .. } => ap50.as_ref(),
        }
    }
}

/// What the metric is called that methods are compared by.
pub(super) fn main_metric(task: Task) -> &'static str {
    match task {
        Task::Detect => "AP",
        Task::Segment => "mIoU",
        _ => "acc1",
    }
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
    /// Accuracy of the one less that of the other, or AP or mIoU.
    #[serde(flatten)]
    pub interval: Interval,
    /// The same of AP50, for boxes.
    #[serde(rename = "AP50", skip_serializing_if = "Option::is_none")]
    pub ap50: Option<Interval>,
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

/// Of one job and part: accuracy, recall, calibration error; of boxes AP, AP50, AP75; of masks mIoU, accuracy of pixels and of classes.
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
    let acc1 = |part: &str| job.part(part).map(|result| result.metrics.main());
    if let Some(PartResult { metrics, ece, .. }) = job.part(part) {
        return Some(match metrics {
            Scores::Detect(boxes) => (boxes.ap, Some(boxes.ap50), Some(boxes.ap75)),
            Scores::Segment(pixels) => (pixels.miou, Some(pixels.pixel_acc), Some(pixels.mean_acc)),
            metrics => {
                let recall = metrics.classify().map(|metrics| metrics.mean_per_class_recall);
                (metrics.main(), recall, ece.map(|ece| ece.before))
            }
        });
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
    let methods: BTreeMap<usize, GridMethod> = jobs.iter().map(|job| (job.method.rank(), job.method)).collect();
    let cell = |(key, by_seed): (Key, BTreeMap<u64, PartScores>)| {
        let (dataset, method, shots, part) = key;
        let spread = |values: Option<Vec<f64>>| values.map(|values| Spread::of(&values));
        Cell {
            dataset,
            method: methods[&method],
            shots,
            part: parts[part].clone(),
            seeds: by_seed.keys().copied().collect(),
            scores: {
                let main = Spread::of(&by_seed.values().map(|v| v.0).collect::<Vec<_>>());
                let [second, third] =
                    [by_seed.values().map(|v| v.1).collect(), by_seed.values().map(|v| v.2).collect()].map(spread);
                match grid.task() {
                    Task::Detect => CellScores::Detect { ap: main, ap50: second, ap75: third },
                    Task::Segment => CellScores::Segment { miou: main, pixel_acc: second, mean_acc: third },
                    _ => CellScores::Classify { acc1: main, mean_per_class_recall: second, ece: third },
                }
            },
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
        let (mut differences, mut found_by) = (Vec::new(), Vec::<(&MatchedDetections, &MatchedDetections)>::new());
        let mut told_by = Vec::<[&[Vec<ClassPixels>]; 2]>::new();
        for job in one {
            // What learns nothing stands beside every seed.
            let beside = other.iter().find(|o| o.seed == job.seed || o.shots == 0);
            let Some(than) = beside.and_then(|other| other.part(&part.name)) else { continue };
            let Some(this) = job.part(&part.name) else { continue };
            if this.images_hash != part.images_hash || than.images_hash != part.images_hash {
                continue;
            }
            match (&this.matched, &than.matched, &this.pixels, &than.pixels) {
                (Some(this), Some(than), None, None) => found_by.push((this, than)),
                (None, None, Some(this), Some(than)) => told_by.push([this, than]),
                (None, None, None, None) => {
                    differences.push(bootstrap::differences(&this.correct()?, &than.correct()?));
                }
                _ => {
                    return Err(Error::invalid(
                        format!("part {}", part.name),
                        "is of boxes or masks in one job and of something else in another",
                    ));
                }
            }
        }
        let (method, than, dataset) = (one[0].method, other[0].method, one[0].dataset.clone());
        let purpose = format!("paired {dataset} {shots} {} {method} {than}", part.name);
        let rng = &mut stream(0, &purpose, 0, 0);
        let (seeds, intervals) = if !told_by.is_empty() {
            let difference = |seed: usize, times: &[u32]| {
                let [this, than] = told_by[seed];
                Some([weighted_miou(this, times)? - weighted_miou(than, times)?])
            };
            let intervals = paired_statistics(told_by.len(), part.images, difference, rng);
            (told_by.len(), intervals.map(|[interval]| (interval, None)))
        } else if found_by.is_empty() {
            (differences.len(), paired(&differences, rng).map(|interval| (interval, None)))
        } else {
            let difference = |seed: usize, times: &[u32]| {
                let (this, than) = found_by[seed];
                let ([ap, ap50], [other, other50]) = (this.precision(times)?, than.precision(times)?);
                Some([ap - other, ap50 - other50])
            };
            let intervals = paired_statistics(found_by.len(), part.images, difference, rng);
            (found_by.len(), intervals.map(|[ap, ap50]| (ap, Some(ap50))))
        };
        if let Some((interval, ap50)) = intervals {
            let (part, images) = (part.name.clone(), part.images);
            found.push(Comparison { dataset, shots, part, method, than, seeds, images, interval, ap50 });
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
