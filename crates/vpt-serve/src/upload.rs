//! What comes in: bodies within limits of size, time and memory, and what they say. No address that a body holds is ever fetched.

use std::time::Duration;

use axum::body::Body;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;

use crate::error::ApiError;
use crate::service::{PIECE, Service};

/// Base64 with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A body in memory, and its part of what bodies may take there.
#[derive(Debug)]
pub(crate) struct Upload {
    pub(crate) bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Upload {
    /// Reads a body to its end.
    ///
    /// # Errors
    /// It is too large, takes too long, ends early, or there is no memory for it now.
    pub(crate) async fn read(service: &Service, body: Body) -> Result<Self, ApiError> {
        let timeout = service.config.timeout;
        let read = tokio::time::timeout(timeout, Self::read_all(service, body)).await;
        read.unwrap_or_else(|_| {
            service.metrics.reject("slow_body");
            Err(ApiError::timeout(timeout.as_secs_f64()))
        })
    }

    async fn read_all(service: &Service, mut body: Body) -> Result<Self, ApiError> {
        let most = service.config.max_body;
        let too_large = || {
            service.metrics.reject("body_too_large");
            ApiError::too_large(format!("a body of more than {most} bytes"))
        };
        // What the head says is only believed where it refuses.
        if axum::body::HttpBody::size_hint(&body).lower() > most as u64 {
            return Err(too_large());
        }
        let (mut bytes, mut room) = (BytesMut::new(), None::<OwnedSemaphorePermit>);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::malformed("the body ends early"))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > most {
                return Err(too_large());
            }
            let pieces = (bytes.len() + data.len()).div_ceil(PIECE) - bytes.len().div_ceil(PIECE);
            let Ok(more) = service.uploads.clone().try_acquire_many_owned(pieces as u32) else {
                service.metrics.reject("bodies_in_memory");
                return Err(ApiError::busy("too many bodies are being read"));
            };
            match &mut room {
                Some(room) => room.merge(more),
                None => room = Some(more),
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Self { bytes: bytes.freeze(), _room: room })
    }
}

/// How much of an answer is told, in an address or a body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerFields {
    /// Most classes of an image that has one.
    pub top_k: Option<usize>,
    /// Score that boxes must have.
    pub min_score: Option<f64>,
}

/// Whose attention is shown, in an address.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AttentionFields {
    /// A name of [`vpt_backbone::vit::AttentionOf`].
    pub(crate) of: Option<String>,
}

/// One string or several.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl OneOrMany {
    /// All of them.
    pub fn all(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// Images for one task.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PredictBody {
    /// In base64.
    #[serde(alias = "image", alias = "inputs")]
    pub images: OneOrMany,
    /// Most classes of an image that has one.
    #[serde(default, deserialize_with = "whole")]
    pub top_k: Option<usize>,
    /// Score that boxes must have.
    #[serde(default)]
    pub min_score: Option<f64>,
}

/// Images for several tasks.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PredictManyBody {
    /// In base64.
    #[serde(alias = "image")]
    pub images: OneOrMany,
    /// Names of tasks.
    #[serde(alias = "task")]
    pub tasks: OneOrMany,
    /// Most classes of an image that has one.
    #[serde(default, deserialize_with = "whole")]
    pub top_k: Option<usize>,
    /// Score that boxes must have.
    #[serde(default)]
    pub min_score: Option<f64>,
}

/// `OpenAI`'s request for embeddings.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct EmbeddingsBody {
    /// A task, or the backbone.
    pub model: String,
    /// Images as data URIs; anything else is a text.
    pub input: OneOrMany,
    /// `float` or `base64`.
    #[serde(default)]
    pub encoding_format: EncodingFormat,
    /// Values of an embedding, which can be no other than they are.
    #[serde(default, deserialize_with = "whole")]
    pub dimensions: Option<usize>,
    /// Whether embeddings are scaled to length 1.
    #[serde(default)]
    pub normalize: bool,
}

/// How embeddings are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    /// As numbers.
    #[default]
    Float,
    /// As base64 of 32-bit floats, the least byte first.
    Base64,
}

