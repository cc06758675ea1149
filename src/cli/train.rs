//! `vpt train`: flags to a [`RunConfig`], and what came of it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use vpt::backbone::class_texts::Prompts;
use vpt::data::AugmentPolicy;
use vpt::data::boxes::Fit;
use vpt::feature_cache;
use vpt::head::{HeadKind, LabelMap};
use vpt::loss::class_weights::ClassWeights;
use vpt::metrics::Scores;
use vpt::optim::OptimizerKind;
use vpt::prompt::pixels::PatchPlace;
use vpt::prompt::tokens::PromptLayers;
use vpt::prompt::weights::LoraTowers;
use vpt::train::run_folder::{BEST, MISTAKES};
use vpt::{
    config::{LearningRate, RunConfig, Select, Task},
    methods::{Method, Solver},
};

use vpt::report::table;
use vpt::train::{self, Outcome, Results};

use super::output::Output;
use super::progress::Progress;
use super::runs::RUNS;
use super::{Global, Interrupted, Usage, one_of};

/// The backbone that is built in.
const DEFAULT_BACKBONE: &str = "clip-nano";

const EXAMPLES: &str = "\
Examples:
  vpt train                                          clip-nano on generated shapes: a first look, two minutes
  vpt train --data photos/                           your folder: photos/CLASS/*.jpg, or train/ val/ test/ of such
  vpt train --data photos/ --method vp-pad --shots 16 --seed 2
  vpt train --backbone clip-vit-b16 --data cars.csv --prompt-tokens 50 --prompt-layers last:6 --epochs 30
  vpt train --resume runs/classify/photos-vpt-deep-3    go on after a crash, to the same result
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
    flags: Flags,
}

/// The fields of a [`RunConfig`] that flags can set; what is not given stays as it is.
#[derive(Debug, Default, PartialEq, Args)]
#[allow(clippy::struct_excessive_bools, reason = "flags of a command line")]
struct Flags {
    /// Known backbone or folder in the Hugging Face layout; see `vpt backbones list` [default: clip-nano]
    #[arg(long, value_name = "NAME|DIR", help_heading = "Model and data")]
    backbone: Option<String>,
    /// Folder to look for known backbones in, before the local Hugging Face cache
    #[arg(long, value_name = "DIR", help_heading = "Model and data")]
    weights_dir: Option<PathBuf>,
    /// Image folder, CSV/TSV file, folder of IDX files or of lists of path and label, boxes (COCO, YOLO, Pascal VOC), or
    /// `shapes` [default: shapes]
    #[arg(long, value_name = "PATH|shapes", help_heading = "Model and data")]
    data: Option<String>,
    /// What to learn from the data
    ///
    /// auto: detect from data with boxes (COCO, YOLO, Pascal VOC), else classify. multilabel: which classes occur in an image,
    /// any number of them, from data with boxes.
    #[arg(long, value_name = "TASK", value_parser = one_of::<Task>(Task::NAMES), help_heading = "Model and data")]
    task: Option<Task>,
    /// Train on this many images a class, drawn by the seed; validate on at most 4 a class [default: all]
    #[arg(long, allow_negative_numbers = true, value_name = "K", help_heading = "Model and data")]
    shots: Option<usize>,
    /// Train and validate on the images that this file names, as `few_shot.json` of another run or a file in the draws/ of
    /// `vpt bench few-shot`; of classes that it does not name nothing is used, in test neither
    #[arg(long, value_name = "FILE", conflicts_with = "shots", help_heading = "Model and data")]
    draw: Option<PathBuf>,
    /// Seed of the parts of data that lacks some, so that runs of other seeds share one test set [default: --seed]
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = "Model and data")]
    split_seed: Option<u64>,
    /// Side of the images the backbone sees, in pixels; a multiple of its patch size
    /// [default: the backbone's; in detection 16 patches, 12 of 32 pixels]
    ///
    /// Position embeddings are interpolated as the backbone's family does.
    #[arg(long, allow_negative_numbers = true, value_name = "PIXELS", help_heading = "Model and data")]
    image_size: Option<usize>,
    /// Leave unreadable images out, and say how many, instead of stopping
    #[arg(long, help_heading = "Model and data")]
    skip_bad_images: bool,

    /// What to learn beside the head [default: vpt-deep]
    ///
    /// linear: nothing; a head on features computed once. zero-shot: nothing at all; the texts that name the classes (CLIP). ncm:
    /// the mean embedding of each class. zs-lp: a head that starts as the texts. clap: the same, held near the texts class by
    /// class. tip-adapter: the texts and a cache of the training images, weighted by validation; tip-adapter-f: the cache's
    /// keys are learned. vpt-shallow: prompt tokens at the first block. vpt-deep: prompt
    /// tokens of their own for every block. vp-pad: a border of pixels added over the image. vp-patch: a square of pixels.
    /// vp-full: every pixel. vp-frame: the image shrunk, learned pixels around it.
    ///
    /// Methods for CLIP that learn vectors in the texts of the classes, so that other class names can be asked for later:
    /// coop: in the place of words. cocoop: the same, shifted by what is in the image. ivlp: in several blocks of the text
    /// tower, beside prompt tokens of the image tower. maple: the same, the image tower's tokens being maps of the vectors.
    /// promptsrc: as ivlp, kept close to the untouched backbone and averaged over the epochs.
    ///
    /// Methods that tune the backbone itself: bias: the biases of its image tower. full: all weights of it. lora: low-rank
    /// changes to queries, keys and values of both towers of a CLIP, where the texts that name the classes tell them and no head
    /// is learned; with --head, or on another backbone, of the image tower beside a head.
    #[arg(long, value_name = "METHOD", value_parser = one_of::<Method>(Method::NAMES), help_heading = "Method")]
    method: Option<Method>,
    /// The head on the class token: a linear layer, cosine similarity to a learned vector per class, or the same beginning
    /// as CLIP's zero-shot classifier, from the class names [default: linear; zero-shot, ncm, zs-lp, clap, tip-adapter and
    /// methods that learn texts have cosine heads of their own; lora on a CLIP has none]
    #[arg(long, value_name = "HEAD", value_parser = one_of::<HeadKind>(HeadKind::NAMES), help_heading = "Method")]
    head: Option<HeadKind>,
    /// Tell classes by the classifier that the backbone was published with, in the place of a head (vp-pad, vp-patch, vp-full,
    /// vp-frame on a ViT, DeiT or DINOv2 for image classification)
    ///
    /// rlm: each class gets one of the classifier's at random. flm: the one that its images are most often taken for, counted
    /// once without a prompt. ilm: the same, counted anew in every epoch; with vp-frame this is ILM-VP. blm: all of them,
    /// weighted by how likely the class is where they are predicted, counted in every epoch; blm+: the same by the
    /// probabilities of the three likeliest.
    #[arg(long, value_name = "MAP", value_parser = one_of::<LabelMap>(LabelMap::NAMES), help_heading = "Method")]
    label_map: Option<LabelMap>,
    /// Texts with {} or {c} for the class name, one a line or a JSON list (--head text, zero-shot, zs-lp, clap, tip-adapter, lora;
    /// promptsrc stays close to them) [default: "a photo of a {}."; promptsrc nine of the kind]
    #[arg(long, value_name = "FILE", help_heading = "Method")]
    templates: Option<PathBuf>,
    /// A name for each class in class order, one a line or a JSON list, for those texts and for texts that are learned [default:
    /// the data's, with spaces for _]
    #[arg(long, value_name = "FILE", help_heading = "Method")]
    classnames: Option<PathBuf>,
    /// How linear is fitted: in steps, or by L-BFGS to the minimum, as the CLIP paper does [default: sgd]
    #[arg(long, value_name = "SOLVER", value_parser = one_of::<Solver>(Solver::NAMES), help_heading = "Method")]
    solver: Option<Solver>,
    /// Strength of the L2 penalty, 1/C in scikit-learn (linear with --solver lbfgs) [default: chosen by validation]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Method")]
    l2: Option<f64>,
    /// Augmented views of each training image, 0 for the image as it is; tip-adapter-f has one more an epoch
    /// [default: 20 for zs-lp and clap, 10 for tip-adapter and tip-adapter-f]
    ///
    /// The features of a view are computed once and kept in the cache.
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = "Method")]
    views: Option<usize>,
    /// Weight of the cache beside the texts (tip-adapter, tip-adapter-f), with --beta [default: chosen by validation]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Method")]
    alpha: Option<f64>,
    /// Sharpness of the cache (tip-adapter, tip-adapter-f), with --alpha [default: chosen by validation]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Method")]
    beta: Option<f64>,
    /// Prompt tokens a block, 1 to 1000 (vpt-shallow, vpt-deep); vectors in a text, and as many tokens in an image (coop,
    /// cocoop, ivlp, maple, promptsrc) [default: 10; as many as --context-init has words; coop 16, maple 2, else 4]
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = "Method")]
    prompt_tokens: Option<usize>,
    /// Prompted blocks: all, first:K or last:K (vpt-deep), all or first:K of both towers (ivlp, maple, promptsrc)
    /// [default: all; last:4 in detection; three quarters of a tower, at most 9, where texts are learned]
    ///
    /// With last:K nothing before the last K blocks needs a backward pass, so steps are faster. The K-th prompts of
    /// first:K travel on as ordinary tokens.
    #[arg(long, value_name = "all|first:K|last:K", help_heading = "Method")]
    prompt_layers: Option<PromptLayers>,
    /// Share of prompt values set to zero in a step, 0 to below 1 [default: 0.1 for vpt-deep, 0 for vpt-shallow and in detection]
    #[arg(long, allow_negative_numbers = true, value_name = "SHARE", help_heading = "Method")]
    prompt_dropout: Option<f32>,
    /// Words that the vectors of the texts begin as, or `random` (coop, cocoop, ivlp, maple, promptsrc) [default: the first
    /// of "a photo of a"; random for coop and for more than four vectors]
    #[arg(long, value_name = "WORDS|random", help_heading = "Method")]
    context_init: Option<String>,
    /// Width of the border in pixels (vp-pad) [default: 30 at 224 pixels, in proportion elsewhere]
    #[arg(long, allow_negative_numbers = true, value_name = "PIXELS", help_heading = "Method")]
    pad: Option<usize>,
    /// Side of the square in pixels (vp-patch) [default: 50 at 224 pixels, in proportion elsewhere]
    #[arg(long, allow_negative_numbers = true, value_name = "PIXELS", help_heading = "Method")]
    patch_size: Option<usize>,
    /// Where the square lies: `fixed` in the upper left corner, or at a `random` place for each image (vp-patch)
    /// [default: fixed]
    #[arg(long, value_name = "PLACE", value_parser = one_of::<PatchPlace>(PatchPlace::NAMES), help_heading = "Method")]
    patch_place: Option<PatchPlace>,
    /// Side of the shrunk image in pixels (vp-frame) [default: four fifths of the image size; with
    /// --label-map 128 at 224 pixels, in proportion elsewhere]
    #[arg(long, allow_negative_numbers = true, value_name = "PIXELS", help_heading = "Method")]
    inner_size: Option<usize>,
    /// Rank of the changes (lora) [default: 2]
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = "Method")]
    lora_rank: Option<usize>,
    /// Strength of the changes (lora): their factor is this over the root of the rank [default: 1]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Method")]
    lora_alpha: Option<f32>,
    /// Share of the channels into the changes set to zero in a step, 0 to below 1 (lora) [default: 0.25]
    #[arg(long, allow_negative_numbers = true, value_name = "SHARE", help_heading = "Method")]
    lora_dropout: Option<f32>,
    /// Which towers are changed (lora): `image`, `text` or `both` [default: both on a CLIP backbone, unless a --head is asked
    /// for; else image]
    #[arg(long, value_name = "TOWERS", value_parser = one_of::<LoraTowers>(LoraTowers::NAMES), help_heading = "Method")]
    lora_towers: Option<LoraTowers>,

    /// Passes over the training images [default: as many as make 1000 steps, 2000 for linear; at least 10, at most 100; in
    /// detection 2150, at least 40, at most 160; 200 with --label-map; 300 for zs-lp and clap, 20 for tip-adapter-f; with --shots or --draw coop 50 to
    /// 200, cocoop 10, ivlp, maple and promptsrc 50, lora 500 steps for each image of a class]
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = "Training")]
    epochs: Option<usize>,
    /// Images a step [default: 32; 8 in detection; 256 for zs-lp, clap and tip-adapter-f; cocoop 1, ivlp, maple and promptsrc 4]
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = "Training")]
    batch_size: Option<usize>,
    /// Images whose activations are in memory at once: less memory, the same result [default: chosen for speed]
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = "Training")]
    micro_batch: Option<usize>,
    /// Peak learning rate of the prompts or the tuned weights (of the head for linear), or `auto` to try a few on validation
    /// [default: 5e-3, pixel prompts 2e-2, with --label-map 1e-2, linear with --head text 5e-4, zs-lp and clap 0.1, tip-adapter-f 1e-3; in detection
    /// 1e-2, linear 1e-3; coop and cocoop 2e-3, ivlp and promptsrc 2.5e-3, maple 3.5e-3; bias 1e-3, lora 2e-4, full 1e-4]
    #[arg(long, allow_negative_numbers = true, value_name = "RATE|auto", help_heading = "Training")]
    lr: Option<LearningRate>,
    /// Peak learning rate of the head beside prompts or tuned weights; in detection also while it learns alone [default: 1e-3]
    #[arg(long, allow_negative_numbers = true, value_name = "RATE", help_heading = "Training")]
    head_lr: Option<f64>,
    /// The optimiser [default: adamw; sgd for zs-lp and clap, and where texts are learned]
    #[arg(long, value_name = "NAME", value_parser = one_of::<OptimizerKind>(OptimizerKind::NAMES), help_heading = "Training")]
    optimizer: Option<OptimizerKind>,
    /// Weight decay of prompts and head weights [default: 0.01, pixel prompts, zs-lp and clap 0; in detection 1e-4 for the head, 0 for prompts;
    /// 5e-4 where texts are learned; full 0.05; biases and norms have none]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Training")]
    weight_decay: Option<f64>,
    /// Share of all steps in which the learning rate rises, before it falls along a cosine [default: 0.1; tip-adapter-f, lora 0; zs-lp,
    /// clap and methods that learn texts have a first epoch at 1e-5 instead, and a cosine that moves every epoch]
    #[arg(long, allow_negative_numbers = true, value_name = "SHARE", help_heading = "Training")]
    warmup: Option<f64>,
    /// Scale gradients down to at most this length [default: no bound; 1 in detection]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Training")]
    clip_norm: Option<f64>,
    /// Share of the target spread over all classes, 0 to below 1 [default: 0]
    #[arg(long, allow_negative_numbers = true, value_name = "SHARE", help_heading = "Training")]
    label_smoothing: Option<f32>,
    /// How much an image counts in the loss, by its class, where classes have unequal numbers of images [default: none]
    ///
    /// none: every image the same. balanced: every class the same, n / (k `n_c`) for n images of k classes, `n_c` of this one.
    /// inverse-sqrt: half way, by 1 / sqrt(`n_c`). With --task multilabel what having a class weighs beside not having it:
    /// (n - `n_c`) / `n_c`, or its square root. Losses and accuracies of val and test are not weighted.
    #[arg(long, value_name = "WEIGHTS", value_parser = one_of::<ClassWeights>(ClassWeights::NAMES), help_heading = "Training")]
    class_weights: Option<ClassWeights>,
    /// Stop after this many epochs without a better validation result [default: never]
    #[arg(long, allow_negative_numbers = true, value_name = "EPOCHS", help_heading = "Training")]
    patience: Option<usize>,
    /// Which epoch counts: the best on validation, or the last [default: best; last with --shots or --draw]
    #[arg(long, value_name = "EPOCH", value_parser = one_of::<Select>(Select::NAMES), help_heading = "Training")]
    select: Option<Select>,
    /// Mirror half of the training images, drawn anew each epoch [default: in detection]
    #[arg(long, help_heading = "Training", overrides_with = "no_flip")]
    flip: bool,
    /// Mirror no training image
    #[arg(long, help_heading = "Training")]
    no_flip: bool,
    /// Cut a random part out of each training image, of at least and at most this share of its area: 0.5 1
    #[arg(long, num_args = 2, value_names = ["LEAST", "MOST"], help_heading = "Training")]
    random_resized_crop: Option<Vec<f32>>,
    /// What else to do to training images: `trivial` is TrivialAugment, one of fourteen operations for each, drawn anew
    /// each epoch [default: none]
    ///
    /// After crop and flip: shear, shift, turn, brightness, colour, contrast, sharpness, posterize, solarize, autocontrast,
    /// equalize or nothing, at one of 31 strengths, as in torchvision. Not with linear, which computes the
    /// features of an image once.
    #[arg(long, value_name = "POLICY", value_parser = one_of::<AugmentPolicy>(AugmentPolicy::NAMES), help_heading = "Training")]
    augment: Option<AugmentPolicy>,

    /// Epochs, of all, in which the head learns alone, on features computed once [default: half]
    #[arg(long, allow_negative_numbers = true, value_name = "N", help_heading = "Detection")]
    head_epochs: Option<usize>,
    /// Tell classes by the text embeddings of their names, so that `vpt predict --classes` can ask for others (CLIP)
    #[arg(long, help_heading = "Detection")]
    open_vocabulary: bool,
    /// How images become square: `stretch` both sides, or `letterbox` with padding [default: stretch]
    #[arg(long, value_name = "FIT", value_parser = one_of::<Fit>(Fit::NAMES), help_heading = "Detection")]
    fit: Option<Fit>,
    /// Zoom training images by a random factor, at least and at most; 1 1 is none [default: 0.8 1.25, linear none]
    ///
    /// This, --box-crop and --mosaic make every step run the whole backbone; without them what comes before the first
    /// prompt is computed once, or with linear all. A head that prompts will follow learns without them.
    #[arg(long, num_args = 2, value_names = ["LEAST", "MOST"], help_heading = "Detection")]
    scale_jitter: Option<Vec<f32>>,
    /// Cut half of the training images at random around their boxes; see --scale-jitter
    #[arg(long, help_heading = "Detection")]
    box_crop: bool,
    /// Share of training inputs put together of four images, 0 to 1; see --scale-jitter [default: 0]
    #[arg(long, allow_negative_numbers = true, value_name = "SHARE", help_heading = "Detection")]
    mosaic: Option<f32>,
    /// Decay of the moving average of the learned values, which is what is kept, 0 to below 1 [default: 0.995]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Detection")]
    ema: Option<f64>,

    /// The run folder; new or empty [default: runs/TASK/DATA-METHOD-N, a fresh number
    /// each time]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Folder that keeps features of frozen backbones for other runs; see `vpt cache` [default: `VPT_CACHE`, else vpt in
    /// the system's folder for caches]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    cache_dir: Option<PathBuf>,
    /// Neither look for features in the cache nor keep any
    #[arg(long, help_heading = "Output", conflicts_with = "cache_dir")]
    no_cache: bool,
}

pub(crate) fn run(args: Train, global: &Global, out: Output) -> anyhow::Result<()> {
    let mut progress = Progress::interruptible(global.quiet, global.verbose > 0).context("signals")?;
    let outcome = if let Some(folder) = &args.resume {
        if args.flags != Flags::default()
            || global.seed.is_some()
            || global.threads.is_some()
            || global.precision.is_some()
            || global.max_memory.is_some()
        {
            let message = "--resume: the run goes on as it was begun, so nothing else can be set with it";
            return Err(Usage(message.to_owned()).into());
        }
        train::resume(folder, &mut progress)?
    } else {
        let base = args.config.as_deref().map(RunConfig::load).transpose()?.unwrap_or_default();
        let config = args.flags.apply(base, global)?;
        train::run(&config, Path::new(RUNS), &mut progress)?
    };
    progress.clear();
    match outcome {
        Outcome::Finished { folder, results } => out.result(&*results, || summary(&folder, &results)),
        Outcome::Interrupted { folder: Some(folder) } => Err(Interrupted::Saved(folder).into()),
        Outcome::Interrupted { folder: None } => Err(Interrupted::Early(progress.interrupt().exit_code()).into()),
    }
}

/// The scores of a run's parts as a table, by the metrics of its task.
pub(crate) fn scores(results: &Results) -> String {
    let mut rows = vec![("val".to_owned(), &results.val), ("test".to_owned(), &results.test)];
    if let Some(head) = &results.head_only {
        rows.push(("val, head alone".to_owned(), &head.val));
        rows.push(("test, head alone".to_owned(), &head.test));
    }
    let header: &[&str] = match results.test {
        Scores::Classify(_) => &["", "acc1", "acc5", "mean per-class recall", "loss"],
        Scores::Multilabel(_) => &["", "mAP", "micro F1", "macro F1", "exact match", "loss"],
        Scores::Detect(_) => &["", "AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"],
    };
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
        Scores::Detect(m) => {
            // -1 where there is nothing to measure.
            let shares = [m.ap, m.ap50, m.ap75, m.ap_small, m.ap_medium, m.ap_large, m.ar100];
            let cells = shares.map(|share| table::percent((share >= 0.).then_some(share)));
            std::iter::once(part).chain(cells).collect()
        }
    };
    table::columns(header, &rows.into_iter().map(row).collect::<Vec<_>>())
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
        ("task file", folder.join(BEST).display().to_string()),
    ];
    if !results.chosen.is_empty() {
        let chosen: Vec<String> =
            results.chosen.iter().map(|(name, value)| format!("{name} {}", short(*value))).collect();
        rows.insert(4, ("chosen by validation", chosen.join(", ")));
    }
    let mistakes = folder.join(MISTAKES);
    if mistakes.is_file() {
        rows.push(("mistakes", mistakes.display().to_string()));
    }
    rows.splice(4..4, calibration(results).map(|text| ("calibration", text)));
    text + &table::pairs(&rows) + &next(folder, results)
}

/// Weights of the backbone that the run has tuned, and that are not frozen therefore.
fn tuned(results: &Results) -> u64 {
    match results.method {
        Method::Bias | Method::Full => (results.trainable_params as u64).min(results.backbone_params),
        _ => 0,
    }
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

/// How far the probabilities of a classifier can be believed.
pub(crate) fn calibration(results: &Results) -> Option<String> {
    let (temperature, test) = (results.temperature?, results.ece?.test);
    let (before, after) = (table::percent(test.before), table::percent(test.after));
    Some(format!("temperature {temperature:.2}: ECE on test {after}, {before} without it"))
}

impl Flags {
    /// `config` with what the flags say.
    fn apply(self, mut config: RunConfig, global: &Global) -> vpt::Result<RunConfig> {
        /// Each flag that was given takes the place of its field.
        macro_rules! set {
            ($($field:ident)+) => { $( if let Some(value) = self.$field { config.$field = value; } )+ };
        }
        macro_rules! set_optional {
            ($($field:ident)+) => { $( if self.$field.is_some() { config.$field = self.$field; } )+ };
        }
        if let Some(method) = self.method {
            config = config.with_method(method);
        }
        // A head and a label map take the place of each other.
        if self.label_map.is_some() && self.head.is_none() {
            (config.head, config.head_lr) = (None, None);
        }
        if self.head.is_some() && self.label_map.is_none() {
            config.label_map = None;
        }
        // Texts that are in the configuration of another run stay only where they are read.
        let method = self.method.unwrap_or(config.method);
        let text_head = self.head.or(config.head) == Some(HeadKind::Text);
        if !method.may_read_texts() && !text_head {
            config.templates = config.templates.filter(|_| method == Method::Promptsrc);
            config.classnames = config.classnames.filter(|_| method.has_texts());
        }
        if let Some(path) = &self.templates {
            config.templates = Some(Prompts::read_templates(path)?);
        }
        if let Some(path) = &self.classnames {
            config.classnames = Some(Prompts::read_names(path)?);
        }
        set!(backbone data task label_smoothing class_weights augment);
        set_optional!(
            head label_map solver l2 views alpha beta optimizer weights_dir shots draw split_seed image_size prompt_tokens prompt_layers
            prompt_dropout context_init pad patch_size patch_place inner_size lora_rank lora_alpha lora_dropout lora_towers
            epochs batch_size micro_batch lr head_lr weight_decay warmup clip_norm patience select head_epochs fit mosaic ema
            out
        );
        if let Some(&[least, most]) = self.random_resized_crop.as_deref() {
            config.random_resized_crop = Some([least, most]);
        }
        if let Some(&[least, most]) = self.scale_jitter.as_deref() {
            config.scale_jitter = Some([least, most]);
        }
        if self.flip || self.no_flip {
            config.flip = Some(self.flip);
        }
        config.cache_dir = if self.no_cache {
            None
        } else {
            self.cache_dir.or(config.cache_dir).or_else(feature_cache::default_folder)
        };
        config.box_crop |= self.box_crop;
        config.open_vocabulary |= self.open_vocabulary;
        config.skip_bad_images |= self.skip_bad_images;
        config.seed = global.seed.unwrap_or(config.seed);
        config.precision = global.precision.unwrap_or(config.precision);
        config.max_memory = global.max_memory().or(config.max_memory);
        config.threads = global.threads.map(usize::from).or(config.threads);
        Ok(config)
    }
}
