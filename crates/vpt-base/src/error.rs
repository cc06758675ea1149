//! The library's error: one line that names the file, flag or field at fault, and the mend where there is one.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::suggest;

/// A `Result` whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. `Display` is one line, fit to be shown to the user as it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or folder was read but its content cannot be used.
    #[error("{}: {message}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A flag of the command line has a value that cannot be used. Nothing else is said with this variant: a program ends
    /// with the exit code for wrong usage by it.
    #[error("{flag}: {message}")]
    Flag {
        /// The flag, with its dashes.
        flag: String,
        /// What is wrong with its value.
        message: String,
    },
    /// What was found in files, or an argument of a function, cannot be used.
    #[error("{what}: {message}")]
    Invalid {
        /// The data set, field or argument.
        what: String,
        /// What is wrong with it.
        message: String,
    },
    /// Training went astray: the loss or its gradient is no longer a finite number.
    #[error("training diverged: {message}")]
    Diverged {
        /// Where, and at which learning rate.
        message: String,
    },
    /// A tensor operation failed: shapes or types that do not fit.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// What an error says: text in which the settings it speaks of are known as such, so that each program can write them the
/// way its users do. `Display` writes a setting as the configuration spells it.
///
/// ```
/// use vpt_base::Message;
///
/// let message = Message::from("not with method full; see ").field("micro_batch");
/// assert_eq!(message.to_string(), "not with method full; see micro_batch");
/// assert_eq!(message.write(|field| field.to_uppercase()), "not with method full; see MICRO_BATCH");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field(Cow<'static, str>),
}

impl Message {
    /// An empty message.
    pub fn new() -> Self {
        Self::default()
    }

    /// The message with `more` at its end.
    #[must_use]
    pub fn text(mut self, more: impl Into<Self>) -> Self {
        self.0.extend(more.into().0);
        self
    }

    /// The message with the name of a setting at its end.
    #[must_use]
    pub fn field(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.0.push(Piece::Field(name.into()));
        self
    }

    /// A message with settings in braces: `use {lr}`.
    pub fn naming(text: &str) -> Self {
        let mut pieces = text.split('{');
        let first = Self::from(pieces.next().unwrap_or_default());
        pieces.fold(first, |message, piece| match piece.split_once('}') {
            Some((name, rest)) => message.field(name.to_owned()).text(rest),
            None => message.text(piece),
        })
    }

    /// The text, with settings written by `field`.
    pub fn write(&self, field: impl Fn(&str) -> String) -> String {
        let pieces = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => Cow::Borrowed(text.as_str()),
            Piece::Field(name) => field(name).into(),
        });
        pieces.collect()
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => f.write_str(text),
            Piece::Field(name) => f.write_str(name),
        })
    }
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        Self(vec![Piece::Text(text)])
    }
}

impl From<&str> for Message {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// `text` without its middle where it is very long. A bad file may hold names of megabytes, which nobody reads.
pub fn shortened(text: &str) -> Cow<'_, str> {
    const START: usize = 500;
    const END: usize = 300;
    let mut starts = text.char_indices().map(|(at, _)| at);
    let Some(start) = starts.nth(START) else { return text.into() };
    match text.char_indices().rev().nth(END) {
        Some((end, _)) if end > start => format!("{} … {}", &text[..start], &text[end..]).into(),
        _ => text.into(),
    }
}

impl Error {
    /// [`Error::Io`] for `path`; made to be used with `map_err`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// [`Error::io`] for a `path` that a user typed: where it does not exist, names beside it that may have been meant.
    pub fn typed(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| match source.kind() {
            _ if path.as_os_str().is_empty() => Self::invalid("path", "is empty"),
            std::io::ErrorKind::NotFound => {
                let message = format!("no such file or folder{}", suggest::path_hint(&path));
                Self::File { path, message }
            }
            _ => Self::Io { path, source },
        }
    }

    /// [`Error::File`] for `path`.
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// [`Error::Flag`] for `flag`, which is written with its dashes.
    pub fn flag(flag: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Flag { flag: flag.into(), message: message.into() }
    }

    /// [`Error::Flag`] for the setting `field`, as the configuration spells it.
    pub fn setting(field: impl Into<Cow<'static, str>>, message: impl Into<Message>) -> Self {
        let flag = |field: &str| format!("--{}", field.replace('_', "-"));
        Self::flag(flag(&field.into()), message.into().write(flag))
    }

    /// [`Error::Invalid`] for the data set, field or argument `what`.
    pub fn invalid(what: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), message: message.into() }
    }

    /// The same error where the flags were not typed but read from the file `path`: that file is at fault.
    #[must_use]
    pub fn in_file(self, path: impl AsRef<Path>) -> Self {
        match self {
            Self::Flag { .. } => Self::file(path, self.to_string()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_text_both_ends_are_left() {
        for text in ["", "short", &"ä".repeat(800)] {
            assert_eq!(shortened(text), text);
        }
        let long = format!("begin {} end", "ä".repeat(1 << 20));
        let short = shortened(&long);
        assert!(short.starts_with("begin ä") && short.ends_with("ä end") && short.chars().count() < 900, "{short}");
    }
}
