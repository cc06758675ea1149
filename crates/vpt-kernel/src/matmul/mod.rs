//! Matrix products `C = A B (+ bias) (+ C)` in f32 or bfloat16 with a packed right-hand side; sums are f32.
//!
//! The right-hand side is what is used again and again: a frozen weight is packed once for the life of the program, keys
//! and values once per image and head. The left-hand side may have any strides, so that `Aᵀ B` costs no extra copy; a block
//! of it is packed on every call if enough panels read it. A register tile holds up to 9 x 48 or 14 x 32 sums (AVX-512). All rows of
//! A pass by a panel of B while that is in a near cache, and the block of A stays in the second-level cache while all
//! panels do (the scheme of Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008).

mod left;
mod panels;
mod tile;
mod view;

use std::cell::RefCell;
use std::ops::Range;

use super::activation::{Activation, activate_row};
use super::simd::{Simd, load, store, vectors};
use super::{Grow, Precision, dispatched, team};
use left::{SEGMENT, Tiles, packed_words};
use panels::Line;
use tile::{Tile, TileLeft, multiply_tile};

pub use left::{Left, PackedRows};
pub use panels::{PanelRange, Panels};
pub use view::{Mat, MatMut};

/// Rows of a block of B: larger ones write C less often, smaller ones keep more of a panel in the first-level cache. A
/// multiple of every panel's width.
pub const DEPTH: usize = 384;

/// Initial value of the sums of a product.
#[derive(Clone, Copy)]
pub enum Init<'a> {
    /// Zero.
    Zero,
    /// The bias `[n]`, in every row.
    Bias(&'a [f32]),
    /// The previous content of C.
    Add,
    /// The previous content of C, plus the bias `[n]`.
    AddBias(&'a [f32]),
}

/// `C = init + A B`: A `[m, k]`, B `[k, n]`, C `[m, n]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul<'a, 'b>(a: impl Into<Left<'a>>, b: impl Into<PanelRange<'b>>, c: MatMut, init: Init) {
    product(a.into(), &b.into(), c, init, None);
}

/// `H = A B + bias`, then `C = f(H)` and, if wanted, `derivative = f'(H)` `[m, n]`, a tile at a time while it is in the
/// cache.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul_activate<'a, 'b>(
    a: impl Into<Left<'a>>,
    b: impl Into<PanelRange<'b>>,
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
pub fn matmul_scale<'a, 'b>(a: impl Into<Left<'a>>, b: impl Into<PanelRange<'b>>, c: MatMut, factor: Mat) {
    assert_eq!((factor.rows, factor.cols), (c.rows, c.cols), "shape of the factor");
    let (data, stride) = factor.contiguous_rows();
    product(a.into(), &b.into(), c, Init::Zero, Some(Then::Scale(data.as_ptr(), stride)));
}

/// Multiply-adds that are worth waking another thread for.
const WORTH_SHARING: usize = 1 << 22;

/// Where the result goes, without its shape: threads that share a product write columns of the same rows.
#[derive(Clone, Copy)]
struct ProductTarget {
    at: *mut f32,
    row_stride: usize,
}

/// Epilogue: the operation on a finished tile while it is in the cache.
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

    /// The same for a result that begins at a later column.
    fn at_column(self, col: usize) -> Self {
        match self {
            Self::Activate(f, derivative, stride) if derivative.is_null() => Self::Activate(f, derivative, stride),
            Self::Activate(f, derivative, stride) => Self::Activate(f, derivative.wrapping_add(col), stride),
            Self::Scale(factor, stride) => Self::Scale(factor.wrapping_add(col), stride),
        }
    }
}

/// A product whose shapes have been checked, or some columns of it.
///
/// Invariants, checked by [`product`] and relied on by the loops: A is `[m, k]`, B `[k, n]`, and no dimension is 0; the bias has n
/// values; at `c`, and at the place that `then` names, there are m rows of n values, which may be read and, but for a factor,
/// written as long as the product lives; nothing else touches them. The views they are from are borrowed by the functions that
/// call [`product`], which returns when all is computed.
#[derive(Clone)]
struct Product<'a, 'b> {
    a: Left<'a>,
    b: PanelRange<'b>,
    c: ProductTarget,
    accumulate: bool,
    bias: Option<&'a [f32]>,
    then: Option<Then>,
}

