//! The gradients of a block's weights: which are wanted, and how they are added up.
//!
//! Only what is learned is computed: biases as sums over rows, a low-rank change (`LoRA`, Hu et al. 2022) as products with
//! its two factors, a whole weight as one product. With queries `q = W x`, `W = W₀ + s B A` and the gradient `dq`:
//!
//! ```text
//! dB = s dqᵀ (x Aᵀ)      dA = s (dq B)ᵀ x
//! ```
//!
//! where x is the normalised row n with the norm's scale g and shift h, `x = n g + h`. The factors are kept with those
//! folded in, `A' = A g`, `c = A h`, `B' = s B` (and attention's scale), so that rows are n.

use super::fold::{Folded, Layer, pack};
use crate::spec::TowerSpec;
use vpt_kernel::{Grow, Init, Mat, MatMut, Panels, Precision, add_rows, matmul};

/// Which weights of a block are learned.
pub(crate) enum LearnedWeights {
    /// Biases, shifts of norms included.
    Biases,
    /// Every weight.
    All,
    /// A low-rank change to queries, keys and values.
    LowRank(Box<[Factors; 3]>),
}

/// The factors of a low-rank change, with everything folded in.
pub(crate) struct Factors {
    /// A'ᵀ `[D, r]`, packed.
    a: Panels,
    /// c `[r]`.
    shift: Vec<f32>,
    /// B' `[D, r]`, packed.
    b: Panels,
}

impl Factors {
    /// Packs `a` `[r, D]`, `shift` `[r]` and `b` `[D, r]`.
    pub(super) fn new(a: &[f32], shift: Vec<f32>, b: &[f32]) -> Self {
        let rank = shift.len();
        let d = a.len() / rank.max(1);
        Self { a: Panels::pack(Mat::new(a, rank, d, d).t()), shift, b: Panels::pack(Mat::new(b, d, rank, rank)) }
    }
}

/// Gradients of [`Factors`], summed over rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct FactorGrads {
    /// Of A'ᵀ, `[D, r]`.
    pub(super) a: Vec<f32>,
    /// Of c, `[r]`.
    pub(super) shift: Vec<f32>,
    /// Of B', `[D, r]`.
    pub(super) b: Vec<f32>,
}

/// Gradients of what is learned of a block.
#[derive(Clone, Debug)]
pub(crate) enum BlockGrads {
    /// Of its layers; of the biases alone where weights are empty.
    Layers(Box<Folded>),
    /// Of the low-rank changes to queries, keys and values.
    LowRank(Box<[FactorGrads; 3]>),
}

impl BlockGrads {
    /// Zeros for what is `learned`.
    pub(crate) fn zeros(spec: &TowerSpec, learned: &LearnedWeights) -> Self {
        match learned {
            LearnedWeights::Biases => Self::Layers(Box::new(Folded::zeros(spec, false))),
            LearnedWeights::All => Self::Layers(Box::new(Folded::zeros(spec, true))),
            LearnedWeights::LowRank(factors) => Self::LowRank(Box::new(factors.each_ref().map(|factors| {
                let rank = factors.shift.len();
                let zeros = |n: usize| vec![0.0; n * rank];
                FactorGrads { a: zeros(spec.width), shift: zeros(1), b: zeros(spec.width) }
            }))),
        }
    }

    /// Adds another thread's gradients.
    pub(crate) fn add(&mut self, other: &Self) {
        match (self, other) {
            (Self::Layers(own), Self::Layers(other)) => own.add(other),
            (Self::LowRank(own), Self::LowRank(other)) => {
                for (own, other) in own.iter_mut().zip(&**other) {
                    let pairs = [(&mut own.a, &other.a), (&mut own.shift, &other.shift), (&mut own.b, &other.b)];
                    for (a, b) in pairs {
                        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
                    }
                }
            }
            _ => {}
        }
    }

    /// Those of whole layers, if there are any.
    pub(super) fn layers(&mut self) -> Option<&mut Folded> {
        match self {
            Self::Layers(layers) => Some(layers),
            Self::LowRank(_) => None,
        }
    }
}

