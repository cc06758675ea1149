//! Runs of any number of classes an image.

use super::*;
use crate::{eval::evaluate_multilabel, infer::multilabel::predict_multilabel};
use vpt_data::shapes::{self, ShapesConfig};
use vpt_model::model::AnyTask;

/// A drawn data set in the COCO layout with several shapes an image, and a run that learns which are in it.
fn scenes(dir: &TempDir, method: Method) -> RunConfig {
    let data = dir.path().join("scenes");
    if !data.exists() {
        let task = shapes::ShapesTask::Detect;
        shapes::write_coco(&data, &ShapesConfig { images: 120, task, ..ShapesConfig::default() }).unwrap();
    }
    RunConfig {
        backbone: "clip-nano".into(),
        task: Task::Multilabel,
        data: data.display().to_string(),
        ..config(dir, method)
    }
}

#[test]
fn folds_choose_the_epochs_of_several_classes_an_image_wherever_they_are_killed() {
    let dir = workplace();
    let base = scenes(&dir, Method::VPT_SHALLOW);
    let message = |config: &RunConfig| run(config, &dir.path().join("runs"), &mut Silent).unwrap_err().to_string();
    let folds = RunConfig { folds: Some(3), batch_size: Some(32), ..base };
    assert_eq!(message(&folds), "folds: scenes has validation images, which choose in their place");
    let scenes = dir.path().join("scenes");
    fs::remove_file(scenes.join("annotations/instances_val.json")).unwrap();
    let (whole, results) = finish(&folds, &dir);
    let found = results.folds.as_ref().unwrap();
    assert_eq!((found.folds, found.of, found.curve.len(), &found.probe), (3, 3, 3, &None));
    assert!(found.curve.iter().all(|scores| scores.multilabel().is_some() && scores.rank() <= found.val.rank()));
    assert_eq!((&found.val, content(&whole).2.len()), (&found.curve[found.epochs - 1], found.epochs));
    assert_eq!((results.train_images, &results.val), (75, &None));
    for stop_after in [3, 12, 20] {
        let outcome = run(&folds, &dir.path().join("runs"), &mut Cut::after(stop_after)).unwrap();
        let Outcome::Interrupted { folder: Some(folder) } = outcome else { panic!("{stop_after}: {outcome:?}") };
        let (_, again) = finished(resume(&folder, &mut Silent));
        assert_eq!(content(&folder), content(&whole), "stopped after {stop_after} batches");
        assert_eq!(again.folds, results.folds);
    }
}

#[test]
fn any_number_of_classes_an_image_is_learned_from_boxes() {
    let dir = workplace();
    let (folder, results) = finish(&RunConfig { epochs: Some(60), ..scenes(&dir, Method::LINEAR) }, &dir);
    let test = results.test.multilabel().unwrap().clone();
    let data = MultilabelDataset::open(dir.path().join("scenes"), 1, false).unwrap();
    // What scores drawn by lot would reach: the share of (image, class) pairs that are true.
    let pairs = data.dataset.test.iter().map(|sample| data.sets.set(sample.label).unwrap().len()).sum::<usize>();
    let chance = pairs as f64 / (data.dataset.test.len() * data.dataset.classes.len()) as f64;
    assert!(test.map > chance + 0.15, "{test:?}, by chance {chance}");
    assert!(!folder.join(run_folder::CONFUSION).exists() && folder.join(run_folder::CURVES).is_file());
    assert_eq!(Results::load(&folder.join(run_folder::RESULTS)).unwrap(), results);
    let best = |record: &EpochRecord| record.val.as_ref().unwrap().multilabel().unwrap().map;
    let text = fs::read_to_string(folder.join(run_folder::METRICS)).unwrap();
    let records: Vec<EpochRecord> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let highest = records.iter().map(best).fold(0., f64::max);
    assert_eq!(best(&records[results.best_epoch - 1]), highest);

    // The task file says the same of the same images.
    let options = TaskOptions { threads: 2, ..Default::default() };
    let AnyTask::Multilabel(task) = AnyTask::open(&folder, &options).unwrap() else { panic!("another task") };
    let tally = evaluate_multilabel(&task, &data, Split::Test, &mut |_, _| {}).unwrap();
    assert_eq!(tally.metrics(), test);
    let files: Vec<PathBuf> = data.dataset.test.iter().map(|sample| sample.path().to_path_buf()).collect();
    let right = predict_multilabel(&task, &files, &mut |_, _| {}).unwrap();
    let right = right.iter().zip(&data.dataset.test).filter(|(prediction, sample)| {
        let mut found: Vec<&str> = prediction.labels.iter().map(|guess| guess.label.as_str()).collect();
        let truth = data.sets.set(sample.label).unwrap().iter().map(|&c| data.dataset.classes[c as usize].as_str());
        let mut truth: Vec<&str> = truth.collect();
        found.sort_unstable();
        truth.sort_unstable();
        found == truth
    });
    assert_eq!(right.count() as f64 / files.len() as f64, test.exact_match);
}

