//! What only segmentation has: its defaults, and the part of a plan that tells of them.

use super::{RunConfig, detection};
use vpt_base::{Error, Message, Result};
use vpt_data::masks::MaskAugment;
use vpt_model::head::segment::DecodeHead;

/// The part of a plan that only segmentation has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SegmentPlan {
    /// Epochs in which the head learns alone, on features that are computed once; the others follow.
    pub head_epochs: usize,
    /// Share of a stage's steps in which the learning rate rises.
    pub warmup: f64,
    /// Decay of the moving average of the learned values.
    pub ema: f64,
    /// Random changes to training images; a head that prompts will follow knows the flip only.
    pub augment: MaskAugment,
    /// How classes of pixels are made of patch tokens.
    pub decode_head: DecodeHead,
    /// Windows along the shorter side of an image.
    pub tiles: usize,
}

impl RunConfig {
    /// What only segmentation needs, for a run of `epochs` of `per_epoch` steps.
    pub(super) fn segment_plan(&self, epochs: usize, per_epoch: usize) -> Result<SegmentPlan> {
        let head_epochs = self.dense_head_epochs(epochs)?;
        let augment = MaskAugment {
            flip: self.flip.unwrap_or(true),
            scale: match self.scale_jitter {
                Some([1., 1.]) => None,
                given => given,
            },
        };
        augment.check()?;
        let tiles = self.tiles.unwrap_or(1);
        if tiles == 0 {
            return Err(Error::setting("tiles", Message::from("0 is not above 0")));
        }
        Ok(SegmentPlan {
            head_epochs,
            warmup: self.dense_warmup(head_epochs, per_epoch),
            ema: self.ema.unwrap_or(detection::EMA),
            augment,
            decode_head: self.decode_head.unwrap_or_default(),
            tiles,
        })
    }
}
