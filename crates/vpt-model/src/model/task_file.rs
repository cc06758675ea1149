//! The file that keeps a learned task: prompt and head, and all that is needed to use them again, in about a megabyte.
//!
//! A safetensors file; its metadata is one JSON text under the key `vpt`. It holds no date and no path, so equal runs give
//! equal bytes, and no weight of the backbone, which is named together with what stands for all that decides its outputs.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::prompt::{PartShape, PartShapes};
use crate::{
    head::{
        Head, HeadKind, LOGIT_BIAS,
        cache::{self, KEYS},
        detect::{ClassLayer, DetectShape},
        label_map::{self, LabelMap, MAP},
        segment::SegmentShape,
    },
    methods::{HeadStart, Method},
    metrics::Scores,
};
use vpt_backbone::{Backbone, BackboneIdentity, class_texts::Prompts, classifier::SourceClassifier};
use vpt_base::{
    Error, Message, Result,
    files::write_atomic,
    params::{Group, Param},
    tensor_file::{self, Tensor},
};
use vpt_data::boxes::{Fit, MAX_TILES};
use vpt_image::preprocess::Preprocess;

/// The task file of a run folder.
pub const BEST: &str = "best.safetensors";
/// Vectors of the classes of a detector that were shown to it, `[K, E]`.
pub(super) const EXEMPLARS: &str = "head.class.exemplars";
/// The metadata's key.
const KEY: &str = "vpt";
/// The version of files with one learned part or none, and of those with several.
const FORMAT: u64 = 1;
const FORMAT_OF_SEVERAL: u64 = 2;
/// More classes than any data set of the field has; bounds what a crafted file can make us allocate.
const MAX_CLASSES: usize = 1_000_000;

/// Source classes of a class that a label mapping names: those with the largest parts.
pub const NAMED_SOURCES: usize = 3;

/// No temperature that is fitted is higher, or lower than one over it.
const MAX_TEMPERATURE: f64 = 1000.;

/// What the metadata of a file with all weights of a tower holds, and the most bytes of such a file: those of the largest
/// towers, twice.
const OF_A_TOWER: &str = r#"\"tuned\":\"full\""#;
const MAX_TOWER_BYTES: u64 = 8 << 30;

/// Larger than any backbone is used at; bounds the position embeddings that a crafted file can make us interpolate.
const MAX_IMAGE_SIZE: usize = 4096;

/// Which backbone a task was learned on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneId {
    /// The known name, or the name of its folder.
    pub name: String,
    /// BLAKE3 over its weight files, in hexadecimal: where they came from.
    pub hash: String,
    /// What must be equal for the task to be used. Versions that did not write it asked for equal files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<BackboneIdentity>,
}

impl BackboneId {
    /// That of `backbone`.
    ///
    /// # Errors
    /// As [`Backbone::identity`].
    pub fn of(backbone: &Backbone) -> Result<Self> {
        let identity = Some(backbone.identity()?.clone());
        Ok(Self { name: backbone.name.clone(), hash: backbone.hash_of_files()?.to_owned(), identity })
    }
}

/// How well the task was learned.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskMetrics {
    /// The epoch the values are from, counted from 1.
    pub epoch: usize,
    /// On the validation images.
    pub val: Option<Scores>,
    /// On the test images, which are looked at once, at the end of a run.
    pub test: Option<Scores>,
}

/// What a task file says of a detector beside what it says of every task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectMeta {
    /// The head.
    pub head: DetectShape,
    /// Blocks behind which patch tokens are read, ascending, counted from 1.
    pub blocks: Vec<usize>,
    /// How images become square.
    pub fit: Fit,
    /// The categories' ids in result files, in the order of the classes.
    pub category_ids: Vec<u64>,
    /// The score above which the mean F1 of the classes is highest on the validation images.
    pub confidence: Option<f64>,
    /// For each class the score above which its own F1 is highest there, where there are objects enough to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thresholds: Option<Vec<f64>>,
    /// Tiles along the shorter side of an image, if they did not overlap; 1: images as a whole alone.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub tiles: usize,
    /// Whether the file has vectors of the classes, which were shown, not told by their names.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exemplars: bool,
}

