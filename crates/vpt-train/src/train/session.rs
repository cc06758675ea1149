//! A run in its folder: trials of learning rates, training with checkpoints, the one look at test, the files at the end.

use std::{collections::BTreeMap, time::Instant};

use super::{
    Outcome,
    checkpoint::TrainState,
    evaluate,
    fit::{LoopEnd, StageFit, is_over},
    folds::{self, FoldResults},
    lr_search::{self, LrSearch, RateSearch},
    observer::{Event, Observer, Start},
    progress::{EpochRecord, PROBE, RunProgress, Stage},
    results::{BesideHead, Control, HeadOnly, LearnedScores, ProbeResults, Results, peak_rss_bytes},
    run_folder::{self, RunFolder},
    run_writer::{RunWriter, StateWriter},
    task::{FinishedRun, Refined, Scored, StagePlan, TrainTask},
};
use crate::config::Select;
use vpt_base::{
    Error, Result,
    params::{self, Param},
};
use vpt_data::Split;
use vpt_energy::{Energy, EnergyMeter};
use vpt_model::metrics::Scores;

/// What the head alone found at the end of a run.
struct AloneEnd<E> {
    val: E,
    test: E,
    results: ProbeResults,
}

/// A run with everything it needs, at work in its folder.
pub(super) struct Session<T> {
    task: T,
    folder: RunFolder,
    meter: EnergyMeter,
}

impl<T: TrainTask> Session<T> {
    pub(super) fn new(task: T, folder: RunFolder, meter: EnergyMeter) -> Self {
        Self { task, folder, meter }
    }

    /// Trains to the end, or until `observer` asks to stop.
    pub(super) fn go(mut self, observer: &mut dyn Observer) -> Result<Outcome> {
        let fresh = !self.folder.has(run_folder::CHECKPOINT);
        let Some(initial) = self.task.initial(fresh, observer)? else { return Ok(self.interrupted()) };
        if self.task.plan().solved {
            self.announce(&initial, None, observer);
            return self.solved(initial, observer);
        }
        let resumed = self.checkpoint(&initial)?;
        self.announce(&initial, resumed.as_ref(), observer);
        if self.task.prepare(observer)?.is_none() {
            return Ok(self.interrupted());
        }
        let (has_folds, mut folds) = (self.task.plan().config.folds.is_some(), None);
        let mut state = if let Some(state) = resumed {
            state
        } else {
            let Some(lr) = self.learning_rate(&initial, observer)? else { return Ok(self.interrupted()) };
            let mut state = TrainState::new(initial, self.task.plan().optimizer, RunProgress::new(lr));
            if let Some((values, choice)) = self.task.head_alone() {
                state.copies.insert(PROBE, values.to_vec());
                state.progress.probe = Some(choice.clone());
            }
            state.begin_pruning(&self.task.stages());
            state
        };
        if has_folds {
            let penalty = state.progress.probe.as_ref().and_then(|choice| choice.l2);
            folds = folds::cross_validate(&self.task, &self.folder, (state.progress.lr, penalty), observer)?;
            if folds.is_none() {
                return Ok(self.interrupted());
            }
        }
        // Lines of epochs after the checkpoint belong to the process that was cut off.
        self.folder.write_lines(run_folder::METRICS, &state.progress.history)?;
        let select = self.task.plan().select;
        let write_best = |state: &TrainState| match (select, state.selected(Select::Best)) {
            (Select::Best, Some((values, record))) => self.write_task(run_folder::BEST, values, record, None, None),
            _ => Ok(()),
        };
        let mut writer =
            RunWriter::new(&self.folder, self.task.fingerprint().as_str(), &self.meter, &state, &write_best);
        let stages = self.task.stages();
        // With the schedule of all epochs, of which folds have chosen the first so many.
        let left_out = folds.as_ref().map_or(0, |folds| folds.of - folds.epochs);
        let all = stages.iter().map(|stage| stage.epochs).sum::<usize>() - left_out;
        for (i, &plan) in stages.iter().enumerate() {
            let until = plan.epochs - if i + 1 == stages.len() { left_out } else { 0 };
            if is_over(plan.stage, until, &state.progress, self.task.plan().config.patience) {
                continue;
            }
            let ended = self.fit(plan, (until, all), &mut state, &mut writer, observer);
            // After an error too: the last good state is worth more than it.
            writer.save(&mut state)?;
            if ended? == LoopEnd::Interrupted {
                return Ok(self.interrupted());
            }
        }
        self.finish(&state, folds, &|| writer.cost(), observer)
    }

