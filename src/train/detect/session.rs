//! A detection run in its folder: the two stages with checkpoints, the one look at test, the files at the end.

use std::{collections::BTreeMap, time::Instant};

use super::{
    fit::{DetectState, Fit, detections, evaluate},
    mistakes,
    progress::{AVERAGE, DetectProgress, DetectRecord, HEAD, Stage},
    setup::Setup,
    source::Source,
};
use crate::{
    Error, Result,
    config::{Select, Task},
    data::Split,
    metrics::{
        Scores,
        coco::{self, CocoEval, Detection},
    },
    model::task_file::{TaskFile, TaskMetrics},
    params::{self, Param},
    random::stream,
    report::{self, Curve},
    train::{
        Outcome,
        checkpoint::{BEST, State},
        keeper::FolderKeeper,
        observer::{Event, Observer, Start},
        results::{HeadOnly, Results, peak_rss_bytes},
        run_folder::{self, RunFolder},
    },
};

/// Validation images that are shown.
const SHOWN: usize = 12;

/// A run with everything it needs, at work in its folder.
pub(crate) struct Session {
    setup: Setup,
    folder: RunFolder,
    started: Instant,
}

/// What a look at a part brought.
struct Look {
    found: Vec<Detection>,
    eval: CocoEval,
}

impl Session {
    pub(crate) fn new(setup: Setup, folder: RunFolder, started: Instant) -> Self {
        Self { setup, folder, started }
    }

    /// Trains to the end, or until `observer` asks to stop.
    pub(crate) fn go(self, observer: &mut dyn Observer) -> Result<Outcome> {
        let Setup { plan, detect, fingerprint, .. } = &self.setup;
        let optimizer = plan.optimizer;
        let initial = self.setup.model.init(plan.config.seed)?;
        let path = self.folder.file(run_folder::CHECKPOINT);
        let mut state: DetectState = if self.folder.has(run_folder::CHECKPOINT) {
            State::load(&path, fingerprint, &initial, optimizer)?
        } else {
            State::new(initial, optimizer, DetectProgress::default())
        };
        self.announce(&state, observer);
        // Lines of epochs after the checkpoint belong to the process that was cut off.
        self.folder.write_lines(run_folder::METRICS, &state.progress.history)?;
        let write_best = |state: &DetectState, _| match (plan.select, self.selected(state)) {
            (Select::Best, Some((values, record))) => self.write_task(run_folder::BEST, values, record, None, None),
            _ => Ok(()),
        };
        let mut keeper = FolderKeeper::new(&self.folder, fingerprint, self.started, &mut state, &write_best);
        let stages = [(Stage::Head, detect.head_epochs), (Stage::Prompts, plan.epochs)];
        for (stage, end) in stages {
            if state.progress.history.len() >= end {
                continue;
            }
            let mut source = |split| Source::new(&self.setup, split, stage, self.folder.path(), &mut *observer);
            let (Some(train), Some(val)) = (source(Split::Train)?, source(Split::Val)?) else {
                return Ok(self.interrupted());
            };
            let fit = Fit { setup: &self.setup, stage, train: &train, val: &val };
            let ended = fit.run(&mut state, &mut keeper, observer);
            // After an error too: the last good state is worth more than it.
            keeper.save(&mut state)?;
            if !ended? {
                return Ok(self.interrupted());
            }
        }
        self.finish(&state, &|| keeper.wall_s(), observer)
    }

    fn interrupted(&self) -> Outcome {
        Outcome::Interrupted { folder: Some(self.folder.path().to_path_buf()) }
    }

    fn announce(&self, state: &DetectState, observer: &mut dyn Observer) {
        let Setup { plan, dataset, model, .. } = &self.setup;
        observer.event(&Event::Start(&Start {
            folder: self.folder.path(),
            plan,
            data: &dataset.name,
            classes: &dataset.names(),
            images: Split::ALL.map(|split| dataset.part(split).len()),
            trainable_params: params::count(&state.params),
            backbone_params: model.backbone().parameters(),
            epochs_done: state.progress.history.len(),
        }));
    }

