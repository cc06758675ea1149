//! A server under test, and the least of a client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fs, thread};

use serde_json::Value;

use crate::old_runs::{VERSION, copy, filled};
use crate::util::{Sandbox, fixture, json_file};

/// A server that runs; killed where a test ends before it.
pub(crate) struct Server {
    child: Child,
    _stdout: BufReader<ChildStdout>,
    stderr: Arc<Mutex<String>>,
    pub(crate) address: String,
    /// What it has told on stdout.
    pub(crate) told: String,
}

impl Server {
    /// Starts one in the folder, at a port that is free.
    pub(crate) fn start(sandbox: &Sandbox, args: &[&str]) -> Self {
        let delay: &[&str] = if args.contains(&"--drain-delay") { &[] } else { &["--drain-delay", "0.2"] };
        let all = [&["serve", "--port", "0", "--threads", "2"], delay, args].concat();
        let mut child = sandbox.command(&all).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = Arc::new(Mutex::new(String::new()));
        let (mut pipe, said) = (BufReader::new(child.stderr.take().unwrap()), stderr.clone());
        thread::spawn(move || {
            let mut line = String::new();
            while pipe.read_line(&mut line).is_ok_and(|read| read > 0) {
                said.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut told = String::new();
        // A line, or an object over several.
        while stdout.read_line(&mut told).is_ok_and(|read| read > 0) && told.starts_with('{') && !told.ends_with("}\n")
        {
        }
        let address = told.split_once("http://").and_then(|(_, rest)| rest.split(&[' ', '"'][..]).next());
        let address = address.map(|address| address.trim_end_matches(':'));
        let address =
            address.unwrap_or_else(|| panic!("no address in {told:?}: {}", stderr.lock().unwrap())).to_owned();
        Self { child, _stdout: stdout, stderr, address, told }
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        request(&self.address, "GET", path, &[], b"").unwrap()
    }

    pub(crate) fn post(&self, path: &str, kind: &str, body: &[u8]) -> Response {
        request(&self.address, "POST", path, &[("Content-Type", kind)], body).unwrap()
    }

    /// Asks tasks about images in one request; a list of results, an object an image.
    pub(crate) fn predict(&self, images: &[Vec<u8>], tasks: &[&str], more: &str) -> Response {
        let images: Vec<String> = images.iter().map(|image| base64(image)).collect();
        let body = serde_json::json!({ "images": images, "tasks": tasks }).to_string();
        self.post(&format!("/v1/predict{more}"), "application/json", body.as_bytes())
    }

    /// What it has said on stderr.
    pub(crate) fn said(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// The value of a counter that is one line of the metrics.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().parse().unwrap()
    }

    pub(crate) fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Bytes that it has in memory.
    #[cfg(target_os = "linux")]
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() << 10
    }

    /// How it ends.
    pub(crate) fn end(mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "it does not end: {}", self.said());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it in good order.
    pub(crate) fn stop(self) {
        self.signal("TERM");
        let said = self.stderr.clone();
        assert_eq!(self.end().code(), Some(0), "{}", said.lock().unwrap());
        let said = said.lock().unwrap();
        assert!(!said.contains("internal fault") && !said.contains("panicked"), "{said}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.head.lines().filter_map(|line| line.split_once(':'));
        found.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// It was answered.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.status, 200, "{self:?}: {}", String::from_utf8_lossy(&self.body));
        self
    }

    /// It was refused, in the one form of errors, with a message that holds this.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, part: &str) {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        let body = self.json();
        let error = &body["error"];
        let message = error["message"].as_str().or(error.as_str()).unwrap();
        assert!(message.contains(part), "{message}");
        assert!(self.header("x-request-id").is_some(), "{self:?}");
        if error.is_object() {
            assert_eq!(error["code"], status);
            assert_eq!(error["request_id"], self.header("x-request-id").unwrap());
        }
    }
}

/// One request on a connection of its own.
pub(crate) fn request(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Response> {
    let headers: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let (headers, length) = (headers.concat(), body.len());
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    raw(address, &[head.as_bytes(), body].concat())
}

/// Sends these bytes and reads what comes back to its end.
pub(crate) fn raw(address: &str, bytes: &[u8]) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    // Who is refused early does not read on.
    let _ = stream.write_all(bytes);
    let mut all = Vec::new();
    let read = stream.read_to_end(&mut all);
    if all.is_empty() {
        read?;
    }
    let end = all.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or_else(|| std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "no answer"))?;
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok(Response { status, head, body: all[end + 4..].to_vec() })
}

/// Base64, by hand: the tests have no need of a crate for it.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let word = three.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for i in 0..4 {
            let letter = char::from(LETTERS[(word >> (18 - 6 * i)) as usize & 63]);
            text.push(if i <= three.len() { letter } else { '=' });
        }
    }
    text
}

/// Puts the runs on `backbone` among those of the first version into the folder `tasks`, with the backbone where they look for it.
/// Returns their names.
pub(crate) fn old_tasks(sandbox: &Sandbox, backbone: &str) -> Vec<String> {
    let version = fixture(VERSION);
    let version = Path::new(&version);
    copy(&version.join("data"), &sandbox.path("data"));
    copy(Path::new(&fixture(backbone)), &sandbox.path("fixtures").join(backbone));
    let runs = json_file(&version.join("runs.json"));
    let own = runs.as_array().unwrap().iter().filter(|run| run["backbone"] == backbone);
    own.map(|run| {
        let name = run["name"].as_str().unwrap().to_owned();
        let read = |file: &str| fs::read(version.join(&name).join(file)).unwrap();
        let file = if run["large"] == true { filled(&read("finished.header")) } else { read("finished.safetensors") };
        sandbox.write(&format!("tasks/{name}/best.safetensors"), file);
        sandbox.write(&format!("tasks/{name}/config.toml"), read("config.toml"));
        name
    })
    .collect()
}

/// What `vpt predict` says of images by a task: of each, lines of label, score and box, as the server has them.
pub(crate) fn predicted(sandbox: &Sandbox, model: &str, images: &[&str]) -> Vec<Value> {
    let info = sandbox.vpt(&["task", "info", model, "--json"]).ok().json();
    let least: &[&str] = if info["task"] == "detect" { &["--min-score", "0"] } else { &[] };
    let args = [&["predict", "--model", model, "--threads", "2", "--json"], least, images].concat();
    let answers = sandbox.vpt(&args).ok().json();
    let line = |guess: &Value| serde_json::json!({ "label": guess["label"], "score": guess["probability"] });
    let of_image = |answer: &Value| {
        if answer["boxes"].is_array() {
            return answer["boxes"].clone();
        }
        let guesses = if answer["top5"].is_array() { &answer["top5"] } else { &answer["labels"] };
        Value::Array(guesses.as_array().unwrap().iter().map(line).collect())
    };
    answers["predictions"].as_array().unwrap().iter().map(of_image).collect()
}
