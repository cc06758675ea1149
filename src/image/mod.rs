//! Images: decoding, Pillow-exact resizing, preprocessing to what a backbone expects.

pub mod decode;
pub mod preprocess;
mod processor_config;
pub mod resize;

pub use decode::{Rgb8, decode};
pub use preprocess::Preprocess;
