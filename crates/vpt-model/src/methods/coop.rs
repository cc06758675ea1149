//! `coop`: vectors in the place of words in the texts of the classes.

use super::{Defaults, Epochs, MethodSpec, texts};
use crate::prompt::text::{Beside, TextShape};

/// Vectors in a text, as published.
pub(super) const TOKENS: usize = 16;

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "coop",
    summary: "vectors in the place of words",
    source: "Zhou et al. 2022",
    defaults: |_| Defaults { epochs: Epochs::ByShots([50, 100, 200]), ..texts::TRAINING },
    part: |request, options| {
        texts::text_depth(request, "coop")?;
        let tokens = texts::tokens(request.options, TOKENS);
        Ok(Some(texts::part(request, options, TextShape { tokens, layers: 1, beside: Beside::Nothing }, false)))
    },
    ..texts::FAMILY
};
