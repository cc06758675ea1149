//! The parts that are learned beside a head, in their order: which of the learned values are whose, and how all of them join a pass.

use std::{ops::Deref, ops::Range, sync::Arc};

use crate::prompt::{
    PartShapes,
    part::{Draw, Drawn, Gradients, Inputs, Part, Site, TensorShape},
};
use vpt_base::{
    Error, Result,
    params::{self, Param},
    random::stream,
};

/// The parts of a model. Their values come first among the learned ones.
#[derive(Debug, Clone, Default)]
pub(super) struct ModelParts(Vec<Arc<dyn Part>>);

impl ModelParts {
    /// Parts of these `shapes` at `site`.
    ///
    /// # Errors
    /// One does not fit the backbone.
    pub(super) fn new(shapes: &PartShapes, site: &Site) -> Result<Self> {
        shapes.iter().map(|shape| shape.kind().build(site)).collect::<Result<_>>().map(Self)
    }

    /// Fresh values.
    pub(super) fn init(&self, seed: u64) -> Result<Vec<Param>> {
        let mut params = Vec::new();
        for (place, part) in self.iter().enumerate() {
            let own = part.init(&mut stream(seed, "prompt init", place as u64, 0))?.into_iter();
            params.extend(own.map(|param| Param { group: param.group.of_part(place), ..param }));
        }
        Ok(params)
    }

    /// Name and shape of every tensor, in the order of [`Self::init`].
    pub(super) fn tensors(&self) -> Vec<TensorShape> {
        self.iter().flat_map(|part| part.tensors().to_vec()).collect()
    }

    /// How many tensors there are.
    pub(super) fn tensor_count(&self) -> usize {
        self.iter().map(|part| part.tensors().len()).sum()
    }

    /// The part at `place`: where its tensors are among the learned ones.
    pub(super) fn range(&self, place: usize) -> Range<usize> {
        let start = self[..place].iter().map(|part| part.tensors().len()).sum();
        start..start + self[place].tensors().len()
    }

    /// The values of the part at `place`.
    pub(super) fn values<'a>(&self, params: &'a [Param], place: usize) -> Result<&'a [Param]> {
        params.get(self.range(place)).ok_or_else(|| Error::invalid("parameters", "not those of this model"))
    }

    /// Checks that `params` are the `tensors` of a model, of which those of the parts come first: files and models may have tensors of a
    /// part in different orders.
    pub(super) fn check(&self, params: &[Param], mut tensors: Vec<TensorShape>) -> Result<()> {
        let mut given: Vec<&Param> = params.iter().collect();
        for range in (0..self.len()).map(|place| self.range(place)) {
            tensors[range.clone()].sort();
            if let Some(own) = given.get_mut(range) {
                own.sort_by(|a, b| a.name.cmp(&b.name));
            }
        }
        params::check(&given, &tensors)
    }

    /// The values of a file, which [`Self::check`] has seen, in the order of this model.
    pub(super) fn in_order(&self, mut params: Vec<Param>) -> Vec<Param> {
        for (place, part) in self.iter().enumerate() {
            let at = |param: &Param| part.tensors().iter().position(|(name, _)| *name == param.name);
            params[self.range(place)].sort_by_cached_key(at);
        }
        params
    }

    /// What the parts draw at random for a step, each with its own rate of `dropout`.
    pub(super) fn draw(&self, draw: &Draw, dropout: &[f32]) -> Vec<Drawn> {
        let of_part = |(place, part): (usize, &Arc<dyn Part>)| {
            let dropout = dropout.get(place).copied().unwrap_or_default();
            part.draw(&Draw { dropout, part: place as u64, ..*draw })
        };
        self.iter().enumerate().map(of_part).collect()
    }

    /// `inputs` that all parts have joined.
    pub(super) fn join<'a>(
        &'a self,
        params: &'a [Param],
        mut inputs: Inputs<'a>,
        drawn: &[Drawn],
    ) -> Result<Inputs<'a>> {
        for (place, part) in self.iter().enumerate() {
            let drawn = drawn.get(place).unwrap_or(&Drawn::Nothing);
            part.join(self.values(params, place)?, drawn, &mut inputs)?;
        }
        Ok(inputs)
    }

    /// The gradient of every tensor from what a pass gave that the parts have joined.
    pub(super) fn take(&self, params: &[Param], drawn: &[Drawn], mut gradients: Gradients) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::new();
        for (place, part) in self.iter().enumerate() {
            let drawn = drawn.get(place).unwrap_or(&Drawn::Nothing);
            all.extend(part.take_gradient(self.values(params, place)?, drawn, &mut gradients)?);
        }
        Ok(all)
    }

    /// Blocks that no part changes anything in, as the first that it does comes behind them; `None` if nothing is learned.
    pub(super) fn prefix_blocks(&self) -> Option<usize> {
        self.iter().map(|part| part.prefix_blocks()).min()
    }
}

impl From<Vec<Arc<dyn Part>>> for ModelParts {
    fn from(parts: Vec<Arc<dyn Part>>) -> Self {
        Self(parts)
    }
}

impl Deref for ModelParts {
    type Target = [Arc<dyn Part>];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
