//! Data sets and draws of a grid, whatever the task.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::job::Half;
use vpt_base::{Error, Message, Result};
use vpt_data::{
    Dataset, FewShot, Split,
    boxes::{BoxDataset, BoxShots},
    masks::{MaskDataset, MaskShots},
};
use vpt_train::config::Task;

/// The tasks that a grid can be about.
pub(super) const TASKS: [Task; 3] = [Task::Classify, Task::Detect, Task::Segment];

/// A data set of the grid.
pub(super) enum GridData {
    /// One class an image.
    Classify(Dataset),
    /// Boxes, and where they are.
    Detect(Box<BoxDataset>, PathBuf),
    /// Masks.
    Segment(Box<MaskDataset>),
}

/// What methods learn from.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum GridDraw {
    /// Images a class.
    Images(FewShot),
    /// Boxes a class.
    Boxes(BoxShots),
    /// Images that show each class.
    Masks(MaskShots),
}

/// Refuses a `task` that a grid cannot be about.
///
/// # Errors
/// There is no grid of it.
pub(super) fn check_task(task: Task) -> Result<()> {
    if TASKS.contains(&task) {
        return Ok(());
    }
    let names: Vec<&str> = TASKS.iter().map(|task| task.name()).collect();
    let message = format!("{task} has no few-shot protocol here; take {}", or(&names));
    Err(Error::setting("task", Message::from(message)))
}

/// `a, b or c`.
fn or(names: &[&str]) -> String {
    match names {
        [all @ .., last] if !all.is_empty() => format!("{} or {last}", all.join(", ")),
        all => all.concat(),
    }
}

impl GridData {
    /// Opens the data set at `path`; parts that it lacks are made by `seed`.
    pub(super) fn open(task: Task, path: &str, seed: u64) -> Result<Self> {
        match task {
            Task::Detect => {
                let dataset = BoxDataset::open(path, seed)?;
                dataset.refuse_without_objects()?;
                Ok(Self::Detect(Box::new(dataset), path.into()))
            }
            Task::Segment => {
                let dataset = MaskDataset::open(path, seed)?;
                dataset.refuse_faults(false)?;
                Ok(Self::Segment(Box::new(dataset)))
            }
            _ => Dataset::open(path, seed).map(Self::Classify),
        }
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Classify(dataset) => &dataset.name,
            Self::Detect(dataset, _) => &dataset.name,
            Self::Segment(dataset) => &dataset.name,
        }
    }

    /// Names of the classes.
    pub(super) fn classes(&self) -> Cow<'_, [String]> {
        match self {
            Self::Classify(dataset) => Cow::Borrowed(&dataset.classes),
            Self::Detect(dataset, _) => Cow::Owned(dataset.names()),
            Self::Segment(dataset) => Cow::Borrowed(&dataset.classes.names),
        }
    }

    /// Stands for what is known of all images.
    pub(super) fn hash(&self) -> String {
        match self {
            Self::Classify(dataset) => hash(dataset),
            Self::Detect(dataset, _) => dataset.fingerprint(),
            Self::Segment(dataset) => dataset.fingerprint(),
        }
    }

    /// Draws `shots` images, or boxes, of each class in `half`.
    pub(super) fn draw(&self, half: Half, shots: usize, seed: u64) -> Result<GridDraw> {
        match (self, half) {
            (Self::Classify(dataset), Half::All) => FewShot::draw(dataset, shots, seed).map(GridDraw::Images),
            (Self::Classify(dataset), half) => FewShot::draw(&half.of(dataset), shots, seed).map(GridDraw::Images),
            (Self::Detect(dataset, path), _) => BoxShots::draw(dataset, path, shots, seed).map(GridDraw::Boxes),
            (Self::Segment(dataset), _) => MaskShots::draw(dataset, shots, seed).map(GridDraw::Masks),
        }
    }

    /// Reads a draw of such data.
    pub(super) fn read_draw(&self, path: &Path) -> Result<GridDraw> {
        match self {
            Self::Classify(_) => FewShot::read(path).map(GridDraw::Images),
            Self::Detect(..) => BoxShots::read(path).map(GridDraw::Boxes),
            Self::Segment(_) => MaskShots::read(path).map(GridDraw::Masks),
        }
    }

    /// Images that are learned from with `draw`.
    pub(super) fn train_images(&self, draw: &GridDraw) -> Result<usize> {
        match (self, draw) {
            (Self::Classify(dataset), GridDraw::Images(draw)) => Ok(draw.apply(dataset)?.train.len()),
            (Self::Detect(dataset, _), GridDraw::Boxes(draw)) => Ok(draw.apply(dataset)?.train.len()),
            (Self::Segment(dataset), GridDraw::Masks(draw)) => Ok(draw.apply(dataset)?.train.len()),
            _ => Err(Error::invalid(format!("data set {}", self.name()), "the draw is of another kind of data")),
        }
    }
}

impl GridDraw {
    /// Images or boxes a class, and the seed.
    pub(super) fn shots_and_seed(&self) -> (usize, u64) {
        match self {
            Self::Images(draw) => (draw.shots, draw.seed),
            Self::Boxes(draw) => (draw.shots, draw.seed),
            Self::Masks(draw) => (draw.shots, draw.seed),
        }
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        match self {
            Self::Images(draw) => draw.write(path),
            Self::Boxes(draw) => draw.write(path),
            Self::Masks(draw) => draw.write(path),
        }
    }
}

/// Stands for classes, and for id and label of every image.
fn hash(dataset: &Dataset) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    dataset.classes.iter().for_each(|class| add(class));
    for split in Split::ALL {
        add(split.name());
        for sample in dataset.part(split) {
            add(&sample.id);
            add(&sample.label.to_string());
        }
    }
    hasher.finalize().to_hex().to_string()
}
