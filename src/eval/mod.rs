//! How good a model is: accuracy on classes, metrics of several classes an image, the COCO box metric, and CLIP's zero-shot
//! classifier. Metrics are named as `CLIP_benchmark` and pycocotools name them, computed over the whole split at once (never
//! as a mean of batch means), and are fractions of one.

pub mod classify;
pub mod coco;
pub mod multilabel;
mod task;
pub mod zero_shot;

pub use classify::{Confusion, Metrics, Tally};
pub use task::evaluate;
