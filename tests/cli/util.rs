//! A folder to work in, images to work on, and a way to run the program that checks what must always hold.

use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;
use std::{fs, process, thread};

use serde_json::Value;

/// The program under test.
pub(crate) const VPT: &str = env!("CARGO_BIN_EXE_vpt");

/// A small checkpoint of the given family.
pub(crate) fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name).to_str().unwrap().to_owned()
}

/// A folder of its own for a test, and what failed in it so far.
pub(crate) struct Sandbox(tempfile::TempDir, Mutex<Vec<String>>);

impl Drop for Sandbox {
    fn drop(&mut self) {
        let failed = self.1.get_mut().unwrap();
        assert!(failed.is_empty() || thread::panicking(), "{} cases failed:\n{}", failed.len(), failed.join("\n\n"));
    }
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap(), Mutex::default())
    }

    /// Goes on where `check` panics, and fails at the end of the test: a table's cases are all looked at.
    pub(crate) fn holds(&self, case: &str, check: impl FnOnce()) {
        if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(check)) {
            let text = payload.downcast_ref::<String>().cloned().unwrap_or_default();
            self.1.lock().unwrap().push(format!("{case}: {text}"));
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// An image folder `name` without parts: `each` noisy images of each of three colours.
    pub(crate) fn colours(&self, name: &str, each: u32) {
        for (class, colour) in [("blue", [40u8, 40, 200]), ("dark_red", [120, 20, 20]), ("green", [40, 200, 40])] {
            let folder = self.path(name).join(class);
            fs::create_dir_all(&folder).unwrap();
            for i in 0..each {
                let image = image::RgbImage::from_fn(24, 20, |x, y| {
                    let noise = (x * 31 + y * 57 + i * 101 + x * y * 7) % 61;
                    image::Rgb(colour.map(|v| v.saturating_add(noise as u8)))
                });
                image.save(folder.join(format!("{i:03}.png"))).unwrap();
            }
        }
    }

    /// A drawn data set of boxes `name` in the COCO layout: `images` pictures of 48 x 48 pixels.
    pub(crate) fn boxes(&self, name: &str, images: u32) {
        let images = images.to_string();
        self.vpt(&["data", "make", "shapes", "--task", "detect", "--images", &images, "--size", "48", "--out", name])
            .ok();
    }

    /// A folder of drawn shapes with masks, 48 x 48 pixels.
    pub(crate) fn masks(&self, name: &str, images: u32) {
        let images = images.to_string();
        self.vpt(&["data", "make", "shapes", "--task", "segment", "--images", &images, "--size", "48", "--out", name])
            .ok();
    }

    /// Runs the program in this folder.
    pub(crate) fn vpt(&self, args: &[&str]) -> Run {
        finish(self.command(args), args)
    }

    /// [`Sandbox::vpt`] for what must be refused without effort: the system ends the program where it takes more than two
    /// seconds of a CPU or 512 MiB of addresses.
    pub(crate) fn vpt_within_limits(&self, args: &[&str]) -> Run {
        finish(limited(self.command(args)), args)
    }

    /// The program in this folder, without the user's caches.
    pub(crate) fn command(&self, args: &[&str]) -> process::Command {
        let mut command = process::Command::new(VPT);
        command.args(args).current_dir(self.0.path()).env("HOME", self.0.path()).stdin(Stdio::null());
        for variable in
            ["HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "VPT_CACHE", "RUST_BACKTRACE"]
        {
            command.env_remove(variable);
        }
        command
    }

    /// Trains on `colours` with the ViT fixture into the folder `run`.
    pub(crate) fn trained(&self, run: &str, more: &[&str]) -> Run {
        if !self.path("colours").exists() {
            self.colours("colours", 20);
        }
        let vit = fixture("vit");
        let args = ["train", "--backbone", &vit, "--data", "colours", "--out", run];
        self.vpt(&[&args, more].concat()).ok()
    }

    /// A run of two epochs on `masks` with what prompts have learned as its result.
    pub(crate) fn segmented(&self, run: &str, more: &[&str]) -> Run {
        let clip = fixture("clip");
        let args = ["train", "--task", "segment", "--backbone", &clip, "--data", "masks", "--image-size", "32"];
        let learns = ["--epochs", "2", "--lr", "0.1", "--keep-better", "false", "--out", run];
        self.vpt(&[&args[..], &learns, more].concat()).ok()
    }
}

/// The same command under the limits of [`Sandbox::vpt_within_limits`], where the system has such limits.
pub(crate) fn limited(command: process::Command) -> process::Command {
    if !cfg!(target_os = "linux") {
        return command;
    }
    let mut shell = process::Command::new("sh");
    shell.args(["-c", "ulimit -v 524288 && ulimit -t 2 && exec \"$0\" \"$@\""]).arg(command.get_program());
    shell.args(command.get_args()).stdin(Stdio::null());
    // Every thread that takes memory would reserve addresses of its own.
    shell.env("MALLOC_ARENA_MAX", "1");
    if let Some(folder) = command.get_current_dir() {
        shell.current_dir(folder);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

/// Runs what [`Sandbox::command`] has made of `args`.
pub(crate) fn finish(command: process::Command, args: &[&str]) -> Run {
    let output = assert_cmd::Command::from_std(command).timeout(Duration::from_secs(200)).output().unwrap();
    let run = Run {
        args: args.join(" "),
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    run.check();
    run
}

/// What a run of the program said.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) args: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// What holds for every run whose output is not a terminal.
    fn check(&self) {
        assert!(self.code.is_some(), "`vpt {}` was killed or timed out: {}", self.args, self.stderr);
        for text in [&self.stdout, &self.stderr] {
            assert!(!text.contains("panicked") && !text.contains("internal fault"), "{self:#?}");
            assert!(!text.contains('\u{1b}'), "control sequences in a pipe: {self:#?}");
        }
    }

    /// It succeeded.
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// It failed with exit code 1 and one line that contains `parts`; nothing was printed as a result.
    pub(crate) fn fails(self, parts: &[&str]) -> Self {
        assert_eq!(self.code, Some(1), "{self:#?}");
        self.complains(parts)
    }

    /// It refused its command line with exit code 2 and a message that contains `parts`.
    pub(crate) fn refuses(self, parts: &[&str]) -> Self {
        assert_eq!(self.code, Some(2), "{self:#?}");
        self.complains(parts)
    }

    fn complains(self, parts: &[&str]) -> Self {
        assert_eq!(self.stdout, "", "{self:#?}");
        let errors: Vec<&str> = self.stderr.lines().skip_while(|line| !line.starts_with("error: ")).collect();
        // Of our own errors there is one line; clap adds a hint and the usage.
        let most = if self.stderr.contains("For more information, try '--help'") { 12 } else { 1 };
        assert!((1..=most).contains(&errors.len()), "{self:#?}");
        assert!(errors.iter().all(|line| line.chars().count() <= 1000), "nobody reads that: {self:#?}");
        for part in parts {
            assert!(self.stderr.contains(part), "no {part:?} in {self:#?}");
        }
        self
    }

    /// stdout as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

/// The keys of a JSON object, in order.
pub(crate) fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The number at `pointer`.
pub(crate) fn number(value: &Value, pointer: &str) -> f64 {
    value.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number at {pointer} in {value:#}"))
}

/// The JSON file `path`.
pub(crate) fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Copies the folder `from` and all in it.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Names of the files in a folder, in order.
pub(crate) fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Fields of `results.json` in order; `of_task`: those that not every task writes, each list behind a field that all have.
pub(crate) fn result_fields(of_task: &[(&str, &[&str])]) -> Vec<String> {
    let common = [
        "task",
        "method",
        "backbone",
        "data",
        "seed",
        "classes",
        "train_images",
        "trainable_params",
        "backbone_params",
        "best_epoch",
        "val",
        "test",
        "lr",
        "wall_s",
        "img_per_s",
        "peak_rss_bytes",
        "energy",
    ];
    let behind = |field| of_task.iter().filter(move |(before, _)| *before == field).flat_map(|(_, own)| *own);
    let fields = common.iter().flat_map(|field| std::iter::once(field).chain(behind(*field)));
    fields.map(|&field| field.to_owned()).collect()
}

/// Names of the files of a finished run, in order; `of_task` are those that not every task writes.
pub(crate) fn run_files(of_task: &[&str]) -> Vec<String> {
    let common = [
        ".lock",
        "best.safetensors",
        "checkpoint.safetensors",
        "config.toml",
        "curves.svg",
        "environment.json",
        "last.safetensors",
        "metrics.jsonl",
        "mistakes.html",
        "results.json",
        "split.json",
        "val_predictions.jpg",
    ];
    let mut names: Vec<String> = common.iter().chain(of_task).map(|&name| name.to_owned()).collect();
    names.sort();
    names
}
