//! What resuming needs: learned values, the optimiser's memory, the position in the run, and the best epoch so far.
//!
//! Random streams are named by seed, purpose, epoch and index ([`crate::random`]), so the position is also all there is to
//! know about random numbers. The file replaces its predecessor only once it is whole.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::optim::{Optimizer, OptimizerKind};
use crate::{
    Error, Message, Result,
    files::write_atomic,
    metrics::Scores,
    params::Param,
    tensor_file::{self, Tensor},
};

/// The metadata's key.
const KEY: &str = "vpt-checkpoint";
/// The version this program writes and reads.
const FORMAT: u32 = 1;

/// A line of `metrics.jsonl`: one epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochRecord {
    /// The epoch, counted from 1.
    pub epoch: usize,
    /// Steps taken since the run began.
    pub step: u64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Mean training loss over the epoch, label smoothing included.
    pub train_loss: f64,
    /// Share of training images that were right when they were learned from, where an image has one class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_acc1: Option<f64>,
    /// The same where an image has any number of classes: all of them had to be right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_exact_match: Option<f64>,
    /// On the validation images, after the epoch.
    pub val: Scores,
    /// Wall time of the epoch's steps.
    pub train_seconds: f64,
    /// Wall time of the validation after them.
    pub val_seconds: f64,
}

impl EpochRecord {
    /// Whether this epoch is the better choice: higher accuracy or mAP, of equals the lower loss, of equals the earlier.
    pub(crate) fn better_than(&self, other: &Self) -> bool {
        let (own, others) = (self.val.rank(), other.val.rank());
        own > others || (own == others && self.epoch < other.epoch)
    }
}

/// How far a run has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Progress {
    /// The chosen learning rate.
    pub(crate) lr: f64,
    /// The finished epochs.
    pub(crate) history: Vec<EpochRecord>,
    /// Best of them, counted from 1.
    pub(crate) best_epoch: Option<usize>,
    /// Steps taken in the epoch under way.
    pub(crate) epoch_steps: u64,
    /// Sum of the losses of the images of the epoch under way.
    pub(crate) epoch_loss: f64,
    /// How many of them were right.
    pub(crate) epoch_correct: u64,
    /// How many images they are.
    pub(crate) epoch_images: u64,
    /// Wall time spent in the epoch under way.
    pub(crate) epoch_seconds: f64,
    /// Wall time spent on the whole run, set-up included.
    pub(crate) wall_s: f64,
    /// Whether the learned values are averaged over the epochs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) averaged: bool,
}

impl Progress {
    /// A run at its beginning.
    pub(crate) fn new(lr: f64) -> Self {
        Self {
            lr,
            history: Vec::new(),
            best_epoch: None,
            epoch_steps: 0,
            epoch_loss: 0.,
            epoch_correct: 0,
            epoch_images: 0,
            epoch_seconds: 0.,
            wall_s: 0.,
            averaged: false,
        }
    }

    /// The same for a run whose values are averaged over the epochs, if `averaged`.
    pub(crate) fn averaged(self, averaged: bool) -> Self {
        Self { averaged, ..self }
    }

    /// The best epoch's record.
    pub(crate) fn best(&self) -> Option<&EpochRecord> {
        self.history.get(self.best_epoch?.checked_sub(1)?)
    }
}

/// The learned values of the best epoch among a state's [`State::copies`].
pub(crate) const BEST: &str = "best";
/// Their average over the epochs so far.
pub(crate) const AVERAGE: &str = "average";

/// What a kind of run keeps in a checkpoint beside tensors.
pub(crate) trait Position: Clone + Serialize + DeserializeOwned {
    /// What is written down of an epoch.
    type Record: Serialize;

    /// The finished epochs.
    fn history(&self) -> &[Self::Record];

    /// The best epoch so far, from 1.
    fn best_epoch(&self) -> Option<usize>;

    /// Wall time spent on the whole run, set-up included.
    fn wall_s(&mut self) -> &mut f64;

    /// Whether it can be the position of a run.
    fn is_sound(&self) -> bool;

    /// Names of the copies of the learned values that the run has by now.
    fn copies(&self) -> Vec<&'static str>;
}

impl Position for Progress {
    type Record = EpochRecord;

