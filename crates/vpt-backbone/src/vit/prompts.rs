//! Prompts inside the encoder: which blocks get them, their shared keys and values, and the VJP to them.
//!
//! In VPT-Deep (Jia et al. 2022) every prompted block gets fresh prompts and the outputs of the old ones are thrown away.
//! Outputs that nobody reads need no queries, no attention rows and no MLP: such a block sees its prompts as keys and
//! values only, `[K, V] = LN1(P) [Wk, Wv] + [bk, bv]`, which do not depend on the image and are computed once per batch.
//! Where the outputs are read (the last prompted block of `first:K`, K < L), the prompts enter as ordinary tokens behind
//! the others and travel on. Their place in the sequence is of no consequence, since they carry no position embedding.
//!
//! Key and value prompts (E²VPT, Han et al. 2023) are rows of the keys and values themselves, learned as they are: they join
//! those of the token prompts without norm or projection.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::block::Block;
use super::embed::Embedding;
use super::grads::GradScratch;
use super::tower::Tower;
use super::tuned::{TowerGrads, Tuned};
use super::{Pass, Want};
use vpt_base::{Error, Result, parallel};
use vpt_kernel::{Grow, Init, Mat, MatMut, Precision, layer_norm, layer_norm_vjp, row_stride};

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
            return Err(Error::setting("prompt_layers", message));
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
        let bad = || Error::setting("prompt_layers", format!("'{s}' is none of all, first:K, last:K"));
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

/// Rows of keys and values for consecutive blocks, which every query of every image of a batch sees beside its own: of
/// E²VPT's code, where a block has a tensor `[heads, N, D / heads]`, the heads' rows side by side. Keys are as they are
/// before the scores are divided by `√(D / heads)`.
#[derive(Clone, Copy, Debug)]
pub struct KeyValuePrompts<'a> {
    /// First prompted block.
    pub start: usize,
    /// Number of prompted blocks.
    pub layers: usize,
    /// Rows per block, N.
    pub rows: usize,
    /// `[layers, N, 2D]`: a row's key, then its value.
    pub data: &'a [f32],
}

impl KeyValuePrompts<'_> {
    pub(crate) fn check(&self, depth: usize, width: usize) -> Result<()> {
        let Self { start, layers, rows, data } = *self;
        let fits = start.checked_add(layers).is_some_and(|end| end <= depth);
        let len = layers.checked_mul(rows).and_then(|n| n.checked_mul(2 * width));
        if layers == 0 || rows == 0 || !fits || len != Some(data.len()) {
            let message = format!(
                "{} values are not {rows} keys and values for {layers} blocks from block {start} on, of {depth} blocks of \
                 width {width}",
                data.len()
            );
            return Err(Error::invalid("key and value prompts", message));
        }
        Ok(())
    }
}

/// The prompts of a batch as the blocks see them.
pub(crate) struct PreparedPrompts {
    /// Token prompts, if there are any: the first prompted block, and P.
    of_tokens: Option<(usize, usize)>,
    /// Key and value prompts, if there are any: first and number of prompted blocks, and N.
    of_rows: Option<(usize, usize, usize)>,
    /// Of each block its keys and values, where it sees any that are not of tokens of its sequences.
    shared: Vec<Option<SharedRows>>,
    /// The block at whose input the prompts enter as tokens `[P, D]`, and these.
    pub(crate) inserted: Option<(usize, Vec<f32>)>,
}

/// The keys and values that all images share in one block.
struct SharedRows {
    rows: usize,
    /// `[rows, 2D]` at stride `row_stride(2D)`: those of token prompts, then those that are learned as they are.
    keys_values: Vec<f32>,
    /// Those of token prompts.
    prompts: Option<SharedPrompts>,
}

