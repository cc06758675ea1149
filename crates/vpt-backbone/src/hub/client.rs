//! Requests to the hub, one file at a time. The only file of this crate that can open a connection.
//!
//! A file of a repository is `{endpoint}/{owner}/{name}/resolve/{revision}/{file}`. The hub answers with the commit the
//! revision stands for, and with the file's hash and length; large files it leaves to another host by a redirect. Who
//! asks is told to the hub and to nobody else.

use std::cell::Cell;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use ureq::http::Uri;
use ureq::http::uri::Authority;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Proxy};

use super::settings::{HubSettings, Proxies};
use vpt_base::files::read_limited;
use vpt_base::{Error, Result};

/// To reach a host, and between two pieces of an answer.
const CONNECT: Duration = Duration::from_secs(15);
const STALL: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 8;
/// All of the world's certificate authorities take a quarter of a megabyte.
const MAX_CERTIFICATES_BYTES: u64 = 16 << 20;

/// Asks the hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    proxies: Proxies,
    /// Whether the hub has ever answered.
    reached: Cell<bool>,
}

/// A file on its way.
pub(super) struct Answer {
    /// The commit the revision stands for.
    pub(super) commit: String,
    /// The file's hash; see [`super::digest`].
    pub(super) tag: String,
    /// Length of the whole file.
    pub(super) size: u64,
    /// Where in the file `body` begins.
    pub(super) from: u64,
    pub(super) body: Box<dyn Read>,
}

/// Why there is no [`Answer`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RequestFailure {
    /// There is no such file in the repository.
    Absent,
    /// Nobody answers at the hub's address.
    Unreachable(String),
    /// The connection broke, or the hub is busy: another try may go well.
    Broken(String),
    /// The hub refuses, and will do so again.
    Refused(String),
}

/// A request for a file.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    /// `owner/name`.
    pub(super) repo: &'a str,
    pub(super) revision: &'a str,
    pub(super) file: &'a str,
    /// The first byte that is wanted.
    pub(super) from: u64,
}

impl Client {
    pub(super) fn new(settings: HubSettings) -> Result<Self> {
        let mut tls = TlsConfig::builder();
        if let Some(path) = &settings.certificates {
            let pem = read_limited(path, MAX_CERTIFICATES_BYTES)?;
            let certificates: Vec<_> = parse_pem(&pem)
                .filter_map(|item| if let Ok(PemItem::Certificate(c)) = item { Some(c) } else { None })
                .collect();
            if certificates.is_empty() {
                return Err(Error::weights(path, "holds no certificates"));
            }
            tls = tls.root_certs(RootCerts::Specific(Arc::new(certificates)));
        }
        let agent = Agent::config_builder()
            .tls_config(tls.build())
            .proxy(None)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(STALL))
            .timeout_per_read(Some(STALL))
            .user_agent(concat!("vpt/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .build()
            .new_agent();
        let HubSettings { endpoint, token, proxies, .. } = settings;
        Ok(Self { agent, endpoint, token, proxies, reached: Cell::new(false) })
    }

    /// The hub's address.
    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Whether the hub has ever answered.
    pub(super) fn has_answered(&self) -> bool {
        self.reached.get()
    }

    /// Asks for a file, or the rest of it.
    pub(super) fn get(&self, request: Request) -> Result<Answer, RequestFailure> {
        let mut url = format!(
            "{}/{}/resolve/{}/{}",
            self.endpoint,
            request.repo,
            escaped(request.revision),
            escaped(request.file)
        );
        let home = Origin::of(&url)?;
        let mut told = AnswerHeaders::default();
        for _ in 0..=MAX_REDIRECTS {
            let place = Origin::of(&url)?;
            let at_home = place == home;
            let response = self.call(&url, &place, at_home, request.from)?;
            self.reached.set(true);
            let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
            if at_home {
                told.note(header);
            }
            match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => {
                    let to = header("location").ok_or_else(|| odd("a redirect to nowhere"))?;
                    url = place.redirect(to)?;
                }
                status @ (200 | 206) => {
                    let (length, range) =
                        (header("content-length").map(str::to_owned), header("content-range").map(str::to_owned));
                    let (tag, commit) = told.hash_and_commit(self.endpoint())?;
                    let (from, total) = extent(status, request.from, length.as_deref(), range.as_deref())?;
                    let size = match (told.size, total) {
                        (Some(told), Some(sent)) if told != sent => {
                            return Err(odd(&format!("a file of {sent} bytes that should have {told}")));
                        }
                        (told, sent) => told.or(sent).ok_or_else(|| odd("a file of unknown length"))?,
                    };
                    let body = Box::new(response.into_body().into_reader());
                    return Ok(Answer { commit, tag, size, from, body });
                }
                status => {
                    let code = header("x-error-code").unwrap_or_default().to_owned();
                    let wait = header("retry-after").map(str::to_owned);
                    return Err(self.refusal(status, &code, wait.as_deref(), request));
                }
            }
        }
        Err(odd("redirects without end"))
    }

