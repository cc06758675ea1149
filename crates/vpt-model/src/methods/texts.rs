//! What methods that learn vectors in the texts of the classes have in common.

use super::{
    Defaults, Epochs, Learns, MethodFamily, MethodHead, MethodOptions, MethodPart, MethodRequest, MethodSpec, Task,
    Texts, Warmup, features,
    settings::{DefaultText, settings},
};
use crate::{
    optim::OptimizerKind,
    prompt::{PartShape, text::TextShape, tokens::PromptLayers},
};
use vpt_base::{Error, Result};

settings! {
    /// What the vectors of texts begin as.
    pub struct TextOptions {
        Method {
            /// Words that the vectors of the texts begin as, or `random`
            context_init: Option<String> => {
                value: "WORDS|random",
                default: DefaultText::Words(
                    "the first of \"a photo of a\"; random for coop and for more than four vectors",
                ),
                lacking: "words of texts to learn",
                check: |words| if words.trim().is_empty() { Err("holds no word".into()) } else { Ok(()) },
            }
        }
    }
}

/// Words that learned vectors begin as, as in `CoCoOp` and `MaPLe`.
pub(super) const CONTEXT: &str = "a photo of a";
/// What `context_init` says where vectors begin as no words.
pub const RANDOM: &str = "random";
/// Vectors in a text, as published but for `CoOp` and `MaPLe`.
pub(super) const TOKENS: usize = 4;

/// SGD with these rates, batches and epochs is what these methods were published with.
pub(super) const TRAINING: Defaults = Defaults {
    lr: 2e-3,
    weight_decay: 5e-4,
    warmup: Warmup::SlowFirstEpoch,
    optimizer: OptimizerKind::Sgd,
    ..Defaults::BASE
};
/// Those of methods with prompts in both towers.
pub(super) const TRAINING_OF_BOTH: Defaults =
    Defaults { lr: 2.5e-3, batch_size: 4, epochs: Epochs::ByShots([50; 3]), ..TRAINING };

pub(super) const FAMILY: MethodSpec = MethodSpec {
    family: &MethodFamily {
        intro: "Methods for CLIP that learn vectors in the texts of the classes, so that other class names can be asked for \
                later:",
    },
    learns: Learns::Texts,
    texts: Texts::Learned { tied_to: &[] },
    head: MethodHead::LearnedTexts,
    tasks: &[Task::Classify],
    options: &[&["prompt_tokens", "context_init"]],
    defaults: |_| TRAINING,
    ..features::FAMILY
};

/// Those with vectors in several blocks of both towers.
pub(super) const BOTH_TOWERS: MethodSpec = MethodSpec {
    options: &[&["prompt_tokens", "prompt_layers", "context_init"]],
    defaults: |_| TRAINING_OF_BOTH,
    ..FAMILY
};

/// How many vectors a text has, unless the user says: as many as words were given, or else `default`.
pub(super) fn tokens(options: &MethodOptions, default: usize) -> usize {
    let words = || options.texts.context_init.as_deref().filter(|w| *w != RANDOM).map(|w| w.split_whitespace().count());
    options.tokens.prompt_tokens.or_else(words).unwrap_or(default)
}

/// Blocks of the text tower.
///
/// # Errors
/// There is none.
pub(super) fn text_depth(request: &MethodRequest<'_>, name: &str) -> Result<usize> {
    request.context.text_depth.ok_or_else(|| {
        let message = format!("{name} learns texts, and the backbone has no text tower; take a CLIP");
        Error::setting("method", message)
    })
}

/// Prompted blocks of a tower of `depth`: the published 9 of 12, in proportion where there are fewer, unless the user says.
pub(super) fn blocks(request: &MethodRequest<'_>, name: &str, depth: usize) -> Result<usize> {
    match request.options.tokens.prompt_layers {
        None => Ok(((0.75 * depth as f64).round() as usize).clamp(1, 9)),
        Some(PromptLayers::Last(_)) => {
            let message = format!("{name} prompts the first blocks: take all or first:K");
            Err(Error::setting("prompt_layers", message))
        }
        Some(layers) => layers.resolve(depth).map(|(_, count)| count),
    }
}

/// The part of `tokens` vectors in `layers` blocks, with its options filled in; they begin as words where `words` says so and
/// there are enough.
pub(super) fn part(
    request: &MethodRequest<'_>,
    options: &mut MethodOptions,
    shape: TextShape,
    begins_as_words: bool,
) -> MethodPart {
    let few = shape.tokens <= CONTEXT.split_whitespace().count();
    let default = if begins_as_words && few { CONTEXT } else { RANDOM };
    options.tokens.prompt_tokens = Some(shape.tokens);
    options.texts.context_init = Some(request.options.texts.context_init.as_deref().unwrap_or(default).to_owned());
    // Towers of different depths have different defaults, which `first:K` cannot say.
    let equal = shape.image_tokens().is_some_and(|layout| layout.layers == shape.layers);
    let layers = equal.then_some(PromptLayers::First(shape.layers));
    options.tokens.prompt_layers = request.options.tokens.prompt_layers.or(layers);
    let dropout = request.options.tokens.prompt_dropout.unwrap_or(0.);
    MethodPart { shape: PartShape::Text(shape), dropout }
}
