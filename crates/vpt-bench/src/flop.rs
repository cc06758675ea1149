//! The least work a training step needs, counted from shapes.
//!
//! Only matrix products count, two operations for a multiply and an add; norms, softmax and activations are a few in a
//! thousand. What is counted is what a step cannot do without when weights are frozen (no weight gradients), not what a
//! given implementation does, so that rates of different programs can be compared.
//!
//! With width `D`, hidden width `M`, and for one block: `n` tokens of the image (class token, registers, patches, and
//! prompts that travelled on from an earlier block), `p` prompts of its own, `r` rows whose output is read, one image:
//!
//! ```text
//! forward    queries, keys, values    2 D² (r + 2n)              and once a batch 4 D² p for the prompts' keys and values
//!            attention                4 D r (n + p)
//!            output projection, MLP   2 r D² + 4 r D M           (6 r D M if the MLP is gated)
//! backward   MLP, output projection   4 r D M + 2 r D²           (6 r D M)
//!            attention                8 D r (n + p)              dV, dP, dQ, dK
//!            queries, keys, values    2 D² (r + 2n)              and once a batch 4 D² p
//! ```
//!
//! `r = n` but in the last block, where only the class token is read and `r = 1`. A block's own prompts are rows (`r`
//! grows by `p`, and their queries cost `2 D² p` once a batch each way) only where they travel on: in VPT-shallow, and in
//! the last prompted block of `first:K`. Blocks before the first prompt have no backward. In the first prompted block
//! only prompts need a gradient: attention costs `6 D r p` (dV, dP, dK of the prompts' columns) and the image's tokens
//! need no product with the query, key and value weights; prompts that travel on add `4 D p n` for dP and dQ of their own
//! rows. Patch embedding: `2 D · 3 patch²` for a patch, and as much again for each patch that holds prompted pixels.
//! Head: `2 D C` forward, `4 D C` backward (`2 D C` without prompts).
//!
//! Where weights are tuned, every block has a backward. Biases cost no product of their own. Low-rank changes of rank k cost
//! `8 D k (r + 2n)` a block (two products each way for A and for B), and in the first block no product with the query, key
//! and value weights; all weights as many products again as the forward pass has with weights, patch embedding included.

use vpt_backbone::spec::{Pool, Spec};
use vpt_model::prompt::part::Work;
use vpt_model::prompt::weights::WeightShape;

/// A training step's shapes.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The backbone.
    pub spec: &'a Spec,
    /// Side of the images in pixels.
    pub image_size: usize,
    /// What is learned beside the head.
    pub learned: Work,
    /// Images in the batch.
    pub batch: usize,
    /// Classes of the head.
    pub classes: usize,
}

