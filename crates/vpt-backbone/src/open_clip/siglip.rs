//! SigLIP in open_clip's form: an image tower of timm under `visual.trunk.`, and texts that are read both ways.
//!
//! The configuration names the image tower and says nothing more of it, so its sizes are those that timm 1.0.31 has by this
//! name. Tensors are found under transformers' names ([`crate::names::siglip`]).

use serde_json::Map;

use super::{text_sizes, tower, unusual};
use crate::names::siglip;
use crate::spec::{
    Activation, Fields, MAX_VOCAB, Pool, Positions, QkvBias, Resampling, Spec, TextPool, TextSpec, TowerSpec,
};
use crate::tensor_slot::TensorSlot;
use vpt_base::Result;

/// Whether timm's `name` is that of an image tower of SigLIP.
pub(super) fn is_siglip(name: &str) -> bool {
    parse(name).is_some()
}

/// Size, patch and image size in a name like `vit_base_patch16_siglip_224`.
fn parse(name: &str) -> Option<(&str, usize, usize)> {
    let (size, rest) = name.strip_prefix("vit_")?.split_once("_patch")?;
    let (patch, image) = rest.split_once("_siglip_")?;
    Some((size, patch.parse().ok()?, image.parse().ok()?))
}

/// The image tower that timm calls `name`, whose features have `embed_dim` values.
pub(super) fn image_tower(f: &Fields, name: &str, embed_dim: usize) -> Result<Spec> {
    let sizes = parse(name).and_then(|(size, patch, image)| {
        let sizes = match size {
            "base" => (768, 12, 12, 3072),
            "large" => (1024, 24, 16, 4096),
            "so400m" => (1152, 27, 16, 4304),
            "giantopt" => (1536, 40, 16, 6144),
            _ => return None,
        };
        // As timm has them: the first generation's were trained with the approximation, too.
        let tanh = matches!((size, patch, image), ("base", 32, _) | ("large", 16, 512) | ("so400m", 16, _))
            || size == "giantopt";
        matches!(patch, 14 | 16 | 32).then_some((sizes, patch, tanh))
    });
    let Some(((width, depth, heads, mlp), patch_size, tanh)) = sizes else {
        return Err(f.error("timm_model_name", &format!("image towers of timm ({name}) are not supported")));
    };
    f.one_of("timm_pool", &["map"])?;
    f.one_of("timm_proj", &["none"])?;
    if embed_dim != width {
        return Err(f.error("timm_model_name", &format!("{name} has width {width}, embed_dim is {embed_dim}")));
    }
    let (image_size, _) = f.image_and_whole_patches(224, patch_size)?;
    let activation = if tanh { Activation::GeluTanh } else { Activation::Gelu };
    let qkv_bias = QkvBias::all(true);
    Ok(Spec {
        family: &siglip::FAMILY,
        vision: TowerSpec {
            width,
            depth,
            heads,
            mlp,
            gated: false,
            activation,
            eps: 1e-6,
            qkv_bias,
            layer_scale: false,
        },
        image_size,
        patch_size,
        patch_bias: true,
        class_token: false,
        registers: 0,
        positions: Some(Positions { prefix: 0, resampling: Resampling::AntialiasedBicubic }),
        rotary: None,
        pre_norm: false,
        pool: Pool::Attention,
        classifier: None,
        projection: None,
        text: None,
    })
}

