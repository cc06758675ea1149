//! Where a learned task looks in a picture: the maps of its backbone with what was learned in it, laid over the picture.

use serde::Serialize;

use super::{AnyTask, DetectTask, TaskModel, segment_task::tells_pixels};
use vpt_backbone::{
    Backbone,
    vit::{AttentionMap, AttentionMaps, AttentionOf},
};
use vpt_base::{Error, Result};
use vpt_data::boxes::View;
use vpt_image::{Rgb8, heat_map::HeatMap};

/// A map over a picture.
#[derive(Clone, Debug)]
pub struct TaskAttention {
    map: AttentionMap,
    /// Patches along a side.
    grid: usize,
    /// Where the patches lie: left, top, width and height in pixels of the picture.
    place: [f64; 4],
    /// Width and height of the picture.
    size: [usize; 2],
}

/// Of what looks, how much goes where; it adds up to one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct AttentionShares {
    /// What looks: the class token, the query of attention pooling, or prompts.
    pub of: &'static str,
    /// To the patches, which is what a picture shows.
    pub patches: f32,
    /// To the class token and registers.
    pub prefix: f32,
    /// To prompts.
    pub prompts: f32,
}

impl TaskModel {
    /// Where the task looks in `picture`.
    ///
    /// # Errors
    /// The picture cannot be prepared, or nothing is there that would look.
    pub fn attention(&self, picture: &Rgb8, of: AttentionOf) -> Result<TaskAttention> {
        let (input, place) = (self.preprocess().apply(picture)?, self.preprocess().kept(picture)?);
        let maps = self.model().attention_maps(self.params(), &input)?;
        TaskAttention::new(maps, of, self.model().backbone(), place, picture)
    }
}

impl DetectTask {
    /// As [`TaskModel::attention`].
    ///
    /// # Errors
    /// As there.
    pub fn attention(&self, picture: &Rgb8, of: AttentionOf) -> Result<TaskAttention> {
        let viewed = self.input().view(picture, &[]);
        let maps = self.detector().attention_maps(self.params(), &self.input().normalised(&viewed))?;
        let View { scale_x, scale_y, offset_x, offset_y, .. } = viewed.view;
        let place = [-offset_x / scale_x, -offset_y / scale_y, 1. / scale_x, 1. / scale_y];
        TaskAttention::new(maps, of, self.backbone(), place, picture)
    }
}

impl AnyTask {
    /// As [`TaskModel::attention`].
    ///
    /// # Errors
    /// As there.
    pub fn attention(&self, picture: &Rgb8, of: AttentionOf) -> Result<TaskAttention> {
        match self {
            Self::Classify(task) | Self::Multilabel(task) => task.attention(picture, of),
            Self::Detect(task) => task.attention(picture, of),
            Self::Segment(_) => Err(tells_pixels("map of attention: it looks at windows of a picture, each by itself")),
        }
    }
}

impl TaskAttention {
    /// One of the `maps` of an image whose input lies at `place` in `picture`.
    fn new(
        maps: Vec<AttentionMaps>,
        of: AttentionOf,
        backbone: &Backbone,
        [left, top, width, height]: [f64; 4],
        picture: &Rgb8,
    ) -> Result<Self> {
        let maps = maps.into_iter().next().ok_or_else(|| Error::invalid("attention", "no image"))?;
        let (side, patch) = (backbone.vit.image_size(), backbone.spec.patch_size);
        // Pixels behind the last whole patch are not read.
        let read = (side / patch * patch) as f64 / side as f64;
        Ok(Self {
            map: maps.into_one(of)?,
            grid: side / patch,
            place: [left, top, width * read, height * read],
            size: [picture.width, picture.height],
        })
    }

    /// What is given to each patch, row by row, `[G, G]`.
    pub fn patches(&self) -> &[f32] {
        &self.map.patches
    }

    /// How much goes where.
    pub fn shares(&self) -> AttentionShares {
        let AttentionMap { query, prefix, prompts, .. } = self.map;
        AttentionShares { of: query, patches: self.map.of_patches(), prefix, prompts }
    }

    /// The map laid over the picture that it is of, in whatever size.
    pub fn over(&self, picture: &Rgb8) -> Rgb8 {
        let scale = [picture.width as f64 / self.size[0] as f64, picture.height as f64 / self.size[1] as f64];
        let [left, top, width, height] = self.place;
        let place = [left * scale[0], top * scale[1], width * scale[0], height * scale[1]];
        HeatMap { values: &self.map.patches, columns: self.grid, place }.over(picture)
    }
}
