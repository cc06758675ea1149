//! The focal loss of logits whose target is 0: almost all of a dense head's, a value for each token and class.

use super::dispatched;
use super::simd::{Simd, load, store, vectors};

/// Of each logit x, with `p = 1/(1 + exp(-x))`: `p² softplus(x)`, which is `-p² log(1 - p)`, and its derivative, written to
/// `derivative`. Returns the sum (Lin et al., "Focal Loss for Dense Object Detection", 2017, with gamma 2, unweighted).
///
/// # Panics
/// If the lengths differ.
pub fn focal_background(logits: &[f32], derivative: &mut [f32]) -> f32 {
    assert_eq!(logits.len(), derivative.len(), "focal loss lengths");
    let mut sum = 0.0;
    // SAFETY: the lengths are equal.
    unsafe { background(logits, derivative, &mut sum) };
    sum
}

dispatched! {
    /// # Safety
    /// The lengths are equal.
    unsafe fn background(logits: &[f32], derivative: &mut [f32], sum: &mut f32) = background_body
}

/// # Safety
/// The lengths are equal; `S` is available.
#[inline(always)]
unsafe fn background_body<S: Simd>(logits: &[f32], derivative: &mut [f32], sum: &mut f32) {
    let n = logits.len();
    // SAFETY: `vectors!` stays inside `n` values, of which either slice has as many; `last` has room for every vector. The caller
    // promises `S`.
    unsafe {
        let (x, d) = (logits.as_ptr(), derivative.as_mut_ptr());
        let one = S::splat(1.0);
        let mut total = S::zero();
        // Lanes behind the end hold -inf, whose loss is zero, in a copy.
        let mut last = [f32::NEG_INFINITY; 16];
        vectors!(S, n, |i, lanes| {
            let x = if lanes == S::LANES {
                load::<S>(x.add(i), lanes)
            } else {
                last[..lanes].copy_from_slice(&logits[i..]);
                S::load(last.as_ptr())
            };
            let u = S::exp(S::sub(S::zero(), S::abs(x)));
            let inverse = S::reciprocal(S::add(one, u));
            let small = S::mul(u, inverse);
            let (p, q) = (S::if_negative(x, small, inverse), S::if_negative(x, inverse, small));
            // log(1 + u) = 2 artanh(s), s = u / (2 + u) <= 1/3, by its series to s^15 (the next term is below 1e-9).
            let s = S::mul(u, S::reciprocal(S::add(S::splat(2.0), u)));
            let square = S::mul(s, s);
            let mut series = S::splat(2.0 / 15.0);
            for c in [2.0 / 13.0, 2.0 / 11.0, 2.0 / 9.0, 2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0, 2.0] {
                series = S::fma(series, square, S::splat(c));
            }
            let softplus = S::fma(series, s, S::max(S::zero(), x));
            let square = S::mul(p, p);
            total = S::fma(square, softplus, total);
            // d(p² softplus) = p³ + 2 p² q softplus
            let slope = S::mul(square, S::fma(S::add(q, q), softplus, p));
            store::<S>(d.add(i), slope, lanes);
        });
        *sum = S::sum(total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_base::testing::assert_close;

    #[test]
    fn loss_and_slope_are_exact_from_one_end_to_the_other() {
        let x: Vec<f32> = (-400..=400).map(|i| i as f32 * 0.1).chain([1e-6, -1e-6, 300.0, -300.0]).collect();
        let mut total = 0.0;
        for &x in &x {
            let mut slope = [0.0];
            let loss = focal_background(&[x], &mut slope);
            let wide = f64::from(x);
            let p = 1.0 / (1.0 + (-wide).exp());
            let q = 1.0 / (1.0 + wide.exp());
            let softplus = wide.max(0.0) + (-wide.abs()).exp().ln_1p();
            let (want, want_slope) = (p * p * softplus, p * p * (p + 2.0 * q * softplus));
            assert_close(loss, want, 1e-6 * want + 1e-37);
            assert_close(slope[0], want_slope, 2e-6 * want_slope + 1e-37);
            total += want;
        }
        let mut slopes = vec![0.0; x.len()];
        assert_close(focal_background(&x, &mut slopes), total, 1e-6 * total);
    }

    #[test]
    fn not_a_number_stays_one() {
        let mut slope = [0.0; 2];
        assert!(focal_background(&[f32::NAN, 1.0], &mut slope).is_nan() && slope[0].is_nan());
    }
}
