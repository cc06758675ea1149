//! The life of a server: full queues, exchanged and many tasks, its settings, its end.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use std::{fs, thread};

use serde_json::Value;

use super::client::{Server, old_tasks, predicted, request};
use crate::json::Schema;
use crate::util::Sandbox;

const IMAGE: &str = "data/colours/blue/3.png";

fn image(sandbox: &Sandbox) -> Vec<u8> {
    fs::read(sandbox.path(IMAGE)).unwrap()
}

#[test]
fn a_full_queue_refuses_at_once_and_says_when_to_come_again() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "vit");
    let flags = ["--max-queue", "3", "--max-batch", "9", "--batch-delay-ms", "3000"];
    let server = Server::start(&sandbox, &[&["--tasks", "tasks"], &flags[..]].concat());
    let image = image(&sandbox);
    thread::scope(|scope| {
        let ask = || server.post("/v1/tasks/linear/predict", "image/png", &image);
        // A request takes all of its places or none.
        let waiting: Vec<_> = (0..2).map(|_| scope.spawn(ask)).collect();
        while server.metric("vpt_queue_images") < 2. {
            thread::sleep(Duration::from_millis(10));
        }
        let two = server.predict(&[image.clone(), image.clone()], &["linear"], "");
        two.refused(429, "wait already");
        assert_eq!(two.header("retry-after"), Some("1"));
        assert!(server.metric(r#"vpt_rejected_total{reason="queue_full"}"#) >= 1.);
        for asked in waiting {
            drop(asked.join().unwrap().ok());
        }
    });
    server.predict(&vec![image.clone(); 4], &["linear"], "").refused(413, "may wait");
    // All places are free again.
    server.predict(&vec![image; 3], &["linear"], "").ok();
    server.stop();
}

#[test]
fn as_json_it_tells_where_it_listens() {
    let sandbox = Sandbox::new();
    let tasks = old_tasks(&sandbox, "vit");
    let server = Server::start(&sandbox, &["--tasks", "tasks", "--json"]);
    let told: Value = serde_json::from_str(&server.told).unwrap();
    Schema::load().holds("serve", &told);
    assert_eq!(told["address"], format!("http://{}", server.address));
    assert_eq!(told["tasks"], tasks.len());
    server.stop();
}

#[test]
fn who_goes_away_is_forgotten_and_who_waits_too_long_is_told() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "vit");
    let flags = ["--max-batch", "9", "--batch-delay-ms", "1500", "--timeout", "0.5"];
    let server = Server::start(&sandbox, &[&["--tasks", "tasks"], &flags[..]].concat());
    server.post("/v1/tasks/linear/predict", "image/png", &image(&sandbox)).refused(504, "within 0.5 s");
    while server.metric("vpt_queue_images") > 0. {
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(server.metric("vpt_images_total"), 0.);
    server.stop();
}

#[test]
fn a_task_is_exchanged_under_load_and_no_answer_mixes_versions() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "vit");
    let kept = ["linear", "vp-pad", "linear-lbfgs"].map(|name| {
        let answers = predicted(&sandbox, &format!("tasks/{name}"), &[IMAGE]);
        (fs::read(sandbox.path(&format!("tasks/{name}/best.safetensors"))).unwrap(), answers)
    });
    let put = |file: &[u8]| {
        let beside = sandbox.write("hot/.x.part", file);
        fs::rename(beside, sandbox.path("hot/t.safetensors")).unwrap();
    };
    put(&kept[0].0);
    for (i, (file, _)) in kept.iter().enumerate() {
        sandbox.write(&format!("hot/kept{i}.safetensors"), file);
    }
    let args = ["--tasks", "hot", "--backbone", "fixtures/vit", "--rescan", "0.05"];
    let server = Server::start(&sandbox, &args);
    // Which version each file is, by files that stay.
    let versions = [0, 1, 2].map(|i| {
        let answer = server.post(&format!("/v1/tasks/kept{i}/predict"), "image/png", &image(&sandbox)).ok();
        answer.header("x-vpt-task-version").unwrap().to_owned()
    });
    let (image, ending, asked) = (image(&sandbox), AtomicBool::new(false), AtomicUsize::new(0));
    let mut seen = thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = Vec::new();
                    while !ending.load(Ordering::SeqCst) {
                        let answer = server.post("/v1/tasks/t/predict", "image/png", &image).ok();
                        let version = answer.header("x-vpt-task-version").unwrap().to_owned();
                        let which = versions.iter().position(|known| *known == version).unwrap();
                        assert_eq!(answer.json()[0], kept[which].1[0], "version {which}");
                        seen.push(which);
                        asked.fetch_add(1, Ordering::SeqCst);
                    }
                    seen
                })
            })
            .collect();
        for turn in 1..12 {
            let before = asked.load(Ordering::SeqCst);
            put(&kept[turn % 3].0);
            // What cannot be read changes nothing.
            if turn == 6 {
                thread::sleep(Duration::from_millis(150));
                put(b"broken");
            }
            while asked.load(Ordering::SeqCst) < before + 60 {
                thread::sleep(Duration::from_millis(5));
            }
            thread::sleep(Duration::from_millis(100));
        }
        ending.store(true, Ordering::SeqCst);
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(seen.len() > 600, "{}", seen.len());
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [0, 1, 2]);
    assert!(server.said().contains("the version before it is served on"), "{}", server.said());
    server.stop();
}

