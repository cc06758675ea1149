//! An image tower in a graph: images to tokens, blocks with prompts, and what is read of them. Any backbone whose `Spec` says what
//! it is, so every family that is read.

use crate::block::{BlockContext, BlockReader, activation, attention, block, plain_linear};
use crate::graph::{Attr, Dim, Element, Graph, Value};
use crate::prompts::{ImagePrompts, SharedKeysValues};
use vpt_backbone::{
    spec::{Pool, Spec},
    vit::{PlainEmbedding, PlainPool, PlainTower},
};
use vpt_base::{Error, Result};
use vpt_image::Preprocess;
use vpt_model::prompt::pixels::{PixelPrompt, PixelShape};

/// What images are when they come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelForm {
    /// RGB from 0 to 1: mean and deviation are part of the patch embedding.
    Unit,
    /// Normalised with the backbone's mean and deviation.
    Normalized,
}

impl PixelForm {
    /// Factor and shift of each channel that make normalised values of this form.
    fn to_normalized(self, preprocess: &Preprocess) -> [(f64, f64); 3] {
        std::array::from_fn(|c| {
            let std = f64::from(preprocess.std[c]);
            match self {
                Self::Unit => (255. * preprocess.rescale / std, -f64::from(preprocess.mean[c]) / std),
                Self::Normalized => (1., 0.),
            }
        })
    }
}

/// An image tower that is being put into a graph.
pub(crate) struct ImageTower<'a> {
    pub(crate) tower: &'a PlainTower<'a>,
    pub(crate) blocks: &'a BlockReader<'a>,
    pub(crate) preprocess: &'a Preprocess,
    pub(crate) form: PixelForm,
    pub(crate) pixels: Option<(&'a PixelPrompt, &'a [f32])>,
    pub(crate) prompts: &'a ImagePrompts,
}

/// What is read of an image tower.
pub(crate) enum TowerOutput {
    /// Features `[B, m D]`.
    Features(Value),
    /// Patch tokens `[B, N, D]` behind some blocks.
    Levels(Vec<Value>),
}

/// What shall be read.
#[derive(Clone, Copy)]
pub(crate) enum TowerRead<'r> {
    /// What a pool makes of the tokens.
    Pooled(Pool),
    /// The patches behind so many blocks, ascending.
    Levels(&'r [usize]),
}

