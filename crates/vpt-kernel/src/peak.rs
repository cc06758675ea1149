//! Peak rate of a core: multiply-adds on registers alone, in chains that do not wait for each other.

use super::simd::Simd;
use super::{Precision, dispatched};

/// Chains side by side: more than latency times throughput of any CPU the kernels are for, and few enough for its registers.
const CHAINS: usize = 12;

/// Does `rounds` rounds of multiply-adds in `precision` on the calling thread; returns the floating point operations done, two
/// for a multiply and an add.
pub fn multiply_adds(rounds: usize, precision: Precision) -> f64 {
    let mut done = 0.0;
    run(rounds, precision == Precision::Bf16, &mut done);
    done
}

dispatched! {
    pairs fn run(rounds: usize, pairs: bool, done: &mut f64) = run_body
}

/// # Safety
/// `S` is available.
#[inline(always)]
unsafe fn run_body<S: Simd>(rounds: usize, pairs: bool, done: &mut f64) {
    // Read from memory that the compiler knows nothing of, or it would compute the result beforehand.
    let values = std::hint::black_box([0.5_f32; 16]);
    // SAFETY: the array holds as many values as the longest vector; the caller promises `S`.
    unsafe {
        let (a, b) = (S::load(values.as_ptr()), S::splat(values[1]));
        let mut sums = [S::zero(); CHAINS];
        macro_rules! rounds {
            ($multiply_add:expr) => {
                for _ in 0..rounds {
                    for chain in 0..CHAINS {
                        sums[chain] = $multiply_add(a, b, sums[chain]);
                    }
                }
            };
        }
        if pairs {
            rounds!(S::dot)
        } else {
            rounds!(S::fma)
        }
        let mut sum = S::zero();
        for chain in sums {
            sum = S::add(sum, chain);
        }
        std::hint::black_box(S::sum(sum));
    }
    let values = if pairs { 2 } else { 1 };
    *done = (rounds * CHAINS * S::LANES * 2 * values) as f64;
}