fn one() -> usize {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's form
fn is_one(count: &usize) -> bool {
    *count == 1
}

/// What a task file says of a task of pixels beside what it says of every task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentMeta {
    /// The head.
    pub head: SegmentShape,
    /// Blocks behind which patch tokens are read, ascending, counted from 1.
    pub blocks: Vec<usize>,
    /// Windows along the shorter side of an image, if they did not overlap.
    pub tiles: usize,
    /// The number of each class in masks.
    pub indices: Vec<u16>,
}

/// What a task file says of a label mapping beside the mapping itself, which is a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapMeta {
    /// How it was made.
    pub kind: LabelMap,
    /// Classes of the backbone's classifier.
    pub sources: usize,
    /// Names of those that have a part in a class, by their numbers, if the backbone names its classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<BTreeMap<usize, String>>,
}

impl MapMeta {
    /// A mapping of the classes of `source`.
    pub fn new((kind, source): (LabelMap, &SourceClassifier)) -> Self {
        Self { kind, sources: source.classes(), names: None }
    }

    /// Keeps those `names` that the mapping among `params` has a use for.
    ///
    /// # Errors
    /// There is no mapping among them.
    pub fn name(&mut self, names: Option<&[String]>, params: &[Param]) -> Result<()> {
        let Some(names) = names else { return Ok(()) };
        let used: BTreeSet<usize> =
            label_map::leading(params, NAMED_SOURCES)?.into_iter().flatten().map(|(source, _)| source).collect();
        let named = names.iter().cloned().enumerate().filter(|(i, _)| used.contains(i));
        self.names = Some(named.collect());
        Ok(())
    }
}

/// All of a task file but the tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskMeta {
    format: u64,
    /// How it was learned.
    pub method: Method,
    /// What was learned beside the head.
    #[serde(rename = "prompt")]
    pub parts: PartShapes,
    /// What was learned at the output.
    pub head: HeadKind,
    /// What it was learned on.
    pub backbone: BackboneId,
    /// Class names; logit i belongs to the i-th.
    pub classes: Vec<String>,
    /// What learned texts call the classes, where that is not by the classes' own names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classnames: Option<Vec<String>>,
    /// Side of the images the backbone sees, in pixels.
    pub image_size: usize,
    /// From a decoded image to what the prompt is applied to.
    pub preprocess: Preprocess,
    /// How well it was learned.
    pub metrics: TaskMetrics,
    /// What only a detector has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detect: Option<DetectMeta>,
    /// What only a task of pixels has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment: Option<SegmentMeta>,
    /// Whether an image has any number of classes: each logit then stands for itself, and 0 is the border.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub multilabel: bool,
    /// What logits of classes are divided by before they become probabilities, where that was fitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// What only a label mapping has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_map: Option<MapMeta>,
}

/// A learned task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskFile {
    /// What it is.
    pub meta: TaskMeta,
    /// Prompt (unless the method learns none) and head (unless each image makes its own).
    pub params: Vec<Param>,
}

impl TaskMeta {
    /// Describes a task in the current format.
    #[allow(clippy::too_many_arguments)] // one for every field of the file
    pub fn new(
        method: Method,
        parts: PartShapes,
        head: HeadKind,
        backbone: BackboneId,
        classes: Vec<String>,
        image_size: usize,
        preprocess: Preprocess,
        metrics: TaskMetrics,
    ) -> Self {
        Self {
            format: format_of(&parts),
            method,
            parts,
            head,
            backbone,
            classes,
            classnames: None,
            image_size,
            preprocess,
            metrics,
            detect: None,
            segment: None,
            multilabel: false,
            temperature: None,
            label_map: None,
        }
    }

    /// The version of the file's format.
    pub fn format(&self) -> u64 {
        self.format
    }

    /// What logits of classes are divided by before they become probabilities; 1 where the file does not say.
    pub fn temperature(&self) -> f64 {
        self.temperature.unwrap_or(1.)
    }

    /// What texts call the classes: by their own names, with spaces for underscores, unless the file says otherwise.
    pub fn names_in_texts(&self) -> Vec<String> {
        self.classnames.clone().unwrap_or_else(|| Prompts::of_names(&self.classes).classnames)
    }

    /// The same for classes that learned texts call by other names than their own.
    #[must_use]
    pub fn with_classnames(self, classnames: Option<Vec<String>>) -> Self {
        Self { classnames, ..self }
    }

    /// The same as the task of a detector.
    #[must_use]
    pub fn with_detector(self, detect: DetectMeta) -> Self {
        Self { detect: Some(detect), ..self }
    }

