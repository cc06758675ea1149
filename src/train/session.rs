//! A run in its folder: trials of learning rates, training with checkpoints, the one look at test, the files at the end.

use std::time::Instant;

use super::{
    Outcome,
    checkpoint::{BEST, EpochRecord, Progress, State},
    features::{self, Beginning},
    fit::{EVAL_BATCH, Ended, Fit, evaluate},
    keeper::{FolderKeeper, Forget},
    lr_search::{LrSearch, LrTrial},
    mistakes,
    observer::{Event, Observer, Start},
    pictures::Pictures,
    prefix, prompt_picture,
    results::{Results, peak_rss_bytes},
    run_folder::{self, RunFolder},
    setup::Setup,
    source::{Batch, Source},
};
use crate::{
    Error, Result,
    config::Select,
    data::Split,
    metrics::{Calibration, Scores, calibration::Logits},
    model::{
        Frozen,
        task_file::{TaskFile, TaskMetrics},
    },
    params::{self, Param},
};

/// A trial of a learning rate takes this share of the epochs.
const TRIAL_SHARE: usize = 4;

/// A run with everything it needs, at work in its folder.
pub(super) struct Session {
    setup: Setup,
    folder: RunFolder,
    started: Instant,
    /// What a method on frozen features begins with.
    beginning: Beginning,
    /// Features of the training images without prompts, where `promptsrc` is tied to these and they never change.
    frozen_features: Option<Vec<f32>>,
}

impl Session {
    pub(super) fn new(setup: Setup, folder: RunFolder, started: Instant) -> Self {
        Self { setup, folder, started, beginning: Beginning::default(), frozen_features: None }
    }

