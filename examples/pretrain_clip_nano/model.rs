//! A small CLIP with a hand-written backward pass: the parameters in one flat vector, named as transformers'
//! `CLIPModel` names them, and both towers over packed sequences.

use std::ops::Range;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::ops::{self, View, dot, layer_norm, layer_norm_backward, linear, linear_backward, matmul};
use crate::ops::{quick_gelu, quick_gelu_backward, softmax};

/// Sizes of a tower.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TowerConfig {
    /// Values per token, D.
    pub(crate) width: usize,
    /// Number of blocks.
    pub(crate) depth: usize,
    /// Attention heads.
    pub(crate) heads: usize,
}

/// Sizes of the whole model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    /// Side of the square images, pixels.
    pub(crate) image: usize,
    /// Side of a patch, pixels.
    pub(crate) patch: usize,
    /// The image tower.
    pub(crate) vision: TowerConfig,
    /// The text tower.
    pub(crate) text: TowerConfig,
    /// Number of token ids.
    pub(crate) vocab: usize,
    /// Most tokens of a text.
    pub(crate) context: usize,
    /// Length of the embeddings both towers end in.
    pub(crate) projection: usize,
}

impl Config {
    /// Patches per image.
    pub(crate) fn patches(&self) -> usize {
        (self.image / self.patch).pow(2)
    }

    /// Values per patch.
    pub(crate) fn patch_values(&self) -> usize {
        3 * self.patch * self.patch
    }
}

/// A named tensor inside the flat parameter vector.
pub(crate) struct Slot {
    /// transformers' name.
    pub(crate) name: String,
    /// Its shape.
    pub(crate) shape: Vec<usize>,
    /// Where it lies.
    pub(crate) range: Range<usize>,
    /// Standard deviation of its random start; 0 starts at `start`.
    spread: f32,
    start: f32,
}

struct Norm {
    w: Range<usize>,
    b: Range<usize>,
}

struct Block {
    norm1: Norm,
    qkv_w: Range<usize>,
    qkv_b: Range<usize>,
    out_w: Range<usize>,
    out_b: Range<usize>,
    norm2: Norm,
    fc1_w: Range<usize>,
    fc1_b: Range<usize>,
    fc2_w: Range<usize>,
    fc2_b: Range<usize>,
}

struct Tower {
    config: TowerConfig,
    causal: bool,
    blocks: Vec<Block>,
}

/// Where everything lies in the parameter vector.
pub(crate) struct Model {
    /// Sizes.
    pub(crate) config: Config,
    /// Every tensor, in order.
    pub(crate) slots: Vec<Slot>,
    class: Range<usize>,
    patch: Range<usize>,
    vision_position: Range<usize>,
    pre_norm: Norm,
    vision: Tower,
    post_norm: Norm,
    visual_projection: Range<usize>,
    token: Range<usize>,
    text_position: Range<usize>,
    text: Tower,
    final_norm: Norm,
    text_projection: Range<usize>,
    /// The learned logarithm of the temperature's inverse.
    pub(crate) logit_scale: Range<usize>,
}

#[derive(Default)]
struct Builder {
    slots: Vec<Slot>,
    end: usize,
}

impl Builder {
    fn tensor(&mut self, name: String, shape: &[usize], spread: f32, start: f32) -> Range<usize> {
        let range = self.end..self.end + shape.iter().product::<usize>();
        self.end = range.end;
        self.slots.push(Slot { name, shape: shape.to_vec(), range: range.clone(), spread, start });
        range
    }

    fn norm(&mut self, name: &str, width: usize) -> Norm {
        Norm {
            w: self.tensor(format!("{name}.weight"), &[width], 0.0, 1.0),
            b: self.tensor(format!("{name}.bias"), &[width], 0.0, 0.0),
        }
    }

