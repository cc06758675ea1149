//! `bias`: the biases of the image tower.

use super::{Defaults, Learns, MethodPart, MethodSpec, after_probe, dense, weights};
use crate::prompt::{PartShape, weights::WeightShape};

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "bias",
    summary: "the biases of the image tower, shifts of norms included",
    source: "Jia et al. 2022, Ben Zaken et al. 2022",
    learns: Learns::Weights,
    combines: true,
    // On the drawn shapes with 4 images a class four times this rate makes no difference.
    defaults: |request| {
        let learned = Defaults { lr: 1e-3, ..Defaults::BASE };
        dense::or(
            request,
            dense::NORMS_LR,
            after_probe::or(request, (after_probe::NORMS_LR, after_probe::EPOCHS), learned),
        )
    },
    part: |_, _| Ok(Some(MethodPart::whole(PartShape::Weights(WeightShape::Bias)))),
    ..weights::FAMILY
};
