//! What methods that tune weights of the backbone have in common.

use super::{MethodFamily, MethodHead, MethodSpec, Task, features};

pub(super) const FAMILY: MethodSpec = MethodSpec {
    family: &MethodFamily { intro: "Methods that tune the backbone itself:" },
    head: MethodHead::Any,
    tasks: &[Task::Classify, Task::Multilabel, Task::Detect, Task::Segment],
    options: &["head_lr", "head_init", "keep_better"],
    ..features::FAMILY
};