    fn call(
        &self,
        url: &str,
        place: &Origin,
        at_home: bool,
        from: u64,
    ) -> Result<ureq::http::Response<ureq::Body>, RequestFailure> {
        let proxy = self.proxies.of(&place.scheme, place.authority.host(), place.port());
        let through = proxy.and_then(shown).map(|p| format!(" through the proxy {p}")).unwrap_or_default();
        let unusable =
            |_| RequestFailure::Refused("the proxy of the environment is no address like http://host:port".to_owned());
        let proxy = proxy.map(Proxy::new).transpose().map_err(unusable)?;
        let mut call = self.agent.get(url).config().proxy(proxy).build();
        if from > 0 {
            call = call.header("range", format!("bytes={from}-"));
        }
        if let (true, Some(token)) = (at_home, &self.token) {
            call = call.header("authorization", format!("Bearer {token}"));
        }
        call.call().map_err(|error| {
            let why = format!("{}{through}", plain(&error));
            // A hub that answered a minute ago will do so again.
            if nobody(&error) && !self.reached.get() {
                RequestFailure::Unreachable(why)
            } else {
                RequestFailure::Broken(why)
            }
        })
    }

    /// Meaning of a refusal by the hub, and its mend.
    fn refusal(&self, status: u16, code: &str, wait: Option<&str>, request: Request) -> RequestFailure {
        let Request { repo, revision, .. } = request;
        let page = format!("{}/{repo}", self.endpoint);
        let mend = if self.token.is_some() {
            "the token in HF_TOKEN may not read it"
        } else {
            "if it is private, set HF_TOKEN to a token that may read it"
        };
        RequestFailure::Refused(match (status, code) {
            (404, "RevisionNotFound") => format!("has no revision {revision}; see {page}"),
            (_, "RepoNotFound") => format!("there is no such repository, or {mend}"),
            (404, _) => return RequestFailure::Absent,
            (401 | 403, "GatedRepo") => {
                format!("is gated: accept its conditions at {page} and set HF_TOKEN to a token of your account")
            }
            (401, _) => format!("the hub asks who you are (401): there is no such repository, or {mend}"),
            (403, _) => format!("the hub refuses access (403): {mend}, or accept its conditions at {page}"),
            (429, _) => {
                let wait = wait.filter(|w| w.len() < 8 && w.bytes().all(|b| b.is_ascii_digit()));
                let wait = wait.map_or_else(|| "later".to_owned(), |seconds| format!("in {seconds} seconds"));
                let token =
                    if self.token.is_none() { ", or set HF_TOKEN: who is known may ask more often" } else { "" };
                format!("the hub has had too many requests (429): try again {wait}{token}")
            }
            (416, _) => return RequestFailure::Broken("the hub has no such part of the file".to_owned()),
            (500.. | 408, _) => return RequestFailure::Broken(format!("the hub answered {status}")),
            _ => format!("the hub answered {status}"),
        })
    }
}

/// Scheme and authority of an address.
#[derive(Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    authority: Authority,
}

impl Origin {
    fn of(url: &str) -> Result<Self, RequestFailure> {
        let uri: Uri = url.parse().map_err(|_| odd("an address that is none"))?;
        match (uri.scheme_str(), uri.authority()) {
            (Some(scheme @ ("http" | "https")), Some(authority)) => {
                Ok(Self { scheme: scheme.to_owned(), authority: authority.clone() })
            }
            _ => Err(odd("an address that is none")),
        }
    }

    fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(if self.scheme == "https" { 443 } else { 80 })
    }

    /// The address that `location`, found here, leads to. Never from a secured connection to an open one.
    fn redirect(&self, location: &str) -> Result<String, RequestFailure> {
        let Self { scheme, authority } = self;
        let url = match location {
            _ if location.starts_with("//") => format!("{scheme}:{location}"),
            _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
            _ => location.to_owned(),
        };
        if scheme == "https" && Self::of(&url)?.scheme != "https" {
            return Err(odd("a redirect that is not secured"));
        }
        Ok(url)
    }
}

/// Facts about a file from the headers of the hub's answers, those of redirects included.
#[derive(Default)]
struct AnswerHeaders {
    commit: Option<String>,
    linked: Option<String>,
    tag: Option<String>,
    size: Option<u64>,
}

