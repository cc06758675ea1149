//! The library's error: one line that names the file or setting at fault, and the mend where there is one.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::suggest;

/// A `Result` whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong. `Display` is one line that names settings as the configuration does; a program whose settings have
/// other names writes [`Error::message`] its own way.
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
    /// A data set, or one of the files that describe it, cannot be used.
    #[error("{}: {message}", path.display())]
    Data {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        message: Message,
    },
    /// An image cannot be read, or not be made ready.
    #[error("{}: {message}", path.display())]
    Image {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        message: Message,
    },
    /// A backbone cannot be used: its configuration, weights, tokenizer or preprocessing.
    #[error("{}: {message}", path.display())]
    Weights {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        message: Message,
    },
    /// A task file cannot be used, or not on this backbone.
    #[error("{}: {message}", path.display())]
    TaskFile {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        message: Message,
    },
    /// Any other file or folder cannot be used: of a run, of a grid, a configuration, a list of texts.
    #[error("{}: {message}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        message: Message,
    },
    /// A setting has a value that cannot be used, or is not for what was asked. Nothing else is said with this variant: the
    /// command line ends with the exit code for wrong usage by it, where no file says the setting.
    #[error("{}{field}: {message}", file.as_ref().map(|file| format!("{}: ", file.display())).unwrap_or_default())]
    Setting {
        /// The file that says the setting; `None` if the caller does.
        file: Option<PathBuf>,
        /// The setting, as the configuration spells it: `prompt_tokens`.
        field: Cow<'static, str>,
        /// What is wrong with its value.
        message: Message,
    },
    /// What was found in files, or an argument of a function, cannot be used.
    #[error("{what}: {message}")]
    Invalid {
        /// The data set, field or argument.
        what: Message,
        /// What is wrong with it.
        message: Message,
    },
    /// Training went astray: the loss or its gradient is no longer a finite number.
    #[error("training diverged: {message}")]
    Diverged {
        /// Where, and at which learning rate.
        message: Message,
    },
    /// A tensor operation failed: shapes or types that do not fit.
    #[error(transparent)]
    Tensor(Box<dyn std::error::Error + Send + Sync>),
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

    /// What a reader of files says of a value. It knows nothing but text, in which a value that is none of a setting's
    /// choices comes after the setting's name.
    pub fn of_reader(error: &impl fmt::Display) -> Self {
        let text = error.to_string();
        let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        match text.split_once(": ") {
            Some((name, rest)) if is_name(name) && rest.starts_with(['`', '\'']) => {
                Self::new().field(name.to_owned()).text(": ").text(rest)
            }
            _ => text.into(),
        }
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

impl From<&Error> for Message {
    fn from(error: &Error) -> Self {
        error.message()
    }
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        Self(vec![Piece::Text(text)])
    }
}

impl From<&String> for Message {
    fn from(text: &String) -> Self {
        text.clone().into()
    }
}

