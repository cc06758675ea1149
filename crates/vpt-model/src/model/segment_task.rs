//! A learned task that tells pixels apart, on its backbone, ready to look at images.

use std::{path::Path, sync::Arc};

use super::{
    segment::{Segmenter, TokenInput},
    task::{TaskOptions, open_task},
};
use crate::{
    head::segment::{BoundSegmentHead, Composer, WindowLogits},
    model::task_file::{TaskFile, TaskMeta},
};
use vpt_backbone::Backbone;
use vpt_base::{Error, Message, Progress, Result, parallel, params::Param};
use vpt_data::{
    masks::{ClassMask, MaskImage, MaskInput, MaskLoader, MaskLoaderOptions, MaskView},
    visit_batches,
};

/// Images that are looked at together.
const BATCH: usize = 8;

/// A learned task that tells pixels apart.
#[derive(Debug)]
pub struct SegmentTask {
    segmenter: Segmenter,
    params: Vec<Param>,
    meta: TaskMeta,
    input: MaskInput,
}

impl SegmentTask {
    /// Opens the task file, or run folder, `path` together with its backbone.
    ///
    /// # Errors
    /// As [`super::TaskModel::open`]; or the task tells no pixels apart.
    pub fn open(path: &Path, options: &TaskOptions) -> Result<Self> {
        open_task(path, options, Self::with_backbone)
    }

    /// A task on a backbone that is open already, at the task's image size.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn with_backbone(file: TaskFile, backbone: Arc<Backbone>, threads: usize) -> Result<Self> {
        file.check_backbone(&backbone)?;
        let TaskFile { meta, params } = file;
        let Some(segment) = &meta.segment else {
            return Err(Error::invalid("task", "did not learn to tell pixels apart"));
        };
        let input = MaskInput {
            preprocess: meta.preprocess.clone(),
            side: meta.image_size,
            cells: segment.head.cells(),
            tiles: segment.tiles,
        };
        input.check()?;
        let segmenter = Segmenter::new(backbone, &meta.parts, segment.head, &segment.blocks, threads)?;
        segmenter.check(&params)?;
        let params = segmenter.reader().in_order(params);
        Ok(Self { segmenter, params, meta, input })
    }

    /// The same task, which sees images in so many windows along their shorter side, if these did not overlap.
    ///
    /// # Errors
    /// There are none, or too many.
    pub fn with_tiles(mut self, tiles: usize) -> Result<Self> {
        self.input.tiles = tiles;
        self.input.check()?;
        Ok(self)
    }

    /// The same task, whose masks leave pixels of no class where the class is less probable than `least`.
    #[must_use]
    pub fn with_least_probability(mut self, least: f64) -> Self {
        self.segmenter.least = least as f32;
        self
    }

    /// The frozen part.
    pub fn backbone(&self) -> &Arc<Backbone> {
        self.segmenter.reader().backbone()
    }

    /// What the task file says.
    pub fn meta(&self) -> &TaskMeta {
        &self.meta
    }

    /// How images are seen.
    pub fn input(&self) -> &MaskInput {
        &self.input
    }

    /// Backbone, parts and head.
    pub fn segmenter(&self) -> &Segmenter {
        &self.segmenter
    }

    /// The learned values.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// The number of each class in masks that are written.
    pub fn indices(&self) -> &[u16] {
        self.meta.segment.as_ref().map_or(&[], |segment| &segment.indices)
    }

    /// Calls `take` with each of `images`, in their order, and the class of each of its pixels.
    ///
    /// # Errors
    /// An image cannot be read, or is many times as long as wide; the error names it. And those of `take`.
    pub fn visit_masks(
        &self,
        images: Vec<MaskImage>,
        progress: Progress,
        mut take: impl FnMut(&MaskImage, ClassMask) -> Result<()>,
    ) -> Result<()> {
        let head = self.segmenter.bind(&self.params)?;
        let total = images.len();
        let images: Arc<[MaskImage]> = images.into();
        let options = MaskLoaderOptions {
            input: self.input.clone(),
            view: MaskView::Windows { mirror: false },
            labels: false,
            seed: 0,
            epoch: 0,
            batch: BATCH,
            threads: self.segmenter.reader().threads(),
        };
        let loader = MaskLoader::new(images.clone(), (0..total).collect(), options)?;
        let go_on = &mut |done, total| {
            progress(done, total);
            true
        };
        visit_batches(loader, total, go_on, |batch| {
            let seen: Vec<&MaskImage> = batch.indices.iter().map(|&index| &images[index]).collect();
            let input = TokenInput::Images(&batch.pixels);
            let sizes: Vec<_> = seen.iter().map(|image| [image.width, image.height]).collect();
            let masks = self.segmenter.masks(&head, Some(&self.params), input, &batch.windows, &sizes, &self.input)?;
            seen.into_iter().zip(masks).try_for_each(|(image, mask)| take(image, mask))
        })?;
        Ok(())
    }
}

impl Segmenter {
    /// The class of each pixel of images of these `sizes`, width and height, of which each has so many of the `windows` in `input`, one
    /// image behind the other. `head` and `params` as in [`Self::logits`].
    ///
    /// # Errors
    /// As [`Self::logits`].
    pub fn masks(
        &self,
        head: &BoundSegmentHead,
        params: Option<&[Param]>,
        input: TokenInput,
        windows: &[usize],
        sizes: &[[usize; 2]],
        seen: &MaskInput,
    ) -> Result<Vec<ClassMask>> {
        let logits = self.logits(head, params, input)?;
        let shape = self.head();
        let composer = Composer { window: seen.side, side: shape.side(), classes: shape.classes };
        let starts: Vec<usize> = windows
            .iter()
            .scan(0, |end, count| {
                *end += count;
                Some(*end - count)
            })
            .collect();
        let compose = |image: usize| {
            let [width, height] = sizes[image];
            let own = logits[starts[image]..starts[image] + windows[image]].concat();
            if own.iter().any(|value| !value.is_finite()) {
                return Err(Error::invalid(
                    "logits",
                    "not finite: the model's weights or prompts hold NaN or infinity",
                ));
            }
            let (corners, scaled) = (seen.windows(width, height)?, seen.scaled(width, height, 1.)?);
            let own = WindowLogits { logits: &own, corners: &corners, scaled };
            let classes = composer.sure_classes(own, width, height, self.least)?;
            Ok(ClassMask { width, height, classes })
        };
        let threads = self.reader().threads();
        let shares = parallel::shares(sizes.len(), threads, |range| range.map(compose).collect::<Result<Vec<_>>>());
        Ok(shares.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }
}

/// What a program that asks a task of pixels for something else is told.
pub(super) fn tells_pixels(what: &str) -> Error {
    Error::setting("model", Message::from(format!("the task tells pixels apart, and has no {what}")))
}
