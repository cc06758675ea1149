//! The text tower: token ids to projected text embeddings. Texts with learned vectors in them are in `prompted`.

mod plain;
mod prompted;
mod tuned;

use std::ops::Range;
use std::path::Path;

pub use self::plain::{PlainTextEnds, PlainTextTower};
pub use self::prompted::{PromptedTexts, TextPrompts, TextTape};
pub use self::tuned::{TunedTape, TunedTexts};
use super::names::TextNames;
use super::spec::{TextPool, TextSpec};
use super::vit::{Block, BlockScratch, BlockTape, BlockWeights, Get, Queries, Sequences, norm};
use super::weights::Weights;
use vpt_base::{Error, Result};
use vpt_kernel::{Init, Mat, MatMut, Panels, Precision, layer_norm, layer_norm_vjp, matmul, row_stride};

/// Rows that a thread works on at a time, about.
const ROWS: usize = 400;

/// A text tower. Where attention is causal and the end-of-text token is read, what follows it in a padded text changes nothing
/// and is never computed.
pub struct TextTower {
    spec: TextSpec,
    names: &'static TextNames,
    /// `[vocab, D]`.
    tokens: Vec<f32>,
    /// `[context, D]`.
    positions: Vec<f32>,
    blocks: Vec<Block>,
    final_norm: [Vec<f32>; 2],
    /// `[D, projection]`.
    projection: Panels,
    /// `[projection]`; empty where there is none.
    projection_bias: Vec<f32>,
    precision: Precision,
}

/// Tensors before and behind the blocks, as the checkpoint has them.
struct Ends {
    tokens: Vec<f32>,
    positions: Vec<f32>,
    final_norm: [Vec<f32>; 2],
    projection: Vec<f32>,
    projection_bias: Vec<f32>,
}

/// A micro-batch of texts, or of what of them each text has for itself, and what its VJP needs.
#[derive(Default)]
struct TextMicroBatch {
    range: Range<usize>,
    /// Empty if they took too much memory.
    blocks: Vec<BlockTape>,
    normalized: Vec<f32>,
    inverse: Vec<f32>,
}

impl Ends {
    fn read(spec: &TextSpec, names: &TextNames, get: Get) -> Result<Self> {
        let d = spec.tower.width;
        Ok(Self {
            projection: get(names.projection, &[spec.projection, d])?,
            projection_bias: if spec.projection_bias {
                get(names.projection_bias, &[spec.projection])?
            } else {
                Vec::new()
            },
            tokens: get(names.tokens, &[spec.vocab, d])?,
            positions: get(names.positions, &[spec.context, d])?,
            final_norm: norm(get, names.final_norm, d)?,
        })
    }
}

