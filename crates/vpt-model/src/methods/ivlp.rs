//! `ivlp`: vectors in several blocks of the text tower, prompt tokens in as many of the image tower.

use super::{MethodOptions, MethodPart, MethodRequest, MethodSpec, texts};
use crate::prompt::{
    text::{Beside, TextShape},
    tokens::TokenLayout,
};
use vpt_base::Result;

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "ivlp",
    summary: "vectors in several blocks of the text tower, prompt tokens in the image tower",
    source: "Rasheed et al. 2023",
    part: |request, options| part(request, options, "ivlp"),
    ..texts::BOTH_TOWERS
};

/// The part of the method `name`.
pub(super) fn part(request: &MethodRequest<'_>, options: &mut MethodOptions, name: &str) -> Result<Option<MethodPart>> {
    let text_depth = texts::text_depth(request, name)?;
    let tokens = texts::tokens(request.options, texts::TOKENS);
    let layout = TokenLayout { start: 0, layers: texts::blocks(request, name, request.context.depth)?, tokens };
    let layers = texts::blocks(request, name, text_depth)?;
    Ok(Some(texts::part(request, options, TextShape { tokens, layers, beside: Beside::Tokens(layout) }, true)))
}
