//! What resuming needs: learned values, the optimiser's memory, the position in the run, and the best epoch so far.
//!
//! Random streams are named by seed, purpose, epoch and index ([`vpt_base::random`]), so the position is also all there is to
//! know about random numbers. The file replaces its predecessor only once it is whole.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    progress::{AVERAGE, EpochRecord, PROBE, REWIND, RunProgress, Stage},
    task::{Averaging, StagePlan},
};
use crate::config::Select;
use vpt_base::{
    Error, Message, Result,
    files::write_atomic,
    params::{Group, Param},
    tensor_file::{self, Tensor},
};
use vpt_model::optim::{Optimizer, OptimizerKind};

/// The metadata's key.
const KEY: &str = "vpt-checkpoint";
/// The version this program writes and reads.
const FORMAT: u32 = 1;

/// The learned values of the best epoch among a state's [`TrainState::copies`].
pub(crate) const BEST: &str = "best";
/// Everything that changes while a run goes on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TrainState {
    /// The learned values.
    pub(crate) params: Vec<Param>,
    /// The optimiser.
    pub(crate) optimizer: Optimizer,
    /// Values to be kept beside the present ones, such as those of the best epoch.
    pub(crate) copies: BTreeMap<&'static str, Vec<Param>>,
    /// The position.
    pub(crate) progress: RunProgress,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckpointMeta {
    format: u32,
    run: String,
    optimizer_steps: u64,
    progress: RunProgress,
}

impl TrainState {
    /// A run at its beginning with these initial values.
    pub(crate) fn new(params: Vec<Param>, optimizer: OptimizerKind, progress: RunProgress) -> Self {
        let optimizer = Optimizer::new(optimizer, &params);
        Self { params, optimizer, copies: BTreeMap::new(), progress }
    }

    /// Keeps the first values, where one of the `stages` goes back to them.
    pub(crate) fn begin_pruning(&mut self, stages: &[StagePlan]) {
        if stages.iter().any(|stage| stage.stage == Stage::Pruned) {
            self.copies.insert(REWIND, self.params.clone());
            self.progress.rewinds = true;
        }
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
        let meta =
            CheckpointMeta { format: FORMAT, run: run.to_owned(), optimizer_steps, progress: self.progress.clone() };
        let meta = serde_json::to_value(meta).map_err(|error| Error::file(path, error.to_string()))?;
        write_atomic(path, &tensor_file::to_bytes(tensors, KEY, meta)?)
    }

    /// Reads the checkpoint of the run whose fingerprints `is_own` knows, which starts from `initial` and whose values are averaged
    /// so.
    ///
    /// # Errors
    /// The file is damaged, is of another run, or holds other tensors. The error says how to start again.
    pub(crate) fn load(
        path: &Path,
        is_own: impl FnOnce(&str) -> Result<bool>,
        initial: &[Param],
        optimizer: OptimizerKind,
        averaging: Averaging,
    ) -> Result<Self> {
        // Values, two moments and five copies, and what is said of them.
        let values: u64 = initial.iter().map(|param| param.values.len() as u64).sum();
        let limit = values.saturating_mul(8 * 4).saturating_add(tensor_file::MAX_BYTES);
        let (mut tensors, meta) = tensor_file::read(path, KEY, "checkpoint", limit, |_| Ok(()))?;
        let bad = |what: Message| Error::file(path, what.text("; delete it to start the run again"));
        let meta: CheckpointMeta = serde_json::from_value(meta)
            .map_err(|error| bad(Message::from("not a checkpoint: ").text(Message::of_reader(&error))))?;
        if meta.format != FORMAT {
            return Err(bad(format!("a checkpoint of format {}, not {FORMAT}", meta.format).into()));
        }
        if !is_own(&meta.run)? {
            return Err(bad("is of a run with another configuration, data set or backbone".into()));
        }
        if !meta.progress.is_sound() {
            return Err(bad("its epochs do not follow one another".into()));
        }
        let mut take = |kind: &str, param: &Param, len: usize| {
            let shape = if len == 0 { vec![0] } else { param.shape.clone() };
            tensor_file::take(&mut tensors, &format!("{kind}/{}", param.name), &shape, path)
        };
        let copies = meta.progress.copies(averaging);
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
            if name == PROBE {
                copy.retain(|param| matches!(param.group, Group::Head | Group::HeadBias));
            }
            for param in &mut copy {
                param.values = take(name, param, param.values.len())?;
            }
            made.copies.insert(name, copy);
        }
        made.optimizer.restore(meta.optimizer_steps, first, second)?;
        Ok(made)
    }

    /// The values that are evaluated and kept: their average, where there is one.
    pub(crate) fn current(&self) -> &[Param] {
        self.copies.get(AVERAGE).unwrap_or(&self.params)
    }

    /// The values of the best epoch of its stage.
    pub(crate) fn best_copy(&self, best: &EpochRecord) -> Option<&[Param]> {
        self.copies.get(best.stage.copy_name()).map(Vec::as_slice)
    }

    /// The learned values that `select` asks for, and the record of their epoch: of the last stage the best, or the last.
    pub(crate) fn selected(&self, select: Select) -> Option<(&[Param], &EpochRecord)> {
        match select {
            Select::Best => {
                let best = self.progress.best()?;
                Some((self.best_copy(best)?, best))
            }
            Select::Last => Some((self.current(), self.progress.history.last()?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::progress::tests::record;
    use vpt_base::params::Group;
    use vpt_model::optim::{EPSILON, Rate, Rates};

    fn initial() -> Vec<Param> {
        vec![
            Param::new("prompt.tokens", &[1, 2, 2], vec![1., 2., 3., 4.], Group::Part(0)).unwrap(),
            Param::new("head.bias", &[1], vec![0.5], Group::HeadBias).unwrap(),
        ]
    }

    fn state(kind: OptimizerKind) -> TrainState {
        let mut state = TrainState::new(initial(), kind, RunProgress::new(0.1));
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
        state.progress.sums.add(&[1. / 7.], 3, 4);
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
                    state.progress.history.clear();
                }
                state.save(&path, "run").unwrap();
                assert_eq!(
                    TrainState::load(&path, |run| Ok(run == "run"), &initial(), kind, Averaging::None).unwrap(),
                    state
                );
            }
        }
    }

    #[test]
    fn foreign_and_damaged_checkpoints_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.safetensors");
        let adamw = OptimizerKind::Adamw;
        let load = |run: &str, initial: &[Param], kind| {
            TrainState::load(&path, |found| Ok(found == run), initial, kind, Averaging::None).unwrap_err().to_string()
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
}
