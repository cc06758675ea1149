//! A job array of Slurm's.

use std::fmt::Write;

use clap::Args;

use super::{ClusterJob, JobArgs, SPARE, first_or_again, quoted, shell};
use crate::cli::Usage;

/// How often a task is queued again: enough for a long run on short time limits, and an end to what never gets anywhere.
const MOST_RESTARTS: u32 = 100;

/// Print a Slurm job script, for sbatch
///
/// The step is told to save by SIGTERM some time before the limit, which reaches what `srun` has started; what ends with exit code 75 is queued
/// again. A job that is cancelled is not.
#[derive(Debug, Args)]
pub(super) struct SlurmArgs {
    /// Time limit of a task, as sbatch takes it [default: the partition's]
    #[arg(long, value_name = "TIME")]
    time: Option<String>,
    /// Seconds before the time limit at which a task is told to save
    #[arg(long, value_name = "SECONDS", default_value_t = 90, value_parser = clap::value_parser!(u32).range(5..=3600))]
    warn: u32,
    /// Partition
    #[arg(long, value_name = "NAME")]
    partition: Option<String>,
    /// Another option of sbatch, such as account=vision; may be given many times
    #[arg(long, value_name = "OPTION")]
    sbatch: Vec<String>,
    /// A line of shell before the command, such as 'module load vpt'; may be given many times
    #[arg(long, value_name = "LINE")]
    before: Vec<String>,
    /// Processes of one run of `train --shares N`, N of them or fewer, in a program with MPI
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    ranks: u32,
    /// How srun tells these of each other, as `srun --mpi=list` says
    #[arg(long, value_name = "TYPE", default_value = "pmix")]
    mpi: String,
    #[command(flatten)]
    pub(super) job: JobArgs,
}

impl SlurmArgs {
    /// Seconds from the signal on in which a process must have saved.
    pub(super) fn grace(&self) -> u32 {
        self.warn.saturating_sub(SPARE).max(self.warn / 2)
    }

    /// The script.
    pub(super) fn script(&self, job: &ClusterJob) -> Result<String, Usage> {
        if self.ranks > 1 && job.resume.is_none() {
            return Err(Usage("--ranks: for `train` alone; other commands share their work as --tasks".to_owned()));
        }
        if self.ranks as usize > job.shares {
            let message =
                format!("--ranks: {} ranks need `--shares {0}` or more behind --, not {}", self.ranks, job.shares);
            return Err(Usage(message));
        }
        let mut options = vec![format!("job-name={}", job.name)];
        if job.resume.is_none() {
            let most = if job.at_a_time < job.tasks { format!("%{}", job.at_a_time) } else { String::new() };
            options.push(format!("array=0-{}{most}", job.tasks - 1));
        }
        options.push(format!("ntasks={}", self.ranks));
        options.push(format!("cpus-per-task={}", job.cpus));
        // Of a node, which may be given several ranks, or of a rank.
        let megabytes = job.memory.div_ceil(1 << 20);
        options.push(match self.ranks {
            1 => format!("mem={megabytes}M"),
            _ => format!("mem-per-cpu={}M", megabytes.div_ceil(job.cpus as u64)),
        });
        options.extend(self.time.iter().map(|time| format!("time={time}")));
        options.extend(self.partition.iter().map(|name| format!("partition={name}")));
        options.push(format!("signal=TERM@{}", self.warn));
        options.push("requeue".to_owned());
        options.push("open-mode=append".to_owned());
        options.push(format!("output={}-{}.log", job.name, if job.resume.is_none() { "%A_%a" } else { "%j" }));
        options.extend(self.sbatch.iter().map(|option| option.trim_start_matches('-').to_owned()));
        if let Some(option) = options.iter().find(|option| option.contains(['\n', '\r'])) {
            return Err(Usage(format!("an option of more than one line: {option:?}")));
        }
        let mut text = format!("#!/bin/bash\n# {}. Submit it with: sbatch FILE\n", job.about);
        for option in options {
            let _ = writeln!(text, "#SBATCH --{option}");
        }
        text.push_str("\n# srun does not take this over from sbatch since Slurm 22.05.\n");
        text.push_str("export SRUN_CPUS_PER_TASK=\"$SLURM_CPUS_PER_TASK\"\n");
        for line in &self.before {
            let _ = writeln!(text, "{line}");
        }
        text.push_str(
            "# By srun: a program that is called without it does not get the signal before the time limit.\n",
        );
        match &job.resume {
            None => {
                let _ = writeln!(text, "srun {}", shell(&job.command));
            }
            Some((folder, again)) => {
                let srun = match self.ranks {
                    1 => "srun ".to_owned(),
                    // What one rank ends with ends all.
                    _ => format!("srun --mpi={} --kill-on-bad-exit=1 ", quoted(&self.mpi)),
                };
                let _ = writeln!(text, "{}", first_or_again(&job.command, folder, again, &srun));
            }
        }
        let _ = write!(
            text,
            "code=$?\n\
             # 75: it has saved, and the same command goes on.\n\
             if [ \"$code\" -eq 75 ] && [ \"${{SLURM_RESTART_COUNT:-0}}\" -lt {MOST_RESTARTS} ]; then\n    \
                 scontrol requeue \"$SLURM_JOB_ID\"\n\
             fi\n\
             exit \"$code\"\n"
        );
        Ok(text)
    }
}
