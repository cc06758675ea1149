//! Whether what was fetched is still what it was: every cached file of a backbone against the hash in its name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::cache::linked;
use super::{WEIGHTS, digest};
use crate::open_clip;
use crate::registry::{BackboneName, CONFIG, hub_cache, is_open_clip, snapshot};
use crate::tokenizer::TOKENIZER;
use crate::weights::{INDEX, SINGLE, parse_index};
use crate::{bundled, spec::Spec};
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

/// Result of [`verify`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The name it was asked for by.
    pub name: String,
    /// Its repository on the hub.
    pub repo: String,
    /// The commit that was looked at.
    pub commit: Option<String>,
    /// The folder its files are in.
    pub path: String,
    /// Whether nothing is damaged or missing.
    pub ok: bool,
    /// Its files.
    pub files: Vec<VerifiedFile>,
}

/// A file of a backbone, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifiedFile {
    /// Its name in the folder.
    pub name: String,
    /// Its length, if it is there.
    pub bytes: Option<u64>,
    /// State of the cached file.
    pub state: FileState,
}

/// State of a cached file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileState {
    /// It is what its name says.
    Whole,
    /// It is something else.
    Damaged,
    /// It is not there.
    Missing,
    /// It is there, but not in the cache's own form, which names a file by its hash.
    Unchecked,
}

/// Checks the cached files of the backbone `name`. Touches no network.
///
/// # Errors
/// The name is unknown, nothing of it is in the cache, or a file cannot be read.
pub fn verify(name: &str) -> Result<Verified> {
    let named = BackboneName::parse(name)?;
    if named.repo.is_empty() {
        let (name, path) = (named.name, "bundled".to_owned());
        return Ok(Verified { name, repo: String::new(), commit: None, path, ok: true, files: vec![] });
    }
    let cache = hub_cache(|key| std::env::var_os(key));
    let Some(dir) = cache.as_deref().and_then(|cache| snapshot(cache, &named.repo, &named.revision)) else {
        let message = format!("{} is not in the Hugging Face cache; run `vpt backbones fetch {0}`", named.name);
        return Err(Error::invalid("verify", message));
    };
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(&dir).map_err(Error::io(&dir))? {
        let entry = entry.map_err(Error::io(&dir))?;
        if let Ok(name) = entry.file_name().into_string() {
            files.insert(name, state(&entry.path())?);
        }
    }
    for name in needed(&dir) {
        files.entry(name).or_insert((None, FileState::Missing));
    }
    let files: Vec<_> = files.into_iter().map(|(name, (bytes, state))| VerifiedFile { name, bytes, state }).collect();
    Ok(Verified {
        name: named.name,
        repo: named.repo,
        commit: dir.file_name().map(|name| name.to_string_lossy().into_owned()),
        path: dir.display().to_string(),
        ok: files.iter().all(|file| matches!(file.state, FileState::Whole | FileState::Unchecked)),
        files,
    })
}

fn state(path: &Path) -> Result<(Option<u64>, FileState)> {
    let Ok(meta) = fs::metadata(path) else { return Ok((None, FileState::Missing)) };
    if !meta.is_file() {
        return Ok((None, FileState::Unchecked));
    }
    let state = match linked(path).map(|tag| digest::matches(path, &tag)).transpose().map_err(Error::io(path))? {
        Some(Some(true)) => FileState::Whole,
        Some(Some(false)) => FileState::Damaged,
        Some(None) | None => FileState::Unchecked,
    };
    Ok((Some(meta.len()), state))
}

/// The files that the folder `dir` should hold, as far as those that are there tell.
fn needed(dir: &Path) -> Vec<String> {
    if is_open_clip(dir) {
        return [open_clip::CONFIG, open_clip::weight_file(dir).unwrap_or(open_clip::WEIGHTS[0])]
            .map(str::to_owned)
            .into();
    }
    let mut names = vec![CONFIG.to_owned()];
    if Spec::from_config(&dir.join(CONFIG)).is_ok_and(|spec| spec.text.is_some()) {
        names.push(TOKENIZER.to_owned());
    }
    let index = dir.join(INDEX);
    match read_limited(&index, WEIGHTS.index).and_then(|bytes| parse_index(&bytes, &index)) {
        Ok(map) if !dir.join(SINGLE).is_file() => names.extend(map.into_values()),
        _ => names.push(SINGLE.to_owned()),
    }
    names
}

/// Whether `name` is part of the program, so that there is nothing to fetch or to check.
pub fn is_bundled(name: &str) -> bool {
    name == bundled::NAME
}
