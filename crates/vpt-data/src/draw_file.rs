//! Files of few-shot draws, of images, boxes or masks.

use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};

use vpt_base::files::{read_limited, write_atomic};
use vpt_base::{Error, Result};

/// Longest file of a draw that is read, in bytes.
const MAX_BYTES: u64 = 1 << 28;

/// Writes a draw as JSON.
pub(crate) fn write_draw(path: &Path, draw: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(draw).map_err(|e| Error::data(path, e.to_string()))?;
    bytes.push(b'\n');
    write_atomic(path, &bytes)
}

/// What [`write_draw`] wrote, or why it is no such draw.
pub(crate) fn read_draw<T: DeserializeOwned>(path: &Path) -> Result<serde_json::Result<T>> {
    Ok(serde_json::from_slice(&read_limited(path, MAX_BYTES)?))
}
