//! The right-hand side of a product, packed.
//!
//! Everything is counted in words of 32 bits: one f32, or two bfloat16 of one column, the upper row's in the lower half. So
//! a word times a broadcast word of the left-hand side is one multiply-add in f32 and a sum of two products in bfloat16
//! (`vdpbf16ps`), and both formats share layout and loops.

use std::ops::Range;

use half::bf16;

use super::DEPTH;
use super::view::Mat;
use crate::simd::{LANES_MAX, Simd, load, load_at_most, store, vectors};
use crate::{Isa, Precision, dispatched, isa};

/// A matrix packed as right-hand side, `[k, n]`: blocks of `DEPTH` rows, in each block panels of two or three vectors'
/// columns, in each panel the rows of words one after the other. The last panel is filled up with zeros.
#[derive(Default)]
pub struct Panels {
    k: usize,
    n: usize,
    /// Columns of a panel.
    width: usize,
    precision: Precision,
    data: Vec<Line>,
}

/// One cache line, so that vectors of a panel never straddle two.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Line([f32; 16]);

/// Columns of a panel of a matrix with `n` columns. A tile of three vectors has the better ratio of sums to loads
/// (measured on Granite Rapids at 394 x 768 x 768: 168 against 154 GFLOP/s), unless too much of it would be padding.
fn panel_width(n: usize) -> usize {
    match isa() {
        Isa::Avx512 | Isa::Avx512Bf16 if n.next_multiple_of(48) * 16 <= n.next_multiple_of(32) * 17 => 48,
        Isa::Avx512 | Isa::Avx512Bf16 => 32,
        Isa::Avx2 | Isa::Portable => 16,
    }
}

impl Panels {
    /// Packs a copy of `b`, `[k, n]`, in f32.
    pub fn pack(b: Mat) -> Self {
        Self::pack_as(b, Precision::F32)
    }

    /// Packs a copy of `b`, `[k, n]`, in `precision`.
    pub fn pack_as(b: Mat, precision: Precision) -> Self {
        let mut panels = Self::default();
        panels.reset_as(b.rows, b.cols, precision);
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

    /// Bytes of the packed copy.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<Line>()
    }

    /// Number format.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Makes this an unspecified `[k, n]` matrix in f32, to be filled; memory is kept.
    pub fn reset(&mut self, k: usize, n: usize) {
        self.reset_as(k, n, Precision::F32);
    }

    /// [`Self::reset`] in `precision`.
    pub fn reset_as(&mut self, k: usize, n: usize, precision: Precision) {
        let width = panel_width(n);
        (self.k, self.n, self.width, self.precision) = (k, n, width, precision);
        let rows = self.word_rows();
        let lines = (rows * n.next_multiple_of(width)).div_ceil(16);
        if self.data.len() < lines {
            self.data.resize(lines, Line::default());
        }
        // Only what fills up the last panel and the last row of words must be zero whatever was here before.
        if !n.is_multiple_of(width) {
            let last = n / width * width;
            for row in 0..rows {
                let at = self.position(row, last);
                self.floats_mut()[at + n - last..at + width].fill(0.0);
            }
        }
        if !k.is_multiple_of(precision.per_word()) {
            for col in (0..n).step_by(width) {
                let at = self.position(rows - 1, col);
                self.floats_mut()[at..at + width].fill(0.0);
            }
        }
    }

