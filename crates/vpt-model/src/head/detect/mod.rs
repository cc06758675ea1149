//! The nearest-token dense head: boxes and classes from the patch tokens of some blocks of a frozen backbone.
//!
//! Every token of the grid answers for the boxes whose centres are nearest to it ([`assign`]), writes them as centre and
//! size ([`geometry`]) and says how good it thinks they are. A neck makes one map of the tokens of several blocks; two
//! towers of convolutions, one for classes and one for boxes, give tokens a view of their neighbours:
//!
//! ```text
//! features [levels, N, D] ── LayerNorm, Linear, GroupNorm, GELU ── (Linear to 4C, pixel shuffle) ── map [T, C]
//! map ── 2 x (conv 3x3, GroupNorm, GELU) ── class [T, K]
//! map ── 2 x (conv 3x3, GroupNorm, GELU) ── boxes [T, 4], quality [T]
//! ```
//!
//! The upsampling stands behind the neck's activation and has none of its own. Layers in front of a GroupNorm in the towers
//! have no bias: the norm's shift does its work. Unlike the backbone the head learns its weights, so its VJP is written by
//! hand here too ([`BoundDetectHead::vjp`]), with weight gradients. One call treats one image on the calling thread, so
//! that threads take images side by side and sums keep a fixed order.

pub mod assign;
pub(super) mod bound;
pub mod decode;
#[cfg(test)]
mod fixture;
pub mod geometry;
mod gradients;
pub(super) mod layers;
pub mod loss;
pub(super) mod map;
pub(super) mod output;
mod shape;
#[cfg(test)]
mod tests;

pub use assign::{Assignment, Role, Truth};
pub use bound::{BoundDetectHead, FeatureGradients, GROUP_EPS, LAYER_EPS, Workspace};
pub use decode::{BoxScore, DecodeOptions, Suppress, decode};
pub use geometry::Grid;
pub use gradients::HeadGrads;
pub use loss::{DetectionLoss, LossSums};
pub use shape::{ClassLayer, DetectShape, GROUPS};
pub(crate) use shape::{LOG_SCALE, SHIFT};

/// Raw outputs for one image of T tokens, row-major, before any decoding; also the gradient of these values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RawBoxes {
    /// Class logits `[T, K]`.
    pub class: Vec<f32>,
    /// Box offsets `[T, 4]`, see [`geometry::Grid::decode`].
    pub boxes: Vec<f32>,
    /// Quality logits `[T]`: how well the token's box fits.
    pub quality: Vec<f32>,
}
