//! What validation images choose, and what chooses where there are none.

use std::collections::BTreeMap;

use super::*;
use crate::config::Select;
use vpt_data::FewShot;

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
