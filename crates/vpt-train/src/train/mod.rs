//! Training: the loop and what it leaves on disk.
//!
//! [`run`] takes a [`RunConfig`] from nothing to a result, [`resume`] takes up a run that was cut off. Both end with the same
//! bytes in `best.safetensors`: everything random is named by seed, epoch and index, and a checkpoint holds all the rest.

mod average;
pub(crate) mod checkpoint;
mod evaluate;
pub mod features;
mod fit;
mod folds;
mod lr_search;
pub mod observer;
mod open_data;
pub(crate) mod process_group;
mod progress;
pub mod results;
pub mod run_folder;
mod run_writer;
mod session;
mod shares;
pub(crate) mod task;
#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

pub(crate) use self::evaluate::evaluate;
pub use self::{
    folds::FoldResults,
    lr_search::LrTrial,
    observer::{Event, Observer, Silent, Start},
    open_data::{IN_MEMORY, OpenData},
    progress::{EpochRecord, Stage},
    results::Results,
    task::dense::working_size,
};
use self::{
    process_group::ProcessGroup,
    run_folder::RunFolder,
    shares::Shares,
    task::{OpenedRun, RunRequest},
};
use crate::{
    config::{DENSE, RunConfig, Task},
    report,
};
use vpt_base::{Error, Result, files::write_atomic};
use vpt_cluster::Ranks;
use vpt_data::{MultilabelDataset, boxes::BoxDataset, cards::NO_CARD};
use vpt_energy::EnergyMeter;

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It is finished.
    Finished {
        /// Its folder.
        folder: PathBuf,
        /// What came out.
        results: Box<Results>,
    },
    /// The observer stopped it; [`resume`] goes on from here.
    Interrupted {
        /// Its folder; `None` if it was stopped before there was anything to keep.
        folder: Option<PathBuf>,
    },
}

/// Opens data and backbone of a run that all ranks of its group have in hand; `None` when the observer asked to stop.
fn open(request: RunRequest, observer: &mut dyn Observer) -> Result<Option<Box<dyn OpenedRun>>> {
    let RunRequest { config, group, .. } = request;
    let task = match &request.given {
        Some(given) => given.task_of(config)?,
        None => task_of(config)?,
    };
    config.refuse_other_tasks_fields(task)?;
    let Some(opened) = task::open(task, request, observer)? else { return Ok(None) };
    Shares::new(opened.plan(), group)?;
    if !group.is_alone() {
        group.agree("version", env!("CARGO_PKG_VERSION").to_owned())?;
        group.agree("number of threads", opened.plan().threads)?;
        group.agree("instruction set", format!("{:?}", vpt_kernel::isa()))?;
        group.agree("hash of configuration, data and backbone", opened.fingerprint().as_str().to_owned())?;
    }
    Ok(Some(opened))
}

/// What is to be learned from the data of `config`, never [`Task::Auto`].
///
/// # Errors
/// The data is for another task than `task` says.
fn task_of(config: &RunConfig) -> Result<Task> {
    if config.data == IN_MEMORY {
        let message = "the run learns from images that a program has in memory; that program alone can open it";
        return Err(Error::setting("data", message));
    }
    let has_boxes = BoxDataset::recognize(&config.data).is_some();
    let has_sets = !has_boxes && MultilabelDataset::recognize(&config.data).is_some();
    match config.task {
        Task::Auto if has_boxes => Ok(Task::Detect),
        Task::Auto if has_sets => Ok(Task::Multilabel),
        Task::Multilabel if has_sets || MultilabelDataset::may_be(&config.data) => Ok(Task::Multilabel),
        Task::Auto => Ok(Task::Classify),
        Task::Segment => Ok(Task::Segment),
        Task::Detect | Task::Multilabel if !has_boxes => {
            let message = format!("{} holds no boxes in a layout that is known: COCO, YOLO, Pascal VOC", config.data);
            Err(Error::setting("task", format!("{}: {message}", config.task)))
        }
        task => Ok(task),
    }
}