    fn history(&self) -> &[EpochRecord] {
        &self.history
    }

    fn best_epoch(&self) -> Option<usize> {
        self.best_epoch
    }

    fn wall_s(&mut self) -> &mut f64 {
        &mut self.wall_s
    }

    fn is_sound(&self) -> bool {
        let in_order = self.history.iter().enumerate().all(|(i, record)| record.epoch == i + 1);
        in_order && self.best_epoch.is_some() == self.best().is_some()
    }

    fn copies(&self) -> Vec<&'static str> {
        let average = (self.averaged && !self.history.is_empty()).then_some(AVERAGE);
        self.best_epoch.map(|_| BEST).into_iter().chain(average).collect()
    }
}

/// Everything that changes while a run goes on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct State<P = Progress> {
    /// The learned values.
    pub(crate) params: Vec<Param>,
    /// The optimiser.
    pub(crate) optimizer: Optimizer,
    /// Values to be kept beside the present ones, such as those of the best epoch.
    pub(crate) copies: BTreeMap<&'static str, Vec<Param>>,
    /// The position.
    pub(crate) progress: P,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Meta<P> {
    format: u32,
    run: String,
    optimizer_steps: u64,
    progress: P,
}

impl<P: Position> State<P> {
    /// A run at its beginning with these initial values.
    pub(crate) fn new(params: Vec<Param>, optimizer: OptimizerKind, progress: P) -> Self {
        let optimizer = Optimizer::new(optimizer, &params);
        Self { params, optimizer, copies: BTreeMap::new(), progress }
    }

