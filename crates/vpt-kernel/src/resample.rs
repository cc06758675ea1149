//! Weighted sums of 8-bit values in fixed point: the inner loop of resizing an image.

#![allow(clippy::inline_always, reason = "the body must be compiled inside each dispatched form")]

use super::dispatched;
use super::simd::Simd;

/// Fractional bits of a weight: 32 bits less 8 for the value and 2 for sums that overshoot, as in Pillow.
pub const PRECISION: u32 = 32 - 8 - 2;

/// One half: the shift at the end rounds.
const HALF: i32 = 1 << (PRECISION - 1);

/// Values summed together. Their sums fit the registers of every instruction set.
const LANES: usize = 32;

/// `out[i] = Σ values[t * stride + i] * weights[t]` over the rows t of `values`, rounded and clipped to 8 bits. A weight of
/// one is `1 << PRECISION`.
///
/// # Panics
/// If the last row reaches behind the end of `values`.
pub fn weighted_sum(values: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) {
    let needed = weights.len().saturating_sub(1) * stride + out.len();
    assert!(needed <= values.len(), "weighted sum of {} rows at {stride} in {}", weights.len(), values.len());
    sum_rows(values, stride, weights, out);
}

dispatched! {
    fn sum_rows(values: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) = sum_rows_body
}

/// # Safety
/// None is needed by the body, which the compiler vectorises for `S`.
#[inline(always)]
unsafe fn sum_rows_body<S: Simd>(values: &[u8], stride: usize, weights: &[i32], out: &mut [u8]) {
    let (pieces, rest) = out.as_chunks_mut::<LANES>();
    let done = pieces.len() * LANES;
    for (i, piece) in pieces.iter_mut().enumerate() {
        let mut sums = [HALF; LANES];
        for (t, &weight) in weights.iter().enumerate() {
            let Some(row) = values[t * stride + i * LANES..].first_chunk::<LANES>() else { continue };
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * weight;
            }
        }
        *piece = sums.map(clip);
    }
    for (i, byte) in rest.iter_mut().enumerate() {
        let terms = weights.iter().enumerate().map(|(t, &weight)| i32::from(values[t * stride + done + i]) * weight);
        *byte = clip(terms.fold(HALF, |sum, term| sum + term));
    }
}

#[inline(always)]
fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_the_sum_in_wide_integers(
            rows in 1_usize..9, width in 0_usize..100, gap in 0_usize..5, seed: u64,
            weights in prop::collection::vec(-0.3..1.0_f64, 9),
        ) {
            let stride = width + gap;
            let mut values = vec![0; rows * stride];
            rand::RngCore::fill_bytes(&mut vpt_base::random::stream(seed, "test", 0, 0), &mut values);
            let total: f64 = weights[..rows].iter().map(|w| w.abs()).sum();
            let weights: Vec<i32> =
                weights[..rows].iter().map(|w| (w / total.max(1.0) * f64::from(1 << PRECISION)) as i32).collect();
            let mut out = vec![0; width];
            weighted_sum(&values, stride, &weights, &mut out);
            for (i, &byte) in out.iter().enumerate() {
                let terms = weights.iter().enumerate().map(|(t, &w)| i64::from(values[t * stride + i]) * i64::from(w));
                let expected = ((terms.sum::<i64>() + i64::from(HALF)) >> PRECISION).clamp(0, 255);
                prop_assert_eq!(i64::from(byte), expected);
            }
        }
    }

    #[test]
    #[should_panic(expected = "weighted sum")]
    fn rows_behind_the_end_are_refused() {
        weighted_sum(&[0; 10], 4, &[1, 1, 1], &mut [0; 3]);
    }
}