    /// Copies `b` to the place whose first element is `(row, col)`.
    ///
    /// # Panics
    /// If `b` reaches beyond the matrix.
    pub fn fill(&mut self, row: usize, col: usize, b: Mat) {
        assert!(row + b.rows <= self.k && col + b.cols <= self.n, "block outside the packed matrix");
        let (width, per_word) = (self.width, self.precision.per_word());
        let mut at_col = 0;
        while at_col < b.cols {
            // One panel's share of the columns at a time.
            let lane = (col + at_col) % width;
            let cols = (width - lane).min(b.cols - at_col);
            let mut at_row = 0;
            while at_row < b.rows {
                let (from_row, from_col) = (row + at_row, col + at_col);
                let rows = (DEPTH - from_row % DEPTH).min(b.rows - at_row);
                let part = |rows| b.row_range(at_row, rows).columns(at_col, cols);
                // Rows that share a word with what is here already.
                let shared = from_row % per_word > 0 || rows == 1 && from_row + 1 < self.k && per_word > 1;
                let rows = match per_word {
                    1 => rows,
                    _ if shared => 1,
                    // The last row of the matrix has its word for itself.
                    _ if from_row + rows == self.k => rows,
                    _ => rows / 2 * 2,
                };
                let strides = (b.row_stride, b.col_stride);
                if shared || (strides.0 != 1 && strides.1 != 1) {
                    self.set(from_row, from_col, part(rows));
                } else {
                    let start = self.position(from_row / per_word, from_col);
                    let pairs = self.precision == Precision::Bf16;
                    let target = &mut self.floats_mut()[start..];
                    assert!((rows.div_ceil(per_word) - 1) * width + cols <= target.len());
                    // SAFETY: the line above has checked the room, the one before the strides.
                    unsafe {
                        if strides.1 == 1 {
                            fill_rows(part(rows), target, width, pairs);
                        } else {
                            fill_columns(part(rows), target, width, pairs);
                        }
                    }
                }
                at_row += rows;
            }
            at_col += cols;
        }
    }

    /// Copies `b` value by value, whatever its strides.
    fn set(&mut self, row: usize, col: usize, b: Mat) {
        for r in 0..b.rows {
            for c in 0..b.cols {
                let value = b.data[r * b.row_stride + c * b.col_stride];
                let (row, col) = (row + r, col + c);
                let word = &mut match self.precision {
                    Precision::F32 => {
                        let at = self.position(row, col);
                        self.floats_mut()[at] = value;
                        continue;
                    }
                    Precision::Bf16 => self.position(row / 2, col),
                };
                let bits = u32::from(bf16::from_f32(value).to_bits());
                let old = self.floats()[*word].to_bits();
                let new = if row % 2 == 0 { old & 0xFFFF_0000 | bits } else { old & 0xFFFF | bits << 16 };
                self.floats_mut()[*word] = f32::from_bits(new);
            }
        }
    }

    /// The matrix in plain row-major order, `[k, n]`, as it was rounded.
    pub fn unpack(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.k * self.n];
        for row in 0..self.k {
            for col in 0..self.n {
                let word = self.floats()[self.position(row / self.precision.per_word(), col)];
                out[row * self.n + col] = match self.precision {
                    Precision::F32 => word,
                    Precision::Bf16 if row % 2 == 0 => f32::from_bits(word.to_bits() << 16),
                    Precision::Bf16 => f32::from_bits(word.to_bits() & 0xFFFF_0000),
                };
            }
        }
        out
    }

    /// Rows of words.
    fn word_rows(&self) -> usize {
        self.k.div_ceil(self.precision.per_word())
    }

    /// Where the word of this row of words and this column lies.
    fn position(&self, row: usize, col: usize) -> usize {
        let (width, block_rows) = (self.width, DEPTH / self.precision.per_word());
        let block = row / block_rows * block_rows;
        let depth = block_rows.min(self.word_rows() - block);
        block * self.n.next_multiple_of(width) + col / width * depth * width + (row - block) * width + col % width
    }

    /// The part in rows `rows` and columns `columns`, as right-hand side of its own.
    ///
    /// # Panics
    /// If there are not so many, or the part begins inside a block of [`DEPTH`] rows or inside a panel.
    pub fn part(&self, rows: Range<usize>, columns: Range<usize>) -> PanelRange<'_> {
        PanelRange::from(self).part(rows, columns)
    }

    /// The transposed matrix `[n, k]`. Its panels are made when a product needs them, and again for the next: for a few
    /// hundred rows of the left-hand side that costs some percent, and half of the memory that a second copy would take.
    pub fn t(&self) -> PanelRange<'_> {
        PanelRange { panels: self, rows: 0..self.n, columns: 0..self.k, width: panel_width(self.k), transposed: true }
    }

    fn floats(&self) -> &[f32] {
        // SAFETY: `Line` is sixteen floats without padding, so that the lines are as many floats, borrowed as `self` is.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().cast(), self.data.len() * 16) }
    }

    fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `floats`; any floats make lines.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_mut_ptr().cast(), self.data.len() * 16) }
    }
}

