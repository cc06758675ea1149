//! Folders of open_clip: `open_clip_config.json` and weights in open_clip's names.
//!
//! The configuration becomes the same [`Spec`] that transformers' `config.json` of a CLIP does, and tensors are found under
//! transformers' names ([`crate::names::clip`]), so nothing else knows of the form. Absent fields have the defaults of
//! open_clip 3.3 (`CLIPVisionCfg`, `CLIPTextCfg`, `PreprocessCfg`). What changes the result and is not supported is refused by
//! its name; where that concerns texts only, the image tower is read and the reason kept for whoever asks for texts.

mod siglip;

use std::path::Path;

use serde_json::{Map, Value};

use crate::names::clip;
use crate::spec::{
    Activation, Fields, MAX_CONTEXT, MAX_DEPTH, MAX_MLP, MAX_VOCAB, MAX_WIDTH, Positions, QkvBias, Resampling, Spec,
    TextPool, TextSpec, TowerSpec,
};
use crate::tensor_slot::TensorSlot;
use vpt_base::{Error, Result};
use vpt_image::{Preprocess, from_open_clip};

/// The file that says what a model is.
pub const CONFIG: &str = "open_clip_config.json";
/// Where its weights are, the first that is there.
pub const WEIGHTS: [&str; 4] =
    ["open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin"];
/// Tokens of CLIP's vocabulary, the one that open_clip has where no other is named.
const VOCABULARY: usize = 49408;

/// The file with the weights in the folder `dir`, if there is one.
pub(crate) fn weight_file(dir: &Path) -> Option<&'static str> {
    WEIGHTS.into_iter().find(|name| dir.join(name).is_file())
}

/// A model by its configuration.
#[derive(Debug)]
pub(crate) struct OpenClip {
    /// Its architecture; without a text tower where there is none that can be read.
    pub(crate) spec: Spec,
    /// How its images are prepared.
    pub(crate) preprocess: Preprocess,
    /// The reason why it has no text tower.
    pub(crate) without_texts: Option<String>,
}

impl OpenClip {
    /// The model that the bytes of an `open_clip_config.json` describe; `path` names it in errors.
    ///
    /// # Errors
    /// They are no such configuration, or of a model that is not supported.
    pub(crate) fn from_json(bytes: &[u8], path: &Path) -> Result<Self> {
        let json: Value =
            serde_json::from_slice(bytes).map_err(|error| Error::weights(path, format!("not a JSON file: {error}")))?;
        let Value::Object(root) = &json else {
            return Err(Error::weights(path, "not a configuration of open_clip: no JSON object"));
        };
        let root = Fields::new(path, root);
        let model = root.section("model_cfg", "model_cfg.")?;
        if !model.is_present() {
            return Err(root.error("model_cfg", "missing"));
        }
        let vision = model.section("vision_cfg", "model_cfg.vision_cfg.")?;
        let quick = model.flag("quick_gelu", false)?;
        let embed_dim = model.size("embed_dim", None, MAX_MLP)?;
        let siglip = vision.text("timm_model_name")?.filter(|name| siglip::is_siglip(name));
        let mut spec = match siglip {
            Some(name) => siglip::image_tower(&vision, name, embed_dim)?,
            None => Spec { projection: Some(embed_dim), ..image_tower(&vision, quick)? },
        };
        if siglip.is_none() && model.get("init_logit_bias").is_some() {
            return Err(model.error("init_logit_bias", "logits with a bias (SigLIP) are not supported"));
        }
        let text = model.section("text_cfg", "model_cfg.text_cfg.")?;
        let without_texts = match siglip {
            Some(_) => siglip::reason_against_texts(&text)?,
            None => reason_against_texts(&text)?,
        };
        if without_texts.is_none() {
            spec.text = Some(match siglip {
                Some(_) => siglip::text_tower(&text, embed_dim)?,
                None => text_tower(&text, quick, embed_dim)?,
            });
        }
        let none = Map::new();
        let fields = match root.get("preprocess_cfg") {
            None => &none,
            Some(Value::Object(fields)) => fields,
            Some(_) => return Err(root.error("preprocess_cfg", "must be an object")),
        };
        let preprocess = from_open_clip(fields, spec.image_size, path)?;
        Ok(Self { spec, preprocess, without_texts })
    }
}

