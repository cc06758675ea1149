//! Folders of timm: `config.json` with `architecture` and `pretrained_cfg`, and weights in timm's names.
//!
//! The configuration has no sizes. They come from the shapes of the tensors, and the rest from the architecture's name by the
//! rules of timm 1.0.31. A tensor that nothing here has a use for means an architecture that is another one, which is refused: its
//! result would be wrong without a word. Checkpoints of DINO, `DINOv2` and MAE as their authors published them have the same
//! names.

use std::path::Path;

use serde_json::{Map, Value};

use crate::names::timm::{FAMILY, WITH_FC_NORM};
use crate::spec::{
    Activation, MAX_DEPTH, MAX_MLP, MAX_REGISTERS, MAX_WIDTH, Pool, Positions, QkvBias, Resampling, Rotary, Spec,
    TowerSpec,
};
use crate::weights::Weights;
use vpt_base::{Error, Result};
use vpt_image::{Preprocess, from_timm};

/// What supported architectures begin with.
const SUPPORTED: [&str; 4] = ["vit_", "deit", "flexivit_", "test_vit"];
/// Parts of names that mean something that no tensor tells.
const REFUSED: [&str; 9] = ["_rope_", "_pe_", "_rpn_", "relpos", "_r26_", "_r50_", "resnet", "_mci", "naflex"];
/// Arguments of a model that its tensors tell again, or that make no difference to features.
const TOLD: [&str; 22] = [
    "img_size",
    "patch_size",
    "in_chans",
    "num_classes",
    "global_pool",
    "embed_dim",
    "depth",
    "mlp_ratio",
    "qkv_bias",
    "init_values",
    "class_token",
    "reg_tokens",
    "num_reg_tokens",
    "no_embed_class",
    "pre_norm",
    "fc_norm",
    "dynamic_img_size",
    "drop_rate",
    "drop_path_rate",
    "swiglu_mlp",
    "swiglu_align_to",
    "strict_img_size",
];
/// Beginnings of names beside the backbone: heads, and what only training has a use for.
const BESIDE: [&str; 8] =
    ["head.", "head_dist.", "dino_head.", "ibot_head.", "mask_token", "decoder_", "rope.", "rope_embed."];

/// Whether the bytes of a `config.json` are timm's, not transformers'.
pub(crate) fn is_config(bytes: &[u8]) -> bool {
    let config = serde_json::from_slice::<Value>(bytes).ok();
    let field = |name: &str| config.as_ref().and_then(|config| config.get(name)).and_then(Value::as_str);
    field("architecture").is_some() && field("model_type").is_none_or(|kind| FAMILY.model_types.contains(&kind))
}

/// What a folder of timm holds.
pub(crate) struct TimmModel {
    pub(crate) spec: Spec,
    pub(crate) preprocess: Preprocess,
    /// What is done in another way than timm does it.
    pub(crate) note: Option<String>,
}

/// A `config.json` of timm.
pub(crate) struct Timm<'a> {
    path: &'a Path,
    root: Map<String, Value>,
    architecture: String,
}

impl<'a> Timm<'a> {
    /// The model that the bytes of the file `path` name.
    ///
    /// # Errors
    /// They are no such configuration, or of an architecture that is not supported.
    pub(crate) fn from_json(bytes: &[u8], path: &'a Path) -> Result<Self> {
        let json: Value =
            serde_json::from_slice(bytes).map_err(|error| Error::weights(path, format!("not a JSON file: {error}")))?;
        let Value::Object(root) = json else {
            return Err(Error::weights(path, "not a model configuration: no JSON object"));
        };
        let Some(architecture) = root.get("architecture").and_then(Value::as_str).map(str::to_owned) else {
            return Err(Error::weights(path, "architecture: missing: which model of timm it is"));
        };
        let timm = Self { path, root, architecture };
        let name = &timm.architecture;
        let stands_for_itself = SUPPORTED.iter().any(|beginning| name.starts_with(beginning));
        if !stands_for_itself || REFUSED.iter().any(|part| name.contains(part)) {
            let shown: String = name.chars().take(60).collect();
            let message = format!("`{}` is not supported", shown.escape_debug());
            return Err(timm.error("architecture", &format!("{message}; supported are plain vision transformers")));
        }
        Ok(timm)
    }

