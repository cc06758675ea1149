//! What a check says: one finding a fault, with the file, and the line where the file is text.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::boxes::ProblemKind;
use vpt_base::choice::choice;
use vpt_base::error::shortened;
use vpt_base::{Error, Result};

choice! {
    /// How bad a finding is.
    pub enum Severity for "severity" {
        /// `vpt train` stops at it, leaves something out because of it, or would report numbers that are wrong.
        Error = "error",
        /// It can be lived with.
        Warning = "warning",
    }
}

choice! {
    /// What is wrong.
    pub enum FindingKind for "kind" {
        // Images.
        /// A file that no decoder reads.
        UnreadableImage = "unreadable-image",
        /// A file that ends before its image does.
        TruncatedImage = "truncated-image",
        /// A file without a byte.
        EmptyFile = "empty-file",
        /// A header that claims no pixels, or more than are ever decoded.
        AbsurdSize = "absurd-size",
        /// An image of which hardly anything can be told.
        TinyImage = "tiny-image",
        /// An image that takes long to decode and much memory.
        HugeImage = "huge-image",
        /// An image of which little is left when it is made square.
        ExtremeAspectRatio = "extreme-aspect-ratio",
        /// An image of 16 bits a value that uses the lower ones alone, and becomes nearly black.
        UnusedBits = "unused-bits",
        /// An image whose pixels all have one colour.
        BlankImage = "blank-image",
        /// A name that says another format than the content.
        WrongExtension = "wrong-extension",
        /// The same content twice in one part, with the same label.
        DuplicateImage = "duplicate-image",
        /// The same content in two parts: what is tested on was learned from.
        DuplicateAcrossSplits = "duplicate-across-splits",
        /// The same content with two labels.
        DuplicateOtherLabel = "duplicate-other-label",

        // Files and folders.
        /// A file among images that is none and is passed over.
        UnsupportedFile = "unsupported-file",
        /// An image whose name does not end like one, and that is passed over.
        ImageNotSeen = "image-not-seen",
        /// An image beside the class folders, which belongs to no class.
        StrayImage = "stray-image",
        /// A link to what is not there.
        BrokenLink = "broken-link",
        /// A link that leads back to where it is.
        LinkLoop = "link-loop",
        /// A link to a folder whose files are in the class already.
        LinkedTwice = "linked-twice",
        /// Folders in folders that are too many to be followed.
        TooDeep = "too-deep",
        /// A pipe, a socket or a device, or a folder in place of a file.
        SpecialFile = "special-file",
        /// A file or folder that the system does not let us read.
        NoAccess = "no-access",
        /// A name that is not UTF-8, and gets replacement characters wherever it is written down.
        NonUtf8Name = "non-utf8-name",
        /// A name with control characters, or with a space at its beginning or end.
        OddName = "odd-name",

        // Classes.
        /// A class folder without images.
        EmptyClass = "empty-class",
        /// A class of another part that does not occur in train.
        ClassNotInTrain = "class-not-in-train",
        /// Classes of train that do not occur in another part.
        ClassNotInSplit = "class-not-in-split",
        /// Two classes whose names differ by case or spaces alone.
        SimilarClassNames = "similar-class-names",
        /// Nothing to tell apart.
        SingleClass = "single-class",
        /// A class with one image to learn from.
        OneImageClass = "one-image-class",
        /// Numbers of classes that leave some out.
        LabelGap = "label-gap",
        /// A number of a class that goes with two names, or a name that goes with two numbers.
        LabelNameMismatch = "label-name-mismatch",
        /// Two folders, tables or files for one part.
        AmbiguousSplit = "ambiguous-split",
        /// Parts without one to learn from.
        NoTrain = "no-train",
        /// A folder of a part, or of what belongs to pictures, among class folders.
        NotAClass = "not-a-class",
        /// Pictures of a part without classes.
        UnlabelledPart = "unlabelled-part",
        /// Pictures or files that no part takes in.
        NotUsed = "not-used",
        /// A file that says something of the pictures and that no layout reads.
        AnnotationNotRead = "annotation-not-read",

        // Text files.
        /// Text that is not UTF-8.
        NotUtf8Text = "not-utf8-text",
        /// Lines that end as on Windows.
        CrlfLineEnds = "crlf-line-ends",
        /// A byte order mark.
        ByteOrderMark = "byte-order-mark",
        /// JSON, YAML or XML that cannot be parsed, or an entry of the wrong form.
        MalformedFile = "malformed-file",
        /// A line of a table with nothing in it.
        BlankRow = "blank-row",
        /// A line of a table with fewer fields than it has columns.
        ShortRow = "short-row",
        /// A line of a table with more fields than it has columns.
        LongRow = "long-row",
        /// A line of a table without path, label or part.
        MissingValue = "missing-value",
        /// A part that is none of train, val and test.
        UnknownSplit = "unknown-split",
        /// A file that is listed and not there.
        MissingFile = "missing-file",
        /// An image that is listed twice.
        ListedTwice = "listed-twice",
        /// A path that leads out of the data set's folder.
        OutsideFolder = "outside-folder",

        // IDX files.
        /// Bytes that are not as many as the header says.
        IdxCount = "idx-count-mismatch",
        /// A file that ends too early.
        IdxTruncated = "idx-truncated",
        /// A file that is not what its name says.
        IdxMalformed = "idx-malformed",
        /// Other numbers of labels and images.
        IdxLabels = "idx-labels-mismatch",
        /// Images without a file of labels.
        IdxNoLabels = "idx-no-labels",

        // Boxes.
        /// An image of which a list says that it is annotated and that is not.
        MissingAnnotation = "missing-annotation",
        /// The annotation gives another size than the image has.
        SizeMismatch = "size-mismatch",
        /// Two images with one id.
        DuplicateImageId = "duplicate-image-id",
        /// An image that is listed in two parts.
        ImageInTwoSplits = "image-in-two-splits",
        /// Two annotations with one id.
        DuplicateAnnotationId = "duplicate-annotation-id",
        /// An annotation with the id 0, or without one.
        ZeroAnnotationId = "zero-annotation-id",
        /// An annotation of an image that is not listed.
        UnknownImage = "unknown-image",
        /// An object of a category that is not listed.
        UnknownCategory = "unknown-category",
        /// A line or element that cannot be read.
        UnreadableObject = "unreadable-object",
        /// A box with a coordinate that is not a finite number.
        BoxNotFinite = "box-not-finite",
        /// A box without area.
        EmptyBox = "empty-box",
        /// A box that reaches past the image's border.
        BoxOutsideImage = "box-outside-image",
        /// A category that others name as theirs and that owns no object.
        HeadingCategory = "heading-category",
        /// A part in which there is no object.
        NoObjects = "no-objects",
        /// Images of which most have no file of labels.
        NoLabels = "no-labels",
        /// Files of labels whose images are not there.
        OrphanLabels = "orphan-labels",
        /// Ids of images that are text.
        TextIds = "text-ids",
        /// Corners in Pascal VOC files that count from 0.
        CountsFromZero = "counts-from-zero",
        /// LVIS, read as COCO.
        FederatedSet = "federated-set",
        /// Polygons and the like, of which the boxes around them are taken.
        OtherShape = "other-shape",
        /// The same box with the same category twice in an image.
        DuplicateBox = "duplicate-box",

        // Masks.
        /// An image without a mask.
        MissingMask = "missing-mask",
        /// A mask that cannot be read, or whose pixels are no numbers of classes.
        UnreadableMask = "unreadable-mask",
        /// A number in a mask that stands for no class.
        UnknownIndex = "unknown-index",

        /// What stops `vpt train` and is none of the above.
        Refused = "refused",
    }
}

