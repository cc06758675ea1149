//! The Open Inference Protocol: `KServe`'s and Triton's clients.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use vpt_model::model::AnyTask;
use vpt_model::predict::ImageAnswer;

use super::predict::options;
use super::told;
use crate::error::ApiError;
use crate::json::Json;
use crate::kserve::{self, HEADER_LENGTH, InferData, InferInput, InferOutput};
use crate::service::{Answers, Asked, Images, Service};
use crate::store::LoadedTask;
use crate::upload::{AnswerFields, Upload};

pub(super) async fn server() -> Json<Value> {
    Json(json!({ "name": "vpt", "version": env!("CARGO_PKG_VERSION"), "extensions": ["binary_tensor_data"] }))
}

/// Every task, in the form of Triton's model repository.
pub(super) async fn index(State(service): State<Arc<Service>>) -> Json<Value> {
    let models = service.store.list().into_iter().map(|listed| {
        let version = listed.loaded.as_ref().map_or_else(String::new, |task| task.version.clone());
        let state = if listed.failed.is_some() && listed.loaded.is_none() { "UNAVAILABLE" } else { "READY" };
        json!({ "name": listed.name, "version": version, "state": state, "reason": listed.failed.unwrap_or_default() })
    });
    Json(Value::Array(models.collect()))
}

/// The task, in the version that is asked for if one is.
async fn find(service: &Arc<Service>, name: &str, version: Option<&str>) -> Result<Arc<LoadedTask>, ApiError> {
    let task = service.tasks(&[name.to_owned()]).await?.remove(0);
    match version {
        Some(version) if version != task.version => {
            let message = format!("task {name} is at version {}, not at the one asked for", task.version);
            Err(ApiError::not_found(message))
        }
        _ => Ok(task),
    }
}

fn metadata(task: &LoadedTask) -> Value {
    let side = task.core.vit.image_size();
    let mut inputs = vec![json!({ "name": "image", "datatype": "BYTES", "shape": [-1] })];
    let outputs = match task.ready.task() {
        AnyTask::Detect(_) => json!([
            { "name": "boxes", "datatype": "FP64", "shape": [-1, -1, 4] },
            { "name": "scores", "datatype": "FP64", "shape": [-1, -1] },
            { "name": "classes", "datatype": "BYTES", "shape": [-1, -1] },
            { "name": "counts", "datatype": "INT32", "shape": [-1] },
        ]),
        // The classes, and the shares of the pixels that are of them.
        AnyTask::Segment(_) => json!([
            { "name": "scores", "datatype": "FP64", "shape": [-1, -1] },
            { "name": "labels", "datatype": "BYTES", "shape": [-1, -1] },
            { "name": "counts", "datatype": "INT32", "shape": [-1] },
        ]),
        AnyTask::Classify(_) | AnyTask::Multilabel(_) => {
            inputs.push(json!({ "name": "pixel_values", "datatype": "FP32", "shape": [-1, 3, side, side] }));
            json!([
                { "name": "scores", "datatype": "FP64", "shape": [-1, -1] },
                { "name": "labels", "datatype": "BYTES", "shape": [-1, -1] },
                { "name": "counts", "datatype": "INT32", "shape": [-1] },
            ])
        }
    };
    json!({ "name": task.name, "versions": [task.version], "platform": "vpt", "inputs": inputs, "outputs": outputs })
}

pub(super) async fn model(
    State(service): State<Arc<Service>>,
    Path(model): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(metadata(&*find(&service, &model, None).await?)))
}

pub(super) async fn model_version(
    State(service): State<Arc<Service>>,
    Path((model, version)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(metadata(&*find(&service, &model, Some(&version)).await?)))
}

pub(super) async fn model_ready(
    State(service): State<Arc<Service>>,
    Path(model): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let task = find(&service, &model, None).await?;
    Ok(Json(json!({ "name": task.name, "ready": true })))
}

