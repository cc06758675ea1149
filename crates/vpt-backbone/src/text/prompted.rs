//! Texts with learned vectors in them, and the VJP to these: what CoOp, MaPLe and their kin learn.
//!
//! The text of a class is the start token, n learned vectors, and the class's own tokens up to the end token; learned
//! vectors have positions as the words they stand for. Attention is causal, so start token and vectors, the *stem*, are the
//! same for all classes: they are computed once, and the classes' own tokens, the *tails*, see the stem's keys and values as
//! prompts. Nothing behind the end token is computed, which changes nothing for the same reason.
//!
//! Deep prompts (IVLP, MaPLe) replace the stem's vectors at the input of further blocks by fresh ones, without positions;
//! behind the last prompted block they travel on.
//!
//! Where tokens see what comes after them too, nothing is shared: see `both_ways`.

mod both_ways;

use std::ops::Range;
use std::path::Path;

use super::{ROWS, TextMicroBatch, TextTower, check_ids, check_vocabulary};
use crate::spec::{TextPool, TextSpec};
use crate::vit::{BlockScratch, BlockTape, BlockVjp, Depth, Queries, Sequences};
use vpt_base::{Error, Result, parallel};
use vpt_kernel::{Mat, row_stride};

/// Most memory, in bytes, that what the VJP needs of the tails may take; beyond that their forward pass is run again.
pub(super) const KEEP_BYTES: usize = 1 << 30;

/// The learned vectors of all texts.
#[derive(Clone, Copy, Debug)]
pub struct TextPrompts<'a> {
    /// Prompted blocks, from the first on; 1: vectors at the input only.
    pub layers: usize,
    /// Vectors in a text, n.
    pub tokens: usize,
    /// `[layers, n, D]`; the first layer's get positions.
    pub data: &'a [f32],
}

/// The tokens of some texts, without the vectors between the start token and the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptedTexts {
    start: u32,
    /// Tokens behind the context vectors, up to the one that is read.
    tails: Vec<Vec<u32>>,
    /// Vectors that there is room for.
    room: usize,
}

/// Texts that go through the tower together.
struct TextBatch<'a> {
    texts: &'a PromptedTexts,
    /// Which of them.
    range: Range<usize>,
    /// Whether what the VJP needs of them is kept.
    keep: bool,
}

impl<'a> TextBatch<'a> {
    /// Their tokens behind the vectors.
    fn tails(&self) -> &'a [Vec<u32>] {
        &self.texts.tails[self.range.clone()]
    }
}

/// Activations that the VJP needs of a forward pass.
#[derive(Default)]
pub struct TextTape {
    layers: usize,
    tokens: usize,
    /// The vectors, where the stem is not shared: a pass that is run again begins with them.
    vectors: Vec<f32>,
    stem: Stem,
    /// Micro-batches of each thread, in the order of the texts.
    parts: Vec<Vec<TextMicroBatch>>,
}

/// Start token and vectors, gone through all blocks.
#[derive(Default)]
struct Stem {
    tapes: Vec<BlockTape>,
    /// Keys and values `[1 + n, 2D]` in every block, at stride [`row_stride`]`(2D)`: what the tails see.
    keys_values: Vec<Vec<f32>>,
}

impl Stem {
    /// Keys and values of block `i`, as prompts of `tokens` vectors of a tower of width `d`.
    fn seen(&self, i: usize, tokens: usize, d: usize) -> Mat<'_> {
        Mat::new(&self.keys_values[i], 1 + tokens, 2 * d, row_stride(2 * d))
    }
}

impl PromptedTexts {
    /// Texts of these token ids that will have learned vectors in them, in the tower that `spec` describes: start and end token
    /// included and the vectors behind the start token; or, where the last position is read, padded to the room that the
    /// vectors, which come first, leave.
    ///
    /// # Errors
    /// A text has no start or end token, or an id is beyond the vocabulary; `origin` is the file to blame.
    pub fn new(spec: &TextSpec, ids: &[Vec<u32>], origin: &Path) -> Result<Self> {
        let mut texts = Self { start: 0, tails: Vec::new(), room: spec.context - 1 };
        if spec.pool == TextPool::LastPosition {
            for ids in ids {
                check_vocabulary(spec, ids, origin)?;
                texts.room = texts.room.min(spec.context.saturating_sub(ids.len()));
                texts.tails.push(ids.clone());
            }
            return Ok(texts);
        }
        for ids in ids {
            check_ids(spec, ids, origin)?;
            let end = spec.read_len(ids) - 1;
            if end == 0 || !texts.is_empty() && ids[0] != texts.start {
                return Err(Error::weights(origin, "makes a text without a start or an end token of it"));
            }
            texts.start = ids[0];
            texts.room = texts.room.min(spec.context - 1 - end);
            texts.tails.push(ids[1..=end].to_vec());
        }
        Ok(texts)
    }

