//! Images with the same content: wasted within a part, a leak across parts, a contradiction under two labels.

use std::collections::HashMap;

use super::finding::{FindingKind, Findings};
use super::listed::ListedImage;

/// What the labels of images are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LabelForm {
    Classes,
    Boxes,
    Masks,
}

/// Compares the hashes of `listed`. Of equal images the first one, train before val before test, is the one that others
/// repeat. Of labels classes alone are said.
pub(super) fn check(listed: &[ListedImage], hashes: &[Option<blake3::Hash>], labels: LabelForm, out: &mut Findings) {
    let mut order: Vec<usize> = (0..listed.len().min(hashes.len())).collect();
    order.sort_by(|&a, &b| {
        let key = |i: usize| (listed[i].split, listed[i].file(), listed[i].image.index());
        key(a).cmp(&key(b))
    });
    let mut first: HashMap<blake3::Hash, usize> = HashMap::with_capacity(order.len());
    for i in order {
        let Some(hash) = hashes[i] else { continue };
        let original = *first.entry(hash).or_insert(i);
        if original == i {
            continue;
        }
        let (image, original) = (&listed[i], &listed[original]);
        let (prefix, name) = (image.prefix(), original.name());
        if image.label != original.label {
            let message = match labels {
                LabelForm::Boxes => format!("the same as {name}, with other boxes"),
                LabelForm::Masks => format!("the same as {name}, with another mask"),
                LabelForm::Classes => {
                    format!("the same as {name}, but labelled '{}', not '{}'", image.label, original.label)
                }
            };
            out.error(FindingKind::DuplicateOtherLabel, image.file(), None, prefix + &message);
        } else if let (Some(here), Some(there)) = (image.split, original.split)
            && here != there
        {
            let message = format!("{prefix}in {here}, the same as {name} in {there}");
            out.error(FindingKind::DuplicateAcrossSplits, image.file(), None, message);
        } else {
            let drawn = if image.split.is_none() { "; the two may be drawn into train and test" } else { "" };
            let message = format!("{prefix}the same as {name}{drawn}");
            out.warning(FindingKind::DuplicateImage, image.file(), None, message);
        }
    }
}
