//! What a run is, as the user says it ([`RunConfig`]) and as the program needs it ([`Plan`]).
//!
//! A [`RunConfig`] leaves open whatever the user did not say. [`RunConfig::resolve`] is the one place where defaults that
//! depend on method, backbone and data are filled in and where values are checked against them. The filled-in form is what
//! a run folder's `config.toml` keeps, so a run can be repeated even when defaults change.
//!
//! Each setting is declared once: here, or with its method. Its documentation is its help, where other settings are named in
//! backticks.

mod choices;
mod dense;
mod detection;
mod file;
mod or_auto;
mod plan;
mod segmentation;
mod texts;
mod validate;

use std::path::PathBuf;

pub use self::choices::Select;
pub use self::dense::DensePlan;
pub use self::detection::DetectPlan;
pub use self::or_auto::{LearningRate, OrAuto, TileCount};
pub use self::plan::Plan;
pub use self::segmentation::SegmentPlan;
use vpt_backbone::{Compute, Device, Engine, Precision, class_texts::Prompts};
use vpt_base::{Error, Message, Result};
use vpt_data::{AugmentPolicy, MadeParts, boxes::Fit};
pub use vpt_model::methods::{HeadInit, Method, MethodOptions, RunContext, Solver, Task};
use vpt_model::{
    head::{HeadKind, LabelMap, segment::DecodeHead},
    loss::class_weights::ClassWeights,
    methods::{
        help,
        settings::{self, DefaultText, Settings, settings},
    },
    optim::OptimizerKind,
};

/// Tasks with classes of whole images.
const CLASSIFIERS: &[Task] = &[Task::Classify, Task::Multilabel];
/// The task with one class an image.
const ONE_CLASS: &[Task] = &[Task::Classify];
/// The tasks that can be learned from a few images or boxes a class.
const FEW_SHOT: &[Task] = &[Task::Classify, Task::Detect, Task::Segment];
/// The tasks in which a run knows what the head alone reaches.
const BESIDE_HEAD: &[Task] = &[Task::Classify, Task::Detect, Task::Segment];
/// The task with boxes.
const DETECTION: &[Task] = &[Task::Detect];
/// The tasks with a head on patch tokens.
pub(crate) const DENSE: &[Task] = &[Task::Detect, Task::Segment];
/// The task with a class for each pixel.
const SEGMENTATION: &[Task] = &[Task::Segment];
/// Threads of the largest machines, and more; the command line takes no more either.
const MAX_THREADS: usize = 1024;

