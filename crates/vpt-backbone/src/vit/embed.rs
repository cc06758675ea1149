//! Images to the first block's input: patches, class token, registers, positions, `ln_pre`; and the VJP to pixels.

use super::fold::{Layer, pack};
use super::linear::Linear;
use super::plain::{PlainEmbedding, PlainLayer};
use crate::position::interpolate;
use crate::spec::{Positions, Resampling, Spec};
use vpt_base::Result;
use vpt_kernel::{
    Grow, Init, Mat, MatMut, Panels, Precision, add_products, add_rows, layer_norm, layer_norm_vjp, row_stride,
};

/// Tensors of the embedding as the checkpoint has them, or their gradients.
#[derive(Clone, Debug, Default)]
pub(crate) struct EmbeddingWeights {
    /// Class token `[D]`; empty where there is none.
    pub class: Vec<f32>,
    /// Positions at the stored image size, `[prefix + G*G, D]`: see [`crate::spec::Positions`].
    pub positions: Vec<f32>,
    /// Patch convolution `[D, 3 p p]`, `[D]`.
    pub patch: (Vec<f32>, Vec<f32>),
    /// Register tokens, or the distillation token, `[R, D]`.
    pub registers: Vec<f32>,
    /// Scale and shift `[D]` of `ln_pre`; empty where there is none.
    pub pre_norm: [Vec<f32>; 2],
}

/// The embedding of one backbone at one image size.
#[derive(Clone)]
pub(crate) struct Embedding {
    image_size: usize,
    patch_size: usize,
    /// Patch convolution as a product, `[D, 3 p p]`.
    patch: Linear,
    /// Tokens in front of the patches, class token first, positions included: `[prefix tokens, D]`.
    prefix: Vec<f32>,
    /// Positions of the patches `[N, D]`.
    positions: Vec<f32>,
    pre_norm: Option<PreNorm>,
}

/// `ln_pre`: its scale and shift cannot be folded, since the result is also the residual stream.
#[derive(Clone)]
struct PreNorm {
    scale: Vec<f32>,
    shift: Vec<f32>,
    eps: f32,
}

/// Gradients of an [`Embedding`], summed over images.
#[derive(Clone, Debug, Default)]
pub(crate) struct EmbeddingGrads {
    patch: Layer,
    prefix: Vec<f32>,
    positions: Vec<f32>,
    pre_norm: [Vec<f32>; 2],
}

/// Activations that the VJP to the embedding's sum needs.
#[derive(Default)]
pub(crate) struct EmbeddingTape {
    normalized: Vec<f32>,
    inverse: Vec<f32>,
}

/// Buffers of one thread.
#[derive(Default)]
pub(crate) struct EmbeddingScratch {
    patches: Vec<f32>,
    /// The tape of one image where it is not kept.
    unkept: EmbeddingTape,
    gradient: Vec<f32>,
    packed: Panels,
}

impl EmbeddingWeights {
    /// What they are for images of `image_size` pixels, to which positions are interpolated.
    pub(super) fn at(self, spec: &Spec, image_size: usize) -> Result<PlainEmbedding> {
        let d = spec.vision.width;
        let Self { class: mut prefix, positions, patch: (weight, bias), registers, pre_norm } = self;
        prefix.extend(registers);
        let (of_prefix, of_patches) = positions.split_at(spec.learned_prefix() * d);
        prefix.iter_mut().zip(of_prefix).for_each(|(token, position)| *token += position);
        let grid = image_size / spec.patch_size;
        let positions = match spec.positions {
            Some(positions) => interpolate(of_patches, d, positions.resampling, (grid, grid))?,
            None => vec![0.; grid * grid * d],
        };
        let pre_norm = spec.pre_norm.then_some(pre_norm);
        Ok(PlainEmbedding { patch: PlainLayer { weight, bias }, prefix, positions, pre_norm })
    }
}

impl Embedding {
    /// The embedding of these weights for images of `image_size` pixels, to which positions are interpolated.
    pub(super) fn new(spec: &Spec, image_size: usize, weights: EmbeddingWeights, precision: Precision) -> Result<Self> {
        let PlainEmbedding { patch, prefix, positions, pre_norm } = weights.at(spec, image_size)?;
        let patch = Linear::new(&patch.weight, patch.bias, precision);
        let pre_norm = pre_norm.map(|[scale, shift]| PreNorm { scale, shift, eps: spec.vision.eps });
        Ok(Self { image_size, patch_size: spec.patch_size, patch, prefix, positions, pre_norm })
    }

    /// The same with other biases, shift of `ln_pre` included.
    pub(super) fn with_biases(&self, weights: &EmbeddingWeights) -> Self {
        let mut other = self.clone();
        other.patch = self.patch.with_bias(weights.patch.1.clone());
        if let Some(pre) = &mut other.pre_norm {
            pre.shift.clone_from(&weights.pre_norm[1]);
        }
        other
    }

