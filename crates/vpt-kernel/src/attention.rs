//! Softmax attention of one sequence, head by head, and its VJP.
//!
//! Keys and values come from two places: the sequence's own tokens, and prompts that the whole batch shares
//! (deep prompts are keys and values only). The factor `1/√head_dim` is folded into the
//! query weights, so scores are plain products here. Products of a head are small and run on the calling thread.

use super::matmul::{Init, Mat, MatMut, Panels, matmul};
use super::simd::{Simd, load, store, vectors};
use super::{Grow, Kept, Precision, dispatched, row_stride};

/// One sequence's attention.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Number of heads; D is `heads * head_dim`.
    pub heads: usize,
    /// Scaled queries `[Nq, D]`.
    pub queries: Mat<'a>,
    /// Keys, then values, of the sequence's tokens `[Nk, 2D]`.
    pub keys_values: Mat<'a>,
    /// Keys, then values, of the shared prompts `[P, 2D]`.
    pub prompts: Option<Mat<'a>>,
    /// Query i sees the keys 0..=i only.
    pub causal: bool,
    /// Number format of what the products multiply.
    pub precision: Precision,
}

/// The gradients the VJP is asked for. Those of queries, keys and values are written, those of prompts added.
pub struct AttentionVjp<'a, 'b> {
    /// Gradients of queries `[Nq, D]` and of the tokens' keys and values `[Nk, 2D]`.
    pub tokens: Option<(&'a mut MatMut<'b>, &'a mut MatMut<'b>)>,
    /// Gradient of the prompts' keys and values `[P, 2D]`.
    pub prompts: Option<&'a mut MatMut<'b>>,
}

/// Buffers that one thread reuses from call to call.
#[derive(Default)]
pub struct AttentionScratch {
    panels: Panels,
    scores: Vec<f32>,
    probabilities: Vec<f32>,
}

