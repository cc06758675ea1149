//! `vpt-deep`: prompt tokens of their own for every block.

use super::{MethodSpec, spec::HEAD_OPTIONS, tokens};

/// Dropout on deep prompts, as in the VPT paper.
pub(super) const DROPOUT: f32 = 0.1;

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "vpt-deep",
    summary: "prompt tokens of their own for every block, or for those of `prompt_layers`",
    source: "Jia et al. 2022",
    options: &[HEAD_OPTIONS, &["prompt_tokens", "prompt_layers", "prompt_dropout", "prompt_init"]],
    part: |request, options| {
        let layers = tokens::layers(request);
        options.tokens.prompt_layers = Some(layers);
        let dropout = if request.is_dense() { 0. } else { DROPOUT };
        Ok(Some(tokens::part(request, &mut options.tokens, layers.resolve(request.context.depth)?, dropout)))
    },
    ..tokens::FAMILY
};
