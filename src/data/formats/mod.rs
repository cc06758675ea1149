//! Layouts of data sets on disk, a file or folder each.

pub(super) mod coco;
pub(super) mod idx;
pub(super) mod image_folder;
pub(super) mod lists;
pub(super) mod table;
pub(super) mod voc;
pub(super) mod yolo;
pub(super) mod zhou;
