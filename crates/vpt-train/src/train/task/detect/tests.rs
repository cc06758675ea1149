//! Whole runs of detectors on a small random backbone and a folder of drawn shapes.

#![allow(clippy::float_cmp)] // equal means equal here

use std::{fs, path::Path};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    config::{LearningRate, RunConfig, Select, Task, TileCount},
    eval::evaluate_boxes,
    train::{
        Event, LrTrial, Observer, Silent, resume, run, run_folder,
        task::dense::tests::{
            a_better_head_alone_is_kept, config as dense_config, control_is_linear, drawn, folds_choose_the_epochs,
            leaves_a_whole_folder, resumes_to_the_same_bytes, stopped, survives_kills, weights_learn,
        },
        tests::{Cut, backbone, bytes, content, diverges, finish, finished, is_refused_as_another},
    },
};
use vpt_data::{
    Split,
    boxes::{BoxDataset, Fit},
    shapes::{ShapesTask, write_coco},
};
use vpt_model::{
    head::HeadKind,
    methods::Method,
    metrics::{
        Scores,
        coco::{Detection, results_json},
    },
    model::{DetectTask, TaskOptions, task_file::TaskFile},
    optim::OptimizerKind,
    prompt::tokens::PromptLayers,
};

fn workplace() -> TempDir {
    drawn(ShapesTask::Detect, write_coco)
}

/// Changes the annotations of a part.
fn edit(dir: &TempDir, split: Split, change: impl FnOnce(&mut Value)) {
    let path = dir.path().join(format!("data/annotations/instances_{split}.json"));
    let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(&path, serde_json::to_vec(&json).unwrap()).unwrap();
}

/// Puts a strip below every image, so that none is square.
fn stretch_downwards(dir: &TempDir) {
    for split in Split::ALL {
        edit(dir, split, |json| {
            for image in json["images"].as_array_mut().unwrap() {
                let path = dir.path().join("data").join(split.name()).join(image["file_name"].as_str().unwrap());
                let drawn = image::open(&path).unwrap().to_rgb8();
                let (width, height) = drawn.dimensions();
                let mut taller = image::RgbImage::from_pixel(width, 2 * height, image::Rgb([90, 120, 60]));
                image::imageops::replace(&mut taller, &drawn, 0, 0);
                taller.save(&path).unwrap();
                image["height"] = (2 * height).into();
            }
        });
    }
}

fn config(dir: &TempDir, method: Method) -> RunConfig {
    dense_config(dir, Task::Auto, method)
}

fn method(names: &str) -> Method {
    names.parse().unwrap()
}

fn open(folder: &Path) -> DetectTask {
    let options = TaskOptions { backbone: Some(backbone()), threads: 2, ..TaskOptions::default() };
    DetectTask::open(folder, &options).unwrap()
}