    /// Writes a checkpoint of the run whose fingerprint is `run`.
    pub(crate) fn save(&self, path: &Path, run: &str) -> Result<()> {
        let (optimizer_steps, first, second) = self.optimizer.state();
        let mut tensors = Vec::new();
        let mut add = |kind: &str, param: &Param, values: &'_ [f32]| {
            let shape = if values.is_empty() { vec![0] } else { param.shape.clone() };
            tensors.push(Tensor { name: format!("{kind}/{}", param.name), shape, values: values.to_vec().into() });
        };
        for (i, param) in self.params.iter().enumerate() {
            add("value", param, &param.values);
            add("first", param, &first[i]);
            add("second", param, &second[i]);
        }
        for (name, params) in &self.copies {
            for param in params {
                add(name, param, &param.values);
            }
        }
        let meta = Meta { format: FORMAT, run: run.to_owned(), optimizer_steps, progress: self.progress.clone() };
        let meta = serde_json::to_value(meta).map_err(|error| Error::file(path, error.to_string()))?;
        write_atomic(path, &tensor_file::to_bytes(tensors, KEY, meta)?)
    }

    /// Reads the checkpoint of the run whose fingerprint is `run`, which starts from `initial`.
    ///
    /// # Errors
    /// The file is damaged, is of another run, or holds other tensors. The error says how to start again.
    pub(crate) fn load(path: &Path, run: &str, initial: &[Param], optimizer: OptimizerKind) -> Result<Self> {
        // Values, two moments and two copies, and what is said of them.
        let values: u64 = initial.iter().map(|param| param.values.len() as u64).sum();
        let limit = values.saturating_mul(5 * 4).saturating_add(tensor_file::MAX_BYTES);
        let (mut tensors, meta) = tensor_file::read(path, KEY, "checkpoint", limit, |_| Ok(()))?;
        let bad = |what: Message| Error::file(path, what.text("; delete it to start the run again"));
        let meta: Meta<P> = serde_json::from_value(meta)
            .map_err(|error| bad(Message::from("not a checkpoint: ").text(Message::of_reader(&error))))?;
        if meta.format != FORMAT {
            return Err(bad(format!("a checkpoint of format {}, not {FORMAT}", meta.format).into()));
        }
        if meta.run != run {
            return Err(bad("is of a run with another configuration, data set or backbone".into()));
        }
        if !meta.progress.is_sound() {
            return Err(bad("its epochs do not follow one another".into()));
        }
        let mut take = |kind: &str, param: &Param, len: usize| {
            let shape = if len == 0 { vec![0] } else { param.shape.clone() };
            tensor_file::take(&mut tensors, &format!("{kind}/{}", param.name), &shape, path)
        };
        let copies = meta.progress.copies();
        let mut made = Self::new(initial.to_vec(), optimizer, meta.progress);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let (_, _, second_now) = made.optimizer.state();
        for (i, param) in initial.iter().enumerate() {
            made.params[i].values = take("value", param, param.values.len())?;
            first.push(take("first", param, param.values.len())?);
            second.push(take("second", param, second_now[i].len())?);
        }
        for name in copies {
            let mut copy = initial.to_vec();
            for (param, start) in copy.iter_mut().zip(initial) {
                param.values = take(name, start, start.values.len())?;
            }
            made.copies.insert(name, copy);
        }
        made.optimizer.restore(meta.optimizer_steps, first, second)?;
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        metrics::Metrics,
        optim::{EPSILON, Rate, Rates},
        params::Group,
    };

    fn initial() -> Vec<Param> {
        vec![
            Param::new("prompt.tokens", &[1, 2, 2], vec![1., 2., 3., 4.], Group::Part(0)).unwrap(),
            Param::new("head.bias", &[1], vec![0.5], Group::HeadBias).unwrap(),
        ]
    }

    pub(super) fn record(epoch: usize, acc1: f64, loss: f64) -> EpochRecord {
        let val = Scores::Classify(Metrics { acc1, acc5: None, mean_per_class_recall: acc1, loss });
        EpochRecord {
            epoch,
            step: 3,
            lr: 0.1,
            train_loss: 1. / 3.,
            train_acc1: Some(0.1 + 0.2),
            train_exact_match: None,
            val,
            train_seconds: 0.7,
            val_seconds: 0.1,
        }
    }

    fn state(kind: OptimizerKind) -> State<Progress> {
        let mut state = State::new(initial(), kind, Progress::new(0.1));
        let rate = Rate { lr: 0.1, decay: 0.01 };
        let gradients = [vec![0.3, -0.1, 0.7, 0.], vec![1.]];
        state.optimizer.update(
            &mut state.params,
            &gradients,
            &Rates { parts: vec![rate], head: rate, epsilon: EPSILON },
            0.5,
        );
        state.copies.insert(BEST, initial());
        state.progress.history = vec![record(1, 0.5, 1.), record(2, 0.5, 0.1)];
        state.progress.best_epoch = Some(2);
        state.progress.epoch_loss = 1. / 7.;
        state
    }

    #[test]
    fn a_state_comes_back_to_the_last_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        for kind in [OptimizerKind::Adamw, OptimizerKind::Sgd] {
            for best in [true, false] {
                let mut state = state(kind);
                if !best {
                    state.copies.clear();
                    state.progress.best_epoch = None;
                }
                state.save(&path, "run").unwrap();
                assert_eq!(State::<Progress>::load(&path, "run", &initial(), kind).unwrap(), state);
            }
        }
    }

    #[test]
    fn foreign_and_damaged_checkpoints_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        let adamw = OptimizerKind::Adamw;
        let load = |run: &str, initial: &[Param], kind| {
            State::<Progress>::load(&path, run, initial, kind).unwrap_err().to_string()
        };
        state(adamw).save(&path, "run").unwrap();
        assert!(load("another", &initial(), adamw).contains("another configuration"));
        assert!(load("run", &initial(), OptimizerKind::Sgd).contains("[0] is expected"));
        let mut wider = initial();
        wider[1] = Param::new("head.bias", &[2], vec![0.; 2], Group::HeadBias).unwrap();
        assert!(load("run", &wider, adamw).contains("[1] where [2]"));
        let mut skipping = state(adamw);
        skipping.progress.history[1].epoch = 3;
        skipping.save(&path, "run").unwrap();
        assert!(load("run", &initial(), adamw).contains("do not follow"));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(load("run", &initial(), adamw).contains("damaged"));
    }

    #[test]
    fn the_better_epoch_is_more_accurate_then_lower_in_loss_then_earlier() {
        let first = record(1, 0.5, 1.);
        assert!(record(2, 0.6, 9.).better_than(&first));
        assert!(!record(2, 0.4, 0.1).better_than(&first));
        assert!(record(2, 0.5, 0.9).better_than(&first));
        assert!(!record(2, 0.5, 1.).better_than(&first));
    }
}
