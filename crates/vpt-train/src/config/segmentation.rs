//! What only segmentation has: its defaults, and the part of a plan that tells of them.

use super::RunConfig;
use vpt_base::{Error, Message, Result};
use vpt_data::masks::MaskAugment;
use vpt_model::head::segment::DecodeHead;

/// Least and greatest zoom of training images.
pub(super) const SCALE_JITTER: [f32; 2] = [0.75, 1.5];

/// The part of a plan that only segmentation has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SegmentPlan {
    /// Random changes to training images; a head that prompts will follow knows the flip only where no views are computed once.
    pub augment: MaskAugment,
    /// How classes of pixels are made of patch tokens.
    pub decode_head: DecodeHead,
    /// Windows along the shorter side of an image.
    pub tiles: usize,
}

impl RunConfig {
    /// What only segmentation needs.
    pub(super) fn segment_plan(&self) -> Result<SegmentPlan> {
        let augment = MaskAugment {
            flip: self.flip.unwrap_or(true),
            scale: match self.scale_jitter.unwrap_or(SCALE_JITTER) {
                [1., 1.] => None,
                scale => Some(scale),
            },
        };
        augment.check()?;
        let tiles = self.tile_count()?;
        if tiles == 0 {
            return Err(Error::setting("tiles", Message::from("0 is not above 0")));
        }
        Ok(SegmentPlan { augment, decode_head: self.decode_head.unwrap_or_default(), tiles })
    }
}
