//! `DINOv2` (Oquab et al. 2023): layer scale, and in the largest a gated MLP.

use super::{BlockNames, Family, GatedNames, JointNames, VisionNames, vit};
use crate::spec::{Activation, Fields, MlpWidth, Pool, Spec, TowerSpec};
use vpt_base::Result;

/// The family.
pub static FAMILY: Family = Family {
    name: "dinov2",
    note: "",
    model_types: &["dinov2"],
    spec: |root| spec(root, &FAMILY, 14),
    preprocess: None,
    anchor: vit::ANCHOR,
    vision: NAMES,
    stored: &[],
    classifier: vit::CLASSIFIER,
    joint: JointNames::NONE,
};

pub(super) const NAMES: VisionNames = VisionNames {
    blocks: BlockNames {
        norm1: "norm1",
        norm2: "norm2",
        mlp: ["mlp.fc1", "mlp.fc2"],
        gated_mlp: GatedNames { halves: &["mlp.weights_in"], out: "mlp.weights_out" },
        layer_scale: ["layer_scale1.lambda1", "layer_scale2.lambda1"],
        ..vit::NAMES.blocks
    },
    ..vit::NAMES
};

/// A backbone of `family`, without registers, whose patches are of `patch` pixels unless the configuration says otherwise.
pub(super) fn spec(root: &Fields, family: &'static Family, patch: usize) -> Result<Spec> {
    let tower = root.tower((768, 12, 12), "gelu", 1e-6, &MlpWidth::Ratio(4.0))?;
    let mut vision = TowerSpec { layer_scale: true, ..tower };
    if root.flag("use_swiglu_ffn", false)? {
        // Two thirds of the width, so that three layers have the parameters of two, and a multiple of eight; `hidden_act` is
        // not asked.
        let mlp = (vision.mlp * 2 / 3).next_multiple_of(8);
        if mlp == 0 {
            return Err(root.error("mlp_ratio", "gives an MLP without hidden units"));
        }
        vision = TowerSpec { mlp, gated: true, activation: Activation::Silu, ..vision };
    }
    let sizes = root.image_and_patch(224, patch)?;
    Ok(Spec { classifier: Some(Pool::ClassTokenAndMean), ..vit::with_tower(family, vision, sizes) })
}
