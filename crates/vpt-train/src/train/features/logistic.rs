//! The linear probe of the CLIP paper: logistic regression to its minimum, its L2 penalty chosen by validation.
//!
//! Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021), appendix A.3: strengths
//! from 1e-6 to 1e6, two decades apart, then the interval around the best halved until there are eight steps a decade. A
//! strength is one over scikit-learn's `C`: what is minimised is
//! `sum_i cross_entropy(W f_i + b, y_i) + strength / 2 ||W||²`.
//!
//! There the best strength is the one with the highest accuracy on validation. Of 40 images one more that is right by chance decides
//! then, for a probe that is sure of everything. Here, where there are few validation images, the training images are held out
//! in their turn, too, and a strength is judged by the loss of all these that is left after temperature scaling; without
//! validation images by the loss as it is.
//! `docs/what-helps.md` holds both rules, and others, against each other.

use candle_core::{D, DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{
    lbfgs::{InverseHessian, Stop, minimise},
    spread::FeatureSpread,
};
use vpt_base::candle::Fault;
use vpt_base::{
    Error, Result,
    params::{Group, Param},
};
use vpt_model::metrics::{Metrics, calibration::Logits};

/// The strengths that are tried first, the strongest first: each starts from the minimum before it.
const STRENGTHS: [f64; 7] = [1e6, 1e4, 1e2, 1., 1e-2, 1e-4, 1e-6];
/// How often the interval around the best is halved: two decades to an eighth of one.
const HALVINGS: i32 = 4;
/// Parts of the training images that are held out in turn where there are few validation images.
const FOLDS: usize = 5;
/// So many validation images tell strengths apart.
const ENOUGH: usize = 1000;
/// Of more training images none are held out, for the time that takes, unless there are no validation images.
const MANY: usize = 5000;
/// The strength where nothing can be held out: scikit-learn's default.
const UNJUDGED: f64 = 1.;
/// When a fit is good enough: scikit-learn allows as many steps and is content with a thousand times this gradient.
const STOP: Stop = Stop { gradient: 1e-7, steps: 1000 };
/// The same where a strength is only judged, and validation images have a say.
const TRIED: Stop = Stop { gradient: 1e-5, steps: 1000 };
/// How often as many steps are taken where the probe itself is the result.
const ROUNDS: usize = 20;
/// The same where probabilities are only looked at: scikit-learn's default.
const ROUGHLY: Stop = Stop { gradient: 1e-4, steps: 100 };

/// Labelled features.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Labelled<'a> {
    /// `[n, D]`.
    pub(crate) features: &'a [f32],
    /// `[n]`.
    pub(crate) labels: &'a [u32],
}

impl Labelled<'_> {
    /// D.
    pub(crate) fn width(&self) -> usize {
        self.features.len() / self.labels.len().max(1)
    }
}

/// A strength that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Trial {
    pub(crate) l2: f64,
    /// On the images that judge it, which the probe has not seen.
    pub(crate) val: Metrics,
    /// Their loss after temperature scaling; none in trials of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) calibrated_loss: Option<f64>,
}

/// A logistic regression: weights `[C, D]`, then biases `[C]`.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    classes: usize,
    values: Vec<f64>,
    /// Whether this is the minimum, not where the steps ran out.
    at_minimum: bool,
}

impl Probe {
    /// Whether this is the minimum of what it minimises, not where the steps ran out.
    pub(crate) fn is_at_minimum(&self) -> bool {
        self.at_minimum
    }

    /// The parameters of a linear head.
    pub(crate) fn params(&self) -> Result<Vec<Param>> {
        let (weight, bias) = self.values.split_at(self.values.len() - self.classes);
        let f32s = |values: &[f64]| values.iter().map(|&v| v as f32).collect();
        let width = weight.len() / self.classes;
        Ok(vec![
            Param::new("head.weight", &[self.classes, width], f32s(weight), Group::Head)?,
            Param::new("head.bias", &[self.classes], f32s(bias), Group::HeadBias)?,
        ])
    }

    /// Adds its logits for `data` to `found`.
    fn add_to(&self, found: &mut Logits, data: Labelled) -> Result<(), Fault> {
        let features = matrix(data)?;
        let logits = logits(&features, &self.values, self.classes)?.to_dtype(DType::F32)?;
        Ok(found.add(&logits.flatten_all()?.to_vec1()?, data.labels)?)
    }
}

impl Probe {
    /// Probabilities of the classes `[n, C]`.
    fn probabilities(&self, data: Labelled) -> Result<Vec<f32>, Fault> {
        let logits = logits(&matrix(data)?, &self.values, self.classes)?;
        let powers = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
        let shares = powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)?;
        Ok(shares.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }
}

