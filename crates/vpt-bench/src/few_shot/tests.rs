//! The grid in this process: whole jobs on a small random backbone and small pictures.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use rand::Rng;
use serde_json::Value;

use super::*;
use vpt_backbone::{Backbone, OpenOptions, class_texts::Prompts};
use vpt_base::{Message, random::stream};
use vpt_data::{
    Dataset, FewShot, Split,
    boxes::{BoxDataset, BoxShots},
    shapes::{ShapesConfig, ShapesTask, write_coco},
};
use vpt_model::{
    methods::Method,
    metrics::{Scores, bootstrap::Interval},
    model::{TaskModel, TaskOptions},
};
use vpt_train::{
    config::{LearningRate, RunConfig, Select, Task},
    eval::{evaluate, zero_shot::ZeroShotPass},
    train::Silent,
};

const CLASSES: [(&str, [u8; 3]); 4] =
    [("blue", [40, 40, 160]), ("green", [40, 160, 40]), ("red", [160, 40, 40]), ("white", [150, 150, 150])];

/// A folder with pictures of four classes, 5 to train on, 4 and 6 for the rest, and tables that say which is which. The
/// labels of test are `turn` classes further on than they should be.
fn pictures(dir: &Path, turn: usize) -> String {
    fs::create_dir_all(dir).unwrap();
    for (split, count) in [("train", 5), ("val", 4), ("test", 6)] {
        let mut table = "path,label\n".to_owned();
        for (class, (name, colour)) in CLASSES.iter().enumerate() {
            let label = if split == "test" { CLASSES[(class + turn) % CLASSES.len()].0 } else { name };
            for i in 0..count {
                let mut rng = stream(5, &format!("{split} {name}"), 0, i);
                let pixels: Vec<u8> = (0..36 * 32 * 3).map(|p| colour[p % 3] + rng.random_range(0..90u8)).collect();
                let file = format!("{split}-{name}-{i}.png");
                image::save_buffer(dir.join(&file), &pixels, 36, 32, image::ColorType::Rgb8).unwrap();
                writeln!(table, "{file},{label}").unwrap();
            }
        }
        fs::write(dir.join(format!("{split}.csv")), table).unwrap();
    }
    dir.display().to_string()
}

fn backbone() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/clip").display().to_string()
}

fn grid(data: &str, out: PathBuf, methods: &[&str]) -> GridConfig {
    GridConfig {
        base: RunConfig { backbone: backbone(), threads: Some(2), epochs: Some(2), ..RunConfig::default() },
        data: vec![data.to_owned()],
        methods: methods.iter().map(|name| name.parse().unwrap()).collect(),
        shots: vec![1, 2],
        seeds: vec![1, 2],
        mode: Mode::FewShot,
        targets: Vec::new(),
        schedule: GridSchedule::Published,
        classnames: Vec::new(),
        templates: Vec::new(),
        draws: None,
        out,
        keep_runs: false,
    }
}

/// Does jobs in this process.
#[derive(Default)]
struct InProcess {
    /// Names of the jobs it did.
    done: Vec<String>,
    /// How many it does before it is stopped.
    most: Option<usize>,
    /// The job that it has no luck with.
    unlucky: Option<String>,
}

impl Worker for InProcess {
    fn perform(&mut self, job: &Job) -> Result<Performed, Message> {
        self.done.push(job.name.clone());
        if self.unlucky.as_ref() == Some(&job.name) {
            return Err("out of luck".into());
        }
        perform(job, &mut Silent).map_err(Message::from)
    }

