//! Visual prompt tuning: adapt a frozen CLIP or ViT backbone to a new task by learning a few prompt tokens or prompt
//! pixels and a small head.

pub mod backbone;
pub mod bench;
mod choice;
pub mod config;
pub mod contain;
pub mod data;
pub mod error;
pub mod eval;
pub mod feature_cache;
pub mod files;
pub mod head;
pub mod image;
pub mod infer;
pub mod kernel;
pub mod linear_algebra;
pub mod logits;
pub mod loss;
pub mod methods;
pub mod metrics;
pub mod model;
pub mod optim;
mod parallel;
pub mod params;
pub mod prompt;
pub mod random;
pub mod report;
pub mod runs;
pub mod suggest;
mod tensor_file;
pub mod train;

pub use error::{Error, Result};

/// Told how many images are done, of how many.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize);
