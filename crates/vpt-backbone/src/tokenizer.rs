//! Texts to token ids, by the `tokenizer.json` of a checkpoint: CLIP's, or SigLIP's (`siglip`).

mod clean;
mod content;
mod open_clip;
mod siglip;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokenizers::{PostProcessor, TruncationDirection};

use self::open_clip::ClipTokenizer;
use self::siglip::SiglipTokenizer;
use vpt_base::contain::contain;
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

/// The tokenizer in one file.
pub const TOKENIZER: &str = "tokenizer.json";
/// The two files older checkpoints have instead.
pub const VOCAB: &str = "vocab.json";
/// See [`VOCAB`].
pub const MERGES: &str = "merges.txt";

/// Ten times the largest tokenizers there are.
const MAX_BYTES: u64 = 256 << 20;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// A tokenizer that is ready to use.
#[derive(Debug)]
pub struct Tokenizer {
    kind: TokenizerKind,
    /// Where it is from: some of what is wrong with a file only shows when it is used.
    path: PathBuf,
}

#[derive(Debug)]
enum TokenizerKind {
    /// Of a file.
    File(Box<tokenizers::Tokenizer>),
    /// CLIP's own.
    Clip(ClipTokenizer),
    /// SigLIP's.
    Siglip(Box<SiglipTokenizer>),
}

impl Tokenizer {
    /// CLIP's own tokenizer, for a folder of open_clip, whose configuration `path` stands for it in errors.
    pub(crate) fn open_clip(path: &Path) -> Self {
        Self { kind: TokenizerKind::Clip(ClipTokenizer::new()), path: path.to_path_buf() }
    }

