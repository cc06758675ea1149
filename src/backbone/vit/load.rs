//! The tensors of each family, by their names in transformers' checkpoints.

use std::sync::Mutex;

use super::Vit;
use super::block::{Block, BlockWeights};
use super::embed::{Embedding, PreNorm};
use super::linear::Linear;
use crate::Result;
use crate::backbone::position::interpolate;
use crate::backbone::spec::{Family, Spec, TowerSpec};
use crate::backbone::weights::Weights;
use crate::kernel::Precision;

/// What the layers of a block are called.
struct Names {
    norm1: &'static str,
    qkv: [&'static str; 3],
    out: &'static str,
    norm2: &'static str,
    fc1: &'static str,
    fc2: &'static str,
}

const CLIP: Names = Names {
    norm1: "layer_norm1",
    qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    out: "self_attn.out_proj",
    norm2: "layer_norm2",
    fc1: "mlp.fc1",
    fc2: "mlp.fc2",
};
const VIT: Names = Names {
    norm1: "layernorm_before",
    qkv: ["attention.attention.query", "attention.attention.key", "attention.attention.value"],
    out: "attention.output.dense",
    norm2: "layernorm_after",
    fc1: "intermediate.dense",
    fc2: "output.dense",
};
const DINOV2: Names = Names { norm1: "norm1", norm2: "norm2", fc1: "mlp.fc1", fc2: "mlp.fc2", ..VIT };
const GATED: Names = Names { fc1: "mlp.weights_in", fc2: "mlp.weights_out", ..DINOV2 };

/// Gives the tensor of a name and a shape: [`Weights::get`], or what only looks whether it is there.
pub(crate) type Get<'a> = &'a dyn Fn(&str, &[usize]) -> Result<Vec<f32>>;

/// Weight `[out, in]` and bias `[out]` of the layer `name`.
fn layer(get: Get, name: &str, out: usize, inputs: usize, bias: bool) -> Result<(Vec<f32>, Vec<f32>)> {
    let weight = get(&format!("{name}.weight"), &[out, inputs])?;
    let bias = if bias { get(&format!("{name}.bias"), &[out])? } else { vec![0.0; out] };
    Ok((weight, bias))
}

/// Scale and shift `[d]` of the norm `name`.
pub(crate) fn norm(get: Get, name: &str, d: usize) -> Result<[Vec<f32>; 2]> {
    Ok([get(&format!("{name}.weight"), &[d])?, get(&format!("{name}.bias"), &[d])?])
}

fn block(get: Get, prefix: &str, names: &Names, tower: &TowerSpec, layer_scale: bool) -> Result<BlockWeights> {
    let (d, mlp) = (tower.width, tower.mlp);
    let at = |name: &str| format!("{prefix}.{name}");
    let square = |name: &str, bias| layer(get, &at(name), d, d, bias);
    let scale = |i: usize| get(&at(&format!("layer_scale{i}.lambda1")), &[d]);
    Ok(BlockWeights {
        norm1: norm(get, &at(names.norm1), d)?,
        qkv: [
            square(names.qkv[0], tower.qkv_bias)?,
            square(names.qkv[1], tower.qkv_bias)?,
            square(names.qkv[2], tower.qkv_bias)?,
        ],
        out: square(names.out, true)?,
        norm2: norm(get, &at(names.norm2), d)?,
        fc1: layer(get, &at(names.fc1), if tower.gated { 2 * mlp } else { mlp }, d, true)?,
        fc2: layer(get, &at(names.fc2), d, mlp, true)?,
        layer_scale: if layer_scale { Some([scale(1)?, scale(2)?]) } else { None },
    })
}

/// Block `index` of CLIP's tower `tower_name` (`vision_model`, `text_model`).
pub(crate) fn clip_block(get: Get, tower_name: &str, index: usize, tower: &TowerSpec) -> Result<BlockWeights> {
    block(get, &format!("{tower_name}.encoder.layers.{index}"), &CLIP, tower, false)
}

impl Vit {
    /// Loads the image tower `spec` describes for square images of `image_size` pixels; position embeddings are
    /// interpolated as the family's reference does. Weights are kept, and products computed, in `precision`.
    ///
    /// # Errors
    /// `image_size` is no multiple of the patch size, or a tensor is missing or has another shape.
    pub fn load(spec: &Spec, weights: &Weights, image_size: usize, precision: Precision) -> Result<Self> {
        spec.check_image_size(image_size)?;
        let tower = &spec.vision;
        let get: Get = &|name, shape| weights.get(name, shape);
        let (d, p) = (tower.width, spec.patch_size);
        let grid = image_size / p;
        let stored = 1 + spec.grid() * spec.grid();
        let clip = spec.family == Family::Clip;
        let (class, positions, patch, pre_norm) = if clip {
            let at = |name: &str| format!("vision_model.embeddings.{name}");
            let class = weights.get(&at("class_embedding"), &[d])?;
            let positions = weights.get(&at("position_embedding.weight"), &[stored, d])?;
            let patch = weights.get(&at("patch_embedding.weight"), &[d, 3, p, p])?;
            let [scale, shift] = norm(get, "vision_model.pre_layrnorm", d)?;
            let pre_norm = PreNorm { scale, shift, eps: tower.eps };
            (class, positions, Linear::new(&patch, vec![0.0; d], precision), Some(pre_norm))
        } else {
            let at = |name: &str| format!("embeddings.{name}");
            let class = weights.get(&at("cls_token"), &[1, 1, d])?;
            let rows = stored + usize::from(spec.distilled);
            let positions = weights.get(&at("position_embeddings"), &[1, rows, d])?;
            let patch = weights.get(&at("patch_embeddings.projection.weight"), &[d, 3, p, p])?;
            let bias = weights.get(&at("patch_embeddings.projection.bias"), &[d])?;
            (class, positions, Linear::new(&patch, bias, precision), None)
        };
        let add = |token: &[f32], position: &[f32]| token.iter().zip(position).map(|(a, b)| a + b).collect::<Vec<_>>();
        let mut prefix = add(&class, &positions[..d]);
        let mut positions = positions;
        if spec.distilled {
            let token = weights.get("embeddings.distillation_token", &[1, 1, d])?;
            prefix.extend(add(&token, &positions[d..2 * d]));
            positions.drain(d..2 * d);
        } else if spec.registers > 0 {
            prefix.extend(weights.get("embeddings.register_tokens", &[1, spec.registers, d])?);
        }
        let positions = interpolate(&positions, d, spec.family, (grid, grid))?.split_off(d);
        let embedding = Embedding::new((image_size, p), patch, prefix, positions, pre_norm);
        let names = match spec.family {
            Family::Vit => &VIT,
            _ if tower.gated => &GATED,
            _ => &DINOV2,
        };
        let blocks = (0..tower.depth)
            .map(|i| {
                let weights = if clip {
                    clip_block(get, "vision_model", i, tower)
                } else {
                    block(get, &format!("encoder.layer.{i}"), names, tower, spec.layer_scale)
                };
                Ok(Block::new(tower, weights?, precision))
            })
            .collect::<Result<_>>()?;
        let post = if clip { "vision_model.post_layernorm" } else { "layernorm" };
        let post_norm = norm(get, post, d)?;
        Ok(Self { embedding, blocks, post_norm, eps: tower.eps, precision, limit: None, workspaces: Mutex::default() })
    }
}
