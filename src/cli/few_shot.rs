//! `vpt bench few-shot` and `vpt bench merge`: flags to a grid, its progress, its table.
//!
//! Each job is a process of its own, this program again: its peak memory is the job's alone, and a job that panics or is
//! killed for want of memory takes nothing with it. A job comes to its process on stdin; when stdin closes, because this
//! process was told to stop or is no more, the job saves and ends. So nothing goes on working that nobody waits for.

use std::io::{self, BufRead, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use vpt::Message;
use vpt::bench::few_shot::{
    GridConfig, GridEvent, GridMethod, GridOutcome, GridSchedule, Job, Mode, PartResult, Performed, TextFile, Worker,
    console, merge as merge_folder, perform, run as run_grid, to_json,
};
use vpt::cluster::ShardChoice;
use vpt::config::{HeadInit, LearningRate, RunConfig, Task};
use vpt::data::boxes::BoxDataset;
use vpt::feature_cache;
use vpt::head::LabelMap;
use vpt::metrics::{Scores, coco::CocoMetrics};
use vpt::report::table;
use vpt::train::{Event, Observer};

use super::flags::{self, parsed};
use super::interrupt::Interrupt;
use super::output::Output;
use super::progress::ProgressDisplay;
use super::{Global, Interrupted, one_of};

/// How often a job's process is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// Most of what a job's process says that is kept, in bytes.
const KEPT: u64 = 1 << 16;

const EXAMPLES: &str = "\
Examples:
  vpt bench few-shot --data photos/ --methods linear,vpt-deep --schedule quick --out few-shot
  vpt bench few-shot --backbone clip-vit-b16 --data pets/,dtd/,eurosat/ --methods all --out table
  vpt bench few-shot --data photos/ --methods all --out shared/table --shard 1/2     on one machine, 2/2 on another
  vpt bench few-shot --data photos/ --methods zero-shot --base-to-new --classnames names.txt --out new
  vpt bench few-shot --task detect --backbone dinov2-small --data rf100-vl-fsod/bees --methods linear,vpt-deep --shots 10 --out boxes
  vpt bench merge table                          write the tables anew";

/// Compare methods by CoOp's few-shot protocol: tables, curves, intervals
///
/// For each k of --shots and each of --seeds, k images a class are drawn. All methods learn from the same draws, validate on min(k, 4) images a
/// class, take the last step, and are measured on the whole test set.
///
/// With --task detect k counts boxes: images are added in random order, with all boxes that they have of a class, as long as these fit into
/// k, class by class. What else is in the drawn images is neither learned nor taken for background. The training part of RF100-VL's few-shot
/// sets is used as it is with 10 shots. Methods are compared by AP.
///
/// With --task segment k images that show each class are drawn, class by class, the rarest first; an image counts for every class that it
/// shows, and all of its mask is learned from. Methods are compared by mIoU.
///
/// Stop it at any time (Ctrl-C: exit code 75): the same command goes on, because jobs that are done are skipped. Several processes with the
/// same --out share the work, on several machines too. A folder takes one set of settings: others that
/// would change a result are refused. If a job fails, the others go on, and the exit code is 1 at the end.
///
/// Writes to --out: report.html, table.md, table.tex, results.csv, results.json, curves.svg, the draws (draws/) and the jobs
/// (jobs/, with a bit for each test image: right or wrong). Time and peak memory are those of each job's own process.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct FewShotArgs {
    /// Known backbone or folder in the Hugging Face layout
    #[arg(long, value_name = "NAME|DIR", default_value = "clip-nano")]
    backbone: String,
    /// Folder to look for known backbones in, before the local Hugging Face cache
    #[arg(long, value_name = "DIR")]
    weights_dir: Option<PathBuf>,
    /// What is learned: auto (detect from data with boxes, else classify), classify, detect or segment
    #[arg(long, value_name = "TASK", default_value = "auto", value_parser = one_of::<Task>(&["auto", "classify", "detect", "segment"]))]
    task: Task,
    /// Data sets: image folders, CSV/TSV files, folders of IDX files, or `shapes`; with boxes COCO, YOLO, Pascal VOC; with masks as `vpt train`
    /// reads them; parts that one lacks are made by --seed
    #[arg(long, value_name = "PATH[,PATH…]", value_delimiter = ',', required = true)]
    data: Vec<String>,
    /// Methods, or `all`: every --method of `vpt train`; those that learn at once with a plus between, vpt-deep+bias
    #[arg(long, value_name = "METHOD[,METHOD…]|all", value_delimiter = ',', required = true)]
    methods: Vec<String>,
    /// Images a class to learn from; with --task detect boxes a class, with segment images that show a class
    #[arg(
        long,
        value_name = "K[,K…]",
        value_delimiter = ',',
        default_value = "1,2,4,8,16",
        allow_negative_numbers = true
    )]
    shots: Vec<usize>,
    /// Seeds of draws and training
    #[arg(long, value_name = "N[,N…]", value_delimiter = ',', default_value = "1,2,3", allow_negative_numbers = true)]
    seeds: Vec<u64>,
    /// The folder of the grid
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long methods learn: `published`, as their defaults say; `quick`, at most 2000 image passes a job
    ///
    /// Enough to see whether prompts and heads get anywhere. Methods that learn texts need many small steps: with 16 images of ten
    /// classes quick leaves coop 60 steps of 1000, at the end of which all classes are alike to it.
    #[arg(long, value_name = "SCHEDULE", default_value = "published", value_parser = one_of::<GridSchedule>(GridSchedule::NAMES))]
    schedule: GridSchedule,
    /// Do every N-th job from the I-th on; the other flags must be the same for all; auto asks the variables of a Slurm job array, of an
    /// indexed Kubernetes job, or of `srun`, `mpirun` or `torchrun`
    #[arg(long, value_name = "auto|I/N", value_parser = parsed::<ShardChoice>)]
    shard: Option<ShardChoice>,
    /// Read draws from this folder, write those that are not there yet [default: OUT/draws]
    ///
    /// A draw is called DATA-SHOTS-SEED.json (DATA-base-SHOTS-SEED.json with --base-to-new) and lists images by class.
    #[arg(long, value_name = "DIR")]
    draws: Option<PathBuf>,
    /// Learn from the first half of the labels (rounded up), measure on them and on the others, and their harmonic mean;
    /// for methods that tell classes by their names (zero-shot, and those that learn texts: coop, cocoop, ivlp, maple,
    /// promptsrc)
    #[arg(long, conflicts_with = "cross")]
    base_to_new: bool,
    /// Learn from --data, measure on these data sets too; for methods that tell classes by their names, as with --base-to-new
    #[arg(long, value_name = "PATH[,PATH…]", value_delimiter = ',')]
    cross: Vec<String>,
    /// Class names for methods that tell classes by them: one a line or a JSON list, in class order; for one of the data
    /// sets with its name before it [default: the data's, with spaces for _]
    #[arg(long, value_name = "[DATA=]FILE")]
    classnames: Vec<TextFile>,
    /// Templates with {} or {c} for the class name, likewise (zero-shot) [default: "a photo of a {}."]
    #[arg(long, value_name = "[DATA=]FILE")]
    templates: Vec<TextFile>,
    /// The public data set whose card names the classes and has the templates: auto recognises it, none leaves it at the data's names
    /// [default: auto]
    #[arg(long, value_name = "NAME|auto|none")]
    dataset_card: Option<String>,
    /// Keep the run folder of every job, with its task file, in OUT/runs
    #[arg(long)]
    keep_runs: bool,
    /// Folder that keeps features of frozen backbones from job to job; see `vpt cache` [default: `VPT_CACHE`, else vpt in the
    /// system's folder for caches]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Neither look for features in the cache nor keep any
    #[arg(long, conflicts_with = "cache_dir")]
    no_cache: bool,

    /// Passes over the training images [default: as `vpt train`]
    #[arg(long, value_name = "N", help_heading = "Training, for all methods", allow_negative_numbers = true)]
    epochs: Option<usize>,
    /// Images a step [default: as `vpt train`]
    #[arg(long, value_name = "N", help_heading = "Training, for all methods", allow_negative_numbers = true)]
    batch_size: Option<usize>,
    /// Peak learning rate, or `auto` to try a few on validation [default: as `vpt train`]
    #[arg(long, value_name = "RATE|auto", help_heading = "Training, for all methods", allow_negative_numbers = true, value_parser = parsed::<LearningRate>)]
    lr: Option<LearningRate>,
    /// What a head beside prompts or tuned weights begins as: probe or random [default: as `vpt train`]
    #[arg(long, value_name = "INIT", value_parser = one_of::<HeadInit>(HeadInit::NAMES), help_heading = "Training, for all methods")]
    head_init: Option<HeadInit>,
    /// Keep the probe on frozen features as a method's result where it is better on validation [default: false: methods are
    /// seen for what they learn; how often the probe would have been kept is in results.csv]
    #[arg(long, value_name = "true|false", help_heading = "Training, for all methods")]
    keep_better: Option<bool>,
    /// Prompt tokens a block (vpt-shallow, vpt-deep) [default: as `vpt train`]
    #[arg(long, value_name = "N", help_heading = "Training, for all methods", allow_negative_numbers = true)]
    prompt_tokens: Option<usize>,
    /// Tell classes by the backbone's own classifier (vp-pad, vp-patch, vp-full, vp-frame): rlm, flm, ilm, blm or blm+, as
    /// `vpt train` [default: a linear head]
    #[arg(long, value_name = "MAP", value_parser = one_of::<LabelMap>(LabelMap::NAMES), help_heading = "Training, for all methods")]
    label_map: Option<LabelMap>,
    /// Side of the images the backbone sees, in pixels [default: the backbone's]
    #[arg(long, value_name = "PIXELS", help_heading = "Training, for all methods", allow_negative_numbers = true)]
    image_size: Option<usize>,
    /// Random views of each training image whose tokens are computed once (detection, segmentation) [default: as `vpt train`]
    #[arg(long, value_name = "N", help_heading = "Training, for all methods", allow_negative_numbers = true)]
    cached_views: Option<usize>,
    /// Images whose activations are in memory at once
    #[arg(long, value_name = "N", help_heading = "Training, for all methods", allow_negative_numbers = true)]
    micro_batch: Option<usize>,
}

