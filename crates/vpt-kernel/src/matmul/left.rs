//! The left-hand side of a product: in place, or packed tile by tile.

use std::ops::Range;

use super::DEPTH;
use super::panels::PanelRange;
use super::view::Mat;
use crate::simd::{LANES_MAX, Simd, load, load_at_most};
use crate::{Grow, Precision, dispatched};

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
    /// Width of the panels it was packed for, and their number format.
    pub(super) packed_for: (usize, Precision),
    /// Blocks of `DEPTH` columns; in each the tiles, as [`pack_left`] writes them.
    pub(super) data: Vec<f32>,
}

impl PackedRows {
    /// Packs `a` `[m, k]` for products with columns of `b` `[k, n]`; memory is kept.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn pack<'a>(&mut self, a: Mat, b: impl Into<PanelRange<'a>>) {
        let b = b.into();
        assert_eq!(a.cols, b.k(), "matrix product shapes");
        (self.rows, self.k, self.packed_for) = (a.rows, a.cols, (b.width, b.precision()));
        let words = packed_words(a.cols, b.precision());
        pack_rows(a, b.width, b.precision() == Precision::Bf16, self.data.grow(a.rows * words));
    }
}

/// Words that a row of `columns` values takes when it is packed.
pub(super) fn packed_words(columns: usize, precision: Precision) -> usize {
    columns.div_ceil(precision.per_word()).next_multiple_of(SEGMENT)
}

dispatched! {
    pairs fn pack_rows(a: Mat, width: usize, pairs: bool, to: &mut [f32]) = pack_rows_body
}

/// # Safety
/// `S` is available.
#[inline(always)]
unsafe fn pack_rows_body<S: Simd>(a: Mat, width: usize, pairs: bool, to: &mut [f32]) {
    let tiles = Tiles::new::<S>(a.rows, width);
    for block in (0..a.cols).step_by(DEPTH) {
        let depth = DEPTH.min(a.cols - block);
        let at = if pairs { block / 2 } else { block };
        // SAFETY: the caller promises `S`.
        unsafe { tiles.pack::<S>(a, block..block + depth, pairs, &mut to[at * a.rows..]) }
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
    ///
    /// # Safety
    /// `S` is available.
    #[inline(always)]
    pub(super) unsafe fn pack<S: Simd>(self, a: Mat, columns: Range<usize>, pairs: bool, to: &mut [f32]) {
        let precision = if pairs { Precision::Bf16 } else { Precision::F32 };
        let words = packed_words(columns.len(), precision);
        for tile in 0..self.count {
            let rows = self.rows(tile);
            let part = a.row_range(rows.start, rows.len()).columns(columns.start, columns.len());
            let to = &mut to[rows.start * words..rows.end * words];
            match precision {
                Precision::F32 => pack_left(part, to),
                // SAFETY: the caller promises `S`.
                Precision::Bf16 => unsafe { pack_pairs::<S>(part, to) },
            }
        }
    }
}

/// Copies `a` for one tile: [`SEGMENT`] columns of its first row, the same of its second, and so on, then the next
/// columns. The tile finds all it reads at fixed distances from one place, and nothing has to be transposed.
#[inline(always)]
fn pack_left(a: Mat, to: &mut [f32]) {
    for (segments, column) in to.chunks_exact_mut(a.rows * SEGMENT).zip((0..a.cols).step_by(SEGMENT)) {
        let n = SEGMENT.min(a.cols - column);
        for (row, segment) in segments.chunks_exact_mut(SEGMENT).enumerate() {
            let from = &a.data[row * a.row_stride + column * a.col_stride..];
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

/// [`pack_left`] in bfloat16, two columns to a word.
///
/// # Safety
/// `S` is available.
#[inline(always)]
unsafe fn pack_pairs<S: Simd>(a: Mat, to: &mut [f32]) {
    let l = S::LANES;
    let mut words = [0.0; LANES_MAX * LANES_MAX];
    for (segments, column) in to.chunks_exact_mut(a.rows * SEGMENT).zip((0..a.cols).step_by(2 * SEGMENT)) {
        for part in 0..SEGMENT / l {
            // The columns of this vector of words, and how many of them there are.
            let first = column + part * 2 * l;
            let left = a.cols.saturating_sub(first);
            let segments = segments.as_mut_ptr().wrapping_add(part * l);
            let from = |row: usize, column: usize| {
                a.data.as_ptr().wrapping_add(row * a.row_stride + (first + column) * a.col_stride)
            };
            // SAFETY: reads stop at the last column and row of `a`, and a view has all its values. What is written lies in the rows of
            // `segments`, each of SEGMENT words, a multiple of `l`, of which this part is `l`; `words` has room for `l` vectors, `values`
            // for two. The caller promises `S`.
            unsafe {
                if a.col_stride == 1 {
                    for row in 0..a.rows {
                        let lower = load_at_most::<S>(from(row, 0), left);
                        let upper = load_at_most::<S>(from(row, l), left.saturating_sub(l));
                        S::store(segments.add(row * SEGMENT), S::narrow(lower, upper));
                    }
                } else if a.row_stride == 1 && a.rows <= l {
                    for word in 0..l {
                        let column =
                            |column| if column < left { load::<S>(from(0, column), a.rows) } else { S::zero() };
                        let pair = S::pair(column(2 * word), column(2 * word + 1));
                        S::store(words.as_mut_ptr().add(word * l), pair);
                    }
                    S::transpose(words.as_ptr(), l, (l, a.rows), segments, SEGMENT);
                } else {
                    for row in 0..a.rows {
                        let mut values = [0.0; 2 * LANES_MAX];
                        for (column, value) in values.iter_mut().enumerate().take(left.min(2 * l)) {
                            *value = *from(row, column);
                        }
                        let at = values.as_ptr();
                        S::store(segments.add(row * SEGMENT), S::narrow(S::load(at), S::load(at.add(l))));
                    }
                }
            }
        }
    }
}

/// Words of a row that lie side by side in a packed left-hand side: a cache line.
pub(super) const SEGMENT: usize = 16;
