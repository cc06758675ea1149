//! An image tower whose weights a task tunes: its biases, its norms, all of them, or low-rank changes to queries, keys and values.
//!
//! The weights are kept as the checkpoint has them, and packed again where they have changed. Gradients come from the packed
//! form and are unfolded into that of the checkpoint, once a step (`fold`).

use std::cell::Cell;

use super::attention_pool::{AttentionPool, AttentionPoolWeights};
use super::block::{Block, BlockWeights};
use super::embed::{Embedding, EmbeddingGrads, EmbeddingWeights};
use super::fold::Folded;
use super::grads::{BlockGrads, LearnedWeights};
use super::load::{Get, Visit, norm, read_block, visit_norm};
use super::low_rank::LowRankBlocks;
use super::tower::Tower;
use super::{Precision, Vit};
use crate::spec::Spec;
use crate::weights::Weights;
use vpt_base::{Error, Result, parallel};

/// Which weights of an image tower are tuned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tune {
    /// Every bias, shifts of norms included.
    Biases,
    /// Scales and shifts of every layer norm.
    Norms,
    /// Every weight.
    All,
    /// Low-rank changes `scale · B A` to the queries, keys and values of every block (`LoRA`, Hu et al. 2022).
    LowRank {
        /// Rows of A and columns of B.
        rank: usize,
        /// The factor on their product.
        scale: f32,
    },
}

/// Gives the values of a tensor by its name.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Result<&'a [f32]>;

/// A tower with weights of its own.
pub struct Tuned {
    spec: Spec,
    image_size: usize,
    precision: Precision,
    tower: Tower,
    tune: Tune,
    kind: TunedWeights,
    /// Name and shape of what is learned.
    tensors: Vec<(String, Vec<usize>)>,
}

enum TunedWeights {
    /// [`LearnedWeights::Biases`] or [`LearnedWeights::All`], and the weights as they are now.
    Layers(LearnedWeights, Box<TowerWeights>),
    LowRank(LowRankBlocks),
}

/// A tower's weights as the checkpoint has them, or the gradients of these. What is of no use is empty.
#[derive(Default)]
struct TowerWeights {
    embedding: EmbeddingWeights,
    blocks: Vec<BlockWeights>,
    post_norm: [Vec<f32>; 2],
    attention_pool: Option<AttentionPoolWeights>,
}

/// Gradients of a tower's packed weights, summed over images.
pub(crate) struct TowerGrads {
    /// `None`: nothing is learned before the first block.
    pub(super) embedding: Option<EmbeddingGrads>,
    pub(super) blocks: Vec<BlockGrads>,
    /// Of scale and shift of the last norm, but for what the layers of an attention pooling make of them.
    pub(super) post_norm: [Vec<f32>; 2],
    /// Of the layers of an attention pooling.
    pub(super) attention_pool: Option<Folded>,
}

impl TowerGrads {
    /// Adds another thread's gradients.
    pub(super) fn add(&mut self, other: &Self) {
        self.blocks.iter_mut().zip(&other.blocks).for_each(|(a, b)| a.add(b));
        if let (Some(a), Some(b)) = (&mut self.embedding, &other.embedding) {
            a.add(b);
        }
        if let (Some(a), Some(b)) = (&mut self.attention_pool, &other.attention_pool) {
            a.add(b);
        }
        for (a, b) in self.post_norm.iter_mut().zip(&other.post_norm) {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        }
    }
}

impl TowerWeights {
    fn visit(&mut self, spec: &Spec, f: Visit) -> Result<()> {
        self.embedding.visit(spec, f)?;
        for (i, block) in self.blocks.iter_mut().enumerate() {
            block.visit(&spec.family.vision.blocks, i, &spec.vision, f)?;
        }
        visit_norm(&mut self.post_norm, spec.family.vision.post_norm, spec.vision.width, f)?;
        match self.attention_pool.as_mut().zip(spec.family.vision.attention_pool) {
            Some((pool, names)) => pool.visit(&names, &spec.vision, f),
            None => Ok(()),
        }
    }

