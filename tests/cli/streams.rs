//! What goes to stdout and to stderr, and what happens when nobody reads it.

use std::process::Stdio;

use crate::util::{Sandbox, fixture};

#[test]
fn results_go_to_stdout_and_progress_to_stderr() {
    let sandbox = Sandbox::new();
    let run = sandbox.trained("a", &["--epochs", "3"]);
    assert!(run.stdout.contains("acc1") && !run.stdout.contains("epoch 1/3"), "{run:#?}");
    assert_eq!(run.stderr.lines().filter(|line| line.starts_with("epoch ")).count(), 3, "{run:#?}");
    let quiet = sandbox.trained("b", &["--epochs", "3", "--quiet"]);
    assert_eq!(quiet.stderr, "");
    let json = sandbox.trained("c", &["--epochs", "1", "--json"]);
    assert!(json.json().is_object());
}

#[test]
#[cfg(unix)]
fn a_reader_that_went_away_is_no_error() {
    let sandbox = Sandbox::new();
    for args in [&["backbones", "list"][..], &["backbones", "list", "--json"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = sandbox.command(args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{args:?}");
    }
    // A closed stderr stops nothing.
    sandbox.colours("colours", 8);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let vit = fixture("vit");
    let args = ["train", "--backbone", &vit, "--data", "colours", "--epochs", "2", "--out", "run", "-vv"];
    let output = sandbox.command(&args).stderr(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(sandbox.path("run/results.json").is_file());
}

#[test]
fn names_cannot_steer_the_terminal() {
    let sandbox = Sandbox::new();
    let run = sandbox.vpt(&["backbones", "info", "a\u{1b}[31mred\nline"]);
    assert_eq!(run.code, Some(2));
    assert_eq!(run.stderr.lines().count(), 1, "{run:#?}");
}
