//! Threads that help one another with single products, where there are fewer images than threads.
//!
//! A product is then cut by columns of its result. Which thread computes a column changes none of its sums, so results are
//! those of one thread to the last bit.

use std::cell::Cell;

thread_local! {
    static SIZE: Cell<usize> = const { Cell::new(1) };
}

/// Runs `work` so that the products it computes on this thread are shared by `threads` threads, itself among them.
pub fn with_team<T>(threads: usize, work: impl FnOnce() -> T) -> T {
    /// Sets the size back, whatever way `work` ends.
    struct Before(usize);
    impl Drop for Before {
        fn drop(&mut self) {
            SIZE.set(self.0);
        }
    }
    let _before = Before(SIZE.replace(threads.max(1)));
    work()
}

/// Threads that share this thread's products.
pub(super) fn size() -> usize {
    SIZE.get()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, Init, Mat, MatMut, Panels, Precision, matmul, matmul_activate, matmul_scale};
    use vpt_base::testing::random;

    /// All kinds of products of a `[70, k]` by a `[k, n]` matrix, one behind the other.
    fn products(k: usize, n: usize, precision: Precision) -> Vec<f32> {
        let m = 70;
        let (a, b, bias) = (random(1, m * k), random(2, k * n), random(3, n));
        let a = Mat::new(&a, m, k, k);
        let (panels, other) =
            (Panels::pack_as(Mat::new(&b, k, n, n), precision), Panels::pack_as(Mat::new(&b, n, k, k), precision));
        let stride = n + 5;
        let mut parts = vec![random(4, m * stride); 6];
        let factor = random(5, m * stride);
        let [plain, added, transposed, activated, derivative, scaled] = &mut parts[..] else { unreachable!() };
        let view = |data| MatMut::new(data, m, n, stride);
        matmul(a, &panels, view(plain), Init::Bias(&bias));
        matmul(a, &panels, view(added), Init::AddBias(&bias));
        matmul(a, other.t(), view(transposed), Init::Zero);
        matmul_activate(a, &panels, view(activated), &bias, Activation::Gelu, Some(view(derivative)));
        matmul_scale(a, &panels, view(scaled), Mat::new(&factor, m, n, stride));
        parts.concat()
    }

    #[test]
    #[cfg_attr(miri, ignore = "under Tree Borrows Miri stops at the end of rayon's own scope")]
    fn a_team_computes_what_one_thread_does_to_the_last_bit() {
        for precision in [Precision::F32, Precision::Bf16] {
            for (k, n) in [(400, 770), (770, 400), (900, 96)] {
                let alone = products(k, n, precision);
                for threads in [2, 3, 7] {
                    let team = with_team(threads, || products(k, n, precision));
                    assert!(alone.iter().zip(&team).all(|(a, b)| a.to_bits() == b.to_bits()), "{k} x {n}, {threads}");
                }
            }
        }
        assert_eq!(size(), 1);
    }
}
