use std::time::Duration;

use serde_json::json;

use super::*;
use crate::{
    config::{RunContext, TileCount},
    train::run_folder::RunFolder,
};

const FACTS: RunContext =
    RunContext { task: Task::Classify, depth: 6, text_depth: Some(6), image_size: 64, train_images: 320, shots: None };

/// Writes the folder of a run that was begun as `config` and has `epochs` behind it.
fn begun(path: &Path, config: &RunConfig, epochs: &[f64]) {
    fs::create_dir_all(path).unwrap();
    let plan = config.resolve(&FACTS).unwrap();
    fs::write(path.join(run_folder::CONFIG), plan.config.to_toml().unwrap()).unwrap();
    let split = json!({"data": "d", "note": "", "classes": ["a", "b"], "train": vec!["x"; 320], "val": [], "test": []});
    fs::write(path.join(run_folder::SPLIT), split.to_string()).unwrap();
    let line = |(i, acc1): (usize, &f64)| {
        let val = json!({"acc1": acc1, "acc5": null, "mean_per_class_recall": acc1, "loss": 1. - acc1});
        json!({"epoch": i + 1, "step": 9, "lr": 0.1, "train_loss": 2., "val": val, "train_seconds": 1.}).to_string()
            + "\n"
    };
    let lines: String = epochs.iter().enumerate().map(line).collect();
    fs::write(path.join(run_folder::METRICS), lines).unwrap();
    fs::write(path.join(run_folder::CHECKPOINT), b"not looked into").unwrap();
}

/// The same of a run that is finished, with `test` as its accuracy.
fn finished(path: &Path, config: &RunConfig, epochs: &[f64], test: f64) {
    begun(path, config, epochs);
    let scores = |acc1: f64| json!({"acc1": acc1, "acc5": null, "mean_per_class_recall": acc1, "loss": 0.5});
    let results = json!({
        "task": "classify", "method": config.method, "backbone": "clip-nano", "data": "d", "seed": config.seed,
        "classes": 2, "train_images": 320, "trainable_params": 10, "backbone_params": 20, "best_epoch": 2,
        "val": scores(test + 0.01), "test": scores(test), "wall_s": 1., "img_per_s": 2., "peak_rss_bytes": null,
    });
    fs::write(path.join(run_folder::BEST), b"not looked into").unwrap();
    fs::write(path.join(run_folder::RESULTS), results.to_string()).unwrap();
}

fn with_seed(seed: u64) -> RunConfig {
    RunConfig { seed, epochs: Some(12), ..RunConfig::default() }
}

fn names(runs: &[Run]) -> Vec<&str> {
    runs.iter().map(|run| run.name.as_str()).collect()
}

#[test]
fn states_are_told_from_files_and_locks() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join("classify").join(name);
    finished(&at("done"), &with_seed(1), &[0.2, 0.9, 0.8], 0.75);
    begun(&at("stopped"), &with_seed(2), &[0.4, 0.6, 0.6, 0.5]);
    begun(&at("failed"), &with_seed(3), &[0.4]);
    fs::write(at("failed").join(run_folder::ERROR), "training diverged: loss not finite\n").unwrap();
    begun(&at("held"), &with_seed(4), &[]);
    let held = RunFolder::open(&at("held")).unwrap();
    drop(RunFolder::create(&at("never")).unwrap());
    fs::create_dir_all(dir.path().join("classify/.vpt-removed-x/run")).unwrap();
    fs::create_dir_all(dir.path().join("other/empty")).unwrap();

    let runs = list(dir.path()).unwrap();
    assert_eq!(
        names(&runs),
        ["classify/done", "classify/failed", "classify/held", "classify/never", "classify/stopped"]
    );
    let states: Vec<_> = runs.iter().map(|run| (run.state, run.resumable, run.epochs_done)).collect();
    assert_eq!(
        states,
        [
            (State::Finished, false, 3),
            (State::Failed, true, 1),
            (State::Running, false, 0),
            (State::Failed, false, 0),
            (State::Interrupted, true, 4),
        ]
    );
    assert!(runs.iter().all(|run| run.problems.is_empty()), "{runs:#?}");
    assert_eq!((runs[0].val, runs[0].test, runs[0].best_epoch), (Some(0.76), Some(0.75), Some(2)));
    assert_eq!(runs[1].error.as_deref(), Some("training diverged: loss not finite"));
    assert_eq!((runs[4].val, runs[4].test, runs[4].best_epoch), (Some(0.6), None, Some(2)), "of equals the earlier");
    assert_eq!((runs[4].epochs, runs[4].seed, runs[4].metric), (Some(12), Some(2), Some("acc1")));
    drop(held);
    assert_eq!(Run::read(&at("held"), String::new()).state, State::Interrupted);
}

