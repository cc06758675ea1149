//! The command line: one file per command, each turning flags into the library's types and its answer into text. What
//! all commands share is here: global flags, exit codes, the last net below a fault of our own.

mod backbones;
mod bench;
mod bench_backbones;
mod box_args;
mod cache;
mod carbon;
mod cluster;
mod data;
mod data_audit;
mod data_cards;
mod data_check;
mod docs;
mod embed;
mod eval;
mod export;
mod fetch;
mod few_shot;
mod flags;
mod interrupt;
mod model;
mod output;
mod predict;
mod predict_attention;
mod predict_set;
mod progress;
mod runs;
mod serve;
mod settings;
mod shards;
mod task;
mod train;
mod zero_shot;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use bytesize::ByteSize;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use vpt::backbone::{Compute, Device, Engine, OpenOptions, Precision};
use vpt::data::Split;
use vpt::metrics::{Metrics, MultilabelMetrics};
use vpt::report::table;

use output::Output;

/// Adapt a frozen CLIP or ViT backbone to your images by learning a few prompt tokens or prompt pixels and a small head.
///
/// The backbone never changes: what is learned is a file of about a megabyte. No Python, no GPU and no network are
/// needed; a small backbone, clip-nano, is built in.
///
/// Results go to stdout, progress and messages to stderr. Exit code: 0 success, 1 failure, 2 wrong usage, 75 training was
/// interrupted and can be resumed.
#[derive(Debug, Parser)]
#[command(name = "vpt", version, max_term_width = 110, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(Box<train::Train>),
    Eval(eval::Eval),
    Predict(predict::Predict),
    Serve(Box<serve::Serve>),
    Embed(embed::Embed),
    Export(export::Export),
    ZeroShot(zero_shot::ZeroShot),
    Bench(bench::Bench),
    Cluster(Box<cluster::Cluster>),
    Data(data::Data),
    Backbones(backbones::Backbones),
    Cache(cache::Cache),
    Runs(runs::RunsArgs),
    Task(task::TaskArgs),
    Completions(docs::Completions),
    Man(docs::Man),
}

/// Flags that every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// No progress and no messages on stderr but errors
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Say more on stderr; twice for details of the library
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
    /// Print the result as one JSON object on stdout
    #[arg(long, global = true)]
    json: bool,
    /// Threads to compute with [default: one per CPU, of those that the system, Slurm or a launcher leaves the process]
    ///
    /// What is drawn at random and what is decoded does not depend on it; sums of floating point numbers may, in their
    /// last digits.
    #[arg(long, global = true, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Seed of everything drawn at random: initial prompts, shuffling, augmentation, splits, few-shot draws [default: 1]
    #[arg(long, global = true, value_name = "N", allow_negative_numbers = true)]
    seed: Option<u64>,
    /// What computes the image tower [default: native, or that of the run a task is from]
    ///
    /// native: kernels written for prompts on a frozen backbone. candle: the same in plain tensor operations of candle and by its
    /// automatic gradients, for comparison and for GPUs; slower on a CPU, and without methods that tune weights and --max-memory.
    /// Texts are always computed by native. For train, eval, predict, embed, zero-shot and bench step.
    #[arg(long, global = true, value_name = "ENGINE", value_parser = one_of::<Engine>(Engine::NAMES))]
    engine: Option<Engine>,
    /// What it computes on: `cpu`; `cuda:N`, a GPU, with --engine candle in a build that has CUDA, which the usual one has not
    #[arg(long, global = true, value_name = "cpu|cuda:N", value_parser = device)]
    device: Option<Device>,
    /// Number format of the frozen weights and of what is multiplied with them: f32, or bf16, which takes half of the
    /// memory and, on an AMD Zen 5, of the time; elsewhere compare both with `vpt bench step`; f16 for `vpt export` alone
    /// [default: f32, or that of the run a task is from]
    #[arg(long, global = true, value_name = "FORMAT", value_enum)]
    precision: Option<NumberFormat>,
    /// Memory that the program should take at most, such as 900MB or 2GiB: fewer images at a time, and where that is not
    /// enough parts are computed twice; the result is the same [default: no limit]
    #[arg(long, global = true, value_name = "SIZE", value_parser = size)]
    max_memory: Option<ByteSize>,
    /// After SIGTERM end within so many seconds, with exit code 75, even where the work in hand is not saved yet; for train, bench
    /// few-shot and --input [default: take the time that saving needs]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    grace: Option<u32>,
}

