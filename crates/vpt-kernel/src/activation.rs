//! The activations of the families' MLPs and their derivatives, computed together: `f(x)` goes on, `f'(x)` is kept for
//! the VJP, so that the backward pass is one multiplication.

use super::simd::{Simd, load, store, vectors};

/// The activation between the two layers of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x Φ(x)` with the exact normal distribution function.
    Gelu,
    /// `x σ(1.702 x)`: OpenAI's CLIP.
    QuickGelu,
    /// `x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `x σ(x)`: the gate of `SwiGLU`.
    Silu,
}

impl Activation {
    /// `(f(x), f'(x))` in f64, as a reference. Φ by its series and continued fraction, good to 1e-14.
    pub fn reference(self, x: f64) -> (f64, f64) {
        match self {
            Self::Gelu => {
                let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
                let phi = normal_distribution(x, density);
                (x * phi, phi + x * density)
            }
            Self::QuickGelu => {
                let s = 1.0 / (1.0 + (-1.702 * x).exp());
                (x * s, s + 1.702 * x * s * (1.0 - s))
            }
            Self::Silu => {
                let s = 1.0 / (1.0 + (-x).exp());
                (x * s, s + x * s * (1.0 - s))
            }
            Self::GeluTanh => {
                let root = (8.0 / std::f64::consts::PI).sqrt();
                let s = 1.0 / (1.0 + (-root * (x + 0.044_715 * x.powi(3))).exp());
                (x * s, s + x * s * (1.0 - s) * root * (1.0 + 3.0 * 0.044_715 * x * x))
            }
        }
    }
}

fn normal_distribution(x: f64, density: f64) -> f64 {
    if x.abs() < 4.0 {
        // Φ(x) = 1/2 + φ(x) (x + x³/3 + x⁵/15 + …)
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= x * x / f64::from(2 * n + 1);
            sum += term;
        }
        return 0.5 + density * sum;
    }
    // Mills' ratio as a continued fraction: 1 - Φ(x) = φ(x) / (x + 1/(x + 2/(x + …)))
    let mut fraction = x.abs();
    for n in (1..200).rev() {
        fraction = x.abs() + f64::from(n) / fraction;
    }
    let upper = density / fraction;
    if x > 0.0 { 1.0 - upper } else { upper }
}

/// Replaces `n` values at `x` by their activation and writes the derivative to `derivative` unless it is null.
///
/// # Safety
/// `n` values may be read and written at `x`, and written at `derivative` unless it is null; `S` is available.
#[inline(always)]
pub(super) unsafe fn activate_row<S: Simd>(activation: Activation, x: *mut f32, derivative: *mut f32, n: usize) {
    macro_rules! each {
        (|$v:ident| $body:expr) => {
            vectors!(S, n, |i, lanes| {
                let $v = load::<S>(x.add(i), lanes);
                let (y, d) = $body;
                store::<S>(x.add(i), y, lanes);
                if !derivative.is_null() {
                    store::<S>(derivative.add(i), d, lanes);
                }
            })
        };
    }
    // SAFETY: `vectors!` stays inside the `n` values that the caller lets be read and written; it promises `S`.
    unsafe {
        match activation {
            Activation::Gelu => each!(|v| gelu::<S>(v)),
            Activation::QuickGelu => each!(|v| {
                let slope = S::splat(1.702);
                swish::<S>(v, S::mul(v, slope), slope)
            }),
            Activation::Silu => each!(|v| swish::<S>(v, v, S::splat(1.0))),
            Activation::GeluTanh => each!(|v| {
                let (root, cubic) = (S::splat(1.595_769_2), S::splat(0.044_715));
                let square = S::mul(v, v);
                let inner = S::mul(S::mul(root, v), S::fma(cubic, square, S::splat(1.0)));
                let slope = S::mul(root, S::fma(S::splat(3.0 * 0.044_715), square, S::splat(1.0)));
                swish::<S>(v, inner, slope)
            }),
        }
    }
}

/// `x σ(u)` and its derivative, where u is a function of x with derivative `slope`.
#[inline(always)]
fn swish<S: Simd>(x: S::V, u: S::V, slope: S::V) -> (S::V, S::V) {
    // SAFETY: `x` shows that `S` is available, which is all that constants need.
    unsafe {
        let one = S::splat(1.0);
        let s = S::reciprocal(S::add(one, S::exp(S::sub(S::zero(), u))));
        let y = S::mul(x, s);
        (y, S::fma(S::mul(y, S::sub(one, s)), slope, s))
    }
}

