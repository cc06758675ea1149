//! The file that keeps a learned task: prompt and head, and all that is needed to use them again, in about a megabyte.
//!
//! A safetensors file; its metadata is one JSON text under the key `vpt`. It holds no date and no path, so equal runs give
//! equal bytes, and no weight of the backbone, which is named together with what stands for all that decides its outputs.

mod meta;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use serde_json::Value;

pub use self::meta::{BackboneId, DetectMeta, MapMeta, NAMED_SOURCES, SegmentMeta, TaskMeta, TaskMetrics};
use self::meta::{FORMAT, FORMAT_OF_SEVERAL, format_of};
use crate::{
    head::{
        Head, HeadKind, LOGIT_BIAS,
        cache::{self, KEYS},
        detect::ClassLayer,
        label_map::MAP,
        segment::SegmentShape,
    },
    methods::HeadStart,
    prompt::PartShape,
};
use vpt_backbone::Backbone;
use vpt_base::{
    Error, Message, Result,
    files::write_atomic,
    params::{Group, Param},
    tensor_file::{self, Tensor},
};
use vpt_data::boxes::MAX_TILES;

/// The task file of a run folder.
pub const BEST: &str = "best.safetensors";
/// Vectors of the classes of a detector that were shown to it, `[K, E]`.
pub(super) const EXEMPLARS: &str = "head.class.exemplars";
/// The metadata's key.
const KEY: &str = "vpt";
/// More classes than any data set of the field has; bounds what a crafted file can make us allocate.
const MAX_CLASSES: usize = 1_000_000;

/// No temperature that is fitted is higher, or lower than one over it.
const MAX_TEMPERATURE: f64 = 1000.;

/// What the metadata of a file with all weights of a tower holds, and the most bytes of such a file: those of the largest
/// towers, twice.
const OF_A_TOWER: &str = r#"\"tuned\":\"full\""#;
const MAX_TOWER_BYTES: u64 = 8 << 30;

/// Larger than any backbone is used at; bounds the position embeddings that a crafted file can make us interpolate.
const MAX_IMAGE_SIZE: usize = 4096;

/// A learned task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskFile {
    /// What it is.
    pub meta: TaskMeta,
    /// Prompt (unless the method learns none) and head (unless each image makes its own).
    pub params: Vec<Param>,
}

impl TaskFile {
    /// The file's bytes: the same for the same task, always.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let meta = serde_json::to_value(&self.meta).map_err(|error| Error::invalid("task", error.to_string()))?;
        let tensors = self.params.iter().map(|p| Tensor {
            name: p.name.clone(),
            shape: p.shape.clone(),
            values: p.values.as_slice().into(),
        });
        tensor_file::to_bytes(tensors.collect(), KEY, meta)
    }

    /// Writes the file, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        write_atomic(path, &self.to_bytes()?)
    }

    /// The task file that `path` stands for: itself, or the `best.safetensors` of a run folder.
    pub fn path_in(path: &Path) -> PathBuf {
        if path.is_dir() { path.join(BEST) } else { path.to_path_buf() }
    }

    /// Reads a task file; `path` may also be a run folder, whose `best.safetensors` is meant then.
    ///
    /// Everything that does not depend on the backbone is checked: format, names, types, shapes, finite values.
    pub fn open(path: &Path) -> Result<Self> {
        Self::read(path).map_err(|error| error.of_kind(Error::task_file))
    }

    fn read(path: &Path) -> Result<Self> {
        std::fs::metadata(path).map_err(Error::typed(path))?;
        let path = &*Self::path_in(path);
        let limit = if tensor_file::mentions(path, OF_A_TOWER) { MAX_TOWER_BYTES } else { tensor_file::MAX_BYTES };
        let (mut tensors, meta) = tensor_file::read(path, KEY, "task file", limit, |meta| check_format(meta, path))?;
        let meta = parse_meta(meta, path)?;
        let mut params = Vec::new();
        for (place, part) in meta.parts.iter().enumerate() {
            let own = part.kind().take(&mut tensors, path)?.into_iter();
            params.extend(own.map(|param| Param { group: param.group.of_part(place), ..param }));
        }
        for (name, shape) in head_tensors(&meta, &tensors, path)? {
            let group = match (&meta.segment, &meta.label_map) {
                _ if name == EXEMPLARS => Group::Fixed,
                (Some(_), _) => SegmentShape::group(&name, &shape),
                (None, Some(_)) => Group::Fixed,
                (None, None) => head_group(&meta, &name, &shape),
            };
            params.push(Param::new(&name, &shape, tensor_file::take(&mut tensors, &name, &shape, path)?, group)?);
        }
        if meta.method.has_cache() {
            cache::labels(&params, meta.classes.len()).map_err(|error| Error::task_file(path, error))?;
        }
        if let Some(name) = tensors.keys().min() {
            return Err(Error::task_file(path, format!("tensor `{}` has no place in this task", name.escape_debug())));
        }
        Ok(Self { meta, params })
    }

    /// Fails unless `backbone` is the one the task was learned on; the error names both and what differs.
    pub fn check_backbone(&self, backbone: &Backbone) -> Result<()> {
        let own = &self.meta.backbone;
        let short = |name: &str, hash: &str| format!("{name} ({})", hash.get(..12).unwrap_or(hash));
        let refuse = |own: String, other: String, why: &str| {
            let message = format!("the task was learned on {own}, which {other} is not: {why}");
            Err(Error::setting("backbone", message))
        };
        let Some(identity) = &own.identity else {
            let files = backbone.hash_of_files()?;
            return if own.hash == files {
                Ok(())
            } else {
                // The same weights in another file would do; this file cannot tell.
                let why = "its weight files are others, by which earlier versions of vpt knew a backbone";
                refuse(short(&own.name, &own.hash), short(&backbone.name, files), why)
            };
        };
        let other = backbone.identity()?;
        if identity.hash == other.hash {
            return Ok(());
        }
        let parts = identity.parts.differences(&other.parts);
        let why = if parts.is_empty() {
            "its identity is another".to_owned()
        } else {
            format!("another {}", parts.join(", another "))
        };
        refuse(short(&own.name, &identity.hash), short(&backbone.name, &other.hash), &why)
    }
}

