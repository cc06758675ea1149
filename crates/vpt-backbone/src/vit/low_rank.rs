//! Low-rank changes to the queries, keys and values of a tower's blocks: `LoRA` (Hu et al., "`LoRA`: Low-Rank Adaptation of
//! Large Language Models", 2022) as CLIP-LoRA (Zanella and Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language
//! Models", 2024) puts it into both towers of CLIP.
//!
//! A changed weight `W + s B A` is packed as any other, once a step, so that a forward pass costs what it did. The
//! gradients of A and B need no gradient of W: see [`super::grads`].

use super::block::{Block, BlockWeights};
use super::fold::attention_scale;
use super::grads::{BlockGrads, FactorGrads, Factors, LearnedWeights};
use super::tuned::Lookup;
use crate::spec::TowerSpec;
use vpt_base::{Error, Result, parallel};
use vpt_kernel::Precision;

/// Suffixes of the names of a layer's factors.
const A: &str = "lora_A";
const B: &str = "lora_B";

/// The changes of every block of a tower.
pub(crate) struct LowRankBlocks {
    spec: TowerSpec,
    rank: usize,
    scale: f32,
    blocks: Vec<LowRank>,
}

/// The changes of one block.
struct LowRank {
    /// Names of the query, key and value layers.
    names: [String; 3],
    /// The frozen norm and layers; the rest is empty.
    weights: BlockWeights,
    /// A `[r, D]` and B `[D, r]` of each.
    factors: [[Vec<f32>; 2]; 3],
    learned: LearnedWeights,
}

impl LowRankBlocks {
    /// No changes yet to blocks of these names and weights.
    ///
    /// # Errors
    /// That of reading a block.
    pub(crate) fn new(
        spec: &TowerSpec,
        blocks: impl Iterator<Item = Result<([String; 3], BlockWeights)>>,
        rank: usize,
        scale: f32,
    ) -> Result<Self> {
        let blocks = blocks.map(|block| {
            let (names, BlockWeights { norm1, qkv, .. }) = block?;
            let weights = BlockWeights { norm1, qkv, ..BlockWeights::default() };
            let factors: [_; 3] = std::array::from_fn(|_| [vec![0.0; rank * spec.width], vec![0.0; rank * spec.width]]);
            let learned = folded(spec, &weights, &factors, scale);
            Ok(LowRank { names, weights, factors, learned })
        });
        Ok(Self { spec: spec.clone(), rank, scale, blocks: blocks.collect::<Result<_>>()? })
    }

