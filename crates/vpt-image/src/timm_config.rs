//! Reads `pretrained_cfg` of timm's `config.json`: how timm prepares images for evaluation (`create_transform`, 1.0.31).

use std::path::Path;

use serde_json::{Map, Value};

use crate::preprocess::{CropRounding, Preprocess, Size};
use crate::processor_config::{FieldFault, channels, present, text};
use crate::resize::Filter;
use vpt_base::{Error, Result};

const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];
/// Share of the resized image that a crop takes where no field says so.
const CROP_SHARE: f64 = 0.875;

/// Preprocessing by the fields of a `pretrained_cfg`, whose names errors begin with `prefix`; `path` names the file in them.
///
/// # Errors
/// A field has a value that makes no sense or is not supported; the error names file and field.
pub fn from_timm(fields: &Map<String, Value>, prefix: &str, path: &Path) -> Result<Preprocess> {
    let bad = |(field, message): FieldFault| Error::weights(path, format!("{prefix}{field}: {message}"));
    let preprocess = read(fields).map_err(bad)?;
    // They have other names here.
    let renamed = |(field, message): FieldFault| match field {
        "size" | "crop_size" => bad(("input_size", message)),
        _ => bad((field.strip_prefix("image_").unwrap_or(field), message)),
    };
    preprocess.check().map_err(renamed)?;
    Ok(preprocess)
}

fn read(fields: &Map<String, Value>) -> Result<Preprocess, FieldFault> {
    let size = match present(fields, "input_size") {
        None => 224,
        Some(value) => side(value).ok_or_else(|| ("input_size", format!("{value} is not [3, side, side]")))?,
    };
    let filter = match text(fields, "interpolation")?.unwrap_or("bicubic") {
        "bicubic" => Filter::Bicubic,
        "bilinear" => Filter::Bilinear,
        "nearest" => Filter::Nearest,
        "box" => Filter::Box,
        "hamming" => Filter::Hamming,
        "lanczos" => Filter::Lanczos,
        other => return Err(("interpolation", format!("{other} is not supported"))),
    };
    let share = match present(fields, "crop_pct") {
        None => CROP_SHARE,
        Some(value) => {
            let share = value.as_f64().filter(|share| (0.01..=10.).contains(share));
            share.ok_or_else(|| ("crop_pct", format!("{value} is not a number between 0.01 and 10")))?
        }
    };
    let mean = channels(fields, "mean", IMAGENET_MEAN)?;
    let scaled = (size as f64 / share).floor() as usize;
    let (resize, border) = match text(fields, "crop_mode")?.unwrap_or("center") {
        "center" => (Size::ShortestEdge(scaled), [0; 3]),
        "squash" => (Size::Exact { width: scaled, height: scaled }, [0; 3]),
        "border" => (
            Size::LongestEdge(scaled),
            mean.map(|mean| (255. * f64::from(mean)).round_ties_even().clamp(0., 255.) as u8),
        ),
        other => return Err(("crop_mode", format!("{other} is not center, squash or border"))),
    };
    Ok(Preprocess {
        resize: Some(resize),
        filter,
        crop: Some((size, size)),
        crop_rounding: CropRounding::Even,
        border,
        mean,
        std: channels(fields, "std", IMAGENET_STD)?,
        ..Preprocess::clip(size)
    })
}

/// Of `[3, side, side]`.
fn side(value: &Value) -> Option<usize> {
    match &value.as_array()?[..] {
        [channels, height, width] if channels.as_u64() == Some(3) && height == width => {
            usize::try_from(height.as_u64()?).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::decode::Rgb8;

    fn parsed(json: &Value) -> Result<Preprocess> {
        from_timm(json.as_object().unwrap(), "pretrained_cfg.", Path::new("config.json"))
    }

    #[test]
    fn fields_are_those_of_timm() {
        let plain = parsed(&json!({})).unwrap();
        assert_eq!((plain.resize, plain.crop), (Some(Size::ShortestEdge(256)), Some((224, 224))));
        assert_eq!((plain.filter, plain.mean, plain.std), (Filter::Bicubic, IMAGENET_MEAN, IMAGENET_STD));
        let json =
            json!({"input_size": [3, 384, 384], "crop_pct": 0.95, "crop_mode": "squash", "mean": [0.5, 0.5, 0.5]});
        let squashed = parsed(&json).unwrap();
        assert_eq!(squashed.resize, Some(Size::Exact { width: 404, height: 404 }));
        assert_eq!((squashed.crop, squashed.mean), (Some((384, 384)), [0.5; 3]));
    }

    #[test]
    fn a_border_has_the_color_of_the_mean() {
        let json = json!({"input_size": [3, 4, 4], "crop_pct": 1.0, "crop_mode": "border", "mean": [0.0, 0.5, 1.0]});
        let border = parsed(&json).unwrap();
        // Two of four rows, one above and one below.
        let pixels = border.pixels(&Rgb8 { width: 8, height: 4, pixels: vec![7; 96] }).unwrap().pixels;
        let row = |y: usize| &pixels[y * 12..(y + 1) * 12];
        assert_eq!((row(0), row(3)), (&[0, 128, 255].repeat(4)[..], &[0, 128, 255].repeat(4)[..]));
        assert_eq!(&pixels[12..36], [7; 24]);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (json, part) in [
            (json!({"input_size": [3, 224, 336]}), "pretrained_cfg.input_size: [3,224,336] is not"),
            (json!({"input_size": [1, 8, 8]}), "pretrained_cfg.input_size: [1,8,8] is not"),
            (json!({"input_size": [3, 0, 0]}), "pretrained_cfg.input_size: 0 is not"),
            (json!({"interpolation": "random"}), "pretrained_cfg.interpolation: random"),
            (json!({"crop_mode": "corner"}), "pretrained_cfg.crop_mode: corner"),
            (json!({"crop_pct": 0}), "pretrained_cfg.crop_pct: 0 is not"),
            (json!({"crop_pct": "x"}), "pretrained_cfg.crop_pct: \"x\" is not"),
            (json!({"std": [0, 1, 1]}), "pretrained_cfg.std: 0"),
        ] {
            let message = parsed(&json).unwrap_err().to_string();
            assert!(message.starts_with("config.json: ") && message.contains(part), "{message}");
        }
    }
}
