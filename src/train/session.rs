//! A run in its folder: trials of learning rates, training with checkpoints, the one look at test, the files at the end.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{
    Outcome,
    checkpoint::{EpochRecord, Progress, State},
    fit::{Ended, Fit, evaluate},
    keeper::{FolderKeeper, Forget},
    observer::{Event, Observer, Start},
    pictures::Pictures,
    results::{Results, peak_rss_bytes},
    run_folder::{self, RunFolder},
    setup::Setup,
    source::Source,
};
use crate::{
    Error, Result,
    config::{Method, Select},
    data::{Split, files},
    eval::{Calibration, Scores, calibration::Logits},
    params::{self, Param},
    prompt::task_file::{TaskFile, TaskMetrics},
};

/// A trial of a learning rate takes this share of the epochs.
const TRIAL_SHARE: usize = 4;

/// A run with everything it needs, at work in its folder.
pub(super) struct Session {
    setup: Setup,
    folder: RunFolder,
    started: Instant,
}

/// A trial of a learning rate: a line of `lr_search.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Trial {
    lr: f64,
    epochs: usize,
    /// `None` when the loss did not stay finite.
    val: Option<Scores>,
}

/// `lr_search.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct LrSearch {
    run: String,
    chosen: f64,
    trials: Vec<Trial>,
}

impl Session {
    pub(super) fn new(setup: Setup, folder: RunFolder, started: Instant) -> Self {
        Self { setup, folder, started }
    }

