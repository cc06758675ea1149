//! Reads how images are prepared for a model of transformers: `preprocessor_config.json`, in today's form and in the ones that
//! older checkpoints carry, and `processor_config.json`, where it has the same as a section (transformers 5).
//!
//! As by transformers 5.23, an absent field is the processor's default and `null` is none at all: a step whose switch is `null` is
//! not taken, and one that needs a value which is `null` is refused. Fields that none of the supported processors acts upon are
//! passed over.

use std::path::Path;

use serde_json::{Map, Value};

use crate::preprocess::{Preprocess, Size};
use crate::resize::Filter;
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

/// A configuration of a megabyte is none.
const MAX_BYTES: u64 = 1 << 20;
/// The section of a `processor_config.json` that is of images.
const SECTION: &str = "image_processor";
/// Side of the images that the processors make by default.
const DEFAULT_SIDE: usize = 224;

/// transformers' processors that the supported backbones come with; they differ in what an absent field means.
#[derive(Clone, Copy)]
enum Processor {
    Clip,
    /// The one called `Bit`, which DINOv2 uses: as CLIP's, but for what only that heeds.
    Bit,
    Vit,
    Deit,
    Siglip,
    /// SigLIP 2's for images of any aspect ratio. What it makes of square ones is made of all.
    NaFlex,
    Dinov3,
}

impl Processor {
    /// From `image_processor_type` or, in old files, `feature_extractor_type`: `CLIPImageProcessor`,
    /// `ViTFeatureExtractor`, `BitImageProcessorFast`, …
    fn from_type(name: &str) -> Option<Self> {
        let stem = ["Fast", "Pil"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        match ["ImageProcessor", "FeatureExtractor"].iter().find_map(|end| stem.strip_suffix(end))? {
            "CLIP" => Some(Self::Clip),
            "Bit" => Some(Self::Bit),
            "ViT" => Some(Self::Vit),
            "DeiT" => Some(Self::Deit),
            "Siglip" => Some(Self::Siglip),
            "Siglip2" => Some(Self::NaFlex),
            "DINOv3ViT" => Some(Self::Dinov3),
            _ => None,
        }
    }

    /// From `model_type` of the model's own configuration.
    fn from_model(model: &str) -> Option<Self> {
        match model {
            "clip" | "clip_vision_model" => Some(Self::Clip),
            "dinov2" | "dinov2_with_registers" => Some(Self::Bit),
            "vit" | "vit_mae" => Some(Self::Vit),
            "deit" => Some(Self::Deit),
            "siglip" | "siglip_vision_model" => Some(Self::Siglip),
            "siglip2" | "siglip2_vision_model" => Some(Self::NaFlex),
            "dinov3_vit" => Some(Self::Dinov3),
            _ => None,
        }
    }

    /// Preprocessing that a file without a single field stands for.
    fn defaults(self) -> Preprocess {
        let clip = Preprocess::clip(DEFAULT_SIDE);
        let half = Preprocess { mean: [0.5; 3], std: [0.5; 3], ..clip.clone() };
        match self {
            Self::Clip | Self::Bit => clip,
            Self::Vit => Preprocess {
                resize: Some(Size::Exact { width: 224, height: 224 }),
                filter: Filter::Bilinear,
                crop: None,
                ..half
            },
            Self::Dinov3 => Preprocess {
                resize: Some(Size::Exact { width: 224, height: 224 }),
                filter: Filter::Bilinear,
                crop: None,
                unrounded: true,
                mean: [0.485, 0.456, 0.406],
                std: [0.229, 0.224, 0.225],
                ..clip
            },
            Self::Deit => Preprocess { resize: Some(Size::Exact { width: 256, height: 256 }), ..half },
            Self::Siglip => Preprocess::siglip(224),
            Self::NaFlex => Preprocess::siglip_naflex(256),
        }
    }
}

impl Preprocess {
    /// Reads `path`, a `preprocessor_config.json`. Absent fields take the defaults of the processor that the file names, or
    /// of the one that belongs to the `model_type` in the `config.json` beside it.
    ///
    /// # Errors
    /// The file cannot be read or is no JSON object, names a processor that is not supported, or a field has a value that
    /// makes no sense; the error names file and field.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::from_json(&read_limited(path, MAX_BYTES)?, path)
    }

    /// [`Preprocess::from_file`] with the content of the file at hand; `path` names it in errors.
    ///
    /// # Errors
    /// As [`Preprocess::from_file`].
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self> {
        Self::from_fields(&object(bytes, path)?, path, "")
    }

