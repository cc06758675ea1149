//! Small linear algebra: rows of f32, and systems of equations in f64.

/// Scales every row of `[n, width]` to length 1.
pub fn normalize_l2(values: &mut [f32], width: usize) {
    for row in values.chunks_exact_mut(width.max(1)) {
        let length = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        if length > 0. {
            for v in row {
                *v = (f64::from(*v) / length) as f32;
            }
        }
    }
}

/// Partial sums of a dot product: as many as a vector register holds twice, so that additions need not wait for each other.
const LANES: usize = 16;

/// The sum of the products of `a` and `b`, as far as both reach; the same on every machine.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    let end = a.len().min(b.len());
    let (a, b) = (&a[..end], &b[..end]);
    let whole = end - end % LANES;
    let mut sums = [0.; LANES];
    for (a, b) in a[..whole].chunks_exact(LANES).zip(b[..whole].chunks_exact(LANES)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest = a[whole..].iter().zip(&b[whole..]).map(|(a, b)| a * b);
    sums.into_iter().chain(rest).sum()
}

/// Cholesky's factor of a symmetric positive matrix: what solves equations with it.
#[derive(Debug, Clone)]
pub struct Cholesky {
    /// Lower triangle `[D, D]`; what is above it is left as it was.
    factor: Vec<f64>,
    width: usize,
}

impl Cholesky {
    /// Of a matrix `[D, D]` of which the lower triangle is read; `None` if it is not positive.
    pub fn new(mut matrix: Vec<f64>, width: usize) -> Option<Self> {
        for i in 0..width {
            let (above, below) = matrix.split_at_mut(i * width);
            let row = &mut below[..=i];
            for j in 0..i {
                let known = &above[j * width..][..=j];
                row[j] = (row[j] - dot(&row[..j], known)) / known[j];
            }
            let left = row[i] - dot(&row[..i], &row[..i]);
            // Not so of NaN either.
            if !(left > 0. && left.is_finite()) {
                return None;
            }
            row[i] = left.sqrt();
        }
        Some(Self { factor: matrix, width })
    }

    /// Makes of the right side `b` `[D]` the `x` of `matrix x = b`.
    pub fn solve(&self, x: &mut [f64]) {
        let row = |i: usize| &self.factor[i * self.width..][..=i];
        for i in 0..self.width {
            x[i] = (x[i] - dot(&row(i)[..i], &x[..i])) / row(i)[i];
        }
        for i in (0..self.width).rev() {
            x[i] /= row(i)[i];
            let known = x[i];
            x[..i].iter_mut().zip(row(i)).for_each(|(value, l)| *value -= l * known);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_positive_matrix_is_solved_and_another_refused() {
        for width in [1, 5, 40] {
            // A sum of outer products, and something on the diagonal.
            let of = |i: usize, k: usize| ((3 * i + 7 * k) as f64).sin();
            let at = |i, j| (0..width).map(|k| of(i, k) * of(j, k)).sum::<f64>() + f64::from(u8::from(i == j));
            let matrix: Vec<f64> = (0..width * width).map(|place| at(place / width, place % width)).collect();
            let expected: Vec<f64> = (0..width).map(|i| (i as f64).cos()).collect();
            let mut x: Vec<f64> = matrix.chunks_exact(width).map(|row| dot(row, &expected)).collect();
            Cholesky::new(matrix, width).unwrap().solve(&mut x);
            assert!(x.iter().zip(&expected).all(|(x, e)| (x - e).abs() < 1e-9), "{x:?}");
        }
        for refused in [[1., 0., 2., 1.], [0., 0., 0., 1.], [f64::NAN, 0., 0., 1.], [1., 0., 0., f64::INFINITY]] {
            assert!(Cholesky::new(refused.to_vec(), 2).is_none(), "{refused:?}");
        }
    }
}
