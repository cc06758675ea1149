//! The learned output: from the backbone's features to one logit a class.
//!
//! A [`Head`] says what is learned; [`Head::bind`] turns the learned values into candle variables once a step, and the
//! [`BoundHead`] maps features to logits with candle's autograd. It can be shared between threads.

pub mod cache;
pub mod cosine;
mod dense_tensors;
pub mod detect;
pub mod label_map;
mod linear;
pub mod segment;
mod text;

use candle_core::{Device, Tensor, Var};
use rand::Rng;

pub(crate) use self::cosine::unit_rows;
pub use self::label_map::LabelMap;

use vpt_base::candle::Fault;
use vpt_base::{
    Error, Result,
    choice::choice,
    params::{self, Group, Param},
};

choice! {
    /// Which head.
    #[derive(Default)]
    pub enum HeadKind for "head" {
        /// `features W^T + b`.
        #[default]
        Linear = "linear",
        /// Cosine of the angle between features and class weights, times a learned scale.
        Cosine = "cosine",
        /// The same in CLIP's joint space of images and texts, from the text embeddings of the class names on.
        Text = "text",
    }
}

/// Name of the bias of all logits, `[1]`.
pub const LOGIT_BIAS: &str = "head.logit_bias";

/// A head for features of `width` values and `classes` classes. What [`HeadKind::Text`] reads are features that CLIP has
/// projected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Which head.
    pub kind: HeadKind,
    /// Length of a feature vector, D.
    pub width: usize,
    /// Number of classes, C.
    pub classes: usize,
    /// Keys of a cache of training images that adds to the logits, N; 0 for none.
    pub keys: usize,
    /// Whether a learned bias is added to all logits of a cosine or text head, where the sigmoid of each is a probability by itself.
    pub logit_bias: bool,
}

impl Head {
    /// Fresh weights. A cache is not made from nothing: of a head with keys, these are the others.
    pub fn init(&self, rng: &mut impl Rng) -> Result<Vec<Param>> {
        let mut params = match self.kind {
            HeadKind::Linear => linear::init(self.width, self.classes, rng),
            HeadKind::Cosine | HeadKind::Text => cosine::init(self.width, self.classes, rng),
        }?;
        if self.logit_bias {
            params.push(Param::new(LOGIT_BIAS, &[1], vec![0.], Group::HeadBias)?);
        }
        Ok(params)
    }

    /// The weights of CLIP's zero-shot classifier: `embeddings` `[C, D]`, unit vectors that stand for the classes, and
    /// the factor `scale` between cosine and logit.
    ///
    /// # Errors
    /// The embeddings do not fit the head, or the scale is not above 0.
    pub fn of_texts(&self, embeddings: Vec<f32>, scale: f32) -> Result<Vec<Param>> {
        text::weights(self.width, self.classes, embeddings, scale)
    }

    /// As [`Self::of_texts`], and the bias of the logits of a backbone that was trained by the sigmoid of these (SigLIP).
    ///
    /// # Errors
    /// As [`Self::of_texts`].
    pub fn of_texts_by_sigmoid(&self, embeddings: Vec<f32>, scale: f32, bias: f32) -> Result<Vec<Param>> {
        let mut params = self.of_texts(embeddings, scale)?;
        params.push(Param::new(LOGIT_BIAS, &[1], vec![bias], Group::HeadBias)?);
        Ok(params)
    }

    /// Name and shape of every tensor of the head.
    pub fn tensors(&self) -> Vec<(&'static str, Vec<usize>)> {
        let weight = ("head.weight", vec![self.classes, self.width]);
        let mut tensors = match self.kind {
            HeadKind::Linear => vec![weight, ("head.bias", vec![self.classes])],
            HeadKind::Cosine | HeadKind::Text => vec![weight, ("head.log_scale", vec![1])],
        };
        if self.keys > 0 {
            tensors.extend(cache::tensors(self.keys, self.width));
        }
        if self.logit_bias {
            tensors.push((LOGIT_BIAS, vec![1]));
        }
        tensors
    }

    /// Makes candle variables of this head's tensors among `params`; those that are fixed become constants.
    pub fn bind(&self, params: &[Param]) -> Result<BoundHead> {
        Ok(self.bound(params)?)
    }

