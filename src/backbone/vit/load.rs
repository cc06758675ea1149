//! The tensors of each family, by their names in transformers' checkpoints.

use std::sync::Mutex;

use super::Vit;
use super::block::{Block, BlockWeights};
use super::embed::{Embedding, EmbeddingWeights};
use super::tower::Tower;
use crate::Result;
use crate::backbone::spec::{Family, Spec, TowerSpec};
use crate::backbone::weights::Weights;
use crate::kernel::Precision;

/// Names of the layers of a block.
pub(super) struct Names {
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

/// Is called with name, shape and values of a tensor.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(&str, &[usize], &mut Vec<f32>) -> Result<()>;

/// Scale and shift `[d]` of the norm `name`.
pub(crate) fn norm(get: Get, name: &str, d: usize) -> Result<[Vec<f32>; 2]> {
    let mut norm = [Vec::new(), Vec::new()];
    visit_norm(&mut norm, name, d, &mut reading(get))?;
    Ok(norm)
}

/// A visitor that fills in what `get` gives.
fn reading(get: Get) -> impl FnMut(&str, &[usize], &mut Vec<f32>) -> Result<()> {
    move |name, shape, values| {
        *values = get(name, shape)?;
        Ok(())
    }
}

/// Visits scale and shift of the norm `name`.
pub(super) fn visit_norm([scale, shift]: &mut [Vec<f32>; 2], name: &str, d: usize, f: Visit) -> Result<()> {
    f(&format!("{name}.weight"), &[d], scale)?;
    f(&format!("{name}.bias"), &[d], shift)
}

impl BlockWeights {
    /// Visits the tensors of a block whose names begin with `prefix`. A bias that the family does not have is no tensor.
    fn visit(&mut self, prefix: &str, names: &Names, tower: &TowerSpec, f: Visit) -> Result<()> {
        let (d, mlp) = (tower.width, tower.mlp);
        let at = |name: &str| format!("{prefix}.{name}");
        let mut layer = |(weight, bias): &mut (Vec<f32>, Vec<f32>), name, [out, inputs]: [usize; 2], has_bias| {
            f(&format!("{prefix}.{name}.weight"), &[out, inputs], weight)?;
            if has_bias { f(&format!("{prefix}.{name}.bias"), &[out], bias) } else { Ok(()) }
        };
        for (qkv, name) in self.qkv.iter_mut().zip(names.qkv) {
            layer(qkv, name, [d, d], tower.qkv_bias)?;
        }
        layer(&mut self.out, names.out, [d, d], true)?;
        layer(&mut self.fc1, names.fc1, [if tower.gated { 2 * mlp } else { mlp }, d], true)?;
        layer(&mut self.fc2, names.fc2, [d, mlp], true)?;
        visit_norm(&mut self.norm1, &at(names.norm1), d, f)?;
        visit_norm(&mut self.norm2, &at(names.norm2), d, f)?;
        for (i, scale) in self.layer_scale.iter_mut().flatten().enumerate() {
            f(&at(&format!("layer_scale{}.lambda1", i + 1)), &[d], scale)?;
        }
        Ok(())
    }

    /// The tensors of a block, as `get` gives them.
    fn read(get: Get, prefix: &str, names: &Names, tower: &TowerSpec, layer_scale: bool) -> Result<Self> {
        let layer_scale = layer_scale.then(Default::default);
        let mut block = Self { layer_scale, ..Self::default() };
        block.visit(prefix, names, tower, &mut reading(get))?;
        if !tower.qkv_bias {
            block.qkv.iter_mut().for_each(|(_, bias)| *bias = vec![0.0; tower.width]);
        }
        Ok(block)
    }
}

/// Where the blocks of an image tower are: the prefix of block `index`.
fn prefix(spec: &Spec, index: usize) -> String {
    match spec.family {
        Family::Clip => clip_prefix("vision_model", index),
        _ => format!("encoder.layer.{index}"),
    }
}

fn clip_prefix(tower_name: &str, index: usize) -> String {
    format!("{tower_name}.encoder.layers.{index}")
}

fn names(spec: &Spec) -> &'static Names {
    match spec.family {
        Family::Clip => &CLIP,
        Family::Vit => &VIT,
        _ if spec.vision.gated => &GATED,
        _ => &DINOV2,
    }
}

