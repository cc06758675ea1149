//! The prompted image tower in its textbook form, in plain candle operations that record gradients: prompts are tokens in
//! every image's sequence, nothing is folded, skipped or shared.
//!
//! The kernels must equal it, and it runs wherever candle does and in f64 as well as f32. It reads the checkpoint by
//! itself, so a mistake in folding or packing weights cannot hide.

use std::collections::HashMap;

use candle_core::{D, DType, Device, Tensor};

use super::PromptLayers;
use crate::Result;
use crate::backbone::position::interpolate;
use crate::backbone::spec::{Family, Spec};
use crate::backbone::weights::Weights;
use crate::kernel::Activation;

/// An image tower as tensors of one type on one device.
pub struct Reference<'a> {
    spec: &'a Spec,
    weights: &'a Weights,
    image_size: usize,
    dtype: DType,
    device: Device,
    /// Tensors that stand in the place of the checkpoint's, by name.
    own: HashMap<String, Tensor>,
    /// Key and value prompts `[layers, N, 2D]`, and the first block that has them.
    keys_values: Option<(usize, Tensor)>,
}

impl<'a> Reference<'a> {
    /// The tower of `spec` with `weights`, for images of `image_size` pixels.
    ///
    /// # Errors
    /// `image_size` is no multiple of the patch size.
    pub fn new(spec: &'a Spec, weights: &'a Weights, image_size: usize, dtype: DType, device: &Device) -> Result<Self> {
        spec.check_image_size(image_size)?;
        Ok(Self { spec, weights, image_size, dtype, device: device.clone(), own: HashMap::new(), keys_values: None })
    }

    /// The same with these tensors in the place of the checkpoint's of the same names.
    #[must_use]
    pub fn with(self, own: HashMap<String, Tensor>) -> Self {
        Self { own, ..self }
    }

    /// The same with key and value prompts `[layers, N, 2D]` for the blocks from `start` on.
    #[must_use]
    pub fn with_keys_values(self, start: usize, prompts: Tensor) -> Self {
        Self { keys_values: Some((start, prompts)), ..self }
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if let Some(own) = self.own.get(name) {
            return Ok(own.reshape(shape)?);
        }
        Ok(Tensor::from_vec(self.weights.get(name, shape)?, shape, &self.device)?.to_dtype(self.dtype)?)
    }

    fn linear(&self, x: &Tensor, name: &str, shape: [usize; 2], bias: bool) -> Result<Tensor> {
        let weight = self.tensor(&format!("{name}.weight"), &shape)?;
        let y = x.broadcast_matmul(&weight.t()?)?;
        Ok(if bias { y.broadcast_add(&self.tensor(&format!("{name}.bias"), &shape[..1])?)? } else { y })
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let d = self.spec.vision.width;
        let scale = self.tensor(&format!("{name}.weight"), &[d])?;
        let shift = self.tensor(&format!("{name}.bias"), &[d])?;
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normalized = centred.broadcast_div(&(variance + f64::from(self.spec.vision.eps))?.sqrt()?)?;
        Ok(normalized.broadcast_mul(&scale)?.broadcast_add(&shift)?)
    }

    fn activation(&self, x: &Tensor) -> Result<Tensor> {
        let sigmoid = |u: Tensor| -> candle_core::Result<Tensor> { ((u.neg()?.exp()? + 1.0)?).recip() };
        Ok(match self.spec.vision.activation {
            Activation::Gelu => x.gelu_erf()?,
            Activation::QuickGelu => (x * sigmoid((x * 1.702)?)?)?,
            Activation::Silu => (x * sigmoid(x.clone())?)?,
            Activation::GeluTanh => {
                let inner = (x + (x.powf(3.0)? * 0.044_715)?)?;
                (x * sigmoid((inner * (8.0 / std::f64::consts::PI).sqrt())?)?)?
            }
        })
    }

