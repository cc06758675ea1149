//! What there is to say of one backbone: `vpt backbones info`.

use std::path::Path;

use serde::Serialize;

use super::clip::{Backbone, OpenOptions};
use super::identity::BackboneIdentity;
use super::registry::locate;
use super::spec::Spec;
use vpt_base::Result;

/// Facts about one backbone, as `vpt backbones info` prints them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BackboneInfo {
    /// The name it was found by.
    pub name: String,
    /// Its repository on the Hugging Face hub, if its name is known.
    pub repo: Option<&'static str>,
    /// The folder, or `bundled`.
    pub path: String,
    /// BLAKE3 of its weight files.
    pub hash: String,
    /// What task files, runs and caches know it by; none where it cannot be opened.
    pub identity: Option<BackboneIdentity>,
    /// Number of values in its tensors, heads included that are no part of the backbone.
    pub parameters: u64,
    /// The types its tensors are stored in.
    pub dtypes: Vec<String>,
    /// Its weight files.
    pub files: Vec<FileInfo>,
    /// Its architecture.
    pub spec: Spec,
}

/// A file of a backbone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileInfo {
    /// Its name in the folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

/// Finds a backbone as [`locate`] does and describes it. Reads the weights once, for their hash.
///
/// # Errors
/// As [`locate`], or the configuration or weights of what it finds cannot be read.
pub fn info(name_or_dir: &str, weights_dir: Option<&Path>) -> Result<BackboneInfo> {
    let location = locate(name_or_dir, weights_dir)?;
    let open = OpenOptions { weights_dir: weights_dir.map(Path::to_path_buf), ..OpenOptions::default() };
    let identity = Backbone::open(name_or_dir, &open).and_then(|backbone| backbone.identity().cloned()).ok();
    let (spec, weights) = (location.spec()?, location.weights()?);
    let file = |(path, bytes): (&Path, u64)| FileInfo {
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        bytes,
    };
    Ok(BackboneInfo {
        repo: location.known.map(|k| k.repo).filter(|r| !r.is_empty()),
        path: location.dir.as_deref().map_or_else(|| "bundled".to_owned(), |dir| dir.display().to_string()),
        hash: weights.hash()?,
        identity,
        parameters: weights.parameters(),
        dtypes: weights.dtypes(),
        files: weights.files().map(file).collect(),
        name: location.name,
        spec,
    })
}
