//! Removes run folders, and nothing else: what is to go is checked, locked, and renamed before anything in it is deleted, so
//! that a run is there whole or not at all.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::find::marks;
use crate::train::run_folder::{LOCK, RunFolder};
use vpt_base::{Error, Result};

/// A run folder that may be removed; locked against other processes until then.
#[derive(Debug)]
pub struct Doomed {
    path: PathBuf,
    _lock: RunFolder,
}

/// Makes sure that `path` is a run folder that nobody works in.
///
/// # Errors
/// It is not: a link, a folder of something else, one that holds folders, which no run makes; or it is in use.
pub fn doom(path: &Path) -> Result<Doomed> {
    // Without a slash at the end, which would stand for what a link leads to.
    let plain: PathBuf = path.components().collect();
    let meta = fs::symlink_metadata(&plain).map_err(Error::typed(path))?;
    if meta.is_symlink() {
        return Err(Error::file(path, "is a link to a folder; remove the link, or what it leads to, by that name"));
    }
    if !meta.is_dir() {
        return Err(Error::file(path, "is not a folder"));
    }
    let entries: Vec<fs::DirEntry> = fs::read_dir(path).and_then(Iterator::collect).map_err(Error::io(path))?;
    let only_lock = entries.len() == 1 && entries[0].file_name() == LOCK;
    if marks(path) < 2 && !only_lock {
        return Err(Error::file(path, "has too little of a run folder to be removed as one"));
    }
    if let Some(folder) = entries.iter().find(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let name = folder.file_name().to_string_lossy().into_owned();
        return Err(Error::file(path, format!("holds a folder, `{name}`, which no run makes; move it away first")));
    }
    let path = fs::canonicalize(&plain).map_err(Error::io(path))?;
    Ok(Doomed { _lock: RunFolder::lock(&path)?, path })
}

impl Doomed {
    /// Its folder, in full.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it.
    ///
    /// # Errors
    /// It cannot be renamed, and is then as it was; or its files cannot be deleted, and the error says where they are.
    pub fn remove(self) -> Result<()> {
        let parent = self.path.parent().ok_or_else(|| Error::file(&self.path, "has no folder above it"))?;
        let bin = tempfile::Builder::new().prefix(".vpt-removed-").tempdir_in(parent).map_err(Error::io(parent))?;
        fs::rename(&self.path, bin.path().join("run")).map_err(Error::io(&self.path))?;
        let place = bin.path().to_path_buf();
        bin.close().map_err(Error::io(place))
    }
}
