//! A hub on this machine: it speaks the Hugging Face hub's protocol, over HTTP/1.1 by hand, and does to a client whatever
//! a network and a bad hub can do.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use sha1::{Digest, Sha1};
use sha2::Sha256;

/// The commit every revision of the repository stands for.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What is wrong with the hub.
#[derive(Debug, Default, Clone)]
pub(crate) struct Faults {
    /// After how many bytes of a large file the next connections break.
    pub(crate) cuts: Vec<usize>,
    /// How many requests are answered by 503 first.
    pub(crate) busy: usize,
    /// It always sends files from their beginning.
    pub(crate) no_ranges: bool,
    /// One byte of each large file is another one than it should be.
    pub(crate) damage: bool,
    /// How much longer large files are said to be than they are.
    pub(crate) longer: u64,
    /// Large files are sent in chunks, without a length, and with so many bytes too many.
    pub(crate) surplus: Option<usize>,
    /// What it answers to everything: status line, headers.
    pub(crate) refusal: Option<(&'static str, String)>,
}

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Method and path.
    pub(crate) line: String,
    pub(crate) headers: BTreeMap<String, String>,
    /// Whether it came to the host of large files.
    pub(crate) at_store: bool,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    faults: Faults,
    seen: Vec<Seen>,
}

/// The hub: one host for the repositories, one for what is large in them, as the real one has.
#[derive(Clone)]
pub(crate) struct Hub {
    state: Arc<Mutex<State>>,
    port: u16,
    store: u16,
}

