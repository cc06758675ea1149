//! A small CLIP with a hand-written backward pass: from images and texts to embeddings, and back to the gradient of the
//! parameters.

use std::ops::Range;

use crate::layout::{NanoClip, Norm};
use crate::ops::{dot, layer_norm, layer_norm_backward, linear, linear_backward};
use crate::tower::{Scratch, Tape, ThreadBuffers, sized, two};

/// `[B, 3, S, S]` images as `[B · patches, 3 · P · P]`, each patch in the order of the convolution's weight.
fn patchify(images: &[f32], side: usize, patch: usize, out: &mut Vec<f32>) {
    out.clear();
    for image in images.chunks_exact(3 * side * side) {
        for top in (0..side).step_by(patch) {
            for left in (0..side).step_by(patch) {
                for channel in image.chunks_exact(side * side) {
                    for row in top..top + patch {
                        out.extend_from_slice(&channel[row * side + left..][..patch]);
                    }
                }
            }
        }
    }
}

impl NanoClip {
    /// Embeds images `[B, 3, S, S]`; fills `tape.embeddings` `[B, projection]`, rows of length one.
    pub(crate) fn embed_images(&self, theta: &[f32], images: &[f32], tape: &mut Tape, scratch: &mut Scratch) {
        let d = self.config.vision.width;
        let (count, values) = (self.config.patches(), self.config.patch_values());
        patchify(images, self.config.image, self.config.patch, &mut tape.patches);
        let batch = tape.patches.len() / values / count;
        tape.lengths.clear();
        tape.lengths.resize(batch, count + 1);
        tape.read.clear();
        tape.read.extend((0..batch).map(|image| image * (count + 1)));
        let flat = sized(&mut scratch.c, batch * count * d);
        linear(&tape.patches, &theta[self.patch.clone()], None, values, flat);
        let position = &theta[self.vision_position.clone()];
        tape.embedded.resize(batch * (count + 1) * d, 0.0);
        for (rows, flat) in tape.embedded.chunks_exact_mut((count + 1) * d).zip(flat.chunks_exact(count * d)) {
            rows[..d].copy_from_slice(&theta[self.class.clone()]);
            rows[d..].copy_from_slice(flat);
            rows.iter_mut().zip(position).for_each(|(value, position)| *value += position);
        }
        let mut x = std::mem::take(&mut scratch.d);
        let normed = sized(&mut x, tape.embedded.len());
        layer_norm(&tape.embedded, &theta[self.pre_norm.w.clone()], &theta[self.pre_norm.b.clone()], normed);
        self.vision.forward(theta, normed, &mut tape.parts(), scratch);
        scratch.d = x;
        self.project(theta, &self.post_norm, &self.visual_projection, tape);
    }

    /// Embeds texts, given as token ids with their start and end marks; fills `tape.embeddings` `[texts, projection]`.
    pub(crate) fn embed_texts(&self, theta: &[f32], texts: &[Vec<u32>], tape: &mut Tape, scratch: &mut Scratch) {
        let d = self.config.text.width;
        tape.lengths.clear();
        tape.read.clear();
        tape.ids.clear();
        for text in texts {
            tape.lengths.push(text.len());
            tape.ids.extend_from_slice(text);
            // The end mark is the last token: texts are not padded.
            tape.read.push(tape.ids.len() - 1);
        }
        let (token, position) = (&theta[self.token.clone()], &theta[self.text_position.clone()]);
        tape.embedded.clear();
        for text in texts {
            for (&id, position) in text.iter().zip(position.chunks_exact(d)) {
                let token = &token[id as usize * d..][..d];
                tape.embedded.extend(token.iter().zip(position).map(|(a, b)| a + b));
            }
        }
        let x = std::mem::take(&mut tape.embedded);
        self.text.forward(theta, &x, &mut tape.parts(), scratch);
        tape.embedded = x;
        self.project(theta, &self.final_norm, &self.text_projection, tape);
    }

    fn project(&self, theta: &[f32], norm: &Norm, projection: &Range<usize>, tape: &mut Tape) {
        let d = norm.w.len();
        let count = tape.last.len() / d;
        tape.normed.resize(count * d, 0.0);
        layer_norm(&tape.last, &theta[norm.w.clone()], &theta[norm.b.clone()], &mut tape.normed);
        let e = self.config.projection;
        tape.embeddings.resize(count * e, 0.0);
        linear(&tape.normed, &theta[projection.clone()], None, d, &mut tape.embeddings);
        tape.norms.clear();
        for row in tape.embeddings.chunks_exact_mut(e) {
            let length = dot(row, row).sqrt().max(1e-12);
            tape.norms.push(length);
            for value in row {
                *value /= length;
            }
        }
    }

    /// The gradient of the tower's last rows from that of its normalised embeddings.
    fn project_backward(
        &self,
        theta: &[f32],
        (norm, projection): (&Norm, &Range<usize>),
        tape: &Tape,
        gradient: &[f32],
        grad: &mut [f32],
    ) -> Vec<f32> {
        let (d, e) = (norm.w.len(), self.config.projection);
        let mut inner = gradient.to_vec();
        for ((g, unit), length) in inner.chunks_exact_mut(e).zip(tape.embeddings.chunks_exact(e)).zip(&tape.norms) {
            let along = dot(g, unit);
            g.iter_mut().zip(unit).for_each(|(g, unit)| *g = (*g - along * unit) / length);
        }
        let mut dnormed = vec![0.0; tape.normed.len()];
        let w = &theta[projection.clone()];
        let dw = &mut grad[projection.clone()];
        linear_backward(&tape.normed, w, d, &inner, dw, None, Some(&mut dnormed));
        let mut dlast = vec![0.0; tape.last.len()];
        let (dw, db) = two(grad, &norm.w, &norm.b);
        layer_norm_backward(&tape.last, &theta[norm.w.clone()], &dnormed, dw, db, &mut dlast);
        dlast
    }