#[test]
fn damage_is_told_and_breaks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let damages: [(&str, &[u8]); 6] = [
        (run_folder::RESULTS, b"{\"task\": \"classify\""),
        (run_folder::RESULTS, b"[[[[[[[["),
        (run_folder::CONFIG, b"method = \"vpt-deap\""),
        (run_folder::CONFIG, b"\xff\xfe"),
        (run_folder::METRICS, b"{\"epoch\": 1}\n{}\n"),
        (run_folder::METRICS, b"nonsense\n"),
    ];
    for (i, (file, bytes)) in damages.into_iter().enumerate() {
        let path = dir.path().join(format!("r{i}"));
        finished(&path, &with_seed(1), &[0.5, 0.6], 0.5);
        fs::write(path.join(file), bytes).unwrap();
        let run = Run::read(&path, "r".to_owned());
        assert_eq!(run.problems.len(), 1, "{file}: {:#?}", run.problems);
        assert!(run.problems[0].to_string().contains(file), "{:?}", run.problems);
        assert_eq!(run.state == State::Damaged, file == run_folder::RESULTS, "{file}");
        run.changed_settings().unwrap();
        compare(&[run.clone(), run]).unwrap();
    }
    for file in [run_folder::CONFIG, run_folder::METRICS, run_folder::BEST, run_folder::CHECKPOINT] {
        let path = dir.path().join("lacks").join(file);
        finished(&path, &with_seed(1), &[0.5, 0.6], 0.5);
        fs::remove_file(path.join(file)).unwrap();
        let run = Run::read(&path, "r".to_owned());
        assert_eq!((run.state, run.problems), (State::Finished, vec![format!("{file} is missing").into()]));
    }
    let path = dir.path().join("half");
    begun(&path, &with_seed(1), &[0.5, 0.6]);
    let mut lines = fs::read(path.join(run_folder::METRICS)).unwrap();
    lines.extend(b"{\"epoch\": 3, \"st");
    fs::write(path.join(run_folder::METRICS), lines).unwrap();
    let run = Run::read(&path, "r".to_owned());
    assert_eq!((run.epochs_done, run.problems.len()), (2, 0), "a line that was being written is no damage");
    fs::remove_file(path.join(run_folder::CONFIG)).unwrap();
    let run = Run::read(&path, "r".to_owned());
    assert_eq!((run.state, run.problems), (State::Damaged, vec!["config.toml is missing".into()]));
}

#[test]
#[cfg(unix)]
fn names_that_are_no_text_are_shown_as_well_as_can_be() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    finished(&dir.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9")), &with_seed(1), &[0.5, 0.6], 0.5);
    let runs = list(dir.path()).unwrap();
    assert_eq!(serde_json::to_value(&runs).unwrap()[0]["name"], "caf\u{fffd}");
}

#[test]
fn sorting_puts_the_latest_and_the_best_first() {
    let dir = tempfile::tempdir().unwrap();
    for (name, test, age) in [("a", 0.5, 10), ("b", 0.9, 30), ("c", 0.7, 20)] {
        let path = dir.path().join(name);
        finished(&path, &with_seed(1), &[0.5, 0.6], test);
        let file = fs::File::options().append(true).open(path.join(run_folder::RESULTS)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    }
    begun(&dir.path().join("d"), &with_seed(1), &[0.99]);
    let mut runs = list(dir.path()).unwrap();
    let mut by = |sort_by| {
        sort(&mut runs, sort_by);
        names(&runs).concat()
    };
    assert_eq!([Sort::Time, Sort::Name, Sort::Test, Sort::Val].map(&mut by), ["dacb", "abcd", "bcad", "dbca"]);
}

#[test]
fn names_find_runs_and_misspelt_ones_a_suggestion() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["classify/shapes-vpt-deep-1", "classify/twice-1", "detect/twice-1"] {
        begun(&dir.path().join(name), &with_seed(1), &[]);
    }
    let found = |text: &str| find(dir.path(), text).map(|run| run.name).map_err(|error| error.to_string());
    assert_eq!(found("classify/shapes-vpt-deep-1").unwrap(), "classify/shapes-vpt-deep-1");
    assert_eq!(found("shapes-vpt-deep-1").unwrap(), "classify/shapes-vpt-deep-1");
    let path = dir.path().join("detect/twice-1").display().to_string();
    assert_eq!(found(&format!("{path}/")).unwrap(), path);
    assert!(found("twice-1").unwrap_err().ends_with("could be any of classify/twice-1, detect/twice-1"));
    assert!(found("shaps-vpt-deep-1").unwrap_err().ends_with("did you mean shapes-vpt-deep-1?"));
    assert!(found("clasify/twice-1").unwrap_err().ends_with("did you mean classify/twice-1?"));
    assert!(!found("cells").unwrap_err().contains("did you mean"));
    assert!(found(dir.path().to_str().unwrap()).unwrap_err().ends_with("is not a run folder"));
    assert!(find(&dir.path().join("nowhere"), "x").is_err());
}