/// Rows and columns of a packed matrix or of its transpose: all of it, or whole blocks and panels.
#[derive(Clone)]
pub struct PanelRange<'a> {
    panels: &'a Panels,
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
    /// Columns of a panel.
    pub(super) width: usize,
    pub(super) transposed: bool,
}

impl<'a> From<&'a Panels> for PanelRange<'a> {
    fn from(panels: &'a Panels) -> Self {
        PanelRange { panels, rows: 0..panels.k, columns: 0..panels.n, width: panels.width, transposed: false }
    }
}

impl PanelRange<'_> {
    /// Rows.
    pub fn k(&self) -> usize {
        self.rows.len()
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.columns.len()
    }

    /// Number format.
    pub(super) fn precision(&self) -> Precision {
        self.panels.precision
    }

    /// The part in rows `rows` and columns `columns` of this one.
    ///
    /// # Panics
    /// If there are not so many, or the part begins or ends inside a block of [`DEPTH`] rows or inside a panel.
    #[must_use]
    pub fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Self {
        assert!(rows.end <= self.k() && columns.end <= self.n(), "part outside the packed matrix");
        assert!(rows.start.is_multiple_of(DEPTH) && columns.start.is_multiple_of(self.width), "part inside a panel");
        assert!(rows.end == self.k() || rows.end.is_multiple_of(DEPTH), "part ends inside a block");
        assert!(columns.end == self.n() || columns.end.is_multiple_of(self.width), "part ends inside a panel");
        let (row, column) = (self.rows.start, self.columns.start);
        PanelRange {
            rows: row + rows.start..row + rows.end,
            columns: column + columns.start..column + columns.end,
            ..self.clone()
        }
    }

    /// The panel whose columns begin at `column` and whose rows are `rows`, `width` words a row; a transposed one is written to `to`.
    ///
    /// # Safety
    /// Both lie inside this part, `column` begins a panel and `rows` a block; `S` is available.
    #[inline(always)]
    pub(super) unsafe fn panel<S: Simd>(&self, rows: Range<usize>, column: usize, to: &mut [Line]) -> *const f32 {
        let Self { panels, width, .. } = self;
        let per_word = panels.precision.per_word();
        if !self.transposed {
            return panels.floats()[panels.position(rows.start / per_word, column)..].as_ptr();
        }
        assert!(rows.len().div_ceil(per_word) * width <= to.len() * 16, "room for a panel");
        let columns = column..(column + width).min(panels.k);
        let to = to.as_mut_ptr().cast();
        // SAFETY: the room was checked above; rows and columns are a panel of the transpose, as the caller promises, along with `S`.
        unsafe {
            match panels.precision {
                Precision::F32 => panels.transpose::<S>(rows, columns, to, *width),
                Precision::Bf16 => panels.transpose_pairs::<S>(rows, columns, to, *width),
            }
        }
        to
    }
}

/// Where the panel that comes after another will be read from: some runs of words, equally long.
pub(super) struct Ahead {
    runs: [*const f32; DEPTH / LANES_MAX],
    count: usize,
    /// Cache lines of a run.
    lines: usize,
}

impl Ahead {
    /// Asks for one of `shares` shares of it.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(&self, share: usize, shares: usize) {
        let all = self.count * self.lines;
        let (mut line, end) = (share * all / shares, (share + 1) * all / shares);
        while line < end {
            let (run, first) = (self.runs[line / self.lines], line % self.lines);
            let lines = (self.lines - first).min(end - line);
            for at in first..first + lines {
                S::prefetch(run.wrapping_add(16 * at));
            }
            line += lines;
        }
    }
}