#[test]
fn a_thousand_tasks_are_served_with_memory_for_ten() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "mae");
    let expected = predicted(&sandbox, "tasks/vpt-shallow", &[IMAGE]);
    let file = fs::read(sandbox.path("tasks/vpt-shallow/best.safetensors")).unwrap();
    for i in 0..1000 {
        sandbox.write(&format!("many/t{i:03}.safetensors"), &file);
    }
    let memory = (10 * file.len()).to_string();
    let args = ["--tasks", "many", "--backbone", "fixtures/mae", "--task-memory", &memory, "--no-access-log"];
    let server = Server::start(&sandbox, &args);
    assert_eq!(server.metric("vpt_tasks_loaded"), 0., "nothing is loaded before it is asked");
    let image = image(&sandbox);
    for first in (0..1000).step_by(25) {
        let names: Vec<String> = (first..first + 25).map(|i| format!("t{i:03}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let answers = server.predict(std::slice::from_ref(&image), &names, "").ok().json();
        assert!(names.iter().all(|name| answers["results"][0][name] == expected[0]), "{first}");
    }
    assert_eq!(server.metric(r#"vpt_task_loads_total{result="ok"}"#), 1000.);
    let loaded = server.metric("vpt_tasks_loaded");
    assert!((1. ..30.).contains(&loaded), "{loaded}");
    assert!(server.metric("vpt_task_memory_bytes") <= (10 * file.len()) as f64);
    let listed = server.get("/v1/models").ok().json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 1001);
    server.stop();
}

#[test]
fn told_to_end_it_answers_what_it_has_accepted() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "vit");
    let (image, answered) = (image(&sandbox), AtomicUsize::new(0));
    for _ in 0..3 {
        let flags = ["--tasks", "tasks", "--max-batch", "2", "--drain-delay", "2"];
        let server = Server::start(&sandbox, &flags);
        let (address, ending) = (server.address.clone(), AtomicBool::new(false));
        thread::scope(|scope| {
            for _ in 0..6 {
                // As a load balancer: until it learns that the server is not ready, and no longer.
                scope.spawn(|| {
                    while !ending.load(Ordering::SeqCst) {
                        let headers = [("Content-Type", "image/png")];
                        request(&address, "POST", "/v1/tasks/vp-pad/predict", &headers, &image).unwrap().ok();
                        answered.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            thread::sleep(Duration::from_millis(300));
            server.signal("TERM");
            while server.get("/v2/health/ready").status == 200 {
                thread::sleep(Duration::from_millis(10));
            }
            server.get("/v2/health/ready").refused(503, "ending");
            server.get("/health").ok();
            thread::sleep(Duration::from_millis(200));
            ending.store(true, Ordering::SeqCst);
        });
        assert_eq!(server.end().code(), Some(0));
    }
    assert!(answered.load(Ordering::SeqCst) > 30, "{answered:?}");
}

#[test]
fn who_asks_until_the_very_end_is_answered_or_cannot_connect() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "vit");
    let (image, reset) = (image(&sandbox), AtomicUsize::new(0));
    for _ in 0..4 {
        let server = Server::start(&sandbox, &["--tasks", "tasks", "--drain-delay", "0.1"]);
        let address = server.address.clone();
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    let headers = [("Content-Type", "image/png")];
                    loop {
                        match request(&address, "POST", "/v1/tasks/vp-pad/predict", &headers, &image) {
                            Ok(answer) => drop(answer.ok()),
                            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => break,
                            // The system completes connections until the listener is closed, and resets those that came after
                            // the last look at them: some microseconds, longer where the machine is busy.
                            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                                reset.fetch_add(1, Ordering::SeqCst);
                                break;
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
            thread::sleep(Duration::from_millis(300));
            server.signal("TERM");
        });
        assert_eq!(server.end().code(), Some(0));
    }
    // With requests on their way taken for idle connections it was one or two an end.
    assert!(reset.load(Ordering::SeqCst) <= 2, "{reset:?} connections were reset");
}

#[test]
fn told_twice_it_ends_at_once() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "vit");
    let server = Server::start(&sandbox, &["--tasks", "tasks", "--drain-delay", "50"]);
    server.signal("INT");
    thread::sleep(Duration::from_millis(200));
    server.signal("INT");
    assert_eq!(server.end().code(), Some(130));
}

