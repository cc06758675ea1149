//! Visual prompt tuning: adapt a frozen CLIP or ViT backbone to a new task by learning a few prompt tokens or prompt
//! pixels and a small head.

pub use vpt_backbone as backbone;
pub use vpt_base::{
    Error, Message, Progress, Result, contain, error, files, linear_algebra, logits, params, random, suggest,
};
pub use vpt_bench as bench;
pub use vpt_data as data;
pub use vpt_image as image;
pub use vpt_kernel as kernel;
pub use vpt_model::{head, loss, methods, metrics, model, optim, prompt};
pub use vpt_train::{audit, config, eval, feature_cache, infer, report, runs, train};