    fn tower(&mut self, name: &str, config: TowerConfig, causal: bool) -> Tower {
        let d = config.width;
        let spread = (d as f32).powf(-0.5);
        // The two products that write to the residual stream start smaller the deeper the tower, as in CLIP.
        let residual = spread * (2.0 * config.depth as f32).powf(-0.5);
        let blocks = (0..config.depth)
            .map(|i| {
                let at = format!("{name}.encoder.layers.{i}");
                let norm1 = self.norm(&format!("{at}.layer_norm1"), d);
                let mut fused = [("weight", spread), ("bias", 0.0)].map(|(kind, spread)| {
                    let shape: &[usize] = if kind == "weight" { &[d, d] } else { &[d] };
                    let parts = ["q_proj", "k_proj", "v_proj"]
                        .map(|part| self.tensor(format!("{at}.self_attn.{part}.{kind}"), shape, spread, 0.0));
                    parts[0].start..parts[2].end
                });
                let [qkv_w, qkv_b] = [std::mem::take(&mut fused[0]), std::mem::take(&mut fused[1])];
                Block {
                    norm1,
                    qkv_w,
                    qkv_b,
                    out_w: self.tensor(format!("{at}.self_attn.out_proj.weight"), &[d, d], residual, 0.0),
                    out_b: self.tensor(format!("{at}.self_attn.out_proj.bias"), &[d], 0.0, 0.0),
                    norm2: self.norm(&format!("{at}.layer_norm2"), d),
                    fc1_w: self.tensor(format!("{at}.mlp.fc1.weight"), &[4 * d, d], spread, 0.0),
                    fc1_b: self.tensor(format!("{at}.mlp.fc1.bias"), &[4 * d], 0.0, 0.0),
                    fc2_w: self.tensor(format!("{at}.mlp.fc2.weight"), &[d, 4 * d], residual / 2.0, 0.0),
                    fc2_b: self.tensor(format!("{at}.mlp.fc2.bias"), &[d], 0.0, 0.0),
                }
            })
            .collect();
        Tower { config, causal, blocks }
    }
}

impl Model {
    /// Lays the parameters out.
    pub(crate) fn new(config: Config) -> Self {
        let Config { patch, vision, text, vocab, context, projection, .. } = config;
        let (v, t) = (vision.width, text.width);
        let mut b = Builder::default();
        let class = b.tensor("vision_model.embeddings.class_embedding".into(), &[v], 0.02, 0.0);
        let name = "vision_model.embeddings.patch_embedding.weight";
        let patch_w = b.tensor(name.into(), &[v, 3, patch, patch], (config.patch_values() as f32).powf(-0.5), 0.0);
        let name = "vision_model.embeddings.position_embedding.weight";
        let vision_position = b.tensor(name.into(), &[config.patches() + 1, v], 0.05, 0.0);
        // transformers spells it so.
        let pre_norm = b.norm("vision_model.pre_layrnorm", v);
        let vision = b.tower("vision_model", vision, false);
        let post_norm = b.norm("vision_model.post_layernorm", v);
        let spread = (v as f32).powf(-0.5);
        let visual_projection = b.tensor("visual_projection.weight".into(), &[projection, v], spread, 0.0);
        let token = b.tensor("text_model.embeddings.token_embedding.weight".into(), &[vocab, t], 0.05, 0.0);
        let name = "text_model.embeddings.position_embedding.weight";
        let text_position = b.tensor(name.into(), &[context, t], 0.02, 0.0);
        let text = b.tower("text_model", text, true);
        let final_norm = b.norm("text_model.final_layer_norm", t);
        let spread = (t as f32).powf(-0.5);
        let text_projection = b.tensor("text_projection.weight".into(), &[projection, t], spread, 0.0);
        let logit_scale = b.tensor("logit_scale".into(), &[], 0.0, (1.0_f32 / 0.07).ln());
        Self {
            config,
            slots: b.slots,
            class,
            patch: patch_w,
            vision_position,
            pre_norm,
            vision,
            post_norm,
            visual_projection,
            token,
            text_position,
            text,
            final_norm,
            text_projection,
            logit_scale,
        }
    }

    /// Number of parameters.
    pub(crate) fn len(&self) -> usize {
        self.logit_scale.end
    }

