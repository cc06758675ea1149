//! Heads that tell the class of every pixel from the patch tokens of a frozen backbone.
//!
//! [`DecodeHead::Linear`] is the probe of DINOv2: BatchNorm and a 1x1 convolution on the tokens of the last block, whose logits
//! are upsampled. Its norm has the statistics of the training images, computed once, and no scale and shift of its own, which the
//! convolution has already; so an image's logits depend on no other image, and batches can be treated piece by piece.
//!
//! [`DecodeHead::MultiBlock`] reads the tokens of several blocks, as the head of detection does, and says what is in each of 4 x 4
//! parts of a token:
//!
//! ```text
//! features [levels, N, D] ── LayerNorm, Linear, GroupNorm, GELU ── 2 x (conv 3x3, GroupNorm, GELU) ── 1x1 ── [N, 16 K]
//! ```
//!
//! Like the head of detection both have a VJP written by hand. One call treats one window on the calling thread.

mod bound;
mod compose;
mod loss;
mod shape;
#[cfg(test)]
mod tests;

pub use bound::{BoundSegmentHead, SegmentWorkspace};
pub use compose::{Composer, WindowLogits};
pub use loss::{CellLoss, SegmentLoss};
pub use shape::{CELLS, DecodeHead, NORM_MEAN, NORM_SCALE, SegmentShape};
