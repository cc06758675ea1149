//! `vp-pad`: a border of prompt pixels over the image.

use super::settings::{DefaultText, settings};
use super::{MethodPart, MethodSpec, pixels, spec::HEAD_OPTIONS};
use crate::prompt::{PartShape, pixels::PixelShape};

settings! {
    /// The border.
    pub struct PadOptions {
        Method {
            /// Width of the border in pixels
            pad: Option<usize> => {
                value: "PIXELS",
                default: DefaultText::Words("30 at 224 pixels, in proportion elsewhere"),
                lacking: "border",
            }
        }
    }
}

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "vp-pad",
    summary: "a border of pixels added over the image",
    source: "Bahng et al. 2022",
    options: &[HEAD_OPTIONS, &["label_map", "pad"]],
    part: |request, options| {
        // VP's 30 pixels at 224, in proportion elsewhere (9 at 64).
        let default = (request.context.image_size * 30 / 224).max(1);
        let width = request.options.pad.pad.unwrap_or(default);
        options.pad.pad = Some(width);
        Ok(Some(MethodPart::whole(PartShape::Pixels(PixelShape::Pad { width }))))
    },
    ..pixels::FAMILY
};