    /// Random starting values, `[len]`.
    pub(crate) fn start(&self, rng: &mut ChaCha8Rng) -> Vec<f32> {
        let mut theta = Vec::with_capacity(self.len());
        for slot in &self.slots {
            if slot.range == self.vision_position {
                theta.extend(waves(self.config.image / self.config.patch, self.config.vision.width));
                continue;
            }
            theta.extend(slot.range.clone().map(|_| {
                if slot.spread == 0.0 {
                    return slot.start;
                }
                // Box and Muller's transform.
                let (u, v): (f32, f32) = (1.0 - rng.random::<f32>(), rng.random());
                slot.spread * (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
            }));
        }
        theta
    }

    /// Which parameters weight decay applies to: matrices, but neither embeddings of tokens and positions nor norms.
    pub(crate) fn decays(slot: &Slot) -> bool {
        slot.shape.len() >= 2 && !slot.name.contains("position_embedding") && !slot.name.contains("token_embedding")
    }
}

/// Where the image tower's position embeddings start, `[1 + side², D]`: for each patch sines and cosines of its column
/// and row (Vaswani et al. 2017, in two dimensions), zero for the class token. A small model on few images finds
/// neighbourhoods sooner from here than from noise.
fn waves(side: usize, d: usize) -> Vec<f32> {
    let quarter = d / 4;
    let mut all = vec![0.0; d];
    for (y, x) in (0..side).flat_map(|y| (0..side).map(move |x| (y, x))) {
        for (at, phase) in [(x, 0.0), (x, 0.25), (y, 0.0), (y, 0.25)] {
            all.extend((0..quarter).map(|i| {
                // Wavelengths from two patches to about the image's side.
                let turns = at as f32 / 2.0_f32.powf(1.0 + 3.0 * i as f32 / quarter as f32);
                0.5 * ((turns + phase) * std::f32::consts::TAU).sin()
            }));
        }
    }
    all
}

/// What a block keeps from its forward pass.
#[derive(Default)]
struct BlockTape {
    x: Vec<f32>,
    qkv: Vec<f32>,
    weights: Vec<f32>,
    mixed: Vec<f32>,
    mid: Vec<f32>,
    hidden: Vec<f32>,
}

/// What a tower keeps from its forward pass over a few sequences; its memory is reused from step to step.
#[derive(Default)]
pub(crate) struct Tape {
    lengths: Vec<usize>,
    read: Vec<usize>,
    ids: Vec<u32>,
    patches: Vec<f32>,
    embedded: Vec<f32>,
    blocks: Vec<BlockTape>,
    last: Vec<f32>,
    normed: Vec<f32>,
    norms: Vec<f32>,
    /// `[sequences, projection]`, of length one.
    pub(crate) embeddings: Vec<f32>,
}

/// Scratch memory of one thread.
#[derive(Default)]
pub(crate) struct Scratch {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    d: Vec<f32>,
}

/// A slice of `n` values of a reused vector; what it held is left in it.
fn sized(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}

/// Calls `f(sequence start row, length, start in the attention weights)` for each sequence and head.
fn for_heads(lengths: &[usize], heads: usize, mut f: impl FnMut(usize, usize, usize, usize)) {
    let (mut row, mut weight) = (0, 0);
    for &n in lengths {
        for head in 0..heads {
            f(row, n, head, weight);
            weight += n * n;
        }
        row += n;
    }
}

impl Tower {
    /// Runs the blocks over `x` `[rows, D]`; the last block goes on with the rows `read` only. Fills `last`
    /// `[sequences, D]`.
    fn forward(&self, theta: &[f32], x: &[f32], tape: &mut TapeParts, scratch: &mut Scratch) {
        let d = self.config.width;
        let heads = self.config.heads;
        let head_width = d / heads;
        let scale = (head_width as f32).powf(-0.5);
        tape.blocks.resize_with(self.blocks.len(), BlockTape::default);
        let rows = x.len() / d;
        let squares: usize = tape.lengths.iter().map(|n| n * n).sum();
        tape.blocks[0].x.clear();
        tape.blocks[0].x.extend_from_slice(x);
        for (index, block) in self.blocks.iter().enumerate() {
            let is_last = index + 1 == self.blocks.len();
            let (left, right) = tape.blocks.split_at_mut(index + 1);
            let t = &mut left[index];
            let n1 = sized(&mut scratch.a, rows * d);
            layer_norm(&t.x, &theta[block.norm1.w.clone()], &theta[block.norm1.b.clone()], n1);
            t.qkv.resize(rows * 3 * d, 0.0);
            linear(n1, &theta[block.qkv_w.clone()], Some(&theta[block.qkv_b.clone()]), d, &mut t.qkv);
            t.weights.resize(squares * heads, 0.0);
            let mixed = sized(&mut scratch.b, rows * d);
            for_heads(tape.lengths, heads, |row, n, head, weight| {
                let at = |part: usize| &t.qkv[row * 3 * d + part * d + head * head_width..];
                let weights = &mut t.weights[weight..weight + n * n];
                let (q, k, v) = (View::rows(at(0), 3 * d), View::rows(at(1), 3 * d), View::rows(at(2), 3 * d));
                matmul((n, head_width, n), q, k.t(), weights, n, false);
                ops::scale(weights, scale);
                for (i, row) in weights.chunks_exact_mut(n).enumerate() {
                    softmax(row, if self.causal { i + 1 } else { n });
                }
                let out = &mut mixed[row * d + head * head_width..];
                matmul((n, n, head_width), View::rows(weights, n), v, out, d, false);
            });
            t.mixed.clear();
            t.mid.clear();
            if is_last {
                for &row in tape.read {
                    t.mixed.extend_from_slice(&mixed[row * d..][..d]);
                    t.mid.extend_from_slice(&t.x[row * d..][..d]);
                }
            } else {
                t.mixed.extend_from_slice(mixed);
                t.mid.extend_from_slice(&t.x);
            }
            let rows = t.mid.len() / d;
            // mid = x + mixed · Woᵀ + bo
            add_bias(&mut t.mid, &theta[block.out_b.clone()]);
            let w = View::rows(&theta[block.out_w.clone()], d).t();
            matmul((rows, d, d), View::rows(&t.mixed, d), w, &mut t.mid, d, true);
            let n2 = sized(&mut scratch.a, rows * d);
            layer_norm(&t.mid, &theta[block.norm2.w.clone()], &theta[block.norm2.b.clone()], n2);
            t.hidden.resize(rows * 4 * d, 0.0);
            linear(n2, &theta[block.fc1_w.clone()], Some(&theta[block.fc1_b.clone()]), d, &mut t.hidden);
            let gelu = sized(&mut scratch.c, rows * 4 * d);
            quick_gelu(&t.hidden, gelu);
            let y = if is_last { &mut *tape.last } else { &mut right[0].x };
            y.clear();
            y.extend_from_slice(&t.mid);
            add_bias(y, &theta[block.fc2_b.clone()]);
            let w = View::rows(&theta[block.fc2_w.clone()], 4 * d).t();
            matmul((rows, 4 * d, d), View::rows(gelu, 4 * d), w, y, d, true);
        }
    }

