//! The library as a program uses it: every example, and training and answers from memory held against those from files.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its files fails")]

use std::{cell::RefCell, fs, path::Path};

use vpt::{
    Event, FrozenBackbone, ImageAnswer, ImageSource, LearnedTask, MemorySet, Observer, Rect, TrainedRun, Trainer,
    TrainingData, labelled, ndarray::Array4, pixels, resume, shapes,
};

thread_local! {
    static SAID: RefCell<String> = const { RefCell::new(String::new()) };
}

fn say(line: &str) {
    SAID.with_borrow_mut(|said| {
        said.push_str(line);
        said.push('\n');
    });
}

/// In the examples below: what they print is kept, to be held against the documentation.
macro_rules! println {
    ($($line:tt)*) => {
        crate::say(&format!($($line)*))
    };
}

#[path = "../examples/detect.rs"]
mod detect;
#[path = "../examples/embed_search.rs"]
mod embed_search;
#[path = "../examples/many_tasks.rs"]
mod many_tasks;
#[path = "../examples/own_method.rs"]
mod own_method;
#[path = "../examples/soft_prompt.rs"]
mod soft_prompt;
#[path = "../examples/train_folder.rs"]
mod train_folder;

/// Whether two lines say the same: numbers with decimals may differ by a fifth, since instruction sets round differently.
fn alike(found: &str, expected: &str) -> bool {
    let (mut found, mut expected) = (found.split_whitespace(), expected.split_whitespace());
    let is_alike = found.by_ref().zip(expected.by_ref()).all(|(a, b)| {
        let number = |word: &str| word.contains('.').then(|| word.trim_end_matches(',').parse::<f64>().ok()).flatten();
        match (number(a), number(b)) {
            (Some(a), Some(b)) => (a - b).abs() <= 0.2 * b.abs().max(0.5),
            _ => a == b,
        }
    });
    is_alike && found.next().is_none() && expected.next().is_none()
}

/// Runs an example and holds what it prints against the page on the library, which shows it.
fn example(name: &str, main: fn() -> Result<(), Box<dyn std::error::Error>>) {
    main().unwrap();
    let said = SAID.with_borrow_mut(std::mem::take);
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/library.md")).unwrap();
    let (_, block) = page.split_once(&format!("`examples/{name}.rs`\n")).expect("the page shows the example");
    let (_, block) = block.split_once("```text\n").unwrap();
    let (shown, _) = block.split_once("```").unwrap();
    let same =
        said.lines().count() == shown.lines().count() && said.lines().zip(shown.lines()).all(|(a, b)| alike(a, b));
    assert!(same, "{name} prints\n{said}and docs/library.md shows\n{shown}");
}

#[test]
fn train_folder_prints_what_the_page_shows() {
    example("train_folder", train_folder::main);
}

#[test]
fn many_tasks_prints_what_the_page_shows() {
    example("many_tasks", many_tasks::main);
}

#[test]
fn embed_search_prints_what_the_page_shows() {
    example("embed_search", embed_search::main);
}

/// What an example prints of a value that it calls `name`, in its last line that does.
fn printed(said: &str, name: &str) -> Option<f64> {
    let (_, rest) = said.rsplit_once(name)?;
    rest.split_whitespace().next()?.trim_end_matches(',').parse().ok()
}

#[test]
fn a_detector_is_learned_from_boxes_in_memory() {
    detect::main().unwrap();
    let said = SAID.with_borrow_mut(std::mem::take);
    assert!(printed(&said, "AP50 on test: ").is_some_and(|ap| (0.0..=1.0).contains(&ap)), "{said}");
}

#[test]
fn a_part_of_ones_own_learns() {
    own_method::main().unwrap();
    let said = SAID.with_borrow_mut(std::mem::take);
    assert!(printed(&said, "accuracy on test: ").is_some_and(|accuracy| accuracy > 0.5), "{said}");
}

#[test]
fn one_soft_prompt_learns() {
    soft_prompt::main().unwrap();
    let said = SAID.with_borrow_mut(std::mem::take);
    let (first, _) = said.split_once('\n').unwrap();
    let (begun, ended) = (printed(first, "loss ").unwrap(), printed(&said, "loss ").unwrap());
    assert!(ended < begun, "{said}");
}

/// Drawn pictures of a few classes.
fn drawn() -> vpt::Dataset {
    let all = shapes::dataset(&shapes::ShapesConfig { images: 512, ..Default::default() }).unwrap();
    all.of_classes(|name| name.starts_with("red"))
}

