//! CLIP's own tokenizer where a folder brings none, as open_clip has it: its `SimpleTokenizer` with the `lower` cleaning.
//!
//! The vocabulary and its merges come with the crate `instant-clip-tokenizer`.

use instant_clip_tokenizer::{Token, Tokenizer};

use super::clean::clean_lower;

/// The tokenizer.
pub(super) struct ClipTokenizer(Tokenizer);

impl std::fmt::Debug for ClipTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClipTokenizer")
    }
}

impl ClipTokenizer {
    pub(super) fn new() -> Self {
        Self(Tokenizer::new())
    }

    /// The ids of `text` between those of its start and its end, at most `context`, which is 2 or more: a longer text loses its
    /// end, not the end token.
    pub(super) fn encode(&self, text: &str, context: usize) -> Vec<u32> {
        let mut tokens = Vec::new();
        self.0.encode(&clean_lower(text), &mut tokens);
        tokens.truncate(context - 2);
        let (start, end) = (self.0.start_of_text(), self.0.end_of_text());
        std::iter::once(start).chain(tokens).chain([end]).map(|token: Token| u32::from(token.to_u16())).collect()
    }
}
