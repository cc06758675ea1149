//! Choices that methods depend on: the task, and how a linear probe is fitted.

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
    }
}

choice! {
    /// How a linear probe is fitted.
    pub enum Solver for "solver" {
        /// In steps, with the optimiser.
        Sgd = "sgd",
        /// To the minimum of the cross-entropy with an L2 penalty, by L-BFGS.
        Lbfgs = "lbfgs",
    }
}