settings! {
    /// What a run is. `None` means: the default for the method, the backbone and the data (see [`RunConfig::resolve`]).
    ///
    /// The field names are those of `config.toml`; flags have `-` for `_`.
    pub struct RunConfig {
        ModelAndData {
            /// Known backbone or folder in the Hugging Face layout; see `vpt backbones list`
            backbone: String = "clip-nano".to_owned() => { value: "NAME|DIR", default: DefaultText::Words("clip-nano"), }
            /// Folder to look for known backbones in, before the local Hugging Face cache
            weights_dir: Option<PathBuf> => { value: "DIR", }
            /// Image folder, CSV/TSV file, folder of IDX files or of lists of path and label, boxes (COCO, YOLO, Pascal VOC), or
            /// `shapes`
            data: String = "shapes".to_owned() => { value: "PATH|shapes", default: DefaultText::Words("shapes"), }
            /// What to learn from the data
            ///
            /// auto: detect from data with boxes (COCO, YOLO, Pascal VOC), else classify. multilabel: which classes occur in an image,
            /// any number of them, from data with boxes. segment: the class of each pixel, from data with masks.
            task: Task => { value: "TASK", }
        }
        Method {
            /// What to learn beside the head; prompt tokens, prompt pixels and tuned weights also at once: vpt-deep,lora
            ///
            /// Of methods that learn at once, each keeps its own learning rate, weight decay and dropout, unless `lr` or
            /// `weight_decay` sets them for all; batch size, epochs, warm-up and optimiser are those of the first in this list, and
            /// there is a head.
            method: Method => { value: "METHOD", default: DefaultText::Made(|| Method::default().to_string()), }
            /// The head on the class token: a linear layer, cosine similarity to a learned vector per class, or the same beginning
            /// as CLIP's zero-shot classifier, from the class names
            head: Option<HeadKind> => { value: "HEAD", default: DefaultText::Made(help::head), }
            /// What the head beside prompts or tuned weights begins as
            ///
            /// probe: logistic regression on the frozen features, its penalty chosen by validation, and where there are fewer than
            /// 1000 images for that in cross-validation, too. random: small random weights. text: as `head` text says. What the
            /// probe alone reaches is in results.json beside what was learned.
            head_init: Option<HeadInit> => {
                value: "INIT",
                default: DefaultText::Words("probe; text with `head` text, random with `head` cosine"),
                tasks: ONE_CLASS,
                lacking: "head that it learns beside something else",
            }
            /// Keep the head alone, the probe on frozen features, as the result where it is better on validation than what was learned
            ///
            /// With `head` text CLIP's zero-shot classifier stands in its place; in detection and segmentation the head alone, as it was
            /// before anything learned beside it. What was learned is in last.safetensors then.
            keep_better: Option<bool> => {
                value: "true|false",
                default: DefaultText::Words("true; false with `head` cosine"),
                tasks: BESIDE_HEAD,
                lacking: "head that it learns beside something else",
            }
            /// Tell classes by the classifier that the backbone was published with, in the place of a head, on a ViT, DeiT or DINOv2 for
            /// image classification
            ///
            /// rlm: each class gets one of the classifier's at random. flm: the one that its images are most often taken for, counted
            /// once without a prompt. ilm: the same, counted anew in every epoch; with vp-frame this is ILM-VP. blm: all of them,
            /// weighted by how likely the class is where they are predicted, counted in every epoch; blm+: the same by the
            /// probabilities of the three likeliest.
            label_map: Option<LabelMap> => {
                value: "MAP",
                tasks: ONE_CLASS,
                lacking: "prompt pixels in front of the backbone's own classifier: it learns a head; take vp-pad, vp-patch, vp-full or vp-frame",
            }
            /// Texts with {} or {c} for the class name, one a line or a JSON list (`head` text, zero-shot, zs-lp, clap, tip-adapter, lora;
            /// promptsrc stays close to them)
            templates: Option<Vec<String>> => {
                value: "FILE",
                default: DefaultText::Words("\"a photo of a {}.\"; promptsrc nine of the kind"),
                read: Some(|path| Prompts::read_templates(path.as_ref(), None)),
            }
            /// A name for each class in class order, one a line or a JSON list, for those texts and for texts that are learned
            classnames: Option<Vec<String>> => {
                value: "FILE",
                default: DefaultText::Words("the data's, with spaces for _"),
                read: Some(|path| Prompts::read_names(path.as_ref())),
            }
        }
        .. {
            /// What only some methods have.
            options: MethodOptions,
        }
        ModelAndData {
            /// Train on this many images a class, drawn by the seed; validate on at most 4 a class. In detection: boxes a class; in
            /// segmentation: images that show a class
            ///
            /// Of segmentation an image counts for each class that it shows, and all of its mask is learned from. In detection images with
            /// boxes of a class are added whole while these fit into K; other boxes in them are neither learned nor taken for background. The training part of RF100-VL's few-shot sets is used as it is with 10.
            shots: Option<usize> => {
                value: "K", default: DefaultText::Words("all"), tasks: FEW_SHOT, check: settings::at_least_one,
            }
            /// Train and validate on the images that this file names, as `few_shot.json` of another run or a file in the draws/ of
            /// `vpt bench few-shot`; of classes that it does not name nothing is used, in test neither. In detection: on the boxes
            draw: Option<PathBuf> => { value: "FILE", tasks: FEW_SHOT, }
        }
        Global {
            /// Seed of everything drawn at random: initial prompts, shuffling, augmentation, splits, few-shot draws
            seed: u64 = 1 => { value: "N", check: toml_integer, }
        }
        ModelAndData {
            /// Seed of the parts of data that lacks some, so that runs of other seeds share one test set
            split_seed: Option<u64> => { value: "N", default: DefaultText::Words("`seed`"), check: toml_integer, }
        }
        Training {
            /// Passes over the training images
            epochs: Option<usize> => {
                value: "N", default: DefaultText::Made(help::epochs), steps: true, check: settings::at_least_one,
            }
            /// Images a step
            batch_size: Option<usize> => {
                value: "N", default: DefaultText::Made(help::batch_size), steps: true, check: settings::at_least_one,
            }
            /// Images whose activations are in memory at once: less memory, the same result
            micro_batch: Option<usize> => {
                value: "N", default: DefaultText::Words("chosen for speed"), steps: true, check: settings::at_least_one,
            }
            /// Peak learning rate of the prompts or the tuned weights (of the head for linear), or `auto` to try some on validation
            ///
            /// auto: eight rates begin, from a tenth to twenty times the default; the half that is worse on the validation images ends after
            /// a sixteenth of the epochs, half of the rest after an eighth, and the better of two after a quarter. That takes no more
            /// steps than the training itself, or than four epochs. Meanwhile up to eight states of what is learned lie in the run folder.
            lr: Option<LearningRate> => {
                value: "RATE|auto",
                default: DefaultText::Made(help::lr),
                steps: true,
                check: |lr| match lr {
                    LearningRate::Auto => Ok(()),
                    LearningRate::Value(lr) => settings::positive(lr),
                },
            }
            /// Peak learning rate of the head beside prompts or tuned weights; in detection and
            /// segmentation also while it learns alone
            head_lr: Option<f64> => {
                value: "RATE",
                default: DefaultText::Made(help::head_lr),
                lacking: "prompt beside its head: use {lr}",
                check: settings::positive,
            }
            /// The optimiser
            optimizer: Option<OptimizerKind> => {
                value: "NAME", default: DefaultText::Made(help::optimizer), steps: true,
            }
            /// Weight decay of prompts and head weights
            weight_decay: Option<f64> => {
                value: "X",
                default: DefaultText::Made(help::weight_decay),
                steps: true,
                check: |&decay| {
                    let fits = decay.is_finite() && decay >= 0.;
                    if fits { Ok(()) } else { Err(format!("{decay} is not a number of 0 or more").into()) }
                },
            }
            /// Share of all steps in which the learning rate rises, before it falls along a cosine
            warmup: Option<f64> => {
                value: "SHARE",
                default: DefaultText::Made(help::warmup),
                steps: true,
                check: |warmup| {
                    let fits = (0. ..=1.).contains(warmup);
                    if fits { Ok(()) } else { Err(format!("{warmup} is not a share between 0 and 1").into()) }
                },
            }
            /// Scale gradients down to at most this length
            clip_norm: Option<f64> => {
                value: "X",
                default: DefaultText::Made(dense::clip_norm_text),
                steps: true,
                check: settings::positive,
            }
            /// Share of the target spread over all classes, 0 to below 1
            label_smoothing: f32 = 0. => {
                value: "SHARE", default: DefaultText::Words("0"), tasks: ONE_CLASS, steps: true, check: settings::share,
            }
            /// How much an image counts in the loss, by its class, where classes have unequal numbers of images
            ///
            /// none: every image the same. balanced: every class the same, n / (k `n_c`) for n images of k classes, `n_c` of this one.
            /// inverse-sqrt: half way, by 1 / sqrt(`n_c`). With `task` multilabel what having a class weighs beside not having it:
            /// (n - `n_c`) / `n_c`, or its square root. Losses and accuracies of val and test are not weighted.
            class_weights: ClassWeights => {
                value: "WEIGHTS",
                default: DefaultText::Made(|| ClassWeights::default().to_string()),
                tasks: CLASSIFIERS,
                steps: true,
            }
            /// Stop after this many epochs without a better validation result
            ///
            /// In detection and segmentation it ends the stage that is running: from the head alone the run goes over to the head with
            /// prompts or tuned weights.
            patience: Option<usize> => {
                value: "EPOCHS",
                default: DefaultText::Words("never"),
                steps: true,
                check: settings::at_least_one,
            }
            /// Which epoch counts: the best on validation, or the last
            select: Option<Select> => {
                value: "EPOCH", default: DefaultText::Words("best; last with `shots` or `draw`"), steps: true,
            }
        }
        ModelAndData {
            /// Side of the images the backbone sees, in pixels; a multiple of its patch size
            ///
            /// Position embeddings are interpolated as the backbone's family does.
            image_size: Option<usize> => {
                value: "PIXELS",
                default: DefaultText::Words("the backbone's; in detection and segmentation 16 patches, 12 of 32 pixels"),
                check: settings::at_least_one,
            }
        }
        Training {
            /// Mirror half of the training images, drawn anew each epoch
            flip: Option<bool> => { default: DefaultText::Words("in detection and segmentation"), }
            /// Cut a random part out of each training image, of at least and at most this share of its area: 0.5 1
            random_resized_crop: Option<[f32; 2]> => {
                value: "LEAST MOST",
                tasks: CLASSIFIERS,
                check: |&[low, high]| {
                    let fits = 0. < low && low <= high && high <= 1.;
                    let message = || format!("{low} to {high} are not shares of the area with 0 < least <= most <= 1");
                    if fits { Ok(()) } else { Err(message().into()) }
                },
            }
            /// What else to do to training images: `trivial` is TrivialAugment, one of fourteen operations for each, drawn anew
            /// each epoch
            ///
            /// After crop and flip: shear, shift, turn, brightness, colour, contrast, sharpness, posterize, solarize, autocontrast,
            /// equalize or nothing, at one of 31 strengths, as in torchvision. Not with linear, which computes the
            /// features of an image once.
            augment: AugmentPolicy => {
                value: "POLICY",
                default: DefaultText::Made(|| AugmentPolicy::default().to_string()),
                tasks: CLASSIFIERS,
            }
        }
        Detection {
            /// Epochs, of all, in which the head learns alone, on features computed once
            head_epochs: Option<usize> => {
                value: "N",
                default: DefaultText::Words("half; in detection with prompts and `cached_views` three quarters"),
                tasks: DENSE,
            }
        }
        Training {
            // Declared here, among what only detection has, since files of earlier versions have it here.
            /// Decay of the moving average of the learned values, which is what is kept, 0 to below 1
            ema: Option<f64> => {
                value: "X",
                default: DefaultText::Made(|| format!("no average; {} in detection and segmentation", dense::EMA)),
                steps: true,
                check: |ema| {
                    let fits = (0. ..1.).contains(ema);
                    if fits { Ok(()) } else { Err(format!("{ema} is not a number from 0 to below 1").into()) }
                },
            }
        }
        Detection {
            /// How images become square: `stretch` both sides, or `letterbox` with padding
            fit: Option<Fit> => {
                value: "FIT", default: DefaultText::Made(|| Fit::default().to_string()), tasks: DETECTION,
            }
            /// Zoom training images by a random factor, at least and at most; 1 1 is none
            ///
            /// With this, `box_crop` or `mosaic` an image is seen in the ways of `cached_views`; without them as it is and mirrored.
            scale_jitter: Option<[f32; 2]> => {
                value: "LEAST MOST", default: DefaultText::Made(detection::scale_jitter_text), tasks: DENSE,
            }
            /// Cut half of the training images at random around their boxes; see `scale_jitter`
            box_crop: bool => { tasks: DETECTION, }
            /// Share of training inputs put together of four images, 0 to 1; see `scale_jitter`
            mosaic: Option<f32> => { value: "SHARE", default: DefaultText::Words("0"), tasks: DETECTION, }
            /// Tell classes by the text embeddings of their names, so that predictions can ask for others (CLIP)
            open_vocabulary: bool => { tasks: DETECTION, }
        }
        ModelAndData {
            /// Leave unreadable images out, and say how many, instead of stopping
            skip_bad_images: bool => {}
        }
        Global {
            /// Number format of the frozen weights and of what is multiplied with them
            precision: Precision => { value: "FORMAT", }
            /// Bytes that the process should take at most: images are taken fewer at a time, and blocks run again, to keep to it
            max_memory: Option<u64> => { value: "SIZE", }
        }
        Output {
            /// Folder that keeps features of frozen backbones for other runs; see `vpt cache`
            cache_dir: Option<PathBuf> => {
                value: "DIR", default: DefaultText::Words("`VPT_CACHE`, else vpt in the system's folder for caches"),
            }
        }
        Global {
            /// Threads; as many as the machine has if `None`
            threads: Option<usize> => {
                value: "N",
                check: |threads| {
                    settings::at_least_one(threads)?;
                    if *threads > MAX_THREADS { Err(format!("more than {MAX_THREADS}").into()) } else { Ok(()) }
                },
            }
        }
        Output {
            /// The run folder; new or empty
            out: Option<PathBuf> => {
                value: "DIR",
                default: DefaultText::Words("runs/TASK/DATA-METHOD-N, a fresh number each time"),
            }
        }
        Method {
            // Declared last, since what stands in files of earlier versions keeps its place.
            /// The public data set whose card (`vpt data info NAME`) names the classes and has the templates, where methods read such:
            /// auto recognises it, none leaves it at the data's names
            ///
            /// auto: by WordNet ids of the classes (n01440764), by the folder's name and the classes, or by ten or more classes that are
            /// those of a card. `classnames` and `templates` come first. What was taken is said, and kept in config.toml.
            dataset_card: Option<String> => {
                value: "NAME|auto|none",
                tasks: CLASSIFIERS,
                default: DefaultText::Words("auto"),
                check: |name| if name.trim().is_empty() { Err("an empty name".into()) } else { Ok(()) },
            }
        }
        Training {
            // Declared here, since what stands in files of earlier versions keeps its place.
            /// Without validation images: choose the number of epochs by so many folds of the training images, then learn from all of them
            ///
            /// A val that the data lacks is then not split off: all of its images are learned from. Each fold in turn is validated on
            /// after every epoch by what learns from the others, in runs as long as this one; the epochs after which all folds together are
            /// right most often (have the highest mAP, AP or mIoU, mean over the folds) are learned, of the same schedule. The penalty of the probe is chosen by cross-validation, by the loss, and is that
            /// of the probes in the folds, too, by which `keep_better` is decided. What they found is in results.json and folds.json.
            folds: Option<usize> => {
                value: "K",
                steps: true,
                check: |&folds| if folds < 2 { Err("fewer than 2".into()) } else { Ok(()) },
            }
        }
        Global {
            /// What computes the image tower: the native engine if `None`
            engine: Option<Engine> => { value: "ENGINE", }
            /// What that runs on: the processor if `None`
            device: Option<Device> => { value: "DEVICE", }
        }
        Detection {
            /// Random views of each training image whose tokens are computed once, at most; an epoch sees one of them. 0: a new view
            /// every time, by the whole backbone
            ///
            /// Where images change at random (`scale_jitter`, `box_crop`, `mosaic`). The head that learns alone sees these views, too;
            /// with 0 it learns without them if prompts or tuned weights follow. There are as many as take no more than 4 GiB, of which
            /// what is above 1 GiB lies in the run folder while it runs. Weights that are tuned learn from a new view every time.
            cached_views: Option<usize> => {
                value: "N",
                default: DefaultText::Made(dense::views_text),
                tasks: DENSE,
                check: |&views| {
                    if views > dense::MOST_VIEWS { Err(format!("more than {}", dense::MOST_VIEWS).into()) } else { Ok(()) }
                },
            }
        }
        Segmentation {
            /// What tells the classes of pixels: `multi-block`, convolutions on the tokens of four blocks, with 4 x 4 logits a token; or
            /// `linear`, BatchNorm and a 1x1 convolution on the tokens of the last block, upsampled
            decode_head: Option<DecodeHead> => {
                value: "HEAD",
                default: DefaultText::Made(|| DecodeHead::default().to_string()),
                tasks: SEGMENTATION,
            }
            /// Windows of `image_size` along the shorter side of an image, if they did not overlap: more show small things in large images
            ///
            /// They overlap by a third. Detection learns from each by itself, and from the whole image what is larger than a quarter of one; of
            /// the tiles without an object as many as there are with one. Images are measured whole. `vpt predict` and `vpt eval` look
            /// at images in the same way.
            ///
            /// auto: as many as the training images say. In detection the fewest with which nine in ten boxes are two patches long, by the
            /// square root of their area, but no more than make a tile's pixels the image's own; in segmentation as many as do that.
            /// 8 at most. The number is said, and kept in config.toml and the task file as if it had been given.
            tiles: Option<TileCount> => {
                value: "N|auto",
                default: DefaultText::Words("1"),
                tasks: DENSE,
                check: |tiles| match tiles {
                    TileCount::Auto => Ok(()),
                    TileCount::Value(tiles) => settings::at_least_one(tiles),
                },
            }
        }
        Training {
            /// Equal parts that each batch is dealt to: computed one by one, or by the ranks of an MPI run, and added up in their order
            ///
            /// `mpirun -n R vpt train` with N shares, R of them or more, gives the same bytes for any R, one process among them; another N
            /// differs in the last digits.
            shares: Option<usize> => {
                value: "N", default: DefaultText::Words("1"), steps: true, check: settings::at_least_one,
            }
        }
    }
}

