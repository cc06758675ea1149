//! Weights as plain matrices: what the engine computes with, before it is packed, for programs that compute by themselves.
//!
//! Norms, layer scale and attention's scale are folded in (`fold`), as in the engine, so that results of both differ by rounding
//! alone. What a task has tuned stands in the place of the checkpoint's values. Nothing is kept: a block is read when it is asked
//! for.

use std::collections::HashMap;

use super::attention_pool::AttentionPoolWeights;
use super::block::BlockWeights;
use super::embed::EmbeddingWeights;
use super::fold::{Folded, Layer, part};
use super::load::{norm, read_block};
use super::low_rank::add_product;
use crate::position::rotary_angles;
use crate::spec::{Spec, TowerSpec};
use crate::weights::Weights;
use vpt_base::{Error, Result};

/// A linear layer `y = x Wᵀ + b`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlainLayer {
    /// W `[out, in]`, row-major.
    pub weight: Vec<f32>,
    /// b `[out]`.
    pub bias: Vec<f32>,
}

/// What stands before the first block, for images of one size.
#[derive(Clone, Debug)]
pub struct PlainEmbedding {
    /// The patch convolution, `[D, 3 p p]`.
    pub patch: PlainLayer,
    /// Tokens in front of the patches, class token first, positions included: `[prefix tokens, D]`.
    pub prefix: Vec<f32>,
    /// Positions of the patches `[N, D]`.
    pub positions: Vec<f32>,
    /// Scale and shift `[D]` of the norm before the first block, where there is one.
    pub pre_norm: Option<[Vec<f32>; 2]>,
}

/// A block behind whose norms there is neither scale nor shift: both are in the layers.
#[derive(Clone, Debug)]
pub struct PlainBlock {
    /// Queries, divided by `√head_dim`.
    pub q: PlainLayer,
    /// Keys.
    pub k: PlainLayer,
    /// Values.
    pub v: PlainLayer,
    /// The projection behind attention.
    pub out: PlainLayer,
    /// The first layer of the MLP.
    pub fc1: PlainLayer,
    /// The linear branch of a gated MLP.
    pub up: Option<PlainLayer>,
    /// The second layer of the MLP.
    pub fc2: PlainLayer,
}

/// Attention pooling behind the last norm, whose scale and shift are in its layers.
#[derive(Clone, Debug)]
pub struct PlainPool {
    /// The query `[D]`, divided by `√head_dim`.
    pub query: Vec<f32>,
    /// Keys.
    pub k: PlainLayer,
    /// Values.
    pub v: PlainLayer,
    /// The projection behind attention.
    pub out: PlainLayer,
    /// The first layer of the MLP.
    pub fc1: PlainLayer,
    /// The second layer of the MLP.
    pub fc2: PlainLayer,
}

/// Weights of a task's own.
#[derive(Clone, Debug, Default)]
pub struct OwnWeights<'a> {
    /// Values that stand in the place of the checkpoint's, by the names of their tensors; and the factors of low-rank changes.
    pub values: HashMap<&'a str, &'a [f32]>,
    /// Factor on the product of low-rank factors.
    pub low_rank_scale: f32,
}

impl OwnWeights<'_> {
    /// The tensor `name` as the task has it.
    ///
    /// # Errors
    /// It is not in the checkpoint, or values of the task do not fit its shape.
    pub(crate) fn get(&self, weights: &Weights, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        if let Some(own) = self.values.get(name) {
            if own.len() != shape.iter().product::<usize>() {
                return Err(Error::invalid(name, format!("{} values where {shape:?} are expected", own.len())));
            }
            return Ok(own.to_vec());
        }
        let mut values = weights.get(name, shape)?;
        let layer = name.strip_suffix(".weight").unwrap_or_default();
        let factor = |which: &str| self.values.get(format!("{layer}.{which}").as_str());
        if let (Some(a), Some(b), &[out, inputs]) = (factor("lora_A"), factor("lora_B"), shape) {
            let rank = a.len() / inputs;
            if rank == 0 || a.len() != rank * inputs || b.len() != rank * out {
                return Err(Error::invalid(name, "low-rank factors of other shapes"));
            }
            add_product(&mut values, a, b, inputs, self.low_rank_scale);
        }
        Ok(values)
    }
}

