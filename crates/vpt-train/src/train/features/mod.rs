//! Methods that see frozen features only: what a run begins with, and what is chosen by validation when it is over.
//!
//! | method | head | learned |
//! |---|---|---|
//! | `linear` | linear, on the class token | in steps, or to its minimum by L-BFGS (`logistic`) |
//! | `zero-shot` | cosine: the texts that name the classes | nothing |
//! | `ncm` | cosine: the mean of a class's unit embeddings | nothing |
//! | `zs-lp` | cosine, starts as the texts | class weights |
//! | `clap` | the same | class weights, held near the texts (`clap`) |
//! | `tip-adapter`, `tip-adapter-f` | the texts beside a cache (`tip_adapter`) | nothing; the keys of the cache |

pub(crate) mod clap;
pub(crate) mod extract;
mod lbfgs;
pub(crate) mod logistic;
mod spread;
#[cfg(test)]
mod tests;
pub(crate) mod tip_adapter;

use std::collections::BTreeMap;

use self::{
    clap::Penalty,
    extract::FeatureView,
    logistic::{Labelled, Trial},
    tip_adapter::{Choice, TipCache},
};
use super::{
    observer::{Event, Observer},
    task::images::{
        setup::{Setup, extractor},
        source::Features,
    },
};
use crate::config::Plan;
use vpt_base::{
    Error, Result,
    linear_algebra::normalize_l2,
    params::{self, Group, Param},
};
use vpt_data::Split;
use vpt_model::{
    head::{Head, HeadKind, cache, cosine},
    methods::HeadStart,
    model::Model,
};

/// What a run begins with.
#[derive(Debug, Default)]
pub(crate) struct Beginning {
    /// All tensors of the head; the final ones where nothing is learned in steps.
    pub(crate) params: Vec<Param>,
    /// What holds the weights while they are learned.
    pub(crate) penalty: Option<Penalty>,
    /// What validation chose, by name.
    pub(crate) chosen: BTreeMap<String, f64>,
    /// Every strength of a linear probe that was tried.
    pub(crate) trials: Vec<Trial>,
}

/// The views of a training image that `plan` asks for.
pub fn views(plan: &Plan) -> Vec<FeatureView> {
    let seed = plan.config.seed;
    let augmented = |area, count| (0..count).map(|number| FeatureView::Augmented { area, seed, number }).collect();
    match plan.config.method.views().filter(|_| plan.views > 0) {
        None => vec![FeatureView::Plain],
        // Those of the keys, then another one for every epoch.
        Some(views) if views.one_more_an_epoch => augmented(views.area, plan.views + plan.epochs),
        Some(views) => augmented(views.area, plan.views),
    }
}

/// The features of `split`; `None` when the observer asked to stop.
pub(crate) fn of_split(setup: &Setup, split: Split, observer: &mut dyn Observer) -> Result<Option<Features>> {
    let samples = setup.dataset.part(split);
    let views = if split == Split::Train { views(&setup.plan) } else { vec![FeatureView::Plain] };
    let known = setup.digests(split);
    let Some(tokens) = setup.extractor()?.images(samples, known, &views, split, observer)? else { return Ok(None) };
    let labels = samples.iter().map(|sample| sample.label).collect();
    Ok(Some(Features { values: setup.model.readout(tokens), labels, views: views.len() }))
}

/// Features of `split` that a head alone on the frozen backbone reads, as `model` is; `None` when the observer asked to stop.
pub(crate) fn frozen(
    setup: &Setup,
    model: &Model,
    split: Split,
    observer: &mut dyn Observer,
) -> Result<Option<Features>> {
    let samples = setup.dataset.part(split);
    let known = setup.digests(split);
    let extractor = extractor(&setup.plan, model, &setup.group)?;
    let tokens = extractor.images(samples, known, &[FeatureView::Plain], split, observer)?;
    let labels = samples.iter().map(|sample| sample.label).collect();
    Ok(tokens.map(|tokens| Features { values: model.readout(tokens), labels, views: 1 }))
}