settings::choices!(Select);

/// TOML has no larger integers, and a run that cannot be saved cannot be repeated.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "as every check")]
fn toml_integer(seed: &u64) -> Result<(), Message> {
    if i64::try_from(*seed).is_ok() { Ok(()) } else { Err(format!("{seed} is larger than {}", i64::MAX).into()) }
}

impl RunConfig {
    /// The same run with another method: what was said for the old one (prompt, learning rates, epochs) is left open again.
    #[must_use]
    pub fn with_method(self, method: Method) -> Self {
        if method == self.method {
            return self;
        }
        Self {
            method,
            options: MethodOptions::default(),
            head: None,
            head_init: None,
            keep_better: None,
            label_map: None,
            epochs: None,
            batch_size: None,
            lr: None,
            head_lr: None,
            optimizer: None,
            weight_decay: None,
            warmup: None,
            ..self
        }
    }

    /// The same run with other options of methods.
    #[must_use]
    pub fn with_options(mut self, change: impl FnOnce(&mut MethodOptions)) -> Self {
        change(&mut self.options);
        self
    }

    /// The head that the run has.
    fn head_kind(&self) -> HeadKind {
        self.head.or(self.method.own_head()).unwrap_or_default()
    }

    /// Whether the texts that name the classes have a part in the head.
    pub fn reads_texts(&self) -> bool {
        self.method.reads_texts() || self.head == Some(HeadKind::Text)
    }

