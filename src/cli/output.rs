//! Output of the program. Results go to stdout, everything else to stderr; neither may fail loudly: a reader that went
//! away (`vpt … | head`) ends the program quietly.

use std::io::{self, ErrorKind, IsTerminal, Write};

use anyhow::Context;
use serde::Serialize;

/// stdout, as text or as one JSON object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether results are printed as JSON.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Prints a result: `value` as a JSON object with `--json`, else what `text` says of it.
    pub(crate) fn result<T: Serialize>(self, value: &T, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        let mut result = if self.json { serde_json::to_string_pretty(value)? } else { text() };
        if !result.ends_with('\n') {
            result.push('\n');
        }
        let mut stdout = io::stdout().lock();
        match stdout.write_all(result.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
            written => written.context("stdout"),
        }
    }
}

/// A line on stderr. That stderr is closed is no reason to fail.
pub(crate) fn message(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}
