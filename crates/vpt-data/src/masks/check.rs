//! Everything that is wrong with a data set of masks, at once.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::{MaskDataset, MaskFault, MaskFaultKind};
use crate::check::{FindingKind, Findings, ListedImage, Report, check_listed};
use crate::{Layout, Split};
use vpt_base::{Error, Result};

/// Checks the data set of masks at `data`: every mask is read, and, unless it is to be `fast`, every image. `progress` is told now
/// and then how many images of how many are done.
///
/// # Errors
/// There is no such file or folder. What is wrong with its content is in the report.
pub fn check_masks(data: &Path, fast: bool, progress: &mut dyn FnMut(usize, usize)) -> Result<Report> {
    let started = Instant::now();
    std::fs::metadata(data).map_err(Error::io(data))?;
    let mut out = Findings::default();
    let (layout, listed) = match MaskDataset::open(data, 1) {
        Err(error) => {
            out.refused(FindingKind::Refused, data, &error);
            (MaskDataset::recognize(data), Vec::new())
        }
        Ok(set) => {
            set.faults
                .iter()
                .for_each(|MaskFault { kind, file, detail }| out.error(finding(*kind), file, None, detail));
            set.notes
                .iter()
                .for_each(|MaskFault { kind, file, detail }| out.warning(finding(*kind), file, None, detail));
            tell_absent(&set, data, &mut out);
            (Some(set.layout), listed(&set))
        }
    };
    check_listed(&listed, fast, &mut out, progress);
    Ok(Report::of(data, layout.map(Layout::name), fast, listed.len(), out, started))
}

fn finding(kind: MaskFaultKind) -> FindingKind {
    match kind {
        MaskFaultKind::MissingMask => FindingKind::MissingMask,
        MaskFaultKind::OrphanMask => FindingKind::OrphanLabels,
        MaskFaultKind::UnreadableImage => FindingKind::UnreadableImage,
        MaskFaultKind::UnreadableMask => FindingKind::UnreadableMask,
        MaskFaultKind::SizeMismatch => FindingKind::SizeMismatch,
        MaskFaultKind::UnknownIndex => FindingKind::UnknownIndex,
        MaskFaultKind::ExtremeRatio => FindingKind::ExtremeAspectRatio,
        MaskFaultKind::ImageInTwoParts => FindingKind::ImageInTwoSplits,
        MaskFaultKind::NoPixels => FindingKind::OtherShape,
        MaskFaultKind::NothingMarked => FindingKind::NoObjects,
    }
}

/// Tells classes that occur in no training image.
fn tell_absent(set: &MaskDataset, data: &Path, out: &mut Findings) {
    for (name, class) in set.classes.names.iter().zip(0..) {
        let images = |split| set.part(split).iter().filter(|i| i.pixels.iter().any(|(own, _)| *own == class)).count();
        let [train, val, test] = Split::ALL.map(images);
        if train == 0 {
            let message = format!("class '{name}' is in no mask of train, and in {} of val and test", val + test);
            out.warning(FindingKind::ClassNotInTrain, data, None, message);
        }
    }
}

/// The images of `set`; what must be equal of images with the same content is their mask.
fn listed(set: &MaskDataset) -> Vec<ListedImage> {
    let mut out = Vec::new();
    for (split, given) in Split::ALL.into_iter().zip(set.given) {
        out.extend(set.part(split).iter().map(|image| {
            let place: (Arc<Path>, Option<u64>) = (image.file().into(), None);
            ListedImage {
                image: image.image.clone(),
                split: given,
                // One without objects may be blank.
                label: if image.pixels.len() > 1 { image.digest.to_hex().as_str().into() } else { "".into() },
                place,
            }
        }));
    }
    out
}