pub(super) async fn model_version_ready(
    State(service): State<Arc<Service>>,
    Path((model, version)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let task = find(&service, &model, Some(&version)).await?;
    Ok(Json(json!({ "name": task.name, "ready": true })))
}

pub(super) async fn infer(
    State(service): State<Arc<Service>>,
    Path(model): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(&service, &model, None, request).await
}

pub(super) async fn infer_version(
    State(service): State<Arc<Service>>,
    Path((model, version)): Path<(String, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    answer(&service, &model, Some(&version), request).await
}

async fn answer(
    service: &Arc<Service>,
    model: &str,
    version: Option<&str>,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    let task = find(service, model, version).await?;
    let header_length = match head.headers.get(HEADER_LENGTH) {
        None => None,
        Some(value) => {
            let length = value.to_str().ok().and_then(|text| text.parse::<usize>().ok());
            Some(length.ok_or_else(|| ApiError::malformed("Inference-Header-Content-Length is no number"))?)
        }
    };
    let upload = Upload::read(service, body).await?;
    let request = kserve::parse(&upload.bytes, header_length).map_err(ApiError::malformed)?;
    let fields = AnswerFields { top_k: request.top_k, min_score: request.min_score };
    let options = options(fields, AnswerFields::default())?;
    let images = match &request.input {
        InferInput::Images(images) => Images::Encoded(images.clone()),
        InferInput::Pixels(images) => Images::Pixels(taken(&task, images)?),
    };
    let asked = Asked::Tasks(vec![task.clone()]);
    let Answers { by_image, timing } = service.ask(images, &asked).await?;
    let answers = by_image.iter().flatten().map(|raw| task.ready.told(raw, &options)).collect();
    let outputs = outputs(answers, &task);
    let (bytes, length) = kserve::answer(&task.name, &task.version, &request, outputs).map_err(ApiError::malformed)?;
    let kind = if length.is_some() { "application/octet-stream" } else { "application/json" };
    let mut response = ([(header::CONTENT_TYPE, kind)], bytes).into_response();
    if let Some(length) = length {
        response.headers_mut().insert(HeaderName::from_static(HEADER_LENGTH), HeaderValue::from(length));
    }
    Ok(told(response, &[task], timing))
}

/// Pixels, if the task takes such.
fn taken(task: &LoadedTask, images: &[Vec<f32>]) -> Result<Vec<Vec<f32>>, ApiError> {
    let (AnyTask::Classify(model) | AnyTask::Multilabel(model)) = task.ready.task() else {
        return Err(ApiError::malformed(
            "a detector, or a task of pixels, is asked about images, not about pixel_values",
        ));
    };
    let (width, height) = model.preprocess().output_size().unwrap_or_default();
    let each = 3 * width * height;
    if images.iter().any(|image| image.len() != each) {
        return Err(ApiError::malformed(format!("pixel_values of another shape than [n, 3, {height}, {width}]")));
    }
    Ok(images.to_vec())
}

/// Rows of one length each, filled up behind the counts that are said.
fn outputs(answers: Vec<ImageAnswer>, task: &LoadedTask) -> Vec<InferOutput> {
    let images = answers.len();
    let is_detector = matches!(task.ready.task(), AnyTask::Detect(_));
    let rows: Vec<Vec<(String, f64, [f64; 4])>> = answers
        .into_iter()
        .map(|answer| match answer {
            ImageAnswer::Class(guesses) | ImageAnswer::Classes(guesses) => {
                guesses.into_iter().map(|guess| (guess.label, guess.probability, [0.; 4])).collect()
            }
            ImageAnswer::Boxes(boxes) => {
                boxes.into_iter().map(|found| (found.label, found.score, found.bbox)).collect()
            }
            ImageAnswer::Regions(regions) => {
                regions.into_iter().map(|region| (region.label, region.share, [0.; 4])).collect()
            }
        })
        .collect();
    let most = rows.iter().map(Vec::len).max().unwrap_or(0);
    let (mut labels, mut scores, mut boxes, mut counts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for mut row in rows {
        counts.push(row.len() as i32);
        row.resize(most, (String::new(), 0., [0.; 4]));
        for (label, score, bbox) in row {
            labels.push(label);
            scores.push(score);
            boxes.extend(bbox);
        }
    }
    let scores = InferOutput { name: "scores", shape: vec![images, most], data: InferData::Doubles(scores) };
    let name = if is_detector { "classes" } else { "labels" };
    let labels = InferOutput { name, shape: vec![images, most], data: InferData::Texts(labels) };
    let counts = InferOutput { name: "counts", shape: vec![images], data: InferData::Counts(counts) };
    if is_detector {
        let boxes = InferOutput { name: "boxes", shape: vec![images, most, 4], data: InferData::Doubles(boxes) };
        return vec![boxes, scores, labels, counts];
    }
    vec![scores, labels, counts]
}
