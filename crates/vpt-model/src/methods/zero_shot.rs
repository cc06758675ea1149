//! `zero-shot`: the texts that name the classes, as CLIP was published with; nothing is learned.

use super::{HeadStart, MethodHead, MethodSpec, Texts, features};

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "zero-shot",
    summary: "nothing; the texts that name the classes",
    source: "Radford et al. 2021",
    texts: Texts::Head,
    head: MethodHead::Embeddings(HeadStart::Texts),
    solved: |_| true,
    ..features::EMBEDDINGS
};
