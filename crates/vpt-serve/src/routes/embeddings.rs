//! Embeddings of images, and of texts where the backbone has a tower for them, in OpenAI's form.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use vpt_base::linear_algebra::normalize_l2;
use vpt_model::model::AnyTask;
use vpt_model::model::ready::RawAnswer;

use super::models::is_backbone;
use super::predict::in_base64;
use super::{expect_json, told};
use crate::error::ApiError;
use crate::json::Json;
use crate::service::{Answers, Asked, Images, Service, Timing};
use crate::upload::{self, EmbeddingsBody, EncodingFormat, Upload};

/// Letters of a text at most; no tower reads so many.
const TEXT_LETTERS: usize = 4096;

pub(super) async fn embed(State(service): State<Arc<Service>>, request: Request) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    expect_json(&head.headers)?;
    let upload = Upload::read(&service, body).await?;
    let body: EmbeddingsBody = upload::json(&upload.bytes).map_err(ApiError::malformed)?;
    let width = service.core().embedding_width();
    if let Some(asked) = body.dimensions.filter(|asked| *asked != width) {
        return Err(ApiError::malformed(format!("dimensions: {asked}, where embeddings have {width} values")));
    }
    let inputs = body.input.all();
    let images = inputs.iter().filter(|input| upload::is_image(input)).count();
    if images > 0 && images < inputs.len() {
        return Err(ApiError::malformed("both images and texts; send them one after the other"));
    }
    let (tasks, asked) = if is_backbone(&service, &body.model) {
        (Vec::new(), Asked::BackboneEmbedding)
    } else {
        let tasks = service.tasks(std::slice::from_ref(&body.model)).await?;
        if matches!(tasks[0].ready.task(), AnyTask::Detect(_)) {
            return Err(ApiError::unusable("a detector has no embedding of a whole image"));
        }
        (tasks.clone(), Asked::TaskEmbedding(tasks[0].clone()))
    };
    let (rows, timing) = if images == inputs.len() {
        let images = in_base64(&service, &inputs)?;
        let Answers { by_image, timing } = service.ask(Images::Encoded(images), &asked).await?;
        let row = |answer| if let RawAnswer::Embedding(values) = answer { values } else { Vec::new() };
        (by_image.into_iter().flatten().map(row).collect(), timing)
    } else {
        (texts(&service, inputs, &asked).await?, Timing::default())
    };
    let data: Vec<Value> = rows
        .into_iter()
        .enumerate()
        .map(|(index, mut values)| {
            if body.normalize {
                normalize_l2(&mut values, width);
            }
            let embedding = match body.encoding_format {
                EncodingFormat::Float => json!(values),
                EncodingFormat::Base64 => json!(upload::base64_of(&values)),
            };
            json!({ "object": "embedding", "index": index, "embedding": embedding })
        })
        .collect();
    // Neither images nor the texts of these towers are paid for by the token.
    let usage = json!({ "prompt_tokens": 0, "total_tokens": 0 });
    let answer = json!({ "object": "list", "data": data, "model": body.model, "usage": usage });
    Ok(told(Json(answer).into_response(), &tasks, timing))
}

/// Embeddings of texts.
async fn texts(service: &Arc<Service>, texts: Vec<String>, asked: &Asked) -> Result<Vec<Vec<f32>>, ApiError> {
    if texts.len() > service.config.max_images || texts.iter().any(|text| text.len() > TEXT_LETTERS) {
        let most = service.config.max_images;
        return Err(ApiError::too_large(format!("more than {most} texts, or one of more than {TEXT_LETTERS} bytes")));
    }
    let core = service.core().clone();
    if !core.has_text_tower() {
        return Err(ApiError::malformed(format!("{} reads no texts; send images as data URIs", core.name)));
    }
    let place = service.scheduler.places(texts.len())?;
    let (asked, threads) = (asked.clone(), service.config.threads);
    let computed = tokio::task::spawn_blocking(move || {
        let _place = place;
        let embedded = vpt_base::contain::contain(|| match &asked {
            Asked::TaskEmbedding(task) => match task.ready.task() {
                AnyTask::Classify(task) | AnyTask::Multilabel(task) => task.model().embed_texts(task.params(), &texts),
                AnyTask::Detect(_) | AnyTask::Segment(_) => core.embed_texts(&texts, threads),
            },
            _ => core.embed_texts(&texts, threads),
        });
        let embedded = embedded.map_err(ApiError::unusable)?.map_err(|error| ApiError::unusable(error.to_string()))?;
        let width = embedded.len() / texts.len().max(1);
        Ok(embedded.chunks_exact(width.max(1)).map(<[f32]>::to_vec).collect())
    });
    computed.await.unwrap_or_else(|_| Err(ApiError::fault("texts could not be embedded")))
}
