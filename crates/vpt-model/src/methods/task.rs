//! The task, which methods are for and their defaults depend on.

use vpt_base::choice::choice;

choice! {
    /// What the data asks for.
    #[derive(Default)]
    pub enum Task for "task" {
        /// As the layout of the data says.
        #[default]
        Auto = "auto",
        /// One class an image.
        Classify = "classify",
        /// Any number of classes an image, from data with boxes.
        Multilabel = "multilabel",
        /// Boxes around objects.
        Detect = "detect",
        /// A class for each pixel, from data with masks.
        Segment = "segment",
    }
}
