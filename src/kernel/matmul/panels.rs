//! The right-hand side of a product, packed.

use std::ops::Range;

use super::DEPTH;
use super::view::Mat;
use crate::kernel::{Isa, isa};

/// A matrix packed as right-hand side, `[k, n]`: blocks of `DEPTH` rows, in each block panels of two or three vectors'
/// columns, in each panel the rows one after the other. The last panel is filled up with zeros.
#[derive(Default)]
pub struct Panels {
    k: usize,
    n: usize,
    /// Columns of a panel.
    pub(super) width: usize,
    data: Vec<Line>,
}

/// One cache line, so that vectors of a panel never straddle two.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Columns of a panel of a matrix with `n` columns. A tile of three vectors has the better ratio of sums to loads
/// (measured on Granite Rapids at 394 x 768 x 768: 168 against 154 GFLOP/s), unless too much of it would be padding.
fn panel_width(n: usize) -> usize {
    match isa() {
        Isa::Avx512 if n.next_multiple_of(48) * 16 <= n.next_multiple_of(32) * 17 => 48,
        Isa::Avx512 => 32,
        Isa::Avx2 | Isa::Portable => 16,
    }
}

impl Panels {
    /// Packs a copy of `b`, `[k, n]`.
    pub fn pack(b: Mat) -> Self {
        let mut panels = Self::default();
        panels.reset(b.rows, b.cols);
        panels.fill(0, 0, b);
        panels
    }

    /// Rows.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Makes this an unspecified `[k, n]` matrix, to be filled; memory is kept.
    pub fn reset(&mut self, k: usize, n: usize) {
        let width = panel_width(n);
        (self.k, self.n, self.width) = (k, n, width);
        let lines = (k * n.next_multiple_of(width)).div_ceil(16);
        if self.data.len() < lines {
            self.data.resize(lines, Line::default());
        }
        // Only the columns that fill up the last panel must be zero whatever was here before.
        if !n.is_multiple_of(width) {
            let last = n / width * width;
            for row in 0..k {
                let at = self.position(row, last);
                self.floats_mut()[at + n - last..at + width].fill(0.0);
            }
        }
    }

    /// Copies `b` to the place whose first element is `(row, col)`.
    ///
    /// # Panics
    /// If `b` reaches beyond the matrix.
    pub fn fill(&mut self, row: usize, col: usize, b: Mat) {
        assert!(row + b.rows <= self.k && col + b.cols <= self.n, "block outside the packed matrix");
        let width = self.width;
        let mut at_col = 0;
        while at_col < b.cols {
            // One panel's share of the columns at a time.
            let lane = (col + at_col) % width;
            let cols = (width - lane).min(b.cols - at_col);
            let mut at_row = 0;
            while at_row < b.rows {
                let rows = (DEPTH - (row + at_row) % DEPTH).min(b.rows - at_row);
                let start = self.position(row + at_row, col + at_col);
                let source = &b.data[at_row * b.row_stride + at_col * b.col_stride..];
                let target = &mut self.floats_mut()[start..];
                if b.col_stride == 1 {
                    for r in 0..rows {
                        target[r * width..r * width + cols]
                            .copy_from_slice(&source[r * b.row_stride..r * b.row_stride + cols]);
                    }
                } else {
                    assert!((cols - 1) * b.col_stride + (rows - 1) * b.row_stride < source.len());
                    assert!((rows - 1) * width + cols <= target.len());
                    let (from, to) = (source.as_ptr(), target.as_mut_ptr());
                    for c in (0..cols).step_by(16) {
                        // SAFETY: the assertions above cover the last element read and written.
                        unsafe {
                            let (from, to) = (from.add(c * b.col_stride), to.add(c));
                            if cols - c >= 16 {
                                interleave::<16>(from, b.col_stride, b.row_stride, rows, to, width);
                            } else {
                                for c in 0..cols - c {
                                    interleave::<1>(
                                        from.add(c * b.col_stride),
                                        1,
                                        b.row_stride,
                                        rows,
                                        to.add(c),
                                        width,
                                    );
                                }
                            }
                        }
                    }
                }
                at_row += rows;
            }
            at_col += cols;
        }
    }

    /// The matrix in plain row-major order, `[k, n]`.
    pub fn unpack(&self) -> Vec<f32> {
        let width = self.width;
        let mut out = vec![0.0; self.k * self.n];
        for row in 0..self.k {
            for col in (0..self.n).step_by(width) {
                let cols = width.min(self.n - col);
                let at = self.position(row, col);
                out[row * self.n + col..][..cols].copy_from_slice(&self.floats()[at..at + cols]);
            }
        }
        out
    }

    pub(super) fn position(&self, row: usize, col: usize) -> usize {
        let width = self.width;
        let block = row / DEPTH * DEPTH;
        let depth = DEPTH.min(self.k - block);
        block * self.n.next_multiple_of(width) + col / width * depth * width + (row - block) * width + col % width
    }

    /// The part in rows `rows` and columns `columns`, as right-hand side of its own.
    ///
    /// # Panics
    /// If there are not so many, or the part begins inside a block of [`DEPTH`] rows or inside a panel.
    pub fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Part<'_> {
        assert!(rows.end <= self.k && columns.end <= self.n, "part outside the packed matrix");
        assert!(rows.start.is_multiple_of(DEPTH) && columns.start.is_multiple_of(self.width), "part inside a panel");
        assert!(rows.end == self.k || rows.end.is_multiple_of(DEPTH), "part ends inside a block");
        assert!(columns.end == self.n || columns.end.is_multiple_of(self.width), "part ends inside a panel");
        Part { panels: self, rows, columns }
    }

    pub(super) fn floats(&self) -> &[f32] {
        // SAFETY: `Line` is sixteen floats without padding.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().cast(), self.data.len() * 16) }
    }

    fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `floats`.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_mut_ptr().cast(), self.data.len() * 16) }
    }
}

/// Rows and columns of a packed matrix: all of it, or whole blocks and panels.
#[derive(Clone)]
pub struct Part<'a> {
    pub(super) panels: &'a Panels,
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
}

impl<'a> From<&'a Panels> for Part<'a> {
    fn from(panels: &'a Panels) -> Self {
        Part { panels, rows: 0..panels.k, columns: 0..panels.n }
    }
}

/// `to[k * to_stride + r] = from[r * row_stride + k * col_stride]` for r < R, k < depth.
#[inline(always)]
unsafe fn interleave<const R: usize>(
    from: *const f32,
    row_stride: usize,
    col_stride: usize,
    depth: usize,
    to: *mut f32,
    to_stride: usize,
) {
    for k in 0..depth {
        for r in 0..R {
            unsafe { *to.add(k * to_stride + r) = *from.add(r * row_stride + k * col_stride) }
        }
    }
}