    fn event(&mut self, _: &GridEvent<'_>) {}

    fn stop(&self) -> bool {
        self.most.is_some_and(|most| self.done.len() >= most)
    }
}

/// Runs `config` to its end: what the folder holds, and the jobs that were done.
fn finish(config: &GridConfig, mut worker: InProcess) -> (Summary, usize, Vec<String>) {
    match run(config, None, &mut worker).unwrap() {
        GridOutcome::Finished { summary, failed } => (*summary, failed, worker.done),
        GridOutcome::Interrupted => panic!("interrupted"),
    }
}

/// What does not depend on the time it took.
fn timeless(summary: &Summary) -> Vec<JobResult> {
    let strip = |job: &JobResult| JobResult { wall_s: 0., peak_rss_bytes: None, energy: None, ..job.clone() };
    summary.jobs.iter().map(strip).collect()
}

#[test]
fn finished_jobs_are_skipped_and_a_stopped_grid_goes_on_to_the_same_results() {
    let dir = tempfile::tempdir().unwrap();
    let data = pictures(&dir.path().join("data"), 0);
    let methods = ["linear", "vpt-shallow", "zero-shot"];
    let (whole, failed, done) = finish(&grid(&data, dir.path().join("whole"), &methods), InProcess::default());
    assert_eq!((failed, done.len(), whole.jobs.len()), (0, 9, 9));
    let stopped = grid(&data, dir.path().join("stopped"), &methods);
    let mut worker = InProcess { most: Some(4), ..InProcess::default() };
    assert!(matches!(run(&stopped, None, &mut worker).unwrap(), GridOutcome::Interrupted));
    let (gone_on, failed, done) = finish(&stopped, InProcess::default());
    assert_eq!((failed, done.len()), (0, 5), "{done:?}");
    assert_eq!(timeless(&gone_on), timeless(&whole));
    assert!(finish(&stopped, InProcess::default()).2.is_empty());
    let read = |out: &str| fs::read_to_string(dir.path().join(out).join("table.md")).unwrap();
    assert_eq!(read("stopped"), read("whole"));
    assert_eq!(fs::read_dir(dir.path().join("whole/work")).unwrap().count(), 0, "nothing is left of the work");
    let wanted = [("linear", 1), ("linear", 2), ("vpt-shallow", 1), ("vpt-shallow", 2), ("zero-shot", 0)];
    for (method, shots) in wanted {
        let cell = whole.cells.iter().find(|cell| cell.method.name() == method && cell.shots == shots).unwrap();
        let jobs = whole.jobs.iter().filter(|job| job.method == cell.method && job.shots == shots);
        let scores: Vec<f64> = jobs.map(|job| job.parts[0].metrics.main()).collect();
        assert!((cell.main().mean - scores.iter().sum::<f64>() / scores.len() as f64).abs() < 1e-12);
        assert_eq!(cell.main().sd.is_some(), shots > 0);
    }
}

#[test]
fn a_run_that_was_cut_off_is_taken_up_and_one_whose_result_was_not_written_is_measured_again() {
    let dir = tempfile::tempdir().unwrap();
    let data = pictures(&dir.path().join("data"), 0);
    let mut config = grid(&data, dir.path().join("out"), &["vpt-deep"]);
    (config.shots, config.seeds) = (vec![2], vec![1]);
    let (_, jobs) = config.jobs().unwrap();
    is_measured_again(&jobs[0]);
    assert!(!jobs[0].work_folder().exists());
}

/// A job whose run is finished in its folder, and whose result is not there, comes to the same result.
fn is_measured_again(job: &Job) {
    perform(job, &mut Silent).unwrap();
    let expected = job.result().unwrap().unwrap();
    fs::remove_file(job.result_file()).unwrap();
    let run = RunConfig { out: Some(job.run_folder()), ..job.config.clone() };
    vpt_train::train::run(&run, Path::new("unused"), &mut Silent).unwrap();
    perform(job, &mut Silent).unwrap();
    let again = job.result().unwrap().unwrap();
    assert_eq!((&again.parts, &again.learned), (&expected.parts, &expected.learned));
}

#[test]
fn changed_settings_are_told_and_more_jobs_are_added() {
    let dir = tempfile::tempdir().unwrap();
    let data = pictures(&dir.path().join("data"), 0);
    let config = grid(&data, dir.path().join("out"), &["linear"]);
    finish(&config, InProcess::default());
    let refusal = |config: &GridConfig| run(config, None, &mut InProcess::default()).unwrap_err().to_string();
    let mut other = config.clone();
    other.base.epochs = Some(3);
    let message = refusal(&other);
    assert!(
        message.contains("data-linear-1-1.json: the result of other settings (epochs 2 there, 3 here)"),
        "{message}"
    );
    let other = GridConfig { schedule: GridSchedule::Quick, ..config.clone() };
    assert!(refusal(&other).contains("holds another grid: few-shot on clip"), "{}", refusal(&other));
    // Where and how fast a result is computed makes no other result.
    let mut more = GridConfig { shots: vec![1, 2, 3], ..config };
    (more.base.micro_batch, more.base.threads) = (Some(1), Some(1));
    assert_eq!(finish(&more, InProcess::default()).2, ["data-linear-3-1", "data-linear-3-2"]);
}

#[test]
fn a_failed_job_is_reported_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let data = pictures(&dir.path().join("data"), 0);
    let config = grid(&data, dir.path().join("out"), &["linear"]);
    let unlucky = || InProcess { unlucky: Some("data-linear-1-2".to_owned()), ..InProcess::default() };
    let (summary, failed, done) = finish(&config, unlucky());
    assert_eq!((failed, done.len(), summary.jobs.len()), (1, 4, 3));
    assert_eq!(summary.failures, [Failure { job: "data-linear-1-2".into(), error: "out of luck".into() }]);
    let read = |name: &str| fs::read_to_string(config.out.join(name)).unwrap();
    assert!(console(&summary).contains("failed: data-linear-1-2: out of luck"));
    for name in ["table.md", "table.tex", "report.html", "results.json"] {
        assert!(read(name).contains("out of luck"), "{name}");
    }
    assert!(read("table.md").contains("(1 of 2 seeds)"), "{}", read("table.md"));
    let (summary, failed, done) = finish(&config, InProcess::default());
    assert_eq!((failed, done, summary.failures.len()), (0, vec!["data-linear-1-2".to_owned()], 0));
}

