//! The contrastive loss, where more than one caption may be true of an image.

use crate::ops::{self, MatView, dot, matmul};

/// The contrastive loss of images `[B, E]` and captions `[U, E]`. `truth` `[B, U]` says which caption is true of which
/// image, `None` where that is not settled. Each image has to tell every caption that is true of it from all that are
/// false, and each caption likewise every image; what is not settled counts neither way. Were every caption true of its
/// own image only, this would be CLIP's loss. Returns the loss and the gradients of the image embeddings, the caption
/// embeddings and the logarithm of the scale.
pub(crate) fn contrastive(
    images: &[f32],
    texts: &[f32],
    truth: &[Option<bool>],
    embedding: usize,
    log_scale: f32,
) -> (f32, Vec<f32>, Vec<f32>, f32) {
    let (b, u) = (images.len() / embedding, texts.len() / embedding);
    let scale = log_scale.exp();
    let (image_rows, text_rows) = (MatView::rows(images, embedding), MatView::rows(texts, embedding));
    let mut logits = vec![0.0; b * u];
    matmul((b, embedding, u), image_rows, text_rows.t(), &mut logits, u, false);
    ops::scale(&mut logits, scale);
    let mut dlogits = vec![0.0; b * u];
    let mut loss = 0.0;
    for i in 0..b {
        let row = i * u..(i + 1) * u;
        loss += tell_apart(&logits[row.clone()], &truth[row.clone()], 0.5 / b as f32, &mut dlogits[row]);
    }
    for t in 0..u {
        let column: Vec<f32> = logits.iter().skip(t).step_by(u).copied().collect();
        let truths: Vec<Option<bool>> = truth.iter().skip(t).step_by(u).copied().collect();
        let mut gradient = vec![0.0; b];
        loss += tell_apart(&column, &truths, 0.5 / u as f32, &mut gradient);
        dlogits.iter_mut().skip(t).step_by(u).zip(gradient).for_each(|(sum, value)| *sum += value);
    }
    let dscale = dot(&dlogits, &logits);
    ops::scale(&mut dlogits, scale);
    let (mut dimages, mut dtexts) = (vec![0.0; images.len()], vec![0.0; texts.len()]);
    let view = MatView::rows(&dlogits, u);
    matmul((b, u, embedding), view, text_rows, &mut dimages, embedding, false);
    matmul((u, b, embedding), view.t(), image_rows, &mut dtexts, embedding, false);
    (loss, dimages, dtexts, dscale)
}

/// `weight` times the mean, over what is true, of the cross-entropy between it and all that is false. Adds to `gradient`.
fn tell_apart(logits: &[f32], truth: &[Option<bool>], weight: f32, gradient: &mut [f32]) -> f32 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mass: Vec<f32> = logits.iter().map(|logit| (logit - top).exp().max(1e-30)).collect();
    let count = truth.iter().filter(|&&truth| truth == Some(true)).count().max(1);
    let wrong: f32 = mass.iter().zip(truth).filter(|(_, truth)| **truth == Some(false)).map(|(mass, _)| mass).sum();
    let weight = weight / count as f32;
    let (mut loss, mut pushed) = (0.0, 0.0);
    for ((mass, truth), gradient) in mass.iter().zip(truth).zip(gradient.iter_mut()) {
        if *truth == Some(true) {
            loss += weight * ((mass + wrong) / mass).ln();
            let push = weight * wrong / (mass + wrong);
            *gradient -= push;
            pushed += push;
        }
    }
    if wrong > 0.0 {
        for ((mass, truth), gradient) in mass.iter().zip(truth).zip(gradient) {
            if *truth == Some(false) {
                *gradient += pushed * mass / wrong;
            }
        }
    }
    loss
}
