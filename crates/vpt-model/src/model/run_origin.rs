//! The run that a task file lies in: it knows the folder of its backbone, which a task file does not.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use vpt_backbone::{Device, Engine, Precision, registry::locate};
use vpt_base::files::read_limited;

/// The configuration in a run folder.
pub const CONFIG: &str = "config.toml";
/// A configuration is short, but for lists of templates and class names.
const MAX_BYTES: u64 = 1 << 20;

/// Backbone of a run, from its configuration.
#[derive(Debug, Deserialize)]
pub(super) struct RunOrigin {
    /// A known backbone's name or a folder.
    pub(super) backbone: String,
    /// Where known backbones are looked for first.
    pub(super) weights_dir: Option<PathBuf>,
    /// Number format of frozen weights.
    #[serde(default)]
    pub(super) precision: Precision,
    /// What computed the image tower.
    #[serde(default)]
    pub(super) engine: Engine,
    /// On what.
    #[serde(default)]
    pub(super) device: Device,
}

impl RunOrigin {
    /// Of the run that the task file, or run folder, `path` is from, where it lies in its run folder and its backbone is found.
    /// Whether the weights are still the same is checked by their hash.
    pub(super) fn beside(path: &Path) -> Option<Self> {
        let run: Self = toml::from_str(&config_beside(path)?).ok()?;
        locate(&run.backbone, run.weights_dir.as_deref()).is_ok().then_some(run)
    }
}

/// What the data set is called that the run of the task file, or run folder, `path` learned from, where it lies in its run folder: the
/// name of its folder or file.
pub fn data_name(path: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct RunData {
        data: PathBuf,
    }
    let run: RunData = toml::from_str(&config_beside(path)?).ok()?;
    Some(run.data.file_name()?.to_string_lossy().into_owned())
}

fn config_beside(path: &Path) -> Option<String> {
    let folder = if path.is_dir() { path } else { path.parent()? };
    String::from_utf8(read_limited(&folder.join(CONFIG), MAX_BYTES).ok()?).ok()
}
