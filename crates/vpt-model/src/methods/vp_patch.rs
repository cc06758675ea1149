//! `vp-patch`: a square of prompt pixels over the image, at a fixed or a random place.

use super::{
    MethodPart, MethodSpec, pixels,
    settings::{DefaultText, settings},
    spec::HEAD_OPTIONS,
};
use crate::prompt::{
    PartShape,
    pixels::{PatchPlace, PixelShape},
};

settings! {
    /// The square.
    pub struct PatchOptions {
        Method {
            /// Side of the square in pixels
            patch_size: Option<usize> => {
                value: "PIXELS",
                default: DefaultText::Words("50 at 224 pixels, in proportion elsewhere"),
                lacking: "patch",
            }
            /// Where the square lies: `fixed` in the upper left corner, or at a `random` place for each image
            patch_place: Option<PatchPlace> => {
                value: "PLACE", default: DefaultText::Words("fixed"), lacking: "patch",
            }
        }
    }
}

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "vp-patch",
    summary: "a square of pixels, at a fixed or random place",
    source: "Bahng et al. 2022",
    options: &[HEAD_OPTIONS, &["label_map", "patch_size", "patch_place"]],
    part: |request, options| {
        // VP's 50 pixels at 224.
        let side = request.options.patch.patch_size.unwrap_or((request.context.image_size * 50 / 224).max(1));
        let place = request.options.patch.patch_place.unwrap_or_default();
        (options.patch.patch_size, options.patch.patch_place) = (Some(side), Some(place));
        Ok(Some(MethodPart::whole(PartShape::Pixels(PixelShape::Patch { side, place }))))
    },
    ..pixels::FAMILY
};