    /// Lets go of what neither biases nor their gradients depend on.
    fn without_matrices(&mut self) {
        let EmbeddingWeights { class, positions, patch, registers, .. } = &mut self.embedding;
        for values in [class, positions, &mut patch.0, registers] {
            *values = Vec::new();
        }
        for block in &mut self.blocks {
            (block.out.0, block.fc2.0) = (Vec::new(), Vec::new());
        }
        if let Some(pool) = &mut self.attention_pool {
            (pool.layers.out.0, pool.layers.fc2.0) = (Vec::new(), Vec::new());
        }
    }

    fn bytes(&self) -> usize {
        let EmbeddingWeights { class, positions, patch, registers, .. } = &self.embedding;
        let block = |block: &BlockWeights| {
            let BlockWeights { qkv, out, fc1, fc2, .. } = block;
            qkv.iter().chain([out, fc1, fc2]).map(|(weight, bias)| weight.len() + bias.len()).sum::<usize>()
        };
        let embedding = class.len() + positions.len() + patch.0.len() + registers.len();
        let pool = self.attention_pool.as_ref().map_or(0, |pool| block(&pool.layers));
        (embedding + self.blocks.iter().map(block).sum::<usize>() + pool) * size_of::<f32>()
    }
}

fn is_bias(name: &str) -> bool {
    name.rsplit('.').next() == Some("bias")
}

/// Whether the tensor `name` is the scale or shift of a layer norm of the image tower that `spec` describes.
fn is_of_norm(spec: &Spec, name: &str) -> bool {
    let names = &spec.family.vision;
    let Some((layer, _)) = name.rsplit_once('.') else { return false };
    let in_block = layer.rsplit('.').next().unwrap_or(layer);
    let of_pool = names.attention_pool.map_or("", |pool| pool.norm);
    [names.pre_norm, names.post_norm, of_pool].contains(&layer)
        || [names.blocks.norm1, names.blocks.norm2].contains(&in_block)
}

/// Whether `tune` tunes the tensor `name`, which is not of a low-rank change.
fn is_tuned(tune: Tune, spec: &Spec, name: &str) -> bool {
    match tune {
        Tune::All => true,
        Tune::Biases => is_bias(name),
        Tune::Norms => is_of_norm(spec, name),
        Tune::LowRank { .. } => false,
    }
}

impl Vit {
    /// This tower, of the backbone that `spec` describes and whose `weights` these are, with weights of its own that `tune`
    /// names. They begin as they are; low-rank changes begin as none.
    ///
    /// # Errors
    /// The weights cannot be read any more, or the rank is none.
    pub fn tuned(&self, spec: &Spec, weights: &Weights, tune: Tune) -> Result<Tuned> {
        if self.other.is_some() {
            return Err(self.native_only("tunes weights of the backbone"));
        }
        let get: Get = &|name, shape| weights.get(name, shape);
        let depth = spec.vision.depth;
        let tower = self.tower.clone();
        let kind = match tune {
            Tune::LowRank { rank, scale } => {
                if rank == 0 || rank > spec.vision.width {
                    let message = format!("{rank} is no rank of a matrix of {0} x {0}", spec.vision.width);
                    return Err(Error::setting("lora_rank", message));
                }
                let blocks = (0..depth).map(|i| Ok((spec.family.vision.blocks.qkv_of(i), read_block(get, spec, i)?)));
                TunedWeights::LowRank(LowRankBlocks::new(&spec.vision, blocks, rank, scale)?)
            }
            Tune::Biases | Tune::Norms | Tune::All => {
                // Scales of norms are folded into the matrices behind them, whose gradients they follow from.
                let learned = if tune == Tune::Biases { LearnedWeights::Biases } else { LearnedWeights::All };
                let mut all = TowerWeights { embedding: EmbeddingWeights::read(get, spec)?, ..TowerWeights::default() };
                for i in 0..depth {
                    all.blocks.push(read_block(get, spec, i)?);
                    if tune == Tune::Biases {
                        all.without_matrices();
                    }
                }
                all.post_norm = norm(get, spec.family.vision.post_norm, spec.vision.width)?;
                all.attention_pool = AttentionPoolWeights::read(get, spec)?;
                if tune == Tune::Biases {
                    all.without_matrices();
                }
                TunedWeights::Layers(learned, Box::new(all))
            }
        };
        let image_size = self.image_size();
        let mut tuned =
            Tuned { spec: spec.clone(), image_size, precision: self.precision, tower, tune, kind, tensors: Vec::new() };
        tuned.tensors = tuned.list()?;
        Ok(tuned)
    }
}

