//! A small CLIP's parameters in one flat vector, named as transformers' `CLIPModel` names them.

use std::ops::Range;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

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
pub(crate) struct NanoConfig {
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

impl NanoConfig {
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
pub(crate) struct ParamSlot {
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

/// Scale and shift of a layer norm.
pub(crate) struct Norm {
    pub(crate) w: Range<usize>,
    pub(crate) b: Range<usize>,
}

/// Where the parameters of a block lie.
pub(crate) struct NanoBlock {
    pub(crate) norm1: Norm,
    pub(crate) qkv_w: Range<usize>,
    pub(crate) qkv_b: Range<usize>,
    pub(crate) out_w: Range<usize>,
    pub(crate) out_b: Range<usize>,
    pub(crate) norm2: Norm,
    pub(crate) fc1_w: Range<usize>,
    pub(crate) fc1_b: Range<usize>,
    pub(crate) fc2_w: Range<usize>,
    pub(crate) fc2_b: Range<usize>,
}

/// Where those of a tower lie, and what it does with them.
pub(crate) struct NanoTower {
    pub(crate) config: TowerConfig,
    pub(crate) causal: bool,
    pub(crate) blocks: Vec<NanoBlock>,
}

/// Where everything lies in the parameter vector.
pub(crate) struct NanoClip {
    /// Sizes.
    pub(crate) config: NanoConfig,
    /// Every tensor, in order.
    pub(crate) slots: Vec<ParamSlot>,
    pub(crate) class: Range<usize>,
    pub(crate) patch: Range<usize>,
    pub(crate) vision_position: Range<usize>,
    pub(crate) pre_norm: Norm,
    pub(crate) vision: NanoTower,
    pub(crate) post_norm: Norm,
    pub(crate) visual_projection: Range<usize>,
    pub(crate) token: Range<usize>,
    pub(crate) text_position: Range<usize>,
    pub(crate) text: NanoTower,
    pub(crate) final_norm: Norm,
    pub(crate) text_projection: Range<usize>,
    /// The learned logarithm of the temperature's inverse.
    pub(crate) logit_scale: Range<usize>,
}

#[derive(Default)]
struct Builder {
    slots: Vec<ParamSlot>,
    end: usize,
}

impl Builder {
    fn tensor(&mut self, name: String, shape: &[usize], spread: f32, start: f32) -> Range<usize> {
        let range = self.end..self.end + shape.iter().product::<usize>();
        self.end = range.end;
        self.slots.push(ParamSlot { name, shape: shape.to_vec(), range: range.clone(), spread, start });
        range
    }

    fn norm(&mut self, name: &str, width: usize) -> Norm {
        Norm {
            w: self.tensor(format!("{name}.weight"), &[width], 0.0, 1.0),
            b: self.tensor(format!("{name}.bias"), &[width], 0.0, 0.0),
        }
    }

    fn tower(&mut self, name: &str, config: TowerConfig, causal: bool) -> NanoTower {
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
                NanoBlock {
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
        NanoTower { config, causal, blocks }
    }
}

impl NanoClip {
    /// Lays the parameters out.
    pub(crate) fn new(config: NanoConfig) -> Self {
        let NanoConfig { patch, vision, text, vocab, context, projection, .. } = config;
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
    pub(crate) fn decays(slot: &ParamSlot) -> bool {
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
