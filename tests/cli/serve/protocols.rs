//! The forms that other programs' clients speak, and what the server says of itself.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::{Server, base64, old_tasks, predicted, request};
use crate::util::Sandbox;

const IMAGES: [&str; 2] = ["data/colours/blue/3.png", "data/boxes/test/000010.png"];

/// Rows of a tensor of the safetensors file, as 32-bit floats.
fn embedded(bytes: &[u8], name: &str) -> Vec<Vec<f32>> {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let [begin, end] = [0, 1].map(|i| header[name]["data_offsets"][i].as_u64().unwrap() as usize);
    let width = header[name]["shape"][1].as_u64().unwrap() as usize;
    let data = &bytes[8 + length + begin..8 + length + end];
    let values: Vec<f32> = data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    values.chunks_exact(width).map(<[f32]>::to_vec).collect()
}

#[test]
fn embeddings_are_those_of_embed_in_the_form_of_openai() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "clip");
    let server = Server::start(&sandbox, &["--tasks", "tasks"]);
    let images: Vec<String> = IMAGES
        .iter()
        .map(|image| format!("data:image/png;base64,{}", base64(&fs::read(sandbox.path(image)).unwrap())))
        .collect();
    let ask = |model: &str, input: Value, more: Value| {
        let mut body = json!({ "model": model, "input": input });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v1/embeddings", "application/json", body.to_string().as_bytes())
    };
    let rows = |answer: Value| -> Vec<Vec<f32>> {
        let row =
            |entry: &Value| entry["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        answer["data"].as_array().unwrap().iter().map(row).collect()
    };
    for (model, of_task) in [("clip", None), ("ivlp", Some("tasks/ivlp")), ("coop", Some("tasks/coop"))] {
        let source = of_task.map_or(vec!["--backbone", "fixtures/clip"], |task| vec!["--model", task]);
        let args = [&["embed", "--out", "e.safetensors"], &source[..], &IMAGES].concat();
        sandbox.vpt(&args).ok();
        let expected = embedded(&fs::read(sandbox.path("e.safetensors")).unwrap(), "image_embeds");
        let answer = ask(model, json!(images), json!({})).ok().json();
        assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!(model)));
        assert_eq!(answer["data"][1]["index"], 1);
        assert_eq!(rows(answer), expected, "{model}");
        let answer = ask(model, json!(images[0]), json!({ "encoding_format": "base64" })).ok().json();
        let bytes: Vec<u8> = expected[0].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(answer["data"][0]["embedding"], base64(&bytes), "{model}");
    }
    sandbox.vpt(&["embed", "--backbone", "fixtures/clip", "--out", "t.safetensors", "--texts", "a cat", "a dog"]).ok();
    let expected = embedded(&fs::read(sandbox.path("t.safetensors")).unwrap(), "text_embeds");
    assert_eq!(rows(ask("clip", json!(["a cat", "a dog"]), json!({})).ok().json()), expected);
    let unit = rows(ask("clip", json!(["a cat"]), json!({ "normalize": true })).ok().json());
    assert!((unit[0].iter().map(|v| v * v).sum::<f32>() - 1.).abs() < 1e-5);
    ask("clip", json!(["a cat", images[0]]), json!({})).refused(400, "both");
    ask("clip", json!(images[0]), json!({ "dimensions": 7 })).refused(400, "dimensions");
    ask("clop", json!(images[0]), json!({})).refused(404, "no task");
    ask("detect-open", json!(images[0]), json!({})).refused(422, "detector");
    server.stop();
}

#[test]
fn the_open_inference_protocol_is_spoken_in_json_and_in_binary() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "mae");
    let classes = predicted(&sandbox, "tasks/vpt-shallow", &IMAGES);
    let boxes = predicted(&sandbox, "tasks/detect-deep", &IMAGES);
    let server = Server::start(&sandbox, &["--tasks", "tasks"]);
    let images: Vec<Vec<u8>> = IMAGES.iter().map(|image| fs::read(sandbox.path(image)).unwrap()).collect();
    assert_eq!(server.get("/v2").ok().json()["name"], "vpt");
    assert_eq!(server.get("/v2/models/vpt-shallow/ready").ok().json()["ready"], true);
    let metadata = server.get("/v2/models/vpt-shallow").ok().json();
    assert_eq!(metadata["inputs"][1]["name"], "pixel_values");
    let version = metadata["versions"][0].as_str().unwrap();
    server.get(&format!("/v2/models/vpt-shallow/versions/{version}/ready")).ok();
    server.get("/v2/models/vpt-shallow/versions/1").refused(404, "version");

    let data: Vec<String> = images.iter().map(|image| base64(image)).collect();
    let input = json!({ "name": "image", "shape": [2], "datatype": "BYTES", "data": data });
    let body = json!({ "id": "7", "inputs": [input] }).to_string();
    let answer = server.post("/v2/models/vpt-shallow/infer", "application/json", body.as_bytes()).ok().json();
    assert_eq!(
        (&answer["id"], &answer["model_name"], &answer["model_version"]),
        (&json!("7"), &json!("vpt-shallow"), &json!(version))
    );
    let scores: Vec<&Value> = classes.iter().flat_map(|of| of.as_array().unwrap()).map(|line| &line["score"]).collect();
    assert_eq!(answer["outputs"][0]["data"], json!(scores));
    assert_eq!(answer["outputs"][1]["data"][0], classes[0][0]["label"]);

    // The binary form, as tritonclient sends it.
    let elements: Vec<u8> =
        images.iter().flat_map(|image| [&(image.len() as u32).to_le_bytes()[..], image].concat()).collect();
    let head = json!({
        "inputs": [{ "name": "image", "shape": [2], "datatype": "BYTES", "parameters": { "binary_data_size": elements.len() } }],
        "outputs": [
            { "name": "boxes", "parameters": { "binary_data": true } },
            { "name": "counts", "parameters": { "binary_data": false } },
        ],
        "parameters": { "min_score": 0 },
    })
    .to_string();
    let length = head.len().to_string();
    let headers = [("Inference-Header-Content-Length", length.as_str()), ("Content-Type", "application/octet-stream")];
    let body = [head.as_bytes(), &elements].concat();
    let answer = request(&server.address, "POST", "/v2/models/detect-deep/infer", &headers, &body).unwrap().ok();
    let length: usize = answer.header("inference-header-content-length").unwrap().parse().unwrap();
    let told: Value = serde_json::from_slice(&answer.body[..length]).unwrap();
    let counts: Vec<usize> = boxes.iter().map(|of| of.as_array().unwrap().len()).collect();
    assert_eq!(told["outputs"][1]["data"], json!(counts));
    let values: Vec<f64> =
        answer.body[length..].chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect();
    let first: Vec<f64> = boxes[0][0]["bbox"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    assert_eq!(values[..4], first[..]);
    assert_eq!(values.len(), 2 * 4 * counts.iter().max().unwrap());

    let bad = json!({ "inputs": [{ "name": "image", "shape": [1], "datatype": "BYTES", "data": [data[0]] }], "outputs": [{ "name": "x" }] });
    let refused = server.post("/v2/models/vpt-shallow/infer", "application/json", bad.to_string().as_bytes());
    refused.refused(400, "no output 'x'");
    assert!(refused.json()["error"].is_string(), "clients of the protocol expect a text");
    server.stop();
}

