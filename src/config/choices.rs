//! Choices that every run has: task and selection.

use crate::choice::choice;

choice! {
    /// What the data asks for.
    #[derive(Default)]
    pub enum Task for "--task" {
        /// As the layout of the data says.
        #[default]
        Auto = "auto",
        /// One class an image.
        Classify = "classify",
        /// Any number of classes an image, from data with boxes.
        Multilabel = "multilabel",
        /// Boxes around objects.
        Detect = "detect",
    }
}

choice! {
    /// Which epoch a run ends with.
    pub enum Select for "--select" {
        /// The one with the highest validation accuracy, mAP or AP; of equals the one with the lower loss, then the earlier.
        Best = "best",
        /// The last one, as few-shot protocols ask for.
        Last = "last",
    }
}
