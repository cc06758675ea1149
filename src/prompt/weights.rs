//! Weights of the backbone that a task tunes: its biases, all of them, or low-rank changes.
//!
//! | method | learned | source |
//! |---|---|---|
//! | bias | every bias of the image tower, shifts of norms included | the baseline of VPT (Jia et al., ECCV 2022); `BitFit` (Ben Zaken et al., ACL 2022) |
//! | lora | `W + s B A` for queries, keys and values, `s = alpha / √r` | `LoRA` (Hu et al., ICLR 2022) as CLIP-LoRA (Zanella and Ben Ayed, CVPRW 2024) has it |
//! | full | every weight of the image tower | |
//!
//! Beside a head, which `lora` on a CLIP backbone does without: classes are told by their texts there.

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    choice::choice,
    params::{Group, Param},
};

/// What the names of tuned weights begin with in task files and checkpoints; the name in the backbone follows.
pub const PREFIX: &str = "backbone.";
/// The factors of a low-rank change behind the name of their layer.
pub(crate) const FACTORS: [&str; 2] = ["lora_A", "lora_B"];
/// Larger than any low-rank change makes sense with; bounds what a crafted file can make us allocate.
pub const MAX_RANK: usize = 1024;

choice! {
    /// Which towers have low-rank changes.
    pub enum LoraTowers for "--lora-towers" {
        /// The image tower.
        Image = "image",
        /// CLIP's text tower.
        Text = "text",
        /// Both.
        Both = "both",
    }
}

impl LoraTowers {
    /// Whether the image tower has.
    pub fn image(self) -> bool {
        self != Self::Text
    }

    /// Whether the text tower has.
    pub fn text(self) -> bool {
        self != Self::Image
    }
}

/// Which weights are tuned: kind and place, not the values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "tuned")]
pub enum WeightShape {
    /// Every bias of the image tower.
    Bias,
    /// Every weight of the image tower.
    Full,
    /// Low-rank changes to queries, keys and values.
    Lora(LoraShape),
}

/// Low-rank changes to queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraShape {
    /// Rank r of a change.
    pub rank: usize,
    /// Its factor is `alpha / √r`.
    pub alpha: f32,
    /// Where they are.
    pub towers: LoraTowers,
    /// Whether classes are told by their texts; else by a head that is learned.
    pub texts: bool,
}

impl LoraShape {
    /// The factor on `B A`.
    pub fn scale(&self) -> f32 {
        self.alpha / (self.rank as f32).sqrt()
    }

    /// Fails where values make no sense, or the towers do not go with the way classes are told.
    pub fn check(&self) -> Result<()> {
        if self.rank == 0 || self.rank > MAX_RANK {
            return Err(Error::flag("--lora-rank", format!("{} is not between 1 and {MAX_RANK}", self.rank)));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.) {
            return Err(Error::flag("--lora-alpha", format!("{} is not a number above 0", self.alpha)));
        }
        if self.towers.text() && !self.texts {
            let message = format!("{} changes texts, which a head of its own does not read; take image", self.towers);
            return Err(Error::flag("--lora-towers", message));
        }
        Ok(())
    }
}

impl WeightShape {
    /// The low-rank changes, if these are the kind.
    pub fn lora(&self) -> Option<LoraShape> {
        match self {
            Self::Lora(shape) => Some(*shape),
            _ => None,
        }
    }

    /// Whether weights of the image tower are tuned.
    pub fn tunes_images(&self) -> bool {
        self.lora().is_none_or(|shape| shape.towers.image())
    }

    /// Whether classes are told by their texts and there is no head to learn.
    pub fn told_by_texts(&self) -> bool {
        self.lora().is_some_and(|shape| shape.texts)
    }
}

/// Fresh factors of a low-rank change, as `LoRA` begins: A `[r, D]` uniform within `1/√D`, B `[D, r]` zero.
pub(crate) fn init_factor(name: &str, shape: &[usize], rng: &mut impl Rng) -> Result<Param> {
    let values = if name.ends_with(FACTORS[0]) {
        let bound = (shape[1] as f32).powf(-0.5);
        (0..shape.iter().product()).map(|_| rng.random_range(-bound..bound)).collect()
    } else {
        vec![0.; shape.iter().product()]
    };
    Param::new(name, shape, values, Group::Prompt)
}

/// Whether weight decay is for this weight of a backbone: matrices, but not what is added to tokens.
pub(crate) fn group(name: &str, shape: &[usize]) -> Group {
    let added = name.contains("embeddings.") && !name.contains("patch_embedding");
    if added || shape.iter().filter(|&&n| n > 1).count() < 2 { Group::PromptBias } else { Group::Prompt }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::stream;

    #[test]
    fn factors_begin_as_no_change_within_their_bound() {
        let rng = &mut stream(1, "lora", 0, 0);
        let a = init_factor("x.lora_A", &[4, 400], rng).unwrap();
        let largest = a.values.iter().fold(0_f32, |a, v| a.max(v.abs()));
        assert!(largest <= 0.05 && largest > 0.049, "{largest}");
        assert!(init_factor("x.lora_B", &[400, 4], rng).unwrap().values.iter().all(|&v| v == 0.));
    }

    #[test]
    fn matrices_decay_and_nothing_else_does() {
        for (name, shape, decays) in [
            ("backbone.encoder.layer.0.attention.attention.query.weight", &[8, 8][..], true),
            ("backbone.embeddings.patch_embeddings.projection.weight", &[8, 3, 2, 2], true),
            ("backbone.embeddings.position_embeddings", &[1, 5, 8], false),
            ("backbone.embeddings.cls_token", &[1, 1, 8], false),
            ("backbone.vision_model.embeddings.position_embedding.weight", &[5, 8], false),
            ("backbone.encoder.layer.0.layer_scale1.lambda1", &[8], false),
            ("backbone.layernorm.weight", &[8], false),
        ] {
            assert_eq!(group(name, shape) == Group::Prompt, decays, "{name}");
        }
    }

    #[test]
    fn shapes_that_make_no_sense_are_refused() {
        let shape = LoraShape { rank: 2, alpha: 1., towers: LoraTowers::Both, texts: true };
        assert!(shape.check().is_ok() && (shape.scale() - 0.5_f32.sqrt()).abs() < 1e-6);
        for (bad, flag) in [
            (LoraShape { rank: 0, ..shape }, "--lora-rank"),
            (LoraShape { rank: MAX_RANK + 1, ..shape }, "--lora-rank"),
            (LoraShape { alpha: f32::NAN, ..shape }, "--lora-alpha"),
            (LoraShape { alpha: 0., ..shape }, "--lora-alpha"),
            (LoraShape { texts: false, ..shape }, "--lora-towers"),
        ] {
            assert!(bad.check().unwrap_err().to_string().starts_with(flag), "{bad:?}");
        }
    }
}
