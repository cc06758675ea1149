//! Prompt tokens in front of the blocks of a transformer: VPT-shallow and VPT-deep.
//!
//! Jia et al., "Visual Prompt Tuning", ECCV 2022. The tokens stand after the class token and carry no position embedding.
//! VPT-shallow has them at the first block's input, from where they travel on; VPT-deep puts fresh ones into every
//! prompted block.

use std::{borrow::Cow, path::Path, sync::Arc};

use rand::{Rng, RngCore};
use serde::{Deserialize, Serialize};

use super::part::{Draw, Drawn, FileTensors, Gradients, Inputs, Kind, Part, Site, TensorShape, Work, only, take_open};
pub use vpt_backbone::vit::PromptLayers;
use vpt_backbone::{Backbone, vit::TokenPrompts};
use vpt_base::{
    Error, Result,
    params::{Group, Param},
    random::stream,
};

/// The learned tensor's name.
pub(super) const NAME: &str = "prompt.tokens";

/// Where prompt tokens sit, and how many: the shape `[layers, tokens, D]` of the learned tensor and its first block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenLayout {
    /// First prompted block.
    pub start: usize,
    /// Number of prompted blocks from there on.
    pub layers: usize,
    /// Prompt tokens a block.
    pub tokens: usize,
}

impl TokenLayout {
    /// Fresh prompts for tokens of `width` values and patches of `patch` pixels a side: uniform in (-v, v) with
    /// v = sqrt(6 / (3 patch² + width)), the Xavier bound of the patch embedding, as in the VPT paper.
    pub fn init(&self, width: usize, patch: usize, rng: &mut impl Rng) -> Result<Param> {
        let bound = (6. / (3 * patch * patch + width) as f64).sqrt() as f32;
        let values = (0..self.layers * self.tokens * width).map(|_| rng.random_range(-bound..bound)).collect();
        Param::new(NAME, &[self.layers, self.tokens, width], values, Group::Part(0))
    }

    /// `data` `[layers, P, D]` as prompts of a pass.
    pub(crate) fn prompts<'a>(&self, data: &'a [f32]) -> TokenPrompts<'a> {
        TokenPrompts { start: self.start, layers: self.layers, tokens: self.tokens, data }
    }

    /// Fails unless a backbone of `depth` blocks has all that are prompted.
    pub(super) fn check(&self, depth: usize) -> Result<()> {
        let Self { start, layers, .. } = *self;
        if layers == 0 || start.checked_add(layers).is_none_or(|end| end > depth) {
            let message = format!("{layers} prompted blocks from block {start} on, where the backbone has {depth}");
            return Err(Error::setting("prompt_layers", message));
        }
        Ok(())
    }
}

impl Kind for TokenLayout {
    fn build(&self, site: &Site) -> Result<Arc<dyn Part>> {
        Ok(Arc::new(PromptTokens::new(*self, site.backbone)?))
    }

    fn take(&self, tensors: &mut FileTensors, path: &Path) -> Result<Vec<Param>> {
        take_open(vec![(NAME, vec![Some(self.layers), Some(self.tokens), None])], tensors, path)
    }

    fn describe(&self) -> String {
        let Self { start, layers, tokens } = *self;
        let first = start.saturating_add(1);
        match layers {
            1 => format!("{tokens} tokens at block {first}"),
            _ => format!("{tokens} tokens at each of the {layers} blocks {first} to {}", start.saturating_add(layers)),
        }
    }

    fn add_work(&self, _: usize, _: usize, work: &mut Work) {
        work.tokens = Some(*self);
    }
}

/// Prompt tokens of a backbone; the values are passed in.
#[derive(Debug, Clone)]
pub(crate) struct PromptTokens {
    layout: TokenLayout,
    /// Side of a patch.
    patch: usize,
    tensors: [TensorShape; 1],
}

impl PromptTokens {
    /// Tokens for `backbone`.
    ///
    /// # Errors
    /// It has fewer blocks than are prompted.
    pub(crate) fn new(layout: TokenLayout, backbone: &Backbone) -> Result<Self> {
        layout.check(backbone.vit.depth())?;
        let tensors = [(NAME.to_owned(), vec![layout.layers, layout.tokens, backbone.vit.width()])];
        Ok(Self { layout, patch: backbone.spec.patch_size, tensors })
    }
}

impl Part for PromptTokens {
    fn tensors(&self) -> &[TensorShape] {
        &self.tensors
    }

    fn init(&self, mut rng: &mut dyn RngCore) -> Result<Vec<Param>> {
        Ok(vec![self.layout.init(self.tensors[0].1[2], self.patch, &mut rng)?])
    }

