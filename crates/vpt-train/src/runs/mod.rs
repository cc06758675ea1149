//! Run folders after the fact: which there are, what each came to, how they differ, and how to be rid of one.
//!
//! Folders are taken as they are found. One that is damaged is still a run: what is wrong with it is among its
//! [`Run::problems`], and what can be read is read.

mod compare;
mod find;
mod remove;
mod settings;

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

pub use self::{
    compare::{Difference, RunComparison, RunGroup, RunSpread, compare, scores},
    find::{find, list},
    remove::{Doomed, doom},
    settings::ConfigEntry,
};
use crate::{
    config::{RunConfig, Select, Task},
    report::table,
    train::{Results, Stage, run_folder},
};
use vpt_base::{Error, Message, Result, choice::choice, files::read_limited};
use vpt_model::{methods::Method, metrics::Scores};

/// Longer than any run's lines of metrics.
const MAX_METRICS: u64 = 64 << 20;
/// Longer than any error.
const MAX_ERROR: u64 = 64 << 10;
/// Folders in folders that are added up; a run has none of its own.
const MAX_DEPTH: usize = 4;

choice! {
    /// What has become of a run.
    pub enum State for "state" {
        /// A process works on it.
        Running = "running",
        /// It has its result.
        Finished = "finished",
        /// It was stopped or killed.
        Interrupted = "interrupted",
        /// An error ended it, or it never began.
        Failed = "failed",
        /// Its files do not say.
        Damaged = "damaged",
    }
}

choice! {
    /// By what runs are sorted.
    #[derive(Default)]
    pub enum Sort for "sort" {
        /// The latest first.
        #[default]
        Time = "time",
        /// By name.
        Name = "name",
        /// By task, then by name.
        Task = "task",
        /// By method, then by name.
        Method = "method",
        /// By data, then by name.
        Data = "data",
        /// The best on validation first.
        Val = "val",
        /// The best on test first.
        Test = "test",
        /// The largest first.
        Size = "size",
    }
}

/// A line of `metrics.jsonl`, of any task: what all have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// The epoch, counted from 1.
    pub epoch: usize,
    /// In detection, what learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// Steps since the run began.
    #[serde(default, skip_serializing)]
    pub(crate) step: u64,
    /// Mean training loss over the epoch.
    pub train_loss: f64,
    /// On the validation images, after the epoch, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val: Option<Scores>,
}

/// A run as its folder tells of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    /// Its path below the folder of runs, or as it was asked for.
    pub name: String,
    /// Its folder.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// What has become of it.
    pub state: State,
    /// Whether [`resume`](crate::train::resume) would go on with it.
    pub resumable: bool,
    /// Epochs that are finished.
    pub epochs_done: usize,
    /// Epochs in all.
    pub epochs: Option<usize>,
    /// What is learned.
    pub task: Option<Task>,
    /// How.
    pub method: Option<Method>,
    /// On which backbone.
    pub backbone: Option<String>,
    /// From which data.
    pub data: Option<String>,
    /// With which seed.
    pub seed: Option<u64>,
    /// The epoch that counts, or would if the run ended now.
    pub best_epoch: Option<usize>,
    /// What `val` and `test` are: acc1, mAP or AP.
    pub metric: Option<&'static str>,
    /// The main score of that epoch on the validation images, a fraction of one.
    pub val: Option<f64>,
    /// On the test images, of a finished run.
    pub test: Option<f64>,
    /// When its result was written, or else any of its files, in UTC.
    #[serde(serialize_with = "rfc3339")]
    pub changed: Option<SystemTime>,
    /// Bytes of its files.
    pub bytes: u64,
    /// The error that ended it.
    pub error: Option<String>,
    /// What is wrong with its folder.
    #[serde(serialize_with = "as_text")]
    pub problems: Vec<Message>,
    /// Its configuration.
    #[serde(skip)]
    pub config: Option<RunConfig>,
    /// Its result.
    #[serde(skip)]
    pub results: Option<Results>,
    /// Its epochs.
    #[serde(skip)]
    pub history: Vec<Epoch>,
}

