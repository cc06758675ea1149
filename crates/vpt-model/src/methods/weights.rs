//! What methods that tune weights of the backbone have in common.

use super::{MethodFamily, MethodHead, MethodSpec, Task, features, spec::HEAD_OPTIONS};

pub(super) const FAMILY: MethodSpec = MethodSpec {
    family: &MethodFamily { intro: "Methods that tune the backbone itself:" },
    head: MethodHead::Any,
    tasks: &[Task::Classify, Task::Multilabel, Task::Detect, Task::Segment],
    options: &[HEAD_OPTIONS],
    ..features::FAMILY
};