    fn interrupted(&self) -> Outcome {
        Outcome::Interrupted { folder: Some(self.folder.path().to_path_buf()) }
    }

    fn checkpoint(&self, initial: &[Param]) -> Result<Option<TrainState>> {
        if !self.folder.has(run_folder::CHECKPOINT) {
            return Ok(None);
        }
        let (path, plan) = (self.folder.file(run_folder::CHECKPOINT), self.task.plan());
        let mut state =
            TrainState::load(&path, |run| self.is_own(run), initial, plan.optimizer, self.task.averaging())?;
        if let ([lr], true) = (&plan.learning_rates[..], state.progress.lr == 0.) {
            state.progress.lr = *lr;
        }
        Ok(Some(state))
    }

    /// Whether the fingerprint `run` of a file is that of this run.
    fn is_own(&self, run: &str) -> Result<bool> {
        self.task.fingerprint().is(run, self.task.backbone())
    }

    fn announce(&self, initial: &[Param], resumed: Option<&TrainState>, observer: &mut dyn Observer) {
        let data = self.task.data();
        observer.event(&Event::Start(&Start {
            folder: self.folder.path(),
            plan: self.task.plan(),
            data: data.name,
            classes: &data.classes,
            images: data.images,
            trainable_params: params::count(initial),
            backbone_params: self.task.backbone().parameters(),
            epochs_done: resumed.map_or(0, |state| state.progress.history.len()),
        }));
    }

    /// Trains the stage `plan` from `state` for `until` epochs, of `epochs` in all stages.
    fn fit(
        &self,
        plan: StagePlan,
        (until, epochs): (usize, usize),
        state: &mut TrainState,
        writer: &mut dyn StateWriter,
        observer: &mut dyn Observer,
    ) -> Result<LoopEnd> {
        let Some([train, val]) = self.task.sources(plan.stage, &self.folder, observer)? else {
            return Ok(LoopEnd::Interrupted);
        };
        StageFit { task: &self.task, plan, until, train: &train, val: &val, epochs, blind: false }
            .run(state, writer, observer)
    }

    /// The learning rate, chosen by validation if there are several; `None` when the observer asked to stop.
    fn learning_rate(&self, initial: &[Param], observer: &mut dyn Observer) -> Result<Option<f64>> {
        if let [lr] = self.task.plan().learning_rates[..] {
            return Ok(Some(lr));
        }
        let search = RateSearch { task: &self.task, folder: &self.folder, initial };
        let Some(lr) = search.choose(observer)? else { return Ok(None) };
        observer.event(&Event::Chosen { lr });
        Ok(Some(lr))
    }

    /// The search of `lr = "auto"`, if there was one.
    fn lr_search(&self) -> Result<Option<LrSearch>> {
        if self.task.plan().learning_rates.len() == 1 {
            return Ok(None);
        }
        LrSearch::load(&self.folder, |run| self.is_own(run))
    }

