//! What only detection has: its defaults, and the part of a plan that tells of them.

use super::{RunConfig, segmentation};
use vpt_base::{Error, Result};
use vpt_data::boxes::{BoxAugment, Fit, MAX_TILES};

/// Least and greatest zoom of training images while prompts learn. Heads on small sets learn their boxes by heart.
const SCALE_JITTER: [f32; 2] = [0.8, 1.25];

/// Least epochs of a run on tiles: an epoch goes through many views of each image.
pub(super) const TILED_EPOCHS: usize = 8;

/// How a help text says the zoom.
pub(super) fn scale_jitter_text() -> String {
    let [least, most] = SCALE_JITTER;
    let [smaller, larger] = segmentation::SCALE_JITTER;
    format!("{least} {most} in detection, linear none; {smaller} {larger} in segmentation")
}

/// The part of a plan that only detection has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DetectPlan {
    /// How images become square.
    pub fit: Fit,
    /// Random changes to training images; a head that prompts will follow knows the flip only.
    pub augment: BoxAugment,
    /// Tiles along the shorter side of an image, if they did not overlap; 1: images as a whole alone.
    pub tiles: usize,
}

impl RunConfig {
    /// What only detection needs.
    pub(super) fn detect_plan(&self) -> Result<DetectPlan> {
        let augment = BoxAugment {
            flip: self.flip.unwrap_or(true),
            scale: match self.scale_jitter {
                None if !self.method.on_features() => Some(SCALE_JITTER),
                Some([1., 1.]) => None,
                given => given,
            },
            crop: self.box_crop,
            mosaic: self.mosaic.unwrap_or(0.),
        };
        augment.check().map_err(|error| match error {
            Error::Invalid { what, message } if what == "mosaic".into() => Error::setting("mosaic", message),
            Error::Invalid { message, .. } => Error::setting("scale_jitter", message),
            error => error,
        })?;
        let tiles = self.tile_count()?;
        if !(1..=MAX_TILES).contains(&tiles) {
            return Err(Error::setting("tiles", format!("{tiles} is not between 1 and {MAX_TILES}")));
        }
        Ok(DetectPlan { fit: self.fit.unwrap_or_default(), augment, tiles })
    }
}
