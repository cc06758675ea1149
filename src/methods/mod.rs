//! Methods: what is learned beside the head, and what follows from it.

use crate::{choice::choice, head::HeadKind};

choice! {
    /// What is learned beside the head.
    #[derive(Default)]
    pub enum Method for "--method" {
        /// Nothing: a head on features that are computed once.
        Linear = "linear",
        /// Nothing, and no head either: the texts that name the classes.
        ZeroShot = "zero-shot",
        /// A head of the classes' mean embeddings.
        Ncm = "ncm",
        /// A head that starts as the texts that name the classes.
        ZsLp = "zs-lp",
        /// The same, held near those texts class by class.
        Clap = "clap",
        /// Nothing: a cache of the training images beside the texts that name the classes.
        TipAdapter = "tip-adapter",
        /// The keys of that cache.
        TipAdapterF = "tip-adapter-f",
        /// Prompt tokens at the input of the first block.
        VptShallow = "vpt-shallow",
        /// Prompt tokens of their own for every block.
        #[default]
        VptDeep = "vpt-deep",
        /// A border of prompt pixels over the image.
        VpPad = "vp-pad",
        /// A patch of prompt pixels over the image.
        VpPatch = "vp-patch",
        /// Prompt pixels over the whole image.
        VpFull = "vp-full",
        /// The image shrunk, prompt pixels around it.
        VpFrame = "vp-frame",
        /// Vectors in the texts of the classes.
        Coop = "coop",
        /// The same, shifted by a network of the image.
        Cocoop = "cocoop",
        /// Vectors in several blocks of both towers.
        Ivlp = "ivlp",
        /// Vectors in several blocks of the text tower, and maps of them to the image tower's.
        Maple = "maple",
        /// As `ivlp`, tied to what the frozen backbone makes of images and texts, averaged over the epochs.
        Promptsrc = "promptsrc",
        /// The biases of the image tower.
        Bias = "bias",
        /// Low-rank changes to the queries, keys and values of one tower or both.
        Lora = "lora",
        /// Every weight of the image tower.
        Full = "full",
    }
}

impl Method {
    /// Whether prompt tokens are learned.
    pub fn has_tokens(self) -> bool {
        matches!(self, Self::VptShallow | Self::VptDeep)
    }

    /// Whether texts of the classes are learned.
    pub fn has_texts(self) -> bool {
        matches!(self, Self::Coop | Self::Cocoop) || self.has_deep_texts()
    }

    /// Whether they are learned in several blocks, beside prompts of the image tower.
    pub(super) fn has_deep_texts(self) -> bool {
        matches!(self, Self::Ivlp | Self::Maple | Self::Promptsrc)
    }

    /// Whether prompt pixels are learned.
    pub fn has_pixels(self) -> bool {
        matches!(self, Self::VpPad | Self::VpPatch | Self::VpFull | Self::VpFrame)
    }

    /// Whether weights of the backbone are tuned.
    pub fn tunes_weights(self) -> bool {
        matches!(self, Self::Bias | Self::Lora | Self::Full)
    }

    /// Whether nothing but a head on the images' features is learned, so that each is computed once.
    pub fn on_features(self) -> bool {
        !self.has_tokens() && !self.has_pixels() && !self.has_texts() && !self.tunes_weights()
    }

    /// Whether features are image embeddings (of CLIP the projected class token) instead of the class token after the last
    /// norm, which is what is wanted where they are compared with texts or with one another.
    pub fn on_embeddings(self) -> bool {
        self.on_features() && self != Self::Linear
    }

    /// Whether the texts that name the classes have a part in the head.
    pub fn reads_texts(self) -> bool {
        self.on_embeddings() && self != Self::Ncm
    }

    /// Whether they have where the backbone has a text tower.
    pub fn may_read_texts(self) -> bool {
        self.reads_texts() || self == Self::Lora
    }

    /// Whether the head holds a cache of the training images.
    pub fn has_cache(self) -> bool {
        matches!(self, Self::TipAdapter | Self::TipAdapterF)
    }

    /// Whether training images are seen as augmented views, whose features are computed once.
    pub fn has_views(self) -> bool {
        matches!(self, Self::ZsLp | Self::Clap) || self.has_cache()
    }

    /// The head that belongs to the method, where it leaves no choice.
    pub fn own_head(self) -> Option<HeadKind> {
        (self.on_embeddings() || self.has_texts()).then_some(HeadKind::Cosine)
    }
}

choice! {
    /// How a linear probe is fitted.
    pub enum Solver for "--solver" {
        /// In steps, with `--optimizer`.
        Sgd = "sgd",
        /// To the minimum of the cross-entropy with an L2 penalty, by L-BFGS.
        Lbfgs = "lbfgs",
    }
}