    /// Adds the image tower's gradients to the thread's own, given those of the embeddings of the tape's images.
    pub(crate) fn images_backward(&self, theta: &[f32], tape: &mut Tape, gradient: &[f32], own: &mut ThreadBuffers) {
        let ThreadBuffers { scratch, gradient: grad } = own;
        let d = self.config.vision.width;
        let (count, values) = (self.config.patches(), self.config.patch_values());
        let mut dx = self.project_backward(theta, (&self.post_norm, &self.visual_projection), tape, gradient, grad);
        self.vision.backward(theta, &tape.parts(), &mut dx, grad, scratch);
        let mut dembedded = vec![0.0; dx.len()];
        let (dw, db) = two(grad, &self.pre_norm.w, &self.pre_norm.b);
        layer_norm_backward(&tape.embedded, &theta[self.pre_norm.w.clone()], &dx, dw, db, &mut dembedded);
        let flat = sized(&mut scratch.c, tape.lengths.len() * count * d);
        for (rows, flat) in dembedded.chunks_exact((count + 1) * d).zip(flat.chunks_exact_mut(count * d)) {
            flat.copy_from_slice(&rows[d..]);
            grad[self.class.clone()].iter_mut().zip(&rows[..d]).for_each(|(sum, value)| *sum += value);
            grad[self.vision_position.clone()].iter_mut().zip(rows).for_each(|(sum, value)| *sum += value);
        }
        let w = &theta[self.patch.clone()];
        linear_backward(&tape.patches, w, values, flat, &mut grad[self.patch.clone()], None, None);
    }

    /// Adds the text tower's gradients to the thread's own, given those of the embeddings of the tape's texts.
    pub(crate) fn texts_backward(&self, theta: &[f32], tape: &mut Tape, gradient: &[f32], own: &mut ThreadBuffers) {
        let ThreadBuffers { scratch, gradient: grad } = own;
        let d = self.config.text.width;
        let mut dx = self.project_backward(theta, (&self.final_norm, &self.text_projection), tape, gradient, grad);
        self.text.backward(theta, &tape.parts(), &mut dx, grad, scratch);
        let mut rows = dx.chunks_exact(d).zip(&tape.ids);
        for &length in &tape.lengths {
            for (at, (row, &id)) in rows.by_ref().take(length).enumerate() {
                let (token, position) = (self.token.start + id as usize * d, self.text_position.start + at * d);
                grad[token..token + d].iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
                grad[position..position + d].iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng;
    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

    use super::*;
    use crate::layout::{NanoConfig, TowerConfig};
    use crate::loss::contrastive;

    fn loss(
        model: &NanoClip,
        theta: &[f32],
        images: &[f32],
        texts: &[Vec<u32>],
        truth: &[Option<bool>],
    ) -> (f32, Vec<f32>) {
        let (mut own, mut a, mut b) = (ThreadBuffers::new(model.len()), Tape::default(), Tape::default());
        model.embed_images(theta, images, &mut a, &mut own.scratch);
        model.embed_texts(theta, texts, &mut b, &mut own.scratch);
        let log_scale = theta[model.logit_scale.start];
        let e = model.config.projection;
        let (loss, di, dt, ds) = contrastive(&a.embeddings, &b.embeddings, truth, e, log_scale);
        model.images_backward(theta, &mut a, &di, &mut own);
        model.texts_backward(theta, &mut b, &dt, &mut own);
        own.gradient[model.logit_scale.start] = ds;
        (loss, own.gradient)
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let tower = TowerConfig { width: 16, depth: 2, heads: 2 };
        let config =
            NanoConfig { image: 16, patch: 8, vision: tower, text: tower, vocab: 12, context: 6, projection: 8 };
        let model = NanoClip::new(config);
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut theta = model.start(&mut rng);
        // Away from the start's zeros and ones, so that no gradient is zero by symmetry.
        for value in &mut theta {
            *value += 0.2 * (rng.random::<f32>() - 0.5);
        }
        theta[model.logit_scale.start] = 1.0;
        let images: Vec<f32> = (0..4 * 3 * 16 * 16).map(|_| rng.random::<f32>() - 0.5).collect();
        let texts = vec![vec![10, 3, 4, 11], vec![10, 5, 11], vec![10, 3, 6, 7, 11]];
        let (yes, no) = (Some(true), Some(false));
        let truth = [yes, no, no, no, yes, None, None, no, yes, yes, yes, no];
        let (_, grad) = loss(&model, &theta, &images, &texts, &truth);
        for slot in &model.slots {
            // The derivative along the slot's own gradient is that gradient's length.
            let g = &grad[slot.range.clone()];
            let length = dot(g, g).sqrt();
            let step = 2e-2 / length.max(1e-3).sqrt();
            let at = |sign: f32| {
                let mut moved = theta.clone();
                for (value, g) in moved[slot.range.clone()].iter_mut().zip(g) {
                    *value += sign * step * g / length.max(1e-12);
                }
                loss(&model, &moved, &images, &texts, &truth).0
            };
            let measured = (at(1.0) - at(-1.0)) / (2.0 * step);
            // Keys' biases do not change the loss: softmax does not see them.
            let close = (measured - length).abs() <= 2e-2 * length + 2e-4;
            assert!(close, "{}: {measured} by differences, {length} by hand", slot.name);
        }
    }
}
