//! Facts about a backbone that do not depend on each other, read from the `config.json` of a Hugging Face folder.
//!
//! The engine and whoever else wants to know asks a [`Spec`] for these facts and never which family a backbone is of, so
//! that one `Vit` serves them all. How a family's `config.json` tells them stands in the family's file in
//! [`super::names`]; everything is checked as it is read, before any memory is taken on its word.

mod config;
mod labels;

use std::path::Path;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

pub(super) use self::config::{
    Fields, MAX_CONTEXT, MAX_DEPTH, MAX_MLP, MAX_PATCHES, MAX_REGISTERS, MAX_VOCAB, MAX_WIDTH, MlpWidth,
};
pub use super::names::Family;
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};
pub use vpt_kernel::Activation;

/// The file that says what a model is.
pub const CONFIG: &str = "config.json";
/// `config.json` is a page of text; anything larger is something else.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// Largest image side in pixels, and largest number of patches along it.
const MAX_IMAGE: usize = 1 << 14;
const MAX_GRID: usize = 1 << 10;

/// Which of the layers before attention have a bias. Without one there is no such tensor: it counts as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QkvBias {
    /// That of the queries.
    pub q: bool,
    /// That of the keys.
    pub k: bool,
    /// That of the values.
    pub v: bool,
}

impl QkvBias {
    /// All of them, or none.
    pub fn all(biased: bool) -> Self {
        Self { q: biased, k: biased, v: biased }
    }

    /// Those of queries, keys and values, in this order.
    pub fn each(self) -> [bool; 3] {
        [self.q, self.k, self.v]
    }
}

impl Serialize for QkvBias {
    /// `true` or `false` where all are alike, else one for each of q, k, v.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let each = self.each();
        if *self == Self::all(self.q) { self.q.serialize(serializer) } else { each.serialize(serializer) }
    }
}

/// The shape of one transformer.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    pub gated: bool,
    /// The MLP's non-linearity.
    pub activation: Activation,
    /// Added to the variance in every layer norm.
    pub eps: f32,
    /// Which of queries, keys and values have a bias.
    pub qkv_bias: QkvBias,
    /// Whether each residual branch is multiplied by a learned vector.
    #[serde(skip)]
    pub layer_scale: bool,
}

impl TowerSpec {
    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.width / self.heads
    }
}

/// A text tower.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TextSpec {
    /// The transformer.
    pub tower: TowerSpec,
    /// Whether a token sees those before it only.
    #[serde(skip)]
    pub causal: bool,
    /// Number of token embeddings.
    pub vocab: usize,
    /// Number of position embeddings: the longest text, start and end tokens included.
    pub context: usize,
    /// Which token of a text holds its embedding.
    #[serde(skip)]
    pub pool: TextPool,
    /// The end-of-text token. In CLIP's configurations 2 stands for an old mistake, see [`TextSpec::read_len`].
    pub eos_token_id: u32,
    /// Width of a projected text embedding.
    pub projection: usize,
    /// Whether the projection has a bias.
    #[serde(skip)]
    pub projection_bias: bool,
}

/// The token that holds the embedding of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextPool {
    /// The first end-of-text token. What follows it is padding.
    End,
    /// The last position there is: texts are padded to the whole context, and padding is seen like any token.
    LastPosition,
}

impl TextSpec {
    /// How many of `ids` are read: up to the one that holds the embedding of the text.
    ///
    /// That is all of them, or up to the first end-of-text token.
    ///
    /// Configurations written before July 2023 say `eos_token_id: 2`, which was never right; for those transformers takes
    /// the largest id (the end token has the highest number of the vocabulary). Where no id equals the end token it takes
    /// the first position, and so does this.
    pub fn read_len(&self, ids: &[u32]) -> usize {
        if self.pool == TextPool::LastPosition {
            return ids.len();
        }
        let target = if self.eos_token_id == 2 { ids.iter().copied().max() } else { Some(self.eos_token_id) };
        ids.iter().position(|&id| Some(id) == target).map_or(ids.len().min(1), |end| end + 1)
    }
}

/// The learned position embeddings of an image tower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    /// How many of the tokens that stand before the patches have one, counted from the first: 1 where the class token alone
    /// has. The tensor's rows are theirs, then those of the patches, row by row of the image: `[prefix + G*G, D]`.
    pub prefix: usize,
    /// How those of the patches are made for other image sizes.
    pub resampling: Resampling,
}

/// Rotary positions as `DINOv3` has them: queries and keys of patches are turned, in every block alike, by angles that follow
/// from the patch's place in the image and from the image's size in patches, so that no size has to be stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// Ratio of the shortest period and the one behind the longest.
    pub theta: f64,
}