#[test]
fn a_run_learns_and_leaves_a_whole_folder_whose_task_detects_as_it_did() {
    let dir = workplace();
    let config = config(&dir, Method::VPT_DEEP);
    let folder = dir.path().join("runs/detect/data-vpt-deep-1");
    let own = [run_folder::VAL_DETECTIONS, run_folder::TEST_DETECTIONS, run_folder::PR_CURVE, run_folder::F1_CURVE];
    let results = leaves_a_whole_folder(&config, &dir, &own);
    assert_eq!(crate::train::Results::load(&folder.join(run_folder::RESULTS)).unwrap(), results);
    assert_eq!((results.task, results.classes), (Task::Detect, 8));

    let (_, _, lines) = content(&folder);
    let losses: Vec<f64> = lines.iter().map(|line| line["train_loss"].as_f64().unwrap()).collect();
    assert!(losses[9] < 0.8 * losses[0], "{losses:?}");
    let stages: Vec<&str> = lines.iter().map(|line| line["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, [["head"; 7].as_slice(), &["prompts"; 3]].concat());
    let steps: Vec<u64> = lines.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [3, 6, 9, 12, 15, 18, 21, 24, 27, 30]);

    let head = results.head_only.as_ref().unwrap();
    assert!((1..=7).contains(&head.best_epoch) && (8..=10).contains(&results.best_epoch));
    let score = |epoch: usize| {
        let val = &lines[epoch - 1]["val"];
        (val["AP"].as_f64().unwrap(), val["AP50"].as_f64().unwrap())
    };
    for (chosen, stage) in [(head.best_epoch, 1..8), (results.best_epoch, 8..11)] {
        assert!(stage.clone().all(|e| score(e) <= score(chosen)), "{lines:?}");
        assert!(stage.take_while(|&e| e < chosen).all(|e| score(e) < score(chosen)), "{lines:?}");
    }
    let val = |epoch: usize| serde_json::from_value::<Scores>(lines[epoch - 1]["val"].clone()).unwrap();
    assert_eq!((&results.val, &head.val), (&Some(val(results.best_epoch)), &Some(val(head.best_epoch))));

    let task = open(&folder);
    assert_eq!(task.meta().metrics.test, Some(results.test));
    assert_eq!(task.meta().metrics.epoch, results.best_epoch);
    let data = BoxDataset::open(&config.data, 1).unwrap();
    for (split, file) in [(Split::Val, run_folder::VAL_DETECTIONS), (Split::Test, run_folder::TEST_DETECTIONS)] {
        let images = data.part(split);
        let found = task.detect(images.to_vec(), &mut |_, _| {}).unwrap();
        let detections: Vec<Detection> = images
            .iter()
            .zip(&found)
            .flat_map(|(image, found)| {
                found.iter().map(|f| {
                    let category = data.categories[f.class].id;
                    Detection { image: image.id, category, rect: f.rect, score: f.score }
                })
            })
            .collect();
        assert!(!detections.is_empty());
        assert!(results_json(&detections).unwrap() == bytes(&folder, file), "{split}");
    }
}

#[test]
fn weights_learn_beside_a_head_and_their_task_detects_as_the_run_did() {
    let dir = workplace();
    let data = BoxDataset::open(&config(&dir, Method::BIAS).data, 1).unwrap();
    weights_learn(
        |method| config(&dir, method),
        &dir,
        |folder| {
            Scores::Detect(evaluate_boxes(&open(folder), &data, Split::Test, &mut |_, _| {}).unwrap().eval.metrics)
        },
    );
}

#[test]
fn tiles_are_learned_from_and_looked_at_by_the_task() {
    let dir = workplace();
    let config = RunConfig {
        tiles: Some(TileCount::Value(2)),
        epochs: Some(2),
        head_epochs: Some(1),
        ..config(&dir, Method::VPT_DEEP)
    };
    let (folder, results) = finish(&config, &dir);
    assert_eq!((results.train_images, open(&folder).tiles()), (15, 2));
    let (_, _, lines) = content(&folder);
    assert!(lines[0]["step"].as_u64().unwrap() > 3, "an epoch goes through the views, not the images");
    let data = BoxDataset::open(&config.data, 1).unwrap();
    for (split, scores) in [(Split::Val, results.val.as_ref().unwrap()), (Split::Test, &results.test)] {
        let found = evaluate_boxes(&open(&folder), &data, split, &mut |_, _| {}).unwrap();
        assert_eq!(Some(&found.eval.metrics), scores.detect(), "{split}");
        let file = if split == Split::Val { run_folder::VAL_DETECTIONS } else { run_folder::TEST_DETECTIONS };
        assert!(results_json(&found.detections).unwrap() == bytes(&folder, file), "{split}");
    }
    // What the training images choose is as if it had been said, from the configuration to the last byte, and where a run goes on.
    let auto = RunConfig { tiles: Some(TileCount::Auto), ..config.clone() };
    let again = stopped(&auto, &dir, 3);
    assert!(content(&finish(&auto, &dir).0) == content(&folder));
    assert!(content(&finished(resume(&again, &mut Silent)).0) == content(&folder));
    assert!(bytes(&again, run_folder::CONFIG) == bytes(&folder, run_folder::CONFIG));
    // A plain run is what it was, and has no word of tiles in its configuration.
    let plain = RunConfig { tiles: Some(TileCount::Value(1)), ..config.clone() };
    let (without, _) = finish(&RunConfig { tiles: None, ..plain.clone() }, &dir);
    let (one, _) = finish(&plain, &dir);
    assert!(bytes(&one, run_folder::BEST) == bytes(&without, run_folder::BEST));
    assert!(!String::from_utf8(bytes(&without, run_folder::CONFIG)).unwrap().contains("tiles"));
    let refused = RunConfig { tiles: Some(TileCount::Value(65)), ..config };
    let message = run(&refused, &dir.path().join("runs"), &mut Silent).unwrap_err().to_string();
    assert_eq!(message, "tiles: 65 is not between 1 and 64");
}

#[test]
fn a_run_stopped_anywhere_and_resumed_ends_with_the_same_bytes() {
    let square = workplace();
    let tall = workplace();
    stretch_downwards(&tall);
    let still = Some([1.; 2]);
    let cached = RunConfig { scale_jitter: still, ..config(&square, Method::VPT_DEEP) };
    let cases = vec![
        // Batches and looks at features: 3, then 2 epochs of 3 steps and a validation; 2 more, without looks; 3 at the end.
        ("cached, with flip", &square, cached.clone(), (1..22).collect::<Vec<_>>()),
        (
            "in tiles",
            &square,
            RunConfig {
                tiles: Some(TileCount::Value(2)),
                epochs: Some(2),
                head_epochs: Some(1),
                batch_size: Some(40),
                ..cached.clone()
            },
            vec![1, 3, 5, 7, 9],
        ),
        (
            "letter-boxed, no flip, last epoch",
            &tall,
            RunConfig {
                fit: Some(Fit::Letterbox),
                flip: Some(false),
                scale_jitter: still,
                select: Some(Select::Last),
                ..config(&tall, Method::VPT_DEEP)
            }
            .with_options(|o| o.tokens.prompt_layers = Some(PromptLayers::Last(2))),
            vec![3, 9, 11, 14],
        ),
        (
            "from images",
            &tall,
            RunConfig {
                scale_jitter: Some([0.7, 1.4]),
                box_crop: true,
                mosaic: Some(0.5),
                micro_batch: Some(2),
                ..config(&tall, Method::VPT_DEEP)
            },
            vec![5, 12, 15, 17],
        ),
        (
            "random views",
            &tall,
            RunConfig {
                scale_jitter: Some([0.7, 1.4]),
                mosaic: Some(0.5),
                cached_views: Some(3),
                ..config(&tall, Method::VPT_DEEP)
            },
            // Three looks at features and one at validation, three steps and a validation each epoch.
            vec![2, 6, 12, 14, 19, 21],
        ),
        (
            "told by names",
            &square,
            RunConfig { open_vocabulary: true, ..config(&square, Method::VPT_SHALLOW) },
            vec![4, 13, 16],
        ),
        ("linear", &square, config(&square, Method::LINEAR), vec![2, 6, 12, 20]),
        (
            "linear, from images",
            &square,
            RunConfig { scale_jitter: Some([0.8, 1.2]), ..config(&square, Method::LINEAR) },
            vec![2, 7, 15],
        ),
        // Steps and looks: 3 at features, then 2 epochs of 3 steps and a validation, 2 more, 3 at the end.
        ("biases", &square, config(&square, Method::BIAS), vec![2, 5, 11, 13, 16, 18, 21]),
        ("prompts and low-rank changes", &tall, config(&tall, method("vpt-deep,lora")), vec![3, 12, 15]),
        (
            "all weights, random views for the head",
            &tall,
            RunConfig {
                cached_views: Some(3),
                fit: Some(Fit::Letterbox),
                micro_batch: Some(2),
                ..config(&tall, Method::FULL)
            },
            vec![3, 12, 16],
        ),
        (
            "norms, no epoch for the head alone",
            &square,
            RunConfig { head_epochs: Some(0), ..config(&square, Method::NORM) },
            vec![4, 8],
        ),
        (
            "sgd, no epoch for the head alone",
            &square,
            RunConfig {
                optimizer: Some(OptimizerKind::Sgd),
                lr: Some(LearningRate::Value(0.05)),
                head_epochs: Some(0),
                ..cached.clone()
            },
            vec![4, 8],
        ),
    ];
    resumes_to_the_same_bytes(cases, &[run_folder::VAL_DETECTIONS, run_folder::TEST_DETECTIONS]);
}

#[test]
fn folds_choose_the_epochs_where_there_is_no_val() {
    let dir = workplace();
    let val = dir.path().join("data/annotations/instances_val.json");
    folds_choose_the_epochs(|method| config(&dir, method), &dir, &val);
}

#[test]
fn a_head_that_is_better_without_prompts_is_kept_alone() {
    let dir = workplace();
    for method in [Method::VPT_DEEP, Method::BIAS] {
        a_better_head_alone_is_kept(&config(&dir, method), &dir);
    }
}

/// Epochs of each stage, and the best of each, of the run in `folder`.
fn stages(folder: &Path) -> Vec<(String, u64)> {
    let lines = content(folder).2.into_iter();
    lines.map(|line| (line["stage"].as_str().unwrap().to_owned(), line["epoch"].as_u64().unwrap())).collect()
}

#[test]
fn patience_ends_the_stage_that_is_running() {
    let dir = workplace();
    // Steps too small to change what is found: the first epoch of a stage stays its best.
    let still = |method| RunConfig {
        lr: Some(LearningRate::Value(1e-30)),
        head_lr: (method != Method::LINEAR).then_some(1e-30),
        patience: Some(2),
        epochs: Some(9),
        head_epochs: (method != Method::LINEAR).then_some(5),
        ..config(&dir, method)
    };
    let deep = still(Method::VPT_DEEP);
    let (whole, results) = finish(&deep, &dir);
    let expected = ["head", "head", "head", "prompts", "prompts", "prompts"].map(str::to_owned);
    assert!(stages(&whole).into_iter().eq(expected.into_iter().zip(1..)), "{:?}", stages(&whole));
    assert_eq!((results.head_only.unwrap().best_epoch, results.best_epoch), (1, 4));
    // Steps, features and looks: within the head's stage, at its early end, at the beginning of the next and within it.
    for stop_after in [4, 13, 14, 15, 16, 17, 18, 20, 24, 29] {
        let folder = stopped(&deep, &dir, stop_after);
        finished(resume(&folder, &mut Silent));
        assert!(content(&folder) == content(&whole), "stopped after {stop_after} batches");
    }
    let (linear, results) = finish(&still(Method::LINEAR), &dir);
    assert_eq!((stages(&linear).len(), results.best_epoch), (3, 1));
}

#[test]
fn an_automatic_learning_rate_is_chosen_by_validation_wherever_the_search_is_cut_off() {
    let dir = workplace();
    for method in [Method::VPT_DEEP, Method::LINEAR] {
        let auto = RunConfig { lr: Some(LearningRate::Auto), ..config(&dir, method) };
        let (whole, results) = finish(&auto, &dir);
        let trials = results.lr_search.unwrap();
        // The best at the last look, of equals the lower.
        let last = trials.iter().map(|trial| trial.steps).max().unwrap();
        let rank = |trial: &LrTrial| trial.val.as_ref().map(Scores::rank);
        let finalists = trials.iter().rev().filter(|trial| trial.steps == last);
        let best = finalists.max_by(|a, b| rank(a).partial_cmp(&rank(b)).unwrap()).unwrap();
        assert_eq!(results.lr, Some(best.lr));
        assert!(results.lr_search_share.unwrap() <= 1.);
        assert!((0..9).all(|i| !whole.join(format!("lr_search-{i}.safetensors")).exists()));
        let search: Value = serde_json::from_slice(&bytes(&whole, run_folder::LR_SEARCH)).unwrap();
        assert_eq!(search["trials"], serde_json::to_value(&trials).unwrap());
        // The run itself knows nothing of the trials.
        let lr = Some(LearningRate::Value(best.lr));
        assert!(content(&finish(&RunConfig { lr, ..auto.clone() }, &dir).0) == content(&whole), "{method}");
        for (stop_after, killed_after) in [(3, 2), (9, 4), (14, 3), (17, 9), (22, 12), (31, 5)] {
            let folder = stopped(&auto, &dir, stop_after);
            let copied = dir.path().join(format!("copy-{method}-{stop_after}-{killed_after}"));
            finished(resume(&folder, &mut Cut::copying(killed_after, &copied)));
            finished(resume(&copied, &mut Silent));
            for folder in [&folder, &copied] {
                assert!(content(folder) == content(&whole), "{method}: {stop_after}, {killed_after}");
                assert_eq!(bytes(folder, run_folder::LR_SEARCH), bytes(&whole, run_folder::LR_SEARCH));
            }
        }
    }
}

#[test]
fn a_killed_run_goes_on_from_its_last_checkpoint() {
    let dir = workplace();
    for flip in [true, false] {
        let jitter = if flip { [1.; 2] } else { [0.8, 1.2] };
        let config = RunConfig { flip: Some(flip), scale_jitter: Some(jitter), ..config(&dir, Method::VPT_DEEP) };
        // In the same stage, in the next, or while it looks at test.
        survives_kills(&config, &dir, &[(2, 1), (5, 4), (6, 11), (13, 5), (14, 7)]);
    }
    survives_kills(&config(&dir, method("vpt-deep,bias")), &dir, &[(2, 1), (5, 4), (6, 11), (13, 5), (14, 7)]);
}

#[test]
fn what_is_there_before_the_prompts_have_learned_is_a_task_without_prompts() {
    let dir = workplace();
    // Features, an epoch with its validation, and a step.
    let folder = stopped(&config(&dir, Method::VPT_DEEP), &dir, 8);
    let task = open(&folder);
    assert_eq!((task.meta().parts.len(), task.meta().metrics.epoch), (0, 1));
    assert_eq!(task.meta().metrics.test, None);
    let (folder, _) = finished(resume(&folder, &mut Silent));
    assert!(open(&folder).meta().parts.tokens().is_some());
}

#[test]
fn equal_configurations_give_equal_bytes_and_other_seeds_do_not() {
    let dir = workplace();
    let config = RunConfig { mosaic: Some(0.5), box_crop: true, ..config(&dir, Method::VPT_DEEP) };
    let (first, _) = finish(&config, &dir);
    let saved = RunConfig::load(&first.join(run_folder::CONFIG)).unwrap();
    let (second, _) = finish(&saved, &dir);
    assert_ne!(first, second);
    assert!(content(&first) == content(&second), "config.toml repeats the run");
    let (other, _) = finish(&RunConfig { seed: 2, ..config.clone() }, &dir);
    assert_ne!(bytes(&first, run_folder::BEST), bytes(&other, run_folder::BEST));
    let (plain, _) = finish(&RunConfig { mosaic: None, box_crop: false, ..config }, &dir);
    let lines = |folder: &Path| content(folder).2;
    assert_eq!(lines(&first)[..2], lines(&plain)[..2], "the head alone learns from images as they are");
    assert_ne!(lines(&first)[2..], lines(&plain)[2..]);
}

#[test]
fn the_control_is_what_method_linear_learns() {
    let dir = workplace();
    let linear = config(&dir, Method::LINEAR);
    control_is_linear(&config(&dir, Method::VPT_DEEP), &linear, &dir);
    let plain = content(&dir.path().join("runs/detect/data-linear-1")).2;
    // Zooms that the prompted run has while its prompts learn are for `linear` from the first epoch on.
    let zoomed = RunConfig { epochs: Some(2), scale_jitter: Some([0.8, 1.25]), ..linear };
    assert_ne!(content(&finish(&zoomed, &dir).0).2, plain);
}

#[test]
fn a_head_alone_that_sees_random_views_is_what_method_linear_makes_of_them() {
    let dir = workplace();
    let views = |method| {
        let scale_jitter = Some([0.8, 1.25]);
        RunConfig { scale_jitter, cached_views: Some(3), ..config(&dir, method) }
    };
    control_is_linear(&views(Method::VPT_DEEP), &views(Method::LINEAR), &dir);
    let seen = content(&dir.path().join("runs/detect/data-linear-1")).2;
    let fresh = RunConfig { epochs: Some(2), cached_views: Some(0), ..views(Method::LINEAR) };
    assert_ne!(content(&finish(&fresh, &dir).0).2, seen);
    let more = RunConfig { epochs: Some(2), cached_views: Some(4), ..views(Method::LINEAR) };
    assert_ne!(content(&finish(&more, &dir).0).2, seen);
}

/// Notes when which part is looked at.
#[derive(Default)]
struct Looks {
    epochs: usize,
    /// Epochs done when test was looked at.
    test_after: Vec<usize>,
}

impl Observer for Looks {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Epoch { .. } => self.epochs += 1,
            Event::Features { split: Split::Test, .. } | Event::Evaluating { split: Split::Test, .. } => {
                self.test_after.push(self.epochs);
            }
            _ => {}
        }
    }
}