    /// Preprocessing by the bytes of a `processor_config.json`, which `path` names in errors; `None` where it says nothing of
    /// images, as those of transformers before 5.
    ///
    /// # Errors
    /// As [`Preprocess::from_file`].
    pub fn from_processor_json(bytes: &[u8], path: &Path) -> Result<Option<Self>> {
        match object(bytes, path)?.get(SECTION) {
            None => Ok(None),
            Some(Value::Object(fields)) => Self::from_fields(fields, path, "image_processor.").map(Some),
            Some(_) => Err(Error::weights(path, format!("{SECTION}: must be an object"))),
        }
    }

    /// Preprocessing by the fields of a processor, whose names in errors begin with `prefix`.
    fn from_fields(fields: &Map<String, Value>, path: &Path, prefix: &str) -> Result<Self> {
        let bad = |(field, message): (&str, String)| Error::weights(path, format!("{prefix}{field}: {message}"));
        let named = text(fields, "image_processor_type").map_err(bad)?;
        let named = named.or(text(fields, "feature_extractor_type").map_err(bad)?);
        let processor = match named {
            Some(name) => Processor::from_type(name).ok_or_else(|| {
                bad((
                    "image_processor_type",
                    format!("{name} is not supported (known: CLIP, ViT, Bit, DeiT, Siglip, Siglip2, DINOv3ViT)"),
                ))
            })?,
            None => model_beside(path)
                .ok_or_else(|| bad(("image_processor_type", "missing, and config.json beside does not tell".into())))?,
        };
        let preprocess = read(fields, processor).map_err(bad)?;
        preprocess.check().map_err(bad)?;
        Ok(preprocess)
    }
}

/// The JSON object in the file `path`.
fn object(bytes: &[u8], path: &Path) -> Result<Map<String, Value>> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Error::weights(path, "not a JSON object")),
        Err(error) => Err(Error::weights(path, error.to_string())),
    }
}

fn model_beside(path: &Path) -> Option<Processor> {
    let bytes = read_limited(&path.with_file_name("config.json"), MAX_BYTES).ok()?;
    let json: Value = serde_json::from_slice(&bytes).ok()?;
    Processor::from_model(json.get("model_type")?.as_str()?)
}

/// A field's name and what is wrong with it.
pub(super) type FieldFault = (&'static str, String);

fn read(fields: &Map<String, Value>, processor: Processor) -> Result<Preprocess, FieldFault> {
    let mut p = processor.defaults();
    if matches!(processor, Processor::NaFlex) {
        let count = |field: &'static str, default: u64| match present(fields, field) {
            None => Ok(default),
            Some(value) => value
                .as_u64()
                .filter(|n| (1..1 << 20).contains(n))
                .ok_or_else(|| (field, format!("{value} is no count"))),
        };
        let side = (count("max_num_patches", 256)?.isqrt() * count("patch_size", 16)?) as usize;
        p.resize = Some(Size::Exact { width: side, height: side });
    }
    if switch(fields, "do_resize", true)? {
        if let Some(value) = given(fields, "size", "do_resize")? {
            let square = !matches!(processor, Processor::Clip | Processor::Bit);
            p.resize = Some(size(value, "size", switch(fields, "default_to_square", square)?)?);
        }
        // Of CLIP's processor alone; it puts its own size in the place of the file's.
        if matches!(processor, Processor::Clip) && switch(fields, "use_square_size", false)? {
            p.resize = Some(Size::Exact { width: DEFAULT_SIDE, height: DEFAULT_SIDE });
        }
        if let Some(value) = given(fields, "resample", "do_resize")? {
            let filter = value.as_u64().and_then(Filter::from_pillow);
            p.filter = filter.ok_or_else(|| ("resample", format!("{value} is not one of Pillow's filters, 0 to 5")))?;
        }
    } else {
        p.resize = None;
    }
    if switch(fields, "do_center_crop", p.crop.is_some())? {
        if let Some(value) = given(fields, "crop_size", "do_center_crop")? {
            p.crop = Some(exact(value, "crop_size")?);
        } else if p.crop.is_none() {
            return Err(("crop_size", "missing, although do_center_crop is true".into()));
        }
    } else {
        p.crop = None;
    }
    if switch(fields, "do_rescale", true)? {
        if let Some(value) = given(fields, "rescale_factor", "do_rescale")? {
            p.rescale = value.as_f64().ok_or_else(|| ("rescale_factor", format!("{value} is not a number")))?;
        }
    } else {
        p.rescale = 1.0;
    }
    if switch(fields, "do_normalize", true)? {
        given(fields, "image_mean", "do_normalize")?;
        given(fields, "image_std", "do_normalize")?;
        p.mean = channels(fields, "image_mean", p.mean)?;
        p.std = channels(fields, "image_std", p.std)?;
    } else {
        (p.mean, p.std) = ([0.0; 3], [1.0; 3]);
    }
    check_padding(fields, &p)?;
    Ok(p)
}

