//! The few vector operations the kernels need, for each instruction set, and the choice between the sets.

use std::sync::OnceLock;

/// An instruction set the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 F, BW, DQ and VL, and its products of bfloat16.
    Avx512Bf16,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX2 and FMA.
    Avx2,
    /// No assumptions; the compiler vectorises what it can.
    Portable,
}

/// The instruction set in use: the best this CPU has, or the one `VPT_KERNEL` names if the CPU has it.
pub fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        let best = detect();
        match std::env::var("VPT_KERNEL").as_deref() {
            Ok("portable") => Isa::Portable,
            Ok("avx2") if best != Isa::Portable => Isa::Avx2,
            Ok("avx512") if best == Isa::Avx512Bf16 => Isa::Avx512,
            _ => best,
        }
    })
}

fn detect() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if avx512 && avx2 {
            return if is_x86_feature_detected!("avx512bf16") { Isa::Avx512Bf16 } else { Isa::Avx512 };
        }
        if avx2 {
            return Isa::Avx2;
        }
    }
    Isa::Portable
}

/// A vector of [`Simd::LANES`] floats and what can be done with it.
///
/// # Safety
/// All methods require that the CPU has the instruction set, and those with pointers that the lanes they touch lie inside
/// one allocation.
pub(crate) trait Simd {
    /// The vector register.
    type V: Copy;
    /// Floats in a vector.
    const LANES: usize;
    /// Rows of a register tile two vectors wide in a matrix product.
    const TILE_ROWS: usize;
    /// Rows of a register tile three vectors wide; 0: not used.
    const TILE_ROWS_OF_3: usize = 0;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// The first `n < LANES` floats at `p`, zeros behind.
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V;
    /// Writes the first `n < LANES` lanes only.
    unsafe fn store_first(p: *mut f32, v: Self::V, n: usize);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `1 / a` to 2 units in the last place, for normal `a`.
    unsafe fn reciprocal(a: Self::V) -> Self::V;
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn abs(a: Self::V) -> Self::V;
    /// `a` where `x` is negative, else `b`.
    unsafe fn if_negative(x: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// Nearest integer.
    unsafe fn round(a: Self::V) -> Self::V;
    /// 2 to the power of an integral `a` in -126..=127.
    unsafe fn exp2_integral(a: Self::V) -> Self::V;
    /// Asks for the cache line at `p`, which need not be valid.
    fn prefetch(p: *const f32);
    unsafe fn sum(a: Self::V) -> f32;
    unsafe fn largest(a: Self::V) -> f32;
    /// Of each word the bfloat16 in its lower half, as f32.
    unsafe fn lower(a: Self::V) -> Self::V;
    /// Of each word the bfloat16 in its upper half, as f32.
    unsafe fn upper(a: Self::V) -> Self::V;

    /// `a * b + c` for words of two bfloat16: c plus both products.
    #[inline(always)]
    unsafe fn dot(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe {
            let upper = Self::fma(Self::upper(a), Self::upper(b), c);
            Self::fma(Self::lower(a), Self::lower(b), upper)
        }
    }

    /// Words of two bfloat16, rounded from neighbours: those of `a`, then those of `b`.
    #[inline(always)]
    unsafe fn narrow(a: Self::V, b: Self::V) -> Self::V {
        let mut values = [0.0; 2 * LANES_MAX];
        unsafe {
            Self::store(values.as_mut_ptr(), a);
            Self::store(values.as_mut_ptr().add(Self::LANES), b);
            for i in 0..Self::LANES {
                values[i] = word(values[2 * i], values[2 * i + 1]);
            }
            Self::load(values.as_ptr())
        }
    }

    /// Words of two bfloat16, rounded from `lower` and `upper`.
    #[inline(always)]
    unsafe fn pair(lower: Self::V, upper: Self::V) -> Self::V {
        let (mut a, mut b) = ([0.0; LANES_MAX], [0.0; LANES_MAX]);
        unsafe {
            Self::store(a.as_mut_ptr(), lower);
            Self::store(b.as_mut_ptr(), upper);
            for i in 0..Self::LANES {
                a[i] = word(a[i], b[i]);
            }
            Self::load(a.as_ptr())
        }
    }

    /// The values of [`Simd::LANES`] bfloat16 numbers at `p`.
    #[inline(always)]
    unsafe fn widen(p: *const u16) -> Self::V {
        let mut values = [0.0; LANES_MAX];
        for i in 0..Self::LANES {
            values[i] = unsafe { f32::from_bits(u32::from(*p.add(i)) << 16) };
        }
        unsafe { Self::load(values.as_ptr()) }
    }

    /// From words of two bfloat16 of row a and words of row b, the words that hold one of each: a's in the lower half,
    /// b's in the upper, in the order of the row.
    #[inline(always)]
    unsafe fn mix(a: Self::V, b: Self::V) -> [Self::V; 2] {
        let (mut x, mut y, mut mixed) = ([0.0; LANES_MAX], [0.0; LANES_MAX], [0.0; 2 * LANES_MAX]);
        unsafe {
            Self::store(x.as_mut_ptr(), a);
            Self::store(y.as_mut_ptr(), b);
            for i in 0..Self::LANES {
                let (a, b) = (x[i].to_bits(), y[i].to_bits());
                mixed[2 * i] = f32::from_bits(a & 0xFFFF | b << 16);
                mixed[2 * i + 1] = f32::from_bits(a >> 16 | b & 0xFFFF_0000);
            }
            [Self::load(mixed.as_ptr()), Self::load(mixed.as_ptr().add(Self::LANES))]
        }
    }

    /// Reads `shape.0` rows of `shape.1` words, neither more than [`Simd::LANES`], and writes them as columns.
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, shape: (usize, usize), to: *mut f32, to_stride: usize) {
        for i in 0..shape.0 {
            for j in 0..shape.1 {
                unsafe { *to.add(j * to_stride + i) = *from.add(i * from_stride + j) }
            }
        }
    }

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        unsafe { Self::splat(0.0) }
    }

    /// `e^x` to 2 units in the last place; x is clamped to the range of normal results.
    #[inline(always)]
    unsafe fn exp(x: Self::V) -> Self::V {
        // Cody-Waite: x = n ln 2 + r, |r| <= ln(2)/2, e^r by its Taylor series to r^7 (next term below 1e-8).
        unsafe {
            // The variable comes second: max and min return their second operand on NaN, so that NaN stays NaN.
            let x = Self::min(Self::splat(88.3), Self::max(Self::splat(-87.3), x));
            let n = Self::round(Self::mul(x, Self::splat(std::f32::consts::LOG2_E)));
            // The upper part of ln 2 has few digits, so that n * upper is exact.
            let r = Self::fma(n, Self::splat(-355.0 / 512.0), x);
            let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.0 / 5040.0);
            for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
                p = Self::fma(p, r, Self::splat(c));
            }
            Self::mul(p, Self::exp2_integral(n))
        }
    }
}

