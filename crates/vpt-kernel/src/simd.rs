//! The few vector operations the kernels need, for each instruction set, and the choice between the sets.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::Portable;

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
/// A vector is made by [`Simd::splat`], [`Simd::zero`] and the loads alone, whose callers promise that the CPU has the
/// instruction set. What works on vectors only is safe for that reason: its argument shows that the instructions are there.
/// The set's extra instructions for bfloat16 ([`Simd::dot`], [`Simd::narrow`], [`Simd::pair`]) are promised anew, since
/// sets with and without them share one type of vector.
pub(crate) trait Simd {
    /// The vector register.
    type V: Copy;
    /// Floats in a vector, at most [`LANES_MAX`].
    const LANES: usize;
    /// Rows of a register tile two vectors wide in a matrix product.
    const TILE_ROWS: usize;
    /// Rows of a register tile three vectors wide; 0: not used.
    const TILE_ROWS_OF_3: usize = 0;

    /// `x` in every lane.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    unsafe fn splat(x: f32) -> Self::V;
    /// The [`Simd::LANES`] floats at `p`.
    ///
    /// # Safety
    /// They may be read; the CPU has the instruction set.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Writes all lanes to `p`.
    ///
    /// # Safety
    /// [`Simd::LANES`] floats may be written there.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// The first `n < LANES` floats at `p`, zeros behind.
    ///
    /// # Safety
    /// `n` floats may be read, and `n < LANES`; the CPU has the instruction set.
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V;
    /// Writes the first `n < LANES` lanes only.
    ///
    /// # Safety
    /// `n` floats may be written, and `n < LANES`.
    unsafe fn store_first(p: *mut f32, v: Self::V, n: usize);
    fn add(a: Self::V, b: Self::V) -> Self::V;
    fn sub(a: Self::V, b: Self::V) -> Self::V;
    fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `1 / a` to 2 units in the last place, for normal `a`.
    fn reciprocal(a: Self::V) -> Self::V;
    /// `a * b + c`.
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn max(a: Self::V, b: Self::V) -> Self::V;
    fn min(a: Self::V, b: Self::V) -> Self::V;
    fn abs(a: Self::V) -> Self::V;
    /// `a` where `x` is negative, else `b`.
    fn if_negative(x: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// Nearest integer.
    fn round(a: Self::V) -> Self::V;
    /// 2 to the power of an integral `a` in -126..=127.
    fn exp2_integral(a: Self::V) -> Self::V;
    /// Asks for the cache line at `p`, which need not be valid.
    fn prefetch(p: *const f32);
    fn sum(a: Self::V) -> f32;
    fn largest(a: Self::V) -> f32;
    /// Of each word the bfloat16 in its lower half, as f32.
    fn lower(a: Self::V) -> Self::V;
    /// Of each word the bfloat16 in its upper half, as f32.
    fn upper(a: Self::V) -> Self::V;

    /// `a * b + c` for words of two bfloat16: c plus both products.
    ///
    /// # Safety
    /// The CPU has the instruction set, that for bfloat16 included.
    #[inline(always)]
    unsafe fn dot(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        let upper = Self::fma(Self::upper(a), Self::upper(b), c);
        Self::fma(Self::lower(a), Self::lower(b), upper)
    }

    /// Words of two bfloat16, rounded from neighbours: those of `a`, then those of `b`.
    ///
    /// # Safety
    /// As for [`Simd::dot`].
    #[inline(always)]
    unsafe fn narrow(a: Self::V, b: Self::V) -> Self::V {
        let mut values = [0.0; 2 * LANES_MAX];
        // SAFETY: the array has room for two vectors, `a` shows that there are the instructions.
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
    ///
    /// # Safety
    /// As for [`Simd::dot`].
    #[inline(always)]
    unsafe fn pair(lower: Self::V, upper: Self::V) -> Self::V {
        let (mut a, mut b) = ([0.0; LANES_MAX], [0.0; LANES_MAX]);
        // SAFETY: each array has room for a vector, `lower` shows that there are the instructions.
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
    ///
    /// # Safety
    /// They may be read; the CPU has the instruction set.
    #[inline(always)]
    unsafe fn widen(p: *const u16) -> Self::V {
        let mut values = [0.0; LANES_MAX];
        for i in 0..Self::LANES {
            // SAFETY: the caller lets `LANES` numbers be read.
            values[i] = unsafe { f32::from_bits(u32::from(*p.add(i)) << 16) };
        }
        // SAFETY: the array holds a vector; the caller promises the instructions.
        unsafe { Self::load(values.as_ptr()) }
    }

    /// From words of two bfloat16 of row a and words of row b, the words that hold one of each: a's in the lower half,
    /// b's in the upper, in the order of the row.
    #[inline(always)]
    fn mix(a: Self::V, b: Self::V) -> [Self::V; 2] {
        let (mut x, mut y, mut mixed) = ([0.0; LANES_MAX], [0.0; LANES_MAX], [0.0; 2 * LANES_MAX]);
        // SAFETY: `x` and `y` have room for a vector, `mixed` for two; `a` shows that there are the instructions.
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
    ///
    /// # Safety
    /// The words of rows `from_stride` apart may be read, as many of the other shape written, `to_stride` apart; the shape is
    /// as said; the CPU has the instruction set.
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, shape: (usize, usize), to: *mut f32, to_stride: usize) {
        for i in 0..shape.0 {
            for j in 0..shape.1 {
                // SAFETY: word j of row i is one of those that the caller lets be read, and so for writing.
                unsafe { *to.add(j * to_stride + i) = *from.add(i * from_stride + j) }
            }
        }
    }

    /// Zero in every lane.
    ///
    /// # Safety
    /// The CPU has the instruction set.
    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: the caller promises the instructions.
        unsafe { Self::splat(0.0) }
    }

    /// `e^x` to 2 units in the last place; x is clamped to the range of normal results.
    #[inline(always)]
    fn exp(x: Self::V) -> Self::V {
        // Cody-Waite: x = n ln 2 + r, |r| <= ln(2)/2, e^r by its Taylor series to r^7 (next term below 1e-8).
        // SAFETY: constants need the instructions, and `x` shows that they are there.
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

/// Methods of [`Simd`] whose intrinsics work on registers alone.
#[cfg(target_arch = "x86_64")]
macro_rules! on_registers {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),*) -> $out:ty { $($body:tt)* })*) => {$(
        $(#[$meta])*
        #[inline(always)]
        fn $name($($arg: $ty),*) -> $out {
            // SAFETY: no memory is touched, and a vector exists only where the CPU has the instructions, see `Simd`.
            unsafe { $($body)* }
        }
    )*};
}
#[cfg(target_arch = "x86_64")]
use on_registers;

/// The most lanes a vector has.
pub(crate) const LANES_MAX: usize = 16;

/// Two values rounded to bfloat16 in one word.
#[inline(always)]
fn word(lower: f32, upper: f32) -> f32 {
    let bits = |x| u32::from(half::bf16::from_f32(x).to_bits());
    f32::from_bits(bits(lower) | bits(upper) << 16)
}

/// The first `min(n, LANES)` floats at `p`, zeros behind.
///
/// # Safety
/// They may be read (at `n = 0`, `p` is not looked at); the CPU has the instruction set.
#[inline(always)]
pub(crate) unsafe fn load_at_most<S: Simd>(p: *const f32, n: usize) -> S::V {
    // SAFETY: the caller's promise; `load` is taken from `LANES` floats on, `load_first` below.
    unsafe {
        match n {
            0 => S::zero(),
            n if n >= S::LANES => S::load(p),
            n => S::load_first(p, n),
        }
    }
}

/// The first `n <= LANES` floats at `p`, zeros behind.
///
/// # Safety
/// They may be read, and `n <= LANES`; the CPU has the instruction set.
#[inline(always)]
pub(crate) unsafe fn load<S: Simd>(p: *const f32, n: usize) -> S::V {
    // SAFETY: the caller's promise; where `n` is not `LANES` it is less.
    unsafe { if n == S::LANES { S::load(p) } else { S::load_first(p, n) } }
}

/// Writes the first `n <= LANES` lanes.
///
/// # Safety
/// As many floats may be written at `p`, and `n <= LANES`.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd>(p: *mut f32, v: S::V, n: usize) {
    // SAFETY: the caller's promise; where `n` is not `LANES` it is less.
    unsafe { if n == S::LANES { S::store(p, v) } else { S::store_first(p, v, n) } }
}

/// Runs the body for each vector of a row of `d` values, with its offset and its number of lanes, `1..=LANES`, which never reach
/// behind `d`: a body that loads and stores `n` lanes at offset `i` stays inside a row of `d` values. A macro, because the
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