#[test]
fn merging_twice_gives_the_same_bytes_and_holds_everything() {
    let dir = tempfile::tempdir().unwrap();
    let data = pictures(&dir.path().join("data"), 0);
    let config = grid(&data, dir.path().join("out"), &["zero-shot", "linear", "vp-pad", "vpt-deep+bias"]);
    finish(&config, InProcess::default());
    let files = ["results.json", "results.csv", "table.md", "table.tex", "curves.svg", "report.html"];
    let read = || files.map(|name| fs::read_to_string(config.out.join(name)).unwrap());
    let first = read();
    merge(&config.out).unwrap();
    assert_eq!(read(), first);
    let [json, csv, _, tex, svg, html] = first;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["jobs"].as_array().unwrap().len(), 13);
    // Three methods for each number of shots make six pairs with zero-shot.
    assert_eq!(json["differences"].as_array().unwrap().len(), 12);
    assert_eq!(csv.lines().count(), 14);
    assert!(html.contains("<summary>vpt-deep+bias, "), "{html}");
    assert!(csv.starts_with("dataset,method,shots,seed,part,acc1,"), "{csv}");
    assert!(tex.contains("\\begin{tabular}{lrrr}"), "{tex}");
    for text in [&svg, &html] {
        assert!(!text.contains("NaN") && text.matches("<circle").count() == 7, "{text}");
    }
    assert!(!html.replace("http://www.w3.org/2000/svg", "").contains("http"), "the page needs no network");
}