/// How a grid of position embeddings is resampled to another size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resampling {
    /// torch's `bicubic` with `align_corners=False`.
    Bicubic,
    /// The same with `antialias=True`.
    AntialiasedBicubic,
    /// torch's `bilinear` with `align_corners=False` and `antialias=True`.
    AntialiasedBilinear,
}

/// What is made of the tokens of an image, after the last norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// The class token, `[D]`.
    ClassToken,
    /// The mean of the patches, `[D]`.
    Mean,
    /// The mean of the patches as they leave the last block, which the last norm then is of, `[D]`: timm's `fc_norm`.
    NormOfMean,
    /// The class token and, behind it, the mean of the patches, `[2 D]`.
    ClassTokenAndMean,
    /// What a learned query finds among all tokens, and an MLP makes of it, `[D]`: SigLIP's head. Its shape is that of the
    /// tower's blocks. Prompts are not among the tokens it looks at.
    Attention,
}

impl Pool {
    /// Vectors of width D that it makes of an image.
    pub fn vectors(self) -> usize {
        match self {
            Self::ClassToken | Self::Mean | Self::NormOfMean | Self::Attention => 1,
            Self::ClassTokenAndMean => 2,
        }
    }

    /// Whether the class token is part of it.
    pub fn reads_class_token(self) -> bool {
        matches!(self, Self::ClassToken | Self::ClassTokenAndMean)
    }

    /// Whether the patches are part of it.
    pub fn reads_patches(self) -> bool {
        self != Self::ClassToken
    }
}

/// What a backbone is: its shapes and what its forward pass must do.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::struct_excessive_bools, reason = "facts that do not depend on each other")]
pub struct Spec {
    /// What its tensors are called, and what is shown to people.
    pub family: &'static Family,
    /// The image tower.
    pub vision: TowerSpec,
    /// Side of the square images the position embeddings are stored for, in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels. Where it does not divide the image size, the pixels behind the last whole patch of a row or
    /// column are not read.
    pub patch_size: usize,
    /// Whether the patch embedding has a bias.
    pub patch_bias: bool,
    /// Whether a class token stands before all others.
    pub class_token: bool,
    /// Number of tokens that stand between the class token and the patches: registers, or a distilled `DeiT`'s token.
    pub registers: usize,
    /// The learned position embeddings, if there are any.
    pub positions: Option<Positions>,
    /// Rotary positions, if there are any.
    pub rotary: Option<Rotary>,
    /// Whether there is a norm before the first block (CLIP's `ln_pre`).
    pub pre_norm: bool,
    /// What is made of the tokens of an image: its features.
    pub pool: Pool,
    /// What is read by the classifier that a checkpoint may have beside the backbone; `None`: such backbones have none.
    pub classifier: Option<Pool>,
    /// Width of a projected image embedding (CLIP), if there is a projection.
    pub projection: Option<usize>,
    /// The text tower (CLIP), if there is one.
    pub text: Option<TextSpec>,
}

