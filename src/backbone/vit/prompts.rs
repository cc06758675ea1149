//! Token prompts inside the encoder: which blocks get them, their shared keys and values, and the VJP to them.
//!
//! In VPT-Deep (Jia et al. 2022) every prompted block gets fresh prompts and the outputs of the old ones are thrown away.
//! Outputs that nobody reads need no queries, no attention rows and no MLP: such a block sees its prompts as keys and
//! values only, `[K, V] = LN1(P) [Wk, Wv] + [bk, bv]`, which do not depend on the image and are computed once per batch.
//! Where the outputs are read (the last prompted block of `first:K`, K < L), the prompts enter as ordinary tokens behind
//! the others and travel on. Their place in the sequence is of no consequence, since they carry no position embedding.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::block::Block;
use super::embed::Embedding;
use super::grads::Scratch as GradScratch;
use super::tower::Tower;
use super::tuned::{TowerGrads, Tuned};
use crate::kernel::{Grow, Init, Mat, MatMut, Precision, normalize, normalize_vjp, row_stride};
use crate::{Error, Result, parallel};

/// Which blocks are prompted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PromptLayers {
    /// Every block.
    All,
    /// The first K blocks; after the last of them the prompts travel on as tokens. `First(1)` is VPT-shallow.
    First(usize),
    /// The last K blocks.
    Last(usize),
}

impl PromptLayers {
    /// `(first prompted block, number of prompted blocks)` in a tower of `depth` blocks.
    ///
    /// # Errors
    /// K is zero or larger than `depth`.
    pub fn resolve(self, depth: usize) -> Result<(usize, usize)> {
        let (start, count) = match self {
            Self::All => (0, depth),
            Self::First(k) => (0, k),
            Self::Last(k) => (depth.saturating_sub(k), k),
        };
        if count == 0 || count > depth {
            let message = format!("{self} does not fit a backbone of {depth} blocks: take 1 to {depth}");
            return Err(Error::flag("--prompt-layers", message));
        }
        Ok((start, count))
    }
}

impl std::fmt::Display for PromptLayers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::First(k) => write!(f, "first:{k}"),
            Self::Last(k) => write!(f, "last:{k}"),
        }
    }
}

impl FromStr for PromptLayers {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let bad = || Error::flag("--prompt-layers", format!("'{s}' is none of all, first:K, last:K"));
        match s.split_once(':') {
            None if s == "all" => Ok(Self::All),
            Some(("first", k)) => Ok(Self::First(k.parse().map_err(|_| bad())?)),
            Some(("last", k)) => Ok(Self::Last(k.parse().map_err(|_| bad())?)),
            _ => Err(bad()),
        }
    }
}

impl From<PromptLayers> for String {
    fn from(layers: PromptLayers) -> Self {
        layers.to_string()
    }
}

impl TryFrom<String> for PromptLayers {
    type Error = Error;

    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

/// Prompt tokens for consecutive blocks.
#[derive(Clone, Copy, Debug)]
pub struct TokenPrompts<'a> {
    /// First prompted block.
    pub start: usize,
    /// Number of prompted blocks.
    pub layers: usize,
    /// Prompt tokens per block, P.
    pub tokens: usize,
    /// `[layers, P, D]`.
    pub data: &'a [f32],
}

impl TokenPrompts<'_> {
    pub(crate) fn check(&self, depth: usize, width: usize) -> Result<()> {
        if self.layers == 0 || self.tokens == 0 || self.start.checked_add(self.layers).is_none_or(|end| end > depth) {
            let message = format!(
                "{} tokens for blocks {}..{} do not fit a backbone of {depth} blocks",
                self.tokens,
                self.start,
                self.start.saturating_add(self.layers)
            );
            return Err(Error::invalid("prompts", message));
        }
        if self.layers.checked_mul(self.tokens).and_then(|n| n.checked_mul(width)) != Some(self.data.len()) {
            let shape = format!("[{}, {}, {width}]", self.layers, self.tokens);
            return Err(Error::invalid("prompts", format!("{} values are not {shape}", self.data.len())));
        }
        Ok(())
    }
}

