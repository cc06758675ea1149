//! Architecture of a backbone, read from the `config.json` of a Hugging Face folder.
//!
//! One [`Spec`] describes every family this crate can run, so that one `Vit` serves them all. Fields absent from the file
//! take the defaults of transformers 5.23, and everything is checked here, before any memory is taken on its word.

mod config;
mod labels;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::read_limited;
pub use crate::kernel::Activation;
use crate::{Error, Result};

/// The `model_type`s of `config.json` that can be read.
pub const SUPPORTED: &[&str] =
    &["clip", "clip_vision_model", "vit", "deit", "vit_mae", "dinov2", "dinov2_with_registers"];

/// `config.json` is a page of text; anything larger is something else.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// Largest image side in pixels, and largest number of patches along it.
const MAX_IMAGE: usize = 1 << 14;
const MAX_GRID: usize = 1 << 10;

/// A family of backbones: how the towers are put together and what their tensors are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// CLIP (Radford et al. 2021): a norm before the first block, a projection, and usually a text tower.
    Clip,
    /// ViT and DeiT (Dosovitskiy et al. 2021, Touvron et al. 2021), and whatever else is published in that form, as DINO and
    /// the encoder of MAE (He et al. 2022), whose fixed positions are stored like learned ones.
    Vit,
    /// DINOv2 (Oquab et al. 2023): layer scale, interpolated positions.
    Dinov2,
    /// DINOv2 with register tokens (Darcet et al. 2024).
    Dinov2WithRegisters,
}

impl Family {
    /// The `model_type` transformers uses for this family.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Clip => "clip",
            Self::Vit => "vit",
            Self::Dinov2 => "dinov2",
            Self::Dinov2WithRegisters => "dinov2_with_registers",
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.model_type())
    }
}

/// The shape of one transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TowerSpec {
    /// Width D of a token.
    pub width: usize,
    /// Number of blocks L.
    pub depth: usize,
    /// Attention heads; divides the width.
    pub heads: usize,
    /// Width of the MLP's hidden layer.
    pub mlp: usize,
    /// Whether the MLP is gated (`SwiGLU`, Shazeer 2020): two layers lead to its hidden units, which are the product of the
    /// one, after the non-linearity, with the other.
    #[serde(default)]
    pub gated: bool,
    /// The MLP's non-linearity.
    pub activation: Activation,
    /// Added to the variance in every layer norm.
    pub eps: f32,
    /// Whether the query, key and value projections have a bias. Without one there is no such tensor: it counts as zero.
    pub qkv_bias: bool,
}

impl TowerSpec {
    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.width / self.heads
    }
}

/// CLIP's text tower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextSpec {
    /// The transformer; its attention is causal.
    pub tower: TowerSpec,
    /// Number of token embeddings.
    pub vocab: usize,
    /// Number of position embeddings: the longest text, start and end tokens included.
    pub context: usize,
    /// The end-of-text token as the configuration names it; 2 stands for an old mistake, see [`TextSpec::pool_position`].
    pub eos_token_id: u32,
    /// Width of a projected text embedding.
    pub projection: usize,
}

impl TextSpec {
    /// Which position of `ids` holds the embedding of the text: the first end-of-text token.
    ///
    /// Configurations written before July 2023 say `eos_token_id: 2`, which was never right; for those transformers takes
    /// the largest id (the end token has the highest number of the vocabulary). Where no id equals the end token it takes
    /// the first position, and so does this.
    pub fn pool_position(&self, ids: &[u32]) -> usize {
        let target = if self.eos_token_id == 2 { ids.iter().copied().max() } else { Some(self.eos_token_id) };
        ids.iter().position(|&id| Some(id) == target).unwrap_or(0)
    }
}

/// Architecture of a backbone: family, shapes, and the variants of its forward pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// The family.
    pub family: Family,
    /// The image tower.
    pub vision: TowerSpec,
    /// Side of the square images the position embeddings are stored for, in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels; divides the image size.
    pub patch_size: usize,
    /// Number of tokens that stand between the class token and the patches, without a position embedding.
    pub registers: usize,
    /// Whether the checkpoint is a distilled DeiT. Its distillation token counts as one register whose value is
    /// `embeddings.distillation_token` plus row 1 of `embeddings.position_embeddings` (`[1, 2 + G*G, D]`; rows 0 and 2..
    /// are the class token and the patches).
    pub distilled: bool,
    /// Whether each residual branch is multiplied by a learned vector.
    pub layer_scale: bool,
    /// Width of a projected image embedding (CLIP), if there is a projection.
    pub projection: Option<usize>,
    /// The text tower (CLIP), if there is one.
    pub text: Option<TextSpec>,
}

impl Spec {
    /// Reads `config.json` at `path`.
    ///
    /// # Errors
    /// A file that cannot be read, is not a JSON object, is of a family that is not supported, or holds a value that
    /// cannot be; the message names the file and the field.
    pub fn from_config(path: &Path) -> Result<Self> {
        Self::from_json(&read_limited(path, MAX_CONFIG_BYTES)?, path)
    }

    /// Reads a configuration from the bytes of a `config.json`; `path` names it in errors.
    ///
    /// # Errors
    /// As [`Spec::from_config`].
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self> {
        config::parse(bytes, path)
    }

    /// Patches along a side at the stored image size.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// The same backbone for square images of `image_size` pixels: what position embeddings are interpolated to.
    ///
    /// # Errors
    /// A size that is no positive multiple of the patch size, or is beyond reason.
    pub fn check_image_size(&self, image_size: usize) -> Result<()> {
        let patch = self.patch_size;
        if image_size == 0 || !image_size.is_multiple_of(patch) {
            let near = (image_size / patch).max(1) * patch;
            return Err(Error::flag(
                "--image-size",
                format!("{image_size} is no multiple of the backbone's patch size {patch} (try {near})"),
            ));
        }
        if image_size > MAX_IMAGE || image_size / patch > MAX_GRID {
            return Err(Error::flag("--image-size", format!("{image_size} is too large")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults(model_type: &str) -> Spec {
        Spec::from_json(format!(r#"{{"model_type": "{model_type}"}}"#).as_bytes(), Path::new("config.json")).unwrap()
    }

    #[test]
    fn texts_are_pooled_at_their_end_token() {
        let mut text = defaults("clip").text.unwrap();
        assert_eq!(text.pool_position(&[49406, 320, 49407, 49407]), 2);
        assert_eq!(text.pool_position(&[49406, 320]), 0);
        text.eos_token_id = 2;
        assert_eq!(text.pool_position(&[98, 2, 99, 99, 3]), 2);
    }

    #[test]
    fn image_sizes_are_multiples_of_the_patch() {
        let spec = defaults("dinov2");
        assert!(spec.check_image_size(518).is_ok());
        let message = spec.check_image_size(225).unwrap_err().to_string();
        assert_eq!(message, "--image-size: 225 is no multiple of the backbone's patch size 14 (try 224)");
        assert!(spec.check_image_size(0).is_err() && spec.check_image_size(14 << 20).is_err());
    }
}
