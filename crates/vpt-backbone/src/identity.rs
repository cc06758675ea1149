//! What makes a backbone the one it is: everything that decides its outputs, and nothing of how it is stored.
//!
//! The same tensors under other activations, end tokens, tokenizers or means of pixels are another backbone; saved anew, in
//! shards, in another number format or by another class of transformers they are the same one. The feature cache, the few-shot
//! grid, runs that are resumed and task files all ask for this and for nothing else.
//!
//! A task file outlives the program that wrote it, so what is hashed has a form of its own, which does not follow from how a
//! type is printed or serialized.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::spec::{Pool, Positions, QkvBias, Resampling, Rotary, Spec, TextPool, TextSpec, TowerSpec};
use vpt_base::{Error, Result};
use vpt_image::Preprocess;
use vpt_kernel::Activation;

/// Changes whenever equal backbones would get other hashes than before.
const FORMAT: &str = "vpt backbone 1";
/// Hexadecimal digits of a part's hash that are kept: enough to tell what has changed.
const DIGITS: usize = 16;

/// What stands for everything that decides a backbone's outputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneIdentity {
    /// BLAKE3 over all of it, in hexadecimal.
    pub hash: String,
    /// What it consists of.
    pub parts: IdentityParts,
}

/// The parts of a [`BackboneIdentity`], each by the beginning of its BLAKE3 hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityParts {
    /// Values of the tensors that it computes with, and of its own classifier.
    pub tensors: String,
    /// Its architecture, with every default filled in.
    pub config: String,
    /// How texts become token ids; empty where it reads none.
    pub tokenizer: String,
    /// How images become pixels, with every default filled in.
    pub processor: String,
}

impl BackboneIdentity {
    /// Of parts whose hashes are whole.
    pub(crate) fn new(parts: &IdentityParts) -> Self {
        let mut hasher = blake3::Hasher::new();
        let IdentityParts { tensors, config, tokenizer, processor } = parts;
        for part in [FORMAT, tensors, config, tokenizer, processor] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let short = |part: &str| part.get(..DIGITS).unwrap_or(part).to_owned();
        Self {
            hash: hasher.finalize().to_hex().to_string(),
            parts: IdentityParts {
                tensors: short(tensors),
                config: short(config),
                tokenizer: short(tokenizer),
                processor: short(processor),
            },
        }
    }
}

impl IdentityParts {
    /// The names of the parts that `other` has different.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let Self { tensors, config, tokenizer, processor } = self;
        [
            ("weights", tensors == &other.tensors),
            ("configuration", config == &other.config),
            ("tokenizer", tokenizer == &other.tokenizer),
            ("preprocessing", processor == &other.processor),
        ]
        .into_iter()
        .filter_map(|(name, equal)| (!equal).then_some(name))
        .collect()
    }
}

/// Hash of how images become pixels.
///
/// # Errors
/// It has no JSON form.
pub(crate) fn processor(preprocess: &Preprocess) -> Result<String> {
    // As in task files, where fields that were added later are left out while they say what was done before.
    let json = serde_json::to_value(preprocess).map_err(|error| Error::invalid("preprocessing", error.to_string()))?;
    Ok(of_json(&json))
}

/// Hash of a JSON value: the order of its fields and how it was spaced do not matter.
pub(crate) fn of_json(value: &Value) -> String {
    let mut hasher = blake3::Hasher::new();
    add_json(value, &mut hasher);
    hasher.finalize().to_hex().to_string()
}

fn add_json(value: &Value, hasher: &mut blake3::Hasher) {
    match value {
        Value::Array(items) => {
            hasher.update(format!("[{}", items.len()).as_bytes());
            for item in items {
                add_json(item, hasher);
            }
        }
        Value::Object(fields) => {
            // `null` is what an absent field says.
            let mut sorted: Vec<_> = fields.iter().filter(|(_, value)| !value.is_null()).collect();
            sorted.sort_by_key(|(name, _)| *name);
            hasher.update(format!("{{{}", sorted.len()).as_bytes());
            for (name, value) in sorted {
                hasher.update(format!("{}:{name}", name.len()).as_bytes());
                add_json(value, hasher);
            }
        }
        other => {
            let text = other.to_string();
            hasher.update(format!("{}={text}", text.len()).as_bytes());
        }
    }
}

impl Spec {
    /// Hash of what its forward pass does. The family is left out: it says what tensors are called.
    pub(crate) fn content(&self) -> String {
        blake3::hash(self.facts().join("\n").as_bytes()).to_hex().to_string()
    }

