//! Writes the model as a folder in the Hugging Face layout, and checkpoints.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde_json::json;
use tokenizers::Tokenizer;

use crate::layout::{NanoClip, NanoConfig, TowerConfig};

/// Mean and standard deviation pixels are normalised by, CLIP's.
pub(crate) const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// See [`MEAN`].
#[expect(clippy::excessive_precision, reason = "as CLIP's files write them")]
pub(crate) const STD: [f32; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_extension("tmp");
    fs::write(&beside, bytes).with_context(|| format!("{}", beside.display()))?;
    fs::rename(&beside, path).with_context(|| format!("{}", path.display()))
}

/// Writes the four files of a model's folder, the weights in f16.
pub(crate) fn export(folder: &Path, model: &NanoClip, theta: &[f32], tokenizer: &Tokenizer) -> Result<()> {
    fs::create_dir_all(folder)?;
    let halves: Vec<Vec<u8>> = model
        .slots
        .iter()
        .map(|slot| {
            let values = &theta[slot.range.clone()];
            values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect()
        })
        .collect();
    let mut tensors = BTreeMap::new();
    for (slot, bytes) in model.slots.iter().zip(&halves) {
        tensors.insert(slot.name.as_str(), TensorView::new(Dtype::F16, slot.shape.clone(), bytes)?);
    }
    // transformers wants to know the framework.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    write(&folder.join("model.safetensors"), &serialize(tensors, Some(metadata))?)?;
    write(&folder.join("config.json"), &pretty(&config_json(&model.config))?)?;
    let side = model.config.image;
    let preprocessor = json!({
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": true,
        "do_resize": true, "size": {"shortest_edge": side}, "resample": 3,
        "do_center_crop": true, "crop_size": {"height": side, "width": side},
        "do_rescale": true, "rescale_factor": 1.0 / 255.0,
        "do_normalize": true, "image_mean": MEAN.map(readable), "image_std": STD.map(readable),
    });
    write(&folder.join("preprocessor_config.json"), &pretty(&preprocessor)?)?;
    let text = tokenizer.to_string(true).map_err(|error| anyhow::anyhow!("tokenizer: {error}"))?;
    write(&folder.join("tokenizer.json"), text.as_bytes())
}

/// The shortest decimal that is this f32.
fn readable(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

fn pretty(value: &serde_json::Value) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn config_json(config: &NanoConfig) -> serde_json::Value {
    let tower = |tower: &TowerConfig| {
        json!({
            "hidden_size": tower.width, "intermediate_size": 4 * tower.width,
            "num_hidden_layers": tower.depth, "num_attention_heads": tower.heads,
            "projection_dim": config.projection, "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5, "attention_dropout": 0.0,
        })
    };
    let mut vision = tower(&config.vision);
    vision["model_type"] = json!("clip_vision_model");
    vision["image_size"] = json!(config.image);
    vision["patch_size"] = json!(config.patch);
    vision["num_channels"] = json!(3);
    let mut text = tower(&config.text);
    text["model_type"] = json!("clip_text_model");
    text["vocab_size"] = json!(config.vocab);
    text["max_position_embeddings"] = json!(config.context);
    text["bos_token_id"] = json!(config.vocab - 2);
    text["eos_token_id"] = json!(config.vocab - 1);
    text["pad_token_id"] = json!(config.vocab - 1);
    json!({
        "architectures": ["CLIPModel"], "model_type": "clip", "torch_dtype": "float16",
        "projection_dim": config.projection, "logit_scale_init_value": 2.6592,
        "text_config": text, "vision_config": vision,
    })
}

/// What training needs to go on.
pub(crate) struct SavedState {
    /// The parameters.
    pub(crate) theta: Vec<f32>,
    /// AdamW's first moments.
    pub(crate) first: Vec<f32>,
    /// AdamW's second moments.
    pub(crate) second: Vec<f32>,
    /// Steps taken, samples seen, seconds trained, step at which the decay began plus one (0: not yet), its steps.
    pub(crate) counters: [u64; 5],
}

/// Saves the state.
pub(crate) fn save(path: &Path, state: &SavedState) -> Result<()> {
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let (theta, first, second) = (bytes(&state.theta), bytes(&state.first), bytes(&state.second));
    let counters: Vec<u8> = state.counters.iter().flat_map(|count| count.to_le_bytes()).collect();
    let n = vec![state.theta.len()];
    let tensors = BTreeMap::from([
        ("theta", TensorView::new(Dtype::F32, n.clone(), &theta)?),
        ("first", TensorView::new(Dtype::F32, n.clone(), &first)?),
        ("second", TensorView::new(Dtype::F32, n, &second)?),
        ("counters", TensorView::new(Dtype::U64, vec![state.counters.len()], &counters)?),
    ]);
    write(path, &serialize(tensors, None)?)
}

/// Reads what [`save`] wrote.
pub(crate) fn load(path: &Path, parameters: usize) -> Result<SavedState> {
    let bytes = fs::read(path).with_context(|| format!("{}", path.display()))?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let floats = |name: &str| -> Result<Vec<f32>> {
        let data = tensors.tensor(name)?;
        ensure!(data.data().len() == 4 * parameters, "{}: {name} is of another model", path.display());
        let values = data.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok(values.collect())
    };
    let mut counters = [0; 5];
    let saved = tensors.tensor("counters")?;
    ensure!(saved.data().len() == 40, "{}: counters have another length", path.display());
    for (count, bytes) in counters.iter_mut().zip(saved.data().chunks_exact(8)) {
        *count = bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    }
    Ok(SavedState { theta: floats("theta")?, first: floats("first")?, second: floats("second")?, counters })
}
