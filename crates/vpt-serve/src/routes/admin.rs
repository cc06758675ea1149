//! Tasks put into the folder and taken away while the server runs: only where it was started so, and only names in that folder.

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use vpt_base::contain::contain;
use vpt_base::files::write_atomic;
use vpt_model::model::task_file::TaskFile;

use crate::error::ApiError;
use crate::json::Json;
use crate::service::Service;
use crate::store::version_of;
use crate::task_files::is_name;
use crate::upload::Upload;

/// The file that a task of this name has or would have.
fn file_of(service: &Service, name: &str) -> Result<PathBuf, ApiError> {
    if !is_name(name) {
        return Err(ApiError::malformed("a task's name has letters, digits, '.', '_' and '-', 128 at most"));
    }
    let folder =
        service.store.folder().ok_or_else(|| ApiError::conflict("the server was started without a folder of tasks"))?;
    let file = folder.join(format!("{name}.safetensors"));
    match service.store.list().into_iter().find(|listed| listed.name == name) {
        Some(listed) if listed.path != file => {
            Err(ApiError::conflict(format!("task {name} is that of a run, or of another folder, which are left alone")))
        }
        _ => Ok(file),
    }
}

/// Does what takes its time on a thread where it may.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T, ApiError> + Send + 'static) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(move || contain(work).unwrap_or_else(|panic| Err(ApiError::fault(panic))));
    done.await.unwrap_or_else(|_| Err(ApiError::fault("it could not be done")))
}

pub(super) async fn put(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let file = file_of(&service, &name)?;
    let upload = Upload::read(&service, request.into_body()).await?;
    let version = apart(move || {
        let folder = file.parent().unwrap_or(&file).to_path_buf();
        let fault = |error: vpt_base::Error| ApiError::fault(error.to_string());
        // Looked at before it is served, under a name that is never found.
        let trial = folder.join(format!(".{name}.{}.part", service.request_id()));
        write_atomic(&trial, &upload.bytes).map_err(fault)?;
        let opened = TaskFile::open(&trial).and_then(|opened| opened.check_backbone(service.core()));
        if let Err(error) = opened {
            let _ = std::fs::remove_file(&trial);
            let message = error.to_string().replace(&trial.display().to_string(), &name);
            return Err(ApiError::unusable(message));
        }
        std::fs::rename(&trial, &file).map_err(|error| ApiError::fault(error.to_string()))?;
        service.store.rescan();
        version_of(&file).map_err(fault)
    })
    .await?;
    Ok(Json(json!({ "version": version })).into_response())
}

pub(super) async fn delete(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let file = file_of(&service, &name)?;
    apart(move || {
        std::fs::remove_file(&file).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => ApiError::not_found(format!("there is no task called '{name}'")),
            _ => ApiError::fault(error.to_string()),
        })?;
        service.store.rescan();
        Ok(Json(json!({ "deleted": name })))
    })
    .await
}

pub(super) async fn rescan(State(service): State<Arc<Service>>) -> Result<Json<Value>, ApiError> {
    apart(move || {
        service.store.rescan();
        Ok(Json(json!({ "tasks": service.store.len(), "passed_by": service.store.passed_by().len() })))
    })
    .await
}
