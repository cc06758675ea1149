//! What is left of a body that is refused: it is read on for a moment, since a connection that is closed with bytes unread takes the
//! refusal with it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};

/// How long it is read.
const PATIENCE: Duration = Duration::from_millis(500);
/// Bytes that are read at most.
const MOST: usize = 64 << 20;

/// A body that its reader may leave unread.
#[derive(Debug, Clone)]
pub(super) struct SharedBody(Arc<Mutex<Body>>);

impl SharedBody {
    pub(super) fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(body)))
    }

    /// Reads what is left, and forgets it.
    pub(super) async fn finish(mut self) {
        let mut read = 0;
        let rest = async {
            while let Some(Ok(frame)) = self.frame().await {
                read += frame.data_ref().map_or(0, Bytes::len);
                if read > MOST {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(PATIENCE, rest).await;
    }
}

impl HttpBody for SharedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}