// SAFETY: products that run at the same time write different columns of C and of the derivative, see `Product::shared`; everything
// else is read, and what is pointed to is borrowed until all have ended.
unsafe impl Send for Product<'_, '_> {}

impl Product<'_, '_> {
    /// Some columns, whole panels, as a product of their own.
    fn columns(&self, columns: Range<usize>) -> Self {
        let from = columns.start;
        Self {
            a: self.a,
            b: self.b.part(0..self.b.k(), columns.clone()),
            c: ProductTarget { at: self.c.at.wrapping_add(from), ..self.c },
            accumulate: self.accumulate,
            bias: self.bias.map(|bias| &bias[columns]),
            then: self.then.map(|then| then.at_column(from)),
        }
    }

    /// Computes it in `threads` parts at the same time.
    fn shared(&self, threads: usize) {
        let panels = self.b.n().div_ceil(self.b.width);
        let cut = |part: usize| (part * panels / threads * self.b.width).min(self.b.n());
        rayon::in_place_scope(|scope| {
            for part in 1..threads {
                let product = self.columns(cut(part)..cut(part + 1));
                // The whole of it is moved, which is what may be sent.
                scope.spawn(move |_| { product }.compute());
            }
            self.columns(0..cut(1)).compute();
        });
    }

    fn compute(self) {
        let Self { a, b, .. } = &self;
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.left.grow(a.shape().0 * packed_words(DEPTH.min(b.k()), b.precision()));
            if b.transposed {
                let lines = DEPTH.min(b.k()).div_ceil(b.precision().per_word()) * b.width / 16;
                scratch.panel.resize(lines.max(scratch.panel.len()), Line::default());
            }
            // SAFETY: they are a product's.
            unsafe { blocks(&self, scratch) }
        });
    }
}

fn product<'a>(a: Left<'a>, b: &PanelRange, c: MatMut, init: Init<'a>, then: Option<Then>) {
    let (k, n) = (b.k(), b.n());
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
    let c = ProductTarget { at: c.data.as_mut_ptr(), row_stride: c.row_stride };
    let product = Product { a, b: b.clone(), c, accumulate, bias, then };
    let threads = match team::size() {
        1 => 1,
        team => team.min(m * k * n / WORTH_SHARING).min(n.div_ceil(b.width)),
    };
    if threads > 1 { product.shared(threads) } else { product.compute() }
}

dispatched! {
    /// # Safety
    /// The product's invariants hold.
    pairs unsafe fn blocks(product: &Product, scratch: &mut MatmulScratch) = blocks_body
}

/// Buffers of one thread, kept from call to call.
#[derive(Default)]
struct MatmulScratch {
    /// The packed block of the left-hand side.
    left: Vec<f32>,
    /// A panel of a transposed right-hand side.
    panel: Vec<Line>,
}

thread_local! {
    static SCRATCH: RefCell<MatmulScratch> = RefCell::default();
}

/// # Safety
/// The product's invariants hold; `S` is available.
#[inline(always)]
unsafe fn blocks_body<S: Simd>(product: &Product, scratch: &mut MatmulScratch) {
    let b = &product.b;
    // SAFETY: the caller's promise.
    unsafe {
        match (S::TILE_ROWS_OF_3 > 0 && b.width == 3 * S::LANES, b.precision()) {
            (true, Precision::F32) => blocks_of::<S, 3, false>(product, scratch),
            (false, Precision::F32) => blocks_of::<S, 2, false>(product, scratch),
            (true, Precision::Bf16) => blocks_of::<S, 3, true>(product, scratch),
            (false, Precision::Bf16) => blocks_of::<S, 2, true>(product, scratch),
        }
    }
}

