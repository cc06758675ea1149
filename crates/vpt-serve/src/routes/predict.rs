//! Answers of tasks: of one about an image or several, and of many about each.

use std::sync::Arc;

use axum::extract::{FromRequest, Multipart, Path, Query, Request, State};
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use vpt_model::model::{AnyTask, ready::RawAnswer};
use vpt_model::predict::{AnswerOptions, ClassShare, Guess, ImageAnswer, MaskRuns, PredictedBox};

use super::{expect_json, media_type, told};
use crate::error::ApiError;
use crate::json::Json;
use crate::service::{Answers, Asked, Images, Service};
use crate::store::LoadedTask;
use crate::upload::{self, AnswerFields, PredictBody, PredictManyBody, Upload};

/// Classes that are told of an image unless another number is asked for.
const TOP: usize = 5;

/// One line of an answer.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum AnswerLine {
    Class {
        label: String,
        score: f64,
    },
    Box(PredictedBox),
    Region {
        #[serde(flatten)]
        of: ClassShare,
        mask: MaskRuns,
    },
}

/// What `task` tells of one image.
fn lines(task: &LoadedTask, answer: &RawAnswer, options: &AnswerOptions) -> Result<Vec<AnswerLine>, ApiError> {
    let class = |Guess { label, probability, .. }: Guess| AnswerLine::Class { label, score: probability };
    Ok(match (task.ready.told(answer, options), answer) {
        (ImageAnswer::Class(guesses) | ImageAnswer::Classes(guesses), _) => guesses.into_iter().map(class).collect(),
        (ImageAnswer::Boxes(boxes), _) => boxes.into_iter().map(AnswerLine::Box).collect(),
        (ImageAnswer::Regions(regions), raw) => {
            let (AnyTask::Segment(task), RawAnswer::Mask(mask)) = (task.ready.task(), raw) else {
                return Err(ApiError::fault("an answer without its mask"));
            };
            let region = |of: ClassShare| {
                let mask = task.runs(mask, of.class).map_err(|error| ApiError::fault(error.to_string()))?;
                Ok(AnswerLine::Region { of, mask })
            };
            regions.into_iter().map(region).collect::<Result<_, ApiError>>()?
        }
    })
}

/// How much is told: fields of the body before those of the address.
pub(super) fn options(fields: AnswerFields, others: AnswerFields) -> Result<AnswerOptions, ApiError> {
    let top = fields.top_k.or(others.top_k).unwrap_or(TOP);
    if top == 0 {
        return Err(ApiError::malformed("top_k: 0, where at least one class is told"));
    }
    let min_score = fields.min_score.or(others.min_score);
    if let Some(score) = min_score.filter(|score| !(0. ..=1.).contains(score)) {
        return Err(ApiError::malformed(format!("min_score: {score} is not between 0 and 1")));
    }
    Ok(AnswerOptions { top, min_score })
}

fn fields_of(uri: &Uri) -> Result<AnswerFields, ApiError> {
    let query = Query::<AnswerFields>::try_from_uri(uri);
    query.map(|Query(fields)| fields).map_err(|error| ApiError::malformed(error.body_text()))
}

pub(super) async fn one(
    State(service): State<Arc<Service>>,
    Path(task): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let in_address = fields_of(request.uri())?;
    // Before a body is read for nothing.
    if service.scheduler.is_full() {
        service.metrics.reject("queue_full");
        return Err(ApiError::busy("the queue is full"));
    }
    let (head, body) = request.into_parts();
    let tasks = service.tasks(&[task]).await?;
    let upload = Upload::read(&service, body).await?;
    let (images, in_body) = images_of(&service, &head.headers, upload.bytes.clone()).await?;
    let options = options(in_body, in_address)?;
    let answers = service.ask(Images::Encoded(images), &Asked::Tasks(tasks.clone())).await?;
    let Answers { by_image, timing } = answers;
    let answers: Vec<Vec<AnswerLine>> = by_image
        .iter()
        .map(|of_image| match &of_image[..] {
            [raw] => lines(&tasks[0], raw, &options),
            _ => Err(ApiError::fault("an image without an answer of its task")),
        })
        .collect::<Result<_, _>>()?;
    Ok(told(Json(answers).into_response(), &tasks, timing))
}

