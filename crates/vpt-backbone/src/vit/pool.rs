//! The features of images: what a [`Pool`] makes of their tokens after the last norm, and back.

use super::attention_pool::AttentionPoolTape;
use super::embed::Embedding;
use super::tower::Tower;
use super::tuned::TowerGrads;
use crate::spec::Pool;
use vpt_kernel::{Grow, Mat, MatMut, add_products, add_rows, layer_norm, layer_norm_vjp, row_stride};

/// What the VJP of [`Tower::pool`] needs.
#[derive(Default)]
pub(super) struct PoolTape {
    /// The tokens after the last norm, without its scale and shift.
    normalized: Vec<f32>,
    /// One over their deviations.
    inverse: Vec<f32>,
    /// Of the layers of [`Pool::Attention`].
    attention: AttentionPoolTape,
}

impl PoolTape {
    /// Keeps, from the next forward pass on, what the gradients of weights need, or does not.
    pub(super) fn keep_inputs(&mut self, keep: bool) {
        self.attention.keep_inputs(keep);
    }
}

/// The rows of a micro-batch behind the last block, at stride [`row_stride`]`(D)`.
#[derive(Clone, Copy)]
pub(super) struct PooledRows {
    pub(super) images: usize,
    /// Rows of an image: its class token alone, or all tokens with the prompts that travel behind them.
    pub(super) each: usize,
    /// The first of them, which are the image's and no prompts.
    pub(super) own: usize,
}

impl PooledRows {
    pub(super) fn all(self) -> usize {
        self.images * self.each
    }
}

impl Embedding {
    /// Tokens before the patches.
    fn prefix_tokens(&self) -> usize {
        self.tokens() - self.patches()
    }
}

impl Tower {
    /// Features `[images, vectors * D]` of the rows `x` behind the last block.
    pub(super) fn pool(&self, pool: Pool, x: &[f32], rows: PooledRows, tape: &mut PoolTape) -> Vec<f32> {
        let d = self.embedding.width();
        let (all, stride) = (rows.all(), row_stride(d));
        if pool == Pool::NormOfMean {
            return self.norm_of_means(x, rows, tape);
        }
        let normalized = tape.normalized.grow(all * stride);
        let view = &mut MatMut::new(normalized, all, d, stride);
        layer_norm(Mat::new(x, all, d, stride), self.eps, view, tape.inverse.grow(all));
        if let (Pool::Attention, Some(attention)) = (pool, &self.attention_pool) {
            return attention.forward(normalized, rows, &mut tape.attention);
        }
        let [scale, shift] = &self.post_norm;
        let mut features = Vec::with_capacity(rows.images * pool.vectors() * d);
        for image in normalized.chunks_exact(rows.each * stride) {
            if pool.reads_class_token() {
                features.extend((0..d).map(|i| image[i] * scale[i] + shift[i]));
            }
            if pool.reads_patches() {
                let mut mean = vec![0.; d];
                for row in self.patch_rows(image) {
                    mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
                }
                let count = self.embedding.patches() as f32;
                features.extend((0..d).map(|i| mean[i] / count * scale[i] + shift[i]));
            }
        }
        features
    }

