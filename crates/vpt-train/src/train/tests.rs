//! Whole runs on a small random backbone and a folder of small pictures.

#![allow(clippy::float_cmp)] // equal means equal here

mod multilabel;
mod ranks;
mod resume;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use rand::Rng;
use tempfile::TempDir;

use super::*;
use crate::{
    config::{LearningRate, Select},
    feature_cache::FeatureCache,
};
use vpt_base::{Error, random::stream};
use vpt_data::{Dataset, FewShot, Split};
use vpt_model::{
    head::HeadKind,
    methods::{Method, Solver},
    model::{TaskModel, TaskOptions, task_file::TaskFile},
    optim::OptimizerKind,
    prompt::{tokens::PromptLayers, weights::LoraTowers},
};

pub(super) fn backbone() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/clip").display().to_string()
}

/// Pictures of two classes, reddish and bluish, as PNG files: 10 to train on, 4 and 6 for the rest, a class.
fn pictures(dir: &Path) {
    for (split, count) in [("train", 10), ("val", 4), ("test", 6)] {
        for (class, colour) in [("blue", [60, 60, 160]), ("red", [160, 60, 60])] {
            let folder = dir.join(split).join(class);
            fs::create_dir_all(&folder).unwrap();
            for i in 0..count {
                let mut rng = stream(3, &format!("{split} {class}"), 0, i);
                let pixels: Vec<u8> = (0..40 * 36 * 3).map(|p| colour[p % 3] + rng.random_range(0..90u8)).collect();
                image::save_buffer(folder.join(format!("{i}.png")), &pixels, 40, 36, image::ColorType::Rgb8).unwrap();
            }
        }
    }
}

/// A folder with pictures in `data` and room for runs.
pub(super) fn workplace() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    pictures(&dir.path().join("data"));
    dir
}

/// Files that every run leaves.
pub(super) const RUN_FILES: [&str; 10] = [
    run_folder::CONFIG,
    run_folder::ENVIRONMENT,
    run_folder::SPLIT,
    run_folder::METRICS,
    run_folder::RESULTS,
    run_folder::BEST,
    run_folder::LAST,
    run_folder::CURVES,
    run_folder::CONFUSION,
    run_folder::MISTAKES,
];

/// Methods that learn nothing in steps.
const SOLVED: [Method; 3] = [Method::ZERO_SHOT, Method::NCM, Method::TIP_ADAPTER];

pub(super) fn config(dir: &TempDir, method: Method) -> RunConfig {
    let solved = SOLVED.contains(&method);
    RunConfig {
        backbone: backbone(),
        data: dir.path().join("data").display().to_string(),
        method,
        epochs: Some(3).filter(|_| !solved),
        batch_size: Some(6).filter(|_| !solved),
        threads: Some(2),
        ..RunConfig::default()
    }
}

pub(super) fn finish(config: &RunConfig, dir: &TempDir) -> (PathBuf, Results) {
    finished(run(config, &dir.path().join("runs"), &mut Silent))
}

pub(super) fn finished(outcome: Result<Outcome>) -> (PathBuf, Results) {
    match outcome.unwrap() {
        Outcome::Finished { folder, results } => (folder, *results),
        Outcome::Interrupted { .. } => panic!("the run was interrupted"),
    }
}

/// Stops a run after some batches, whatever they are for, and copies its folder on the way as a kill would leave it.
pub(super) struct Cut {
    /// Batches after which the run is told to stop.
    stop_after: usize,
    /// Batch after which the folder is copied, and where to.
    copy_after: Option<(usize, PathBuf)>,
    folder: Option<PathBuf>,
    batches: usize,
}

impl Cut {
    pub(super) fn after(batches: usize) -> Self {
        Self { stop_after: batches, copy_after: None, folder: None, batches: 0 }
    }

    /// Never stops, and copies the folder to `to` after some batches.
    pub(super) fn copying(batches: usize, to: &Path) -> Self {
        Self { copy_after: Some((batches, to.to_path_buf())), ..Self::after(usize::MAX) }
    }
}