/// Write tables, curves and report of a grid's folder anew from the files of its jobs
#[derive(Debug, Args)]
pub(crate) struct Merge {
    /// The --out of `vpt bench few-shot`
    folder: PathBuf,
}

/// Do one job of a grid, which comes on stdin; used by `vpt bench few-shot` for each of its jobs
#[derive(Debug, Args)]
pub(crate) struct FewShotJob {}

pub(crate) fn run(args: FewShotArgs, global: &Global, out: Output) -> anyhow::Result<()> {
    let shard = args.shard.map(ShardChoice::shard).transpose()?;
    let all = args.names_all();
    let mut config = args.grid(global)?;
    let mut worker = Processes::new(global).context("signals")?;
    if all {
        let (able, unable) = config.of_able_methods()?;
        config = able;
        if !unable.is_empty() {
            let names: Vec<_> = unable.into_iter().map(GridMethod::name).collect();
            let backbone = &config.base.backbone;
            worker.progress.line(&format!("left out: {}, since {backbone} reads no texts", names.join(", ")));
        }
    }
    let outcome = run_grid(&config, shard, &mut worker)?;
    worker.clear();
    let GridOutcome::Finished { summary, failed } = outcome else { return Err(Interrupted::Grid.into()) };
    out.result(&to_json(&summary), || {
        format!("{}report: {}\n", console(&summary), config.out.join("report.html").display())
    })?;
    match failed {
        0 => Ok(()),
        _ => Err(anyhow!("failed jobs: {failed}; the same command tries them again")),
    }
}

