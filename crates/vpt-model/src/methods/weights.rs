//! What methods that tune weights of the backbone have in common.

use super::{Family, MethodHead, MethodSpec, Task, features};

pub(super) const FAMILY: MethodSpec = MethodSpec {
    family: &Family { intro: "Methods that tune the backbone itself:" },
    head: MethodHead::Any,
    tasks: &[Task::Classify, Task::Multilabel],
    options: &["head_lr"],
    ..features::FAMILY
};
