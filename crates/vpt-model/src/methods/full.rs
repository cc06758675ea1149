//! `full`: every weight of the image tower.

use super::{Defaults, Learns, MethodPart, MethodSpec, after_probe, dense, weights};
use crate::prompt::{PartShape, weights::WeightShape};

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "full",
    summary: "every weight of the image tower",
    learns: Learns::Weights,
    // Weights, gradients and moments take what they take.
    limits_memory: false,
    // On the drawn shapes with 4 images a class four times this rate is too much (89.1 % where it gets 92.2 %).
    defaults: |request| {
        let learned = Defaults { lr: 1e-4, weight_decay: 5e-2, ..Defaults::BASE };
        dense::or(request, dense::WEIGHTS_LR, after_probe::or(request, (1e-4, after_probe::EPOCHS), learned))
    },
    part: |_, _| Ok(Some(MethodPart::whole(PartShape::Weights(WeightShape::Full)))),
    ..weights::FAMILY
};