impl From<&str> for Message {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<Error> for Message {
    fn from(error: Error) -> Self {
        error.message()
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
                let message = format!("no such file or folder{}", suggest::path_hint(&path)).into();
                Self::File { path, message }
            }
            _ => Self::Io { path, source },
        }
    }

    /// [`Error::Data`] for `path`.
    pub fn data(path: impl AsRef<Path>, message: impl Into<Message>) -> Self {
        Self::Data { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// [`Error::Image`] for `path`.
    pub fn image(path: impl AsRef<Path>, message: impl Into<Message>) -> Self {
        Self::Image { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// [`Error::Weights`] for `path`.
    pub fn weights(path: impl AsRef<Path>, message: impl Into<Message>) -> Self {
        Self::Weights { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// [`Error::TaskFile`] for `path`.
    pub fn task_file(path: impl AsRef<Path>, message: impl Into<Message>) -> Self {
        Self::TaskFile { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// [`Error::File`] for `path`.
    pub fn file(path: impl AsRef<Path>, message: impl Into<Message>) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// [`Error::Setting`] for `field`, which is written as the configuration spells it.
    pub fn setting(field: impl Into<Cow<'static, str>>, message: impl Into<Message>) -> Self {
        Self::Setting { file: None, field: field.into(), message: message.into() }
    }

    /// [`Error::Invalid`] for the data set, field or argument `what`.
    pub fn invalid(what: impl Into<Message>, message: impl Into<Message>) -> Self {
        Self::Invalid { what: what.into(), message: message.into() }
    }

    /// The same error where a setting was not given by the caller but read from the file `path`.
    #[must_use]
    pub fn in_file(self, path: impl AsRef<Path>) -> Self {
        match self {
            Self::Setting { file: None, field, message } => {
                Self::Setting { file: Some(path.as_ref().to_path_buf()), field, message }
            }
            other => other,
        }
    }

    /// The same error where what was wrong with some file is known to be wrong with one of a kind: `kind` makes
    /// [`Error::File`] one of its kind.
    #[must_use]
    pub fn of_kind(self, kind: impl FnOnce(PathBuf, Message) -> Self) -> Self {
        match self {
            Self::File { path, message } => kind(path, message),
            other => other,
        }
    }

    /// What `Display` says, with the settings known as such.
    pub fn message(&self) -> Message {
        let before = |text: String, message: &Message| Message::from(text + ": ").text(message.clone());
        match self {
            Self::Data { path, message }
            | Self::Image { path, message }
            | Self::Weights { path, message }
            | Self::TaskFile { path, message }
            | Self::File { path, message } => before(path.display().to_string(), message),
            Self::Setting { file, field, message } => {
                let file = file.as_ref().map(|file| format!("{}: ", file.display()));
                Message::from(file.unwrap_or_default()).field(field.clone()).text(": ").text(message.clone())
            }
            Self::Invalid { what, message } => what.clone().text(": ").text(message.clone()),
            Self::Diverged { message } => before("training diverged".to_owned(), message),
            Self::Io { .. } | Self::Tensor(_) => self.to_string().into(),
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

    #[test]
    fn a_message_says_what_display_says() {
        let message = || Message::from("use ").field("lr").text("; not ").field("head_lr");
        for error in [
            Error::setting("l2", message()),
            Error::setting("l2", message()).in_file("a/config.toml"),
            Error::data("a", message()),
            Error::image("a", message()),
            Error::weights("a", message()),
            Error::task_file("a", message()),
            Error::file("a", message()),
            Error::invalid("a", message()),
            Error::Diverged { message: message() },
            Error::io("a")(std::io::ErrorKind::NotFound.into()),
            Error::Tensor("shapes".into()),
        ] {
            assert_eq!(error.message().to_string(), error.to_string());
        }
        let error = Error::data("a", Error::setting("l2", message()).in_file("b"));
        assert_eq!(error.message().write(|field| format!("<{field}>")), "a: b: <l2>: use <lr>; not <head_lr>");
    }

    #[test]
    fn what_a_reader_of_files_says_names_the_setting_it_could_not_read() {
        let message = Message::of_reader(&"head: `a: b` is not one of linear, cosine at line 1 column 3");
        assert_eq!(message.write(str::to_uppercase), "HEAD: `a: b` is not one of linear, cosine at line 1 column 3");
        for text in ["invalid type: `a`", "crop: 0 pixels", "`a`: b", ""] {
            assert_eq!(Message::of_reader(&text), text.into());
        }
    }

    #[test]
    fn a_file_becomes_one_of_a_kind_and_nothing_else_does() {
        assert!(matches!(Error::file("a", "b").of_kind(Error::weights), Error::Weights { .. }));
        assert!(matches!(Error::image("a", "b").of_kind(Error::data), Error::Image { .. }));
        assert!(matches!(Error::setting("a", "b").in_file("c").of_kind(Error::data), Error::Setting { .. }));
    }
}
