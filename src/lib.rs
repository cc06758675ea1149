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
pub mod head;
pub mod infer;
pub mod kernel;
pub mod model;
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
