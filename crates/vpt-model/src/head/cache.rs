//! Tip-Adapter's cache of training images beside class weights:
//! `logits += alpha * sum_i exp(-beta (1 - cos(features, key_i))) onehot(label_i)`.
//!
//! Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification" (2022), equations 3 to 6. Keys are
//! unit vectors when the cache is built; what training makes of them is used as it is, as in the public code.

use candle_core::Tensor;

use super::cosine::unit_rows;
use vpt_base::candle::Fault;
use vpt_base::{
    Error, Result,
    params::{self, Group, Param},
};

/// Names of the cache's tensors: keys `[N, D]`, the class of each key `[N]`, weight and sharpness `[2]`.
pub const KEYS: &str = "cache.keys";
const LABELS: &str = "cache.labels";
const ALPHA_BETA: &str = "cache.alpha_beta";

/// Name and shape of every tensor of a cache of `keys` keys of `width` values.
pub(super) fn tensors(keys: usize, width: usize) -> [(&'static str, Vec<usize>); 3] {
    [(KEYS, vec![keys, width]), (LABELS, vec![keys]), (ALPHA_BETA, vec![2])]
}

/// The tensors of a cache of `keys` `[N, D]` with `labels` `[N]`; the keys are learned if `group` says so.
pub fn params(keys: Vec<f32>, labels: &[u32], alpha: f64, beta: f64, group: Group) -> Result<Vec<Param>> {
    let width = keys.len() / labels.len().max(1);
    let classes = labels.iter().map(|&label| label as f32).collect();
    Ok(vec![
        Param::new(KEYS, &[labels.len(), width], keys, group)?,
        Param::new(LABELS, &[labels.len()], classes, Group::Fixed)?,
        Param::new(ALPHA_BETA, &[2], vec![alpha as f32, beta as f32], Group::Fixed)?,
    ])
}

/// The same learned values with another weight and sharpness.
pub fn with_alpha_beta(mut params: Vec<Param>, alpha: f64, beta: f64) -> Vec<Param> {
    for param in params.iter_mut().filter(|param| param.name == ALPHA_BETA) {
        param.values = vec![alpha as f32, beta as f32];
    }
    params
}

/// The classes of the keys `[N]`, checked against the number of `classes`.
///
/// # Errors
/// A label is no class, or weight or sharpness is not above 0.
pub fn labels(params: &[Param], classes: usize) -> Result<Vec<u32>> {
    let alpha_beta = &params::find(params, ALPHA_BETA)?.values;
    if let Some(value) = alpha_beta.iter().find(|value| **value <= 0.) {
        return Err(Error::invalid(ALPHA_BETA, format!("{value} is not above 0")));
    }
    let label = |&value: &f32| {
        let sound = value >= 0. && value.fract() == 0. && (value as usize) < classes;
        if sound {
            Ok(value as u32)
        } else {
            Err(Error::invalid(LABELS, format!("{value} is none of {classes} classes")))
        }
    };
    params::find(params, LABELS)?.values.iter().map(label).collect()
}

/// Logits `[m, C]` with the cache's added, for features `[m, D]`; `labels` are `u32`, `[N]`.
pub(super) fn forward(
    logits: &Tensor,
    features: &Tensor,
    keys: &Tensor,
    labels: &Tensor,
    [alpha, beta]: [f64; 2],
) -> Result<Tensor, Fault> {
    let affinity = unit_rows(features)?.matmul(&keys.t()?)?;
    let weights = affinity.affine(beta, -beta)?.exp()?.affine(alpha, 0.)?;
    Ok(logits.index_add(labels, &weights, 1)?)
}

/// Weight and sharpness.
///
/// # Errors
/// They are not among the values.
pub fn alpha_beta(params: &[Param]) -> Result<[f64; 2]> {
    match params::find(params, ALPHA_BETA)?.values[..] {
        [alpha, beta] => Ok([f64::from(alpha), f64::from(beta)]),
        _ => Err(Error::invalid(ALPHA_BETA, "not two values")),
    }
}
