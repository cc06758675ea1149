//! The defaults of every method, and where they come from.

use super::{HeadKind, PromptLayers, Task};
use crate::head::LabelMap;
use crate::methods::Method;
use crate::optim::{self, OptimizerKind};

/// More prompt tokens than the published grids by far (they end at 200), few enough to bound memory.
pub(super) const MAX_PROMPT_TOKENS: usize = 1000;
/// Threads of the largest machines, and more; the command line takes no more either.
pub(super) const MAX_THREADS: usize = 1024;
/// Prompt tokens a block. The VPT paper chooses among 1 to 200 for each data set; 10 is its code's starting point.
pub(super) const PROMPT_TOKENS: usize = 10;
/// Dropout on deep prompts, as in the VPT paper.
const DEEP_DROPOUT: f32 = 0.1;
/// Share of all steps spent warming up: the VPT paper's 10 epochs of 100.
pub(super) const WARMUP: f64 = 0.1;
/// What `--lr auto` tries, as multiples of the method's default.
pub(super) const AUTO_FACTORS: [f64; 4] = [0.2, 0.5, 1., 3.];

/// Peak learning rate of a head alone that begins as CLIP's zero-shot classifier: low, as it is near its goal. On the drawn shapes with
/// 1 and 4 images a class 1e-4 to 2e-3 make no difference; at 5e-3, which other heads need, it begins to forget.
const TEXT_LR: f64 = 5e-4;

/// What a method needs to train well.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    /// Peak learning rate of what the method learns.
    pub(super) lr: f64,
    /// Peak learning rate of the head beside it.
    pub(super) head_lr: f64,
    /// Weight decay.
    pub(super) weight_decay: f64,
    /// Images a step.
    pub(super) batch_size: usize,
    /// Steps a run should have, whatever the size of the data.
    steps: usize,
    /// Epochs with 1, with 2 to 4 and with more shots, where a method was published with such numbers.
    few_shot: Option<[usize; 3]>,
    /// Epochs, where it was published with so many whatever the data.
    fixed: Option<usize>,
}

impl Defaults {
    /// Epochs of `per_epoch` steps: as published for `method`, or for so few shots, or else enough for the wanted number of
    /// steps, but at least 10 and at most 100.
    pub(super) fn epochs(&self, method: Method, per_epoch: usize, shots: Option<usize>) -> usize {
        match (method, self.few_shot, shots) {
            _ if self.fixed.is_some() => self.fixed.unwrap_or_default(),
            (Method::ZsLp | Method::Clap, ..) => PROBE_EPOCHS,
            (Method::TipAdapterF, ..) => CACHE_EPOCHS,
            (Method::Lora, _, Some(shots)) => shots.saturating_mul(LORA_STEPS).div_ceil(per_epoch),
            (_, Some([one, few, many]), Some(shots)) => match shots {
                0..=1 => one,
                2..=4 => few,
                _ => many,
            },
            _ => self.steps.div_ceil(per_epoch).clamp(10, 100),
        }
    }
}

/// Rate (of Adam: prompt pixels do not decay) and epochs of ILM-VP and of the public code of BLM.
const MAPPED_LR: f64 = 1e-2;
const MAPPED_EPOCHS: usize = 200;
/// Steps of `lora` for each image of a class, as in CLIP-LoRA.
const LORA_STEPS: usize = 500;
/// CLIP-LoRA's rank, strength and dropout.
pub(super) const LORA_RANK: usize = 2;
pub(super) const LORA_ALPHA: f32 = 1.;
pub(super) const LORA_DROPOUT: f32 = 0.25;

/// More views of an image than anyone publishes, few enough to bound memory.
pub(super) const MAX_VIEWS: usize = 1000;
/// Epochs of a linear probe that starts from texts, as in CLAP's public code.
const PROBE_EPOCHS: usize = 300;
/// The learning rate of the first epoch of methods that have no other warm-up.
pub(super) const FIRST_EPOCH_LR: f64 = 1e-5;
/// Epochs of Tip-Adapter-F, as in its public code.
const CACHE_EPOCHS: usize = 20;

/// Augmented views of a training image, as the public codes of CLAP and Tip-Adapter have them.
pub(super) fn views(method: Method) -> usize {
    match method {
        Method::ZsLp | Method::Clap => 20,
        _ => 10,
    }
}

/// The optimiser of `method`.
pub(super) fn optimizer(method: Method) -> OptimizerKind {
    match method {
        Method::ZsLp | Method::Clap => OptimizerKind::Sgd,
        _ if method.has_texts() => OptimizerKind::Sgd,
        _ => OptimizerKind::Adamw,
    }
}

/// Whether the first epoch goes at [`FIRST_EPOCH_LR`] and the rate then falls along a cosine from epoch to epoch, as the public codes
/// of CoOp and of those that follow it do.
pub(super) fn has_slow_first_epoch(method: Method) -> bool {
    matches!(method, Method::ZsLp | Method::Clap) || method.has_texts()
}

/// What keeps `AdamW`'s division finite: Tip-Adapter-F has it larger.
pub(super) fn epsilon(method: Method) -> f64 {
    if method == Method::TipAdapterF { 1e-4 } else { optim::EPSILON }
}

/// Words that learned vectors begin as, as in CoCoOp and MaPLe.
pub(super) const CONTEXT: &str = "a photo of a";

/// Vectors in a text, as published.
pub(super) fn text_tokens(method: Method) -> usize {
    match method {
        Method::Coop => 16,
        Method::Maple => 2,
        _ => 4,
    }
}

/// Prompted blocks of a tower of `depth`: the published 9 of 12, in proportion where there are fewer.
pub(super) fn deep_text_layers(depth: usize) -> usize {
    ((0.75 * depth as f64).round() as usize).clamp(1, 9)
}