impl AnswerHeaders {
    fn note<'a>(&mut self, header: impl Fn(&str) -> Option<&'a str>) {
        let tag = |name| header(name).map(|v| v.trim_start_matches("W/").trim_matches('"').to_owned());
        let Self { commit, linked, tag: own, size } = self;
        *commit = commit.take().or_else(|| header("x-repo-commit").map(str::to_owned));
        *linked = linked.take().or_else(|| tag("x-linked-etag"));
        *own = own.take().or_else(|| tag("etag"));
        *size = size.or_else(|| header("x-linked-size").and_then(|v| v.parse().ok()));
    }

    fn hash_and_commit(&self, endpoint: &str) -> Result<(String, String), RequestFailure> {
        let lacks = |what: &str| RequestFailure::Refused(format!("{endpoint} does not answer as a hub does: {what}"));
        let hash = |s: &&String| matches!(s.len(), 40 | 64) && s.bytes().all(|b| b.is_ascii_hexdigit());
        let commit = self.commit.as_ref().filter(hash).ok_or_else(|| lacks("it names no commit (x-repo-commit)"))?;
        let tag = self.linked.as_ref().or(self.tag.as_ref()).filter(hash);
        let tag = tag.ok_or_else(|| lacks("the file's hash is missing (etag), so that it could not be checked"))?;
        Ok((tag.to_ascii_lowercase(), commit.to_ascii_lowercase()))
    }
}

/// Where the body of an answer begins, and the length of the whole file if that is said.
fn extent(
    status: u16,
    asked: u64,
    length: Option<&str>,
    range: Option<&str>,
) -> Result<(u64, Option<u64>), RequestFailure> {
    if status == 200 {
        return Ok((0, length.and_then(|v| v.parse().ok())));
    }
    let parts = range.and_then(|v| v.strip_prefix("bytes ")).and_then(|v| v.split_once('/'));
    let begin = parts.and_then(|(span, _)| span.split_once('-')).and_then(|(begin, _)| begin.parse::<u64>().ok());
    match (begin, parts) {
        (Some(begin), Some((_, total))) if begin == asked => Ok((begin, total.parse().ok())),
        _ => Err(odd("another part of the file than the one asked for")),
    }
}

fn odd(what: &str) -> RequestFailure {
    RequestFailure::Refused(format!("the hub's answer cannot be used: {what}"))
}

/// `text` as one segment of a path.
fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// A proxy's address without the name and password that may be in it.
fn shown(proxy: &str) -> Option<String> {
    let (scheme, rest) = proxy.split_once("://").unwrap_or(("http", proxy));
    let host = rest.rsplit('@').next()?.trim_end_matches('/');
    Some(format!("{scheme}://{host}"))
}

/// Whether the error says that there is nobody to talk to.
fn nobody(error: &ureq::Error) -> bool {
    use std::io::ErrorKind;
    match error {
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::ConnectProxyFailed(_)
        | ureq::Error::Tls(_)
        | ureq::Error::Rustls(_)
        | ureq::Error::Timeout(_) => true,
        ureq::Error::Io(error) => !matches!(
            error.kind(),
            ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof
        ),
        _ => false,
    }
}

fn plain(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => "there is no such host".to_owned(),
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        ureq::Error::Io(error) => trusted(error.to_string()),
        other => trusted(other.to_string()),
    }
}

/// Behind a proxy that opens secured connections, certificates are another's.
fn trusted(why: String) -> String {
    if why.contains("certificate") { format!("{why}; SSL_CERT_FILE says whom to trust") } else { why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_secured() {
        let home = Origin::of("https://huggingface.co/a/b").unwrap();
        assert_eq!(home.redirect("/api/x?y=1").unwrap(), "https://huggingface.co/api/x?y=1");
        assert_eq!(home.redirect("//cdn.hf.co/x").unwrap(), "https://cdn.hf.co/x");
        let other = home.redirect("https://cdn.hf.co/x").unwrap();
        assert_ne!(Origin::of(&other).unwrap(), home);
        assert_eq!(Origin::of("https://HuggingFace.co/").unwrap(), home);
        assert_ne!(Origin::of("https://huggingface.co:444/").unwrap(), home);
        for bad in ["http://cdn.hf.co/x", "ftp://x/y", "x/y", ""] {
            assert!(home.redirect(bad).is_err(), "{bad}");
        }
        assert!(Origin::of("http://localhost/").unwrap().redirect("http://cdn/x").is_ok());
    }

    #[test]
    fn an_answer_is_the_part_asked_for() {
        assert_eq!(extent(200, 5, Some("9"), None), Ok((0, Some(9))));
        assert_eq!(extent(206, 5, Some("4"), Some("bytes 5-8/9")), Ok((5, Some(9))));
        assert_eq!(extent(206, 5, None, Some("bytes 5-8/*")), Ok((5, None)));
        for range in [None, Some("bytes 4-8/9"), Some("5-8/9"), Some("bytes */9"), Some("bytes 5-8")] {
            assert!(extent(206, 5, None, range).is_err(), "{range:?}");
        }
    }

    #[test]
    fn addresses_hold_no_surprises() {
        assert_eq!(escaped("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(escaped("a b?#é.bin"), "a%20b%3F%23%C3%A9.bin");
        assert_eq!(shown("http://me:secret@proxy:8080/").unwrap(), "http://proxy:8080");
        assert_eq!(shown("proxy:8080").unwrap(), "http://proxy:8080");
    }
}