/// One block's token prompts as keys and values: what their VJP needs.
struct SharedPrompts {
    /// P.
    tokens: usize,
    normalized: Vec<f32>,
    inverse: Vec<f32>,
    /// Output and inverse deviation of `ln_pre` (block 0 of CLIP).
    pre: Option<(Vec<f32>, Vec<f32>)>,
}

/// Gradients of what [`PreparedPrompts`] holds, summed over images.
pub(crate) struct PreparedGrads {
    /// `[rows, 2D]` (stride `row_stride(2D)`) of each block, empty where it shares none.
    pub(crate) shared: Vec<Vec<f32>>,
    /// `[P, D]`.
    pub(crate) inserted: Vec<f32>,
}

impl PreparedGrads {
    pub(crate) fn zeros(prepared: &PreparedPrompts, width: usize) -> Self {
        let inserted = prepared.inserted.as_ref().map_or(0, |(_, tokens)| tokens.len());
        let rows = |shared: &Option<SharedRows>| shared.as_ref().map_or(0, |shared| shared.rows);
        let shared = prepared.shared.iter().map(|shared| vec![0.0; rows(shared) * row_stride(2 * width)]).collect();
        Self { shared, inserted: vec![0.0; inserted] }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let mine = self.shared.iter_mut().chain([&mut self.inserted]);
        for (a, b) in mine.zip(other.shared.iter().chain([&other.inserted])) {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        }
    }
}

impl PreparedPrompts {
    /// What `pass` puts into the blocks of `tower`; `None` if it has no prompts.
    pub(crate) fn new(pass: &Pass, tower: &Tower) -> Option<Self> {
        if pass.prompts.is_none() && pass.keys_values.is_none() {
            return None;
        }
        let (d, depth) = (tower.embedding.width(), tower.blocks.len());
        // A block's prompt outputs are read by nobody if the next block gets fresh prompts or there is no next block.
        let travels = pass.prompts.is_some_and(|prompts| prompts.start + prompts.layers < depth);
        let of_tokens = |block: usize| {
            let prompts = pass.prompts?;
            let i = block.checked_sub(prompts.start).filter(|&i| i < prompts.layers - usize::from(travels))?;
            Some(&prompts.data[i * prompts.tokens * d..(i + 1) * prompts.tokens * d])
        };
        let of_rows = |block: usize| {
            let rows = pass.keys_values?;
            let i = block.checked_sub(rows.start).filter(|&i| i < rows.layers)?;
            Some(&rows.data[i * rows.rows * 2 * d..(i + 1) * rows.rows * 2 * d])
        };
        let shared = each_layer(depth, pass.threads, |i| {
            SharedRows::new(of_tokens(i), of_rows(i), i, &tower.embedding, &tower.blocks[i])
        });
        let inserted = pass.prompts.filter(|_| travels).map(|prompts| {
            (prompts.start + prompts.layers - 1, prompts.data[(prompts.layers - 1) * prompts.tokens * d..].to_vec())
        });
        Some(Self {
            of_tokens: pass.prompts.map(|prompts| (prompts.start, prompts.tokens)),
            of_rows: pass.keys_values.map(|rows| (rows.start, rows.layers, rows.rows)),
            shared,
            inserted,
        })
    }

    /// The same without what only its VJP needs.
    pub(super) fn without_tape(mut self) -> Self {
        self.shared.iter_mut().flatten().for_each(|shared| shared.prompts = None);
        self
    }

    /// The first block that anything is put into.
    pub(super) fn first_block(&self) -> usize {
        let shared = self.shared.iter().position(Option::is_some).unwrap_or(self.shared.len());
        self.inserted.as_ref().map_or(shared, |(at, _)| shared.min(*at))
    }

    /// Bytes of its keys, values and tokens.
    pub(super) fn bytes(&self) -> usize {
        let shared = self.shared.iter().flatten().map(|shared| shared.keys_values.len()).sum::<usize>();
        (shared + self.inserted.as_ref().map_or(0, |(_, tokens)| tokens.len())) * size_of::<f32>()
    }