pub(super) async fn many(State(service): State<Arc<Service>>, request: Request) -> Result<Response, ApiError> {
    let in_address = fields_of(request.uri())?;
    if service.scheduler.is_full() {
        service.metrics.reject("queue_full");
        return Err(ApiError::busy("the queue is full"));
    }
    let (head, body) = request.into_parts();
    expect_json(&head.headers)?;
    let upload = Upload::read(&service, body).await?;
    let body: PredictManyBody = upload::json(&upload.bytes).map_err(ApiError::malformed)?;
    let in_body = AnswerFields { top_k: body.top_k, min_score: body.min_score };
    let options = options(in_body, in_address)?;
    let mut names = body.tasks.all();
    names.dedup();
    let tasks = service.tasks(&names).await?;
    let images = in_base64(&service, &body.images.all())?;
    let Answers { by_image, timing } = service.ask(Images::Encoded(images), &Asked::Tasks(tasks.clone())).await?;
    let of_task = |(task, raw): (&Arc<LoadedTask>, &RawAnswer)| {
        let lines = lines(task, raw, &options)?;
        Ok((task.name.clone(), serde_json::to_value(lines).map_err(|error| ApiError::fault(error.to_string()))?))
    };
    let results = by_image
        .iter()
        .map(|of_image| tasks.iter().zip(of_image).map(of_task).collect::<Result<serde_json::Map<_, _>, ApiError>>())
        .collect::<Result<Vec<_>, _>>()?;
    Ok(told(Json(serde_json::json!({ "results": results })).into_response(), &tasks, timing))
}

/// Images in base64.
pub(super) fn in_base64(service: &Service, texts: &[String]) -> Result<Vec<Bytes>, ApiError> {
    check_count(service, texts.len())?;
    texts.iter().map(|text| upload::image_of_text(text).map_err(ApiError::malformed)).collect()
}

fn check_count(service: &Service, count: usize) -> Result<(), ApiError> {
    let most = service.config.max_images;
    if count > most {
        return Err(ApiError::too_large(format!("{count} images, where {most} are accepted")));
    }
    Ok(())
}

/// The images of a body, whatever form it has, and what it says of the answer.
pub(super) async fn images_of(
    service: &Service,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<(Vec<Bytes>, AnswerFields), ApiError> {
    let kind = media_type(headers);
    match kind.as_str() {
        "application/json" => {
            let body: PredictBody = upload::json(&body).map_err(ApiError::malformed)?;
            let fields = AnswerFields { top_k: body.top_k, min_score: body.min_score };
            Ok((in_base64(service, &body.images.all())?, fields))
        }
        "multipart/form-data" => Ok((in_parts(service, headers, body).await?, AnswerFields::default())),
        // curl says so of a body by itself, and of a file that it does not know.
        "" | "application/octet-stream" | "application/x-www-form-urlencoded" => {
            Ok((vec![body], AnswerFields::default()))
        }
        kind if kind.starts_with("image/") => Ok((vec![body], AnswerFields::default())),
        kind => {
            let shown = crate::store::shown(kind);
            Err(ApiError::not_an_image(format!("a body of {shown}; send an image, a form of images, or JSON")))
        }
    }
}

/// The files of a form.
async fn in_parts(service: &Service, headers: &HeaderMap, body: Bytes) -> Result<Vec<Bytes>, ApiError> {
    let mut request = Request::new(axum::body::Body::from(body));
    if let Some(kind) = headers.get(header::CONTENT_TYPE) {
        request.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
    }
    // The body was measured when it was read.
    request.extensions_mut().insert(axum::extract::DefaultBodyLimit::disable());
    let malformed = |error: String| ApiError::malformed(format!("the form cannot be read: {error}"));
    let mut form = Multipart::from_request(request, &()).await.map_err(|error| malformed(error.body_text()))?;
    let mut images = Vec::new();
    while let Some(field) = form.next_field().await.map_err(|error| malformed(error.body_text()))? {
        if field.name().is_none_or(|name| !["image", "images", "file", "files"].contains(&name)) {
            return Err(ApiError::malformed("a form's fields are called image"));
        }
        images.push(field.bytes().await.map_err(|error| malformed(error.body_text()))?);
        check_count(service, images.len())?;
    }
    Ok(images)
}
