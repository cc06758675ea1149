//! Layouts of data sets on disk, a file or folder each: a layout recognises itself, opens, checks and says what it finds.
//!
//! To add one, write a file here with a [`Format`], and put it into [`FORMATS`]. What it recognises opens and is checked as
//! images with a class each ([`ClassFiles`]), as images with boxes ([`BoxFiles`]), or as both. Images that are not files of
//! their own lie in a [`Container`](super::Container).

mod box_lines;
mod box_table;
pub(crate) mod coco;
mod create_ml;
mod cvat;
mod idx;
pub(super) mod image_folder;
mod labelme;
mod lists;
mod metadata;
mod multi_hot;
mod named_boxes;
pub(crate) mod named_segments;
mod parquet;
mod samples;
mod shards;
mod table;
#[cfg(test)]
pub(super) mod testing;
pub(super) mod text_file;
pub(super) mod unread;
mod voc;
mod webdataset;
mod yolo;
mod zhou;

use std::fmt;
use std::fs;
use std::path::Path;

use serde::{Serialize, Serializer};

pub(crate) use samples::reason;
pub use samples::{SampleFault, ShardSample, ShardSamples};

use super::boxes::{AnnotatedSet, BoxDataset, BoxLayout, Conversion, PlaceInFile, Problem, ProblemKind};
use super::check::{Checking, Findings, ListedImage};
use super::open::LabeledSet;
use vpt_base::{Error, Result};

/// All layouts, in the order in which a data set is held against them: the surer its marks, the earlier it comes.
static FORMATS: [Format; 21] = [
    idx::FORMAT,
    coco::FORMAT,
    yolo::FORMAT,
    yolo::darknet::FORMAT,
    // Before Pascal VOC, whose files also are annotations in XML.
    cvat::FORMAT,
    voc::FORMAT,
    create_ml::FORMAT,
    labelme::FORMAT,
    box_table::FORMAT,
    box_lines::FORMAT,
    multi_hot::FORMAT,
    metadata::FORMAT,
    parquet::FORMAT,
    webdataset::FORMAT,
    image_folder::WITH_PARTS,
    table::BY_NAME,
    zhou::FORMAT,
    lists::FORMAT,
    // A folder of pictures with a table beside it: the table says what the labels are. Without a header it may be any table.
    table::WITH_HEADER,
    image_folder::FLAT,
    table::SINGLE,
];

/// How a data set lies on disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    name: &'static str,
    title: &'static str,
}

impl Layout {
    /// Drawn by the program.
    pub const GENERATED: Self = Self::new("generated", "generated");
    /// Given by a program that has its images in memory.
    pub const MEMORY: Self = Self::new("memory", "in-memory");
    /// Boxes, of which the classes alone are used.
    pub const BOXES: Self = Self::new("boxes", "boxes");

    /// A layout called `name` in files and `title` in sentences.
    pub(crate) const fn new(name: &'static str, title: &'static str) -> Self {
        Self { name, title }
    }

    /// The name as result files have it.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// The name as people write it.
    pub fn title(self) -> &'static str {
        self.title
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Serialize for Layout {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

/// A file or folder that may be a data set.
pub(crate) struct Candidate<'a> {
    pub(crate) path: &'a Path,
    pub(crate) is_folder: bool,
}

impl<'a> Candidate<'a> {
    /// What is at `path`.
    ///
    /// # Errors
    /// There is nothing, or the system does not let us see it.
    pub(crate) fn at(path: &'a Path) -> std::io::Result<Self> {
        Ok(Self { path, is_folder: fs::metadata(path)?.is_dir() })
    }
}

/// A layout of data sets.
struct Format {
    /// Whether data sets in this layout may have boxes.
    has_boxes: bool,
    /// Whether a file or folder is one. An error says that it cannot be told, or that the data set would contradict itself.
    recognize: fn(&Candidate<'_>) -> Result<Recognition>,
}

/// Whether a file or folder is a data set in a layout.
enum Recognition {
    /// It is none.
    No,
    /// It has marks of the layout and lacks what opening it takes; checking it says what.
    Likely(Recognized),
    /// It is one.
    Yes(Recognized),
}

impl Recognition {
    /// Yes if there are `files` of images with a class each.
    fn of_classes<F: ClassFiles + 'static>(layout: Layout, files: Option<F>) -> Self {
        files.map_or(Self::No, |files| Self::Yes(Recognized { layout, classes: Some(Box::new(files)), boxes: None }))
    }