impl FindingKind {
    /// The kind for a problem of annotations; none for what is no fault.
    pub(crate) fn of_problem(kind: ProblemKind) -> Option<Self> {
        Some(match kind {
            ProblemKind::MissingImage => Self::MissingFile,
            ProblemKind::UnreadableImage => Self::UnreadableImage,
            ProblemKind::MissingAnnotation => Self::MissingAnnotation,
            ProblemKind::SizeMismatch => Self::SizeMismatch,
            ProblemKind::DuplicateImageId => Self::DuplicateImageId,
            ProblemKind::DuplicateImage => Self::ListedTwice,
            ProblemKind::ImageInTwoParts => Self::ImageInTwoSplits,
            ProblemKind::DuplicateAnnotationId => Self::DuplicateAnnotationId,
            ProblemKind::ZeroAnnotationId => Self::ZeroAnnotationId,
            ProblemKind::UnknownImage => Self::UnknownImage,
            ProblemKind::UnknownCategory => Self::UnknownCategory,
            ProblemKind::UnreadableObject => Self::UnreadableObject,
            ProblemKind::NotFinite => Self::BoxNotFinite,
            ProblemKind::EmptyBox => Self::EmptyBox,
            ProblemKind::OutsideImage => Self::BoxOutsideImage,
            ProblemKind::CountsFromZero => Self::CountsFromZero,
            ProblemKind::OtherShape => Self::OtherShape,
            ProblemKind::FederatedSet => Self::FederatedSet,
            ProblemKind::Heading => Self::HeadingCategory,
            ProblemKind::NotInTrain => Self::ClassNotInTrain,
            ProblemKind::NoObjects => Self::NoObjects,
            ProblemKind::NoLabels => Self::NoLabels,
            ProblemKind::OrphanLabels => Self::OrphanLabels,
            ProblemKind::NotUsed => Self::NotUsed,
            ProblemKind::TextIds => Self::TextIds,
            ProblemKind::Crowd => return None,
        })
    }
}

