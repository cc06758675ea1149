//! LVIS: COCO's files with addresses in the place of names of files, annotated in a federated way: of most categories it is not
//! known whether they are in an image.

use std::path::Path;

use super::CocoImage;
use crate::boxes::{Problem, ProblemKind, Remedy};
use vpt_base::{Error, Result};

/// Names the images of `file` that have an address alone, and says what of LVIS is not heeded.
///
/// # Errors
/// An image has neither name nor address.
pub(super) fn name_images(file: &Path, images: &mut [CocoImage], problems: &mut Vec<Problem>) -> Result<()> {
    for image in images.iter_mut().filter(|image| image.file_name.is_empty()) {
        // `http://images.cocodataset.org/train2017/000000391895.jpg`
        let address = image.coco_url.as_deref().unwrap_or_default();
        let mut parts: Vec<&str> = address.rsplit('/').take(2).filter(|part| !part.is_empty()).collect();
        parts.reverse();
        image.file_name = parts.join("/");
        if image.file_name.is_empty() {
            return Err(Error::data(file, format!("image {} has no file_name", image.id)));
        }
    }
    if images.iter().any(|image| image.has_negatives) {
        problems.push(Problem {
            kind: ProblemKind::FederatedSet,
            remedy: Remedy::Kept,
            file: file.into(),
            place: None,
            detail:
                "LVIS is read as COCO: what neg_category_ids and not_exhaustive_category_ids say is not heeded, and \
                     results are COCO's AP, not that of LVIS"
                    .into(),
        });
    }
    Ok(())
}
