//! A run that is told to stop by a signal saves, says how to go on, and ends as if it had not been stopped.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};

use crate::util::{Sandbox, files, finish, fixture};

/// A run under way, whose messages are read as they come.
struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Running {
    fn begin(sandbox: &Sandbox, args: &[&str]) -> Self {
        let mut child = sandbox.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr }
    }

    /// Reads messages up to the first that contains `part`.
    fn wait_for(&mut self, part: &str) {
        let mut line = String::new();
        while !line.contains(part) {
            line.clear();
            assert!(self.stderr.read_line(&mut line).unwrap() > 0, "no line with {part:?} before the end");
        }
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// How it ended, and the rest of its messages.
    fn end(mut self) -> (ExitStatus, String) {
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap(), rest)
    }

    /// It saved what there was of the run `name`.
    fn saved(self, name: &str) {
        let (status, said) = self.end();
        assert_eq!(status.code(), Some(75), "{said}");
        let last = said.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: interrupted") && last.ends_with(&format!("--resume {name}`")), "{said}");
    }
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_bytes() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 20);
    let vit = fixture("vit");
    let cases: [(&str, &[&str]); 4] = [
        ("epoch ", &["--method", "vpt-deep", "--flip", "--epochs", "300"]),
        ("epoch ", &["--method", "vp-pad", "--epochs", "300"]),
        // In the middle of a trial, which is begun again; those before it are not.
        ("(2 of 14)", &["--method", "vpt-shallow", "--lr", "auto", "--epochs", "300"]),
        // While features are computed, or soon after.
        ("learned values", &["--method", "linear", "--epochs", "3000"]),
    ];
    for (number, (line, settings)) in cases.into_iter().enumerate() {
        let (whole, stopped) = (format!("whole{number}"), format!("stopped{number}"));
        let settings = [settings, &["--batch-size", "8", "--threads", "2"]].concat();
        sandbox.trained(&whole, &settings);

        let first = [&["train", "--backbone", &vit, "--data", "colours", "--out", &stopped], &settings[..]].concat();
        let resume = ["train", "--resume", &stopped];
        for (args, signal) in [(&first[..], "INT"), (&resume, "TERM")] {
            let mut running = Running::begin(&sandbox, args);
            running.wait_for(line);
            running.signal(signal);
            running.saved(&stopped);
            assert!(!sandbox.path(&stopped).join("results.json").exists());
        }
        sandbox.vpt(&resume).ok();
        for file in ["best.safetensors", "last.safetensors"] {
            let read = |run: &str| fs::read(sandbox.path(run).join(file)).unwrap();
            assert!(read(&whole) == read(&stopped), "{file} differs: {settings:?}");
        }
        let told = |run: &str| fs::read_to_string(sandbox.path(run).join("metrics.jsonl")).unwrap().lines().count();
        assert_eq!(told(&whole), told(&stopped), "every epoch is told once: {settings:?}");
    }
}

/// A disk that is full, as far as a process can be told so without being the superuser: no file may grow beyond eight
/// kilobytes. `scripts/check_disk_full.sh` does it with a real one.
#[test]
#[cfg(target_os = "linux")]
fn a_checkpoint_that_cannot_be_written_leaves_the_last_one_whole() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 20);
    let vit = fixture("vit");
    let settings = ["--epochs", "60", "--batch-size", "8", "--threads", "2"];
    sandbox.trained("whole", &settings);
    let first = [&["train", "--backbone", &vit, "--data", "colours", "--out", "run"], &settings[..]].concat();
    let mut running = Running::begin(&sandbox, &first);
    running.wait_for("epoch ");
    running.signal("INT");
    running.saved("run");

    let checkpoint = fs::read(sandbox.path("run/checkpoint.safetensors")).unwrap();
    assert!(checkpoint.len() > 8192);
    for _ in 0..2 {
        let resume = sandbox.command(&["train", "--resume", "run"]);
        let mut shell = Command::new("sh");
        // The signal would end the process before it could say anything.
        shell.args(["-c", "trap '' XFSZ && ulimit -f 16 && exec \"$0\" \"$@\""]).arg(resume.get_program());
        shell.args(resume.get_args()).current_dir(sandbox.path("")).stdin(Stdio::null());
        finish(shell, &["train", "--resume", "run"]).fails(&["run/checkpoint.safetensors: File too large"]);
        assert!(fs::read(sandbox.path("run/checkpoint.safetensors")).unwrap() == checkpoint, "the last one is whole");
        assert!(files(&sandbox.path("run")).iter().all(|name| !name.starts_with(".vpt-")), "and nothing beside it");
    }
    sandbox.vpt(&["train", "--resume", "run"]).ok();
    for file in ["best.safetensors", "last.safetensors"] {
        let read = |run: &str| fs::read(sandbox.path(run).join(file)).unwrap();
        assert!(read("whole") == read("run"), "{file} differs");
    }
}

#[test]
fn the_second_signal_ends_a_run_at_once() {
    let sandbox = Sandbox::new();
    for (signal, number) in [("INT", 2), ("TERM", 15)] {
        // One step takes long enough for a second signal.
        let step = ["--batch-size", "640", "--prompt-tokens", "200", "--threads", "1"];
        let mut running = Running::begin(&sandbox, &[&["train", "--out", signal], &step[..]].concat());
        running.wait_for("learned values");
        running.signal(signal);
        running.wait_for("stopping after this step");
        running.signal(signal);
        let (status, said) = running.end();
        assert_eq!((status.signal(), said.as_str()), (Some(number), ""), "{status}");
        assert!(!sandbox.path(signal).join("checkpoint.safetensors").exists());
    }
}

#[test]
fn a_run_with_nothing_to_save_yet_leaves_nothing() {
    let sandbox = Sandbox::new();
    let big = sandbox.path("big.png");
    image::RgbImage::from_fn(3000, 3000, |x, y| image::Rgb([x as u8, y as u8, 0])).save(&big).unwrap();
    for (class, number) in (0..40).map(|i| (["cat", "dog"][i % 2], i)) {
        fs::create_dir_all(sandbox.path("pictures").join(class)).unwrap();
        fs::hard_link(&big, sandbox.path(&format!("pictures/{class}/{number}.png"))).unwrap();
    }
    let vit = fixture("vit");
    let args = ["train", "--backbone", &vit, "--data", "pictures", "--out", "run", "--threads", "1"];
    let mut running = Running::begin(&sandbox, &args);
    running.wait_for("pictures: ");
    running.signal("INT");
    let (status, said) = running.end();
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.lines().last().unwrap().contains("begin again"), "{said}");
    assert_eq!(files(&sandbox.path("run")), [".lock"], "the folder can be used again");
}
