//! The encoder of MAE (He et al. 2022): ViT, whose fixed positions are stored like learned ones.

use super::{Family, vit};

/// The family.
pub static FAMILY: Family = Family {
    name: "vit",
    note: "",
    model_types: &["vit_mae"],
    spec: |root| vit::spec(root, &FAMILY),
    preprocess: None,
    anchor: vit::ANCHOR,
    vision: vit::NAMES,
    stored: &[],
    classifier: vit::CLASSIFIER,
    joint: super::JointNames::NONE,
};