/// Block `index` of CLIP's tower `tower_name` (`vision_model`, `text_model`).
pub(crate) fn clip_block(get: Get, tower_name: &str, index: usize, tower: &TowerSpec) -> Result<BlockWeights> {
    BlockWeights::read(get, &clip_prefix(tower_name, index), &CLIP, tower, false)
}

/// Block `index` of the image tower.
pub(super) fn read_block(get: Get, spec: &Spec, index: usize) -> Result<BlockWeights> {
    BlockWeights::read(get, &prefix(spec, index), names(spec), &spec.vision, spec.layer_scale)
}

/// Visits the tensors of block `index` of the image tower.
pub(super) fn visit_block(block: &mut BlockWeights, spec: &Spec, index: usize, f: Visit) -> Result<()> {
    block.visit(&prefix(spec, index), names(spec), &spec.vision, f)
}

/// Names of the query, key and value layers of the image tower's block `index`.
pub(super) fn qkv_names(spec: &Spec, index: usize) -> [String; 3] {
    names(spec).qkv.map(|name| format!("{}.{name}", prefix(spec, index)))
}

/// The same of CLIP's tower `tower_name`.
pub(crate) fn clip_qkv_names(tower_name: &str, index: usize) -> [String; 3] {
    CLIP.qkv.map(|name| format!("{}.{name}", clip_prefix(tower_name, index)))
}

/// Name of the last norm.
pub(super) fn post_norm_name(spec: &Spec) -> &'static str {
    if spec.family == Family::Clip { "vision_model.post_layernorm" } else { "layernorm" }
}

impl EmbeddingWeights {
    /// Visits what stands before the first block.
    pub(super) fn visit(&mut self, spec: &Spec, f: Visit) -> Result<()> {
        let (d, p) = (spec.vision.width, spec.patch_size);
        let stored = 1 + spec.grid() * spec.grid();
        if spec.family == Family::Clip {
            let at = |name: &str| format!("vision_model.embeddings.{name}");
            f(&at("class_embedding"), &[d], &mut self.class)?;
            f(&at("position_embedding.weight"), &[stored, d], &mut self.positions)?;
            f(&at("patch_embedding.weight"), &[d, 3, p, p], &mut self.patch.0)?;
            return visit_norm(&mut self.pre_norm, "vision_model.pre_layrnorm", d, f);
        }
        let at = |name: &str| format!("embeddings.{name}");
        let rows = stored + usize::from(spec.distilled);
        f(&at("cls_token"), &[1, 1, d], &mut self.class)?;
        f(&at("position_embeddings"), &[1, rows, d], &mut self.positions)?;
        f(&at("patch_embeddings.projection.weight"), &[d, 3, p, p], &mut self.patch.0)?;
        f(&at("patch_embeddings.projection.bias"), &[d], &mut self.patch.1)?;
        if spec.distilled {
            f(&at("distillation_token"), &[1, 1, d], &mut self.registers)?;
        } else if spec.registers > 0 {
            f(&at("register_tokens"), &[1, spec.registers, d], &mut self.registers)?;
        }
        Ok(())
    }

    /// Reads its tensors by `get`.
    pub(super) fn read(get: Get, spec: &Spec) -> Result<Self> {
        let mut weights = Self::default();
        weights.visit(spec, &mut reading(get))?;
        if spec.family == Family::Clip {
            weights.patch.1 = vec![0.0; spec.vision.width];
        }
        Ok(weights)
    }
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
        let embedding = Embedding::new(spec, image_size, EmbeddingWeights::read(get, spec)?, precision)?;
        // One at a time, so that one block at most is in memory twice.
        let blocks = (0..tower.depth)
            .map(|i| Ok(Block::new(tower, &read_block(get, spec, i)?, precision)))
            .collect::<Result<_>>()?;
        let tower =
            Tower { embedding, blocks, post_norm: norm(get, post_norm_name(spec), tower.width)?, eps: tower.eps };
        Ok(Self { tower, precision, limit: None, workspaces: Mutex::default() })
    }
}
