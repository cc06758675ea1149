//! The prompted image tower in its textbook form, in candle operations that record gradients: prompts are tokens in every
//! image's sequence, nothing is folded, skipped or shared.
//!
//! The kernels must equal it, and it runs wherever candle does and in f64 as well as f32. It reads the checkpoint by
//! itself, so a mistake in folding or packing weights cannot hide.

#[cfg(test)]
use std::sync::{Mutex, PoisonError};

use candle_core::{D, DType, Device, Tensor};

use super::Faulty;
use super::frozen::{linear, multiply, scale};
use crate::names::AttentionPoolNames;
use crate::position::interpolate;
use crate::spec::{Pool, Positions, Rotary, Spec, TowerSpec};
use crate::weights::Weights;
use vpt_kernel::Activation;

/// Number formats of a tower.
#[derive(Clone, Copy, Debug)]
pub(in crate::vit) struct Formats {
    /// Of tokens, norms, softmax and whatever is learned.
    pub(in crate::vit) sums: DType,
    /// Of matrices and what is multiplied with them.
    pub(in crate::vit) products: DType,
}

/// Gives the tensor of a name and a shape, in the format of the sums.
pub(in crate::vit) type TensorSource<'a> = &'a dyn Fn(&str, &[usize]) -> Faulty<Tensor>;

/// What stands in the blocks beside an image's own tokens.
#[derive(Default)]
pub(in crate::vit) struct CandlePrompts {
    /// Tokens `[layers, P, D]`, and the first block that has some.
    pub(in crate::vit) tokens: Option<(usize, Tensor)>,
    /// Keys and values `[layers, N, 2D]`, and the first block that has some.
    pub(in crate::vit) keys_values: Option<(usize, Tensor)>,
}

/// What enters the tower.
#[derive(Clone, Copy)]
pub(in crate::vit) enum CandleInput<'a> {
    /// Images `[B, 3, S, S]`.
    Images(&'a Tensor),
    /// Tokens `[B, T, D]` behind so many blocks.
    Tokens { blocks: usize, tokens: &'a Tensor },
}

/// `y = x Wᵀ + b`.
struct CandleLinear {
    /// Wᵀ, `[in, out]`.
    weight: Tensor,
    bias: Option<Tensor>,
}

impl CandleLinear {
    fn forward(&self, x: &Tensor) -> Faulty<Tensor> {
        Ok(linear(x, &self.weight, self.bias.as_ref())?)
    }
}

struct CandleNorm {
    scale: Tensor,
    shift: Tensor,
    eps: f64,
}

impl CandleNorm {
    fn forward(&self, x: &Tensor) -> Faulty<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normalized = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?;
        Ok(scale(&normalized, &self.scale, Some(&self.shift))?)
    }
}

/// Two layers with a non-linearity between them.
struct CandleMlp {
    /// To the hidden units; where there is a gate, to both halves.
    fc1: CandleLinear,
    fc2: CandleLinear,
    activation: Activation,
    gated: bool,
}

impl CandleMlp {
    fn forward(&self, x: &Tensor) -> Faulty<Tensor> {
        let hidden = self.fc1.forward(x)?;
        let hidden = if self.gated {
            let half = hidden.dim(D::Minus1)? / 2;
            (activate(self.activation, &hidden.narrow(D::Minus1, 0, half)?)? * hidden.narrow(D::Minus1, half, half)?)?
        } else {
            activate(self.activation, &hidden)?
        };
        self.fc2.forward(&hidden)
    }
}

fn activate(activation: Activation, x: &Tensor) -> Faulty<Tensor> {
    /// The factor in QuickGELU's sigmoid.
    const QUICK: f64 = 1.702;
    Ok(match activation {
        Activation::Gelu => x.gelu_erf()?,
        // Written out: the constants of candle's own gradient have six digits.
        Activation::GeluTanh => {
            let inner = (((x.sqr()? * x)? * 0.044_715)? + x)?;
            let tanh = (inner * (2. / std::f64::consts::PI).sqrt())?.tanh()?;
            ((x * 0.5)? * (tanh + 1.)?)?
        }
        Activation::Silu => x.silu()?,
        // x sigmoid(a x); an exponential written out would have gradients that are no numbers far from zero.
        Activation::QuickGelu => ((x * QUICK)?.silu()? / QUICK)?,
    })
}

