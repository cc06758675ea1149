//! The number formats of what is multiplied.

use vpt_base::choice::choice;

choice! {
    /// Number format of frozen weights and of what is multiplied with them or kept for the VJP. Sums, norms, softmax and
    /// whatever is learned are f32 in both.
    #[derive(Default)]
    pub enum Precision for "precision" {
        /// IEEE single precision.
        #[default]
        F32 = "f32",
        /// bfloat16: the upper half of an f32, rounded to the nearest.
        Bf16 = "bf16",
    }
}

impl Precision {
    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        size_of::<f32>() / self.per_word()
    }

    /// Values in a 32-bit word of a packed matrix.
    pub(super) fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
        }
    }
}
