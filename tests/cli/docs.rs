//! `vpt completions` and `vpt man`.

use std::fs;
use std::process::Command;

use crate::util::{Sandbox, files};

#[test]
fn completions_know_commands_flags_and_values() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = sandbox.vpt(&["completions", shell]).ok().stdout;
        for word in ["runs", "compare", "prompt-tokens", "vpt-shallow"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
        let json = sandbox.vpt(&["completions", shell, "--json"]).ok().json();
        assert_eq!((&json["shell"], json["script"].as_str()), (&shell.into(), Some(&*script)));
    }
    sandbox.vpt(&["completions", "fsh"]).refuses(&["fsh", "fish"]);
}

#[test]
fn bash_completes_with_the_script() {
    let sandbox = Sandbox::new();
    sandbox.write("vpt.bash", sandbox.vpt(&["completions", "bash"]).ok().stdout);
    let script = "source ./vpt.bash; COMP_WORDS=(vpt runs com); COMP_CWORD=2; _vpt vpt com runs; echo ${COMPREPLY[@]}";
    let bash = Command::new("bash").args(["-c", script]).current_dir(sandbox.path("")).output();
    let output = bash.expect("this test needs bash; without one, leave it out by `--skip bash_completes`");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "compare", "{output:?}");
}

#[test]
fn every_command_has_a_page() {
    let sandbox = Sandbox::new();
    let page = sandbox.vpt(&["man"]).ok().stdout;
    assert!(page.contains(".TH vpt 1") && page.contains("prompt tokens"), "{page}");
    sandbox.vpt(&["man", "--out", "man/man1"]).ok();
    let pages = files(&sandbox.path("man/man1"));
    for name in ["vpt.1", "vpt-train.1", "vpt-runs-rm.1", "vpt-data-make-shapes.1", "vpt-task-info.1"] {
        assert!(pages.iter().any(|page| page == name), "{name} in {pages:?}");
    }
    assert!(pages.iter().all(|page| !page.contains("help") && !page.contains("few-shot-job")), "{pages:?}");
    let train = fs::read_to_string(sandbox.path("man/man1/vpt-train.1")).unwrap();
    assert!(train.contains(".TH vpt\\-train 1") || train.contains(".TH vpt-train 1"), "{train}");
    for part in ["prompt\\-tokens", "vp\\-frame"] {
        assert!(train.contains(part), "no {part} in {train}");
    }
}
