//! The textbook form as the tests ask it: in f64, with tensors and prompts of their own.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};

use super::super::candle::{CandleInput, CandlePrompts, CandleTower, Formats};
use crate::spec::{Pool, Spec};
use crate::vit::PromptLayers;
use crate::weights::Weights;
use vpt_base::candle::Fault;

type Result<T> = std::result::Result<T, Fault>;

/// An image tower as tensors of one type on one device.
pub(super) struct Reference<'a> {
    spec: &'a Spec,
    weights: &'a Weights,
    image_size: usize,
    dtype: DType,
    device: Device,
    /// Tensors that stand in the place of the checkpoint's, by name.
    own: HashMap<String, Tensor>,
    /// Key and value prompts `[layers, N, 2D]`, and the first block that has them.
    keys_values: Option<(usize, Tensor)>,
}

impl<'a> Reference<'a> {
    pub(super) fn new(
        spec: &'a Spec,
        weights: &'a Weights,
        image_size: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        spec.check_image_size(image_size)?;
        Ok(Self { spec, weights, image_size, dtype, device: device.clone(), own: HashMap::new(), keys_values: None })
    }

    /// The same with these tensors in the place of the checkpoint's of the same names.
    #[must_use]
    pub(super) fn with(self, own: HashMap<String, Tensor>) -> Self {
        Self { own, ..self }
    }

    /// The same with key and value prompts `[layers, N, 2D]` for the blocks from `start` on.
    #[must_use]
    pub(super) fn with_keys_values(self, start: usize, prompts: Tensor) -> Self {
        Self { keys_values: Some((start, prompts)), ..self }
    }

    fn tower(&self) -> Result<CandleTower> {
        let formats = Formats { sums: self.dtype, products: self.dtype };
        CandleTower::new(self.spec, self.image_size, formats, &self.device, &|name, shape| {
            if let Some(own) = self.own.get(name) {
                return Ok(own.reshape(shape)?);
            }
            Ok(Tensor::from_vec(self.weights.get(name, shape)?, shape, &self.device)?.to_dtype(self.dtype)?)
        })
    }

    fn tokens_in(
        &self,
        tower: &CandleTower,
        images: &Tensor,
        prompts: Option<(PromptLayers, &Tensor)>,
    ) -> Result<Vec<Tensor>> {
        let depth = self.spec.vision.depth;
        let tokens = prompts.map(|(layers, prompts)| Ok::<_, Fault>((layers.resolve(depth)?.0, prompts.clone())));
        let prompts = CandlePrompts { tokens: tokens.transpose()?, keys_values: self.keys_values.clone() };
        let tokens = tower.tokens_behind(CandleInput::Images(images), &prompts, depth, &|_| true)?;
        Ok(tokens.into_iter().flatten().collect())
    }

    /// Features of `images` `[B, 3, S, S]`: what `pool` makes of the tokens after the last norm, `[B, D]` or `[B, 2 D]`.
    /// `prompts` are `[layers, P, D]` for the blocks the [`PromptLayers`] name.
    pub(super) fn features(
        &self,
        images: &Tensor,
        pool: Pool,
        prompts: Option<(PromptLayers, &Tensor)>,
    ) -> Result<Tensor> {
        let tower = self.tower()?;
        tower.pooled(&self.tokens_in(&tower, images, prompts)?[self.spec.vision.depth], pool)
    }

    /// The tokens `[B, T, D]` (class token, registers, patches; no prompts) of `images` as they enter the first block and
    /// as they leave each.
    pub(super) fn tokens(&self, images: &Tensor, prompts: Option<(PromptLayers, &Tensor)>) -> Result<Vec<Tensor>> {
        self.tokens_in(&self.tower()?, images, prompts)
    }

    /// Attention over `images` in the last block `[B, heads, T, keys]`, prompts behind the tokens before the patches and keys of
    /// their own first; and that of attention pooling `[B, heads, 1, T]`, where there is one.
    pub(super) fn attention(
        &self,
        images: &Tensor,
        prompts: Option<(PromptLayers, &Tensor)>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (tower, depth) = (self.tower()?, self.spec.vision.depth);
        *tower.seen.lock().unwrap() = Some(Vec::new());
        tower.pooled(&self.tokens_in(&tower, images, prompts)?[depth], self.spec.pool)?;
        let seen = tower.seen.lock().unwrap().take().unwrap();
        Ok((seen[depth - 1].clone(), seen.get(depth).cloned()))
    }
}
