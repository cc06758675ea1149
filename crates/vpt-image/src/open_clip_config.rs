//! Reads `preprocess_cfg` of an `open_clip_config.json`: how open_clip prepares images for a model.
//!
//! Absent fields are those of open_clip's `PreprocessCfg` (3.3): bicubic, shorter side and middle, OpenAI's mean and deviation.

use std::path::Path;

use serde_json::{Map, Value};

use crate::preprocess::{CropRounding, Preprocess, Size};
use crate::processor_config::{FieldFault, channels, present, text};
use crate::resize::Filter;
use vpt_base::{Error, Result};

/// Preprocessing by the fields of `preprocess_cfg`, for a model whose images have `image_size` pixels a side unless these say
/// otherwise; `path` names the file in errors.
///
/// # Errors
/// A field has a value that makes no sense or is not supported; the error names file and field.
pub fn from_open_clip(fields: &Map<String, Value>, image_size: usize, path: &Path) -> Result<Preprocess> {
    let bad = |(field, message): FieldFault| Error::weights(path, format!("preprocess_cfg.{field}: {message}"));
    let preprocess = read(fields, image_size).map_err(bad)?;
    // They have other names here.
    let unprefixed = |(field, message): FieldFault| bad((field.strip_prefix("image_").unwrap_or(field), message));
    preprocess.check().map_err(unprefixed)?;
    Ok(preprocess)
}

fn read(fields: &Map<String, Value>, image_size: usize) -> Result<Preprocess, FieldFault> {
    if let Some(mode) = text(fields, "mode")?.filter(|&mode| mode != "RGB") {
        return Err(("mode", format!("{mode} is not supported: images are RGB")));
    }
    let size = match present(fields, "size") {
        None => image_size,
        Some(value) => side(value).ok_or_else(|| ("size", format!("{value} is not the side of a square")))?,
    };
    let filter = match text(fields, "interpolation")?.unwrap_or("bicubic") {
        // open_clip takes bicubic to look at images, whatever it trained with.
        "bicubic" | "random" => Filter::Bicubic,
        "bilinear" => Filter::Bilinear,
        other => return Err(("interpolation", format!("{other} is not bicubic, bilinear or random"))),
    };
    let (resize, crop) = match text(fields, "resize_mode")?.unwrap_or("shortest") {
        "shortest" => (Size::ShortestEdge(size), Some((size, size))),
        "longest" => (Size::LongestEdge(size), Some((size, size))),
        "squash" => (Size::Exact { width: size, height: size }, None),
        other => return Err(("resize_mode", format!("{other} is not shortest, longest or squash"))),
    };
    if let (Size::LongestEdge(_), Some(color)) = (resize, present(fields, "fill_color"))
        && color.as_f64() != Some(0.)
    {
        return Err(("fill_color", format!("{color} is not supported: what is added is black, 0")));
    }
    let clip = Preprocess::clip(size);
    Ok(Preprocess {
        resize: Some(resize),
        filter,
        crop,
        crop_rounding: CropRounding::Even,
        mean: channels(fields, "mean", clip.mean)?,
        std: channels(fields, "std", clip.std)?,
        ..clip
    })
}

/// A number, or a list of two equal ones.
fn side(value: &Value) -> Option<usize> {
    let number = |value: &Value| usize::try_from(value.as_u64()?).ok();
    match value {
        Value::Array(sides) => match &sides[..] {
            [one] => number(one),
            [height, width] if height == width => number(height),
            _ => None,
        },
        _ => number(value),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(json: &Value) -> Result<Preprocess> {
        from_open_clip(json.as_object().unwrap(), 224, Path::new("open_clip_config.json"))
    }

    #[test]
    fn absent_fields_are_those_of_open_clip() {
        let even = Preprocess { crop_rounding: CropRounding::Even, ..Preprocess::clip(224) };
        assert_eq!(parsed(&json!({})).unwrap(), even);
        assert_eq!(parsed(&json!({"size": [224, 224], "resize_mode": null, "fill_color": 255})).unwrap(), even);
        let squashed = parsed(&json!({"size": 32, "resize_mode": "squash", "mean": 0.5, "interpolation": "bilinear"}));
        let exact = Some(Size::Exact { width: 32, height: 32 });
        let expected =
            Preprocess { resize: exact, crop: None, mean: [0.5; 3], filter: Filter::Bilinear, ..even.clone() };
        assert_eq!(squashed.unwrap(), expected);
        let longest = parsed(&json!({"resize_mode": "longest"})).unwrap();
        assert_eq!(longest, Preprocess { resize: Some(Size::LongestEdge(224)), ..even });
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (json, part) in [
            (json!({"size": [224, 336]}), "preprocess_cfg.size: [224,336] is not"),
            (json!({"size": 0}), "preprocess_cfg.size: 0 is not"),
            (json!({"mode": "L"}), "preprocess_cfg.mode: L is not supported"),
            (json!({"interpolation": "nearest"}), "preprocess_cfg.interpolation: nearest"),
            (json!({"resize_mode": "crop"}), "preprocess_cfg.resize_mode: crop"),
            (json!({"resize_mode": "longest", "fill_color": 9}), "preprocess_cfg.fill_color: 9"),
            (json!({"std": [0, 1, 1]}), "preprocess_cfg.std: 0"),
        ] {
            let message = parsed(&json).unwrap_err().to_string();
            assert!(message.starts_with("open_clip_config.json: ") && message.contains(part), "{message}");
        }
    }
}
