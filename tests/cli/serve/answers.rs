//! Answers: those of `vpt predict`, alone or in any mix.

use std::collections::BTreeMap;
use std::{fs, thread};

use serde_json::Value;

use super::client::{Server, old_tasks, predicted};
use vpt::data::masks::Rle;

use crate::util::{Sandbox, fixture};

const IMAGES: [&str; 4] =
    ["data/colours/blue/3.png", "data/colours/green/5.png", "data/boxes/test/000010.png", "data/colours/red/0.png"];

/// Tasks with tuned weights.
const TUNED: [&str; 4] = ["lora", "lora-head", "bias", "full"];

/// What `vpt predict` says of all images by each task.
fn expected(sandbox: &Sandbox, tasks: &[String]) -> BTreeMap<String, Vec<Value>> {
    tasks.iter().map(|task| (task.clone(), predicted(sandbox, &format!("tasks/{task}"), &IMAGES))).collect()
}

#[test]
fn answers_of_every_method_are_those_of_predict_alone_and_in_any_mix() {
    for backbone in ["clip", "mae", "vit", "label-map/vit"] {
        let sandbox = Sandbox::new();
        let tasks = old_tasks(&sandbox, backbone);
        let expected = expected(&sandbox, &tasks);
        let server = Server::start(&sandbox, &["--tasks", "tasks", "--allow-tuned", "2"]);
        let images: Vec<Vec<u8>> = IMAGES.iter().map(|image| fs::read(sandbox.path(image)).unwrap()).collect();
        let names: Vec<&str> = tasks.iter().map(String::as_str).collect();
        let check = |image: usize, task: &str, found: &Value| {
            assert_eq!(*found, expected[task][image], "{backbone}: {task} about {}", IMAGES[image]);
        };
        // All tasks about all images in one request.
        let all = server.predict(&images, &names, "?min_score=0").ok();
        let versions = all.header("x-vpt-task-version").unwrap();
        assert!(tasks.iter().all(|task| versions.contains(&format!("{task}="))), "{versions}");
        assert!(all.header("server-timing").unwrap().contains("queue;dur="));
        for (image, of_image) in all.json()["results"].as_array().unwrap().iter().enumerate() {
            assert_eq!(of_image.as_object().unwrap().len(), tasks.len());
            for task in &tasks {
                check(image, task, &of_image[task]);
            }
        }
        // One by one, from several clients at once.
        thread::scope(|scope| {
            for client in 0..4 {
                let (server, tasks, images, check) = (&server, &tasks, &images, &check);
                scope.spawn(move || {
                    for turn in 0..2 * tasks.len() {
                        let (task, image) = (&tasks[(turn * 7 + client) % tasks.len()], (turn + client) % images.len());
                        let path = format!("/v1/tasks/{task}/predict?min_score=0");
                        let answer = server.post(&path, "image/png", &images[image]).ok();
                        assert!(answer.header("x-vpt-task-version").is_some_and(|version| version.len() == 16));
                        check(image, task, &answer.json()[0]);
                    }
                });
            }
        });
        assert!(server.metric("vpt_images_total") >= (images.len() * tasks.len()) as f64);
        server.stop();
    }
}

#[test]
fn pixels_are_told_as_predict_tells_them_with_masks_that_are_runs() {
    let sandbox = Sandbox::new();
    sandbox.masks("masks", 24);
    let clip = fixture("clip");
    sandbox.segmented("run", &[]);
    sandbox.segmented("tiled", &["--tiles", "2"]);
    fs::create_dir(sandbox.path("tasks")).unwrap();
    for name in ["run", "tiled"] {
        let file = sandbox.path(&format!("tasks/{name}.safetensors"));
        fs::copy(sandbox.path(name).join("best.safetensors"), file).unwrap();
    }
    let images = ["masks/JPEGImages/000001.png", "masks/JPEGImages/000002.png"];
    let predict = ["predict", "--model", "run", "--backbone", &clip, "--save", "drawn", "--json", "masks/JPEGImages"];
    let predicted = sandbox.vpt(&predict).ok().json();
    let server = Server::start(&sandbox, &["--tasks", "tasks", "--backbone", &clip]);
    let bytes: Vec<Vec<u8>> = images.iter().map(|image| fs::read(sandbox.path(image)).unwrap()).collect();
    let all = server.predict(&bytes, &["run"], "").ok().json();
    for (i, image) in bytes.iter().enumerate() {
        let told = server.post("/v1/tasks/run/predict", "image/png", image).ok().json();
        assert_eq!(told[0], all["results"][i]["run"]);
        let mask = image::open(sandbox.path(&format!("drawn/masks/00000{}.png", i + 1))).unwrap().to_luma8();
        let mut covered = 0;
        for (region, expected) in
            told[0].as_array().unwrap().iter().zip(predicted["predictions"][i]["classes"].as_array().unwrap())
        {
            for field in ["label", "share", "pixels"] {
                assert_eq!(region[field], expected[field]);
            }
            let runs = &region["mask"];
            assert_eq!(runs["size"], serde_json::json!([mask.height(), mask.width()]));
            let text = runs["counts"].as_str().unwrap().as_bytes();
            let runs = Rle::from_text(mask.width() as usize, mask.height() as usize, text).unwrap();
            assert_eq!(region["pixels"], runs.area());
            let mut numbers = std::collections::BTreeSet::new();
            runs.visit(|at| {
                numbers.insert(mask.as_raw()[at]);
            });
            assert_eq!(numbers.len(), 1, "one number in the mask's file, too");
            covered += runs.area();
        }
        assert_eq!(covered, u64::from(mask.width() * mask.height()));
    }
    server.post("/v1/tasks/tiled/predict", "image/png", &bytes[0]).refused(503, "tiles");
    let body = serde_json::json!({ "model": "run", "input": ["data:image/png;base64,AAAA"] }).to_string();
    assert!(server.post("/v1/embeddings", "application/json", body.as_bytes()).status >= 400);
    server.post("/v1/tasks/run/predict", "image/png", b"no image").refused(415, "");
    server.stop();
}