    /// Number of texts.
    pub fn len(&self) -> usize {
        self.tails.len()
    }

    /// The start token, in front of the vectors, where texts are read at their end token.
    pub fn start(&self) -> u32 {
        self.start
    }

    /// Of each text the tokens behind the vectors, up to the one that is read.
    pub fn tails(&self) -> &[Vec<u32>] {
        &self.tails
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.tails.is_empty()
    }
}

impl TextTower {
    /// The embeddings `[k, D]` of the tokens of a text, start and end token left out.
    ///
    /// # Errors
    /// As [`PromptedTexts::new`].
    pub fn word_embeddings(&self, ids: &[u32], origin: &Path) -> Result<Vec<f32>> {
        if self.spec.pool == TextPool::LastPosition {
            check_vocabulary(&self.spec, ids, origin)?;
            let words = ids.iter().take_while(|&&id| id != self.spec.eos_token_id);
            return Ok(words.flat_map(|&id| self.token(id)).copied().collect());
        }
        let texts = PromptedTexts::new(&self.spec, &[ids.to_vec()], origin)?;
        let words = texts.tails[0].split_last().map_or(&[][..], |(_, words)| words);
        Ok(words.iter().flat_map(|&id| self.token(id)).copied().collect())
    }

    /// Projected embeddings `[C, projection]`, not normalised, of `texts` with `prompts` in them, and what
    /// [`Self::prompted_vjp`] needs.
    ///
    /// # Errors
    /// The prompts do not fit the tower, or the texts leave no room for them.
    pub fn prompted(
        &self,
        prompts: &TextPrompts,
        texts: &PromptedTexts,
        threads: usize,
    ) -> Result<(Vec<f32>, TextTape)> {
        self.prompted_within(prompts, texts, threads, KEEP_BYTES)
    }

    /// The embeddings of [`Self::prompted`] alone.
    ///
    /// # Errors
    /// As [`Self::prompted`].
    pub fn embed_prompted(&self, prompts: &TextPrompts, texts: &PromptedTexts, threads: usize) -> Result<Vec<f32>> {
        Ok(self.prompted_within(prompts, texts, threads, 0)?.0)
    }

    fn prompted_within(
        &self,
        prompts: &TextPrompts,
        texts: &PromptedTexts,
        threads: usize,
        keep_bytes: usize,
    ) -> Result<(Vec<f32>, TextTape)> {
        self.check_prompts(prompts, texts)?;
        let stem = if self.spec.causal { self.stem(prompts, texts.start) } else { Stem::default() };
        let keep = self.kept_bytes(prompts, texts) <= keep_bytes;
        let shares = parallel::shares(texts.len(), threads, |share| {
            let mut scratch = BlockScratch::default();
            let (mut embeds, mut parts) = (Vec::new(), Vec::new());
            for range in micro_batches(&texts.tails, share) {
                let batch = TextBatch { texts, range, keep };
                let (embed, part) = if self.spec.causal {
                    self.tails(prompts.tokens, &stem, batch, &mut scratch)
                } else {
                    self.both_ways(prompts, batch, &mut scratch)
                };
                embeds.extend(embed);
                parts.push(part);
            }
            (embeds, parts)
        });
        let (embeds, parts): (Vec<_>, Vec<_>) = shares.into_iter().unzip();
        let vectors = if self.spec.causal { Vec::new() } else { prompts.data.to_vec() };
        Ok((embeds.concat(), TextTape { layers: prompts.layers, tokens: prompts.tokens, vectors, stem, parts }))
    }