impl<'a> ImageTower<'a> {
    fn spec(&self) -> &'a Spec {
        self.tower.spec()
    }

    /// Side of the images that come in.
    pub(crate) fn input_side(&self) -> usize {
        self.pixels.map_or(self.tower.image_size(), |(pixels, _)| pixels.input_side())
    }

    /// Puts all of it into `graph`, with an input `name`.
    ///
    /// # Errors
    /// The checkpoint cannot be read any more.
    pub(crate) fn build(&self, graph: &mut Graph<'a>, name: &str, read: TowerRead) -> Result<TowerOutput> {
        let spec = self.spec();
        let (d, depth) = (spec.vision.width, spec.vision.depth);
        let prefix = spec.prefix_tokens();
        let own = prefix + self.tower.grid().pow(2);
        let side = self.input_side();
        let dims = [Dim::Named("batch"), Dim::Fixed(3), Dim::Fixed(side), Dim::Fixed(side)];
        let images = graph.input(name, Element::F32, &dims);
        graph.scope("embeddings");
        let images = self.with_pixels(graph, images)?;
        let PlainEmbedding { patch, prefix: tokens, positions, pre_norm } = self.tower.embedding()?;
        let mut x = self.tokens(graph, &images, (patch.weight, patch.bias), tokens, positions);
        let mut rows = own;
        let inserted = self.prompts.inserted.as_ref();
        if let Some((0, tokens)) = inserted {
            x = insert(graph, &x, tokens, d);
            rows += tokens.len() / d;
        }
        if let Some([scale, shift]) = pre_norm {
            let norm = [graph.floats("pre_norm.weight", &[d], scale), graph.floats("pre_norm.bias", &[d], shift)];
            x = graph.layer_norm(&x, d, Some(norm), spec.vision.eps);
        }
        let shared = self.shared(graph)?;
        let mut tables: Option<(usize, [Value; 2])> = None;
        let mut levels = Vec::new();
        let last = match read {
            TowerRead::Pooled(_) => depth,
            TowerRead::Levels(levels) => levels.last().copied().unwrap_or(0),
        };
        for index in 0..=last {
            if let TowerRead::Levels(reads) = read {
                let of_block = reads.iter().filter(|&&after| after == index);
                for _ in of_block {
                    levels.push(graph.slice(&x, 1, prefix, own));
                }
            }
            if index == last {
                break;
            }
            graph.scope(format!("blocks.{index}"));
            if let Some((at, tokens)) = inserted
                && *at == index
                && index > 0
            {
                x = insert(graph, &x, tokens, d);
                rows += tokens.len() / d;
            }
            if spec.rotary.is_some() && tables.as_ref().is_none_or(|(of, _)| *of != rows) {
                tables = Some((rows, self.tables(graph, rows)));
            }
            let class_only = matches!(read, TowerRead::Pooled(Pool::ClassToken)) && index + 1 == depth;
            let seen = BlockContext {
                shared: shared.get(index).and_then(Option::as_ref).map(|(values, rows)| (values, *rows)),
                turn: tables.as_ref().map(|(_, tables)| tables),
                mask: None,
                first_only: class_only,
            };
            x = block(graph, self.blocks, &spec.vision, index, &x, seen);
        }
        match read {
            TowerRead::Levels(_) => Ok(TowerOutput::Levels(levels)),
            TowerRead::Pooled(pool) => self.pooled(graph, &x, pool, own).map(TowerOutput::Features),
        }
    }

    /// The images with prompt pixels on them, in the form that they come in.
    fn with_pixels(&self, graph: &mut Graph<'a>, images: Value) -> Result<Value> {
        let cast = |graph: &mut Graph<'a>, x: Value| {
            if graph.element == Element::F32 { x } else { graph.cast(&x, graph.element) }
        };
        let Some((prompt, values)) = self.pixels else { return Ok(cast(graph, images)) };
        let side = self.tower.image_size();
        let inner = prompt.input_side();
        // What the prompt makes of black images, of which it is everything: it is added, or fills what an image has not.
        let empty = vec![0.; 3 * inner * inner];
        let mut added = prompt.apply(values, &empty, &vpt_model::prompt::pixels::Places::Same)?;
        let frame = matches!(prompt.shape(), PixelShape::Frame { .. });
        let to_normalized = self.form.to_normalized(self.preprocess);
        let margin = (side - inner) / 2;
        for (channel, (factor, shift)) in added.chunks_exact_mut(side * side).zip(to_normalized) {
            for (at, value) in channel.iter_mut().enumerate() {
                let (y, x) = (at / side, at % side);
                let inside = |v: usize| (margin..side - margin).contains(&v);
                let filled = frame && !(inside(y) && inside(x));
                *value = ((f64::from(*value) - if filled { shift } else { 0. }) / factor) as f32;
            }
        }
        let mut x = cast(graph, images);
        if inner < side {
            let margin = margin as i64;
            let far = (side - inner) as i64 - margin;
            let pads = graph.ints(&[0, 0, margin, margin, 0, 0, far, far]);
            x = graph.node("Pad", &[&x, &pads]);
        }
        let fixed = [1, 3, side, side];
        let prompt = graph.of_task("prompt.pixels", &fixed.map(Dim::Fixed), &fixed, added);
        Ok(graph.add(&x, &prompt))
    }

    /// Tokens `[B, T, D]` of images.
    fn tokens(
        &self,
        graph: &mut Graph<'a>,
        images: &Value,
        (mut weight, mut bias): (Vec<f32>, Vec<f32>),
        prefix: Vec<f32>,
        positions: Vec<f32>,
    ) -> Value {
        let spec = self.spec();
        let (d, p) = (spec.vision.width, spec.patch_size);
        let patches = self.tower.grid().pow(2);
        let to_normalized = self.form.to_normalized(self.preprocess);
        for (row, bias) in weight.chunks_exact_mut(3 * p * p).zip(&mut bias) {
            let mut sum = f64::from(*bias);
            for (of_channel, (factor, shift)) in row.chunks_exact_mut(p * p).zip(to_normalized) {
                sum += shift * of_channel.iter().map(|&w| f64::from(w)).sum::<f64>();
                for w in of_channel {
                    *w = (f64::from(*w) * factor) as f32;
                }
            }
            *bias = sum as f32;
        }
        let weight = graph.floats("patch.weight", &[d, 3, p, p], weight);
        let bias = graph.floats("patch.bias", &[d], bias);
        let sides = vec![p as i64; 2];
        let attributes = vec![("kernel_shape", Attr::Ints(sides.clone())), ("strides", Attr::Ints(sides))];
        let x = graph.node_with("Conv", &[images, &weight, &bias], attributes);
        let x = graph.reshape(&x, &[0, d as i64, patches as i64]);
        let mut x = graph.transpose(&x, &[0, 2, 1]);
        if spec.positions.is_some() {
            let positions = graph.floats("positions", &[1, patches, d], positions);
            x = graph.add(&x, &positions);
        }
        if prefix.is_empty() {
            return x;
        }
        let count = prefix.len() / d;
        let prefix = graph.floats("prefix", &[1, count, d], prefix);
        let prefix = graph.for_each_image(&prefix, &[count, d]);
        graph.concat(&[&prefix, &x], 1)
    }

    /// Of each block the shared keys `[1, H, d, R]` and values `[1, H, R, d]`, and R.
    #[allow(clippy::type_complexity, reason = "a pair and its rows")]
    fn shared(&self, graph: &mut Graph<'a>) -> Result<Vec<Option<([Value; 2], usize)>>> {
        let spec = &self.spec().vision;
        let (d, heads, head_dim) = (spec.width, spec.heads, spec.head_dim());
        let of_block = |shared: &SharedKeysValues| {
            let rows = shared.keys.len() / d;
            let (mut keys, mut values) = (vec![0.; rows * d], vec![0.; rows * d]);
            for row in 0..rows {
                for i in 0..d {
                    let (head, at) = (i / head_dim, i % head_dim);
                    keys[(head * head_dim + at) * rows + row] = shared.keys[row * d + i];
                    values[(head * rows + row) * head_dim + at] = shared.values[row * d + i];
                }
            }
            (keys, values, rows)
        };
        let blocks: Vec<_> = self.prompts.shared.iter().map(|shared| shared.as_ref().map(of_block)).collect();
        if !graph.task_input {
            let put = |(index, block): (usize, Option<(Vec<f32>, Vec<f32>, usize)>)| {
                block.map(|(keys, values, rows)| {
                    graph.scope(format!("blocks.{index}"));
                    let keys = graph.floats("prompt.keys", &[1, heads, head_dim, rows], keys);
                    let values = graph.floats("prompt.values", &[1, heads, rows, head_dim], values);
                    ([keys, values], rows)
                })
            };
            return Ok(blocks.into_iter().enumerate().map(put).collect());
        }
        let rows: Vec<usize> = blocks.iter().flatten().map(|(.., rows)| *rows).collect();
        let Some(&first) = rows.first() else { return Ok(vec![None; blocks.len()]) };
        if rows.iter().any(|&other| other != first) {
            return Err(Error::setting("task_input", "blocks with prompts of different numbers cannot be one input"));
        }
        let (mut all_keys, mut all_values) = (Vec::new(), Vec::new());
        for (keys, values, _) in blocks.iter().flatten() {
            all_keys.extend(keys);
            all_values.extend(values);
        }
        graph.scope("");
        let count = rows.len();
        let shape = [count, heads, head_dim, first];
        let keys = graph.of_task("prompt.keys", &shape.map(Dim::Fixed), &shape, all_keys);
        let shape = [count, heads, first, head_dim];
        let values = graph.of_task("prompt.values", &shape.map(Dim::Fixed), &shape, all_values);
        let mut layer = 0;
        let mut all = Vec::new();
        for (index, block) in blocks.iter().enumerate() {
            all.push(block.as_ref().map(|_| {
                graph.scope(format!("blocks.{index}"));
                let of_layer = [graph.slice(&keys, 0, layer, layer + 1), graph.slice(&values, 0, layer, layer + 1)];
                layer += 1;
                (of_layer, first)
            }));
        }
        Ok(all)
    }

    /// Tables `[rows, head_dim]` that turn the patches' queries and keys and leave others alone.
    fn tables(&self, graph: &mut Graph<'a>, rows: usize) -> [Value; 2] {
        let (spec, angles) = (self.spec(), self.tower.rotary_angles().unwrap_or_default());
        let head_dim = spec.vision.head_dim();
        let half = head_dim / 2;
        let prefix = spec.prefix_tokens();
        let (mut cos, mut sin) = (vec![1.; rows * head_dim], vec![0.; rows * head_dim]);
        for (patch, angles) in angles.chunks_exact(half).enumerate() {
            let at = (prefix + patch) * head_dim;
            for (j, angle) in angles.iter().enumerate() {
                (cos[at + j], cos[at + half + j]) = (angle.cos() as f32, angle.cos() as f32);
                (sin[at + j], sin[at + half + j]) = (-angle.sin() as f32, angle.sin() as f32);
            }
        }
        [("rotary.cos", cos), ("rotary.sin", sin)].map(|(name, table)| graph.floats(name, &[rows, head_dim], table))
    }

    /// What `pool` makes of the rows behind the last block, of which the first `own` are the image's.
    fn pooled(&self, graph: &mut Graph<'a>, x: &Value, pool: Pool, own: usize) -> Result<Value> {
        let spec = &self.spec().vision;
        let (d, eps) = (spec.width, spec.eps);
        graph.scope("pool");
        if pool == Pool::Attention {
            let pool = self.tower.pool()?.ok_or_else(|| Error::invalid("pool", "attention without weights"))?;
            let rows = graph.slice(x, 1, 0, own);
            let n = graph.layer_norm(&rows, d, None, eps);
            return Ok(self.attention_pool(graph, &n, &pool));
        }
        let [scale, shift] = self.tower.post_norm()?;
        let norm = [graph.floats("norm.weight", &[d], scale), graph.floats("norm.bias", &[d], shift)];
        let rows = match pool {
            Pool::ClassToken => graph.slice(x, 1, 0, 1),
            _ => graph.slice(x, 1, 0, own),
        };
        let n = graph.layer_norm(&rows, d, Some(norm), eps);
        let mut parts = Vec::new();
        if pool.reads_class_token() {
            let class = if pool == Pool::ClassToken { n.clone() } else { graph.slice(&n, 1, 0, 1) };
            parts.push(graph.reshape(&class, &[-1, d as i64]));
        }
        if pool.reads_patches() {
            let patches = graph.slice(&n, 1, self.spec().prefix_tokens(), own);
            parts.push(graph.mean(&patches, 1));
        }
        Ok(graph.concat(&parts.iter().collect::<Vec<_>>(), 1))
    }

    /// Attention pooling of normalised rows `[B, T, D]`.
    fn attention_pool(&self, graph: &mut Graph<'a>, n: &Value, pool: &PlainPool) -> Value {
        let spec = &self.spec().vision;
        let d = spec.width;
        let query = graph.floats("query", &[1, 1, d], pool.query.clone());
        let query = graph.for_each_image(&query, &[1, d]);
        let k = plain_linear(graph, "k", n, &pool.k);
        let v = plain_linear(graph, "v", n, &pool.v);
        let mixed = attention(graph, [query, k, v], spec.heads, d, BlockContext::default());
        let x = plain_linear(graph, "out", &mixed, &pool.out);
        let n = graph.layer_norm(&x, d, None, spec.eps);
        let hidden = plain_linear(graph, "fc1", &n, &pool.fc1);
        let hidden = activation(graph, &hidden, spec.activation);
        let y = plain_linear(graph, "fc2", &hidden, &pool.fc2);
        let x = graph.add(&x, &y);
        graph.reshape(&x, &[-1, d as i64])
    }
}

/// `x` `[B, T, D]` with `tokens` `[P, D]` behind it.
fn insert(graph: &mut Graph, x: &Value, tokens: &[f32], d: usize) -> Value {
    let count = tokens.len() / d;
    let shape = [1, count, d];
    let tokens = graph.of_task("prompt.tokens", &shape.map(Dim::Fixed), &shape, tokens.to_vec());
    let tokens = graph.for_each_image(&tokens, &[count, d]);
    graph.concat(&[x, &tokens], 1)
}
