//! One frozen backbone and many learned tasks behind HTTP.
//!
//! A request's body is read within limits (`upload`), its images are decoded on a bounded pool (`decode`) and wait in one queue
//! with all others, whatever task they are for; threads take what waits through the backbone, each a batch in one pass (`scheduler`). Tasks
//! are files in a folder, loaded when they are first asked, kept while there is room and exchanged when their files change (`store`).
//! An answer is that of `vpt predict`, to the last bit.

pub mod config;
mod cores;
mod decode;
mod error;
mod http;
mod json;
pub mod kserve;
mod metrics;
mod openapi;
mod pace;
mod routes;
mod scheduler;
mod service;
mod store;
mod task_files;
pub mod upload;

pub use config::{ApiKeys, ServeConfig};
pub use http::{Ended, Serving, serve};
pub use openapi::document as openapi_document;
