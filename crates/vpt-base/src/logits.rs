//! Rows of logits: the largest, the likeliest, their probabilities.

/// The class with the largest logit; of equal ones the lowest id. 0 for an empty row.
pub fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (class, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = class;
        }
    }
    best
}

/// The `k` most likely classes of one row of logits, most likely first, with their softmax probabilities when the logits are
/// divided by `temperature`.
pub fn top_k(logits: &[f32], k: usize, temperature: f64) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // A stable sort: equal logits stay in class order, as in `argmax`.
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order.truncate(k);
    order.into_iter().map(|class| (class, probability(logits, class, temperature))).collect()
}

/// The softmax probability of `class` when the logits are divided by `temperature`.
pub fn probability(logits: &[f32], class: usize, temperature: f64) -> f64 {
    (f64::from(logits[class]) / temperature - log_sum_exp(logits, temperature)).exp()
}

/// `ln Σ exp(logit / temperature)`, shifted by the maximum so that it cannot overflow.
pub fn log_sum_exp(logits: &[f32], temperature: f64) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max / temperature + logits.iter().map(|&logit| ((f64::from(logit) - max) / temperature).exp()).sum::<f64>().ln()
}
