//! The configurations that transformers and Transformers.js read beside a model.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use vpt_backbone::spec::Spec;
use vpt_base::{Error, Result, files::write_atomic};
use vpt_image::{Preprocess, preprocess::Size, resize::Filter};

/// The folder that Transformers.js has models in, below that of their configurations.
const ONNX: &str = "onnx";

/// Writes `config.json` and `preprocessor_config.json` for the classifier `path`: beside it, or where it lies in a folder `onnx`, beside
/// that.
///
/// # Errors
/// They cannot be written.
pub(crate) fn write(
    path: &Path,
    spec: &Spec,
    classes: &[String],
    side: usize,
    preprocess: &Preprocess,
) -> Result<Vec<PathBuf>> {
    let labels: Map<String, Value> = classes.iter().enumerate().map(|(i, name)| (i.to_string(), json!(name))).collect();
    let numbers: Map<String, Value> = classes.iter().enumerate().map(|(i, name)| (name.clone(), json!(i))).collect();
    let tower = &spec.vision;
    let config = json!({
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": tower.width,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.mlp,
        "layer_norm_eps": tower.eps,
        "image_size": side,
        "patch_size": spec.patch_size,
        "num_channels": 3,
        "id2label": labels,
        "label2id": numbers,
    });
    let folder = path.parent().unwrap_or(Path::new(""));
    let folder = if folder.ends_with(ONNX) { folder.parent().unwrap_or(folder) } else { folder };
    let mut files = Vec::new();
    for (name, json) in [("config.json", config), ("preprocessor_config.json", processor(preprocess))] {
        let path = folder.join(name);
        let text = serde_json::to_string_pretty(&json).map_err(|error| Error::file(&path, error.to_string()))?;
        write_atomic(&path, format!("{text}\n").as_bytes())?;
        files.push(path);
    }
    Ok(files)
}

/// `preprocess` in the words of transformers' processors.
fn processor(preprocess: &Preprocess) -> Value {
    let size = preprocess.resize.map(|size| match size {
        Size::ShortestEdge(edge) => json!({"shortest_edge": edge}),
        Size::LongestEdge(edge) => json!({"longest_edge": edge}),
        Size::Exact { width, height } => json!({"height": height, "width": width}),
    });
    // Pillow's numbers.
    let resample = match preprocess.filter {
        Filter::Nearest => 0,
        Filter::Lanczos => 1,
        Filter::Bilinear => 2,
        Filter::Bicubic => 3,
        Filter::Box => 4,
        Filter::Hamming => 5,
    };
    let mut processor = json!({
        "image_processor_type": if preprocess.crop.is_some() { "CLIPImageProcessor" } else { "ViTImageProcessor" },
        "do_convert_rgb": true,
        "do_resize": size.is_some(),
        "resample": resample,
        "do_center_crop": preprocess.crop.is_some(),
        "do_rescale": true,
        "rescale_factor": preprocess.rescale,
        "do_normalize": true,
        "image_mean": preprocess.mean,
        "image_std": preprocess.std,
    });
    if let Some(size) = size {
        processor["size"] = size;
    }
    if let Some((width, height)) = preprocess.crop {
        processor["crop_size"] = json!({"height": height, "width": width});
    }
    processor
}