    /// Ends a run whose values were computed, not learned in steps: an epoch that took none stands for it.
    fn solved(&self, values: Vec<Param>, observer: &mut dyn Observer) -> Result<Outcome> {
        let (begun, before) = (Instant::now(), self.meter.wall_seconds());
        let Some([train, val]) = self.task.sources(Stage::Whole, &self.folder, observer)? else {
            return Ok(self.interrupted());
        };
        let mut look = |split, source| evaluate(&self.task, &values, Stage::Whole, (split, source), false, observer);
        let Some(of_train) = look(Split::Train, &train)? else { return Ok(self.interrupted()) };
        let Some(of_val) = look(Split::Val, &val)? else { return Ok(self.interrupted()) };
        let of_train = of_train.scores();
        let record = EpochRecord {
            epoch: 1,
            stage: Stage::Whole,
            step: 0,
            lr: 0.,
            train_loss: of_train.loss().unwrap_or(f64::NAN),
            train: BTreeMap::from([("train_acc1".to_owned(), of_train.main())]),
            val: self.of_val(&of_val),
            train_seconds: before,
            val_seconds: begun.elapsed().as_secs_f64(),
        };
        observer.event(&Event::Epoch { record: &record, of: 1, best: true });
        self.folder.write_lines(run_folder::METRICS, std::slice::from_ref(&record))?;
        let mut state = TrainState::new(values, self.task.plan().optimizer, RunProgress::new(0.));
        state.copies.insert(Stage::Whole.copy_name(), state.params.clone());
        state.progress.history.push(record);
        self.finish(&state, None, &|| self.meter.energy(), observer)
    }

