//! Distilled `DeiT` (Touvron et al. 2021): ViT with a second token before the patches, which has a position of its own. `DeiT`
//! without distillation is published as [`super::vit`].

use super::{Family, TensorName, VisionNames, vit};
use crate::spec::{Fields, Positions, Resampling, Spec};
use vpt_base::Result;

/// The family.
pub static FAMILY: Family = Family {
    name: "vit",
    note: "",
    model_types: &["deit"],
    spec,
    preprocess: None,
    anchor: vit::ANCHOR,
    vision: VisionNames {
        registers: TensorName { name: "embeddings.distillation_token", dimensions: 3 },
        ..vit::NAMES
    },
    stored: &[],
    classifier: vit::CLASSIFIER,
    joint: super::JointNames::NONE,
};

fn spec(root: &Fields) -> Result<Spec> {
    let spec = vit::spec(root, &FAMILY)?;
    Ok(Spec { registers: 1, positions: Some(Positions { prefix: 2, resampling: Resampling::Bicubic }), ..spec })
}
