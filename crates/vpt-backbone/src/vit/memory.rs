//! How much memory a step takes, counted from shapes, and how it keeps to a limit.
//!
//! The tape grows with a step: activations that each block keeps for its VJP, of as many images as a thread takes at a time. Fewer
//! images at a time take less. Where one image is too much still, only the input of each block is kept, and the backward
//! pass runs the block once more. Both are decided from shapes alone, never from what the system says, so that a run that
//! is resumed decides as before.

use super::{Pass, Readout, Tuned, Vit};
use vpt_base::{Error, Result};
use vpt_kernel::row_stride;

/// Bytes of a process beside weights, images and the buffers of a step: the program, its libraries, small tensors.
const PROGRAM: usize = 40 << 20;
/// Batches of images in memory while one is worked on: the next ones are decoded meanwhile.
const BATCHES: usize = 3;

/// How a pass goes through its images so that it keeps to the memory it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Images that a thread takes at a time.
    pub micro_batch: usize,
    /// Keep the blocks' inputs only, and run each block again in the backward pass.
    pub recompute: bool,
}

impl Vit {
    /// Keeps the memory of the whole process below `bytes` where that is possible, as far as this tower can: see
    /// `vit::memory`. An explicit micro-batch is taken as it is.
    pub fn limit_memory(&mut self, bytes: Option<u64>) {
        self.limit = bytes.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    }

    /// How a pass goes over `batch` images, whatever its input.
    ///
    /// # Errors
    /// The limit is too low for a single image at a time.
    pub fn memory_plan(&self, pass: &Pass, batch: usize) -> Result<MemoryPlan> {
        if self.other.is_some() {
            return Ok(MemoryPlan { micro_batch: pass.micro_batch.unwrap_or(batch), recompute: false });
        }
        let most = pass
            .micro_batch
            .unwrap_or_else(|| self.micro_batch(pass.prompts.as_ref(), batch, pass.threads))
            .clamp(1, batch.max(1));
        let quick = MemoryPlan { micro_batch: most, recompute: false };
        let (None, Some(limit)) = (pass.micro_batch, self.limit) else { return Ok(quick) };
        let backward = pass.want != super::Want::default();
        let plans = [false, true].into_iter().filter(|&recompute| backward || !recompute);
        let mut plans =
            plans.flat_map(|recompute| (1..=most).rev().map(move |n| MemoryPlan { micro_batch: n, recompute }));
        let needs = |plan: MemoryPlan| self.bytes(pass, batch, plan);
        plans.find(|&plan| needs(plan) <= limit).ok_or_else(|| {
            let least = needs(MemoryPlan { micro_batch: 1, recompute: backward });
            let message = format!(
                "{} MB are too few: with {} threads and batches of {batch}, at least {} are needed",
                limit / 1_000_000,
                pass.threads,
                least.div_ceil(1_000_000)
            );
            Error::setting("max_memory", message)
        })
    }

    /// Bytes that the process takes in a pass over `batch` images.
    pub(super) fn bytes(&self, pass: &Pass, batch: usize, plan: MemoryPlan) -> usize {
        let threads = pass.threads.clamp(1, batch.max(1));
        let images = batch * self.tower.embedding.pixels() * size_of::<f32>();
        let tuned = pass.tuned.map_or(0, |tuned| tuned.bytes(pass.want.weights, threads));
        let weights = self.tower.weight_bytes() + tuned;
        PROGRAM + weights + BATCHES * images + threads * self.workspace_bytes(pass, plan)
    }

    /// Bytes of one thread's buffers: tape and scratch.
    fn workspace_bytes(&self, pass: &Pass, plan: MemoryPlan) -> usize {
        let travelling = pass.prompts.filter(|prompts| self.travels(prompts)).map_or(0, |prompts| prompts.tokens);
        let prompts = pass.prompts.map_or(0, |prompts| prompts.tokens) + pass.keys_values.map_or(0, |rows| rows.rows);
        let rows = plan.micro_batch * (self.tokens() + travelling);
        let keys = self.tokens() + prompts;
        let of_tokens = pass.prompts.filter(|_| pass.want.tokens).map(|prompts| prompts.start);
        let of_rows = pass.keys_values.filter(|_| pass.want.keys_values).map(|rows| rows.start);
        let first = match of_tokens.into_iter().chain(of_rows).min() {
            _ if pass.want.pixels || pass.want.weights => 0,
            first => first.unwrap_or(self.depth()),
        };
        let kept = self.depth().saturating_sub(first);
        let Some(block) = self.tower.blocks.first() else { return 0 };
        // Rows of tokens, inputs and gradients, that go from block to block, and the embedding's own.
        let row = row_stride(self.width()) * size_of::<f32>();
        let flowing = rows * row * 4 + self.tower.embedding.scratch_bytes();
        let inputs = pass.want.weights && pass.tuned.is_some_and(Tuned::keeps_inputs);
        let each = block.tape_bytes(rows, keys) + if inputs { block.input_bytes(rows) } else { 0 };
        let tapes = if plan.recompute { kept * rows * row + each } else { kept * each };
        let packed = if inputs { block.packed_bytes(rows) } else { 0 };
        let pool = self.tower.attention_pool.as_ref().filter(|_| matches!(pass.readout, Readout::Features));
        let pool = pool.map_or(0, |pool| pool.workspace_bytes(rows, plan.micro_batch));
        flowing + pool + tapes + packed + block.scratch_bytes(rows, rows / plan.micro_batch, keys)
    }
}
