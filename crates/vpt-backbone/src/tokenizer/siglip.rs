//! The tokenizers of SigLIP, both generations, over the `tokenizer.json` of a checkpoint: every text has exactly as many ids as
//! the model has positions.
//!
//! A text becomes its tokens, the end token and padding; one that is too long loses its end, not the end token. There is no
//! start token, and nothing is masked: a model that reads texts of other lengths was not trained for it. What happens before:
//!
//! * the first generation (a unigram model): lower case, ASCII punctuation removed, white space collapsed, as its authors'
//!   `canonicalize` and transformers' `SiglipTokenizer` do it. The file alone does not;
//! * the second (Gemma's pairs of bytes): lower case and nothing else, as its authors and transformers since 5.0.

use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::{NormalizerWrapper, Tokenizer, TruncationDirection};

/// A tokenizer of one generation.
#[derive(Debug)]
pub(super) struct SiglipTokenizer {
    inner: Tokenizer,
    generation: Generation,
    padding: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Generation {
    First,
    Second,
}

/// The end of a text, in both generations.
const END: u32 = 1;

impl SiglipTokenizer {
    /// The tokenizer `inner` for a model whose vocabulary has `vocab` tokens.
    ///
    /// # Errors
    /// It would give other ids than the model was trained with: why.
    pub(super) fn new(mut inner: Tokenizer, vocab: usize) -> Result<Self, String> {
        let (generation, tokens): (_, &[(&str, u32)]) = match inner.get_model() {
            ModelWrapper::Unigram(_) => (Generation::First, &[("</s>", END)]),
            ModelWrapper::BPE(_) => (Generation::Second, &[("<pad>", 0), ("<eos>", END)]),
            _ => return Err("SigLIP's is a unigram model or Gemma's pairs of bytes, this is neither".to_owned()),
        };
        for (token, expected) in tokens {
            match inner.token_to_id(token) {
                Some(id) if id == *expected => {}
                Some(id) => return Err(format!("{token} has number {id}, where SigLIP's has {expected}")),
                None => return Err(format!("has no {token}: not SigLIP's tokenizer")),
            }
        }
        // A vocabulary is rounded up at most a little in the model. T5's form may have places behind it that no text uses.
        let mut own = inner.get_vocab_size(false);
        if own > vocab {
            own = inner.get_vocab(false).keys().filter(|token| !token.starts_with("<extra_id_")).count();
        }
        if own > vocab || vocab - own > vocab / 10 {
            return Err(format!("has {own} tokens, where the model has {vocab}: it belongs to another model"));
        }
        if generation == Generation::Second {
            let own = inner.get_normalizer().cloned();
            let lower = std::iter::once(NormalizerWrapper::Lowercase(Lowercase)).chain(own).collect();
            inner.with_normalizer(Some(Sequence::new(lower))).map_err(|error| error.to_string())?;
        }
        let padding = if generation == Generation::First { END } else { 0 };
        Ok(Self { inner, generation, padding })
    }

    /// The `context` ids of `text`, which are 2 or more.
    pub(super) fn encode(&self, text: &str, context: usize) -> tokenizers::Result<Vec<u32>> {
        let clean = match self.generation {
            Generation::First => canonicalize(text),
            Generation::Second => text.to_owned(),
        };
        let mut encoding = self.inner.encode(clean, false)?;
        if encoding.len() >= context {
            encoding.truncate(context - 1, 0, TruncationDirection::Right);
        }
        let mut ids = encoding.get_ids().to_vec();
        ids.push(END);
        ids.resize(context, self.padding);
        Ok(ids)
    }
}

/// `text` in lower case, without ASCII punctuation, its white space single spaces.
fn canonicalize(text: &str) -> String {
    let kept: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    // Python's white space has four separators of files more.
    let words = kept.split(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c));
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::canonicalize;

    // What Python makes of them: `re.sub(r"\s+", " ", text.lower().translate(no_punctuation)).strip()`.
    #[test]
    fn texts_are_made_canonical_as_the_authors_do() {
        for (text, canonical) in [
            ("  A photo of a St. Bernard.\n", "a photo of a st bernard"),
            ("it's under_score-dash/slash", "its underscoredashslash"),
            ("tabs\tand\u{a0}more\u{3000}\u{1c}space", "tabs and more space"),
            ("!?,;", ""),
            ("ΣΑΣ «quoted» — İ", "σας «quoted» — i\u{307}"),
        ] {
            assert_eq!(canonicalize(text), canonical, "{text:?}");
        }
    }
}
