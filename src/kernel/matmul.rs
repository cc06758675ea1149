//! Matrix products `C = A B (+ bias) (+ C)` in f32 with a packed right-hand side.
//!
//! The right-hand side is what is used again and again: a frozen weight is packed once for the life of the program, keys
//! and values once per image and head. The left-hand side may have any strides, so that `Aᵀ B` costs no extra copy; a block
//! of it is packed on every call if enough panels read it. A register tile holds up to 9 x 48 or 14 x 32 sums (AVX-512). All rows of
//! A pass by a panel of B while that is in a near cache, and the block of A stays in the second-level cache while all
//! panels do (the scheme of Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008).

use std::cell::RefCell;
use std::ops::Range;

use super::activation::{Activation, activate_row};
use super::simd::{Simd, load, store, vectors};
use super::{Grow, Isa, dispatched, isa};

/// Rows of a block of B: larger ones write C less often, smaller ones keep more of a panel in the first-level cache. A
/// multiple of every panel's width.
pub const DEPTH: usize = 384;

/// A read-only matrix view with strides, `[rows, cols]`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A view of rows of `cols` values, `row_stride` apart.
    ///
    /// # Panics
    /// If `data` is too short.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert_fits(data.len(), rows, cols, row_stride);
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transposed view.
    #[must_use]
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            data: self.data,
        }
    }

    /// The view of `n` columns from `from` on.
    ///
    /// # Panics
    /// If there are not so many.
    #[must_use]
    pub fn columns(self, from: usize, n: usize) -> Self {
        assert!(from + n <= self.cols, "columns {from}..{} of {}", from + n, self.cols);
        Self { data: &self.data[(from * self.col_stride).min(self.data.len())..], cols: n, ..self }
    }

    /// The view of `n` rows from `from` on.
    ///
    /// # Panics
    /// If there are not so many.
    #[must_use]
    pub fn row_range(self, from: usize, n: usize) -> Self {
        assert!(from + n <= self.rows, "rows {from}..{} of {}", from + n, self.rows);
        Self { data: &self.data[(from * self.row_stride).min(self.data.len())..], rows: n, ..self }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The values from the first one on and the distance between rows.
    ///
    /// # Panics
    /// If this is a transposed view.
    pub(super) fn contiguous_rows(&self) -> (&'a [f32], usize) {
        assert_eq!(self.col_stride, 1, "a view with contiguous rows is needed");
        (self.data, self.row_stride)
    }
}

/// A writable matrix view with contiguous rows, `[rows, cols]`.
pub struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// A view of rows of `cols` values, `row_stride` apart.
    ///
    /// # Panics
    /// If `data` is too short or rows overlap.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert_fits(data.len(), rows, cols, row_stride);
        assert!(rows <= 1 || row_stride >= cols, "rows of {cols} values overlap at stride {row_stride}");
        Self { data, rows, cols, row_stride }
    }

    /// The view of `n` columns from `from` on.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn columns(&mut self, from: usize, n: usize) -> MatMut<'_> {
        assert!(from + n <= self.cols, "columns {from}..{} of {}", from + n, self.cols);
        let start = from.min(self.data.len());
        MatMut { data: &mut self.data[start..], rows: self.rows, cols: n, row_stride: self.row_stride }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The values from the first one on and the distance between rows.
    pub(super) fn contiguous_rows(&mut self) -> (&mut [f32], usize) {
        (self.data, self.row_stride)
    }
}

fn assert_fits(len: usize, rows: usize, cols: usize, row_stride: usize) {
    let needed = if rows == 0 { 0 } else { (rows - 1) * row_stride + cols };
    assert!(needed <= len, "a view of {rows} rows of {cols} at stride {row_stride} needs {needed} values, got {len}");
}

/// A matrix packed as right-hand side, `[k, n]`: blocks of `DEPTH` rows, in each block panels of two or three vectors'
/// columns, in each panel the rows one after the other. The last panel is filled up with zeros.
#[derive(Default)]
pub struct Panels {
    k: usize,
    n: usize,
    /// Columns of a panel.
    width: usize,
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

