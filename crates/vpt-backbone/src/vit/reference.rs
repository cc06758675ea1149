//! The prompted image tower in its textbook form, in plain candle operations that record gradients: prompts are tokens in
//! every image's sequence, nothing is folded, skipped or shared.
//!
//! The kernels must equal it, and it runs wherever candle does and in f64 as well as f32. It reads the checkpoint by
//! itself, so a mistake in folding or packing weights cannot hide.

use std::collections::HashMap;

use candle_core::{D, DType, Device, Tensor};

use super::PromptLayers;
use crate::position::interpolate;
use crate::spec::{Pool, Positions, Spec};
use crate::weights::Weights;
use vpt_base::candle::Fault;
use vpt_kernel::Activation;

type Result<T> = std::result::Result<T, Fault>;

/// An image tower as tensors of one type on one device.
pub(super) struct Reference<'a> {
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
    pub(super) fn new(
        spec: &'a Spec,
        weights: &'a Weights,
        image_size: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        spec.check_image_size(image_size)?;
        Ok(Self { spec, weights, image_size, dtype, device: device.clone(), own: HashMap::new(), keys_values: None })
    }

    /// The same with these tensors in the place of the checkpoint's of the same names.
    #[must_use]
    pub(super) fn with(self, own: HashMap<String, Tensor>) -> Self {
        Self { own, ..self }
    }

    /// The same with key and value prompts `[layers, N, 2D]` for the blocks from `start` on.
    #[must_use]
    pub(super) fn with_keys_values(self, start: usize, prompts: Tensor) -> Self {
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

    /// Queries or keys `[B, heads, T, head_dim]` with those of the patches, the last ones, turned by rotary positions, if there
    /// are any.
    fn turned(&self, x: &Tensor) -> Result<Tensor> {
        let Some(rotary) = self.spec.rotary else { return Ok(x.clone()) };
        let (grid, (_, _, rows, head_dim)) = (self.image_size / self.spec.patch_size, x.dims4()?);
        let (patches, half) = (grid * grid, head_dim / 2);
        let first = rows - patches;
        let mut parts = vec![x.narrow(2, 0, first)?];
        for i in 0..patches {
            let patch = x.narrow(2, first + i, 1)?;
            let middle = |i: usize| 2. * (i as f64 + 0.5) / grid as f64 - 1.;
            let angle = |j: usize| {
                let quarter = half / 2;
                let at = if j < quarter { middle(i / grid) } else { middle(i % grid) };
                std::f64::consts::TAU * at / rotary.theta.powf((j % quarter) as f64 / quarter as f64)
            };
            let table = |f: fn(f64) -> f64| -> Result<Tensor> {
                let values: Vec<f64> = (0..half).map(|j| f(angle(j))).collect();
                Ok(Tensor::from_vec(values, half, &self.device)?.to_dtype(self.dtype)?)
            };
            let (cos, sin) = (table(f64::cos)?, table(f64::sin)?);
            let (a, b) = (patch.narrow(3, 0, half)?, patch.narrow(3, half, half)?);
            let a2 = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            let b2 = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
            parts.push(Tensor::cat(&[a2, b2], 3)?);
        }
        Ok(Tensor::cat(&parts, 2)?)
    }

    fn block(&self, x: &Tensor, i: usize) -> Result<Tensor> {
        let spec = self.spec;
        let (d, h, mlp) = (spec.vision.width, spec.vision.heads, spec.vision.mlp);
        let names = &spec.family.vision.blocks;
        let at = |name: &str| format!("{}.{i}.{name}", names.prefix);
        let scaled = |y: Tensor, name: &str| -> Result<Tensor> {
            if !spec.vision.layer_scale {
                return Ok(y);
            }
            Ok(y.broadcast_mul(&self.tensor(&at(name), &[d])?)?)
        };
        let [scale1, scale2] = names.layer_scale;
        let (b, n, _) = x.dims3()?;
        let y = self.norm(x, &at(names.norm1))?;
        let own = self.keys_values.as_ref().filter(|(start, own)| (*start..*start + own.dims()[0]).contains(&i));
        let heads = |name: &str, bias: bool, of_row: Option<usize>| -> Result<Tensor> {
            let mut y = self.linear(&y, &at(name), [d, d], bias)?;
            if let (Some((start, own)), Some(from)) = (own, of_row) {
                let rows = own.get(i - start)?.narrow(1, from, d)?.unsqueeze(0)?;
                y = Tensor::cat(&[&rows.broadcast_as((b, rows.dim(1)?, d))?, &y], 1)?;
            }
            let rows = y.dim(1)?;
            Ok(y.reshape((b, rows, h, d / h))?.transpose(1, 2)?.contiguous()?)
        };
        let ([q, k, v], bias) = (names.qkv, spec.vision.qkv_bias);
        let (query, key, value) = (heads(q, bias.q, None)?, heads(k, bias.k, Some(0))?, heads(v, bias.v, Some(d))?);
        let (query, key) = (self.turned(&query)?, self.turned(&key)?);
        let scores = (query.matmul(&key.t()?.contiguous()?)? / ((d / h) as f64).sqrt())?;
        let mixed = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&value)?;
        let mixed = mixed.transpose(1, 2)?.contiguous()?.reshape((b, n, d))?;
        let x = (x + scaled(self.linear(&mixed, &at(names.out), [d, d], true)?, scale1)?)?;
        let y = self.norm(&x, &at(names.norm2))?;
        let [fc1, fc2] = if spec.vision.gated { ["", names.gated_mlp.out] } else { names.mlp };
        let hidden = if spec.vision.gated {
            let y = match names.gated_mlp.halves {
                [gate, up] => {
                    let [gate, up] = [gate, up].map(|name| self.linear(&y, &at(name), [mlp, d], true));
                    Tensor::cat(&[gate?, up?], D::Minus1)?
                }
                both => self.linear(&y, &at(&both.concat()), [2 * mlp, d], true)?,
            };
            (self.activation(&y.narrow(D::Minus1, 0, mlp)?)? * y.narrow(D::Minus1, mlp, mlp)?)?
        } else {
            self.activation(&self.linear(&y, &at(fc1), [mlp, d], true)?)?
        };
        let y = self.linear(&hidden, &at(fc2), [d, mlp], true)?;
        Ok((x + scaled(y, scale2)?)?)
    }

    /// Features of `images` `[B, 3, S, S]`: what `pool` makes of the tokens after the last norm, `[B, D]` or `[B, 2 D]`.
    /// `prompts` are `[layers, P, D]` for the blocks the [`PromptLayers`] name.
    ///
    /// # Errors
    /// Shapes that do not fit, or a tensor that is missing.
    pub(super) fn features(
        &self,
        images: &Tensor,
        pool: Pool,
        prompts: Option<(PromptLayers, &Tensor)>,
    ) -> Result<Tensor> {
        let tokens = self.tokens(images, prompts)?;
        let (raw, norm) = (&tokens[self.spec.vision.depth], self.spec.family.vision.post_norm);
        let tokens = self.norm(raw, norm)?;
        let class = || tokens.narrow(1, 0, 1)?.squeeze(1);
        let prefix = self.spec.prefix_tokens();
        let mean = || tokens.narrow(1, prefix, tokens.dim(1)? - prefix)?.mean(1);
        Ok(match pool {
            Pool::ClassToken => class()?,
            Pool::Mean => mean()?,
            Pool::NormOfMean => self.norm(&raw.narrow(1, prefix, raw.dim(1)? - prefix)?.mean(1)?, norm)?,
            Pool::ClassTokenAndMean => Tensor::cat(&[class()?, mean()?], 1)?,
            Pool::Attention => self.attention_pool(&tokens)?,
        })
    }

    /// Attention pooling of tokens `[B, T, D]` behind the last norm: `[B, D]`.
    fn attention_pool(&self, tokens: &Tensor) -> Result<Tensor> {
        let (d, h, mlp) = (self.spec.vision.width, self.spec.vision.heads, self.spec.vision.mlp);
        let names = self.spec.family.vision.attention_pool.ok_or_else(|| candle_core::Error::msg("no pooling"))?;
        let b = tokens.dim(0)?;
        let query = self.tensor(names.query.name, &names.query.shape(&[d]))?.reshape((1, 1, d))?;
        let heads = |x: &Tensor, name: &str| -> Result<Tensor> {
            let y = self.linear(x, name, [d, d], true)?;
            let (b, rows, _) = y.dims3()?;
            Ok(y.reshape((b, rows, h, d / h))?.transpose(1, 2)?.contiguous()?)
        };
        let query = query.broadcast_as((b, 1, d))?.contiguous()?;
        let [query, key, value] =
            [heads(&query, names.qkv[0])?, heads(tokens, names.qkv[1])?, heads(tokens, names.qkv[2])?];
        let scores = (query.matmul(&key.t()?.contiguous()?)? / ((d / h) as f64).sqrt())?;
        let mixed = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&value)?;
        let mixed = mixed.transpose(1, 2)?.contiguous()?.reshape((b, d))?;
        let x = self.linear(&mixed, names.out, [d, d], true)?;
        let hidden = self.activation(&self.linear(&self.norm(&x, names.norm)?, names.mlp[0], [mlp, d], true)?)?;
        Ok((x + self.linear(&hidden, names.mlp[1], [d, mlp], true)?)?)
    }

    /// The tokens `[B, T, D]` (class token, registers, patches; no prompts) of `images` as they enter the first block and
    /// as they leave each.
    ///
    /// # Errors
    /// As [`Self::features`].
    pub(super) fn tokens(&self, images: &Tensor, prompts: Option<(PromptLayers, &Tensor)>) -> Result<Vec<Tensor>> {
        let (spec, names) = (self.spec, &self.spec.family.vision);
        let (d, prefix) = (spec.vision.width, spec.prefix_tokens());
        let b = images.dims4()?.0;
        let mut x = self.embedding(images)?;
        let own = x.dim(1)? - prefix;
        // Behind the tokens before the patches: fresh prompts for this block, then the patches.
        let replace = |x: &Tensor, layer: usize, prompts: &Tensor| -> Result<Tensor> {
            let fresh = prompts.get(layer)?.unsqueeze(0)?;
            let fresh = fresh.broadcast_as((b, fresh.dim(1)?, d))?;
            let rest = x.narrow(1, x.dim(1)? - own, own)?;
            Ok(Tensor::cat(&[&x.narrow(1, 0, prefix)?, &fresh, &rest], 1)?)
        };
        let (start, layers) = match prompts {
            Some((layers, _)) => layers.resolve(spec.vision.depth)?,
            None => (0, 0),
        };
        if let (0, Some((_, prompts))) = (start, prompts) {
            x = replace(&x, 0, prompts)?;
        }
        if spec.pre_norm {
            x = self.norm(&x, names.pre_norm)?;
        }
        let unprompted = |x: &Tensor| -> Result<Tensor> {
            Ok(Tensor::cat(&[&x.narrow(1, 0, prefix)?, &x.narrow(1, x.dim(1)? - own, own)?], 1)?)
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

    /// The tokens `[B, T, D]` of `images` before any norm.
    fn embedding(&self, images: &Tensor) -> Result<Tensor> {
        let (spec, names) = (self.spec, &self.spec.family.vision);
        let (d, p, grid) = (spec.vision.width, spec.patch_size, self.image_size / spec.patch_size);
        let b = images.dims4()?.0;
        let patch = self.tensor(&format!("{}.weight", names.patch), &[d, 3, p, p])?;
        // Pixels behind the last whole patch are not read.
        let patches = images
            .narrow(2, 0, grid * p)?
            .narrow(3, 0, grid * p)?
            .contiguous()?
            .reshape((b * 3, grid, p, grid * p))?
            .reshape((b, 3, grid, p, grid, p))?
            .permute([0, 2, 4, 1, 3, 5])?
            .contiguous()?
            .reshape((b, grid * grid, 3 * p * p))?;
        let mut patches = patches.broadcast_matmul(&patch.reshape((d, 3 * p * p))?.t()?)?;
        if spec.patch_bias {
            patches = patches.broadcast_add(&self.tensor(&format!("{}.bias", names.patch), &[d])?)?;
        }
        let mut tokens = Vec::new();
        if spec.class_token {
            tokens.push(self.tensor(names.class_token.name, &names.class_token.shape(&[d]))?.reshape((1, d))?);
        }
        if spec.registers > 0 {
            let shape = [spec.registers, d];
            tokens.push(self.tensor(names.registers.name, &names.registers.shape(&shape))?.reshape(&shape[..])?);
        }
        let [of_prefix, of_patches] = self.positions(grid)?;
        let patches = patches.broadcast_add(&of_patches)?;
        if tokens.is_empty() {
            return Ok(patches);
        }
        let tokens = (Tensor::cat(&tokens, 0)? + of_prefix)?;
        Ok(Tensor::cat(&[&tokens.unsqueeze(0)?.broadcast_as((b, spec.prefix_tokens(), d))?, &patches], 1)?)
    }

    /// Positions of the tokens before the patches, zero where they have none, and of patches on a `grid`.
    fn positions(&self, grid: usize) -> Result<[Tensor; 2]> {
        let (spec, names) = (self.spec, &self.spec.family.vision);
        let (d, stored) = (spec.vision.width, spec.grid() * spec.grid());
        let Some(Positions { prefix, resampling }) = spec.positions else {
            let zeros = |rows: usize| Tensor::zeros((rows, d), self.dtype, &self.device);
            return Ok([zeros(spec.prefix_tokens())?, zeros(grid * grid)?]);
        };
        let all = self.tensor(names.positions.name, &names.positions.shape(&[prefix + stored, d]))?;
        let all = all.reshape((prefix + stored, d))?;
        let none = Tensor::zeros((spec.prefix_tokens() - prefix, d), self.dtype, &self.device)?;
        let of_prefix = Tensor::cat(&[&all.narrow(0, 0, prefix)?, &none], 0)?;
        // What interpolation makes of the unit matrix is its matrix, and leaves a gradient to what it multiplies.
        let mut unit = vec![0.; stored * stored];
        unit.iter_mut().step_by(stored + 1).for_each(|one| *one = 1.);
        let matrix = interpolate(&unit, stored, resampling, (grid, grid))?;
        let matrix = Tensor::from_vec(matrix, (grid * grid, stored), &self.device)?.to_dtype(self.dtype)?;
        Ok([of_prefix, matrix.matmul(&all.narrow(0, prefix, stored)?.contiguous()?)?])
    }
}