#[test]
fn draws_are_written_read_back_and_shared_by_all_methods() {
    let dir = tempfile::tempdir().unwrap();
    let data = pictures(&dir.path().join("data"), 0);
    let draws = dir.path().join("draws");
    let mut config = grid(&data, dir.path().join("out"), &["linear", "vp-full"]);
    (config.draws, config.keep_runs, config.shots) = (Some(draws.clone()), true, vec![2]);
    let dataset = Dataset::open(&data, 1).unwrap();
    // A draw that this program would not make.
    let path = draws.join("data-2-1.json");
    fs::create_dir_all(&draws).unwrap();
    let given = FewShot { seed: 1, ..FewShot::draw(&dataset, 2, 77).unwrap() };
    assert_ne!(given, FewShot::draw(&dataset, 2, 1).unwrap());
    given.write(&path).unwrap();
    finish(&config, InProcess::default());
    let of_run = |name: &str| FewShot::read(&config.out.join("runs").join(name).join("few_shot.json")).unwrap();
    for method in ["linear", "vp-full"] {
        assert_eq!(of_run(&format!("data-{method}-2-1")), given);
        assert_eq!(of_run(&format!("data-{method}-2-2")), FewShot::draw(&dataset, 2, 2).unwrap());
    }
    assert_eq!(FewShot::read(&draws.join("data-2-2.json")).unwrap(), FewShot::draw(&dataset, 2, 2).unwrap());
    fs::copy(draws.join("data-2-2.json"), &path).unwrap();
    let message = config.jobs().unwrap_err().to_string();
    assert!(message.ends_with("data-2-1.json: a draw of 2 shots by seed 2, not of 2 by 1"), "{message}");
}

#[test]
fn base_and_new_classes_are_told_apart_among_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let data = pictures(&dir.path().join("data"), 0);
    let mut config = grid(&data, dir.path().join("out"), &["zero-shot"]);
    config.mode = Mode::BaseToNew;
    let (summary, failed, _) = finish(&config, InProcess::default());
    assert_eq!((failed, summary.jobs.len()), (0, 1));
    let backbone = Backbone::open(&backbone(), &OpenOptions::default()).unwrap();
    let dataset = Dataset::open(&data, 1).unwrap();
    let mut scores = Vec::new();
    for (half, name) in [(Half::Base, "base"), (Half::New, "new")] {
        let part = half.of(&dataset);
        assert_eq!((part.classes.len(), part.test.len()), (2, 12));
        let (prompts, split) = (Prompts::of_names(&part.classes), Split::Test);
        let pass = ZeroShotPass { backbone: &backbone, dataset: &part, split, prompts: &prompts, threads: 2 };
        let tally = pass.one_class(&mut |_, _| {}).unwrap();
        assert_eq!(summary.jobs[0].part(name).unwrap().metrics, Scores::Classify(tally.metrics()));
        assert_eq!(summary.jobs[0].prompts[name].classnames, part.classes);
        scores.push(tally.metrics().acc1);
    }
    let mean = summary.cells.iter().find(|cell| cell.part == "harmonic mean").unwrap().main().mean;
    let expected = if scores[0] * scores[1] > 0. { 2. / (1. / scores[0] + 1. / scores[1]) } else { 0. };
    assert!((mean - expected).abs() < 1e-12, "{mean} {scores:?}");
    config.methods.push(GridMethod::Learned(Method::LINEAR));
    let message = config.jobs().unwrap_err().to_string();
    assert!(message.starts_with("base_to_new: method linear knows the classes it has learned"), "{message}");
}