    fn position(&self, row: usize, col: usize) -> usize {
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

    fn floats(&self) -> &[f32] {
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
    panels: &'a Panels,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl<'a> From<&'a Panels> for Part<'a> {
    fn from(panels: &'a Panels) -> Self {
        Part { panels, rows: 0..panels.k, columns: 0..panels.n }
    }
}

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
    fn shape(self) -> (usize, usize) {
        match self {
            Self::Plain(a) => (a.rows, a.cols),
            Self::Packed(a) => (a.rows, a.k),
        }
    }
}

/// A left-hand side `[m, k]`, packed once for several products with one right-hand side.
#[derive(Default)]
pub struct PackedRows {
    rows: usize,
    k: usize,
    /// Width of the panels it was packed for.
    width: usize,
    /// Blocks of `DEPTH` columns; in each the tiles, as [`pack_left`] writes them.
    data: Vec<f32>,
}

impl PackedRows {
    /// Packs `a` `[m, k]` for products with columns of `b` `[k, n]`; memory is kept.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn pack(&mut self, a: Mat, b: &Panels) {
        assert_eq!(a.cols, b.k, "matrix product shapes");
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
struct Tiles {
    rows: usize,
    count: usize,
}

impl Tiles {
    /// The tiles of `rows` rows for panels of `width` columns.
    #[inline(always)]
    fn new<S: Simd>(rows: usize, width: usize) -> Self {
        let most = if S::TILE_ROWS_OF_3 > 0 && width == 3 * S::LANES { S::TILE_ROWS_OF_3 } else { S::TILE_ROWS };
        Self { rows, count: rows.div_ceil(most) }
    }

    #[inline(always)]
    fn rows(self, tile: usize) -> Range<usize> {
        tile * self.rows / self.count..(tile + 1) * self.rows / self.count
    }

    /// Packs these columns of `a`, tile by tile.
    #[inline(always)]
    fn pack(self, a: Mat, columns: Range<usize>, to: &mut [f32]) {
        let depth = columns.len().next_multiple_of(SEGMENT);
        for tile in 0..self.count {
            let rows = self.rows(tile);
            pack_left(a, rows.clone(), columns.clone(), &mut to[rows.start * depth..rows.end * depth]);
        }
    }
}

/// What the result starts from.
#[derive(Clone, Copy)]
pub enum Init<'a> {
    /// Zero.
    Zero,
    /// The bias `[n]`, in every row.
    Bias(&'a [f32]),
    /// What is in C.
    Add,
    /// What is in C, plus the bias `[n]`.
    AddBias(&'a [f32]),
}

/// `C = init + A B`: A `[m, k]`, B `[k, n]`, C `[m, n]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul<'a, 'b>(a: impl Into<Left<'a>>, b: impl Into<Part<'b>>, c: MatMut, init: Init) {
    product(a.into(), &b.into(), c, init, None);
}

/// `H = A B + bias`, then `C = f(H)` and, if wanted, `derivative = f'(H)` `[m, n]`, a tile at a time while it is in the
/// cache.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul_activate<'a, 'b>(
    a: impl Into<Left<'a>>,
    b: impl Into<Part<'b>>,
    c: MatMut,
    bias: &[f32],
    activation: Activation,
    derivative: Option<MatMut>,
) {
    let (derivative, stride) = match derivative {
        Some(view) => {
            assert_eq!((view.rows, view.cols), (c.rows, c.cols), "shape of the derivative");
            (view.data.as_mut_ptr(), view.row_stride)
        }
        None => (std::ptr::null_mut(), 0),
    };
    product(a.into(), &b.into(), c, Init::Bias(bias), Some(Then::Activate(activation, derivative, stride)));
}

/// `C = (A B) * factor` `[m, n]`, element by element: the VJP through an activation whose derivative is `factor`, a tile at
/// a time while it is in the cache.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul_scale<'a, 'b>(a: impl Into<Left<'a>>, b: impl Into<Part<'b>>, c: MatMut, factor: Mat) {
    assert_eq!((factor.rows, factor.cols), (c.rows, c.cols), "shape of the factor");
    let (data, stride) = factor.contiguous_rows();
    product(a.into(), &b.into(), c, Init::Zero, Some(Then::Scale(data.as_ptr(), stride)));
}

/// What happens to a finished tile.
#[derive(Clone, Copy)]
enum Then {
    /// The activation, with its derivative written to rows of this stride unless the pointer is null.
    Activate(Activation, *mut f32, usize),
    /// Multiplication by rows of this stride.
    Scale(*const f32, usize),
}

impl Then {
    /// The other matrix's value at `(row, col)`; null if there is none.
    fn other(self, row: usize, col: usize) -> *const f32 {
        match self {
            Self::Activate(_, derivative, _) if derivative.is_null() => std::ptr::null(),
            Self::Activate(_, derivative, stride) => derivative.wrapping_add(row * stride + col),
            Self::Scale(factor, stride) => factor.wrapping_add(row * stride + col),
        }
    }
}

fn product(a: Left, b: &Part, c: MatMut, init: Init, then: Option<Then>) {
    let (k, n) = (b.rows.len(), b.columns.len());
    let (m, a_cols) = a.shape();
    assert_eq!((m, a_cols, n), (c.rows, k, c.cols), "matrix product shapes");
    let (accumulate, bias) = match init {
        Init::Zero => (false, None),
        Init::Bias(bias) => (false, Some(bias)),
        Init::Add => (true, None),
        Init::AddBias(bias) => (true, Some(bias)),
    };
    if let Some(bias) = bias {
        assert_eq!(bias.len(), n, "bias length");
    }
    if k == 0 || n == 0 || m == 0 {
        assert!(k > 0 || accumulate, "a product over nothing");
        return;
    }
    LEFT.with_borrow_mut(|left| {
        blocks(a, b, c, accumulate, bias, then, left.grow(m * DEPTH.min(k).next_multiple_of(SEGMENT)));
    });
}

dispatched! {
    fn blocks(a: Left, b: &Part, c: MatMut, accumulate: bool, bias: Option<&[f32]>, then: Option<Then>, left: &mut [f32]) = blocks_body
}

thread_local! {
    /// The packed block of the left-hand side, kept from call to call.
    static LEFT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// # Safety
/// The shapes have been checked by [`product`]; `S` is available.
#[inline(always)]
unsafe fn blocks_body<S: Simd>(
    a: Left,
    b: &Part,
    c: MatMut,
    accumulate: bool,
    bias: Option<&[f32]>,
    then: Option<Then>,
    left: &mut [f32],
) {
    unsafe {
        if S::TILE_ROWS_OF_3 > 0 && b.panels.width == 3 * S::LANES {
            blocks_of::<S, 3>(a, b, c, accumulate, bias, then, left);
        } else {
            blocks_of::<S, 2>(a, b, c, accumulate, bias, then, left);
        }
    }
}

/// With tiles of `V` vectors.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn blocks_of<S: Simd, const V: usize>(
    a: Left,
    b: &Part,
    c: MatMut,
    accumulate: bool,
    bias: Option<&[f32]>,
    then: Option<Then>,
    left: &mut [f32],
) {
    let width = V * S::LANES;
    let Part { panels, rows: b_rows, columns: b_columns } = b;
    assert_eq!(panels.width, width, "packed for another instruction set");
    let tiles = Tiles::new::<S>(a.shape().0, width);
    let count = tiles.count;
    for block in b_rows.clone().step_by(DEPTH) {
        let depth = DEPTH.min(b_rows.end - block);
        let (first, last) = (block == b_rows.start, block + depth == b_rows.end);
        let a_column = block - b_rows.start;
        let packed = match a {
            Left::Packed(a) => {
                assert_eq!(a.width, width, "packed for other panels");
                Some(&a.data[a_column * a.rows..])
            }
            // Copying A pays if enough panels read the copy.
            Left::Plain(_) if b_columns.len().div_ceil(width) < 4 => None,
            Left::Plain(a) => {
                tiles.pack(a, a_column..a_column + depth, left);
                Some(&*left)
            }
        };
        for b_column in b_columns.clone().step_by(width) {
            let col = b_column - b_columns.start;
            let cols = width.min(b_columns.end - b_column);
            // SAFETY: the first element of this panel lies inside the packed matrix.
            let panel = unsafe { panels.floats().as_ptr().add(panels.position(block, b_column)) };
            let panel_len = depth * width;
            let start = if first { bias.map(|bias| &bias[col..col + cols]) } else { None };
            for tile in 0..count {
                let rows = tiles.rows(tile);
                let left = match (packed, a) {
                    (None, Left::Plain(a)) => {
                        let at = rows.start * a.row_stride + a_column * a.col_stride;
                        TileLeft::Strided(a.data[at..].as_ptr(), a.row_stride, a.col_stride)
                    }
                    (packed, _) => {
                        let at = rows.start * depth.next_multiple_of(SEGMENT);
                        TileLeft::Packed(packed.unwrap_or_default()[at..].as_ptr())
                    }
                };
                // The next panel comes from memory: each tile asks for its share of it in advance.
                for line in (tile * panel_len / count..(tile + 1) * panel_len / count).step_by(16) {
                    S::prefetch(panel.wrapping_add(panel_len + line));
                }
                // SAFETY: these rows and `cols` columns from `col` on lie in C.
                unsafe {
                    let to = c.data.as_mut_ptr().add(rows.start * c.row_stride + col);
                    // So does the place of the result, and that of what it will be combined with.
                    for row in rows.clone() {
                        let other = then.map_or(std::ptr::null(), |then| then.other(row, col));
                        for half in (0..width).step_by(S::LANES) {
                            S::prefetch(c.data.as_ptr().wrapping_add(row * c.row_stride + col + half));
                            if !other.is_null() {
                                S::prefetch(other.wrapping_add(half));
                            }
                        }
                    }
                    let result = Tile { to, stride: c.row_stride, cols, add: accumulate || !first };
                    multiply_tile::<S, V>(rows.len(), depth, left, panel, start, result);
                    if let (true, Some(then)) = (last, then) {
                        for (r, row) in rows.enumerate() {
                            let (x, other) = (to.add(r * c.row_stride), then.other(row, col));
                            match then {
                                Then::Scale(..) => scale_row::<S>(x, other, cols),
                                Then::Activate(f, ..) => activate_row::<S>(f, x, other.cast_mut(), cols),
                            }
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn scale_row<S: Simd>(x: *mut f32, factor: *const f32, n: usize) {
    unsafe {
        vectors!(S, n, |i, n| store::<S>(x.add(i), S::mul(load::<S>(x.add(i), n), load::<S>(factor.add(i), n)), n));
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

/// Columns of a row that lie side by side in a packed left-hand side: a cache line.
const SEGMENT: usize = 16;

/// The left-hand side of one register tile.
#[derive(Clone, Copy)]
enum TileLeft {
    /// As [`pack_left`] wrote it.
    Packed(*const f32),
    /// In place: first element, distance of rows, distance of columns.
    Strided(*const f32, usize, usize),
}

/// Where one register tile goes.
#[derive(Clone, Copy)]
struct Tile {
    to: *mut f32,
    stride: usize,
    cols: usize,
    add: bool,
}

#[inline(always)]
unsafe fn multiply_tile<S: Simd, const V: usize>(
    rows: usize,
    depth: usize,
    left: TileLeft,
    panel: *const f32,
    bias: Option<&[f32]>,
    result: Tile,
) {
    macro_rules! by_rows {
        ($($n:literal)*) => {
            match rows {
                $($n if $n <= (if V == 3 { S::TILE_ROWS_OF_3 } else { S::TILE_ROWS }) => unsafe {
                    let sums = match left {
                        TileLeft::Packed(at) => tile::<S, $n, V>(depth, at, SEGMENT, 1, $n * SEGMENT, panel),
                        TileLeft::Strided(at, rows, columns) => {
                            tile::<S, $n, V>(depth, at, rows, columns, SEGMENT * columns, panel)
                        }
                    };
                    finish::<S, V>(&sums, bias, result);
                },)*
                _ => unreachable!("a tile of {rows} rows"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
}

/// `R` rows and `V` vectors of columns: all sums in registers. `segment_stride` is the distance between places whose columns
/// are [`SEGMENT`] apart.
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const V: usize>(
    depth: usize,
    left: *const f32,
    row_stride: usize,
    col_stride: usize,
    segment_stride: usize,
    panel: *const f32,
) -> [[S::V; V]; R] {
    let width = V * S::LANES;
    unsafe {
        let mut sums = [[S::zero(); V]; R];
        let (mut a, mut b) = (left, panel);
        macro_rules! step {
            ($k:literal) => {
                let mut row = [S::zero(); V];
                for v in 0..V {
                    row[v] = S::load(b.add($k * width + v * S::LANES));
                }
                for r in 0..R {
                    let x = S::splat(*a.add($k * col_stride + r * row_stride));
                    for v in 0..V {
                        sums[r][v] = S::fma(x, row[v], sums[r][v]);
                    }
                }
            };
        }
        for _ in 0..depth / SEGMENT {
            for _ in 0..SEGMENT / 4 {
                step!(0);
                step!(1);
                step!(2);
                step!(3);
                (a, b) = (a.add(4 * col_stride), b.add(4 * width));
            }
            a = a.add(segment_stride).sub(SEGMENT * col_stride);
        }
        for _ in 0..depth % SEGMENT {
            step!(0);
            (a, b) = (a.add(col_stride), b.add(width));
        }
        // The sums leave the registers at constant indices only: a dynamic index anywhere would keep them in memory
        // throughout the loop above (measured: a third of the speed).
        let mut done = [[S::zero(); V]; R];
        for r in 0..R {
            for v in 0..V {
                done[r][v] = sums[r][v];
            }
        }
        done
    }
}

/// Adds bias and previous content to a tile's sums and writes them.
#[inline(always)]
unsafe fn finish<S: Simd, const V: usize>(sums: &[[S::V; V]], bias: Option<&[f32]>, result: Tile) {
    unsafe {
        for v in 0..V {
            let offset = v * S::LANES;
            if result.cols <= offset {
                break;
            }
            let n = (result.cols - offset).min(S::LANES);
            let base = match bias {
                Some(bias) => load::<S>(bias.as_ptr().add(offset), n),
                None => S::zero(),
            };
            for (r, sum) in sums.iter().enumerate() {
                let to = result.to.add(r * result.stride + offset);
                let mut sum = S::add(sum[v], base);
                if result.add {
                    sum = S::add(sum, load::<S>(to, n));
                }
                store::<S>(to, sum, n);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::row_stride;
    use crate::kernel::testing::{assert_close, random};

    fn check(m: usize, k: usize, n: usize, transpose_a: bool) {
        let (a_stride, c_stride) = (row_stride(if transpose_a { m } else { k }), row_stride(n));
        let a = random(1, a_stride * if transpose_a { k } else { m });
        let b = random(2, k * n);
        let bias = random(3, n);
        let start = random(4, m * c_stride);
        let at = |i: usize, j: usize| f64::from(a[if transpose_a { j * a_stride + i } else { i * a_stride + j }]);
        let view = if transpose_a { Mat::new(&a, k, m, a_stride).t() } else { Mat::new(&a, m, k, a_stride) };
        let panels = Panels::pack(Mat::new(&b, k, n, n));
        assert_eq!(panels.unpack(), b);
        for (init, with_c, with_bias) in [
            (Init::Zero, 0.0, 0.0),
            (Init::Bias(&bias), 0.0, 1.0),
            (Init::Add, 1.0, 0.0),
            (Init::AddBias(&bias), 1.0, 1.0),
        ] {
            let mut c = start.clone();
            matmul(view, &panels, MatMut::new(&mut c, m, n, c_stride), init);
            for i in 0..m {
                for j in 0..n {
                    let mut want = with_c * f64::from(start[i * c_stride + j]) + with_bias * f64::from(bias[j]);
                    want += (0..k).map(|l| at(i, l) * f64::from(b[l * n + j])).sum::<f64>();
                    assert_close(c[i * c_stride + j], want, 2e-6 * (k as f64).sqrt());
                }
                assert_eq!(c[i * c_stride + n..(i + 1) * c_stride], start[i * c_stride + n..(i + 1) * c_stride]);
            }
        }
    }

    #[test]
    fn products_equal_plain_loops_for_every_tail() {
        for (m, k, n) in [
            (1, 1, 1),
            (3, 5, 7),
            (14, 32, 32),
            (15, 64, 33),
            (29, 257, 48),
            (7, 900, 31),
            (50, 17, 65),
            (23, 400, 144),
            (19, 50, 190),
        ] {
            check(m, k, n, false);
            check(m, k, n, true);
        }
    }

    #[test]
    fn products_with_parts_are_parts_of_the_product() {
        let (m, k, n) = (11, DEPTH + 100, 5 * 96 + 7);
        let (a, b) = (random(1, m * k), random(2, k * n));
        let panels = Panels::pack(Mat::new(&b, k, n, n));
        let a = Mat::new(&a, m, k, k);
        let mut whole = vec![0.0; m * n];
        matmul(a, &panels, MatMut::new(&mut whole, m, n, n), Init::Zero);
        let mut parts = vec![0.0; m * n];
        for columns in [0..96, 96..4 * 96, 4 * 96..n] {
            let (from, len) = (columns.start, columns.len());
            for (rows, init) in [(0..DEPTH, Init::Zero), (DEPTH..k, Init::Add)] {
                let mut c = MatMut::new(&mut parts, m, n, n);
                matmul(
                    a.columns(rows.start, rows.len()),
                    panels.part(rows, columns.clone()),
                    c.columns(from, len),
                    init,
                );
            }
        }
        assert_eq!(parts, whole);

        let mut packed = PackedRows::default();
        packed.pack(a, &panels);
        let mut parts = vec![0.0; m * n];
        for columns in [0..96, 96..n] {
            let (from, len) = (columns.start, columns.len());
            let mut c = MatMut::new(&mut parts, m, n, n);
            matmul(&packed, panels.part(0..k, columns), c.columns(from, len), Init::Zero);
        }
        assert_eq!(parts, whole);
    }

    #[test]
    fn packing_a_transposed_view_equals_packing_its_copy() {
        let b = random(5, 300 * 70);
        let mut copy = vec![0.0; 300 * 70];
        for i in 0..300 {
            for j in 0..70 {
                copy[j * 300 + i] = b[i * 70 + j];
            }
        }
        let panels = Panels::pack(Mat::new(&b, 300, 70, 70).t());
        assert_eq!(panels.unpack(), copy);
    }

    #[test]
    fn a_fused_activation_equals_the_activation_of_the_product() {
        let (m, k, n) = (20, 40, 50);
        let (a, b, bias) = (random(1, m * k), random(2, k * n), random(3, n));
        let panels = Panels::pack(Mat::new(&b, k, n, n));
        let mut plain = vec![0.0; m * n];
        matmul(Mat::new(&a, m, k, k), &panels, MatMut::new(&mut plain, m, n, n), Init::Bias(&bias));
        for activation in [Activation::Gelu, Activation::QuickGelu, Activation::GeluTanh, Activation::Silu] {
            let (mut c, mut d) = (vec![0.0; m * n], vec![0.0; m * n]);
            let view = MatMut::new(&mut c, m, n, n);
            let derivative = Some(MatMut::new(&mut d, m, n, n));
            matmul_activate(Mat::new(&a, m, k, k), &panels, view, &bias, activation, derivative);
            for i in 0..m * n {
                let (y, dy) = activation.reference(f64::from(plain[i]));
                assert_close(c[i], y, 4e-6);
                assert_close(d[i], dy, 4e-6);
            }
            let mut scaled = vec![0.0; m * n];
            let factor = Mat::new(&d, m, n, n);
            matmul_scale(Mat::new(&a, m, k, k), &panels, MatMut::new(&mut scaled, m, n, n), factor);
            for i in 0..m * n {
                assert_close(scaled[i], f64::from(plain[i] - bias[i % n]) * f64::from(d[i]), 4e-6);
            }
        }
    }
}