/// Texts whose mean `promptsrc` stays close to.
pub(super) fn templates() -> Vec<String> {
    [
        "a photo of a {}.",
        "a photo of the {}.",
        "a picture of a {}.",
        "a close-up of a {}.",
        "an image with one {}.",
        "a photo of a small {}.",
        "a photo of a large {}.",
        "a blurred photo of a {}.",
        "a drawing of a {}.",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Decay of the moving average of a detector's values: it spans some two hundred steps.
pub(super) const EMA: f64 = 0.995;
/// Bound on the length of a detector's gradient.
pub(super) const DETECTION_CLIP: f64 = 1.;
/// Most steps that a stage of detection warms up for.
pub(super) const DETECTION_WARMUP_STEPS: f64 = 100.;
/// Least and greatest zoom of training images while prompts learn. Heads on small sets learn their boxes by heart.
pub(super) const SCALE_JITTER: [f32; 2] = [0.8, 1.25];
/// Blocks with prompts in a detector, from the last one on: few, so that what comes before is computed once.
const DETECTION_BLOCKS: usize = 4;
/// Steps a detector should learn for, both stages together, whatever the size of the data.
const DETECTION_STEPS: usize = 2150;

/// Blocks that are prompted unless the user says otherwise.
pub(super) fn layers(task: Task, depth: usize) -> PromptLayers {
    match task {
        Task::Detect => PromptLayers::Last(DETECTION_BLOCKS.min(depth)),
        _ => PromptLayers::All,
    }
}

/// Epochs of a detector, of `per_epoch` steps each.
pub(super) fn detection_epochs(per_epoch: usize) -> usize {
    DETECTION_STEPS.div_ceil(per_epoch).clamp(40, 160)
}

/// How many of a detector's epochs train the head alone: half of them.
pub(super) fn head_epochs(epochs: usize) -> usize {
    epochs / 2
}

/// Dropout on prompts.
pub(super) fn prompt_dropout(task: Task, method: Method) -> f32 {
    if method == Method::VptDeep && task != Task::Detect { DEEP_DROPOUT } else { 0. }
}

/// The defaults of `method` for `task` with `head`, or with `map` in its place.
pub(super) fn of(task: Task, method: Method, head: HeadKind, map: Option<LabelMap>) -> Defaults {
    let defaults = of_method(task, method);
    if map.is_some() {
        return Defaults { lr: MAPPED_LR, fixed: Some(MAPPED_EPOCHS), ..defaults };
    }
    if head == HeadKind::Text && method == Method::Linear {
        return Defaults { lr: TEXT_LR, head_lr: TEXT_LR, ..defaults };
    }
    defaults
}

fn of_method(task: Task, method: Method) -> Defaults {
    let (few_shot, fixed) = (None, None);
    let tokens = Defaults { lr: 5e-3, head_lr: 1e-3, weight_decay: 1e-2, batch_size: 32, steps: 1000, few_shot, fixed };
    // SGD with these rates, batches and epochs is what these methods were published with.
    let texts = Defaults { lr: 2e-3, weight_decay: 5e-4, ..tokens };
    let both_towers = Defaults { lr: 2.5e-3, batch_size: 4, few_shot: Some([50; 3]), ..texts };
    match method {
        Method::Linear if task == Task::Detect => Defaults { lr: 1e-3, weight_decay: 1e-4, batch_size: 8, ..tokens },
        _ if task == Task::Detect => Defaults { lr: 1e-2, weight_decay: 1e-4, batch_size: 8, ..tokens },
        Method::ZsLp | Method::Clap => Defaults { lr: 0.1, weight_decay: 0., batch_size: 256, ..tokens },
        Method::TipAdapterF => Defaults { lr: 1e-3, batch_size: 256, ..tokens },
        Method::Linear | Method::ZeroShot | Method::Ncm | Method::TipAdapter => {
            Defaults { lr: 5e-3, head_lr: 5e-3, steps: 2000, ..tokens }
        }
        Method::VptShallow | Method::VptDeep => tokens,
        Method::VpPad | Method::VpPatch | Method::VpFull | Method::VpFrame => {
            Defaults { lr: 2e-2, weight_decay: 0., ..tokens }
        }
        Method::Coop => Defaults { few_shot: Some([50, 100, 200]), ..texts },
        Method::Cocoop => Defaults { batch_size: 1, few_shot: Some([10; 3]), ..texts },
        Method::Ivlp | Method::Promptsrc => both_towers,
        Method::Maple => Defaults { lr: 3.5e-3, ..both_towers },
        // On the drawn shapes with 4 images a class four times these rates make no difference for biases, and are too much for
        // every weight (89.1 % where 1e-4 gets 92.2 %). That of lora is CLIP-LoRA's.
        Method::Bias => Defaults { lr: 1e-3, ..tokens },
        Method::Lora => Defaults { lr: 2e-4, ..tokens },
        Method::Full => Defaults { lr: 1e-4, weight_decay: 5e-2, ..tokens },
    }
}

/// Border of `vp-pad`: 30 pixels at 224, in proportion elsewhere (9 at 64).
pub(super) fn pad(side: usize) -> usize {
    (side * 30 / 224).max(1)
}

/// Patch of `vp-patch`: as VP's 50 pixels at 224.
pub(super) fn patch(side: usize) -> usize {
    (side * 50 / 224).max(1)
}

/// Inner image of `vp-frame`, an even number of pixels less than the side: four fifths of it, or, with a label map, ILM-VP's 128
/// pixels at 224, in proportion elsewhere (38 at 64).
pub(super) fn inner(side: usize, map: Option<LabelMap>) -> usize {
    let margin = if map.is_some() { side * 48 / 224 } else { side / 10 };
    side - 2 * margin.max(1)
}