fn pairs(samples: &[vpt::engine::Sample]) -> Vec<(ImageSource, u32)> {
    samples.iter().map(|sample| (sample.image.clone(), sample.label)).collect()
}

fn quick(method: &str) -> Trainer {
    Trainer::new("clip-nano").method(method).unwrap().epochs(1).threads(2)
}

fn task_bytes(run: &TrainedRun) -> Vec<u8> {
    fs::read(run.folder().join("best.safetensors")).unwrap()
}

#[test]
fn images_in_memory_are_learned_from_as_those_in_files() {
    let dir = tempfile::tempdir().unwrap();
    let data = drawn();
    for split in [vpt::data::Split::Train, vpt::data::Split::Val, vpt::data::Split::Test] {
        for (i, sample) in data.part(split).iter().enumerate() {
            let class = dir.path().join("set").join(split.name()).join(&data.classes[sample.label as usize]);
            fs::create_dir_all(&class).unwrap();
            let picture = sample.load().unwrap();
            let file = class.join(format!("{i}.png"));
            fs::write(&file, vpt::report::picture_bytes(&picture, &file).unwrap()).unwrap();
        }
    }
    let from_files = quick("vpt-deep").train(&dir.path().join("set")).unwrap();
    let set = MemorySet::new(&data.classes, pairs(&data.train)).with_val(pairs(&data.val)).with_test(pairs(&data.test));
    let from_memory = quick("vpt-deep").train(set).unwrap();
    assert_eq!(task_bytes(&from_memory), task_bytes(&from_files));
    assert_eq!(from_memory.test(), from_files.test());

    // And asked about, whether they are files, decoded, or an array.
    let task = from_memory.task().unwrap();
    let files: Vec<_> =
        fs::read_dir(dir.path().join("set/test/red star")).unwrap().map(|e| e.unwrap().path()).collect();
    let decoded: Vec<_> = files.iter().map(|file| vpt::decode(file).unwrap()).collect();
    let arrays: Vec<_> = decoded.iter().map(|image| pixels(image).unwrap()).collect();
    let views: Vec<_> = arrays.iter().map(|array| array.view()).collect();
    let array: Array4<u8> = vpt::ndarray::stack(vpt::ndarray::Axis(0), &views).unwrap();
    let answers = task.predict(files.as_slice()).unwrap();
    assert_eq!(task.predict(decoded.as_slice()).unwrap(), answers);
    assert_eq!(task.predict(&array).unwrap(), answers);
    let probabilities = task.probabilities(&array).unwrap();
    assert_eq!(probabilities.dim(), (files.len(), 8));
    for (row, answer) in probabilities.rows().into_iter().zip(&answers) {
        let ImageAnswer::Class(guesses) = answer else { panic!("{answer:?}") };
        assert_eq!(guesses.len(), 5);
        assert!((row.sum() - 1.).abs() < 1e-5);
        assert!(guesses.iter().all(|guess| (f64::from(row[guess.class]) - guess.probability).abs() < 1e-5));
    }
}

/// Stops after some batches.
struct Stop {
    after: usize,
    saw: Vec<String>,
}

impl Observer for Stop {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Step { step, .. } => self.saw.push(format!("step {step}")),
            Event::Finished(_) => self.saw.push("finished".to_owned()),
            _ => {}
        }
    }

    fn stop(&self) -> bool {
        self.saw.len() >= self.after
    }
}

#[test]
fn a_run_is_watched_stopped_and_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let data = drawn();
    let set = || MemorySet::new(&data.classes, pairs(&data.train));
    let trainer = || quick("vpt-deep").batch_size(8);
    let whole = trainer().train(set()).unwrap();
    let folder = dir.path().join("run");
    let mut stop = Stop { after: 2, saw: Vec::new() };
    assert!(trainer().run_folder(&folder).train_watched(set(), &mut stop).unwrap().is_none());
    assert_eq!(stop.saw, ["step 1", "step 2"]);
    let without = resume(&folder, None, &mut vpt::Silent).unwrap_err().to_string();
    assert!(without.contains("images that a program has in memory"), "{without}");
    let run = resume(&folder, Some(TrainingData::from(set())), &mut vpt::Silent).unwrap().unwrap();
    assert_eq!(task_bytes(&run), task_bytes(&whole));
    assert!(LearnedTask::open(&folder).is_ok());
    // A folder that nobody asked for goes with the run.
    let kept = whole.folder().to_path_buf();
    assert!(kept.exists());
    drop(whole);
    assert!(!kept.exists());
}

