//! CLIP's text tower: token ids to projected text embeddings.

use std::path::Path;

use super::spec::TextSpec;
use super::vit::{Block, BlockScratch, Queries, Sequences, clip_block, norm};
use super::weights::Weights;
use crate::kernel::{Init, Mat, MatMut, Panels, Precision, matmul, normalize, row_stride};
use crate::{Error, Result};

/// Rows that a thread works on at a time, about.
const ROWS: usize = 400;

/// A frozen text tower. Attention is causal and only the end-of-text token is read, so what follows it in a padded text
/// changes nothing and is never computed.
pub struct TextTower {
    spec: TextSpec,
    /// `[vocab, D]`.
    tokens: Vec<f32>,
    /// `[context, D]`.
    positions: Vec<f32>,
    blocks: Vec<Block>,
    final_norm: [Vec<f32>; 2],
    /// `[D, projection]`.
    projection: Panels,
}

impl TextTower {
    /// Loads the tower `spec` describes; weights are kept, and products computed, in `precision`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(spec: &TextSpec, weights: &Weights, precision: Precision) -> Result<Self> {
        let d = spec.tower.width;
        let embedding =
            |name: &str, rows| weights.get(&format!("text_model.embeddings.{name}_embedding.weight"), &[rows, d]);
        let projection = weights.get("text_projection.weight", &[spec.projection, d])?;
        Ok(Self {
            tokens: embedding("token", spec.vocab)?,
            positions: embedding("position", spec.context)?,
            blocks: (0..spec.tower.depth)
                .map(|i| clip_block(weights, "text_model", i, &spec.tower, precision))
                .collect::<Result<_>>()?,
            final_norm: norm(weights, "text_model.final_layer_norm", d)?,
            projection: Panels::pack(Mat::new(&projection, spec.projection, d, d).t()),
            spec: spec.clone(),
        })
    }

    /// Longest text in tokens, start and end included.
    pub fn context(&self) -> usize {
        self.spec.context
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
        for ids in texts {
            if ids.is_empty() || ids.len() > self.spec.context {
                let message =
                    format!("makes {} tokens of a text; the model takes 1 to {}", ids.len(), self.spec.context);
                return Err(Error::file(origin, message));
            }
            if let Some(id) = ids.iter().find(|&&id| id as usize >= self.spec.vocab) {
                let message = format!("makes token {id} of a text; the model's vocabulary has {}", self.spec.vocab);
                return Err(Error::file(origin, message));
            }
        }
        let read: Vec<&[u32]> = texts.iter().map(|ids| &ids[..=self.spec.pool_position(ids)]).collect();
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
        let sequences = Sequences { starts: &starts, causal: true };
        for block in &self.blocks {
            block.forward(&mut x, sequences, None, Queries::All, None, scratch);
        }
        let n = texts.len();
        let pooled: Vec<f32> =
            starts[1..].iter().flat_map(|end| &x[(end - 1) * stride..(end - 1) * stride + d]).copied().collect();
        let (mut y, mut inverse) = (vec![0.0; n * d], vec![0.0; n]);
        let eps = self.spec.tower.eps;
        normalize(Mat::new(&pooled, n, d, d), eps, &mut MatMut::new(&mut y, n, d, d), &mut inverse);
        let [scale, shift] = &self.final_norm;
        for row in y.chunks_exact_mut(d) {
            for (i, y) in row.iter_mut().enumerate() {
                *y = *y * scale[i] + shift[i];
            }
        }
        let width = self.spec.projection;
        let mut out = vec![0.0; n * width];
        matmul(Mat::new(&y, n, d, d), &self.projection, MatMut::new(&mut out, n, width, width), Init::Zero);
        out
    }
}

impl std::fmt::Debug for TextTower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TextTower {{ {:?} }}", self.spec)
    }
}
