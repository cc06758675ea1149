//! The library's error: one line that names the file, flag or field at fault, and the mend where there is one.

use std::path::{Path, PathBuf};

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
    /// A flag, configuration field or argument has a value that cannot be used.
    #[error("{what}: {message}")]
    Invalid {
        /// The flag, field or argument, as the user wrote it.
        what: String,
        /// What is wrong with it.
        message: String,
    },
    /// A tensor operation failed: shapes or types that do not fit.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// [`Error::Io`] for `path`; made to be used with `map_err`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// [`Error::File`] for `path`.
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// [`Error::Invalid`] for the flag, field or argument `what`.
    pub fn invalid(what: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), message: message.into() }
    }
}