#[test]
fn selecting_never_looks_at_test() {
    let dir = workplace();
    let config = config(&dir, Method::VPT_DEEP);
    let mut looks = Looks::default();
    let (folder, results) = finished(run(&config, &dir.path().join("runs"), &mut looks));
    // Once with prompts, once for the control.
    assert_eq!(looks.test_after, [4, 4]);
    let before = content(&folder);
    let found = bytes(&folder, run_folder::TEST_DETECTIONS);
    edit(&dir, Split::Test, |json| {
        for annotation in json["annotations"].as_array_mut().unwrap() {
            annotation["category_id"] = (annotation["category_id"].as_u64().unwrap() % 8 + 1).into();
        }
    });
    let (again, other) = finish(&config, &dir);
    let task = |folder: &Path, name| TaskFile::open(&folder.join(name)).unwrap();
    let (first, second) = (task(&folder, run_folder::BEST), task(&again, run_folder::BEST));
    assert_eq!(first.params, second.params);
    assert_eq!((results.best_epoch, &results.val), (other.best_epoch, &other.val));
    let epoch = |results: &crate::train::Results| results.head_only.as_ref().unwrap().best_epoch;
    assert_eq!(epoch(&results), epoch(&other));
    let after = content(&again);
    assert_eq!((before.1, before.2), (after.1, after.2), "the last epoch's file and the metrics");
    assert_eq!(found, bytes(&again, run_folder::TEST_DETECTIONS));
}