    /// From the gradient of `last` to that of the input, which is left in `dx` `[rows, D]`; adds to `grad`.
    fn backward(&self, theta: &[f32], tape: &TapeParts, dx: &mut Vec<f32>, grad: &mut [f32], scratch: &mut Scratch) {
        let d = self.config.width;
        let heads = self.config.heads;
        let head_width = d / heads;
        let scale = (head_width as f32).powf(-0.5);
        let all_rows: usize = tape.lengths.iter().sum();
        let longest = tape.lengths.iter().copied().max().unwrap_or(0);
        for (index, block) in self.blocks.iter().enumerate().rev() {
            let is_last = index + 1 == self.blocks.len();
            let t = &tape.blocks[index];
            let rows = dx.len() / d;
            let norm = |norm: &Norm| (norm.w.clone(), norm.b.clone());
            // The MLP: dx is the gradient of its sum with mid.
            let gelu = sized(&mut scratch.c, rows * 4 * d);
            quick_gelu(&t.hidden, gelu);
            let dhidden = sized(&mut scratch.d, rows * 4 * d);
            let (dw, db) = two(grad, &block.fc2_w, &block.fc2_b);
            linear_backward(gelu, &theta[block.fc2_w.clone()], 4 * d, dx, dw, Some(db), Some(dhidden));
            quick_gelu_backward(&t.hidden, dhidden);
            let n2 = sized(&mut scratch.a, rows * d);
            let (w, b) = norm(&block.norm2);
            layer_norm(&t.mid, &theta[w.clone()], &theta[b.clone()], n2);
            let dn2 = sized(&mut scratch.b, rows * d);
            let (dw, db) = two(grad, &block.fc1_w, &block.fc1_b);
            linear_backward(n2, &theta[block.fc1_w.clone()], d, dhidden, dw, Some(db), Some(dn2));
            let (dw, db) = two(grad, &w, &b);
            layer_norm_backward(&t.mid, &theta[w], dn2, dw, db, dx);
            // Attention: dx is the gradient of mid.
            let dmixed = sized(&mut scratch.a, rows * d);
            let (dw, db) = two(grad, &block.out_w, &block.out_b);
            linear_backward(&t.mixed, &theta[block.out_w.clone()], d, dx, dw, Some(db), Some(dmixed));
            if is_last {
                let narrow = std::mem::take(dx);
                dx.resize(all_rows * d, 0.0);
                let wide = sized(&mut scratch.b, all_rows * d);
                wide.fill(0.0);
                for (from, &to) in tape.read.iter().enumerate() {
                    wide[to * d..][..d].copy_from_slice(&dmixed[from * d..][..d]);
                    dx[to * d..][..d].copy_from_slice(&narrow[from * d..][..d]);
                }
                std::mem::swap(&mut scratch.a, &mut scratch.b);
            }
            let dmixed = &scratch.a[..all_rows * d];
            let dqkv = sized(&mut scratch.c, all_rows * 3 * d);
            let dweights = sized(&mut scratch.d, longest * longest);
            for_heads(tape.lengths, heads, |row, n, head, weight| {
                let at = row * 3 * d + head * head_width;
                let part = |part: usize| View::rows(&t.qkv[at + part * d..], 3 * d);
                let weights = &t.weights[weight..weight + n * n];
                let dout = View::rows(&dmixed[row * d + head * head_width..], d);
                let dweights = &mut dweights[..n * n];
                matmul((n, head_width, n), dout, part(2).t(), dweights, n, false);
                let view = View::rows(weights, n);
                matmul((n, n, head_width), view.t(), dout, &mut dqkv[at + 2 * d..], 3 * d, false);
                for (dw, w) in dweights.chunks_exact_mut(n).zip(weights.chunks_exact(n)) {
                    let mean = dot(dw, w);
                    dw.iter_mut().zip(w).for_each(|(dw, w)| *dw = scale * w * (*dw - mean));
                }
                let view = View::rows(dweights, n);
                matmul((n, n, head_width), view, part(1), &mut dqkv[at..], 3 * d, false);
                matmul((n, n, head_width), view.t(), part(0), &mut dqkv[at + d..], 3 * d, false);
            });
            let n1 = sized(&mut scratch.a, all_rows * d);
            let (w, b) = norm(&block.norm1);
            layer_norm(&t.x, &theta[w.clone()], &theta[b.clone()], n1);
            let dn1 = sized(&mut scratch.b, all_rows * d);
            let (dw, db) = two(grad, &block.qkv_w, &block.qkv_b);
            linear_backward(n1, &theta[block.qkv_w.clone()], d, dqkv, dw, Some(db), Some(dn1));
            let (dw, db) = two(grad, &w, &b);
            layer_norm_backward(&t.x, &theta[w], dn1, dw, db, dx);
        }
    }
}

/// The parts of a [`Tape`] the blocks use.
struct TapeParts<'a> {
    lengths: &'a [usize],
    read: &'a [usize],
    blocks: &'a mut Vec<BlockTape>,
    last: &'a mut Vec<f32>,
}

