//! `norm`: scales and shifts of the layer norms of the image tower.

use super::{Defaults, Learns, MethodPart, MethodSpec, after_probe, dense, weights};
use crate::prompt::{PartShape, weights::WeightShape};

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "norm",
    summary: "scales and shifts of the layer norms of the image tower",
    source: "Basu et al. 2024",
    learns: Learns::Weights,
    combines: true,
    // Scales are folded into the matrices behind them, so a step takes what one of all weights takes.
    limits_memory: false,
    defaults: |request| {
        let learned = Defaults { lr: 1e-3, ..Defaults::BASE };
        dense::or(
            request,
            dense::NORMS_LR,
            after_probe::or(request, (after_probe::NORMS_LR, after_probe::EPOCHS), learned),
        )
    },
    part: |_, _| Ok(Some(MethodPart::whole(PartShape::Weights(WeightShape::Norm)))),
    ..weights::FAMILY
};