/// The reason why the text tower cannot be read, if there is one.
pub(super) fn reason_against_texts(f: &Fields) -> Result<Option<String>> {
    if let Some(name) = f.text("hf_model_name")? {
        return Ok(Some(format!("it is a tower of transformers ({name})")));
    }
    for (name, expected) in [("no_causal_mask", true), ("proj_bias", true)] {
        if f.flag(name, false)? != expected {
            return Ok(Some(format!("text_cfg.{name}: {} is not supported beside SigLIP's images", !expected)));
        }
    }
    let mut cleaned = Map::new();
    cleaned.insert("clean".to_owned(), "canonicalize".into());
    let plain: &[(&'static str, &[serde_json::Value])] = &[
        ("proj_type", &["linear".into()]),
        ("embed_cls", &[false.into()]),
        ("final_ln_after_pool", &[false.into()]),
        ("ls_init_value", &[]),
        ("tokenizer_kwargs", &[cleaned.into()]),
        ("block_type", &["default".into()]),
    ];
    let last = f.text("pool_type")? == Some("last");
    let first = unusual(f, plain).map(|(name, value)| format!("text_cfg.{name}: {value} is not supported"));
    Ok(first.or((!last).then(|| "text_cfg.pool_type: only last is supported beside SigLIP's images".to_owned())))
}

/// The text tower beside images of this `width`.
pub(super) fn text_tower(f: &Fields, projection: usize) -> Result<TextSpec> {
    let (width, heads, context) = text_sizes(f, "end token and two more")?;
    Ok(TextSpec {
        tower: tower(f, width, heads, false)?,
        causal: false,
        vocab: f.size("vocab_size", Some(49408), MAX_VOCAB)?,
        context,
        pool: TextPool::LastPosition,
        eos_token_id: 1,
        projection,
        projection_bias: true,
    })
}

/// The tensors of transformers that timm's `name`, without `visual.trunk.`, holds.
pub(super) fn image_slots(name: &str) -> Vec<(String, TensorSlot)> {
    let Some((layer, tensor)) = name.rsplit_once('.') else {
        let one = match name {
            "pos_embed" => ("embeddings.position_embedding.weight", TensorSlot::OnlyOne),
            _ => return Vec::new(),
        };
        return vec![(format!("vision_model.{}", one.0), one.1)];
    };
    let at = |layer: &str| format!("vision_model.{layer}.{tensor}");
    let thirds = |before: &str| {
        let of = |(third, layer)| (at(&format!("{before}.{layer}")), TensorSlot::Third(third));
        ["q_proj", "k_proj", "v_proj"].into_iter().enumerate().map(of).collect()
    };
    if let Some((number, layer)) = layer.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
        let block = format!("encoder.layers.{number}");
        let layer = match layer {
            "attn.qkv" => return thirds(&format!("{block}.self_attn")),
            "attn.proj" => "self_attn.out_proj",
            "norm1" => "layer_norm1",
            "norm2" => "layer_norm2",
            "mlp.fc1" | "mlp.fc2" => layer,
            _ => return Vec::new(),
        };
        return vec![(at(&format!("{block}.{layer}")), TensorSlot::Whole)];
    }
    let layer = match layer {
        "attn_pool.kv" => {
            let of = |(half, layer)| (at(&format!("head.attention.{layer}")), TensorSlot::Half(half));
            return ["k_proj", "v_proj"].into_iter().enumerate().map(of).collect();
        }
        "attn_pool" if tensor == "latent" => return vec![("vision_model.head.probe".to_owned(), TensorSlot::Whole)],
        "patch_embed.proj" => "embeddings.patch_embedding",
        "norm" => "post_layernorm",
        "attn_pool.q" => "head.attention.q_proj",
        "attn_pool.proj" => "head.attention.out_proj",
        "attn_pool.norm" => "head.layernorm",
        "attn_pool.mlp.fc1" => "head.mlp.fc1",
        "attn_pool.mlp.fc2" => "head.mlp.fc2",
        _ => return Vec::new(),
    };
    vec![(at(layer), TensorSlot::Whole)]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::open_clip::{OpenClip, slots};

    /// The configuration of ViT-B-16-SigLIP.
    fn config() -> Value {
        json!({"model_cfg": {"embed_dim": 768, "init_logit_bias": -10, "custom_text": true,
            "vision_cfg": {"image_size": 224, "timm_model_name": "vit_base_patch16_siglip_224",
                "timm_model_pretrained": false, "timm_pool": "map", "timm_proj": "none"},
            "text_cfg": {"context_length": 64, "vocab_size": 32000, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
                "tokenizer_kwargs": {"clean": "canonicalize"}, "width": 768, "heads": 12, "layers": 12,
                "no_causal_mask": true, "proj_bias": true, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}},
            "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize_mode": "squash"}})
    }

    fn read(config: &Value) -> Result<OpenClip> {
        OpenClip::from_json(config.to_string().as_bytes(), Path::new("open_clip_config.json"))
    }

    #[test]
    fn a_configuration_of_siglip_is_read_as_that_of_transformers_but_for_what_timm_does() {
        let OpenClip { spec, preprocess, without_texts } = read(&config()).unwrap();
        let transformers = Spec::from_json(br#"{"model_type": "siglip"}"#, Path::new("config.json")).unwrap();
        let exact = |tower: TowerSpec| TowerSpec { activation: Activation::Gelu, ..tower };
        let text = transformers.text.clone().map(|text| TextSpec { tower: exact(text.tower.clone()), ..text });
        let expected = Spec {
            vision: exact(transformers.vision.clone()),
            positions: Some(Positions { prefix: 0, resampling: Resampling::AntialiasedBicubic }),
            rotary: None,
            classifier: None,
            text,
            ..transformers
        };
        assert_eq!((spec, without_texts), (expected, None));
        assert_eq!(preprocess.output_size(), Some((224, 224)));

        let mut so400m = config();
        so400m["model_cfg"]["embed_dim"] = 1152.into();
        so400m["model_cfg"]["vision_cfg"]["image_size"] = 384.into();
        so400m["model_cfg"]["vision_cfg"]["timm_model_name"] = "vit_so400m_patch14_siglip_384".into();
        let spec = read(&so400m).unwrap().spec;
        assert_eq!((spec.grid(), spec.vision.head_dim(), spec.vision.mlp), (27, 72, 4304));
        assert_eq!(spec.vision.activation, Activation::Gelu);
        so400m["model_cfg"]["vision_cfg"]["timm_model_name"] = "vit_so400m_patch16_siglip_384".into();
        assert_eq!(read(&so400m).unwrap().spec.vision.activation, Activation::GeluTanh);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (field, value, part) in [
            ("timm_model_name", json!("vit_base_patch16_siglip_gap_224"), "(vit_base_patch16_siglip_gap_224) are not"),
            ("timm_model_name", json!("vit_small_patch16_siglip_224"), "(vit_small_patch16_siglip_224) are not"),
            ("timm_model_name", json!("vit_large_patch16_siglip_256"), "has width 1024, embed_dim is 768"),
            ("timm_pool", json!("avg"), "timm_pool: \"avg\" is not supported"),
            ("timm_proj", json!("linear"), "timm_proj: \"linear\" is not supported"),
            ("image_size", json!(8), "image_size: 8"),
        ] {
            let mut config = config();
            config["model_cfg"]["vision_cfg"][field] = value;
            let message = read(&config).unwrap_err().to_string();
            assert!(message.contains(part) && !message.contains('\n'), "{message}");
        }
        for (field, value, part) in [
            ("no_causal_mask", json!(false), "no_causal_mask: false"),
            ("proj_type", json!("none"), "proj_type: \"none\""),
            ("pool_type", json!("argmax"), "pool_type: only last"),
            ("tokenizer_kwargs", json!({}), "tokenizer_kwargs: {}"),
        ] {
            let mut config = config();
            config["model_cfg"]["text_cfg"][field] = value;
            let found = read(&config).unwrap();
            let reason = found.without_texts.unwrap();
            assert!(found.spec.text.is_none() && reason.contains(part), "{reason}");
        }
    }

    #[test]
    fn tensors_have_the_names_of_transformers() {
        for (name, expected) in [
            ("visual.trunk.pos_embed", &["vision_model.embeddings.position_embedding.weight"][..]),
            ("visual.trunk.patch_embed.proj.bias", &["vision_model.embeddings.patch_embedding.bias"]),
            ("visual.trunk.attn_pool.latent", &["vision_model.head.probe"]),
            (
                "visual.trunk.attn_pool.kv.weight",
                &["vision_model.head.attention.k_proj.weight", "vision_model.head.attention.v_proj.weight"],
            ),
            ("visual.trunk.blocks.3.mlp.fc2.bias", &["vision_model.encoder.layers.3.mlp.fc2.bias"]),
            ("visual.trunk.norm.weight", &["vision_model.post_layernorm.weight"]),
            ("text.text_projection.bias", &["text_model.head.bias"]),
            ("logit_bias", &["logit_bias"]),
        ] {
            let found: Vec<_> = slots(name).into_iter().map(|(name, _)| name).collect();
            assert_eq!(found, expected);
        }
        let qkv = slots("visual.trunk.blocks.11.attn.qkv.bias");
        assert_eq!(qkv[2], ("vision_model.encoder.layers.11.self_attn.v_proj.bias".to_owned(), TensorSlot::Third(2)));
    }
}