struct CandleBlock {
    norm1: CandleNorm,
    qkv: [CandleLinear; 3],
    out: CandleLinear,
    norm2: CandleNorm,
    mlp: CandleMlp,
    layer_scale: Option<[Tensor; 2]>,
}

/// The layers of attention pooling.
struct CandlePooling {
    /// `[1, 1, D]`.
    query: Tensor,
    qkv: [CandleLinear; 3],
    out: CandleLinear,
    norm: CandleNorm,
    mlp: CandleMlp,
}

/// An image tower at one image size as tensors on one device.
pub(in crate::vit) struct CandleTower {
    spec: Spec,
    image_size: usize,
    formats: Formats,
    device: Device,
    patch: CandleLinear,
    /// Class token and registers with their positions, `[1, prefix, D]`; `None` where there are none.
    prefix: Option<Tensor>,
    /// Positions of the patches, `[N, D]`.
    positions: Tensor,
    pre_norm: Option<CandleNorm>,
    blocks: Vec<CandleBlock>,
    post_norm: CandleNorm,
    attention_pool: Option<CandlePooling>,
    /// Cosines and sines `[N, head_dim / 2]` of rotary positions.
    turn: Option<[Tensor; 2]>,
    /// What softmax gives `[B, heads, Q, keys]`, attention by attention, where a test wants to see it.
    #[cfg(test)]
    pub(in crate::vit) seen: Mutex<Option<Vec<Tensor>>>,
}

/// Reads layers by their names.
struct LayerReader<'a> {
    source: TensorSource<'a>,
    formats: Formats,
    eps: f64,
}

