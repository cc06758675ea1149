//! `cocoop`: vectors in the place of words, shifted by a small network of the image.

use super::{Defaults, Epochs, MethodSpec, texts};
use crate::prompt::text::{Beside, TextShape};

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "cocoop",
    summary: "the same, shifted by a small network of the image",
    source: "Zhou et al. 2022",
    defaults: |_| Defaults { batch_size: 1, epochs: Epochs::ByShots([10; 3]), ..texts::TRAINING },
    part: |request, options| {
        texts::text_depth(request, "cocoop")?;
        let tokens = texts::tokens(request.options, texts::TOKENS);
        Ok(Some(texts::part(request, options, TextShape { tokens, layers: 1, beside: Beside::MetaNet }, true)))
    },
    ..texts::FAMILY
};
