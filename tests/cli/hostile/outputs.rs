//! Places that nothing can be written to.

use std::fs;

use super::refused;
use crate::util::{Sandbox, fixture};

#[test]
fn places_that_cannot_be_written() {
    let sandbox = Sandbox::new();
    sandbox.trained("run", &["--epochs", "1", "--method", "linear"]);
    sandbox.boxes("boxes", 12);
    sandbox.write("file", "");
    sandbox.write("full/something", "");
    let (vit, image) = (fixture("vit"), fixture("images/a.png"));
    let mut places = vec!["file/in-it", "file/in/it"];
    if cfg!(target_os = "linux") {
        places.extend(["/proc/vpt", "/sys/vpt", "/proc/self/environ/vpt", "/dev/null/vpt"]);
    }
    for place in places {
        for args in [
            vec!["train", "--backbone", &vit, "--data", "colours", "--epochs", "1", "--out", place],
            vec!["embed", "--backbone", &vit, &image, "--out", place],
            vec!["predict", "--model", "run", &image, "--save", place],
            vec!["data", "make", "shapes", "--images", "192", "--out", place],
            vec!["data", "make", "shapes", "--task", "detect", "--images", "12", "--out", place],
            vec!["data", "convert", "boxes", "--to", "yolo", "--out", place],
            vec!["data", "convert", "boxes", "--to", "voc", "--out", place],
        ] {
            refused(&sandbox, &args, &[place]);
        }
    }
    // What is there already is not written over.
    for args in [
        vec!["train", "--backbone", &vit, "--data", "colours", "--out", "full"],
        vec!["train", "--backbone", &vit, "--data", "colours", "--out", "run"],
        vec!["data", "make", "shapes", "--images", "192", "--out", "full"],
        vec!["data", "convert", "boxes", "--to", "coco", "--out", "full"],
        vec!["data", "convert", "boxes", "--to", "coco", "--out", "boxes"],
    ] {
        refused(&sandbox, &args, &[args[args.len() - 1], "not empty"]);
    }
    assert_eq!(
        fs::read_dir(sandbox.path("full")).unwrap().count(),
        if sandbox.path("full/.lock").exists() { 2 } else { 1 }
    );
    sandbox.vpt_within_limits(&["embed", "--backbone", &vit, &image, "--out", "full"]).refuses(&["--out", "full"]);
    for args in [
        vec!["train", "--backbone", &vit, "--data", "colours", "--out", "file"],
        vec!["data", "make", "shapes", "--images", "192", "--out", "file"],
        vec!["data", "convert", "boxes", "--to", "coco", "--out", "file"],
        vec!["predict", "--model", "run", &image, "--save", "file"],
    ] {
        refused(&sandbox, &args, &["file"]);
    }
}

#[test]
#[cfg(unix)]
fn results_that_nobody_reads() {
    let sandbox = Sandbox::new();
    sandbox.trained("run", &["--epochs", "1", "--method", "linear"]);
    let image = fixture("images/a.png");
    for args in
        [vec!["predict", "--model", "run", &image], vec!["runs", "show", "run"], vec!["data", "info", "colours"]]
    {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = sandbox.command(&args).stdout(full).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.ends_with('\n') && said.lines().last().unwrap().starts_with("error: stdout: "), "{said}");
    }
}
