//! [`Simd`] by AVX2 and FMA.

#[allow(clippy::wildcard_imports, reason = "three dozen intrinsics, each named where it is used")]
use std::arch::x86_64::*;

use super::{Simd, on_registers};

/// 8 lanes.
pub(crate) struct Avx2;

impl Avx2 {
    /// All bits in the first `n` lanes, none in the others.
    ///
    /// # Safety
    /// The CPU has AVX2.
    #[inline(always)]
    unsafe fn mask(n: usize) -> __m256i {
        // SAFETY: the caller promises the instructions.
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lanes)
        }
    }
}

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: the caller promises the instructions.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        // SAFETY: the caller lets eight floats be read, aligned or not, and promises the instructions.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        // SAFETY: the caller lets eight floats be written, aligned or not; `v` shows that there are the instructions.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> __m256 {
        // SAFETY: lanes outside the mask are not read, the others the caller lets be read; it promises the instructions.
        unsafe { _mm256_maskload_ps(p, Self::mask(n)) }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: __m256, n: usize) {
        // SAFETY: lanes outside the mask are not written, the others the caller lets be written; `v` shows that there are the
        // instructions.
        unsafe { _mm256_maskstore_ps(p, Self::mask(n), v) }
    }

    on_registers! {
        fn add(a: __m256, b: __m256) -> __m256 {
            _mm256_add_ps(a, b)
        }
        fn sub(a: __m256, b: __m256) -> __m256 {
            _mm256_sub_ps(a, b)
        }
        fn mul(a: __m256, b: __m256) -> __m256 {
            _mm256_mul_ps(a, b)
        }
        fn reciprocal(a: __m256) -> __m256 {
            _mm256_div_ps(_mm256_set1_ps(1.0), a)
        }
        fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
            _mm256_fmadd_ps(a, b, c)
        }
        fn max(a: __m256, b: __m256) -> __m256 {
            _mm256_max_ps(a, b)
        }
        fn min(a: __m256, b: __m256) -> __m256 {
            _mm256_min_ps(a, b)
        }
        fn abs(a: __m256) -> __m256 {
            _mm256_andnot_ps(_mm256_set1_ps(-0.0), a)
        }
        fn if_negative(x: __m256, a: __m256, b: __m256) -> __m256 {
            _mm256_blendv_ps(b, a, x)
        }
        fn round(a: __m256) -> __m256 {
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
        }
        fn exp2_integral(a: __m256) -> __m256 {
            let n = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(n))
        }
        fn sum(a: __m256) -> f32 {
            let s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let s = _mm_add_ps(s, _mm_movehl_ps(s, s));
            _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps::<1>(s, s)))
        }
        fn largest(a: __m256) -> f32 {
            let s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let s = _mm_max_ps(s, _mm_movehl_ps(s, s));
            _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps::<1>(s, s)))
        }
        fn lower(a: __m256) -> __m256 {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(a)))
        }
        fn upper(a: __m256) -> __m256 {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_srli_epi32::<16>(_mm256_castps_si256(a))))
        }
    }

    #[inline(always)]
    fn prefetch(p: *const f32) {
        // SAFETY: a hint that never faults, in an instruction of every x86-64 CPU.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
}
