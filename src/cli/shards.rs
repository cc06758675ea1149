//! Very many images: what `vpt embed --input` and `vpt predict --input` have in common.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};
use vpt::cluster::ShardChoice;
use vpt::energy::EnergyMeter;
use vpt::report::table;
use vpt::shards::{
    EmbedConfig, EmbedEvent, EmbedObserver, EmbedOutcome, ShardInputs, ShardOutput, ShardWork, expand_shards,
    run as run_shards,
};
use vpt::train::results::peak_rss_bytes;

use super::carbon::CarbonArgs;
use super::flags::{self, parsed};
use super::output::{Output, message};
use super::progress::ProgressDisplay;
use super::{Global, Interrupted, Usage};

/// Images of single files that make a shard.
const SHARD_SIZE: usize = 10_000;

/// Which images, and which share of them.
#[derive(Debug, Args)]
#[command(next_help_heading = "Very many images")]
pub(crate) struct ShardArgs {
    /// Shards: `WebDataset` archives and Parquet tables, as files, folders, patterns, 'shards/{00000..09999}.tar', text files with one of these a
    /// line, or 'pipe:COMMAND' for what a command of the shell writes; image files, folders and lists of them are cut into shards
    ///
    /// A shard is the unit of work and of restart: what is done is skipped, a shard that was interrupted is begun anew. Several processes with
    /// the same --out share the work, on several machines too. The folder holds the same bytes whoever did it. A shard that cannot be read is
    /// named, and the others are done; the exit code is 1 then, and 75 after SIGTERM or Ctrl-C.
    #[arg(long, value_name = "SHARDS", num_args = 1.., conflicts_with = "images")]
    pub(crate) input: Vec<String>,
    /// Do every N-th shard from the I-th on; auto asks the variables of a Slurm job array, of an indexed Kubernetes job, or of `srun`, `mpirun`
    /// or `torchrun` [default: all that no other process does]
    #[arg(long, value_name = "auto|I/N", value_parser = parsed::<ShardChoice>)]
    shard: Option<ShardChoice>,
    /// Single image files that make a shard [default: 10000]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    shard_size: Option<usize>,
}

/// What the result of a command says beside what all have.
pub(crate) struct ShardCommand<'a> {
    /// The folder of outputs.
    pub(crate) out: &'a Path,
    /// The task, if it is one's.
    pub(crate) model: Option<&'a PathBuf>,
    pub(crate) backbone: &'a str,
    pub(crate) output: ShardOutput,
    /// Whether images that cannot be read are no failure.
    pub(crate) skip_bad_images: bool,
    /// How CO2 is told, and where energy is kept.
    pub(crate) carbon: Option<&'a CarbonArgs>,
}

impl ShardArgs {
    /// Whether shards are what is asked for.
    pub(crate) fn are_given(&self) -> bool {
        !self.input.is_empty()
    }

    /// Refuses flags for shards without any; `others`: those of the command's own, and whether they are given.
    pub(crate) fn refuse_alone(&self, others: &[(&str, bool)]) -> Result<(), Usage> {
        let own = [("--shard", self.shard.is_some()), ("--shard-size", self.shard_size.is_some())];
        match own.iter().chain(others).find(|(_, given)| *given) {
            Some((flag, _)) if !self.are_given() => Err(Usage(format!("{flag} is for --input"))),
            _ => Ok(()),
        }
    }

    /// The shards.
    pub(crate) fn inputs(&self) -> vpt::Result<ShardInputs> {
        expand_shards(&self.input, self.shard_size.unwrap_or(SHARD_SIZE))
    }

    /// The share that is asked for.
    pub(crate) fn share(&self) -> Option<ShardChoice> {
        self.shard
    }

