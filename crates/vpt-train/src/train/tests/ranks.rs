//! Runs on several ranks, which are threads here: what they leave is what one process leaves.

use super::*;
use crate::train::process_group::on_ranks;
use vpt_data::shapes::{self, ShapesConfig, ShapesTask};
use vpt_model::head::segment::DecodeHead;

/// Runs `config` on so many ranks; the folder of the first.
fn on(size: usize, config: &RunConfig, dir: &TempDir) -> PathBuf {
    let outcomes =
        on_ranks(size, |group| begin(RunRequest::new(config, &group), &dir.path().join("runs"), &mut Silent));
    let mut folders = outcomes.into_iter().map(|outcome| finished(outcome).0);
    let first = folders.next().unwrap();
    assert!(folders.all(|folder| !folder.exists()), "one rank writes");
    first
}

/// A few small scenes.
fn few(task: ShapesTask) -> ShapesConfig {
    ShapesConfig { images: 24, size: 48, task, ..ShapesConfig::default() }
}

/// The runs of `config` on one process, on two ranks and on three are the same.
fn are_the_same(config: &RunConfig, dir: &TempDir) -> PathBuf {
    let alone = finish(config, dir).0;
    for size in [2, 3] {
        let folder = on(size, config, dir);
        assert!(content(&folder) == content(&alone), "{} on {size} ranks", config.method);
        assert_eq!(bytes(&folder, run_folder::CONFIG), bytes(&alone, run_folder::CONFIG));
        let files = |run: &Path| {
            let names = fs::read_dir(run).unwrap().map(|entry| entry.unwrap().file_name());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(files(&folder), files(&alone));
    }
    alone
}

#[test]
fn every_kind_of_classifier_is_the_same_on_any_number_of_ranks() {
    let dir = workplace();
    // Prompts behind a prefix, pictures that change, weights, texts, features in steps and without any.
    let kinds: [(Method, bool); 7] = [
        (Method::VPT_DEEP, false),
        (Method::VPT_SHALLOW, true),
        (Method::VP_PAD, false),
        (Method::LORA, false),
        (Method::COOP, false),
        (Method::LINEAR, false),
        (Method::ZERO_SHOT, false),
    ];
    for (method, flip) in kinds {
        let plain = config(&dir, method);
        let shares = plain.batch_size.map(|_| 3);
        are_the_same(&RunConfig { shares, flip: Some(flip), ..plain }, &dir);
    }
}

#[test]
fn shares_are_the_batch_but_for_the_last_digits() {
    let dir = workplace();
    let one_epoch = RunConfig { epochs: Some(1), keep_better: Some(false), ..config(&dir, Method::VPT_DEEP) };
    let values = |shares| {
        let (folder, _) = finish(&RunConfig { shares, ..one_epoch.clone() }, &dir);
        let file = TaskFile::open(&folder.join(run_folder::LAST)).unwrap();
        file.params.iter().flat_map(|param| param.values.clone()).collect::<Vec<f32>>()
    };
    let whole = values(None);
    assert_eq!(values(Some(1)), whole, "one share is the batch");
    let parts = values(Some(3));
    assert_ne!(parts, whole);
    let far = parts.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0., f32::max);
    assert!(far < 1e-3, "{far}");
}

#[test]
fn boxes_and_masks_are_the_same_on_any_number_of_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let boxes = dir.path().join("boxes");
    shapes::write_coco(&boxes, &few(ShapesTask::Detect)).unwrap();
    let detect = RunConfig {
        data: boxes.display().to_string(),
        image_size: Some(32),
        epochs: Some(4),
        batch_size: Some(6),
        shares: Some(3),
        ..config(&dir, Method::VPT_DEEP)
    };
    are_the_same(&detect, &dir);
    let masks = dir.path().join("masks");
    shapes::write_masks(&masks, &few(ShapesTask::Segment)).unwrap();
    let segment = RunConfig { data: masks.display().to_string(), task: Task::Segment, ..detect };
    are_the_same(&segment, &dir);
    // The statistics of its BatchNorm are counted once, before the first step.
    are_the_same(&RunConfig { decode_head: Some(DecodeHead::Linear), ..segment }, &dir);
}