    /// P; 0 without token prompts.
    pub(crate) fn tokens(&self) -> usize {
        self.of_tokens.map_or(0, |(_, tokens)| tokens)
    }

    /// What a pass can want of prompts, of what it does want.
    pub(crate) fn wanted(prepared: Option<&Self>, want: Want) -> Want {
        let tokens = want.tokens && prepared.is_some_and(|prepared| prepared.of_tokens.is_some());
        let keys_values = want.keys_values && prepared.is_some_and(|prepared| prepared.of_rows.is_some());
        Want { tokens, keys_values, ..want }
    }

    /// The first block that learns by prompts, where the gradients of `want` are wanted.
    pub(crate) fn first_trained(&self, want: Want) -> Option<usize> {
        let of_tokens = self.of_tokens.filter(|_| want.tokens).map(|(start, _)| start);
        let of_rows = self.of_rows.filter(|_| want.keys_values).map(|(start, ..)| start);
        of_tokens.into_iter().chain(of_rows).min()
    }

    /// The keys and values that all images share in `block`, if there are any, `[rows, 2D]`.
    pub(crate) fn keys_values(&self, block: usize, width: usize) -> Option<Mat<'_>> {
        let shared = self.shared[block].as_ref()?;
        Some(Mat::new(&shared.keys_values, shared.rows, 2 * width, row_stride(2 * width)))
    }

    /// The token prompts `[P, D]` that are keys and values of `block`, after its norm, if there are any.
    pub(super) fn normalized(&self, block: usize, width: usize) -> Option<Mat<'_>> {
        let prompts = self.shared[block].as_ref()?.prompts.as_ref()?;
        Some(Mat::new(&prompts.normalized, prompts.tokens, width, row_stride(width)))
    }

    /// The gradient of the token prompts `[layers, P, D]`.
    pub(crate) fn vjp(&self, grads: &PreparedGrads, tower: &Tower, threads: usize) -> Vec<f32> {
        let mut layers = each_layer(self.shared.len(), threads, |i| {
            let prompts = self.shared[i].as_ref().and_then(|shared| shared.prompts.as_ref());
            prompts.map(|prompts| prompts.vjp(&grads.shared[i], &tower.embedding, &tower.blocks[i])).unwrap_or_default()
        });
        layers.push(grads.inserted.clone());
        layers.concat()
    }

    /// The gradient of the key and value prompts `[layers, N, 2D]`.
    pub(crate) fn of_keys_values(&self, grads: &PreparedGrads, width: usize) -> Vec<f32> {
        let Some((start, layers, rows)) = self.of_rows else { return Vec::new() };
        let stride = row_stride(2 * width);
        let own = |layer: &'_ Vec<f32>| {
            let first = layer.len() - rows * stride;
            layer[first..].chunks_exact(stride).flat_map(|row| row[..2 * width].to_vec()).collect::<Vec<f32>>()
        };
        grads.shared[start..start + layers].iter().flat_map(own).collect()
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
        for ((i, shared), gradient) in self.shared.iter().enumerate().zip(&grads.shared) {
            let Some(prompts) = shared.as_ref().and_then(|shared| shared.prompts.as_ref()) else { continue };
            let of_keys_values = Mat::new(gradient, prompts.tokens, 2 * d, kv_stride);
            let x = Mat::new(&prompts.normalized, prompts.tokens, d, stride);
            scratch.add_keys_values(tuned.learned(i), &mut weights.blocks[i], of_keys_values, x, precision);
            if let (Some((normalized, _)), Some(of_embedding)) = (&prompts.pre, &mut weights.embedding) {
                let of_input = prompts.input_vjp(gradient, d, &tower.blocks[i]);
                of_embedding.add_pre_norm(Mat::new(&of_input, prompts.tokens, d, d), normalized);
            }
        }
    }
}

