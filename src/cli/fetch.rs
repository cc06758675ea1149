//! `vpt backbones fetch` and `verify`: the only command that opens a connection, and the one that checks what it brought.

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use vpt::backbone::hub::{self, FetchEvent, Fetched, FileOrigin, FileState, Verified};
use vpt::report::table;

use super::output::{self, Output};

pub(super) fn fetch(name: &str, quiet: bool, out: Output) -> anyhow::Result<()> {
    let mut shown = Shown::new(quiet);
    let fetched = hub::fetch(name, &mut |event| shown.event(&event));
    shown.clear();
    let fetched = fetched?;
    out.result(&fetched, || describe(&fetched))
}

pub(super) fn verify(name: &str, out: Output) -> anyhow::Result<()> {
    let verified = hub::verify(name)?;
    out.result(&verified, || list(&verified))?;
    if verified.ok {
        return Ok(());
    }
    let bad = verified.files.iter().filter(|f| matches!(f.state, FileState::Damaged | FileState::Missing)).count();
    let files = if bad == 1 { "1 file is".to_owned() } else { format!("{bad} files are") };
    Err(anyhow!("{name}: {files} damaged or missing; mend it with `vpt backbones fetch {name}`"))
}

fn describe(fetched: &Fetched) -> String {
    let mut rows = vec![
        ("name", fetched.name.clone()),
        ("hub repository", fetched.repo.clone()),
        ("revision", fetched.revision.clone()),
        ("commit", fetched.commit.clone()),
        ("where", fetched.path.display().to_string()),
    ];
    rows.extend(fetched.license.clone().map(|license| ("licence", license)));
    rows.extend(fetched.files.iter().map(|f| ("file", format!("{}, {}", f.name, table::bytes(f.bytes)))));
    table::pairs(&rows)
}

fn list(verified: &Verified) -> String {
    if hub::is_bundled(&verified.name) {
        return format!("{} is part of this program", verified.name);
    }
    let row = |file: &hub::VerifiedFile| {
        let state = match file.state {
            FileState::Whole => "whole",
            FileState::Damaged => "damaged",
            FileState::Missing => "missing",
            FileState::Unchecked => "not checked: no hash is known",
        };
        vec![file.name.clone(), file.bytes.map(table::bytes).unwrap_or_default(), state.to_owned()]
    };
    table::columns(&["file", "size", "state"], &verified.files.iter().map(row).collect::<Vec<_>>())
}

/// What a fetch tells: a bar for each file on a terminal, a line a file where stderr is a file or a pipe.
struct Shown {
    quiet: bool,
    bar: Option<ProgressBar>,
    /// What the bar is showing.
    file: String,
}

impl Shown {
    fn new(quiet: bool) -> Self {
        let bar = (!quiet && output::stderr_is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style =
                ProgressStyle::with_template("{prefix} {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { quiet, bar, file: String::new() }
    }

    fn event(&mut self, event: &FetchEvent<'_>) {
        match event {
            FetchEvent::Progress { file, done, total } => {
                let new = self.file != *file;
                if new {
                    (*file).clone_into(&mut self.file);
                }
                match &self.bar {
                    Some(bar) => {
                        if new {
                            bar.reset();
                            bar.set_prefix(self.file.clone());
                            bar.set_length(*total);
                            // What was there before says nothing of the speed.
                            bar.set_position(*done);
                            bar.reset_eta();
                        }
                        bar.set_position(*done);
                    }
                    None if new && *done > 0 => {
                        self.line(&format!(
                            "{file}: going on after {} of {}",
                            table::bytes(*done),
                            table::bytes(*total)
                        ));
                    }
                    None if new => self.line(&format!("{file}: fetching {}", table::bytes(*total))),
                    None => {}
                }
            }
            FetchEvent::Finished { file, bytes, source } => {
                let from = if *source == FileOrigin::Hub { "fetched" } else { "is there" };
                self.line(&format!("{file}: {from} and whole, {}", table::bytes(*bytes)));
            }
            FetchEvent::Retry { file, why } => self.line(&format!("{file}: {why}; trying again")),
            FetchEvent::Waiting { file } => {
                self.line(&format!("{file}: waiting for another process that is fetching it"));
            }
            FetchEvent::Converting { file } => self.line(&format!("{file}: writing it as safetensors")),
            FetchEvent::Lacks { file } => self.line(&format!("the repository has no {file}")),
            _ => {}
        }
    }

    /// A line that stays.
    fn line(&self, text: &str) {
        if self.quiet {
            return;
        }
        match &self.bar {
            Some(bar) => bar.suspend(|| output::message(text)),
            None => output::message(text),
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