#[test]
fn several_labels_and_a_search_for_the_rate_are_the_same_on_any_number_of_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let boxes = dir.path().join("boxes");
    shapes::write_coco(&boxes, &few(ShapesTask::Detect)).unwrap();
    let several = RunConfig {
        data: boxes.display().to_string(),
        task: Task::Multilabel,
        shares: Some(3),
        lr: Some(LearningRate::Auto),
        ..config(&dir, Method::VPT_SHALLOW)
    };
    are_the_same(&several, &dir);
}

#[test]
fn a_run_that_was_stopped_goes_on_on_another_number_of_ranks() {
    let dir = workplace();
    let config = RunConfig { shares: Some(3), ..config(&dir, Method::VPT_DEEP) };
    let whole = finish(&config, &dir).0;
    for (batches, first, second) in [(8, 3, 2), (11, 2, 1), (14, 1, 3)] {
        let run = dir.path().join(format!("stopped-{batches}"));
        let config = RunConfig { out: Some(run.clone()), ..config.clone() };
        // The last rank is the one that is asked to stop.
        let outcomes = on_ranks(first, |group| {
            let mut cut = Cut::after(if group.rank() + 1 == group.size() { batches } else { usize::MAX });
            begin(RunRequest::new(&config, &group), Path::new("unused"), &mut cut).unwrap()
        });
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Interrupted { folder: Some(_) })));
        assert!(run.join(run_folder::CHECKPOINT).is_file() && !run.join(run_folder::RESULTS).exists());
        let outcomes = on_ranks(second, |group| go_on(&run, None, &group, &mut Silent));
        for outcome in outcomes {
            finished(outcome);
        }
        assert!(content(&run) == content(&whole), "{batches}");
        // A finished run is told by all.
        let again = on_ranks(2, |group| finished(go_on(&run, None, &group, &mut Silent)).1);
        assert_eq!(again[0], again[1]);
    }
}

#[test]
fn what_cannot_be_shared_is_refused() {
    let dir = workplace();
    let refusals = |size: usize, config: &RunConfig| {
        on_ranks(size, |group| {
            begin(RunRequest::new(config, &group), &dir.path().join("runs"), &mut Silent).unwrap_err().to_string()
        })
    };
    let plain = config(&dir, Method::VPT_DEEP);
    let fewer = refusals(3, &RunConfig { shares: Some(2), ..plain.clone() });
    assert!(fewer.iter().all(|message| message.starts_with("shares: a batch has 2, too few for 3 ranks")), "{fewer:?}");
    assert!(refusals(2, &plain)[1].starts_with("shares: a batch has 1,"));
    let uneven = refusals(1, &RunConfig { shares: Some(4), ..plain.clone() });
    assert_eq!(uneven, ["shares: 4 do not divide a batch of 6 images; see batch_size"]);
    let other = on_ranks(2, |group| {
        let config = RunConfig { shares: Some(2), seed: 1 + group.rank() as u64, ..plain.clone() };
        begin(RunRequest::new(&config, &group), &dir.path().join("runs"), &mut Silent).unwrap_err().to_string()
    });
    assert!(other[0].starts_with("hash of configuration, data and backbone: is "), "{other:?}");
    let taken = RunConfig { shares: Some(2), out: Some(dir.path().join("data")), ..plain };
    let taken = refusals(2, &taken);
    assert!(taken[0].contains("is not empty") && taken[1].starts_with("rank 0: "), "{taken:?}");
}

#[test]
fn an_image_that_one_rank_cannot_read_is_told_by_all() {
    let dir = workplace();
    fs::write(dir.path().join("data/train/red/broken.png"), "no image").unwrap();
    let config = RunConfig { shares: Some(3), ..config(&dir, Method::VPT_DEEP) };
    let said = on_ranks(2, |group| {
        begin(RunRequest::new(&config, &group), &dir.path().join("runs"), &mut Silent).unwrap_err().to_string()
    });
    assert!(
        said.iter().all(|message| message.contains("1 images cannot be read") && message.contains("broken.png")),
        "{said:?}"
    );
    let config = RunConfig { skip_bad_images: true, ..config };
    are_the_same(&config, &dir);
}
