//! `vpt backbones fetch` and `verify` against a hub on this machine: networks that break, hubs that lie, caches that are
//! damaged; and that no other command ever opens a connection.

pub(crate) mod server;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::{fs, thread};

use serde_json::Value;

use self::server::{COMMIT, Faults, Hub, proxy, sha256, trap};
use crate::json::Schema;
use crate::util::{Run, Sandbox, finish, fixture};

const REPO: &str = "openai/clip-vit-base-patch32";
const CLIP: [&str; 4] = ["config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"];

/// The files of a fixture's folder.
fn files(folder: &str, names: &[&'static str]) -> Vec<(&'static str, Vec<u8>)> {
    names.iter().map(|name| (*name, fs::read(Path::new(&fixture(folder)).join(name)).unwrap())).collect()
}

fn clip() -> Hub {
    Hub::new(REPO, &files("clip", &CLIP))
}

/// Runs the program with a hub.
fn run_at(sandbox: &Sandbox, endpoint: &str, args: &[&str], set: &[(&str, &str)]) -> Run {
    finish(command_at(sandbox, endpoint, args, set), args)
}

/// The program with a hub; without the proxies of this machine.
pub(crate) fn command_at(sandbox: &Sandbox, endpoint: &str, args: &[&str], set: &[(&str, &str)]) -> Command {
    let mut command: Command = sandbox.command(args);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "SSL_CERT_FILE"] {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", endpoint).env("HF_HUB_CACHE", sandbox.path("cache")).envs(set.iter().copied());
    command
}

fn run(sandbox: &Sandbox, hub: &Hub, args: &[&str]) -> Run {
    run_at(sandbox, &hub.endpoint(), args, &[])
}

fn fetch(sandbox: &Sandbox, hub: &Hub) -> Run {
    run(sandbox, hub, &["backbones", "fetch", "clip-vit-b32", "--json"])
}

/// The repository's folder in the cache.
fn cached(sandbox: &Sandbox) -> PathBuf {
    sandbox.path("cache/models--openai--clip-vit-base-patch32")
}

fn blob(sandbox: &Sandbox, name: &str) -> PathBuf {
    cached(sandbox).join("blobs").join(name)
}

#[test]
fn a_repository_of_open_clip_brings_its_own_files() {
    let fixture: Value = crate::util::json_file(Path::new(&fixture("open-clip.json")));
    let config = fixture["cases"]["plain"]["config"].to_string().into_bytes();
    let hub = Hub::new(
        "imageomics/bioclip",
        &[
            ("config.json", b"{}".to_vec()),
            ("open_clip_config.json", config),
            ("open_clip_pytorch_model.bin", vec![7; 90]),
        ],
    );
    let sandbox = Sandbox::new();
    let fetched = run(&sandbox, &hub, &["backbones", "fetch", "imageomics/bioclip", "--json"]).ok().json();
    let names: Vec<&str> = fetched["files"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["config.json", "open_clip_config.json", "open_clip_pytorch_model.bin"]);
    run(&sandbox, &hub, &["backbones", "verify", "imageomics/bioclip"]).ok();
    let info = run(&sandbox, &hub, &["backbones", "info", "imageomics/bioclip"]);
    info.fails(&["open_clip_pytorch_model.bin: not a PyTorch checkpoint"]);
    let other = Hub::new("me/other", &[("open_clip_config.json", b"{\"model_cfg\": {}}".to_vec())]);
    let refused = run(&sandbox, &other, &["backbones", "fetch", "me/other"]);
    refused.fails(&["open_clip_config.json: model_cfg.embed_dim: missing"]);
}

#[test]
fn a_repository_of_timm_brings_its_weights_and_tells_its_licence() {
    let fixture: Value = crate::util::json_file(Path::new(&fixture("timm.json")));
    let config = |case: &str| fixture["cases"][case]["config"].to_string().into_bytes();
    let files = |case: &str| vec![("config.json", config(case)), ("model.safetensors", vec![7; 90])];
    let (sandbox, hub) = (Sandbox::new(), Hub::new("timm/dinov3", &files("dinov3")));
    let fetched = run(&sandbox, &hub, &["backbones", "fetch", "timm/dinov3", "--json"]).ok().json();
    let names: Vec<&str> = fetched["files"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["config.json", "model.safetensors"]);
    assert!(fetched["license"].as_str().unwrap().starts_with("DINOv3 License"), "{fetched}");
    run(&sandbox, &hub, &["backbones", "verify", "timm/dinov3"]).ok();
    run(&sandbox, &hub, &["backbones", "info", "timm/dinov3"]).fails(&["model.safetensors: "]);
    let swin = Hub::new("me/swin", &[("config.json", br#"{"architecture": "swin_tiny"}"#.to_vec())]);
    run(&sandbox, &swin, &["backbones", "fetch", "me/swin"]).fails(&["architecture: `swin_tiny` is not supported"]);
}

/// The hash of the fixture's weights.
fn weights() -> (Vec<u8>, String) {
    let bytes = files("clip", &["model.safetensors"]).remove(0).1;
    let hash = sha256(&bytes);
    (bytes, hash)
}

fn sources(fetched: &Value) -> Vec<&str> {
    fetched["files"].as_array().unwrap().iter().map(|f| f["source"].as_str().unwrap()).collect()
}

/// What has been fetched opens, and is what the hub had.
fn opens(sandbox: &Sandbox, hub: &Hub) {
    let info = run(sandbox, hub, &["backbones", "info", "clip-vit-b32", "--json"]).ok().json();
    assert_eq!(info["hash"], blake3(&fixture("clip")));
    run(sandbox, hub, &["backbones", "verify", "clip-vit-b32"]).ok();
}

fn blake3(folder: &str) -> Value {
    let sandbox = Sandbox::new();
    sandbox.vpt(&["backbones", "info", folder, "--json"]).ok().json()["hash"].clone()
}

#[test]
fn a_backbone_comes_into_the_cache_and_is_found_there() {
    let (sandbox, hub) = (Sandbox::new(), clip());
    let first = fetch(&sandbox, &hub).ok();
    assert!(first.stderr.contains("model.safetensors: fetching 2"), "{first:#?}");
    let first = first.json();
    Schema::load().holds("backbones fetch", &first);
    assert_eq!((&first["repo"], &first["revision"], &first["commit"]), (&REPO.into(), &"main".into(), &COMMIT.into()));
    let names: Vec<_> = first["files"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
    assert_eq!((names, sources(&first)), (CLIP.to_vec(), vec!["hub"; 4]));
    opens(&sandbox, &hub);
    assert_eq!(fs::read_to_string(cached(&sandbox).join("refs/main")).unwrap(), COMMIT);
    assert!(blob(&sandbox, &weights().1).is_file());
    #[cfg(unix)]
    {
        let link = fs::read_link(cached(&sandbox).join("snapshots").join(COMMIT).join("model.safetensors")).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(weights().1));
    }

    hub.seen();
    let second = fetch(&sandbox, &hub).ok().json();
    assert_eq!(sources(&second), ["cache"; 4]);
    // One question, what `main` is now, and where the answer is; and whether there is a file by now that there was not.
    let known = hub.seen().iter().filter(|s| !s.line.contains("/processor_config.json ")).count();
    assert_eq!(known, 2);
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let (sandbox, hub) = (Sandbox::new(), clip());
    let args = ["backbones", "fetch", "clip-vit-b32"];
    run_at(&sandbox, &hub.endpoint(), &args, &[("HF_TOKEN", "hf_secret")]).ok();
    let seen = hub.seen();
    assert!(seen.iter().any(|s| s.at_store));
    for request in seen {
        let token = request.headers.get("authorization").map(String::as_str);
        assert_eq!(token, if request.at_store { None } else { Some("Bearer hf_secret") }, "{request:?}");
    }
}

#[test]
fn connections_that_break_are_gone_on_with() {
    let hub = clip();
    let size = weights().0.len();
    // Anywhere, the first and the last byte included.
    let random = |seed: usize| -> Vec<usize> { (1..6).map(|i| seed.wrapping_mul(i * 7919) % (size / 6)).collect() };
    for cuts in [vec![1], vec![size - 1], vec![0, 0, 0], random(1_234_567), random(98_765_431)] {
        let sandbox = Sandbox::new();
        hub.with(Faults { cuts: cuts.clone(), ..Faults::default() });
        hub.seen();
        let run = fetch(&sandbox, &hub).ok();
        assert_eq!(run.stderr.matches("trying again").count(), cuts.len(), "{cuts:?} {run:#?}");
        let ranges: Vec<usize> = hub
            .seen()
            .iter()
            .filter(|s| s.at_store)
            .map(|s| s.headers.get("range").map_or(0, |r| r["bytes=".len()..r.len() - 1].parse().unwrap()))
            .collect();
        let mut wanted = vec![0];
        wanted.extend(cuts.iter().scan(0, |at, cut| {
            *at += cut;
            Some(*at)
        }));
        assert_eq!(ranges, wanted);
        opens(&sandbox, &hub);
    }
}

#[test]
fn a_hub_without_ranges_begins_again() {
    let (sandbox, hub) = (Sandbox::new(), clip());
    hub.with(Faults { cuts: vec![100_000, 7], no_ranges: true, ..Faults::default() });
    fetch(&sandbox, &hub).ok();
    opens(&sandbox, &hub);
}

#[test]
fn a_busy_hub_is_asked_again_and_then_left_alone() {
    let (sandbox, hub) = (Sandbox::new(), clip());
    hub.with(Faults { busy: 2, ..Faults::default() });
    let run = fetch(&sandbox, &hub).ok();
    assert!(run.stderr.contains("config.json: the hub answered 503; trying again"), "{run:#?}");
    hub.with(Faults { busy: 1000, ..Faults::default() });
    fetch(&sandbox, &hub).fails(&["config.json: gave up after 5 tries: the hub answered 503"]);
}

#[test]
fn what_an_earlier_fetch_began_is_finished() {
    let (bytes, hash) = weights();
    let incomplete = format!("{hash}.incomplete");
    for (begun, whole) in [(bytes[..100_000].to_vec(), true), (vec![0; 100_000], false), (vec![0; 1 << 20], false)] {
        let (sandbox, hub) = (Sandbox::new(), clip());
        fs::create_dir_all(blob(&sandbox, "")).unwrap();
        fs::write(blob(&sandbox, &incomplete), &begun).unwrap();
        let run = fetch(&sandbox, &hub).ok();
        let seen = hub.seen();
        let ranges = seen.iter().filter(|s| s.at_store && s.headers.get("range").is_some_and(|r| r == "bytes=100000-"));
        assert_eq!(ranges.count(), usize::from(begun.len() == 100_000), "{run:#?}");
        assert_eq!(
            run.stderr.contains("what was there of it is damaged"),
            !whole && begun.len() == 100_000,
            "{run:#?}"
        );
        assert!(!blob(&sandbox, &incomplete).exists());
        opens(&sandbox, &hub);
    }
}

#[test]
fn what_is_not_what_the_hub_announced_is_not_kept() {
    let (size, hash) = (weights().0.len(), weights().1);
    let longer = Faults { longer: 10, ..Faults::default() };
    let surplus = Faults { surplus: Some(3), ..Faults::default() };
    let damage = Faults { damage: true, ..Faults::default() };
    for (faults, part) in [
        (damage, "model.safetensors: its hash is not the one the hub announced".to_owned()),
        (longer, format!("a file of {size} bytes that should have {}", size + 10)),
        (surplus, format!("more than the {size} bytes that were announced came")),
    ] {
        let (sandbox, hub) = (Sandbox::new(), clip());
        hub.with(faults);
        fetch(&sandbox, &hub).fails(&[REPO, &part]);
        assert!(!blob(&sandbox, &hash).exists() && !cached(&sandbox).join("refs").exists());
        run(&sandbox, &hub, &["backbones", "info", "clip-vit-b32"]).refuses(&["vpt backbones fetch clip-vit-b32"]);
        hub.with(Faults::default());
        fetch(&sandbox, &hub).ok();
        opens(&sandbox, &hub);
    }
    // Without a length, but right.
    let (sandbox, hub) = (Sandbox::new(), clip());
    hub.with(Faults { surplus: Some(0), ..Faults::default() });
    fetch(&sandbox, &hub).ok();
    opens(&sandbox, &hub);
}

#[test]
fn refusals_are_one_line_with_the_mend() {
    let hub = clip();
    let code = |code: &str| format!("X-Error-Code: {code}\r\n");
    let cases: [(&'static str, String, &[&str]); 8] = [
        ("401 Unauthorized", code("RepoNotFound"), &["no such repository", "set HF_TOKEN"]),
        (
            "401 Unauthorized",
            code("GatedRepo"),
            &["is gated: accept its conditions at http://127.0.0.1", "set HF_TOKEN"],
        ),
        ("403 Forbidden", code("GatedRepo"), &["is gated: accept its conditions at http://127.0.0.1", "set HF_TOKEN"]),
        ("403 Forbidden", String::new(), &["refuses access (403)"]),
        ("404 Not Found", code("RevisionNotFound"), &["has no revision main; see http://127.0.0.1"]),
        ("404 Not Found", code("EntryNotFound"), &["has no config.json: it is no model"]),
        ("429 Too Many Requests", "Retry-After: 60\r\n".into(), &["too many requests (429): try again in 60 seconds"]),
        ("200 OK", String::new(), &["does not answer as a hub does: it names no commit"]),
    ];
    for (status, more, parts) in cases {
        let sandbox = Sandbox::new();
        hub.with(Faults { refusal: Some((status, more)), ..Faults::default() });
        fetch(&sandbox, &hub).fails(parts);
    }
    let no_hash = format!("X-Repo-Commit: {COMMIT}\r\nETag: \"x\"\r\n");
    hub.with(Faults { refusal: Some(("200 OK", no_hash)), ..Faults::default() });
    fetch(&Sandbox::new(), &hub).fails(&["the file's hash is missing"]);
    let round = "Location: /again\r\n".to_owned();
    hub.with(Faults { refusal: Some(("302 Found", round)), ..Faults::default() });
    fetch(&Sandbox::new(), &hub).fails(&["redirects without end"]);
}

#[test]
fn without_a_hub_the_folder_to_fill_is_named() {
    let sandbox = Sandbox::new();
    let (listener, port) = server::listen();
    drop(listener);
    let by_hand =
        ["config.json, model.safetensors", "preprocessor_config.json", "tokenizer.json", "into weights/clip-vit-b32"];
    let args = ["backbones", "fetch", "clip-vit-b32"];
    let nobody = format!("http://127.0.0.1:{port}");
    run_at(&sandbox, &nobody, &args, &[]).fails(&[&by_hand[..], &[&nobody, "cannot be reached ("]].concat());
    let proxy = nobody.replace("//", "//me:secret@");
    let through = run_at(&sandbox, "http://hub.invalid", &args, &[("http_proxy", &proxy)]).fails(&by_hand);
    assert!(through.stderr.contains(&format!("through the proxy {nobody}")) && !through.stderr.contains("secret"));

    let hub = clip();
    run_at(&sandbox, &hub.endpoint(), &args, &[("HF_HUB_OFFLINE", "1")])
        .fails(&[&by_hand[..], &["HF_HUB_OFFLINE"]].concat());
    assert!(hub.seen().is_empty());
    run(&sandbox, &hub, &["backbones", "fetch", "clip-nano"]).fails(&["is part of this program"]);
    run(&sandbox, &hub, &["backbones", "fetch", "clip-vitb32"]).refuses(&["did you mean clip-vit-b32?"]);
    run(&sandbox, &hub, &["backbones", "fetch", "me/mine@../x"]).refuses(&["is no branch, tag or commit"]);
    assert!(hub.seen().is_empty());
}

#[test]
fn any_repository_and_revision_of_a_supported_family() {
    let shards = ["00001", "00002", "00003"].map(|n| format!("model-{n}-of-00003.safetensors"));
    let shards = shards.map(|name| &*Box::leak(name.into_boxed_str()));
    let names = [&["config.json", "model.safetensors.index.json"], &shards[..]].concat();
    let (sandbox, hub) = (Sandbox::new(), Hub::new("me/mine", &files("dinov2", &names)));
    let run = run(&sandbox, &hub, &["backbones", "fetch", "me/mine@refs/pr/1", "--json"]).ok();
    assert!(run.stderr.contains("the repository has no preprocessor_config.json"), "{run:#?}");
    assert_eq!(run.json()["files"].as_array().unwrap().len(), 5);
    assert!(hub.seen().iter().any(|s| s.line.starts_with("GET /me/mine/resolve/refs%2Fpr%2F1/config.json ")));
    for name in ["me/mine@refs/pr/1".to_owned(), format!("me/mine@{COMMIT}")] {
        let info = self::run(&sandbox, &hub, &["backbones", "info", &name, "--json"]).ok().json();
        assert_eq!((&info["name"], &info["hash"]), (&name.into(), &blake3(&fixture("dinov2"))));
    }
    self::run(&sandbox, &hub, &["backbones", "info", "me/mine"]).refuses(&["run `vpt backbones fetch me/mine`"]);
}

#[test]
fn weights_in_the_form_of_pytorch_become_safetensors() {
    let pickled = fs::read(Path::new(&fixture("pickle")).join("pytorch_model.bin")).unwrap();
    let config = files("vit", &["config.json"]).remove(0);
    let (sandbox, hub) = (Sandbox::new(), Hub::new("me/mine", &[config, ("pytorch_model.bin", pickled.clone())]));
    let fetch = || run(&sandbox, &hub, &["backbones", "fetch", "me/mine", "--json"]);
    let first = fetch().ok();
    assert!(first.stderr.contains("pytorch_model.bin: writing it as safetensors"), "{first:#?}");
    assert_eq!(sources(&first.json()), ["hub", "hub"]);
    let info = run(&sandbox, &hub, &["backbones", "info", "me/mine", "--json"]).ok().json();
    assert_eq!((&info["parameters"], &info["files"][0]["name"]), (&79.into(), &"model.safetensors".into()));
    run(&sandbox, &hub, &["backbones", "verify", "me/mine"]).ok();
    let blobs = sandbox.path("cache/models--me--mine/blobs");
    assert!(!blobs.join(sha256(&pickled)).exists());
    assert_eq!(crate::util::files(&blobs).len(), 2);
    assert_eq!(sources(&fetch().ok().json()), ["cache", "cache"]);

    let config = files("vit", &["config.json"]).remove(0);
    let hub = Hub::new("me/mine", &[config, ("pytorch_model.bin", pickled[..1000].to_vec())]);
    run(&Sandbox::new(), &hub, &["backbones", "fetch", "me/mine"])
        .fails(&["not a PyTorch checkpoint that can be read"]);
}

#[test]
fn a_repository_may_not_name_what_is_not_its_own() {
    let config = files("dinov2", &["config.json"]).remove(0);
    for (content, part) in [
        (r#"{"weight_map": {"a": "../../x.safetensors"}}"#, "names `../../x.safetensors`, which is not a file name"),
        (r#"{"weight_map": {"a": ".."}}"#, "names `..`, which is not a file name"),
        (r#"{"weight_map": {"a": "/etc/passwd"}}"#, "which is not a file name"),
        (r#"{"weight_map": {}}"#, "names 0 files"),
        (r#"{"weight_map": 3}"#, "not a safetensors index"),
        (
            r#"{"weight_map": {"a": "gone.safetensors"}}"#,
            "has no gone.safetensors, which its model.safetensors.index.json",
        ),
    ] {
        let index = ("model.safetensors.index.json", content.as_bytes().to_vec());
        let (sandbox, hub) = (Sandbox::new(), Hub::new("me/mine", &[config.clone(), index]));
        run(&sandbox, &hub, &["backbones", "fetch", "me/mine"]).fails(&[part]);
    }
    let many = ("model.safetensors.index.json", vec![b' '; (16 << 20) + 1]);
    let hub = Hub::new("me/mine", &[config, many]);
    run(&Sandbox::new(), &hub, &["backbones", "fetch", "me/mine"])
        .fails(&["16777217 bytes are too many for this file"]);
    let other = ("config.json", br#"{"model_type": "swin"}"#.to_vec());
    let hub = Hub::new("me/mine", &[other, ("model.safetensors", vec![0; 100])]);
    run(&Sandbox::new(), &hub, &["backbones", "fetch", "me/mine"]).fails(&["model_type: \"swin\" is not supported"]);
    assert!(hub.seen().iter().all(|s| !s.line.contains("model.safetensors")));
}

#[test]
fn damage_in_the_cache_is_found_and_mended() {
    let (sandbox, hub) = (Sandbox::new(), clip());
    let verify = |args: &[&str]| run(&sandbox, &hub, &[&["backbones", "verify", "clip-vit-b32"], args].concat());
    verify(&[]).fails(&["clip-vit-b32 is not in the Hugging Face cache; run `vpt backbones fetch clip-vit-b32`"]);
    fetch(&sandbox, &hub).ok();
    hub.seen();
    let found = verify(&["--json"]).ok().json();
    Schema::load().holds("backbones verify", &found);
    assert_eq!((&found["ok"], &found["commit"]), (&true.into(), &COMMIT.into()));
    assert!(found["files"].as_array().unwrap().iter().all(|f| f["state"] == "whole"));

    let path = blob(&sandbox, &weights().1);
    let mut bytes = fs::read(&path).unwrap();
    bytes[5000] ^= 1;
    fs::write(&path, bytes).unwrap();
    fs::remove_file(cached(&sandbox).join("snapshots").join(COMMIT).join("tokenizer.json")).unwrap();
    let found = verify(&["--json"]);
    assert_eq!(found.code, Some(1), "{found:#?}");
    assert!(found.stderr.contains("2 files are damaged or missing; mend it with `vpt backbones fetch clip-vit-b32`"));
    let states: Vec<_> = found.json()["files"].as_array().unwrap().iter().map(|f| f["state"].clone()).collect();
    assert_eq!(states, ["whole", "damaged", "whole", "missing"]);
    let text = verify(&[]).stdout;
    assert!(text.contains("damaged") && text.contains("missing"), "{text}");
    assert!(hub.seen().is_empty());

    assert_eq!(sources(&fetch(&sandbox, &hub).ok().json()), ["cache", "cache", "cache", "hub"]);
    opens(&sandbox, &hub);
    run(&sandbox, &hub, &["backbones", "verify", "clip-nano"]).ok();
}

#[test]
fn two_fetches_at_once_bring_a_file_once() {
    let (sandbox, hub) = (Sandbox::new(), clip());
    thread::scope(|scope| {
        for fetching in [(); 3].map(|()| scope.spawn(|| fetch(&sandbox, &hub))) {
            fetching.join().unwrap().ok();
        }
    });
    opens(&sandbox, &hub);
    let left: Vec<_> = crate::util::files(&blob(&sandbox, ""));
    assert_eq!(left.len(), 4, "{left:?}");
}

#[test]
fn proxies_are_used_where_they_should_be() {
    let (sandbox, hub) = (Sandbox::new(), clip());
    let count = Arc::new(Mutex::new(vec![]));
    let address = format!("http://me:word@127.0.0.1:{}", proxy(count.clone()));
    let args = ["backbones", "fetch", "clip-vit-b32"];
    run_at(&sandbox, &hub.endpoint(), &args, &[("http_proxy", &address), ("NO_PROXY", "127.0.0.1,localhost")]).ok();
    assert!(count.lock().unwrap().is_empty());
    let sandbox = Sandbox::new();
    run_at(&sandbox, &hub.endpoint(), &args, &[("HTTP_PROXY", &address)]).ok();
    let seen = count.lock().unwrap();
    let hubs = hub.endpoint().replace("http://", "CONNECT ");
    assert!(seen.iter().any(|line| line.starts_with(&hubs)), "{seen:?}");
    // `me:word` in base64.
    assert!(seen.iter().all(|line| line.to_lowercase().ends_with("basic bwu6d29yza==")), "{seen:?}");
}

#[test]
fn no_other_command_opens_a_connection() {
    let sandbox = Sandbox::new();
    sandbox.colours("colours", 4);
    sandbox.boxes("boxes", 12);
    let (port, count) = trap();
    let trap = format!("http://127.0.0.1:{port}");
    let names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
    let set: Vec<(&str, &str)> =
        names.iter().map(|name| (*name, trap.as_str())).chain([("HF_TOKEN", "hf_x")]).collect();
    let (vit, clip) = (fixture("vit"), fixture("clip"));
    let image = "colours/blue/000.png";
    let commands: [&[&str]; 16] = [
        &["train", "--backbone", &vit, "--data", "colours", "--epochs", "1", "--out", "run"],
        &["train", "--backbone", &vit, "--data", "boxes", "--epochs", "1", "--out", "boxes-run"],
        &["train", "--backbone", "clip-vit-b32", "--data", "colours", "--out", "no"],
        &["train", "--backbone", "me/mine@main", "--data", "colours", "--out", "no"],
        &["eval", "--model", "run", "--data", "colours"],
        &["predict", "--model", "run", image],
        &["embed", "--backbone", &clip, "--out", "f.safetensors", image],
        &["embed", "--backbone", "dinov2-small", "--out", "no.safetensors", image],
        &["zero-shot", "--backbone", &clip, "--data", "colours"],
        &["zero-shot", "--backbone", "clip-vit-b16", "--data", "colours"],
        &["bench", "step", "--backbone", &vit, "--batch-size", "1"],
        &["data", "info", "colours"],
        &["backbones", "list"],
        &["backbones", "info", "clip-nano"],
        &["backbones", "info", "dinov2-small"],
        &["backbones", "verify", "dinov2-small"],
    ];
    for args in commands {
        let run = run_at(&sandbox, &trap, args, &set);
        let absent = args.iter().any(|a| ["clip-vit-b32", "clip-vit-b16", "dinov2-small", "me/mine@main"].contains(a));
        assert_eq!(run.code == Some(0), !absent, "{run:#?}");
        assert_eq!(*count.lock().unwrap(), 0, "{args:?}");
    }
    // The trap does count.
    run_at(&sandbox, &trap, &["backbones", "fetch", "dinov2-small", "-q"], &[("NO_PROXY", "*")]);
    assert!(*count.lock().unwrap() > 0);
}

#[test]
fn one_file_of_the_source_names_what_opens_connections() {
    fn visit(dir: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    visit(&root.join("src"), &mut sources);
    visit(&root.join("crates"), &mut sources);
    let naming = |words: &[&str]| -> Vec<PathBuf> {
        let named = sources.iter().filter(|(_, text)| words.iter().any(|word| text.contains(word)));
        named.map(|(path, _)| path.strip_prefix(root).unwrap().to_path_buf()).collect()
    };
    let network = ["ureq", "std::net", "TcpStream", "UdpSocket", "hf_hub", "reqwest", "hyper::", "curl::"];
    // The server listens; it opens no connection either.
    let server = |path: &PathBuf| path.starts_with("crates/vpt-serve") || path.ends_with("cli/serve.rs");
    let (listening, others): (Vec<_>, Vec<_>) = naming(&network).into_iter().partition(server);
    assert_eq!(others, [Path::new("crates/vpt-backbone/src/hub/client.rs")]);
    let opening = ["::connect(", "hyper::client", "HttpConnector", "UdpSocket"];
    assert!(!listening.is_empty() && naming(&opening).iter().all(|path| !server(path)));
    // The grid runs each job in a process of its own, of this very program; shards may be what a command writes that is asked for.
    let programs = ["process::Command", "Command::new("];
    let starting = [Path::new("src/cli/few_shot.rs"), Path::new("crates/vpt-embed/src/open.rs")];
    assert_eq!(naming(&programs), starting);
    let of_grid = sources.iter().filter(|(path, _)| !path.ends_with(starting[1]));
    for (path, text) in of_grid {
        let all = text.matches("Command::new(").count();
        assert_eq!(all, text.matches("Command::new(this_program()").count(), "{}", path.display());
    }
    assert_eq!(naming(&["hub::fetch("]), [Path::new("src/cli/fetch.rs")]);
    assert_eq!(naming(&["fetch::fetch("]), [Path::new("src/cli/backbones.rs")]);
}