    /// Looks at test, once, and writes what a finished run leaves.
    fn finish(
        &self,
        state: &TrainState,
        folds: Option<FoldResults>,
        cost: &dyn Fn() -> Energy,
        observer: &mut dyn Observer,
    ) -> Result<Outcome> {
        let (task, plan) = (&self.task, self.task.plan());
        let (values, record) =
            state.selected(plan.select).ok_or_else(|| Error::invalid("run", "no epoch was finished"))?;
        let (mut values, mut record, mut chosen) = (values.to_vec(), record.clone(), None);
        let stage = record.stage;
        let Some(val_source) = task.final_source(Split::Val, observer)? else { return Ok(self.interrupted()) };
        let val_part = (Split::Val, &val_source);
        if let Some(Refined { values: refined, chosen: by_validation }) = task.refine(&values)? {
            let found = evaluate(task, &refined, stage, val_part, false, observer)?;
            let Some(found) = found else { return Ok(self.interrupted()) };
            record.val = self.of_val(&found);
            (values, chosen) = (refined, Some(by_validation));
        }
        let Some(test_source) = task.final_source(Split::Test, observer)? else { return Ok(self.interrupted()) };
        let test_part = (Split::Test, &test_source);
        let Some(mut val) = evaluate(task, &values, stage, val_part, true, observer)? else {
            return Ok(self.interrupted());
        };
        let Some(mut test) = evaluate(task, &values, stage, test_part, true, observer)? else {
            return Ok(self.interrupted());
        };
        let mut probe = None;
        if let Some(head) = state.copies.get(PROBE) {
            let Some(alone) = self.alone(head, state, &record, (folds.as_ref(), &test), observer)? else {
                return Ok(self.interrupted());
            };
            if alone.results.kept {
                (values, record) = (head.clone(), record.of_head_alone(self.of_val(&alone.val)));
                (val, test) = (alone.val, alone.test);
            }
            probe = Some(alone.results);
        }
        let (mut head_only, mut unpruned) = (None, None);
        let control = state.progress.best_before().and_then(|control| Some((state.best_copy(control)?, control)));
        if let Some((before, control)) = control {
            let is_head = control.stage == Stage::Head;
            let found = evaluate(task, before, control.stage, test_part, is_head, observer)?;
            let Some(found) = found else { return Ok(self.interrupted()) };
            let (best_epoch, of_val, of_test) = (control.epoch, control.val.clone(), found.scores());
            if is_head {
                let beside = self.beside_head(control, &found, (&record, &test), folds.as_ref())?;
                if beside.kept {
                    let Some(of_head) = evaluate(task, before, control.stage, val_part, true, observer)? else {
                        return Ok(self.interrupted());
                    };
                    (values, record, val, test) = (before.to_vec(), control.clone(), of_head, found);
                }
                head_only = Some(HeadOnly { best_epoch, val: of_val, test: of_test, beside: Some(beside) });
            } else {
                unpruned = Some(Control { best_epoch, val: of_val, test: of_test });
            }
        }
        if let Some(logits) = test.logits() {
            observer.event(&Event::Tested(logits));
        }
        let history = &state.progress.history;
        let last = history.last().unwrap_or(&record);
        self.write_task(run_folder::LAST, state.current(), last, None, None)?;
        self.write_task(run_folder::BEST, &values, &record, Some(test.scores()), Some(&val))?;
        let folder = &self.folder;
        let (record, values) = (&record, &values[..]);
        if let Some(choice) = state.progress.probe.as_ref().filter(|choice| !choice.trials.is_empty()) {
            folder.write_json(run_folder::L2_SEARCH, &choice.trials)?;
        }
        if folder.is_here() {
            task.write_files(&FinishedRun { folder, history, record, values, val: &val, test: &test })?;
        }
        let seconds: f64 = history.iter().map(|record| record.train_seconds).sum();
        let data = task.data();
        let own = task.results(&val, &test);
        let (energy, search) = (self.of_all_ranks(cost())?, self.lr_search()?);
        let results = Results {
            task: plan.config.task,
            method: plan.config.method,
            backbone: task.backbone().name.clone(),
            data: data.name.to_owned(),
            head: own.head,
            label_map: own.label_map,
            texts: own.texts,
            engine: plan.config.engine,
            device: plan.config.device,
            dataset_card: plan.config.card_name(),
            content_hash: data.content_hash.map(str::to_owned),
            seed: plan.config.seed,
            classes: data.classes.len(),
            train_images: data.images[Split::Train as usize],
            trainable_params: params::count(&state.params),
            backbone_params: task.backbone().parameters(),
            best_epoch: record.epoch,
            val: record.val.clone(),
            test: test.scores(),
            lr: (!plan.solved).then_some(state.progress.lr),
            lr_search_share: search.as_ref().and_then(LrSearch::steps).map(|steps| self.share_of_training(steps)),
            lr_search: search.map(|search| search.trials),
            folds,
            temperature: own.temperature,
            ece: own.ece,
            chosen: chosen.unwrap_or(own.chosen),
            head_only,
            unpruned,
            probe,
            wall_s: energy.wall_seconds,
            img_per_s: (task.epoch_images() * history.len()) as f64 / seconds.max(1e-9),
            peak_rss_bytes: peak_rss_bytes(),
            co2: observer.carbon().and_then(|carbon| carbon.of(&energy)),
            energy: Some(energy),
        };
        // Last: its presence says that the run is finished.
        self.folder.write_json(run_folder::RESULTS, &results)?;
        observer.event(&Event::Finished(&results));
        Ok(Outcome::Finished { folder: self.folder.path().to_path_buf(), results: Box::new(results) })
    }