impl PanelRange<'_> {
    /// Where the panel of these rows is read from that begins at `column`, which may lie behind the last one.
    #[inline(always)]
    pub(super) fn ahead(&self, rows: Range<usize>, column: usize) -> Ahead {
        let Self { panels, width, .. } = self;
        let per_word = panels.precision.per_word();
        let mut ahead = Ahead { runs: [std::ptr::null(); DEPTH / LANES_MAX], count: 0, lines: 0 };
        if column >= self.columns.end {
            return ahead;
        }
        let words = panels.floats().as_ptr();
        if self.transposed {
            ahead.lines = (*width).min(panels.k - column).div_ceil(per_word) * panels.width / 16;
            for (run, row) in ahead.runs.iter_mut().zip(rows.step_by(panels.width)) {
                *run = words.wrapping_add(panels.position(column / per_word, row));
                ahead.count += 1;
            }
        } else {
            ahead.runs[0] = words.wrapping_add(panels.position(rows.start / per_word, column));
            (ahead.count, ahead.lines) = (1, rows.len().div_ceil(per_word) * width / 16);
        }
        ahead
    }
}

/// How panels are read the other way round. Blocks of one vector's length in both directions never straddle a panel or a
/// block of rows, since all begin at multiples of it.
impl Panels {
    /// Writes rows `rows` and columns `columns` of the transpose as a panel of `width` columns.
    ///
    /// # Safety
    /// As for [`PanelRange::panel`] of the transpose, of which at most `width` columns are left; `to` has room for as many rows of words as
    /// `rows` fill, `width` words each.
    #[inline(always)]
    unsafe fn transpose<S: Simd>(&self, rows: Range<usize>, columns: Range<usize>, to: *mut f32, width: usize) {
        let l = S::LANES;
        // SAFETY: a block of at most `l` by `l` words that begins at multiples of `l` lies in one panel and one block of rows, so its rows
        // are `self.width` apart, and it ends inside the matrix; its columns go to rows of `to`, at columns that are less than `width`.
        unsafe {
            for i in columns.clone().step_by(l) {
                let m = l.min(columns.end - i);
                for o in rows.clone().step_by(l) {
                    let from = self.floats().as_ptr().add(self.position(i, o));
                    let to = to.add((o - rows.start) * width + i - columns.start);
                    S::transpose(from, self.width, (m, l.min(rows.end - o)), to, width);
                }
            }
            for row in 0..rows.len() {
                to.add(row * width + columns.len()).write_bytes(0, width - columns.len());
            }
        }
    }

    /// [`Self::transpose`] of bfloat16: words pair other values in the transpose.
    ///
    /// # Safety
    /// As for [`Self::transpose`].
    #[inline(always)]
    unsafe fn transpose_pairs<S: Simd>(&self, rows: Range<usize>, columns: Range<usize>, to: *mut f32, width: usize) {
        let l = S::LANES;
        let mut words = [0.0; LANES_MAX * LANES_MAX];
        // SAFETY: as in `transpose`; all `l` words of a row may be read, since panels are filled up to their width, a multiple of `l`.
        // `words` has room for `l` vectors. The second vector of a pair of words is written only where the panel is that wide.
        unsafe {
            for i in columns.clone().step_by(2 * l) {
                // Words that hold two columns of the transpose each.
                let m = l.min((columns.end - i).div_ceil(2));
                if m < l {
                    words.fill(0.0);
                }
                let room = (columns.start + width - i) / l;
                for o in rows.clone().step_by(l) {
                    let from = self.floats().as_ptr().add(self.position(i / 2, o));
                    S::transpose(from, self.width, (m, l), words.as_mut_ptr(), l);
                    let to = to.add((o - rows.start) / 2 * width + i - columns.start);
                    for pair in 0..l.min(rows.end - o).div_ceil(2) {
                        let at = words.as_ptr().add(2 * pair * l);
                        let mixed = S::mix(S::load(at), S::load(at.add(l)));
                        S::store(to.add(pair * width), mixed[0]);
                        if room > 1 {
                            S::store(to.add(pair * width + l), mixed[1]);
                        }
                    }
                }
            }
            let from = (columns.len().div_ceil(l) * l).min(width);
            for row in 0..rows.len().div_ceil(2) {
                to.add(row * width + from).write_bytes(0, width - from);
            }
        }
    }
}