impl Run {
    /// Reads the run folder `path`, which is to be called `name`. What cannot be read is told by [`Run::problems`].
    pub fn read(path: &Path, name: String) -> Self {
        let mut problems = Vec::new();
        let config = read(path, run_folder::CONFIG, RunConfig::load, &mut problems);
        let results = read(path, run_folder::RESULTS, Results::load, &mut problems);
        let history = read(path, run_folder::METRICS, history, &mut problems).unwrap_or_default();
        let error = read(path, run_folder::ERROR, error_text, &mut problems);
        let has = |name: &str| path.join(name).exists();
        let finished = has(run_folder::RESULTS);
        if finished {
            let left = [run_folder::CONFIG, run_folder::METRICS, run_folder::BEST, run_folder::CHECKPOINT];
            problems.extend(left.into_iter().filter(|file| !has(file)).map(|file| format!("{file} is missing").into()));
        }
        let begun = has(run_folder::CHECKPOINT) || has(run_folder::METRICS) || has(run_folder::BEST);
        let state = match (&results, &config) {
            _ if run_folder::in_use(path) => State::Running,
            (Some(_), _) => State::Finished,
            (None, Some(_)) if !finished => match error {
                Some(_) => State::Failed,
                None => State::Interrupted,
            },
            // config.toml is the last file to be written before anything is learned.
            (None, None) if !finished && !begun && !has(run_folder::CONFIG) => State::Failed,
            _ => State::Damaged,
        };
        if state == State::Damaged && begun && !has(run_folder::CONFIG) && !finished {
            problems.push(format!("{} is missing", run_folder::CONFIG).into());
        }
        let resumable = matches!(state, State::Interrupted | State::Failed) && config.is_some();
        let select = config.as_ref().and_then(|config| config.select).unwrap_or(Select::Best);
        let best = best(&history, select);
        let val = results.as_ref().and_then(|r| r.val.as_ref()).or(best.and_then(|epoch| epoch.val.as_ref()));
        let shown = |scores: &Scores| Some(scores.main()).filter(|&share| share >= 0.);
        let of_result = results.as_ref();
        Self {
            name,
            path: path.to_path_buf(),
            state,
            resumable,
            epochs_done: history.len(),
            epochs: config.as_ref().and_then(|c| c.epochs),
            task: of_result.map(|r| r.task).or(config.as_ref().map(|c| c.task)),
            method: of_result.map(|r| r.method).or(config.as_ref().map(|c| c.method)),
            backbone: of_result.map(|r| r.backbone.clone()).or(config.as_ref().map(|c| c.backbone.clone())),
            data: of_result.map(|r| r.data.clone()).or(config.as_ref().map(|c| c.data.clone())),
            seed: of_result.map(|r| r.seed).or(config.as_ref().map(|c| c.seed)),
            best_epoch: of_result.map(|r| r.best_epoch).or(best.map(|epoch| epoch.epoch)),
            metric: val.map(main_metric),
            val: val.and_then(shown),
            test: of_result.and_then(|r| shown(&r.test)),
            changed: changed(path),
            bytes: bytes(path, 0),
            error,
            problems,
            config,
            results,
            history,
        }
    }

    /// Its files with their sizes in bytes, by name.
    pub fn files(&self) -> Vec<(String, u64)> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let mut files: Vec<_> = entries
            .filter_map(|entry| {
                let meta = entry.metadata().ok().filter(fs::Metadata::is_file)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                (name != run_folder::LOCK).then_some((name, meta.len()))
            })
            .collect();
        files.sort();
        files
    }
}