    /// Zeros for the gradients; of the biases alone unless `dense`.
    pub(super) fn zero_grads(&self, dense: bool) -> EmbeddingGrads {
        let d = self.width();
        let all = |len: usize| vec![0.0; if dense { len } else { 0 }];
        EmbeddingGrads {
            patch: Layer { weight: all(d * self.patch.inputs()), bias: vec![0.0; d] },
            prefix: all(self.prefix.len()),
            positions: all(self.positions.len()),
            pre_norm: [vec![0.0; d], vec![0.0; d]],
        }
    }

    /// Adds the gradients that come from `dx`, that of the embedding's sum of `images` `[m, 3, S, S]`, laid out as in
    /// [`Embedding::forward`] without anything inserted.
    pub(super) fn add_grads(
        &self,
        images: &[f32],
        dx: &[f32],
        grads: &mut EmbeddingGrads,
        scratch: &mut EmbeddingScratch,
    ) {
        let d = self.width();
        let stride = row_stride(d);
        let (prefix, patches) = (self.prefix.len() / d, self.patches());
        let depth = self.patch.inputs();
        let depth_stride = row_stride(depth);
        let per_image = (prefix + patches) * stride;
        for (image, dx) in images.chunks_exact(self.pixels()).zip(dx.chunks(per_image)) {
            let dy = &dx[prefix * stride..];
            for (to, from) in [(&mut grads.prefix, dx), (&mut grads.positions, dy)] {
                for (to, from) in to.chunks_exact_mut(d).zip(from.chunks(stride)) {
                    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
                }
            }
            let packed = if grads.patch.is_dense() {
                let columns = scratch.patches.grow(patches * depth_stride);
                self.unfold_image(image, columns);
                pack(&mut scratch.packed, Mat::new(columns, patches, depth, depth_stride), self.patch.precision());
                Some(&scratch.packed)
            } else {
                None
            };
            grads.patch.add(0, Mat::new(dy, patches, d, stride), packed);
        }
    }

    /// Bytes of the weights.
    pub(crate) fn weight_bytes(&self) -> usize {
        self.patch.bytes() + (self.prefix.len() + self.positions.len()) * size_of::<f32>()
    }

    /// Bytes of the patches of one image.
    pub(crate) fn scratch_bytes(&self) -> usize {
        self.patches() * row_stride(self.patch.inputs()) * size_of::<f32>()
    }

    pub(crate) fn width(&self) -> usize {
        self.patch.outputs()
    }

    pub(crate) fn image_size(&self) -> usize {
        self.image_size
    }

    fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches of an image.
    pub(crate) fn patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Tokens of an image: class token, registers, patches.
    pub(crate) fn tokens(&self) -> usize {
        self.prefix.len() / self.width() + self.patches()
    }

    /// Values of an image, `3 S S`.
    pub(crate) fn pixels(&self) -> usize {
        3 * self.image_size * self.image_size
    }

    /// Writes the first block's input `x` `[images * (tokens + P), D]` (stride `row_stride(D)`) of `images`
    /// `[m, 3, S, S]`, with `inserted` `[P, D]` behind each image's tokens. `tape` is filled if given.
    pub(crate) fn forward(
        &self,
        images: &[f32],
        inserted: &[f32],
        x: &mut Vec<f32>,
        tape: Option<&mut EmbeddingTape>,
        scratch: &mut EmbeddingScratch,
    ) {
        let d = self.width();
        let stride = row_stride(d);
        let count = images.len() / self.pixels();
        let (prefix, patches) = (self.prefix.len() / d, self.patches());
        let own = prefix + patches;
        let per_image = own + inserted.len() / d;
        let depth = self.patch.inputs();
        let depth_stride = row_stride(depth);
        let x = x.grow(count * per_image * stride);
        let columns = scratch.patches.grow(patches * depth_stride);
        for (image, x) in images.chunks_exact(self.pixels()).zip(x.chunks_exact_mut(per_image * stride)) {
            self.unfold_image(image, columns);
            let rows = |i: usize| i * stride..i * stride + d;
            for (i, token) in self.prefix.chunks_exact(d).enumerate() {
                x[rows(i)].copy_from_slice(token);
            }
            for (i, position) in self.positions.chunks_exact(d).enumerate() {
                x[rows(prefix + i)].copy_from_slice(position);
            }
            for (i, prompt) in inserted.chunks_exact(d).enumerate() {
                x[rows(own + i)].copy_from_slice(prompt);
            }
            let to = MatMut::new(&mut x[prefix * stride..], patches, d, stride);
            self.patch.add(Mat::new(columns, patches, depth, depth_stride), to);
        }
        let Some(pre) = &self.pre_norm else { return };
        let kept = if tape.is_some() { count } else { 1 };
        let tape = tape.unwrap_or(&mut scratch.unkept);
        let normalized = tape.normalized.grow(kept * per_image * stride);
        let inverse = tape.inverse.grow(kept * per_image);
        for (image, x) in x.chunks_exact_mut(per_image * stride).enumerate() {
            let at = if kept == count { image * per_image } else { 0 };
            let normalized = &mut normalized[at * stride..(at + per_image) * stride];
            let view = &mut MatMut::new(normalized, per_image, d, stride);
            layer_norm(Mat::new(x, per_image, d, stride), pre.eps, view, &mut inverse[at..at + per_image]);
            for (x, normalized) in x.chunks_exact_mut(stride).zip(normalized.chunks_exact(stride)) {
                for (i, x) in x.iter_mut().enumerate().take(d) {
                    *x = normalized[i] * pre.scale[i] + pre.shift[i];
                }
            }
        }
    }