/// The prompts of a batch as the blocks see them.
pub(crate) struct Prepared {
    /// First prompted block.
    pub(crate) start: usize,
    /// P.
    pub(crate) tokens: usize,
    /// Keys and values `[P, 2D]` (stride `row_stride(2D)`) of blocks `start..start + shared.len()`.
    shared: Vec<SharedPrompts>,
    /// The block at whose input the prompts enter as tokens `[P, D]`, and these.
    pub(crate) inserted: Option<(usize, Vec<f32>)>,
}

/// One block's prompts as keys and values, with what their VJP needs.
struct SharedPrompts {
    keys_values: Vec<f32>,
    normalized: Vec<f32>,
    inverse: Vec<f32>,
    /// Output and inverse deviation of `ln_pre` (block 0 of CLIP).
    pre: Option<(Vec<f32>, Vec<f32>)>,
}

/// Gradients of what [`Prepared`] holds, summed over images.
pub(crate) struct PreparedGrads {
    /// `[P, 2D]` (stride `row_stride(2D)`) per block.
    pub(crate) shared: Vec<Vec<f32>>,
    /// `[P, D]`.
    pub(crate) inserted: Vec<f32>,
}

impl PreparedGrads {
    pub(crate) fn zeros(prepared: &Prepared, width: usize) -> Self {
        let inserted = prepared.inserted.as_ref().map_or(0, |_| prepared.tokens * width);
        let shared = vec![vec![0.0; prepared.tokens * row_stride(2 * width)]; prepared.shared.len()];
        Self { shared, inserted: vec![0.0; inserted] }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let mine = self.shared.iter_mut().chain([&mut self.inserted]);
        for (a, b) in mine.zip(other.shared.iter().chain([&other.inserted])) {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        }
    }
}

impl Prepared {
    pub(crate) fn new(prompts: &TokenPrompts, embedding: &Embedding, blocks: &[Block], threads: usize) -> Self {
        let d = embedding.width();
        let end = prompts.start + prompts.layers;
        // A block's prompt outputs are read by nobody if the next block gets fresh prompts or there is no next block.
        let travels = end < blocks.len();
        let shared_layers = prompts.layers - usize::from(travels);
        let layer = |i: usize| &prompts.data[i * prompts.tokens * d..(i + 1) * prompts.tokens * d];
        let shared = each_layer(shared_layers, threads, |i| {
            SharedPrompts::new(layer(i), prompts.start + i, embedding, &blocks[prompts.start + i])
        });
        let inserted = travels.then(|| (end - 1, layer(prompts.layers - 1).to_vec()));
        Self { start: prompts.start, tokens: prompts.tokens, shared, inserted }
    }

    /// Index into [`PreparedGrads::shared`] of a block that sees prompts as keys and values.
    pub(crate) fn shared_index(&self, block: usize) -> Option<usize> {
        block.checked_sub(self.start).filter(|&i| i < self.shared.len())
    }

    /// The prompts' keys and values in `block`, if it sees any, `[P, 2D]`.
    pub(crate) fn keys_values(&self, block: usize, width: usize) -> Option<Mat<'_>> {
        let shared = &self.shared[self.shared_index(block)?];
        Some(Mat::new(&shared.keys_values, self.tokens, 2 * width, row_stride(2 * width)))
    }

    /// The gradient of the prompts `[layers, P, D]`.
    pub(crate) fn vjp(
        &self,
        grads: &PreparedGrads,
        embedding: &Embedding,
        blocks: &[Block],
        threads: usize,
    ) -> Vec<f32> {
        let mut layers = each_layer(self.shared.len(), threads, |i| {
            self.shared[i].vjp(&grads.shared[i], self.tokens, embedding, &blocks[self.start + i])
        });
        layers.push(grads.inserted.clone());
        layers.concat()
    }

    /// Adds to `weights`, the gradients of what is `tuned` of `tower`, what comes through the prompts' keys and values, which
    /// the tower's layers make once for the whole batch.
    pub(crate) fn add_weights(
        &self,
        grads: &PreparedGrads,
        tower: &Tower,
        tuned: &Tuned,
        weights: &mut TowerGrads,
        precision: Precision,
    ) {
        let d = tower.embedding.width();
        let (stride, kv_stride) = (row_stride(d), row_stride(2 * d));
        let scratch = &mut GradScratch::default();
        for ((i, shared), gradient) in (self.start..).zip(&self.shared).zip(&grads.shared) {
            let of_keys_values = Mat::new(gradient, self.tokens, 2 * d, kv_stride);
            let x = Mat::new(&shared.normalized, self.tokens, d, stride);
            scratch.add_keys_values(tuned.learned(i), &mut weights.blocks[i], of_keys_values, x, precision);
            if let (Some((normalized, _)), Some(of_embedding)) = (&shared.pre, &mut weights.embedding) {
                let of_input = shared.input_vjp(gradient, self.tokens, d, &tower.blocks[i]);
                of_embedding.add_pre_norm(Mat::new(&of_input, self.tokens, d, d), normalized);
            }
        }
    }
}