impl Tape {
    fn parts(&mut self) -> TapeParts<'_> {
        TapeParts { lengths: &self.lengths, read: &self.read, blocks: &mut self.blocks, last: &mut self.last }
    }
}

/// Two neighbouring or separate ranges of one slice, the first before the second.
fn two<'a>(all: &'a mut [f32], a: &Range<usize>, b: &Range<usize>) -> (&'a mut [f32], &'a mut [f32]) {
    let (left, right) = all.split_at_mut(b.start);
    (&mut left[a.clone()], &mut right[..b.len()])
}

fn add_bias(rows: &mut [f32], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
    }
}

/// `[B, 3, S, S]` images as `[B · patches, 3 · P · P]`, each patch in the order of the convolution's weight.
fn patchify(images: &[f32], side: usize, patch: usize, out: &mut Vec<f32>) {
    out.clear();
    for image in images.chunks_exact(3 * side * side) {
        for top in (0..side).step_by(patch) {
            for left in (0..side).step_by(patch) {
                for channel in image.chunks_exact(side * side) {
                    for row in top..top + patch {
                        out.extend_from_slice(&channel[row * side + left..][..patch]);
                    }
                }
            }
        }
    }
}

impl Model {
    /// Embeds images `[B, 3, S, S]`; fills `tape.embeddings` `[B, projection]`, rows of length one.
    pub(crate) fn embed_images(&self, theta: &[f32], images: &[f32], tape: &mut Tape, scratch: &mut Scratch) {
        let d = self.config.vision.width;
        let (count, values) = (self.config.patches(), self.config.patch_values());
        patchify(images, self.config.image, self.config.patch, &mut tape.patches);
        let batch = tape.patches.len() / values / count;
        tape.lengths.clear();
        tape.lengths.resize(batch, count + 1);
        tape.read.clear();
        tape.read.extend((0..batch).map(|image| image * (count + 1)));
        let flat = sized(&mut scratch.c, batch * count * d);
        linear(&tape.patches, &theta[self.patch.clone()], None, values, flat);
        let position = &theta[self.vision_position.clone()];
        tape.embedded.resize(batch * (count + 1) * d, 0.0);
        for (rows, flat) in tape.embedded.chunks_exact_mut((count + 1) * d).zip(flat.chunks_exact(count * d)) {
            rows[..d].copy_from_slice(&theta[self.class.clone()]);
            rows[d..].copy_from_slice(flat);
            rows.iter_mut().zip(position).for_each(|(value, position)| *value += position);
        }
        let mut x = std::mem::take(&mut scratch.d);
        let normed = sized(&mut x, tape.embedded.len());
        layer_norm(&tape.embedded, &theta[self.pre_norm.w.clone()], &theta[self.pre_norm.b.clone()], normed);
        self.vision.forward(theta, normed, &mut tape.parts(), scratch);
        scratch.d = x;
        self.project(theta, &self.post_norm, &self.visual_projection, tape);
    }

