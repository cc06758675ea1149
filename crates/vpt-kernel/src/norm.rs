//! LayerNorm without scale and shift (they are folded into the next weights), and its VJP.

use super::simd::{Simd, load, store, vectors};
use super::{Mat, MatMut, dispatched};

/// `out = (x - mean) / √(variance + eps)` for each row; `inverse[row] = 1/√(variance + eps)` is what the VJP needs.
/// Two passes over a row: the one-pass form loses digits where the mean is large. Shapes: x, out `[rows, D]`, inverse
/// `[rows]`.
///
/// # Panics
/// If the shapes differ.
pub fn layer_norm(x: Mat, eps: f32, out: &mut MatMut, inverse: &mut [f32]) {
    assert_eq!((x.rows(), x.cols(), x.rows()), (out.rows(), out.cols(), inverse.len()), "layer_norm shapes");
    let d = x.cols();
    let ((x, x_stride), (out, out_stride)) = (x.contiguous_rows(), out.contiguous_rows());
    // SAFETY: the shapes are equal, and rows of a view lie in its slice.
    unsafe { normalize_rows(x, x_stride, out, out_stride, inverse, d, eps) }
}

dispatched! {
    /// # Safety
    /// Each of the `inverse.len()` rows of `d` values lies inside `x` and `out`.
    unsafe fn normalize_rows(x: &[f32], x_stride: usize, out: &mut [f32], out_stride: usize, inverse: &mut [f32], d: usize, eps: f32) = normalize_body
}

/// # Safety
/// Each of the `inverse.len()` rows of `d` values lies inside `x` and `out`; `S` is available.
#[inline(always)]
unsafe fn normalize_body<S: Simd>(
    x: &[f32],
    x_stride: usize,
    out: &mut [f32],
    out_stride: usize,
    inverse: &mut [f32],
    d: usize,
    eps: f32,
) {
    for (row, inverse) in inverse.iter_mut().enumerate() {
        // SAFETY: the row's `d` values lie inside both slices, as the caller promises, and `vectors!` stays inside them.
        unsafe {
            let x = x.as_ptr().add(row * x_stride);
            let out = out.as_mut_ptr().add(row * out_stride);
            let mut sum = S::zero();
            vectors!(S, d, |i, n| sum = S::add(sum, load::<S>(x.add(i), n)));
            let mean = S::sum(sum) / d as f32;
            let mut squares = S::zero();
            vectors!(S, d, |i, n| {
                let centred = centred::<S>(x.add(i), n, mean);
                squares = S::fma(centred, centred, squares);
            });
            *inverse = 1.0 / (S::sum(squares) / d as f32 + eps).sqrt();
            let (mean, scale) = (S::splat(mean), S::splat(*inverse));
            vectors!(S, d, |i, n| store::<S>(out.add(i), S::mul(S::sub(load::<S>(x.add(i), n), mean), scale), n));
        }
    }
}

/// Adds to `dx` the VJP of [`layer_norm`]: `inverse (g - mean(g) - x̂ mean(g x̂))` for each row, where g is the gradient of
/// the output and x̂ the output. Shapes `[rows, D]`.
///
/// # Panics
/// If the shapes differ.
pub fn layer_norm_vjp(normalized: Mat, inverse: &[f32], gradient: Mat, dx: &mut MatMut) {
    let shape = (dx.rows(), dx.cols());
    assert_eq!((normalized.rows(), normalized.cols()), shape, "layer_norm_vjp shapes");
    assert_eq!((gradient.rows(), gradient.cols(), inverse.len()), (shape.0, shape.1, shape.0), "layer_norm_vjp shapes");
    let ((normalized, a), (gradient, b), (dx, c)) =
        (normalized.contiguous_rows(), gradient.contiguous_rows(), dx.contiguous_rows());
    // SAFETY: the shapes are equal, and rows of a view lie in its slice.
    unsafe { vjp_rows(normalized, gradient, dx, [a, b, c], inverse, shape.1) }
}

dispatched! {
    /// # Safety
    /// Each of the `inverse.len()` rows of `d` values lies inside the three slices.
    unsafe fn vjp_rows(normalized: &[f32], gradient: &[f32], dx: &mut [f32], strides: [usize; 3], inverse: &[f32], d: usize) = vjp_body
}