impl LayerReader<'_> {
    fn matrix(&self, name: &str, shape: &[usize]) -> Faulty<Tensor> {
        let (rows, columns): (_, usize) = (shape[0], shape[1..].iter().product());
        let weight = (self.source)(&format!("{name}.weight"), shape)?;
        Ok(weight.reshape((rows, columns))?.to_dtype(self.formats.products)?)
    }

    fn bias(&self, name: &str, len: usize) -> Faulty<Tensor> {
        (self.source)(&format!("{name}.bias"), &[len])
    }

    fn linear(&self, name: &str, shape: &[usize], bias: bool) -> Faulty<CandleLinear> {
        let weight = self.matrix(name, shape)?.t()?;
        Ok(CandleLinear { weight, bias: bias.then(|| self.bias(name, shape[0])).transpose()? })
    }

    /// Two layers as one, the outputs of the first before those of the second.
    fn halves(&self, names: [&str; 2], shape: &[usize]) -> Faulty<CandleLinear> {
        let [one, two] =
            names.map(|name| Ok::<_, super::Fault>((self.matrix(name, shape)?, self.bias(name, shape[0])?)));
        let ((weight, bias), (weight2, bias2)) = (one?, two?);
        Ok(CandleLinear {
            weight: Tensor::cat(&[weight, weight2], 0)?.t()?,
            bias: Some(Tensor::cat(&[bias, bias2], 0)?),
        })
    }

    fn norm(&self, name: &str, d: usize) -> Faulty<CandleNorm> {
        let scale = (self.source)(&format!("{name}.weight"), &[d])?;
        Ok(CandleNorm { scale, shift: self.bias(name, d)?, eps: self.eps })
    }

    fn block(&self, spec: &Spec, i: usize) -> Faulty<CandleBlock> {
        let TowerSpec { width: d, mlp, gated, activation, qkv_bias, layer_scale, .. } = spec.vision;
        let names = &spec.family.vision.blocks;
        let at = |name: &str| names.at(i, name);
        let [q, k, v] = names.qkv;
        let of = |name: &str, bias: bool| self.linear(&at(name), &[d, d], bias);
        let [fc1, fc2] = if gated { ["", names.gated_mlp.out] } else { names.mlp };
        let fc1 = match names.gated_mlp.halves {
            _ if !gated => self.linear(&at(fc1), &[mlp, d], true)?,
            [gate, up] => self.halves([&at(gate), &at(up)], &[mlp, d])?,
            both => self.linear(&at(&both.concat()), &[2 * mlp, d], true)?,
        };
        let of_scale = |name: &str| (self.source)(&at(name), &[d]);
        let [scale1, scale2] = names.layer_scale;
        Ok(CandleBlock {
            norm1: self.norm(&at(names.norm1), d)?,
            qkv: [of(q, qkv_bias.q)?, of(k, qkv_bias.k)?, of(v, qkv_bias.v)?],
            out: of(names.out, true)?,
            norm2: self.norm(&at(names.norm2), d)?,
            mlp: CandleMlp { fc1, fc2: self.linear(&at(fc2), &[d, mlp], true)?, activation, gated },
            layer_scale: if layer_scale { Some([of_scale(scale1)?, of_scale(scale2)?]) } else { None },
        })
    }

    fn attention_pool(&self, names: &AttentionPoolNames, tower: &TowerSpec) -> Faulty<CandlePooling> {
        let (d, mlp, activation) = (tower.width, tower.mlp, tower.activation);
        let [q, k, v] = names.qkv.map(|name| self.linear(name, &[d, d], true));
        let fc2 = self.linear(names.mlp[1], &[d, mlp], true)?;
        Ok(CandlePooling {
            query: (self.source)(names.query.name, &names.query.shape(&[d]))?.reshape((1, 1, d))?,
            qkv: [q?, k?, v?],
            out: self.linear(names.out, &[d, d], true)?,
            norm: self.norm(names.norm, d)?,
            mlp: CandleMlp { fc1: self.linear(names.mlp[0], &[mlp, d], true)?, fc2, activation, gated: false },
        })
    }

    /// Positions of the tokens before the patches, zero where they have none, and of patches on a `grid`.
    fn positions(&self, spec: &Spec, grid: usize, device: &Device) -> Faulty<[Tensor; 2]> {
        let (names, dtype) = (&spec.family.vision, self.formats.sums);
        let (d, stored) = (spec.vision.width, spec.grid() * spec.grid());
        let zeros = |rows: usize| Tensor::zeros((rows, d), dtype, device);
        let Some(Positions { prefix, resampling }) = spec.positions else {
            return Ok([zeros(spec.prefix_tokens())?, zeros(grid * grid)?]);
        };
        let all = (self.source)(names.positions.name, &names.positions.shape(&[prefix + stored, d]))?;
        let all = all.reshape((prefix + stored, d))?;
        let of_prefix = Tensor::cat(&[&all.narrow(0, 0, prefix)?, &zeros(spec.prefix_tokens() - prefix)?], 0)?;
        let of_patches = all.narrow(0, prefix, stored)?.contiguous()?;
        if grid == spec.grid() {
            return Ok([of_prefix, of_patches]);
        }
        // What interpolation makes of the unit matrix is its matrix, and leaves a gradient to what it multiplies.
        let mut unit = vec![0.; stored * stored];
        unit.iter_mut().step_by(stored + 1).for_each(|one| *one = 1.);
        let matrix = interpolate(&unit, stored, resampling, (grid, grid))?;
        let matrix = Tensor::from_vec(matrix, (grid * grid, stored), device)?.to_dtype(dtype)?;
        Ok([of_prefix, matrix.matmul(&of_patches)?])
    }
}

