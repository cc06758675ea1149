//! Images to the first block's input: patches, class token, registers, positions, CLIP's `ln_pre`; and the VJP to pixels.

use super::linear::Linear;
use crate::kernel::{Grow, Init, Mat, MatMut, normalize, normalize_vjp, row_stride};

/// The frozen embedding of one backbone at one image size.
pub(crate) struct Embedding {
    image_size: usize,
    patch_size: usize,
    /// Patch convolution as a product, `[D, 3 p p]`.
    patch: Linear,
    /// What stands in front of the patches, class token first, positions included: `[1 + registers, D]`.
    prefix: Vec<f32>,
    /// Positions of the patches `[N, D]`.
    positions: Vec<f32>,
    pre_norm: Option<PreNorm>,
}

/// `ln_pre`: its scale and shift cannot be folded, since the result is also the residual stream.
pub(crate) struct PreNorm {
    pub scale: Vec<f32>,
    pub shift: Vec<f32>,
    pub eps: f32,
}

/// What the VJP to the pixels needs.
#[derive(Default)]
pub(crate) struct EmbeddingTape {
    normalized: Vec<f32>,
    inverse: Vec<f32>,
}

/// Buffers of one thread.
#[derive(Default)]
pub(crate) struct Scratch {
    patches: Vec<f32>,
    gradient: Vec<f32>,
}

impl Embedding {
    pub(crate) fn new(
        (image_size, patch_size): (usize, usize),
        patch: Linear,
        prefix: Vec<f32>,
        positions: Vec<f32>,
        pre_norm: Option<PreNorm>,
    ) -> Self {
        Self { image_size, patch_size, patch, prefix, positions, pre_norm }
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
        scratch: &mut Scratch,
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
            self.each_run(|pixel, row, column, len| {
                let at = row * depth_stride + column;
                columns[at..at + len].copy_from_slice(&image[pixel..pixel + len]);
            });
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
        if let Some(pre) = &self.pre_norm {
            let rows = count * per_image;
            let mut unkept = EmbeddingTape::default();
            let tape = tape.unwrap_or(&mut unkept);
            let normalized = tape.normalized.grow(rows * stride);
            let view = &mut MatMut::new(normalized, rows, d, stride);
            normalize(Mat::new(x, rows, d, stride), pre.eps, view, tape.inverse.grow(rows));
            for (x, normalized) in x.chunks_exact_mut(stride).zip(normalized.chunks_exact(stride)) {
                for (i, x) in x.iter_mut().enumerate().take(d) {
                    *x = normalized[i] * pre.scale[i] + pre.shift[i];
                }
            }
        }
    }

    /// Turns `dx`, the gradient of the first block's input, into that of the embedding's sum before `ln_pre`, in place.
    /// Layout as in [`Embedding::forward`]; without an `ln_pre` nothing is to be done.
    pub(crate) fn vjp_pre_norm(&self, dx: &mut [f32], rows: usize, tape: &EmbeddingTape, scratch: &mut Scratch) {
        let Some(pre) = &self.pre_norm else { return };
        let d = self.width();
        let stride = row_stride(d);
        let gradient = scratch.gradient.grow(rows * stride);
        for (to, from) in gradient.chunks_exact_mut(stride).zip(dx.chunks_exact_mut(stride)) {
            for i in 0..d {
                to[i] = from[i] * pre.scale[i];
            }
            from.fill(0.0);
        }
        normalize_vjp(
            Mat::new(&tape.normalized, rows, d, stride),
            &tape.inverse[..rows],
            Mat::new(gradient, rows, d, stride),
            &mut MatMut::new(dx, rows, d, stride),
        );
    }

    /// Writes the gradient of the pixels `[m, 3, S, S]` from that of the embedding's sum, whose images have `per_image`
    /// rows each.
    pub(crate) fn vjp_pixels(&self, dx: &[f32], per_image: usize, pixels: &mut [f32], scratch: &mut Scratch) {
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
        normalize(Mat::new(x, n, d, d), pre.eps, view, &mut inverse);
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
        normalize_vjp(
            Mat::new(normalized, n, d, row_stride(d)),
            inverse,
            Mat::new(&scaled, n, d, d),
            &mut MatMut::new(&mut dx, n, d, d),
        );
        dx
    }
}
