//! Runs that are stopped or killed and go on.

use super::*;
use vpt_model::head::LabelMap;

#[test]
fn a_run_stopped_anywhere_and_resumed_ends_with_the_same_bytes() {
    let dir = workplace();
    // 3 epochs of 4 steps and a validation batch, and a test batch at the end: 16 batches.
    let (everywhere, somewhere) = (vec![1, 3, 4, 5, 8, 10, 15, 16], vec![2, 5, 16]);
    for (method, optimizer, stops) in [
        (Method::VPT_DEEP, OptimizerKind::Adamw, everywhere),
        (Method::VP_PATCH, OptimizerKind::Sgd, somewhere.clone()),
        (Method::LINEAR, OptimizerKind::Adamw, somewhere.clone()),
        (Method::CLAP, OptimizerKind::Sgd, somewhere.clone()),
        (Method::TIP_ADAPTER_F, OptimizerKind::Adamw, somewhere.clone()),
        (Method::COOP, OptimizerKind::Sgd, somewhere.clone()),
        (Method::COCOOP, OptimizerKind::Adamw, somewhere.clone()),
        (Method::IVLP, OptimizerKind::Sgd, somewhere.clone()),
        (Method::MAPLE, OptimizerKind::Sgd, somewhere.clone()),
        (Method::BIAS, OptimizerKind::Adamw, somewhere.clone()),
        (Method::LORA, OptimizerKind::Adamw, somewhere.clone()),
        (Method::FULL, OptimizerKind::Adamw, somewhere),
        // Its average over epochs is made between the last step of an epoch and its validation.
        (Method::PROMPTSRC, OptimizerKind::Sgd, vec![2, 5, 6, 7, 12, 13, 16]),
    ] {
        let lr = (optimizer == OptimizerKind::Sgd && !method.has_texts()).then_some(LearningRate::Value(0.5));
        let config = RunConfig { lr, optimizer: Some(optimizer), ..config(&dir, method) };
        let (whole, results) = finish(&config, &dir);
        for stop_after in stops {
            let outcome = run(&config, &dir.path().join("runs"), &mut Cut::after(stop_after)).unwrap();
            let Outcome::Interrupted { folder: Some(folder) } = outcome else {
                panic!("{method} {stop_after}: {outcome:?}")
            };
            assert!(!folder.join(run_folder::RESULTS).exists());
            let (again, resumed) = finished(resume(&folder, &mut Silent));
            assert_eq!(again, folder);
            assert_eq!(content(&folder), content(&whole), "{method} stopped after {stop_after} batches");
            assert_eq!((resumed.test, resumed.best_epoch), (results.test.clone(), results.best_epoch));
        }
    }
}

#[test]
fn a_run_with_a_label_map_stopped_anywhere_and_resumed_ends_with_the_same_bytes() {
    let dir = workplace();
    let backbone =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/label-map/vit").display().to_string();
    // One batch to count in before the others (RLM counts nothing); while it is counted there is nothing to resume.
    let maps = [(LabelMap::Rlm, 0), (LabelMap::Flm, 1), (LabelMap::Ilm, 1), (LabelMap::Blm, 1), (LabelMap::BlmPlus, 1)];
    for (map, counting) in maps {
        let label_map = Some(map);
        let config = RunConfig { backbone: backbone.clone(), label_map, ..config(&dir, Method::VP_FRAME) };
        let (whole, results) = finish(&config, &dir);
        assert_eq!((results.label_map, results.head), (label_map, None));
        let stops: &[usize] = if map == LabelMap::Ilm { &[1, 2, 4, 5, 6, 7, 10, 11, 16] } else { &[2, 5, 6, 12] };
        for stop in stops {
            let outcome = run(&config, &dir.path().join("runs"), &mut Cut::after(stop + counting)).unwrap();
            let Outcome::Interrupted { folder: Some(folder) } = outcome else { panic!("{map} {stop}: {outcome:?}") };
            let (_, resumed) = finished(resume(&folder, &mut Silent));
            assert_eq!(content(&folder), content(&whole), "{map} stopped after {stop} batches");
            assert_eq!((resumed.test, resumed.best_epoch), (results.test.clone(), results.best_epoch));
        }
    }
    let config = RunConfig { backbone, label_map: Some(LabelMap::Flm), ..config(&dir, Method::VP_FRAME) };
    let outcome = run(&config, &dir.path().join("runs"), &mut Cut::after(1)).unwrap();
    let Outcome::Interrupted { folder: Some(folder) } = outcome else { panic!("{outcome:?}") };
    assert!(!folder.join(run_folder::CHECKPOINT).exists());
    assert_eq!(content(&finished(resume(&folder, &mut Silent)).0), content(&finish(&config, &dir).0));
}