    /// Opens the tokenizer in the folder `dir`: `tokenizer.json`, or else CLIP's `vocab.json` and `merges.txt`.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(TOKENIZER);
        if path.is_file() {
            return Self::from_bytes(&read_limited(&path, MAX_BYTES)?, &path);
        }
        let (vocab, merges) = (dir.join(VOCAB), dir.join(MERGES));
        if vocab.is_file() && merges.is_file() {
            return Self::from_vocabulary(
                &read_limited(&vocab, MAX_BYTES)?,
                &read_limited(&merges, MAX_BYTES)?,
                &vocab,
                &merges,
            );
        }
        Err(Error::weights(dir, format!("holds no {TOKENIZER}, nor {VOCAB} and {MERGES}: texts cannot be read")))
    }

    /// Opens the tokenizer in the folder `dir` for a model that reads texts padded to a fixed length, whose vocabulary has
    /// `vocab` tokens: SigLIP.
    ///
    /// # Errors
    /// There is none, or it would give other ids than the model was trained with.
    pub(crate) fn open_padded(dir: &Path, vocab: usize) -> Result<Self> {
        let path = dir.join(TOKENIZER);
        if !path.is_file() {
            let pieces = ["spiece.model", "tokenizer.model"].into_iter().find(|name| dir.join(name).is_file());
            let message = match pieces {
                Some(name) => format!("holds {name} but no {TOKENIZER}, which is what is read: texts cannot be read"),
                None => format!("holds no {TOKENIZER}: texts cannot be read"),
            };
            return Err(Error::weights(dir, message));
        }
        let Self { kind, path } = Self::from_bytes(&read_limited(&path, MAX_BYTES)?, &path)?;
        let bad = |why: String| Error::weights(&path, format!("not a usable tokenizer: {}", one_line(&why)));
        let kind = match kind {
            TokenizerKind::File(inner) => {
                TokenizerKind::Siglip(Box::new(SiglipTokenizer::new(*inner, vocab).map_err(bad)?))
            }
            other => other,
        };
        Ok(Self { kind, path })
    }

    /// A tokenizer from the bytes of a `tokenizer.json`; `path` names it in errors.
    ///
    /// # Errors
    /// The bytes are no tokenizer.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        let bad = |message: &str| Error::weights(path, format!("not a usable tokenizer: {}", one_line(message)));
        let mut inner = contain(|| tokenizers::Tokenizer::from_bytes(bytes))
            .map_err(|panic| bad(&panic))?
            .map_err(|e| bad(&e.to_string()))?;
        // `encode` does both its own way, whatever the file says.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| bad(&e.to_string()))?;
        Ok(Self { kind: TokenizerKind::File(Box::new(inner)), path: path.to_path_buf() })
    }

    /// CLIP's tokenizer over this vocabulary, as transformers builds it where there is no `tokenizer.json`.
    fn from_vocabulary(vocab: &[u8], merges: &[u8], vocab_path: &Path, merges_path: &Path) -> Result<Self> {
        let file = Self::file_of_vocabulary(vocab, merges, vocab_path, merges_path)?;
        Self::from_bytes(file.to_string().as_bytes(), vocab_path)
    }

    /// The `tokenizer.json` that a vocabulary and its merges stand for.
    fn file_of_vocabulary(vocab: &[u8], merges: &[u8], vocab_path: &Path, merges_path: &Path) -> Result<Value> {
        let vocab: Value =
            serde_json::from_slice(vocab).map_err(|e| Error::weights(vocab_path, format!("not a vocabulary: {e}")))?;
        let id = |token: &str| match vocab.get(token).and_then(Value::as_u64) {
            Some(id) => Ok(id),
            None => Err(Error::weights(vocab_path, format!("not CLIP's vocabulary: has no {token}"))),
        };
        let (start, end) = (id(START)?, id(END)?);
        let merges = std::str::from_utf8(merges).map_err(|_| Error::weights(merges_path, "is not UTF-8"))?;
        let merges: Vec<&str> =
            merges.lines().filter(|line| !line.is_empty() && !line.starts_with("#version")).collect();
        let special = |id: u64, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        };
        let pattern = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        Ok(json!({
            "version": "1.0",
            "added_tokens": [special(start, START), special(end, END)],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": true},
                bytes,
            ]},
            "post_processor": {"type": "RobertaProcessing", "sep": [END, end], "cls": [START, start],
                               "trim_offsets": false, "add_prefix_space": false},
            "decoder": null,
            "model": {"type": "BPE", "dropout": null, "unk_token": END, "continuing_subword_prefix": "",
                      "end_of_word_suffix": "</w>", "fuse_unk": false, "vocab": vocab, "merges": merges},
        }))
    }

    /// The ids of `text` with the tokens the file puts around it (CLIP: start and end of text), at most `context` of them:
    /// a longer text loses its end, not the end token. Padded to `context` for SigLIP only.
    ///
    /// # Errors
    /// The text cannot be tokenized, or `context` is too short for the tokens put around it.
    pub fn encode(&self, text: &str, context: usize) -> Result<Vec<u32>> {
        let bad = |message: &str| {
            let start: String = text.chars().take(40).collect();
            Error::invalid(format!("text {start:?}"), format!("cannot be tokenized: {}", one_line(message)))
        };
        let failed = |message: &str| Error::weights(&self.path, format!("not a usable tokenizer: {}", bad(message)));
        let inner = match &self.kind {
            TokenizerKind::File(inner) => inner,
            TokenizerKind::Clip(_) | TokenizerKind::Siglip(_) if context < 2 => {
                return Err(bad(&format!("start and end token do not fit into {context}")));
            }
            TokenizerKind::Clip(clip) => return contain(|| clip.encode(text, context)).map_err(|panic| failed(&panic)),
            TokenizerKind::Siglip(siglip) => {
                let ids = contain(|| siglip.encode(text, context)).map_err(|panic| failed(&panic))?;
                return ids.map_err(|error| failed(&error.to_string()));
            }
        };
        let post = inner.get_post_processor();
        let room = context.checked_sub(post.map_or(0, |p| p.added_tokens(false)));
        let room = room.ok_or_else(|| bad(&format!("start and end token do not fit into {context}")))?;
        let ids = contain(|| {
            let mut encoding = inner.encode(text, false)?;
            if encoding.len() > room {
                encoding.truncate(room, 0, TruncationDirection::Right);
                // The parts cut off.
                encoding.take_overflowing();
            }
            let encoding = match post {
                Some(post) => post.process(encoding, None, true)?,
                None => encoding,
            };
            tokenizers::Result::Ok(encoding.get_ids().to_vec())
        });
        ids.map_err(|panic| failed(&panic))?.map_err(|e| failed(&e.to_string()))
    }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde::Deserialize;

    use super::*;

    fn fixture() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/clip")
    }

    #[derive(Deserialize)]
    struct TokenizerCase {
        text: String,
        context: usize,
        ids: Vec<u32>,
    }

    /// Ids from the Python binding of Hugging Face's tokenizers, with its own truncation.
    fn cases() -> Vec<TokenizerCase> {
        serde_json::from_slice(&std::fs::read(fixture().join("texts.json")).unwrap()).unwrap()
    }

    #[test]
    fn ids_equal_the_python_tokenizers() {
        let tokenizer = Tokenizer::open(&fixture()).unwrap();
        let cases = cases();
        for TokenizerCase { text, context, ids } in &cases {
            assert_eq!(&tokenizer.encode(text, *context).unwrap(), ids, "{text:?}");
            assert!(ids.len() <= *context);
        }
        assert!(cases.iter().any(|c| c.ids.len() == c.context) && cases.iter().any(|c| c.ids.len() == 2));
    }

    #[test]
    fn vocabulary_and_merges_make_the_same_tokenizer() {
        let dir = tempfile::tempdir().unwrap();
        for name in [VOCAB, MERGES] {
            std::fs::copy(fixture().join(name), dir.path().join(name)).unwrap();
        }
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        for TokenizerCase { text, context, ids } in cases() {
            assert_eq!(tokenizer.encode(&text, context).unwrap(), ids, "{text:?}");
        }
    }

    #[test]
    fn the_end_token_is_kept() {
        let tokenizer = Tokenizer::open(&fixture()).unwrap();
        let whole = tokenizer.encode("red square", 77).unwrap();
        for context in 2..whole.len() {
            let ids = tokenizer.encode("red square", context).unwrap();
            assert_eq!(ids, [&whole[..context - 1], &whole[whole.len() - 1..]].concat());
        }
        let message = tokenizer.encode("red square", 1).unwrap_err().to_string();
        assert_eq!(message, r#"text "red square": cannot be tokenized: start and end token do not fit into 1"#);
    }

    #[test]
    fn damaged_files_are_errors_of_one_line() {
        let whole = std::fs::read(fixture().join(TOKENIZER)).unwrap();
        let path = Path::new(TOKENIZER);
        for len in [0, 1, whole.len() / 3, whole.len() - 1] {
            let message = Tokenizer::from_bytes(&whole[..len], path).unwrap_err().to_string();
            assert!(message.starts_with("tokenizer.json: not a usable tokenizer: ") && !message.contains('\n'));
        }
        // A special token of a post-processor's template that does not exist makes the crate panic or fail.
        let mut json: Value = serde_json::from_slice(&whole).unwrap();
        json["post_processor"] = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "X", "type_id": 0}}],
                                        "pair": [], "special_tokens": {}});
        let result = Tokenizer::from_bytes(json.to_string().as_bytes(), path).and_then(|t| t.encode("red", 8));
        assert!(!result.unwrap_err().to_string().contains('\n'));
    }

    #[test]
    fn tokenizers_that_would_give_siglip_other_ids_are_refused() {
        let dir = |name: &str| fixture().with_file_name(name);
        for name in ["siglip", "siglip-v2"] {
            let json: Value = serde_json::from_slice(&std::fs::read(dir(name).join(TOKENIZER)).unwrap()).unwrap();
            let own = json["model"]["vocab"]
                .as_array()
                .map_or_else(|| json["model"]["vocab"].as_object().unwrap().len(), Vec::len);
            assert!(Tokenizer::open_padded(&dir(name), own).is_ok(), "{name}");
            for vocab in [own - 1, own * 2] {
                let message = Tokenizer::open_padded(&dir(name), vocab).unwrap_err().to_string();
                let part = format!("has {own} tokens, where the model has {vocab}: it belongs to another model");
                assert!(message.ends_with(&part), "{message}");
            }
        }
        let with_places = tempfile::tempdir().unwrap();
        let mut json: Value = serde_json::from_slice(&std::fs::read(dir("siglip").join(TOKENIZER)).unwrap()).unwrap();
        let pieces = json["model"]["vocab"].as_array_mut().unwrap();
        let own = pieces.len();
        pieces.extend((0..100).map(|i| json!([format!("<extra_id_{i}>"), 0.0])));
        std::fs::write(with_places.path().join(TOKENIZER), json.to_string()).unwrap();
        assert!(Tokenizer::open_padded(with_places.path(), own).is_ok());

        let message = Tokenizer::open_padded(&fixture(), 600).unwrap_err().to_string();
        assert!(message.ends_with("has no <pad>: not SigLIP's tokenizer"), "{message}");

        let copy = tempfile::tempdir().unwrap();
        let write = |json: &Value| std::fs::write(copy.path().join(TOKENIZER), json.to_string()).unwrap();
        let refused = || Tokenizer::open_padded(copy.path(), 8).unwrap_err().to_string();
        std::fs::write(copy.path().join("spiece.model"), "").unwrap();
        assert!(refused().contains("holds spiece.model but no tokenizer.json"), "{}", refused());
        let words = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"});
        write(&json!({"version": "1.0", "added_tokens": [], "model": words}));
        assert!(refused().ends_with("this is neither"), "{}", refused());
        let pieces = json!({"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.], ["a", -1.], ["</s>", 0.]]});
        write(&json!({"version": "1.0", "added_tokens": [], "model": pieces}));
        assert!(refused().ends_with("</s> has number 2, where SigLIP's has 1"), "{}", refused());
    }

    #[test]
    fn an_empty_folder_says_what_it_lacks() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Tokenizer::open(dir.path()).unwrap_err().to_string().contains("holds no tokenizer.json"));
        std::fs::write(dir.path().join(VOCAB), "{}").unwrap();
        std::fs::write(dir.path().join(MERGES), "").unwrap();
        let message = Tokenizer::open(dir.path()).unwrap_err().to_string();
        assert!(message.ends_with("vocab.json: not CLIP's vocabulary: has no <|startoftext|>"), "{message}");
    }
}
