//! Images are decoded and prepared on a bounded number of threads before they wait for the backbone: pixels of a few hundred
//! kilobytes wait, and no more images are in memory as decoders leave them than there are threads.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;
use vpt_base::contain::contain;
use vpt_image::{Rgb8, decode};
use vpt_model::model::ready::{InputKind, TaskInput};

use crate::error::ApiError;
use crate::metrics::ServerMetrics;

/// Images of one request, and the ways in which each is prepared.
#[derive(Debug)]
pub(crate) struct DecodeWork {
    pub(crate) images: Vec<Bytes>,
    pub(crate) kinds: Vec<InputKind>,
}

/// Of every image, in order, its preparations in the order of the kinds.
pub(crate) type Prepared = Vec<Vec<Arc<TaskInput>>>;

type WaitingImage = (DecodeWork, oneshot::Sender<Result<Prepared, ApiError>>);

/// The threads that decode.
#[derive(Debug)]
pub(crate) struct DecodePool {
    queue: Mutex<VecDeque<WaitingImage>>,
    wake: Condvar,
    max_pixels: usize,
    metrics: Arc<ServerMetrics>,
}

impl DecodePool {
    /// Starts `threads` of them.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(threads: usize, max_pixels: usize, metrics: Arc<ServerMetrics>) -> std::io::Result<Arc<Self>> {
        let pool = Arc::new(Self { queue: Mutex::default(), wake: Condvar::new(), max_pixels, metrics });
        for _ in 0..threads.max(1) {
            let pool = pool.clone();
            std::thread::Builder::new().name("decode".to_owned()).spawn(move || pool.work())?;
        }
        Ok(pool)
    }

    /// Decodes and prepares.
    ///
    /// # Errors
    /// One of the images cannot be used; the error says which.
    pub(crate) async fn prepare(&self, work: DecodeWork) -> Result<Prepared, ApiError> {
        let (sender, receiver) = oneshot::channel();
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back((work, sender));
        self.wake.notify_one();
        receiver.await.unwrap_or_else(|_| Err(ApiError::fault("images could not be decoded")))
    }

    fn work(&self) {
        loop {
            let (work, sender) = {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                loop {
                    match queue.pop_front() {
                        Some(waiting) => break waiting,
                        None => queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
                    }
                }
            };
            // Whose client has gone needs nothing any more.
            if sender.is_closed() {
                continue;
            }
            let begin = std::time::Instant::now();
            let done = contain(|| work.run(self.max_pixels));
            self.metrics.decode_seconds.observe(begin.elapsed().as_secs_f64());
            let fault = |panic| Err(ApiError::unusable(format!("the image could not be prepared: {panic}")));
            let _ = sender.send(done.unwrap_or_else(fault));
        }
    }
}

impl DecodeWork {
    fn run(&self, max_pixels: usize) -> Result<Prepared, ApiError> {
        let prepared = |(i, bytes): (usize, &Bytes)| {
            let image = decode_within(bytes, max_pixels).map_err(|error| self.naming(i, error))?;
            let prepare = |kind: &InputKind| {
                let input = kind.prepare(&image).map_err(|error| self.naming(i, ApiError::unusable(error.to_string())));
                input.map(Arc::new)
            };
            self.kinds.iter().map(prepare).collect()
        };
        self.images.iter().enumerate().map(prepared).collect()
    }

    /// The error with the image that it is of, where there are several.
    fn naming(&self, index: usize, error: ApiError) -> ApiError {
        if self.images.len() == 1 {
            return error;
        }
        ApiError { message: format!("image {index}: {}", error.message), ..error }
    }
}

/// The image in `bytes`, if it has no more than `max_pixels`, which its header says before memory is taken.
pub(crate) fn decode_within(bytes: &[u8], max_pixels: usize) -> Result<Rgb8, ApiError> {
    if bytes.is_empty() {
        return Err(ApiError::malformed("an image without a byte"));
    }
    let [width, height] = decode::size_of_bytes(bytes).map_err(|message| refusal(bytes, message))?;
    if width * height > max_pixels {
        let message = format!("an image of {width}x{height} pixels, where {max_pixels} are accepted");
        return Err(ApiError::too_large(message));
    }
    decode::decode_bytes(bytes).map_err(|message| refusal(bytes, message))
}

/// What an image is refused with that the decoder says this of.
fn refusal(bytes: &[u8], message: String) -> ApiError {
    if message.contains("more than the limit") {
        return ApiError::too_large(message);
    }
    if message.contains("not an image of a known format") {
        // The decoder knows some formats by name that it does not read.
        return ApiError::not_an_image(decode::decode_bytes(bytes).err().unwrap_or(message));
    }
    if message.contains("which is not read") {
        return ApiError::not_an_image(message);
    }
    ApiError::unusable(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_tell_large_from_foreign_from_damaged() {
        let status = |bytes: &[u8], most| decode_within(bytes, most).map_err(|error| error.status.as_u16()).err();
        let bmp = {
            let mut bmp = b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x02\0\0\0\x02\0\0\0\x01\0\x18\0".to_vec();
            bmp.resize(54 + 16, 0);
            bmp
        };
        assert_eq!(status(&bmp, 4), None);
        assert_eq!(status(&bmp, 3), Some(413));
        assert_eq!(status(&bmp[..60], 4), Some(422));
        assert_eq!(status(b"not at all", 4), Some(415));
        assert_eq!(status(b"\0\0\0\x18ftypavif", 4), Some(415));
        assert_eq!(status(b"", 4), Some(400));
        let mut huge = bmp;
        huge[18..26].copy_from_slice(&[0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0]);
        assert_eq!(status(&huge, usize::MAX), Some(413));
    }
}
