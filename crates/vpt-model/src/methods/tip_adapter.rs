//! `tip-adapter` and `tip-adapter-f`: the texts that name the classes beside a cache of the training images, whose keys the
//! second learns.

use super::{
    Defaults, Epochs, HeadStart, MethodHead, MethodSpec, Texts, Views, Warmup, features,
    settings::{self, DefaultText, settings},
};

settings! {
    /// What a cache weighs; chosen by validation where nothing is said.
    pub struct CacheOptions {
        Method {
            /// Weight of the cache beside the texts, with `beta`
            alpha: Option<f64> => {
                value: "X",
                default: DefaultText::Words("chosen by validation"),
                lacking: "cache",
                check: settings::positive,
            }
            /// Sharpness of the cache, with `alpha`
            beta: Option<f64> => {
                value: "X",
                default: DefaultText::Words("chosen by validation"),
                lacking: "cache",
                check: settings::positive,
            }
        }
    }
}

/// Views as in the public code, which makes the cache of the mean embeddings of ten.
const VIEWS: Views = Views { count: 10, area: (0.5, 1.), in_every_epoch: false, one_more_an_epoch: false };

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "tip-adapter",
    summary: "nothing; the texts and a cache of the training images, weighted on validation",
    source: "Zhang et al. 2022",
    texts: Texts::Head,
    head: MethodHead::Embeddings(HeadStart::Cache { learned: false }),
    views: Some(VIEWS),
    solved: |_| true,
    options: &[&["views", "alpha", "beta"]],
    ..features::EMBEDDINGS
};

/// Its defaults are those of its public code.
pub(super) const FINE_TUNED: MethodSpec = MethodSpec {
    name: "tip-adapter-f",
    summary: "the keys of that cache",
    head: MethodHead::Embeddings(HeadStart::Cache { learned: true }),
    views: Some(Views { one_more_an_epoch: true, ..VIEWS }),
    solved: |_| false,
    defaults: |_| Defaults {
        lr: 1e-3,
        batch_size: 256,
        epochs: Epochs::Fixed(20),
        warmup: Warmup::Share(0.),
        epsilon: 1e-4,
        ..Defaults::BASE
    },
    ..METHOD
};
