//! Shape of a head that tells the class of every pixel: its sizes, the names and shapes of its tensors, and their first values.

use std::ops::Range;

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::head::detect::GROUPS;
use vpt_base::choice::choice;
use vpt_base::{
    Error, Result,
    params::{Group, Param, element_count},
    random::normal,
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
        let within = |name: &str, value: usize, most: usize| {
            if (1..=most).contains(&value) {
                return Ok(());
            }
            Err(Error::invalid(format!("head.{name}"), format!("{value} is not in 1..={most}")))
        };
        within("width", self.width, 1 << 14)?;
        within("levels", self.levels, if self.kind == DecodeHead::Linear { 1 } else { 64 })?;
        within("grid", self.grid, 1 << 9)?;
        within("channels", self.channels, 1 << 12)?;
        within("classes", self.classes, 1 << 12)?;
        if !self.channels.is_multiple_of(GROUPS) {
            return Err(Error::invalid("head.channels", format!("{} is not a multiple of {GROUPS}", self.channels)));
        }
        Ok(())
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
        self.tensors()
            .into_iter()
            .map(|(name, shape)| {
                let n = element_count(&shape).ok_or_else(|| Error::invalid(&name, "too large"))?;
                let fan_in = (n / shape[0]).max(1) as f32;
                let mut draw = |std: f32| (0..n).map(|_| std * normal(rng)).collect::<Vec<f32>>();
                let values = match name.as_str() {
                    "head.class.weight" => draw(INIT_STD),
                    _ if shape.len() > 1 => draw((2. / fan_in).sqrt()),
                    NORM_SCALE => vec![1.; n],
                    _ if name.ends_with("weight") => vec![1.; n],
                    _ => vec![0.; n],
                };
                Param::new(&name, &shape, values, Self::group(&name, &shape))
            })
            .collect()
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
        let mut end = 0;
        let ranges = self.tensors().into_iter().map(|(_, shape)| {
            let start = end;
            end += shape.iter().product::<usize>();
            start..end
        });
        SegmentRanges(ranges.collect())
    }
}

/// The ranges of a head's tensors in one flat vector.
#[derive(Clone, Debug)]
pub(super) struct SegmentRanges(pub(super) Vec<Range<usize>>);

impl SegmentRanges {
    /// Values in all.
    pub(super) fn len(&self) -> usize {
        self.0.last().map_or(0, |range| range.end)
    }

    fn at(&self, i: usize) -> Range<usize> {
        self.0[i].clone()
    }

    /// From the first value of tensor `i` to the last of the one behind it.
    fn pair(&self, i: usize) -> Range<usize> {
        self.0[i].start..self.0[i + 1].end
    }

    /// Mean, then scale `[2, D]` of a linear head's norm.
    pub(super) fn norm(&self) -> Range<usize> {
        self.pair(0)
    }

    pub(super) fn neck(&self) -> [Range<usize>; 2] {
        [self.at(0), self.at(1)]
    }

    /// Scale, then shift `[2, C]`.
    pub(super) fn neck_norm(&self) -> Range<usize> {
        self.pair(2)
    }

    pub(super) fn conv(&self, i: usize) -> Range<usize> {
        self.at(4 + 3 * i)
    }

    /// Scale, then shift `[2, C]` of the norm behind convolution `i`.
    pub(super) fn tower_norm(&self, i: usize) -> Range<usize> {
        self.pair(5 + 3 * i)
    }

    /// Weight and bias of the last layer.
    pub(super) fn class(&self) -> [Range<usize>; 2] {
        [self.at(self.0.len() - 2), self.at(self.0.len() - 1)]
    }
}
