//! Requests that were made to do harm: each is refused in one form, and the server goes on as if nothing had been.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use std::{fs, thread};

use super::client::{Server, base64, old_tasks, predicted, raw, request};
use crate::util::Sandbox;

const IMAGE: &str = "data/colours/blue/3.png";

/// A PNG of the given size in its header, and no more than that.
fn bomb(width: u32, height: u32) -> Vec<u8> {
    let mut header = width.to_be_bytes().to_vec();
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut png = vec![0x89, b'P', b'N', b'G', 13, 10, 26, 10];
    // The pixels begin and go no further.
    for (kind, data) in [(b"IHDR", &header[..]), (b"IDAT", &[0x78, 0x9c, 0x63])] {
        png.extend((data.len() as u32).to_be_bytes());
        let chunk = [&kind[..], data].concat();
        png.extend(&chunk);
        png.extend(crc32(&chunk).to_be_bytes());
    }
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (!(crc & 1)).wrapping_add(1)))
    })
}

#[test]
fn whatever_is_sent_the_server_stays_and_answers_as_before() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "vit");
    let expected = predicted(&sandbox, "tasks/linear", &[IMAGE]);
    let image = fs::read(sandbox.path(IMAGE)).unwrap();
    let flags = ["--max-body", "100kB", "--max-pixels", "1000000", "--max-images", "3", "--no-access-log"];
    let server = Server::start(&sandbox, &[&["--tasks", "tasks"], &flags[..]].concat());
    let path = "/v1/tasks/linear/predict";
    let (png, json) = ("image/png", "application/json");
    let check = || assert_eq!(server.post(path, png, &image).ok().json()[0], expected[0]);
    check();
    for _ in 0..3 {
        let post = |path: &str, kind: &str, body: &[u8]| server.post(path, kind, body);
        post(path, png, b"").refused(400, "without a byte");
        post(path, png, b"GIF89a").refused(422, "");
        post(path, png, &image[..image.len() / 2]).refused(422, "");
        post(path, png, b"what is this").refused(415, "not an image");
        post(path, "text/html", b"<html>").refused(415, "text/html");
        post(path, png, &bomb(60_000, 60_000)).refused(413, "more than the limit");
        post(path, png, &bomb(1001, 1000)).refused(413, "1001x1000");
        post(path, png, &bomb(0, 5)).refused(422, "");
        post(path, png, &vec![7; 100_001]).refused(413, "100000 bytes");
        post(path, json, b"{").refused(400, "not what is expected");
        post(path, json, b"{\"image\": 7}").refused(400, "");
        post(path, json, b"{\"image\": \"http://127.0.0.1:1/\"}").refused(400, "no address");
        post(path, json, b"{\"image\": \"!!\"}").refused(400, "base64");
        post(path, json, "[".repeat(90_000).as_bytes()).refused(400, "");
        post(path, json, format!("{{\"images\": [{}\"\"]}}", "\"\",".repeat(3)).as_bytes()).refused(413, "4 images");
        post(path, "multipart/form-data", b"--b--").refused(400, "form");
        post(path, "multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: x").refused(400, "form");
        post("/v1/tasks/liner/predict", png, &image).refused(404, "did you mean linear?");
        post("/v1/tasks/..%2f..%2fetc/predict", png, &image).refused(404, "no task");
        post("/v1/tasks/%00/predict", png, &image).refused(404, "no task");
        post("/v1/tasks/%ff/predict", png, &image).refused(400, "");
        post(&format!("{path}?top_k=0"), png, &image).refused(400, "top_k");
        post(&format!("{path}?top_k=x"), png, &image).refused(400, "");
        post(&format!("{path}?min_score=NaN"), png, &image).refused(400, "min_score");
        post(&format!("{path}?other=1"), png, &image).refused(400, "");
        post("/v1/predict", json, b"{\"images\": [], \"tasks\": []}").refused(400, "no task");
        post("/v1/predict", json, b"{\"images\": [], \"tasks\": [\"linear\"]}").refused(400, "no image");
        post("/v1/predict", png, &image).refused(415, "application/json");
        post("/nowhere", png, &image).refused(404, "no such address");
        server.get(path).refused(405, "method");
        let infer = "/v2/models/linear/infer";
        post(infer, json, b"{}").refused(400, "inference request");
        let long = [("Inference-Header-Content-Length", "99999")];
        request(&server.address, "POST", infer, &long, b"{}").unwrap().refused(400, "JSON");
        request(&server.address, "POST", infer, &[("Inference-Header-Content-Length", "-1")], b"{}")
            .unwrap()
            .refused(400, "no number");
        let nan =
            br#"{"inputs": [{"name": "pixel_values", "shape": [1,3,24,24], "datatype": "FP32", "data": [1e999]}]}"#;
        post(infer, json, nan).refused(400, "");
    }
    // No HTTP at all, heads without end, bodies that lie about their length.
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET /health HTTP/9.9\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n",
    ] {
        if let Ok(answer) = raw(&server.address, bytes) {
            assert!((400..500).contains(&answer.status) || answer.status == 505, "{answer:?}");
        }
    }
    // A connection that is closed with bytes unread may take its answer with it.
    let long = format!("X-Long: {}\r\n", "x".repeat(200_000));
    let many: Vec<String> = (0..1000).map(|i| format!("X-{i}: y\r\n")).collect();
    for headers in [long, many.concat()] {
        let answer = raw(&server.address, format!("GET /health HTTP/1.1\r\nHost: x\r\n{headers}\r\n").as_bytes());
        assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status == 431));
    }
    let lie =
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 5000000000\r\n\r\n");
    raw(&server.address, lie.as_bytes()).unwrap().refused(413, "100000 bytes");
    check();
    server.stop();
}

