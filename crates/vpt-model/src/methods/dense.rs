//! Rates and lengths of detection and segmentation, where a head on patch tokens learns alone first: what learns beside it then has few
//! steps to take, as where a head begins as the probe ([`super::after_probe`]).
//!
//! | for | taken | because |
//! |---|---|---|
//! | the head, epochs, batch, decay of the head | [`Defaults::DETECTION`] | |
//! | tokens | 1e-2 | |
//! | biases, norms | 1e-3 | the rate of classification with a random head |
//! | low-rank changes | 1e-3 | |
//! | all weights | 1e-4 | the rate of classification |

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
    if request.is_dense() { Defaults { lr, ..Defaults::DETECTION } } else { classification }
}
