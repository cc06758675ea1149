//! Helpers for tests of numeric code: seeded random values, closeness, central differences.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// `n` seeded values, uniform in -1..1.
pub fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// # Panics
/// If `got` is further than `tolerance` from `want`.
#[track_caller]
pub fn assert_close(got: f32, want: f64, tolerance: f64) {
    assert!((f64::from(got) - want).abs() <= tolerance, "got {got}, want {want} within {tolerance}");
}

/// The gradient of `value` at `x`, in f64.
pub fn central_differences(x: &[f64], value: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let h = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let at = x[i];
            x[i] = at + h;
            let up = value(&x);
            x[i] = at - h;
            let down = value(&x);
            x[i] = at;
            (up - down) / (2.0 * h)
        })
        .collect()
}