impl Step<'_> {
    /// Floating point operations of one step, forward and backward: see the formula above.
    pub fn flop(&self) -> f64 {
        let backward: f64 = (0..self.spec.vision.depth).map(|block| self.block(block).1).sum();
        let patches = (self.image_size / self.spec.patch_size).pow(2);
        let patches = if self.learned.weights == Some(WeightShape::Full) { patches } else { 0 };
        let prompted = self.learned.patches.unwrap_or(0);
        let head = if self.learned == Work::default() { 2. } else { 4. };
        self.forward_flop() + backward + self.ends(patches + prompted, head)
    }

    /// Of the forward pass alone.
    pub fn forward_flop(&self) -> f64 {
        let patches = (self.image_size / self.spec.patch_size).pow(2);
        let forward: f64 = (0..self.spec.vision.depth).map(|block| self.block(block).0).sum();
        forward + self.ends(patches, 2.)
    }

    /// Products with the weights of the patch embedding, for some patches, and with those of the head and of attention pooling,
    /// which cost `head` times each.
    fn ends(&self, patches: usize, head: f64) -> f64 {
        let width = self.spec.vision.width as f64;
        let patch = 6. * width * self.spec.patch_size.pow(2) as f64;
        let pooling = if self.spec.pool == Pool::Attention {
            let tokens = (self.spec.prefix_tokens() + (self.image_size / self.spec.patch_size).pow(2)) as f64;
            2. * width * width * tokens + 2. * width * tokens + width * width + 2. * width * self.spec.vision.mlp as f64
        } else {
            0.
        };
        self.batch as f64 * (patch * patches as f64 + head * (width * self.classes as f64 + pooling))
    }

    /// One block, forward and backward, the whole batch.
    fn block(&self, block: usize) -> (f64, f64) {
        let tower = &self.spec.vision;
        let (d, mlp, batch) = (tower.width as f64, tower.mlp as f64, self.batch as f64);
        let last = block + 1 == tower.depth;
        let Work { tokens, patches, weights } = self.learned;
        let (start, end, tokens) = tokens
            .map_or((usize::MAX, usize::MAX, 0), |layout| (layout.start, layout.start + layout.layers, layout.tokens));
        // Pixels and weights come before every block: none of them is the first that something learns in.
        let everywhere = patches.is_some() || weights.is_some();
        let own = (start..end).contains(&block);
        let travelled = if block >= end { tokens } else { 0 };
        let p = if own { tokens as f64 } else { 0. };
        let travelling = own && block + 1 == end && !last;
        let patches = (self.image_size / self.spec.patch_size).pow(2);
        let n = (self.spec.prefix_tokens() + patches + travelled) as f64;
        // Rows of the image, and rows of all.
        let image_rows = if last && self.spec.pool == Pool::ClassToken { 1. } else { n };
        let r = image_rows + if travelling { p } else { 0. };

        let qkv = 2. * d * d * (image_rows + 2. * n);
        let prompts_qkv = 2. * d * d * p * if travelling { 3. } else { 2. };
        let rows = 2. * r * d * d + if tower.gated { 6. } else { 4. } * r * d * mlp;
        let forward = batch * (qkv + 4. * d * r * (n + p) + rows) + prompts_qkv;
        let backward = if block < start && !everywhere {
            0.
        } else if block == start && !everywhere {
            let travelling = if travelling { 4. * d * p * n } else { 0. };
            // dQ of a travelling prompt runs over the prompts' columns too.
            let own_columns = if travelling > 0. { 2. * d * p * p } else { 0. };
            batch * (rows + 6. * d * r * p + travelling + own_columns) + prompts_qkv
        } else {
            batch * (rows + 8. * d * r * (n + p) + qkv) + prompts_qkv
        };
        let backward = backward
            + batch
                * match weights {
                    Some(WeightShape::Lora(shape)) => {
                        let unread = if block == 0 && self.learned.patches.is_none() { qkv } else { 0. };
                        8. * d * shape.rank as f64 * (image_rows + 2. * n) - unread
                    }
                    Some(WeightShape::Full) => qkv + rows,
                    Some(WeightShape::Bias | WeightShape::Norm) | None => 0.,
                };
        (forward, backward)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use vpt_model::prompt::{
        PartShape, PartShapes,
        pixels::PixelShape,
        tokens::TokenLayout,
        weights::{LoraShape, LoraTowers},
    };

    fn tokens(start: usize, layers: usize, tokens: usize) -> Work {
        Work { tokens: Some(TokenLayout { start, layers, tokens }), ..Work::default() }
    }

    fn vit_b16() -> Spec {
        Spec::from_json(br#"{"model_type": "vit"}"#, Path::new("config.json")).unwrap()
    }

    fn step(spec: &Spec, learned: Work, batch: usize) -> f64 {
        Step { spec, image_size: 224, learned, batch, classes: 10 }.flop()
    }

    #[test]
    fn a_forward_pass_costs_what_the_literature_says() {
        // Dosovitskiy et al.'s ViT-B/16 is given as 17.6 G multiply-adds an image at 224 pixels, all rows of all blocks
        // counted; the last block's class row alone saves all but the keys and values of one block in twelve.
        let full: f64 =
            12. * 2. * (197. * 768. * (4. * 768. + 2. * 3072.) + 2. * 197. * 197. * 768.) + 2. * 196. * 768. * 768.;
        assert!((full / 2. / 1e9 - 17.6).abs() < 0.2, "{full}");
        let ours = step(&vit_b16(), Work::default(), 1);
        let saved = 2. * 196. * 768. * (2. * 768. + 2. * 3072.) + 4. * 196. * 197. * 768.;
        assert!((full - saved - ours).abs() < 1e6, "{full} {saved} {ours}");
    }

    #[test]
    fn the_step_of_the_reference_measurement() {
        // ViT-B/16, 16 images, 50 deep prompts: 1.07 TFLOP, counted by hand before this code was written.
        let all = tokens(0, 12, 50);
        let flop = step(&vit_b16(), all, 16);
        assert!((flop / 1e12 - 1.07).abs() < 0.01, "{flop}");
    }

    #[test]
    fn more_to_learn_is_never_less_work() {
        let spec = vit_b16();
        let tokens = |start, layers, count| step(&spec, tokens(start, layers, count), 4);
        let head = step(&spec, Work::default(), 4);
        let mut before = head;
        for layers in 1..=12 {
            let now = tokens(12 - layers, layers, 10);
            assert!(now > before, "last:{layers}");
            before = now;
        }
        assert!(tokens(0, 12, 10) < tokens(0, 12, 20));
        assert!(tokens(0, 1, 10) > tokens(0, 12, 10), "shallow prompts are rows in every block, deep ones only keys");
        let pixels = |patches| step(&spec, Work { patches: Some(patches), ..Work::default() }, 4);
        assert!(pixels(196) > pixels(100) && pixels(1) > 1.9 * head);
        // Beside weights, prompts cost no backward pass of their own.
        let bias = Work { weights: Some(WeightShape::Bias), ..Work::default() };
        let alone = step(&spec, bias, 4);
        let together = step(&spec, Work { tokens: Some(TokenLayout { start: 0, layers: 12, tokens: 10 }), ..bias }, 4);
        assert!(together > alone && together < alone + tokens(0, 12, 10) - head);
    }

    #[test]
    fn tuning_every_weight_is_three_forward_passes_and_less_is_two() {
        let spec = vit_b16();
        let per_image = |learned| step(&spec, learned, 2) - step(&spec, learned, 1);
        let forward = per_image(Work::default());
        let lora = LoraShape { rank: 2, alpha: 1., towers: LoraTowers::Image, texts: false };
        let [biases, low_rank, all] = [WeightShape::Bias, WeightShape::Lora(lora), WeightShape::Full]
            .map(|shape| per_image(Work { weights: Some(shape), ..Work::default() }) / forward);
        assert!((all - 3.).abs() < 0.1 && (biases - 2.).abs() < 0.1 && (low_rank - 2.).abs() < 0.1);
        assert!(low_rank < biases && biases < all, "{low_rank} {biases} {all}");
    }

    #[test]
    fn prompts_cost_their_projection_once_a_batch() {
        let spec = vit_b16();
        let deep = |batch| step(&spec, tokens(11, 1, 50), batch);
        let per_image = deep(2) - deep(1);
        let shared = deep(1) - per_image;
        assert!((shared - 2. * 4. * 768. * 768. * 50.).abs() < 1., "{shared}");
    }

    #[test]
    fn prompted_patches_are_counted() {
        let patches = |shape| PartShapes::from(PartShape::Pixels(shape)).work(224, 16).patches.unwrap();
        assert_eq!(patches(PixelShape::Full), 196);
        assert_eq!(patches(PixelShape::Pad { width: 16 }), 196 - 144);
        assert_eq!(patches(PixelShape::Pad { width: 17 }), 196 - 100);
        assert_eq!(patches(PixelShape::Pad { width: 112 }), 196);
        assert_eq!(patches(PixelShape::Frame { inner: 192 }), 196 - 144);
    }
}