#[test]
fn other_data_sets_are_measured_with_their_own_names() {
    let dir = tempfile::tempdir().unwrap();
    let [source, target] = ["source", "target"].map(|name| pictures(&dir.path().join(name), 0));
    let mut config = grid(&source, dir.path().join("out"), &["zero-shot"]);
    (config.mode, config.targets) = (Mode::Cross, vec![target]);
    let names = dir.path().join("names.txt");
    fs::write(&names, "a\nb\nc\nd\n").unwrap();
    config.classnames = vec![TextFile { data: Some("target".to_owned()), path: names }];
    let (summary, ..) = finish(&config, InProcess::default());
    let job = &summary.jobs[0];
    assert_eq!(job.parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>(), ["test", "target"]);
    assert_eq!(job.prompts["test"].classnames, ["blue", "green", "red", "white"]);
    assert_eq!(job.prompts["target"].classnames, ["a", "b", "c", "d"]);
    let html = fs::read_to_string(config.out.join("report.html")).unwrap();
    assert!(html.contains("a photo of a {}.") && html.contains("class names:\n  a\n  b"), "{html}");
    config.classnames[0].data = Some("elsewhere".to_owned());
    assert!(config.jobs().unwrap_err().to_string().contains("no data set is called elsewhere"));
}

#[test]
fn learned_texts_tell_classes_that_nothing_was_learned_of() {
    let dir = tempfile::tempdir().unwrap();
    let [data, target] = ["data", "target"].map(|name| pictures(&dir.path().join(name), 0));
    let names = dir.path().join("names.txt");
    fs::write(&names, "sky\ngrass\nrose\nsnow\n").unwrap();
    for method in ["coop", "cocoop", "ivlp", "maple", "promptsrc"] {
        for mode in [Mode::BaseToNew, Mode::Cross] {
            let out = dir.path().join(format!("{method}-{mode}"));
            let mut config = GridConfig { mode, shots: vec![2], seeds: vec![1], ..grid(&data, out, &[method]) };
            config.base.lr = Some(LearningRate::Value(0.01));
            if mode == Mode::Cross {
                (config.targets, config.base.epochs) = (vec![target.clone()], Some(1));
            }
            (config.keep_runs, config.base.threads) = (true, Some(1));
            config.classnames = vec![TextFile { data: None, path: names.clone() }];
            let (summary, failed, _) = finish(&config, InProcess::default());
            assert_eq!(failed, 0, "{:?}", summary.failures);
            let job = &summary.jobs[0];
            let run = config.out.join("runs").join(format!("data-{method}-2-1"));
            let options = TaskOptions { threads: 1, ..TaskOptions::default() };
            let task = TaskModel::open(&run, &options).unwrap();
            let (part, half, called) = match mode {
                Mode::BaseToNew => ("new", Half::New, ["rose", "snow"].as_slice()),
                _ => ("target", Half::All, ["sky", "grass", "rose", "snow"].as_slice()),
            };
            let learned = if mode == Mode::BaseToNew { 2 } else { 4 };
            assert_eq!(task.meta().classes.len(), learned);
            assert_eq!(task.meta().names_in_texts(), ["sky", "grass", "rose", "snow"][..learned]);
            // The same by the library: the learned texts with the other names in them.
            let dataset = half.of(&Dataset::open(if mode == Mode::Cross { &target } else { &data }, 1).unwrap());
            let called: Vec<String> = called.iter().map(|&name| name.to_owned()).collect();
            let named = task.with_named_classes(dataset.classes.clone(), Some(called.clone())).unwrap();
            let tally = evaluate(&named, &dataset, Split::Test, &mut |_, _| {}).unwrap();
            let found = job.part(part).unwrap();
            assert_eq!((found.images, found.metrics.main()), (dataset.test.len(), tally.metrics().acc1), "{method}");
            assert!((found.metrics.loss().unwrap() - tally.metrics().loss).abs() < 1e-5, "{method}");
            assert_eq!((&job.prompts[part].classnames, job.prompts[part].templates.len()), (&called, 0));
            if mode == Mode::BaseToNew {
                assert!(summary.cells.iter().any(|cell| cell.part == "harmonic mean"));
            }
        }
    }
}