pub(crate) fn merge(args: &Merge, out: Output) -> anyhow::Result<()> {
    let summary = merge_folder(&args.folder)?;
    out.result(&to_json(&summary), || console(&summary))?;
    match summary.failures.len() {
        0 => Ok(()),
        failed => Err(anyhow!("failed jobs: {failed}; `vpt bench few-shot` tries them again")),
    }
}

impl FewShotArgs {
    /// The share that is asked for.
    pub(super) fn share(&self) -> Option<ShardChoice> {
        self.shard
    }

    /// Jobs of the grid, as far as that is known without opening data and backbone.
    pub(super) fn jobs(&self) -> vpt::Result<usize> {
        let methods = self.methods()?;
        let without_shots = methods.iter().filter(|method| **method == GridMethod::ZeroShot).count();
        let draws = self.shots.len() * self.seeds.len();
        Ok(self.data.len() * (without_shots + (methods.len() - without_shots) * draws))
    }

    fn methods(&self) -> vpt::Result<Vec<GridMethod>> {
        if self.names_all() {
            return Ok(GridMethod::all_for(self.task()));
        }
        self.methods.iter().map(|name| name.parse()).collect()
    }

    /// What is learned.
    fn task(&self) -> Task {
        match (self.task, self.data.first()) {
            (Task::Auto, Some(data)) if BoxDataset::recognize(data).is_some() => Task::Detect,
            (Task::Auto, _) => Task::Classify,
            (task, _) => task,
        }
    }

    /// Whether methods are not named one by one.
    fn names_all(&self) -> bool {
        matches!(&self.methods[..], [all] if all == "all")
    }

