//! What detection and segmentation have in common: their defaults, and the part of a plan that tells of them.

use super::{RunConfig, Task};
use vpt_base::{Error, Result};
use vpt_model::methods::Warmup;

/// Decay of the moving average of the learned values: it spans some two hundred steps.
pub(super) const EMA: f64 = 0.995;
/// Bound on the length of the gradient.
pub(super) const CLIP_NORM: f64 = 1.;
/// Random views of a training image whose tokens are computed once.
const VIEWS: usize = 8;
/// Least epochs for each of them in detection: a view that is seldom seen costs more than it saves.
const EPOCHS_A_VIEW: usize = 4;
/// More than there are epochs in most runs.
pub(super) const MOST_VIEWS: usize = 1000;
/// Bytes that the tokens of all views may take.
const VIEW_BYTES: usize = 4 << 30;
/// Most steps that a stage warms up for.
const WARMUP_STEPS: f64 = 100.;

/// So many views, or none where they would be too few to learn from.
fn enough(views: usize) -> usize {
    if views > 1 { views } else { 0 }
}

/// How a help text says the number of views.
pub(super) fn views_text() -> String {
    format!("{VIEWS}; in detection at most one for every {EPOCHS_A_VIEW} epochs")
}

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
    /// Random views of a training image whose tokens are computed once, at most; with 0 there is a new one every time.
    pub cached_views: usize,
}

impl DensePlan {
    /// How many views there are of each of `images` training images, of each of which `values` numbers are kept; 0 where they
    /// would be too few to learn from.
    pub fn views(&self, images: usize, values: usize) -> usize {
        let each = images.saturating_mul(values).saturating_mul(size_of::<f32>());
        enough(self.cached_views.min(VIEW_BYTES / each.max(1)))
    }
}

impl RunConfig {
    /// What detection or segmentation, whichever `task` is, need for a run of `epochs` of `per_epoch` steps, in which weights are tuned or
    /// not.
    pub(super) fn dense_plan(&self, task: Task, tunes: bool, [epochs, per_epoch]: [usize; 2]) -> Result<DensePlan> {
        let cached_views = self.cached_views.unwrap_or(match task {
            Task::Segment => VIEWS,
            _ => enough(VIEWS.min(epochs / EPOCHS_A_VIEW)),
        });
        // On many views the head comes far alone; without them it learns a set by heart, and the changing sizes begin with the prompts.
        let on_views = task == Task::Detect && !tunes && cached_views > 1;
        let head_epochs =
            self.dense_head_epochs(epochs, if on_views { epochs - epochs.div_ceil(4) } else { epochs / 2 })?;
        let steps = (head_epochs.max(1) * per_epoch) as f64;
        Ok(DensePlan {
            head_epochs,
            warmup: self.warmup.unwrap_or(Warmup::SHARE.min(WARMUP_STEPS / steps)),
            ema: self.ema.unwrap_or(EMA),
            cached_views,
        })
    }

    /// Epochs, of all, in which a head on patch tokens learns alone: `beside` where something learns beside it then.
    fn dense_head_epochs(&self, epochs: usize, beside: usize) -> Result<usize> {
        let alone = self.method.on_features();
        let head_epochs = self.head_epochs.unwrap_or(if alone { epochs } else { beside });
        if alone && head_epochs != epochs {
            let message =
                format!("{head_epochs} of {epochs} epochs, where method {} learns nothing but the head", self.method);
            return Err(Error::setting("head_epochs", message));
        }
        if !alone && head_epochs >= epochs {
            let message = format!("{head_epochs} of {epochs} epochs leave none for what is learned beside the head");
            return Err(Error::setting("head_epochs", message));
        }
        Ok(head_epochs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_views_as_have_room_and_none_where_they_are_few() {
        let plan = |cached_views| DensePlan { head_epochs: 1, warmup: 0., ema: 0., cached_views };
        assert_eq!(plan(8).views(100, 1000), 8);
        assert_eq!(plan(0).views(100, 1000), 0);
        // A view of all images takes 1 GiB.
        let images = 1 << 18;
        assert_eq!([2, 4, 8].map(|views| plan(views).views(images, 1 << 10)), [2, 4, 4]);
        assert_eq!((plan(8).views(2 * images, 1 << 10), plan(8).views(4 * images, 1 << 10)), (2, 0));
        assert_eq!(plan(8).views(usize::MAX, usize::MAX), 0);
    }
}
