//! A register tile of a product: the loop that takes the time.

use super::left::SEGMENT;
use crate::simd::{Simd, load, store};

/// The left-hand side of one register tile: where its words are.
#[derive(Clone, Copy)]
pub(super) enum TileLeft {
    /// As [`Tiles::pack`](super::left::Tiles::pack) wrote it.
    Packed(*const f32),
    /// In place: first element, distance of rows, distance of columns.
    Strided(*const f32, usize, usize),
}

/// Where one register tile goes.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) to: *mut f32,
    pub(super) stride: usize,
    pub(super) cols: usize,
    pub(super) add: bool,
}

/// The product of some rows of A and a panel of B, `depth` words deep, plus the bias.
///
/// # Safety
/// There are `rows` rows of `depth` words where `left` says, and `depth` rows of `V` vectors at `panel`. `result.cols` values are
/// at most `V` vectors; as many are in `bias`, and in `rows` rows of the result, which may be read and written. `S` is available.
#[inline(always)]
pub(super) unsafe fn multiply_tile<S: Simd, const V: usize, const PAIRS: bool>(
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
                $($n if $n <= (if V == 3 { S::TILE_ROWS_OF_3 } else { S::TILE_ROWS }) => {
                    // SAFETY: `rows` is `n` here; a packed tile of n rows has a row's next word beside it and the row's next
                    // SEGMENT words behind those of the other rows, as `Tiles::pack` lays them. The rest is the caller's promise.
                    unsafe {
                        let sums = match left {
                            TileLeft::Packed(at) => tile::<S, $n, V, PAIRS>(depth, at, SEGMENT, 1, $n * SEGMENT, panel),
                            TileLeft::Strided(at, rows, columns) => {
                                tile::<S, $n, V, PAIRS>(depth, at, rows, columns, SEGMENT * columns, panel)
                            }
                        };
                        finish::<S, V>(&sums, bias, result);
                    }
                })*
                _ => unreachable!("a tile of {rows} rows"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
}

/// `R` rows and `V` vectors of columns: all sums in registers. `segment_stride` is the distance between places whose columns
/// are [`SEGMENT`] apart.
///
/// # Safety
/// Word k of row r of the left-hand side may be read at `r * row_stride + k % SEGMENT * col_stride + k / SEGMENT * segment_stride`,
/// for `depth` words of `R` rows, and `depth` rows of `V` vectors at `panel`; `S` is available.
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const V: usize, const PAIRS: bool>(
    depth: usize,
    left: *const f32,
    row_stride: usize,
    col_stride: usize,
    segment_stride: usize,
    panel: *const f32,
) -> [[S::V; V]; R] {
    let width = V * S::LANES;
    // SAFETY: step k reads word k of each row and row k of the panel, k < depth; `a` and `b` are moved on by as many words and rows as
    // have been read. `b` ends one row behind the last at most. The caller promises `S`.
    unsafe {
        let mut sums = [[S::zero(); V]; R];
        // Behind the last column, `a` may point outside of the matrix.
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
                        sums[r][v] = if PAIRS { S::dot(x, row[v], sums[r][v]) } else { S::fma(x, row[v], sums[r][v]) };
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
                (a, b) = (a.wrapping_add(4 * col_stride), b.add(4 * width));
            }
            a = a.wrapping_add(segment_stride).wrapping_sub(SEGMENT * col_stride);
        }
        for _ in 0..depth % SEGMENT {
            step!(0);
            (a, b) = (a.wrapping_add(col_stride), b.add(width));
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
///
/// # Safety
/// The first `result.cols <= V * LANES` values of as many rows as `sums` has may be read and written; `bias` is as long; `S` is
/// available.
#[inline(always)]
unsafe fn finish<S: Simd, const V: usize>(sums: &[[S::V; V]], bias: Option<&[f32]>, result: Tile) {
    // SAFETY: in each row and in the bias, `n` values from `offset` on end at `result.cols` at most; `n` is a vector's at most.
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
