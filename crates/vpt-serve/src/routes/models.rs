//! The backbone and its tasks, as OpenAI lists models.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::extract::{Path, State};
use serde_json::{Value, json};
use vpt_model::model::run_origin::data_name;

use crate::error::ApiError;
use crate::json::Json;
use crate::service::Service;
use crate::store::{Listed, LoadedTask};

/// What tells a backbone from a task of the same name.
pub(super) fn is_backbone(service: &Service, name: &str) -> bool {
    name == service.core().name
}

fn backbone(service: &Service) -> Value {
    let core = service.core();
    json!({
        "id": core.name,
        "object": "model",
        "created": 0,
        "owned_by": "vpt",
        "root": core.name,
        "parent": null,
    })
}

fn task(service: &Service, listed: &Listed) -> Value {
    let changed = std::fs::metadata(&listed.path).and_then(|meta| meta.modified()).ok();
    let created = changed.and_then(|when| Some(when.duration_since(UNIX_EPOCH).ok()?.as_secs())).unwrap_or(0);
    let mut task = json!({
        "id": listed.name,
        "object": "model",
        "created": created,
        "owned_by": "vpt",
        // Its name and no more: where tasks lie is nobody's business.
        "root": listed.path.file_name().map(|name| name.to_string_lossy()),
        "parent": service.core().name,
        "loaded": listed.loaded.is_some(),
    });
    if let Some(loaded) = &listed.loaded {
        task["version"] = json!(loaded.version);
    }
    if let Some(why) = &listed.failed {
        task["error"] = json!(why);
    }
    task
}

/// What a task is.
fn details(loaded: &LoadedTask) -> Value {
    let meta = loaded.ready.meta();
    let kind = match (&meta.detect, meta.multilabel) {
        (Some(_), _) => "detect",
        (None, true) => "multilabel",
        (None, false) => "classify",
    };
    json!({
        "task": kind,
        "method": meta.method.to_string(),
        "prompt": meta.parts.describe(),
        "classes": meta.classes,
        "image_size": meta.image_size,
        "metrics": meta.metrics,
        "bytes": loaded.ready.bytes() + loaded.ready.prompt_bytes(),
    })
}

pub(super) async fn list(State(service): State<Arc<Service>>) -> Json<Value> {
    let tasks = service.store.list();
    let data: Vec<Value> =
        std::iter::once(backbone(&service)).chain(tasks.iter().map(|listed| task(&service, listed))).collect();
    Json(json!({ "object": "list", "data": data }))
}

pub(super) async fn one(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if is_backbone(&service, &name) {
        return Ok(Json(backbone(&service)));
    }
    let loaded = service.tasks(std::slice::from_ref(&name)).await?;
    let listed = service.store.list().into_iter().find(|listed| listed.name == name);
    let mut details = details(&loaded[0]);
    details["data"] = json!(listed.as_ref().and_then(|listed| data_name(&listed.path)));
    let mut found = listed.map(|listed| task(&service, &listed)).unwrap_or_default();
    found["details"] = details;
    Ok(Json(found))
}