impl Global {
    /// Number of threads to compute with.
    fn threads(&self) -> usize {
        self.threads.map_or_else(vpt::cluster::threads, usize::from)
    }

    /// Number format to compute in, where one is asked for.
    fn asked_precision(&self) -> Option<Precision> {
        match self.precision? {
            NumberFormat::F32 | NumberFormat::F16 => Some(Precision::F32),
            NumberFormat::Bf16 => Some(Precision::Bf16),
        }
    }

    /// Number format to compute in.
    fn precision(&self) -> Precision {
        self.asked_precision().unwrap_or_default()
    }

    /// Bytes that the program should take at most.
    fn max_memory(&self) -> Option<u64> {
        self.max_memory.map(|size| size.as_u64())
    }

    /// What computes image towers, and on what.
    fn compute(&self) -> Compute {
        Compute { engine: self.engine.unwrap_or_default(), device: self.device.unwrap_or_default() }
    }

    /// How a backbone is opened that is found in `weights_dir` too, for images of `image_size`.
    fn open_options(&self, weights_dir: Option<&Path>, image_size: Option<usize>) -> OpenOptions {
        OpenOptions {
            weights_dir: weights_dir.map(Path::to_path_buf),
            image_size,
            precision: self.precision(),
            max_memory: self.max_memory(),
            compute: self.compute(),
        }
    }

    /// Seed of what is drawn.
    fn seed(&self) -> u64 {
        self.seed.unwrap_or(1)
    }
}

/// Number formats of weights: those that are computed in, and 16 bits for what is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum NumberFormat {
    F32,
    Bf16,
    F16,
}

/// A parser for one of `names`, which clap lists in its help and when none of them is given.
fn one_of<T>(names: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = vpt::Error> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse::<T>())
}

/// A number of bytes, with or without a unit.
fn size(value: &str) -> Result<ByteSize, String> {
    value.parse().map_err(|_| "expected a number of bytes, such as 900MB or 2GiB".to_owned())
}

/// A part of a data set.
fn split(name: &str) -> Result<Split, String> {
    let hint = || vpt::suggest::hint(name, Split::ALL.iter().map(|split| split.name()));
    Split::from_name(name).ok_or_else(|| format!("expected train, val or test{}", hint()))
}

/// Rows of a result for people.
fn metrics(metrics: &Metrics) -> Vec<(&'static str, String)> {
    vec![
        ("acc1", table::percent(metrics.acc1)),
        ("acc5", table::percent(metrics.acc5)),
        ("mean per-class recall", table::percent(metrics.mean_per_class_recall)),
        ("loss", format!("{:.4}", metrics.loss)),
    ]
}

/// Those of images with any number of classes each.
fn multilabel_metrics(metrics: &MultilabelMetrics) -> Vec<(&'static str, String)> {
    vec![
        ("mAP", table::percent(metrics.map)),
        ("micro F1", table::percent(metrics.micro_f1)),
        ("macro F1", table::percent(metrics.macro_f1)),
        ("exact match", table::percent(metrics.exact_match)),
        ("loss", format!("{:.4}", metrics.loss)),
    ]
}

fn device(value: &str) -> Result<Device, String> {
    match value.parse() {
        Ok(Device::Cuda(_)) if !Device::HAS_CUDA => {
            Err("CUDA is not built in this version; use `--device cpu`".to_owned())
        }
        device => device.map_err(|_: vpt::Error| "expected `cpu` or `cuda:N`".to_owned()),
    }
}

/// Wrong usage that only shows after the flags were parsed: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// A run that was told to stop.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    /// It has saved what it had: exit code 75.
    #[error("interrupted; go on with `vpt train --resume {}`", .0.display())]
    Saved(PathBuf),
    /// A grid whose finished jobs are kept: exit code 75.
    #[error("interrupted; the same command goes on with the grid")]
    Grid,
    /// Shards that are done are kept: exit code 75.
    #[error("interrupted; the same command goes on with the shards")]
    Shards,
    /// It had nothing to save yet: the exit code of the signal.
    #[error("interrupted before there was anything to save; begin again with the same command")]
    Early(u8),
}