    /// Embeds texts, given as token ids with their start and end marks; fills `tape.embeddings` `[texts, projection]`.
    pub(crate) fn embed_texts(&self, theta: &[f32], texts: &[Vec<u32>], tape: &mut Tape, scratch: &mut Scratch) {
        let d = self.config.text.width;
        tape.lengths.clear();
        tape.read.clear();
        tape.ids.clear();
        for text in texts {
            tape.lengths.push(text.len());
            tape.ids.extend_from_slice(text);
            // The end mark is the last token: texts are not padded.
            tape.read.push(tape.ids.len() - 1);
        }
        let (token, position) = (&theta[self.token.clone()], &theta[self.text_position.clone()]);
        tape.embedded.clear();
        for text in texts {
            for (&id, position) in text.iter().zip(position.chunks_exact(d)) {
                let token = &token[id as usize * d..][..d];
                tape.embedded.extend(token.iter().zip(position).map(|(a, b)| a + b));
            }
        }
        let x = std::mem::take(&mut tape.embedded);
        self.text.forward(theta, &x, &mut tape.parts(), scratch);
        tape.embedded = x;
        self.project(theta, &self.final_norm, &self.text_projection, tape);
    }

    fn project(&self, theta: &[f32], norm: &Norm, projection: &Range<usize>, tape: &mut Tape) {
        let d = norm.w.len();
        let count = tape.last.len() / d;
        tape.normed.resize(count * d, 0.0);
        layer_norm(&tape.last, &theta[norm.w.clone()], &theta[norm.b.clone()], &mut tape.normed);
        let e = self.config.projection;
        tape.embeddings.resize(count * e, 0.0);
        linear(&tape.normed, &theta[projection.clone()], None, d, &mut tape.embeddings);
        tape.norms.clear();
        for row in tape.embeddings.chunks_exact_mut(e) {
            let length = dot(row, row).sqrt().max(1e-12);
            tape.norms.push(length);
            for value in row {
                *value /= length;
            }
        }
    }

    /// The gradient of the tower's last rows from that of its normalised embeddings.
    fn project_backward(
        &self,
        theta: &[f32],
        (norm, projection): (&Norm, &Range<usize>),
        tape: &Tape,
        gradient: &[f32],
        grad: &mut [f32],
    ) -> Vec<f32> {
        let (d, e) = (norm.w.len(), self.config.projection);
        let mut inner = gradient.to_vec();
        for ((g, unit), length) in inner.chunks_exact_mut(e).zip(tape.embeddings.chunks_exact(e)).zip(&tape.norms) {
            let along = dot(g, unit);
            g.iter_mut().zip(unit).for_each(|(g, unit)| *g = (*g - along * unit) / length);
        }
        let mut dnormed = vec![0.0; tape.normed.len()];
        let w = &theta[projection.clone()];
        let dw = &mut grad[projection.clone()];
        linear_backward(&tape.normed, w, d, &inner, dw, None, Some(&mut dnormed));
        let mut dlast = vec![0.0; tape.last.len()];
        let (dw, db) = two(grad, &norm.w, &norm.b);
        layer_norm_backward(&tape.last, &theta[norm.w.clone()], &dnormed, dw, db, &mut dlast);
        dlast
    }

