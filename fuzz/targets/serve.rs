//! Bodies of requests to the server: JSON in all forms, images in base64, the Open Inference Protocol. An input of two files is the JSON
//! of the binary form and what lies behind it.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use vpt::serve::{kserve, upload};
use vpt_fuzz::files;

fuzz_target!(|data: &[u8]| {
    let _ = upload::json::<upload::PredictBody>(data);
    let _ = upload::json::<upload::EmbeddingsBody>(data);
    if let Ok(body) = upload::json::<upload::PredictManyBody>(data) {
        for image in body.images.all() {
            let _ = upload::image_of_text(&image);
        }
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = upload::image_of_text(text);
    }
    let _ = kserve::parse(&Bytes::copy_from_slice(data), None);
    let [json, behind] = files(data);
    let body = Bytes::from([json, behind].concat());
    if let Ok(request) = kserve::parse(&body, Some(json.len())) {
        let images = match request.input {
            kserve::InferInput::Images(images) => images.iter().map(Bytes::len).sum::<usize>(),
            kserve::InferInput::Pixels(images) => images.iter().map(Vec::len).sum(),
        };
        assert!(images <= body.len(), "more values than bytes");
    }
});