/// Runs `config` from the beginning, in its own folder or in a fresh one below `runs`.
///
/// # Errors
/// A value of the configuration makes no sense, something cannot be read or written, or the loss is no longer finite.
pub fn run(config: &RunConfig, runs: &Path, observer: &mut dyn Observer) -> Result<Outcome> {
    begin(RunRequest::new(config, &ProcessGroup::default()), runs, observer)
}

/// As [`run()`] on all of `ranks`, each of which calls this with the same `config`. Rank 0 writes the run folder; the others return when it
/// is finished, with a folder that is gone. An error that only one has leaves the others waiting: end them with [`Ranks::abort`].
///
/// # Errors
/// As [`run()`]; ranks differ in what decides results, or there are more than the configuration has shares of a batch.
pub fn run_on_ranks(
    config: &RunConfig,
    ranks: &Arc<dyn Ranks>,
    runs: &Path,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    begin(RunRequest::new(config, &ProcessGroup::new(ranks.clone())), runs, observer)
}

/// As [`run()`] on data that is open already, whatever `config` says of data.
///
/// # Errors
/// As [`run()`]; or the configuration is for another task.
pub fn run_on(config: &RunConfig, data: OpenData, runs: &Path, observer: &mut dyn Observer) -> Result<Outcome> {
    let config = RunConfig { data: IN_MEMORY.to_owned(), ..config.clone() };
    begin(RunRequest { config: &config, given: Some(data), group: &ProcessGroup::default() }, runs, observer)
}

fn begin(request: RunRequest, runs: &Path, observer: &mut dyn Observer) -> Result<Outcome> {
    let RunRequest { config, given, group } = request;
    let meter = EnergyMeter::start();
    let observer = &mut group.observer(observer);
    config.validate()?;
    // Before the data is read, so that a folder that is taken is told at once.
    let mut claimed = None;
    group.of_leader(|| {
        claimed = config.out.as_deref().map(RunFolder::create).transpose()?;
        Ok(())
    })?;
    let config = &with_threads_of_all(config, group)?;
    let request = RunRequest { config, given, group };
    let Some(opened) = open(request, observer)? else { return Ok(Outcome::Interrupted { folder: None }) };
    let plan = opened.plan();
    let mut folder = None;
    group.of_leader(|| {
        let own = if let Some(folder) = claimed {
            folder
        } else {
            let name = format!("{}-{}", opened.data_name(), plan.config.method);
            RunFolder::create_numbered(&runs.join(plan.config.task.name()), &name)?
        };
        opened.write_parts(&own)?;
        own.write_json(run_folder::ENVIRONMENT, &report::environment(plan.threads))?;
        // Last: from here on the folder is a run that can be resumed.
        own.write(run_folder::CONFIG, plan.config.to_toml()?)?;
        folder = Some(own);
        Ok(())
    })?;
    let folder = folder.map_or_else(|| RunFolder::elsewhere(&[]), Ok)?;
    go(opened, folder, meter, observer)
}

/// `config` with a number of threads, where several ranks would each take their own: the least that any of them has.
fn with_threads_of_all(config: &RunConfig, group: &ProcessGroup) -> Result<RunConfig> {
    if group.is_alone() || config.threads.is_some() {
        return Ok(config.clone());
    }
    let all = group.gather(Ok(vpt_cluster::threads()))?;
    Ok(RunConfig { threads: all.into_iter().min(), ..config.clone() })
}

fn go(run: Box<dyn OpenedRun>, folder: RunFolder, meter: EnergyMeter, observer: &mut dyn Observer) -> Result<Outcome> {
    let path = folder.path().to_path_buf();
    let outcome = run.go(folder, meter, observer);
    keep_error(&path, outcome, observer)
}