    /// The gradient of the prompts `[layers, n, D]` from that of the embeddings `[C, projection]`, by the tape of the forward
    /// pass over the same texts. Gradients are added up in the order of the texts, one sum a thread of the forward pass.
    ///
    /// # Errors
    /// `d_embeds` has another size than the embeddings.
    pub fn prompted_vjp(&self, tape: TextTape, texts: &PromptedTexts, d_embeds: &[f32]) -> Result<Vec<f32>> {
        let TextTape { layers, tokens, vectors, stem, parts } = tape;
        let (d, width) = (self.width(), self.projection());
        if d_embeds.len() != texts.len() * width {
            let message = format!("{} values for {} texts of {width}", d_embeds.len(), texts.len());
            return Err(Error::invalid("gradient of the text embeddings", message));
        }
        if !self.spec.causal {
            return Ok(self.both_ways_gradient(
                &TextPrompts { layers, tokens, data: &vectors },
                parts,
                texts,
                d_embeds,
            ));
        }
        let read = (1 + tokens) * row_stride(2 * d);
        let sums = parallel::with_shares(parts, |parts| {
            let mut d_read = vec![vec![0.0; read]; self.depth()];
            let mut scratch = BlockScratch::default();
            for part in parts {
                let part = if part.blocks.is_empty() {
                    self.tails(tokens, &stem, TextBatch { texts, range: part.range, keep: true }, &mut scratch).1
                } else {
                    part
                };
                let gradient = &d_embeds[part.range.start * width..part.range.end * width];
                self.tails_vjp(&part, tokens, &stem, texts, gradient, &mut d_read, &mut scratch);
            }
            d_read
        });
        let mut sums = sums.into_iter();
        let mut d_read = sums.next().unwrap_or_else(|| vec![vec![0.0; read]; self.depth()]);
        for sum in sums {
            for (to, from) in d_read.iter_mut().flatten().zip(sum.iter().flatten()) {
                *to += from;
            }
        }
        Ok(self.stem_vjp((layers, tokens), &stem, &d_read))
    }

    fn check_prompts(&self, prompts: &TextPrompts, texts: &PromptedTexts) -> Result<()> {
        let TextPrompts { layers, tokens, data } = *prompts;
        if layers == 0 || layers > self.depth() || tokens == 0 {
            let message =
                format!("{tokens} vectors in {layers} blocks do not fit a text tower of {} blocks", self.depth());
            return Err(Error::invalid("text prompts", message));
        }
        if tokens > texts.room {
            let message = format!("{tokens} vectors leave no room for the longest class name: {} at most", texts.room);
            return Err(Error::setting("prompt_tokens", message));
        }
        if self.spec.pool == TextPool::LastPosition && tokens < texts.room {
            return Err(Error::invalid(
                "text prompts",
                format!("{tokens} vectors where room was left for {}", texts.room),
            ));
        }
        let expected = layers * tokens * self.width();
        if data.len() != expected {
            return Err(Error::invalid("text prompts", format!("{} values where {expected} are", data.len())));
        }
        Ok(())
    }

    fn token(&self, id: u32) -> &[f32] {
        let d = self.width();
        &self.tokens[id as usize * d..][..d]
    }

    /// Writes token `id` at `position` into a row.
    fn embed_token(&self, row: &mut [f32], token: &[f32], position: usize) {
        let position = &self.positions[position * self.width()..][..self.width()];
        for ((x, token), position) in row.iter_mut().zip(token).zip(position) {
            *x = token + position;
        }
    }

    /// The stem through all blocks. The last block's output is read by nobody, only its keys and values are.
    fn stem(&self, prompts: &TextPrompts, start: u32) -> Stem {
        let d = self.width();
        let stride = row_stride(d);
        let rows = 1 + prompts.tokens;
        let layers: Vec<&[f32]> = prompts.data.chunks_exact(prompts.tokens * d).collect();
        let mut x = vec![0.0; rows * stride];
        self.embed_token(&mut x, self.token(start), 0);
        for (i, vector) in layers[0].chunks_exact(d).enumerate() {
            self.embed_token(&mut x[(1 + i) * stride..], vector, 1 + i);
        }
        let mut scratch = BlockScratch::default();
        let starts = [0, rows];
        let mut stem = Stem::default();
        for (i, block) in self.blocks.iter().enumerate() {
            if let (Some(fresh), true) = (layers.get(i), i > 0) {
                for (row, vector) in x[stride..].chunks_exact_mut(stride).zip(fresh.chunks_exact(d)) {
                    row[..d].copy_from_slice(vector);
                }
            }
            let mut tape = BlockTape::new(self.precision);
            let sequences = Sequences::unturned(&starts, true);
            block.forward(&mut x, sequences, None, Queries::All, Some(&mut tape), &mut scratch);
            stem.keys_values.push(tape.keys_values(rows, d));
            stem.tapes.push(tape);
        }
        stem
    }