/// The most lanes a vector has.
pub(crate) const LANES_MAX: usize = 16;

/// Two values rounded to bfloat16 in one word.
#[inline(always)]
fn word(lower: f32, upper: f32) -> f32 {
    let bits = |x| u32::from(half::bf16::from_f32(x).to_bits());
    f32::from_bits(bits(lower) | bits(upper) << 16)
}

/// The first `min(n, LANES)` floats at `p`, zeros behind.
#[inline(always)]
pub(crate) unsafe fn load_at_most<S: Simd>(p: *const f32, n: usize) -> S::V {
    unsafe {
        match n {
            0 => S::zero(),
            n if n >= S::LANES => S::load(p),
            n => S::load_first(p, n),
        }
    }
}

/// The first `n <= LANES` floats at `p`, zeros behind.
#[inline(always)]
pub(crate) unsafe fn load<S: Simd>(p: *const f32, n: usize) -> S::V {
    unsafe { if n == S::LANES { S::load(p) } else { S::load_first(p, n) } }
}

/// Writes the first `n <= LANES` lanes.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd>(p: *mut f32, v: S::V, n: usize) {
    unsafe { if n == S::LANES { S::store(p, v) } else { S::store_first(p, v, n) } }
}

/// Runs the body for each vector of a row of `d` values, with its offset and its number of lanes. A macro, because the
/// body of a closure is compiled without the instruction set of the function around it unless it happens to be inlined.
macro_rules! vectors {
    ($S:ty, $d:expr, |$i:ident, $n:ident| $body:expr) => {{
        let d = $d;
        let mut $i = 0;
        while $i + <$S>::LANES <= d {
            let $n = <$S>::LANES;
            $body;
            $i += <$S>::LANES;
        }
        if $i < d {
            let $n = d - $i;
            $body;
        }
    }};
}
pub(crate) use vectors;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    #[allow(clippy::wildcard_imports, reason = "three dozen intrinsics, each named where it is used")]
    use std::arch::x86_64::*;

    /// 16 lanes; with the instructions for bfloat16 or without.
    pub(crate) struct Avx512<const BF16: bool>;
    /// 8 lanes.
    pub(crate) struct Avx2;

    impl<const BF16: bool> Simd for Avx512<BF16> {
        type V = __m512;
        const LANES: usize = 16;
        const TILE_ROWS: usize = 14;
        const TILE_ROWS_OF_3: usize = 9;

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m512) {
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn load_first(p: *const f32, n: usize) -> __m512 {
            unsafe { _mm512_maskz_loadu_ps((1u16 << n) - 1, p) }
        }
        #[inline(always)]
        unsafe fn store_first(p: *mut f32, v: __m512, n: usize) {
            unsafe { _mm512_mask_storeu_ps(p, (1u16 << n) - 1, v) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn reciprocal(a: __m512) -> __m512 {
            // 14 bits and one step of Newton's iteration: a division takes 16 cycles.
            unsafe {
                let r = _mm512_rcp14_ps(a);
                let error = _mm512_fnmadd_ps(a, r, _mm512_set1_ps(1.0));
                _mm512_fmadd_ps(r, error, r)
            }
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn max(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn min(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn abs(a: __m512) -> __m512 {
            unsafe { _mm512_abs_ps(a) }
        }
        #[inline(always)]
        unsafe fn if_negative(x: __m512, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_setzero_ps()), b, a) }
        }
        #[inline(always)]
        unsafe fn round(a: __m512) -> __m512 {
            unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        }
        #[inline(always)]
        unsafe fn exp2_integral(a: __m512) -> __m512 {
            unsafe {
                let n = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
                _mm512_castsi512_ps(_mm512_slli_epi32::<23>(n))
            }
        }
        #[inline(always)]
        fn prefetch(p: *const f32) {
            // SAFETY: a hint that never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn sum(a: __m512) -> f32 {
            unsafe { _mm512_reduce_add_ps(a) }
        }
        #[inline(always)]
        unsafe fn largest(a: __m512) -> f32 {
            unsafe { _mm512_reduce_max_ps(a) }
        }
        #[inline(always)]
        unsafe fn lower(a: __m512) -> __m512 {
            unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(a))) }
        }
        #[inline(always)]
        unsafe fn upper(a: __m512) -> __m512 {
            unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_srli_epi32::<16>(_mm512_castps_si512(a)))) }
        }
        #[inline(always)]
        unsafe fn dot(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe {
                if BF16 {
                    return _mm512_dpbf16_ps(c, bfloat16(a), bfloat16(b));
                }
                let upper = Self::fma(Self::upper(a), Self::upper(b), c);
                Self::fma(Self::lower(a), Self::lower(b), upper)
            }
        }
        #[inline(always)]
        unsafe fn narrow(a: __m512, b: __m512) -> __m512 {
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
            unsafe {
                let (lower, upper) = (rounded(lower), _mm512_slli_epi32::<16>(rounded(upper)));
                _mm512_castsi512_ps(_mm512_or_si512(lower, upper))
            }
        }
        #[inline(always)]
        unsafe fn widen(p: *const u16) -> __m512 {
            unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))) }
        }
        #[inline(always)]
        unsafe fn mix(a: __m512, b: __m512) -> [__m512; 2] {
            unsafe {
                let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
                let (even, odd) = (_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b));
                let first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
                let second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
                [first, second].map(|order| _mm512_castsi512_ps(_mm512_permutex2var_epi64(even, order, odd)))
            }
        }
        #[inline(always)]
        unsafe fn transpose(
            from: *const f32,
            from_stride: usize,
            shape: (usize, usize),
            to: *mut f32,
            to_stride: usize,
        ) {
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
                        [
                            _mm512_shuffle_f32x4::<0x88>(r[c], r[4 + c]),
                            _mm512_shuffle_f32x4::<0x88>(r[8 + c], r[12 + c]),
                        ],
                        [
                            _mm512_shuffle_f32x4::<0xDD>(r[c], r[4 + c]),
                            _mm512_shuffle_f32x4::<0xDD>(r[8 + c], r[12 + c]),
                        ],
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
    unsafe fn bfloat16(a: __m512) -> __m512bh {
        // SAFETY: both are 512 bits without invalid values.
        unsafe { std::mem::transmute(a) }
    }

    /// The same bits as 16 words.
    #[inline(always)]
    unsafe fn words(a: __m512bh) -> __m512 {
        // SAFETY: as above.
        unsafe { std::mem::transmute(a) }
    }

    /// Each lane rounded to bfloat16, half way to even, in the lower half of its word; NaN stays NaN.
    #[inline(always)]
    unsafe fn rounded(a: __m512) -> __m512i {
        unsafe {
            let bits = _mm512_castps_si512(a);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
            _mm512_srli_epi32::<16>(_mm512_mask_blend_epi32(nan, up, quiet))
        }
    }

    impl Avx2 {
        #[inline(always)]
        unsafe fn mask(n: usize) -> __m256i {
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
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m256) {
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn load_first(p: *const f32, n: usize) -> __m256 {
            unsafe { _mm256_maskload_ps(p, Self::mask(n)) }
        }
        #[inline(always)]
        unsafe fn store_first(p: *mut f32, v: __m256, n: usize) {
            unsafe { _mm256_maskstore_ps(p, Self::mask(n), v) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn reciprocal(a: __m256) -> __m256 {
            unsafe { _mm256_div_ps(_mm256_set1_ps(1.0), a) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn max(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn min(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn abs(a: __m256) -> __m256 {
            unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
        }
        #[inline(always)]
        unsafe fn if_negative(x: __m256, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_blendv_ps(b, a, x) }
        }
        #[inline(always)]
        unsafe fn round(a: __m256) -> __m256 {
            unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        }
        #[inline(always)]
        unsafe fn exp2_integral(a: __m256) -> __m256 {
            unsafe {
                let n = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(n))
            }
        }
        #[inline(always)]
        fn prefetch(p: *const f32) {
            // SAFETY: a hint that never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn sum(a: __m256) -> f32 {
            unsafe {
                let s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let s = _mm_add_ps(s, _mm_movehl_ps(s, s));
                _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps::<1>(s, s)))
            }
        }
        #[inline(always)]
        unsafe fn largest(a: __m256) -> f32 {
            unsafe {
                let s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let s = _mm_max_ps(s, _mm_movehl_ps(s, s));
                _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps::<1>(s, s)))
            }
        }
        #[inline(always)]
        unsafe fn lower(a: __m256) -> __m256 {
            unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(a))) }
        }
        #[inline(always)]
        unsafe fn upper(a: __m256) -> __m256 {
            unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_srli_epi32::<16>(_mm256_castps_si256(a)))) }
        }
    }
}
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// Eight lanes in an array: what every CPU can do.
pub(crate) struct Portable;

