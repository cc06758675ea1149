//! Sums a data set of masks up, for `vpt data info`.

use serde::Serialize;

use super::{IGNORED, MaskDataset, MaskFault, MaskImage};
use crate::examine::SplitCounts;
use crate::{Layout, Split};

/// Facts about a data set of masks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MaskSummary {
    /// The data set's name.
    pub name: String,
    /// How it lies on disk.
    pub layout: Layout,
    /// Where the parts and the names of the classes come from.
    pub split_note: String,
    /// Images in each part.
    pub images: SplitCounts,
    /// Least and greatest width of the images, in pixels.
    pub width: Option<[usize; 2]>,
    /// Least and greatest height.
    pub height: Option<[usize; 2]>,
    /// Share of the pixels that are of no class, in all parts.
    pub ignored: f64,
    /// The classes in their order.
    pub classes: Vec<MaskClassSummary>,
    /// Images and masks that cannot be used.
    pub faults: Vec<MaskFault>,
    /// What was read in a way that is worth to be told.
    pub notes: Vec<MaskFault>,
    /// [`MaskDataset::fingerprint`].
    pub fingerprint: String,
}

/// Pixels and images of a class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MaskClassSummary {
    /// Its number in masks.
    pub index: u16,
    /// Its name.
    pub name: String,
    /// Its share of the pixels that are of a class, in all parts.
    pub share: f64,
    /// Images in which it occurs.
    pub images: SplitCounts,
}

impl MaskDataset {
    /// What [`MaskSummary`] tells.
    pub fn summary(&self) -> MaskSummary {
        let all = || Split::ALL.into_iter().flat_map(|split| self.part(split));
        let range = |of: fn(&MaskImage) -> usize| {
            let least = all().map(of).min()?;
            Some([least, all().map(of).max()?])
        };
        let count = |of: &dyn Fn(&MaskImage) -> bool| {
            let [train, val, test] = Split::ALL.map(|split| self.part(split).iter().filter(|image| of(image)).count());
            SplitCounts { train, val, test }
        };
        let pixels = |class: u16| -> u64 {
            all().flat_map(|image| &image.pixels).filter(|(own, _)| *own == class).map(|(_, count)| count).sum()
        };
        let (total, ignored): (u64, u64) =
            (all().map(|image| (image.width * image.height) as u64).sum(), pixels(IGNORED));
        let classes =
            self.classes.names.iter().zip(self.classes.indices()).enumerate().map(|(class, (name, index))| {
                let class = class as u16;
                MaskClassSummary {
                    index,
                    name: name.clone(),
                    share: pixels(class) as f64 / (total - ignored).max(1) as f64,
                    images: count(&|image| image.pixels.iter().any(|(own, _)| *own == class)),
                }
            });
        MaskSummary {
            name: self.name.clone(),
            layout: self.layout,
            split_note: self.split_note.clone(),
            images: count(&|_| true),
            width: range(|image| image.width),
            height: range(|image| image.height),
            ignored: ignored as f64 / total.max(1) as f64,
            classes: classes.collect(),
            faults: self.faults.clone(),
            notes: self.notes.clone(),
            fingerprint: self.fingerprint(),
        }
    }
}