#[test]
fn tasks_that_tune_weights_are_served_only_where_they_are_allowed() {
    let sandbox = Sandbox::new();
    let tasks = old_tasks(&sandbox, "clip");
    let tuned = tasks.iter().find(|task| TUNED.contains(&task.as_str())).unwrap();
    let server = Server::start(&sandbox, &["--tasks", "tasks"]);
    let image = fs::read(sandbox.path(IMAGES[0])).unwrap();
    server.post(&format!("/v1/tasks/{tuned}/predict"), "image/png", &image).refused(503, "allow_tuned");
    server.post("/v1/tasks/coop/predict", "image/png", &image).ok();
    server.stop();
}

#[test]
fn a_detector_that_tunes_weights_answers_as_predict_does() {
    let sandbox = Sandbox::new();
    let tasks = old_tasks(&sandbox, "clip");
    let train = ["train", "--backbone", "fixtures/clip", "--data", "data/boxes", "--method", "vpt-deep,bias"];
    let more = ["--epochs", "2", "--keep-better", "false", "--quiet", "--out", "tasks/tuned-boxes"];
    sandbox.vpt(&[train, more].concat()).ok();
    let expected = predicted(&sandbox, "tasks/tuned-boxes", &IMAGES);
    let server = Server::start(&sandbox, &["--tasks", "tasks", "--allow-tuned", "1"]);
    let images: Vec<Vec<u8>> = IMAGES.iter().map(|image| fs::read(sandbox.path(image)).unwrap()).collect();
    let other = tasks.iter().find(|task| !TUNED.contains(&task.as_str())).unwrap();
    let both = server.predict(&images, &["tuned-boxes", other], "?min_score=0").ok().json();
    for (of_image, expected) in both["results"].as_array().unwrap().iter().zip(expected) {
        assert_eq!(of_image["tuned-boxes"], expected);
    }
    server.stop();
}

#[test]
fn images_come_as_bodies_forms_and_json() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "clip");
    let expected = predicted(&sandbox, "tasks/coop", &IMAGES[..2]);
    let server = Server::start(&sandbox, &["--tasks", "tasks/coop"]);
    let images: Vec<Vec<u8>> = IMAGES[..2].iter().map(|image| fs::read(sandbox.path(image)).unwrap()).collect();
    let path = "/v1/tasks/coop/predict";
    let part = |name: &str, image: &[u8]| {
        let head = format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"x.png\"\r\n\r\n");
        [head.as_bytes(), image, b"\r\n"].concat()
    };
    let form = [part("image", &images[0]), part("image", &images[1]), b"--b--\r\n".to_vec()].concat();
    let answer = server.post(path, "multipart/form-data; boundary=b", &form).ok();
    assert_eq!(answer.json(), Value::Array(expected.clone()));
    let text = super::client::base64(&images[1]);
    for body in [format!(r#"{{"image": "{text}"}}"#), format!(r#"{{"inputs": ["data:image/png;base64,{text}"]}}"#)] {
        assert_eq!(server.post(path, "application/json", body.as_bytes()).ok().json()[0], expected[1]);
    }
    let one = server.post(&format!("{path}?top_k=1"), "application/octet-stream", &images[0]).ok();
    assert_eq!(one.json()[0], Value::Array(vec![expected[0][0].clone()]));
    let other = [part("picture", &images[0]), b"--b--\r\n".to_vec()].concat();
    server.post(path, "multipart/form-data; boundary=b", &other).refused(400, "called image");
    server.stop();
}