#[test]
fn memory_comes_back_after_bombs_and_half_bodies() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "vit");
    let image = fs::read(sandbox.path(IMAGE)).unwrap();
    let server = Server::start(&sandbox, &["--tasks", "tasks", "--no-access-log", "--timeout", "2"]);
    let path = "/v1/tasks/linear/predict";
    for _ in 0..20 {
        server.post(path, "image/png", &image).ok();
    }
    #[cfg(target_os = "linux")]
    let before = server.memory();
    let blank = vec![b'A'; 20 << 20];
    thread::scope(|scope| {
        for turn in 0..4 {
            let (server, image, blank) = (&server, &image, &blank);
            scope.spawn(move || {
                for i in 0..12 {
                    match (turn + i) % 4 {
                        0 => drop(server.post(path, "image/png", &bomb(50_000, 40_000))),
                        1 => drop(server.post(path, "application/json", blank)),
                        2 => {
                            // A client that goes away half way.
                            let mut stream = TcpStream::connect(&server.address).unwrap();
                            let head =
                                format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 8 << 20);
                            let _ = stream.write_all(&[head.as_bytes(), &blank[..4 << 20]].concat());
                        }
                        _ => {
                            let body = format!("{{\"images\": [\"{0}\", \"{0}\"]}}", base64(image));
                            server.post(path, "application/json", body.as_bytes()).ok();
                        }
                    }
                }
            });
        }
    });
    server.post(path, "image/png", &image).ok();
    #[cfg(target_os = "linux")]
    {
        let after = server.memory();
        // Decoded, one of the pictures would be six gigabytes. What threads have freed the allocator may keep for a while.
        assert!(after < before + (256 << 20), "{before} bytes before, {after} after");
    }
    server.stop();
}

#[test]
fn slow_clients_are_cut_and_keep_nobody_waiting() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "vit");
    let image = fs::read(sandbox.path(IMAGE)).unwrap();
    let flags = ["--timeout", "1", "--max-connections", "40", "--no-access-log"];
    let server = Server::start(&sandbox, &[&["--tasks", "tasks"], &flags[..]].concat());
    // Heads that never end, and bodies that drip.
    let mut slow: Vec<TcpStream> = (0..30)
        .map(|i| {
            let mut stream = TcpStream::connect(&server.address).unwrap();
            let start = if i % 2 == 0 {
                "GET /health HT"
            } else {
                "POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{"
            };
            stream.write_all(start.as_bytes()).unwrap();
            stream
        })
        .collect();
    let begin = Instant::now();
    server.post("/v1/tasks/linear/predict", "image/png", &image).ok();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let mut answer = String::new();
    slow[1].set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    slow[1].read_to_string(&mut answer).unwrap_or(0);
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    slow[0].set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let cut = slow[0].read_to_string(&mut answer);
    assert!(cut.is_ok(), "a head may take ten seconds: {cut:?}");
    drop(slow);
    server.stop();
}

#[test]
fn keys_are_asked_of_all_but_who_only_looks_whether_it_lives() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "vit");
    sandbox.write("keys", "first-key\nsecond-key\n");
    let server = Server::start(&sandbox, &["--tasks", "tasks", "--api-key-file", "keys"]);
    for path in ["/", "/health", "/v2/health/live", "/v2/health/ready"] {
        server.get(path).ok();
    }
    for path in ["/metrics", "/info", "/openapi.json", "/v1/models", "/v2", "/nowhere"] {
        let answer = server.get(path);
        answer.refused(401, "API key");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    }
    let with = |name: &str, value: &str| request(&server.address, "GET", "/v1/models", &[(name, value)], b"").unwrap();
    for (name, value) in
        [("Authorization", "Bearer second-key"), ("authorization", "bearer first-key"), ("X-Api-Key", "first-key")]
    {
        with(name, value).ok();
    }
    for (name, value) in [
        ("Authorization", "Bearer first-ke"),
        ("Authorization", "first-key"),
        ("X-Api-Key", ""),
        ("X-Api-Key", "third"),
    ] {
        with(name, value).refused(401, "API key");
    }
    assert!(!server.said().contains("first-key"), "{}", server.said());
    server.stop();
}
