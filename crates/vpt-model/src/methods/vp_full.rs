//! `vp-full`: prompt pixels over the whole image.

use super::{MethodPart, MethodSpec, pixels};
use crate::prompt::{PartShape, pixels::PixelShape};

pub(super) const METHOD: MethodSpec = MethodSpec {
    name: "vp-full",
    summary: "every pixel",
    part: |_, _| Ok(Some(MethodPart::whole(PartShape::Pixels(PixelShape::Full)))),
    ..pixels::FAMILY
};