    /// Name and shape of every factor.
    pub(crate) fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (rank, d) = (self.rank, self.spec.width);
        let names = self.blocks.iter().flat_map(|block| &block.names);
        names
            .flat_map(|name| [(format!("{name}.{A}"), vec![rank, d]), (format!("{name}.{B}"), vec![d, rank])])
            .collect()
    }

    /// Takes over the factors that `lookup` has, and makes those of `blocks` anew, the tower's, that have changed.
    ///
    /// # Errors
    /// There is no such tensor, or one has another length.
    pub(crate) fn set(&mut self, blocks: &mut [Block], lookup: Lookup, threads: usize) -> Result<()> {
        let mut stale = Vec::new();
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let mut changed = false;
            for (name, factors) in block.names.iter().zip(&mut block.factors) {
                for (own, which) in factors.iter_mut().zip([A, B]) {
                    let name = format!("{name}.{which}");
                    let values = lookup(&name)?;
                    if values.len() != own.len() {
                        let message = format!("{} values where {} are expected", values.len(), own.len());
                        return Err(Error::invalid(name, message));
                    }
                    changed |= own != values;
                    own.copy_from_slice(values);
                }
            }
            if changed {
                stale.push(i);
            }
        }
        let fresh = parallel::shares(stale.len(), threads, |range| {
            let one = |&i: &usize| {
                let LowRank { weights, factors, .. } = &self.blocks[i];
                let block = blocks[i].with_qkv(&self.spec, &changed(weights, factors, self.scale));
                (block, folded(&self.spec, weights, factors, self.scale))
            };
            stale[range].iter().map(one).collect::<Vec<_>>()
        });
        for (i, (block, learned)) in stale.into_iter().zip(fresh.into_iter().flatten()) {
            (blocks[i], self.blocks[i].learned) = (block, learned);
        }
        Ok(())
    }

    /// Learned tensors of block `i`.
    pub(crate) fn learned(&self, i: usize) -> &LearnedWeights {
        &self.blocks[i].learned
    }

    /// Zeros for the gradients of every block.
    pub(crate) fn zero_grads(&self) -> Vec<BlockGrads> {
        self.blocks.iter().map(|block| BlockGrads::zeros(&self.spec, &block.learned)).collect()
    }

    /// The gradients of the factors, in the order of [`Self::tensors`].
    pub(crate) fn unfold(&self, grads: Vec<BlockGrads>) -> Vec<Vec<f32>> {
        let mut out = Vec::new();
        for (block, grads) in self.blocks.iter().zip(grads) {
            let BlockGrads::LowRank(grads) = grads else { continue };
            let [norm_scale, norm_shift] = &block.weights.norm1;
            for (i, FactorGrads { a, shift, b }) in grads.into_iter().enumerate() {
                let (rank, factor) = (self.rank, output_scale(&self.spec, i, self.scale));
                let mut da = vec![0.0; a.len()];
                for (r, (row, shift)) in da.chunks_exact_mut(self.spec.width).zip(&shift).enumerate() {
                    for (j, to) in row.iter_mut().enumerate() {
                        *to = a[j * rank + r] * norm_scale[j] + shift * norm_shift[j];
                    }
                }
                out.extend([da, b.iter().map(|b| factor * b).collect()]);
            }
        }
        out
    }

    /// Bytes of the frozen layers, and of the changed ones packed in `precision`.
    pub(crate) fn bytes(&self, precision: Precision) -> usize {
        3 * self.blocks.len() * self.spec.width.pow(2) * (size_of::<f32>() + precision.bytes())
    }
}

/// Factor of the low-rank product of queries (0), keys (1) and values (2).
fn output_scale(spec: &TowerSpec, which: usize, scale: f32) -> f32 {
    if which == 0 { scale * attention_scale(spec) } else { scale }
}

/// `weights` with `scale · B A` added to queries, keys and values.
fn changed(weights: &BlockWeights, factors: &[[Vec<f32>; 2]; 3], scale: f32) -> BlockWeights {
    let mut weights = weights.clone();
    for ((weight, _), [a, b]) in weights.qkv.iter_mut().zip(factors) {
        let rank = b.len() / weight.len().isqrt();
        add_product(weight, a, b, a.len() / rank, scale);
    }
    weights
}

/// Adds `scale · B A` to `weight` `[out, in]`: A `[r, in]`, B `[out, r]`.
pub(super) fn add_product(weight: &mut [f32], a: &[f32], b: &[f32], inputs: usize, scale: f32) {
    for (row, b) in weight.chunks_exact_mut(inputs).zip(b.chunks_exact(a.len() / inputs)) {
        for (b, a) in b.iter().zip(a.chunks_exact(inputs)) {
            row.iter_mut().zip(a).for_each(|(w, a)| *w += scale * b * a);
        }
    }
}

/// The factors with everything folded in that the packed layers have folded in.
fn folded(spec: &TowerSpec, weights: &BlockWeights, factors: &[[Vec<f32>; 2]; 3], scale: f32) -> LearnedWeights {
    let [norm_scale, norm_shift] = &weights.norm1;
    let d = spec.width;
    let factors = std::array::from_fn(|i| {
        let [a, b] = &factors[i];
        let shift = a.chunks_exact(d).map(|row| row.iter().zip(norm_shift).map(|(a, h)| a * h).sum()).collect();
        let a: Vec<f32> = a.iter().zip(norm_scale.iter().cycle()).map(|(a, g)| a * g).collect();
        let factor = output_scale(spec, i, scale);
        let b: Vec<f32> = b.iter().map(|b| factor * b).collect();
        Factors::new(&a, shift, &b)
    });
    LearnedWeights::LowRank(Box::new(factors))
}