/// Inputs of the query, key and value layers.
#[derive(Clone, Copy)]
pub(super) struct NormalizedRows<'a> {
    /// The normalised rows that queries are made of, `[queries, D]`.
    pub(super) queries: Mat<'a>,
    /// All of them, `[rows, D]`.
    pub(super) all: Mat<'a>,
}

/// Buffers of one thread.
#[derive(Default)]
pub(crate) struct GradScratch {
    inputs: Panels,
    /// `x Aᵀ` and `dy B`, `[rows, r]`, and the same packed.
    inner: Vec<f32>,
    inner_packed: Panels,
}

impl GradScratch {
    /// Adds the gradients of a layer from that of its output `dy` `[rows, out]`; `x` `[rows, in]` is what went in, which only
    /// the weight's needs.
    pub(super) fn add(&mut self, layer: &mut Layer, dy: Mat, x: Option<Mat>, precision: Precision) {
        let x = x.filter(|_| layer.is_dense()).map(|x| {
            pack(&mut self.inputs, x, precision);
            &self.inputs
        });
        layer.add(0, dy, x);
    }

    /// Adds the gradients of queries, keys and values from those of queries `dq` and of keys with values `dkv`.
    pub(super) fn add_qkv(
        &mut self,
        learned: &LearnedWeights,
        grads: &mut BlockGrads,
        dq: Mat,
        dkv: Mat,
        x: NormalizedRows,
        precision: Precision,
    ) {
        let d = dq.cols();
        match (grads, learned) {
            (BlockGrads::Layers(layers), _) => {
                self.add(&mut layers.q, dq, Some(x.queries), precision);
                self.add(&mut layers.kv, dkv, Some(x.all), precision);
            }
            (BlockGrads::LowRank(grads), LearnedWeights::LowRank(factors)) => {
                let dy = [dq, dkv.columns(0, d), dkv.columns(d, d)];
                let inputs = [x.queries, x.all, x.all];
                for (((grads, factors), dy), x) in grads.iter_mut().zip(&**factors).zip(dy).zip(inputs) {
                    self.add_factors(factors, grads, dy, x);
                }
            }
            (BlockGrads::LowRank(_), _) => {}
        }
    }

    /// Adds the gradients of keys and values alone from theirs, `dkv` `[rows, 2D]`, for normalised rows `x` `[rows, D]`.
    pub(super) fn add_keys_values(
        &mut self,
        learned: &LearnedWeights,
        grads: &mut BlockGrads,
        dkv: Mat,
        x: Mat,
        precision: Precision,
    ) {
        let d = x.cols();
        match (grads, learned) {
            (BlockGrads::Layers(layers), _) => self.add(&mut layers.kv, dkv, Some(x), precision),
            (BlockGrads::LowRank(grads), LearnedWeights::LowRank(factors)) => {
                for (i, dy) in [(1, dkv.columns(0, d)), (2, dkv.columns(d, d))] {
                    self.add_factors(&factors[i], &mut grads[i], dy, x);
                }
            }
            (BlockGrads::LowRank(_), _) => {}
        }
    }

    fn add_factors(&mut self, factors: &Factors, grads: &mut FactorGrads, dy: Mat, x: Mat) {
        let (rows, d, rank) = (dy.rows(), dy.cols(), factors.shift.len());
        let inner = self.inner.grow(rows * rank);
        matmul(x, &factors.a, MatMut::new(inner, rows, rank, rank), Init::Bias(&factors.shift));
        pack(&mut self.inner_packed, Mat::new(inner, rows, rank, rank), Precision::F32);
        matmul(dy.t(), &self.inner_packed, MatMut::new(&mut grads.b, d, rank, rank), Init::Add);
        matmul(dy, &factors.b, MatMut::new(inner, rows, rank, rank), Init::Zero);
        let view = Mat::new(inner, rows, rank, rank);
        add_rows(view, &mut grads.shift);
        pack(&mut self.inner_packed, view, Precision::F32);
        matmul(x.t(), &self.inner_packed, MatMut::new(&mut grads.a, d, rank, rank), Init::Add);
    }
}
