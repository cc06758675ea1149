//! CPU kernels behind safe functions: matrix products with packed weights, attention, LayerNorm, GroupNorm, GELU, and
//! their VJPs.
//!
//! This is the only crate with `unsafe` code. Every kernel is written once, generic over `simd::Simd`, and compiled for
//! each instruction set; the set is chosen at run time (AVX-512 with bfloat16, AVX-512, AVX2 with FMA, portable) and can be
//! forced with the environment variable `VPT_KERNEL=avx512|avx2|portable`. Safe entry points check every length; the loops behind them
//! are `unsafe` and name what they rely on. The portable set runs under Miri, with smaller cases, in some minutes:
//! `VPT_KERNEL=portable MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-tree-borrows" cargo +nightly miri test -p vpt-kernel`.
//!
//! Kernels run on the calling thread. Who wants parallelism gives each thread its own images, as the vision tower does,
//! which keeps sums in a fixed order and needs no synchronisation inside a step. Only where there are fewer images than
//! threads are single products shared ([`with_team`]).

#![allow(
    unsafe_code,
    reason = "SIMD intrinsics and register-tiled loops over checked ranges; see each `SAFETY` comment"
)]
#![allow(clippy::inline_always, reason = "generic bodies must be inlined where the instruction set is enabled")]
#![allow(clippy::needless_range_loop, reason = "constant indices keep register tiles in registers")]
#![allow(clippy::needless_pass_by_value, reason = "a writable view is given away")]

pub mod activation;
mod allocator;
pub mod attention;
mod buffer;
pub mod focal;
pub mod group_norm;
mod kept;
pub mod matmul;
pub mod norm;
mod peak;
mod precision;
pub mod resample;
mod rotary;
mod simd;
mod sums;
mod team;

pub use activation::Activation;
pub use allocator::return_large_blocks;
pub use attention::{Attention, AttentionVjp};
pub use buffer::{Grow, row_stride};
pub use focal::focal_background;
pub use group_norm::{GroupNorm, Runs};
pub use kept::Kept;
pub use matmul::{
    DEPTH, Init, Left, Mat, MatMut, PackedRows, PanelRange, Panels, matmul, matmul_activate, matmul_scale,
};
pub use norm::{layer_norm, layer_norm_vjp};
pub use peak::multiply_adds;
pub use precision::Precision;
pub use rotary::Rotation;
pub use simd::{Isa, isa};
pub use sums::{add_products, add_rows};
pub use team::with_team;

/// Defines a function that is compiled once per instruction set from one generic body and picks the right one at run time.
/// `pairs fn`: the body has use for the instructions on pairs of bfloat16; others are compiled without. `unsafe fn`: the body asks
/// its caller for more than the instruction set, lengths above all, and so does the function.
macro_rules! dispatched {
    ($(#[$meta:meta])* fn $($rest:tt)*) => {
        $crate::dispatched!(@f32 [$(#[$meta])*] [] $($rest)*);
    };
    ($(#[$meta:meta])* unsafe fn $($rest:tt)*) => {
        $crate::dispatched!(@f32 [$(#[$meta])*] [unsafe] $($rest)*);
    };
    ($(#[$meta:meta])* pairs fn $($rest:tt)*) => {
        $crate::dispatched!(@pairs [$(#[$meta])*] [] $($rest)*);
    };
    ($(#[$meta:meta])* pairs unsafe fn $($rest:tt)*) => {
        $crate::dispatched!(@pairs [$(#[$meta])*] [unsafe] $($rest)*);
    };
    (@f32 $meta:tt $safety:tt $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $crate::dispatched!(@ $meta $safety $name ($($arg: $ty),*) ($($arg),*) $body {
            $crate::Isa::Avx512Bf16 | $crate::Isa::Avx512 => avx512, $crate::simd::Avx512<false>,
                "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma";
            $crate::Isa::Avx2 => avx2, $crate::simd::Avx2, "avx2,fma";
        });
    };
    (@pairs $meta:tt $safety:tt $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $crate::dispatched!(@ $meta $safety $name ($($arg: $ty),*) ($($arg),*) $body {
            $crate::Isa::Avx512Bf16 => avx512_bf16, $crate::simd::Avx512<true>,
                "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma";
            $crate::Isa::Avx512 => avx512, $crate::simd::Avx512<false>,
                "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma";
            $crate::Isa::Avx2 => avx2, $crate::simd::Avx2, "avx2,fma";
        });
    };
    (@ [$(#[$meta:meta])*] [$($safety:tt)?] $name:ident $parameters:tt $arguments:tt $body:ident {
        $($isa:pat => $function:ident, $simd:ty, $features:literal;)*
    }) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $($safety)? fn $name $parameters {
            #[cfg(target_arch = "x86_64")]
            {
                $(
                    /// # Safety
                    /// As for the function around it.
                    #[target_feature(enable = $features)]
                    #[allow(clippy::too_many_arguments)]
                    unsafe fn $function $parameters {
                        // SAFETY: the instructions are enabled here; what else the body asks for, the caller has promised.
                        unsafe { $body::<$simd> $arguments }
                    }
                )*
                match $crate::isa() {
                    // SAFETY: `isa` names the instructions only if the CPU has them; the caller's promise is handed on.
                    $($isa => return unsafe { $function $arguments },)*
                    $crate::Isa::Portable => {}
                }
            }
            // SAFETY: the portable form uses no special instructions; the caller's promise is handed on.
            unsafe { $body::<$crate::simd::Portable> $arguments }
        }
    };
}
pub(crate) use dispatched;