/// The settings under which `method` makes the most choices: rates to try and epochs to select from, where it has any.
fn choosy(data: &str, out: PathBuf, method: GridMethod, select: Option<Select>) -> GridConfig {
    let mut config = GridConfig { methods: vec![method], shots: vec![3], seeds: vec![1], ..grid(data, out, &[]) };
    (config.schedule, config.keep_runs) = (GridSchedule::Quick, true);
    for lr in [Some(LearningRate::Auto), None] {
        for epochs in [Some(3), None] {
            for select in [select, None] {
                (config.base.lr, config.base.epochs, config.base.select) = (lr, epochs, select);
                if config.jobs().is_ok() {
                    return config;
                }
            }
        }
    }
    panic!("{method} cannot be run: {}", config.jobs().unwrap_err());
}

/// Every choice of a job: what it learned, its epoch, its temperature, the rates that it tried.
fn choices(config: &GridConfig) -> (String, String) {
    let (summary, failed, _) = finish(config, InProcess::default());
    assert_eq!(failed, 0, "{:?}", summary.failures);
    let JobResult { learned, best_epoch, temperature, val, image_passes, parts, .. } = &summary.jobs[0];
    let name = &config.jobs().unwrap().1[0].name;
    let search = fs::read(config.out.join("runs").join(name).join("lr_search.json")).unwrap_or_default();
    let search: Value = serde_json::from_slice(&search).unwrap_or_default();
    let tried = (&search["chosen"], &search["trials"]);
    (format!("{learned:?} {best_epoch:?} {temperature:?} {val:?} {image_passes} {tried:?}"), parts[0].correct.clone())
}

#[test]
fn no_method_chooses_anything_by_test_labels() {
    let dir = tempfile::tempdir().unwrap();
    let data = [0, 1].map(|turn| pictures(&dir.path().join(turn.to_string()).join("data"), turn));
    for method in GridMethod::all() {
        for select in [None, Some(Select::Best)] {
            let made = [0, 1].map(|turn| {
                let out = dir.path().join(format!("{turn}-{method}-{}", select.is_some()));
                choices(&choosy(&data[turn], out, method, select))
            });
            assert_eq!(made[0].0, made[1].0, "{method}: other labels of the test images, another choice");
            assert_ne!(made[0].1, made[1].1, "{method}: the labels of the test images are not looked at");
        }
    }
}

/// A grid of detectors on drawn shapes: 40 images to learn from, of 48 pixels, which are seen at 32.
fn boxes(dir: &Path, out: &str, methods: &[&str]) -> GridConfig {
    let data = dir.join("shapes");
    if !data.exists() {
        let config = ShapesConfig { images: 64, size: 48, task: ShapesTask::Detect, ..ShapesConfig::default() };
        write_coco(&data, &config).unwrap();
    }
    let mut grid = grid(&data.display().to_string(), dir.join(out), methods);
    (grid.base.task, grid.base.image_size, grid.shots) = (Task::Detect, Some(32), vec![1, 3]);
    grid
}

