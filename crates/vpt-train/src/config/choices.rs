//! The choice of epoch.

use vpt_base::choice::choice;

choice! {
    /// Which epoch a run ends with.
    pub enum Select for "select" {
        /// The one with the highest validation accuracy, mAP or AP; of equals the one with the lower loss, then the earlier.
        Best = "best",
        /// The last one, as few-shot protocols ask for.
        Last = "last",
    }
}
