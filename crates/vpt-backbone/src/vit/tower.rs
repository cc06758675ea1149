//! The packed weights of an image tower: those of the backbone, or those that a task has made of them ([`super::tuned`]).

use std::sync::Arc;

use super::attention_pool::AttentionPool;
use super::block::{Block, PatchTurn};
use super::embed::Embedding;

/// Everything from pixels to the last norm and the pooling behind it. A copy shares the packed weights.
#[derive(Clone)]
pub(crate) struct Tower {
    pub(super) embedding: Embedding,
    pub(super) blocks: Vec<Block>,
    /// Rotary positions, where there are any.
    pub(super) turn: Option<Arc<PatchTurn>>,
    /// Scale and shift `[D]` of the last norm.
    pub(super) post_norm: [Vec<f32>; 2],
    /// The pooling behind it, where that has weights.
    pub(super) attention_pool: Option<AttentionPool>,
    pub(super) eps: f32,
}

impl Tower {
    /// Bytes of the weights.
    pub(super) fn weight_bytes(&self) -> usize {
        let pool = self.attention_pool.as_ref().map_or(0, AttentionPool::weight_bytes);
        let turn = self.turn.as_ref().map_or(0, |turn| turn.rotation.bytes());
        let blocks: usize = self.blocks.iter().map(Block::weight_bytes).sum();
        self.embedding.weight_bytes() + blocks + pool + turn
    }
}
