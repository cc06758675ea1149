//! `zs-lp`: a linear probe that starts as CLIP's zero-shot classifier.

use super::{MethodSpec, features};

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "zs-lp",
    summary: "nothing; a cosine head that starts as the texts",
    source: "Silva-Rodríguez et al. 2024",
    ..features::TEXT_PROBE
};
