//! What methods on frozen features have in common: nothing before or in the backbone is learned, so that the features of an
//! image are computed once.

use super::{
    Defaults, Epochs, HeadStart, Learns, MethodFamily, MethodHead, MethodSpec, Task, Texts, Views, Warmup,
    linear::PROBE, settings::settings,
};
use crate::optim::OptimizerKind;

settings! {
    /// How many augmented views of a training image there are.
    pub struct ViewOptions {
        Method {
            /// Augmented views of each training image, 0 for the image as it is; tip-adapter-f has one more an epoch
            ///
            /// The features of a view are computed once and kept in the cache.
            views: Option<usize> => {
                value: "N",
                default: super::settings::DefaultText::Made(super::help::views),
                lacking: "augmented views",
                check: |&views| if views > MAX_VIEWS { Err(format!("more than {MAX_VIEWS}").into()) } else { Ok(()) },
            }
        }
    }
}

/// More views of an image than anyone publishes, few enough to bound memory.
const MAX_VIEWS: usize = 1000;

/// What methods on frozen features share; those that compare image embeddings differ by [`EMBEDDINGS`].
pub(super) const FAMILY: MethodSpec = MethodSpec {
    name: "",
    summary: "",
    source: "",
    family: &MethodFamily { intro: "" },
    learns: Learns::Nothing,
    texts: Texts::Unread,
    head: MethodHead::Any,
    views: None,
    tasks: &[Task::Classify, Task::Multilabel],
    solved: |_| false,
    combines: false,
    limits_memory: true,
    options: &[],
    check: |_, _| Ok(()),
    defaults: |_| PROBE,
    part: |_, _| Ok(None),
};

/// Those on image embeddings: of CLIP the projected class token, which is compared with texts or with one another.
pub(super) const EMBEDDINGS: MethodSpec = MethodSpec { tasks: &[Task::Classify], ..FAMILY };

/// Linear probes that begin as the texts: rates, batches and views of CLAP's public code, whose crops are Dassl's.
pub(super) const TEXT_PROBE: MethodSpec = MethodSpec {
    texts: Texts::Head,
    head: MethodHead::Embeddings(HeadStart::TextWeights { held: false }),
    views: Some(Views { count: 20, area: (0.08, 1.), in_every_epoch: true, one_more_an_epoch: false }),
    options: &[&["views"]],
    defaults: |_| Defaults {
        lr: 0.1,
        weight_decay: 0.,
        batch_size: 256,
        epochs: Epochs::Fixed(300),
        warmup: Warmup::SlowFirstEpoch,
        optimizer: OptimizerKind::Sgd,
        ..Defaults::BASE
    },
    ..EMBEDDINGS
};
