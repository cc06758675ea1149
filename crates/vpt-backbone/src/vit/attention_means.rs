//! What attention works with in a block, in the mean over images: keys of tokens, and what each of them finds. Prompt tokens can begin by it.

use super::Vit;
use vpt_base::{Error, Result, parallel};
use vpt_kernel::attention::AttentionScratch;
use vpt_kernel::{Attention, Mat, MatMut, layer_norm, row_stride};

/// Means over images, of each of their tokens, class token first.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionMeans {
    /// Keys `[T, D]`, heads side by side; rotary positions have not turned them.
    pub keys: Vec<f32>,
    /// The values that a token finds, weighed by its attention, heads side by side and before the projection behind them `[T, D]`.
    pub found: Vec<f32>,
}

impl Vit {
    /// The means over images whose tokens `[m, T, D]` enter block `index`, class token, registers and patches.
    ///
    /// # Errors
    /// There is no such block, the tokens are no whole number of images, or the tower is on another engine.
    pub fn attention_means(&self, index: usize, tokens: &[f32], threads: usize) -> Result<AttentionMeans> {
        let each = self.tokens() * self.width();
        if index >= self.depth() || tokens.is_empty() || !tokens.len().is_multiple_of(each) {
            let message = format!("{} values for block {index} of {}, of {each} an image", tokens.len(), self.depth());
            return Err(Error::invalid("tokens", message));
        }
        if self.other.is_some() {
            return Err(self.native_only("tells what attention works with"));
        }
        let images: Vec<&[f32]> = tokens.chunks_exact(each).collect();
        let of_each = parallel::shares(images.len(), threads, |share| {
            images[share].iter().map(|image| self.attention_of(index, image)).collect::<Vec<_>>()
        });
        let mut means = AttentionMeans { keys: vec![0.; each], found: vec![0.; each] };
        for (keys, found) in of_each.into_iter().flatten() {
            for (sum, values) in [(&mut means.keys, keys), (&mut means.found, found)] {
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value / images.len() as f32);
            }
        }
        Ok(means)
    }

    /// Keys `[n, D]` that block `index` makes of rows `[n, D]` without a place in the image, such as prompts.
    pub fn keys_of(&self, index: usize, rows: &[f32]) -> Vec<f32> {
        let d = self.width();
        let (keys_values, stride) = self.keys_values_of(index, rows);
        keys_values.chunks_exact(stride).flat_map(|row| row[..d].to_vec()).collect()
    }

    /// Keys and values `[n, 2D]` and their stride.
    fn keys_values_of(&self, index: usize, rows: &[f32]) -> (Vec<f32>, usize) {
        let (d, block) = (self.width(), &self.tower.blocks[index]);
        let (n, stride) = (rows.len() / d, row_stride(2 * d));
        let mut keys_values = vec![0.; n * stride];
        let normalized = self.normalized_of(index, rows);
        let normalized = Mat::new(&normalized, n, d, row_stride(d));
        block.keys_values().apply(normalized, MatMut::new(&mut keys_values, n, 2 * d, stride));
        (keys_values, stride)
    }

    /// Rows behind the norm of block `index`, at stride [`row_stride`]`(D)`.
    fn normalized_of(&self, index: usize, rows: &[f32]) -> Vec<f32> {
        let d = self.width();
        let (n, stride) = (rows.len() / d, row_stride(d));
        let (mut normalized, mut inverse) = (vec![0.; n * stride], vec![0.; n]);
        let out = &mut MatMut::new(&mut normalized, n, d, stride);
        layer_norm(Mat::new(rows, n, d, d), self.tower.blocks[index].eps(), out, &mut inverse);
        normalized
    }

    /// Keys, and what the tokens find, of one image `[T, D]`.
    fn attention_of(&self, index: usize, image: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (d, rows, block) = (self.width(), self.tokens(), &self.tower.blocks[index]);
        let stride = row_stride(d);
        let (mut keys_values, kv_stride) = self.keys_values_of(index, image);
        let keys: Vec<f32> = keys_values.chunks_exact(kv_stride).flat_map(|row| row[..d].to_vec()).collect();
        let normalized = self.normalized_of(index, image);
        let mut queries = vec![0.; rows * stride];
        let normalized = Mat::new(&normalized, rows, d, stride);
        block.queries().apply(normalized, MatMut::new(&mut queries, rows, d, stride));
        if let Some(turn) = self.tower.turn.as_deref() {
            for (values, stride) in [(&mut queries, stride), (&mut keys_values, kv_stride)] {
                let patches = &mut values[turn.prefix * stride..];
                turn.rotation.turn(MatMut::new(patches, turn.rotation.rows(), d, stride), false);
            }
        }
        let attention = Attention {
            heads: block.heads(),
            queries: Mat::new(&queries, rows, d, stride),
            keys_values: Mat::new(&keys_values, rows, 2 * d, kv_stride),
            prompts: None,
            causal: false,
            precision: self.precision,
        };
        let mut found = vec![0.; rows * stride];
        attention.forward(&mut MatMut::new(&mut found, rows, d, stride), None, &mut AttentionScratch::default());
        (keys, found.chunks_exact(stride).flat_map(|row| row[..d].to_vec()).collect())
    }
}
