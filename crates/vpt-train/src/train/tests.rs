//! Whole runs on a small random backbone and a folder of small pictures.

#![allow(clippy::float_cmp)] // equal means equal here

mod computed_once;
mod multilabel;
mod ranks;
mod resume;
mod selection;

use std::{
    fs,
    path::{Path, PathBuf},
};

use rand::Rng;
use tempfile::TempDir;

use super::*;
use crate::config::LearningRate;
use vpt_base::{Error, random::stream};
use vpt_data::{Dataset, Split};
use vpt_model::{
    head::HeadKind,
    methods::Method,
    model::{TaskModel, TaskOptions, task_file::TaskFile},
    optim::OptimizerKind,
    prompt::weights::LoraTowers,
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
