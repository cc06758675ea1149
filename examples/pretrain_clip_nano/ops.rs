//! The arithmetic of the trainer on plain `f32` slices: matrix products, layer norm, QuickGELU, softmax, each with its
//! backward pass. All loops run on the calling thread.

use std::cell::RefCell;

use vpt::kernel::{self, Init, Mat, MatMut, Panels};

/// A matrix inside a slice: where it starts, and the steps between its rows and columns, one of which is 1.
#[derive(Clone, Copy)]
pub(crate) struct MatView<'a> {
    data: &'a [f32],
    row: usize,
    transposed: bool,
}

impl<'a> MatView<'a> {
    /// A row-major matrix whose rows are `row` values apart.
    pub(crate) fn rows(data: &'a [f32], row: usize) -> Self {
        Self { data, row, transposed: false }
    }

    /// The transpose of this matrix.
    pub(crate) fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    fn sized(self, rows: usize, columns: usize) -> Mat<'a> {
        if self.transposed {
            Mat::new(self.data, columns, rows, self.row).t()
        } else {
            Mat::new(self.data, rows, columns, self.row)
        }
    }
}

thread_local! {
    /// The right operand of the product at hand, packed; its memory is used again.
    static PANELS: RefCell<Panels> = RefCell::default();
}

/// `c = a · b` or, with `add`, `c += a · b`; a is `[m, k]`, b is `[k, n]`, c is `[m, n]` with rows `c_row` values apart.
pub(crate) fn matmul((m, k, n): (usize, usize, usize), a: MatView, b: MatView, c: &mut [f32], c_row: usize, add: bool) {
    PANELS.with_borrow_mut(|panels| {
        panels.reset(k, n);
        panels.fill(0, 0, b.sized(k, n));
        let init = if add { Init::Add } else { Init::Zero };
        kernel::matmul(a.sized(m, k), &*panels, MatMut::new(c, m, n, c_row), init);
    });
}

/// Multiplies every value.
pub(crate) fn scale(values: &mut [f32], factor: f32) {
    for value in values {
        *value *= factor;
    }
}

/// `y = x · wᵀ + bias`; x `[rows, inputs]`, w `[outputs, inputs]`, y `[rows, outputs]`.
pub(crate) fn linear(x: &[f32], w: &[f32], bias: Option<&[f32]>, inputs: usize, y: &mut [f32]) {
    let outputs = w.len() / inputs;
    let rows = x.len() / inputs;
    if let Some(bias) = bias {
        y.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias));
    }
    let (x, w) = (MatView::rows(x, inputs), MatView::rows(w, inputs).t());
    matmul((rows, inputs, outputs), x, w, y, outputs, bias.is_some());
}

/// Backward of [`linear`]: adds to `dw` and `dbias`, and writes `dx` where it is wanted.
pub(crate) fn linear_backward(
    x: &[f32],
    w: &[f32],
    inputs: usize,
    dy: &[f32],
    dw: &mut [f32],
    dbias: Option<&mut [f32]>,
    dx: Option<&mut [f32]>,
) {
    let outputs = w.len() / inputs;
    let rows = x.len() / inputs;
    let dy_view = MatView::rows(dy, outputs);
    matmul((outputs, rows, inputs), dy_view.t(), MatView::rows(x, inputs), dw, inputs, true);
    if let Some(dbias) = dbias {
        for row in dy.chunks_exact(outputs) {
            dbias.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
    }
    if let Some(dx) = dx {
        matmul((rows, outputs, inputs), dy_view, MatView::rows(w, inputs), dx, inputs, false);
    }
}

/// exp to about 1e-7 relative, without branches, so that loops over it become vector code.
#[inline]
fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let magic = 12_582_912.0_f32;
    let shifted = x * std::f32::consts::LOG2_E + magic;
    let power = shifted - magic;
    let r = x - power * 0.693_359_4 + power * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    // The low bits of `shifted` hold the power of two as an integer.
    let bits = shifted.to_bits().wrapping_sub(magic.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(bits)
}

/// Sum of `f(i)` over `0..n` in sixteen lanes, which vectorises where a plain float sum may not.
#[inline]
fn lanes(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0_f32; 16];
    let whole = n / 16 * 16;
    let mut start = 0;
    while start < whole {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(start + lane);
        }
        start += 16;
    }
    (whole..n).map(f).sum::<f32>() + sums.iter().sum::<f32>()
}

/// Sum of products of two slices of one length.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    lanes(a.len(), |i| a[i] * b[i])
}

const EPS: f32 = 1e-5;

fn moments(x: &[f32]) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = lanes(x.len(), |i| x[i]) / n;
    let variance = lanes(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / n;
    (mean, 1.0 / (variance + EPS).sqrt())
}

/// Layer norm of each row; x, y `[rows, D]`, w, b `[D]`.
pub(crate) fn layer_norm(x: &[f32], w: &[f32], b: &[f32], y: &mut [f32]) {
    let d = w.len();
    for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
        let (mean, scale) = moments(x);
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
            *y = (x - mean) * scale * w + b;
        }
    }
}

/// Backward of [`layer_norm`]: adds to `dw` and `db`; adds the gradient of x to `dx`.
pub(crate) fn layer_norm_backward(x: &[f32], w: &[f32], dy: &[f32], dw: &mut [f32], db: &mut [f32], dx: &mut [f32]) {
    let d = w.len();
    let (dw, db) = (&mut dw[..d], &mut db[..d]);
    for ((x, dy), dx) in x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(dx.chunks_exact_mut(d)) {
        let (mean, scale) = moments(x);
        let mean_g = lanes(d, |i| dy[i] * w[i]) / d as f32;
        let mean_gx = lanes(d, |i| dy[i] * w[i] * (x[i] - mean)) * scale / d as f32;
        for i in 0..d {
            let normal = (x[i] - mean) * scale;
            dw[i] += dy[i] * normal;
            db[i] += dy[i];
            dx[i] += scale * (dy[i] * w[i] - mean_g - normal * mean_gx);
        }
    }
}

/// QuickGELU, `x · sigmoid(1.702 x)`.
pub(crate) fn quick_gelu(x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = x / (1.0 + exp(-1.702 * x));
    }
}

/// Multiplies `dy` by the slope of [`quick_gelu`] at x.
pub(crate) fn quick_gelu_backward(x: &[f32], dy: &mut [f32]) {
    for (dy, &x) in dy.iter_mut().zip(x) {
        let gate = 1.0 / (1.0 + exp(-1.702 * x));
        *dy *= gate * (1.0 + 1.702 * x * (1.0 - gate));
    }
}

/// Softmax of a row in place; values from `visible` on become 0.
pub(crate) fn softmax(row: &mut [f32], visible: usize) {
    let (seen, hidden) = row.split_at_mut(visible);
    let top = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for value in &mut *seen {
        *value = exp(*value - top);
    }
    let values = &*seen;
    let scale = 1.0 / lanes(values.len(), |i| values[i]);
    for value in seen {
        *value *= scale;
    }
    hidden.fill(0.0);
}
