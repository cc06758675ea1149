//! Visual prompt tuning: adapt a frozen CLIP or ViT backbone to a new task by learning a few prompt tokens or prompt
//! pixels and a small head.

pub mod bench;
pub mod config;
pub mod eval;
pub mod feature_cache;
pub mod head;
pub mod infer;
pub mod loss;
pub mod methods;
pub mod metrics;
pub mod model;
pub mod optim;
pub mod prompt;
pub mod report;
pub mod runs;
pub mod train;

pub use vpt_backbone as backbone;
pub use vpt_base::{
    Error, Message, Progress, Result, contain, error, files, linear_algebra, logits, params, random, suggest,
};
pub(crate) use vpt_base::{candle, choice, file_at, parallel, tensor_file};
pub use vpt_data as data;
pub use vpt_image as image;
pub use vpt_kernel as kernel;
