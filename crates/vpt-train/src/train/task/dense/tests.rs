//! What whole runs on patch tokens have in common, whatever they learn.

use std::{fs, path::Path};

use tempfile::TempDir;

use crate::{
    config::{LearningRate, RunConfig, Task},
    train::{
        Outcome, Results, Silent,
        results::BesideHead,
        resume, run, run_folder,
        tests::{Cut, RUN_FILES, backbone, bytes, content, finish, finished},
    },
};
use vpt_data::shapes::{ShapesConfig, ShapesTask};
use vpt_model::{
    methods::Method,
    metrics::Scores,
    model::task_file::TaskFile,
    prompt::{PartShapes, tokens::PromptLayers},
};

/// 15 images to train on, 3 and 6 for the rest, of 48 x 48 pixels, which `write` writes.
pub(in crate::train::task) fn drawn(
    task: ShapesTask,
    write: impl FnOnce(&Path, &ShapesConfig) -> vpt_base::Result<[usize; 3]>,
) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = ShapesConfig { images: 24, size: 48, task, ..ShapesConfig::default() };
    assert_eq!(write(&dir.path().join("data"), &config).unwrap(), [15, 3, 6]);
    dir
}

/// Four epochs of three steps, two of them with the head alone, at 32 pixels: 4 x 4 tokens. Masks are not zoomed, and whatever changes at
/// random is new every time. What prompts have learned is the result, though the head alone may be better.
pub(in crate::train::task) fn config(dir: &TempDir, task: Task, method: Method) -> RunConfig {
    let last = Some(PromptLayers::Last(1)).filter(|_| method.has_option("prompt_layers"));
    RunConfig {
        backbone: backbone(),
        task,
        data: dir.path().join("data").display().to_string(),
        method,
        epochs: Some(4),
        head_epochs: (method != Method::LINEAR).then_some(2),
        batch_size: Some(5),
        image_size: Some(32),
        scale_jitter: (task == Task::Segment).then_some([1.; 2]),
        cached_views: Some(0),
        keep_better: (method != Method::LINEAR).then_some(false),
        threads: Some(2),
        ..RunConfig::default()
    }
    .with_options(|o| o.tokens.prompt_layers = last)
}

/// A run of ten epochs, seven of them with the head alone, leaves all its files.
pub(in crate::train::task) fn leaves_a_whole_folder(config: &RunConfig, dir: &TempDir, own: &[&str]) -> Results {
    let config = RunConfig { epochs: Some(10), head_epochs: Some(7), ..config.clone() };
    let (folder, results) = finish(&config, dir);
    assert_eq!(folder, dir.path().join(format!("runs/{}/data-vpt-deep-1", results.task)));
    for name in RUN_FILES.iter().chain(&[run_folder::CHECKPOINT, run_folder::VAL_PREDICTIONS]).chain(own) {
        assert!(folder.join(name).is_file(), "{name}");
    }
    assert_eq!(results.train_images, 15);
    results
}

/// Methods that tune weights of the backbone, alone and beside prompts.
pub(in crate::train::task) fn tuning() -> [Method; 6] {
    ["bias", "norm", "lora", "full", "vpt-deep,bias", "vpt-deep,lora"].map(|method| method.parse().unwrap())
}

/// What weights learn is the task in the file, by the task that `open` makes of a run folder and `test` evaluates; before they learn the
/// head is what method `linear` makes of it.
pub(in crate::train::task) fn weights_learn(
    config: impl Fn(Method) -> RunConfig,
    dir: &TempDir,
    test: impl Fn(&Path) -> Scores,
) {
    let alone = finish(&RunConfig { epochs: Some(2), ..config(Method::LINEAR) }, dir);
    for method in tuning() {
        let (folder, results) = finish(&config(method), dir);
        let (_, _, lines) = content(&folder);
        let stages: Vec<_> = lines.iter().map(|line| line["stage"].as_str().unwrap()).collect();
        assert_eq!(stages, ["head", "head", "tuned", "tuned"], "{method}");
        assert_eq!(lines[..2], content(&alone.0).2, "{method}");
        let head = results.head_only.as_ref().unwrap();
        assert_eq!((&head.val, &head.test), (&alone.1.val, &alone.1.test), "{method}");
        assert!(results.trainable_params > alone.1.trainable_params, "{method}");
        assert_eq!(test(&folder), results.test, "{method}");
        let (best, last) = (run_folder::BEST, run_folder::LAST);
        let [best, last] = [best, last].map(|name| TaskFile::open(&folder.join(name)).unwrap());
        assert_eq!((best.meta.method, &best.meta.parts), (method, &last.meta.parts));
        assert!(best.meta.parts.weights().is_some());
        let moved = |file: &TaskFile, name: &str| file.params.iter().any(|param| param.name.starts_with(name));
        assert!(moved(&best, "backbone.") && moved(&best, "prompt.") == method.has_tokens());
    }
}

