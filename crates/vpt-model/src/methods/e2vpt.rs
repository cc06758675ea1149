//! `e2vpt`: prompt tokens for every block, as `vpt-deep`, and learned keys and values beside them. The pruning of the paper, which
//! trains a second time with fewer token values, is not part of it.

use super::{
    MethodPart, MethodSpec, Task, TokenOptions,
    settings::{self, DefaultText, settings},
    tokens, vpt_deep,
};
use crate::prompt::{PartShape, key_values::KeyValueShape};

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
        }
    }
}

/// Keys and values a block: what the public code takes for nearly every data set.
const KEYS_VALUES: usize = 5;
/// As of prompt tokens: far more than is of use, few enough to bound memory.
const MOST: usize = 1000;

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "e2vpt",
    summary: "vpt-deep with learned keys and values in the attention of the same blocks (without the paper's pruning)",
    source: "Han et al. 2023",
    tasks: &[Task::Classify, Task::Multilabel],
    options: &[
        "head_lr",
        "head_init",
        "keep_better",
        "prompt_tokens",
        "prompt_layers",
        "prompt_dropout",
        "keys_values",
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
        let shape = PartShape::KeysValues(KeyValueShape { start, layers: count, tokens, keys_values });
        Ok(Some(MethodPart { shape, dropout }))
    },
    ..tokens::FAMILY
};
