//! The routes, and what surrounds each: number, key, limit of time, counting, and errors in one form.

mod admin;
mod attention;
mod embeddings;
mod infer;
mod models;
mod predict;
mod rest;
mod status;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use vpt_base::contain::contain;

use crate::error::ApiError;
use crate::metrics::OfRoute;
use crate::service::{Service, Timing};
use crate::store::{LoadedTask, shown};
use rest::SharedBody;

/// The version of the task that answered; of several, `name=version` each.
const TASK_VERSION: HeaderName = HeaderName::from_static("x-vpt-task-version");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Letters of a request's own number at most.
const ID_LETTERS: usize = 64;
/// Bytes that the versions of several tasks may take in a header.
const VERSION_BYTES: usize = 4096;

/// All routes.
pub(crate) fn router(service: Arc<Service>) -> Router {
    let admin = service.config.admin;
    let mut router = Router::new()
        .route("/", get(status::page))
        .route("/health", get(status::alive))
        .route("/metrics", get(status::metrics))
        .route("/info", get(status::info))
        .route("/openapi.json", get(status::openapi))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{model}", get(models::one))
        .route("/v1/tasks/{task}/predict", post(predict::one))
        .route("/v1/tasks/{task}/attention", post(attention::one))
        .route("/v1/predict", post(predict::many))
        .route("/v1/embeddings", post(embeddings::embed))
        .route("/v2", get(infer::server))
        .route("/v2/health/live", get(status::alive))
        .route("/v2/health/ready", get(status::ready))
        .route("/v2/models/{model}", get(infer::model))
        .route("/v2/models/{model}/ready", get(infer::model_ready))
        .route("/v2/models/{model}/infer", post(infer::infer))
        .route("/v2/models/{model}/versions/{version}", get(infer::model_version))
        .route("/v2/models/{model}/versions/{version}/ready", get(infer::model_version_ready))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer::infer_version))
        .route("/v2/repository/index", post(infer::index));
    if admin {
        router = router
            .route("/v1/tasks/{task}", put(admin::put).delete(admin::delete))
            .route("/v1/rescan", post(admin::rescan));
    }
    router
        .fallback(|| async { ApiError::not_found("no such address; see /openapi.json") })
        .method_not_allowed_fallback(|| async { ApiError::method() })
        .layer(from_fn_with_state(service.clone(), surround))
        .with_state(service)
}

/// What happens to every request.
async fn surround(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let begin = Instant::now();
    let id = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .filter(|id| {
            id.len() <= ID_LETTERS
                && !id.is_empty()
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        })
        .map_or_else(|| service.request_id(), str::to_owned);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    // Who waits to be told to send a body has not sent it.
    let waits = request.headers().contains_key(header::EXPECT);
    let (head, body) = request.into_parts();
    let body = SharedBody::new(body);
    let request = Request::from_parts(head, Body::new(body.clone()));
    let response = match admit(&service, &route, request.headers()) {
        Ok(()) => contained(next.run(request)).await,
        Err(error) => error.into_response(),
    };
    if !waits && !response.status().is_success() && !body.is_end_stream() {
        body.finish().await;
    }
    let mut response = in_one_form(response, &path, &id);
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if service.is_draining() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let (code, took) = (response.status().as_u16(), begin.elapsed());
    service.metrics.requests.get_or_create(&OfRoute { route: route.clone(), code }).inc();
    if method == axum::http::Method::POST {
        service.metrics.request_seconds.observe(took.as_secs_f64());
    }
    let milliseconds = took.as_secs_f64() * 1e3;
    (service.log)(&format!("{id} {method} {} {code} {milliseconds:.1} ms", shown(&path)));
    response
}

/// Whether the request may go on: keys are for all but the page and what tells whether the server is alive.
fn admit(service: &Service, route: &str, headers: &HeaderMap) -> Result<(), ApiError> {
    let is_open = ["/", "/health", "/v2/health/live", "/v2/health/ready"].contains(&route);
    if service.config.keys.is_empty() || is_open {
        return Ok(());
    }
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.split_once(' ')).filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"));
    let key = bearer.map(|(_, key)| key.trim()).or_else(|| headers.get(API_KEY).and_then(|value| value.to_str().ok()));
    match key {
        Some(key) if service.config.keys.accept(key) => Ok(()),
        _ => {
            service.metrics.reject("key");
            Err(ApiError::unknown_key())
        }
    }
}

/// The response, or a fault where its making panics.
async fn contained(response: impl Future<Output = Response>) -> Response {
    let mut response = Box::pin(response);
    let poll = std::future::poll_fn(move |context| {
        let polled = contain(AssertUnwindSafe(|| response.as_mut().poll(context)));
        polled.unwrap_or_else(|panic| {
            std::task::Poll::Ready(ApiError::fault(format!("internal fault: {panic}")).into_response())
        })
    });
    poll.await
}

/// Errors as one JSON object, those of the framework too.
fn in_one_form(mut response: Response, path: &str, id: &str) -> Response {
    let status = response.status();
    let error = response.extensions_mut().remove::<ApiError>();
    let error = match error {
        Some(error) => error,
        None if status.is_client_error() || status.is_server_error() => {
            let message = status.canonical_reason().unwrap_or("refused").to_lowercase();
            ApiError { status, message, retry_after: None }
        }
        None => return response,
    };
    let allow = response.headers_mut().remove(header::ALLOW);
    let mut response = error.response(path, id);
    if let (Some(allow), StatusCode::METHOD_NOT_ALLOWED) = (allow, status) {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

/// Puts versions and times into the head of an answer.
fn told(mut response: Response, tasks: &[std::sync::Arc<LoadedTask>], timing: Timing) -> Response {
    let versions = match tasks {
        [task] => task.version.clone(),
        tasks => tasks.iter().map(|task| format!("{}={}", task.name, task.version)).collect::<Vec<_>>().join(", "),
    };
    let milliseconds = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    let timing = format!(
        "decode;dur={:.2}, queue;dur={:.2}, batch;dur={:.2}",
        milliseconds(timing.decode),
        milliseconds(timing.queue),
        milliseconds(timing.batch)
    );
    let headers = response.headers_mut();
    if let Ok(versions) = HeaderValue::from_str(&versions)
        && !tasks.is_empty()
        && versions.len() <= VERSION_BYTES
    {
        headers.insert(TASK_VERSION, versions);
    }
    if let Ok(timing) = HeaderValue::from_str(&timing) {
        headers.insert(SERVER_TIMING, timing);
    }
    response
}

/// The media type of a request's body, in lower case and without parameters.
fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Refuses a body that is not said to be JSON.
fn expect_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let found = media_type(headers);
    if found == "application/json" || found.is_empty() {
        return Ok(());
    }
    Err(ApiError::not_an_image(format!("a body of {}, where application/json is expected", shown(&found))))
}
