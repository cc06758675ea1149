//! What only detection has: its defaults, and the part of a plan that tells of them.

use super::{DetectPlan, RunConfig};
use vpt_base::{Error, Result};
use vpt_data::boxes::BoxAugment;
use vpt_model::methods::Warmup;

/// Decay of the moving average of a detector's values: it spans some two hundred steps.
pub(super) const EMA: f64 = 0.995;
/// Bound on the length of a detector's gradient.
pub(super) const CLIP_NORM: f64 = 1.;
/// Most steps that a stage of detection warms up for.
const WARMUP_STEPS: f64 = 100.;
/// Least and greatest zoom of training images while prompts learn. Heads on small sets learn their boxes by heart.
const SCALE_JITTER: [f32; 2] = [0.8, 1.25];

/// How a help text says the bound on gradients.
pub(super) fn clip_norm_text() -> String {
    format!("no bound; {CLIP_NORM} in detection and segmentation")
}

/// How a help text says the zoom.
pub(super) fn scale_jitter_text() -> String {
    let [least, most] = SCALE_JITTER;
    format!("{least} {most} in detection, linear none; none in segmentation")
}

impl RunConfig {
    /// What only detection needs, for a run of `epochs` of `per_epoch` steps.
    pub(super) fn detect_plan(&self, epochs: usize, per_epoch: usize) -> Result<DetectPlan> {
        let alone = self.method.on_features();
        let head_epochs = self.dense_head_epochs(epochs)?;
        let augment = BoxAugment {
            flip: self.flip.unwrap_or(true),
            scale: match self.scale_jitter {
                None if !alone => Some(SCALE_JITTER),
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
        let warmup = self.dense_warmup(head_epochs, per_epoch);
        let ema = self.ema.unwrap_or(EMA);
        Ok(DetectPlan { head_epochs, warmup, ema, fit: self.fit.unwrap_or_default(), augment })
    }

    /// Epochs, of all, in which a head on patch tokens learns alone.
    pub(super) fn dense_head_epochs(&self, epochs: usize) -> Result<usize> {
        let alone = self.method.on_features();
        let head_epochs = self.head_epochs.unwrap_or(if alone { epochs } else { epochs / 2 });
        if alone && head_epochs != epochs {
            let message =
                format!("{head_epochs} of {epochs} epochs, where method {} learns nothing but the head", self.method);
            return Err(Error::setting("head_epochs", message));
        }
        if !alone && head_epochs >= epochs {
            let message = format!("{head_epochs} of {epochs} epochs leave none for the prompts");
            return Err(Error::setting("head_epochs", message));
        }
        Ok(head_epochs)
    }

    /// Share of a stage's steps in which the learning rate rises.
    pub(super) fn dense_warmup(&self, head_epochs: usize, per_epoch: usize) -> f64 {
        let steps = (head_epochs.max(1) * per_epoch) as f64;
        self.warmup.unwrap_or(Warmup::SHARE.min(WARMUP_STEPS / steps))
    }
}