/// An image tower, to be read piece by piece.
#[derive(Debug)]
pub struct PlainTower<'a> {
    spec: &'a Spec,
    weights: &'a Weights,
    image_size: usize,
    own: OwnWeights<'a>,
}

impl<'a> PlainTower<'a> {
    /// The tower of `spec` for images of `image_size` pixels.
    pub(crate) fn new(spec: &'a Spec, weights: &'a Weights, image_size: usize, own: OwnWeights<'a>) -> Self {
        Self { spec, weights, image_size, own }
    }

    fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.own.get(self.weights, name, shape)
    }

    /// What it is.
    pub fn spec(&self) -> &'a Spec {
        self.spec
    }

    /// Side of its images, in pixels.
    pub fn image_size(&self) -> usize {
        self.image_size
    }

    /// Patches along a side.
    pub fn grid(&self) -> usize {
        self.image_size / self.spec.patch_size
    }

    /// What stands before the first block.
    ///
    /// # Errors
    /// The checkpoint cannot be read any more.
    pub fn embedding(&self) -> Result<PlainEmbedding> {
        EmbeddingWeights::read(&|name, shape| self.get(name, shape), self.spec)?.at(self.spec, self.image_size)
    }

    /// Block `index`.
    ///
    /// # Errors
    /// As [`Self::embedding`].
    pub fn block(&self, index: usize) -> Result<PlainBlock> {
        let weights = read_block(&|name, shape| self.get(name, shape), self.spec, index)?;
        Ok(PlainBlock::of(&self.spec.vision, &weights))
    }

    /// Scale and shift `[D]` of the last norm.
    ///
    /// # Errors
    /// As [`Self::embedding`].
    pub fn post_norm(&self) -> Result<[Vec<f32>; 2]> {
        norm(&|name, shape| self.get(name, shape), self.spec.family.vision.post_norm, self.spec.vision.width)
    }

    /// Attention pooling, where the tower has one.
    ///
    /// # Errors
    /// As [`Self::embedding`].
    pub fn pool(&self) -> Result<Option<PlainPool>> {
        let pool = AttentionPoolWeights::read(&|name, shape| self.get(name, shape), self.spec)?;
        let Some(pool) = pool else { return Ok(None) };
        let Folded { q, kv, out, fc1, fc2, .. } = pool.folded(&self.spec.vision, &self.post_norm()?, true);
        let [k, v] = halves(kv, self.spec.vision.width);
        Ok(Some(PlainPool { query: q.bias, k, v, out: out.into(), fc1: fc1.into(), fc2: fc2.into() }))
    }

    /// The projection of image features `[E, D]`, where there is one.
    ///
    /// # Errors
    /// As [`Self::embedding`].
    pub fn projection(&self) -> Result<Option<Vec<f32>>> {
        let Some(width) = self.spec.projection else { return Ok(None) };
        self.get(self.spec.family.joint.projection, &[width, self.spec.vision.width]).map(Some)
    }

    /// The angles `[N, head_dim / 2]` by which queries and keys of the patches are turned, where they are: value j of a head
    /// together with value `j + head_dim / 2`.
    pub fn rotary_angles(&self) -> Option<Vec<f64>> {
        let grid = (self.grid(), self.grid());
        self.spec.rotary.map(|rotary| rotary_angles(rotary, self.spec.vision.head_dim(), grid))
    }
}

impl From<Layer> for PlainLayer {
    fn from(Layer { weight, bias }: Layer) -> Self {
        Self { weight, bias }
    }
}

/// Keys and values of a layer that makes both, `width` each.
fn halves(kv: Layer, width: usize) -> [PlainLayer; 2] {
    let (k, v) = part(kv, width);
    [k.into(), v.unwrap_or_default().into()]
}

impl PlainBlock {
    /// A block with everything folded in.
    pub(crate) fn of(spec: &TowerSpec, weights: &BlockWeights) -> Self {
        let Folded { q, kv, out, fc1, up, fc2 } = Folded::of(spec, weights, true);
        let [k, v] = halves(kv, spec.width);
        Self { q: q.into(), k, v, out: out.into(), fc1: fc1.into(), up: up.map(Into::into), fc2: fc2.into() }
    }
}
