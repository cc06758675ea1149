//! The fields of `config.json`: ranges, and errors that name the field. Which of them say what, and what stands for those that
//! are absent, is the family's matter ([`crate::names`]).

use std::path::Path;

use serde_json::{Map, Value};

use super::{Activation, MAX_GRID, MAX_IMAGE, QkvBias, Spec, TowerSpec};
use crate::names::{self, FAMILIES};
use vpt_base::{Error, Result};

/// Largest accepted values: some ten times beyond any published model, small enough that no product of two overflows.
pub(crate) const MAX_WIDTH: usize = 1 << 14;
pub(crate) const MAX_MLP: usize = 1 << 17;
pub(crate) const MAX_DEPTH: usize = 256;
pub(crate) const MAX_REGISTERS: usize = 1 << 10;
pub(crate) const MAX_PATCHES: usize = 1 << 16;
pub(crate) const MAX_VOCAB: usize = 1 << 22;
pub(crate) const MAX_CONTEXT: usize = 1 << 14;

/// The specification in the bytes of a `config.json`; `path` names it in errors.
pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Spec> {
    let value: Value =
        serde_json::from_slice(bytes).map_err(|e| Error::weights(path, format!("not a JSON file: {e}")))?;
    let root = match &value {
        Value::Object(map) => Fields::new(path, map),
        _ => return Err(Error::weights(path, "not a model configuration: no JSON object")),
    };
    let Some(model_type) = root.text("model_type")? else {
        return Err(root.error("model_type", &format!("missing; supported are {}", supported())));
    };
    let Some(family) = names::by_model_type(model_type) else {
        let message = format!("{} is not supported; supported are {}", brief(&model_type.into()), supported());
        return Err(root.error("model_type", &message));
    };
    (family.spec)(&root)
}

/// The `model_type`s that can be read.
fn supported() -> String {
    FAMILIES.iter().flat_map(|family| family.model_types).copied().collect::<Vec<_>>().join(", ")
}

/// How a configuration gives the hidden width of the MLP, with its default.
pub(crate) enum MlpWidth {
    /// As `intermediate_size`.
    Size(usize),
    /// As `mlp_ratio`, a multiple of the width.
    Ratio(f64),
}

/// A JSON object of the configuration, or the absence of one (every field then has its default).
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    path: &'a Path,
    /// Prefix of a field's name in errors, with its dot.
    prefix: &'static str,
    map: Option<&'a Map<String, Value>>,
}

impl<'a> Fields<'a> {
    /// Those of the whole file `path`.
    pub(crate) fn new(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self { path, prefix: "", map: Some(map) }
    }

    /// Checks that the field, if it is there, has one of these values.
    pub(crate) fn one_of(&self, name: &str, values: &[&str]) -> Result<()> {
        match self.text(name)? {
            Some(value) if !values.contains(&value) => {
                let message = format!("{} is not supported; supported are {}", brief(&value.into()), values.join(", "));
                Err(self.error(name, &message))
            }
            _ => Ok(()),
        }
    }