    /// Turns `dx`, the gradient of the first block's input, into that of the embedding's sum before `ln_pre`, in place.
    /// Layout as in [`Embedding::forward`]; without an `ln_pre` nothing is to be done. Its own gradients are added to
    /// `grads`.
    pub(crate) fn vjp_pre_norm(
        &self,
        dx: &mut [f32],
        rows: usize,
        tape: &EmbeddingTape,
        grads: Option<&mut EmbeddingGrads>,
        scratch: &mut EmbeddingScratch,
    ) {
        let Some(pre) = &self.pre_norm else { return };
        let d = self.width();
        let stride = row_stride(d);
        if let Some(grads) = grads {
            grads.add_pre_norm(Mat::new(dx, rows, d, stride), &tape.normalized);
        }
        let gradient = scratch.gradient.grow(rows * stride);
        for (to, from) in gradient.chunks_exact_mut(stride).zip(dx.chunks_exact_mut(stride)) {
            for i in 0..d {
                to[i] = from[i] * pre.scale[i];
            }
            from.fill(0.0);
        }
        layer_norm_vjp(
            Mat::new(&tape.normalized, rows, d, stride),
            &tape.inverse[..rows],
            Mat::new(gradient, rows, d, stride),
            &mut MatMut::new(dx, rows, d, stride),
        );
    }

    /// Writes the gradient of the pixels `[m, 3, S, S]` from that of the embedding's sum, whose images have `per_image`
    /// rows each.
    pub(crate) fn vjp_pixels(&self, dx: &[f32], per_image: usize, pixels: &mut [f32], scratch: &mut EmbeddingScratch) {
        let d = self.width();
        let stride = row_stride(d);
        let prefix = self.prefix.len() / d;
        let patches = self.patches();
        let depth = self.patch.inputs();
        let depth_stride = row_stride(depth);
        let columns = scratch.patches.grow(patches * depth_stride);
        for (image, dx) in pixels.chunks_exact_mut(self.pixels()).zip(dx.chunks(per_image * stride)) {
            let dy = Mat::new(&dx[prefix * stride..], patches, d, stride);
            self.patch.vjp(dy, MatMut::new(columns, patches, depth, depth_stride), Init::Zero);
            self.each_run(|pixel, row, column, len| {
                let at = row * depth_stride + column;
                image[pixel..pixel + len].copy_from_slice(&columns[at..at + len]);
            });
        }
    }

    /// Writes the patches of an image as rows of `columns` `[N, 3 p p]`.
    fn unfold_image(&self, image: &[f32], columns: &mut [f32]) {
        let stride = row_stride(self.patch.inputs());
        self.each_run(|pixel, row, column, len| {
            let at = row * stride + column;
            columns[at..at + len].copy_from_slice(&image[pixel..pixel + len]);
        });
    }

    /// Calls `f(pixel, patch, column, length)` for every row of pixels of every patch, so that pixels from `pixel` on are
    /// the patch's columns from `column` on (ordered channel, row, column, as a convolution's weight).
    fn each_run(&self, mut f: impl FnMut(usize, usize, usize, usize)) {
        let (size, p, grid) = (self.image_size, self.patch_size, self.grid());
        for patch in 0..self.patches() {
            let (top, left) = (patch / grid * p, patch % grid * p);
            for channel in 0..3 {
                for y in 0..p {
                    f((channel * size + top + y) * size + left, patch, (channel * p + y) * p, p);
                }
            }
        }
    }

