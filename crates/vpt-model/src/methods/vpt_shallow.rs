//! `vpt-shallow`: prompt tokens at the input of the first block, from where they travel on.

use super::{MethodSpec, tokens};

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "vpt-shallow",
    summary: "prompt tokens at the first block",
    source: "Jia et al. 2022",
    part: |request, options| Ok(Some(tokens::part(request, &mut options.tokens, (0, 1), 0.))),
    ..tokens::FAMILY
};