    fn grid(self, global: &Global) -> anyhow::Result<GridConfig> {
        let all = self.names_all();
        let methods = self.methods()?;
        let mode = match (self.base_to_new, self.cross.is_empty()) {
            (true, _) => Mode::BaseToNew,
            (false, false) => Mode::Cross,
            (false, true) => Mode::FewShot,
        };
        let task = self.task();
        let base = RunConfig {
            task,
            backbone: self.backbone,
            weights_dir: self.weights_dir,
            seed: global.seed(),
            threads: Some(global.threads()),
            precision: global.precision(),
            max_memory: global.max_memory(),
            epochs: self.epochs,
            batch_size: self.batch_size,
            lr: self.lr,
            head_init: self.head_init,
            keep_better: self.keep_better,
            label_map: self.label_map,
            dataset_card: self.dataset_card,
            image_size: self.image_size,
            micro_batch: self.micro_batch,
            cached_views: self.cached_views,
            cache_dir: if self.no_cache { None } else { self.cache_dir.or_else(feature_cache::default_folder) },
            ..RunConfig::default()
        }
        .with_options(|o| o.tokens.prompt_tokens = self.prompt_tokens);
        // Of methods that were not named one by one, those that can do what is asked.
        let can = |method: &GridMethod| !all || mode == Mode::FewShot || method.names_unseen_classes();
        Ok(GridConfig {
            base,
            data: self.data,
            methods: methods.into_iter().filter(can).collect(),
            shots: self.shots,
            seeds: self.seeds,
            mode,
            targets: self.cross,
            schedule: self.schedule,
            classnames: self.classnames,
            templates: self.templates,
            draws: self.draws,
            out: self.out,
            keep_runs: self.keep_runs,
        })
    }
}

/// Does each job in a process of its own.
pub(super) struct Processes {
    progress: ProgressDisplay,
    number: usize,
    of: usize,
    /// Whether jobs are of several backbones, and so named by them too.
    several_backbones: bool,
}

impl Worker for Processes {
    fn perform(&mut self, job: &Job) -> Result<Performed, Message> {
        let progress = &self.progress;
        perform_in_process(job, &|| progress.stop()).map_err(|error| super::one_line(&error).into())
    }

    fn event(&mut self, event: &GridEvent<'_>) {
        match event {
            GridEvent::Card { data, card } => {
                let also = "--dataset-card none leaves them at the data's";
                self.progress.line(&format!("{data}: class names and templates of the card {card}; {also}"));
            }
            GridEvent::Planned { jobs, own, done } => {
                (self.number, self.of) = (0, own - done);
                let share = if own < jobs { format!(", {own} of them here") } else { String::new() };
                let done = if *done > 0 { format!(", {done} done already") } else { String::new() };
                self.progress.line(&format!("{jobs} jobs{share}{done}"));
            }
            GridEvent::Begin { job, number, of } => {
                let title = self.describe(job);
                self.progress.at("job", *number, *of, || title);
            }
            GridEvent::Done { job, result, elsewhere } => {
                let score = |part: &PartResult| match &part.metrics {
                    Scores::Detect(CocoMetrics { ap, ap50, .. }) => {
                        format!("{} AP {}, AP50 {}", part.name, table::percent(*ap), table::percent(*ap50))
                    }
                    Scores::Segment(pixels) => format!("{} mIoU {}", part.name, table::percent(pixels.miou)),
                    metrics => format!("{} acc1 {}", part.name, table::percent(metrics.main())),
                };
                let scores: Vec<String> = result.parts.iter().map(score).collect();
                let memory = result.peak_rss_bytes.map_or_else(String::new, |b| format!(", {}", table::bytes(b)));
                let by = if *elsewhere { ", by another process" } else { "" };
                let cost = format!("{}{memory}{by}", table::seconds(result.wall_s));
                self.told(&format!("{}: {} ({cost})", self.describe(job), scores.join(", ")));
            }
            GridEvent::Failed { job, error } => self.told(&format!("{} failed: {error}", self.describe(job))),
            GridEvent::Waiting { jobs } => {
                self.progress.line(&format!("waiting for {jobs} jobs that other processes work on"));
            }
            _ => {}
        }
    }

    fn words(&self, message: &Message) -> String {
        flags::words(message)
    }

    fn stop(&self) -> bool {
        self.progress.stop()
    }
}

impl Processes {
    pub(super) fn new(global: &Global) -> io::Result<Self> {
        let progress = ProgressDisplay::interruptible(global.quiet, global.verbose > 0)?;
        Ok(Self { progress, number: 0, of: 0, several_backbones: false })
    }

