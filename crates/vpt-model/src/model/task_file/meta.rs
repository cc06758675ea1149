//! What a task file says of a task beside its tensors.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    head::{
        HeadKind,
        detect::DetectShape,
        label_map::{self, LabelMap},
        segment::SegmentShape,
    },
    methods::Method,
    metrics::Scores,
    prompt::PartShapes,
};
use vpt_backbone::{Backbone, BackboneIdentity, class_texts::Prompts, classifier::SourceClassifier};
use vpt_base::{Result, params::Param};
use vpt_data::boxes::Fit;
use vpt_image::preprocess::Preprocess;

/// The version of files with one learned part or none, and of those with several.
pub(super) const FORMAT: u64 = 1;
pub(super) const FORMAT_OF_SEVERAL: u64 = 2;

/// Source classes of a class that a label mapping names: those with the largest parts.
pub const NAMED_SOURCES: usize = 3;

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
    pub(super) format: u64,
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

/// The format of a file with these parts.
pub(super) fn format_of(parts: &PartShapes) -> u64 {
    if parts.are_several() { FORMAT_OF_SEVERAL } else { FORMAT }
}
