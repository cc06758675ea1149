//! The training losses, softmax cross-entropy with label smoothing and binary cross-entropy, both with weights of classes if
//! need be, and their gradients for features and head.

pub mod class_weights;
pub(crate) mod text;

use std::sync::Arc;

use candle_core::{D, Device, Tensor, Var};

use crate::head::BoundHead;
use vpt_base::candle::Fault;
use vpt_base::{Error, Result, logits::argmax};
use vpt_data::LabelSets;

/// Loss function.
#[derive(Debug, Clone, PartialEq)]
pub enum Loss {
    /// One class an image.
    CrossEntropy(CrossEntropy),
    /// Any number of classes an image.
    Binary(BinaryCrossEntropy),
}

impl Loss {
    /// The loss of images whose labels are positions in `sets`, if there are any, or else classes. `weights` are as in
    /// [`BinaryCrossEntropy`] or [`CrossEntropy`].
    pub fn new(sets: Option<&Arc<LabelSets>>, smoothing: f32, weights: Option<Arc<[f32]>>) -> Self {
        match sets {
            Some(sets) => Self::Binary(BinaryCrossEntropy { sets: sets.clone(), weights }),
            None => Self::CrossEntropy(CrossEntropy { smoothing, weights }),
        }
    }

    /// Total weight of images with `labels`: the sum of their losses divided by it is their mean loss.
    pub fn weight(&self, labels: &[u32]) -> f64 {
        match self {
            Self::CrossEntropy(CrossEntropy { weights: Some(weights), .. }) => {
                labels.iter().filter_map(|&label| weights.get(label as usize)).map(|&weight| f64::from(weight)).sum()
            }
            _ => labels.len() as f64,
        }
    }

    /// Loss and gradients for `features` `[m, D]` with `labels` `[m]`, part of a batch whose images weigh `total` together
    /// (see [`Self::weight`]) and whose mean loss is minimised.
    ///
    /// Runs on the calling thread's data only, so parts of a batch can be computed side by side; the parts' gradients
    /// add up to the batch's.
    pub fn gradients(&self, head: &BoundHead, features: &[f32], labels: &[u32], total: f64) -> Result<LossGradients> {
        let features = Var::from_tensor(&head.features(features)?).map_err(Fault::from)?;
        Ok(self.differentiate(&HeadRows { head, features: &features, labels, total })?)
    }

    /// As [`Self::gradients`] of a whole batch, for the head alone: features that never change need no gradient, which is empty.
    pub fn head_gradients(&self, head: &BoundHead, features: &[f32], labels: &[u32]) -> Result<LossGradients> {
        let (features, total) = (head.features(features)?, self.weight(labels));
        Ok(self.differentiate(&HeadRows { head, features: &features, labels, total })?)
    }

    fn differentiate(&self, rows: &HeadRows<'_>) -> Result<LossGradients, Fault> {
        match self {
            Self::CrossEntropy(loss) => loss.differentiate(rows),
            Self::Binary(loss) => loss.differentiate(rows),
        }
    }
}

/// Softmax cross-entropy.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CrossEntropy {
    /// Share of the target that is spread evenly over all classes, in [0, 1).
    pub smoothing: f32,
    /// How much each class counts; all the same if `None`. The mean is over weights, as in `PyTorch`'s `CrossEntropyLoss`.
    pub weights: Option<Arc<[f32]>>,
}

/// Binary cross-entropy of each class by itself, mean over the classes.
#[derive(Debug, Clone, PartialEq)]
pub struct BinaryCrossEntropy {
    /// Sets of classes that labels stand for.
    pub sets: Arc<LabelSets>,
    /// How much having each class counts beside not having it; as much if `None`. `PyTorch`'s `pos_weight`.
    pub weights: Option<Arc<[f32]>>,
}

/// Loss of some images, and its gradients.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LossGradients {
    /// Sum of the images' losses in nats, smoothing and weights included, not yet divided by what they weigh.
    pub loss: f64,
    /// How many images are right: the label's logit is the largest; where an image has any number of classes, the logits of
    /// those are at least 0, and of no others.
    pub correct: usize,
    /// Gradient of the batch's mean loss for the features `[m, D]`.
    pub features: Vec<f32>,
    /// Gradient of the batch's mean loss for each tensor of the head, in the order of [`crate::head::Head::tensors`]; empty
    /// for what is fixed.
    pub head: Vec<Vec<f32>>,
}

