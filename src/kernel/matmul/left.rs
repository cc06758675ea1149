//! The left-hand side of a product: in place, or packed tile by tile.

use std::ops::Range;

use super::DEPTH;
use super::panels::Panels;
use super::view::Mat;
use crate::kernel::simd::Simd;
use crate::kernel::{Grow, dispatched};

/// The left-hand side of a product.
#[derive(Clone, Copy)]
pub enum Left<'a> {
    /// A matrix.
    Plain(Mat<'a>),
    /// One that is packed already.
    Packed(&'a PackedRows),
}

impl<'a> From<Mat<'a>> for Left<'a> {
    fn from(a: Mat<'a>) -> Self {
        Left::Plain(a)
    }
}

impl<'a> From<&'a PackedRows> for Left<'a> {
    fn from(a: &'a PackedRows) -> Self {
        Left::Packed(a)
    }
}

impl Left<'_> {
    pub(super) fn shape(self) -> (usize, usize) {
        match self {
            Self::Plain(a) => (a.rows, a.cols),
            Self::Packed(a) => (a.rows, a.k),
        }
    }
}

/// A left-hand side `[m, k]`, packed once for several products with one right-hand side.
#[derive(Default)]
pub struct PackedRows {
    pub(super) rows: usize,
    k: usize,
    /// Width of the panels it was packed for.
    pub(super) width: usize,
    /// Blocks of `DEPTH` columns; in each the tiles, as [`pack_left`] writes them.
    pub(super) data: Vec<f32>,
}

impl PackedRows {
    /// Packs `a` `[m, k]` for products with columns of `b` `[k, n]`; memory is kept.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn pack(&mut self, a: Mat, b: &Panels) {
        assert_eq!(a.cols, b.k(), "matrix product shapes");
        (self.rows, self.k, self.width) = (a.rows, a.cols, b.width);
        pack_rows(a, b.width, self.data.grow(a.rows * a.cols.next_multiple_of(SEGMENT)));
    }
}

dispatched! {
    fn pack_rows(a: Mat, width: usize, to: &mut [f32]) = pack_rows_body
}

/// # Safety
/// `S` is available.
#[inline(always)]
unsafe fn pack_rows_body<S: Simd>(a: Mat, width: usize, to: &mut [f32]) {
    let tiles = Tiles::new::<S>(a.rows, width);
    for block in (0..a.cols).step_by(DEPTH) {
        let depth = DEPTH.min(a.cols - block);
        tiles.pack(a, block..block + depth, &mut to[block * a.rows..]);
    }
}

/// How rows are cut into tiles. They are dealt out evenly: 197 rows are 15 tiles of 13 or 14, not 14 of 14 and a slow one of 1.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    rows: usize,
    pub(super) count: usize,
}

impl Tiles {
    /// The tiles of `rows` rows for panels of `width` columns.
    #[inline(always)]
    pub(super) fn new<S: Simd>(rows: usize, width: usize) -> Self {
        let most = if S::TILE_ROWS_OF_3 > 0 && width == 3 * S::LANES { S::TILE_ROWS_OF_3 } else { S::TILE_ROWS };
        Self { rows, count: rows.div_ceil(most) }
    }

    #[inline(always)]
    pub(super) fn rows(self, tile: usize) -> Range<usize> {
        tile * self.rows / self.count..(tile + 1) * self.rows / self.count
    }

    /// Packs these columns of `a`, tile by tile.
    #[inline(always)]
    pub(super) fn pack(self, a: Mat, columns: Range<usize>, to: &mut [f32]) {
        let depth = columns.len().next_multiple_of(SEGMENT);
        for tile in 0..self.count {
            let rows = self.rows(tile);
            pack_left(a, rows.clone(), columns.clone(), &mut to[rows.start * depth..rows.end * depth]);
        }
    }
}

/// Copies a block of A for one tile: [`SEGMENT`] columns of its first row, the same of its second, and so on, then the next
/// columns. The tile finds all it reads at fixed distances from one place, and nothing has to be transposed.
#[inline(always)]
fn pack_left(a: Mat, rows: Range<usize>, columns: Range<usize>, to: &mut [f32]) {
    let from = &a.data[rows.start * a.row_stride + columns.start * a.col_stride..];
    for (segments, column) in to.chunks_exact_mut(rows.len() * SEGMENT).zip((0..columns.len()).step_by(SEGMENT)) {
        let n = SEGMENT.min(columns.len() - column);
        for (row, segment) in segments.chunks_exact_mut(SEGMENT).enumerate() {
            let from = &from[row * a.row_stride + column * a.col_stride..];
            if a.col_stride == 1 {
                if let (SEGMENT, Some(from)) = (n, from.first_chunk::<SEGMENT>()) {
                    segment.copy_from_slice(from);
                } else {
                    segment[..n].copy_from_slice(&from[..n]);
                }
            } else {
                segment[..n].iter_mut().zip(from.iter().step_by(a.col_stride)).for_each(|(to, from)| *to = *from);
            }
        }
    }
}

/// Columns of a row that lie side by side in a packed left-hand side: a cache line.
pub(super) const SEGMENT: usize = 16;
