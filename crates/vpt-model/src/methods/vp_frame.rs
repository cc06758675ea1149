//! `vp-frame`: the image shrunk, prompt pixels around it.

use super::settings::{DefaultText, settings};
use super::{MethodPart, MethodSpec, pixels, spec::HEAD_OPTIONS};
use crate::prompt::{PartShape, pixels::PixelShape};

settings! {
    /// The shrunk image.
    pub struct FrameOptions {
        Method {
            /// Side of the shrunk image in pixels
            inner_size: Option<usize> => {
                value: "PIXELS",
                default: DefaultText::Words(
                    "four fifths of the image size; with `label_map` 128 at 224 pixels, in proportion elsewhere",
                ),
                lacking: "shrunk image",
            }
        }
    }
}

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "vp-frame",
    summary: "pixels around the shrunk image",
    source: "Tsao et al. 2024",
    options: &[HEAD_OPTIONS, &["label_map", "inner_size"]],
    part: |request, options| {
        let side = request.context.image_size;
        // An even number of pixels less than the side: a tenth of it on each, or ILM-VP's (38 of 64 are left).
        let margin = if request.label_map.is_some() { side * 48 / 224 } else { side / 10 };
        let inner = request.options.frame.inner_size.unwrap_or(side - 2 * margin.max(1));
        options.frame.inner_size = Some(inner);
        Ok(Some(MethodPart::whole(PartShape::Pixels(PixelShape::Frame { inner }))))
    },
    ..pixels::FAMILY
};
