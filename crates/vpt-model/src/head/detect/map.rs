//! How a map of tokens lies in memory so that a 3x3 convolution is three matrix products without a copy.
//!
//! Tokens are rows of C channels, line by line, with one row of zeros behind each line and a line of zeros above and below.
//! A row and its two neighbours are then `3C` values side by side, zeros where a neighbour lies outside: rows that overlap,
//! C apart, are the left-hand side for one line of the kernel. The row behind a line serves as the one before the next, so
//! that only one row in `side + 1` is computed in vain.

use vpt_kernel::{Grow, Mat, MatMut, Runs};

/// A square map.
#[derive(Clone, Copy, Debug)]
pub(in crate::head) struct Map {
    /// Tokens a side.
    pub(in crate::head) side: usize,
    /// Channels, C.
    pub(in crate::head) channels: usize,
}

impl Map {
    /// Rows from the start of a line to that of the next.
    fn step(self) -> usize {
        self.side + 1
    }

    /// Rows from the first token to the last.
    pub(in crate::head) fn rows(self) -> usize {
        self.runs().rows()
    }

    /// Which of these rows are tokens.
    pub(in crate::head) fn runs(self) -> Runs {
        Runs { count: self.side, len: self.side, step: self.step() }
    }

    /// The first token's row in a padded map.
    fn first(self) -> usize {
        self.step() + 1
    }

    /// Values of a padded map.
    fn len(self) -> usize {
        (self.step() * self.step() + self.step() + 1) * self.channels
    }

    /// A padded map in `buffer` whose padding is zero and whose tokens are unspecified.
    pub(in crate::head) fn padded(self, buffer: &mut Vec<f32>) -> &mut [f32] {
        let c = self.channels;
        let map = buffer.grow(self.len());
        map[..self.first() * c].fill(0.);
        for line in 0..self.side {
            let end = self.first() + line * self.step() + self.side;
            map[end * c..(end + 1) * c].fill(0.);
        }
        map[(self.first() + self.side * self.step()) * c..].fill(0.);
        map
    }

    /// The rows of a padded map from the first token to the last, `[rows, C]`.
    pub(in crate::head) fn tokens(self, padded: &[f32]) -> Mat<'_> {
        Mat::new(&padded[self.first() * self.channels..], self.rows(), self.channels, self.channels)
    }

    /// [`Self::tokens`], to be written.
    pub(in crate::head) fn tokens_mut(self, padded: &mut [f32]) -> MatMut<'_> {
        let c = self.channels;
        MatMut::new(&mut padded[self.first() * c..], self.rows(), c, c)
    }

    /// For each row what line `y` (0 to 2) of a 3x3 kernel sees of it: `[rows, 3C]`.
    pub(in crate::head) fn taps(self, padded: &[f32], y: usize) -> Mat<'_> {
        let c = self.channels;
        Mat::new(&padded[y * self.step() * c..], self.rows(), 3 * c, c)
    }

    /// The token at line `y`, column `x` of a padded map.
    pub(in crate::head) fn token_mut(self, padded: &mut [f32], y: usize, x: usize) -> &mut [f32] {
        let at = (self.first() + y * self.step() + x) * self.channels;
        &mut padded[at..at + self.channels]
    }

    /// The token at line `y`, column `x` of rows from the first token to the last.
    pub(in crate::head) fn token(self, rows: &[f32], y: usize, x: usize) -> &[f32] {
        let at = (y * self.step() + x) * self.channels;
        &rows[at..at + self.channels]
    }
}

/// Of rows `stride` apart the first `n` values of those that are tokens, one behind the other.
pub(in crate::head) fn gather(rows: &[f32], stride: usize, runs: Runs, n: usize) -> Vec<f32> {
    runs.iter().flat_map(|row| &rows[row * stride..row * stride + n]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_kernel::{Init, Panels, matmul};

    #[test]
    fn the_taps_of_a_token_are_its_neighbours_and_zeros_outside() {
        let map = Map { side: 3, channels: 1 };
        let mut buffer = vec![9.; 100];
        let padded = map.padded(&mut buffer);
        for y in 0..3 {
            for x in 0..3 {
                map.token_mut(padded, y, x)[0] = (10 * y + x) as f32 + 1.;
            }
        }
        // Times the identity: the taps themselves.
        let one = Panels::pack(Mat::new(&[1., 0., 0., 0., 1., 0., 0., 0., 1.], 3, 3, 3));
        for ky in 0..3 {
            let taps = map.taps(padded, ky);
            let mut copy = vec![0.; taps.rows() * 3];
            matmul(taps, &one, MatMut::new(&mut copy, taps.rows(), 3, 3), Init::Zero);
            for (row, token) in map.runs().iter().zip(0..) {
                let want = [0, 1, 2].map(|kx| {
                    let (y, x) = (token / 3 + ky as i32 - 1, token % 3 + kx - 1);
                    let inside = (0..3).contains(&y) && (0..3).contains(&x);
                    if inside { (10 * y + x) as f32 + 1. } else { 0. }
                });
                assert_eq!(copy[row * 3..row * 3 + 3], want, "token {token}, line {ky} of the kernel");
            }
        }
    }
}
