//! A run's configuration field by field, and which of its fields were set by the user.
//!
//! `config.toml` keeps every default filled in, so whether a field was set shows only by leaving it open: if the others fill
//! in the same value, it is the default.

use super::Run;
use crate::{
    config::{DENSE, RunConfig, RunContext, Task},
    train::{run_folder, working_size},
};
use vpt_backbone::registry::locate;
use vpt_base::{Result, files::read_limited};
use vpt_data::{FewShot, SplitFile, boxes::BoxShots, masks::MaskShots};

/// Fields that say where and how fast a run is computed, not what comes out.
const PLACE: [&str; 5] = ["threads", "weights_dir", "micro_batch", "max_memory", "out"];
/// Fields that name a run: they are told apart from the others.
const IDENTITY: [&str; 5] = ["task", "method", "backbone", "data", "seed"];
/// Larger than any list of images.
const MAX_SPLIT: u64 = 256 << 20;
/// Deeper than any backbone, for where it cannot be found: only fields that it does not have depend on it.
const ANY_DEPTH: usize = 1 << 16;

/// A field of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigEntry {
    /// Its name.
    pub name: String,
    /// Its value as `config.toml` writes it.
    pub value: String,
}

impl ConfigEntry {
    /// Whether it says what is learned, on what, from what and by which seed.
    pub fn is_identity(&self) -> bool {
        IDENTITY.contains(&self.name.as_str())
    }

    /// Whether what comes out cannot depend on it, but for the last digits.
    pub fn is_place(&self) -> bool {
        PLACE.contains(&self.name.as_str())
    }
}

impl RunConfig {
    /// Its fields in the order of `config.toml`.
    pub fn settings(&self) -> Result<Vec<ConfigEntry>> {
        Ok(split(&self.to_toml()?))
    }
}

impl Run {
    /// The fields of its configuration that were set, and are not what the defaults would make of the others. Where that
    /// cannot be told, a field is listed.
    pub fn changed_settings(&self) -> Result<Vec<ConfigEntry>> {
        let Some(config) = &self.config else { return Ok(Vec::new()) };
        let text = config.to_toml()?;
        let facts = self.facts();
        let is_default = |setting: &ConfigEntry| -> bool {
            let Some(facts) = &facts else { return false };
            if setting.name == "image_size" {
                return default_image_size(config) == config.image_size;
            }
            let start = format!("{} = ", setting.name);
            let open: String = text.split_inclusive('\n').filter(|line| !line.starts_with(&start)).collect();
            let filled = toml::from_str::<RunConfig>(&open).ok().and_then(|open| open.resolve(facts).ok());
            filled.and_then(|plan| plan.config.settings().ok()).is_some_and(|all| all.contains(setting))
        };
        // The texts of a card are many, and its name says them.
        let of_card = config.card_name().is_some();
        let is_said = |s: &ConfigEntry| !(of_card && ["classnames", "templates"].contains(&s.name.as_str()));
        let changed = split(&text)
            .into_iter()
            .filter(is_said)
            .filter(|s| !s.is_identity() && !["threads", "cache_dir"].contains(&s.name.as_str()) && !is_default(s));
        Ok(changed.collect())
    }

    /// How many views a detector on tiles learns from in an epoch, as the steps of its first one tell, to a batch.
    fn views_of_tiles(&self) -> Option<usize> {
        let is_tiled =
            |config: &&RunConfig| config.task == Task::Detect && config.tile_count().is_ok_and(|tiles| tiles > 1);
        let config = self.config.as_ref().filter(is_tiled)?;
        let first = self.history.first().filter(|epoch| epoch.epoch == 1 && epoch.step > 0)?;
        usize::try_from(first.step).ok()?.checked_mul(config.batch_size?)
    }

    /// What its defaults depended on.
    fn facts(&self) -> Option<RunContext> {
        let config = self.config.as_ref().filter(|config| config.task != Task::Auto)?;
        let drawn = || {
            let bytes = read_limited(&self.path.join(run_folder::SPLIT), MAX_SPLIT).ok()?;
            Some(serde_json::from_slice::<SplitFile>(&bytes).ok()?.train.len())
        };
        let train_images = self.results.as_ref().map(|results| results.train_images).or_else(drawn)?;
        let train_images = self.views_of_tiles().unwrap_or(train_images);
        let spec = locate(&config.backbone, config.weights_dir.as_deref()).and_then(|found| found.spec());
        let text_depth = spec.as_ref().map_or(Some(ANY_DEPTH), |spec| spec.text.as_ref().map(|text| text.tower.depth));
        let depth = spec.map_or(ANY_DEPTH, |spec| spec.vision.depth);
        let draw = self.path.join(run_folder::FEW_SHOT);
        let drawn = || match config.task {
            Task::Detect => BoxShots::read(&draw).ok().map(|draw| draw.shots),
            Task::Segment => MaskShots::read(&draw).ok().map(|draw| draw.shots),
            _ => FewShot::read(&draw).ok().map(|draw| draw.shots),
        };
        let shots = config.shots.or_else(drawn);
        Some(RunContext { task: config.task, depth, text_depth, image_size: config.image_size?, train_images, shots })
    }
}

/// The image size of a run that asks for none; `None` if its backbone cannot be found.
fn default_image_size(config: &RunConfig) -> Option<usize> {
    let weights_dir = config.weights_dir.as_deref();
    if DENSE.contains(&config.task) {
        return working_size(&config.backbone, weights_dir).ok();
    }
    Some(locate(&config.backbone, weights_dir).ok()?.spec().ok()?.image_size)
}

/// The fields of the flat table `text`.
fn split(text: &str) -> Vec<ConfigEntry> {
    let field = |line: &str| {
        let (name, value) = line.split_once(" = ")?;
        Some(ConfigEntry { name: name.to_owned(), value: value.to_owned() })
    };
    text.lines().filter_map(field).collect()
}