#[test]
fn runs_of_several_classes_an_image_resume_to_the_same_bytes() {
    let dir = workplace();
    for method in [Method::LINEAR, Method::VPT_DEEP, Method::VP_PAD] {
        let config = RunConfig { batch_size: Some(25), ..scenes(&dir, method) };
        let (whole, results) = finish(&config, &dir);
        for stop_after in [2, 4, 9] {
            let outcome = run(&config, &dir.path().join("runs"), &mut Cut::after(stop_after)).unwrap();
            let Outcome::Interrupted { folder: Some(folder) } = outcome else { panic!("{method} {stop_after}") };
            let (_, resumed) = finished(resume(&folder, &mut Silent));
            assert_eq!(content(&folder), content(&whole), "{method} stopped after {stop_after} batches");
            assert_eq!(resumed.test, results.test);
        }
    }
}

#[test]
fn a_text_head_for_several_classes_an_image_learns_and_is_resumed() {
    let dir = workplace();
    let siglip = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/siglip").display().to_string();
    for method in [Method::LINEAR, Method::VPT_DEEP] {
        let config = RunConfig {
            backbone: siglip.clone(),
            head: Some(HeadKind::Text),
            batch_size: Some(25),
            ..scenes(&dir, method)
        };
        let (whole, results) = finish(&config, &dir);
        let file = TaskFile::open(&whole).unwrap();
        let [bias] = file.params.last().unwrap().values[..] else { panic!("{method}: no bias of the logits") };
        assert!(bias != -3.25 && (bias + 3.25).abs() < 1., "{method}: {bias}");
        let outcome = run(&config, &dir.path().join("runs"), &mut Cut::after(4)).unwrap();
        let Outcome::Interrupted { folder: Some(folder) } = outcome else { panic!("{method}") };
        let (_, resumed) = finished(resume(&folder, &mut Silent));
        assert_eq!((content(&folder), &resumed.test), (content(&whole), &results.test), "{method}");
        let options = TaskOptions { threads: 2, ..Default::default() };
        let AnyTask::Multilabel(task) = AnyTask::open(&folder, &options).unwrap() else { panic!("another task") };
        let data = MultilabelDataset::open(dir.path().join("scenes"), 1, false).unwrap();
        let tally = evaluate_multilabel(&task, &data, Split::Test, &mut |_, _| {}).unwrap();
        assert_eq!(&tally.metrics(), results.test.multilabel().unwrap(), "{method}");
    }
}

#[test]
fn other_labels_of_the_same_images_are_another_run() {
    let dir = workplace();
    let (folder, _) = finish(&scenes(&dir, Method::LINEAR), &dir);
    fs::remove_file(folder.join(run_folder::RESULTS)).unwrap();
    let file = dir.path().join("scenes/annotations/instances_train.json");
    let text = fs::read_to_string(&file).unwrap();
    let (from, to) = ("\"category_id\":1,", "\"category_id\":2,");
    assert!(text.contains(from), "{text}");
    fs::write(&file, text.replacen(from, to, 20)).unwrap();
    is_refused_as_another(&folder);
}