/// A whole number, however it is written: to JSON Schema 5.0 is one, too.
pub(crate) fn whole<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    let Some(number) = Option::<serde_json::Number>::deserialize(from)? else { return Ok(None) };
    let of_decimals = || number.as_f64().filter(|x| x.fract() == 0. && (0. ..9e15).contains(x)).map(|x| x as u64);
    let found = number.as_u64().or_else(of_decimals).and_then(|number| usize::try_from(number).ok());
    found.map(Some).ok_or_else(|| serde::de::Error::custom(format!("{number} is no whole number from 0 on")))
}

/// Reads a JSON body.
///
/// # Errors
/// It is none, or has other fields.
pub fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("the body is not what is expected: {error}"))
}

/// The bytes of an image in base64, with or without the head of a data URI.
///
/// # Errors
/// It is an address, or no base64.
pub fn image_of_text(text: &str) -> Result<Bytes, String> {
    let text = text.trim();
    if ["http:", "https:", "ftp:", "file:"].iter().any(|scheme| starts_with(text, scheme)) {
        return Err("no address is fetched; send the image itself, in base64".to_owned());
    }
    let data = if starts_with(text, "data:") {
        let (head, data) = text.split_once(',').ok_or("a data URI without data")?;
        if !head.to_ascii_lowercase().ends_with(";base64") {
            return Err("a data URI that is not in base64".to_owned());
        }
        data
    } else {
        text
    };
    let refused = |error| format!("an image is not base64: {error}");
    if data.bytes().any(|byte| byte.is_ascii_whitespace()) {
        let dense: Vec<u8> = data.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        return BASE64.decode(dense).map(Bytes::from).map_err(refused);
    }
    BASE64.decode(data).map(Bytes::from).map_err(refused)
}

/// Whether an input of `OpenAI`'s form is an image.
pub fn is_image(input: &str) -> bool {
    starts_with(input.trim_start(), "data:")
}

fn starts_with(text: &str, start: &str) -> bool {
    text.get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start))
}

/// Values as `OpenAI` writes them in base64.
pub fn base64_of(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    BASE64.encode(bytes)
}

/// How long a client is given for the head of a request.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_may_have_a_point() {
        let top = |text: &str| json::<PredictBody>(format!(r#"{{"images": "", "top_k": {text}}}"#).as_bytes());
        for (text, want) in [("3", Some(3)), ("329.0", Some(329)), ("1e2", Some(100)), ("null", None)] {
            assert_eq!(top(text).unwrap().top_k, want, "{text}");
        }
        for text in ["2.5", "-1", "-1.0", "1e300", "\"3\"", "[3]"] {
            assert!(top(text).is_err(), "{text}");
        }
    }

    #[test]
    fn images_come_in_base64_and_never_as_addresses() {
        for text in ["aGk=", "aGk", " aG\nk= ", "data:image/png;base64,aGk=", "DATA:;BASE64,aGk"] {
            assert_eq!(image_of_text(text).unwrap(), "hi", "{text}");
        }
        for (text, why) in [
            ("http://169.254.169.254/", "no address"),
            ("FILE:///etc/passwd", "no address"),
            ("data:image/png,aGk=", "not in base64"),
            ("data:image/png;base64", "without data"),
            ("a*b", "not base64"),
        ] {
            assert!(image_of_text(text).unwrap_err().contains(why), "{text}");
        }
        assert_eq!(base64_of(&[1., -2.]), "AACAPwAAAMA=");
    }

    #[test]
    fn bodies_take_one_or_many_and_no_other_fields() {
        let body: PredictBody = json(br#"{"image": "a", "top_k": 3}"#).unwrap();
        assert_eq!((body.images.all(), body.top_k), (vec!["a".to_owned()], Some(3)));
        let body: PredictManyBody = json(br#"{"images": ["a", "b"], "tasks": "t"}"#).unwrap();
        assert_eq!((body.images.all().len(), body.tasks.all()), (2, vec!["t".to_owned()]));
        for bad in [&b""[..], b"{}", b"[", br#"{"image": 7}"#, br#"{"images": ["a"], "topk": 1}"#, b"\xff"] {
            assert!(json::<PredictBody>(bad).is_err());
        }
        let deep = "[".repeat(100_000);
        assert!(json::<PredictBody>(deep.as_bytes()).is_err());
        let body: EmbeddingsBody = json(br#"{"model": "m", "input": "x", "user": "u"}"#).unwrap();
        assert_eq!(body.encoding_format, EncodingFormat::Float);
    }
}
