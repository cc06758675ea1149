//! Activations kept for the VJP: in f32, or rounded to bfloat16 in half of the memory.
//!
//! In f32 the forward pass writes where the values stay. In bfloat16 it writes to a scratch buffer that stays in the cache,
//! [`Kept::keep`] rounds that, and [`Kept::read`] widens it again.

use std::ops::Range;

use super::simd::{Simd, load_at_most, store};
use super::{Grow, Precision, dispatched};

/// A buffer of kept values that only ever grows.
#[derive(Default)]
pub struct Kept {
    precision: Precision,
    wide: Vec<f32>,
    narrow: Vec<u16>,
}

impl Kept {
    /// An empty buffer of `precision`.
    pub fn new(precision: Precision) -> Self {
        Self { precision, ..Self::default() }
    }

    /// Makes room for `len` values in all: a buffer that grows piece by piece would leave holes in memory behind.
    pub fn expect(&mut self, len: usize) {
        match self.precision {
            Precision::F32 => self.wide.reserve_exact(len.saturating_sub(self.wide.len())),
            Precision::Bf16 => self.narrow.reserve_exact(len.saturating_sub(self.narrow.len())),
        }
    }

    /// Room to write the values at `range`; [`Self::keep`] must follow.
    pub fn room<'a>(&'a mut self, range: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a mut [f32] {
        match self.precision {
            Precision::F32 => &mut self.wide.grow(range.end)[range],
            Precision::Bf16 => scratch.grow(range.len()),
        }
    }

    /// Keeps what has been written to the room of `range`.
    ///
    /// # Panics
    /// If `scratch` is not the one that [`Self::room`] was called with.
    pub fn keep(&mut self, range: Range<usize>, scratch: &[f32]) {
        if self.precision == Precision::Bf16 {
            if self.narrow.len() < range.end {
                self.narrow.resize(range.end, 0);
            }
            narrow(&scratch[..range.len()], &mut self.narrow[range]);
        }
    }

    /// The values at `range`.
    ///
    /// # Panics
    /// If they were never kept.
    pub fn read<'a>(&'a self, range: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        match self.precision {
            Precision::F32 => &self.wide[range],
            Precision::Bf16 => {
                let values = scratch.grow(range.len());
                widen(&self.narrow[range], values);
                values
            }
        }
    }
}

dispatched! {
    /// Rounds `from` to bfloat16, half way to even.
    pairs fn narrow(from: &[f32], to: &mut [u16]) = narrow_body
}

/// # Safety
/// `S` is available.
#[inline(always)]
unsafe fn narrow_body<S: Simd>(from: &[f32], to: &mut [u16]) {
    assert_eq!(from.len(), to.len(), "as many values as room");
    let step = 2 * S::LANES;
    for (from, to) in from.chunks(step).zip(to.chunks_mut(step)) {
        // SAFETY: `lower` and `upper` are read from what the chunk has in its first and second vector. A whole chunk has room for a
        // vector of words, so has `all`. The caller promises `S`.
        unsafe {
            let lower = load_at_most::<S>(from.as_ptr(), from.len());
            let rest = from.len().saturating_sub(S::LANES);
            let upper = load_at_most::<S>(from.as_ptr().wrapping_add(S::LANES), rest);
            let words = S::narrow(lower, upper);
            if to.len() == step {
                S::store(to.as_mut_ptr().cast(), words);
            } else {
                let mut all = [0_u16; 2 * super::simd::LANES_MAX];
                S::store(all.as_mut_ptr().cast(), words);
                to.copy_from_slice(&all[..to.len()]);
            }
        }
    }
}

dispatched! {
    /// The values of bfloat16 numbers.
    fn widen(from: &[u16], to: &mut [f32]) = widen_body
}

/// # Safety
/// `S` is available.
#[inline(always)]
unsafe fn widen_body<S: Simd>(from: &[u16], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "as many values as room");
    for (from, to) in from.chunks(S::LANES).zip(to.chunks_mut(S::LANES)) {
        // SAFETY: whole vectors are read from a chunk of `LANES` numbers or from `all`, and as many values are written as the chunk
        // of `to` has, which is as long as that of `from`. The caller promises `S`.
        unsafe {
            if from.len() == S::LANES {
                S::store(to.as_mut_ptr(), S::widen(from.as_ptr()));
            } else {
                let mut all = [0_u16; super::simd::LANES_MAX];
                all[..from.len()].copy_from_slice(from);
                store::<S>(to.as_mut_ptr(), S::widen(all.as_ptr()), to.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use vpt_base::testing::random;

    #[test]
    fn values_come_back_as_the_format_holds_them() {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut values = random(3, 101);
            values[7] = f32::NAN;
            values[8] = -f32::INFINITY;
            values[9] = f32::MAX;
            values[10] = f32::from_bits(0x3F80_8000); // half way: to even
            values[11] = f32::from_bits(0x3F81_8000);
            let (mut kept, mut scratch) = (Kept::new(precision), Vec::new());
            for range in [0..40, 40..101] {
                kept.room(range.clone(), &mut scratch).copy_from_slice(&values[range.clone()]);
                kept.keep(range, &scratch);
            }
            let got = kept.read(3..101, &mut scratch);
            for (got, &value) in got.iter().zip(&values[3..]) {
                let want = if precision == Precision::F32 { value } else { bf16::from_f32(value).to_f32() };
                assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{got} {want}");
            }
        }
    }
}
