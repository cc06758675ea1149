//! `clap`: a linear probe that starts as the texts and is held near them class by class.

use super::{HeadStart, MethodHead, MethodSpec, features};

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "clap",
    summary: "the same, held near the texts class by class",
    source: "Silva-Rodríguez et al. 2024",
    head: MethodHead::Embeddings(HeadStart::TextWeights { held: true }),
    ..features::TEXT_PROBE
};