/// `f` of every layer, dealt out to threads.
fn each_layer<T: Send>(layers: usize, threads: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    parallel::shares(layers, threads, |range| range.map(&f).collect::<Vec<T>>()).into_iter().flatten().collect()
}

impl SharedPrompts {
    /// `prompts` `[P, D]`, dense.
    fn new(prompts: &[f32], index: usize, embedding: &Embedding, block: &Block) -> Self {
        let d = embedding.width();
        let (p, stride, kv_stride) = (prompts.len() / d, row_stride(d), row_stride(2 * d));
        let pre = if index == 0 { embedding.pre_norm(prompts) } else { None };
        let x = pre.as_ref().map_or(prompts, |(_, _, scaled)| scaled);
        let (mut normalized, mut inverse) = (vec![0.0; p * stride], vec![0.0; p]);
        let view = &mut MatMut::new(&mut normalized, p, d, stride);
        normalize(Mat::new(x, p, d, d), block.eps(), view, &mut inverse);
        let mut keys_values = vec![0.0; p * kv_stride];
        let view = MatMut::new(&mut keys_values, p, 2 * d, kv_stride);
        block.keys_values().apply(Mat::new(&normalized, p, d, stride), view);
        Self { keys_values, normalized, inverse, pre: pre.map(|(normalized, inverse, _)| (normalized, inverse)) }
    }

    /// `[P, D]` from the gradient of keys and values `[P, 2D]`.
    fn vjp(&self, gradient: &[f32], p: usize, embedding: &Embedding, block: &Block) -> Vec<f32> {
        let dx = self.input_vjp(gradient, p, embedding.width(), block);
        match &self.pre {
            Some((normalized, inverse)) => embedding.pre_norm_vjp(&dx, normalized, inverse),
            None => dx,
        }
    }

    /// The gradient `[P, D]` of what enters the block.
    fn input_vjp(&self, gradient: &[f32], p: usize, d: usize, block: &Block) -> Vec<f32> {
        let (stride, kv_stride) = (row_stride(d), row_stride(2 * d));
        let mut wide = Vec::new();
        let d_normalized = wide.grow(p * stride);
        let view = MatMut::new(d_normalized, p, d, stride);
        block.keys_values().vjp(Mat::new(gradient, p, 2 * d, kv_stride), view, Init::Zero);
        let mut dx = vec![0.0; p * d];
        normalize_vjp(
            Mat::new(&self.normalized, p, d, stride),
            &self.inverse,
            Mat::new(d_normalized, p, d, stride),
            &mut MatMut::new(&mut dx, p, d, d),
        );
        dx
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_parsed_and_resolved() {
        let resolve = |s: &str| s.parse::<PromptLayers>().and_then(|l| l.resolve(12));
        assert_eq!(resolve("all").unwrap(), (0, 12));
        assert_eq!(resolve("first:1").unwrap(), (0, 1));
        assert_eq!(resolve("last:4").unwrap(), (8, 4));
        for bad in ["", "some", "first:", "first:0", "last:13", "first:-1", "last:99999999999999999999"] {
            assert!(resolve(bad).unwrap_err().to_string().starts_with("--prompt-layers: "), "{bad}");
        }
        for layers in [PromptLayers::All, PromptLayers::First(3), PromptLayers::Last(2)] {
            assert_eq!(layers.to_string().parse::<PromptLayers>().unwrap(), layers);
        }
    }
}