impl CrossEntropy {
    /// Sum over images of the loss of logits `[m, C]` with labels `[m]` (`u32`).
    ///
    /// `-(1-s) log p(label) - s/C sum_c log p(c)`: Szegedy et al., "Rethinking the Inception Architecture" (2016), §7. With
    /// weights `w`, `-(1-s) w(label) log p(label) - s/C sum_c w(c) log p(c)`.
    pub(crate) fn sum(&self, logits: &Tensor, labels: &Tensor) -> Result<Tensor, Fault> {
        let mut log_p = candle_nn::ops::log_softmax(logits, D::Minus1)?;
        if let Some(weights) = &self.weights {
            log_p = log_p.broadcast_mul(&Tensor::from_slice(weights, (1, weights.len()), logits.device())?)?;
        }
        let label = log_p.gather(&labels.unsqueeze(1)?, 1)?.sum_all()?;
        let s = f64::from(self.smoothing);
        if s == 0. {
            return Ok(label.neg()?);
        }
        let every = log_p.sum_all()?.affine(s / log_p.dim(1)? as f64, 0.)?;
        Ok((label.affine(1. - s, 0.)? + every)?.neg()?)
    }

    fn differentiate(&self, rows: &HeadRows<'_>) -> Result<LossGradients, Fault> {
        let HeadRows { head, labels, .. } = *rows;
        let classes = head.head().classes;
        if let Some(label) = labels.iter().find(|&&l| l as usize >= classes) {
            return Err(Error::invalid("labels", format!("class {label} where there are {classes}")).into());
        }
        let targets = Tensor::from_slice(labels, labels.len(), &Device::Cpu)?;
        let sum = |logits: &Tensor| self.sum(logits, &targets);
        let right = |(row, label): (&Vec<f32>, &u32)| argmax(row) == *label as usize;
        differentiate(rows, sum, right)
    }
}

impl BinaryCrossEntropy {
    /// Sum over images of the mean over classes of the loss of logits `[m, C]` with targets `[m, C]` of 0 and 1.
    ///
    /// `max(x, 0) - x y + log(1 + exp(-|x|))`, which cannot overflow. With weights `w`, `(w - 1) y` times `-log p`, which is
    /// `max(x, 0) - x + log(1 + exp(-|x|))`, is added.
    pub(crate) fn sum(&self, logits: &Tensor, targets: &Tensor) -> Result<Tensor, Fault> {
        let positive = logits.relu()?;
        let minus_abs = (logits - positive.affine(2., 0.)?)?;
        let log = minus_abs.exp()?.affine(1., 1.)?.log()?;
        let mut all = ((&positive - (logits * targets)?)? + &log)?;
        if let Some(weights) = &self.weights {
            let more = Tensor::from_slice(weights, (1, weights.len()), logits.device())?.affine(1., -1.)?;
            all = (all + (((positive - logits)? + log)? * targets.broadcast_mul(&more)?)?)?;
        }
        Ok(all.sum_all()?.affine(1. / logits.dim(1)? as f64, 0.)?)
    }

    fn differentiate(&self, rows: &HeadRows<'_>) -> Result<LossGradients, Fault> {
        let HeadRows { head, labels, .. } = *rows;
        let classes = head.head().classes;
        if self.sets.classes() != classes {
            let message = format!("sets of {} classes where there are {classes}", self.sets.classes());
            return Err(Error::invalid("labels", message).into());
        }
        let truth = self.sets.truth(labels)?;
        let targets: Vec<f32> = truth.iter().map(|&there| f32::from(u8::from(there))).collect();
        let targets = Tensor::from_vec(targets, (labels.len(), classes), &Device::Cpu)?;
        let mut truths = truth.chunks_exact(classes.max(1));
        let right = |(row, _): (&Vec<f32>, &u32)| {
            let truth = truths.next().unwrap_or_default();
            row.iter().zip(truth).all(|(&logit, &there)| (logit >= 0.) == there)
        };
        differentiate(rows, |logits| self.sum(logits, &targets), right)
    }
}

