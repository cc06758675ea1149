//! Shape of a head that tells the class of every pixel: its sizes, the names and shapes of its tensors, and their first values.

use std::ops::Range;

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::head::dense_tensors::{self, Fresh, TensorRanges, check_sizes};
use vpt_base::{
    Result,
    choice::choice,
    params::{Group, Param},
};

/// Cells along the side of a token, in each of which one class is learned.
pub const CELLS: usize = 4;

/// Name of the mean of a value of a token over the training images.
pub const NORM_MEAN: &str = "head.norm.mean";
/// Name of one over its standard deviation.
pub const NORM_SCALE: &str = "head.norm.scale";

/// Convolutions of the tower.
pub(super) const DEPTH: usize = 2;

/// Standard deviation of fresh weights of the layer that gives logits.
const INIT_STD: f32 = 0.01;

choice! {
    /// How classes of pixels are made of patch tokens.
    #[derive(Default)]
    pub enum DecodeHead for "decode_head" {
        /// BatchNorm and a 1x1 convolution on the tokens of the last block.
        Linear = "linear",
        /// Convolutions on the tokens of several blocks.
        #[default]
        MultiBlock = "multi-block",
    }
}

/// The sizes of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentShape {
    /// Which head.
    pub kind: DecodeHead,
    /// Length of a patch token, D.
    pub width: usize,
    /// How many blocks' tokens are read.
    pub levels: usize,
    /// Tokens a side; N is its square.
    pub grid: usize,
    /// Channels of the map, C, a multiple of 8; of no meaning for [`DecodeHead::Linear`].
    pub channels: usize,
    /// Number of classes, K.
    pub classes: usize,
}

impl SegmentShape {
    /// Logits along the side of a window, M.
    pub fn side(&self) -> usize {
        match self.kind {
            DecodeHead::Linear => self.grid,
            DecodeHead::MultiBlock => CELLS * self.grid,
        }
    }

    /// Cells along the side of a window, L.
    pub fn cells(&self) -> usize {
        CELLS * self.grid
    }

    /// Fails unless the sizes are ones a head can have and whose tensors fit into memory's addresses: a shape may come out
    /// of a file.
    pub fn check(&self) -> Result<()> {
        let levels = if self.kind == DecodeHead::Linear { 1 } else { 64 };
        let sizes = [
            ("width", self.width, 1 << 14),
            ("levels", self.levels, levels),
            ("grid", self.grid, 1 << 9),
            ("channels", self.channels, 1 << 12),
            ("classes", self.classes, 1 << 12),
        ];
        check_sizes(&sizes, self.channels)
    }

    /// Name and shape of every tensor of the head. Convolutions are `[out, y, x, in]`, other weights `[out, in]`; of the last
    /// layer's rows those of one class lie `CELLS * CELLS` in a row, for the parts of a token row by row.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, c, k) = (self.width, self.channels, self.classes);
        let mut all = Vec::new();
        let mut add = |name: String, shape: &[usize]| all.push((format!("head.{name}"), shape.to_vec()));
        match self.kind {
            DecodeHead::Linear => {
                add("norm.mean".into(), &[d]);
                add("norm.scale".into(), &[d]);
                add("class.weight".into(), &[k, d]);
                add("class.bias".into(), &[k]);
            }
            DecodeHead::MultiBlock => {
                add("neck.weight".into(), &[c, self.levels * d]);
                add("neck.bias".into(), &[c]);
                add("neck.group_norm.weight".into(), &[c]);
                add("neck.group_norm.bias".into(), &[c]);
                for i in 0..DEPTH {
                    add(format!("conv{i}.weight"), &[c, 3, 3, c]);
                    add(format!("norm{i}.weight"), &[c]);
                    add(format!("norm{i}.bias"), &[c]);
                }
                add("class.weight".into(), &[CELLS * CELLS * k, c]);
                add("class.bias".into(), &[CELLS * CELLS * k]);
            }
        }
        all
    }

    /// Fresh values: neck and convolutions after He et al. ("Delving Deep into Rectifiers", 2015), logits near zero. A norm of
    /// training images is none yet: mean 0, scale 1.
    pub fn init(&self, rng: &mut impl Rng) -> Result<Vec<Param>> {
        self.check()?;
        let fresh = |name: &str, shape: &[usize], fan_in: f32| match name {
            "head.class.weight" => Fresh::Normal(INIT_STD),
            _ if shape.len() > 1 => Fresh::he(fan_in),
            NORM_SCALE => Fresh::All(1.),
            _ if name.ends_with("weight") => Fresh::All(1.),
            _ => Fresh::All(0.),
        };
        dense_tensors::init(self.tensors(), rng, fresh, Self::group)
    }

    /// Whether and how a tensor of the head is learned.
    pub fn group(name: &str, shape: &[usize]) -> Group {
        match name {
            NORM_MEAN | NORM_SCALE => Group::Fixed,
            _ if shape.len() > 1 => Group::Head,
            _ => Group::HeadBias,
        }
    }

    /// Where each tensor lies when all are put one behind the other in the order of [`Self::tensors`].
    pub(super) fn places(&self) -> SegmentRanges {
        SegmentRanges(TensorRanges::new(self.tensors()))
    }
}

/// The ranges of a head's tensors in one flat vector.
#[derive(Clone, Debug)]
pub(super) struct SegmentRanges(TensorRanges);

impl SegmentRanges {
    /// Values in all.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Every tensor's range, in order.
    pub(super) fn all(&self) -> &[Range<usize>] {
        self.0.all()
    }

    /// Mean, then scale `[2, D]` of a linear head's norm.
    pub(super) fn norm(&self) -> Range<usize> {
        self.0.pair(0)
    }

    pub(super) fn neck(&self) -> [Range<usize>; 2] {
        [self.0.at(0), self.0.at(1)]
    }

    /// Scale, then shift `[2, C]`.
    pub(super) fn neck_norm(&self) -> Range<usize> {
        self.0.pair(2)
    }

    pub(super) fn conv(&self, i: usize) -> Range<usize> {
        self.0.at(4 + 3 * i)
    }

    /// Scale, then shift `[2, C]` of the norm behind convolution `i`.
    pub(super) fn tower_norm(&self, i: usize) -> Range<usize> {
        self.0.pair(5 + 3 * i)
    }

    /// Weight and bias of the last layer.
    pub(super) fn class(&self) -> [Range<usize>; 2] {
        [self.0.at_end(2), self.0.at_end(1)]
    }
}
