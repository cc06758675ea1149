//! `vpt bench`: how good methods are, what a training step costs.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use vpt::backbone::{Backbone, Engine};
use vpt::bench::detect::{DetectReport, detect};
use vpt::bench::kernels::{self, KernelReport, KernelRow, kernels};
use vpt::bench::step::{StepOptions, StepReport, step};
use vpt::prompt::tokens::PromptLayers;
use vpt::report::table;
use vpt::{
    config::{RunConfig, Task},
    methods::Method,
};

use super::flags::parsed;
use super::output::Output;
use super::progress::ProgressDisplay;
use super::{Global, bench_backbones, few_shot};

/// Compare methods; measure time and memory of training steps
#[derive(Debug, Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    FewShot(Box<few_shot::FewShotArgs>),
    Merge(few_shot::Merge),
    Backbones(Box<bench_backbones::BackbonesArgs>),
    Step(StepArgs),
    Detect(Detect),
    Kernels(Kernels),
    #[command(hide = true)]
    FewShotJob(few_shot::FewShotJob),
}

impl Bench {
    /// Whether time of steps is measured, on either engine.
    pub(crate) fn measures_steps(&self) -> bool {
        matches!(self.command, BenchCommand::Step(_))
    }

    /// The grid, if that is what is asked for.
    pub(super) fn few_shot(&self) -> Option<&few_shot::FewShotArgs> {
        match &self.command {
            BenchCommand::FewShot(args) => Some(args),
            _ => None,
        }
    }
}

// What a step is measured on. No doc comment, which would become the text of the commands that it is flattened into.
#[derive(Debug, Args)]
struct MeasuredOn {
    /// Known backbone or folder in the Hugging Face layout
    #[arg(long, value_name = "NAME|DIR", default_value = "clip-nano")]
    backbone: String,
    /// Folder to look for known backbones in, before the local Hugging Face cache
    #[arg(long, value_name = "DIR")]
    weights_dir: Option<PathBuf>,
    /// Images a thread works on at a time [default: chosen for speed]
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    micro_batch: Option<usize>,
    /// Prompt tokens a block, for methods with prompts [default: 10]
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    prompt_tokens: Option<usize>,
    /// Prompted blocks: all, first:K or last:K, for methods with prompts in blocks [default: all; of a detector last:4]
    #[arg(long, value_name = "all|first:K|last:K", value_parser = parsed::<PromptLayers>)]
    prompt_layers: Option<PromptLayers>,
    /// Side of the images in pixels [default: the backbone's]
    #[arg(long, allow_negative_numbers = true, value_name = "PIXELS")]
    image_size: Option<usize>,
}

impl MeasuredOn {
    /// The backbone, and `config` with what is said here.
    fn open(self, config: RunConfig, global: &Global) -> anyhow::Result<(RunConfig, Backbone)> {
        let config =
            RunConfig { micro_batch: self.micro_batch, seed: global.seed(), threads: Some(global.threads()), ..config }
                .on(global.compute())
                .with_options(|o| {
                    (o.tokens.prompt_tokens, o.tokens.prompt_layers) = (self.prompt_tokens, self.prompt_layers);
                });
        config.validate()?;
        let options = global.open_options(self.weights_dir.as_deref(), self.image_size);
        Ok((config, Backbone::open(&self.backbone, &options)?))
    }
}

/// Time and memory of one training step on random images
///
/// A step is forward, loss, and backward to prompts and head. One warm-up step is not counted. `gflop` counts the least
/// work the step needs, so gflop per second can be compared between programs.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vpt bench step --backbone clip-vit-b16 --batch-size 16 --prompt-tokens 50 --json")]
struct StepArgs {
    #[command(flatten)]
    on: MeasuredOn,
    /// What is learned beside the head, as in `vpt train`: a method or several (vpt-deep,lora); not one that learns texts, which
    /// needs the names of classes
    #[arg(long, value_name = "METHOD[,METHOD…]", default_value = "vpt-deep", value_parser = parsed::<Method>)]
    method: Method,
    /// Images a step
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 32)]
    batch_size: usize,
    /// Classes of the head
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 10)]
    classes: usize,
    /// Steps to time; the median is reported
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 3)]
    repeats: usize,
    /// Time the forward pass alone, as `eval` and `predict` run it
    #[arg(long)]
    forward: bool,
}

/// Time of a training step of detection or segmentation on random images, beside the backbone's forward pass
///
/// Measured in turns: the forward pass alone, a step that runs the whole backbone, a step from what comes before the first
/// prompt (which training computes once where only the flip is random), and a step of the head alone.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vpt bench detect --backbone clip-vit-b32 --image-size 384 --batch-size 8 --json")]
struct Detect {
    #[command(flatten)]
    on: MeasuredOn,
    /// What is learned: detect (boxes) or segment (pixels)
    #[arg(long, value_name = "TASK", default_value = "detect", value_parser = parsed::<Task>)]
    task: Task,
    /// Images a step
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 8)]
    batch_size: usize,
    /// Classes of the head
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 80)]
    classes: usize,
    /// Rounds to time; medians are reported
    #[arg(long, allow_negative_numbers = true, value_name = "N", default_value_t = 5)]
    repeats: usize,
}

