//! `ncm`: the class whose mean embedding is nearest.

use super::{HeadStart, MethodHead, MethodSpec, features};

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "ncm",
    summary: "nothing; the mean of each class's unit embeddings",
    source: "Mensink et al. 2013",
    head: MethodHead::Embeddings(HeadStart::ClassMeans),
    solved: |_| true,
    ..features::EMBEDDINGS
};
