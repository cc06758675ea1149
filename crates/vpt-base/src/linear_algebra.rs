//! Small linear algebra on rows of f32.

/// Scales every row of `[n, width]` to length 1.
pub fn normalize_l2(values: &mut [f32], width: usize) {
    for row in values.chunks_exact_mut(width.max(1)) {
        let length = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        if length > 0. {
            for v in row {
                *v = (f64::from(*v) / length) as f32;
            }
        }
    }
}