impl Interrupted {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Saved(_) | Self::Grid | Self::Shards => 75,
            Self::Early(code) => *code,
        }
    }
}

/// Parses the command line and runs it.
pub(crate) fn main() -> ExitCode {
    catch_panics();
    // clap prints help to stdout and usage errors to stderr, and exits with 0 or 2.
    let Cli { command, global } = Cli::parse();
    match run(command, &global) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::message(&format!("error: {}", one_line(&error)));
            ExitCode::from(exit_code(&error))
        }
    }
}

fn run(command: Command, global: &Global) -> anyhow::Result<()> {
    start_tracing(global);
    if let Some(seconds) = global.grace {
        interrupt::end_within(seconds);
    }
    if global.precision == Some(NumberFormat::F16) && !matches!(command, Command::Export(_)) {
        return Err(Usage("--precision: f16 is for vpt export; nothing is computed in it here".to_owned()).into());
    }
    let uses_engine = match &command {
        Command::Train(_) | Command::Eval(_) | Command::Predict(_) | Command::Embed(_) | Command::ZeroShot(_) => true,
        Command::Bench(bench) => bench.measures_steps(),
        _ => false,
    };
    if !uses_engine && global.compute() != Compute::default() {
        let flag = if global.engine.is_some() { "--engine" } else { "--device" };
        let message = format!("{flag}: this command has the native engine on the CPU and no other");
        return Err(Usage(message).into());
    }
    let out = Output::new(global.json);
    match command {
        Command::Train(args) => train::run(*args, global, out),
        Command::Eval(args) => eval::run(&args, global, out),
        Command::Predict(args) => predict::run(&args, global, out),
        Command::Serve(args) => serve::run(*args, global, out),
        Command::Embed(args) => embed::run(&args, global, out),
        Command::Export(args) => export::run(&args, global, out),
        Command::ZeroShot(args) => zero_shot::run(&args, global, out),
        Command::Bench(args) => bench::run(args, global, out),
        Command::Cluster(args) => cluster::run(&args, out),
        Command::Data(args) => data::run(args, global, out),
        Command::Cache(args) => cache::run(&args, out),
        Command::Runs(args) => runs::run(&args, global, out),
        Command::Task(args) => task::run(&args, out),
        Command::Completions(args) => docs::completions(&args, out),
        Command::Man(args) => docs::man(&args, out),
        Command::Backbones(args) => backbones::run(args, global, out),
    }
}

/// The last net: a fault of our own is one line and exit code 1, like any other failure.
fn catch_panics() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let what =
            payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let place = info.location().map(|at| format!(" at {}:{}", at.file(), at.line())).unwrap_or_default();
        output::message(&format!("error: internal fault{place}: {}", printable(what.unwrap_or("unknown"))));
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            output::message(&std::backtrace::Backtrace::force_capture().to_string());
        }
        std::process::exit(1);
    }));
}

fn start_tracing(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "off",
        (_, 0) => "vpt=warn",
        (_, 1) => "vpt=info",
        (_, 2) => "vpt=debug",
        _ => "trace",
    };
    // Not set twice: a subscriber of a caller stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(level))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .log_internal_errors(false)
        .with_target(global.verbose > 1)
        .without_time()
        .try_init();
}

/// 2 where a flag is at fault, 75 for a run that can be resumed; 1 for all else, files and data among it.
fn exit_code(error: &anyhow::Error) -> u8 {
    match error.root_cause() {
        cause if cause.is::<Usage>() => 2,
        cause if matches!(cause.downcast_ref(), Some(vpt::Error::Setting { file: None, .. })) => 2,
        cause => cause.downcast_ref().map_or(1, Interrupted::exit_code),
    }
}

/// An error and its causes on one line. A cause that its effect already quotes is not said twice.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let cause = match cause.downcast_ref::<vpt::Error>() {
            Some(error) => flags::words(&error.message()),
            None => cause.to_string(),
        };
        if line.contains(&cause) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&cause);
    }
    printable(&line)
}

/// `text` on one line of a length that is read, without characters that could steer a terminal.
fn printable(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line: String = words
        .join(" ")
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect();
    vpt::error::shortened(&line).into_owned()
}