/// What a head is given: rows of features `[m, D]` and their labels, of a batch that counts `total`.
struct HeadRows<'a> {
    head: &'a BoundHead,
    features: &'a Tensor,
    labels: &'a [u32],
    total: f64,
}

/// The loss `sum` of the logits of the rows, its gradients (for the features if they are a variable), and how many images are
/// `right` by their logits.
fn differentiate(
    rows: &HeadRows<'_>,
    sum: impl Fn(&Tensor) -> Result<Tensor, Fault>,
    mut right: impl FnMut((&Vec<f32>, &u32)) -> bool,
) -> Result<LossGradients, Fault> {
    let HeadRows { head, features, labels, total } = *rows;
    if features.dim(0)? != labels.len() {
        return Err(Error::invalid("labels", format!("{} labels for {} rows", labels.len(), features.dim(0)?)).into());
    }
    let logits = head.forward(features)?;
    let loss = sum(&logits)?;
    let mean = loss.affine(1. / total, 0.)?;
    let gradients = mean.backward()?;
    let flat = |t: &Tensor| -> Result<Vec<f32>, Fault> {
        let gradient =
            gradients.get(t).ok_or_else(|| Error::invalid("head", "a tensor of the head has no part in its logits"))?;
        Ok(gradient.flatten_all()?.to_vec1()?)
    };
    let rows: Vec<Vec<f32>> = logits.to_vec2()?;
    Ok(LossGradients {
        loss: f64::from(loss.to_scalar::<f32>()?),
        correct: rows.iter().zip(labels).filter(|pair| right(*pair)).count(),
        features: if features.is_variable() { flat(features)? } else { Vec::new() },
        head: head
            .tensors()
            .iter()
            .map(|t| if t.is_variable() { flat(t) } else { Ok(Vec::new()) })
            .collect::<Result<_, Fault>>()?,
    })
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // these values are exact
mod tests {
    use std::collections::BTreeMap;

    use crate::head::{Head, HeadKind};
    use crate::loss::*;
    use vpt_base::{
        params::Param,
        random::{normal, stream},
    };

    fn setup(kind: HeadKind) -> (Head, Vec<Param>, Vec<f32>, Vec<u32>) {
        let head = Head { kind, width: 5, classes: 4, keys: 0, logit_bias: false };
        let mut rng = stream(3, "test", 0, 0);
        let mut params = head.init(&mut rng).unwrap();
        // Away from the initial values, where some gradients vanish.
        for p in &mut params {
            p.values.iter_mut().for_each(|v| *v = 0.5 * *v + 0.3 * normal(&mut rng));
        }
        let features = (0..6 * 5).map(|_| normal(&mut rng)).collect();
        (head, params, features, vec![0, 3, 1, 2, 2, 0])
    }

    /// Every loss that takes the labels of [`setup`].
    fn losses() -> Vec<Loss> {
        let sets = Arc::new(LabelSets::new(4, vec![vec![0, 2], vec![], vec![1], vec![0, 1, 2, 3]]).unwrap());
        let weights = || Some([0.5, 2., 1., 0.25].into());
        vec![
            Loss::new(None, 0., None),
            Loss::new(None, 0.2, None),
            Loss::new(None, 0.2, weights()),
            Loss::new(Some(&sets), 0., weights()),
            Loss::new(Some(&sets), 0., None),
        ]
    }

    #[test]
    fn gradients_equal_finite_differences() {
        for &kind in HeadKind::ALL {
            for loss in losses() {
                let (head, params, features, labels) = setup(kind);
                let mean = |params: &[Param], features: &[f32]| {
                    let bound = head.bind(params).unwrap();
                    loss.gradients(&bound, features, &labels, 6.).unwrap().loss / 6.
                };
                let found = loss.gradients(&head.bind(&params).unwrap(), &features, &labels, 6.).unwrap();
                let h = 1e-2f32;
                let close = |slope: f64, gradient: f32, what: &str| {
                    let gap = (slope - f64::from(gradient)).abs();
                    assert!(gap < 5e-4 + 1e-3 * slope.abs(), "{kind:?} {loss:?} {what}: {slope} {gradient}");
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
    fn the_head_s_gradients_are_the_same_without_those_of_the_features() {
        for kind in [HeadKind::Linear, HeadKind::Cosine] {
            for loss in losses() {
                let (head, params, features, labels) = setup(kind);
                let bound = head.bind(&params).unwrap();
                let mut whole = loss.gradients(&bound, &features, &labels, loss.weight(&labels)).unwrap();
                whole.features.clear();
                assert_eq!(loss.head_gradients(&bound, &features, &labels).unwrap(), whole);
            }
        }
    }

    #[test]
    fn parts_of_a_batch_add_up_to_the_batch() {
        let (head, params, features, labels) = setup(HeadKind::Linear);
        let bound = head.bind(&params).unwrap();
        for loss in losses() {
            let total = loss.weight(&labels);
            let whole = loss.gradients(&bound, &features, &labels, total).unwrap();
            let first = loss.gradients(&bound, &features[..10], &labels[..2], total).unwrap();
            let rest = loss.gradients(&bound, &features[10..], &labels[2..], total).unwrap();
            assert!((whole.loss - first.loss - rest.loss).abs() < 1e-5);
            assert_eq!(whole.correct, first.correct + rest.correct);
            let features = [first.features, rest.features].concat();
            assert!(whole.features.iter().zip(&features).all(|(a, b)| (a - b).abs() < 1e-6));
            for t in 0..2 {
                let sum = first.head[t].iter().zip(&rest.head[t]).map(|(a, b)| a + b);
                assert!(whole.head[t].iter().zip(sum).all(|(a, b)| (a - b).abs() < 1e-6));
            }
        }
    }

    #[test]
    fn binary_cross_entropy_is_what_evaluation_measures() {
        let (head, params, features, labels) = setup(HeadKind::Linear);
        let bound = head.bind(&params).unwrap();
        let Some(Loss::Binary(loss)) = losses().pop() else { panic!("the last one is binary") };
        let found = Loss::Binary(loss.clone()).gradients(&bound, &features, &labels, 6.).unwrap();
        let mut tally = crate::metrics::MultilabelTally::new(4);
        tally.add(&bound.logits(&features).unwrap(), &loss.sets.truth(&labels).unwrap()).unwrap();
        let metrics = tally.metrics();
        assert!((found.loss / 6. - metrics.loss).abs() < 1e-6);
        assert_eq!(found.correct as f64 / 6., metrics.exact_match);
        // Far out there is no overflow, and the loss of what is right is nothing.
        let sum = |logits: &[[f32; 2]; 1]| {
            let logits = Tensor::new(logits, &Device::Cpu).unwrap();
            let targets = Tensor::new(&[[1f32, 0.]], &Device::Cpu).unwrap();
            loss.sum(&logits, &targets).unwrap().to_scalar::<f32>().unwrap()
        };
        assert_eq!((sum(&[[1e30, -1e30]]), sum(&[[-400., 200.]])), (0., 300.));
    }

    #[test]
    fn smoothing_has_the_value_of_its_formula() {
        let logits = Tensor::new(&[[1f32, 2., 3.]], &Device::Cpu).unwrap();
        let labels = Tensor::new(&[2u32], &Device::Cpu).unwrap();
        let at = |smoothing| {
            CrossEntropy { smoothing, weights: None }.sum(&logits, &labels).unwrap().to_scalar::<f32>().unwrap()
        };
        let log_sum = (1f32.exp() + 2f32.exp() + 3f32.exp()).ln();
        assert!((at(0.) - (log_sum - 3.)).abs() < 1e-6);
        assert!((at(0.3) - (0.7 * (log_sum - 3.) + 0.1 * (3. * log_sum - 6.))).abs() < 1e-6);
    }

    #[test]
    fn a_label_beyond_the_classes_is_an_error() {
        let (head, params, features, mut labels) = setup(HeadKind::Linear);
        labels[1] = 4;
        let bound = head.bind(&params).unwrap();
        let error = Loss::new(None, 0., None).gradients(&bound, &features, &labels, 6.).unwrap_err();
        assert_eq!(error.to_string(), "labels: class 4 where there are 4");
        let Some(binary) = losses().pop() else { panic!("no loss") };
        let error = binary.gradients(&bound, &features, &labels, 6.).unwrap_err();
        assert_eq!(error.to_string(), "labels: set 4 where there are 4");
    }

    /// Logits, labels, and what PyTorch makes of them.
    #[derive(serde::Deserialize)]
    struct LossCase {
        smoothing: f32,
        weights: Option<Vec<f32>>,
        /// Of the mean loss, by logit.
        gradients: Vec<Vec<f32>>,
        loss: f64,
    }

    #[derive(serde::Deserialize)]
    struct LossFixture {
        logits: Vec<Vec<f32>>,
        labels: Vec<u32>,
        sets: Vec<Vec<u32>>,
        cross_entropy: Vec<LossCase>,
        binary: Vec<LossCase>,
        sigmoid_head: SigmoidHead,
    }

    /// What a text head that tells each class by itself learns, and what PyTorch makes of it.
    #[derive(serde::Deserialize)]
    struct SigmoidHead {
        features: Vec<f32>,
        weight: Vec<f32>,
        log_scale: Vec<f32>,
        bias: Vec<f32>,
        logits: Vec<f32>,
        loss: f64,
        gradients: BTreeMap<String, Vec<f32>>,
    }

    fn loss_fixture() -> LossFixture {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/losses.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    // Made by scripts/make_loss_fixture.py.
    #[test]
    fn a_text_head_that_tells_each_class_by_itself_equals_pytorch() {
        let fixture = loss_fixture();
        let classes = fixture.logits[0].len();
        let sets = Arc::new(LabelSets::new(classes, fixture.sets).unwrap());
        let SigmoidHead { features, weight, log_scale, bias, logits, loss, gradients } = fixture.sigmoid_head;
        let head = Head { kind: HeadKind::Text, width: weight.len() / classes, classes, keys: 0, logit_bias: true };
        let params = head.of_texts_by_sigmoid(weight, log_scale[0].exp(), bias[0]).unwrap();
        let bound = head.bind(&params).unwrap();
        let close = |found: &[f32], expected: &[f32], what: &str| {
            assert_eq!(found.len(), expected.len(), "{what}");
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-6 * (1. + b.abs())), "{what}");
        };
        close(&bound.logits(&features).unwrap(), &logits, "logits");
        let labels: Vec<u32> = (0..logits.len() as u32 / classes as u32).collect();
        let found =
            Loss::new(Some(&sets), 0., None).gradients(&bound, &features, &labels, labels.len() as f64).unwrap();
        assert!((found.loss / labels.len() as f64 - loss).abs() < 1e-6, "{}", found.loss);
        close(&found.features, &gradients["features"], "features");
        for (gradient, name) in found.head.iter().zip(["weight", "log_scale", "bias"]) {
            close(gradient, &gradients[name], name);
        }
        assert_eq!(found.head.len(), 3);
    }

    // Made by scripts/make_loss_fixture.py.
    #[test]
    fn weighted_and_smoothed_losses_equal_pytorch() {
        let fixture = loss_fixture();
        let classes = fixture.logits[0].len();
        let sets = Arc::new(LabelSets::new(classes, fixture.sets).unwrap());
        // With this head, features are logits.
        let head = Head { kind: HeadKind::Linear, width: classes, classes, keys: 0, logit_bias: false };
        let mut params = head.init(&mut stream(1, "test", 0, 0)).unwrap();
        params[0].values = (0..classes * classes).map(|i| f32::from(u8::from(i % (classes + 1) == 0))).collect();
        params[1].values.fill(0.);
        let bound = head.bind(&params).unwrap();
        let logits = fixture.logits.concat();
        let check = |case: &LossCase, loss: &Loss, labels: &[u32]| {
            let total = loss.weight(labels);
            let found = loss.gradients(&bound, &logits, labels, total).unwrap();
            assert!((found.loss / total - case.loss).abs() < 1e-6, "{loss:?}: {} {}", found.loss / total, case.loss);
            let expected = case.gradients.concat();
            assert_eq!(found.features.len(), expected.len());
            assert!(found.features.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{loss:?}");
        };
        for case in &fixture.cross_entropy {
            check(case, &Loss::new(None, case.smoothing, case.weights.clone().map(Into::into)), &fixture.labels);
        }
        let positions: Vec<u32> = (0..fixture.labels.len() as u32).collect();
        for case in &fixture.binary {
            check(case, &Loss::new(Some(&sets), 0., case.weights.clone().map(Into::into)), &positions);
        }
        assert_eq!((fixture.cross_entropy.len(), fixture.binary.len()), (4, 2));
    }
}