    /// The same as a task of pixels.
    #[must_use]
    pub fn with_segmenter(self, segment: SegmentMeta) -> Self {
        Self { segment: Some(segment), ..self }
    }

    /// The same as a task of any number of classes an image.
    #[must_use]
    pub fn with_many_labels(self) -> Self {
        Self { multilabel: true, ..self }
    }
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

/// The format of a file with these parts.
fn format_of(parts: &PartShapes) -> u64 {
    if parts.are_several() { FORMAT_OF_SEVERAL } else { FORMAT }
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

#[cfg(test)]
mod tests {
    use crate::model::task_file::*;
    use crate::{
        metrics::Metrics,
        prompt::{
            text::{Beside, TextShape},
            tokens::TokenLayout,
            weights::{LoraShape, LoraTowers, WeightShape},
        },
    };
    use vpt_backbone::OpenOptions;
    use vpt_base::random::stream;

    fn task() -> TaskFile {
        let layout = TokenLayout { start: 0, layers: 2, tokens: 3 };
        let head = Head { kind: HeadKind::Linear, width: 8, classes: 2, keys: 0, logit_bias: false };
        let mut rng = stream(1, "test", 0, 0);
        let mut params = vec![layout.init(8, 4, &mut rng).unwrap()];
        params.extend(head.init(&mut rng).unwrap());
        let backbone = BackboneId { name: "clip-nano".into(), hash: "ab".repeat(32), identity: None };
        let val = Metrics { acc1: 2. / 3., acc5: None, mean_per_class_recall: 0.1 + 0.2, loss: 1. / 7. };
        let meta = TaskMeta::new(
            Method::VPT_DEEP,
            PartShape::Tokens(layout).into(),
            HeadKind::Linear,
            backbone,
            vec!["cat".into(), "naïve \"dog\"".into()],
            64,
            Preprocess::clip(64),
            TaskMetrics { epoch: 7, val: Some(Scores::Classify(val)), test: None },
        );
        TaskFile { meta, params }
    }

    fn refused(task: &TaskFile) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("task.safetensors");
        task.save(&path).unwrap();
        TaskFile::open(&path).unwrap_err().to_string()
    }

    #[test]
    fn a_task_comes_back_as_it_was_and_its_bytes_never_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("best.safetensors");
        task().save(&path).unwrap();
        let read = TaskFile::open(&path).unwrap();
        assert_eq!(read, task());
        assert_eq!(read.to_bytes().unwrap(), std::fs::read(&path).unwrap());
        assert_eq!(TaskFile::open(dir.path()).unwrap(), read, "a run folder stands for its best.safetensors");
    }

