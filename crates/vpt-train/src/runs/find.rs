//! Where runs are: the folders below a root, and the one that a name stands for.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::Run;
use crate::train::run_folder;
use vpt_base::{Error, Result, suggest};

/// Any of these makes a folder a run, whatever else is missing.
const MARKS: [&str; 6] = [
    run_folder::CONFIG,
    run_folder::RESULTS,
    run_folder::METRICS,
    run_folder::CHECKPOINT,
    run_folder::BEST,
    run_folder::LOCK,
];

/// How many of the files by which runs are known are in the folder `path`.
pub(super) fn marks(path: &Path) -> usize {
    MARKS.iter().filter(|name| path.join(name).is_file()).count()
}

/// Every run below `root`, by name: `root` itself if it is a run, else the folders in it and in those.
///
/// # Errors
/// `root` cannot be read.
pub fn list(root: &Path) -> Result<Vec<Run>> {
    Ok(scan(root)?.into_iter().map(|(name, path)| Run::read(&path, name)).collect())
}

/// The run that `text` stands for: its folder, its name below `root` (`classify/photos-vpt-deep-1`), or the last part of
/// that where no other run has it.
///
/// # Errors
/// There is none, or several.
pub fn find(root: &Path, text: &str) -> Result<Run> {
    let path = Path::new(text);
    if path.is_dir() && marks(path) > 0 {
        return Ok(Run::read(path, text.trim_end_matches('/').to_owned()));
    }
    let known = if root.is_dir() { scan(root)? } else { Vec::new() };
    let shown = text.escape_debug();
    let last = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
    let named: Vec<&(String, PathBuf)> = match known.iter().find(|(name, _)| name == text) {
        Some(run) => vec![run],
        None => known.iter().filter(|(name, _)| last(name) == text).collect(),
    };
    match named[..] {
        [(name, path)] => Ok(Run::read(path, name.clone())),
        [] if path.is_dir() => Err(Error::file(path, "is not a run folder")),
        [] => {
            let lasts: Vec<String> = known.iter().map(|(name, _)| last(name)).collect();
            let names = known.iter().map(|(name, _)| name.as_str()).chain(lasts.iter().map(String::as_str));
            let message = format!("neither a run folder nor the name of a run in {}", root.display());
            let hint = suggest::hint(text, names);
            Err(Error::invalid(format!("run `{shown}`"), message + &hint))
        }
        _ => {
            let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
            Err(Error::invalid(format!("run `{shown}`"), format!("could be any of {}", names.join(", "))))
        }
    }
}

/// Name and folder of every run below `root`.
fn scan(root: &Path) -> Result<Vec<(String, PathBuf)>> {
    // The root alone may be a folder of something else that has one of these files.
    if marks(root) > 1 {
        let full = root.canonicalize().map_err(Error::typed(root))?;
        let name = full.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(vec![(name, root.to_path_buf())]);
    }
    let mut runs = Vec::new();
    for (name, path) in folders(root).map_err(Error::typed(root))? {
        if marks(&path) > 0 {
            runs.push((name, path));
            continue;
        }
        // A folder that may not be read holds no run that could be shown.
        for (inner, path) in folders(&path).unwrap_or_default() {
            if marks(&path) > 0 {
                runs.push((format!("{name}/{inner}"), path));
            }
        }
    }
    Ok(runs)
}

/// The folders in `path` but hidden ones, by name.
fn folders(path: &Path) -> std::io::Result<Vec<(String, PathBuf)>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(path)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && entry.path().is_dir() {
            folders.push((name, entry.path()));
        }
    }
    folders.sort();
    Ok(folders)
}