    /// The gradient of the prompts `[layers, n, D]` from that of the stem's keys and values in every block.
    fn stem_vjp(&self, (layers, tokens): (usize, usize), stem: &Stem, d_read: &[Vec<f32>]) -> Vec<f32> {
        let d = self.width();
        let stride = row_stride(d);
        let starts = [0, 1 + tokens];
        let sequences = Sequences::unturned(&starts, true);
        let mut dx = vec![0.0; (1 + tokens) * stride];
        let mut gradient = vec![0.0; layers * tokens * d];
        let mut scratch = BlockScratch::default();
        for (i, block) in self.blocks.iter().enumerate().rev() {
            let pass = BlockVjp { d_read: Some(&d_read[i]), ..BlockVjp::of(sequences, &stem.tapes[i]) };
            block.vjp(&mut dx, pass, &mut scratch);
            if i < layers {
                let to = gradient[i * tokens * d..].chunks_exact_mut(d);
                for (to, row) in to.zip(dx[stride..].chunks_exact_mut(stride)).take(tokens) {
                    to.copy_from_slice(&row[..d]);
                    // What was in this place before was thrown away.
                    row.fill(0.0);
                }
            }
        }
        gradient
    }

    /// Embeddings of the tails of `batch` behind a stem of `tokens` vectors, and their tapes if they are to be kept.
    fn tails(
        &self,
        tokens: usize,
        stem: &Stem,
        batch: TextBatch,
        scratch: &mut BlockScratch,
    ) -> (Vec<f32>, TextMicroBatch) {
        let (d, tails) = (self.width(), batch.tails());
        let stride = row_stride(d);
        let starts = starts(tails);
        let mut x = vec![0.0; starts[tails.len()] * stride];
        let mut rows = x.chunks_exact_mut(stride);
        for tail in tails {
            for (i, (&id, row)) in tail.iter().zip(&mut rows).enumerate() {
                self.embed_token(row, self.token(id), 1 + tokens + i);
            }
        }
        let sequences = Sequences::unturned(&starts, true);
        let mut part = TextMicroBatch { range: batch.range, ..TextMicroBatch::default() };
        for (i, block) in self.blocks.iter().enumerate() {
            let mut tape = batch.keep.then(|| BlockTape::new(self.precision));
            let prompts = Some(stem.seen(i, tokens, d));
            block.forward(&mut x, sequences, prompts, Queries::All, tape.as_mut(), scratch);
            part.blocks.extend(tape);
        }
        let embeds = self.project_ends(&x, &starts, &mut part.normalized, &mut part.inverse);
        (embeds, part)
    }

    /// Adds the gradient of the stem's keys and values in every block to `d_read`, from that of the embeddings
    /// `[m, projection]` of the tails of `part`.
    #[allow(clippy::too_many_arguments, reason = "what a pass went through, and where its gradients go")]
    fn tails_vjp(
        &self,
        part: &TextMicroBatch,
        tokens: usize,
        stem: &Stem,
        texts: &PromptedTexts,
        d_embeds: &[f32],
        d_read: &mut [Vec<f32>],
        scratch: &mut BlockScratch,
    ) {
        let d = self.width();
        let starts = starts(&texts.tails[part.range.clone()]);
        let mut dx = self.project_ends_vjp(d_embeds, &starts, &part.normalized, &part.inverse);
        let sequences = Sequences::unturned(&starts, true);
        for (i, block) in self.blocks.iter().enumerate().rev() {
            // The tails' own tokens do not learn.
            let depth = if i == 0 { Depth::Prompts } else { Depth::Rows };
            let (prompts, d_prompts) = (Some(stem.seen(i, tokens, d)), Some(&mut *d_read[i]));
            let pass = BlockVjp { prompts, depth, d_prompts, ..BlockVjp::of(sequences, &part.blocks[i]) };
            block.vjp(&mut dx, pass, scratch);
        }
    }

    /// About what the tapes of all tails take.
    fn kept_bytes(&self, prompts: &TextPrompts, texts: &PromptedTexts) -> usize {
        let rows: usize = texts.tails.iter().map(Vec::len).sum();
        let rows = if self.spec.causal { rows } else { rows + texts.len() * prompts.tokens };
        let keys = 1 + prompts.tokens + texts.tails.iter().map(Vec::len).max().unwrap_or(0);
        self.tape_bytes(rows, keys)
    }
}

/// Where the rows of each text begin, and those of the last one end.
fn starts(tails: &[Vec<u32>]) -> Vec<usize> {
    let mut end = 0;
    std::iter::once(0)
        .chain(tails.iter().map(|tail| {
            end += tail.len();
            end
        }))
        .collect()
}

/// `share` in pieces of about [`ROWS`] rows.
pub(super) fn micro_batches(tails: &[Vec<u32>], share: Range<usize>) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    let (mut start, mut rows) = (share.start, 0);
    for i in share.clone() {
        if i > start && rows + tails[i].len() > ROWS {
            pieces.push(start..i);
            (start, rows) = (i, 0);
        }
        rows += tails[i].len();
    }
    if start < share.end {
        pieces.push(start..share.end);
    }
    pieces
}

#[cfg(test)]
mod tests;