impl CandleTower {
    /// The tower of `spec` with the tensors that `source` gives, for images of `image_size` pixels.
    ///
    /// # Errors
    /// `image_size` is no multiple of the patch size, or a tensor is missing.
    pub(in crate::vit) fn new(
        spec: &Spec,
        image_size: usize,
        formats: Formats,
        device: &Device,
        source: TensorSource,
    ) -> Faulty<Self> {
        spec.check_image_size(image_size)?;
        let (names, d, p) = (&spec.family.vision, spec.vision.width, spec.patch_size);
        let grid = image_size / p;
        let read = LayerReader { source, formats, eps: f64::from(spec.vision.eps) };
        let patch = read.linear(names.patch, &[d, 3, p, p], spec.patch_bias)?;
        let mut prefix = Vec::new();
        if spec.class_token {
            prefix.push(source(names.class_token.name, &names.class_token.shape(&[d]))?.reshape((1, d))?);
        }
        if spec.registers > 0 {
            let shape = [spec.registers, d];
            prefix.push(source(names.registers.name, &names.registers.shape(&shape))?.reshape(&shape[..])?);
        }
        let [of_prefix, positions] = read.positions(spec, grid, device)?;
        let prefix = if prefix.is_empty() { None } else { Some((Tensor::cat(&prefix, 0)? + of_prefix)?.unsqueeze(0)?) };
        let pool = names.attention_pool.filter(|_| spec.pool == Pool::Attention);
        Ok(Self {
            patch,
            prefix,
            positions,
            pre_norm: if spec.pre_norm { Some(read.norm(names.pre_norm, d)?) } else { None },
            blocks: (0..spec.vision.depth).map(|i| read.block(spec, i)).collect::<Faulty<_>>()?,
            post_norm: read.norm(names.post_norm, d)?,
            attention_pool: pool.map(|names| read.attention_pool(&names, &spec.vision)).transpose()?,
            turn: spec.rotary.map(|rotary| turn(rotary, spec.vision.head_dim(), grid, formats, device)).transpose()?,
            spec: spec.clone(),
            image_size,
            formats,
            device: device.clone(),
            #[cfg(test)]
            seen: Mutex::default(),
        })
    }