#[test]
fn a_pruned_run_begins_again_without_what_matters_least_and_resumes_to_the_same_bytes() {
    let dir = workplace();
    let pruned = |c: RunConfig| {
        c.with_options(|o| (o.keys_values.prune_tokens, o.keys_values.prune_segments) = (Some(0.3), Some(0.25)))
    };
    let config = pruned(config(&dir, Method::E2VPT));
    let (whole, results) = finish(&config, &dir);
    let stages: Vec<Stage> = content(&whole)
        .2
        .iter()
        .map(|line| line["stage"].clone())
        .map(|s| serde_json::from_value(s).unwrap())
        .collect();
    assert_eq!(stages, [[Stage::Unpruned; 3], [Stage::Pruned; 3]].concat());
    let unpruned = results.unpruned.as_ref().unwrap();
    assert!(unpruned.best_epoch <= 3 && (results.best_epoch == 0 || results.best_epoch > 3), "{results:?}");
    // Of 10 tokens of 32 values in 3 blocks, 3 are gone and 4 of 16 segments of the rest: the masks say so.
    let task = TaskFile::open(&whole.join(run_folder::LAST)).unwrap();
    let mask = task.params.iter().find(|param| param.name == "prompt.mask").unwrap();
    assert_eq!((mask.shape.clone(), mask.values.iter().sum::<f32>()), (vec![10, 16], 7. * 12.));
    // Each stage has 3 epochs of 4 steps and a validation batch; between them 4 batches to find what matters.
    for stop_after in [7, 14, 15, 16, 17, 18, 19, 20, 26, 34] {
        let outcome = run(&config, &dir.path().join("runs"), &mut Cut::after(stop_after)).unwrap();
        let Outcome::Interrupted { folder: Some(folder) } = outcome else { panic!("{stop_after}: {outcome:?}") };
        let (_, resumed) = finished(resume(&folder, &mut Silent));
        assert_eq!(content(&folder), content(&whole), "stopped after {stop_after} batches");
        assert_eq!((resumed.test, resumed.unpruned), (results.test.clone(), results.unpruned.clone()));
    }
}

#[test]
fn a_killed_run_goes_on_from_its_last_checkpoint() {
    let dir = workplace();
    let config = RunConfig { keep_better: Some(false), ..config(&dir, Method::VPT_DEEP) };
    let (whole, _) = finish(&config, &dir);
    // The features of the probe, of training and validation, are told before and after they are made; who goes on makes none.
    let features = 4;
    // The first process is stopped, which saves a checkpoint; the second is killed some batches after that.
    for (stop_after, killed_after) in [(1, 1), (3, 9), (5, 6), (10, 5), (14, 2)] {
        let stopped = run(&config, &dir.path().join("runs"), &mut Cut::after(features + stop_after)).unwrap();
        let Outcome::Interrupted { folder: Some(folder) } = stopped else { panic!("{stopped:?}") };
        assert!(folder.join(run_folder::CHECKPOINT).is_file());
        let copied = dir.path().join(format!("copy-{stop_after}-{killed_after}"));
        finished(resume(&folder, &mut Cut::copying(killed_after, &copied)));
        assert!(!copied.join(run_folder::RESULTS).exists());
        // What a process that was killed while writing leaves behind.
        fs::write(copied.join(".vpt-x.tmp"), "half").unwrap();
        finished(resume(&copied, &mut Silent));
        assert_eq!(content(&copied), content(&whole), "{stop_after} {killed_after}");
        assert!(!copied.join(".vpt-x.tmp").exists());
    }
}

#[test]
fn a_run_without_a_checkpoint_starts_again_and_a_finished_one_is_left_alone() {
    let dir = workplace();
    let (folder, results) = finish(&config(&dir, Method::VPT_SHALLOW), &dir);
    let before = content(&folder);
    let (_, again) = finished(resume(&folder, &mut Silent));
    assert_eq!(again, results);
    for name in [run_folder::RESULTS, run_folder::CHECKPOINT, run_folder::BEST, run_folder::LAST] {
        fs::remove_file(folder.join(name)).unwrap();
    }
    finished(resume(&folder, &mut Silent));
    assert_eq!(content(&folder), before);
}

#[test]
fn a_checkpoint_of_something_else_is_refused() {
    let dir = workplace();
    let (folder, _) = finish(&config(&dir, Method::VPT_SHALLOW), &dir);
    fs::remove_file(folder.join(run_folder::RESULTS)).unwrap();
    fs::remove_file(dir.path().join("data/train/red/3.png")).unwrap();
    is_refused_as_another(&folder);
}
