//! Rotary positions (Su et al. 2021): pairs of values of queries and keys are turned by angles that belong to the row.
//!
//! A turn is linear and keeps lengths, so its VJP is the turn back. It is done in place, on what a product has just written
//! and another is about to pack.

use super::simd::{Simd, load, store, vectors};
use super::{MatMut, dispatched};

/// The angles of some rows, the same for every head: value j of a head and value j + half are a pair (not neighbours).
#[derive(Clone, Debug)]
pub struct Rotation {
    half: usize,
    /// `[rows, half]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    /// Turns by `angles` `[rows, half]`, in radians, heads of `2 * half` values.
    ///
    /// # Panics
    /// If `half` is 0 or does not divide their number.
    pub fn new(half: usize, angles: &[f64]) -> Self {
        assert!(half > 0 && angles.len().is_multiple_of(half), "{} angles of {half} pairs", angles.len());
        let of = |f: fn(f64) -> f64| angles.iter().map(|&angle| f(angle) as f32).collect();
        Self { half, cos: of(f64::cos), sin: of(f64::sin) }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.cos.len() / self.half
    }

    /// Bytes of the tables.
    pub fn bytes(&self) -> usize {
        (self.cos.len() + self.sin.len()) * size_of::<f32>()
    }

    /// Turns the rows of `x`, `[rows, D]`, all of whose heads are side by side; `back`: the other way round.
    ///
    /// # Panics
    /// If the rows are not as many as there are angles for, or D is no whole number of heads.
    pub fn turn(&self, mut x: MatMut, back: bool) {
        let (rows, cols) = (x.rows(), x.cols());
        assert_eq!(rows, self.rows(), "rows that are turned");
        assert!(cols.is_multiple_of(2 * self.half), "width {cols} of heads of {}", 2 * self.half);
        let (x, stride) = x.contiguous_rows();
        // SAFETY: rows of a view lie in its slice, the tables have `half` values for each, and the width is one of whole heads.
        unsafe { turn_rows(x, stride, [rows, cols], self.half, &self.cos, &self.sin, if back { -1. } else { 1. }) }
    }
}

dispatched! {
    /// # Safety
    /// All rows of `shape` lie inside `x`; the tables have `half` values for each; rows are whole numbers of `2 * half` values.
    unsafe fn turn_rows(x: &mut [f32], stride: usize, shape: [usize; 2], half: usize, cos: &[f32], sin: &[f32], sign: f32) = turn_body
}

/// # Safety
/// As for [`turn_rows`]; `S` is available.
#[inline(always)]
unsafe fn turn_body<S: Simd>(
    x: &mut [f32],
    stride: usize,
    [rows, cols]: [usize; 2],
    half: usize,
    cos: &[f32],
    sin: &[f32],
    sign: f32,
) {
    for row in 0..rows {
        // SAFETY: the row lies inside `x` and has whole heads, and the tables have a row for it, as the caller promises;
        // `vectors!` stays inside half a head.
        unsafe {
            let sign = S::splat(sign);
            let (cos, sin) = (cos.as_ptr().add(row * half), sin.as_ptr().add(row * half));
            let x = x.as_mut_ptr().add(row * stride);
            for head in (0..cols).step_by(2 * half) {
                let (a, b) = (x.add(head), x.add(head + half));
                vectors!(S, half, |i, n| {
                    let (u, v) = (load::<S>(a.add(i), n), load::<S>(b.add(i), n));
                    let (c, s) = (load::<S>(cos.add(i), n), S::mul(load::<S>(sin.add(i), n), sign));
                    store::<S>(a.add(i), S::sub(S::mul(u, c), S::mul(v, s)), n);
                    store::<S>(b.add(i), S::fma(v, c, S::mul(u, s)), n);
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_base::testing::{assert_close, random};

    #[test]
    fn pairs_are_turned_by_the_angle_of_their_row_and_back() {
        for (rows, heads, half, stride) in [(1, 1, 1, 2), (3, 2, 3, 14), (4, 3, 32, 192), (2, 1, 17, 40)] {
            let (start, angles) = (random(1, rows * stride), random(2, rows * half));
            let angles: Vec<f64> = angles.iter().map(|&angle| 9. * f64::from(angle)).collect();
            let rotation = Rotation::new(half, &angles);
            let (mut x, cols) = (start.clone(), heads * 2 * half);
            rotation.turn(MatMut::new(&mut x, rows, cols, stride), false);
            for row in 0..rows {
                for (head, i) in (0..heads).flat_map(|head| (0..half).map(move |i| (head, i))) {
                    let a = row * stride + head * 2 * half + i;
                    let (sin, cos) = angles[row * half + i].sin_cos();
                    let (u, v) = (f64::from(start[a]), f64::from(start[a + half]));
                    assert_close(x[a], u * cos - v * sin, 1e-6);
                    assert_close(x[a + half], v * cos + u * sin, 1e-6);
                }
                assert_eq!(x[row * stride + cols..(row + 1) * stride], start[row * stride + cols..(row + 1) * stride]);
            }
            rotation.turn(MatMut::new(&mut x, rows, cols, stride), true);
            x.iter().zip(&start).for_each(|(&x, &start)| assert_close(x, f64::from(start), 1e-6));
        }
    }
}