impl Observer for Cut {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Start(start) => self.folder = Some(start.folder.to_path_buf()),
            Event::Features { .. } | Event::Step { .. } | Event::Evaluating { .. } => {
                self.batches += 1;
                if let (Some((at, to)), Some(from)) = (&self.copy_after, &self.folder)
                    && *at == self.batches
                {
                    copy(from, to);
                }
            }
            _ => {}
        }
    }

    fn stop(&self) -> bool {
        self.batches >= self.stop_after
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

pub(super) fn bytes(folder: &Path, name: &str) -> Vec<u8> {
    fs::read(folder.join(name)).unwrap()
}

/// What must not depend on when a run was cut off: the task files, and the metrics but for their times.
pub(super) fn content(folder: &Path) -> (Vec<u8>, Vec<u8>, Vec<serde_json::Value>) {
    let text = fs::read_to_string(folder.join(run_folder::METRICS)).unwrap();
    let lines = text.lines().map(|line| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        let fields = line.as_object_mut().unwrap();
        fields.remove("train_seconds").unwrap();
        fields.remove("val_seconds").unwrap();
        line
    });
    (bytes(folder, run_folder::BEST), bytes(folder, run_folder::LAST), lines.collect())
}

#[test]
fn every_method_learns_colours_and_leaves_a_whole_run_folder() {
    let dir = workplace();
    for &method in Method::ALL {
        let heads: &[HeadKind] = if method == Method::LINEAR { HeadKind::ALL } else { &[HeadKind::Linear] };
        for &head in heads {
            let head = method.own_head().unwrap_or(head);
            // The others have published schedules.
            let epochs = Some(if method.has_texts() { 10 } else { 6 }).filter(|_| !method.on_embeddings());
            // Of a CLIP's, texts tell the classes.
            let own = Some(head).filter(|_| method != Method::LORA);
            let mut config = RunConfig { head: own, epochs, ..config(&dir, method) };
            if head == HeadKind::Text {
                // Texts say nothing to a random backbone, and there are few steps to forget that in.
                config.lr = Some(LearningRate::Value(0.05));
            }
            if method == Method::LORA {
                (config.lr, config.epochs) = (Some(LearningRate::Value(0.02)), Some(10));
            }
            if own.is_some() && method.has_option("keep_better") {
                // What is learned is looked at, though the probe may be better.
                config.keep_better = Some(false);
            }
            if method == Method::COCOOP {
                // Its default is a step for each of many images.
                (config.lr, config.optimizer) = (Some(LearningRate::Value(0.05)), Some(OptimizerKind::Adamw));
            }
            let (folder, results) = finish(&config, &dir);
            // The texts of a random backbone say nothing.
            let learns = method != Method::ZERO_SHOT;
            assert!(!learns || results.test.classify().unwrap().acc1 > 0.9, "{method} {head}: {:?}", results.test);
            assert_eq!((results.train_images, results.classes, results.method), (20, 2, method));
            for name in RUN_FILES {
                assert!(folder.join(name).is_file(), "{method}: {name}");
            }
            assert_eq!(folder.join(run_folder::PROMPT).is_file(), method.has_pixels(), "{method}");
            // What is computed at once needs nothing to go on from.
            assert_eq!(folder.join(run_folder::CHECKPOINT).is_file(), !SOLVED.contains(&method), "{method}");
            assert_eq!(Results::load(&folder.join(run_folder::RESULTS)).unwrap(), results);
        }
    }
}

#[test]
fn a_task_file_classifies_as_the_run_did() {
    let dir = workplace();
    for &method in Method::ALL {
        let (folder, results) = finish(&config(&dir, method), &dir);
        let model =
            TaskModel::open(&folder, &TaskOptions { backbone: Some(backbone()), ..Default::default() }).unwrap();
        let data = vpt_data::Dataset::open(dir.path().join("data"), 1).unwrap();
        let mut right = 0;
        for sample in data.part(Split::Test) {
            let pixels = model.preprocess().apply(&sample.load().unwrap()).unwrap();
            let probabilities = model.predict(&pixels).unwrap();
            assert!((probabilities.iter().sum::<f32>() - 1.).abs() < 1e-5);
            right += usize::from(vpt_base::logits::argmax(&probabilities) == sample.label as usize);
        }
        assert_eq!(right as f64 / data.test.len() as f64, results.test.classify().unwrap().acc1, "{method}");
        assert_eq!(model.meta().metrics.test, Some(results.test));
        assert_eq!(model.meta().metrics.epoch, results.best_epoch);
    }
}

