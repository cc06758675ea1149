//! `e2vpt`: prompt tokens for every block, as `vpt-deep`, and learned keys and values beside them; and, where it is asked for, the
//! paper's pruning: the token values that matter least are taken away, and the rest learns again from where it began.

use super::{
    MethodPart, MethodSpec, Task, TokenOptions,
    settings::{self, DefaultText, settings},
    spec::HEAD_OPTIONS,
    tokens, vpt_deep,
};
use crate::prompt::{
    PartShape,
    key_values::{KeyValueShape, Pruning},
};

settings! {
    /// The keys and values beside prompt tokens.
    pub struct KeyValueOptions {
        Method {
            /// Learned keys and values a block, 1 to 1000
            keys_values: Option<usize> => {
                value: "N",
                default: DefaultText::Made(|| KEYS_VALUES.to_string()),
                lacking: "learned keys and values",
                check: |&rows| {
                    settings::at_least_one(&rows)?;
                    if rows > MOST { Err(format!("more than {MOST}").into()) } else { Ok(()) }
                },
            }
            /// Share of the prompt tokens that is taken away after training; then the rest is trained again from its beginning
            prune_tokens: Option<f32> => {
                value: "SHARE",
                default: DefaultText::Made(|| "0".to_owned()),
                lacking: "pruned tokens",
                check: settings::share,
            }
            /// Share of the 16 segments of each prompt token that is taken away with them
            prune_segments: Option<f32> => {
                value: "SHARE",
                default: DefaultText::Made(|| "0".to_owned()),
                lacking: "pruned segments",
                check: settings::share,
            }
        }
    }
}

/// Keys and values a block: what the public code takes for nearly every data set.
const KEYS_VALUES: usize = 5;
/// As of prompt tokens: far more than is of use, few enough to bound memory.
const MOST: usize = 1000;

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "e2vpt",
    summary: "vpt-deep with learned keys and values in the attention of the same blocks; with `prune_tokens` and `prune_segments` the paper's pruning",
    source: "Han et al. 2023",
    tasks: &[Task::Classify, Task::Multilabel],
    options: &[
        HEAD_OPTIONS,
        &["prompt_tokens", "prompt_layers", "prompt_dropout"],
        &["keys_values", "prune_tokens", "prune_segments"],
    ],
    part: |request, options| {
        let layers = tokens::layers(request);
        let (start, count) = layers.resolve(request.context.depth)?;
        let TokenOptions { prompt_tokens, prompt_dropout, .. } = request.options.tokens;
        let tokens = prompt_tokens.unwrap_or(tokens::TOKENS);
        let dropout = prompt_dropout.unwrap_or(vpt_deep::DROPOUT);
        let keys_values = request.options.keys_values.keys_values.unwrap_or(KEYS_VALUES);
        options.tokens = TokenOptions {
            prompt_tokens: Some(tokens),
            prompt_layers: Some(layers),
            prompt_dropout: Some(dropout),
            prompt_init: None,
        };
        options.keys_values.keys_values = Some(keys_values);
        let given = &request.options.keys_values;
        let pruned = Pruning::of_shares(
            tokens,
            [("prune_tokens", given.prune_tokens), ("prune_segments", given.prune_segments)],
        )?;
        options.keys_values.prune_tokens = given.prune_tokens;
        options.keys_values.prune_segments = given.prune_segments;
        let shape = PartShape::KeysValues(KeyValueShape { start, layers: count, tokens, keys_values, pruned });
        Ok(Some(MethodPart { shape, dropout }))
    },
    ..tokens::FAMILY
};
