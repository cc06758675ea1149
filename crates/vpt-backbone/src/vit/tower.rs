//! The packed weights of an image tower: those of the backbone, or those that a task has made of them ([`super::tuned`]).

use super::block::Block;
use super::embed::Embedding;

/// Everything from pixels to the last norm. A copy shares the packed weights.
#[derive(Clone)]
pub(crate) struct Tower {
    pub(super) embedding: Embedding,
    pub(super) blocks: Vec<Block>,
    /// Scale and shift `[D]` of the last norm.
    pub(super) post_norm: [Vec<f32>; 2],
    pub(super) eps: f32,
}

impl Tower {
    /// Bytes of the weights.
    pub(super) fn weight_bytes(&self) -> usize {
        self.embedding.weight_bytes() + self.blocks.iter().map(Block::weight_bytes).sum::<usize>()
    }
}