    /// Trains to the end, or until `observer` asks to stop.
    pub(super) fn go(mut self, observer: &mut dyn Observer) -> Result<Outcome> {
        let initial = self.setup.initial(!self.folder.has(run_folder::CHECKPOINT), observer)?;
        let resumed = self.checkpoint(&initial)?;
        self.announce(&initial, resumed.as_ref(), observer);
        if self.setup.plan.config.method == Method::Linear {
            for split in [Split::Train, Split::Val] {
                let source = self.source_mut(split);
                let source = std::mem::replace(source, Source::Features { values: Vec::new(), labels: Vec::new() });
                let Some(features) = source.to_features(&self.setup.model, split, observer)? else {
                    return Ok(self.interrupted());
                };
                *self.source_mut(split) = features;
            }
        }
        let mut state = if let Some(state) = resumed {
            state
        } else {
            let Some(lr) = self.learning_rate(&initial, observer)? else { return Ok(self.interrupted()) };
            State::new(initial, self.setup.plan.config.optimizer, Progress::new(lr))
        };
        // Lines of epochs after the checkpoint belong to the process that was cut off.
        self.folder.write_lines(run_folder::METRICS, &state.progress.history)?;
        let write_best = |state: &State, _| match (self.setup.plan.select, state.selected(Select::Best)) {
            (Select::Best, Some((values, record))) => self.write_task(run_folder::BEST, values, record, None, None),
            _ => Ok(()),
        };
        let fingerprint = &self.setup.fingerprint;
        let mut keeper = FolderKeeper::new(&self.folder, fingerprint, self.started, &mut state, &write_best);
        let ended = self.fit(self.setup.plan.epochs).run(&mut state, &mut keeper, observer);
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => {
                // The last good state is worth more than the error.
                keeper.save(&mut state)?;
                return Err(error);
            }
        };
        keeper.save(&mut state)?;
        if ended == Ended::Interrupted {
            return Ok(self.interrupted());
        }
        self.finish(&state, &|| keeper.wall_s(), observer)
    }

    fn fit(&self, epochs: usize) -> Fit<'_> {
        let Setup { plan, model, train, val, sets, .. } = &self.setup;
        Fit { model, plan, train, val, sets: sets.as_ref(), epochs }
    }

    fn source_mut(&mut self, split: Split) -> &mut Source {
        match split {
            Split::Train => &mut self.setup.train,
            Split::Val => &mut self.setup.val,
            Split::Test => &mut self.setup.test,
        }
    }

    fn interrupted(&self) -> Outcome {
        Outcome::Interrupted { folder: Some(self.folder.path().to_path_buf()) }
    }

    fn checkpoint(&self, initial: &[Param]) -> Result<Option<State>> {
        if !self.folder.has(run_folder::CHECKPOINT) {
            return Ok(None);
        }
        let path = self.folder.file(run_folder::CHECKPOINT);
        State::load(&path, &self.setup.fingerprint, initial, self.setup.plan.config.optimizer).map(Some)
    }

    fn announce(&self, initial: &[Param], resumed: Option<&State>, observer: &mut dyn Observer) {
        let Setup { plan, dataset, model, .. } = &self.setup;
        observer.event(&Event::Start(&Start {
            folder: self.folder.path(),
            plan,
            data: &dataset.name,
            classes: &dataset.classes,
            images: Split::ALL.map(|split| dataset.part(split).len()),
            trainable_params: params::count(initial),
            backbone_params: model.backbone().parameters(),
            epochs_done: resumed.map_or(0, |state| state.progress.history.len()),
        }));
    }

    /// The learning rate, chosen by validation if there are several; `None` when the observer asked to stop.
    fn learning_rate(&self, initial: &[Param], observer: &mut dyn Observer) -> Result<Option<f64>> {
        let rates = &self.setup.plan.learning_rates;
        if let [lr] = rates[..] {
            return Ok(Some(lr));
        }
        if let Some(chosen) = self.earlier_search()? {
            observer.event(&Event::Chosen { lr: chosen });
            return Ok(Some(chosen));
        }
        let epochs = self.setup.plan.epochs.div_ceil(TRIAL_SHARE);
        let mut trials = Vec::new();
        let mut best: Option<EpochRecord> = None;
        let mut chosen = rates[0];
        for (i, &lr) in rates.iter().enumerate() {
            observer.event(&Event::Trial { lr, number: i + 1, of: rates.len() });
            let mut state = State::new(initial.to_vec(), self.setup.plan.config.optimizer, Progress::new(lr));
            match self.fit(epochs).run(&mut state, &mut Forget, observer) {
                Ok(Ended::Interrupted) => return Ok(None),
                Ok(Ended::Finished) => {}
                // A rate too high for the loss to stay finite has lost; other errors are errors.
                Err(Error::Diverged { .. }) => {
                    trials.push(Trial { lr, epochs, val: None });
                    continue;
                }
                Err(error) => return Err(error),
            }
            let record = state.selected(self.setup.plan.select).map(|(_, record)| record.clone());
            trials.push(Trial { lr, epochs, val: record.as_ref().map(|r| r.val.clone()) });
            if let Some(record) = record
                && best.as_ref().is_none_or(|best| record.val.rank() > best.val.rank())
            {
                (best, chosen) = (Some(record), lr);
            }
        }
        let search = LrSearch { run: self.setup.fingerprint.clone(), chosen, trials };
        self.folder.write_json(run_folder::LR_SEARCH, &search)?;
        observer.event(&Event::Chosen { lr: chosen });
        Ok(Some(chosen))
    }

    /// The choice of a search that was finished before the run was cut off.
    fn earlier_search(&self) -> Result<Option<f64>> {
        if !self.folder.has(run_folder::LR_SEARCH) {
            return Ok(None);
        }
        let path = self.folder.file(run_folder::LR_SEARCH);
        let bytes = files::read_limited(&path, 1 << 20)?;
        let search: LrSearch = serde_json::from_slice(&bytes).map_err(|error| Error::file(&path, error.to_string()))?;
        let usable = search.run == self.setup.fingerprint && self.setup.plan.learning_rates.contains(&search.chosen);
        Ok(usable.then_some(search.chosen))
    }

    /// Looks at test, once, and writes what a finished run leaves.
    fn finish(&self, state: &State, wall_s: &dyn Fn() -> f64, observer: &mut dyn Observer) -> Result<Outcome> {
        let Setup { plan, model, dataset, val, test, sets, .. } = &self.setup;
        let (values, record) =
            state.selected(plan.select).ok_or_else(|| Error::invalid("run", "no epoch was finished"))?;
        // Of several classes an image each stands for itself; one temperature is for those that exclude each other.
        let (mut of_val, mut of_test) = (self.logits(), self.logits());
        if of_val.is_some() && evaluate(model, values, val, None, Split::Val, of_val.as_mut(), observer)?.is_none() {
            return Ok(self.interrupted());
        }
        let Some(tally) = evaluate(model, values, test, sets.as_ref(), Split::Test, of_test.as_mut(), observer)? else {
            return Ok(self.interrupted());
        };
        let temperature = of_val.as_ref().map(Logits::temperature);
        let ece = of_val.zip(of_test).zip(temperature);
        let ece = ece.map(|((val, test), t)| Calibration { val: val.eces(t), test: test.eces(t) });
        let last = state.progress.history.last().unwrap_or(record);
        self.write_task(run_folder::LAST, &state.params, last, None, None)?;
        self.write_task(run_folder::BEST, values, record, Some(tally.scores()), temperature)?;
        let pictures = Pictures {
            setup: &self.setup,
            history: &state.progress.history,
            selected: record.epoch,
            values,
            temperature: temperature.unwrap_or(1.),
            confusion: tally.confusion(),
        };
        pictures.write(&self.folder)?;
        let images = (dataset.train.len() * state.progress.history.len()) as f64;
        let seconds: f64 = state.progress.history.iter().map(|r| r.train_seconds).sum();
        let results = Results {
            task: plan.config.task,
            method: plan.config.method,
            backbone: model.backbone().name.clone(),
            data: dataset.name.clone(),
            head: Some(plan.config.head),
            texts: self.setup.texts.clone(),
            seed: plan.config.seed,
            classes: dataset.classes.len(),
            train_images: dataset.train.len(),
            trainable_params: params::count(&state.params),
            backbone_params: model.backbone().parameters(),
            best_epoch: record.epoch,
            val: record.val.clone(),
            test: tally.scores(),
            temperature,
            ece,
            head_only: None,
            wall_s: wall_s(),
            img_per_s: images / seconds.max(1e-9),
            peak_rss_bytes: peak_rss_bytes(),
        };
        // Last: its presence says that the run is finished.
        self.folder.write_json(run_folder::RESULTS, &results)?;
        observer.event(&Event::Finished(&results));
        Ok(Outcome::Finished { folder: self.folder.path().to_path_buf(), results: Box::new(results) })
    }

    /// A place for logits, where an image has one class.
    fn logits(&self) -> Option<Logits> {
        self.setup.sets.is_none().then(|| Logits::new(self.setup.dataset.classes.len()))
    }

    fn write_task(
        &self,
        name: &str,
        values: &[Param],
        record: &EpochRecord,
        test: Option<Scores>,
        temperature: Option<f64>,
    ) -> Result<()> {
        let metrics = TaskMetrics { epoch: record.epoch, val: Some(record.val.clone()), test };
        let mut meta = self.setup.task_meta(metrics)?;
        meta.temperature = temperature;
        self.folder.write(name, TaskFile { meta, params: values.to_vec() }.to_bytes()?)
    }
}
