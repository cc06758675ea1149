//! Training: loss, optimisers, schedule, the loop and what it leaves on disk.
//!
//! [`run`] takes a [`RunConfig`] from nothing to a result, [`resume`] takes up a run that was cut off. Both end with the same
//! bytes in `best.safetensors`: everything random is named by seed, epoch and index, and a checkpoint holds all the rest.

pub(crate) mod checkpoint;
mod fit;
mod keeper;
pub mod loss;
pub mod observer;
pub mod optim;
mod pictures;
pub mod results;
pub mod run_folder;
pub mod schedule;
mod session;
mod setup;
mod source;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

pub use self::{
    checkpoint::EpochRecord,
    observer::{Event, Observer, Silent, Start},
    results::Results,
};
use self::{run_folder::RunFolder, session::Session, setup::Setup};
use crate::{Result, config::RunConfig, data::SplitFile, report};

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

/// Runs `config` from the beginning, in its own folder or in a fresh one below `runs`.
///
/// # Errors
/// A value of the configuration makes no sense, something cannot be read or written, or the loss is no longer finite.
pub fn run(config: &RunConfig, runs: &Path, observer: &mut dyn Observer) -> Result<Outcome> {
    let started = Instant::now();
    config.validate()?;
    // Before the data is read, so that a folder that is taken is told at once.
    let claimed = config.out.as_deref().map(RunFolder::create).transpose()?;
    let Some(setup) = Setup::new(config, observer)? else { return Ok(Outcome::Interrupted { folder: None }) };
    let folder = if let Some(folder) = claimed {
        folder
    } else {
        let name = format!("{}-{}", setup.dataset.name, setup.plan.config.method);
        RunFolder::create_numbered(&runs.join("classify"), &name)?
    };
    folder.write(run_folder::SPLIT, SplitFile::new(&setup.dataset).to_json())?;
    if let Some(draw) = &setup.few_shot {
        draw.write(&folder.file(run_folder::FEW_SHOT))?;
    }
    folder.write_json(run_folder::ENVIRONMENT, &report::environment(setup.plan.threads))?;
    // Last: from here on the folder is a run that can be resumed.
    folder.write(run_folder::CONFIG, setup.plan.config.to_toml()?)?;
    Session::new(setup, folder, started).go(observer)
}

/// Goes on with the run in the folder `run`: from its checkpoint, from the beginning if there is none yet. The result of a
/// finished run is returned as it is.
///
/// # Errors
/// As [`run()`]; or the folder is no run folder, is in use, or configuration, data or backbone are no longer the same.
pub fn resume(run: &Path, observer: &mut dyn Observer) -> Result<Outcome> {
    let started = Instant::now();
    let folder = RunFolder::open(run)?;
    if folder.has(run_folder::RESULTS) {
        let results = Box::new(Results::load(&folder.file(run_folder::RESULTS))?);
        return Ok(Outcome::Finished { folder: folder.path().to_path_buf(), results });
    }
    let config = RunConfig::load(&folder.file(run_folder::CONFIG))?;
    let Some(setup) = Setup::new(&config, observer)? else {
        return Ok(Outcome::Interrupted { folder: Some(folder.path().to_path_buf()) });
    };
    Session::new(setup, folder, started).go(observer)
}
