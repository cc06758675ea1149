//! Images: decoding, Pillow-exact resizing, preprocessing to what a backbone expects.

pub mod decode;
pub mod encode;
mod gif_canvas;
pub mod heat_map;
pub mod heif;
mod jpeg;
mod open_clip_config;
mod orientation;
pub mod preprocess;
mod processor_config;
pub mod resize;
mod rgb;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tiff_forms;
mod timm_config;

pub use decode::{Rgb8, decode};
pub use open_clip_config::from_open_clip;
pub use preprocess::Preprocess;
pub use timm_config::from_timm;
