//! The flags that say which boxes of an image are kept, shared by the commands that detect.

use clap::Args;
use vpt::head::detect::{DecodeOptions, Suppress};
use vpt::model::{DetectTask, SegmentTask};

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
    /// a third, and for boxes at the whole image, too; for segmentation, too [default: as it was trained]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    tiles: Option<usize>,
}

impl BoxArgs {
    /// The same detector, which keeps the boxes that are asked for.
    pub(crate) fn apply(&self, task: DetectTask) -> vpt::Result<DetectTask> {
        let task = task.with_decode(options(self.nms, self.nms_iou, self.max_detections))?;
        match self.tiles {
            Some(tiles) => task.with_tiles(tiles),
            None => Ok(task),
        }
    }

    /// That `task`, as it is applied, looks at tiles without being told to.
    pub(crate) fn note(&self, task: &DetectTask) -> Option<String> {
        let tiles = Some(task.tiles()).filter(|tiles| *tiles > 1 && self.tiles.is_none())?;
        Some(format!(
            "images are seen whole and in tiles, {tiles} along the shorter side, as in training; --tiles 1 leaves it at whole images"
        ))
    }

    /// The same task of pixels, with the windows that are asked for.
    ///
    /// # Errors
    /// What is asked for is of boxes.
    pub(crate) fn apply_to_pixels(&self, task: SegmentTask) -> anyhow::Result<SegmentTask> {
        self.refuse_boxes()?;
        Ok(match self.tiles {
            Some(tiles) => task.with_tiles(tiles)?,
            None => task,
        })
    }

    /// Refuses the flags where a task has classes of whole images.
    pub(crate) fn refuse(&self) -> Result<(), Usage> {
        self.refuse_boxes()?;
        match self.tiles {
            Some(_) => Err(Usage("--tiles: the task has classes of whole images".to_owned())),
            None => Ok(()),
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
