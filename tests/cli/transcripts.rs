//! Pages that show commands with what they print: the commands run, and print that.
//!
//! In a block marked `console`, a line that begins with `$ ` is a command, and what follows up to the next one is what it says,
//! on both streams. `…` stands for any text in a line, and alone in a line for any lines. Numbers are not compared, because
//! they depend on the machine, nor is how much space lies between words. A command of which nothing is shown must succeed; one
//! whose output has a line `error: …` must fail. The commands of a page run one after the other in a folder of their own, which
//! holds `datasets/`.

use std::path::Path;
use std::process::Stdio;
use std::{fs, process, thread};

use crate::util::{Sandbox, VPT, copy_folder};

/// A command of a page, and the lines that it says.
struct Shown {
    line: usize,
    command: String,
    output: Vec<String>,
}

/// The commands of the page `text`.
fn shown(text: &str) -> Vec<Shown> {
    let (mut all, mut inside): (Vec<Shown>, bool) = (Vec::new(), false);
    for (i, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if let Some(command) = line.strip_prefix("$ ").filter(|_| inside) {
            all.push(Shown { line: i + 1, command: command.to_owned(), output: Vec::new() });
        } else if let Some(last) = all.last_mut().filter(|_| inside) {
            last.output.push(line.to_owned());
        }
    }
    all
}

/// `line` with one sign for every number and one space between words.
fn words(line: &str) -> String {
    let mut out = String::new();
    let mut chars = line.trim().chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_ascii_digit() {
            let goes_on = |c: &char| c.is_ascii_digit() || *c == '.';
            while chars.next_if(goes_on).is_some() {}
            out.push('#');
        } else if !(c == ' ' && out.ends_with(' ')) {
            out.push(c);
        }
    }
    // A minus may come and go with the number.
    out.replace("-#", "#").replace("+#", "#")
}

/// Whether `line` is what `pattern` shows.
fn fits(pattern: &str, line: &str) -> bool {
    let (pattern, line) = (words(pattern), words(line));
    let parts: Vec<&str> = pattern.split('…').collect();
    let (first, last) = (parts[0], parts[parts.len() - 1]);
    if parts.len() == 1 {
        return pattern == line;
    }
    let Some(mut rest) = line.strip_prefix(first).and_then(|rest| rest.strip_suffix(last)) else { return false };
    for part in &parts[1..parts.len() - 1] {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// Whether `lines` are what `patterns` show.
fn all_fit(patterns: &[String], lines: &[&str]) -> bool {
    match (patterns, lines) {
        ([], lines) => lines.is_empty(),
        ([any, rest @ ..], lines) if any.trim() == "…" => (0..=lines.len()).any(|skip| all_fit(rest, &lines[skip..])),
        ([_, ..], []) => false,
        ([pattern, patterns @ ..], [line, lines @ ..]) => fits(pattern, line) && all_fit(patterns, lines),
    }
}

/// A folder that holds `datasets/`.
fn folder() -> Sandbox {
    let sandbox = Sandbox::new();
    let datasets = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets");
    copy_folder(&datasets, &sandbox.path("datasets"));
    sandbox
}

/// Runs the commands of `page` as they stand there. How many there are.
fn run_page(page: &str) -> usize {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
    let sandbox = folder();
    let bin = Path::new(VPT).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let commands = shown(&text);
    let count = commands.len();
    for Shown { line, command, mut output } in commands {
        let mut shell = process::Command::new("sh");
        shell.args(["-c", &format!("{{ {command}\n}} 2>&1")]).stdin(Stdio::null());
        let own = sandbox.command(&[]);
        shell.current_dir(sandbox.path("")).env("PATH", &path);
        for (name, value) in own.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        let done = shell.output().expect("this test needs a shell");
        let said = String::from_utf8(done.stdout).unwrap();
        let fails = output.iter().any(|line| line.starts_with("error: "));
        assert_eq!(done.status.success(), !fails, "{page}:{line}: {command}\n{said}");
        while output.last().is_some_and(|line| line.trim().is_empty()) {
            output.pop();
        }
        let lines: Vec<&str> = said.trim_end().lines().collect();
        if !output.is_empty() {
            assert!(
                all_fit(&output, &lines),
                "{page}:{line}: {command}\nshown:\n{}\n\nsaid:\n{said}",
                output.join("\n")
            );
        }
    }
    count
}

/// The pages of the guide.
fn guide() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guide");
    let pages =
        crate::util::files(&folder).into_iter().filter(|name| Path::new(name).extension().is_some_and(|e| e == "md"));
    pages.map(|name| format!("docs/guide/{name}")).collect()
}

#[test]
fn the_guide_shows_what_commands_say() {
    thread::scope(|scope| {
        let pages: Vec<_> = guide().into_iter().map(|page| scope.spawn(move || run_page(&page))).collect();
        let failed = pages.into_iter().filter_map(|page| page.join().err());
        let messages: Vec<String> = failed.filter_map(|error| error.downcast_ref::<String>().cloned()).collect();
        assert!(messages.is_empty(), "{}", messages.join("\n\n"));
    });
}

#[test]
fn links_of_the_guide_lead_somewhere() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let pages: Vec<String> =
        guide().into_iter().chain(["docs/SUMMARY.md".to_owned(), "README.md".to_owned()]).collect();
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    for page in &pages {
        let path = docs.join("..").join(page);
        let text = fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap();
            let outside = link.starts_with("http") || target.is_empty();
            assert!(outside || path.parent().unwrap().join(target).exists(), "{page}: {link} leads nowhere");
        }
        let own = page.strip_prefix("docs/").filter(|own| own.starts_with("guide/"));
        assert!(own.is_none_or(|own| summary.contains(own)), "{page} is not in docs/SUMMARY.md");
    }
}

#[test]
fn broken_data_sets_are_told_as_their_page_says() {
    assert_eq!(run_page("datasets/broken/README.md"), 3);
}

#[test]
fn patterns_of_pages_mean_what_they_say() {
    assert!(fits("acc1  39.0 %", "acc1 7.25 %") && !fits("acc1 39.0 %", "loss 39.0 %"));
    assert!(fits("time    …", "time 0.1 s, 3 images a minute") && fits("… in runs/a-1", "12 images; in runs/a-3"));
    assert!(!fits("a … b", "a x") && fits("a … b … c", "a 1 b 2 c"));
    let shows = |patterns: &[&str], lines: &[&str]| {
        all_fit(&patterns.iter().map(|&line| line.to_owned()).collect::<Vec<_>>(), lines)
    };
    assert!(shows(&["a", "…", "z"], &["a", "b", "c", "z"]) && shows(&["a", "…", "z"], &["a", "z"]));
    assert!(!shows(&["a", "z"], &["a", "b", "z"]) && !shows(&["a"], &["a", "b"]));
}