impl Attention<'_> {
    fn prompt_count(&self) -> usize {
        self.prompts.map_or(0, |p| p.rows())
    }

    fn key_count(&self) -> usize {
        self.keys_values.rows() + self.prompt_count()
    }

    fn head_dim(&self) -> usize {
        self.queries.cols() / self.heads
    }

    /// Floats that the attention probabilities of all heads take: `heads * Nq` rows of [`row_stride`]`(Nk + P)`.
    pub fn probability_len(&self) -> usize {
        self.heads * self.queries.rows() * row_stride(self.key_count())
    }

    fn check(&self) {
        let d = self.queries.cols();
        assert!(self.heads > 0 && d.is_multiple_of(self.heads), "width {d} for {} heads", self.heads);
        assert_eq!(self.keys_values.cols(), 2 * d, "keys and values");
        assert!(self.prompts.is_none_or(|p| p.cols() == 2 * d), "prompt keys and values");
        assert!(!self.causal || (self.prompts.is_none() && self.queries.rows() == self.keys_values.rows()), "causal");
    }

    /// Packs columns `from..from + head_dim` of tokens and prompts: as they are `[Nk + P, head_dim]`, or transposed.
    fn pack(&self, panels: &mut Panels, from: usize, transpose: bool) {
        let (own, shared) = (self.keys_values.rows(), self.prompt_count());
        let d = self.head_dim();
        let tokens = self.keys_values.columns(from, d);
        let prompts = self.prompts.map(|p| p.columns(from, d));
        if transpose {
            panels.reset_as(d, own + shared, self.precision);
            panels.fill(0, 0, tokens.t());
            if let Some(p) = prompts {
                panels.fill(0, own, p.t());
            }
        } else {
            panels.reset_as(own + shared, d, self.precision);
            panels.fill(0, 0, tokens);
            if let Some(p) = prompts {
                panels.fill(own, 0, p);
            }
        }
    }

    /// `out = softmax(Q Kᵀ) V` `[Nq, D]`. The probabilities ([`Self::probability_len`] values) are kept from the given
    /// place on.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn forward(&self, out: &mut MatMut, mut keep: Option<(&mut Kept, usize)>, scratch: &mut AttentionScratch) {
        self.check();
        let (rows, keys, d) = (self.queries.rows(), self.key_count(), self.head_dim());
        let stride = row_stride(keys);
        for head in 0..self.heads {
            let AttentionScratch { panels, scores: buffer, .. } = scratch;
            let place = |from: usize| from + head * rows * stride..from + (head + 1) * rows * stride;
            let scores = match &mut keep {
                Some((kept, from)) => kept.room(place(*from), buffer),
                None => buffer.grow(rows * stride),
            };
            self.pack(panels, head * d, true);
            let queries = self.queries.columns(head * d, d);
            matmul(queries, &*panels, MatMut::new(scores, rows, keys, stride), Init::Zero);
            softmax(scores, rows, keys, stride, self.causal);
            self.pack(panels, self.queries.cols() + head * d, false);
            matmul(Mat::new(scores, rows, keys, stride), &*panels, out.columns(head * d, d), Init::Zero);
            if let Some((kept, from)) = &mut keep {
                kept.keep(place(*from), buffer);
            }
        }
    }

    /// The gradients of what [`Self::forward`] read, from the gradient of its output `[Nq, D]` and the probabilities it
    /// kept from a place on.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn vjp(
        &self,
        (kept, from): (&Kept, usize),
        gradient: Mat,
        mut to: AttentionVjp,
        scratch: &mut AttentionScratch,
    ) {
        self.check();
        let (rows, own, shared, d) =
            (self.queries.rows(), self.keys_values.rows(), self.prompt_count(), self.head_dim());
        let (keys, width) = (own + shared, self.queries.cols());
        let stride = row_stride(keys);
        let AttentionScratch { panels, scores, probabilities } = scratch;
        let ds = scores.grow(rows * stride);
        for head in 0..self.heads {
            let from = from + head * rows * stride;
            let p = kept.read(from..from + rows * stride, probabilities);
            let (at, value_at) = (head * d, width + head * d);
            let d_out = gradient.columns(at, d);

            // dS = P (dP - rowsum(P dP)), dP = dO Vᵀ
            self.pack(panels, value_at, true);
            matmul(d_out, &*panels, MatMut::new(ds, rows, keys, stride), Init::Zero);
            softmax_vjp(p, ds, rows, keys, stride);
            let (p, ds) = (Mat::new(p, rows, keys, stride), Mat::new(ds, rows, keys, stride));

            // dV = Pᵀ dO, dK = dSᵀ Q
            for (left, right, column) in [(p, d_out, value_at), (ds, self.queries.columns(at, d), at)] {
                panels.reset_as(rows, d, self.precision);
                panels.fill(0, 0, right);
                if let Some((_, keys_values)) = &mut to.tokens {
                    matmul(left.columns(0, own).t(), &*panels, keys_values.columns(column, d), Init::Zero);
                }
                if let Some(prompts) = &mut to.prompts {
                    matmul(left.columns(own, shared).t(), &*panels, prompts.columns(column, d), Init::Add);
                }
            }

            // dQ = dS K
            if let Some((queries, _)) = &mut to.tokens {
                self.pack(panels, at, false);
                matmul(ds, &*panels, queries.columns(at, d), Init::Zero);
            }
        }
    }
}

fn softmax(scores: &mut [f32], rows: usize, keys: usize, stride: usize, causal: bool) {
    assert!(scores.len() >= rows * stride && stride >= keys);
    softmax_rows(scores, rows, keys, stride, causal);
}

dispatched! {
    fn softmax_rows(scores: &mut [f32], rows: usize, keys: usize, stride: usize, causal: bool) = softmax_body
}