/// Writes down the error that ended the run in the folder `run`, for those who look at it later; takes away that of an
/// earlier attempt.
fn keep_error(run: &Path, outcome: Result<Outcome>, observer: &dyn Observer) -> Result<Outcome> {
    let file = run.join(run_folder::ERROR);
    // That this cannot be written is no reason to hide the error itself.
    let _ = match &outcome {
        Ok(_) if !file.exists() => Ok(()),
        Ok(_) => fs::remove_file(&file).map_err(Error::io(&file)),
        Err(error) => write_atomic(&file, (observer.words(&error.message()) + "\n").as_bytes()),
    };
    outcome
}

/// Goes on with the run in the folder `run`: from its checkpoint, from the beginning if there is none yet. The result of a
/// finished run is returned as it is.
///
/// # Errors
/// As [`run()`]; or the folder is no run folder, is in use, or configuration, data or backbone are no longer the same.
pub fn resume(run: &Path, observer: &mut dyn Observer) -> Result<Outcome> {
    go_on(run, None, &ProcessGroup::default(), observer)
}

/// As [`resume`] on all of `ranks`, as many as before or another number: see [`run_on_ranks`]. Rank 0 alone reads the folder.
///
/// # Errors
/// As [`resume`] and [`run_on_ranks`].
pub fn resume_on_ranks(run: &Path, ranks: &Arc<dyn Ranks>, observer: &mut dyn Observer) -> Result<Outcome> {
    go_on(run, None, &ProcessGroup::new(ranks.clone()), observer)
}

/// As [`resume`] with data that is open already, for a run that [`run_on`] began.
///
/// # Errors
/// As [`resume`]; or the run learns from other data.
pub fn resume_on(run: &Path, data: OpenData, observer: &mut dyn Observer) -> Result<Outcome> {
    go_on(run, Some(data), &ProcessGroup::default(), observer)
}

/// Whether a rank that writes nothing needs the file `name` of a run folder.
fn is_read(name: &str) -> bool {
    let files =
        [run_folder::CONFIG, run_folder::CHECKPOINT, run_folder::LR_SEARCH, run_folder::FOLDS, run_folder::RESULTS];
    // Also what the rates that are alive have learned in a search.
    files.contains(&name) || name.starts_with("lr_search-")
}

fn go_on(run: &Path, given: Option<OpenData>, group: &ProcessGroup, observer: &mut dyn Observer) -> Result<Outcome> {
    let meter = EnergyMeter::start();
    let observer = &mut group.observer(observer);
    let mut folder = None;
    let files = group.of_leader(|| {
        folder = Some(RunFolder::open(run)?);
        if group.is_alone() {
            return Ok(Vec::new());
        }
        let names = fs::read_dir(run).map_err(Error::io(run))?.flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_read(name));
        let read = |name: String| {
            let bytes = fs::read(run.join(&name)).map_err(Error::io(run.join(&name)))?;
            Ok((name, bytes))
        };
        names.map(read).collect::<Result<Vec<_>>>()
    })?;
    let folder = folder.map_or_else(|| RunFolder::elsewhere(&files), Ok)?;
    drop(files);
    if folder.has(run_folder::RESULTS) {
        let results = Box::new(Results::load(&folder.file(run_folder::RESULTS))?);
        return Ok(Outcome::Finished { folder: folder.path().to_path_buf(), results });
    }
    let mut config = RunConfig::load(&folder.file(run_folder::CONFIG))?;
    // What a run does not speak of may be younger than it is.
    if !DENSE.contains(&config.task) {
        config.dataset_card.get_or_insert_with(|| NO_CARD.to_owned());
    }
    let request = RunRequest { config: &config, given, group };
    let opened = open(request, observer).map_err(|e| e.in_file(folder.file(run_folder::CONFIG)))?;
    match opened {
        Some(opened) => go(opened, folder, meter, observer),
        None => Ok(Outcome::Interrupted { folder: Some(folder.path().to_path_buf()) }),
    }
}