    /// Adds the image tower's gradients to `grad`, given those of the embeddings of the tape's images.
    pub(crate) fn images_backward(
        &self,
        theta: &[f32],
        tape: &mut Tape,
        gradient: &[f32],
        grad: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let d = self.config.vision.width;
        let (count, values) = (self.config.patches(), self.config.patch_values());
        let mut dx = self.project_backward(theta, (&self.post_norm, &self.visual_projection), tape, gradient, grad);
        self.vision.backward(theta, &tape.parts(), &mut dx, grad, scratch);
        let mut dembedded = vec![0.0; dx.len()];
        let (dw, db) = two(grad, &self.pre_norm.w, &self.pre_norm.b);
        layer_norm_backward(&tape.embedded, &theta[self.pre_norm.w.clone()], &dx, dw, db, &mut dembedded);
        let flat = sized(&mut scratch.c, tape.lengths.len() * count * d);
        for (rows, flat) in dembedded.chunks_exact((count + 1) * d).zip(flat.chunks_exact_mut(count * d)) {
            flat.copy_from_slice(&rows[d..]);
            grad[self.class.clone()].iter_mut().zip(&rows[..d]).for_each(|(sum, value)| *sum += value);
            grad[self.vision_position.clone()].iter_mut().zip(rows).for_each(|(sum, value)| *sum += value);
        }
        let w = &theta[self.patch.clone()];
        linear_backward(&tape.patches, w, values, flat, &mut grad[self.patch.clone()], None, None);
    }