    /// What the run ends with: of the last stage, the best epoch or the last.
    fn selected<'a>(&self, state: &'a DetectState) -> Option<(&'a [Param], &'a DetectRecord)> {
        let progress = &state.progress;
        match (self.setup.plan.select, progress.best_prompts) {
            (Select::Last, _) => Some((state.copies.get(AVERAGE)?, progress.history.last()?)),
            (Select::Best, None) => Some((state.copies.get(HEAD)?, progress.record(progress.best_head)?)),
            (Select::Best, best) => Some((state.copies.get(BEST)?, progress.record(best)?)),
        }
    }

    /// What `params` find in the images of a part; `None` when the observer asked to stop.
    fn look(&self, params: &[Param], split: Split, stage: Stage, observer: &mut dyn Observer) -> Result<Option<Look>> {
        let source = Source::images(split);
        let Some(found) = detections(&self.setup, params, &source, stage, observer)? else { return Ok(None) };
        let eval = evaluate(&self.setup, &source, &found)?;
        Ok(Some(Look { found, eval }))
    }

    /// Looks at test, once, and writes what a finished run leaves.
    fn finish(&self, state: &DetectState, wall_s: &dyn Fn() -> f64, observer: &mut dyn Observer) -> Result<Outcome> {
        let Setup { plan, model, dataset, .. } = &self.setup;
        let (values, record) = self.selected(state).ok_or_else(|| Error::setting("epochs", "no epoch was finished"))?;
        let stage = record.stage;
        let Some(val) = self.look(values, Split::Val, stage, observer)? else { return Ok(self.interrupted()) };
        let Some(test) = self.look(values, Split::Test, stage, observer)? else { return Ok(self.interrupted()) };
        let control = state.copies.get(HEAD).filter(|_| stage == Stage::Prompts);
        let control = control.zip(state.progress.record(state.progress.best_head));
        let head_only = if let Some((values, record)) = control {
            let look = self.look(values, Split::Test, Stage::Head, observer)?;
            let Some(Look { eval, .. }) = look else { return Ok(self.interrupted()) };
            let (val, test) = (Scores::Detect(record.val), Scores::Detect(eval.metrics));
            Some(HeadOnly { best_epoch: record.epoch, val, test })
        } else {
            None
        };
        let history = &state.progress.history;
        let last = history.last().unwrap_or(record);
        let average = state.copies.get(AVERAGE).map_or(values, Vec::as_slice);
        let confidence = val.eval.best_confidence().map(|(confidence, _)| confidence);
        self.write_task(run_folder::LAST, average, last, None, None)?;
        self.write_task(run_folder::BEST, values, record, Some(&test.eval), confidence)?;
        self.folder.write(run_folder::VAL_DETECTIONS, coco::results_json(&val.found)?)?;
        self.folder.write(run_folder::TEST_DETECTIONS, coco::results_json(&test.found)?)?;
        self.draw(history, record.epoch, &val, &test)?;
        let seconds: f64 = history.iter().map(|r| r.train_seconds).sum();
        let results = Results {
            task: Task::Detect,
            method: plan.config.method,
            backbone: model.backbone().name.clone(),
            data: dataset.name.clone(),
            head: None,
            label_map: None,
            texts: None,
            lr: Some(plan.learning_rates[0]),
            lr_search: None,
            content_hash: None,
            seed: plan.config.seed,
            classes: dataset.categories.len(),
            train_images: dataset.train.len(),
            trainable_params: params::count(&state.params),
            backbone_params: model.backbone().parameters(),
            best_epoch: record.epoch,
            val: Scores::Detect(record.val),
            test: Scores::Detect(test.eval.metrics),
            temperature: None,
            ece: None,
            chosen: BTreeMap::new(),
            head_only,
            wall_s: wall_s(),
            img_per_s: (dataset.train.len() * history.len()) as f64 / seconds.max(1e-9),
            peak_rss_bytes: peak_rss_bytes(),
        };
        // Last: its presence says that the run is finished.
        self.folder.write_json(run_folder::RESULTS, &results)?;
        observer.event(&Event::Finished(&results));
        Ok(Outcome::Finished { folder: self.folder.path().to_path_buf(), results: Box::new(results) })
    }

    /// The pictures of a finished run.
    fn draw(&self, history: &[DetectRecord], selected: usize, val: &Look, test: &Look) -> Result<()> {
        let Setup { plan, model, dataset, .. } = &self.setup;
        let title = format!("{}, {} on {}", plan.config.method, model.backbone().name, dataset.name);
        let names = dataset.names();
        let curve = |name, value: &dyn Fn(&DetectRecord) -> f64| {
            Curve::new(name, history.iter().map(|record| (record.epoch, value(record))))
        };
        let loss = [curve("training loss", &|r| r.train_loss)];
        let scores = [curve("validation AP", &|r| r.val.ap), curve("validation AP50", &|r| r.val.ap50)];
        let curves = report::curves_svg(&title, ("loss", &loss), ("average precision", &scores), selected)?;
        self.folder.write(run_folder::CURVES, curves)?;
        let on_test = format!("{title}: test images");
        self.folder.write(run_folder::PR_CURVE, report::pr_curve_svg(&on_test, &test.eval, &names)?)?;
        self.folder.write(run_folder::F1_CURVE, report::f1_curve_svg(&on_test, &test.eval, &names)?)?;
        let confidence = test.eval.best_confidence().map_or(0.5, |(confidence, _)| confidence);
        let confusion = coco::confusion(&dataset.test, &dataset.categories, &test.found, confidence)?;
        let mut rows = names.clone();
        rows.push(coco::BACKGROUND.to_owned());
        let on_test = format!("{on_test}, scores above {confidence:.2}, % of each true class");
        self.folder.write(run_folder::CONFUSION, report::confusion_svg(&on_test, &confusion, &rows)?)?;
        let confidence = val.eval.best_confidence().map_or(0.5, |(confidence, _)| confidence);
        self.folder.write(run_folder::VAL_PREDICTIONS, self.sheet(&val.found, confidence, &names)?)?;
        let page = mistakes::page(&self.setup, &title, &val.found, confidence, &names)?;
        self.folder.write(run_folder::MISTAKES, page)
    }

    /// Some validation images, drawn by the seed, with the boxes of truth and prediction.
    fn sheet(&self, found: &[Detection], confidence: f64, names: &[String]) -> Result<Vec<u8>> {
        let Setup { plan, dataset, .. } = &self.setup;
        let rng = &mut stream(plan.config.seed, "val predictions", 0, 0);
        let count = dataset.val.len();
        let mut chosen = rand::seq::index::sample(rng, count, SHOWN.min(count)).into_vec();
        chosen.sort_unstable();
        let tiles = chosen.into_iter().map(|i| mistakes::tile(&self.setup, &dataset.val[i], found, confidence));
        report::box_sheet_jpeg(&tiles.collect::<Result<Vec<_>>>()?, names)
    }

    fn write_task(
        &self,
        name: &str,
        values: &[Param],
        record: &DetectRecord,
        test: Option<&CocoEval>,
        confidence: Option<f64>,
    ) -> Result<()> {
        let metrics = TaskMetrics {
            epoch: record.epoch,
            val: Some(Scores::Detect(record.val)),
            test: test.map(|eval| Scores::Detect(eval.metrics)),
        };
        let mut meta = self.setup.task_meta(metrics, confidence)?;
        let params = if record.stage == Stage::Head {
            // Prompts that have not learned yet would only disturb.
            meta.parts = crate::prompt::PartShapes::NONE;
            self.setup.model.without_prompts(values)
        } else {
            values.to_vec()
        };
        self.folder.write(name, TaskFile { meta, params }.to_bytes()?)
    }
}