/// The first of `fields` whose value is not `plain`, with that value.
fn unusual<'a>(f: &Fields<'a>, fields: &[(&'static str, &[Value])]) -> Option<(&'static str, &'a Value)> {
    fields
        .iter()
        .find_map(|(name, plain)| f.get(name).filter(|value| !plain.contains(value)).map(|value| (*name, value)))
}

fn image_tower(f: &Fields, quick: bool) -> Result<Spec> {
    if let Some(name) = f.text("timm_model_name")? {
        return Err(f.error("timm_model_name", &format!("image towers of timm ({name}) are not supported")));
    }
    if f.get("layers").is_some_and(Value::is_array) {
        return Err(f.error("layers", "image towers of convolutions (ResNet) are not supported"));
    }
    let plain: &[(&'static str, &[Value])] = &[
        ("ls_init_value", &[]),
        ("no_ln_pre", &[false.into()]),
        ("attentional_pool", &[false.into()]),
        ("pool_type", &["tok".into()]),
        ("final_ln_after_pool", &[false.into()]),
        ("block_type", &["default".into()]),
        ("qk_norm", &[false.into()]),
        ("scaled_cosine_attn", &[false.into()]),
        ("scale_heads", &[false.into()]),
        ("scale_attn_inner", &[false.into()]),
        ("scale_attn", &[false.into()]),
        ("scale_fc", &[false.into()]),
    ];
    if let Some((name, value)) = unusual(f, plain) {
        return Err(f.error(name, &format!("{value} is not supported")));
    }
    // Positions of sines are stored as learned ones are.
    f.one_of("pos_embed_type", &["learnable", "sin_cos_2d"])?;
    let (image_size, patch_size) = f.image_and_patch(224, 16)?;
    let width = f.size("width", Some(768), MAX_WIDTH)?;
    let head_width = f.size("head_width", Some(64), MAX_WIDTH)?;
    if width % head_width != 0 {
        return Err(f.error("head_width", &format!("{head_width} does not divide the width {width}")));
    }
    let spec = clip::image_spec(tower(f, width, width / head_width, quick)?, (image_size, patch_size));
    Ok(Spec { positions: Some(Positions { prefix: 1, resampling: Resampling::AntialiasedBicubic }), ..spec })
}

/// The reason why the text tower cannot be read, if there is one.
fn reason_against_texts(f: &Fields) -> Result<Option<String>> {
    if let Some(name) = f.text("hf_model_name")? {
        return Ok(Some(format!("it is a tower of transformers ({name})")));
    }
    if let Some(name) = f.text("hf_tokenizer_name")? {
        return Ok(Some(format!("its tokenizer is not CLIP's ({name})")));
    }
    let plain: &[(&'static str, &[Value])] = &[
        ("no_causal_mask", &[false.into()]),
        ("pool_type", &["argmax".into()]),
        ("proj_bias", &[false.into()]),
        ("proj_type", &["linear".into()]),
        ("embed_cls", &[false.into()]),
        ("final_ln_after_pool", &[false.into()]),
        ("ls_init_value", &[]),
        ("vocab_size", &[VOCABULARY.into()]),
        ("tokenizer_kwargs", &[Map::new().into()]),
        ("block_type", &["default".into()]),
    ];
    Ok(unusual(f, plain).map(|(name, value)| format!("text_cfg.{name}: {value} is not supported")))
}

/// Width, heads and length of a text tower; `shortest` says what its least three tokens are.
fn text_sizes(f: &Fields, shortest: &str) -> Result<(usize, usize, usize)> {
    let width = f.size("width", Some(512), MAX_WIDTH)?;
    let heads = f.size("heads", Some(8), MAX_WIDTH)?;
    if width % heads != 0 {
        return Err(f.error("heads", &format!("{heads} heads do not divide the width {width}")));
    }
    let context = f.size("context_length", Some(77), MAX_CONTEXT)?;
    if context < 3 {
        return Err(f.error("context_length", &format!("must be at least 3: {shortest}")));
    }
    Ok((width, heads, context))
}

fn text_tower(f: &Fields, quick: bool, projection: usize) -> Result<TextSpec> {
    let (width, heads, context) = text_sizes(f, "start token, end token and one between")?;
    Ok(TextSpec {
        tower: tower(f, width, heads, quick)?,
        causal: true,
        pool: TextPool::End,
        vocab: f.size("vocab_size", Some(VOCABULARY), MAX_VOCAB)?,
        context,
        // The largest number of a text, as `argmax` finds it.
        eos_token_id: 2,
        projection,
        projection_bias: false,
    })
}

fn tower(f: &Fields, width: usize, heads: usize, quick: bool) -> Result<TowerSpec> {
    let depth = f.size("layers", Some(12), MAX_DEPTH)?;
    let ratio = f.number("mlp_ratio", 4.)?;
    let mlp = (width as f64 * ratio) as usize;
    if !(1..=MAX_MLP).contains(&mlp) {
        return Err(f.error("mlp_ratio", &format!("gives an MLP of width {mlp}, not 1 to {MAX_MLP}")));
    }
    let settings = f.section("act_kwargs", "act_kwargs.")?;
    let activation = match settings.text("approximate")?.unwrap_or("none") {
        "tanh" if !quick => Activation::GeluTanh,
        _ if quick => Activation::QuickGelu,
        "none" => Activation::Gelu,
        other => return Err(settings.error("approximate", &format!("{other} is not none or tanh"))),
    };
    let eps = f.section("norm_kwargs", "norm_kwargs.")?.number("eps", 1e-5)? as f32;
    if !(eps > 0. && eps < 1.) {
        return Err(f.error("norm_kwargs.eps", &format!("must lie between 0 and 1, not {eps}")));
    }
    let qkv_bias = QkvBias::all(true);
    Ok(TowerSpec { width, depth, heads, mlp, gated: false, activation, eps, qkv_bias, layer_scale: false })
}

/// The tensors of transformers that open_clip's `name` holds. Those that have no counterpart keep their names.
pub(crate) fn slots(name: &str) -> Vec<(String, TensorSlot)> {
    // Of training programs, of models that were saved with both towers apart.
    let bare = name.strip_prefix("module.").unwrap_or(name);
    let found = match bare.strip_prefix("visual.") {
        Some(rest) if rest.starts_with("trunk.") => siglip::image_slots(&rest["trunk.".len()..]),
        Some(rest) => image_slots(rest),
        None => text_slots(bare.strip_prefix("text.").unwrap_or(bare)),
    };
    if found.is_empty() { vec![(bare.to_owned(), TensorSlot::Whole)] } else { found }
}

fn image_slots(name: &str) -> Vec<(String, TensorSlot)> {
    if name == "proj" {
        return vec![("visual_projection.weight".to_owned(), TensorSlot::Transposed)];
    }
    let one = match name {
        "conv1.weight" => "embeddings.patch_embedding.weight",
        "class_embedding" => "embeddings.class_embedding",
        "positional_embedding" => "embeddings.position_embedding.weight",
        "ln_pre.weight" => "pre_layrnorm.weight",
        "ln_pre.bias" => "pre_layrnorm.bias",
        "ln_post.weight" => "post_layernorm.weight",
        "ln_post.bias" => "post_layernorm.bias",
        _ => return block_slots(name, "vision_model."),
    };
    vec![(format!("vision_model.{one}"), TensorSlot::Whole)]
}

fn text_slots(name: &str) -> Vec<(String, TensorSlot)> {
    if name == "text_projection" {
        return vec![("text_projection.weight".to_owned(), TensorSlot::Transposed)];
    }
    let one = match name {
        // With a bias it is a layer: SigLIP's.
        "text_projection.weight" => "head.weight",
        "text_projection.bias" => "head.bias",
        "token_embedding.weight" => "embeddings.token_embedding.weight",
        "positional_embedding" => "embeddings.position_embedding.weight",
        "ln_final.weight" => "final_layer_norm.weight",
        "ln_final.bias" => "final_layer_norm.bias",
        _ => return block_slots(name, "text_model."),
    };
    vec![(format!("text_model.{one}"), TensorSlot::Whole)]
}

/// Those of a block, `transformer.resblocks.N.…`.
fn block_slots(name: &str, tower: &str) -> Vec<(String, TensorSlot)> {
    let Some((number, rest)) = name.strip_prefix("transformer.resblocks.").and_then(|rest| rest.split_once('.')) else {
        return Vec::new();
    };
    let Some((layer, tensor)) = rest.rsplit_once(['.', '_']) else { return Vec::new() };
    let at = |layer: &str| format!("{tower}encoder.layers.{number}.{layer}.{tensor}");
    let layer = match layer {
        "ln_1" => "layer_norm1",
        "ln_2" => "layer_norm2",
        "attn.in_proj" => {
            let of = |(third, layer)| (at(&format!("self_attn.{layer}")), TensorSlot::Third(third));
            return ["q_proj", "k_proj", "v_proj"].into_iter().enumerate().map(of).collect();
        }
        "attn.out_proj" => "self_attn.out_proj",
        "mlp.c_fc" => "mlp.fc1",
        "mlp.c_proj" => "mlp.fc2",
        _ => return Vec::new(),
    };
    vec![(at(layer), TensorSlot::Whole)]
}

#[cfg(test)]
mod tests;