#[test]
fn tasks_are_put_and_taken_away_where_that_is_allowed() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "vit");
    fs::create_dir(sandbox.path("served")).unwrap();
    let file = fs::read(sandbox.path("tasks/linear/best.safetensors")).unwrap();
    let args = ["--tasks", "served", "--backbone", "fixtures/vit"];
    let plain = Server::start(&sandbox, &args);
    let put = |server: &Server, name: &str, body: &[u8]| {
        request(&server.address, "PUT", &format!("/v1/tasks/{name}"), &[], body).unwrap()
    };
    put(&plain, "t", &file).refused(404, "no such address");
    plain.stop();
    let server = Server::start(&sandbox, &[&args[..], &["--admin"]].concat());
    let version = put(&server, "t", &file).ok().json()["version"].clone();
    let answer = server.post("/v1/tasks/t/predict", "image/png", &image(&sandbox)).ok();
    assert_eq!(version, answer.header("x-vpt-task-version").unwrap());
    put(&server, "bad", b"no task").refused(422, "bad");
    put(&server, "..%2Fx", &file).refused(400, "name");
    put(&server, ".x", &file).refused(400, "name");
    let clip = crate::util::fixture("old-runs/0.1.0/coop/finished.safetensors");
    put(&server, "other", &fs::read(clip).unwrap()).refused(422, "which vit");
    assert_eq!(fs::read_dir(sandbox.path("served")).unwrap().count(), 1, "nothing is left of what was refused");
    sandbox.write("served/second.safetensors", &file);
    assert_eq!(request(&server.address, "POST", "/v1/rescan", &[], b"").unwrap().ok().json()["tasks"], 2);
    let delete = |name: &str| request(&server.address, "DELETE", &format!("/v1/tasks/{name}"), &[], b"").unwrap();
    delete("t").ok();
    delete("t").refused(404, "no task");
    server.post("/v1/tasks/t/predict", "image/png", &image(&sandbox)).refused(404, "'t'");
    server.stop();
}

#[test]
fn settings_come_from_flags_before_the_environment_before_a_file() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "vit");
    sandbox.write("serve.toml", "tasks = [\"tasks\"]\nmax_queue = 7\nmax_images = 5\ntask_memory = \"5MB\"\n");
    let server = Server::start(&sandbox, &["--config", "serve.toml", "--max-images", "6"]);
    let limits = server.get("/info").ok().json()["limits"].clone();
    assert_eq!([&limits["max_queue"], &limits["max_images"], &limits["task_memory"]], [7, 6, 5_000_000]);
    server.stop();
    sandbox.write("bad.toml", "max_qeue = 7\n");
    sandbox.vpt(&["serve", "--config", "bad.toml"]).fails(&["bad.toml", "max_qeue"]);
    sandbox.write("zero.toml", "max_queue = 0\n");
    sandbox.vpt(&["serve", "--config", "zero.toml"]).refuses(&["max_queue"]);
    sandbox.vpt(&["serve", "--port", "99999"]).refuses(&["--port"]);
    sandbox.vpt(&["serve", "--timeout", "soon"]).refuses(&["--timeout"]);
    sandbox.vpt(&["serve", "--tasks", "absent", "--port", "0"]).fails(&["absent"]);
    fs::create_dir(sandbox.path("empty")).unwrap();
    sandbox.vpt(&["serve", "--tasks", "empty", "--port", "0"]).refuses(&["--backbone"]);
    sandbox.write("keys", "# none\n");
    sandbox.vpt(&["serve", "--tasks", "tasks", "--port", "0", "--api-key-file", "keys"]).fails(&["keys", "no key"]);
    let mut command = sandbox.command(&["serve", "--tasks", "tasks"]);
    command.env("VPT_SERVE_PORT", "many");
    crate::util::finish(command, &["serve"]).refuses(&["--port"]);
}

#[test]
fn a_task_of_another_backbone_is_refused_with_both_names() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "vit");
    old_tasks(&sandbox, "mae");
    let server = Server::start(&sandbox, &["--tasks", "tasks", "--backbone", "fixtures/vit"]);
    let answer = server.post("/v1/tasks/vpt-shallow/predict", "image/png", &image(&sandbox));
    answer.refused(503, "mae");
    answer.refused(503, "vit");
    assert!(answer.header("retry-after").is_some());
    let listed = server.get("/v1/models").ok().json();
    let shallow = listed["data"].as_array().unwrap().iter().find(|model| model["id"] == "vpt-shallow").unwrap();
    assert!(shallow["error"].as_str().unwrap().contains("mae") && shallow["parent"] == "vit", "{shallow}");
    assert_eq!(listed["data"][0]["parent"], Value::Null);
    server.stop();
}
