//! Rates and lengths of detection and segmentation, where a head on patch tokens learns alone first: what learns beside it then has few
//! steps to take, as where a head begins as the probe ([`super::after_probe`]).
//!
//! Measured on clip-nano at 64 pixels, blood cells (BCCD), 10 epochs of the head and 10 of both, seed 1: AP on val is 25.6 % before.
//!
//! | for | taken | because |
//! |---|---|---|
//! | the head, epochs, batch, weight decay | [`Defaults::DETECTION`], [`Defaults::SEGMENTATION`] | what prompts learn well with; of weights only matrices decay |
//! | tokens | 1e-2 | 27.5 % |
//! | biases, norms | 1e-3 | the rate of classification with a random head: biases 27.6 %, at 4e-3 27.7 % |
//! | low-rank changes | 1e-3 | 27.3 %, at 4e-3 27.7 % |
//! | all weights | 1e-4 | the rate of classification: 28.3 %, at 4e-4 28.8 %, which is less than noise on a toy; a backbone worth keeping is changed less |

use super::{Defaults, MethodRequest};

/// Peak learning rate of prompt tokens.
pub(super) const TOKENS_LR: f64 = Defaults::DETECTION.lr;
/// Peak learning rate of biases, and of scales and shifts of norms.
pub(super) const NORMS_LR: f64 = 1e-3;
/// Peak learning rate of low-rank changes.
pub(super) const LORA_LR: f64 = 1e-3;
/// Peak learning rate of all weights.
pub(super) const WEIGHTS_LR: f64 = 1e-4;

/// The defaults where what a method learns learns at `lr` in detection and segmentation; in other tasks those of `classification`.
pub(super) fn or(request: &MethodRequest<'_>, lr: f64, classification: Defaults) -> Defaults {
    request.dense_defaults().map_or(classification, |dense| Defaults { lr, ..dense })
}