/// Every method on frozen features, and the ways to fit a linear probe.
fn on_features(dir: &TempDir) -> Vec<RunConfig> {
    let methods = Method::ALL.iter().filter(|method| method.on_features());
    let mut configs: Vec<RunConfig> = methods.map(|&method| config(dir, method)).collect();
    for config in configs.iter_mut().filter(|config| config.method.views().is_some()) {
        config.options.views.views = Some(2);
    }
    let fitted = RunConfig { epochs: None, batch_size: None, ..config(dir, Method::LINEAR) };
    configs.push(fitted.with_options(|o| o.probe.solver = Some(Solver::Lbfgs)));
    configs
}

#[test]
fn a_cache_of_features_changes_no_byte_and_saves_every_pass() {
    let dir = workplace();
    let cache = FeatureCache::new(dir.path().join("cache"), crate::feature_cache::LIMIT);
    for config in on_features(&dir) {
        let method = config.method;
        let (without, _) = finish(&config, &dir);
        let cached = RunConfig { cache_dir: Some(cache.root().to_owned()), ..config.clone() };
        let (first, results) = finish(&cached, &dir);
        let held = cache.contents().unwrap();
        // Fewer images and another number of threads find the same features.
        finish(&RunConfig { shots: Some(3), threads: Some(1), ..cached.clone() }, &dir);
        let more = cache.contents().unwrap();
        // Tip-Adapter-F's views are numbered by epoch, and so the same.
        assert_eq!(held, more, "{method}: nothing was computed again");
        let (second, again) = finish(&cached, &dir);
        for folder in [&first, &second] {
            assert_eq!(content(folder), content(&without), "{method}");
        }
        assert_eq!(results.test, again.test);
        assert_eq!(cache.contents().unwrap(), held);
    }
    // Half of it damaged, the other half lost: the same result, and all of it written again.
    let config = config(&dir, Method::LINEAR);
    let cached = RunConfig { cache_dir: Some(cache.root().to_owned()), ..config.clone() };
    for space in fs::read_dir(cache.root()).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        for (i, file) in fs::read_dir(space.path()).unwrap().flatten().enumerate() {
            let mut bytes = fs::read(file.path()).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle..].fill(0xff);
            if i % 2 == 0 { fs::write(file.path(), bytes).unwrap() } else { fs::remove_file(file.path()).unwrap() }
        }
    }
    let without = content(&finish(&config, &dir).0);
    for _ in 0..2 {
        assert_eq!(content(&finish(&cached, &dir).0), without);
    }
}

#[test]
fn a_cached_image_that_became_unreadable_is_still_told() {
    let dir = workplace();
    let cache_dir = Some(dir.path().join("cache"));
    let config = RunConfig { cache_dir, ..config(&dir, Method::NCM) };
    finish(&config, &dir);
    fs::write(dir.path().join("data/val/red/1.png"), "no image").unwrap();
    let error = run(&config, &dir.path().join("runs"), &mut Silent).unwrap_err().to_string();
    assert!(error.contains("skip_bad_images") && error.contains("1.png"), "{error}");
    let (_, results) = finish(&RunConfig { skip_bad_images: true, ..config }, &dir);
    assert_eq!(results.train_images, 20);
}