    /// Tiles along the shorter side of an image, 1 unless something else is said.
    ///
    /// # Errors
    /// The training images are to choose.
    pub(crate) fn tile_count(&self) -> Result<usize> {
        match self.tiles {
            None => Ok(1),
            Some(TileCount::Value(tiles)) => Ok(tiles),
            Some(TileCount::Auto) => {
                Err(Error::setting("tiles", "auto: the training images choose, and are not known"))
            }
        }
    }

    /// What computes the image tower, and on what.
    pub fn compute(&self) -> Compute {
        Compute { engine: self.engine.unwrap_or_default(), device: self.device.unwrap_or_default() }
    }

    /// The same computed by `engine` on `device`; what is the default is not written down.
    #[must_use]
    pub fn on(self, Compute { engine, device }: Compute) -> Self {
        let engine = Some(engine).filter(|&engine| engine != Engine::default());
        Self { engine, device: Some(device).filter(|&device| device != Device::default()), ..self }
    }

    /// Seed of the parts that the data lacks.
    pub fn seed_of_parts(&self) -> u64 {
        self.split_seed.unwrap_or(self.seed)
    }

    /// The parts that are made where the data lacks them: folds choose in the place of a val.
    pub fn made_parts(&self) -> MadeParts<'static> {
        if self.folds.is_some() { MadeParts::NoVal } else { MadeParts::All }
    }

    /// Whether there is nothing to be learned in steps.
    pub fn is_solved(&self) -> bool {
        self.method.is_solved(&self.options)
    }

    /// The same without what says how to take steps, for one that takes none.
    #[must_use]
    pub fn without_steps(mut self) -> Self {
        for setting in Self::all().iter().filter(|setting| setting.steps) {
            self.clear(setting.name);
        }
        self
    }
}

#[cfg(test)]
mod tests;