/// A run that is stopped after some batches, whatever they are for.
pub(in crate::train::task) fn stopped(config: &RunConfig, dir: &TempDir, after: usize) -> std::path::PathBuf {
    let outcome = run(config, &dir.path().join("runs"), &mut Cut::after(after)).unwrap();
    let Outcome::Interrupted { folder: Some(folder) } = outcome else { panic!("{after}: {outcome:?}") };
    assert!(!folder.join(run_folder::RESULTS).exists());
    folder
}

/// Runs that are stopped after some batches and resumed end with the same bytes as those that are not, in the files of every
/// run and in `own`.
pub(in crate::train::task) fn resumes_to_the_same_bytes(
    cases: Vec<(&str, &TempDir, RunConfig, Vec<usize>)>,
    own: &[&str],
) {
    for (what, dir, config, stops) in cases {
        let (whole, results) = finish(&config, dir);
        for stop_after in stops {
            let folder = stopped(&config, dir, stop_after);
            let (again, resumed) = finished(resume(&folder, &mut Silent));
            assert_eq!(again, folder);
            assert!(content(&folder) == content(&whole), "{what}: stopped after {stop_after} batches");
            for name in own {
                assert!(bytes(&folder, name) == bytes(&whole, name), "{what}, {stop_after}: {name}");
            }
            assert_eq!((&resumed.test, resumed.best_epoch), (&results.test, results.best_epoch));
            assert_eq!(resumed.head_only, results.head_only);
        }
    }
}

/// A process is stopped, which saves a checkpoint; a second is killed some batches after that; a third ends the run as one
/// process would have.
pub(in crate::train::task) fn survives_kills(config: &RunConfig, dir: &TempDir, cuts: &[(usize, usize)]) {
    let (whole, _) = finish(config, dir);
    for &(stop_after, killed_after) in cuts {
        let folder = stopped(config, dir, stop_after);
        let copied = folder.with_extension(format!("copy-{stop_after}-{killed_after}"));
        finished(resume(&folder, &mut Cut::copying(killed_after, &copied)));
        assert!(!copied.join(run_folder::RESULTS).exists());
        fs::write(copied.join(".vpt-x.tmp"), "half").unwrap();
        finished(resume(&copied, &mut Silent));
        assert!(content(&copied) == content(&whole), "{stop_after} {killed_after}");
        assert!(!copied.join(".vpt-x.tmp").exists());
    }
}

/// Where prompts make it worse on validation, the head alone is the result, wherever the run is stopped; unless it is not to be, or the run
/// is of a version that kept what was learned.
pub(in crate::train::task) fn a_better_head_alone_is_kept(config: &RunConfig, dir: &TempDir) {
    // Prompts that are thrown about, after a head that has learned something.
    let lr = Some(LearningRate::Value(1e3));
    let config = RunConfig { lr, head_lr: Some(0.01), epochs: Some(22), head_epochs: Some(20), ..config.clone() };
    let guarded = RunConfig { keep_better: None, ..config.clone() };
    let (folder, results) = finish(&guarded, dir);
    let head = results.head_only.clone().unwrap();
    let beside = head.beside.clone().unwrap();
    assert!(beside.better && beside.kept, "{head:?}");
    assert_eq!((&results.val, &results.test, results.best_epoch), (&head.val, &head.test, head.best_epoch));
    assert!(head.best_epoch <= 20 && beside.learned.best_epoch > 20);
    assert!(head.val.as_ref().unwrap().rank() > beside.learned.val.as_ref().unwrap().rank());
    let (best, last) = (TaskFile::open(&folder).unwrap(), TaskFile::open(&folder.join(run_folder::LAST)).unwrap());
    assert_eq!((best.meta.method, last.meta.method), (Method::LINEAR, config.method));
    assert!(best.meta.parts == PartShapes::NONE && last.meta.parts != PartShapes::NONE);
    assert_eq!(best.meta.metrics.test, Some(results.test.clone()));
    let moved = beside.moved.unwrap();
    assert!((moved.difference - (beside.learned.test.main() - head.test.main())).abs() < 1e-12, "{moved:?}");
    assert!(moved.low <= moved.high, "{moved:?}");

    let (kept, learned) = finish(&config, dir);
    assert_eq!((&learned.val, &learned.test), (&beside.learned.val, &beside.learned.test));
    assert_eq!(learned.best_epoch, beside.learned.best_epoch);
    let control = learned.head_only.unwrap();
    assert_eq!((&control.val, &control.test), (&head.val, &head.test));
    let expected = BesideHead { kept: false, ..beside };
    assert_eq!(control.beside, Some(expected));
    assert_eq!(content(&kept).1, content(&folder).1);
    assert_eq!(TaskFile::open(&kept).unwrap().meta.method, config.method);

    // In the head's stage, in that of the prompts, and at the end.
    for stop_after in [30, 85, 90] {
        let stopped = stopped(&guarded, dir, stop_after);
        let (_, again) = finished(resume(&stopped, &mut Silent));
        assert!(content(&stopped) == content(&folder), "stopped after {stop_after} batches");
        assert_eq!((&again.head_only, &again.test), (&results.head_only, &results.test));
    }
    // As an earlier version left it.
    let earlier = stopped(&config, dir, 85);
    let path = earlier.join(run_folder::CONFIG);
    let text = fs::read_to_string(&path).unwrap();
    let without = text.replace("keep_better = false\n", "");
    assert!(without.len() < text.len(), "{text}");
    fs::write(&path, without).unwrap();
    finished(resume(&earlier, &mut Silent));
    assert!(content(&earlier) == content(&kept));

    let message = |config: &RunConfig| run(config, &dir.path().join("runs"), &mut Silent).unwrap_err().to_string();
    let no_head = RunConfig { keep_better: Some(true), head_epochs: Some(0), ..config.clone() };
    assert_eq!(message(&no_head), "keep_better: there is no head alone with head_epochs 0");
    let linear = RunConfig { head_lr: None, head_epochs: None, method: Method::LINEAR, ..no_head };
    assert!(message(&linear.with_options(|o| o.tokens.prompt_layers = None)).starts_with("keep_better: method linear"));
}

