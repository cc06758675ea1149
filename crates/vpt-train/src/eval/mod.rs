//! Evaluation on a part of a data set: of learned tasks, and of CLIP's zero-shot classifier.

mod detect_task;
mod segment_task;
mod task;
pub mod zero_shot;

pub use detect_task::evaluate_boxes;
pub use segment_task::evaluate_masks;
pub use task::{evaluate, evaluate_multilabel};
pub use vpt_model::metrics::coco::Detected;