#[test]
fn methods_that_read_texts_say_which_and_need_a_text_tower() {
    let dir = workplace();
    let vit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/vit").display().to_string();
    for method in [Method::ZERO_SHOT, Method::ZS_LP, Method::CLAP, Method::TIP_ADAPTER, Method::TIP_ADAPTER_F] {
        let config = RunConfig { backbone: vit.clone(), ..config(&dir, method) };
        let error = run(&config, &dir.path().join("runs"), &mut Silent).unwrap_err().to_string();
        assert!(error.starts_with("method: ") && error.contains("no text tower"), "{error}");
    }
    let ncm = RunConfig { backbone: vit, ..config(&dir, Method::NCM) };
    finish(&ncm, &dir);
    // Other names give other weights.
    let names = vec!["sky".to_owned(), "blood".to_owned()];
    let own = config(&dir, Method::ZERO_SHOT);
    let named = RunConfig { classnames: Some(names), ..own.clone() };
    assert_ne!(bytes(&finish(&own, &dir).0, run_folder::BEST), bytes(&finish(&named, &dir).0, run_folder::BEST));
}

#[test]
fn a_text_head_learns_with_prompts_and_its_task_file_classifies_alike() {
    let dir = workplace();
    for method in [Method::LINEAR, Method::VPT_SHALLOW, Method::VPT_DEEP, Method::VP_PAD, Method::VP_FRAME] {
        let (folder, results) =
            finish(&RunConfig { head: Some(HeadKind::Text), epochs: Some(4), ..config(&dir, method) }, &dir);
        assert_eq!(results.head, Some(HeadKind::Text));
        assert_eq!(results.texts.unwrap().classnames, ["blue", "red"]);
        let saved = fs::read_to_string(folder.join(run_folder::CONFIG)).unwrap();
        assert!(saved.contains("templates = [\"a photo of a {}.\"]") && !saved.contains("classnames"), "{saved}");
        let file = TaskFile::open(&folder).unwrap();
        let shapes: Vec<_> = file.params.iter().rev().take(2).map(|p| (p.name.as_str(), p.shape.len())).collect();
        assert_eq!(shapes, [("head.log_scale", 1), ("head.weight", 2)]);
        let model =
            TaskModel::open(&folder, &TaskOptions { backbone: Some(backbone()), ..Default::default() }).unwrap();
        let data = vpt_data::Dataset::open(dir.path().join("data"), 1).unwrap();
        let tally = crate::eval::evaluate(&model, &data, Split::Test, &mut |_, _| {}).unwrap();
        assert_eq!(tally.metrics().acc1, results.test.classify().unwrap().acc1, "{method}");
        assert_eq!(model.model().backbone().embedding_width(), model.model().head().width);
    }
}

#[test]
fn low_rank_changes_of_either_tower_learn_with_texts_or_a_head() {
    let dir = workplace();
    let vit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/vit").display().to_string();
    let lora = RunConfig { lr: Some(LearningRate::Value(0.02)), epochs: Some(10), ..config(&dir, Method::LORA) };
    let of_rank = lora.clone().with_options(|o| o.lora.lora_rank = Some(3));
    for (config, learned) in [
        // 3 layers of 3 blocks, of width 32 in both towers, times two factors; a head of 2 classes.
        (lora.clone().with_options(|o| o.lora.lora_towers = Some(LoraTowers::Image)), 9 * 2 * 2 * 32),
        (lora.clone().with_options(|o| o.lora.lora_towers = Some(LoraTowers::Text)), 9 * 2 * 2 * 32),
        (of_rank.clone().with_options(|o| o.lora.lora_dropout = Some(0.)), 2 * 9 * 2 * 3 * 32),
        (RunConfig { head: Some(HeadKind::Linear), ..of_rank.clone() }, 9 * 2 * 3 * 32 + 2 * 33),
        (RunConfig { backbone: vit, ..of_rank }, 9 * 2 * 3 * 32 + 2 * 33),
    ] {
        let (folder, results) = finish(&config, &dir);
        assert_eq!(results.trainable_params, learned, "{config:?}");
        assert!(
            results.test.classify().unwrap().acc1 > 0.9,
            "{:?} {:?}",
            config.options.lora.lora_towers,
            results.test
        );
        let again = RunConfig::load(&folder.join(run_folder::CONFIG)).unwrap();
        assert_eq!(content(&finish(&again, &dir).0), content(&folder));
        let file = TaskFile::open(&folder).unwrap();
        assert_eq!(vpt_base::params::count(&file.params), learned);
        let options = TaskOptions { backbone: Some(config.backbone.clone()), ..Default::default() };
        let data = vpt_data::Dataset::open(dir.path().join("data"), 1).unwrap();
        let model = TaskModel::open(&folder, &options).unwrap();
        let tally = crate::eval::evaluate(&model, &data, Split::Test, &mut |_, _| {}).unwrap();
        assert_eq!(tally.metrics().acc1, results.test.classify().unwrap().acc1);
    }
}

