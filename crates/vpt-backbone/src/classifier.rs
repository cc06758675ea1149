//! The classifier that a backbone was published with (`ViTForImageClassification`, `Dinov2ForImageClassification` and their
//! kin): what a label mapping reads its classes from. It stands beside the backbone in the weight files and is read when it is
//! asked for.

use std::path::Path;

use super::clip::{Backbone, product};
use super::registry::CONFIG;
use super::spec::{Pool, Spec};
use vpt_base::{Error, Result};
use vpt_kernel::{Mat, Panels};

/// More source classes than any published classifier has; bounds what a mapping of them takes.
const MAX_CLASSES: usize = 1 << 17;

/// A frozen linear classifier on what its [`Pool`] makes of an image.
pub struct SourceClassifier {
    /// `[S, D]`.
    weight: Vec<f32>,
    /// `[S]`.
    bias: Vec<f32>,
    /// The weight again, packed: `[D, S]`.
    packed: Panels,
    /// Names of the source classes, if config.json has them.
    names: Option<Vec<String>>,
    pool: Pool,
}

impl SourceClassifier {
    /// Source classes, S.
    pub fn classes(&self) -> usize {
        self.bias.len()
    }

    /// Length of what it reads of an image, D.
    pub fn width(&self) -> usize {
        self.weight.len() / self.bias.len()
    }

    /// Weight `[S, D]`.
    pub fn weight(&self) -> &[f32] {
        &self.weight
    }

    /// Bias `[S]`.
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// Names of the source classes, if they are known.
    pub fn names(&self) -> Option<&[String]> {
        self.names.as_deref()
    }

    /// How the tokens of an image are pooled for it.
    pub fn pool(&self) -> Pool {
        self.pool
    }

    /// Source logits `[m, S]` of what it reads, `[m, D]`.
    pub fn logits(&self, features: &[f32]) -> Vec<f32> {
        let mut logits = product(features, &self.packed);
        for row in logits.chunks_exact_mut(self.classes()) {
            row.iter_mut().zip(&self.bias).for_each(|(logit, bias)| *logit += bias);
        }
        logits
    }
}

impl std::fmt::Debug for SourceClassifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SourceClassifier {{ classes: {}, width: {} }}", self.classes(), self.width())
    }
}

impl Backbone {
    /// The classifier that the backbone was published with.
    ///
    /// # Errors
    /// It has none, of `label_map`, which is what asks for one; or its tensors or the names of its classes are damaged.
    pub fn classifier(&self) -> Result<SourceClassifier> {
        let none = |why: &str| {
            let message = format!("{} ({}) has no classifier of its own: {why}", self.name, self.spec.family);
            Error::setting("label_map", message)
        };
        let Some(pool) = self.spec.classifier else {
            let why = if self.spec.text.is_some() || self.spec.projection.is_some() {
                "CLIP tells classes by texts; take a ViT, DeiT or DINOv2 with one"
            } else {
                "take a ViT, DeiT or DINOv2 with one"
            };
            return Err(none(why));
        };
        let layer = self.spec.family.classifier;
        let [weight_name, bias_name] = [format!("{layer}.weight"), format!("{layer}.bias")];
        let Some(shape) = self.weights().shape_beside(&weight_name) else {
            let why = match self.weights().shape_beside("distillation_classifier.weight") {
                Some(_) => "two of them are averaged (a distilled DeiT), which is not supported".to_owned(),
                None => {
                    format!("there is no tensor `{weight_name}`; take a checkpoint published for image classification")
                }
            };
            return Err(none(&why));
        };
        let classes = shape.first().copied().unwrap_or(0);
        let width = pool.vectors() * self.vit.width();
        if !(1..=MAX_CLASSES).contains(&classes) {
            let message = format!(
                "tensor `{weight_name}` has shape {shape:?}: {classes} classes are not from 1 to {MAX_CLASSES}"
            );
            return Err(Error::weights(self.weights().origin(), message));
        }
        let weight = self.weights().get_beside(&weight_name, &[classes, width])?;
        let bias = self.weights().get_beside(&bias_name, &[classes])?;
        for (name, values) in [(&weight_name, &weight), (&bias_name, &bias)] {
            if values.iter().any(|v| !v.is_finite()) {
                let message = format!("tensor `{name}` holds values that are not finite");
                return Err(Error::weights(self.weights().origin(), message));
            }
        }
        let packed = Panels::pack(Mat::new(&weight, classes, width, width).t());
        let names = self.class_names(classes)?;
        Ok(SourceClassifier { weight, bias, packed, names, pool })
    }

    /// Names of the classes of a classifier for so many, if config.json has any.
    fn class_names(&self, classes: usize) -> Result<Option<Vec<String>>> {
        let path = self.location().path(CONFIG);
        let Some(bytes) = self.location().read(CONFIG)? else { return Ok(None) };
        names(&bytes, &path, classes)
    }
}

fn names(bytes: &[u8], path: &Path, classes: usize) -> Result<Option<Vec<String>>> {
    let (field, names) = match (Spec::class_names(bytes, path)?, Spec::label_names(bytes, path)?) {
        (Some(names), _) => ("id2label", names),
        (None, Some(names)) => ("label_names", names),
        (None, None) => return Ok(None),
    };
    if names.len() != classes {
        let message = format!("{field}: {} names, where the classifier has {classes} classes", names.len());
        return Err(Error::weights(path, message));
    }
    Ok(Some(names))
}