    /// What its forward pass does, a fact a line. Every field is named here, so that no new one is forgotten: it gets a line
    /// where it says something that backbones before it did not, and none else, so that these keep their hash.
    fn facts(&self) -> Vec<String> {
        let Self {
            family: _,
            vision,
            image_size,
            patch_size,
            patch_bias,
            class_token,
            registers,
            positions,
            rotary,
            pre_norm,
            pool,
            classifier,
            projection,
            text,
        } = self;
        let positions = positions.map_or("positions none".to_owned(), |Positions { prefix, resampling }| {
            let resampling = match resampling {
                Resampling::Bicubic => "bicubic",
                Resampling::AntialiasedBicubic => "antialiased bicubic",
                Resampling::AntialiasedBilinear => "antialiased bilinear",
            };
            format!("positions of {prefix} and {resampling}")
        });
        let mut facts = vec![
            format!("images {image_size}, patches {patch_size}, with bias {patch_bias}"),
            format!("class token {class_token}, registers {registers}, {positions}"),
            format!("norm first {pre_norm}, pool {}, classifier {}", name_of(Some(*pool)), name_of(*classifier)),
            format!("projection {}", projection.unwrap_or_default()),
        ];
        facts.extend(facts_of_tower("image", vision));
        facts.extend(rotary.map(|Rotary { theta }| format!("rotary positions of {theta:e}")));
        if let Some(text) = text {
            let TextSpec { tower, causal, vocab, context, pool, eos_token_id, projection, projection_bias } = text;
            facts.push(format!("texts of {context} of {vocab}, end {eos_token_id}, projection {projection}"));
            // SigLIP's, where those before have all of it the other way.
            let at_end = *pool == TextPool::End;
            if !(*causal && at_end && !projection_bias) {
                facts.push(format!(
                    "texts causal {causal}, read at their end {at_end}, projection bias {projection_bias}"
                ));
            }
            facts.extend(facts_of_tower("text", tower));
        }
        facts
    }
}

fn name_of(pool: Option<Pool>) -> &'static str {
    match pool {
        None => "none",
        Some(Pool::ClassToken) => "class token",
        Some(Pool::Mean) => "mean",
        Some(Pool::NormOfMean) => "norm of the mean",
        Some(Pool::ClassTokenAndMean) => "class token and mean",
        Some(Pool::Attention) => "attention",
    }
}

