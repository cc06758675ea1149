//! `grid.json`: what all jobs of a folder have in common. It makes the folder that of one grid.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};

use super::{super::job::create_parent, GridSchedule, Mode};
use vpt_base::{
    Error, Message, Result,
    files::{self, write_atomic},
};
use vpt_train::config::Task;

/// What says which grid a folder holds.
const GRID: &str = "grid.json";

/// What all jobs of a folder have in common: `grid.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridFile {
    /// What the grid asks.
    pub mode: Mode,
    /// How long methods learn.
    pub schedule: GridSchedule,
    /// What is learned, unless it is one class an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// The backbone's name.
    pub backbone: String,
    /// What stands for everything that decides its outputs ([`vpt_backbone::BackboneIdentity`]).
    pub backbone_hash: String,
    /// With [`Mode::Cross`]: the data sets that the others are tried on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// The cards of public data sets that texts were taken from, by data set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cards: BTreeMap<String, String>,
}

impl GridFile {
    /// What is learned.
    pub fn task(&self) -> Task {
        self.task.unwrap_or(Task::Classify)
    }

    /// Reads the grid of the folder `out`.
    ///
    /// # Errors
    /// There is none.
    pub fn load(out: &Path) -> Result<Self> {
        let path = out.join(GRID);
        if !path.is_file() {
            let message =
                Message::from(format!("holds no grid: there is no {GRID}; `vpt bench few-shot ")).field("out");
            return Err(Error::file(out, message.text(" DIR` makes one")));
        }
        let bytes = files::read_limited(&path, 1 << 20)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::file(&path, Message::from("not a grid: ").text(Message::of_reader(&error))))
    }

    /// Makes `out` the folder of this grid.
    ///
    /// # Errors
    /// It is another grid's.
    pub(crate) fn claim(&self, out: &Path) -> Result<()> {
        let path = out.join(GRID);
        if path.is_file() {
            let there = Self::load(out)?;
            if there == *self {
                return Ok(());
            }
            let name = |grid: &Self| {
                let hash = grid.backbone_hash.get(..8).unwrap_or_default();
                let what: Vec<&str> =
                    std::iter::once(grid.mode.name()).chain(grid.targets.iter().map(String::as_str)).collect();
                let task = grid.task.map_or_else(String::new, |task| format!(" of {task}"));
                format!("{}{task} on {} ({hash}), {} schedule", what.join(" "), grid.backbone, grid.schedule)
            };
            let message = format!("holds another grid: {}, not {}; give another ", name(&there), name(self));
            return Err(Error::file(out, Message::from(message).field("out")));
        }
        create_parent(&path)?;
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|e| Error::file(&path, e.to_string()))?;
        bytes.push(b'\n');
        write_atomic(&path, &bytes)
    }
}
