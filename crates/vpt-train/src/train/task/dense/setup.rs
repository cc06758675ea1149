//! From a configuration to everything that a run on patch tokens needs: data set, backbone, plan, model.

use std::{path::Path, sync::Arc};

use super::{DenseData, DenseDraw, DenseTask, DenseTraining, token_cache::KeptTokens};
use crate::{
    config::{RunConfig, RunContext, TileCount},
    train::{
        observer::{Event, Observer},
        process_group::ProcessGroup,
        task::{RunFingerprint, RunRequest, refuse_without_validation},
    },
};
use vpt_backbone::{Backbone, OpenOptions, registry::locate};
use vpt_base::{Error, Result};
use vpt_data::{ChosenTiles, Split};

/// Tokens a side that a head works with unless told otherwise: fewer where patches are so large that a detector's head doubles
/// them.
const GRID: usize = 16;
const COARSE_GRID: usize = 12;
const COARSE_PATCH: usize = 32;

/// Side of the images that `backbone` sees unless told otherwise, in pixels: more than in classification, since small objects
/// have to be told apart.
///
/// # Errors
/// The backbone is nowhere, or its configuration cannot be read.
pub fn working_size(backbone: &str, weights_dir: Option<&Path>) -> Result<usize> {
    let patch = locate(backbone, weights_dir)?.spec()?.patch_size;
    Ok(patch * if patch >= COARSE_PATCH { COARSE_GRID } else { GRID })
}

impl<D: DenseTask> DenseTraining<D> {
    /// Opens data and backbone.
    pub(super) fn new(request: RunRequest, observer: &mut dyn Observer) -> Result<Self> {
        let RunRequest { config, given, group } = request;
        let data = D::open(config, given, observer)?;
        let weights_dir = config.weights_dir.clone();
        let size = match config.image_size {
            Some(size) => size,
            None => working_size(&config.backbone, weights_dir.as_deref())?,
        };
        let open = OpenOptions {
            weights_dir,
            image_size: Some(size),
            precision: config.precision,
            max_memory: config.max_memory,
            compute: config.compute(),
        };
        let backbone = Arc::new(Backbone::open(&config.backbone, &open)?);
        backbone.note().iter().for_each(|note| observer.event(&Event::Note(note)));
        refuse_without_validation(config, &data.summary().name, data.images(Split::Val))?;
        Self::on(config, data, backbone, group, observer)
    }

    /// `config` with a number of tiles in the place of `auto`, which says it. From here on the run is one that was given the number.
    fn with_tiles(config: &RunConfig, data: &D::Data, backbone: &Backbone, observer: &mut dyn Observer) -> RunConfig {
        if config.tiles != Some(TileCount::Auto) {
            return config.clone();
        }
        let ChosenTiles { tiles, reason } = D::choose_tiles(data, config, backbone);
        let number = if tiles == 1 { "1 tile".to_owned() } else { format!("{tiles} tiles") };
        observer.event(&Event::Note(&format!("{number} along the shorter side of images, {reason}")));
        RunConfig { tiles: Some(TileCount::Value(tiles)), ..config.clone() }
    }

    /// Puts everything together, once data and backbone are open.
    pub(super) fn on(
        config: &RunConfig,
        data: D::Data,
        backbone: Arc<Backbone>,
        group: &ProcessGroup,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let config = &Self::with_tiles(config, &data, &backbone, observer);
        let summary = data.summary();
        let plan = config.resolve(&RunContext {
            task: D::TASK,
            depth: backbone.vit.depth(),
            text_depth: None,
            shots: summary.draw.as_ref().map(DenseDraw::shots),
            image_size: backbone.vit.image_size(),
            train_images: D::learned_from(&data, config, observer)?,
        })?;
        let dense = plan.dense.ok_or_else(|| Error::setting("task", format!("not {}", D::TASK)))?;
        let own = D::new(data, backbone, &plan)?;
        let fingerprint = RunFingerprint::new(&plan, &[summary.fingerprint.as_bytes()], own.reader().backbone())?;
        Ok(Self { group: group.clone(), plan, dense, own, data: summary, kept: KeptTokens::default(), fingerprint })
    }
}