    /// Holds what was learned, in the epoch `record` and on the `test` images, against the `head` alone; `None` when the
    /// observer asked to stop.
    fn alone(
        &self,
        head: &[Param],
        state: &TrainState,
        record: &EpochRecord,
        (folds, test): (Option<&FoldResults>, &T::Evaluation),
        observer: &mut dyn Observer,
    ) -> Result<Option<AloneEnd<T::Evaluation>>> {
        let (task, plan) = (&self.task, self.task.plan());
        let Some(of_val) = task.evaluate_alone(head, Split::Val, observer)? else { return Ok(None) };
        let Some(of_test) = task.evaluate_alone(head, Split::Test, observer)? else { return Ok(None) };
        let moved = task.moved(test, &of_test)?;
        let alone = self.of_val(&of_val);
        let ranks = alone.as_ref().zip(record.val.as_ref()).map(|(alone, learned)| (alone.rank(), learned.rank()));
        // Without validation images and folds there is nothing to tell it by.
        let of_folds = || folds.and_then(|folds| Some((folds.probe.as_ref()?.rank(), folds.val.rank())));
        let ranks = ranks.or_else(of_folds);
        let better = ranks.is_some_and(|(alone, learned)| alone > learned);
        let results = ProbeResults {
            l2: state.progress.probe.as_ref().and_then(|choice| choice.l2),
            val: alone,
            test: of_test.scores(),
            moved: moved.unwrap_or_default(),
            better,
            kept: better && plan.keep_better,
            learned: LearnedScores { best_epoch: record.epoch, val: record.val.clone(), test: test.scores() },
        };
        Ok(Some(AloneEnd { val: of_val, test: of_test, results }))
    }

    /// What was learned, in the epoch `record` and on the `test` images, beside the head alone of the epoch `head`, with what this `found` in
    /// the same images.
    fn beside_head(
        &self,
        head: &EpochRecord,
        found: &T::Evaluation,
        (record, test): (&EpochRecord, &T::Evaluation),
        folds: Option<&FoldResults>,
    ) -> Result<BesideHead> {
        // Without validation images and folds there is nothing to tell it by.
        let of_val = head.val.as_ref().zip(record.val.as_ref());
        let of_folds = || folds.and_then(|folds| Some((folds.probe.as_ref()?, &folds.val)));
        let better = of_val.or_else(of_folds).is_some_and(|(head, own)| head.rank() > own.rank());
        Ok(BesideHead {
            moved: self.task.moved(test, found)?,
            better,
            kept: better && self.task.plan().keep_better,
            learned: LearnedScores { best_epoch: record.epoch, val: record.val.clone(), test: test.scores() },
        })
    }

    /// What a search of learning rates took in whose trials so many `steps` were taken, as a share of the steps of the training.
    fn share_of_training(&self, steps: u64) -> f64 {
        let (plan, stages) = (self.task.plan(), lr_search::trial_stages(&self.task));
        let before: usize = stages.iter().rev().skip(1).map(|stage| stage.epochs).sum();
        (steps + before as u64 * plan.steps_per_epoch()) as f64 / plan.total_steps as f64
    }

    /// What all ranks took, where each knows what it took itself. What counts machines (counters, the most of an estimate) has ranks of
    /// one machine several times, which is said.
    fn of_all_ranks(&self, own: Energy) -> Result<Energy> {
        let group = self.task.group();
        if group.is_alone() {
            return Ok(own);
        }
        // As in results.json: it has fields that may be left out, which what ranks send each other has not.
        let unreadable = |error: serde_json::Error| Error::invalid("ranks", error.to_string());
        let text = serde_json::to_string(&own).map_err(unreadable)?;
        let all: Vec<Energy> = group
            .gather(Ok(text))?
            .iter()
            .map(|text| serde_json::from_str(text))
            .collect::<Result<_, _>>()
            .map_err(unreadable)?;
        let (first, others) = all.split_first().ok_or_else(|| Error::invalid("ranks", "there are none"))?;
        let mut sum = first.clone();
        for other in others {
            sum.add_beside(other);
        }
        Ok(sum)
    }

    /// Scores of the validation images, if there are any.
    fn of_val(&self, found: &T::Evaluation) -> Option<Scores> {
        (self.task.data().images[Split::Val as usize] > 0).then(|| found.scores())
    }

    fn write_task(
        &self,
        name: &str,
        values: &[Param],
        record: &EpochRecord,
        test: Option<Scores>,
        val: Option<&T::Evaluation>,
    ) -> Result<()> {
        if !self.folder.is_here() {
            return Ok(());
        }
        self.folder.write(name, self.task.task_file(values, record, test, val)?.to_bytes()?)
    }
}