    /// The same with the tensors of a checkpoint.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(in crate::vit) fn read(
        spec: &Spec,
        weights: &Weights,
        image_size: usize,
        formats: Formats,
        device: &Device,
    ) -> Faulty<Self> {
        Self::new(spec, image_size, formats, device, &|name, shape| {
            Ok(Tensor::from_vec(weights.get(name, shape)?, shape, device)?.to_dtype(formats.sums)?)
        })
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn width(&self) -> usize {
        self.spec.vision.width
    }

    pub(super) fn depth(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn image_size(&self) -> usize {
        self.image_size
    }

    /// Tokens before the patches.
    pub(super) fn prefix_tokens(&self) -> usize {
        self.spec.prefix_tokens()
    }

    /// Tokens of an image.
    pub(super) fn tokens(&self) -> usize {
        self.prefix_tokens() + (self.image_size / self.spec.patch_size).pow(2)
    }

    /// Rows `[B, T, D]` as `[B, heads, T, head_dim]`.
    fn heads(&self, x: &Tensor) -> Faulty<Tensor> {
        let ((b, rows, d), heads) = (x.dims3()?, self.spec.vision.heads);
        Ok(x.reshape((b, rows, heads, d / heads))?.transpose(1, 2)?.contiguous()?)
    }

    /// What queries `[B, heads, Q, head_dim]` find by keys in values: `[B, Q, D]`.
    fn attention(&self, query: &Tensor, key: &Tensor, value: &Tensor) -> Faulty<Tensor> {
        let ((b, heads, rows, head_dim), products) = (query.dims4()?, self.formats.products);
        let scores = (multiply(query, &key.t()?.contiguous()?, products)? / (head_dim as f64).sqrt())?;
        // The softmax does not depend on what is taken off.
        let scores = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?.exp()?;
        let weights = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
        #[cfg(test)]
        if let Some(seen) = self.seen.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            seen.push(weights.clone());
        }
        let mixed = multiply(&weights, value, products)?;
        Ok(mixed.transpose(1, 2)?.contiguous()?.reshape((b, rows, heads * head_dim))?)
    }

    /// Queries or keys `[B, heads, T, head_dim]` with those of the patches, the last ones, turned by rotary positions, if there
    /// are any.
    fn turned(&self, x: Tensor) -> Faulty<Tensor> {
        let Some([cos, sin]) = &self.turn else { return Ok(x) };
        let (_, _, rows, head_dim) = x.dims4()?;
        let (patches, half) = (cos.dim(0)?, head_dim / 2);
        let of_patches = x.narrow(2, rows - patches, patches)?;
        let (a, b) = (of_patches.narrow(3, 0, half)?, of_patches.narrow(3, half, half)?);
        let a2 = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
        let b2 = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
        let of_patches = Tensor::cat(&[a2, b2], 3)?;
        if rows == patches {
            return Ok(of_patches);
        }
        Ok(Tensor::cat(&[x.narrow(2, 0, rows - patches)?, of_patches], 2)?)
    }

    /// Block `i`, which may see keys and values `[N, 2D]` beside those of its tokens.
    fn block(&self, x: &Tensor, i: usize, own: Option<&Tensor>) -> Faulty<Tensor> {
        let block = &self.blocks[i];
        let (b, _, d) = x.dims3()?;
        let y = block.norm1.forward(x)?;
        let [query, key, value] = &block.qkv;
        let with_own = |y: Tensor, from: usize| -> Faulty<Tensor> {
            let Some(own) = own else { return Ok(y) };
            let own = own.narrow(1, from, d)?.unsqueeze(0)?;
            let own = own.broadcast_as((b, own.dim(1)?, d))?;
            Ok(Tensor::cat(&[&own, &y], 1)?)
        };
        let query = self.turned(self.heads(&query.forward(&y)?)?)?;
        let key = self.turned(self.heads(&with_own(key.forward(&y)?, 0)?)?)?;
        let value = self.heads(&with_own(value.forward(&y)?, d)?)?;
        let scaled = |y: Tensor, which: usize| match &block.layer_scale {
            Some(by) => scale(&y, &by[which], None),
            None => Ok(y),
        };
        let x = (x + scaled(block.out.forward(&self.attention(&query, &key, &value)?)?, 0)?)?;
        let y = block.mlp.forward(&block.norm2.forward(&x)?)?;
        Ok((x + scaled(y, 1)?)?)
    }

    /// What `pool` makes of tokens `[B, T, D]` behind the last block: `[B, D]` or `[B, 2 D]`.
    ///
    /// # Errors
    /// The tower has no attention pooling.
    pub(in crate::vit) fn pooled(&self, raw: &Tensor, pool: Pool) -> Faulty<Tensor> {
        let tokens = self.post_norm.forward(raw)?;
        let class = || tokens.narrow(1, 0, 1)?.squeeze(1);
        let prefix = self.prefix_tokens();
        let mean_of = |tokens: &Tensor| tokens.narrow(1, prefix, tokens.dim(1)? - prefix)?.mean(1);
        Ok(match pool {
            Pool::ClassToken => class()?,
            Pool::Mean => mean_of(&tokens)?,
            Pool::NormOfMean => self.post_norm.forward(&mean_of(raw)?)?,
            Pool::ClassTokenAndMean => Tensor::cat(&[class()?, mean_of(&tokens)?], 1)?,
            Pool::Attention => {
                let Some(pooling) = &self.attention_pool else {
                    return Err(candle_core::Error::msg("no attention pooling").into());
                };
                let b = tokens.dim(0)?;
                let query = pooling.query.broadcast_as((b, 1, self.width()))?.contiguous()?;
                let [of_query, key, value] = &pooling.qkv;
                let query = self.heads(&of_query.forward(&query)?)?;
                let (key, value) = (self.heads(&key.forward(&tokens)?)?, self.heads(&value.forward(&tokens)?)?);
                let x = pooling.out.forward(&self.attention(&query, &key, &value)?)?.squeeze(1)?;
                (pooling.mlp.forward(&pooling.norm.forward(&x)?)? + x)?
            }
        })
    }

    /// The tokens `[B, T, D]` (class token, registers, patches; no prompts) as they leave so many blocks, up to `last`; those that
    /// are not `read` are left out.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub(in crate::vit) fn tokens_behind(
        &self,
        input: CandleInput,
        prompts: &CandlePrompts,
        last: usize,
        read: &dyn Fn(usize) -> bool,
    ) -> Faulty<Vec<Option<Tensor>>> {
        let (prefix, own) = (self.prefix_tokens(), self.tokens() - self.prefix_tokens());
        let (begin, mut x) = match input {
            CandleInput::Images(images) => {
                let x = self.embedding(images)?;
                (0, if let Some(norm) = &self.pre_norm { norm.forward(&x)? } else { x })
            }
            CandleInput::Tokens { blocks, tokens } => (blocks, tokens.clone()),
        };
        // Without the prompts, which stand before the patches.
        let unprompted = |x: &Tensor| -> Faulty<Tensor> {
            let rows = x.dim(1)?;
            if rows == prefix + own {
                return Ok(x.clone());
            }
            Ok(Tensor::cat(&[&x.narrow(1, 0, prefix)?, &x.narrow(1, rows - own, own)?], 1)?)
        };
        let mut tokens = vec![None; last + 1];
        for (i, kept) in tokens.iter_mut().enumerate().skip(begin) {
            if i > begin {
                x = self.prompted_block(&x, i - 1, prompts)?;
            }
            if read(i) {
                *kept = Some(unprompted(&x)?);
            }
        }
        Ok(tokens)
    }

    /// Block `i` with its prompts, which take the place of those of the block before.
    fn prompted_block(&self, x: &Tensor, i: usize, prompts: &CandlePrompts) -> Faulty<Tensor> {
        let of = |prompts: &Option<(usize, Tensor)>| -> Faulty<Option<Tensor>> {
            let Some((start, all)) = prompts else { return Ok(None) };
            let layer = i.checked_sub(*start).filter(|&layer| layer < all.dims()[0]);
            Ok(layer.map(|layer| all.get(layer)).transpose()?)
        };
        let keys_values = of(&prompts.keys_values)?;
        let Some(fresh) = of(&prompts.tokens)? else { return self.block(x, i, keys_values.as_ref()) };
        let fresh = match &self.pre_norm {
            // Images have been through it when prompts join them.
            Some(norm) if i == 0 => norm.forward(&fresh)?,
            _ => fresh,
        };
        let ((b, rows, d), prefix) = (x.dims3()?, self.prefix_tokens());
        let own = self.tokens() - prefix;
        let fresh = fresh.unsqueeze(0)?.broadcast_as((b, fresh.dim(0)?, d))?;
        let x = Tensor::cat(&[&x.narrow(1, 0, prefix)?, &fresh, &x.narrow(1, rows - own, own)?], 1)?;
        self.block(&x, i, keys_values.as_ref())
    }

    /// The tokens `[B, T, D]` of `images` before any norm.
    fn embedding(&self, images: &Tensor) -> Faulty<Tensor> {
        let (p, b) = (self.spec.patch_size, images.dims4()?.0);
        let grid = self.image_size / p;
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
        let patches = self.patch.forward(&patches)?.broadcast_add(&self.positions)?;
        let Some(prefix) = &self.prefix else { return Ok(patches) };
        let prefix = prefix.broadcast_as((b, self.prefix_tokens(), self.width()))?;
        Ok(Tensor::cat(&[&prefix, &patches], 1)?)
    }
}

/// Cosines and sines `[N, head_dim / 2]` by which the patches on a `grid` are turned.
fn turn(rotary: Rotary, head_dim: usize, grid: usize, formats: Formats, device: &Device) -> Faulty<[Tensor; 2]> {
    let half = head_dim / 2;
    let quarter = half / 2;
    let middle = |i: usize| 2. * (i as f64 + 0.5) / grid as f64 - 1.;
    let angles = (0..grid * grid).flat_map(|patch| {
        (0..half).map(move |j| {
            let at = if j < quarter { middle(patch / grid) } else { middle(patch % grid) };
            std::f64::consts::TAU * at / rotary.theta.powf((j % quarter) as f64 / quarter as f64)
        })
    });
    let angles: Vec<f64> = angles.collect();
    let table = |f: fn(f64) -> f64| -> Faulty<Tensor> {
        let values: Vec<f64> = angles.iter().map(|&angle| f(angle)).collect();
        Ok(Tensor::from_vec(values, (grid * grid, half), device)?.to_dtype(formats.sums)?)
    };
    Ok([table(f64::cos)?, table(f64::sin)?])
}
