//! The IDX files of the MNIST family: headers against contents, labels against images.

use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;

use super::finding::{FindingKind, Findings};
use super::images::size_faults;
use super::listed::{Listed, Places};
use crate::data::Split;
use crate::data::formats::idx::{Bad, Flaw, IMAGES_MAGIC, LABELS_MAGIC, Named, header, named, read};

/// Whether `folder` holds files of this kind.
pub(super) fn recognise(folder: &Path) -> bool {
    named(folder).is_ok_and(|files| files.iter().any(|file| file.is_images))
}

/// The images in the files in `folder`, with their hashes. If `fast`, headers only are read and no images come back.
pub(super) fn check(
    folder: &Path,
    fast: bool,
    places: &mut Places,
    out: &mut Findings,
) -> (Vec<Listed>, Vec<Option<blake3::Hash>>) {
    let (mut listed, mut hashes) = (Vec::new(), Vec::new());
    let files = named(folder).unwrap_or_default();
    for split in Split::ALL {
        let these = |is_images| files.iter().filter(move |f| f.split == split && f.is_images == is_images);
        for is_images in [true, false] {
            let second = these(is_images).zip(these(is_images).skip(1)).filter(|(a, b)| a.part != b.part || is_images);
            for (first, Named { path, .. }) in second {
                let message = format!("{} is for {split} too; keep one", first.path.display());
                out.error(FindingKind::AmbiguousSplit, path, None, message);
            }
        }
        match (these(true).next(), these(false).next()) {
            (Some(images), Some(labels)) => {
                places.parts[split as usize] = Some(images.path.clone());
                part(split, &images.path, &labels.path, fast, (&mut listed, &mut hashes), out);
            }
            (Some(images), None) => {
                out.error(FindingKind::IdxNoLabels, &images.path, None, "no labels file beside it");
            }
            (None, Some(labels)) => {
                out.error(FindingKind::IdxNoLabels, &labels.path, None, "no images file beside it");
            }
            (None, None) if split == Split::Train => {
                out.error(FindingKind::NoTrain, folder, None, "IDX files, and none of images for train");
            }
            (None, None) => {}
        }
    }
    (listed, hashes)
}

fn part(
    split: Split,
    images: &Path,
    labels: &Path,
    fast: bool,
    (listed, hashes): (&mut Vec<Listed>, &mut Vec<Option<blake3::Hash>>),
    out: &mut Findings,
) {
    let mut told = |path: &Path, bad: Bad| {
        let kind = match bad.flaw {
            Flaw::Truncated => FindingKind::IdxTruncated,
            Flaw::Count => FindingKind::IdxCount,
            Flaw::Other => FindingKind::IdxMalformed,
        };
        out.refused(kind, path, &bad.error);
    };
    let image_header = header::<4>(images, IMAGES_MAGIC).map_err(|bad| told(images, bad)).ok();
    let label_header = header::<2>(labels, LABELS_MAGIC).map_err(|bad| told(labels, bad)).ok();
    // What a header cannot say is not to be looked for behind it.
    let pixels = image_header
        .filter(|_| !fast)
        .and_then(|_| read::<4>(images, IMAGES_MAGIC).map_err(|bad| told(images, bad)).ok().map(|(_, pixels)| pixels));
    let values = label_header
        .filter(|_| !fast)
        .and_then(|_| read::<2>(labels, LABELS_MAGIC).map_err(|bad| told(labels, bad)).ok().map(|(_, values)| values));
    let Some([_, count, height, width]) = image_header else { return };
    if let Some([_, labelled]) = label_header
        && labelled != count
    {
        let message = format!("{labelled} labels for the {count} images in {}", images.display());
        out.error(FindingKind::IdxLabels, labels, None, message);
    }
    if count == 0 || width == 0 || height == 0 {
        out.error(FindingKind::IdxMalformed, images, None, format!("{count} images of {width}x{height} pixels"));
        return;
    }
    for (kind, message) in size_faults([width, height]) {
        out.warning(kind, images, None, format!("images of {message}"));
    }
    let (Some(pixels), Some(values)) = (pixels, values) else { return };
    let (path, place): (Arc<Path>, (Arc<Path>, Option<u64>)) = (images.into(), (labels.into(), None));
    let names: Vec<Arc<str>> = (0..=u8::MAX).map(|value| value.to_string().into()).collect();
    let looked: Vec<_> = pixels
        .par_chunks_exact(width * height)
        .map(|image| (image.iter().all(|value| *value == image[0]), blake3::hash(image)))
        .collect();
    for (number, ((is_blank, hash), value)) in looked.into_iter().zip(&values).enumerate() {
        // Blank images equal each other; that they are blank is the fault to tell.
        let is_blank = is_blank && width.min(height) > 1;
        if is_blank {
            out.warning(FindingKind::BlankImage, images, None, format!("image {number}: all pixels are the same"));
        }
        let label = names[usize::from(*value)].clone();
        listed.push(Listed {
            path: path.clone(),
            number: Some(number),
            split: Some(split),
            label,
            place: place.clone(),
        });
        hashes.push((!is_blank).then_some(hash));
    }
}