/// Padding is what comes last; what it adds to images that have the wanted size already is nothing.
fn check_padding(fields: &Map<String, Value>, p: &Preprocess) -> Result<(), FieldFault> {
    if !switch(fields, "do_pad", false)? {
        return Ok(());
    }
    let Some(value) = present(fields, "pad_size") else { return Ok(()) };
    match (exact(value, "pad_size")?, p.output_size()) {
        (padded, Some(made)) if padded == made => Ok(()),
        ((width, height), _) => {
            Err(("pad_size", format!("padding to {width} x {height} is not supported; supported is do_pad: false")))
        }
    }
}

/// The field, unless it is absent or null.
pub(super) fn present<'a>(fields: &'a Map<String, Value>, field: &str) -> Option<&'a Value> {
    fields.get(field).filter(|v| !v.is_null())
}

/// The field, unless it is absent; `null` is refused, since `step` is on and needs it.
fn given<'a>(fields: &'a Map<String, Value>, field: &'static str, step: &str) -> Result<Option<&'a Value>, FieldFault> {
    match fields.get(field) {
        Some(Value::Null) => Err((field, format!("is null, although {step} is on"))),
        value => Ok(value),
    }
}

pub(super) fn text<'a>(fields: &'a Map<String, Value>, field: &'static str) -> Result<Option<&'a str>, FieldFault> {
    match present(fields, field) {
        None => Ok(None),
        Some(Value::String(s)) => Ok(Some(s)),
        Some(value) => Err((field, format!("{value} is not a string"))),
    }
}

/// A switch; `null` is off.
fn switch(fields: &Map<String, Value>, field: &'static str, default: bool) -> Result<bool, FieldFault> {
    match fields.get(field) {
        None => Ok(default),
        Some(Value::Null) => Ok(false),
        Some(Value::Bool(b)) => Ok(*b),
        Some(value) => Err((field, format!("{value} is not true or false"))),
    }
}

/// A size in one of its forms: `224`, `[height, width]`, `{"height", "width"}`, `{"shortest_edge"}`. A single number is a
/// square where `square` says so.
fn size(value: &Value, field: &'static str, square: bool) -> Result<Size, FieldFault> {
    let bad = || (field, format!("{value} is not a size (a number, height and width, or shortest_edge)"));
    let side = |v: Option<&Value>| v.and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()).ok_or_else(bad);
    match value {
        Value::Number(_) if square => Ok(Size::Exact { width: side(Some(value))?, height: side(Some(value))? }),
        Value::Number(_) => Ok(Size::ShortestEdge(side(Some(value))?)),
        Value::Array(sides) if sides.len() == 2 => {
            Ok(Size::Exact { width: side(sides.get(1))?, height: side(sides.first())? })
        }
        Value::Object(sides) => {
            let mut keys: Vec<_> = sides.keys().map(String::as_str).collect();
            keys.sort_unstable();
            match keys[..] {
                ["shortest_edge"] => Ok(Size::ShortestEdge(side(sides.get("shortest_edge"))?)),
                ["height", "width"] => {
                    Ok(Size::Exact { width: side(sides.get("width"))?, height: side(sides.get("height"))? })
                }
                _ => Err(bad()),
            }
        }
        _ => Err(bad()),
    }
}

/// `(width, height)` of a field that must say both.
fn exact(value: &Value, field: &'static str) -> Result<(usize, usize), FieldFault> {
    match size(value, field, true)? {
        Size::Exact { width, height } => Ok((width, height)),
        Size::ShortestEdge(_) | Size::LongestEdge(_) => Err((field, "height and width are wanted".into())),
    }
}

/// Three numbers, or one for all channels.
pub(super) fn channels(
    fields: &Map<String, Value>,
    field: &'static str,
    default: [f32; 3],
) -> Result<[f32; 3], FieldFault> {
    let Some(value) = present(fields, field) else { return Ok(default) };
    let number = |v: &Value| v.as_f64().map(|v| v as f32);
    let found = match value {
        Value::Array(values) => values.iter().map(number).collect::<Option<Vec<_>>>().and_then(|v| v.try_into().ok()),
        single => number(single).map(|v| [v; 3]),
    };
    found.ok_or_else(|| (field, format!("{value} is not three numbers")))
}