impl Portable {
    #[inline(always)]
    fn map2(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> [f32; 8] {
        std::array::from_fn(|i| f(a[i], b[i]))
    }
}

impl Simd for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 8] {
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 8]) {
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> [f32; 8] {
        std::array::from_fn(|i| if i < n { unsafe { *p.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: [f32; 8], n: usize) {
        for (i, x) in v.into_iter().enumerate().take(n) {
            unsafe { *p.add(i) = x }
        }
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        Self::map2(a, b, |x, y| x + y)
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        Self::map2(a, b, |x, y| x - y)
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        Self::map2(a, b, |x, y| x * y)
    }
    #[inline(always)]
    unsafe fn reciprocal(a: [f32; 8]) -> [f32; 8] {
        a.map(f32::recip)
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        // Two roundings: a fused multiply-add without the instruction is a slow library call.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        Self::map2(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    unsafe fn min(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        Self::map2(a, b, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    unsafe fn abs(a: [f32; 8]) -> [f32; 8] {
        a.map(f32::abs)
    }
    #[inline(always)]
    unsafe fn if_negative(x: [f32; 8], a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if x[i] < 0.0 { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn round(a: [f32; 8]) -> [f32; 8] {
        // Adding and taking away 1.5 * 2^23 rounds to nearest without a library call; |a| is far below 2^22 here.
        a.map(|x| (x + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    unsafe fn exp2_integral(a: [f32; 8]) -> [f32; 8] {
        a.map(|x| f32::from_bits(((x as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn prefetch(_: *const f32) {}
    #[inline(always)]
    unsafe fn sum(a: [f32; 8]) -> f32 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }
    #[inline(always)]
    unsafe fn largest(a: [f32; 8]) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn lower(a: [f32; 8]) -> [f32; 8] {
        a.map(|x| f32::from_bits(x.to_bits() << 16))
    }
    #[inline(always)]
    unsafe fn upper(a: [f32; 8]) -> [f32; 8] {
        a.map(|x| f32::from_bits(x.to_bits() & 0xFFFF_0000))
    }
}
