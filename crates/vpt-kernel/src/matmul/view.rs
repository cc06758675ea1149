//! Views of matrices: where a product reads and writes.

/// A read-only matrix view with strides, `[rows, cols]`.
///
/// Kernels rely on this without checking again: for every row i and column j, `data` has a value at
/// `i * row_stride + j * col_stride`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
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
        let end = from.saturating_add(n);
        assert!(end <= self.cols, "columns {from}..{end} of {}", self.cols);
        Self { data: &self.data[(from * self.col_stride).min(self.data.len())..], cols: n, ..self }
    }

    /// The view of `n` rows from `from` on.
    ///
    /// # Panics
    /// If there are not so many.
    #[must_use]
    pub fn row_range(self, from: usize, n: usize) -> Self {
        let end = from.saturating_add(n);
        assert!(end <= self.rows, "rows {from}..{end} of {}", self.rows);
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
    pub(crate) fn contiguous_rows(&self) -> (&'a [f32], usize) {
        assert_eq!(self.col_stride, 1, "a view with contiguous rows is needed");
        (self.data, self.row_stride)
    }
}

/// A writable matrix view with contiguous rows, `[rows, cols]`.
///
/// Kernels rely on this without checking again: for every row i and column j, `data` has a value at `i * row_stride + j`, a
/// different one for each.
pub struct MatMut<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
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
        let end = from.saturating_add(n);
        assert!(end <= self.cols, "columns {from}..{end} of {}", self.cols);
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
    pub(crate) fn contiguous_rows(&mut self) -> (&mut [f32], usize) {
        (self.data, self.row_stride)
    }
}

fn assert_fits(len: usize, rows: usize, cols: usize, row_stride: usize) {
    // Saturated, since a sum that wraps would let a view of anything pass.
    let needed = if rows == 0 { 0 } else { (rows - 1).saturating_mul(row_stride).saturating_add(cols) };
    assert!(needed <= len, "a view of {rows} rows of {cols} at stride {row_stride} needs {needed} values, got {len}");
}