/// Name and shape of every tensor of the task's head, whose width a classifier's weight tells.
fn head_tensors(
    meta: &TaskMeta,
    tensors: &HashMap<String, Tensor<'static>>,
    path: &Path,
) -> Result<Vec<(String, Vec<usize>)>> {
    if let Some(detect) = &meta.detect {
        detect.head.check().map_err(|error| Error::task_file(path, Message::from("task metadata: ").text(error)))?;
        let mut tensors = detect.head.tensors();
        if detect.exemplars {
            let ClassLayer::Text { classes, width } = detect.head.classes else {
                return Err(Error::task_file(
                    path,
                    "task metadata: classes that were shown to a head of fixed classes",
                ));
            };
            tensors.push((EXEMPLARS.to_owned(), vec![classes, width]));
        }
        return Ok(tensors);
    }
    if let Some(segment) = &meta.segment {
        segment.head.check().map_err(|error| Error::task_file(path, Message::from("task metadata: ").text(error)))?;
        return Ok(segment.head.tensors());
    }
    if let Some(shape) = meta.parts.text() {
        if meta.head != HeadKind::Cosine || meta.multilabel {
            return Err(Error::task_file(path, "task metadata: texts make a cosine head of one class an image"));
        }
        if !shape.keeps_head() {
            return Ok(Vec::new());
        }
    }
    if let Some(map) = &meta.label_map {
        return Ok(vec![(MAP.to_owned(), vec![map.sources, meta.classes.len()])]);
    }
    let weight = tensors.get("head.weight").map(|t| t.shape.clone()).unwrap_or_default();
    let [_, width] = weight[..] else {
        return Err(Error::task_file(
            path,
            format!("`head.weight` is missing or has shape {weight:?}, not two dimensions"),
        ));
    };
    if width == 0 {
        return Err(Error::task_file(path, "`head.weight` is empty"));
    }
    let keys = if meta.method.has_cache() {
        let shape = tensors.get(KEYS).map(|t| t.shape.clone()).unwrap_or_default();
        match shape[..] {
            [keys, _] if keys > 0 => keys,
            _ => return Err(Error::task_file(path, format!("`{KEYS}` is missing or has shape {shape:?}"))),
        }
    } else {
        0
    };
    // Of a text head that tells each class by itself; earlier versions had none.
    let logit_bias = meta.head == HeadKind::Text && meta.multilabel && tensors.contains_key(LOGIT_BIAS);
    let head = Head { kind: meta.head, width, classes: meta.classes.len(), keys, logit_bias };
    Ok(head.tensors().into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect())
}

/// Whether and how a tensor of the head was learned.
fn head_group(meta: &TaskMeta, name: &str, shape: &[usize]) -> Group {
    let learned = match meta.method.head_start() {
        _ if meta.parts.told_by_texts() => false,
        Some(HeadStart::TextWeights { .. }) => name == "head.weight",
        Some(HeadStart::Cache { learned: true }) => name == KEYS,
        start => start.is_none(),
    };
    match shape.len() {
        _ if !learned => Group::Fixed,
        0 | 1 => Group::HeadBias,
        _ => Group::Head,
    }
}

fn check_format(meta: &Value, path: &Path) -> Result<()> {
    let other = match meta.get("format").and_then(Value::as_u64) {
        Some(FORMAT | FORMAT_OF_SEVERAL) => return Ok(()),
        Some(other) => other,
        None => return Err(Error::task_file(path, "not a task file: its metadata has no format number")),
    };
    let mend = if other > FORMAT_OF_SEVERAL {
        "a newer version of vpt is needed"
    } else {
        "an older version of vpt is needed"
    };
    let message = format!(
        "is a task file of format {other}; this program reads formats {FORMAT} and {FORMAT_OF_SEVERAL}: {mend}"
    );
    Err(Error::task_file(path, message))
}

