//! What makes logits of features, in a graph: linear and cosine heads, those of texts and label mappings among them, and
//! Tip-Adapter's cache. The temperature is folded into them.

use crate::graph::{Dim, Graph, Value, transposed};
use vpt_base::{
    Result,
    params::{self, Param},
};
use vpt_model::head::cache::{KEYS, alpha_beta, labels};

/// Keeps the length of a zero vector finite, as the heads do.
pub(crate) const EPSILON: f32 = 1e-12;

/// Logits `[B, C]` of features `[B, D]` by the head of these tensors, divided by `temperature`.
///
/// # Errors
/// A tensor is missing.
pub(crate) fn head(
    graph: &mut Graph,
    features: &Value,
    tensors: &[Param],
    classes: usize,
    temperature: f64,
) -> Result<Value> {
    graph.scope("head");
    let weight = params::find(tensors, "head.weight")?;
    let width = weight.shape[1];
    let of_classes = Dim::Named("classes");
    let by_class = [Dim::Fixed(width), of_classes];
    if let Ok(bias) = params::find(tensors, "head.bias") {
        let scaled = |values: &[f32]| values.iter().map(|&v| (f64::from(v) / temperature) as f32).collect::<Vec<_>>();
        let weight = scaled(&transposed(&weight.values, width));
        let weight = graph.of_task("head.weight", &by_class, &[width, classes], weight);
        let bias = graph.of_task("head.bias", &[of_classes], &[classes], scaled(&bias.values));
        let logits = graph.matmul(features, &weight);
        return Ok(graph.add(&logits, &bias));
    }
    let log_scale = f64::from(params::find(tensors, "head.log_scale")?.values[0]);
    let unit = unit_times(&weight.values, width, log_scale.exp() / temperature);
    let weight = graph.of_task("head.weight", &by_class, &[width, classes], transposed(&unit, width));
    let features = graph.unit_rows(features, EPSILON);
    let logits = graph.matmul(&features, &weight);
    let Ok(keys) = params::find(tensors, KEYS) else { return Ok(logits) };
    let [alpha, beta] = alpha_beta(tensors)?;
    let count = keys.shape[0];
    let mut votes = vec![0.; count * classes];
    for (key, label) in labels(tensors, classes)?.into_iter().enumerate() {
        votes[key * classes + label as usize] = (alpha / temperature) as f32;
    }
    // exp(-beta (1 - cos)): beta goes into the keys.
    let keys: Vec<f32> = keys.values.iter().map(|&key| (f64::from(key) * beta) as f32).collect();
    let keys_dims = [Dim::Fixed(width), Dim::Named("keys")];
    let keys = graph.of_task("cache.keys", &keys_dims, &[width, count], transposed(&keys, width));
    let beta = graph.of_task("cache.shift", &[], &[], vec![-beta as f32]);
    let votes = graph.of_task("cache.votes", &[Dim::Named("keys"), of_classes], &[count, classes], votes);
    let affinity = graph.matmul(&features, &keys);
    let affinity = graph.add(&affinity, &beta);
    let weights = graph.node("Exp", &[&affinity]);
    let of_cache = graph.matmul(&weights, &votes);
    Ok(graph.add(&logits, &of_cache))
}

/// Rows `[C, D]` at length `scale`.
pub(crate) fn unit_times(rows: &[f32], width: usize, scale: f64) -> Vec<f32> {
    let unit = |row: &[f32]| {
        let sum: f64 = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        let factor = scale / (sum + f64::from(EPSILON)).sqrt();
        row.iter().map(|&v| (f64::from(v) * factor) as f32).collect::<Vec<f32>>()
    };
    rows.chunks_exact(width).flat_map(unit).collect()
}

/// Probabilities `[B, C]` of logits: each by itself, or over all classes.
pub(crate) fn probabilities(graph: &mut Graph, logits: &Value, multilabel: bool) -> Value {
    if multilabel { graph.node("Sigmoid", &[logits]) } else { graph.softmax(logits) }
}
