//! The flags that say which boxes of an image are kept, shared by the commands that detect.

use clap::Args;
use vpt::config::TileCount;
use vpt::data::ChosenTiles;
use vpt::head::detect::{DecodeOptions, Suppress};
use vpt::model::{AnyTask, DetectTask, SegmentTask};

use super::flags::parsed;
use super::{Usage, one_of};

/// Which boxes are kept.
#[derive(Debug, Args)]
#[command(next_help_heading = "Boxes")]
pub(crate) struct BoxArgs {
    /// Which boxes are one object where they lie on each other (non-maximum suppression): those of one class, those of any classes
    /// (all), or none [default: class]
    #[arg(long, value_name = "WHICH", value_parser = one_of::<Suppress>(Suppress::NAMES))]
    nms: Option<Suppress>,
    /// A box is dropped whose overlap (IoU) with a better one is higher [default: 0.6]
    #[arg(long, value_name = "IOU", allow_negative_numbers = true)]
    nms_iou: Option<f64>,
    /// Most boxes of an image, the best by their score, up to 1000 [default: 100]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    max_detections: Option<usize>,
    /// For small things in large images: look at squares of which the shorter side of an image would have N if they did not overlap by
    /// a third, and for boxes at the whole image, too; for segmentation, too. auto: as many as it takes to show the pixels of the
    /// images, by the median of their shorter sides, 8 at most [default: as it was trained]
    #[arg(long, value_name = "N|auto", allow_negative_numbers = true, value_parser = parsed::<TileCount>)]
    tiles: Option<TileCount>,
}

/// The shorter sides of the images that are looked at, in pixels.
pub(crate) type ShorterSides<'a> = &'a dyn Fn() -> Vec<usize>;

impl BoxArgs {
    /// The same detector, which keeps the boxes that are asked for, and what there is to say of how it sees images.
    pub(crate) fn apply(&self, task: DetectTask, shorter: ShorterSides) -> vpt::Result<(DetectTask, Option<String>)> {
        let task = task.with_decode(options(self.nms, self.nms_iou, self.max_detections))?;
        let seen = |tiles: usize| match tiles {
            1 => "images are seen whole".to_owned(),
            _ => format!("images are seen whole and in tiles, {tiles} along the shorter side"),
        };
        Ok(match self.tiles {
            Some(TileCount::Value(tiles)) => (task.with_tiles(tiles)?, None),
            Some(TileCount::Auto) => {
                let ChosenTiles { tiles, reason } = ChosenTiles::of_images(shorter(), task.meta().image_size);
                (task.with_tiles(tiles)?, Some(format!("{}, {reason}", seen(tiles))))
            }
            None => {
                let tiles = Some(task.tiles()).filter(|tiles| *tiles > 1);
                let note = |tiles| format!("{}, as in training; --tiles 1 leaves it at whole images", seen(tiles));
                (task, tiles.map(note))
            }
        })
    }

    /// The same task of pixels, with the windows that are asked for, and what there is to say of them.
    pub(crate) fn apply_to_pixels(
        &self,
        task: SegmentTask,
        shorter: ShorterSides,
    ) -> vpt::Result<(SegmentTask, Option<String>)> {
        Ok(match self.tiles {
            Some(TileCount::Value(tiles)) => (task.with_tiles(tiles)?, None),
            Some(TileCount::Auto) => {
                let ChosenTiles { tiles, reason } = ChosenTiles::of_images(shorter(), task.input().side);
                let note = format!("images are seen in windows, {tiles} along the shorter side, {reason}");
                (task.with_tiles(tiles)?, Some(note))
            }
            None => (task, None),
        })
    }

    /// Refuses a number of tiles that images choose, where these are not known beforehand.
    pub(crate) fn refuse_auto(&self) -> Result<(), Usage> {
        match self.tiles {
            Some(TileCount::Auto) => {
                Err(Usage("--tiles auto: the images in shards are not known beforehand; give a number".to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what `task` has no use for.
    pub(crate) fn check(&self, task: &AnyTask) -> Result<(), Usage> {
        if matches!(task, AnyTask::Detect(_)) {
            return Ok(());
        }
        self.refuse_boxes()?;
        match self.tiles {
            Some(_) if !matches!(task, AnyTask::Segment(_)) => {
                Err(Usage("--tiles: the task has classes of whole images".to_owned()))
            }
            _ => Ok(()),
        }
    }

    fn refuse_boxes(&self) -> Result<(), Usage> {
        let flags = [
            ("--nms", self.nms.is_some()),
            ("--nms-iou", self.nms_iou.is_some()),
            ("--max-detections", self.max_detections.is_some()),
        ];
        match flags.into_iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(Usage(format!("{flag}: the task has no boxes"))),
            None => Ok(()),
        }
    }
}

/// What is asked for, as usual where nothing is.
pub(crate) fn options(suppress: Option<Suppress>, overlap: Option<f64>, kept: Option<usize>) -> DecodeOptions {
    let usual = DecodeOptions::default();
    DecodeOptions {
        suppress: suppress.unwrap_or(usual.suppress),
        overlap: overlap.unwrap_or(usual.overlap),
        kept: kept.unwrap_or(usual.kept),
    }
}