/// `x Φ(x)` and `Φ(x) + x φ(x)`.
#[inline(always)]
fn gelu<S: Simd>(x: S::V) -> (S::V, S::V) {
    // Φ(-|x|) = e^(-x²/2) P(t), t = 1/(1 + 0.61 |x|/√2). P is a weighted Chebyshev fit of erfcx/2 by us, relative error
    // 1.5e-7 in f32; unlike the usual formula for erf it loses nothing near zero and in the tail.
    const P: [f32; 11] = [
        1.591_693_4e-2,
        -5.988_854_7e-2,
        2.993_685_2e-2,
        1.871_905_5e-1,
        -3.601_904_6e-1,
        1.796_511_7e-1,
        1.008_134_2e-2,
        1.550_907_7e-1,
        1.699_740_9e-1,
        1.722_428_4e-1,
        -5.538_73e-6,
    ];
    // SAFETY: `x` shows that `S` is available, which is all that constants need.
    unsafe {
        let one = S::splat(1.0);
        let t = S::reciprocal(S::fma(S::abs(x), S::splat(0.61 * std::f32::consts::FRAC_1_SQRT_2), one));
        let mut p = S::splat(P[0]);
        for c in &P[1..] {
            p = S::fma(p, t, S::splat(*c));
        }
        let e = S::exp(S::mul(S::mul(x, x), S::splat(-0.5)));
        let lower = S::mul(e, p);
        let phi = S::if_negative(x, lower, S::sub(one, lower));
        let density = S::mul(e, S::splat(0.398_942_3));
        (S::mul(x, phi), S::fma(x, density, phi))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatched;
    use vpt_base::testing::assert_close;

    dispatched! {
        fn activate(activation: Activation, x: &mut [f32], derivative: &mut [f32]) = body
    }

    /// # Safety
    /// `S` is available.
    #[inline(always)]
    unsafe fn body<S: Simd>(activation: Activation, x: &mut [f32], derivative: &mut [f32]) {
        assert_eq!(x.len(), derivative.len());
        // SAFETY: both slices hold `x.len()` values; the caller promises `S`.
        unsafe { activate_row::<S>(activation, x.as_mut_ptr(), derivative.as_mut_ptr(), x.len()) }
    }

    #[test]
    fn activations_and_derivatives_are_exact_from_the_tail_to_the_top() {
        let step = if cfg!(miri) { 100 } else { 1 };
        let x = (-1999..2000).step_by(step).map(|i| i as f32 * 0.01);
        let x: Vec<f32> = x.chain([1e-6, -1e-6, 1e-3, -1e-3]).collect();
        for activation in [Activation::Gelu, Activation::QuickGelu, Activation::GeluTanh, Activation::Silu] {
            let (mut y, mut d) = (x.clone(), vec![0.0; x.len()]);
            activate(activation, &mut y, &mut d);
            for i in 0..x.len() {
                let (want, slope) = activation.reference(f64::from(x[i]));
                assert_close(y[i], want, 2e-6 * want.abs().max(1e-2));
                assert_close(d[i], slope, 4e-6);
            }
        }
    }

    #[test]
    fn the_reference_derivative_is_the_derivative_of_the_reference() {
        for activation in [Activation::Gelu, Activation::QuickGelu, Activation::GeluTanh, Activation::Silu] {
            for i in -60..=60 {
                let (x, h) = (f64::from(i) * 0.1, 1e-5);
                let slope = (activation.reference(x + h).0 - activation.reference(x - h).0) / (2.0 * h);
                assert!((slope - activation.reference(x).1).abs() < 1e-8, "{activation:?} at {x}");
            }
        }
    }

    #[test]
    fn not_a_number_stays_one() {
        for activation in [Activation::Gelu, Activation::QuickGelu, Activation::GeluTanh, Activation::Silu] {
            let (mut y, mut d) = ([f32::NAN; 3], [0.0; 3]);
            activate(activation, &mut y, &mut d);
            assert!(y.iter().all(|x| x.is_nan()));
        }
    }
}