    fn error(&self, field: &str, message: &str) -> Error {
        Error::weights(self.path, format!("{field}: {message}"))
    }

    fn is_named(&self, part: &str) -> bool {
        self.architecture.contains(part)
    }

    /// The section `name`, empty if there is none.
    fn section(&self, name: &str) -> Result<Option<&Map<String, Value>>> {
        match self.root.get(name).filter(|value| !value.is_null()) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(fields)),
            Some(_) => Err(self.error(name, "must be an object")),
        }
    }

    /// How images are prepared.
    ///
    /// # Errors
    /// A field has a value that cannot be.
    pub(crate) fn preprocess(&self) -> Result<Preprocess> {
        match self.section("pretrained_cfg")? {
            Some(fields) => from_timm(fields, "pretrained_cfg.", self.path),
            // Before 2023.
            None => from_timm(&self.root, "", self.path),
        }
    }

    /// What the backbone is that has these weights.
    ///
    /// # Errors
    /// They are not those of a model of this name that is supported.
    pub(crate) fn spec(&self, weights: &Weights) -> Result<Spec> {
        let arguments = self.section("model_args")?;
        let shapes = TensorShapes { weights, timm: self };
        let &[width, 3, patch_size, patch_width] = shapes.of("patch_embed.proj.weight")? else {
            return Err(shapes.crooked("patch_embed.proj.weight"));
        };
        if patch_size != patch_width || patch_size == 0 || !(1..=MAX_WIDTH).contains(&width) {
            return Err(shapes.crooked("patch_embed.proj.weight"));
        }
        let vision = self.tower(&shapes, width, arguments)?;
        let class_token = weights.has("cls_token");
        let registers = match weights.shape("reg_token") {
            None => 0,
            Some(&[1, registers, _]) if registers <= MAX_REGISTERS => registers,
            Some(_) => return Err(shapes.crooked("reg_token")),
        };
        let side = self.preprocess()?.output_size().map_or(0, |(side, _)| side);
        let (positions, image_size) = match weights.shape("pos_embed") {
            None => (None, side),
            Some(&[1, rows, _]) => {
                let (prefix, grid) = grid(rows, usize::from(class_token) + registers, side / patch_size)
                    .ok_or_else(|| shapes.crooked("pos_embed"))?;
                // The image may have pixels behind its last whole patches.
                let image_size = if side / patch_size == grid { side } else { grid * patch_size };
                (Some(Positions { prefix, resampling: Resampling::AntialiasedBicubic }), image_size)
            }
            Some(_) => return Err(shapes.crooked("pos_embed")),
        };
        let rotary = match positions {
            Some(_) => None,
            None if self.is_named("dinov3") => Some(Rotary { theta: 100. }),
            None => return Err(self.error("architecture", &self.unsupported("has no tensor `pos_embed`"))),
        };
        let fc_norm = weights.has("fc_norm.weight");
        if fc_norm && (class_token || weights.has("norm.weight")) {
            let message = self.unsupported("has a norm of the mean beside a class token or another norm");
            return Err(self.error("architecture", &message));
        }
        let pool = match (weights.has("attn_pool.latent"), class_token) {
            (true, _) => Pool::Attention,
            (false, true) => Pool::ClassToken,
            (false, false) if fc_norm => Pool::NormOfMean,
            (false, false) => Pool::Mean,
        };
        let spec = Spec {
            family: if fc_norm { &WITH_FC_NORM } else { &FAMILY },
            vision,
            image_size,
            patch_size,
            patch_bias: weights.has("patch_embed.proj.bias"),
            class_token,
            registers,
            positions,
            rotary,
            pre_norm: weights.has("norm_pre.weight"),
            pool,
            classifier: self.classifier(weights, pool),
            projection: None,
            text: None,
        };
        if spec.pool == Pool::Attention && spec.prefix_tokens() > 0 {
            // timm's looks at the patches alone.
            let message = self.unsupported("has tokens before the patches beside a pool by attention");
            return Err(self.error("architecture", &message));
        }
        if rotary.is_some() && !image_size.is_multiple_of(patch_size) {
            let message = format!("{image_size} is no multiple of the patch size {patch_size}");
            return Err(self.error("input_size", &message));
        }
        spec.check_image_size(image_size).map_err(|error| error.in_file(self.path))?;
        spec.check().map_err(|error| error.in_file(self.path))?;
        self.check_names(&spec, weights)?;
        Ok(spec)
    }

    /// What the classifier among `weights` reads, if there is one that reads what timm's `global_pool` makes and `pool` does, too. A
    /// projection to texts is none.
    fn classifier(&self, weights: &Weights, pool: Pool) -> Option<Pool> {
        let is_one = weights.has("head.weight") && weights.has("head.bias") && !weights.has("head_dist.weight");
        let own = self.root.get("global_pool").and_then(Value::as_str);
        let reads = match pool {
            Pool::ClassToken => own.is_none_or(|own| own == "token"),
            Pool::Mean | Pool::NormOfMean => own.is_none_or(|own| own == "avg"),
            Pool::Attention => own.is_none_or(|own| own == "map"),
            Pool::ClassTokenAndMean => false,
        };
        (is_one && reads && !self.is_named("_clip_")).then_some(pool)
    }

    /// What is done in another way than timm does it: its `global_pool` is for heads, which are not read.
    pub(crate) fn note(&self, spec: &Spec) -> Option<String> {
        let pool = self.root.get("global_pool").and_then(Value::as_str)?;
        let other = ["avg", "avgmax", "max"].contains(&pool) && spec.pool == Pool::ClassToken;
        other.then(|| format!("features are the class token, where timm's global_pool is {pool}"))
    }

    fn unsupported(&self, why: &str) -> String {
        format!("`{}` is not supported: its checkpoint {why}", self.architecture.escape_debug())
    }

    /// Its blocks.
    fn tower(&self, shapes: &TensorShapes, width: usize, arguments: Option<&Map<String, Value>>) -> Result<TowerSpec> {
        let weights = shapes.weights;
        let depth = (0..=MAX_DEPTH).take_while(|i| weights.has(&format!("blocks.{i}.norm1.weight"))).count();
        if depth == 0 || depth > MAX_DEPTH {
            return Err(self.error("architecture", &self.unsupported(&format!("has {depth} blocks"))));
        }
        let &[_, mlp] = shapes.of("blocks.0.mlp.fc2.weight")? else {
            return Err(shapes.crooked("blocks.0.mlp.fc2.weight"));
        };
        if !(1..=MAX_MLP).contains(&mlp) {
            return Err(shapes.crooked("blocks.0.mlp.fc2.weight"));
        }
        let gated = weights.has("blocks.0.mlp.fc1_g.weight");
        let mut activation = self.activation(gated);
        let mut heads = self.heads(width);
        for (name, value) in arguments.into_iter().flatten().filter(|(_, value)| !value.is_null()) {
            let unsupported = || self.error(&format!("model_args.{name}"), &format!("{value} is not supported"));
            match (name.as_str(), value) {
                ("num_heads", value) => {
                    heads = value.as_u64().and_then(|heads| usize::try_from(heads).ok()).ok_or_else(unsupported)?;
                }
                ("act_layer", Value::String(name)) => {
                    activation = match name.as_str() {
                        "gelu" => Activation::Gelu,
                        "quick_gelu" => Activation::QuickGelu,
                        "gelu_tanh" => Activation::GeluTanh,
                        "silu" | "swish" => Activation::Silu,
                        _ => return Err(unsupported()),
                    };
                }
                (told, _) if TOLD.contains(&told) => {}
                _ => return Err(unsupported()),
            }
        }
        if heads == 0 || !width.is_multiple_of(heads) {
            return Err(self.error("architecture", &format!("{heads} heads do not divide the width {width}")));
        }
        let has = |layer: &str| weights.has(&format!("blocks.0.attn.{layer}.bias"));
        let eps = if self.is_named("_clip_") || self.is_named("dinov3") { 1e-5 } else { 1e-6 };
        Ok(TowerSpec {
            width,
            depth,
            heads,
            mlp,
            gated,
            activation,
            eps,
            qkv_bias: QkvBias { q: has("q"), k: has("k"), v: has("v") },
            layer_scale: weights.has("blocks.0.ls1.gamma"),
        })
    }

    /// Attention heads by the name.
    fn heads(&self, width: usize) -> usize {
        if self.is_named("dinov3") {
            return if self.is_named("_7b_") { 32 } else { width / 64 };
        }
        let of_sixteen = ["huge", "giant_patch16", "giant_patch14_clip", "giant_patch14_224", "gigantic", "so400m"];
        let others = ["giantopt", "base_patch16_gap"];
        if of_sixteen.iter().chain(&others).any(|part| self.is_named(part)) {
            return 16;
        }
        if self.architecture.starts_with("test_vit") { width / 32 } else { width / 64 }
    }

    /// The MLP's non-linearity by the name.
    fn activation(&self, gated: bool) -> Activation {
        let tanh = ["so400m_patch16_siglip", "giantopt_patch16_siglip", "base_patch32_siglip", "large_patch16_siglip"];
        let of_512 = |part: &str| part != "large_patch16_siglip" || self.architecture.ends_with("_512");
        if gated {
            Activation::Silu
        } else if self.is_named("quickgelu") {
            Activation::QuickGelu
        } else if tanh.iter().any(|part| self.is_named(part) && of_512(part)) {
            Activation::GeluTanh
        } else {
            Activation::Gelu
        }
    }

    /// Checks that there is no tensor that `spec` has no place for.
    fn check_names(&self, spec: &Spec, weights: &Weights) -> Result<()> {
        let vision = &spec.family.vision;
        let blocks = &vision.blocks;
        let layers = [blocks.norm1, blocks.norm2, blocks.out].into_iter().chain(blocks.qkv);
        let mlp = blocks.mlp.into_iter().chain(blocks.gated_mlp.halves.iter().copied());
        let in_block: Vec<&str> = layers.chain(mlp).collect();
        let mut alone = [vision.class_token, vision.registers, vision.positions].map(|tensor| tensor.name).to_vec();
        let mut outside = vec![vision.patch, vision.pre_norm, vision.post_norm];
        if let Some(pool) = vision.attention_pool.filter(|_| spec.pool == Pool::Attention) {
            alone.push(pool.query.name);
            outside.extend(pool.qkv.into_iter().chain(pool.mlp).chain([pool.out, pool.norm]));
        }
        let layer =
            |name: &str| name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias")).unwrap_or("").to_owned();
        for name in weights.names() {
            let known = match name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
                Some((number, rest)) => {
                    number.parse().is_ok_and(|number: usize| number < spec.vision.depth)
                        && (in_block.contains(&layer(rest).as_str()) || blocks.layer_scale.contains(&rest))
                }
                None => alone.contains(&name) || outside.contains(&layer(name).as_str()),
            };
            if !known && !BESIDE.iter().any(|beginning| name.starts_with(beginning)) {
                let shown: String = name.chars().take(80).collect();
                let why = format!("has a tensor `{}`, which none of those has", shown.escape_debug());
                return Err(self.error("architecture", &self.unsupported(&why)));
            }
        }
        Ok(())
    }
}