    /// CLIP: `(normalised at stride row_stride(D), inverse deviations, ln_pre(x))` of dense rows x `[n, D]`.
    pub(crate) fn pre_norm(&self, x: &[f32]) -> Option<(Vec<f32>, Vec<f32>, Vec<f32>)> {
        let pre = self.pre_norm.as_ref()?;
        let d = self.width();
        let (n, stride) = (x.len() / d, row_stride(d));
        let (mut normalized, mut inverse) = (vec![0.0; n * stride], vec![0.0; n]);
        let view = &mut MatMut::new(&mut normalized, n, d, stride);
        layer_norm(Mat::new(x, n, d, d), pre.eps, view, &mut inverse);
        let scaled = normalized
            .chunks_exact(stride)
            .flat_map(|row| (0..d).map(|i| row[i] * pre.scale[i] + pre.shift[i]))
            .collect();
        Some((normalized, inverse, scaled))
    }

    /// The VJP of [`Embedding::pre_norm`]: dense `[n, D]` in and out.
    pub(crate) fn pre_norm_vjp(&self, gradient: &[f32], normalized: &[f32], inverse: &[f32]) -> Vec<f32> {
        let Some(pre) = &self.pre_norm else { return gradient.to_vec() };
        let d = self.width();
        let n = inverse.len();
        let scaled: Vec<f32> = gradient.iter().zip(pre.scale.iter().cycle()).map(|(g, s)| g * s).collect();
        let mut dx = vec![0.0; n * d];
        layer_norm_vjp(
            Mat::new(normalized, n, d, row_stride(d)),
            inverse,
            Mat::new(&scaled, n, d, d),
            &mut MatMut::new(&mut dx, n, d, d),
        );
        dx
    }
}

impl EmbeddingGrads {
    /// Adds the gradients of scale and shift of `ln_pre` from that of what it gives, `dy` `[rows, D]`, for the `normalized`
    /// rows (stride `row_stride(D)`).
    pub(super) fn add_pre_norm(&mut self, dy: Mat, normalized: &[f32]) {
        let [scale, shift] = &mut self.pre_norm;
        add_products(dy, Mat::new(normalized, dy.rows(), dy.cols(), row_stride(dy.cols())), scale);
        add_rows(dy, shift);
    }

    /// Adds another thread's gradients.
    pub(super) fn add(&mut self, other: &Self) {
        let Self { patch, prefix, positions, pre_norm: [scale, shift] } = self;
        let own = [&mut patch.weight, &mut patch.bias, prefix, positions, scale, shift];
        let others = [
            &other.patch.weight,
            &other.patch.bias,
            &other.prefix,
            &other.positions,
            &other.pre_norm[0],
            &other.pre_norm[1],
        ];
        for (a, b) in own.into_iter().zip(others) {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        }
    }

    /// The gradients of the weights that the embedding was made of; those of tokens and positions are empty if they were not
    /// wanted.
    ///
    /// # Errors
    /// As [`interpolate`].
    pub(super) fn unfold(self, spec: &Spec, image_size: usize) -> Result<EmbeddingWeights> {
        let Self { patch, prefix, positions, pre_norm } = self;
        let patch = (patch.weight, patch.bias);
        if positions.is_empty() {
            return Ok(EmbeddingWeights { patch, pre_norm, ..EmbeddingWeights::default() });
        }
        let d = spec.vision.width;
        let (class, registers) = prefix.split_at(if spec.class_token { d } else { 0 });
        let positions = match spec.positions {
            Some(Positions { prefix: tokens, resampling }) => {
                let of_patches = interpolate_vjp(&positions, spec, resampling, image_size / spec.patch_size)?;
                [&prefix[..tokens * d], &of_patches].concat()
            }
            None => Vec::new(),
        };
        Ok(EmbeddingWeights { class: class.to_vec(), positions, patch, registers: registers.to_vec(), pre_norm })
    }
}

/// The VJP of interpolating positions to a `grid`: from the gradient `[grid², D]` that of the stored ones `[G², D]`.
/// Interpolation is linear and the same for every column, so its matrix is what it makes of the unit matrix.
fn interpolate_vjp(gradient: &[f32], spec: &Spec, resampling: Resampling, grid: usize) -> Result<Vec<f32>> {
    if grid == spec.grid() {
        return Ok(gradient.to_vec());
    }
    let (d, stored) = (spec.vision.width, spec.grid() * spec.grid());
    let mut unit = vec![0.0; stored * stored];
    unit.iter_mut().step_by(stored + 1).for_each(|one| *one = 1.0);
    let matrix = interpolate(&unit, stored, resampling, (grid, grid))?;
    let mut out = vec![0.0; stored * d];
    for (weights, gradient) in matrix.chunks_exact(stored).zip(gradient.chunks_exact(d)) {
        for (to, weight) in out.chunks_exact_mut(d).zip(weights).filter(|(_, weight)| **weight != 0.0) {
            to.iter_mut().zip(gradient).for_each(|(to, g)| *to += weight * g);
        }
    }
    Ok(out)
}
