//! What every part of vpt stands on: errors, files that are written whole or not at all, named random streams, work in fixed
//! shares, contained panics, named values, tensor files, small linear algebra.

#[cfg(feature = "candle")]
pub mod candle;
pub mod choice;
pub mod contain;
pub mod error;
pub mod file_at;
pub mod files;
pub mod linear_algebra;
pub mod logits;
pub mod parallel;
pub mod params;
pub mod random;
pub mod suggest;
pub mod tensor_file;
#[cfg(feature = "testing")]
pub mod testing;

pub use error::{Error, Message, Result};

/// Told how many images are done, of how many.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize);