/// Shapes of tensors, by their names.
struct TensorShapes<'a> {
    weights: &'a Weights,
    timm: &'a Timm<'a>,
}

impl TensorShapes<'_> {
    fn of(&self, name: &str) -> Result<&[usize]> {
        let missing = || self.timm.unsupported(&format!("has no tensor `{name}`"));
        self.weights.shape(name).ok_or_else(|| self.timm.error("architecture", &missing()))
    }

    fn crooked(&self, name: &str) -> Error {
        let shape = self.weights.shape(name).unwrap_or_default();
        let why = self.timm.unsupported(&format!("has a tensor `{name}` of shape {shape:?}"));
        self.timm.error("architecture", &why)
    }
}

/// How many of `tokens` before the patches have a position, and patches along a side, where there are `rows` positions. If there
/// are several ways to read it, patches are `expected` along a side.
fn grid(rows: usize, tokens: usize, expected: usize) -> Option<(usize, usize)> {
    let found = (0..=tokens.min(rows)).filter_map(|prefix| {
        let side = (rows - prefix).isqrt();
        (side > 0 && side * side == rows - prefix).then_some((prefix, side))
    });
    let found: Vec<_> = found.collect();
    found.iter().find(|(_, side)| *side == expected).or(found.first()).copied()
}

#[cfg(test)]
mod tests;