impl Tuned {
    fn list(&mut self) -> Result<Vec<(String, Vec<usize>)>> {
        let mut tensors = Vec::new();
        match &mut self.kind {
            TunedWeights::LowRank(blocks) => return Ok(blocks.tensors()),
            TunedWeights::Layers(_, weights) => weights.visit(&self.spec, &mut |name, shape, _| {
                if is_tuned(self.tune, &self.spec, name) {
                    tensors.push((name.to_owned(), shape.to_vec()));
                }
                Ok(())
            })?,
        }
        Ok(tensors)
    }

    /// Name and shape of every tensor that is learned: those of the checkpoint, or the factors `lora_A` `[r, D]` and `lora_B`
    /// `[D, r]` behind the name of their layer.
    pub fn tensors(&self) -> &[(String, Vec<usize>)] {
        &self.tensors
    }

    /// The weights that are learned as they are now, in the order of [`Self::tensors`]; of low-rank changes none.
    ///
    /// # Errors
    /// None: what lists tensors can fail, but not on those that are there.
    pub fn values(&mut self) -> Result<Vec<Vec<f32>>> {
        let mut values = Vec::new();
        if let TunedWeights::Layers(_, weights) = &mut self.kind {
            weights.visit(&self.spec, &mut |name, _, own| {
                if is_tuned(self.tune, &self.spec, name) {
                    values.push(own.clone());
                }
                Ok(())
            })?;
        }
        Ok(values)
    }

    /// Takes over the values that `lookup` has for the tensors, and packs again what has changed.
    ///
    /// # Errors
    /// There is no such tensor, or one has another length.
    pub fn set(&mut self, lookup: Lookup, threads: usize) -> Result<()> {
        let Self { spec, image_size, precision, tower, tune, kind, .. } = self;
        let (learned, weights) = match kind {
            TunedWeights::LowRank(blocks) => return blocks.set(&mut tower.blocks, lookup, threads),
            TunedWeights::Layers(learned, weights) => (learned, weights),
        };
        let all = matches!(learned, LearnedWeights::All);
        let changed = Cell::new(false);
        let mut take = |name: &str, shape: &[usize], own: &mut Vec<f32>| {
            if !is_tuned(*tune, spec, name) {
                return Ok(());
            }
            let values = lookup(name)?;
            if values.len() != shape.iter().product::<usize>() {
                return Err(Error::invalid(name, format!("{} values where {shape:?} are expected", values.len())));
            }
            if own != values {
                own.clear();
                own.extend_from_slice(values);
                changed.set(true);
            }
            Ok(())
        };
        weights.embedding.visit(spec, &mut take)?;
        if changed.take() {
            tower.embedding = if all {
                Embedding::new(spec, *image_size, weights.embedding.clone(), *precision)?
            } else {
                tower.embedding.with_biases(&weights.embedding)
            };
        }
        let mut stale = Vec::new();
        for (i, block) in weights.blocks.iter_mut().enumerate() {
            block.visit(&spec.family.vision.blocks, i, &spec.vision, &mut take)?;
            if changed.take() {
                stale.push(i);
            }
        }
        let fresh = parallel::shares(stale.len(), threads, |range| {
            let block = |i: usize| match &weights.blocks[i] {
                weights if all => Block::new(&spec.vision, weights, *precision),
                weights => tower.blocks[i].with_biases(&spec.vision, weights),
            };
            stale[range].iter().map(|&i| block(i)).collect::<Vec<_>>()
        });
        for (i, block) in stale.into_iter().zip(fresh.into_iter().flatten()) {
            tower.blocks[i] = block;
        }
        visit_norm(&mut weights.post_norm, spec.family.vision.post_norm, spec.vision.width, &mut take)?;
        tower.post_norm.clone_from(&weights.post_norm);
        if let (Some(pool), Some(names)) = (&mut weights.attention_pool, spec.family.vision.attention_pool) {
            pool.visit(&names, &spec.vision, &mut take)?;
            if changed.take() {
                let packed = tower.attention_pool.as_ref().filter(|_| !all);
                tower.attention_pool = Some(match packed {
                    Some(packed) => packed.with_biases(&spec.vision, pool, &weights.post_norm),
                    None => AttentionPool::new(&spec.vision, pool, &weights.post_norm, *precision),
                });
            }
        }
        Ok(())
    }