/// `f` of every layer, dealt out to threads.
fn each_layer<T: Send>(layers: usize, threads: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    parallel::shares(layers, threads, |range| range.map(&f).collect::<Vec<T>>()).into_iter().flatten().collect()
}

impl SharedRows {
    /// Those of block `index`: of token prompts `[P, D]` and of rows `[N, 2D]`, both dense.
    fn new(
        tokens: Option<&[f32]>,
        rows: Option<&[f32]>,
        index: usize,
        embedding: &Embedding,
        block: &Block,
    ) -> Option<Self> {
        if tokens.is_none() && rows.is_none() {
            return None;
        }
        let d = embedding.width();
        let stride = row_stride(2 * d);
        let count = tokens.map_or(0, |tokens| tokens.len() / d);
        let all = count + rows.map_or(0, |rows| rows.len() / (2 * d));
        let mut keys_values = vec![0.0; all * stride];
        let (of_tokens, of_rows) = keys_values.split_at_mut(count * stride);
        for (to, from) in of_rows.chunks_exact_mut(stride).zip(rows.unwrap_or_default().chunks_exact(2 * d)) {
            to[..2 * d].copy_from_slice(from);
        }
        let prompts = tokens.map(|tokens| SharedPrompts::new(tokens, index, embedding, block, of_tokens));
        Some(Self { rows: all, keys_values, prompts })
    }
}

impl SharedPrompts {
    /// `prompts` `[P, D]`, dense; their keys and values go to `keys_values` `[P, 2D]` (stride `row_stride(2D)`).
    fn new(prompts: &[f32], index: usize, embedding: &Embedding, block: &Block, keys_values: &mut [f32]) -> Self {
        let d = embedding.width();
        let (tokens, stride, kv_stride) = (prompts.len() / d, row_stride(d), row_stride(2 * d));
        let pre = if index == 0 { embedding.pre_norm(prompts) } else { None };
        let x = pre.as_ref().map_or(prompts, |(_, _, scaled)| scaled);
        let (mut normalized, mut inverse) = (vec![0.0; tokens * stride], vec![0.0; tokens]);
        let view = &mut MatMut::new(&mut normalized, tokens, d, stride);
        layer_norm(Mat::new(x, tokens, d, d), block.eps(), view, &mut inverse);
        let view = MatMut::new(keys_values, tokens, 2 * d, kv_stride);
        block.keys_values().apply(Mat::new(&normalized, tokens, d, stride), view);
        Self { tokens, normalized, inverse, pre: pre.map(|(normalized, inverse, _)| (normalized, inverse)) }
    }

    /// `[P, D]` from the gradient of keys and values, whose first rows `[P, 2D]` are theirs.
    fn vjp(&self, gradient: &[f32], embedding: &Embedding, block: &Block) -> Vec<f32> {
        let dx = self.input_vjp(gradient, embedding.width(), block);
        match &self.pre {
            Some((normalized, inverse)) => embedding.pre_norm_vjp(&dx, normalized, inverse),
            None => dx,
        }
    }

    /// The gradient `[P, D]` of what enters the block.
    fn input_vjp(&self, gradient: &[f32], d: usize, block: &Block) -> Vec<f32> {
        let (p, stride, kv_stride) = (self.tokens, row_stride(d), row_stride(2 * d));
        let mut wide = Vec::new();
        let d_normalized = wide.grow(p * stride);
        let view = MatMut::new(d_normalized, p, d, stride);
        block.keys_values().vjp(Mat::new(gradient, p, 2 * d, kv_stride), view, Init::Zero);
        let mut dx = vec![0.0; p * d];
        layer_norm_vjp(
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
            assert!(resolve(bad).unwrap_err().to_string().starts_with("prompt_layers: "), "{bad}");
        }
        for layers in [PromptLayers::All, PromptLayers::First(3), PromptLayers::Last(2)] {
            assert_eq!(layers.to_string().parse::<PromptLayers>().unwrap(), layers);
        }
    }
}