    /// The field's value; `null` counts as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.and_then(|m| m.get(name)).filter(|v| !v.is_null())
    }

    /// Whether there is such an object.
    pub(crate) fn is_present(&self) -> bool {
        self.map.is_some()
    }

    pub(crate) fn error(&self, name: &str, message: &str) -> Error {
        Error::weights(self.path, format!("{}{name}: {message}", self.prefix))
    }

    pub(crate) fn section(&self, name: &str, prefix: &'static str) -> Result<Fields<'a>> {
        match self.get(name) {
            None => Ok(Fields { path: self.path, prefix, map: None }),
            Some(Value::Object(map)) => Ok(Fields { path: self.path, prefix, map: Some(map) }),
            Some(_) => Err(self.error(name, "must be an object")),
        }
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(_) => Err(self.error(name, "must be a string")),
        }
    }

    /// Whether this class is among the `architectures` that the checkpoint was saved from.
    pub(crate) fn names_architecture(&self, class: &str) -> bool {
        let list = self.get("architectures").and_then(Value::as_array);
        list.is_some_and(|list| list.iter().any(|name| name.as_str() == Some(class)))
    }

    pub(crate) fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(_) => Err(self.error(name, "must be true or false")),
        }
    }

    fn integer(&self, name: &str, value: &Value, range: std::ops::RangeInclusive<usize>) -> Result<usize> {
        let n = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n));
        n.ok_or_else(|| {
            self.error(
                name,
                &format!("must be a whole number from {} to {}, not {}", range.start(), range.end(), brief(value)),
            )
        })
    }

    /// A whole number from 1 to `max`.
    pub(crate) fn size(&self, name: &str, default: Option<usize>, max: usize) -> Result<usize> {
        match (self.get(name), default) {
            (Some(v), _) => self.integer(name, v, 1..=max),
            (None, Some(n)) => Ok(n),
            (None, None) => Err(self.error(name, "missing")),
        }
    }

    /// A whole number from 0 to `max`.
    pub(crate) fn count(&self, name: &str, default: usize, max: usize) -> Result<usize> {
        self.get(name).map_or(Ok(default), |v| self.integer(name, v, 0..=max))
    }

    /// A side in pixels: a number, or a list of two equal ones.
    fn side(&self, name: &str, default: usize) -> Result<usize> {
        match self.get(name) {
            Some(Value::Array(list)) => match list.as_slice() {
                [h, w] if h == w => self.integer(name, h, 1..=MAX_IMAGE),
                _ => Err(self.error(name, "only squares are supported: one number, or two equal ones")),
            },
            _ => self.size(name, Some(default), MAX_IMAGE),
        }
    }

    /// A token's number, alone or in a list of one.
    pub(crate) fn token_id(&self, name: &str, default: u32) -> Result<u32> {
        let Some(value) = self.get(name) else { return Ok(default) };
        let one = match value {
            Value::Array(list) if list.len() == 1 => &list[0],
            v => v,
        };
        Ok(self.integer(name, one, 0..=i32::MAX as usize)? as u32)
    }

    pub(crate) fn number(&self, name: &str, default: f64) -> Result<f64> {
        match self.get(name) {
            None => Ok(default),
            Some(v) => v.as_f64().ok_or_else(|| self.error(name, &format!("must be a number, not {}", brief(v)))),
        }
    }

    /// Sides of images and patches, where patches fill the image.
    pub(crate) fn image_and_patch(&self, image: usize, patch: usize) -> Result<(usize, usize)> {
        let (image, patch) = self.image_and_whole_patches(image, patch)?;
        if image % patch != 0 {
            return Err(self.error("image_size", &format!("{image} is no multiple of patch_size {patch}")));
        }
        Ok((image, patch))
    }

    /// Sides of images and patches, where as many whole patches are read as there is room for.
    pub(crate) fn image_and_whole_patches(&self, image: usize, patch: usize) -> Result<(usize, usize)> {
        let (image, patch) = (self.side("image_size", image)?, self.patch(patch)?);
        if patch > image {
            return Err(self.error("image_size", &format!("{image} is no multiple of patch_size {patch}")));
        }
        if image / patch > MAX_GRID {
            return Err(self.error("patch_size", &format!("{patch} makes too many patches of {image} pixels")));
        }
        Ok((image, patch))
    }

    /// The side of a patch of images with three channels.
    pub(crate) fn patch(&self, default: usize) -> Result<usize> {
        let channels = self.size("num_channels", Some(3), MAX_WIDTH)?;
        if channels != 3 {
            return Err(self.error("num_channels", &format!("{channels} is not supported: images have 3 channels")));
        }
        self.side("patch_size", default)
    }

    /// The transformer's shape; `default` is width, depth, heads.
    pub(crate) fn tower(
        &self,
        default: (usize, usize, usize),
        activation: &str,
        eps: f64,
        mlp: &MlpWidth,
    ) -> Result<TowerSpec> {
        let width = self.size("hidden_size", Some(default.0), MAX_WIDTH)?;
        let depth = self.size("num_hidden_layers", Some(default.1), MAX_DEPTH)?;
        let heads = self.size("num_attention_heads", Some(default.2), MAX_WIDTH)?;
        if width % heads != 0 {
            let message = format!("{heads} heads do not divide hidden_size {width}");
            return Err(self.error("num_attention_heads", &message));
        }
        if let Some(dim) = self.get("head_dim")
            && dim.as_u64() != Some((width / heads) as u64)
        {
            let message = format!("{} is not supported: must be hidden_size / num_attention_heads", brief(dim));
            return Err(self.error("head_dim", &message));
        }
        let mlp = match mlp {
            MlpWidth::Size(n) => self.size("intermediate_size", Some(*n), MAX_MLP)?,
            MlpWidth::Ratio(r) => {
                // Truncated, as transformers' `int(hidden_size * mlp_ratio)`; NaN and negatives become 0 and are refused.
                let n = (width as f64 * self.number("mlp_ratio", *r)?) as usize;
                if !(1..=MAX_MLP).contains(&n) {
                    return Err(self.error("mlp_ratio", &format!("gives an MLP of width {n}, not 1 to {MAX_MLP}")));
                }
                n
            }
        };
        let activation = match self.text("hidden_act")?.unwrap_or(activation) {
            "gelu" | "gelu_python" => Activation::Gelu,
            "quick_gelu" => Activation::QuickGelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "silu" | "swish" => Activation::Silu,
            other => {
                let supported = "gelu, quick_gelu, gelu_new, gelu_pytorch_tanh, silu";
                let message = format!("{} is not supported; supported are {supported}", brief(&other.into()));
                return Err(self.error("hidden_act", &message));
            }
        };
        let eps = self.number("layer_norm_eps", eps)? as f32;
        if !(eps > 0.0 && eps < 1.0) {
            return Err(self.error("layer_norm_eps", &format!("must lie between 0 and 1, not {eps}")));
        }
        let qkv_bias = QkvBias::all(self.flag("qkv_bias", true)?);
        Ok(TowerSpec { width, depth, heads, mlp, gated: false, activation, eps, qkv_bias, layer_scale: false })
    }
}

