//! The text head: CLIP's zero-shot classifier, learned further.
//!
//! `logits = exp(log_scale) * cos(P features, W_c)`, with CLIP's projection P of the image tower, which stays frozen, and
//! class weights W that begin as the text embeddings of the class names; the scale begins as CLIP's own. Before the first
//! step this is zero-shot classification, logit for logit. A linear head could not begin there: CLIP divides by the length
//! of the projected features, which is another one for every image. Starting from the text embeddings is what makes few
//! images a class enough: Wortsman et al., "Robust fine-tuning of zero-shot models" (2022), and Silva-Rodríguez et al., "A
//! Closer Look at the Few-Shot Adaptation of Large Vision-Language Models" (2024), which calls it ZS-LP.
//!
//! The tensors of the cosine head are learned; the text tower is not needed again.

use vpt_base::{
    Error, Result,
    params::{Group, Param},
};

/// The tensors of the head for `embeddings` `[C, D]` and the factor `scale`.
pub(super) fn weights(width: usize, classes: usize, embeddings: Vec<f32>, scale: f32) -> Result<Vec<Param>> {
    if !(scale.is_finite() && scale > 0.) {
        return Err(Error::invalid("logit_scale", format!("{scale} is not a factor above 0")));
    }
    Ok(vec![
        Param::new("head.weight", &[classes, width], embeddings, Group::Head)?,
        Param::new("head.log_scale", &[1], vec![scale.ln()], Group::HeadBias)?,
    ])
}