    #[test]
    fn another_backbone_is_refused_and_both_are_named() {
        let nano = Backbone::open("clip-nano", &OpenOptions::default()).unwrap();
        let known = BackboneId { name: "clip-vit-b32".into(), ..BackboneId::of(&nano).unwrap() };
        let with = |backbone: BackboneId| {
            let mut task = task();
            task.meta.backbone = backbone;
            task.check_backbone(&nano).map_err(|error| error.to_string())
        };
        with(known.clone()).unwrap();
        with(BackboneId { hash: "ab".repeat(32), ..known.clone() }).unwrap();
        with(BackboneId { identity: None, ..known.clone() }).unwrap();
        let message = with(BackboneId { identity: None, hash: "ab".repeat(32), ..known.clone() }).unwrap_err();
        assert!(message.contains("clip-nano") && message.contains("clip-vit-b32 (abab"), "{message}");
        let mut identity = known.identity.clone().unwrap();
        identity.hash = "cd".repeat(32);
        identity.parts.config = "cd".repeat(8);
        identity.parts.tokenizer = String::new();
        let message = with(BackboneId { identity: Some(identity), ..known }).unwrap_err();
        assert!(message.ends_with("is not: another configuration, another tokenizer"), "{message}");
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let with = |change: fn(&mut TaskFile)| {
            let mut task = task();
            change(&mut task);
            refused(&task)
        };
        assert!(with(|t| t.meta.format = 3).contains("format 3; this program reads formats 1 and 2"));
        assert!(with(|t| t.meta.format = 2).contains("1 learned parts in a file of format 2"));
        assert!(with(|t| t.meta.classes.push("third".into())).contains("[2, 8] where [3, 8]"));
        assert!(with(|t| t.meta.image_size = 16_384).contains("image size 16384"));
        let bytes = |task: &TaskFile| String::from_utf8_lossy(&task.to_bytes().unwrap()).into_owned();
        let mut many = task();
        many.meta = many.meta.with_many_labels();
        assert!(bytes(&many).contains("multilabel") && !bytes(&task()).contains("multilabel"));
        for temperature in [0., -1., 1e-9, f64::MAX] {
            let mut task = task();
            task.meta.temperature = Some(temperature);
            assert!(refused(&task).contains("temperature of"), "{temperature}");
        }
        assert!(!bytes(&task()).contains("temperature") && (task().meta.temperature() - 1.).abs() < f64::EPSILON);
        assert!(with(|t| t.meta.classes.clear()).contains("0 classes"));
        assert!(with(|t| t.meta.head = HeadKind::Cosine).contains("no tensor `head.log_scale`"));
        assert!(with(|t| t.meta.parts = PartShapes::NONE).contains("`prompt.tokens` has no place"));
        assert!(with(|t| t.params.remove(0).values.clear()).contains("no tensor `prompt.tokens`"));
        assert!(with(|t| t.params.truncate(1)).contains("`head.weight` is missing"));
        assert!(with(|t| t.params[0].shape = vec![3, 2, 8]).contains("not what its metadata says"));
        let empty = TokenLayout { start: 0, layers: 0, tokens: 3 };
        let mut nothing = task();
        nothing.meta.parts = PartShape::Tokens(empty).into();
        assert!(refused(&nothing).contains("a prompt without tokens or layers"));
        let text = |beside| PartShapes::from(PartShape::Text(TextShape { tokens: 3, layers: 2, beside }));
        let mut linear = task();
        linear.meta.parts = text(Beside::Nothing);
        linear.params[0].name = "prompt.text".into();
        assert!(refused(&linear).contains("texts make a cosine head"));
        linear.meta.head = HeadKind::Cosine;
        linear.meta.parts = text(Beside::MetaNet);
        assert!(refused(&linear).contains("no tensor `prompt.meta.fc1.weight`"));
        linear.params[0].shape = vec![3, 2, 8];
        assert!(refused(&linear).contains("the shape [3, 2, 8] of `prompt.text` is not"));
        assert!(with(|t| t.params[1].values[3] = f32::INFINITY).contains("not finite"));
    }

