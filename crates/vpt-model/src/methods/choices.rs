//! Choices that methods depend on: the task, what a head begins as, and how a linear probe is fitted.

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

choice! {
    /// How a linear probe is fitted.
    pub enum Solver for "solver" {
        /// In steps, with the optimiser.
        Sgd = "sgd",
        /// To the minimum of the cross-entropy with an L2 penalty, by L-BFGS.
        Lbfgs = "lbfgs",
    }
}

choice! {
    /// What a head beside prompts or tuned weights begins as.
    pub enum HeadInit for "head_init" {
        /// The linear probe on frozen features: logistic regression, its penalty chosen by validation.
        Probe = "probe",
        /// Random weights.
        Random = "random",
        /// CLIP's zero-shot classifier; see `HeadKind::Text`.
        Text = "text",
    }
}

choice! {
    /// What prompt tokens begin as.
    pub enum PromptInit for "prompt_init" {
        /// Uniform within the Xavier bound of the patch embedding, as in the VPT paper.
        Random = "random",
        /// Patch tokens of training images, as they go into the prompted blocks (Wang et al., "Revisiting the Power of Prompt for
        /// Visual Tuning", ICML 2024).
        Patches = "patches",
        /// Of what random prompts are most alike in training images, and of what attention does not find there (Park and Chung,
        /// VIPAMIN, NeurIPS 2025).
        Vipamin = "vipamin",
    }
}