impl Hub {
    /// A hub whose only repository is `repo`, with these files. What ends in `.safetensors` or `.bin` is large.
    pub(crate) fn new(repo: &str, files: &[(&str, Vec<u8>)]) -> Self {
        let at = |name: &str| format!("/{repo}/resolve/{{}}/{name}");
        let files = files.iter().map(|(name, bytes)| (at(name), bytes.clone())).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let [(hub, port), (store, store_port)] = [(); 2].map(|()| listen());
        let this = Self { state, port, store: store_port };
        for (listener, at_store) in [(hub, false), (store, true)] {
            let this = this.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let this = this.clone();
                    thread::spawn(move || this.serve(&stream, at_store));
                }
            });
        }
        this
    }

    /// What `HF_ENDPOINT` should say.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The same hub with other faults.
    pub(crate) fn with(&self, faults: Faults) {
        self.state.lock().unwrap().faults = faults;
    }

    /// The requests that came since this was last asked.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }

    // A client that went away in the middle is no fault of the hub.
    fn serve(&self, stream: &TcpStream, at_store: bool) {
        let _ = self.answer(stream, at_store);
        let _ = stream.shutdown(Shutdown::Both);
    }

    fn answer(&self, mut stream: &TcpStream, at_store: bool) -> std::io::Result<()> {
        let (line, headers) = read_head(stream)?;
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let (faults, content, cut) = {
            let mut state = self.state.lock().unwrap();
            state.seen.push(Seen { line, headers: headers.clone(), at_store });
            if state.faults.busy > 0 {
                state.faults.busy -= 1;
                return write!(stream, "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
            let content = if at_store {
                state.files.values().find(|bytes| path == format!("/{}", sha256(bytes))).cloned()
            } else {
                state.files.get(&general(&path)).cloned()
            };
            let cut = if at_store && !state.faults.cuts.is_empty() { Some(state.faults.cuts.remove(0)) } else { None };
            (state.faults.clone(), content, cut)
        };
        if let Some((status, more)) = &faults.refusal {
            return write!(stream, "HTTP/1.1 {status}\r\n{more}Content-Length: 0\r\nConnection: close\r\n\r\n");
        }
        let Some(mut bytes) = content else {
            let code = "X-Error-Code: EntryNotFound\r\n";
            return write!(stream, "HTTP/1.1 404 Not Found\r\n{code}Content-Length: 0\r\nConnection: close\r\n\r\n");
        };
        let size = bytes.len();
        if !at_store && is_large(&path) {
            let (hash, length) = (sha256(&bytes), size as u64 + faults.longer);
            return write!(
                stream,
                "HTTP/1.1 302 Found\r\nX-Repo-Commit: {COMMIT}\r\nX-Linked-Etag: \"{hash}\"\r\nX-Linked-Size: {length}\r\n\
                 ETag: \"no-hash\"\r\nLocation: http://127.0.0.1:{}/{hash}\r\nContent-Length: 5\r\nConnection: close\r\n\r\nmoved",
                self.store
            );
        }
        // Small files are found in a second place of the same host.
        if !at_store && path.contains("/resolve/main/") {
            let to = path.replace("/resolve/main/", &format!("/resolve/{COMMIT}/"));
            return write!(
                stream,
                "HTTP/1.1 307 Moved\r\nX-Repo-Commit: {COMMIT}\r\nETag: \"{}\"\r\nLocation: {to}\r\nContent-Length: 0\r\n\
                 Connection: close\r\n\r\n",
                git(&bytes)
            );
        }
        if faults.damage && at_store {
            bytes[size / 2] ^= 1;
        }
        let asked = headers.get("range").and_then(|v| v.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let from: usize = asked.filter(|_| !faults.no_ranges).unwrap_or(0);
        if from >= size {
            return write!(stream, "HTTP/1.1 416 Range\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        let (status, range) = if from > 0 {
            ("206 Partial Content", format!("Content-Range: bytes {from}-{}/{size}\r\n", size - 1))
        } else {
            ("200 OK", String::new())
        };
        let tag = if at_store { sha256(&bytes) } else { git(&bytes) };
        let body = &bytes[from..];
        write!(
            stream,
            "HTTP/1.1 {status}\r\nX-Repo-Commit: {COMMIT}\r\nETag: W/\"{tag}\"\r\n{range}Connection: close\r\n"
        )?;
        if let Some(surplus) = faults.surplus.filter(|_| at_store) {
            write!(stream, "Transfer-Encoding: chunked\r\n\r\n")?;
            for part in [body, &vec![7; surplus][..]].into_iter().filter(|part| !part.is_empty()) {
                write!(stream, "{:x}\r\n", part.len())?;
                stream.write_all(part)?;
                write!(stream, "\r\n")?;
            }
            return write!(stream, "0\r\n\r\n");
        }
        write!(stream, "Content-Length: {}\r\n\r\n", body.len())?;
        stream.write_all(&body[..cut.unwrap_or(body.len()).min(body.len())])
    }
}

/// A proxy that tunnels; `count` counts what goes through it.
pub(crate) fn proxy(count: Arc<Mutex<Vec<String>>>) -> u16 {
    let (listener, port) = listen();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let count = count.clone();
            thread::spawn(move || {
                let Ok((line, headers)) = read_head(&client) else { return };
                let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
                let who = headers.get("proxy-authorization").cloned().unwrap_or_default();
                count.lock().unwrap().push(format!("{line} {who}"));
                let Ok(mut server) = TcpStream::connect(target) else { return };
                let _ = write!(client, "HTTP/1.1 200 OK\r\n\r\n");
                let (mut up, mut down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || std::io::copy(&mut up, &mut down));
                let _ = std::io::copy(&mut server, &mut client);
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    port
}

/// Counts connections and answers nothing.
pub(crate) fn trap() -> (u16, Arc<Mutex<usize>>) {
    let (listener, port) = listen();
    let count = Arc::new(Mutex::new(0));
    let seen = count.clone();
    thread::spawn(move || {
        for _ in listener.incoming() {
            *seen.lock().unwrap() += 1;
        }
    });
    (port, count)
}

pub(crate) fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// First line and headers of a request.
fn read_head(stream: &TcpStream) -> std::io::Result<(String, BTreeMap<String, String>)> {
    let mut lines = BufReader::new(stream.take(1 << 16)).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut headers = BTreeMap::new();
    for line in lines {
        match line?.split_once(':') {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.trim().to_owned()),
            None => break,
        };
    }
    Ok((first, headers))
}

/// The path of a file, whatever the revision.
fn general(path: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    if parts.get(3) == Some(&"resolve") && parts.len() == 6 {
        parts[4] = "{}";
    }
    parts.join("/")
}

fn is_large(path: &str) -> bool {
    [".safetensors", ".bin"].iter().any(|end| path.ends_with(end))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|d| char::from_digit(d.into(), 16).unwrap()).collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The hash git gives to a file.
pub(crate) fn git(bytes: &[u8]) -> String {
    hex(&Sha1::digest([format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat()))
}