/// `[n, D]` in f64.
fn matrix(data: Labelled) -> Result<Tensor, Fault> {
    let shape = (data.labels.len(), data.width());
    Ok(Tensor::from_slice(data.features, shape, &Device::Cpu)?.to_dtype(DType::F64)?)
}

/// `[n, C]`.
fn logits(features: &Tensor, values: &[f64], classes: usize) -> Result<Tensor, Fault> {
    let (weight, bias) = values.split_at(values.len() - classes);
    let weight = Tensor::from_slice(weight, (classes, weight.len() / classes), &Device::Cpu)?;
    let bias = Tensor::from_slice(bias, classes, &Device::Cpu)?;
    Ok(features.matmul(&weight.t()?)?.broadcast_add(&bias)?)
}

/// What is minimised, divided by the number of images, so that a gradient means the same for any number.
struct Objective {
    /// `[n, D]`.
    features: Tensor,
    /// One-hot labels `[n, C]`.
    truth: Tensor,
    classes: usize,
    images: f64,
    spread: FeatureSpread,
}

impl Objective {
    fn new(data: Labelled, classes: usize) -> Result<Self, Fault> {
        let mut truth = vec![0.; data.labels.len() * classes];
        for (row, &label) in truth.chunks_exact_mut(classes).zip(data.labels) {
            let label = row.get_mut(label as usize);
            *label.ok_or_else(|| Error::invalid("labels", format!("a class beyond the {classes}")))? = 1.;
        }
        let truth = Tensor::from_vec(truth, (data.labels.len(), classes), &Device::Cpu)?;
        let features = matrix(data)?;
        let spread = FeatureSpread::new(&features)?;
        Ok(Self { features, truth, classes, images: data.labels.len() as f64, spread })
    }

    /// Value and gradient at `values` with a penalty of `strength`.
    fn at(&self, values: &[f64], strength: f64) -> Result<(f64, Vec<f64>), Fault> {
        let logits = logits(&self.features, values, self.classes)?;
        let below = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
        let powers = below.exp()?;
        let sums = powers.sum_keepdim(D::Minus1)?;
        let loss = (sums.log()?.sum_all()? - (&below * &self.truth)?.sum_all()?)?.to_scalar::<f64>()?;
        let error = ((powers.broadcast_div(&sums)? - &self.truth)? / self.images)?;
        let mut gradient: Vec<f64> = error.t()?.matmul(&self.features)?.flatten_all()?.to_vec1()?;
        let weights = gradient.len();
        let decay = strength / self.images;
        gradient.iter_mut().zip(values).for_each(|(g, w)| *g += decay * w);
        gradient.extend(error.sum(0)?.to_vec1::<f64>()?);
        let squares: f64 = values[..weights].iter().map(|w| w * w).sum();
        Ok((loss / self.images + 0.5 * decay * squares, gradient))
    }

    fn fit(&self, start: Vec<f64>, strength: f64, stop: Stop) -> Result<Probe> {
        let factor = self.spread.factor(self.classes, strength / self.images);
        let inverse =
            factor.as_ref().map(|factor| |gradient: &[f64]| self.spread.inverse(factor, self.classes, gradient));
        let inverse = inverse.as_ref().map(|inverse| inverse as InverseHessian<'_>);
        let (values, at_minimum) = minimise(start, stop, inverse, |values| self.at(values, strength))?;
        Ok(Probe { classes: self.classes, values, at_minimum })
    }
}

/// What tells how good a strength is: images that a probe has not seen.
struct Judge<'a> {
    /// Images that nothing is learned from.
    val: Labelled<'a>,
    /// Parts of the images to learn from, each held out in its turn.
    folds: Vec<HeldOutPart>,
}

/// What is learned from when a part is held out.
struct HeldOutPart {
    rest: Objective,
    held_features: Vec<f32>,
    held_labels: Vec<u32>,
    /// The probe of the strength before.
    values: Vec<f64>,
}

/// The number of each image among those of its class, and how many images each class has. The first image of a class is in the first
/// fold, the second in the second, and so on.
fn places(labels: &[u32], classes: usize) -> (Vec<usize>, Vec<usize>) {
    let mut counts = vec![0; classes];
    let place = |&label: &u32| {
        counts.get_mut(label as usize).map(|count| {
            *count += 1;
            *count - 1
        })
    };
    (labels.iter().filter_map(place).collect(), counts)
}

