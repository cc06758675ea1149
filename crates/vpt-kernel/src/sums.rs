//! Sums over the rows of a matrix: the gradients of biases and of norms' scales.

use super::simd::{Simd, load, store, vectors};
use super::{Mat, dispatched};

/// Adds every row of `x` `[rows, n]` to `sums` `[n]`, the first row first.
///
/// # Panics
/// If the widths differ.
pub fn add_rows(x: Mat, sums: &mut [f32]) {
    assert_eq!(x.cols(), sums.len(), "width of the sums");
    let (count, (x, stride)) = (x.rows(), x.contiguous_rows());
    // SAFETY: the widths are equal, and rows of a view lie in its slice.
    unsafe { add_rows_at(x, stride, count, sums) }
}

dispatched! {
    /// # Safety
    /// `rows` rows of `sums.len()` values lie inside `x`.
    unsafe fn add_rows_at(x: &[f32], stride: usize, rows: usize, sums: &mut [f32]) = add_rows_body
}

/// # Safety
/// `rows` rows of `sums.len()` values lie inside `x`; `S` is available.
#[inline(always)]
unsafe fn add_rows_body<S: Simd>(x: &[f32], stride: usize, rows: usize, sums: &mut [f32]) {
    let (d, sums) = (sums.len(), sums.as_mut_ptr());
    for row in 0..rows {
        // SAFETY: the row lies inside `x`, as the caller promises, and `vectors!` stays inside the row and the sums.
        unsafe {
            let x = x.as_ptr().add(row * stride);
            vectors!(S, d, |i, n| {
                store::<S>(sums.add(i), S::add(load::<S>(sums.add(i), n), load::<S>(x.add(i), n)), n);
            });
        }
    }
}

/// Adds the products of the values of `a` and `b`, both `[rows, n]`, row by row to `sums` `[n]`.
///
/// # Panics
/// If the shapes differ.
pub fn add_products(a: Mat, b: Mat, sums: &mut [f32]) {
    assert_eq!((a.rows(), a.cols(), b.cols()), (b.rows(), b.cols(), sums.len()), "shapes of products");
    let (count, (a, a_stride), (b, b_stride)) = (a.rows(), a.contiguous_rows(), b.contiguous_rows());
    // SAFETY: the shapes are equal, and rows of a view lie in its slice.
    unsafe { add_products_at(a, b, [a_stride, b_stride], count, sums) }
}

dispatched! {
    /// # Safety
    /// `rows` rows of `sums.len()` values lie inside `a` and `b`.
    unsafe fn add_products_at(a: &[f32], b: &[f32], strides: [usize; 2], rows: usize, sums: &mut [f32]) = add_products_body
}

/// # Safety
/// `rows` rows of `sums.len()` values lie inside `a` and `b`; `S` is available.
#[inline(always)]
unsafe fn add_products_body<S: Simd>(a: &[f32], b: &[f32], strides: [usize; 2], rows: usize, sums: &mut [f32]) {
    let (d, sums) = (sums.len(), sums.as_mut_ptr());
    for row in 0..rows {
        // SAFETY: the rows lie inside `a` and `b`, as the caller promises, and `vectors!` stays inside them and the sums.
        unsafe {
            let (a, b) = (a.as_ptr().add(row * strides[0]), b.as_ptr().add(row * strides[1]));
            vectors!(S, d, |i, n| {
                let product = S::fma(load::<S>(a.add(i), n), load::<S>(b.add(i), n), load::<S>(sums.add(i), n));
                store::<S>(sums.add(i), product, n);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_base::testing::{assert_close, random};

    #[test]
    fn sums_equal_those_of_a_loop() {
        for (rows, n, stride) in [(0, 3, 3), (1, 1, 1), (5, 17, 20), (9, 48, 48)] {
            let (a, b, start) = (random(1, rows * stride), random(2, rows * stride), random(3, n));
            let (mut sums, mut products) = (start.clone(), start.clone());
            add_rows(Mat::new(&a, rows, n, stride), &mut sums);
            add_products(Mat::new(&a, rows, n, stride), Mat::new(&b, rows, n, stride), &mut products);
            for i in 0..n {
                let at = |row: usize| row * stride + i;
                let sum: f64 = (0..rows).map(|row| f64::from(a[at(row)])).sum();
                assert_close(sums[i], f64::from(start[i]) + sum, 1e-6);
                let sum: f64 = (0..rows).map(|row| f64::from(a[at(row)]) * f64::from(b[at(row)])).sum();
                assert_close(products[i], f64::from(start[i]) + sum, 1e-6);
            }
        }
    }
}