#[cfg(test)]
mod tests {
    use crate::decode::Rgb8;
    use crate::processor_config::*;
    use std::fs;

    fn parse(json: &str) -> Result<Preprocess> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("preprocessor_config.json");
        fs::write(&path, json).unwrap();
        Preprocess::from_file(&path)
    }

    fn message(json: &str) -> String {
        let message = parse(json).unwrap_err().to_string();
        assert!(message.contains("preprocessor_config.json: "), "{message}");
        message
    }

    #[test]
    fn results_equal_transformers() {
        let bytes = include_bytes!("../../../tests/fixtures/preprocess/transformers.safetensors");
        let (_, header) = safetensors::SafeTensors::read_metadata(bytes).unwrap();
        let configs: Map<String, Value> =
            serde_json::from_str(&header.metadata().as_ref().unwrap()["configs"]).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(bytes).unwrap();
        for (case, config) in &configs {
            let preprocess = parse(&config.to_string()).unwrap();
            for source in ["wide", "tall", "small"] {
                let image = tensors.tensor(source).unwrap();
                let (width, height) = (image.shape()[1], image.shape()[0]);
                let got = preprocess.apply(&Rgb8 { width, height, pixels: image.data().to_vec() }).unwrap();
                let expected = tensors.tensor(&format!("{case}.{source}")).unwrap();
                let (out_width, out_height) = preprocess.output_size().unwrap();
                assert_eq!(expected.shape(), [3, out_height, out_width], "{case} {source}");
                let expected = expected.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                for (got, expected) in got.iter().zip(expected) {
                    // One rounding apart at most; a different 8-bit value would differ by 0.01.
                    assert!(
                        (got - expected).abs() <= 1e-6 * expected.abs().max(1.0),
                        "{case} {source}: {got} {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn dinov3_s_processor_does_not_round() {
        let p = parse(r#"{"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 2, "width": 1}}"#);
        let p = p.unwrap();
        assert!(p.unrounded && p.crop.is_none() && p.filter == Filter::Bilinear);
        // Four columns become one: by a triangle of radius 4, weights 5, 7, 7, 5 of 24. Rows stay as they are.
        let image = Rgb8 { width: 4, height: 2, pixels: (0..24).map(|i| i * 10).collect() };
        let got = p.apply(&image).unwrap();
        for (i, got) in got.into_iter().enumerate() {
            let (channel, row) = (i / 2, i % 2);
            let level = |column: usize| f64::from(image.pixels[(row * 4 + column) * 3 + channel]);
            let mean = (5. * level(0) + 7. * level(1) + 7. * level(2) + 5. * level(3)) / 24.;
            let want = (mean / 255. - f64::from(p.mean[channel])) / f64::from(p.std[channel]);
            assert!((f64::from(got) - want).abs() < 1e-5, "{got} {want}");
        }
        let with = |field: &str| format!(r#"{{"image_processor_type": "DINOv3ViTImageProcessor", {field}}}"#);
        let cropped = message(&with(r#""do_center_crop": true, "crop_size": 8"#));
        assert!(cropped.contains("do_center_crop: is not supported"), "{cropped}");
        assert!(message(&with(r#""resample": 1"#)).contains("resample: Lanczos is not supported"));
        let json = serde_json::to_value(&p).unwrap();
        assert_eq!(serde_json::from_value::<Preprocess>(json).unwrap(), p);
    }

    #[test]
    fn old_and_new_forms_mean_the_same() {
        let new = parse(
            r#"{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 336}, "resample": 3,
                "crop_size": {"height": 336, "width": 336}}"#,
        );
        let old = parse(r#"{"feature_extractor_type": "CLIPFeatureExtractor", "size": 336, "crop_size": 336}"#);
        assert_eq!(new.unwrap(), Preprocess::clip(336));
        assert_eq!(old.unwrap(), Preprocess::clip(336));
    }

    #[test]
    fn absent_fields_take_the_processor_s_defaults() {
        let vit = parse(r#"{"feature_extractor_type": "ViTFeatureExtractor", "size": 384}"#).unwrap();
        assert_eq!(vit.resize, Some(Size::Exact { width: 384, height: 384 }));
        assert_eq!((vit.filter, vit.crop, vit.mean, vit.std), (Filter::Bilinear, None, [0.5; 3], [0.5; 3]));
        let deit = parse(r#"{"feature_extractor_type": "DeiTFeatureExtractor"}"#).unwrap();
        assert_eq!(deit.resize, Some(Size::Exact { width: 256, height: 256 }));
        assert_eq!((deit.filter, deit.crop), (Filter::Bicubic, Some((224, 224))));
        let dino =
            parse(r#"{"image_processor_type": "BitImageProcessorFast", "size": {"shortest_edge": 256}}"#).unwrap();
        assert_eq!((dino.resize, dino.crop), (Some(Size::ShortestEdge(256)), Some((224, 224))));
    }

    #[test]
    fn the_model_s_configuration_stands_in_for_the_processor_s_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("preprocessor_config.json");
        fs::write(&path, "{}").unwrap();
        assert!(Preprocess::from_file(&path).unwrap_err().to_string().contains("image_processor_type: missing"));
        fs::write(dir.path().join("config.json"), r#"{"model_type": "vit"}"#).unwrap();
        assert_eq!(Preprocess::from_file(&path).unwrap().filter, Filter::Bilinear);
    }

    #[test]
    fn switches_turn_steps_off() {
        let p = parse(
            r#"{"image_processor_type": "CLIPImageProcessor", "do_resize": false, "do_center_crop": false,
                "do_rescale": false, "do_normalize": false}"#,
        )
        .unwrap();
        assert_eq!((p.resize, p.crop, p.rescale, p.mean, p.std), (None, None, 1.0, [0.0; 3], [1.0; 3]));
    }

    fn clip(field: &str) -> Result<Preprocess> {
        parse(&format!(r#"{{"image_processor_type": "CLIPImageProcessor", {field}}}"#))
    }

    // What transformers 5.24 makes of each.
    #[test]
    fn null_turns_a_step_off_and_is_no_value_of_one_that_is_on() {
        let plain = Preprocess::clip(224);
        let nulls = |field: &str| clip(&format!(r#""{field}": null"#));
        assert_eq!(nulls("do_resize").unwrap(), Preprocess { resize: None, ..plain.clone() });
        assert_eq!(nulls("do_center_crop").unwrap(), Preprocess { crop: None, ..plain.clone() });
        assert_eq!(nulls("do_rescale").unwrap(), Preprocess { rescale: 1., ..plain.clone() });
        assert_eq!(nulls("do_normalize").unwrap(), Preprocess { mean: [0.; 3], std: [1.; 3], ..plain.clone() });
        for field in ["do_convert_rgb", "do_pad", "pad_size", "use_square_size", "default_to_square", "foo"] {
            assert_eq!(nulls(field).unwrap(), plain, "{field}");
        }
        for (field, step) in [
            ("size", "do_resize"),
            ("resample", "do_resize"),
            ("crop_size", "do_center_crop"),
            ("rescale_factor", "do_rescale"),
            ("image_mean", "do_normalize"),
            ("image_std", "do_normalize"),
        ] {
            let message = nulls(field).unwrap_err().to_string();
            assert!(message.ends_with(&format!("{field}: is null, although {step} is on")), "{message}");
            clip(&format!(r#""{field}": null, "{step}": null"#)).unwrap();
        }
        assert!(clip(r#""size": {"shortest_edge": 64, "height": null}"#).is_err());
    }

    // What transformers 5.24 makes of each.
    #[test]
    fn fields_with_an_effect_have_it_or_are_refused() {
        let exact = |side| Some(Size::Exact { width: side, height: side });
        let vit =
            |field: &str| parse(&format!(r#"{{"image_processor_type": "ViTImageProcessor", "size": 64, {field}}}"#));
        let bit = |field: &str| parse(&format!(r#"{{"image_processor_type": "BitImageProcessor", {field}}}"#)).unwrap();
        assert_eq!(clip(r#""use_square_size": true, "size": 64"#).unwrap().resize, exact(224));
        assert_eq!(bit(r#""use_square_size": true, "size": 64"#).resize, Some(Size::ShortestEdge(64)));
        assert_eq!(clip(r#""default_to_square": true, "size": 64"#).unwrap().resize, exact(64));
        let crop = r#""do_center_crop": true, "crop_size": 32"#;
        for square in ["false", "null"] {
            let resize = vit(&format!(r#""default_to_square": {square}, {crop}"#)).unwrap().resize;
            assert_eq!(resize, Some(Size::ShortestEdge(64)), "{square}");
        }
        for pad in ["64", r#"{"height": 64, "width": 64}"#, "null"] {
            assert_eq!(vit(&format!(r#""do_pad": true, "pad_size": {pad}"#)).unwrap().resize, exact(64));
        }
        assert_eq!(vit(r#""do_pad": false, "pad_size": 80"#).unwrap().resize, exact(64));
        for (field, part) in [
            (r#""do_pad": true, "pad_size": 80"#, "pad_size: padding to 80 x 80 is not supported"),
            (r#""do_pad": true, "pad_size": 40"#, "pad_size: padding to 40 x 40"),
            (r#""do_pad": true, "pad_size": {"shortest_edge": 64}"#, "pad_size: height and width are wanted"),
            (r#""do_pad": "yes""#, "do_pad: \"yes\" is not true or false"),
        ] {
            let message = vit(field).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_processor_of_transformers_5_has_a_section_of_images() {
        let path = Path::new("processor_config.json");
        let read = |json: &str| Preprocess::from_processor_json(json.as_bytes(), path);
        let clip = r#"{"image_processor": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 64},
            "crop_size": {"height": 64, "width": 64}}, "processor_class": "CLIPProcessor"}"#;
        assert_eq!(read(clip).unwrap(), Some(Preprocess::clip(64)));
        assert_eq!(read(r#"{"processor_class": "CLIPProcessor"}"#).unwrap(), None);
        for (json, part) in [
            (r#"{"image_processor": "CLIPImageProcessor"}"#, "image_processor: must be an object"),
            (r#"{"image_processor": {"image_processor_type": "CLIPImageProcessor", "size": 0}}"#, "size: 0 is not"),
            (
                r#"{"image_processor": {"image_processor_type": "XImageProcessor"}}"#,
                "image_processor.image_processor_type",
            ),
            ("[]", "not a JSON object"),
        ] {
            let message = read(json).unwrap_err().to_string();
            assert!(message.starts_with("processor_config.json: ") && message.contains(part), "{message}");
        }
    }

    #[test]
    fn faults_name_file_and_field() {
        let with = |field: &str| format!(r#"{{"image_processor_type": "CLIPImageProcessor", {field}}}"#);
        for (field, start) in [
            (r#""size": 0"#, "size: 0 is not between"),
            (r#""size": 1e30"#, "size: "),
            (r#""size": -3"#, "size: "),
            (r#""size": {"longest_edge": 7}"#, "size: "),
            (r#""crop_size": {"height": 224, "width": 999999999999}"#, "crop_size: "),
            (r#""crop_size": {"shortest_edge": 224}"#, "crop_size: "),
            (r#""resample": 9"#, "resample: 9"),
            (r#""do_resize": 1"#, "do_resize: 1"),
            (r#""rescale_factor": "x""#, "rescale_factor: "),
            (r#""rescale_factor": 0"#, "rescale_factor: "),
            (r#""image_mean": [1, 2]"#, "image_mean: "),
            (r#""image_std": [1, 0, 1]"#, "image_std: 0"),
        ] {
            assert!(message(&with(field)).contains(&format!(".json: {start}")), "{}", message(&with(field)));
        }
        assert!(message(r#"{"image_processor_type": "DonutImageProcessor"}"#).contains("DonutImageProcessor"));
        assert!(
            message(r#"{"image_processor_type": "ViTImageProcessor", "do_center_crop": true}"#).contains("crop_size")
        );
        message("[]");
        message("{");
    }

    proptest::proptest! {
        #[test]
        fn no_value_makes_a_panic(
            field in "size|crop_size|pad_size|do_pad|default_to_square|resample|do_resize|do_center_crop|rescale_factor|image_mean|image_std",
            value in r#"-?[0-9]{1,25}|[0-9]e[0-9]{1,3}|"x"|null|true|\[[0-9]{0,3}(,[0-9]{1,20}){0,3}\]|\{"(height|width|shortest_edge)": [0-9]{1,20}\}"#,
            processor in "CLIP|ViT|DeiT|Bit",
        ) {
            let text = format!(r#"{{"image_processor_type": "{processor}ImageProcessor", "{field}": {value}}}"#);
            if let Ok(preprocess) = parse(&text) {
                let image = Rgb8::new(5, 3);
                // What is accepted can be used, up to sizes that a test has no time for.
                if preprocess.output_size().is_some_and(|(w, h)| w * h < 1 << 20) {
                    let _ = preprocess.apply(&image);
                }
            }
        }
    }
}
