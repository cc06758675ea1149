//! CLIP (Radford et al. 2021): both towers, or its image tower published on its own. A norm before the first block, a
//! projection, and usually a text tower.

use super::{Anchor, BlockNames, Family, GatedNames, JointNames, TensorName, TextNames, VisionNames, vit};
use crate::spec::{Fields, MAX_CONTEXT, MAX_MLP, MAX_VOCAB, MlpWidth, Spec, TextPool, TextSpec, TowerSpec};
use vpt_base::Result;
use vpt_image::preprocess::Preprocess;

/// The family.
pub static FAMILY: Family = Family {
    name: "clip",
    note: "",
    model_types: &["clip", "clip_vision_model"],
    spec,
    // Every OpenAI-style CLIP is prepared alike.
    preprocess: Some(Preprocess::clip),
    anchor: Anchor { tower: "vision_model.", tensor: "embeddings.class_embedding" },
    vision: NAMES,
    stored: &[],
    classifier: "",
    joint: JointNames {
        projection: "visual_projection.weight",
        logit_scale: "logit_scale",
        logit_bias: "",
        text: Some(&TEXT),
    },
};

pub(super) const NAMES: VisionNames = VisionNames {
    class_token: TensorName { name: "vision_model.embeddings.class_embedding", dimensions: 1 },
    registers: TensorName::NONE,
    positions: TensorName { name: "vision_model.embeddings.position_embedding.weight", dimensions: 2 },
    patch: "vision_model.embeddings.patch_embedding",
    // So it is spelled in every checkpoint.
    pre_norm: "vision_model.pre_layrnorm",
    blocks: BlockNames { prefix: "vision_model.encoder.layers", ..BLOCKS },
    post_norm: "vision_model.post_layernorm",
    attention_pool: None,
};

pub(super) const BLOCKS: BlockNames = BlockNames {
    prefix: "",
    norm1: "layer_norm1",
    qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    out: "self_attn.out_proj",
    norm2: "layer_norm2",
    mlp: ["mlp.fc1", "mlp.fc2"],
    gated_mlp: GatedNames::NONE,
    layer_scale: ["", ""],
};

static TEXT: TextNames = TEXT_NAMES;

pub(super) const TEXT_NAMES: TextNames = TextNames {
    tokens: "text_model.embeddings.token_embedding.weight",
    positions: "text_model.embeddings.position_embedding.weight",
    blocks: BlockNames { prefix: "text_model.encoder.layers", ..BLOCKS },
    final_norm: "text_model.final_layer_norm",
    projection: "text_projection.weight",
    projection_bias: "text_projection.bias",
};

fn spec(root: &Fields) -> Result<Spec> {
    if root.text("model_type")? == Some("clip") { both_towers(root) } else { lone_image_tower(root) }
}

/// Both towers; either section may be missing or hold only what differs from the defaults.
fn both_towers(root: &Fields) -> Result<Spec> {
    // An older form, written by transformers before 4.27: where it is present it replaces the section altogether.
    let section = |name: &'static str, old: &'static str, prefix: &'static str, old_prefix: &'static str| {
        root.section(old, old_prefix).and_then(|f| if f.is_present() { Ok(f) } else { root.section(name, prefix) })
    };
    let v = section("vision_config", "vision_config_dict", "vision_config.", "vision_config_dict.")?;
    let t = section("text_config", "text_config_dict", "text_config.", "text_config_dict.")?;
    let projection = root.size("projection_dim", Some(512), MAX_MLP)?;
    let text = TextSpec {
        tower: t.tower((512, 12, 8), "quick_gelu", 1e-5, &MlpWidth::Size(2048))?,
        causal: true,
        pool: TextPool::End,
        vocab: t.size("vocab_size", Some(49408), MAX_VOCAB)?,
        context: t.size("max_position_embeddings", Some(77), MAX_CONTEXT)?,
        eos_token_id: t.token_id("eos_token_id", 49407)?,
        projection,
        projection_bias: false,
    };
    if text.context < 3 {
        return Err(t.error("max_position_embeddings", "must be at least 3: start token, end token and one between"));
    }
    Ok(Spec { projection: Some(projection), text: Some(text), ..image_tower(&v)? })
}

/// The image tower published on its own, with or without its projection.
fn lone_image_tower(root: &Fields) -> Result<Spec> {
    let projection = if root.names_architecture("CLIPVisionModelWithProjection") {
        Some(root.size("projection_dim", Some(512), MAX_MLP)?)
    } else {
        None
    };
    Ok(Spec { projection, ..image_tower(root)? })
}

fn image_tower(f: &Fields) -> Result<Spec> {
    let sizes = f.image_and_patch(224, 32)?;
    Ok(image_spec(f.tower((768, 12, 12), "quick_gelu", 1e-5, &MlpWidth::Size(3072))?, sizes))
}

/// CLIP's image tower of these blocks, for images and patches of these sizes, without its projection.
pub(crate) fn image_spec(vision: TowerSpec, sizes: (usize, usize)) -> Spec {
    Spec { patch_bias: false, pre_norm: true, classifier: None, ..vit::with_tower(&FAMILY, vision, sizes) }
}
