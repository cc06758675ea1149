//! What methods with prompt pixels have in common.

use super::{Defaults, Epochs, Learns, MethodHead, MethodSpec, Task, features, spec::HEAD_OPTIONS};

/// Rate and epochs of ILM-VP and of the public code of BLM, with Adam: prompt pixels do not decay.
const MAPPED: Defaults = Defaults { lr: 1e-2, epochs: Epochs::Fixed(200), ..PIXELS };
const PIXELS: Defaults = Defaults { lr: 2e-2, weight_decay: 0., ..Defaults::BASE };

pub(super) const FAMILY: MethodSpec = MethodSpec {
    learns: Learns::Pixels,
    combines: true,
    head: MethodHead::Any,
    tasks: &[Task::Classify, Task::Multilabel],
    options: &[HEAD_OPTIONS, &["label_map"]],
    defaults: |request| if request.label_map.is_some() { MAPPED } else { PIXELS },
    ..features::FAMILY
};