    /// Trains to the end, or until `observer` asks to stop.
    pub(super) fn go(mut self, observer: &mut dyn Observer) -> Result<Outcome> {
        let initial = if self.setup.plan.config.method.on_features() {
            if !self.begin(observer)? {
                return Ok(self.interrupted());
            }
            self.beginning.params.clone()
        } else {
            let fresh = !self.folder.has(run_folder::CHECKPOINT);
            let mut initial = self.setup.initial(fresh, observer)?;
            if fresh && !self.map_labels(&mut initial, observer)? {
                return Ok(self.interrupted());
            }
            if !prefix::keep(&mut self.setup, observer)? {
                return Ok(self.interrupted());
            }
            initial
        };
        if self.setup.plan.solved {
            self.announce(&initial, None, observer);
            return self.solved(initial, observer);
        }
        let resumed = self.checkpoint(&initial)?;
        self.announce(&initial, resumed.as_ref(), observer);
        if !self.fix_features(observer)? {
            return Ok(self.interrupted());
        }
        let mut state = if let Some(state) = resumed {
            state
        } else {
            let Some(lr) = self.learning_rate(&initial, observer)? else { return Ok(self.interrupted()) };
            State::new(initial, self.setup.plan.optimizer, self.progress(lr))
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
        let Setup { plan, model, train, val, sets, loss, frozen_texts, .. } = &self.setup;
        let frozen = frozen_texts.as_deref().map(|texts| Frozen { texts, features: self.frozen_features.as_deref() });
        let penalty = self.beginning.penalty.as_ref();
        Fit { model, plan, train, val, sets: sets.as_ref(), loss, penalty, frozen, epochs }
    }

    fn progress(&self, lr: f64) -> Progress {
        Progress::new(lr).averaged(self.setup.frozen_texts.is_some())
    }

    /// Puts features in the place of the images of train and val, and makes what the run begins with; `false` when the observer
    /// asked to stop.
    fn begin(&mut self, observer: &mut dyn Observer) -> Result<bool> {
        let Some(train) = features::of_split(&self.setup, Split::Train, observer)? else { return Ok(false) };
        let Some(val) = features::of_split(&self.setup, Split::Val, observer)? else { return Ok(false) };
        let fresh = !self.folder.has(run_folder::CHECKPOINT);
        let Some((beginning, train)) = features::begin(&self.setup, train, &val, fresh, observer)? else {
            return Ok(false);
        };
        self.beginning = beginning;
        (self.setup.train, self.setup.val) = (Source::Features(train), Source::Features(val));
        Ok(true)
    }

    /// The label mapping of the first epoch, if there is one: counted over the training images without a prompt. `false` when the
    /// observer asked to stop.
    fn map_labels(&self, initial: &mut [Param], observer: &mut dyn Observer) -> Result<bool> {
        let Setup { model, train, .. } = &self.setup;
        if !model.label_map().is_some_and(|(kind, _)| kind.counts()) {
            return Ok(true);
        }
        if let Some((kind, source)) = model.label_map() {
            let (from, to) = (source.classes(), model.head().classes);
            let note = format!(
                "label map {kind}: counting which of {from} classes of the backbone stand for {to} of the data"
            );
            observer.event(&Event::Note(&note));
        }
        let (order, mut done) = ((0..train.len()).collect::<Vec<_>>(), 0);
        for batch in train.batches(&order, 0, EVAL_BATCH)? {
            let Batch { labels, values, .. } = batch?;
            model.count_votes(initial, &values, &labels)?;
            done += labels.len();
            observer.event(&Event::Evaluating { split: Split::Train, done, total: train.len() });
            if observer.stop() {
                return Ok(false);
            }
        }
        model.renew_map(initial, true);
        Ok(true)
    }

    /// Where texts are learned and features never change: puts these in the place of images, and keeps those that `promptsrc` is
    /// tied to; `false` when the observer asked to stop.
    fn fix_features(&mut self, observer: &mut dyn Observer) -> Result<bool> {
        let Setup { plan, frozen_texts, .. } = &self.setup;
        if !plan.config.method.has_texts() && !plan.told_by_texts() {
            return Ok(true);
        }
        let [of_train, of_val] = [Split::Train, Split::Val].map(|split| plan.has_constant_features(split));
        let tied = frozen_texts.is_some() && !plan.augments();
        if of_train || tied {
            let Some(features) = features::of_split(&self.setup, Split::Train, observer)? else { return Ok(false) };
            if tied {
                self.frozen_features = Some(features.values);
            } else {
                self.setup.train = Source::Features(features);
            }
        }
        if of_val {
            let Some(features) = features::of_split(&self.setup, Split::Val, observer)? else { return Ok(false) };
            self.setup.val = Source::Features(features);
        }
        Ok(true)
    }

    /// Ends a run whose values were computed, not learned in steps: an epoch that took none stands for it.
    fn solved(&mut self, values: Vec<Param>, observer: &mut dyn Observer) -> Result<Outcome> {
        let Setup { plan, model, train, val, .. } = &self.setup;
        let begun = Instant::now();
        let Some(of_train) = evaluate(model, &values, train, None, Split::Train, None, observer)? else {
            return Ok(self.interrupted());
        };
        let Some(of_val) = evaluate(model, &values, val, None, Split::Val, None, observer)? else {
            return Ok(self.interrupted());
        };
        let of_train = of_train.scores();
        let record = EpochRecord {
            epoch: 1,
            step: 0,
            lr: 0.,
            train_loss: of_train.loss().unwrap_or(f64::NAN),
            train_acc1: Some(of_train.main()),
            train_exact_match: None,
            val: of_val.scores(),
            train_seconds: (begun - self.started).as_secs_f64(),
            val_seconds: begun.elapsed().as_secs_f64(),
        };
        observer.event(&Event::Epoch { record: &record, of: 1, best: true });
        self.folder.write_lines(run_folder::METRICS, std::slice::from_ref(&record))?;
        if !self.beginning.trials.is_empty() {
            self.folder.write_json(run_folder::L2_SEARCH, &self.beginning.trials)?;
        }
        let mut state = State::new(values, plan.optimizer, Progress::new(0.));
        state.copies.insert(BEST, state.params.clone());
        state.progress.history.push(record);
        state.progress.best_epoch = Some(1);
        let started = self.started;
        self.finish(&state, &|| started.elapsed().as_secs_f64(), observer)
    }

    fn interrupted(&self) -> Outcome {
        Outcome::Interrupted { folder: Some(self.folder.path().to_path_buf()) }
    }

    fn checkpoint(&self, initial: &[Param]) -> Result<Option<State>> {
        if !self.folder.has(run_folder::CHECKPOINT) {
            return Ok(None);
        }
        let path = self.folder.file(run_folder::CHECKPOINT);
        State::load(&path, &self.setup.fingerprint, initial, self.setup.plan.optimizer).map(Some)
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
        let run = &self.setup.fingerprint;
        let epochs = self.setup.plan.epochs.div_ceil(TRIAL_SHARE);
        let earlier = LrSearch::load(&self.folder, run, rates, epochs)?;
        let mut search = earlier.unwrap_or_else(|| LrSearch::new(run, rates));
        for (i, &lr) in rates.iter().enumerate().skip(search.trials.len()) {
            observer.event(&Event::Trial { lr, number: i + 1, of: rates.len() });
            let mut state = State::new(initial.to_vec(), self.setup.plan.optimizer, self.progress(lr));
            let val = match self.fit(epochs).run(&mut state, &mut Forget, observer) {
                Ok(Ended::Interrupted) => return Ok(None),
                Ok(Ended::Finished) => state.selected(self.setup.plan.select).map(|(_, record)| record.val.clone()),
                // A rate too high for the loss to stay finite has lost; other errors are errors.
                Err(Error::Diverged { .. }) => None,
                Err(error) => return Err(error),
            };
            search.add(LrTrial { lr, epochs, val }, rates);
            self.folder.write_json(run_folder::LR_SEARCH, &search)?;
        }
        let lr = search.chosen();
        observer.event(&Event::Chosen { lr });
        Ok(Some(lr))
    }

    /// The trials of `lr = "auto"`, if there were any.
    fn trials(&self) -> Result<Option<Vec<LrTrial>>> {
        let plan = &self.setup.plan;
        if plan.learning_rates.len() == 1 {
            return Ok(None);
        }
        let epochs = plan.epochs.div_ceil(TRIAL_SHARE);
        let search = LrSearch::load(&self.folder, &self.setup.fingerprint, &plan.learning_rates, epochs)?;
        Ok(search.map(|search| search.trials))
    }

    /// Looks at test, once, and writes what a finished run leaves.
    fn finish(&self, state: &State, wall_s: &dyn Fn() -> f64, observer: &mut dyn Observer) -> Result<Outcome> {
        let Setup { plan, model, dataset, val, sets, .. } = &self.setup;
        let (values, record) =
            state.selected(plan.select).ok_or_else(|| Error::invalid("run", "no epoch was finished"))?;
        let (mut values, mut record) = (values.to_vec(), record.clone());
        let mut chosen = self.beginning.chosen.clone();
        if let Source::Features(features) = val
            && !plan.solved
            && let Some((best, by_validation)) = features::choose(plan, model.head(), &values, features)?
        {
            let Some(tally) = evaluate(model, &best, val, None, Split::Val, None, observer)? else {
                return Ok(self.interrupted());
            };
            record.val = tally.scores();
            (values, chosen) = (best, by_validation);
        }
        let (values, record) = (&values[..], &record);
        let of_test;
        let test = if val.holds_features() {
            let Some(features) = features::of_split(&self.setup, Split::Test, observer)? else {
                return Ok(self.interrupted());
            };
            of_test = Source::Features(features);
            &of_test
        } else {
            &self.setup.test
        };
        // Of several classes an image each stands for itself; one temperature is for those that exclude each other.
        let (mut val_logits, mut test_logits) = (self.logits(), self.logits());
        let Some(of_val) = evaluate(model, values, val, sets.as_ref(), Split::Val, val_logits.as_mut(), observer)?
        else {
            return Ok(self.interrupted());
        };
        let Some(tally) = evaluate(model, values, test, sets.as_ref(), Split::Test, test_logits.as_mut(), observer)?
        else {
            return Ok(self.interrupted());
        };
        if let Some(logits) = &test_logits {
            observer.event(&Event::Tested(logits));
        }
        let temperature = val_logits.as_ref().map(Logits::temperature);
        let logits = val_logits.as_ref().zip(test_logits.as_ref()).zip(temperature);
        let ece = logits.map(|((val, test), t)| Calibration { val: val.eces(t), test: test.eces(t) });
        let last = state.progress.history.last().unwrap_or(record);
        self.write_task(run_folder::LAST, state.current(), last, None, None)?;
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
        prompt_picture::write(&self.folder, &self.setup, values)?;
        if let Some(((val, test), t)) = logits {
            mistakes::write(&self.folder, &self.setup, val, test, t)?;
        }
        if let Some((val, test)) = of_val.multilabel().zip(tally.multilabel()) {
            mistakes::write_multilabel(&self.folder, &self.setup, val, test)?;
        }
        let images = (self.setup.train.len() * state.progress.history.len()) as f64;
        let seconds: f64 = state.progress.history.iter().map(|r| r.train_seconds).sum();
        let results = Results {
            task: plan.config.task,
            method: plan.config.method,
            backbone: model.backbone().name.clone(),
            data: dataset.name.clone(),
            head: Some(plan.head).filter(|_| plan.config.label_map.is_none()),
            label_map: plan.config.label_map,
            texts: self.setup.texts.clone(),
            content_hash: Some(self.setup.content_hash.clone()),
            seed: plan.config.seed,
            classes: dataset.classes.len(),
            train_images: dataset.train.len(),
            trainable_params: params::count(&state.params),
            backbone_params: model.backbone().parameters(),
            best_epoch: record.epoch,
            val: record.val.clone(),
            test: tally.scores(),
            lr: (!plan.solved).then_some(state.progress.lr),
            lr_search: self.trials()?,
            temperature,
            ece,
            chosen,
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
        let params = self.setup.model.task_params(values)?;
        if let (Some(map), Some((_, source))) = (&mut meta.label_map, self.setup.model.label_map()) {
            map.name(source.names(), &params)?;
        }
        self.folder.write(name, TaskFile { meta, params }.to_bytes()?)
    }
}