    /// Adds the text tower's gradients to `grad`, given those of the embeddings of the tape's texts.
    pub(crate) fn texts_backward(
        &self,
        theta: &[f32],
        tape: &mut Tape,
        gradient: &[f32],
        grad: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let d = self.config.text.width;
        let mut dx = self.project_backward(theta, (&self.final_norm, &self.text_projection), tape, gradient, grad);
        self.text.backward(theta, &tape.parts(), &mut dx, grad, scratch);
        let mut rows = dx.chunks_exact(d).zip(&tape.ids);
        for &length in &tape.lengths {
            for (at, (row, &id)) in rows.by_ref().take(length).enumerate() {
                let (token, position) = (self.token.start + id as usize * d, self.text_position.start + at * d);
                grad[token..token + d].iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
                grad[position..position + d].iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
    }
}

/// The contrastive loss of images `[B, E]` and captions `[U, E]`. `truth` `[B, U]` says which caption is true of which
/// image, `None` where that is not settled. Each image has to tell every caption that is true of it from all that are
/// false, and each caption likewise every image; what is not settled counts neither way. Were every caption true of its
/// own image only, this would be CLIP's loss. Returns the loss and the gradients of the image embeddings, the caption
/// embeddings and the logarithm of the scale.
pub(crate) fn contrastive(
    images: &[f32],
    texts: &[f32],
    truth: &[Option<bool>],
    embedding: usize,
    log_scale: f32,
) -> (f32, Vec<f32>, Vec<f32>, f32) {
    let (b, u) = (images.len() / embedding, texts.len() / embedding);
    let scale = log_scale.exp();
    let (image_rows, text_rows) = (View::rows(images, embedding), View::rows(texts, embedding));
    let mut logits = vec![0.0; b * u];
    matmul((b, embedding, u), image_rows, text_rows.t(), &mut logits, u, false);
    ops::scale(&mut logits, scale);
    let mut dlogits = vec![0.0; b * u];
    let mut loss = 0.0;
    for i in 0..b {
        let row = i * u..(i + 1) * u;
        loss += tell_apart(&logits[row.clone()], &truth[row.clone()], 0.5 / b as f32, &mut dlogits[row]);
    }
    for t in 0..u {
        let column: Vec<f32> = logits.iter().skip(t).step_by(u).copied().collect();
        let truths: Vec<Option<bool>> = truth.iter().skip(t).step_by(u).copied().collect();
        let mut gradient = vec![0.0; b];
        loss += tell_apart(&column, &truths, 0.5 / u as f32, &mut gradient);
        dlogits.iter_mut().skip(t).step_by(u).zip(gradient).for_each(|(sum, value)| *sum += value);
    }
    let dscale = dot(&dlogits, &logits);
    ops::scale(&mut dlogits, scale);
    let (mut dimages, mut dtexts) = (vec![0.0; images.len()], vec![0.0; texts.len()]);
    let view = View::rows(&dlogits, u);
    matmul((b, u, embedding), view, text_rows, &mut dimages, embedding, false);
    matmul((u, b, embedding), view.t(), image_rows, &mut dtexts, embedding, false);
    (loss, dimages, dtexts, dscale)
}

/// `weight` times the mean, over what is true, of the cross-entropy between it and all that is false. Adds to `gradient`.
fn tell_apart(logits: &[f32], truth: &[Option<bool>], weight: f32, gradient: &mut [f32]) -> f32 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mass: Vec<f32> = logits.iter().map(|logit| (logit - top).exp().max(1e-30)).collect();
    let count = truth.iter().filter(|&&truth| truth == Some(true)).count().max(1);
    let wrong: f32 = mass.iter().zip(truth).filter(|(_, truth)| **truth == Some(false)).map(|(mass, _)| mass).sum();
    let weight = weight / count as f32;
    let (mut loss, mut pushed) = (0.0, 0.0);
    for ((mass, truth), gradient) in mass.iter().zip(truth).zip(gradient.iter_mut()) {
        if *truth == Some(true) {
            loss += weight * ((mass + wrong) / mass).ln();
            let push = weight * wrong / (mass + wrong);
            *gradient -= push;
            pushed += push;
        }
    }
    if wrong > 0.0 {
        for ((mass, truth), gradient) in mass.iter().zip(truth).zip(gradient) {
            if *truth == Some(false) {
                *gradient += pushed * mass / wrong;
            }
        }
    }
    loss
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn loss(
        model: &Model,
        theta: &[f32],
        images: &[f32],
        texts: &[Vec<u32>],
        truth: &[Option<bool>],
    ) -> (f32, Vec<f32>) {
        let (mut scratch, mut a, mut b) = (Scratch::default(), Tape::default(), Tape::default());
        model.embed_images(theta, images, &mut a, &mut scratch);
        model.embed_texts(theta, texts, &mut b, &mut scratch);
        let log_scale = theta[model.logit_scale.start];
        let e = model.config.projection;
        let (loss, di, dt, ds) = contrastive(&a.embeddings, &b.embeddings, truth, e, log_scale);
        let mut grad = vec![0.0; model.len()];
        model.images_backward(theta, &mut a, &di, &mut grad, &mut scratch);
        model.texts_backward(theta, &mut b, &dt, &mut grad, &mut scratch);
        grad[model.logit_scale.start] = ds;
        (loss, grad)
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let tower = TowerConfig { width: 16, depth: 2, heads: 2 };
        let config = Config { image: 16, patch: 8, vision: tower, text: tower, vocab: 12, context: 6, projection: 8 };
        let model = Model::new(config);
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut theta = model.start(&mut rng);
        // Away from the start's zeros and ones, so that no gradient is zero by symmetry.
        for value in &mut theta {
            *value += 0.2 * (rng.random::<f32>() - 0.5);
        }
        theta[model.logit_scale.start] = 1.0;
        let images: Vec<f32> = (0..4 * 3 * 16 * 16).map(|_| rng.random::<f32>() - 0.5).collect();
        let texts = vec![vec![10, 3, 4, 11], vec![10, 5, 11], vec![10, 3, 6, 7, 11]];
        let (yes, no) = (Some(true), Some(false));
        let truth = [yes, no, no, no, yes, None, None, no, yes, yes, yes, no];
        let (_, grad) = loss(&model, &theta, &images, &texts, &truth);
        for slot in &model.slots {
            // The derivative along the slot's own gradient is that gradient's length.
            let g = &grad[slot.range.clone()];
            let length = dot(g, g).sqrt();
            let step = 2e-2 / length.max(1e-3).sqrt();
            let at = |sign: f32| {
                let mut moved = theta.clone();
                for (value, g) in moved[slot.range.clone()].iter_mut().zip(g) {
                    *value += sign * step * g / length.max(1e-12);
                }
                loss(&model, &moved, &images, &texts, &truth).0
            };
            let measured = (at(1.0) - at(-1.0)) / (2.0 * step);
            // Keys' biases do not change the loss: softmax does not see them.
            let close = (measured - length).abs() <= 2e-2 * length + 2e-4;
            assert!(close, "{}: {measured} by differences, {length} by hand", slot.name);
        }
    }
}