#[test]
fn a_checkpoint_of_other_boxes_is_refused() {
    let dir = workplace();
    let folder = stopped(&config(&dir, Method::VPT_DEEP), &dir, 6);
    edit(&dir, Split::Train, |json| {
        json["annotations"].as_array_mut().unwrap().pop();
    });
    is_refused_as_another(&folder);
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_state() {
    let dir = workplace();
    diverges(config(&dir, Method::LINEAR), &dir, "not finite in step 2 of epoch 1");
}

#[test]
fn what_makes_no_sense_for_boxes_is_refused_before_a_folder_is_made() {
    let dir = workplace();
    let deep = config(&dir, Method::VPT_DEEP);
    let linear = config(&dir, Method::LINEAR);
    let vit = backbone().replace("/clip", "/vit");
    let cases = [
        (RunConfig { head_epochs: Some(4), ..deep.clone() }, "head_epochs: 4 of 4"),
        (RunConfig { head_epochs: Some(usize::MAX), ..deep.clone() }, "head_epochs: "),
        (RunConfig { head_epochs: Some(2), ..linear }, "head_epochs: 2 of 4"),
        (RunConfig { shots: Some(0), ..deep.clone() }, "shots: "),
        (RunConfig { random_resized_crop: Some([0.5, 1.]), ..deep.clone() }, "random_resized_crop: "),
        (RunConfig { head: Some(HeadKind::Cosine), ..deep.clone() }, "head: cosine"),
        (RunConfig { ema: Some(1.), ..deep.clone() }, "ema: 1"),
        (RunConfig { mosaic: Some(1.5), ..deep.clone() }, "mosaic"),
        (RunConfig { scale_jitter: Some([1.5, 0.5]), ..deep.clone() }, "scale_jitter"),
        (RunConfig { backbone: vit, open_vocabulary: true, ..deep.clone() }, "text"),
        (deep.clone().with_options(|o| o.tokens.prompt_layers = Some(PromptLayers::Last(4))), "prompt_layers"),
    ];
    let pixels = [Method::VP_PAD, Method::VP_PATCH, Method::VP_FULL, Method::VP_FRAME];
    let pixels = pixels.map(|method| (RunConfig { head_epochs: None, ..config(&dir, method) }, "method: vp-"));
    for (config, part) in cases.into_iter().chain(pixels) {
        let message = run(&config, &dir.path().join("runs"), &mut Silent).unwrap_err().to_string();
        assert!(message.contains(part) && !message.contains('\n'), "{part}: {message}");
    }
    let refused = || run(&deep, &dir.path().join("runs"), &mut Silent).unwrap_err().to_string();
    edit(&dir, Split::Train, |json| {
        json["annotations"].as_array_mut().unwrap().iter_mut().for_each(|object| object["iscrowd"] = 1.into());
    });
    assert_eq!(refused(), "data set data: no training image has a box to learn from", "crowds alone");
    edit(&dir, Split::Train, |json| json["annotations"] = Value::Array(Vec::new()));
    let message = refused();
    let expected = "train: none of the 15 images of train has an object; there is nothing to learn from";
    assert!(message.ends_with(expected), "{message}");
    assert!(!dir.path().join("runs").exists());
}
