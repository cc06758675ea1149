//! `vpt cluster`: a job script or a manifest for work that many processes share. Nothing is submitted, and no scheduler is asked.

mod kubernetes;
mod slurm;

use std::ffi::OsString;
use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
use serde_json::json;
use vpt::cluster::ShardChoice;

use super::output::Output;
use super::{Cli, Command, Usage, size};

/// Most tasks that are asked for where the user does not say how many.
const MOST_TASKS: usize = 64;
/// Processors of a task, where neither says how many.
const CPUS: usize = 4;
/// Memory of a task where `--max-memory` does not say how much.
const MEMORY: u64 = 8 << 30;
/// What a process takes beside what `--max-memory` counts: itself, and a share of what is loaded.
const BESIDE: u64 = 256 << 20;
/// Seconds that are left between the end of saving and the end of the time.
const SPARE: u32 = 15;

const EXAMPLES: &str = "\
Examples:
  vpt cluster slurm --time 12:00:00 -- bench few-shot --data photos/ --methods all --out table --max-memory 4GB > table.sh
  vpt cluster slurm --tasks 100 -- embed --backbone clip-vit-b32 --input 'shards/{00000..09999}.tar' --out emb > emb.sh
  vpt cluster k8s --image registry/vpt:1 --volume data=/data -- bench few-shot --data /data/photos --methods all --out /data/table > job.yaml";

/// Print a Slurm job script or a Kubernetes manifest for a command
///
/// The command is `bench few-shot`, `embed --input`, `predict --input` (a job array: each task does a share) or `train --out` (one job). What is stopped by a
/// time limit, a preemption or a drained node saves, ends with exit code 75 and is queued again, and goes on. Memory follows
/// --max-memory of the command, processors its --threads.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Cluster {
    #[command(subcommand)]
    scheduler: SchedulerCommand,
}

#[derive(Debug, Subcommand)]
enum SchedulerCommand {
    Slurm(slurm::SlurmArgs),
    #[command(name = "k8s")]
    Kubernetes(kubernetes::KubernetesArgs),
}

// What both schedulers are asked for. No doc comment, which would become the text of the commands that it is flattened into.
#[derive(Debug, Args)]
struct JobArgs {
    /// Name of the job [default: the command's]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Tasks, or pods, that share the work [default: one for each piece of it, at most 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    tasks: Option<u32>,
    /// Of these, at most so many at a time [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    at_a_time: Option<u32>,
    /// Processors of each [default: --threads of the command, else 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    cpus: Option<u16>,
    /// Memory of each [default: --max-memory of the command and a tenth, else 8 GiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<ByteSize>,
    /// The program [default: vpt]
    #[arg(long, value_name = "PATH", default_value = "vpt")]
    program: String,
    /// What is to be done: a command of vpt with its flags, behind two dashes
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// A job as both schedulers take it.
struct ClusterJob {
    name: String,
    /// What it is about, for whoever reads the script.
    about: String,
    /// The program and its arguments.
    command: Vec<String>,
    /// Of a single run: its folder and the arguments that go on with it.
    resume: Option<(String, Vec<String>)>,
    /// Shares of its batches, which ranks may take.
    shares: usize,
    tasks: usize,
    at_a_time: usize,
    cpus: usize,
    memory: u64,
}

pub(crate) fn run(args: &Cluster, out: Output) -> anyhow::Result<()> {
    let (kind, text, job) = match &args.scheduler {
        SchedulerCommand::Slurm(args) => {
            let job = args.job.plan(args.grace())?;
            ("slurm", args.script(&job)?, job)
        }
        SchedulerCommand::Kubernetes(args) => {
            let job = args.job.plan(args.grace())?;
            ("k8s", args.manifest(&job)?, job)
        }
    };
    let result = json!({
        "scheduler": kind,
        "name": job.name,
        "tasks": job.tasks,
        "cpus": job.cpus,
        "memory_bytes": job.memory,
        "command": job.command,
        "script": text,
    });
    out.result(&result, || text.clone())
}

/// What a command of vpt is, as far as it can be shared.
struct ShareableWork {
    name: &'static str,
    /// Pieces that it can be cut into; none of a single run.
    pieces: Option<usize>,
    what: &'static str,
    shard: Option<ShardChoice>,
    resume: Option<PathBuf>,
    shares: usize,
}

impl JobArgs {
    /// The job, whose processes have `grace` seconds to save.
    fn plan(&self, grace: u32) -> anyhow::Result<ClusterJob> {
        let words = match &self.command[..] {
            [first, rest @ ..] if first == "vpt" => rest,
            all => all,
        };
        let given = std::iter::once("vpt").chain(words.iter().map(String::as_str)).map(OsString::from);
        let cli = Cli::try_parse_from(given).map_err(|error| {
            let said = error.to_string();
            let line = said.lines().next().unwrap_or_default().trim_start_matches("error: ");
            Usage(format!("the command behind --: {line}"))
        })?;
        let global = &cli.global;
        let work = ShareableWork::of(&cli.command)?;
        if let Some(ShardChoice::Given(_)) = work.shard {
            return Err(Usage("--shard: tasks find out which share is theirs; leave it out".to_owned()).into());
        }
        let mut command = vec![self.program.clone()];
        command.extend(words.iter().cloned());
        let cpus = self.cpus.or(global.threads).map_or(CPUS, usize::from);
        let with_grace = |command: &mut Vec<String>| {
            if global.grace.is_none() {
                command.extend(["--grace".to_owned(), grace.to_string()]);
            }
        };
        let resume = work.resume.map(|folder| {
            let folder = folder.display().to_string();
            let mut again = vec![self.program.clone(), "train".to_owned(), "--resume".to_owned(), folder.clone()];
            with_grace(&mut again);
            (folder, again)
        });
        let pieces = work.pieces.unwrap_or(1);
        let asked = self.tasks.map_or(pieces.min(MOST_TASKS), |tasks| tasks as usize);
        if work.pieces.is_none() && asked > 1 {
            return Err(Usage(format!("--tasks: a run of `vpt train` is one job, not {asked}")).into());
        }
        let tasks = asked.clamp(1, pieces.max(1));
        if work.pieces.is_some() && work.shard.is_none() {
            command.extend(["--shard".to_owned(), "auto".to_owned()]);
        }
        with_grace(&mut command);
        let memory = match (self.memory, global.max_memory) {
            (Some(asked), _) => asked.as_u64(),
            (None, Some(most)) => most.as_u64().saturating_add(most.as_u64() / 10).saturating_add(BESIDE),
            (None, None) => MEMORY,
        };
        let about = match work.pieces {
            Some(pieces) => format!("{pieces} {} in {tasks} tasks", work.what),
            None => work.what.to_owned(),
        };
        Ok(ClusterJob {
            name: self.name()?.unwrap_or_else(|| work.name.to_owned()),
            about,
            command,
            resume,
            shares: work.shares,
            tasks,
            at_a_time: self.at_a_time.map_or(tasks, |most| (most as usize).min(tasks)),
            cpus,
            memory,
        })
    }

