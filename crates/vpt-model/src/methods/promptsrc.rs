//! `promptsrc`: prompts of `ivlp`, tied to what the frozen backbone makes of images and texts, averaged over the epochs.

use super::{MethodSpec, Texts, ivlp, texts};

/// Texts whose mean the learned ones stay close to.
const TEMPLATES: &[&str] = &[
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}.",
    "a close-up of a {}.",
    "an image with one {}.",
    "a photo of a small {}.",
    "a photo of a large {}.",
    "a blurred photo of a {}.",
    "a drawing of a {}.",
];

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "promptsrc",
    summary: "as `ivlp`, tied to the frozen backbone and averaged over the epochs",
    source: "Khattak et al. 2023",
    texts: Texts::Learned { tied_to: TEMPLATES },
    part: |request, options| ivlp::part(request, options, "promptsrc"),
    ..texts::BOTH_TOWERS
};