    /// Yes if there are `files` of images with boxes.
    fn of_boxes<F: BoxFiles + 'static>(layout: Layout, files: Option<F>) -> Self {
        files.map_or(Self::No, |files| Self::Yes(Recognized { layout, classes: None, boxes: Some(Box::new(files)) }))
    }
}

/// A data set in a known layout.
pub(crate) struct Recognized {
    pub(crate) layout: Layout,
    /// It as images with a class each, if it is such a data set.
    pub(crate) classes: Option<Box<dyn ClassFiles>>,
    /// It as images with boxes.
    pub(crate) boxes: Option<Box<dyn BoxFiles>>,
}

/// The files by which a data set of images with a class each was recognised.
pub(crate) trait ClassFiles {
    /// Its classes and samples.
    ///
    /// # Errors
    /// A file cannot be read, or the data set contradicts itself; the error names the file, and the line in a text.
    fn open(&self) -> Result<LabeledSet>;

    /// Tells `check` everything that is wrong, and returns the images.
    fn check(&self, check: &mut Checking<'_>) -> Vec<ListedImage>;

    /// Whether opening reads lists alone, and not the images as well.
    fn opens_fast(&self) -> bool {
        true
    }
}

/// The files by which a data set of images with boxes was recognised.
pub(crate) trait BoxFiles {
    /// Its categories and annotated images; images themselves are not looked at.
    ///
    /// # Errors
    /// A file cannot be read at all, or parts contradict each other.
    fn open(&self) -> Result<AnnotatedSet>;

    /// Whether its boxes are whole images, because it says the classes of images alone.
    fn are_whole_images(&self) -> bool {
        false
    }

    /// What is wrong with parts and files when each is read by itself, where [`open`](Self::open) stops at the first fault:
    /// what can be lived with, and what cannot.
    fn open_piecewise(&self) -> (Vec<Problem>, Vec<Error>);

    /// Looks at text files as such: their encoding and their line ends.
    fn check_texts(&self, check: &mut Checking<'_>);

    /// Looks for what opening it as `data` does not mind. `listed` are its images.
    fn check_opened(&mut self, data: &BoxDataset, listed: &[ListedImage], out: &mut Findings);

    /// Compares the categories of files where the data set cannot be opened.
    fn check_categories(&self, _out: &mut Findings) {}

    /// The file that names the categories, where it is not the whole data set that is blamed for their names.
    fn names_file(&self) -> Option<&Path> {
        None
    }

    /// The line of `file` in which what has an id stands, for a problem of `kind`.
    fn line_of(&mut self, _file: &Path, _place: PlaceInFile, _kind: ProblemKind) -> Option<u64> {
        None
    }
}

/// The data set that `candidate` is, in the first layout in which it can be opened.
///
/// # Errors
/// It cannot be told what it is.
pub(crate) fn recognize(candidate: &Candidate<'_>) -> Result<Option<Recognized>> {
    first_yes(candidate, |_| true)
}

/// The data set of boxes, or of several classes an image, that `candidate` is, if it is one.
///
/// # Errors
/// It cannot be told what it is.
pub(crate) fn recognize_boxes(candidate: &Candidate<'_>) -> Result<Option<Recognized>> {
    // Some layouts may hold boxes, or classes alone.
    Ok(first_yes(candidate, |format| format.has_boxes)?.filter(|found| found.boxes.is_some()))
}

fn first_yes(candidate: &Candidate<'_>, is_asked: impl Fn(&&Format) -> bool) -> Result<Option<Recognized>> {
    for format in FORMATS.iter().filter(is_asked) {
        if let Recognition::Yes(found) = (format.recognize)(candidate)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The data set that `candidate` is or was meant to be, in spite of what opening it would refuse.
pub(crate) fn recognize_to_check(candidate: &Candidate<'_>) -> Option<Recognized> {
    FORMATS.iter().find_map(|format| match (format.recognize)(candidate) {
        Ok(Recognition::Yes(found) | Recognition::Likely(found)) => Some(found),
        // Opening says what is wrong.
        Ok(Recognition::No) | Err(_) => None,
    })
}

/// Writes a data set of boxes in the layout `to`.
pub(super) fn write(to: BoxLayout, conversion: &Conversion<'_>) -> Result<()> {
    match to {
        BoxLayout::Coco => coco::write(conversion),
        BoxLayout::Yolo => yolo::write(conversion),
        BoxLayout::Voc => voc::write(conversion),
    }
}