#[test]
fn detectors_learn_from_k_boxes_a_class_and_are_compared_by_ap() {
    let dir = tempfile::tempdir().unwrap();
    let config = boxes(dir.path(), "out", &["linear", "vpt-deep"]);
    let mut worker = InProcess { most: Some(3), ..InProcess::default() };
    assert!(matches!(run(&config, None, &mut worker).unwrap(), GridOutcome::Interrupted));
    let (summary, failed, done) = finish(&config, InProcess::default());
    assert_eq!((failed, done.len(), summary.jobs.len()), (0, 5, 8), "{:?}", summary.failures);
    let whole = boxes(dir.path(), "whole", &["linear", "vpt-deep"]);
    assert_eq!(timeless(&finish(&whole, InProcess::default()).0), timeless(&summary));
    let dataset = BoxDataset::open(&config.data[0], 1).unwrap();
    for job in &summary.jobs {
        let path = config.out.join(format!("draws/shapes-{}-{}.json", job.shots, job.seed));
        let draw = BoxShots::read(&path).unwrap();
        assert_eq!(draw, BoxShots::draw(&dataset, Path::new(&config.data[0]), job.shots, job.seed).unwrap());
        assert_eq!(job.train_images, draw.apply(&dataset).unwrap().train.len());
        let part = job.part("test").unwrap();
        let metrics = part.metrics.detect().unwrap();
        let matched = part.matched.as_ref().unwrap();
        assert_eq!(part.images, dataset.test.len());
        assert_eq!(matched.precision(&vec![1; part.images]), Some([metrics.ap, metrics.ap50]));
        assert!(job.val.as_ref().unwrap().detect().is_some() && part.correct.is_empty());
    }
    for cell in &summary.cells {
        let jobs = summary.jobs.iter().filter(|job| job.method == cell.method && job.shots == cell.shots);
        let scores: Vec<f64> = jobs.map(|job| job.parts[0].metrics.main()).collect();
        assert!((cell.main().mean - scores.iter().sum::<f64>() / 2.).abs() < 1e-12 && cell.second().is_some());
    }
    assert_eq!(summary.comparisons.len(), 2);
    for Comparison { interval, ap50, .. } in &summary.comparisons {
        for Interval { difference, low, high } in [*interval, ap50.unwrap()] {
            assert!(low <= difference && difference <= high, "{interval:?} {ap50:?}");
        }
    }
    let read = |name: &str| fs::read_to_string(config.out.join(name)).unwrap();
    let json: Value = serde_json::from_str(&read("results.json")).unwrap();
    assert_eq!(json["grid"]["task"], "detect");
    for field in
        ["/means/0/AP/mean", "/means/0/AP50/sd", "/differences/0/AP50/low", "/jobs/0/parts/0/AP75", "/jobs/0/val_AP"]
    {
        assert!(json.pointer(field).is_some_and(Value::is_number), "{field}");
    }
    assert!(read("results.csv").starts_with("dataset,method,shots,seed,part,AP,AP50,AP75,"), "{}", read("results.csv"));
    assert!(read("table.md").contains("k boxes a class") && read("table.md").contains("shapes: AP in percent"));
    assert!(read("curves.svg").contains("boxes a class; AP in percent"));
    assert!(read("report.html").contains("Average precision") && !read("report.html").contains("NaN"));
    assert!(merge(&config.out).is_ok() && JobResult::load(&config.out.join("jobs/shapes-linear-1-1.json")).is_ok());
}

#[test]
fn what_boxes_have_no_protocol_for_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = |config: &GridConfig| config.jobs().unwrap_err().to_string();
    let config = boxes(dir.path(), "out", &["linear"]);
    let other = boxes(dir.path(), "out", &["zero-shot"]);
    assert!(
        refusal(&other).starts_with("methods: zero-shot is not for detection; take linear, "),
        "{}",
        refusal(&other)
    );
    let other = GridConfig { mode: Mode::BaseToNew, ..config.clone() };
    assert_eq!(refusal(&other), "base_to_new: not for detection");
    let mut other = config.clone();
    other.base.task = Task::Multilabel;
    assert!(
        refusal(&other).starts_with("task: multilabel has no few-shot protocol here; take classify, detect or segment")
    );
    finish(&GridConfig { shots: vec![1], seeds: vec![1], ..config.clone() }, InProcess::default());
    let data = pictures(&dir.path().join("data"), 0);
    let other = grid(&data, config.out.clone(), &["linear"]);
    let message = run(&other, None, &mut InProcess::default()).unwrap_err().to_string();
    assert!(message.contains("holds another grid: few-shot of detect on clip"), "{message}");
}

#[test]
fn a_detector_whose_result_was_not_written_is_told_from_its_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = boxes(dir.path(), "out", &["linear"]);
    (config.shots, config.seeds) = (vec![3], vec![1]);
    let (_, jobs) = config.jobs().unwrap();
    is_measured_again(&jobs[0]);
}
