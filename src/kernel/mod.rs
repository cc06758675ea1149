//! CPU kernels behind safe functions: matrix products with packed weights, attention, LayerNorm, GroupNorm, GELU, and
//! their VJPs.
//!
//! This is the only module with `unsafe` code. Every kernel is written once, generic over `simd::Simd`, and compiled for
//! each instruction set; the set is chosen at run time (AVX-512, AVX2 with FMA, portable) and can be forced with the
//! environment variable `VPT_KERNEL=avx512|avx2|portable`. Safe entry points check every length; the loops behind them
//! rely on those checks.
//!
//! All kernels run on the calling thread. Who wants parallelism gives each thread its own images
//! ([`crate::backbone::vit`]), which keeps sums in a fixed order and needs no synchronisation inside a step.

#![allow(
    unsafe_code,
    reason = "SIMD intrinsics and register-tiled loops over checked ranges; see each `SAFETY` comment"
)]
#![allow(clippy::inline_always, reason = "generic bodies must be inlined where the instruction set is enabled")]
#![allow(clippy::needless_range_loop, reason = "constant indices keep register tiles in registers")]
#![allow(clippy::needless_pass_by_value, reason = "a writable view is given away")]

pub mod activation;
pub mod attention;
mod buffer;
pub mod focal;
pub mod group_norm;
pub mod matmul;
pub mod norm;
pub mod resample;
mod simd;
#[cfg(test)]
pub(crate) mod testing;

pub use activation::Activation;
pub use attention::{Attention, AttentionVjp};
pub use buffer::{Grow, row_stride};
pub use focal::focal_background;
pub use group_norm::{GroupNorm, Runs};
pub use matmul::{DEPTH, Init, Left, Mat, MatMut, PackedRows, Panels, Part, matmul, matmul_activate, matmul_scale};
pub use norm::{normalize, normalize_vjp};
pub use simd::{Isa, isa};

/// Defines a function that is compiled once per instruction set from one generic body and picks the right one at run time.
macro_rules! dispatched {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        fn $name($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) {
                    // SAFETY: the instructions are enabled here, and `isa()` returned Avx512 only because the CPU has them.
                    unsafe { $body::<$crate::kernel::simd::Avx512>($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) {
                    // SAFETY: as above, for AVX2 and FMA.
                    unsafe { $body::<$crate::kernel::simd::Avx2>($($arg),*) }
                }
                match $crate::kernel::isa() {
                    // SAFETY: detected at run time.
                    $crate::kernel::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: detected at run time.
                    $crate::kernel::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::kernel::Isa::Portable => {}
                }
            }
            // SAFETY: the portable form uses no special instructions; the caller has checked the lengths.
            unsafe { $body::<$crate::kernel::simd::Portable>($($arg),*) }
        }
    };
}
pub(crate) use dispatched;