    #[test]
    fn tuned_weights_come_back_in_the_order_of_their_names() {
        let lora = LoraShape { rank: 2, alpha: 1., towers: LoraTowers::Both, texts: true };
        let weight = |name: &str, shape: &[usize], group| {
            Param::new(&format!("backbone.{name}"), shape, vec![0.5; shape.iter().product()], group).unwrap()
        };
        let tuned = |shape, params: Vec<Param>| {
            let mut file = task();
            file.meta.parts = PartShape::Weights(shape).into();
            file.params.splice(0..1, params);
            file
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("task.safetensors");
        for (shape, params) in [
            (
                WeightShape::Bias,
                vec![weight("a.bias", &[3], Group::PartBias(0)), weight("b.bias", &[2], Group::PartBias(0))],
            ),
            (
                WeightShape::Full,
                vec![weight("a.bias", &[3], Group::PartBias(0)), weight("a.weight", &[3, 2], Group::Part(0))],
            ),
            (
                WeightShape::Lora(LoraShape { texts: false, towers: LoraTowers::Image, ..lora }),
                vec![weight("q.lora_A", &[2, 8], Group::Part(0)), weight("q.lora_B", &[8, 2], Group::Part(0))],
            ),
        ] {
            let mut file = tuned(shape, params);
            file.save(&path).unwrap();
            let read = TaskFile::open(&path).unwrap();
            assert_eq!(read, file);
            let text = std::fs::read(&path).unwrap();
            assert_eq!(tensor_file::mentions(&path, OF_A_TOWER), shape == WeightShape::Full, "{}", text.len());
            file.params.swap(0, 1);
            file.save(&path).unwrap();
            assert_eq!(TaskFile::open(&path).unwrap(), read);
        }
        // The head that texts made was not learned.
        let mut by_texts = tuned(WeightShape::Lora(lora), vec![weight("q.lora_A", &[2, 8], Group::Part(0))]);
        by_texts.save(&path).unwrap();
        assert_eq!(vpt_base::params::count(&TaskFile::open(&path).unwrap().params), 16);
        for bad in [
            LoraShape { rank: 0, ..lora },
            LoraShape { rank: usize::MAX, ..lora },
            LoraShape { alpha: -1., ..lora },
            LoraShape { texts: false, ..lora },
        ] {
            by_texts.meta.parts = PartShape::Weights(WeightShape::Lora(bad)).into();
            assert!(refused(&by_texts).contains("task metadata: lora_"), "{bad:?}");
        }
        by_texts.meta.parts = PartShapes::NONE;
        assert!(refused(&by_texts).contains("`backbone.q.lora_A` has no place"));
    }

    #[test]
    fn several_parts_are_a_list_in_a_format_of_their_own() {
        let mut several = task();
        several.meta.parts.push(PartShape::Weights(WeightShape::Bias));
        several.params.insert(1, Param::new("backbone.a.bias", &[2], vec![0.5; 2], Group::PartBias(1)).unwrap());
        assert!(refused(&several).contains("2 learned parts in a file of format 1"));
        several.meta.format = FORMAT_OF_SEVERAL;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("task.safetensors");
        several.save(&path).unwrap();
        assert_eq!(TaskFile::open(&path).unwrap(), several);
        let text = String::from_utf8_lossy(&several.to_bytes().unwrap()).into_owned();
        assert!(text.contains(r#"\"format\":2"#) && text.contains(r#"\"prompt\":[{\"input\":\"tokens\""#), "{text}");
        assert!(String::from_utf8_lossy(&task().to_bytes().unwrap()).contains(r#"\"prompt\":{\"input\":\"tokens\""#));

        let twice = PartShape::Tokens(TokenLayout { start: 0, layers: 1, tokens: 1 });
        let text = PartShape::Text(TextShape { tokens: 3, layers: 1, beside: Beside::Nothing });
        for (other, why) in [(twice, "two of one kind"), (text, "texts are learned alone")] {
            let mut bad = task();
            bad.meta.parts.push(other);
            bad.meta.format = FORMAT_OF_SEVERAL;
            assert!(refused(&bad).contains(why), "{why}");
        }
    }

    // A later program may know more formats, methods and fields, and keep tensors in another form.
    #[test]
    fn what_a_newer_program_wrote_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("task.safetensors");
        let refused = |change: fn(&mut Value)| {
            let mut meta = serde_json::to_value(task().meta).unwrap();
            change(&mut meta);
            let tensor = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, vec![1], &[0, 0]).unwrap();
            let meta = HashMap::from([(KEY.to_owned(), meta.to_string())]);
            std::fs::write(&path, safetensors::serialize([("prompt.tokens", tensor)], Some(meta)).unwrap()).unwrap();
            let of_meta = tensor_file::read(&path, KEY, "task file", tensor_file::MAX_BYTES, |meta| {
                check_format(meta, &path)?;
                parse_meta(meta.clone(), &path).map(drop)
            });
            of_meta.unwrap_err().to_string()
        };
        assert!(
            refused(|meta| meta["format"] = 3.into())
                .ends_with("reads formats 1 and 2: a newer version of vpt is needed")
        );
        assert!(
            refused(|meta| meta["format"] = 0.into())
                .ends_with("reads formats 1 and 2: an older version of vpt is needed")
        );
        assert!(refused(|meta| meta["format"] = "1".into()).ends_with("has no format number"));
        assert!(refused(|meta| meta["method"] = "lora9".into()).contains("`lora9` is not one of linear, zero-shot"));
        assert!(refused(|meta| meta["method"] = "vpt-deap".into()).ends_with("did you mean vpt-deep?"));
        assert!(refused(|meta| meta["text_context"] = 4.into()).contains("unknown field `text_context`"));
        // The whole file, whose tensor is not of this format either.
        assert!(TaskFile::open(&path).unwrap_err().to_string().contains("BF16, not F32"));
        refused(|meta| meta["format"] = 3.into());
        assert!(TaskFile::open(&path).unwrap_err().to_string().contains("is a task file of format 3"));
    }

    #[test]
    fn a_checkpoint_of_something_else_is_no_task_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let other = vec![Tensor { name: "x".into(), shape: vec![1], values: vec![0.].into() }];
        std::fs::write(&path, tensor_file::to_bytes(other, "format", "pt".into()).unwrap()).unwrap();
        assert!(TaskFile::open(&path).unwrap_err().to_string().contains("not a task file"));
        let missing = dir.path().join("missing");
        assert!(TaskFile::open(&missing).unwrap_err().to_string().starts_with(&missing.display().to_string()));
    }
}
