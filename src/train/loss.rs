//! Softmax cross-entropy with label smoothing, and its gradient for features and head.

use candle_core::{D, Device, Tensor};

use crate::{Error, Result, eval::classify::argmax, head::BoundHead};

/// The training loss and how it is scaled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CrossEntropy {
    /// Share of the target that is spread evenly over all classes, in [0, 1).
    pub smoothing: f32,
}

/// What the loss of some images yields.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LossGradients {
    /// Sum of the images' losses in nats, smoothing included, not yet divided by the batch size.
    pub loss: f64,
    /// How many images have their label as the largest logit.
    pub correct: usize,
    /// Gradient of the batch's mean loss for the features `[m, D]`.
    pub features: Vec<f32>,
    /// Gradient of the batch's mean loss for each tensor of the head, in the order of [`crate::head::Head::tensors`].
    pub head: Vec<Vec<f32>>,
}

impl CrossEntropy {
    /// Sum over images of the loss of logits `[m, C]` with labels `[m]` (`u32`).
    ///
    /// `-(1-s) log p(label) - s/C sum_c log p(c)`: Szegedy et al., "Rethinking the Inception Architecture" (2016), §7.
    pub fn sum(&self, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let log_p = candle_nn::ops::log_softmax(logits, D::Minus1)?;
        let label = log_p.gather(&labels.unsqueeze(1)?, 1)?.sum_all()?;
        let s = f64::from(self.smoothing);
        if s == 0. {
            return Ok(label.neg()?);
        }
        let every = log_p.sum_all()?.affine(s / log_p.dim(1)? as f64, 0.)?;
        Ok((label.affine(1. - s, 0.)? + every)?.neg()?)
    }