#[test]
fn equal_configurations_give_equal_bytes_and_other_seeds_do_not() {
    let dir = workplace();
    // The probe, which may be better, is the same for every seed.
    let (flip, random_resized_crop, keep_better) = (Some(true), Some([0.4, 1.]), Some(false));
    let config = RunConfig { keep_better, flip, random_resized_crop, ..config(&dir, Method::VPT_DEEP) };
    let (first, _) = finish(&config, &dir);
    let (second, _) = finish(&config, &dir);
    assert_ne!(first, second);
    assert_eq!(content(&first), content(&second));
    let saved = RunConfig::load(&first.join(run_folder::CONFIG)).unwrap();
    let (third, _) = finish(&saved, &dir);
    assert_eq!(content(&first), content(&third), "config.toml repeats the run");
    let (other, _) = finish(&RunConfig { seed: 2, ..config }, &dir);
    assert_ne!(bytes(&first, run_folder::BEST), bytes(&other, run_folder::BEST));
}

/// Counts how often all images of a part were gone through before the first step.
#[derive(Default)]
struct Passes(usize);

impl Observer for Passes {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Reading { done, total, .. } = event {
            self.0 += usize::from(done == total);
        }
    }

    fn stop(&self) -> bool {
        false
    }
}

#[test]
fn what_comes_before_the_first_prompt_is_computed_once_and_changes_no_byte() {
    let dir = workplace();
    let deep = config(&dir, Method::VPT_DEEP);
    let base = deep.clone().with_options(|o| o.tokens.prompt_layers = Some(PromptLayers::Last(1)));
    // With a limit on memory, nothing is kept.
    let limited = RunConfig { max_memory: Some(1 << 40), ..base.clone() };
    let flipped = RunConfig { flip: Some(true), ..base.clone() };
    let from_the_first = deep;
    // All three parts are read; then the tokens of training and validation are made, or of validation alone.
    let [kept, again, ..] = [(&base, 5), (&limited, 3), (&flipped, 4), (&from_the_first, 3)].map(|(config, passes)| {
        let mut counted = Passes::default();
        let (folder, _) = finished(run(config, &dir.path().join("runs"), &mut counted));
        assert_eq!(counted.0, passes, "{config:?}");
        content(&folder)
    });
    assert_eq!(kept, again);
    let outcome = run(&base, &dir.path().join("runs"), &mut Cut::after(7)).unwrap();
    let Outcome::Interrupted { folder: Some(folder) } = outcome else { panic!("{outcome:?}") };
    assert_eq!(content(&finished(resume(&folder, &mut Silent)).0), kept, "resumed");
}

#[test]
fn unreadable_images_stop_a_run_or_are_left_out() {
    let dir = workplace();
    let bad = dir.path().join("data/test/red/bad.png");
    fs::write(&bad, "not a picture").unwrap();
    fs::write(dir.path().join("data/train/blue/worse.png"), "").unwrap();
    let config = config(&dir, Method::VP_PAD);
    let message = run(&config, &dir.path().join("runs"), &mut Silent).unwrap_err().to_string();
    assert!(message.contains("2 images cannot be read") && message.contains("bad.png"), "{message}");
    let (folder, results) = finish(&RunConfig { skip_bad_images: true, ..config }, &dir);
    assert_eq!(results.train_images, 20);
    let split = fs::read_to_string(folder.join(run_folder::SPLIT)).unwrap();
    assert!(split.contains("2 unreadable images left out") && !split.contains("bad.png"));
}

