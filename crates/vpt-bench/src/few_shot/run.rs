//! The grid at work: which jobs are this process's, in which order, what becomes of those that fail and of those that others
//! have taken.

use std::{thread, time::Duration};

use super::{
    GridConfig,
    job::{Job, JobResult},
    merge,
    summary::Summary,
    work::{Performed, keep_error},
};
use vpt_base::{Message, Result};
use vpt_cluster::{Shard, WorkClaim};

/// How often a job that another process works on is looked at.
const LOOK: Duration = Duration::from_millis(300);

/// Something of the grid that is worth showing.
#[derive(Debug)]
#[non_exhaustive]
pub enum GridEvent<'a> {
    /// The texts that name the classes of a data set are those of a card.
    Card {
        /// The data set.
        data: &'a str,
        /// The card.
        card: &'a str,
    },
    /// The list of jobs is made.
    Planned {
        /// Jobs of the grid.
        jobs: usize,
        /// Those that are this process's.
        own: usize,
        /// Of these, those that are done already.
        done: usize,
    },
    /// A job begins.
    Begin {
        /// The job.
        job: &'a Job,
        /// Which of this process's it is, counted from 1.
        number: usize,
        /// How many there are.
        of: usize,
    },
    /// A job is done.
    Done {
        /// The job.
        job: &'a Job,
        /// What came out.
        result: &'a JobResult,
        /// Whether another process did it.
        elsewhere: bool,
    },
    /// A job failed; the others go on.
    Failed {
        /// The job.
        job: &'a Job,
        /// Why.
        error: &'a str,
    },
    /// Nothing is left but jobs that other processes work on.
    Waiting {
        /// How many.
        jobs: usize,
    },
}

/// Does jobs, is told of them, and says when to stop.
pub trait Worker {
    /// Does `job` in a process of its own, or in this one.
    ///
    /// # Errors
    /// Why the job failed.
    fn perform(&mut self, job: &Job) -> Result<Performed, Message>;

    /// Called for everything that happens.
    fn event(&mut self, event: &GridEvent<'_>);

    /// How `message` is written down for those who look at the job later.
    fn words(&self, message: &Message) -> String {
        message.to_string()
    }

    /// Asked before every job. Once it says yes, the grid ends as interrupted.
    fn stop(&self) -> bool;
}

/// How a call ended.
#[derive(Debug)]
pub enum GridOutcome {
    /// All of its jobs are done or have failed.
    Finished {
        /// What the folder holds.
        summary: Box<Summary>,
        /// Jobs of this call that failed.
        failed: usize,
    },
    /// It was told to stop; the same call goes on.
    Interrupted,
}

/// Does the jobs of `config`, or of a share of them, that are not done, and writes what the folder holds then.
///
/// # Errors
/// As [`GridConfig::jobs`]; or the folder holds results of other settings. Jobs that fail are no error.
pub fn run(config: &GridConfig, shard: Option<Shard>, worker: &mut dyn Worker) -> Result<GridOutcome> {
    let (grid, jobs) = config.jobs()?;
    grid.claim(&config.out)?;
    for (data, card) in &grid.cards {
        worker.event(&GridEvent::Card { data, card });
    }
    let own: Vec<&Job> = match shard {
        None => jobs.iter().collect(),
        Some(shard) => jobs.iter().enumerate().filter(|(at, _)| shard.has(*at)).map(|(_, job)| job).collect(),
    };
    let mut open = Vec::new();
    for &job in &own {
        if job.result()?.is_none() {
            open.push(job);
        }
    }
    let of = open.len();
    worker.event(&GridEvent::Planned { jobs: jobs.len(), own: own.len(), done: own.len() - of });
    let (mut number, mut failed, mut waiting) = (0, 0, false);
    while !open.is_empty() {
        let mut busy = Vec::new();
        for job in open {
            if worker.stop() {
                merge::merge(&config.out)?;
                return Ok(GridOutcome::Interrupted);
            }
            // Done by another process since.
            if let Some(result) = job.result()? {
                number += 1;
                worker.event(&GridEvent::Done { job, result: &result, elsewhere: true });
                continue;
            }
            if WorkClaim::is_held(&job.work_folder()) {
                busy.push(job);
                continue;
            }
            worker.event(&GridEvent::Begin { job, number: number + 1, of });
            let performed = worker.perform(job);
            match performed.and_then(|p| Ok((p, job.result()?))) {
                Ok((performed @ (Performed::Done | Performed::Found), Some(result))) => {
                    number += 1;
                    let elsewhere = performed == Performed::Found;
                    worker.event(&GridEvent::Done { job, result: &result, elsewhere });
                }
                Ok((Performed::Busy, _)) => busy.push(job),
                Ok((Performed::Interrupted, _)) => {
                    merge::merge(&config.out)?;
                    return Ok(GridOutcome::Interrupted);
                }
                failure => {
                    let error = worker.words(&failure.err().unwrap_or_else(|| "left no result".into()));
                    keep_error(job, &error);
                    (number, failed) = (number + 1, failed + 1);
                    worker.event(&GridEvent::Failed { job, error: &error });
                }
            }
        }
        open = busy;
        if !open.is_empty() {
            if !waiting {
                worker.event(&GridEvent::Waiting { jobs: open.len() });
                waiting = true;
            }
            thread::sleep(LOOK);
        }
    }
    let summary = Box::new(merge::merge(&config.out)?);
    Ok(GridOutcome::Finished { summary, failed })
}
