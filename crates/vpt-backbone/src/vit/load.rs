//! The tensors of a checkpoint, by the names of the family ([`crate::names`]), into what the tower is made of.

use std::sync::{Arc, Mutex};

use super::attention_pool::{AttentionPool, AttentionPoolWeights};
use super::block::{Block, BlockWeights, PatchTurn};
use super::embed::{Embedding, EmbeddingWeights};
use super::tower::Tower;
use super::{Vit, engine};
use crate::engine::Compute;
use crate::names::{AttentionPoolNames, BlockNames};
use crate::position::rotary_angles;
use crate::spec::{Pool, Spec, TowerSpec};
use crate::weights::Weights;
use vpt_base::Result;
use vpt_kernel::{Precision, Rotation};

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

/// Visits weight and, if it has one, bias of the layer `name`.
fn visit_layer(
    (weight, bias): &mut (Vec<f32>, Vec<f32>),
    name: &str,
    shape: &[usize],
    has_bias: bool,
    f: Visit,
) -> Result<()> {
    f(&format!("{name}.weight"), shape, weight)?;
    if has_bias { f(&format!("{name}.bias"), &shape[..1], bias) } else { Ok(()) }
}

/// Visits two layers of `shape` and with biases that are one layer here, the rows of the first before those of the second.
fn visit_halves(
    (weight, bias): &mut (Vec<f32>, Vec<f32>),
    names: [String; 2],
    shape: &[usize],
    f: Visit,
) -> Result<()> {
    let rest = |values: &mut Vec<f32>, len: usize| values.split_off(len.min(values.len()));
    let mut second = (rest(weight, shape.iter().product()), rest(bias, shape[0]));
    let [one, two] = names;
    f(&format!("{one}.weight"), shape, weight)?;
    f(&format!("{one}.bias"), &shape[..1], bias)?;
    visit_layer(&mut second, &two, shape, true, f)?;
    weight.append(&mut second.0);
    bias.append(&mut second.1);
    Ok(())
}

impl BlockWeights {
    /// Visits the tensors of block `index`. A bias that it does not have is no tensor.
    pub(super) fn visit(&mut self, names: &BlockNames, index: usize, tower: &TowerSpec, f: Visit) -> Result<()> {
        let (d, hidden) = (tower.width, tower.mlp);
        let at = |name: &str| names.at(index, name);
        for ((layer, name), has_bias) in self.qkv.iter_mut().zip(names.qkv).zip(tower.qkv_bias.each()) {
            visit_layer(layer, &at(name), &[d, d], has_bias, f)?;
        }
        visit_layer(&mut self.out, &at(names.out), &[d, d], true, f)?;
        let [fc1, fc2] = if tower.gated { ["", names.gated_mlp.out] } else { names.mlp };
        match (tower.gated, names.gated_mlp.halves) {
            (true, [gate, up]) => visit_halves(&mut self.fc1, [at(gate), at(up)], &[hidden, d], f)?,
            (true, both) => visit_layer(&mut self.fc1, &at(&both.concat()), &[2 * hidden, d], true, f)?,
            _ => visit_layer(&mut self.fc1, &at(fc1), &[hidden, d], true, f)?,
        }
        visit_layer(&mut self.fc2, &at(fc2), &[d, hidden], true, f)?;
        visit_norm(&mut self.norm1, &at(names.norm1), d, f)?;
        visit_norm(&mut self.norm2, &at(names.norm2), d, f)?;
        for (scale, name) in self.layer_scale.iter_mut().flatten().zip(names.layer_scale) {
            f(&at(name), &[d], scale)?;
        }
        Ok(())
    }

    /// The tensors of block `index`, as `get` gives them; zeros for biases that it does not have.
    pub(crate) fn read(get: Get, names: &BlockNames, index: usize, tower: &TowerSpec) -> Result<Self> {
        let layer_scale = tower.layer_scale.then(Default::default);
        let mut block = Self { layer_scale, ..Self::default() };
        block.visit(names, index, tower, &mut reading(get))?;
        for ((_, bias), has_bias) in block.qkv.iter_mut().zip(tower.qkv_bias.each()) {
            if !has_bias {
                *bias = vec![0.0; tower.width];
            }
        }
        Ok(block)
    }
}

/// Block `index` of the image tower.
pub(super) fn read_block(get: Get, spec: &Spec, index: usize) -> Result<BlockWeights> {
    BlockWeights::read(get, &spec.family.vision.blocks, index, &spec.vision)
}