impl HeldOutPart {
    /// The images of `data` that `is_held` wants held out, and what is learned from without them.
    fn new(data: Labelled, classes: usize, is_held: impl Fn(usize) -> bool) -> Result<Self> {
        let [held, rest] = [true, false].map(|held| {
            let rows = data.features.chunks_exact(data.width()).zip(data.labels).enumerate();
            let rows = rows.filter(|(i, _)| is_held(*i) == held);
            rows.fold((Vec::new(), Vec::new()), |(mut features, mut labels), (_, (row, &label))| {
                features.extend_from_slice(row);
                labels.push(label);
                (features, labels)
            })
        });
        let values = vec![0.; classes * (data.width() + 1)];
        let rest = Objective::new(Labelled { features: &rest.0, labels: &rest.1 }, classes)?;
        Ok(Self { rest, held_features: held.0, held_labels: held.1, values })
    }
}

impl<'a> Judge<'a> {
    /// `val`, and folds of `train` where there are few images in it and a strength `is_chosen`, or none: five, or as many as the
    /// smallest class has images if that is not one. `None` if there is nothing.
    fn new(train: Labelled, val: Labelled<'a>, classes: usize, is_chosen: bool) -> Result<Option<Self>> {
        let is_held = val.labels.is_empty() || is_chosen && val.labels.len() < ENOUGH && train.labels.len() <= MANY;
        let (places, counts) = places(train.labels, classes);
        let folds = counts.into_iter().filter(|&count| count > 0).min().unwrap_or(0).min(FOLDS);
        let folds = if is_held && folds > 1 { folds } else { 0 };
        let fold = |fold: usize| HeldOutPart::new(train, classes, |i| places[i] % folds == fold);
        let folds: Vec<HeldOutPart> = (0..folds).map(fold).collect::<Result<_>>()?;
        Ok((!val.labels.is_empty() || !folds.is_empty()).then_some(Self { val, folds }))
    }

    /// Whether a trial is better than another: the lower loss after temperature scaling, of equals the lower loss. Folds alone tell by the loss,
    /// of equals the stronger penalty: 40 images that leave it open how sure a probe is may take one that says next to nothing.
    fn prefers(&self, trial: &Trial, than: &Trial) -> bool {
        if self.val.labels.is_empty() {
            return (-trial.val.loss, trial.l2) > (-than.val.loss, than.l2);
        }
        (trial.calibrated_loss, trial.val.loss) < (than.calibrated_loss, than.val.loss)
    }

    /// How good `probe` is, which was fitted with a penalty of `l2`, and probes on parts of its images are. These go on from their own,
    /// as `probe` has seen what is held out; where nothing else judges they begin at zero and go to the minimum.
    fn trial(&mut self, probe: &Probe, l2: f64) -> Result<Trial> {
        let mut logits = Logits::new(probe.classes);
        let alone = self.val.labels.is_empty();
        if !alone {
            probe.add_to(&mut logits, self.val)?;
        }
        for HeldOutPart { rest, held_features, held_labels, values } in &mut self.folds {
            let start = if alone { vec![0.; probe.values.len()] } else { std::mem::take(values) };
            let found = rest.fit(start, l2, if alone { STOP } else { TRIED })?;
            found.add_to(&mut logits, Labelled { features: held_features, labels: held_labels })?;
            *values = found.values;
        }
        Ok(Trial { l2, val: logits.metrics()?, calibrated_loss: Some(logits.calibrated_loss()) })
    }
}

/// The probe on `train` whose strength, `l2` or the best of a search, does best on images that it has not seen, and every strength that
/// was tried. These are `val` and, where they are few, those of `train` in cross-validation.
pub(crate) fn search(
    train: Labelled,
    val: Labelled,
    classes: usize,
    l2: Option<f64>,
    stop: &dyn Fn() -> bool,
) -> Result<Option<(Probe, f64, Vec<Trial>)>> {
    let objective = Objective::new(train, classes)?;
    let Some(mut judge) = Judge::new(train, val, classes, l2.is_none())? else {
        let l2 = l2.unwrap_or(UNJUDGED);
        let probe = objective.fit(vec![0.; classes * (train.width() + 1)], l2, STOP)?;
        return Ok(Some((probe, l2, Vec::new())));
    };
    let mut start = vec![0.; classes * (train.width() + 1)];
    let mut trials = Vec::new();
    let mut best: Option<(Trial, Probe)> = None;
    let stop_at = if l2.is_some() { STOP } else { TRIED };
    let mut attempt = |l2: f64, start: Vec<f64>, best: &mut Option<(Trial, Probe)>| -> Result<Vec<f64>> {
        let probe = objective.fit(start, l2, stop_at)?;
        let trial = judge.trial(&probe, l2)?;
        trials.push(trial.clone());
        let values = probe.values.clone();
        if best.as_ref().is_none_or(|(than, _)| judge.prefers(&trial, than)) {
            *best = Some((trial, probe));
        }
        Ok(values)
    };
    for strength in l2.map_or(STRENGTHS.to_vec(), |l2| vec![l2]) {
        if stop() {
            return Ok(None);
        }
        start = attempt(strength, start, &mut best)?;
    }
    for halving in 0..HALVINGS {
        let Some((Trial { l2: peak, .. }, probe)) = best.as_ref().filter(|_| l2.is_none()) else { break };
        let (peak, start) = (*peak, probe.values.clone());
        for direction in [1., -1.] {
            if stop() {
                return Ok(None);
            }
            attempt(peak * 10f64.powf(direction / f64::from(1 << halving)), start.clone(), &mut best)?;
        }
    }
    let Some((Trial { l2: chosen, .. }, mut probe)) = best else { return Ok(None) };
    if l2.is_none() {
        probe = objective.fit(probe.values, chosen, STOP)?;
    }
    Ok(Some((probe, chosen, trials)))
}