#[test]
fn only_what_was_set_is_a_changed_setting() {
    let dir = tempfile::tempdir().unwrap();
    let changed = |config: &RunConfig| {
        begun(&dir.path().join("r"), config, &[]);
        let run = Run::read(&dir.path().join("r"), String::new());
        let settings = run.changed_settings().unwrap();
        settings.into_iter().map(|s| format!("{}={}", s.name, s.value)).collect::<Vec<_>>()
    };
    assert_eq!(changed(&RunConfig::default()), [""; 0]);
    let linear = RunConfig { method: Method::LINEAR, seed: 7, ..RunConfig::default() };
    assert_eq!(changed(&linear), [""; 0], "method and seed are told apart");
    // 8 images a step make 40 steps an epoch, and those 7 epochs, which is then no change of its own.
    let batch =
        RunConfig { batch_size: Some(8), ..RunConfig::default() }.with_options(|o| o.tokens.prompt_dropout = Some(0.2));
    assert_eq!(changed(&batch), ["prompt_dropout=0.2", "batch_size=8"]);
    let few = RunConfig { shots: Some(4), epochs: Some(7), ..RunConfig::default() };
    assert_eq!(changed(&few), ["shots=4", "epochs=7"], "with shots the last epoch is the default");
    // A detector on tiles learns from more views than there are images.
    let views = RunContext { task: Task::Detect, train_images: 3000, ..FACTS };
    let tiled = RunConfig { task: Task::Detect, tiles: Some(TileCount::Value(4)), ..RunConfig::default() };
    let plan = tiled.resolve(&views).unwrap();
    begun(&dir.path().join("r"), &RunConfig::default(), &[]);
    fs::write(dir.path().join("r").join(run_folder::CONFIG), plan.config.to_toml().unwrap()).unwrap();
    let step = 3000_usize.div_ceil(plan.batch_size);
    let line = json!({"epoch": 1, "stage": "head", "step": step, "lr": 0.1, "train_loss": 2., "train_seconds": 1.});
    fs::write(dir.path().join("r").join(run_folder::METRICS), format!("{line}\n")).unwrap();
    let settings = Run::read(&dir.path().join("r"), String::new()).changed_settings().unwrap();
    let names: Vec<&str> = settings.iter().map(|setting| setting.name.as_str()).collect();
    assert_eq!(names, ["image_size", "tiles"], "the backbone's own size is another than a detector's");
}

#[test]
fn runs_that_differ_by_their_seed_alone_are_one_group() {
    let dir = tempfile::tempdir().unwrap();
    for (seed, test) in [(1, 0.5), (2, 0.6), (3, 0.8)] {
        finished(&dir.path().join(format!("s{seed}")), &with_seed(seed), &[0.5, 0.6], test);
    }
    let other = with_seed(4).with_options(|o| o.tokens.prompt_tokens = Some(5));
    finished(&dir.path().join("t"), &other, &[0.5, 0.6], 0.9);
    let runs = list(dir.path()).unwrap();
    let RunComparison { differences, groups } = compare(&runs).unwrap();
    let named: Vec<_> = differences.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(named, ["prompt_tokens", "seed"]);
    let values: Vec<_> = differences[0].values.iter().flatten().map(String::as_str).collect();
    assert_eq!(values, ["10", "10", "10", "5"]);
    assert_eq!(groups.len(), 1);
    assert_eq!((groups[0].seeds.as_slice(), groups[0].runs.join(" ")), (&[1, 2, 3][..], "s1 s2 s3".to_owned()));
    // numpy.mean and numpy.std(ddof=1) of .5, .6, .8.
    let acc1 = groups[0].test.iter().find(|spread| spread.metric == "acc1").unwrap();
    assert!((acc1.mean - 0.633_333_333_333_333_3).abs() < 1e-15, "{acc1:?}");
    assert!((acc1.sd - 0.152_752_523_165_194_7).abs() < 1e-15, "{acc1:?}");
    assert!(groups[0].test.iter().all(|spread| spread.metric != "acc5"), "there is no value");
    let twice = [runs[0].clone(), runs[0].clone()];
    assert!(compare(&twice).unwrap().groups.is_empty(), "a run beside itself says nothing of the spread");
}

#[test]
fn only_run_folders_that_nobody_uses_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let refused = || doom(&run).unwrap_err().to_string();
    begun(&run, &with_seed(1), &[0.5]);
    let held = RunFolder::open(&run).unwrap();
    assert!(refused().ends_with("another process is working on this run"));
    drop(held);
    fs::create_dir(run.join("mine")).unwrap();
    assert!(refused().contains("holds a folder, `mine`"));
    fs::remove_dir(run.join("mine")).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&run, dir.path().join("link")).unwrap();
        for link in ["link", "link/"] {
            assert!(doom(&dir.path().join(link)).unwrap_err().to_string().contains("is a link"));
        }
    }
    fs::create_dir(dir.path().join("project")).unwrap();
    fs::write(dir.path().join("project/config.toml"), "").unwrap();
    let message = doom(&dir.path().join("project")).unwrap_err().to_string();
    assert!(message.ends_with("has too little of a run folder to be removed as one"), "{message}");
    assert!(doom(&dir.path().join("project/config.toml")).is_err());

    doom(&run).unwrap().remove().unwrap();
    drop(RunFolder::create(&dir.path().join("never begun")).unwrap());
    doom(&dir.path().join("never begun")).unwrap().remove().unwrap();
    let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["link", "project"]);
}