/// Without the validation images, which the file `val` tells, folds of the training images choose the epochs of prompts, and whether these
/// are kept.
pub(in crate::train::task) fn folds_choose_the_epochs(config: impl Fn(Method) -> RunConfig, dir: &TempDir, val: &Path) {
    let (deep, linear) = (&config(Method::VPT_DEEP), &config(Method::LINEAR));
    let message = |config: &RunConfig| run(config, &dir.path().join("runs"), &mut Silent).unwrap_err().to_string();
    let with_val = RunConfig { folds: Some(3), ..linear.clone() };
    assert_eq!(message(&with_val), "folds: data has validation images, which choose in their place");
    fs::remove_file(val).unwrap();
    let folds = |config: &RunConfig| RunConfig { folds: Some(3), keep_better: None, ..config.clone() };
    let (whole, results) = finish(&folds(deep), dir);
    let found = results.folds.as_ref().unwrap();
    assert_eq!((found.folds, found.of, found.curve.len()), (3, 2, 2));
    assert!(found.curve.iter().all(|scores| scores.rank() <= found.val.rank()), "{found:?}");
    let (_, _, lines) = content(&whole);
    assert_eq!((results.train_images, lines.len(), &results.val), (15, 2 + found.epochs, &None));
    let head = results.head_only.as_ref().unwrap();
    assert_eq!((head.best_epoch, &head.val), (2, &None), "the last, since nothing tells which is the best");
    let (beside, alone) = (head.beside.as_ref().unwrap(), found.probe.as_ref().unwrap());
    let better = alone.rank() > found.val.rank();
    assert_eq!((beside.better, beside.kept), (better, better));
    assert_eq!(results.best_epoch, if better { 2 } else { lines.len() });
    for stop_after in [3, 14, 31, 50] {
        let Outcome::Interrupted { folder: Some(folder) } =
            run(&folds(deep), &dir.path().join("runs"), &mut Cut::after(stop_after)).unwrap()
        else {
            panic!("{stop_after}")
        };
        let (_, again) = finished(resume(&folder, &mut Silent));
        assert!(content(&folder) == content(&whole), "stopped after {stop_after} batches");
        assert_eq!((&again.folds, &again.head_only), (&results.folds, &results.head_only));
    }
    let (_, results) = finish(&folds(linear), dir);
    let found = results.folds.unwrap();
    assert_eq!((found.of, found.probe, results.best_epoch), (4, None, found.epochs));
    assert_eq!(
        message(&RunConfig { folds: Some(16), ..folds(linear) }),
        "folds: 16 for the 15 training images of data"
    );
    let auto = RunConfig { lr: Some(LearningRate::Auto), ..folds(deep) };
    assert_eq!(message(&auto), "lr: needs validation images, and data has none");
}

/// The head as it is before prompts learn is what method linear makes of it.
pub(in crate::train::task) fn control_is_linear(deep: &RunConfig, linear: &RunConfig, dir: &TempDir) {
    let (prompted, results) = finish(deep, dir);
    let (folder, alone) = finish(&RunConfig { epochs: Some(2), ..linear.clone() }, dir);
    assert_eq!(content(&prompted).2[..2], content(&folder).2);
    let control = results.head_only.as_ref().unwrap();
    assert_eq!((control.best_epoch, &control.val, &control.test), (alone.best_epoch, &alone.val, &alone.test));
    assert_eq!(alone.head_only, None);
    assert_eq!(results.trainable_params, alone.trainable_params + 10 * 32);
}
