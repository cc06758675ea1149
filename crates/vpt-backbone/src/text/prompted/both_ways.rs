//! Texts with learned vectors in them whose tokens see what comes after them too, as SigLIP's do.
//!
//! The vectors are the first tokens of a text, its own tokens, end and padding come behind them. What the vectors become
//! depends on the text, so every text has them in a sequence of its own: nothing is shared, as it is where attention is
//! causal.

use std::ops::Range;

use super::super::{TextMicroBatch, TextTower};
use super::{PromptedTexts, TextBatch, TextPrompts};
use crate::vit::{BlockScratch, BlockTape, BlockVjp, Queries, Sequences};
use vpt_base::parallel;
use vpt_kernel::row_stride;

impl TextTower {
    /// Embeddings of the texts of `batch`, and their tapes if they are to be kept.
    pub(super) fn both_ways(
        &self,
        prompts: &TextPrompts,
        batch: TextBatch,
        scratch: &mut BlockScratch,
    ) -> (Vec<f32>, TextMicroBatch) {
        let d = self.width();
        let stride = row_stride(d);
        let tails = batch.tails();
        let starts = sequence_starts(prompts.tokens, batch.texts, &batch.range);
        let mut x = vec![0.0; starts[tails.len()] * stride];
        let layers: Vec<&[f32]> = prompts.data.chunks_exact(prompts.tokens * d).collect();
        for (tail, &start) in tails.iter().zip(&starts) {
            let own = tail.iter().map(|&id| self.token(id));
            let tokens = layers[0].chunks_exact(d).chain(own);
            for (position, (token, row)) in tokens.zip(x[start * stride..].chunks_exact_mut(stride)).enumerate() {
                self.embed_token(row, token, position);
            }
        }
        let sequences = Sequences::unturned(&starts, false);
        let mut part = TextMicroBatch { range: batch.range, ..TextMicroBatch::default() };
        for (i, block) in self.blocks.iter().enumerate() {
            if let (Some(fresh), true) = (layers.get(i), i > 0) {
                for &start in &starts[..starts.len() - 1] {
                    let rows = x[start * stride..].chunks_exact_mut(stride);
                    rows.zip(fresh.chunks_exact(d)).for_each(|(row, vector)| row[..d].copy_from_slice(vector));
                }
            }
            let mut tape = batch.keep.then(|| BlockTape::new(self.precision));
            block.forward(&mut x, sequences, None, Queries::All, tape.as_mut(), scratch);
            part.blocks.extend(tape);
        }
        let embeds = self.project_ends(&x, &starts, &mut part.normalized, &mut part.inverse);
        (embeds, part)
    }

    /// The gradient of the prompts `[layers, n, D]` from that of the embeddings `[C, projection]`, by the parts of the forward pass
    /// of each thread.
    pub(super) fn both_ways_gradient(
        &self,
        prompts: &TextPrompts,
        parts: Vec<Vec<TextMicroBatch>>,
        texts: &PromptedTexts,
        d_embeds: &[f32],
    ) -> Vec<f32> {
        let width = self.projection();
        let sums = parallel::with_shares(parts, |parts| {
            let mut gradient = vec![0.0; prompts.data.len()];
            let mut scratch = BlockScratch::default();
            for part in parts {
                let part = if part.blocks.is_empty() {
                    self.both_ways(prompts, TextBatch { texts, range: part.range, keep: true }, &mut scratch).1
                } else {
                    part
                };
                let d_embeds = &d_embeds[part.range.start * width..part.range.end * width];
                self.both_ways_vjp(&part, prompts, texts, d_embeds, &mut gradient, &mut scratch);
            }
            gradient
        });
        let mut all = vec![0.0; prompts.data.len()];
        for sum in sums {
            all.iter_mut().zip(sum).for_each(|(to, from)| *to += from);
        }
        all
    }

    /// Adds the gradient of the prompts `[layers, n, D]` to `gradient`, from that of the embeddings `[m, projection]` of the
    /// texts of `part`.
    fn both_ways_vjp(
        &self,
        part: &TextMicroBatch,
        prompts: &TextPrompts,
        texts: &PromptedTexts,
        d_embeds: &[f32],
        gradient: &mut [f32],
        scratch: &mut BlockScratch,
    ) {
        let TextPrompts { layers, tokens, .. } = *prompts;
        let d = self.width();
        let stride = row_stride(d);
        let starts = sequence_starts(tokens, texts, &part.range);
        let mut dx = self.project_ends_vjp(d_embeds, &starts, &part.normalized, &part.inverse);
        let sequences = Sequences::unturned(&starts, false);
        for (i, block) in self.blocks.iter().enumerate().rev() {
            block.vjp(&mut dx, BlockVjp::of(sequences, &part.blocks[i]), scratch);
            if i >= layers {
                continue;
            }
            let of_layer = &mut gradient[i * tokens * d..(i + 1) * tokens * d];
            for &start in &starts[..starts.len() - 1] {
                let rows = dx[start * stride..].chunks_exact_mut(stride);
                for (to, row) in of_layer.chunks_exact_mut(d).zip(rows) {
                    to.iter_mut().zip(&*row).for_each(|(sum, value)| *sum += value);
                    // What was in this place before was thrown away.
                    row.fill(0.0);
                }
            }
        }
    }
}

/// Where the rows of each of these texts begin with `tokens` vectors in front, and those of the last one end.
fn sequence_starts(tokens: usize, texts: &PromptedTexts, range: &Range<usize>) -> Vec<usize> {
    let mut end = 0;
    std::iter::once(0)
        .chain(texts.tails[range.clone()].iter().map(|tail| {
            end += tokens + tail.len();
            end
        }))
        .collect()
}
