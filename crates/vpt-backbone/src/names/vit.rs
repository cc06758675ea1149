//! ViT (Dosovitskiy et al. 2021), and whatever else is published in that form, as DINO (Caron et al. 2021).

use super::{Anchor, BlockNames, Family, GatedNames, JointNames, TensorName, VisionNames};
use crate::spec::{Fields, MlpWidth, Pool, Positions, Resampling, Spec, TowerSpec};
use vpt_base::Result;

/// The family.
pub static FAMILY: Family = Family {
    name: "vit",
    note: "",
    model_types: &["vit"],
    spec: |root| spec(root, &FAMILY),
    preprocess: None,
    anchor: ANCHOR,
    vision: NAMES,
    stored: &[],
    classifier: CLASSIFIER,
    joint: JointNames::NONE,
};

pub(super) const ANCHOR: Anchor = Anchor { tower: "", tensor: "embeddings.cls_token" };

pub(super) const CLASSIFIER: &str = "classifier";

pub(super) const NAMES: VisionNames = VisionNames {
    class_token: TensorName { name: "embeddings.cls_token", dimensions: 3 },
    registers: TensorName::NONE,
    positions: TensorName { name: "embeddings.position_embeddings", dimensions: 3 },
    patch: "embeddings.patch_embeddings.projection",
    pre_norm: "",
    blocks: BlockNames {
        prefix: "encoder.layer",
        norm1: "layernorm_before",
        qkv: ["attention.attention.query", "attention.attention.key", "attention.attention.value"],
        out: "attention.output.dense",
        norm2: "layernorm_after",
        mlp: ["intermediate.dense", "output.dense"],
        gated_mlp: GatedNames::NONE,
        layer_scale: ["", ""],
    },
    post_norm: "layernorm",
    attention_pool: None,
};

/// A backbone of `family`, which is ViT or like it.
pub(super) fn spec(root: &Fields, family: &'static Family) -> Result<Spec> {
    let sizes = root.image_and_patch(224, 16)?;
    Ok(with_tower(family, root.tower((768, 12, 12), "gelu", 1e-12, &MlpWidth::Size(3072))?, sizes))
}

/// ViT with these blocks, for images and patches of these sizes.
pub(super) fn with_tower(family: &'static Family, vision: TowerSpec, (image_size, patch_size): (usize, usize)) -> Spec {
    Spec {
        family,
        vision,
        image_size,
        patch_size,
        patch_bias: true,
        class_token: true,
        registers: 0,
        positions: Some(Positions { prefix: 1, resampling: Resampling::Bicubic }),
        rotary: None,
        pre_norm: false,
        pool: Pool::ClassToken,
        classifier: Some(Pool::ClassToken),
        projection: None,
        text: None,
    }
}