/// # Safety
/// `S` is available.
#[inline(always)]
unsafe fn softmax_body<S: Simd>(scores: &mut [f32], rows: usize, keys: usize, stride: usize, causal: bool) {
    for (i, row) in scores.chunks_exact_mut(stride).take(rows).enumerate() {
        let seen = if causal { i + 1 } else { keys };
        row[seen..keys].fill(0.0);
        // SAFETY: the line above has checked `seen <= keys <= row.len()`, and all offsets are less than `seen`, whole vectors end
        // there at most; the caller promises `S`.
        unsafe {
            // From here on the row is read and written through this pointer alone.
            let x = row.as_mut_ptr();
            let mut top = S::splat(f32::NEG_INFINITY);
            let whole = seen / S::LANES * S::LANES;
            for j in (0..whole).step_by(S::LANES) {
                top = S::max(top, S::load(x.add(j)));
            }
            let top = (whole..seen).fold(S::largest(top), |top, j| top.max(*x.add(j)));
            let mut sum = S::zero();
            for j in (0..whole).step_by(S::LANES) {
                let e = S::exp(S::sub(S::load(x.add(j)), S::splat(top)));
                S::store(x.add(j), e);
                sum = S::add(sum, e);
            }
            let mut sum = S::sum(sum);
            if whole < seen {
                let n = seen - whole;
                S::store_first(x.add(whole), S::exp(S::sub(S::load_first(x.add(whole), n), S::splat(top))), n);
                sum += (whole..seen).map(|j| *x.add(j)).sum::<f32>();
            }
            let scale = S::splat(1.0 / sum);
            vectors!(S, seen, |j, n| store::<S>(x.add(j), S::mul(load::<S>(x.add(j), n), scale), n));
        }
    }
}

/// Turns the gradient of the probabilities `p` into that of the scores, in place.
fn softmax_vjp(p: &[f32], gradient: &mut [f32], rows: usize, keys: usize, stride: usize) {
    assert!(p.len() >= rows * stride && gradient.len() >= rows * stride && stride >= keys);
    // SAFETY: checked in the line above.
    unsafe { softmax_vjp_rows(p, gradient, rows, keys, stride) }
}

dispatched! {
    /// # Safety
    /// `rows` rows of `stride >= keys` values lie in both slices.
    unsafe fn softmax_vjp_rows(p: &[f32], gradient: &mut [f32], rows: usize, keys: usize, stride: usize) = softmax_vjp_body
}

