//! [`Simd`] by AVX-512, with the instructions for bfloat16 or without.

#[allow(clippy::wildcard_imports, reason = "three dozen intrinsics, each named where it is used")]
use std::arch::x86_64::*;

use super::{Simd, on_registers};

/// 16 lanes; with the instructions for bfloat16 or without.
pub(crate) struct Avx512<const BF16: bool>;

impl<const BF16: bool> Simd for Avx512<BF16> {
    type V = __m512;
    const LANES: usize = 16;
    const TILE_ROWS: usize = 14;
    const TILE_ROWS_OF_3: usize = 9;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: the caller promises the instructions.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: the caller lets sixteen floats be read, aligned or not, and promises the instructions.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        // SAFETY: the caller lets sixteen floats be written, aligned or not; `v` shows that there are the instructions.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> __m512 {
        // SAFETY: lanes outside the mask are not read, the others the caller lets be read; it promises the instructions.
        unsafe { _mm512_maskz_loadu_ps((1u16 << n) - 1, p) }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: __m512, n: usize) {
        // SAFETY: lanes outside the mask are not written, the others the caller lets be written; `v` shows that there are the
        // instructions.
        unsafe { _mm512_mask_storeu_ps(p, (1u16 << n) - 1, v) }
    }

    on_registers! {
        fn add(a: __m512, b: __m512) -> __m512 {
            _mm512_add_ps(a, b)
        }
        fn sub(a: __m512, b: __m512) -> __m512 {
            _mm512_sub_ps(a, b)
        }
        fn mul(a: __m512, b: __m512) -> __m512 {
            _mm512_mul_ps(a, b)
        }
        fn reciprocal(a: __m512) -> __m512 {
            // 14 bits and one step of Newton's iteration: a division takes 16 cycles.
            let r = _mm512_rcp14_ps(a);
            let error = _mm512_fnmadd_ps(a, r, _mm512_set1_ps(1.0));
            _mm512_fmadd_ps(r, error, r)
        }
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            _mm512_fmadd_ps(a, b, c)
        }
        fn max(a: __m512, b: __m512) -> __m512 {
            _mm512_max_ps(a, b)
        }
        fn min(a: __m512, b: __m512) -> __m512 {
            _mm512_min_ps(a, b)
        }
        fn abs(a: __m512) -> __m512 {
            _mm512_abs_ps(a)
        }
        fn if_negative(x: __m512, a: __m512, b: __m512) -> __m512 {
            _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_setzero_ps()), b, a)
        }
        fn round(a: __m512) -> __m512 {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
        }
        fn exp2_integral(a: __m512) -> __m512 {
            let n = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(n))
        }
        fn sum(a: __m512) -> f32 {
            _mm512_reduce_add_ps(a)
        }
        fn largest(a: __m512) -> f32 {
            _mm512_reduce_max_ps(a)
        }
        fn lower(a: __m512) -> __m512 {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(a)))
        }
        fn upper(a: __m512) -> __m512 {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_srli_epi32::<16>(_mm512_castps_si512(a))))
        }
        fn mix(a: __m512, b: __m512) -> [__m512; 2] {
            let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
            let (even, odd) = (_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b));
            let first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
            let second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
            [first, second].map(|order| _mm512_castsi512_ps(_mm512_permutex2var_epi64(even, order, odd)))
        }
    }

    #[inline(always)]
    fn prefetch(p: *const f32) {
        // SAFETY: a hint that never faults, in an instruction of every x86-64 CPU.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn dot(a: __m512, b: __m512, c: __m512) -> __m512 {
        if BF16 {
            // SAFETY: the caller promises the instructions for bfloat16, which is what the set has with `BF16`.
            return unsafe { _mm512_dpbf16_ps(c, bfloat16(a), bfloat16(b)) };
        }
        let upper = Self::fma(Self::upper(a), Self::upper(b), c);
        Self::fma(Self::lower(a), Self::lower(b), upper)
    }
    #[inline(always)]
    unsafe fn narrow(a: __m512, b: __m512) -> __m512 {
        // SAFETY: no memory is touched; the caller promises the instructions, those for bfloat16 where they are used.
        unsafe {
            if BF16 {
                return words(_mm512_cvtne2ps_pbh(b, a));
            }
            let (a, b) = (_mm512_cvtepi32_epi16(rounded(a)), _mm512_cvtepi32_epi16(rounded(b)));
            _mm512_castsi512_ps(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b))
        }
    }
    #[inline(always)]
    unsafe fn pair(lower: __m512, upper: __m512) -> __m512 {
        // SAFETY: as in `narrow`.
        unsafe {
            if BF16 {
                // All of `lower`, then all of `upper`: one of each to a word.
                #[rustfmt::skip]
                let order = _mm512_set_epi16(
                    31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                    23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0,
                );
                let words = _mm512_castps_si512(words(_mm512_cvtne2ps_pbh(upper, lower)));
                return _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, words));
            }
            let (lower, upper) = (rounded(lower), _mm512_slli_epi32::<16>(rounded(upper)));
            _mm512_castsi512_ps(_mm512_or_si512(lower, upper))
        }
    }
    #[inline(always)]
    unsafe fn widen(p: *const u16) -> __m512 {
        // SAFETY: the caller lets sixteen numbers be read, which are 256 bits, aligned or not, and promises the instructions.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, shape: (usize, usize), to: *mut f32, to_stride: usize) {
        // SAFETY: row i is read for i < shape.0 only, and shape.1 <= 16 words of it; column j is written for j < shape.1 only, and
        // shape.0 <= 16 words of it: what the caller allows. It promises the instructions for what happens between.
        unsafe {
            let mut r = [_mm512_setzero_ps(); 16];
            for i in 0..16 {
                if i < shape.0 {
                    r[i] = super::load::<Self>(from.add(i * from_stride), shape.1);
                }
            }
            // Words, then pairs of words, then quarters of registers change places.
            let mut s = r;
            for i in 0..8 {
                s[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                s[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..4 {
                let wide = |k: usize| _mm512_castps_pd(s[4 * i + k]);
                r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(wide(0), wide(2)));
                r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(wide(0), wide(2)));
                r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(wide(1), wide(3)));
                r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(wide(1), wide(3)));
            }
            // r[4 g + c] holds in quarter q column 4 q + c of rows 4 g .. 4 g + 4.
            for c in 0..4 {
                let (low, high) = (
                    [_mm512_shuffle_f32x4::<0x88>(r[c], r[4 + c]), _mm512_shuffle_f32x4::<0x88>(r[8 + c], r[12 + c])],
                    [_mm512_shuffle_f32x4::<0xDD>(r[c], r[4 + c]), _mm512_shuffle_f32x4::<0xDD>(r[8 + c], r[12 + c])],
                );
                s[c] = _mm512_shuffle_f32x4::<0x88>(low[0], low[1]);
                s[8 + c] = _mm512_shuffle_f32x4::<0xDD>(low[0], low[1]);
                s[4 + c] = _mm512_shuffle_f32x4::<0x88>(high[0], high[1]);
                s[12 + c] = _mm512_shuffle_f32x4::<0xDD>(high[0], high[1]);
            }
            for j in 0..16 {
                if j < shape.1 {
                    super::store::<Self>(to.add(j * to_stride), s[j], shape.0);
                }
            }
        }
    }
}

/// The same bits as 32 bfloat16.
#[inline(always)]
fn bfloat16(a: __m512) -> __m512bh {
    // SAFETY: both are 512 bits without invalid values.
    unsafe { std::mem::transmute(a) }
}

/// The same bits as 16 words.
#[inline(always)]
fn words(a: __m512bh) -> __m512 {
    // SAFETY: both are 512 bits without invalid values.
    unsafe { std::mem::transmute(a) }
}

on_registers! {
    /// Each lane rounded to bfloat16, half way to even, in the lower half of its word; NaN stays NaN.
    fn rounded(a: __m512) -> __m512i {
        let bits = _mm512_castps_si512(a);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
        _mm512_srli_epi32::<16>(_mm512_mask_blend_epi32(nan, up, quiet))
    }
}
