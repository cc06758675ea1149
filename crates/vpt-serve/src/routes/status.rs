//! What the server says of itself.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::json::Json;
use crate::metrics;
use crate::openapi;
use crate::pace;
use crate::service::Service;

const PAGE: &str = include_str!("../page.html");
/// Nothing but what is in the page itself.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' blob: data:; \
                      media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) async fn page() -> Response {
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(PAGE)).into_response()
}

pub(super) async fn alive() -> Json<Value> {
    Json(json!({ "live": true }))
}

pub(super) async fn ready(State(service): State<Arc<Service>>) -> Result<Json<Value>, ApiError> {
    if service.is_draining() {
        return Err(ApiError::unavailable("the server is ending", service.config.drain_timeout.as_secs().max(1)));
    }
    Ok(Json(json!({ "ready": true })))
}

pub(super) async fn metrics(State(service): State<Arc<Service>>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], service.metrics.text()).into_response()
}

pub(super) async fn openapi(State(service): State<Arc<Service>>) -> Json<Value> {
    let mut document = openapi::document(service.config.admin);
    // Asked for or not, there is one number of values.
    document["components"]["schemas"]["Embeddings"]["properties"]["dimensions"]["enum"] =
        json!([service.core().embedding_width(), null]);
    Json(document)
}

pub(super) async fn info(State(service): State<Arc<Service>>) -> Result<Json<Value>, ApiError> {
    let (config, core) = (&service.config, service.core());
    Ok(Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "backbone": {
            "name": core.name,
            "family": core.spec.family.to_string(),
            "identity": core.hash()?,
            "image_size": core.vit.image_size(),
            "embedding_width": core.embedding_width(),
            "texts": core.has_text_tower(),
        },
        "precision": core.vit.precision().name(),
        "threads": config.threads,
        "tasks": service.store.len(),
        "admin": config.admin,
        "limits": {
            "max_body": config.max_body,
            "max_pixels": config.max_pixels,
            "max_images": config.max_images,
            "max_queue": config.max_queue,
            "max_batch": config.max_batch.unwrap_or(pace::MOST),
            "task_memory": config.task_memory,
            "timeout_s": config.timeout.as_secs_f64(),
        },
    })))
}
