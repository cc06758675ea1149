//! What detection and segmentation have in common: their defaults, and the part of a plan that tells of them.

use super::RunConfig;
use vpt_base::{Error, Result};
use vpt_model::methods::Warmup;

/// Decay of the moving average of the learned values: it spans some two hundred steps.
pub(super) const EMA: f64 = 0.995;
/// Bound on the length of the gradient.
pub(super) const CLIP_NORM: f64 = 1.;
/// Most steps that a stage warms up for.
const WARMUP_STEPS: f64 = 100.;

/// How a help text says the bound on gradients.
pub(super) fn clip_norm_text() -> String {
    format!("no bound; {CLIP_NORM} in detection and segmentation")
}

/// The part of a plan that detection and segmentation have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DensePlan {
    /// Epochs in which the head learns alone, on features that are computed once; the others follow.
    pub head_epochs: usize,
    /// Share of a stage's steps in which the learning rate rises.
    pub warmup: f64,
    /// Decay of the moving average of the learned values.
    pub ema: f64,
}

impl RunConfig {
    /// What detection and segmentation need, for a run of `epochs` of `per_epoch` steps.
    pub(super) fn dense_plan(&self, epochs: usize, per_epoch: usize) -> Result<DensePlan> {
        let head_epochs = self.dense_head_epochs(epochs)?;
        let steps = (head_epochs.max(1) * per_epoch) as f64;
        Ok(DensePlan {
            head_epochs,
            warmup: self.warmup.unwrap_or(Warmup::SHARE.min(WARMUP_STEPS / steps)),
            ema: self.ema.unwrap_or(EMA),
        })
    }

    /// Epochs, of all, in which a head on patch tokens learns alone.
    fn dense_head_epochs(&self, epochs: usize) -> Result<usize> {
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
}
