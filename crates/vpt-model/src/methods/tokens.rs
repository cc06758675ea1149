//! What methods with prompt tokens have in common, and the options of tokens, which those that learn texts have, too.

use super::{
    Defaults, Learns, MethodHead, MethodPart, MethodRequest, MethodSpec, Task, after_probe, dense, features, help,
    settings::{self, DefaultText, settings},
    spec::HEAD_OPTIONS,
};
use crate::prompt::{
    PartShape,
    tokens::{PromptLayers, TokenLayout},
};
use vpt_base::choice::choice;

choice! {
    /// What prompt tokens begin as.
    pub enum PromptInit for "prompt_init" {
        /// Uniform within the Xavier bound of the patch embedding, as in the VPT paper.
        Random = "random",
        /// Patch tokens of training images, as they go into the prompted blocks (Wang et al., "Revisiting the Power of Prompt for
        /// Visual Tuning", ICML 2024).
        Patches = "patches",
        /// Of what random prompts are most alike in training images, and of what attention does not find there (Park and Chung,
        /// VIPAMIN, NeurIPS 2025).
        Vipamin = "vipamin",
    }
}

settings! {
    /// Prompt tokens, or vectors in texts.
    pub struct TokenOptions {
        Method {
            /// Prompt tokens a block, 1 to 1000; where texts are learned, vectors in a text, and as many tokens in an image
            prompt_tokens: Option<usize> => {
                value: "N",
                default: DefaultText::Made(help::prompt_tokens),
                lacking: "prompt tokens",
                check: |&tokens| {
                    settings::at_least_one(&tokens)?;
                    if tokens > MAX_TOKENS { Err(format!("more than {MAX_TOKENS}").into()) } else { Ok(()) }
                },
            }
            /// Prompted blocks: all, first:K or last:K; where texts are learned, all or first:K of both towers
            ///
            /// With last:K nothing before the last K blocks needs a backward pass, so steps are faster. The K-th prompts of
            /// first:K travel on as ordinary tokens.
            prompt_layers: Option<PromptLayers> => {
                value: "all|first:K|last:K",
                default: DefaultText::Words(
                    "all; last:4 in detection and segmentation; three quarters of a tower, at most 9, where texts are learned",
                ),
                lacking: "choice of blocks",
            }
            /// Share of prompt values set to zero in a step, 0 to below 1
            prompt_dropout: Option<f32> => {
                value: "SHARE",
                default: DefaultText::Made(help::prompt_dropout),
                lacking: "prompt tokens",
                check: settings::share,
            }
            /// What prompt tokens begin as: random; patches: patch tokens of training images, drawn by the seed, as they go into the
            /// prompted blocks; vipamin: means of the patches that random prompts are most alike, with a tenth of what attention
            /// does not find in the images
            prompt_init: Option<PromptInit> => {
                value: "INIT",
                default: DefaultText::Words("random"),
                tasks: &[Task::Classify, Task::Multilabel],
                lacking: "prompt tokens beside images",
            }
        }
    }
}

/// More prompt tokens than the published grids by far (they end at 200), few enough to bound memory.
const MAX_TOKENS: usize = 1000;
/// Prompt tokens a block. The VPT paper chooses among 1 to 200 for each data set; 10 is its code's starting point.
pub(super) const TOKENS: usize = 10;
/// Blocks with prompts where boxes or pixels are learned, from the last one on: few, so that what comes before is computed once.
const DETECTION_BLOCKS: usize = 4;

pub(super) const FAMILY: MethodSpec = MethodSpec {
    learns: Learns::Tokens,
    combines: true,
    head: MethodHead::Any,
    tasks: &[Task::Classify, Task::Multilabel, Task::Detect, Task::Segment],
    options: &[HEAD_OPTIONS, &["prompt_tokens", "prompt_dropout", "prompt_init"]],
    defaults: |request| {
        let learned = (after_probe::tokens_lr(request.context.train_images), after_probe::TOKENS_EPOCHS);
        let classification = after_probe::or(request, learned, Defaults::BASE);
        dense::or(request, dense::TOKENS_LR, classification)
    },
    ..features::FAMILY
};

/// The part of prompt tokens in `layers` blocks from `start` on, with its options filled in; `dropout` where nothing is said.
pub(super) fn part(
    request: &MethodRequest<'_>,
    options: &mut TokenOptions,
    (start, layers): (usize, usize),
    dropout: f32,
) -> MethodPart {
    let tokens = request.options.tokens.prompt_tokens.unwrap_or(TOKENS);
    let dropout = request.options.tokens.prompt_dropout.unwrap_or(dropout);
    (options.prompt_tokens, options.prompt_dropout) = (Some(tokens), Some(dropout));
    MethodPart { shape: PartShape::Tokens(TokenLayout { start, layers, tokens }), dropout }
}

/// The prompted blocks, as they are asked for or else all; of a dense task the last four.
pub(super) fn layers(request: &MethodRequest<'_>) -> PromptLayers {
    let default = if request.is_dense() {
        PromptLayers::Last(DETECTION_BLOCKS.min(request.context.depth))
    } else {
        PromptLayers::All
    };
    request.options.tokens.prompt_layers.unwrap_or(default)
}