/// A value short enough for a one-line message.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Pool, Positions, Resampling, Rotary, TextPool, TextSpec};
    use super::*;
    use crate::names::{clip, deit, dinov2, dinov2_with_registers, dinov3, mae, siglip, vit};

    fn read(json: &str) -> Result<Spec> {
        parse(json.as_bytes(), Path::new("config.json"))
    }

    fn refused(json: &str) -> String {
        let message = read(json).expect_err(json).to_string();
        assert!(message.starts_with("config.json: ") && !message.contains('\n'), "{message}");
        message
    }

    // The defaults were read off transformers 5.23.0's configuration classes.
    #[test]
    fn absent_fields_take_the_defaults_of_transformers() {
        let tower = |width, heads, mlp, activation, eps| TowerSpec {
            width,
            depth: 12,
            heads,
            mlp,
            gated: false,
            activation,
            eps,
            qkv_bias: QkvBias::all(true),
            layer_scale: false,
        };
        let clip = read(r#"{"model_type": "clip", "vision_config": null}"#).unwrap();
        let text = TextSpec {
            tower: tower(512, 8, 2048, Activation::QuickGelu, 1e-5),
            causal: true,
            pool: TextPool::End,
            vocab: 49408,
            context: 77,
            eos_token_id: 49407,
            projection: 512,
            projection_bias: false,
        };
        let base = Spec {
            family: &clip::FAMILY,
            vision: tower(768, 12, 3072, Activation::QuickGelu, 1e-5),
            image_size: 224,
            patch_size: 32,
            patch_bias: false,
            class_token: true,
            registers: 0,
            positions: Some(Positions { prefix: 1, resampling: Resampling::Bicubic }),
            rotary: None,
            pre_norm: true,
            pool: Pool::ClassToken,
            classifier: None,
            projection: Some(512),
            text: Some(text),
        };
        assert_eq!(clip, base);
        let base = Spec { projection: None, text: None, ..base };
        assert_eq!(read(r#"{"model_type": "clip_vision_model"}"#).unwrap(), base);
        let base = Spec {
            family: &vit::FAMILY,
            vision: tower(768, 12, 3072, Activation::Gelu, 1e-12),
            patch_size: 16,
            patch_bias: true,
            pre_norm: false,
            classifier: Some(Pool::ClassToken),
            ..base
        };
        assert_eq!(read(r#"{"model_type": "vit"}"#).unwrap(), base);
        assert_eq!(read(r#"{"model_type": "vit_mae"}"#).unwrap(), Spec { family: &mae::FAMILY, ..base.clone() });
        let positions = Some(Positions { prefix: 2, resampling: Resampling::Bicubic });
        let distilled = Spec { family: &deit::FAMILY, registers: 1, positions, ..base.clone() };
        assert_eq!(read(r#"{"model_type": "deit"}"#).unwrap(), distilled);
        let base = Spec {
            family: &dinov2::FAMILY,
            vision: TowerSpec { layer_scale: true, ..tower(768, 12, 3072, Activation::Gelu, 1e-6) },
            patch_size: 14,
            classifier: Some(Pool::ClassTokenAndMean),
            ..base
        };
        assert_eq!(read(r#"{"model_type": "dinov2"}"#).unwrap(), base);
        let positions = Some(Positions { prefix: 1, resampling: Resampling::AntialiasedBicubic });
        let base = Spec { family: &dinov2_with_registers::FAMILY, patch_size: 16, registers: 4, positions, ..base };
        assert_eq!(read(r#"{"model_type": "dinov2_with_registers"}"#).unwrap(), base);
        let qkv_bias = QkvBias { q: true, k: false, v: true };
        let dinov3 = Spec {
            family: &dinov3::FAMILY,
            vision: TowerSpec { qkv_bias, layer_scale: true, ..tower(384, 6, 1536, Activation::Gelu, 1e-5) },
            registers: 0,
            positions: None,
            rotary: Some(Rotary { theta: 100. }),
            classifier: None,
            ..base.clone()
        };
        assert_eq!(read(r#"{"model_type": "dinov3_vit"}"#).unwrap(), dinov3);
        let text = TextSpec {
            tower: tower(768, 12, 3072, Activation::GeluTanh, 1e-6),
            causal: false,
            vocab: 32000,
            context: 64,
            pool: TextPool::LastPosition,
            eos_token_id: 1,
            projection: 768,
            projection_bias: true,
        };
        // As DINOv2 with registers but for this.
        let siglip = Spec {
            family: &siglip::FAMILY,
            vision: text.tower.clone(),
            class_token: false,
            registers: 0,
            positions: Some(Positions { prefix: 0, resampling: Resampling::Bicubic }),
            pool: Pool::Attention,
            classifier: Some(Pool::Mean),
            text: Some(text),
            ..base.clone()
        };
        assert_eq!(read(r#"{"model_type": "siglip"}"#).unwrap(), siglip);
        let positions = Some(Positions { prefix: 0, resampling: Resampling::AntialiasedBilinear });
        let naflex = Spec { family: &siglip::NAFLEX, image_size: 256, positions, ..siglip.clone() };
        assert_eq!(read(r#"{"model_type": "siglip2"}"#).unwrap(), naflex);
        let alone = Spec { text: None, ..siglip };
        assert_eq!(read(r#"{"model_type": "siglip_vision_model"}"#).unwrap(), alone);
        let headless = Spec { pool: Pool::Mean, ..alone };
        assert_eq!(read(r#"{"model_type": "siglip_vision_model", "vision_use_head": false}"#).unwrap(), headless);
    }

    // google/siglip-so400m-patch14-384.
    #[test]
    fn patches_that_do_not_fill_an_image_are_as_many_as_fit() {
        let spec = read(r#"{"model_type": "siglip", "vision_config": {"image_size": 384, "patch_size": 14}}"#).unwrap();
        assert_eq!((spec.image_size, spec.grid()), (384, 27));
        assert!(spec.check_image_size(384).is_ok() && spec.check_image_size(378).is_ok());
        assert!(spec.check_image_size(385).is_err());
    }

    #[test]
    fn sections_hold_only_what_differs() {
        let spec = read(
            r#"{"model_type": "clip", "projection_dim": 768, "text_config_dict": null,
                "text_config": {"hidden_size": 768, "num_attention_heads": 12, "eos_token_id": 2},
                "vision_config": {"hidden_size": 1024, "num_attention_heads": 16, "patch_size": [14, 14], "hidden_act": "gelu"}}"#,
        )
        .unwrap();
        let text = spec.text.as_ref().unwrap();
        assert_eq!((text.tower.width, text.tower.mlp, text.projection, text.eos_token_id), (768, 2048, 768, 2));
        assert_eq!((spec.vision.width, spec.vision.mlp, spec.grid()), (1024, 3072, 16));
        assert_eq!((spec.vision.activation, text.tower.activation), (Activation::Gelu, Activation::QuickGelu));
    }

    #[test]
    fn an_old_config_dict_replaces_its_section() {
        let spec = read(
            r#"{"model_type": "clip", "vision_config": {"hidden_size": 64, "num_attention_heads": 4, "patch_size": 16},
                "vision_config_dict": {"num_hidden_layers": 3}}"#,
        )
        .unwrap();
        assert_eq!((spec.vision.width, spec.vision.depth, spec.patch_size), (768, 3, 32));
    }

    #[test]
    fn a_projection_of_a_lone_image_tower_needs_its_class() {
        let json = r#"{"model_type": "clip_vision_model", "projection_dim": 64, "architectures": ["CLIPVisionModelWithProjection"]}"#;
        assert_eq!(read(json).unwrap().projection, Some(64));
    }

    #[test]
    fn dinov2_takes_a_fractional_mlp_ratio() {
        let spec = read(r#"{"model_type": "dinov2", "hidden_size": 30, "num_attention_heads": 3, "mlp_ratio": 2.67}"#);
        assert_eq!(spec.unwrap().vision.mlp, 80);
    }

    // The configuration of dinov2-giant, and widths of transformers' Dinov2SwiGLUFFN.
    #[test]
    fn a_gated_mlp_has_two_thirds_of_the_width() {
        for (width, ratio, mlp) in [(1536, "4", 4096), (24, "2", 32), (30, "2.67", 56), (8, "0.25", 8)] {
            let json = format!(
                r#"{{"model_type": "dinov2", "use_swiglu_ffn": true, "hidden_size": {width}, "num_attention_heads": 2, "mlp_ratio": {ratio}}}"#
            );
            let tower = read(&json).unwrap().vision;
            assert_eq!((tower.mlp, tower.gated, tower.activation), (mlp, true, Activation::Silu));
        }
    }

    #[test]
    fn values_that_cannot_be_are_named() {
        for (json, part) in [
            ("[1]", "no JSON object"),
            ("{", "not a JSON file"),
            ("{}", "model_type: missing; supported are clip,"),
            (r#"{"model_type": 3}"#, "model_type: must be a string"),
            (
                r#"{"model_type": "swin"}"#,
                "\"swin\" is not supported; supported are clip, clip_vision_model, vit, deit",
            ),
            (r#"{"model_type": "dinov2", "use_swiglu_ffn": 1}"#, "use_swiglu_ffn: must be true or false"),
            (
                r#"{"model_type": "dinov2", "use_swiglu_ffn": true, "hidden_size": 1, "num_attention_heads": 1, "mlp_ratio": 1}"#,
                "mlp_ratio: gives an MLP without hidden units",
            ),
            (
                r#"{"model_type": "vit", "hidden_size": 0}"#,
                "hidden_size: must be a whole number from 1 to 16384, not 0",
            ),
            (r#"{"model_type": "vit", "hidden_size": -3}"#, "hidden_size: "),
            (r#"{"model_type": "vit", "hidden_size": 1e30}"#, "hidden_size: "),
            (r#"{"model_type": "vit", "hidden_size": "768"}"#, "hidden_size: "),
            (r#"{"model_type": "vit", "num_attention_heads": 5}"#, "num_attention_heads: 5 heads do not divide"),
            (r#"{"model_type": "vit", "num_hidden_layers": 100000}"#, "num_hidden_layers: "),
            (r#"{"model_type": "vit", "intermediate_size": 18446744073709551615}"#, "intermediate_size: "),
            (r#"{"model_type": "vit", "image_size": 225}"#, "image_size: 225 is no multiple of patch_size 16"),
            (r#"{"model_type": "vit", "image_size": 8}"#, "image_size: 8 is no multiple"),
            (r#"{"model_type": "vit", "image_size": [224, 448]}"#, "image_size: only squares"),
            (r#"{"model_type": "vit", "patch_size": 0}"#, "patch_size: "),
            (r#"{"model_type": "vit", "image_size": 4096, "patch_size": 1}"#, "patch_size: 1 makes too many"),
            (r#"{"model_type": "vit", "num_channels": 1}"#, "num_channels: 1 is not supported"),
            (r#"{"model_type": "vit", "hidden_act": "relu"}"#, "hidden_act: \"relu\" is not supported"),
            (r#"{"model_type": "vit", "layer_norm_eps": 0}"#, "layer_norm_eps: "),
            (r#"{"model_type": "vit", "layer_norm_eps": "x"}"#, "layer_norm_eps: must be a number"),
            (r#"{"model_type": "vit", "head_dim": 32}"#, "head_dim: 32 is not supported"),
            (r#"{"model_type": "vit", "qkv_bias": 1}"#, "qkv_bias: must be true or false"),
            (r#"{"model_type": "dinov2", "mlp_ratio": 1e300}"#, "mlp_ratio: "),
            (r#"{"model_type": "dinov2", "mlp_ratio": -4}"#, "mlp_ratio: "),
            (r#"{"model_type": "dinov2_with_registers", "num_register_tokens": 1000000}"#, "num_register_tokens: "),
            (r#"{"model_type": "dinov3_vit", "mlp_bias": false}"#, "mlp_bias: false is not supported"),
            (r#"{"model_type": "dinov3_vit", "rope_theta": -1}"#, "rope_theta: must lie between"),
            (r#"{"model_type": "dinov3_vit", "num_attention_heads": 64}"#, "num_attention_heads: 64 makes heads of 6"),
            (r#"{"model_type": "clip", "vision_config": 3}"#, "vision_config: must be an object"),
            (r#"{"model_type": "clip", "vision_config": {"patch_size": 9}}"#, "vision_config.image_size: 224 is no"),
            (r#"{"model_type": "clip", "text_config": {"vocab_size": 0}}"#, "text_config.vocab_size: "),
            (r#"{"model_type": "clip", "text_config": {"max_position_embeddings": 2}}"#, "at least 3"),
            (r#"{"model_type": "clip", "text_config": {"eos_token_id": [1, 2]}}"#, "text_config.eos_token_id: "),
            (r#"{"model_type": "clip", "projection_dim": 0}"#, "projection_dim: "),
            (
                r#"{"model_type": "siglip", "text_config": {"projection_size": 512}}"#,
                "text_config.projection_size: texts of width 512 beside images of width 768",
            ),
            (r#"{"model_type": "siglip", "text_config": {"max_position_embeddings": 2}}"#, "at least 3"),
            (r#"{"model_type": "siglip", "vision_config": {"image_size": 8}}"#, "vision_config.image_size: 8"),
            (r#"{"model_type": "siglip", "vision_config": {"vision_use_head": 1}}"#, "vision_use_head: "),
            (
                r#"{"model_type": "siglip2", "vision_config": {"num_patches": 200}}"#,
                "num_patches: 200 patches are no square",
            ),
        ] {
            let message = refused(json);
            assert!(message.contains(part), "{json}: {message}");
        }
    }
}