impl EmbeddingWeights {
    /// Visits what stands before the first block.
    pub(super) fn visit(&mut self, spec: &Spec, f: Visit) -> Result<()> {
        let (names, d, p) = (&spec.family.vision, spec.vision.width, spec.patch_size);
        if spec.class_token {
            f(names.class_token.name, &names.class_token.shape(&[d]), &mut self.class)?;
        }
        if spec.positions.is_some() {
            let shape = names.positions.shape(&[spec.stored_positions(), d]);
            f(names.positions.name, &shape, &mut self.positions)?;
        }
        visit_layer(&mut self.patch, names.patch, &[d, 3, p, p], spec.patch_bias, f)?;
        if spec.registers > 0 {
            f(names.registers.name, &names.registers.shape(&[spec.registers, d]), &mut self.registers)?;
        }
        if spec.pre_norm {
            visit_norm(&mut self.pre_norm, names.pre_norm, d, f)?;
        }
        Ok(())
    }

    /// Reads its tensors by `get`; zeros for a bias that there is not.
    pub(super) fn read(get: Get, spec: &Spec) -> Result<Self> {
        let mut weights = Self::default();
        weights.visit(spec, &mut reading(get))?;
        if !spec.patch_bias {
            weights.patch.1 = vec![0.0; spec.vision.width];
        }
        Ok(weights)
    }
}

impl AttentionPoolWeights {
    /// Visits the tensors of the pooling that is called `names`.
    pub(super) fn visit(&mut self, names: &AttentionPoolNames, tower: &TowerSpec, f: Visit) -> Result<()> {
        let (d, hidden, layers) = (tower.width, tower.mlp, &mut self.layers);
        f(names.query.name, &names.query.shape(&[d]), &mut self.query)?;
        for (layer, name) in layers.qkv.iter_mut().zip(names.qkv) {
            visit_layer(layer, name, &[d, d], true, f)?;
        }
        visit_layer(&mut layers.out, names.out, &[d, d], true, f)?;
        visit_layer(&mut layers.fc1, names.mlp[0], &[hidden, d], true, f)?;
        visit_layer(&mut layers.fc2, names.mlp[1], &[d, hidden], true, f)?;
        visit_norm(&mut layers.norm2, names.norm, d, f)
    }

    /// Reads the pooling of the tower that `spec` describes by `get`; `None` where it has no weights.
    pub(super) fn read(get: Get, spec: &Spec) -> Result<Option<Self>> {
        let Some(names) = spec.family.vision.attention_pool.filter(|_| spec.pool == Pool::Attention) else {
            return Ok(None);
        };
        let mut weights = Self::default();
        weights.visit(&names, &spec.vision, &mut reading(get))?;
        Ok(Some(weights))
    }
}

impl Vit {
    /// Loads the image tower `spec` describes for square images of `image_size` pixels; position embeddings are
    /// interpolated. Weights are kept, and products computed, in `precision`.
    ///
    /// # Errors
    /// `image_size` is no multiple of the patch size, the specification contradicts itself, or a tensor is missing or has another shape.
    pub fn load(spec: &Spec, weights: &Weights, image_size: usize, precision: Precision) -> Result<Self> {
        Self::load_on(spec, weights, image_size, precision, Compute::default())
    }

    /// [`Self::load`] on another engine or device.
    ///
    /// # Errors
    /// As [`Self::load`], or there is no such engine or device.
    pub fn load_on(
        spec: &Spec,
        weights: &Weights,
        image_size: usize,
        precision: Precision,
        compute: Compute,
    ) -> Result<Self> {
        spec.check()?;
        spec.check_image_size(image_size)?;
        let tower = &spec.vision;
        let other = engine::open(spec, weights, image_size, precision, compute)?;
        let get: Get = &|name, shape| weights.get(name, shape);
        let embedding = Embedding::new(spec, image_size, EmbeddingWeights::read(get, spec)?, precision)?;
        // What another engine computes is not packed here. One at a time, so that one block at most is in memory twice.
        let blocks = (0..if other.is_some() { 0 } else { tower.depth })
            .map(|i| Ok(Block::new(tower, &read_block(get, spec, i)?, precision)))
            .collect::<Result<_>>()?;
        let post_norm = norm(get, spec.family.vision.post_norm, tower.width)?;
        let attention_pool = if other.is_some() { None } else { AttentionPoolWeights::read(get, spec)? };
        let attention_pool = attention_pool.map(|weights| AttentionPool::new(tower, &weights, &post_norm, precision));
        let turn = spec.rotary.map(|rotary| {
            let (grid, head_dim) = (image_size / spec.patch_size, tower.head_dim());
            let angles = rotary_angles(rotary, head_dim, (grid, grid));
            Arc::new(PatchTurn { prefix: spec.prefix_tokens(), rotation: Rotation::new(head_dim / 2, &angles) })
        });
        let (depth, eps) = (tower.depth, tower.eps);
        let tower = Tower { embedding, blocks, turn, post_norm, attention_pool, eps };
        Ok(Self {
            tower,
            depth,
            compute,
            other,
            pool: spec.pool,
            class_token: spec.class_token,
            precision,
            limit: None,
            workspaces: Mutex::default(),
        })
    }
}