    /// Loss and gradients for `features` `[m, D]`, part of a batch of `batch` images whose mean loss is minimised.
    ///
    /// Runs on the calling thread's data only, so parts of a batch can be computed side by side; the parts' gradients
    /// add up to the batch's.
    pub fn gradients(&self, head: &BoundHead, features: &[f32], labels: &[u32], batch: usize) -> Result<LossGradients> {
        let classes = head.head().classes;
        if let Some(label) = labels.iter().find(|&&l| l as usize >= classes) {
            return Err(Error::invalid("labels", format!("class {label} where there are {classes}")));
        }
        if features.len() != labels.len() * head.head().width {
            return Err(Error::invalid(
                "labels",
                format!("{} labels for {} feature values", labels.len(), features.len()),
            ));
        }
        let features = candle_core::Var::from_tensor(&head.features(features)?)?;
        let targets = Tensor::from_slice(labels, labels.len(), &Device::Cpu)?;
        let logits = head.forward(&features)?;
        let loss = self.sum(&logits, &targets)?;
        let mean = loss.affine(1. / batch as f64, 0.)?;
        let gradients = mean.backward()?;
        let flat = |t: &Tensor| -> Result<Vec<f32>> {
            let gradient = gradients
                .get(t)
                .ok_or_else(|| Error::invalid("head", "a tensor of the head has no part in its logits"))?;
            Ok(gradient.flatten_all()?.to_vec1()?)
        };
        let rows: Vec<Vec<f32>> = logits.to_vec2()?;
        let correct = rows.iter().zip(labels).filter(|(row, label)| argmax(row) == **label as usize).count();
        Ok(LossGradients {
            loss: f64::from(loss.to_scalar::<f32>()?),
            correct,
            features: flat(&features)?,
            head: head.vars().iter().map(|v| flat(v)).collect::<Result<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        head::{Head, HeadKind},
        params::Param,
        random::{normal, stream},
    };

    fn setup(kind: HeadKind) -> (Head, Vec<Param>, Vec<f32>, Vec<u32>) {
        let head = Head { kind, width: 5, classes: 4 };
        let mut rng = stream(3, "test", 0, 0);
        let mut params = head.init(&mut rng).unwrap();
        // Away from the initial values, where some gradients vanish.
        for p in &mut params {
            p.values.iter_mut().for_each(|v| *v = 0.5 * *v + 0.3 * normal(&mut rng));
        }
        let features = (0..6 * 5).map(|_| normal(&mut rng)).collect();
        (head, params, features, vec![0, 3, 1, 2, 2, 0])
    }

    #[test]
    fn gradients_equal_finite_differences() {
        for kind in [HeadKind::Linear, HeadKind::Cosine] {
            for smoothing in [0., 0.2] {
                let (head, params, features, labels) = setup(kind);
                let loss = CrossEntropy { smoothing };
                let mean = |params: &[Param], features: &[f32]| {
                    let bound = head.bind(params).unwrap();
                    loss.gradients(&bound, features, &labels, 6).unwrap().loss / 6.
                };
                let found = loss.gradients(&head.bind(&params).unwrap(), &features, &labels, 6).unwrap();
                let h = 1e-2f32;
                let close = |slope: f64, gradient: f32, what: &str| {
                    let gap = (slope - f64::from(gradient)).abs();
                    assert!(gap < 5e-4 + 1e-3 * slope.abs(), "{kind:?} {what}: {slope} {gradient}");
                };
                for i in 0..features.len() {
                    let at = |by: f32| {
                        let mut f = features.clone();
                        f[i] += by;
                        mean(&params, &f)
                    };
                    close((at(h) - at(-h)) / f64::from(2. * h), found.features[i], "features");
                }
                for (t, param) in params.iter().enumerate() {
                    for i in 0..param.values.len() {
                        let at = |by: f32| {
                            let mut p = params.clone();
                            p[t].values[i] += by;
                            mean(&p, &features)
                        };
                        close((at(h) - at(-h)) / f64::from(2. * h), found.head[t][i], &param.name);
                    }
                }
            }
        }
    }

    #[test]
    fn parts_of_a_batch_add_up_to_the_batch() {
        let (head, params, features, labels) = setup(HeadKind::Linear);
        let bound = head.bind(&params).unwrap();
        let loss = CrossEntropy { smoothing: 0.1 };
        let whole = loss.gradients(&bound, &features, &labels, 6).unwrap();
        let first = loss.gradients(&bound, &features[..10], &labels[..2], 6).unwrap();
        let rest = loss.gradients(&bound, &features[10..], &labels[2..], 6).unwrap();
        assert!((whole.loss - first.loss - rest.loss).abs() < 1e-5);
        assert_eq!(whole.correct, first.correct + rest.correct);
        let features = [first.features, rest.features].concat();
        assert!(whole.features.iter().zip(&features).all(|(a, b)| (a - b).abs() < 1e-6));
        for t in 0..2 {
            let sum = first.head[t].iter().zip(&rest.head[t]).map(|(a, b)| a + b);
            assert!(whole.head[t].iter().zip(sum).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }

    #[test]
    fn smoothing_has_the_value_of_its_formula() {
        let logits = Tensor::new(&[[1f32, 2., 3.]], &Device::Cpu).unwrap();
        let labels = Tensor::new(&[2u32], &Device::Cpu).unwrap();
        let at = |smoothing| CrossEntropy { smoothing }.sum(&logits, &labels).unwrap().to_scalar::<f32>().unwrap();
        let log_sum = (1f32.exp() + 2f32.exp() + 3f32.exp()).ln();
        assert!((at(0.) - (log_sum - 3.)).abs() < 1e-6);
        assert!((at(0.3) - (0.7 * (log_sum - 3.) + 0.1 * (3. * log_sum - 6.))).abs() < 1e-6);
    }

    #[test]
    fn a_label_beyond_the_classes_is_an_error() {
        let (head, params, features, mut labels) = setup(HeadKind::Linear);
        labels[1] = 4;
        let bound = head.bind(&params).unwrap();
        let error = CrossEntropy { smoothing: 0. }.gradients(&bound, &features, &labels, 6).unwrap_err();
        assert_eq!(error.to_string(), "labels: class 4 where there are 4");
    }
}