/// Something wrong with a data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// How bad it is.
    pub severity: Severity,
    /// The file or folder at fault.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// The line in it, from 1, where it is text.
    pub line: Option<u64>,
    /// The case at hand, in words.
    pub message: String,
}

/// Names of files need not be UTF-8, JSON must be.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// `path:line: message [kind]`, on one line and without characters that could steer a terminal.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.line.map(|line| format!(":{line}")).unwrap_or_default();
        let text = format!("{}{line}: {} [{}]", self.path.display(), shortened(&self.message), self.kind);
        text.chars()
            .try_for_each(|c| if c.is_control() { write!(f, "{}", c.escape_default()) } else { write!(f, "{c}") })
    }
}

/// What was found so far.
#[derive(Default)]
pub(crate) struct Findings(pub(crate) Vec<Finding>);

impl Findings {
    pub(crate) fn error(
        &mut self,
        kind: FindingKind,
        path: impl AsRef<Path>,
        line: impl Into<Option<u64>>,
        message: impl Into<String>,
    ) {
        self.add(kind, Severity::Error, path, line, message);
    }

    pub(crate) fn warning(
        &mut self,
        kind: FindingKind,
        path: impl AsRef<Path>,
        line: impl Into<Option<u64>>,
        message: impl Into<String>,
    ) {
        self.add(kind, Severity::Warning, path, line, message);
    }

    pub(crate) fn add(
        &mut self,
        kind: FindingKind,
        severity: Severity,
        path: impl AsRef<Path>,
        line: impl Into<Option<u64>>,
        message: impl Into<String>,
    ) {
        let (path, line, message) = (path.as_ref().to_path_buf(), line.into(), message.into());
        self.0.push(Finding { kind, severity, path, line, message });
    }

    /// What stops a run, in the words of the run. `whole` is named where the error names no file.
    pub(crate) fn refused(&mut self, kind: FindingKind, whole: &Path, error: &Error) {
        let (path, message) = match error {
            Error::Data { path, message } | Error::Image { path, message } | Error::File { path, message } => {
                (path.as_path(), message.to_string())
            }
            Error::Io { path, source } => (path.as_path(), source.to_string()),
            other => (whole, other.to_string()),
        };
        self.error(kind, path, line_in(&message), message);
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.0.iter().any(|finding| finding.severity == Severity::Error)
    }
}

/// The number after the first `line` in the message of a parser.
fn line_in(message: &str) -> Option<u64> {
    let (_, rest) = message.split_once("line ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|&line| line > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_whatever_a_file_is_called() {
        let finding = Finding {
            kind: FindingKind::OddName,
            severity: Severity::Warning,
            path: "a\n\u{1b}[31m.png".into(),
            line: Some(3),
            message: "odd".into(),
        };
        assert_eq!(finding.to_string(), "a\\n\\u{1b}[31m.png:3: odd [odd-name]");
    }

    #[test]
    fn lines_are_found_in_the_words_of_parsers() {
        assert_eq!(line_in("expected value at line 12 column 3"), Some(12));
        assert_eq!(line_in("line 4: no path"), Some(4));
        assert_eq!(line_in("one line too many"), None);
    }
}