    pub(super) fn tower(&self) -> &Tower {
        &self.tower
    }

    /// Whether these are weights of a tower like that of `vit`.
    pub(super) fn fits(&self, vit: &Vit) -> bool {
        (self.image_size, self.spec.vision.width, self.spec.vision.depth)
            == (vit.image_size(), vit.width(), vit.depth())
    }

    /// Learned tensors of block `i`.
    pub(super) fn learned(&self, i: usize) -> &LearnedWeights {
        match &self.kind {
            TunedWeights::Layers(learned, _) => learned,
            TunedWeights::LowRank(blocks) => blocks.learned(i),
        }
    }

    /// Whether the gradients need what went into every layer.
    pub(super) fn keeps_inputs(&self) -> bool {
        matches!(self.kind, TunedWeights::Layers(LearnedWeights::All, _))
    }

    pub(super) fn zero_grads(&self) -> TowerGrads {
        let width = self.spec.vision.width;
        let blocks = (0..self.tower.blocks.len()).map(|i| BlockGrads::zeros(&self.spec.vision, self.learned(i)));
        let embedding = match &self.kind {
            TunedWeights::Layers(learned, _) => {
                Some(self.tower.embedding.zero_grads(matches!(learned, LearnedWeights::All)))
            }
            TunedWeights::LowRank(_) => None,
        };
        let attention_pool = match (&self.kind, &self.tower.attention_pool) {
            (TunedWeights::Layers(learned, _), Some(_)) => {
                Some(AttentionPool::zero_grads(&self.spec.vision, matches!(learned, LearnedWeights::All)))
            }
            _ => None,
        };
        let post_norm = [vec![0.0; width], vec![0.0; width]];
        TowerGrads { embedding, blocks: blocks.collect(), post_norm, attention_pool }
    }

    /// The gradients of the tensors from those of the packed weights.
    pub(super) fn unfold(&self, grads: TowerGrads) -> Result<Vec<Vec<f32>>> {
        let TowerGrads { embedding, blocks, mut post_norm, attention_pool } = grads;
        let weights = match &self.kind {
            TunedWeights::LowRank(low_rank) => return Ok(low_rank.unfold(blocks)),
            TunedWeights::Layers(_, weights) => weights,
        };
        let embedding = embedding.map(|grads| grads.unfold(&self.spec, self.image_size)).transpose()?;
        let unfolded = blocks.into_iter().zip(&weights.blocks).map(|(grads, weights)| match grads {
            BlockGrads::Layers(layers) => layers.unfold(&self.spec.vision, weights),
            BlockGrads::LowRank(_) => BlockWeights::default(),
        });
        let attention_pool = attention_pool
            .zip(weights.attention_pool.as_ref())
            .map(|(grads, pool)| pool.unfold(grads, &self.spec.vision, &weights.post_norm, &mut post_norm));
        let mut of_tower = TowerWeights {
            embedding: embedding.unwrap_or_default(),
            blocks: unfolded.collect(),
            post_norm,
            attention_pool,
        };
        let mut gradients = Vec::new();
        of_tower.visit(&self.spec, &mut |name, _, values| {
            if is_tuned(self.tune, &self.spec, name) {
                gradients.push(std::mem::take(values));
            }
            Ok(())
        })?;
        Ok(gradients)
    }

    /// About the bytes that the weights take beside the frozen ones and, with `learning`, gradients and optimiser of a step
    /// on `threads` threads.
    pub(super) fn bytes(&self, learning: bool, threads: usize) -> usize {
        let learned: usize = self.tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        let mut of_learned = learned * size_of::<f32>() * if learning { threads + 8 } else { 1 };
        if let (Tune::Norms, true, TunedWeights::Layers(_, weights)) = (self.tune, learning, &self.kind) {
            // Gradients of the matrices that the scales are folded into.
            of_learned += weights.bytes() * (threads + 1);
        }
        let weights = match &self.kind {
            TunedWeights::Layers(LearnedWeights::All, weights) => weights.bytes() + self.tower.weight_bytes(),
            TunedWeights::Layers(_, weights) => weights.bytes(),
            TunedWeights::LowRank(blocks) => blocks.bytes(self.precision),
        };
        weights + of_learned
    }
}

impl std::fmt::Debug for Tuned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tuned {{ tensors: {} }}", self.tensors.len())
    }
}