#[test]
fn the_document_describes_every_address_and_the_page_needs_no_other() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "vit");
    let server = Server::start(&sandbox, &["--tasks", "tasks", "--admin"]);
    let document = server.get("/openapi.json").ok().json();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let path = path.replace("{task}", "absent").replace("{model}", "absent").replace("{version}", "1");
            let answer = request(&server.address, &method.to_uppercase(), &path, &[], b"").unwrap();
            assert!(!answer.text().contains("no such address") && answer.status != 405, "{method} {path}: {answer:?}");
        }
    }
    let page = server.get("/").ok();
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
    let text = page.text();
    assert!(!text.contains("http://") && !text.contains("https://") && !text.contains("src="), "links in the page");
    let answer = request(&server.address, "GET", "/info", &[("X-Request-Id", "mine-1")], b"").unwrap();
    assert_eq!(answer.header("x-request-id"), Some("mine-1"));
    let answer = request(&server.address, "GET", "/info", &[("X-Request-Id", "two words")], b"").unwrap();
    assert_ne!(answer.header("x-request-id"), Some("two words"));
    let listed = server.get("/v1/models/linear").ok().json();
    assert_eq!((&listed["details"]["task"], &listed["details"]["data"]), (&"classify".into(), &"colours".into()));
    // What the server writes is read by a thread, which may be behind.
    let is_logged = || server.said().lines().any(|line| line.contains("mine-1 GET /info 200"));
    let begun = Instant::now();
    while !is_logged() && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(is_logged(), "{}", server.said());
    assert!(server.get("/metrics").text().contains(r#"vpt_requests_total{route="/info",code="200"} 3"#));
    server.stop();
}

#[test]
fn where_a_task_looks_is_a_picture() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "mae");
    let server = Server::start(&sandbox, &["--tasks", "tasks"]);
    let image = fs::read(sandbox.path(IMAGES[0])).unwrap();
    let looked = server.post("/v1/tasks/vpt-shallow/attention?of=prompts", "image/png", &image).ok();
    assert_eq!(looked.header("content-type"), Some("image/png"));
    let shares = looked.header("x-vpt-attention").unwrap();
    let shares: Vec<(&str, &str)> = shares.split("; ").map(|part| part.split_once('=').unwrap()).collect();
    assert_eq!(shares[0], ("of", "prompts"));
    let all: f64 = shares[1..].iter().map(|(_, share)| share.parse::<f64>().unwrap()).sum();
    assert!((all - 1.).abs() < 1e-3, "{shares:?}");
    // As `vpt predict` draws it.
    let args =
        ["predict", "--model", "tasks/vpt-shallow", "--attention", "looks.png", "--attention-of", "prompts", IMAGES[0]];
    sandbox.vpt(&args).ok();
    assert_eq!(looked.body, fs::read(sandbox.path("looks.png")).unwrap());

    let body = json!({ "images": [base64(&image)] }).to_string();
    server.post("/v1/tasks/vpt-shallow/attention", "application/json", body.as_bytes()).ok();
    let two = json!({ "images": [base64(&image), base64(&image)] }).to_string();
    server.post("/v1/tasks/vpt-shallow/attention", "application/json", two.as_bytes()).refused(400, "2 images");
    server.post("/v1/tasks/vpt-shallow/attention?of=heads", "image/png", &image).refused(400, "features, prompts");
    server.post("/v1/tasks/ncm/attention?of=prompts", "image/png", &image).refused(422, "no prompt tokens");
    server.post("/v1/tasks/absent/attention", "image/png", &image).refused(404, "absent");
    server.post("/v1/tasks/ncm/attention", "image/png", b"no image").refused(415, "not an image");
    server.stop();
}
