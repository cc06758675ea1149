//! The text tower with low-rank changes to its queries, keys and values, and the gradients of these: the half of CLIP-LoRA
//! (Zanella and Ben Ayed, 2024) that learns the texts of the classes.

use std::ops::Range;
use std::path::Path;

use super::prompted::{KEEP_BYTES, micro_batches};
use super::{TextMicroBatch, TextTower, check_ids};
use crate::vit::{
    Block, BlockGrads, BlockScratch, BlockTape, BlockVjp, BlockWeights, Depth, Get, Lookup, LowRankBlocks, Queries,
    Sequences,
};
use crate::weights::Weights;
use vpt_base::{Error, Result, parallel};

/// The changes to a text tower.
pub struct TunedTexts {
    low_rank: LowRankBlocks,
    blocks: Vec<Block>,
}

/// Activations that the VJP needs of a forward pass.
#[derive(Default)]
pub struct TunedTape {
    /// Micro-batches of each thread, in the order of the texts.
    parts: Vec<Vec<TextMicroBatch>>,
}

impl TextTower {
    /// No changes yet, of this `rank` and `scale`; `weights` are those that the tower was loaded from.
    ///
    /// # Errors
    /// The weights cannot be read any more, or the rank is none.
    pub fn tuned(&self, weights: &Weights, rank: usize, scale: f32) -> Result<TunedTexts> {
        if rank == 0 || rank > self.width() {
            let message = format!("{rank} is no rank of a matrix of {0} x {0}", self.width());
            return Err(Error::setting("lora_rank", message));
        }
        let get: Get = &|name, shape| weights.get(name, shape);
        let names = &self.names.blocks;
        let block = |i| Ok((names.qkv_of(i), BlockWeights::read(get, names, i, &self.spec.tower)?));
        let low_rank = LowRankBlocks::new(&self.spec.tower, (0..self.depth()).map(block), rank, scale)?;
        Ok(TunedTexts { low_rank, blocks: self.blocks.clone() })
    }

    /// The part of each text that is read.
    ///
    /// # Errors
    /// As [`TextTower::embed`].
    pub fn read_part(&self, texts: Vec<Vec<u32>>, origin: &Path) -> Result<Vec<Vec<u32>>> {
        let cut = |mut ids: Vec<u32>| {
            check_ids(&self.spec, &ids, origin)?;
            ids.truncate(self.spec.read_len(&ids));
            Ok(ids)
        };
        texts.into_iter().map(cut).collect()
    }

    /// Projected embeddings `[T, projection]`, not normalised, of `texts` as [`Self::read_part`] leaves them, and what
    /// [`Self::tuned_vjp`] needs if that is wanted.
    pub fn embed_tuned(
        &self,
        tuned: &TunedTexts,
        texts: &[Vec<u32>],
        keep: bool,
        threads: usize,
    ) -> (Vec<f32>, TunedTape) {
        let rows = texts.iter().map(Vec::len).sum();
        let keep = keep && self.tape_bytes(rows, texts.iter().map(Vec::len).max().unwrap_or(0)) <= KEEP_BYTES;
        let shares = parallel::shares(texts.len(), threads, |share| {
            let mut scratch = BlockScratch::default();
            let (mut embeds, mut parts) = (Vec::new(), Vec::new());
            for range in micro_batches(texts, share) {
                let (embed, part) = self.part(tuned, texts, range, keep, &mut scratch);
                embeds.extend(embed);
                parts.push(part);
            }
            (embeds, parts)
        });
        let (embeds, parts): (Vec<_>, Vec<_>) = shares.into_iter().unzip();
        (embeds.concat(), TunedTape { parts })
    }

    /// The gradients of the changes, in the order of [`TunedTexts::tensors`], from that of the embeddings `[T, projection]`, by
    /// the tape of the forward pass over the same texts. They are added up in the order of the texts, one sum a thread of
    /// the forward pass.
    pub fn tuned_vjp(
        &self,
        tuned: &TunedTexts,
        tape: TunedTape,
        texts: &[Vec<u32>],
        d_embeds: &[f32],
    ) -> Vec<Vec<f32>> {
        let width = self.projection();
        let sums = parallel::with_shares(tape.parts, |parts| {
            let mut sums = tuned.low_rank.zero_grads();
            let mut scratch = BlockScratch::default();
            for part in parts {
                let part = if part.blocks.is_empty() {
                    self.part(tuned, texts, part.range, true, &mut scratch).1
                } else {
                    part
                };
                let gradient = &d_embeds[part.range.start * width..part.range.end * width];
                self.part_vjp(tuned, &part, texts, gradient, &mut sums, &mut scratch);
            }
            sums
        });
        let mut sums = sums.into_iter();
        let mut all = sums.next().unwrap_or_else(|| tuned.low_rank.zero_grads());
        for sum in sums {
            all.iter_mut().zip(&sum).for_each(|(a, b)| a.add(b));
        }
        tuned.low_rank.unfold(all)
    }

    /// Embeddings of the texts `range`, and their tapes if they are to be kept.
    fn part(
        &self,
        tuned: &TunedTexts,
        texts: &[Vec<u32>],
        range: Range<usize>,
        keep: bool,
        scratch: &mut BlockScratch,
    ) -> (Vec<f32>, TextMicroBatch) {
        let texts: Vec<&[u32]> = texts[range.clone()].iter().map(Vec::as_slice).collect();
        let (mut x, starts) = self.rows(&texts);
        let sequences = Sequences::unturned(&starts, self.spec.causal);
        let mut part = TextMicroBatch { range, ..TextMicroBatch::default() };
        for block in &tuned.blocks {
            let mut tape = keep.then(|| BlockTape::new(self.precision));
            block.forward(&mut x, sequences, None, Queries::All, tape.as_mut(), scratch);
            part.blocks.extend(tape);
        }
        let embeds = self.project_ends(&x, &starts, &mut part.normalized, &mut part.inverse);
        (embeds, part)
    }

    fn part_vjp(
        &self,
        tuned: &TunedTexts,
        part: &TextMicroBatch,
        texts: &[Vec<u32>],
        d_embeds: &[f32],
        sums: &mut [BlockGrads],
        scratch: &mut BlockScratch,
    ) {
        let mut end = 0;
        let ends = texts[part.range.clone()].iter().map(|ids| {
            end += ids.len();
            end
        });
        let starts: Vec<usize> = std::iter::once(0).chain(ends).collect();
        let mut dx = self.project_ends_vjp(d_embeds, &starts, &part.normalized, &part.inverse);
        let sequences = Sequences::unturned(&starts, self.spec.causal);
        for (i, block) in tuned.blocks.iter().enumerate().rev() {
            let depth = if i == 0 { Depth::Weights } else { Depth::Rows };
            let weights = Some((tuned.low_rank.learned(i), &mut sums[i]));
            block.vjp(&mut dx, BlockVjp { depth, weights, ..BlockVjp::of(sequences, &part.blocks[i]) }, scratch);
        }
    }
}

impl TunedTexts {
    /// Name and shape of every factor, as those of the image tower are called.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        self.low_rank.tensors()
    }

    /// Takes over the factors that `lookup` has, and packs again what has changed.
    ///
    /// # Errors
    /// There is no such tensor, or one has another length.
    pub fn set(&mut self, lookup: Lookup, threads: usize) -> Result<()> {
        self.low_rank.set(&mut self.blocks, lookup, threads)
    }
}

impl std::fmt::Debug for TunedTexts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TunedTexts {{ blocks: {} }}", self.blocks.len())
    }
}