impl TextTower {
    /// Loads the tower that `spec` describes, by its tensors' `names`; weights are kept, and products computed, in `precision`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub(super) fn load(
        spec: &TextSpec,
        names: &'static TextNames,
        weights: &Weights,
        precision: Precision,
    ) -> Result<Self> {
        let get: Get = &|name, shape| weights.get(name, shape);
        let Ends { tokens, positions, final_norm, projection, projection_bias } = Ends::read(spec, names, get)?;
        let d = spec.tower.width;
        Ok(Self {
            tokens,
            positions,
            blocks: (0..spec.tower.depth)
                .map(|i| {
                    Ok(Block::new(&spec.tower, &BlockWeights::read(get, &names.blocks, i, &spec.tower)?, precision))
                })
                .collect::<Result<_>>()?,
            final_norm,
            projection: Panels::pack(Mat::new(&projection, spec.projection, d, d).t()),
            projection_bias,
            spec: spec.clone(),
            names,
            precision,
        })
    }

    /// Checks that [`Self::load`] would find every tensor, without reading one.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(super) fn check(spec: &TextSpec, names: &TextNames, weights: &Weights) -> Result<()> {
        let get: Get = &|name, shape| weights.check(name, shape).map(|()| Vec::new());
        Ends::read(spec, names, get)?;
        (0..spec.tower.depth).try_for_each(|i| BlockWeights::read(get, &names.blocks, i, &spec.tower).map(drop))
    }

    /// Longest text in tokens, start and end included.
    pub fn context(&self) -> usize {
        self.spec.context
    }

    /// Width D of a token.
    pub fn width(&self) -> usize {
        self.spec.tower.width
    }

    /// Number of blocks.
    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// Width of an embedding.
    pub fn projection(&self) -> usize {
        self.spec.projection
    }

    /// Projected embeddings `[T, projection]`, not normalised, of texts given as token ids.
    ///
    /// # Errors
    /// A text is empty or longer than the context, or an id is beyond the vocabulary; `origin` is the file to blame.
    pub fn embed(&self, texts: &[Vec<u32>], origin: &Path, threads: usize) -> Result<Vec<f32>> {
        texts.iter().try_for_each(|ids| check_ids(&self.spec, ids, origin))?;
        let read: Vec<&[u32]> = texts.iter().map(|ids| &ids[..self.spec.read_len(ids)]).collect();
        let threads = threads.clamp(1, texts.len().max(1));
        let share = |thread: usize| thread * texts.len() / threads;
        let parts: Vec<Vec<f32>> = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..threads)
                .map(|t| {
                    let read = &read[share(t)..share(t + 1)];
                    scope.spawn(move || self.share(read))
                })
                .collect();
            handles.into_iter().map(|h| h.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).collect()
        });
        Ok(parts.concat())
    }

    fn share(&self, texts: &[&[u32]]) -> Vec<f32> {
        let mut scratch = BlockScratch::default();
        let mut out = Vec::with_capacity(texts.len() * self.spec.projection);
        let mut rest = texts;
        while !rest.is_empty() {
            let mut rows = 0;
            let count = rest.iter().take_while(|ids| {
                rows += ids.len();
                rows <= ROWS
            });
            let (now, later) = rest.split_at(count.count().max(1));
            out.extend(self.micro_batch(now, &mut scratch));
            rest = later;
        }
        out
    }

    fn micro_batch(&self, texts: &[&[u32]], scratch: &mut BlockScratch) -> Vec<f32> {
        let (mut x, starts) = self.rows(texts);
        let sequences = Sequences::unturned(&starts, self.spec.causal);
        for block in &self.blocks {
            block.forward(&mut x, sequences, None, Queries::All, None, scratch);
        }
        let (mut normalized, mut inverse) = (Vec::new(), Vec::new());
        self.project_ends(&x, &starts, &mut normalized, &mut inverse)
    }

    /// The first block's input for `texts`, at stride [`row_stride`]`(D)`, and where the rows of each begin, and those of the
    /// last end.
    fn rows(&self, texts: &[&[u32]]) -> (Vec<f32>, Vec<usize>) {
        let d = self.spec.tower.width;
        let stride = row_stride(d);
        let mut starts = vec![0];
        let mut x = Vec::new();
        for ids in texts {
            for (position, &id) in self.positions.chunks_exact(d).zip(*ids) {
                let token = &self.tokens[id as usize * d..][..d];
                let end = x.len() + stride;
                x.extend(token.iter().zip(position).map(|(t, p)| t + p));
                x.resize(end, 0.0);
            }
            starts.push(x.len() / stride);
        }
        (x, starts)
    }

    /// Embeddings `[n, projection]` of n texts whose rows behind the last block, `[rows, D]` at stride
    /// [`row_stride`]`(D)`, end where those of the next begin (`starts`, n + 1 values). Keeps what the VJP needs of the
    /// norm: `normalized` `[n, D]`, `inverse` `[n]`.
    fn project_ends(&self, x: &[f32], starts: &[usize], normalized: &mut Vec<f32>, inverse: &mut Vec<f32>) -> Vec<f32> {
        let d = self.spec.tower.width;
        let (n, stride) = (starts.len() - 1, row_stride(d));
        let ends: Vec<f32> =
            starts[1..].iter().flat_map(|end| &x[(end - 1) * stride..(end - 1) * stride + d]).copied().collect();
        normalized.resize(n * d, 0.0);
        inverse.resize(n, 0.0);
        layer_norm(Mat::new(&ends, n, d, d), self.spec.tower.eps, &mut MatMut::new(normalized, n, d, d), inverse);
        let [scale, shift] = &self.final_norm;
        let y: Vec<f32> =
            normalized.chunks_exact(d).flat_map(|row| (0..d).map(|i| row[i] * scale[i] + shift[i])).collect();
        let width = self.spec.projection;
        let mut out = vec![0.0; n * width];
        let init = if self.projection_bias.is_empty() { Init::Zero } else { Init::Bias(&self.projection_bias) };
        matmul(Mat::new(&y, n, d, d), &self.projection, MatMut::new(&mut out, n, width, width), init);
        out
    }

    /// The VJP of [`Self::project_ends`]: the gradient of the rows behind the last block, at stride [`row_stride`]`(D)`.
    fn project_ends_vjp(&self, d_embeds: &[f32], starts: &[usize], normalized: &[f32], inverse: &[f32]) -> Vec<f32> {
        let (d, width) = (self.spec.tower.width, self.spec.projection);
        let (n, stride) = (starts.len() - 1, row_stride(d));
        let mut gradient = vec![0.0; n * d];
        let d_embeds = Mat::new(d_embeds, n, width, width);
        matmul(d_embeds, self.projection.t(), MatMut::new(&mut gradient, n, d, d), Init::Zero);
        for row in gradient.chunks_exact_mut(d) {
            row.iter_mut().zip(&self.final_norm[0]).for_each(|(g, scale)| *g *= scale);
        }
        let mut ends = vec![0.0; n * d];
        let view = &mut MatMut::new(&mut ends, n, d, d);
        layer_norm_vjp(Mat::new(normalized, n, d, d), inverse, Mat::new(&gradient, n, d, d), view);
        let mut dx = vec![0.0; starts[n] * stride];
        for (end, row) in starts[1..].iter().zip(ends.chunks_exact(d)) {
            dx[(end - 1) * stride..(end - 1) * stride + d].copy_from_slice(row);
        }
        dx
    }

    /// About what the tapes of `rows` rows that see at most `keys` keys take in all blocks, in bytes.
    fn tape_bytes(&self, rows: usize, keys: usize) -> usize {
        let tower = &self.spec.tower;
        let per_row = 5 * tower.width + tower.mlp + tower.heads * row_stride(keys);
        rows.saturating_mul(per_row * tower.depth * self.precision.bytes())
    }
}

/// Fails if `ids` cannot be a text.
fn check_ids(spec: &TextSpec, ids: &[u32], origin: &Path) -> Result<()> {
    if ids.is_empty() || ids.len() > spec.context {
        let message = format!("makes {} tokens of a text; the model takes 1 to {}", ids.len(), spec.context);
        return Err(Error::weights(origin, message));
    }
    if spec.pool == TextPool::LastPosition && ids.len() != spec.context {
        let message = format!("makes {} tokens of a text; the model takes exactly {}", ids.len(), spec.context);
        return Err(Error::weights(origin, message));
    }
    check_vocabulary(spec, ids, origin)
}

/// Fails if an id is beyond the vocabulary.
fn check_vocabulary(spec: &TextSpec, ids: &[u32], origin: &Path) -> Result<()> {
    if let Some(id) = ids.iter().find(|&&id| id as usize >= spec.vocab) {
        let message = format!("makes token {id} of a text; the model's vocabulary has {}", spec.vocab);
        return Err(Error::weights(origin, message));
    }
    Ok(())
}

impl std::fmt::Debug for TextTower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TextTower {{ {:?} }}", self.spec)
    }
}