    fn bound(&self, params: &[Param]) -> Result<BoundHead, Fault> {
        let tensors = self
            .tensors()
            .into_iter()
            .map(|(name, shape)| -> Result<Tensor, Fault> {
                let param = params::find(params, name)?;
                if param.shape != shape {
                    let message = format!("shape {:?} where {shape:?} is expected", param.shape);
                    return Err(Error::invalid(name, message).into());
                }
                let fixed = param.group == Group::Fixed;
                Ok(if fixed {
                    Tensor::from_slice(&param.values, shape, &Device::Cpu)?
                } else {
                    Var::from_slice(&param.values, shape, &Device::Cpu)?.into_inner()
                })
            })
            .collect::<Result<_, Fault>>()?;
        let cache = if self.keys > 0 {
            let labels = cache::labels(params, self.classes)?;
            Some((Tensor::from_vec(labels, self.keys, &Device::Cpu)?, cache::alpha_beta(params)?))
        } else {
            None
        };
        Ok(BoundHead { head: *self, tensors, cache })
    }
}

/// A head with its weights, ready to compute.
#[derive(Debug, Clone)]
pub struct BoundHead {
    head: Head,
    tensors: Vec<Tensor>,
    /// The classes of the cache's keys, its weight and its sharpness.
    cache: Option<(Tensor, [f64; 2])>,
}

impl BoundHead {
    /// Logits `[m, C]` of features `[m, D]`, recorded for backpropagation.
    pub(crate) fn forward(&self, features: &Tensor) -> Result<Tensor, Fault> {
        let logits = match self.head.kind {
            HeadKind::Linear => linear::forward(features, &self.tensors[0], &self.tensors[1]),
            HeadKind::Cosine | HeadKind::Text => cosine::forward(features, &self.tensors[0], &self.tensors[1]),
        }?;
        let logits = match &self.cache {
            Some((labels, alpha_beta)) => cache::forward(&logits, features, &self.tensors[2], labels, *alpha_beta)?,
            None => logits,
        };
        match self.tensors.last().filter(|_| self.head.logit_bias) {
            Some(bias) => Ok(logits.broadcast_add(bias)?),
            None => Ok(logits),
        }
    }

    /// Logits `[m, C]`, row-major, of features `[m, D]`, without recording anything.
    pub fn logits(&self, features: &[f32]) -> Result<Vec<f32>> {
        let logits = || -> Result<_, Fault> { Ok(self.forward(&self.features(features)?)?.flatten_all()?.to_vec1()?) };
        Ok(logits()?)
    }

    /// The head's tensors, in the order of [`Head::tensors`]: variables, and constants where nothing is learned.
    pub(crate) fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The head's shape.
    pub fn head(&self) -> Head {
        self.head
    }

    /// A tensor `[m, D]` of flat features.
    pub fn features(&self, features: &[f32]) -> Result<Tensor, Fault> {
        let width = self.head.width;
        if !features.len().is_multiple_of(width) {
            let message = format!("{} values are not whole rows of {width}", features.len());
            return Err(Error::invalid("features", message).into());
        }
        Ok(Tensor::from_slice(features, (features.len() / width, width), &Device::Cpu)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vpt_base::random::stream;

    #[test]
    fn initial_tensors_are_the_ones_a_head_binds() {
        for &kind in HeadKind::ALL {
            let head = Head { kind, width: 6, classes: 3, keys: 0, logit_bias: false };
            let params = head.init(&mut stream(1, "head", 0, 0)).unwrap();
            let named: Vec<_> = params.iter().map(|p| (p.name.as_str(), p.shape.clone())).collect();
            assert_eq!(named, head.tensors());
            assert_eq!(head.bind(&params).unwrap().logits(&[0.5; 12]).unwrap().len(), 6);
            let with_bias = Head { logit_bias: true, ..head };
            assert_eq!(with_bias.init(&mut stream(1, "head", 0, 0)).unwrap().len(), with_bias.tensors().len());
            if kind == HeadKind::Text {
                let texts = with_bias.of_texts_by_sigmoid(vec![0.5; 18], 10., -3.).unwrap();
                let named: Vec<_> = texts.iter().map(|p| (p.name.as_str(), p.shape.clone())).collect();
                assert_eq!(named, with_bias.tensors());
                let logits = with_bias.bind(&texts).unwrap().logits(&[0.5; 6]).unwrap();
                assert!(logits.iter().all(|logit| (logit - 7.).abs() < 1e-5), "{logits:?}");
            }
            let other = Head { classes: 4, ..head };
            assert!(other.bind(&params).unwrap_err().to_string().contains("[3, 6] where [4, 6]"));
        }
    }
}