/// Speed of products and attention, beside what the machine can do at most
///
/// The most is what multiply-adds on registers alone reach. Every thread works on rows of its own, as in training.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vpt bench kernels --rows 394 --width 768 --tokens 197")]
struct Kernels {
    /// Rows a thread works on at a time: tokens of its images
    #[arg(long, value_name = "N", default_value_t = 394)]
    rows: usize,
    /// Width of a token
    #[arg(long, value_name = "N", default_value_t = 768)]
    width: usize,
    /// Tokens of an image in attention
    #[arg(long, value_name = "N", default_value_t = 197)]
    tokens: usize,
    /// Rounds; the fastest counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeats: usize,
}

pub(crate) fn run(args: Bench, global: &Global, out: Output) -> anyhow::Result<()> {
    match args.command {
        BenchCommand::FewShot(args) => few_shot::run(*args, global, out),
        BenchCommand::Backbones(args) => bench_backbones::run(*args, global, out),
        BenchCommand::Merge(args) => few_shot::merge(&args, out),
        BenchCommand::FewShotJob(_) => few_shot::job(out),
        BenchCommand::Step(args) => run_step(args, global, out),
        BenchCommand::Detect(args) => run_detect(args, global, out),
        BenchCommand::Kernels(args) => run_kernels(&args, global, out),
    }
}

fn run_detect(args: Detect, global: &Global, out: Output) -> anyhow::Result<()> {
    let config = RunConfig { batch_size: Some(args.batch_size), ..RunConfig::default() };
    let (config, backbone) = args.on.open(config, global)?;
    let progress = ProgressDisplay::new(global.quiet);
    let measured = StepOptions { repeats: args.repeats, classes: args.classes, forward: false };
    let report = detect(&config, args.task, backbone, &measured, &mut |note| progress.line(note))?;
    out.result(&report, || describe_detect(&report))
}

fn describe_detect(report: &DetectReport) -> String {
    let ratio = |seconds: f64| format!("{seconds:.3} s, {:.2} forward passes", seconds / report.forward_s);
    table::pairs(&[
        (
            "task",
            format!(
                "{}, {}, {} prompt tokens in {} blocks",
                report.task, report.backbone, report.prompt_tokens, report.prompt_layers
            ),
        ),
        ("batch", format!("{} images of {} pixels", report.batch_size, report.image_size)),
        ("threads", report.threads.to_string()),
        ("forward pass", format!("{:.3} s, median of {}", report.forward_s, report.repeats)),
        ("step", ratio(report.step_s)),
        ("from the prefix", ratio(report.prefix_step_s)),
        ("head alone", ratio(report.head_step_s)),
        ("peak memory", report.peak_rss_bytes.map_or_else(|| "-".to_owned(), table::bytes)),
    ])
}

fn run_step(args: StepArgs, global: &Global, out: Output) -> anyhow::Result<()> {
    let config = RunConfig { method: args.method, batch_size: Some(args.batch_size), ..RunConfig::default() };
    let (config, backbone) = args.on.open(config, global)?;
    let progress = ProgressDisplay::new(global.quiet);
    let measured = StepOptions { repeats: args.repeats, classes: args.classes, forward: args.forward };
    let report = step(&config, backbone, &measured, &mut |note| progress.line(note))?;
    out.result(&report, || describe(&report))
}

fn describe(report: &StepReport) -> String {
    let prompts =
        if report.prompt_tokens > 0 { format!(", {} prompt tokens", report.prompt_tokens) } else { String::new() };
    let on = report.device.map_or_else(String::new, |device| format!(" on {device}"));
    let engine = match report.engine {
        Engine::Native => String::new(),
        Engine::Candle => format!(", engine {}{on}", report.engine),
    };
    table::pairs(&[
        (
            if report.forward { "forward pass" } else { "step" },
            format!("{} on {}, {}{prompts}{engine}", report.method, report.backbone, report.precision),
        ),
        (
            "batch",
            format!(
                "{} images of {} pixels, {} at a time{}",
                report.batch_size,
                report.image_size,
                report.micro_batch,
                if report.recompute { ", blocks run twice" } else { "" }
            ),
        ),
        ("threads", report.threads.to_string()),
        ("median", format!("{:.3} s of {}", report.median_s, report.repeats)),
        ("images/s", format!("{:.1}", report.img_per_s)),
        ("least work", format!("{:.1} GFLOP, {:.0} GFLOP/s", report.gflop, report.gflop_per_s)),
        ("peak memory", report.peak_rss_bytes.map_or_else(|| "-".to_owned(), table::bytes)),
    ])
}

fn run_kernels(args: &Kernels, global: &Global, out: Output) -> anyhow::Result<()> {
    let &Kernels { rows, width, tokens, repeats } = args;
    let progress = ProgressDisplay::new(global.quiet);
    let options = kernels::KernelOptions { rows, width, tokens, threads: global.threads(), repeats };
    let report = kernels(&options, &mut |note| progress.line(note))?;
    out.result(&report, || describe_kernels(&report))
}

fn describe_kernels(report: &KernelReport) -> String {
    let cells = |row: &KernelRow| {
        let speed = format!("{:.0}", row.gflop_per_s);
        vec![row.kernel.clone(), row.precision.to_string(), speed, table::percent(row.share_of_peak)]
    };
    let rows: Vec<_> = report.kernels.iter().map(cells).collect();
    let table = table::columns(&["kernel", "format", "GFLOP/s", "of the peak"], &rows);
    format!("{}, {} threads\n{table}", report.isa, report.threads)
}
