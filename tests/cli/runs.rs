//! `vpt runs`: what is said of run folders, and which are removed.

use std::fs;

use crate::util::{Sandbox, keys, number};

/// Two runs that differ by their seed, and one by its method, below `runs`.
fn some_runs() -> Sandbox {
    let sandbox = Sandbox::new();
    let args = ["--epochs", "2", "--batch-size", "16", "--prompt-tokens", "3"];
    sandbox.trained("runs/classify/a-1", &args);
    sandbox.trained("runs/classify/a-2", &[&args[..], &["--seed", "2"]].concat());
    sandbox.trained("runs/classify/b-1", &["--method", "linear", "--epochs", "3"]);
    sandbox
}

#[test]
fn runs_are_listed_shown_compared_and_removed() {
    let sandbox = some_runs();
    let list = sandbox.vpt(&["runs", "list", "--sort", "name", "--json"]).ok().json();
    assert_eq!(keys(&list), ["root", "runs"]);
    let rows = list["runs"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|run| run["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["classify/a-1", "classify/a-2", "classify/b-1"]);
    assert_eq!((&rows[1]["state"], &rows[1]["metric"]), (&"finished".into(), &"acc1".into()));
    assert_eq!((number(&rows[1], "/seed"), number(&rows[2], "/epochs_done")), (2., 3.));
    let text = sandbox.vpt(&["runs", "list"]).ok().stdout;
    assert!(text.lines().next().unwrap().starts_with("name"), "{text}");
    assert!(text.lines().nth(1).unwrap().starts_with("classify/b-1"), "the latest first: {text}");

    let show = sandbox.vpt(&["runs", "show", "a-2", "--json"]).ok().json();
    assert_eq!(show["changed_settings"], serde_json::json!(["prompt_tokens", "epochs", "batch_size"]));
    assert_eq!(show["results"]["test"]["acc1"], show["test"]);
    assert_eq!(show["history"].as_array().unwrap().len(), 2);
    assert_eq!(number(&show, "/configuration/batch_size"), 16.);
    let text = sandbox.vpt(&["runs", "show", "runs/classify/a-2"]).ok().stdout;
    for part in ["finished", "prompt_tokens", "best.safetensors", "val score", "acc1"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }

    let all = ["runs", "compare", "a-1", "a-2", "classify/b-1"];
    let compared = sandbox.vpt(&[&all[..], &["--json"]].concat()).ok().json();
    assert_eq!(keys(&compared), ["runs", "scores", "differences", "groups"]);
    assert_eq!(compared["groups"][0]["runs"], serde_json::json!(["classify/a-1", "classify/a-2"]));
    let mean = f64::midpoint(number(&rows[0], "/test"), number(&rows[1], "/test"));
    assert!((number(&compared, "/groups/0/test/0/mean") - mean).abs() < 1e-12, "{compared:#}");
    let text = sandbox.vpt(&all).ok().stdout;
    assert!(text.contains("mean ± sd over seeds 1, 2: classify/a-1, classify/a-2"), "{text}");

    sandbox.vpt(&["runs", "rm", "a-1", "b-1"]).refuses(&["--yes"]);
    sandbox.vpt(&["runs", "rm", "a-1", "a-3", "--yes"]).fails(&["a-3", "did you mean a-1?"]);
    assert!(sandbox.path("runs/classify/a-1").exists(), "nothing goes if one cannot");
    let removed = sandbox.vpt(&["runs", "rm", "a-1", "classify/a-1", "b-1", "--yes", "--json"]).ok().json();
    assert_eq!(removed["removed"].as_array().unwrap().len(), 2);
    assert_eq!(fs::read_dir(sandbox.path("runs/classify")).unwrap().count(), 1);
}

#[test]
fn damaged_runs_have_a_row_that_says_so() {
    let sandbox = some_runs();
    fs::write(sandbox.path("runs/classify/a-1/results.json"), "{").unwrap();
    fs::write(sandbox.path("runs/classify/a-2/config.toml"), "method = \"vpt-deap\"\n").unwrap();
    fs::write(sandbox.path("runs/classify/b-1/metrics.jsonl"), "\u{1b}[31m\n").unwrap();
    let text = sandbox.vpt(&["runs", "list"]).ok().stdout;
    for part in ["damaged", "results.json: not a result", "did you mean vpt-deep?", "metrics.jsonl: line 1"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    for name in ["a-1", "a-2", "b-1"] {
        sandbox.vpt(&["runs", "show", name]).ok();
    }
    sandbox.vpt(&["runs", "compare", "a-1", "a-2", "b-1"]).ok();
    sandbox.vpt(&["runs", "rm", "a-1", "--yes"]).ok();
}

#[test]
fn where_there_are_no_runs_this_is_said() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.vpt(&["runs", "list"]).ok().stdout, "no runs in runs\n");
    fs::create_dir_all(sandbox.path("photos/cat")).unwrap();
    sandbox.vpt(&["runs", "list", "phtos"]).fails(&["phtos: no such file or folder; did you mean photos?"]);
    sandbox.vpt(&["runs", "show", "photos"]).fails(&["photos: is not a run folder"]);
    sandbox.vpt(&["runs", "rm", "photos", "--yes"]).fails(&["photos"]);
    sandbox.vpt(&["runs", "compare", "photos"]).refuses(&["RUN"]);
}

#[test]
fn a_run_that_an_error_ended_says_why() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 20);
    let vit = crate::util::fixture("vit");
    let args = ["train", "--backbone", &vit, "--data", "colours", "--out", "runs/x", "--lr", "1e30", "--epochs", "4"];
    let said = sandbox.vpt(&args).fails(&["not finite"]).stderr;
    let error = fs::read_to_string(sandbox.path("runs/x/error.txt")).unwrap();
    assert!(said.ends_with(&format!("error: {error}")), "{said}");
    let list = sandbox.vpt(&["runs", "list", "--json"]).ok().json();
    assert_eq!((&list["runs"][0]["state"], list["runs"][0]["error"].as_str()), (&"failed".into(), Some(error.trim())));
    assert!(sandbox.vpt(&["runs", "list"]).ok().stdout.contains(&format!("x: {error}")));
}