fn parse_meta(meta: Value, path: &Path) -> Result<TaskMeta> {
    let meta: TaskMeta = serde_json::from_value(meta)
        .map_err(|error| Error::task_file(path, Message::from("task metadata: ").text(Message::of_reader(&error))))?;
    let parts =
        meta.parts.check().map_err(|error| Error::task_file(path, Message::from("task metadata: ").text(error)));
    parts?;
    if meta.format != format_of(&meta.parts) {
        let message = format!("task metadata: {} learned parts in a file of format {}", meta.parts.len(), meta.format);
        return Err(Error::task_file(path, message));
    }
    if meta.classes.is_empty() || meta.classes.len() > MAX_CLASSES {
        return Err(Error::task_file(path, format!("task metadata: {} classes", meta.classes.len())));
    }
    if let Some(names) = meta.classnames.as_ref().filter(|names| names.len() != meta.classes.len()) {
        let message = format!("task metadata: {} class names for {} classes", names.len(), meta.classes.len());
        return Err(Error::task_file(path, message));
    }
    if meta.image_size == 0 || meta.image_size > MAX_IMAGE_SIZE {
        let message = format!("task metadata: image size {} is not between 1 and {MAX_IMAGE_SIZE}", meta.image_size);
        return Err(Error::task_file(path, message));
    }
    if let Some(temperature) = meta.temperature
        && !(1. / MAX_TEMPERATURE..=MAX_TEMPERATURE).contains(&temperature)
    {
        return Err(Error::task_file(path, format!("task metadata: a temperature of {temperature}")));
    }
    if meta.detect.is_some() && meta.multilabel {
        return Err(Error::task_file(path, "task metadata: both a detector and a classifier"));
    }
    if let Some(SegmentMeta { head, blocks, indices, .. }) = &meta.segment {
        if meta.detect.is_some() || meta.multilabel || meta.label_map.is_some() {
            return Err(Error::task_file(path, "task metadata: both pixels told apart and something else"));
        }
        if [head.classes, indices.len()] != [meta.classes.len(); 2] {
            let message = format!(
                "task metadata: {} classes and {} numbers for {}",
                head.classes,
                indices.len(),
                meta.classes.len()
            );
            return Err(Error::task_file(path, message));
        }
        check_blocks(blocks, head.levels, path)?;
    }
    if let Some(MapMeta { sources, names, .. }) = &meta.label_map {
        let plain = matches!(meta.parts[..], [PartShape::Pixels(_)]) && meta.head == HeadKind::Linear;
        if !plain || meta.detect.is_some() || meta.multilabel {
            return Err(Error::task_file(
                path,
                "task metadata: a label map of something else than prompt pixels and one class an image",
            ));
        }
        if *sources < meta.classes.len() || *sources > MAX_CLASSES {
            let message = format!("task metadata: a label map of {sources} classes to {}", meta.classes.len());
            return Err(Error::task_file(path, message));
        }
        if let Some(other) = names.iter().flatten().map(|(source, _)| source).find(|source| *source >= sources) {
            return Err(Error::task_file(path, format!("task metadata: a name for class {other} of {sources}")));
        }
    }
    if let Some(detect) = &meta.detect {
        let DetectMeta { head, blocks, category_ids, thresholds, tiles, .. } = detect;
        let sound = |all: &Vec<f64>| all.len() == meta.classes.len() && all.iter().all(|t| (0. ..=1.).contains(t));
        if !thresholds.as_ref().is_none_or(sound) {
            return Err(Error::task_file(
                path,
                "task metadata: thresholds that are not one from 0 to 1 for each class",
            ));
        }
        if !(1..=MAX_TILES).contains(tiles) {
            return Err(Error::task_file(path, format!("task metadata: {tiles} tiles")));
        }
        let counts = [head.class_count(), category_ids.len()];
        if counts != [meta.classes.len(); 2] {
            let message = format!("task metadata: {counts:?} for {} classes", meta.classes.len());
            return Err(Error::task_file(path, message));
        }
        check_blocks(blocks, head.levels, path)?;
    }
    Ok(meta)
}

/// The blocks that a head of so many levels reads ascend from 1.
fn check_blocks(blocks: &[usize], levels: usize, path: &Path) -> Result<()> {
    let ascending = blocks.windows(2).all(|pair| pair[0] < pair[1]);
    if blocks.len() != levels || !ascending || blocks.first().is_none_or(|&block| block == 0) {
        let message = format!("task metadata: blocks {blocks:?} for a head of {levels} levels");
        return Err(Error::task_file(path, message));
    }
    Ok(())
}