/// With tiles of `V` vectors; `PAIRS`: in bfloat16.
///
/// # Safety
/// As for [`blocks_body`]; `PAIRS` is said of a B in bfloat16 and of no other.
#[inline(always)]
unsafe fn blocks_of<S: Simd, const V: usize, const PAIRS: bool>(product: &Product, scratch: &mut MatmulScratch) {
    let Product { a, ref b, c, accumulate, bias, then } = *product;
    let (width, per_word) = (V * S::LANES, if PAIRS { 2 } else { 1 });
    let (b_rows, b_columns) = (&b.rows, &b.columns);
    assert_eq!(b.width, width, "packed for another instruction set");
    let tiles = Tiles::new::<S>(a.shape().0, width);
    let count = tiles.count;
    let MatmulScratch { left, panel: transposed } = scratch;
    for block in b_rows.clone().step_by(DEPTH) {
        let depth = DEPTH.min(b_rows.end - block);
        let words = depth.div_ceil(per_word);
        let (first, last) = (block == b_rows.start, block + depth == b_rows.end);
        let a_column = block - b_rows.start;
        let packed = match a {
            Left::Packed(a) => {
                assert_eq!(a.packed_for, (width, b.precision()), "packed for other panels");
                Some(&a.data[a_column / per_word * a.rows..])
            }
            // Copying A pays if enough panels read the copy.
            Left::Plain(_) if !PAIRS && b_columns.len().div_ceil(width) < 4 => None,
            Left::Plain(a) => {
                // SAFETY: the caller promises `S`.
                unsafe { tiles.pack::<S>(a, a_column..a_column + depth, PAIRS, left) }
                Some(&**left)
            }
        };
        for b_column in b_columns.clone().step_by(width) {
            let col = b_column - b_columns.start;
            let cols = width.min(b_columns.end - b_column);
            // SAFETY: the steps of both loops begin at blocks and panels of B and end with it; the caller promises `S`.
            let panel = unsafe { b.panel::<S>(block..block + depth, b_column, transposed) };
            // The next panel comes from memory: each tile asks for its share of it in advance.
            let ahead = b.ahead(block..block + depth, b_column + width);
            let start = if first { bias.map(|bias| &bias[col..col + cols]) } else { None };
            for tile in 0..count {
                let rows = tiles.rows(tile);
                let left = match (packed, a) {
                    (None, Left::Plain(a)) => {
                        let at = rows.start * a.row_stride + a_column * a.col_stride;
                        TileLeft::Strided(a.data[at..].as_ptr(), a.row_stride, a.col_stride)
                    }
                    (packed, _) => {
                        let at = rows.start * words.next_multiple_of(SEGMENT);
                        TileLeft::Packed(packed.unwrap_or_default()[at..].as_ptr())
                    }
                };
                ahead.prefetch::<S>(tile, count);
                // SAFETY: the tile's rows and `cols` columns from `col` on lie in C, and in the matrix that `then` names; the bias has been
                // cut to them. Of A the rows have `depth` columns from `a_column` on, in place or packed; the panel has as many rows and is
                // `V` vectors wide, which was compared above.
                unsafe {
                    let to = c.at.add(rows.start * c.row_stride + col);
                    // So does the place of the result, and that of what it will be combined with.
                    for row in rows.clone() {
                        let other = then.map_or(std::ptr::null(), |then| then.other(row, col));
                        for half in (0..width).step_by(S::LANES) {
                            S::prefetch(c.at.wrapping_add(row * c.row_stride + col + half));
                            if !other.is_null() {
                                S::prefetch(other.wrapping_add(half));
                            }
                        }
                    }
                    let result = Tile { to, stride: c.row_stride, cols, add: accumulate || !first };
                    multiply_tile::<S, V, PAIRS>(rows.len(), words, left, panel, start, result);
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

/// Multiplies `n` values at `x` by those at `factor`.
///
/// # Safety
/// They may be read, and at `x` written; `S` is available.
#[inline(always)]
unsafe fn scale_row<S: Simd>(x: *mut f32, factor: *const f32, n: usize) {
    // SAFETY: `vectors!` stays inside the `n` values that the caller allows.
    unsafe {
        vectors!(S, n, |i, n| store::<S>(x.add(i), S::mul(load::<S>(x.add(i), n), load::<S>(factor.add(i), n)), n));
    }
}

#[cfg(test)]
mod tests;