    /// The VJP of [`Self::pool`]: writes the gradient of the rows to `dx` and adds those of the norm's scale and shift and of
    /// the pooling's layers to `grads`. `buffer` is a buffer.
    pub(super) fn pool_vjp(
        &self,
        pool: Pool,
        d_features: &[f32],
        rows: PooledRows,
        tape: &mut PoolTape,
        (dx, buffer): (&mut Vec<f32>, &mut Vec<f32>),
        grads: Option<&mut TowerGrads>,
    ) {
        let d = self.embedding.width();
        let (all, stride) = (rows.all(), row_stride(d));
        if pool == Pool::NormOfMean {
            return self.norm_of_means_vjp(d_features, rows, tape, (dx, buffer), grads);
        }
        let normalized = Mat::new(&tape.normalized, all, d, stride);
        if let (Pool::Attention, Some(attention)) = (pool, &self.attention_pool) {
            let grads = grads.and_then(|grads| grads.attention_pool.as_mut());
            // What it makes of the norm's scale and shift is in its layers.
            attention.vjp(d_features, &tape.normalized, rows, &mut tape.attention, buffer, grads);
            let gradient = Mat::new(buffer, all, d, stride);
            let to = &mut MatMut::new(dx.zeroed(all * stride), all, d, stride);
            return layer_norm_vjp(normalized, &tape.inverse[..all], gradient, to);
        }
        let buffer = buffer.zeroed(all * stride);
        let images = buffer.chunks_exact_mut(rows.each * stride);
        for (image, gradient) in images.zip(d_features.chunks_exact(pool.vectors() * d)) {
            if pool.reads_class_token() {
                image[..d].copy_from_slice(&gradient[..d]);
            }
            if pool.reads_patches() {
                let mean = &gradient[gradient.len() - d..];
                let count = self.embedding.patches() as f32;
                let patches = image.chunks_exact_mut(stride).skip(self.embedding.prefix_tokens());
                for row in patches.take(self.embedding.patches()) {
                    row.iter_mut().zip(mean).for_each(|(to, gradient)| *to = gradient / count);
                }
            }
        }
        if let Some(grads) = grads {
            let [scale, shift] = &mut grads.post_norm;
            let gradient = Mat::new(buffer, all, d, stride);
            add_products(gradient, normalized, scale);
            add_rows(gradient, shift);
        }
        for row in buffer.chunks_exact_mut(stride) {
            row.iter_mut().zip(&self.post_norm[0]).for_each(|(gradient, scale)| *gradient *= scale);
        }
        dx.zeroed(all * stride);
        let gradient = Mat::new(buffer, all, d, stride);
        layer_norm_vjp(normalized, &tape.inverse[..all], gradient, &mut MatMut::new(dx, all, d, stride));
    }
    /// [`Pool::NormOfMean`].
    fn norm_of_means(&self, x: &[f32], rows: PooledRows, tape: &mut PoolTape) -> Vec<f32> {
        let (d, images) = (self.embedding.width(), rows.images);
        let stride = row_stride(d);
        let mut means = vec![0.; images * stride];
        let count = self.embedding.patches() as f32;
        for (mean, image) in means.chunks_exact_mut(stride).zip(x.chunks_exact(rows.each * stride)) {
            for row in self.patch_rows(image) {
                mean[..d].iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            for sum in mean.iter_mut() {
                *sum /= count;
            }
        }
        let normalized = tape.normalized.grow(images * stride);
        let view = &mut MatMut::new(normalized, images, d, stride);
        layer_norm(Mat::new(&means, images, d, stride), self.eps, view, tape.inverse.grow(images));
        let [scale, shift] = &self.post_norm;
        normalized.chunks_exact(stride).flat_map(|row| (0..d).map(|i| row[i] * scale[i] + shift[i])).collect()
    }

    /// The VJP of [`Self::norm_of_means`], as [`Self::pool_vjp`].
    fn norm_of_means_vjp(
        &self,
        d_features: &[f32],
        rows: PooledRows,
        tape: &PoolTape,
        (dx, buffer): (&mut Vec<f32>, &mut Vec<f32>),
        grads: Option<&mut TowerGrads>,
    ) {
        let (d, images) = (self.embedding.width(), rows.images);
        let stride = row_stride(d);
        let normalized = Mat::new(&tape.normalized, images, d, stride);
        let buffer = buffer.zeroed(images * stride);
        for (row, gradient) in buffer.chunks_exact_mut(stride).zip(d_features.chunks_exact(d)) {
            row[..d].copy_from_slice(gradient);
        }
        if let Some(grads) = grads {
            let [scale, shift] = &mut grads.post_norm;
            let gradient = Mat::new(buffer, images, d, stride);
            add_products(gradient, normalized, scale);
            add_rows(gradient, shift);
        }
        for row in buffer.chunks_exact_mut(stride) {
            row.iter_mut().zip(&self.post_norm[0]).for_each(|(gradient, scale)| *gradient *= scale);
        }
        let mut d_means = vec![0.; images * stride];
        let to = &mut MatMut::new(&mut d_means, images, d, stride);
        layer_norm_vjp(normalized, &tape.inverse[..images], Mat::new(buffer, images, d, stride), to);
        let count = self.embedding.patches() as f32;
        let dx = dx.zeroed(rows.all() * stride);
        for (image, d_mean) in dx.chunks_exact_mut(rows.each * stride).zip(d_means.chunks_exact(stride)) {
            let patches = image.chunks_exact_mut(stride).skip(self.embedding.prefix_tokens());
            for row in patches.take(self.embedding.patches()) {
                row[..d].iter_mut().zip(d_mean).for_each(|(to, gradient)| *to = gradient / count);
            }
        }
    }

    /// The rows of the patches of an image.
    fn patch_rows<'a>(&self, image: &'a [f32]) -> impl Iterator<Item = &'a [f32]> {
        let stride = row_stride(self.embedding.width());
        image.chunks_exact(stride).skip(self.embedding.prefix_tokens()).take(self.embedding.patches())
    }
}
