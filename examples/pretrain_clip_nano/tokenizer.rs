//! A small byte-level BPE tokenizer, learned from captions. Any text has tokens: every byte is in the vocabulary.

use anyhow::{Result, anyhow};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence, Strip};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};
use tokenizers::{Tokenizer, TokenizerBuilder};

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// Learns at most `vocab` tokens from `captions`, and puts the start and end marks after them, the end mark last: then
/// "the largest id" and "the id of the end mark" name the same position, which is where CLIP reads a text.
pub(crate) fn learn(captions: &[String], vocab: usize) -> Result<Tokenizer> {
    let wrong = |error| anyhow!("tokenizer: {error}");
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocab - 2)
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let normalizer = Sequence::new(vec![
        NFC.into(),
        NormalizerWrapper::Replace(
            Replace::new(tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".into()), " ").map_err(wrong)?,
        ),
        Lowercase.into(),
        Strip::new(true, true).into(),
    ]);
    let mut inner =
        TokenizerBuilder::<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>::new()
            .with_model(BPE::default())
            .with_normalizer(Some(normalizer.into()))
            // A space before the first word makes it the same token as anywhere else.
            .with_pre_tokenizer(Some(ByteLevel::new(true, false, true).into()))
            .with_post_processor(None)
            .with_decoder(Some(ByteLevel::new(true, false, true).into()))
            .build()
            .map_err(wrong)?;
    inner.train(&mut trainer, captions.iter().map(String::as_str)).map_err(wrong)?;
    let mut tokenizer = Tokenizer::from(inner);
    tokenizer.add_special_tokens([AddedToken::from(START, true), AddedToken::from(END, true)]).map_err(wrong)?;
    let id = |mark: &str| tokenizer.token_to_id(mark).ok_or_else(|| anyhow!("tokenizer: {mark} has no id"));
    let marks = vec![(START.to_owned(), id(START)?), (END.to_owned(), id(END)?)];
    let template = TemplateProcessing::builder()
        .try_single(format!("{START} $A {END}"))
        .map_err(|error| anyhow!("tokenizer: {error}"))?
        .special_tokens(marks)
        .build()?;
    tokenizer.with_post_processor(Some(template));
    Ok(tokenizer)
}

/// Token ids of a caption with its marks.
pub(crate) fn encode(tokenizer: &Tokenizer, text: &str, context: usize) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode(text, true).map_err(|error| anyhow!("{text:?}: {error}"))?;
    let mut ids = encoding.get_ids().to_vec();
    if ids.len() > context {
        let end = ids[ids.len() - 1];
        ids.truncate(context);
        ids[context - 1] = end;
    }
    Ok(ids)
}