/// # Safety
/// Each of the `inverse.len()` rows of `d` values lies inside the three slices; `S` is available.
#[inline(always)]
unsafe fn vjp_body<S: Simd>(
    normalized: &[f32],
    gradient: &[f32],
    dx: &mut [f32],
    strides: [usize; 3],
    inverse: &[f32],
    d: usize,
) {
    for (row, &inverse) in inverse.iter().enumerate() {
        // SAFETY: the row's `d` values lie inside all three slices, as the caller promises, and `vectors!` stays inside them.
        unsafe {
            let y = normalized.as_ptr().add(row * strides[0]);
            let g = gradient.as_ptr().add(row * strides[1]);
            let dx = dx.as_mut_ptr().add(row * strides[2]);
            let (mut sum, mut along) = (S::zero(), S::zero());
            vectors!(S, d, |i, n| {
                let g = load::<S>(g.add(i), n);
                sum = S::add(sum, g);
                along = S::fma(g, load::<S>(y.add(i), n), along);
            });
            let mean = S::splat(S::sum(sum) / d as f32);
            let along = S::splat(-S::sum(along) / d as f32);
            let inverse = S::splat(inverse);
            vectors!(S, d, |i, n| {
                let centred = S::sub(load::<S>(g.add(i), n), mean);
                let projected = S::fma(along, load::<S>(y.add(i), n), centred);
                store::<S>(dx.add(i), S::fma(inverse, projected, load::<S>(dx.add(i), n)), n);
            });
        }
    }
}

/// `x - mean`, zero in the lanes behind `n`.
///
/// # Safety
/// As for [`load`].
#[inline(always)]
unsafe fn centred<S: Simd>(p: *const f32, n: usize, mean: f32) -> S::V {
    // SAFETY: the caller lets `n <= LANES` values be read, `lanes` has room for any vector; the caller promises `S`.
    unsafe {
        if n == S::LANES {
            return S::sub(S::load(p), S::splat(mean));
        }
        let mut lanes = [0.0; 16];
        for (i, lane) in lanes.iter_mut().enumerate().take(n) {
            *lane = *p.add(i) - mean;
        }
        S::load(lanes.as_ptr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_base::testing::{assert_close, central_differences, random};

    fn plain(x: &[f64], eps: f64) -> (Vec<f64>, f64) {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let inverse = 1.0 / (variance + eps).sqrt();
        (x.iter().map(|x| (x - mean) * inverse).collect(), inverse)
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }

    #[test]
    fn rows_are_normalized_even_far_from_zero() {
        for d in [1, 5, 16, 33, 192] {
            let x: Vec<f32> = random(1, 3 * d).iter().map(|x| x + 100.0).collect();
            let (mut y, mut inverse) = (vec![0.0; 3 * d], vec![0.0; 3]);
            layer_norm(Mat::new(&x, 3, d, d), 1e-5, &mut MatMut::new(&mut y, 3, d, d), &mut inverse);
            for row in 0..3 {
                let (want, scale) = plain(&wide(&x[row * d..(row + 1) * d]), 1e-5);
                assert_close(inverse[row], scale, 1e-4 * scale);
                for i in 0..d {
                    assert_close(y[row * d + i], want[i], 1e-4);
                }
            }
        }
    }

    #[test]
    fn the_vjp_equals_central_differences() {
        for d in [2, 17, 40] {
            let (x, g) = (random(2, d), random(3, d));
            let (mut y, mut inverse) = (vec![0.0; d], vec![0.0]);
            layer_norm(Mat::new(&x, 1, d, d), 1e-5, &mut MatMut::new(&mut y, 1, d, d), &mut inverse);
            let mut dx = vec![0.0; d];
            let view = &mut MatMut::new(&mut dx, 1, d, d);
            layer_norm_vjp(Mat::new(&y, 1, d, d), &inverse, Mat::new(&g, 1, d, d), view);
            let value = |x: &[f64]| plain(x, 1e-5).0.iter().zip(&g).map(|(y, &g)| y * f64::from(g)).sum::<f64>();
            for (i, want) in central_differences(&wide(&x), value).into_iter().enumerate() {
                assert_close(dx[i], want, 1e-5 * want.abs().max(1.0));
            }
        }
    }
}