/// Sorts `runs`, equals by name.
pub fn sort(runs: &mut [Run], by: Sort) {
    runs.sort_by(|a, b| {
        let order = match by {
            Sort::Time => b.changed.cmp(&a.changed),
            Sort::Name => std::cmp::Ordering::Equal,
            Sort::Task => a.task.map(Task::name).cmp(&b.task.map(Task::name)),
            Sort::Method => a.method.map(Method::name).cmp(&b.method.map(Method::name)),
            Sort::Data => a.data.cmp(&b.data),
            Sort::Val => b.val.unwrap_or(-1.).total_cmp(&a.val.unwrap_or(-1.)),
            Sort::Test => b.test.unwrap_or(-1.).total_cmp(&a.test.unwrap_or(-1.)),
            Sort::Size => b.bytes.cmp(&a.bytes),
        };
        order.then_with(|| a.name.cmp(&b.name))
    });
}

fn as_text<S: serde::Serializer>(messages: &[Message], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(messages.iter().map(ToString::to_string))
}

/// The content of a run's `file`, if there is such a file; what is wrong with it is added to `problems`.
fn read<T>(run: &Path, file: &str, load: fn(&Path) -> Result<T>, problems: &mut Vec<Message>) -> Option<T> {
    let path = run.join(file);
    if !path.exists() {
        return None;
    }
    load(&path).map_err(|error| problems.push(error.message())).ok()
}

fn error_text(path: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&read_limited(path, MAX_ERROR)?).trim().to_owned())
}

/// The lines of `metrics.jsonl`. The last may be half a line, when the run was killed while it wrote.
fn history(path: &Path) -> Result<Vec<Epoch>> {
    let bytes = read_limited(path, MAX_METRICS)?;
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let lines = bytes[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let epoch = |(number, line): (usize, &[u8])| {
        let at = || Message::from(format!("line {}: ", number + 1));
        let bad = |error| Error::file(path, at().text(Message::of_reader(&error)));
        serde_json::from_slice(line).map_err(bad)
    };
    lines.enumerate().map(epoch).collect()
}

/// The epoch that counts: the last, or the best of the last stage.
fn best(history: &[Epoch], select: Select) -> Option<&Epoch> {
    let last = history.last()?;
    if select == Select::Last {
        return Some(last);
    }
    let Some(mut rank) = last.val.as_ref().map(Scores::rank) else { return Some(last) };
    let mut best = last;
    // Backwards: of equals the earlier counts.
    for epoch in history.iter().rev().filter(|epoch| epoch.stage == last.stage) {
        if let Some(own) = epoch.val.as_ref().map(Scores::rank).filter(|own| *own >= rank) {
            (best, rank) = (epoch, own);
        }
    }
    Some(best)
}

fn main_metric(scores: &Scores) -> &'static str {
    match scores {
        Scores::Classify(_) => "acc1",
        Scores::Multilabel(_) => "mAP",
        Scores::Detect(_) => "AP",
        Scores::Segment(_) => "mIoU",
    }
}

/// When the run's result was written, or else the last of its files.
fn changed(run: &Path) -> Option<SystemTime> {
    let time = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    time(&run.join(run_folder::RESULTS)).or_else(|| {
        let entries = fs::read_dir(run).ok()?.flatten();
        entries.filter_map(|entry| time(&entry.path())).max().or_else(|| time(run))
    })
}

/// Bytes of all files below `folder`.
fn bytes(folder: &Path, depth: usize) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() && depth < MAX_DEPTH => bytes(&entry.path(), depth + 1),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.map(size).fold(0, u64::saturating_add)
}

/// A path that may be no UTF-8.
fn lossy<S: serde::Serializer>(path: &Path, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

#[allow(clippy::ref_option, reason = "as serde calls it")]
fn rfc3339<S: serde::Serializer>(time: &Option<SystemTime>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    time.map(|time| format!("{}Z", table::utc(time).replace(' ', "T"))).serialize(serializer)
}

#[cfg(test)]
mod tests;
