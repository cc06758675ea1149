//! How tensors of other programs' checkpoints hold those that are read here.

/// How a tensor of a file holds one of those that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TensorSlot {
    /// It is the same.
    Whole,
    /// Rows of a third of it: queries, keys and values lie in one.
    Third(usize),
    /// Rows of a half of it: both layers of a gated MLP lie in one.
    Half(usize),
    /// Rows and columns are exchanged.
    Transposed,
    /// It is a list of one, `[1, …]`, of it.
    OnlyOne,
    /// A patch embedding `[D, 3, p, p]` as a layer over the values of a patch, channels last: `[D, p p 3]`. One with four
    /// dimensions is no such layer and the same.
    PatchRows,
}