dispatched! {
    /// # Safety
    /// As for [`fill_rows_body`], less the instructions.
    pairs unsafe fn fill_rows(b: Mat, to: &mut [f32], width: usize, pairs: bool) = fill_rows_body
}

/// Copies `b`, whose rows are contiguous, into a panel; `pairs`: two rows to a row of words.
///
/// # Safety
/// The rows of `b` are contiguous; `to` holds as many rows of words as it fills, `b.cols` words each, at distance `width`; `S` is
/// available.
#[inline(always)]
unsafe fn fill_rows_body<S: Simd>(b: Mat, to: &mut [f32], width: usize, pairs: bool) {
    // SAFETY: rows below `b.rows` are read, of which a view has `b.cols` values each, and rows of words are written that the caller
    // has room for; `vectors!` stays inside `b.cols`.
    unsafe {
        let (from, to) = (b.data.as_ptr(), to.as_mut_ptr());
        if !pairs {
            for r in 0..b.rows {
                let (from, to) = (from.add(r * b.row_stride), to.add(r * width));
                vectors!(S, b.cols, |i, n| store::<S>(to.add(i), load::<S>(from.add(i), n), n));
            }
            return;
        }
        for r in (0..b.rows).step_by(2) {
            let (from, to) = (from.add(r * b.row_stride), to.add(r / 2 * width));
            let both = r + 1 < b.rows;
            vectors!(S, b.cols, |i, n| {
                let lower = load::<S>(from.add(i), n);
                let upper = if both { load::<S>(from.add(b.row_stride + i), n) } else { S::zero() };
                store::<S>(to.add(i), S::pair(lower, upper), n);
            });
        }
    }
}

dispatched! {
    /// # Safety
    /// As for [`fill_columns_body`], less the instructions.
    pairs unsafe fn fill_columns(b: Mat, to: &mut [f32], width: usize, pairs: bool) = fill_columns_body
}

/// Copies `b`, whose columns are contiguous, into a panel; `pairs`: two rows to a row of words.
///
/// # Safety
/// As for [`fill_rows_body`], but for `b`, whose columns are contiguous.
#[inline(always)]
unsafe fn fill_columns_body<S: Simd>(b: Mat, to: &mut [f32], width: usize, pairs: bool) {
    let l = S::LANES;
    let mut narrow = [0.0; LANES_MAX * LANES_MAX];
    // SAFETY: of `m <= l` columns of `b`, which a view has, words `w` to `w + n` are read, no value behind the last row; they go to `n`
    // rows of words from `w` on, at `m` columns from `c` on, that the caller has room for. `narrow` has room for `l` vectors.
    unsafe {
        let (from, to) = (b.data.as_ptr(), to.as_mut_ptr());
        for c in (0..b.cols).step_by(l) {
            let m = l.min(b.cols - c);
            let words = if pairs { b.rows.div_ceil(2) } else { b.rows };
            for w in (0..words).step_by(l) {
                let n = l.min(words - w);
                let to = to.add(w * width + c);
                if !pairs {
                    S::transpose(from.add(c * b.col_stride + w), b.col_stride, (m, n), to, width);
                    continue;
                }
                for column in 0..m {
                    let from = from.add((c + column) * b.col_stride + 2 * w);
                    let left = b.rows - 2 * w;
                    let lower = load_at_most::<S>(from, left);
                    let upper = load_at_most::<S>(from.wrapping_add(l), left.saturating_sub(l));
                    S::store(narrow.as_mut_ptr().add(column * l), S::narrow(lower, upper));
                }
                S::transpose(narrow.as_ptr(), l, (m, n), to, width);
            }
        }
    }
}
