//! The cosine head: `logits = exp(log_scale) * cos(features, W_c)`, with the scale learned.
//!
//! Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting" (2018). The length of features and
//! weights has no say, which suits few images a class.

use candle_core::Tensor;
use rand::Rng;

use vpt_base::candle::Fault;
use vpt_base::{
    Result,
    params::{Group, Param},
    random::normal,
};

/// A head whose class weights are given, `[C, D]`, with a fixed `scale`; the weights are learned if `group` says so.
pub fn given(weight: Vec<f32>, classes: usize, scale: f32, group: Group) -> Result<Vec<Param>> {
    let width = weight.len() / classes.max(1);
    Ok(vec![
        Param::new("head.weight", &[classes, width], weight, group)?,
        Param::new("head.log_scale", &[1], vec![scale.ln()], Group::Fixed)?,
    ])
}

/// The initial scale: logits between -16 and 16.
pub const INIT_SCALE: f32 = 16.;

/// Keeps the length of a zero vector, and its gradient, finite.
const EPSILON: f64 = 1e-12;

/// Weights `[C, D]` from N(0, 1/D), rows of length about one; the scale 16, kept as its logarithm.
pub(super) fn init(width: usize, classes: usize, rng: &mut impl Rng) -> Result<Vec<Param>> {
    let std = (width as f32).powf(-0.5);
    let weight = (0..classes * width).map(|_| std * normal(rng)).collect();
    Ok(vec![
        Param::new("head.weight", &[classes, width], weight, Group::Head)?,
        Param::new("head.log_scale", &[1], vec![INIT_SCALE.ln()], Group::HeadBias)?,
    ])
}

/// Logits `[m, C]` of features `[m, D]`.
pub(super) fn forward(features: &Tensor, weight: &Tensor, log_scale: &Tensor) -> Result<Tensor, Fault> {
    let cosine = unit_rows(features)?.matmul(&unit_rows(weight)?.t()?)?;
    Ok(cosine.broadcast_mul(&log_scale.exp()?)?)
}

/// The rows of `[m, D]`, scaled to length 1.
pub(crate) fn unit_rows(x: &Tensor) -> Result<Tensor, Fault> {
    let length = (x.sqr()?.sum_keepdim(1)? + EPSILON)?.sqrt()?;
    Ok(x.broadcast_div(&length)?)
}
