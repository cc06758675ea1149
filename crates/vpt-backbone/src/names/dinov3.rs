//! `DINOv3` as vision transformers (Siméoni et al. 2025): rotary positions of the patches in the place of learned ones, registers, layer scale, keys
//! without a bias, and in some a gated MLP.

use super::{BlockNames, Family, GatedNames, JointNames, TensorName, VisionNames, dinov2, vit};
use crate::spec::{Fields, MAX_REGISTERS, MlpWidth, Pool, QkvBias, Rotary, Spec, TowerSpec};
use vpt_base::Result;

/// The family.
pub static FAMILY: Family = Family {
    name: "dinov3",
    note: "",
    model_types: &["dinov3_vit"],
    spec,
    preprocess: None,
    anchor: vit::ANCHOR,
    vision: VisionNames {
        registers: TensorName { name: "embeddings.register_tokens", dimensions: 3 },
        positions: TensorName::NONE,
        patch: "embeddings.patch_embeddings",
        blocks: BlockNames {
            prefix: "layer",
            qkv: ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
            out: "attention.o_proj",
            mlp: ["mlp.up_proj", "mlp.down_proj"],
            gated_mlp: GatedNames { halves: &["mlp.gate_proj", "mlp.up_proj"], out: "mlp.down_proj" },
            ..dinov2::NAMES.blocks
        },
        post_norm: "norm",
        ..vit::NAMES
    },
    stored: &[],
    classifier: "",
    joint: JointNames::NONE,
};

/// What transformers 5 writes before the names of blocks.
pub(crate) const NESTED_BLOCKS: &str = "model.layer.";

fn spec(root: &Fields) -> Result<Spec> {
    let tower = root.tower((384, 12, 6), "gelu", 1e-5, &MlpWidth::Size(1536))?;
    for name in ["proj_bias", "mlp_bias"] {
        if !root.flag(name, true)? {
            return Err(root.error(name, "false is not supported"));
        }
    }
    let qkv_bias = QkvBias {
        q: root.flag("query_bias", true)?,
        k: root.flag("key_bias", false)?,
        v: root.flag("value_bias", true)?,
    };
    let vision = TowerSpec { qkv_bias, gated: root.flag("use_gated_mlp", false)?, layer_scale: true, ..tower };
    if !vision.head_dim().is_multiple_of(4) {
        let message = format!("{} makes heads of {}, no multiple of 4", vision.heads, vision.head_dim());
        return Err(root.error("num_attention_heads", &message));
    }
    let theta = root.number("rope_theta", 100.)?;
    if !(theta > 0. && theta < 1e9) {
        return Err(root.error("rope_theta", &format!("must lie between 0 and a billion, not {theta}")));
    }
    let registers = root.count("num_register_tokens", 0, MAX_REGISTERS)?;
    Ok(with_tower(&FAMILY, vision, registers, Rotary { theta }, root.image_and_patch(224, 16)?))
}

/// `DINOv3` with these blocks, for images and patches of these sizes.
fn with_tower(
    family: &'static Family,
    vision: TowerSpec,
    registers: usize,
    rotary: Rotary,
    sizes: (usize, usize),
) -> Spec {
    let spec = vit::with_tower(family, vision, sizes);
    Spec { registers, positions: None, rotary: Some(rotary), pool: Pool::ClassToken, classifier: None, ..spec }
}