impl Serialize for Spec {
    /// The JSON of `vpt backbones info`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Spec", 10)?;
        fields.serialize_field("family", self.family)?;
        fields.serialize_field("vision", &self.vision)?;
        fields.serialize_field("image_size", &self.image_size)?;
        fields.serialize_field("patch_size", &self.patch_size)?;
        fields.serialize_field("registers", &self.registers)?;
        fields.serialize_field("distilled", &(self.registers == 1 && self.learned_prefix() == 2))?;
        fields.serialize_field("layer_scale", &self.vision.layer_scale)?;
        fields.serialize_field("positions", if self.rotary.is_some() { "rotary" } else { "learned" })?;
        fields.serialize_field("projection", &self.projection)?;
        fields.serialize_field("text", &self.text)?;
        fields.end()
    }
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

    /// Tokens that stand before the patches: class token and registers.
    pub fn prefix_tokens(&self) -> usize {
        usize::from(self.class_token) + self.registers
    }

    /// How many of the tokens before the patches have a learned position.
    pub(super) fn learned_prefix(&self) -> usize {
        self.positions.map_or(0, |positions| positions.prefix)
    }

    /// Rows of the stored position embeddings.
    pub(super) fn stored_positions(&self) -> usize {
        self.positions.map_or(0, |positions| positions.prefix + self.grid() * self.grid())
    }

    /// Checks that the facts do not contradict each other: that there are the tokens that they speak of.
    ///
    /// # Errors
    /// They do.
    pub(super) fn check(&self) -> Result<()> {
        let (positions, tokens) = (self.learned_prefix(), self.prefix_tokens());
        if positions > tokens {
            let message = format!("{positions} positions for {tokens} tokens before the patches");
            return Err(Error::invalid("specification", message));
        }
        if self.rotary.is_some() && !self.vision.head_dim().is_multiple_of(4) {
            let message =
                format!("rotary positions turn pairs along two axes, not heads of {}", self.vision.head_dim());
            return Err(Error::invalid("specification", message));
        }
        if self.pool.reads_class_token() && !self.class_token {
            return Err(Error::invalid("specification", "pools a class token that there is not"));
        }
        if self.pool == Pool::Attention && self.family.vision.attention_pool.is_none() {
            return Err(Error::invalid("specification", "pools by attention whose tensors have no names"));
        }
        Ok(())
    }

    /// The same backbone for square images of `image_size` pixels: what position embeddings are interpolated to.
    ///
    /// # Errors
    /// A size that is neither the stored one nor a positive multiple of the patch size, or is beyond reason.
    pub fn check_image_size(&self, image_size: usize) -> Result<()> {
        let patch = self.patch_size;
        if image_size == 0 || image_size != self.image_size && !image_size.is_multiple_of(patch) {
            let near = (image_size / patch).max(1) * patch;
            return Err(Error::setting(
                "image_size",
                format!("{image_size} is no multiple of the backbone's patch size {patch} (try {near})"),
            ));
        }
        if image_size > MAX_IMAGE || image_size / patch > MAX_GRID {
            return Err(Error::setting("image_size", format!("{image_size} is too large")));
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
    fn texts_are_read_up_to_their_end_token_or_all() {
        let mut text = defaults("clip").text.unwrap();
        assert_eq!(text.read_len(&[49406, 320, 49407, 49407]), 3);
        assert_eq!(text.read_len(&[49406, 320]), 1);
        text.eos_token_id = 2;
        assert_eq!(text.read_len(&[98, 2, 99, 99, 3]), 3);
        text.pool = TextPool::LastPosition;
        assert_eq!(text.read_len(&[98, 1, 1, 1]), 4);
    }

    #[test]
    fn facts_that_contradict_each_other_are_refused() {
        let spec = defaults("deit");
        assert!(spec.check().is_ok());
        assert!(Spec { registers: 0, ..spec.clone() }.check().is_err());
        let positions = Some(Positions { prefix: 1, resampling: Resampling::Bicubic });
        let bare = Spec { class_token: false, positions, ..spec };
        assert!(bare.check().is_err());
        assert!(Spec { pool: Pool::Mean, ..bare }.check().is_ok());
    }

    // Programs read these fields; see docs/json.schema.json.
    #[test]
    fn the_json_of_a_specification_has_the_documented_fields() {
        // As text, where an f32 has its own few digits.
        let json =
            |spec: &Spec| -> serde_json::Value { serde_json::from_str(&serde_json::to_string(spec).unwrap()).unwrap() };
        let deit = json(&defaults("deit"));
        let fields: Vec<_> = deit.as_object().unwrap().keys().map(String::as_str).collect();
        let names =
            ["family", "vision", "image_size", "patch_size", "registers", "distilled", "layer_scale", "positions"];
        assert_eq!(fields, [&names[..], &["projection", "text"]].concat());
        assert_eq!(
            (&deit["family"], &deit["distilled"], &deit["layer_scale"]),
            (&"vit".into(), &true.into(), &false.into())
        );
        let dinov2 = json(&defaults("dinov2"));
        assert_eq!((&dinov2["distilled"], &dinov2["layer_scale"]), (&false.into(), &true.into()));
        let tower = r#"{"width":768,"depth":12,"heads":12,"mlp":3072,"gated":false,"activation":"gelu","eps":1e-6,"qkv_bias":true}"#;
        assert_eq!(dinov2["vision"], serde_json::from_str::<serde_json::Value>(tower).unwrap());
        let mixed = QkvBias { q: true, k: false, v: true };
        assert_eq!(serde_json::to_string(&mixed).unwrap(), "[true,false,true]");
    }

    #[test]
    fn image_sizes_are_multiples_of_the_patch() {
        let spec = defaults("dinov2");
        assert!(spec.check_image_size(518).is_ok());
        let message = spec.check_image_size(225).unwrap_err().to_string();
        assert_eq!(message, "image_size: 225 is no multiple of the backbone's patch size 14 (try 224)");
        assert!(spec.check_image_size(0).is_err() && spec.check_image_size(14 << 20).is_err());
    }
}