/// `probe`, whose strength is `l2`, taken to its minimum where its steps ran out before, as far as [`ROUNDS`] times as many lead;
/// `None` when `stop` says so.
pub(crate) fn go_on(train: Labelled, mut probe: Probe, l2: f64, stop: &dyn Fn() -> bool) -> Result<Option<Probe>> {
    if probe.at_minimum {
        return Ok(Some(probe));
    }
    let objective = Objective::new(train, probe.classes)?;
    for _ in 0..ROUNDS {
        if stop() {
            return Ok(None);
        }
        probe = objective.fit(probe.values, l2, STOP)?;
        if probe.at_minimum {
            break;
        }
    }
    Ok(Some(probe))
}

/// Probabilities `[n, C]` of the classes of each image of `data` by a probe that has not seen it, its penalty `l2`: the images of each
/// class are dealt out to five folds, each held out in its turn.
pub(crate) fn held_out(data: Labelled, classes: usize, l2: f64) -> Result<Vec<f32>> {
    let (places, _) = places(data.labels, classes);
    let mut out = vec![0.; data.labels.len() * classes];
    for fold in 0..FOLDS {
        let held: Vec<usize> = (0..data.labels.len()).filter(|&i| places[i] % FOLDS == fold).collect();
        if held.is_empty() || held.len() == data.labels.len() {
            continue;
        }
        let HeldOutPart { rest, held_features, held_labels, .. } =
            HeldOutPart::new(data, classes, |i| places[i] % FOLDS == fold)?;
        let probe = rest.fit(vec![0.; classes * (data.width() + 1)], l2, ROUGHLY)?;
        let held_data = Labelled { features: &held_features, labels: &held_labels };
        for (i, row) in held.into_iter().zip(probe.probabilities(held_data)?.chunks_exact(classes)) {
            out[i * classes..][..classes].copy_from_slice(row);
        }
    }
    Ok(out)
}

/// Values and summed loss of the probe with a penalty of `l2`, as close to the minimum as rounding lets it be.
#[cfg(test)]
pub(super) fn fit_closely(data: Labelled, classes: usize, l2: f64) -> Result<(Vec<f64>, f64)> {
    let objective = Objective::new(data, classes)?;
    let start = vec![0.; classes * (data.width() + 1)];
    let probe = objective.fit(start, l2, Stop { gradient: 1e-11, steps: 10_000 })?;
    let loss = objective.at(&probe.values, l2)?.0 * objective.images;
    Ok((probe.values, loss))
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;
    use vpt_base::random::stream;

    #[test]
    fn features_that_differ_in_scale_and_have_much_in_common_take_few_steps() {
        let (width, classes, images) = (24, 4, 400);
        let mut rng = stream(1, "uneven features", 0, 0);
        let scale = |column: i32| 10f32.powf(1. - column as f32 / 16.);
        let row = |_| (0..width).map(|column| 3. + scale(column) * (rng.random::<f32>() - 0.5)).collect::<Vec<_>>();
        let features: Vec<f32> = (0..images).flat_map(row).collect();
        let labels: Vec<u32> = (0..images as u32).map(|i| i * i % 7 % classes as u32).collect();

        let objective = Objective::new(Labelled { features: &features, labels: &labels }, classes).unwrap();
        let start = vec![0.; classes * (width as usize + 1)];
        let stop = Stop { gradient: 5e-5, steps: 100 };
        assert!(objective.fit(start.clone(), 0.1, stop).unwrap().is_at_minimum());
        let (_, is_at_minimum) = minimise(start, stop, None, |values| objective.at(values, 0.1)).unwrap();
        assert!(!is_at_minimum, "as many steps suffice without the spread of the features");
    }
}
