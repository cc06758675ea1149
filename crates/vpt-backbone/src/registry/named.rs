//! A backbone's name: one of the known ones or a repository's, perhaps with a revision; and what may have been meant where it
//! is neither.

use super::known::{KNOWN, Known};
use vpt_base::{Error, Result, suggest};

/// A backbone's name taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackboneName {
    /// The known name, else `owner/name`; with `@revision` where one was given.
    pub(crate) name: String,
    pub(crate) known: Option<&'static Known>,
    /// The repository on the hub, `owner/name`; empty for the bundled backbone.
    pub(crate) repo: String,
    /// Branch, tag or commit.
    pub(crate) revision: String,
}

impl BackboneName {
    /// A known name, or `owner/name` of a repository on the hub, either with `@revision`.
    pub(crate) fn parse(name: &str) -> Result<Self> {
        let (base, revision) = name.split_once('@').map_or((name, None), |(base, revision)| (base, Some(revision)));
        let known = known_as(base);
        let (base, repo, default) = match known {
            Some(known) => (known.name, known.repo, known.revision),
            None if is_repository(base) => (base, base, "main"),
            None => return Err(unknown(base)),
        };
        if let Some(revision) = revision {
            if repo.is_empty() {
                return Err(Error::setting("backbone", format!("{base} is part of this program and has no revisions")));
            }
            if !is_revision(revision) {
                let message = format!("`{}` is no branch, tag or commit", revision.escape_debug());
                return Err(Error::setting("backbone", message));
            }
        }
        let name = revision.map_or_else(|| base.to_owned(), |revision| format!("{base}@{revision}"));
        Ok(Self { name, known, repo: repo.to_owned(), revision: revision.unwrap_or(default).to_owned() })
    }
}

pub(super) fn known_as(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|k| k.name == name || (k.repo == name && !name.is_empty()))
}

/// Whether `name` reads `owner/name`.
pub(super) fn is_repository(name: &str) -> bool {
    let part = |s: &str| {
        !s.is_empty()
            && !s.starts_with('.')
            && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    name.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
}

/// Whether `revision` may name a branch, tag or commit; it becomes part of paths and addresses.
fn is_revision(revision: &str) -> bool {
    let part = |s: &str| !s.is_empty() && !s.starts_with('.');
    revision.len() <= 128
        && revision.split('/').all(part)
        && revision.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))
}

fn unknown(name: &str) -> Error {
    let hint = match suggest::nearest(name, KNOWN.iter().map(|k| k.name)) {
        Some(known) => format!("did you mean {known}?"),
        None => format!("known are {}", KNOWN.iter().map(|k| k.name).collect::<Vec<_>>().join(", ")),
    };
    Error::setting("backbone", format!("`{}` is neither a folder nor a known name; {hint}", name.escape_debug()))
}