#[test]
fn several_classes_and_boxes_are_learned_from_memory() {
    let scenes: Vec<_> = (0..120)
        .map(|i| {
            let scene = shapes::Scene::several(&mut shapes::rng(2, 7, i), shapes::Style::Plain, shapes::Pairs::All, 2);
            (shapes::draw(&scene, 64), scene)
        })
        .collect();
    let classes = shapes::Shape::ALL.map(shapes::Shape::word);
    let images: Vec<_> = scenes.iter().map(|(drawing, _)| drawing.image.clone()).collect();
    let labels: Vec<Vec<u32>> =
        scenes.iter().map(|(_, scene)| scene.objects.iter().map(|object| object.shape as u32).collect()).collect();
    let set = MemorySet::new(&classes, labelled(images.as_slice(), &labels).unwrap());
    let task = quick("linear").train(set).unwrap().task().unwrap();
    assert_eq!(task.kind(), vpt::Task::Multilabel);
    let (answers, sure) =
        (task.predict(images[..3].to_vec()).unwrap(), task.probabilities(images[..3].to_vec()).unwrap());
    for (answer, row) in answers.iter().zip(sure.rows()) {
        let ImageAnswer::Classes(guesses) = answer else { panic!("{answer:?}") };
        assert_eq!(guesses.len(), row.iter().filter(|&&probability| probability >= 0.5).count());
    }
    assert!(task.boxes(images[..1].to_vec()).unwrap_err().to_string().contains("classes, not boxes"));

    let boxes: Vec<Vec<(u32, Rect)>> = scenes
        .iter()
        .map(|(drawing, scene)| {
            let boxes = scene.objects.iter().zip(&drawing.extents).map(|(object, extent)| {
                let [x, y, width, height] = [extent.x, extent.y, extent.width, extent.height].map(|v| v as f64);
                (object.shape as u32, Rect { x, y, width, height })
            });
            boxes.collect()
        })
        .collect();
    let set = MemorySet::new(&classes, labelled(images.as_slice(), &boxes).unwrap());
    let task = quick("linear").epochs(2).train(set).unwrap().task().unwrap();
    assert_eq!(task.kind(), vpt::Task::Detect);
    let options = vpt::AnswerOptions { min_score: Some(0.), ..Default::default() };
    let ImageAnswer::Boxes(found) = &task.predict_with(images[..1].to_vec(), &options).unwrap()[0] else { panic!() };
    assert!(found.is_sorted_by(|a, b| a.score >= b.score) && !found.is_empty());
    assert_eq!(task.boxes(images[..2].to_vec()).unwrap()[0].ncols(), 6);
    assert!(task.probabilities(images[..1].to_vec()).unwrap_err().to_string().contains("boxes, not classes"));
}

#[test]
fn what_cannot_be_is_refused_by_its_name() {
    let refusal = |result: vpt::Result<Trainer>| result.err().unwrap().to_string();
    assert!(refusal(Trainer::new("clip-nano").method("vpt-deap")).starts_with("method: `vpt-deap`"));
    assert_eq!(
        refusal(Trainer::new("clip-nano").set("prompt_token", 4)),
        "prompt_token: there is no such setting; did you mean prompt_tokens?"
    );
    assert!(refusal(Trainer::new("clip-nano").set("prompt_tokens", "many")).starts_with("prompt_tokens: "));
    let wrong = quick("linear").set("task", "detect").unwrap().train(drawn()).unwrap_err().to_string();
    assert_eq!(wrong, "task: detect, and the data is for classify");
    let backbone = FrozenBackbone::open("clip-nano").unwrap();
    assert_eq!(backbone.zero_shot(Vec::<ImageSource>::new(), &["cat"]).unwrap().dim(), (0, 1));
    assert!(backbone.zero_shot(Vec::<ImageSource>::new(), &[""; 0]).is_err());
    let broken = vpt::Rgb8 { width: 9, height: 9, pixels: vec![0; 5] };
    let message = backbone.embed_images(vec![broken]).unwrap_err().to_string();
    assert!(message.contains("9x9 pixels of three colors are 243 values, not 5"), "{message}");
}

#[test]
fn classes_are_told_by_their_names_alone() {
    let data = drawn();
    let images: Vec<_> = data.test.iter().map(|sample| sample.image.clone()).collect();
    let backbone = FrozenBackbone::open("clip-nano").unwrap();
    let probabilities = backbone.zero_shot(images.as_slice(), &data.classes).unwrap();
    let right = data.test.iter().zip(probabilities.rows()).filter(|(sample, row)| {
        assert!((row.sum() - 1.).abs() < 1e-5);
        row.iter().all(|&other| other <= row[sample.label as usize])
    });
    assert!(right.count() * 10 > images.len() * 8);
}
