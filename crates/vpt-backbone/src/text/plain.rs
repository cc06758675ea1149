//! The text tower's weights as plain matrices, as [`crate::vit::PlainTower`] has those of the image tower.

use super::Ends;
use crate::names::TextNames;
use crate::spec::TextSpec;
use crate::vit::{BlockWeights, Get, PlainBlock, PlainLayer};
use crate::weights::Weights;
use vpt_base::Result;

/// A text tower, to be read piece by piece.
#[derive(Debug)]
pub struct PlainTextTower<'a> {
    spec: &'a TextSpec,
    names: &'static TextNames,
    weights: &'a Weights,
}

/// What stands before and behind the blocks of a text tower.
#[derive(Clone, Debug)]
pub struct PlainTextEnds {
    /// Token embeddings `[vocab, D]`.
    pub tokens: Vec<f32>,
    /// Position embeddings `[context, D]`.
    pub positions: Vec<f32>,
    /// Scale and shift `[D]` of the norm behind the last block.
    pub final_norm: [Vec<f32>; 2],
    /// The projection `[E, D]`; zeros where it has no bias.
    pub projection: PlainLayer,
}

impl<'a> PlainTextTower<'a> {
    /// The tower of `spec`, by its tensors' `names`.
    pub(crate) fn new(spec: &'a TextSpec, names: &'static TextNames, weights: &'a Weights) -> Self {
        Self { spec, names, weights }
    }

    /// What it is.
    pub fn spec(&self) -> &'a TextSpec {
        self.spec
    }

    /// What stands before and behind the blocks.
    ///
    /// # Errors
    /// The checkpoint cannot be read any more.
    pub fn ends(&self) -> Result<PlainTextEnds> {
        let get: Get = &|name, shape| self.weights.get(name, shape);
        let Ends { tokens, positions, final_norm, projection, mut projection_bias } =
            Ends::read(self.spec, self.names, get)?;
        projection_bias.resize(self.spec.projection, 0.);
        let projection = PlainLayer { weight: projection, bias: projection_bias };
        Ok(PlainTextEnds { tokens, positions, final_norm, projection })
    }

    /// Block `index`.
    ///
    /// # Errors
    /// As [`Self::ends`].
    pub fn block(&self, index: usize) -> Result<PlainBlock> {
        let get: Get = &|name, shape| self.weights.get(name, shape);
        let weights = BlockWeights::read(get, &self.names.blocks, index, &self.spec.tower)?;
        Ok(PlainBlock::of(&self.spec.tower, &weights))
    }
}
