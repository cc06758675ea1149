//! `vpt train`: flags to a [`RunConfig`], and what came of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use vpt::backbone::{Compute, Device};
use vpt::cluster::{Ranks, ranks};
use vpt::config::RunConfig;
use vpt::data::cards::Card;
use vpt::feature_cache;
use vpt::head::HeadKind;
use vpt::methods::{Method, Task, settings::Settings};
use vpt::metrics::{Scores, bootstrap::Interval};
use vpt::report::table;
use vpt::train::results::{BesideHead, HeadOnly, ProbeResults};
use vpt::train::run_folder::{BEST, LAST, MISTAKES};
use vpt::train::{self, Outcome, Results};

use super::carbon::CarbonArgs;
use super::output::{self, Output};
use super::progress::ProgressDisplay;
use super::runs::RUNS;
use super::settings::SettingFlags;
use super::{Global, Interrupted, Usage, exit_code, one_line};

/// The backbone that is built in.
const DEFAULT_BACKBONE: &str = "clip-nano";

const EXAMPLES: &str = "\
Examples:
  vpt train                                          clip-nano on generated shapes: a first look, two minutes
  vpt train --data photos/                           your folder: photos/CLASS/*.jpg, or train/ val/ test/ of such
  vpt train --data photos/ --method vp-pad --shots 16 --seed 2
  vpt train --backbone clip-vit-b16 --data cars.csv --prompt-tokens 50 --prompt-layers last:6 --epochs 30
  vpt train --resume runs/classify/photos-vpt-deep-3    go on after a crash, to the same result
  mpirun -n 4 vpt train --data photos/ --shares 4 --threads 2    on four processes, in a build with MPI
  vpt train --config runs/classify/photos-vpt-deep-3/config.toml --seed 5";

/// Learn prompts and a head for your images; evaluate the selected epoch once on test
///
/// Writes a run folder: best.safetensors is the task file that `predict`, `eval` and `embed` take; results.json,
/// metrics.jsonl, config.toml and pictures say how it went.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Train {
    /// Go on with the run in this folder, from its own configuration
    ///
    /// Ends with the same bytes in best.safetensors as a run that was not interrupted, by Ctrl-C (which saves, exit code 75)
    /// or by a crash. A run without a checkpoint starts
    /// again; a finished one is left as it is and its result printed.
    #[arg(long, value_name = "RUN_DIR", conflicts_with = "config")]
    resume: Option<PathBuf>,
    /// Start from this config.toml, as a run folder holds it; flags override what it says
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    carbon: CarbonArgs,
    #[command(flatten)]
    flags: SettingFlags,
}

impl Train {
    /// The folder that is asked for.
    pub(super) fn out(&self) -> Option<&Path> {
        self.flags.get("out").map(Path::new)
    }

    /// The shares that batches are dealt to.
    pub(super) fn shares(&self) -> usize {
        self.flags.get("shares").and_then(|shares| shares.to_str()?.parse().ok()).unwrap_or(1)
    }
}

/// Seconds that a rank waits with an error before it says so: one that all have is rank 0's to tell.
const LATER: Duration = Duration::from_secs(2);

pub(crate) fn run(args: Train, global: &Global, out: Output) -> anyhow::Result<()> {
    let ranks = ranks::of_process(&|name| std::env::var(name).ok())?;
    let Err(error) = train(args, global, out, &ranks) else { return Ok(()) };
    if ranks.size() == 1 {
        return Err(error);
    }
    let code = exit_code(&error);
    if error.is::<Interrupted>() {
        // All have stopped at the same place, and one of them says so.
        if ranks.rank() == 0 {
            return Err(error);
        }
        drop(ranks);
        std::process::exit(code.into());
    }
    let mut said = one_line(&error);
    if ranks.rank() > 0 {
        std::thread::sleep(LATER);
        said = format!("rank {}: {said}", ranks.rank());
    }
    output::message(&format!("error: {said}"));
    ranks.abort(code)
}

/// The command on one of `ranks`; the first of them speaks for all.
fn train(args: Train, global: &Global, out: Output, ranks: &Arc<dyn Ranks>) -> anyhow::Result<()> {
    let leads = ranks.rank() == 0;
    let mut progress = ProgressDisplay::interruptible(global.quiet || !leads, global.verbose > 0).context("signals")?;
    progress.set_carbon(args.carbon.carbon()?);
    let outcome = if let Some(folder) = &args.resume {
        if !args.flags.is_empty()
            || global.seed.is_some()
            || global.threads.is_some()
            || global.precision.is_some()
            || global.max_memory.is_some()
            || global.engine.is_some()
            || global.device.is_some_and(|device| device != Device::Cpu)
        {
            let message = "--resume: the run goes on as it was begun, so nothing else can be set with it";
            return Err(Usage(message.to_owned()).into());
        }
        train::resume_on_ranks(folder, ranks, &mut progress)?
    } else {
        let base = args.config.as_deref().map(RunConfig::load).transpose()?.unwrap_or_default();
        let config = configured(args.flags, base, global)?;
        train::run_on_ranks(&config, ranks, Path::new(RUNS), &mut progress)?
    };
    progress.clear();
    match outcome {
        Outcome::Finished { .. } if !leads => Ok(()),
        Outcome::Finished { folder, results } => {
            args.carbon.keep(&folder.display().to_string(), results.energy.as_ref(), results.co2.as_ref())?;
            out.result(&*results, || summary(&folder, &results))
        }
        Outcome::Interrupted { folder: Some(folder) } => Err(Interrupted::Saved(folder).into()),
        Outcome::Interrupted { folder: None } => Err(Interrupted::Early(progress.interrupt().exit_code()).into()),
    }
}

/// The scores of a run's parts as a table, by the metrics of its task.
pub(crate) fn scores(results: &Results) -> String {
    let mut rows = vec![("val".to_owned(), results.val.as_ref()), ("test".to_owned(), Some(&results.test))];
    if let Some(head) = &results.head_only {
        rows.push(("val, head alone".to_owned(), head.val.as_ref()));
        rows.push(("test, head alone".to_owned(), Some(&head.test)));
        if let Some(beside) = head.beside.as_ref().filter(|beside| beside.kept) {
            rows.push((format!("val, {}", results.method), beside.learned.val.as_ref()));
            rows.push((format!("test, {}", results.method), Some(&beside.learned.test)));
        }
    }
    if let Some(unpruned) = &results.unpruned {
        rows.push(("val, unpruned".to_owned(), unpruned.val.as_ref()));
        rows.push(("test, unpruned".to_owned(), Some(&unpruned.test)));
    }
    if let Some(probe) = &results.probe {
        let alone = if probe.l2.is_some() { "probe" } else { "texts" };
        rows.push((format!("val, {alone} alone"), probe.val.as_ref()));
        rows.push((format!("test, {alone} alone"), Some(&probe.test)));
        if probe.kept {
            rows.push((format!("val, {}", results.method), probe.learned.val.as_ref()));
            rows.push((format!("test, {}", results.method), Some(&probe.learned.test)));
        }
    }
    let header: &[&str] = match results.test {
        Scores::Classify(_) => &["", "acc1", "acc5", "mean per-class recall", "loss"],
        Scores::Multilabel(_) => &["", "mAP", "micro F1", "macro F1", "exact match", "loss"],
        Scores::Detect(_) => &["", "AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"],
        Scores::Segment(_) => &["", "mIoU", "pixel accuracy", "mean class accuracy"],
    };
    // Without validation images there is no row of them.
    let rows = rows.into_iter().filter_map(|(part, scores)| Some((part, scores?)));
    let row = |(part, scores): (String, &Scores)| match scores {
        Scores::Classify(m) => vec![
            part,
            table::percent(m.acc1),
            table::percent(m.acc5),
            table::percent(m.mean_per_class_recall),
            format!("{:.4}", m.loss),
        ],
        Scores::Multilabel(m) => {
            let shares = [m.map, m.micro_f1, m.macro_f1, m.exact_match].map(table::percent);
            std::iter::once(part).chain(shares).chain([format!("{:.4}", m.loss)]).collect()
        }
        Scores::Segment(m) => {
            std::iter::once(part).chain([m.miou, m.pixel_acc, m.mean_acc].map(table::percent)).collect()
        }
        Scores::Detect(m) => {
            // -1 where there is nothing to measure.
            let shares = [m.ap, m.ap50, m.ap75, m.ap_small, m.ap_medium, m.ap_large, m.ar100];
            let cells = shares.map(|share| table::percent((share >= 0.).then_some(share)));
            std::iter::once(part).chain(cells).collect()
        }
    };
    table::columns(header, &rows.map(row).collect::<Vec<_>>())
}

fn summary(folder: &Path, results: &Results) -> String {
    let mut text = scores(results);
    text.push('\n');
    let mut rows = vec![
        ("method", format!("{} on {}", results.method, results.backbone)),
        ("data", format!("{}, {} classes, {} training images", results.data, results.classes, results.train_images)),
        (
            "learned",
            format!(
                "{} values beside {} frozen ones",
                table::count(results.trainable_params as u64),
                table::count(results.backbone_params - tuned(results))
            ),
        ),
        ("epoch", results.best_epoch.to_string()),
        ("time", format!("{}, {:.0} images/s", table::seconds(results.wall_s), results.img_per_s)),
        ("memory", results.peak_rss_bytes.map_or_else(|| "-".to_owned(), table::bytes)),
        ("energy", energy(results)),
        ("task file", folder.join(BEST).display().to_string()),
    ];
    if !results.chosen.is_empty() {
        let chosen: Vec<String> =
            results.chosen.iter().map(|(name, value)| format!("{name} {}", short(*value))).collect();
        let by = if results.val.is_some() { "chosen by validation" } else { "chosen by cross-validation" };
        rows.insert(4, (by, chosen.join(", ")));
    }
    let mistakes = folder.join(MISTAKES);
    if mistakes.is_file() {
        rows.push(("mistakes", mistakes.display().to_string()));
    }
    rows.splice(4..4, beside_alone(results));
    rows.splice(4..4, calibration(results).map(|text| ("calibration", text)));
    rows.splice(2..2, results.dataset_card.as_ref().map(|card| ("class names", format!("of the card {card}"))));
    text + &table::pairs(&rows) + &next(folder, results)
}

/// What the run took, and the CO2 of that where it was asked for.
pub(crate) fn energy(results: &Results) -> String {
    let energy = results.energy.as_ref().map_or_else(|| "-".to_owned(), vpt::energy::Energy::in_words);
    match &results.co2 {
        Some(co2) => format!("{energy}; {}", co2.in_words()),
        None => energy,
    }
}

/// Weights of the backbone that the run has tuned, and that are not frozen therefore.
fn tuned(results: &Results) -> u64 {
    if results.method.tunes_in_place() { (results.trainable_params as u64).min(results.backbone_params) } else { 0 }
}

/// What one would type next.
fn next(folder: &Path, results: &Results) -> String {
    let run = quoted(&folder.display().to_string());
    let mut text = format!(
        "\nNext:\n  vpt predict --model {run} IMAGE…    # what is in other images\n  \
           vpt runs show {run}    # its course, settings and files\n"
    );
    // The bundled backbone has seen nothing but drawn shapes, which a newcomer cannot know.
    if results.backbone == DEFAULT_BACKBONE && results.data != "shapes" {
        text += "\nclip-nano is a toy that has only seen drawn shapes. For photos fetch a backbone that has seen photos:\n  \
                 vpt backbones fetch clip-vit-b32    # 600 MB, once; then train with --backbone clip-vit-b32\n";
    }
    // docs/what-helps.md, "Boxes on a backbone that has seen photos".
    if results.task == Task::Detect && results.backbone != DEFAULT_BACKBONE && results.method == Method::VPT_DEEP {
        text += "\nIf there is three times the time: --method bias found 3 AP more than prompts on both sets that were measured on a\n\
                 backbone that has seen photos.\n";
    }
    text
}

/// `text` as a word for a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:=@%".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// A value of any size in few characters.
fn short(value: f64) -> String {
    if (1e-2..1e4).contains(&value) { format!("{value:.3}") } else { format!("{value:.1e}") }
}

/// By how much the learned parts moved what the head alone reached, and which of them is the result, as a row of a summary.
pub(crate) fn beside_alone(results: &Results) -> Option<(&'static str, String)> {
    let (name, alone, val, moved, (better, kept), learned) = match (&results.probe, &results.head_only) {
        (Some(probe), _) => {
            let ProbeResults { l2, val, moved, better, kept, learned, .. } = probe;
            let alone = if l2.is_some() { "the probe on frozen features" } else { "the texts of the classes" };
            ("probe", alone, val, Some(moved), (*better, *kept), learned)
        }
        (None, Some(HeadOnly { val, beside: Some(beside), .. })) => {
            let BesideHead { moved, better, kept, learned } = beside;
            ("head alone", "the head alone", val, moved.as_ref(), (*better, *kept), learned)
        }
        _ => return None,
    };
    // Of a head that comes first, more epochs are part of what is gained.
    let (with, from) = match results.head_only.as_ref().filter(|_| results.probe.is_none()) {
        Some(head) => (" and the head that learned on beside it", format!("{alone} of epoch {}", head.best_epoch)),
        None => ("", alone.to_owned()),
    };
    let what = results.test.main_name();
    let signed = |share: f64| format!("{:+.1}", 100. * share);
    let points = match moved {
        Some(Interval { difference, low, high }) => format!(
            "{}{with} moved test {what} by {} points from {from} (95 % interval {} to {}, over test images)",
            results.method,
            signed(*difference),
            signed(*low),
            signed(*high)
        ),
        None => format!("{} and {alone} had nothing to find in the test images", results.method),
    };
    let [alone_val, learned_val] = [val, &learned.val].map(|scores| table::percent(scores.as_ref().map(Scores::main)));
    let by = match &results.folds {
        Some(folds) => {
            let [alone, learned] =
                [folds.probe.as_ref(), Some(&folds.val)].map(|found| table::percent(found.map(Scores::main)));
            format!("in the folds ({alone} against {learned})")
        }
        None => format!("on validation ({alone_val} against {learned_val})"),
    };
    let text = match (better, kept) {
        (_, true) => {
            format!("{points}; {alone} is better {by}, so the task file is that; {LAST} has the last epoch")
        }
        (true, false) => format!("{points}; {alone} is better {by}, and what was learned is kept all the same"),
        (false, false) => points,
    };
    Some((name, text))
}

/// How far the probabilities of a classifier can be believed.
pub(crate) fn calibration(results: &Results) -> Option<String> {
    let (temperature, test) = (results.temperature?, results.ece?.test);
    let (before, after) = (table::percent(test.before), table::percent(test.after));
    Some(format!("temperature {temperature:.2}: ECE on test {after}, {before} without it"))
}

/// `config` with what the flags say.
fn configured(flags: SettingFlags, mut config: RunConfig, global: &Global) -> vpt::Result<RunConfig> {
    if let Some(name) = flags.get("method") {
        let mut named = RunConfig::default();
        named.set("method", name)?;
        config = config.with_method(named.method);
    }
    // A head and a label map take the place of each other.
    let (head, map) = (flags.get("head").is_some(), flags.get("label_map").is_some());
    if map && !head {
        (config.head, config.head_lr, config.head_init, config.keep_better) = (None, None, None, None);
    }
    if head && !map {
        config.label_map = None;
    }
    // Texts of a card are those of the data that it was found for.
    let of_card = config.dataset_card.as_deref().is_some_and(Card::exists);
    if of_card && (flags.get("data").is_some() || flags.get("dataset_card").is_some()) {
        (config.templates, config.classnames, config.dataset_card) = (None, None, None);
    }
    let (templates, classnames) = (config.templates.take(), config.classnames.take());
    let card = config.dataset_card.take();
    let no_cache = flags.no_cache;
    flags.apply(&mut config)?;
    // Texts that are in the configuration of another run stay only where they are read.
    let method = config.method;
    let read = method.may_read_texts() || config.head == Some(HeadKind::Text);
    let tied = method.tied_to().is_some();
    config.templates = config.templates.or(templates.filter(|_| read || tied));
    config.classnames = config.classnames.or(classnames.filter(|_| read || method.has_texts()));
    config.dataset_card = config.dataset_card.or(card.filter(|_| read || method.has_texts()));
    config.cache_dir = if no_cache { None } else { config.cache_dir.or_else(feature_cache::default_folder) };
    config.seed = global.seed.unwrap_or(config.seed);
    config.precision = global.asked_precision().unwrap_or(config.precision);
    config.max_memory = global.max_memory().or(config.max_memory);
    config.threads = global.threads.map(usize::from).or(config.threads);
    let of_file = config.compute();
    let engine = global.engine.unwrap_or(of_file.engine);
    let of_engine = Some(of_file.device).filter(|_| engine == of_file.engine);
    let device = global.device.or(of_engine).unwrap_or_default();
    Ok(config.on(Compute { engine, device }))
}
