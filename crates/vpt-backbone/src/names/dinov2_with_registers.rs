//! `DINOv2` with register tokens (Darcet et al. 2024), whose positions are resampled with a filter that is as wide as the scale.

use super::{Family, JointNames, TensorName, VisionNames, dinov2, vit};
use crate::spec::{Fields, MAX_REGISTERS, Positions, Resampling, Spec};
use vpt_base::Result;

/// The family.
pub static FAMILY: Family = Family {
    name: "dinov2_with_registers",
    note: "",
    model_types: &["dinov2_with_registers"],
    spec,
    preprocess: None,
    anchor: vit::ANCHOR,
    vision: VisionNames {
        registers: TensorName { name: "embeddings.register_tokens", dimensions: 3 },
        ..dinov2::NAMES
    },
    stored: &[],
    classifier: vit::CLASSIFIER,
    joint: JointNames::NONE,
};

fn spec(root: &Fields) -> Result<Spec> {
    let spec = dinov2::spec(root, &FAMILY, 16)?;
    let registers = root.count("num_register_tokens", 4, MAX_REGISTERS)?;
    Ok(Spec { registers, positions: Some(Positions { prefix: 1, resampling: Resampling::AntialiasedBicubic }), ..spec })
}