/// Runs `config` with a rate that no loss survives: the run says so, with `place` in it, and keeps a checkpoint.
pub(super) fn diverges(config: RunConfig, dir: &TempDir, place: &str) {
    let out = dir.path().join("out");
    let lr = Some(LearningRate::Value(1e38));
    let config = RunConfig { lr, out: Some(out.clone()), warmup: Some(0.), ..config };
    let error = run(&config, &dir.path().join("runs"), &mut Silent).unwrap_err();
    assert!(matches!(&error, Error::Diverged { .. }), "{error}");
    assert!(error.to_string().contains(place), "{error}");
    assert!(out.join(run_folder::CHECKPOINT).is_file());
    assert!(!out.join(run_folder::RESULTS).exists());
}

/// Goes on with a run whose data or settings have changed.
pub(super) fn is_refused_as_another(folder: &Path) {
    let message = resume(folder, &mut Silent).unwrap_err().to_string();
    assert!(message.contains("another configuration, data set or backbone"), "{message}");
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_state() {
    let dir = workplace();
    diverges(config(&dir, Method::VPT_SHALLOW), &dir, "not finite in step 2 (epoch 1)");
}

#[test]
fn patience_ends_a_run_early_and_last_takes_the_last_epoch() {
    let dir = workplace();
    // Steps too small to change a prediction: the first epoch stays the best.
    let lr = Some(LearningRate::Value(1e-30));
    let (head_lr, keep_better) = (Some(1e-30), Some(false));
    let still = RunConfig { lr, head_lr, keep_better, epochs: Some(50), ..config(&dir, Method::VPT_SHALLOW) };
    let (folder, results) = finish(&RunConfig { patience: Some(2), ..still.clone() }, &dir);
    assert_eq!(results.best_epoch, 1);
    assert_eq!(fs::read_to_string(folder.join(run_folder::METRICS)).unwrap().lines().count(), 3);
    let last = RunConfig { select: Some(Select::Last), epochs: Some(4), ..still };
    let (folder, results) = finish(&last, &dir);
    assert_eq!(results.best_epoch, 4);
    let (best, last) = (TaskFile::open(&folder.join(run_folder::BEST)), TaskFile::open(&folder.join(run_folder::LAST)));
    assert_eq!(best.unwrap().params, last.unwrap().params);
}

#[test]
fn an_automatic_learning_rate_is_chosen_once_and_written_down() {
    let dir = workplace();
    let out = dir.path().join("out");
    let config = RunConfig { lr: Some(LearningRate::Auto), out: Some(out.clone()), ..config(&dir, Method::LINEAR) };
    let results = finish(&config, &dir).1;
    let search: serde_json::Value = serde_json::from_slice(&bytes(&out, run_folder::LR_SEARCH)).unwrap();
    let tried: Vec<f64> = search["trials"].as_array().unwrap().iter().map(|t| t["lr"].as_f64().unwrap()).collect();
    assert!(tried.len() > 1 && tried.contains(&search["chosen"].as_f64().unwrap()), "{search}");
    assert_eq!(results.lr, search["chosen"].as_f64());
}

#[test]
fn a_search_of_learning_rates_halves_them_within_the_steps_of_a_training_wherever_it_is_killed() {
    let dir = workplace();
    // 20 images, 4 steps an epoch: trials of 8 steps, whose looks are in the middle of epochs, too. A moving average is a copy more.
    for (method, ema) in [(Method::VPT_DEEP, None), (Method::VPT_SHALLOW, Some(0.9)), (Method::LINEAR, None)] {
        let auto = RunConfig {
            lr: Some(LearningRate::Auto),
            epochs: Some(8),
            ema: ema.filter(|_| method != Method::LINEAR),
            ..config(&dir, method)
        };
        let (whole, results) = finish(&auto, &dir);
        let trials = results.lr_search.unwrap();
        let looks: Vec<(u64, usize)> =
            [2, 4, 8].map(|steps| (steps, trials.iter().filter(|trial| trial.steps == Some(steps)).count())).into();
        assert_eq!(looks, [(2, 8), (4, 4), (8, 2)], "{method}");
        assert_eq!(results.lr_search_share, Some(1.));
        let finalists = trials.iter().filter(|trial| trial.steps == Some(8));
        let best = finalists.map(|trial| (trial.val.as_ref().unwrap().loss().unwrap(), trial.lr));
        let best = best.reduce(|best, other| if other.0 < best.0 { other } else { best }).unwrap();
        assert_eq!(results.lr, Some(best.1), "{method}");
        // The run itself knows nothing of the trials.
        let lr = Some(LearningRate::Value(best.1));
        assert_eq!(content(&finish(&RunConfig { lr, ..auto.clone() }, &dir).0), content(&whole), "{method}");
        // A trial of n steps that is gone on with looks where one of n steps looks that is not.
        let first = |steps: u64| trials.iter().find(|trial| trial.steps == Some(steps)).unwrap();
        let last = first(8);
        let trained = RunConfig { lr: Some(LearningRate::Value(last.lr)), epochs: Some(2), ..auto.clone() };
        let select = Some(Select::Last);
        let alone = finish(&RunConfig { select, keep_better: None, ..trained }, &dir).1;
        if alone.probe.as_ref().is_none_or(|probe| !probe.kept) {
            assert_eq!(last.val, alone.val, "{method}");
        }
        for (stop_after, killed_after) in [(4, 8), (9, 7), (25, 13), (40, 31), (60, 12)] {
            let outcome = run(&auto, &dir.path().join("runs"), &mut Cut::after(stop_after)).unwrap();
            let Outcome::Interrupted { folder: Some(folder) } = outcome else { panic!("{stop_after}: {outcome:?}") };
            let copied = dir.path().join(format!("copy-{method}-{stop_after}-{killed_after}"));
            finished(resume(&folder, &mut Cut::copying(killed_after, &copied)));
            finished(resume(&copied, &mut Silent));
            for folder in [&folder, &copied] {
                assert_eq!(content(folder), content(&whole), "{method}: {stop_after}, {killed_after}");
                assert_eq!(bytes(folder, run_folder::LR_SEARCH), bytes(&whole, run_folder::LR_SEARCH));
                assert!((1..9).all(|i| !folder.join(format!("lr_search-{i}.safetensors")).exists()));
            }
        }
    }
}

#[test]
fn folds_choose_the_epochs_where_there_is_no_val_wherever_they_are_killed() {
    let dir = workplace();
    fs::remove_dir_all(dir.path().join("data/val")).unwrap();
    // Rates at which the folds do not get better to the end.
    let rates = |config: RunConfig| RunConfig {
        lr: Some(LearningRate::Value(0.5)),
        head_lr: Some(0.5).filter(|_| config.method != Method::LINEAR),
        epochs: Some(5),
        ..config
    };
    for method in [Method::VPT_DEEP, Method::LINEAR] {
        let folds = RunConfig { folds: Some(4), keep_better: None, ..rates(config(&dir, method)) };
        let (whole, results) = finish(&folds, &dir);
        let found = results.folds.as_ref().unwrap();
        assert_eq!((found.folds, found.of, found.curve.len()), (4, 5, 5), "{method}");
        let rank = |epoch: usize| found.curve[epoch].rank();
        assert!((0..5).all(|epoch| rank(epoch) <= rank(found.epochs - 1)), "{method}: {found:?}");
        assert_eq!(found.val, found.curve[found.epochs - 1]);
        // Every training image is learned from, so many epochs of the schedule of all.
        assert_eq!((results.train_images, &results.val), (20, &None));
        assert_eq!(content(&whole).2.len(), found.epochs);
        let split: serde_json::Value = serde_json::from_slice(&bytes(&whole, run_folder::SPLIT)).unwrap();
        assert_eq!((split["train"].as_array().unwrap().len(), split["val"].as_array().unwrap().len()), (20, 0));
        if method == Method::VPT_DEEP {
            let probe = results.probe.as_ref().unwrap();
            let of_folds = found.probe.as_ref().unwrap();
            let better = of_folds.rank() > found.val.rank();
            assert_eq!((probe.better, probe.kept), (better, better));
            assert!(probe.l2.is_some());
        }
        for stop_after in [2, 9, 23, 40, 61, 80] {
            let outcome = run(&folds, &dir.path().join("runs"), &mut Cut::after(stop_after)).unwrap();
            let Outcome::Interrupted { folder: Some(folder) } = outcome else { break };
            let (_, again) = finished(resume(&folder, &mut Silent));
            assert_eq!(content(&folder), content(&whole), "{method}: stopped after {stop_after} batches");
            assert_eq!((&again.folds, &again.probe), (&results.folds, &results.probe));
        }
    }
}

#[test]
fn folds_are_for_data_without_validation_images() {
    let dir = workplace();
    let message = |config: &RunConfig| run(config, &dir.path().join("runs"), &mut Silent).unwrap_err().to_string();
    let folds = |folds| RunConfig { folds: Some(folds), ..config(&dir, Method::VPT_DEEP) };
    assert_eq!(message(&folds(3)), "folds: data has validation images, which choose in their place");
    fs::remove_dir_all(dir.path().join("data/val")).unwrap();
    assert_eq!(message(&folds(1)), "folds: fewer than 2");
    assert!(message(&folds(21)).starts_with("folds: 21 for 20 of the 20 training images of data"));
    let auto = RunConfig { lr: Some(LearningRate::Auto), ..folds(3) };
    assert_eq!(message(&auto), "lr: needs validation images, and data has none");
    let patient = RunConfig { patience: Some(2), ..folds(3) };
    assert_eq!(message(&patient), "patience: needs validation images, and data has none");
    let few = RunConfig { shots: Some(2), ..folds(2) };
    let (_, results) = finish(&few, &dir);
    assert_eq!((results.train_images, results.folds.unwrap().folds), (4, 2));
}

#[test]
fn a_draw_without_validation_images_goes_on_by_the_configuration_that_it_wrote() {
    let dir = workplace();
    let data = Dataset::open(dir.path().join("data"), 1).unwrap();
    let path = dir.path().join("draw.json");
    FewShot { val: BTreeMap::new(), ..FewShot::draw(&data, 4, 1).unwrap() }.write(&path).unwrap();
    let blind = RunConfig { draw: Some(path.clone()), ..config(&dir, Method::VPT_DEEP) };
    let (whole, results) = finish(&blind, &dir);
    let probe = results.probe.unwrap();
    assert!(results.val.is_none() && !probe.better && !probe.kept, "{probe:?}");
    for stop_after in [1, 2, 3, 5] {
        let outcome = run(&blind, &dir.path().join("runs"), &mut Cut::after(stop_after)).unwrap();
        let Outcome::Interrupted { folder: Some(folder) } = outcome else { continue };
        finished(resume(&folder, &mut Silent));
        assert_eq!(content(&folder), content(&whole), "stopped after {stop_after} batches");
    }
    let again = RunConfig::load(&whole.join(run_folder::CONFIG)).unwrap();
    assert_eq!(again.keep_better, Some(true));
    assert_eq!(content(&finish(&again, &dir).0), content(&whole));
    // Whoever asks for it asks for what cannot be.
    let asked = RunConfig { keep_better: Some(true), ..blind };
    let message = run(&asked, &dir.path().join("runs"), &mut Silent).unwrap_err().to_string();
    assert_eq!(message, format!("keep_better: needs validation images, and the draw {} holds none", path.display()));
}

#[test]
fn few_shots_are_drawn_and_a_full_folder_is_refused() {
    let dir = workplace();
    let out = dir.path().join("out");
    let (shots, keep_better) = (Some(2), Some(false));
    let config = RunConfig { shots, keep_better, out: Some(out.clone()), ..config(&dir, Method::VPT_DEEP) };
    let (folder, results) = finish(&config, &dir);
    assert_eq!((folder.as_path(), results.train_images, results.best_epoch), (out.as_path(), 4, 3));
    let message = run(&config, &dir.path().join("runs"), &mut Silent).unwrap_err().to_string();
    assert!(message.contains("is not empty"), "{message}");
}