/// What the run begins with, and what it learns from, made of the features `train` of all views; `None` when the observer asked
/// to stop. If it is not `fresh`, a checkpoint holds what was learned since.
pub(crate) fn begin(
    setup: &Setup,
    train: Features,
    val: &Features,
    fresh: bool,
    observer: &mut dyn Observer,
) -> Result<Option<(Beginning, Features)>> {
    let Setup { plan, model, .. } = setup;
    let head = model.head();
    let scale = model.backbone().logit_scale().unwrap_or(cosine::INIT_SCALE);
    let texts = if plan.config.method.reads_texts() { setup.class_texts(observer)? } else { None };
    let texts = || texts.as_ref().ok_or_else(|| Error::invalid("texts", "no class was embedded"));
    let given = |weight: &[f32], group| cosine::given(weight.to_vec(), head.classes, scale, group);
    let mut beginning = Beginning::default();
    let mut train = train;
    match plan.config.method.head_start() {
        None if plan.solved => {
            let stop = || observer.stop();
            let found =
                logistic::search(train.labelled(), val.labelled(), head.classes, plan.config.options.probe.l2, &stop)?;
            let Some((probe, l2, trials)) = found else { return Ok(None) };
            let Some(probe) = logistic::go_on(train.labelled(), probe, l2, &stop)? else { return Ok(None) };
            if !probe.is_at_minimum() {
                let message =
                    format!("the probe stopped before its minimum, which is far for an L2 penalty of {l2:.3e}");
                observer.event(&Event::Note(&message));
            }
            beginning.params = probe.params()?;
            // One that the user named, or that nothing could be held out for, was not chosen.
            if plan.config.options.probe.l2.is_none() && !trials.is_empty() {
                beginning.chosen = BTreeMap::from([("l2".to_owned(), l2)]);
            }
            if plan.config.options.probe.l2.is_none() && trials.is_empty() {
                let message = format!(
                    "there are no validation images, and a class has one image to learn from: the L2 penalty is {l2}"
                );
                observer.event(&Event::Note(&message));
            }
            beginning.trials = trials;
        }
        None => beginning.params = setup.initial(fresh, observer)?,
        Some(HeadStart::Texts) => beginning.params = given(&texts()?.unit, Group::Fixed)?,
        Some(HeadStart::ClassMeans) => {
            beginning.params = given(&class_means(train.labelled(), head.classes), Group::Fixed)?;
        }
        Some(HeadStart::TextWeights { held }) => {
            train = train.flattened();
            let texts = texts()?;
            beginning.params = given(&texts.mean, Group::Head)?;
            if held {
                let zero_shot = head.bind(&given(&texts.mean, Group::Fixed)?)?;
                beginning.penalty = Some(Penalty::new(texts.mean.clone(), &zero_shot, train.labelled())?);
            }
        }
        Some(HeadStart::Cache { learned }) => {
            let images = train.labels.len();
            let size = images * head.width;
            let (of_keys, rest) = train.values.split_at(size * plan.views.max(1));
            let keys = tip_adapter::keys(of_keys, images, head.width);
            let (alpha, beta) = (
                plan.config.options.cache.alpha.unwrap_or(tip_adapter::ALPHA),
                plan.config.options.cache.beta.unwrap_or(tip_adapter::BETA),
            );
            let group = if learned { Group::Head } else { Group::Fixed };
            beginning.params = given(&texts()?.unit, Group::Fixed)?;
            beginning.params.extend(cache::params(keys, &train.labels, alpha, beta, group)?);
            let seen = if rest.is_empty() { &train.values[..size] } else { rest };
            train = Features { views: seen.len() / size.max(1), values: seen.to_vec(), labels: train.labels.clone() };
            if !learned && let Some((params, choice)) = choose(plan, head, &beginning.params, val)? {
                beginning.params = params;
                beginning.chosen = choice;
            }
        }
    }
    Ok(Some((beginning, train)))
}

/// Unit vectors `[C, D]` in the direction of the mean of the unit vectors of each class.
pub(crate) fn class_means(train: Labelled, classes: usize) -> Vec<f32> {
    let width = train.width();
    let mut unit = train.features.to_vec();
    normalize_l2(&mut unit, width);
    let mut sums = vec![0f64; classes * width];
    for (row, &label) in unit.chunks_exact(width).zip(train.labels) {
        let sum = &mut sums[label as usize * width..][..width];
        sum.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    let mut means = Vec::with_capacity(sums.len());
    for sum in sums.chunks_exact(width) {
        let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
        means.extend(sum.iter().map(|value| if length > 0. { (value / length) as f32 } else { 0. }));
    }
    means
}

/// Learned values and what was chosen for them, by name.
type Chosen = (Vec<Param>, BTreeMap<String, f64>);

/// `params` of a head with a cache, with the weight and sharpness that do best on validation; `None` where there is nothing to
/// choose: no cache, or the user has chosen.
pub(crate) fn choose(plan: &Plan, head: Head, params: &[Param], val: &Features) -> Result<Option<Chosen>> {
    if !plan.config.method.has_cache() || plan.config.options.cache.alpha.is_some() {
        return Ok(None);
    }
    let texts = Head { keys: 0, kind: HeadKind::Cosine, ..head }.bind(params)?;
    let keys = &params::find(params, cache::KEYS)?.values;
    let labels = cache::labels(params, head.classes)?;
    let cache = TipCache { texts: &texts, keys, labels: &labels };
    let Choice { alpha, beta, .. } = tip_adapter::choose(cache, val.labelled(), plan.threads)?;
    let chosen = BTreeMap::from([("alpha".to_owned(), alpha), ("beta".to_owned(), beta)]);
    Ok(Some((cache::with_alpha_beta(params.to_vec(), alpha, beta), chosen)))
}
