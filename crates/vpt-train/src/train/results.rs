//! `results.json`: what came out of a run.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};

use super::{folds::FoldResults, lr_search::LrTrial};
use crate::config::Task;
use vpt_backbone::{Device, Engine, class_texts::Prompts};
use vpt_base::{Error, Message, Result, files};
use vpt_energy::{Co2, Energy};
use vpt_model::{
    head::{HeadKind, LabelMap},
    methods::Method,
    metrics::{Calibration, Scores, bootstrap::Interval},
};

/// The result of a run. Rates are fractions of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// What was learned.
    pub task: Task,
    /// How.
    pub method: Method,
    /// On which backbone.
    pub backbone: String,
    /// What computed its image tower, if not the native engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    /// On what, if not on the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
    /// The head, but for detection and segmentation, which have heads of their own, and for a label mapping, which takes its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadKind>,
    /// How classes of the backbone's own classifier became those of the data, where they did: there is no head then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_map: Option<LabelMap>,
    /// The texts that a text head began with, or that a method learned in: it has no templates, unless it stays close to some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts: Option<Prompts>,
    /// The card of a public data set that these texts are of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset_card: Option<String>,
    /// From which data set.
    pub data: String,
    /// Classification: the hash of all that was seen of it, as `vpt data info` prints it for the same splits; of the images
    /// that were used, if few were drawn or some left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_hash: Option<String>,
    /// With which seed.
    pub seed: u64,
    /// Number of classes.
    pub classes: usize,
    /// Images it was learned from.
    pub train_images: usize,
    /// Learned values.
    pub trainable_params: usize,
    /// Weights of the frozen backbone.
    pub backbone_params: u64,
    /// The epoch that counts, from 1; 0 where the probe on frozen features was kept, the head's where that was alone.
    pub best_epoch: usize,
    /// On the validation images, after that epoch, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val: Option<Scores>,
    /// On the test images, looked at once.
    pub test: Scores,
    /// The peak learning rate of what the method learns; the chosen one with `lr = "auto"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// What `lr = "auto"` tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_search: Option<Vec<LrTrial>>,
    /// The steps of all that, as a share of those of the training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_search_share: Option<f64>,
    /// With `folds`: what they found in the place of validation images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folds: Option<FoldResults>,
    /// Classification: what logits are divided by before they become probabilities, fitted on the validation images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Classification: the expected calibration error before and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ece: Option<Calibration>,
    /// Hyperparameters that validation chose, by name, where there are any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub chosen: BTreeMap<String, f64>,
    /// Detection and segmentation with prompts: what the head alone reached, before there were any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_only: Option<HeadOnly>,
    /// Pruned prompts: what the same prompts reached before they were pruned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpruned: Option<Control>,
    /// Where a head begins as the probe on frozen features, or is held against it: what that reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeResults>,
    /// Wall time of the whole run in seconds, without the time between an interruption and its resumption.
    pub wall_s: f64,
    /// Images learned from in a second, decoding included, validation not.
    pub img_per_s: f64,
    /// Most memory the process held, in bytes; `None` where the system does not tell.
    pub peak_rss_bytes: Option<u64>,
    /// What the run took, all its processes together; nothing in results of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<Energy>,
    /// The CO2 of that, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub co2: Option<Co2>,
}

/// The head alone, as it was before prompts began, as a control for these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeadOnly {
    /// The epoch it is from, from 1.
    pub best_epoch: usize,
    /// On the validation images, after that epoch, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val: Option<Scores>,
    /// On the test images.
    pub test: Scores,
    /// What was learned beside it; nothing in results of earlier versions.
    #[serde(flatten)]
    pub beside: Option<BesideHead>,
}

/// What prompts did to the head alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BesideHead {
    /// By how much they moved AP or mIoU on the test images: what was learned less the head alone, with a paired bootstrap interval over
    /// the images; nothing where there was nothing to find.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<Interval>,
    /// Whether the head alone is better on validation than what was learned.
    pub better: bool,
    /// Whether it is the result therefore, and the task file.
    pub kept: bool,
    /// What was learned.
    pub learned: LearnedScores,
}

/// What a run reached before it was pruned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Control {
    /// The epoch it is from, from 1.
    pub best_epoch: usize,
    /// On the validation images, after that epoch, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val: Option<Scores>,
    /// On the test images.
    pub test: Scores,
}

/// The head alone on frozen features, without prompts or tuned weights, as a control for these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeResults {
    /// Strength of the probe's L2 penalty; `None` for CLIP's zero-shot classifier, which a text head begins as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l2: Option<f64>,
    /// On the validation images, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val: Option<Scores>,
    /// On the test images.
    pub test: Scores,
    /// By how much the learned parts moved the accuracy on the test images: what was learned less the probe, with a paired
    /// bootstrap interval over the images.
    pub moved: Interval,
    /// Whether the probe is better on validation than what was learned.
    pub better: bool,
    /// Whether it is the result therefore, and the task file.
    pub kept: bool,
    /// What was learned.
    pub learned: LearnedScores,
}

/// What a run learned, beside the head alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LearnedScores {
    /// The epoch it is from, from 1.
    pub best_epoch: usize,
    /// On the validation images, after that epoch, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val: Option<Scores>,
    /// On the test images.
    pub test: Scores,
}

impl Results {
    /// Reads a `results.json`.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = files::read_limited(path, 1 << 20)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::file(path, Message::from("not a result: ").text(Message::of_reader(&error))))
    }
}

/// Most memory this process held so far, in bytes, where `/proc` tells.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_told_in_bytes() {
        let held = vec![1u8; 32 << 20];
        assert!(peak_rss_bytes().unwrap() > held.len() as u64);
    }
}
