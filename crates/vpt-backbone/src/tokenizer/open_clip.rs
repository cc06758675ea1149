//! CLIP's own tokenizer where a folder brings none, as open_clip has it: its `SimpleTokenizer` with the `lower` cleaning.
//!
//! The vocabulary and its merges come with the crate `instant-clip-tokenizer`. Of what `ftfy` mends, this does what concerns
//! single characters (curly quotes, ligatures, full-width forms, control characters, composition), not text that was decoded
//! by the wrong table (`sÃ£o`), which is taken as it is.

use html_escape::decode_html_entities;
use instant_clip_tokenizer::{Token, Tokenizer};
use tokenizers::{NormalizedString, Normalizer, normalizers::NFC};

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
        self.0.encode(&clean(text), &mut tokens);
        tokens.truncate(context - 2);
        let (start, end) = (self.0.start_of_text(), self.0.end_of_text());
        std::iter::once(start).chain(tokens).chain([end]).map(|token: Token| u32::from(token.to_u16())).collect()
    }
}

/// `text` as open_clip's `_clean_lower` leaves it, see the module.
fn clean(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    text.chars().for_each(|character| push_plain(character, &mut plain));
    let mut composed = NormalizedString::from(plain.as_str());
    // It cannot fail; a text that it leaves alone is still a text.
    let _ = NFC.normalize(&mut composed);
    let once = decode_html_entities(composed.get());
    let twice = decode_html_entities(&once);
    twice.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// Adds what `ftfy` makes of a character.
fn push_plain(character: char, out: &mut String) {
    match character {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => out.push('\''),
        '\u{201c}'..='\u{201f}' => out.push('"'),
        '\u{132}' => out.push_str("IJ"),
        '\u{133}' => out.push_str("ij"),
        '\u{149}' => out.push_str("\u{2bc}n"),
        '\u{1c4}' => out.push_str("D\u{17d}"),
        '\u{1c5}' => out.push_str("D\u{17e}"),
        '\u{1c6}' => out.push_str("d\u{17e}"),
        '\u{1c7}' => out.push_str("LJ"),
        '\u{1c8}' => out.push_str("Lj"),
        '\u{1c9}' => out.push_str("lj"),
        '\u{1ca}' => out.push_str("NJ"),
        '\u{1cb}' => out.push_str("Nj"),
        '\u{1cc}' => out.push_str("nj"),
        '\u{1f1}' => out.push_str("DZ"),
        '\u{1f2}' => out.push_str("Dz"),
        '\u{1f3}' => out.push_str("dz"),
        '\u{fb00}' => out.push_str("ff"),
        '\u{fb01}' => out.push_str("fi"),
        '\u{fb02}' => out.push_str("fl"),
        '\u{fb03}' => out.push_str("ffi"),
        '\u{fb04}' => out.push_str("ffl"),
        '\u{fb05}' => out.push_str("\u{17f}t"),
        '\u{fb06}' => out.push_str("st"),
        '\u{3000}' | '\u{2028}' | '\u{2029}' | '\u{85}' => out.push(' '),
        // Full-width forms of ASCII.
        '\u{ff01}'..='\u{ff5e}' => out.extend(char::from_u32(character as u32 - 0xfee0)),
        '\0'..='\u{8}'
        | '\u{b}'
        | '\u{e}'..='\u{1f}'
        | '\u{7f}'
        | '\u{206a}'..='\u{206f}'
        | '\u{feff}'
        | '\u{fff9}'..='\u{fffc}' => {}
        other => out.push(other),
    }
}
