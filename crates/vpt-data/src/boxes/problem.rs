//! Faults of a data set of boxes that can be lived with. Annotations of the wild have boxes past the border, two
//! entries with one id, files that were lost: each is mended in the one way that is documented here, and said.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use vpt_base::choice::choice;

choice! {
    /// Kind of a fault.
    pub enum ProblemKind for "problem" {
        /// An image that the annotations name and that is not there.
        MissingImage = "missing image",
        /// An image whose header cannot be read.
        UnreadableImage = "unreadable image",
        /// An image of which a list says that it is annotated and that is not.
        MissingAnnotation = "missing annotation",
        /// The annotation gives another size than the image has.
        SizeMismatch = "size mismatch",
        /// Two images with one id.
        DuplicateImageId = "duplicate image id",
        /// An image that is listed twice in one part.
        DuplicateImage = "duplicate image",
        /// An image that is in two parts.
        ImageInTwoParts = "image in two parts",
        /// Two annotations with one id.
        DuplicateAnnotationId = "duplicate annotation id",
        /// An annotation with the id 0, which the COCO metric takes for no match, or without one.
        ZeroAnnotationId = "zero annotation id",
        /// An annotation of an image that is not listed.
        UnknownImage = "unknown image",
        /// An object of a category that is not listed.
        UnknownCategory = "unknown category",
        /// A line or element that cannot be read.
        UnreadableObject = "unreadable object",
        /// A box with a coordinate that is not a finite number.
        NotFinite = "not finite",
        /// A box without area.
        EmptyBox = "empty box",
        /// A box that reaches past the image's border by more than rounding explains.
        OutsideImage = "outside image",
        /// Corners in Pascal VOC files that count from 0 where the format counts from 1.
        CountsFromZero = "counts from zero",
        /// Polygons and the like where boxes are read.
        OtherShape = "other shape",
        /// Annotations of which most say nothing of most categories, taken as if they did.
        FederatedSet = "federated set",
        /// Category that others name as theirs and that owns no object.
        Heading = "heading among categories",
        /// Category whose objects are in another part than train.
        NotInTrain = "category not in train",
        /// A part in which nothing is.
        NoObjects = "no objects",
        /// Images of which most have no file of labels.
        NoLabels = "no labels",
        /// Files of labels whose images are not there.
        OrphanLabels = "labels without images",
        /// Files or images that no part takes in.
        NotUsed = "not used",
        /// Ids of images that are text where result files have numbers.
        TextIds = "text for ids",
        /// A box around a crowd. No fault: it is kept apart in training and evaluation.
        Crowd = "crowd",
    }
}

choice! {
    /// Mend of a fault.
    pub enum Remedy for "mend" {
        /// Nothing needs to be done.
        Kept = "kept",
        /// The box was cut at the image's border.
        Clipped = "box clipped",
        /// The object is not in the data set.
        ObjectDropped = "object dropped",
        /// The image is not in the data set.
        ImageDropped = "image dropped",
        /// The image is not in this part.
        DroppedHere = "image dropped here, kept in the other part",
        /// The part is taken as not given.
        PartIgnored = "this part is taken as missing",
        /// The objects of both entries belong to the one image.
        Joined = "entries joined",
        /// The annotation has another id.
        Renumbered = "given a free id",
        /// The size in the image's file holds.
        FileHolds = "the file's size holds",
        /// The box around a shape is taken.
        BoxAround = "the boxes around them are taken",
        /// The category is not in the data set.
        CategoryDropped = "category left out",
        /// The file is not read.
        NotRead = "not read",
        /// The images have numbers.
        Numbered = "images are numbered",
        /// It is as it is.
        NothingDone = "nothing is done about it",
        /// Training is refused.
        NothingToLearn = "there is nothing to learn from",
        /// Metrics are empty.
        NothingToMeasure = "there is nothing to measure",
        /// Corners are taken as edges counted from 0.
        TakenAsEdges = "corners taken as edges counted from 0",
    }
}

/// Where in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PlaceInFile {
    /// The line, from 1.
    Line(u64),
    /// The annotation with this id.
    Annotation(u64),
    /// The entry of this number in the list of annotations, from 1; it has no id.
    Entry(u64),
    /// The image with this id.
    Image(u64),
    /// The shape of this number in a list of them, from 1.
    Shape(u64),
    /// The row of a table that is no text, from 0.
    Row(u64),
}

impl fmt::Display for PlaceInFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(n) => write!(f, "line {n}"),
            Self::Annotation(n) => write!(f, "annotation {n}"),
            Self::Entry(n) => write!(f, "entry {n} of annotations"),
            Self::Image(n) => write!(f, "image {n}"),
            Self::Shape(n) => write!(f, "shape {n}"),
            Self::Row(n) => write!(f, "row {n}"),
        }
    }
}

/// Something wrong with a data set, and what was done about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Kind of a fault.
    pub kind: ProblemKind,
    /// How it was mended.
    #[serde(rename = "mend")]
    pub remedy: Remedy,
    /// The file at fault.
    pub file: PathBuf,
    /// Where in the file.
    #[serde(flatten)]
    pub place: Option<PlaceInFile>,
    /// The case at hand, in words.
    pub detail: String,
}

impl Problem {
    /// Whether the data set lacks an image because its file is missing or has no header that can be read.
    pub fn loses_image(&self) -> bool {
        matches!(self.kind, ProblemKind::MissingImage | ProblemKind::UnreadableImage)
    }
}

/// One line, fit to be shown as it is.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(place) = self.place {
            write!(f, ", {place}")?;
        }
        write!(f, ": {}; {}", self.detail, self.remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_file_place_case_and_mend() {
        let problem = Problem {
            kind: ProblemKind::OutsideImage,
            remedy: Remedy::Clipped,
            file: "labels/a.txt".into(),
            place: Some(PlaceInFile::Line(3)),
            detail: "2.5 pixels past the border".into(),
        };
        assert_eq!(problem.to_string(), "labels/a.txt, line 3: 2.5 pixels past the border; box clipped");
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!((&json["kind"], &json["line"]), (&"outside image".into(), &3.into()));
        let json = serde_json::to_value(Problem { place: None, ..problem }).unwrap();
        assert_eq!(json.as_object().unwrap().len(), 4, "{json}");
    }
}
