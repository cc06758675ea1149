//! Where a task looks in an image, as a picture.

use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderName, HeaderValue, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use vpt_backbone::vit::AttentionOf;
use vpt_base::contain::contain;
use vpt_image::encode::picture_bytes;
use vpt_image::resize::{Filter, resize};
use vpt_image::{Rgb8, preprocess::Size};
use vpt_model::model::attention::AttentionShares;

use super::predict::images_of;
use super::told;
use crate::decode::decode_within;
use crate::error::ApiError;
use crate::service::{Service, Timing};
use crate::store::LoadedTask;
use crate::upload::{AnswerFields, AttentionFields, Upload};

/// How much goes where.
const SHARES: HeaderName = HeaderName::from_static("x-vpt-attention");
/// Pixels of the longer side of an answer at most.
const MOST_SIDE: usize = 1024;

pub(super) async fn one(
    State(service): State<Arc<Service>>,
    Path(task): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let of = asked_of(request.uri())?;
    let (head, body) = request.into_parts();
    let task = service.tasks(&[task]).await?.remove(0);
    let upload = Upload::read(&service, body).await?;
    let (images, fields) = images_of(&service, &head.headers, upload.bytes.clone()).await?;
    if fields != AnswerFields::default() {
        return Err(ApiError::malformed("top_k and min_score say nothing of attention"));
    }
    let [image] = <[Bytes; 1]>::try_from(images)
        .map_err(|images| ApiError::malformed(format!("{} images, where one is shown", images.len())))?;
    let place = service.scheduler.places(1)?;
    let begin = Instant::now();
    let shown = {
        let (service, task) = (service.clone(), task.clone());
        async move {
            // One at a time: an answer is no more than a picture to look at, and is to keep nobody waiting who asks for predictions.
            let turn = service.attention.clone().acquire_owned().await;
            let queue = begin.elapsed();
            let most = service.config.max_pixels;
            let computed = tokio::task::spawn_blocking(move || {
                let _held = (turn, place);
                let begin = Instant::now();
                let shown = contain(|| show(&image, most, &task, of));
                let shown = shown.unwrap_or_else(|panic| Err(ApiError::unusable(format!("the image: {panic}"))));
                shown.map(|(bytes, shares)| {
                    (bytes, shares, Timing { queue, batch: begin.elapsed(), ..Timing::default() })
                })
            });
            computed.await.unwrap_or_else(|_| Err(ApiError::fault("the map could not be made")))
        }
    };
    let timeout = service.config.timeout;
    let late = |_| ApiError::timeout(timeout.as_secs_f64());
    let (bytes, shares, timing) = tokio::time::timeout(timeout, shown).await.map_err(late)??;
    let mut response = ([(header::CONTENT_TYPE, "image/png")], bytes).into_response();
    let AttentionShares { of, patches, prefix, prompts } = shares;
    let shares = format!("of={of}; patches={patches:.4}; prompts={prompts:.4}; prefix={prefix:.4}");
    if let Ok(shares) = HeaderValue::from_str(&shares) {
        response.headers_mut().insert(SHARES, shares);
    }
    Ok(told(response, &[task], timing))
}

/// Whose attention is asked for.
fn asked_of(uri: &Uri) -> Result<AttentionOf, ApiError> {
    let fields = Query::<AttentionFields>::try_from_uri(uri);
    let Query(fields) = fields.map_err(|error| ApiError::malformed(error.body_text()))?;
    let of = fields.of.as_deref().unwrap_or(AttentionOf::Features.name());
    of.parse().map_err(|_| ApiError::malformed(format!("of: is none of {}", AttentionOf::NAMES.join(", "))))
}

/// The picture with the map over it, as a PNG, and how much goes where.
fn show(
    bytes: &[u8],
    most_pixels: usize,
    task: &LoadedTask,
    of: AttentionOf,
) -> Result<(Vec<u8>, AttentionShares), ApiError> {
    let picture = decode_within(bytes, most_pixels)?;
    let unusable = |error: vpt_base::Error| ApiError::unusable(error.to_string());
    let found = task.ready.task().attention(&picture, of).map_err(unusable)?;
    let small = fitted(picture);
    let png = picture_bytes(&found.over(&small), FilePath::new("attention.png"))?;
    Ok((png, found.shares()))
}

/// The picture, made smaller if it is larger than answers are.
fn fitted(picture: Rgb8) -> Rgb8 {
    if picture.width.max(picture.height) <= MOST_SIDE {
        return picture;
    }
    let (width, height) = Size::LongestEdge(MOST_SIDE).of(picture.width, picture.height);
    resize(&picture, width, height, Filter::Bilinear)
}