    /// The name, which both schedulers must take.
    fn name(&self) -> Result<Option<String>, Usage> {
        let Some(name) = &self.name else { return Ok(None) };
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let is_name =
            (1..=50).contains(&name.len()) && name.chars().all(fits) && !name.starts_with('-') && !name.ends_with('-');
        if is_name {
            Ok(Some(name.clone()))
        } else {
            Err(Usage("--name: small letters, digits and dashes between them, at most 50".to_owned()))
        }
    }
}

impl ShareableWork {
    fn of(command: &Command) -> anyhow::Result<Self> {
        let shards = |name, shards: &super::shards::ShardArgs| -> anyhow::Result<Self> {
            if !shards.are_given() {
                return Err(Usage(format!("`vpt {name}` is shared by its shards: give it --input")).into());
            }
            let pieces = Some(shards.inputs()?.shards.len());
            Ok(Self { name, pieces, what: "shards", shard: shards.share(), resume: None, shares: 1 })
        };
        match command {
            Command::Embed(args) => shards("embed", args.shards()),
            Command::Predict(args) => shards("predict", args.shards()),
            Command::Bench(args) => {
                let args = args.few_shot().ok_or_else(not_shared)?;
                let pieces = Some(args.jobs()?);
                Ok(Self {
                    name: "few-shot",
                    pieces,
                    what: "jobs of a grid",
                    shard: args.share(),
                    resume: None,
                    shares: 1,
                })
            }
            Command::Train(args) => {
                let Some(out) = args.out() else {
                    let message = "`vpt train` needs --out here: a job that is queued again goes on with the run in it";
                    return Err(Usage(message.to_owned()).into());
                };
                let (resume, shares) = (Some(out.to_path_buf()), args.shares());
                Ok(Self { name: "train", pieces: None, what: "a run", shard: None, resume, shares })
            }
            _ => Err(not_shared().into()),
        }
    }
}

fn not_shared() -> Usage {
    Usage("the command behind -- is to be bench few-shot, embed --input, predict --input or train --out".to_owned())
}

/// `word` as a shell takes it for one word, whatever is in it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./=,:+@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A line of shell with these words.
fn shell(words: &[String]) -> String {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A line of shell that goes on with the run in `folder` by `again` if there is one, else does `first`.
fn first_or_again(first: &[String], folder: &str, again: &[String], before: &str) -> String {
    let config = quoted(&format!("{folder}/config.toml"));
    format!("if [ -f {config} ]; then {before}{}; else {before}{}; fi", shell(again), shell(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_a_program_as_they_are() {
        assert_eq!(quoted("shards/a-1_b.tar"), "shards/a-1_b.tar");
        assert_eq!(quoted("s/{0..9}.tar"), "'s/{0..9}.tar'");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(""), "''");
    }
}