    fn draw(&self, draw: &Draw) -> Drawn {
        draw.mask(self.tensors[0].1.iter().product())
    }

    fn prefix_blocks(&self) -> usize {
        self.layout.start
    }

    fn outline<'a>(&'a self, inputs: &mut Inputs<'a>) {
        inputs.tokens = Some((self.layout, Cow::default()));
        inputs.want.tokens = true;
    }

    fn join<'a>(&'a self, values: &'a [Param], drawn: &Drawn, inputs: &mut Inputs<'a>) -> Result<()> {
        self.outline(inputs);
        inputs.tokens = Some((self.layout, masked(values, drawn)?));
        Ok(())
    }

    fn take_gradient(&self, _: &[Param], drawn: &Drawn, gradients: &mut Gradients) -> Result<Vec<Vec<f32>>> {
        let gradient = gradients.of_pass.tokens.take().unwrap_or_default();
        Ok(vec![match drawn.mask() {
            Some(mask) => mask.apply(&gradient),
            None => gradient,
        }])
    }
}

/// The `values` of prompt tokens `[layers, P, D]` in a step.
pub(crate) fn masked<'a>(values: &'a [Param], drawn: &Drawn) -> Result<Cow<'a, [f32]>> {
    let values = &only(values, NAME)?.values;
    Ok(drawn.mask().map_or(Cow::from(values), |mask| mask.apply(values).into()))
}

impl Draw<'_> {
    /// A dropout mask for `len` values, unless nothing is dropped.
    pub(super) fn mask(&self, len: usize) -> Drawn {
        if self.dropout <= 0. || len == 0 {
            return Drawn::Nothing;
        }
        let rng = &mut stream(self.seed, "prompt dropout", self.part, self.step);
        Drawn::Mask(DropoutMask::draw(len, self.dropout, rng))
    }
}

/// One dropout mask for a whole step: 0 with probability `rate`, else 1 / (1 - rate).
///
/// All images of a batch see the same mask, so the prompts' keys and values can still be computed once a batch. The
/// gradient of the masked prompts times the mask is the gradient of the prompts.
#[derive(Debug, Clone, PartialEq)]
pub struct DropoutMask(Vec<f32>);

impl DropoutMask {
    /// A mask for `len` values; `rate` in [0, 1).
    pub fn draw(len: usize, rate: f32, rng: &mut impl Rng) -> Self {
        let keep = 1. / (1. - rate);
        Self((0..len).map(|_| if rng.random::<f32>() < rate { 0. } else { keep }).collect())
    }

    /// `values` times the mask: prompts on the way forward, their gradient on the way back.
    pub fn apply(&self, values: &[f32]) -> Vec<f32> {
        values.iter().zip(&self.0).map(|(v, m)| v * m).collect()
    }

    /// `values` times the part of the mask from `from` on.
    pub(crate) fn apply_from<'a>(&'a self, from: usize, values: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
        values.iter().zip(&self.0[from..]).map(|(v, m)| v * m)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_base::random::stream;

    #[test]
    fn initial_prompts_fill_the_papers_range() {
        let layout = TokenLayout { start: 0, layers: 2, tokens: 50 };
        let prompts = layout.init(192, 8, &mut stream(1, "init", 0, 0)).unwrap();
        assert_eq!(prompts.shape, [2, 50, 192]);
        let bound = (6f32 / (3. * 64. + 192.)).sqrt();
        let largest = prompts.values.iter().fold(0f32, |a, v| a.max(v.abs()));
        assert!(largest <= bound && largest > 0.99 * bound);
        let mean = prompts.values.iter().sum::<f32>() / prompts.values.len() as f32;
        assert!(mean.abs() < 0.01 * bound.max(1.));
    }

    #[test]
    fn dropout_keeps_the_mean_and_the_gradient_goes_where_the_value_went() {
        let mask = DropoutMask::draw(20_000, 0.25, &mut stream(1, "dropout", 0, 0));
        let ones = mask.apply(&vec![1.; 20_000]);
        let kept = ones.iter().filter(|&&v| v != 0.).count() as f32 / 20_000.;
        assert!((kept - 0.75).abs() < 0.02);
        assert!((ones.iter().sum::<f32>() / 20_000. - 1.).abs() < 0.02);
        assert!(ones.iter().all(|&v| v == 0. || (v - 4. / 3.).abs() < 1e-6));
        assert_eq!(DropoutMask::draw(9, 0., &mut stream(1, "dropout", 0, 0)).apply(&[2.; 9]), [2.; 9]);
    }
}