    /// Does `work` on the shards.
    pub(crate) fn run(
        &self,
        command: &ShardCommand<'_>,
        work: &ShardWork<'_>,
        global: &Global,
        out: Output,
    ) -> anyhow::Result<()> {
        command.carbon.map(CarbonArgs::carbon).transpose()?;
        let meter = EnergyMeter::start();
        let mut display = ShardDisplay(ProgressDisplay::interruptible(global.quiet, global.verbose > 0)?);
        let shard = self.shard.map(ShardChoice::shard).transpose()?;
        let inputs = self.inputs()?;
        inputs.notes.iter().for_each(|note| display.0.line(note));
        let config = EmbedConfig {
            inputs: inputs.shards,
            out: command.out.to_path_buf(),
            output: command.output,
            shard,
            threads: global.threads(),
        };
        let outcome = run_shards(&config, work, &mut display)?;
        display.0.clear();
        if outcome.interrupted {
            return Err(Interrupted::Shards.into());
        }
        let EmbedOutcome { own, all, done, failed, wall_s, waiting_s, engine_s, .. } = &outcome;
        let rate = (*wall_s > 0.).then(|| done.images as f64 / wall_s);
        let waiting = (waiting_s + engine_s > 0.).then(|| waiting_s / (waiting_s + engine_s));
        let errors: Vec<Value> = failed
            .iter()
            .map(|failed| json!({"shard": failed.shard, "error": flags::words(&failed.error.message())}))
            .collect();
        let none = CarbonArgs::default();
        let took = command.carbon.unwrap_or(&none).took(&meter, &command.out.display().to_string())?;
        let mut result = json!({
            "out": command.out,
            "backbone": command.backbone,
            "model": command.model,
            "output": command.output,
            "width": matches!(command.output, ShardOutput::Embeddings { .. }).then(|| work.width()).flatten(),
            "shards": config.inputs.len(),
            "share": shard.map(|shard| format!("{}/{}", shard.index(), shard.of())),
            "own": own,
            "all": all,
            "done": done,
            "failed": errors,
            "wall_s": wall_s,
            "waiting_s": waiting_s,
            "engine_s": engine_s,
            "img_per_s": rate,
            "peak_rss_bytes": peak_rss_bytes(),
        });
        took.tell(&mut result);
        out.result(&result, || {
            let mut rows = vec![
                ("shards", format!("{} of {own} in {}", all.shards, command.out.display())),
                ("images", all.images.to_string()),
            ];
            if all.failures > 0 {
                rows.push(("not read", format!("{}, listed in {}", all.failures, command.out.join("stats").display())));
            }
            if done.images > 0 {
                let rate = rate.map_or_else(String::new, |rate| format!(", {rate:.1} images/s"));
                rows.push(("now", format!("{} images in {}{rate}", done.images, table::seconds(*wall_s))));
                rows.push(("waiting", format!("{} of the time of the engine", table::percent(waiting))));
                rows.push(("energy", took.in_words()));
            }
            table::pairs(&rows)
        })?;
        match (failed.len(), all.failures) {
            (0, bad) if bad == 0 || command.skip_bad_images => Ok(()),
            (0, bad) => {
                let listed = command.out.join("stats");
                let which =
                    format!("{bad} of {} images could not be read; listed in {}", all.samples, listed.display());
                Err(anyhow::anyhow!("{which}; --skip-bad-images leaves it at that"))
            }
            (shards, _) => Err(anyhow::anyhow!("failed shards: {shards}; the same command tries them again")),
        }
    }
}

/// Shows the course of shards.
struct ShardDisplay(ProgressDisplay);

impl EmbedObserver for ShardDisplay {
    fn event(&mut self, event: &EmbedEvent<'_>) {
        match event {
            EmbedEvent::Planned { shards, own, done } => {
                let share = if own < shards { format!(", {own} of them here") } else { String::new() };
                let done = if *done > 0 { format!(", {done} done already") } else { String::new() };
                self.0.line(&format!("{shards} shards{share}{done}"));
            }
            EmbedEvent::Images { shard, done, total } => self.0.at(shard, *done, *total, String::new),
            EmbedEvent::Done { stats, rate } => {
                let bad = match stats.failures.len() {
                    0 => String::new(),
                    bad => format!(", {bad} that cannot be read"),
                };
                let notes = match stats.notes.len() {
                    0 => String::new(),
                    notes => format!(", notes on {notes}"),
                };
                let rate =
                    rate.map_or_else(|| ", by another process".to_owned(), |rate| format!(", {rate:.1} images/s"));
                self.0.line(&format!("{}: {} images{bad}{notes}{rate}", stats.shard, stats.images));
            }
            // Also where little is said: it is what the exit code is for.
            EmbedEvent::Failed { shard, error } => {
                self.0.clear();
                message(&super::printable(&format!("{shard} failed: {}", flags::words(&error.message()))));
            }
            EmbedEvent::Waiting { shards } => {
                self.0.line(&format!("waiting for {shards} shards that other processes work on"));
            }
            _ => {}
        }
    }

    fn stop(&self) -> bool {
        self.0.interrupt().came()
    }
}
