//! `maple`: vectors in several blocks of the text tower, and linear maps of them to the image tower's prompt tokens.

use super::{Defaults, MethodSpec, texts};
use crate::prompt::text::{Beside, TextShape};

/// Vectors in a text, as published.
pub(super) const TOKENS: usize = 2;

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "maple",
    summary: "the same, the image tower's tokens being linear maps of the vectors",
    source: "Khattak et al. 2023",
    defaults: |_| Defaults { lr: 3.5e-3, ..texts::TRAINING_OF_BOTH },
    part: |request, options| {
        let text_depth = texts::text_depth(request, "maple")?;
        let tokens = texts::tokens(request.options, TOKENS);
        let layers = texts::blocks(request, "maple", text_depth.min(request.context.depth))?;
        Ok(Some(texts::part(request, options, TextShape { tokens, layers, beside: Beside::Map }, true)))
    },
    ..texts::BOTH_TOWERS
};