    /// The same, for jobs of several backbones.
    pub(super) fn of_backbones(global: &Global) -> io::Result<Self> {
        Ok(Self { several_backbones: true, ..Self::new(global)? })
    }

    /// Takes the progress off the screen.
    pub(super) fn clear(&self) {
        self.progress.clear();
    }

    /// A line about a job that is over.
    fn told(&mut self, text: &str) {
        self.number += 1;
        self.progress.line(&format!("[{}/{}] {text}", self.number, self.of));
    }

    fn describe(&self, job: &Job) -> String {
        let what = match job.shots {
            0 => format!("{} {}", job.dataset, job.method),
            1 => format!("{} {}, 1 shot, seed {}", job.dataset, job.method, job.seed),
            shots => format!("{} {}, {shots} shots, seed {}", job.dataset, job.method, job.seed),
        };
        if self.several_backbones { format!("{}: {what}", job.config.backbone) } else { what }
    }
}

/// Does `job` in a process of its own, which is told to stop once `stop` says so.
fn perform_in_process(job: &Job, stop: &dyn Fn() -> bool) -> anyhow::Result<Performed> {
    let mut command = Command::new(this_program()?);
    command.args(["bench", "few-shot-job", "--quiet"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[cfg(unix)]
    {
        // Ctrl-C in a terminal is for this process, which then closes the job's stdin; both would stop it at once.
        use std::os::unix::process::CommandExt;
        command.process_group(0);
    }
    let mut child = command.spawn().context("the job's process")?;
    let mut stdin = child.stdin.take();
    let said = child.stdout.take().map(read);
    let complained = child.stderr.take().map(read);
    let sent = stdin.as_mut().map_or(Ok(()), |stdin| send(job, stdin));
    let status = wait(&mut child, &mut stdin, stop).context("the job's process")?;
    let text = |reader: Option<JoinHandle<String>>| reader.and_then(|r| r.join().ok()).unwrap_or_default();
    let (said, complained) = (text(said), text(complained));
    if status.success() {
        sent.context("the job's process")?;
        return serde_json::from_str(said.trim()).context("what the job's process said");
    }
    let error = complained.lines().rev().find_map(|line| line.strip_prefix("error: "));
    Err(match error {
        Some(error) => anyhow!("{error}"),
        None => anyhow!("its process ended with {status}; was there too little memory?"),
    })
}

/// This program, even if its file was replaced by now.
fn this_program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let running = PathBuf::from("/proc/self/exe");
    Ok(if !path.exists() && running.exists() { running } else { path })
}

fn send(job: &Job, stdin: &mut ChildStdin) -> io::Result<()> {
    let mut line = serde_json::to_vec(job)?;
    line.push(b'\n');
    stdin.write_all(&line)?;
    stdin.flush()
}

/// Waits for the end of `child`; its stdin is closed once `stop` says so.
fn wait(child: &mut Child, stdin: &mut Option<ChildStdin>, stop: &dyn Fn() -> bool) -> io::Result<ExitStatus> {
    loop {
        if stop() {
            drop(stdin.take());
        }
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        thread::sleep(LOOK);
    }
}

/// Reads everything, so that the writer never has to wait, and keeps the beginning.
fn read(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut kept = Vec::new();
        let _ = from.by_ref().take(KEPT).read_to_end(&mut kept);
        let _ = io::copy(&mut from, &mut io::sink());
        String::from_utf8_lossy(&kept).into_owned()
    })
}

/// The process of one job.
pub(crate) fn job(out: Output) -> anyhow::Result<()> {
    let interrupt = Interrupt::listen(|| {}).context("signals")?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).context("stdin")?;
    let job: Job = serde_json::from_str(&line).context("stdin holds no job; `vpt bench few-shot` sends one")?;
    let closed = Arc::new(AtomicBool::new(false));
    let told = closed.clone();
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        told.store(true, Ordering::SeqCst);
    });
    let performed = perform(&job, &mut Quiet { interrupt, closed })?;
    out.result(&performed, || serde_json::to_string(&performed).unwrap_or_default())
}

/// Shows nothing, and stops a job when a signal comes or stdin closes.
struct Quiet {
    interrupt: Interrupt,
    closed: Arc<AtomicBool>,
}

impl Observer for Quiet {
    fn event(&mut self, _: &Event<'_>) {}

    fn words(&self, message: &Message) -> String {
        flags::words(message)
    }

    fn stop(&self) -> bool {
        self.interrupt.came() || self.closed.load(Ordering::SeqCst)
    }
}