/// See [`Spec::facts`].
fn facts_of_tower(name: &str, tower: &TowerSpec) -> Vec<String> {
    let TowerSpec { width, depth, heads, mlp, gated, activation, eps, qkv_bias: QkvBias { q, k, v }, layer_scale } =
        tower;
    let activation = match activation {
        Activation::Gelu => "gelu",
        Activation::QuickGelu => "quick gelu",
        Activation::GeluTanh => "gelu by tanh",
        Activation::Silu => "silu",
    };
    vec![
        format!("{name}: {depth} blocks of {width}, {heads} heads, mlp {mlp} gated {gated}, {activation}"),
        format!("{name}: eps {eps:e}, biases {q} {k} {v}, layer scale {layer_scale}"),
    ]
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use half::{bf16, f16};
    use serde_json::json;

    use super::*;
    use crate::weights::{INDEX, SINGLE};
    use crate::{Backbone, OpenOptions};

    /// A copy of a fixture.
    fn copy(name: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let from = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        dir
    }

    fn open(dir: &Path) -> Backbone {
        Backbone::open(dir.to_str().unwrap(), &OpenOptions::default()).unwrap()
    }

    fn identity(dir: &Path) -> BackboneIdentity {
        open(dir).identity().unwrap().clone()
    }

    /// Changes a JSON file.
    fn edit(dir: &Path, file: &str, change: impl Fn(&mut Value)) {
        let mut json: Value = serde_json::from_slice(&fs::read(dir.join(file)).unwrap()).unwrap();
        change(&mut json);
        fs::write(dir.join(file), serde_json::to_vec_pretty(&json).unwrap()).unwrap();
    }

    type Stored = Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)>;

    fn stored(dir: &Path) -> Stored {
        let bytes = fs::read(dir.join(SINGLE)).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        read.tensors().into_iter().map(|(n, t)| (n, t.dtype(), t.shape().to_vec(), t.data().to_vec())).collect()
    }

    fn save(tensors: &Stored, path: &Path) {
        let view =
            |(_, dtype, shape, data): &'_ (String, _, Vec<usize>, Vec<u8>)| (*dtype, shape.clone(), data.clone());
        let views: Vec<_> = tensors.iter().map(|tensor| (tensor.0.clone(), view(tensor))).collect();
        let views = views.iter().map(|(name, (dtype, shape, data))| {
            (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }

    #[test]
    fn whatever_decides_an_output_is_part_of_it() {
        let dir = copy("clip");
        let before = identity(dir.path());
        let with = |file: &str, change: &dyn Fn(&mut Value)| {
            let dir = copy("clip");
            edit(dir.path(), file, change);
            let now = identity(dir.path());
            assert_ne!(before.hash, now.hash);
            before.parts.differences(&now.parts)
        };
        for section in ["vision_config", "text_config"] {
            assert_eq!(with("config.json", &|c| c[section]["hidden_act"] = "gelu_new".into()), ["configuration"]);
            assert_eq!(with("config.json", &|c| c[section]["layer_norm_eps"] = 1e-4.into()), ["configuration"]);
        }
        assert_eq!(with("config.json", &|c| c["text_config"]["eos_token_id"] = 5.into()), ["configuration"]);
        let mean = |c: &mut Value| c["image_mean"] = json!([0.4, 0.5, 0.5]);
        assert_eq!(with("preprocessor_config.json", &mean), ["preprocessing"]);
        assert_eq!(with("preprocessor_config.json", &|c| c["resample"] = 2.into()), ["preprocessing"]);
        let no_lower = |c: &mut Value| c["normalizer"] = json!({"type": "NFC"});
        assert_eq!(with("tokenizer.json", &no_lower), ["tokenizer"]);

        let mut tensors = stored(dir.path());
        let bias = tensors.iter_mut().find(|t| t.0.ends_with("text_model.final_layer_norm.bias")).unwrap();
        bias.3[0] ^= 1;
        save(&tensors, &dir.path().join(SINGLE));
        assert_eq!(before.parts.differences(&identity(dir.path()).parts), ["weights"]);
    }

    #[test]
    fn how_it_is_stored_is_no_part_of_it() {
        for name in ["clip", "clip-gelu", "mae"] {
            let dir = copy(name);
            let before = identity(dir.path());
            let mut tensors = stored(dir.path());
            // Other names in front, another order, a buffer that older versions save, and wider numbers.
            tensors.reverse();
            for (name, dtype, _, data) in &mut tensors {
                name.insert_str(0, "model.");
                let values: Vec<f64> = match dtype {
                    safetensors::Dtype::F16 => {
                        data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f64()).collect()
                    }
                    safetensors::Dtype::BF16 => {
                        data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f64()).collect()
                    }
                    _ => data.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
                };
                *dtype = safetensors::Dtype::F64;
                *data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            }
            tensors.push(("model.position_ids".into(), safetensors::Dtype::I64, vec![1], vec![7; 8]));
            fs::remove_file(dir.path().join(SINGLE)).unwrap();
            let (one, two) = tensors.split_at(5);
            let mut map = serde_json::Map::new();
            for (file, part) in [("a.safetensors", one), ("b.safetensors", two)] {
                save(&part.to_vec(), &dir.path().join(file));
                map.extend(part.iter().map(|tensor| (tensor.0.clone(), file.into())));
            }
            fs::write(dir.path().join(INDEX), json!({"weight_map": map}).to_string()).unwrap();
            // What only says again what is so anyway.
            edit(dir.path(), "config.json", |c| c["transformers_version"] = "9".into());
            edit(dir.path(), "preprocessor_config.json", |c| c["do_rescale"] = true.into());
            if name != "mae" {
                edit(dir.path(), "tokenizer.json", |t| {
                    t["truncation"] =
                        json!({"max_length": 77, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
                });
            }
            assert_eq!(identity(dir.path()), before, "{name}");
        }
    }

    #[test]
    fn every_tensor_that_is_read_later_was_asked_for_when_it_was_opened() {
        for name in
            ["clip", "clip-gelu", "deit", "dinov2-registers", "dinov2-swiglu", "mae", "siglip", "siglip2", "vit"]
        {
            let dir = copy(name);
            let backbone = open(dir.path());
            let before = backbone.weights().asked();
            if backbone.has_text_tower() {
                backbone.embed_texts(&["a cat"], 1).unwrap();
            }
            assert_eq!(backbone.weights().asked(), before, "{name}");
            assert!(!before.is_empty());
        }
    }

    #[test]
    fn the_size_that_images_are_seen_at_is_no_part_of_it() {
        let dir = copy("clip");
        let options = OpenOptions { image_size: Some(64), ..OpenOptions::default() };
        let larger = Backbone::open(dir.path().to_str().unwrap(), &options).unwrap();
        assert_eq!(larger.identity().unwrap(), &identity(dir.path()));
    }

    // What task files of this version hold; it must not change with the program.
    #[test]
    fn the_bundled_backbone_keeps_its_identity() {
        let backbone = Backbone::open("clip-nano", &OpenOptions::default()).unwrap();
        assert_eq!(backbone.hash().unwrap(), "6d943e559e73d27e9f320c31436dc04f6f00cd16aee2c346676115515bc6fd4f");
    }
}
