//! What goes in: decoded and transformed images, data set formats, splits, few-shot draws, batches.

pub mod dataset;
pub mod files;
mod folder;
mod idx;
pub mod image;
mod open;
pub mod preprocess;
mod processor_config;
pub mod resize;
pub mod split;
mod table;

pub use dataset::{Dataset, ImageSource, Layout, Sample, Split};
pub use files::write_atomic;
pub use image::{Rgb8, decode};
pub use preprocess::Preprocess;
