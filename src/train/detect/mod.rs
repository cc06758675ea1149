//! Training of detectors, in two stages: the head alone on features that are computed once, then prompts and head together.
//!
//! What is evaluated and kept is a moving average of the learned values. The head as it is after the first stage is the
//! control that prompts are reported beside. `store` keeps features, `source` makes batches, `fit` is the loop, `progress` what
//! a checkpoint knows of it, `session` a run in its folder.

mod fit;
mod mistakes;
mod progress;
mod session;
mod setup;
mod source;
mod store;
#[cfg(test)]
mod tests;

pub use progress::{DetectRecord, Stage};
pub(super) use session::Session;
pub(super) use setup::Setup;
pub(crate) use setup::working_size;
