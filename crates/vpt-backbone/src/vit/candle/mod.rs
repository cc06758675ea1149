//! The tower on candle: its tensor operations forward, its automatic gradients back, on its devices.
//!
//! Prompts are tokens in every image's sequence, every block computes every row, and a batch goes through at once unless a
//! micro-batch says otherwise: what one would write in any library of tensors, and what the native engine is held against.

mod frozen;
mod tower;

use std::ops::Range;

use candle_core::{DType, Device, Tensor, Var};
use rayon::{ThreadPool, ThreadPoolBuilder};

pub(super) use self::tower::{CandleInput, CandlePrompts, CandleTower, Formats};
use super::engine::{EngineLoss, TowerEngine};
use super::{Grads, Input, Pass, Readout, TokenRows, Want};
use crate::engine;
use crate::spec::{Pool, Spec};
use crate::weights::Weights;
use vpt_base::candle::Fault;
use vpt_base::{Error, Result};
use vpt_kernel::Precision;

/// A result on its way out of code that computes with candle.
type Faulty<T> = std::result::Result<T, Fault>;

/// Candle in the place of the native engine.
pub(super) struct CandleEngine {
    tower: CandleTower,
    pool: Pool,
}

impl CandleEngine {
    /// Puts the image tower that `spec` describes on `device`, for images of `image_size` pixels.
    ///
    /// # Errors
    /// There is no such device, or a tensor is missing or has another shape.
    pub(super) fn open(
        spec: &Spec,
        weights: &Weights,
        image_size: usize,
        precision: Precision,
        device: engine::Device,
    ) -> Result<Self> {
        let on = match device {
            engine::Device::Cpu => Device::Cpu,
            engine::Device::Cuda(number) => Device::new_cuda(number)
                .map_err(|error| Error::setting("device", format!("{device} cannot be used: {error}")))?,
        };
        let products = match precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        };
        let formats = Formats { sums: DType::F32, products };
        Ok(Self { tower: CandleTower::read(spec, weights, image_size, formats, &on)?, pool: spec.pool })
    }

    /// A tensor of learned or given values, of which the gradient is asked if it `learns`.
    fn tensor(&self, values: &[f32], shape: &[usize], learns: bool) -> Faulty<Tensor> {
        let tensor = Tensor::from_slice(values, shape, self.tower.device())?;
        Ok(if learns { Var::from_tensor(&tensor)?.into_inner() } else { tensor })
    }

    /// What a pass reads of tokens `[m, T, D]` behind each of the blocks: `[m, R, D]`.
    fn read(&self, readout: Readout, tokens: &[Option<Tensor>]) -> Faulty<Tensor> {
        let behind = |after: usize| {
            tokens.get(after).and_then(Option::as_ref).ok_or_else(|| Error::invalid("readout", "not computed"))
        };
        let last = tokens.len() - 1;
        match readout {
            Readout::Features => self.tower.pooled(behind(last)?, self.pool),
            Readout::Pooled(pool) => self.tower.pooled(behind(last)?, pool),
            Readout::Tokens(reads) => {
                let parts = reads.iter().map(|read| -> Faulty<Tensor> {
                    let tokens = behind(read.after)?;
                    let prefix = self.tower.prefix_tokens();
                    Ok(match read.rows {
                        TokenRows::All => tokens.clone(),
                        TokenRows::Patches => tokens.narrow(1, prefix, tokens.dim(1)? - prefix)?,
                    })
                });
                Ok(Tensor::cat(&parts.collect::<Faulty<Vec<_>>>()?, 1)?)
            }
        }
    }

    fn pass(&self, pass: &Pass, batch: usize, loss: &mut EngineLoss) -> Faulty<Grads> {
        let (d, want) = (self.tower.width(), pass.want);
        let tokens = pass
            .prompts
            .map(|prompts| {
                let shape = [prompts.layers, prompts.tokens, d];
                Ok::<_, Fault>((prompts.start, self.tensor(prompts.data, &shape, want.tokens)?))
            })
            .transpose()?;
        let keys_values = pass
            .keys_values
            .map(|rows| {
                let shape = [rows.layers, rows.rows, 2 * d];
                Ok::<_, Fault>((rows.start, self.tensor(rows.data, &shape, want.keys_values)?))
            })
            .transpose()?;
        let zeros = |tensor: &Option<(usize, Tensor)>, wanted: bool| {
            tensor.as_ref().filter(|_| wanted).map(|(_, tensor)| vec![0.; tensor.elem_count()])
        };
        let mut grads = Grads {
            tokens: zeros(&tokens, want.tokens),
            keys_values: zeros(&keys_values, want.keys_values),
            pixels: want.pixels.then(Vec::new),
            weights: None,
        };
        let prompts = CandlePrompts { tokens, keys_values };
        let micro_batch = pass.micro_batch.unwrap_or(batch).clamp(1, batch.max(1));
        for start in (0..batch).step_by(micro_batch) {
            let images = start..(start + micro_batch).min(batch);
            self.micro_batch(pass, &prompts, images, loss, &mut grads)?;
        }
        Ok(grads)
    }

    /// One micro-batch, whose gradients are added to `grads`.
    fn micro_batch(
        &self,
        pass: &Pass,
        prompts: &CandlePrompts,
        images: Range<usize>,
        loss: &mut EngineLoss,
        grads: &mut Grads,
    ) -> Faulty<()> {
        let (d, side, count) = (self.tower.width(), self.tower.image_size(), images.len());
        let of_images = |values: &[f32], shape: &[usize]| {
            let each: usize = shape.iter().product();
            let shape: Vec<usize> = std::iter::once(count).chain(shape.iter().copied()).collect();
            self.tensor(&values[images.start * each..images.end * each], &shape, pass.want.pixels)
        };
        let (input, begin) = match pass.input {
            Input::Images(pixels) => (of_images(pixels, &[3, side, side])?, None),
            Input::Tokens { blocks, tokens } => (of_images(tokens, &[self.tower.tokens(), d])?, Some(blocks)),
        };
        let entering = match begin {
            None => CandleInput::Images(&input),
            Some(blocks) => CandleInput::Tokens { blocks, tokens: &input },
        };
        let is_read = |after: usize| match pass.readout {
            Readout::Features | Readout::Pooled(_) => after == self.tower.depth(),
            Readout::Tokens(reads) => reads.iter().any(|read| read.after == after),
        };
        let last = match pass.readout {
            Readout::Features | Readout::Pooled(_) => self.tower.depth(),
            Readout::Tokens(reads) => reads.last().map_or(0, |read| read.after),
        };
        let read = self.read(pass.readout, &self.tower.tokens_behind(entering, prompts, last, &is_read)?)?;
        let features: Vec<f32> = read.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
        let gradient = loss(images, &features)?;
        if pass.want == Want::default() {
            return Ok(());
        }
        let gradient = Tensor::from_vec(gradient, read.shape(), self.tower.device())?;
        let store = (read * gradient)?.sum_all()?.backward()?;
        let of = |tensor: &Tensor| -> Faulty<Option<Vec<f32>>> {
            let Some(gradient) = store.get(tensor) else { return Ok(None) };
            Ok(Some(gradient.flatten_all()?.to_vec1()?))
        };
        let learned = [(&mut grads.tokens, &prompts.tokens), (&mut grads.keys_values, &prompts.keys_values)];
        for (sum, tensor) in learned {
            // Prompts behind the last read have none.
            if let Some((sum, (_, tensor))) = sum.as_mut().zip(tensor.as_ref())
                && let Some(gradient) = of(tensor)?
            {
                sum.iter_mut().zip(gradient).for_each(|(sum, gradient)| *sum += gradient);
            }
        }
        if let Some(pixels) = &mut grads.pixels {
            pixels.extend(of(&input)?.unwrap_or_else(|| vec![0.; input.elem_count()]));
        }
        Ok(())
    }
}

/// Threads for candle's products, which run on the pool that they are called in.
fn pool(threads: usize) -> Result<ThreadPool> {
    let pool = ThreadPoolBuilder::new().num_threads(threads.max(1)).build();
    pool.map_err(|error| Error::setting("threads", format!("{threads} cannot be started: {error}")))
}

impl TowerEngine for CandleEngine {
    fn step(&self, pass: &Pass, batch: usize, loss: &mut EngineLoss) -> Result<Grads> {
        Ok(pool(pass.threads)?.install(|| self.pass(pass, batch, loss))?)
    }
}