/// # Safety
/// `rows` rows of `stride >= keys` values lie in both slices; `S` is available.
#[inline(always)]
unsafe fn softmax_vjp_body<S: Simd>(p: &[f32], gradient: &mut [f32], rows: usize, keys: usize, stride: usize) {
    for row in 0..rows {
        // SAFETY: the row's `keys` values lie in both slices, as the caller promises, and `vectors!` stays inside them.
        unsafe {
            let p = p.as_ptr().add(row * stride);
            let g = gradient.as_mut_ptr().add(row * stride);
            let mut along = S::zero();
            vectors!(S, keys, |j, n| along = S::fma(load::<S>(p.add(j), n), load::<S>(g.add(j), n), along));
            let along = S::splat(S::sum(along));
            vectors!(S, keys, |j, n| {
                let centred = S::sub(load::<S>(g.add(j), n), along);
                store::<S>(g.add(j), S::mul(load::<S>(p.add(j), n), centred), n);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_base::testing::{assert_close, central_differences, random};

    #[derive(Clone, Copy)]
    struct AttentionCase {
        heads: usize,
        queries: usize,
        keys: usize,
        prompts: usize,
        d: usize,
        causal: bool,
    }

    const CASES: [AttentionCase; 5] = [
        AttentionCase { heads: 2, queries: 5, keys: 5, prompts: 0, d: 6, causal: false },
        AttentionCase { heads: 3, queries: 4, keys: 19, prompts: 3, d: 12, causal: false },
        AttentionCase { heads: 1, queries: 1, keys: 17, prompts: 40, d: 8, causal: false },
        AttentionCase { heads: 2, queries: 18, keys: 18, prompts: 0, d: 4, causal: true },
        AttentionCase { heads: 2, queries: 33, keys: 33, prompts: 1, d: 34, causal: false },
    ];

    /// Plain loops over `x` = queries, keys and values, prompts, one behind the other.
    fn plain(c: AttentionCase, x: &[f64]) -> Vec<f64> {
        let (q, rest) = x.split_at(c.queries * c.d);
        let kv = |key: usize, column: usize| rest[key * 2 * c.d + column];
        let dim = c.d / c.heads;
        let mut out = vec![0.0; c.queries * c.d];
        for head in 0..c.heads {
            for i in 0..c.queries {
                let seen = if c.causal { i + 1 } else { c.keys + c.prompts };
                let at = head * dim;
                let scores: Vec<f64> =
                    (0..seen).map(|k| (0..dim).map(|j| q[i * c.d + at + j] * kv(k, at + j)).sum::<f64>()).collect();
                let total: f64 = scores.iter().map(|s| s.exp()).sum();
                for j in 0..dim {
                    out[i * c.d + at + j] =
                        scores.iter().enumerate().map(|(k, s)| s.exp() / total * kv(k, c.d + at + j)).sum();
                }
            }
        }
        out
    }

    #[test]
    fn forward_and_vjp_equal_plain_loops() {
        // Miri takes a thousand times as long.
        let cases = CASES.into_iter().filter(|c| !cfg!(miri) || c.queries * c.keys * c.d < 2000);
        for (c, precision) in cases.flat_map(|c| [(c, Precision::F32), (c, Precision::Bf16)]) {
            // Beside the rounding of what comes in, which the plain loops share, bfloat16 rounds probabilities and
            // gradients to 8 bits.
            let tolerance = |f32, want: f64| if precision == Precision::F32 { f32 } else { 5e-2 * want.abs().max(1.0) };
            let lengths = [c.queries * c.d, c.keys * 2 * c.d, c.prompts * 2 * c.d];
            let x: Vec<f32> = random(7, lengths.iter().sum::<usize>())
                .iter()
                .map(|x| half::bf16::from_f32(2.0 * x).to_f32())
                .collect();
            let (q, rest) = x.split_at(lengths[0]);
            let (kv, prompts) = rest.split_at(lengths[1]);
            let attention = Attention {
                heads: c.heads,
                queries: Mat::new(q, c.queries, c.d, c.d),
                keys_values: Mat::new(kv, c.keys, 2 * c.d, 2 * c.d),
                prompts: (c.prompts > 0).then(|| Mat::new(prompts, c.prompts, 2 * c.d, 2 * c.d)),
                causal: c.causal,
                precision,
            };
            let mut scratch = AttentionScratch::default();
            let mut out = vec![0.0; lengths[0]];
            let mut kept = Kept::new(precision);
            let view = &mut MatMut::new(&mut out, c.queries, c.d, c.d);
            attention.forward(view, Some((&mut kept, 3)), &mut scratch);
            let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            for (got, want) in out.iter().zip(plain(c, &wide)) {
                assert_close(*got, want, tolerance(2e-6, want));
            }
            let mut again = vec![0.0; lengths[0]];
            attention.forward(&mut MatMut::new(&mut again, c.queries, c.d, c.d), None, &mut scratch);
            assert_eq!(out, again);

            let g = random(8, lengths[0]);
            let (mut dq, mut dkv, mut dp) = (vec![0.0; lengths[0]], vec![0.0; lengths[1]], vec![0.5; lengths[2]]);
            let to = AttentionVjp {
                tokens: Some((
                    &mut MatMut::new(&mut dq, c.queries, c.d, c.d),
                    &mut MatMut::new(&mut dkv, c.keys, 2 * c.d, 2 * c.d),
                )),
                prompts: Some(&mut MatMut::new(&mut dp, c.prompts, 2 * c.d, 2 * c.d)),
            };
            attention.vjp((&kept, 3), Mat::new(&g, c.queries, c.d, c.d), to, &mut scratch);
            if cfg!(miri) {
                // The differences would take it an hour, and have nothing to hide from it.
                continue;
            }
            let value = |x: &[f64]| plain(c, x).iter().zip(&g).map(|(y, &g)| y * f64::from(g)).sum::<f64>();
            let want = central_differences(&wide, value);
            let got = dq.into_iter().chain(dkv).chain(dp.into_iter().map(|x| x - 0.5));
            for (got, want) in got.zip(want) {
                assert_close(got, want, tolerance(1e-5, want));
            }
        }
    }
}
