//! The linear head: `logits = features W^T + b`.

use candle_core::Tensor;
use rand::Rng;

use vpt_base::candle::Fault;
use vpt_base::{
    Result,
    params::{Group, Param},
    random::normal,
};

/// Standard deviation of fresh weights: small enough that all classes start about equally likely, large enough that
/// prompts get a gradient in the first step.
const INIT_STD: f32 = 0.01;

/// Weights `[C, D]` from N(0, 0.01²), biases 0.
pub(super) fn init(width: usize, classes: usize, rng: &mut impl Rng) -> Result<Vec<Param>> {
    let weight = (0..classes * width).map(|_| INIT_STD * normal(rng)).collect();
    Ok(vec![
        Param::new("head.weight", &[classes, width], weight, Group::Head)?,
        Param::new("head.bias", &[classes], vec![0.; classes], Group::HeadBias)?,
    ])
}

/// Logits `[m, C]` of features `[m, D]`.
pub(super) fn forward(features: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor, Fault> {
    Ok(features.matmul(&weight.t()?)?.broadcast_add(bias)?)
}
