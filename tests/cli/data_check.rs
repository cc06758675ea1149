//! `vpt data check`: what it prints, its exit codes, and what `vpt train` tells of it.

use std::fs;

use crate::util::{Sandbox, fixture, keys};

#[test]
fn a_good_set_gives_nothing_and_exit_code_0() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 6);
    let run = sandbox.vpt(&["data", "check", "colours"]).ok();
    assert!(run.stdout.contains("found   nothing") && run.stderr.is_empty(), "{run:#?}");
    let report = sandbox.vpt(&["data", "check", "colours", "--json"]).ok().json();
    let all =
        ["data", "layout", "fast", "images", "errors", "warnings", "kinds", "wall_s", "images_per_minute", "findings"];
    assert_eq!(keys(&report), all);
    assert_eq!((&report["layout"], &report["images"]), (&"folder".into(), &18.into()));
    sandbox.boxes("boxes", 120);
    sandbox.vpt(&["data", "check", "boxes"]).ok();
}

#[test]
fn findings_are_lines_with_path_line_and_kind_and_exit_code_1() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 4);
    sandbox.write("colours/green/empty.png", "");
    let rows: Vec<String> = (0..4).map(|i| format!("blue/00{i}.png,blue\r\ngreen/00{i}.png,green\r\n")).collect();
    let rows = rows.concat();
    sandbox.write("colours/t.csv", format!("path,label\r\n{rows}gone.png,blue\r\ngreen/empty.png,green\r\n"));
    let run = sandbox.vpt(&["data", "check", "colours"]);
    assert_eq!(run.code, Some(1), "{run:#?}");
    for line in [
        "colours/t.csv:1: 11 lines end with CR LF, as on Windows; this is the first [crlf-line-ends]",
        "colours/t.csv:10: colours/gone.png is not there [missing-file]",
        "colours/green/empty.png: empty file [empty-file]",
    ] {
        assert!(run.stdout.lines().any(|printed| printed == line), "no {line:?} in {run:#?}");
    }
    assert_eq!(run.stderr, "error: colours: 2 errors, 1 warning\n");

    let run = sandbox.vpt(&["data", "check", "colours", "--json", "--fast"]);
    assert_eq!(run.code, Some(1), "{run:#?}");
    let report = run.json();
    assert_eq!((&report["errors"], &report["warnings"], &report["fast"]), (&2.into(), &1.into(), &true.into()));
    assert_eq!(report["kinds"]["missing-file"], 1);
    let finding = &report["findings"][2];
    assert_eq!(keys(finding), ["kind", "severity", "path", "line", "message"]);
    assert_eq!((&finding["kind"], &finding["severity"]), (&"missing-file".into(), &"error".into()));
    assert_eq!((&finding["path"], &finding["line"]), (&"colours/t.csv".into(), &10.into()));
}

#[test]
fn what_is_not_there_fails_like_any_other_file() {
    let sandbox = Sandbox::new();
    sandbox.vpt(&["data", "check", "nowhere"]).fails(&["nowhere", "No such file"]);
    let run = sandbox.vpt(&["data", "check", "--help"]).ok();
    for word in ["duplicate-across-splits", "Exit code 1", "images_per_minute"] {
        assert!(run.stdout.contains(word), "no {word} in {run:#?}");
    }
}

#[test]
fn training_tells_warnings_first_and_stops_at_errors_as_ever() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 8);
    fs::rename(sandbox.path("colours/green/000.png"), sandbox.path("colours/green/000.jpg")).unwrap();
    let vit = fixture("vit");
    let args =
        ["train", "--backbone", &vit, "--data", "colours", "--epochs", "1", "--method", "linear", "--out", "run"];
    let run = sandbox.vpt(&args).ok();
    let told: Vec<&str> = run.stderr.lines().take(2).collect();
    let expected = [
        "colours/green/000.jpg: a PNG image called .jpg [wrong-extension]",
        "1 finding in the data: see `vpt data check colours`",
    ];
    assert_eq!(told, expected, "{run:#?}");

    fs::remove_dir_all(sandbox.path("run")).unwrap();
    fs::create_dir(sandbox.path("colours/owl")).unwrap();
    let run = sandbox.vpt(&args).fails(&["colours/owl: a class folder without images; fill it or remove it"]);
    assert!(run.stderr.contains("2 findings in the data"), "{run:#?}");
}