    fn block(&self, x: &Tensor, i: usize) -> Result<Tensor> {
        let spec = self.spec;
        let (d, h, mlp) = (spec.vision.width, spec.vision.heads, spec.vision.mlp);
        let clip = spec.family == Family::Clip;
        let prefix = if clip { format!("vision_model.encoder.layers.{i}") } else { format!("encoder.layer.{i}") };
        let at = |name: &str| format!("{prefix}.{name}");
        let [norm1, norm2, q, k, v, out, fc1, fc2] = match spec.family {
            Family::Clip => [
                "layer_norm1",
                "layer_norm2",
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "self_attn.out_proj",
                "mlp.fc1",
                "mlp.fc2",
            ],
            family => {
                let (q, k, v) = ("attention.attention.query", "attention.attention.key", "attention.attention.value");
                let out = "attention.output.dense";
                if family == Family::Vit {
                    ["layernorm_before", "layernorm_after", q, k, v, out, "intermediate.dense", "output.dense"]
                } else if spec.vision.gated {
                    ["norm1", "norm2", q, k, v, out, "mlp.weights_in", "mlp.weights_out"]
                } else {
                    ["norm1", "norm2", q, k, v, out, "mlp.fc1", "mlp.fc2"]
                }
            }
        };
        let scaled = |y: Tensor, which: usize| -> Result<Tensor> {
            if !spec.layer_scale {
                return Ok(y);
            }
            Ok(y.broadcast_mul(&self.tensor(&at(&format!("layer_scale{which}.lambda1")), &[d])?)?)
        };
        let (b, n, _) = x.dims3()?;
        let y = self.norm(x, &at(norm1))?;
        let own = self.keys_values.as_ref().filter(|(start, own)| (*start..*start + own.dims()[0]).contains(&i));
        let heads = |name: &str, of_row: Option<usize>| -> Result<Tensor> {
            let mut y = self.linear(&y, &at(name), [d, d], spec.vision.qkv_bias)?;
            if let (Some((start, own)), Some(from)) = (own, of_row) {
                let rows = own.get(i - start)?.narrow(1, from, d)?.unsqueeze(0)?;
                y = Tensor::cat(&[&rows.broadcast_as((b, rows.dim(1)?, d))?, &y], 1)?;
            }
            let rows = y.dim(1)?;
            Ok(y.reshape((b, rows, h, d / h))?.transpose(1, 2)?.contiguous()?)
        };
        let (query, key, value) = (heads(q, None)?, heads(k, Some(0))?, heads(v, Some(d))?);
        let scores = (query.matmul(&key.t()?.contiguous()?)? / ((d / h) as f64).sqrt())?;
        let mixed = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&value)?;
        let mixed = mixed.transpose(1, 2)?.contiguous()?.reshape((b, n, d))?;
        let x = (x + scaled(self.linear(&mixed, &at(out), [d, d], true)?, 1)?)?;
        let y = self.norm(&x, &at(norm2))?;
        let hidden = if spec.vision.gated {
            let y = self.linear(&y, &at(fc1), [2 * mlp, d], true)?;
            (self.activation(&y.narrow(D::Minus1, 0, mlp)?)? * y.narrow(D::Minus1, mlp, mlp)?)?
        } else {
            self.activation(&self.linear(&y, &at(fc1), [mlp, d], true)?)?
        };
        let y = self.linear(&hidden, &at(fc2), [d, mlp], true)?;
        Ok((x + scaled(y, 2)?)?)
    }

    /// Features `[B, D]` of `images` `[B, 3, S, S]`: the class token after the last norm. `prompts` are
    /// `[layers, P, D]` for the blocks the [`PromptLayers`] name.
    ///
    /// # Errors
    /// Shapes that do not fit, or a tensor that is missing.
    pub fn features(&self, images: &Tensor, prompts: Option<(PromptLayers, &Tensor)>) -> Result<Tensor> {
        let post = if self.spec.family == Family::Clip { "vision_model.post_layernorm" } else { "layernorm" };
        let tokens = self.tokens(images, prompts)?;
        self.norm(&tokens[self.spec.vision.depth].narrow(1, 0, 1)?.squeeze(1)?, post)
    }

    /// The tokens `[B, T, D]` (class token, registers, patches; no prompts) of `images` as they enter the first block and
    /// as they leave each.
    ///
    /// # Errors
    /// As [`Self::features`].
    pub fn tokens(&self, images: &Tensor, prompts: Option<(PromptLayers, &Tensor)>) -> Result<Vec<Tensor>> {
        let spec = self.spec;
        let (d, p, grid) = (spec.vision.width, spec.patch_size, self.image_size / spec.patch_size);
        let clip = spec.family == Family::Clip;
        let b = images.dims4()?.0;
        let stored = 1 + spec.grid() * spec.grid();
        let (class, (positions, position_shape), patch) = if clip {
            (
                self.tensor("vision_model.embeddings.class_embedding", &[d])?,
                ("vision_model.embeddings.position_embedding.weight", vec![stored, d]),
                self.tensor("vision_model.embeddings.patch_embedding.weight", &[d, 3, p, p])?,
            )
        } else {
            (
                self.tensor("embeddings.cls_token", &[1, 1, d])?,
                ("embeddings.position_embeddings", vec![1, stored, d]),
                self.tensor("embeddings.patch_embeddings.projection.weight", &[d, 3, p, p])?,
            )
        };
        let positions = if let Some(own) = self.own.get(positions) {
            // What interpolation makes of the unit matrix is its matrix, and leaves a gradient to what it multiplies.
            let mut unit = vec![0.; stored * stored];
            unit.iter_mut().step_by(stored + 1).for_each(|one| *one = 1.);
            let matrix = interpolate(&unit, stored, spec.family, (grid, grid))?;
            let matrix = Tensor::from_vec(matrix, (1 + grid * grid, stored), &self.device)?.to_dtype(self.dtype)?;
            matrix.matmul(&own.reshape((stored, d))?)?
        } else {
            let positions = self.weights.get(positions, &position_shape)?;
            let positions = interpolate(&positions, d, spec.family, (grid, grid))?;
            Tensor::from_vec(positions, (1 + grid * grid, d), &self.device)?.to_dtype(self.dtype)?
        };
        let patches = images
            .reshape((b * 3, grid, p, grid * p))?
            .reshape((b, 3, grid, p, grid, p))?
            .permute([0, 2, 4, 1, 3, 5])?
            .contiguous()?
            .reshape((b, grid * grid, 3 * p * p))?;
        let mut patches = patches.broadcast_matmul(&patch.reshape((d, 3 * p * p))?.t()?)?;
        if !clip {
            patches = patches.broadcast_add(&self.tensor("embeddings.patch_embeddings.projection.bias", &[d])?)?;
        }
        let class = class.reshape((1, 1, d))?.broadcast_as((b, 1, d))?;
        let mut x = Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&positions)?;
        if spec.registers > 0 {
            let registers = self.tensor("embeddings.register_tokens", &[1, spec.registers, d])?;
            let registers = registers.broadcast_as((b, spec.registers, d))?;
            x = Tensor::cat(&[&x.narrow(1, 0, 1)?, &registers, &x.narrow(1, 1, grid * grid)?], 1)?;
        }
        let own = x.dim(1)? - 1;
        // After the class token: fresh prompts for this block, then the sequence's own tokens.
        let replace = |x: &Tensor, layer: usize, prompts: &Tensor| -> Result<Tensor> {
            let fresh = prompts.get(layer)?.unsqueeze(0)?;
            let fresh = fresh.broadcast_as((b, fresh.dim(1)?, d))?;
            let rest = x.narrow(1, x.dim(1)? - own, own)?;
            Ok(Tensor::cat(&[&x.narrow(1, 0, 1)?, &fresh, &rest], 1)?)
        };
        let (start, layers) = match prompts {
            Some((layers, _)) => layers.resolve(spec.vision.depth)?,
            None => (0, 0),
        };
        if let (0, Some((_, prompts))) = (start, prompts) {
            x = replace(&x, 0, prompts)?;
        }
        if clip {
            x = self.norm(&x, "vision_model.pre_layrnorm")?;
        }
        let unprompted = |x: &Tensor| -> Result<Tensor> {
            Ok(Tensor::cat(&[&x.narrow(1, 0, 1)?, &x.narrow(1, x.dim(1)? - own, own)?], 1)?)
        };
        let mut tokens = vec![unprompted(&x)?];
        for i in 0..spec.vision.depth {
            if let Some((_, prompts)) = prompts.filter(|_| i > 0 && (start..start + layers).contains(&i)) {
                x = replace(&x, i - start, prompts)?;
            }
            x = self.block(&x, i)?;
            tokens.push(unprompted(&x)?);
        }
        Ok(tokens)
    }
}
