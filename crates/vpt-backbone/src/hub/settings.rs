//! Where the hub is, how it is reached and who asks, from the environment variables that Hugging Face's tools read.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::registry::hub_cache;
use vpt_base::{Error, Result};

/// The hub of Hugging Face.
const ENDPOINT: &str = "https://huggingface.co";
/// A token is a word; anything larger is something else.
const MAX_TOKEN_BYTES: u64 = 1 << 12;

/// Settings of the hub's client from environment variables.
#[derive(Debug)]
pub(super) struct HubSettings {
    /// Scheme and host of the hub, without a slash at the end.
    pub(super) endpoint: String,
    /// Access token; repositories that are open to all need none.
    pub(super) token: Option<String>,
    /// The folder of `models--owner--name`.
    pub(super) cache: PathBuf,
    pub(super) proxies: Proxies,
    /// Certificates to trust instead of those built in.
    pub(super) certificates: Option<PathBuf>,
}

impl HubSettings {
    /// Reads the variables: `HF_ENDPOINT`, `HF_TOKEN` (else the file that `hf auth login` writes), the cache's as
    /// [`hub_cache`] does, `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY` and `SSL_CERT_FILE`.
    pub(super) fn new(var: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let text = |key: &str| var(key).and_then(|v| v.into_string().ok()).filter(|v| !v.trim().is_empty());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        let endpoint = endpoint.trim().trim_end_matches('/').to_owned();
        let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
        if host
            .is_none_or(|h| h.is_empty() || !h.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '@' | '?' | '#')))
        {
            return Err(Error::invalid("HF_ENDPOINT", "must be an address like https://huggingface.co"));
        }
        let cache = hub_cache(&var).ok_or_else(|| {
            Error::invalid("HF_HUB_CACHE", "neither it nor HF_HOME nor HOME says where the Hugging Face cache is")
        })?;
        let path = |key: &str| text(key).map(PathBuf::from);
        Ok(Self {
            endpoint,
            token: token(&text, cache.parent().map(|home| home.join("token")))?,
            cache,
            proxies: Proxies::new(text),
            certificates: path("SSL_CERT_FILE").or_else(|| path("REQUESTS_CA_BUNDLE")),
        })
    }
}

/// Whether `HF_HUB_OFFLINE` forbids every connection.
pub(super) fn offline(var: impl Fn(&str) -> Option<OsString>) -> bool {
    var("HF_HUB_OFFLINE")
        .and_then(|v| v.into_string().ok())
        .is_some_and(|v| matches!(v.trim().to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true"))
}

fn token(text: &impl Fn(&str) -> Option<String>, beside_cache: Option<PathBuf>) -> Result<Option<String>> {
    let (token, from) = if let Some(token) = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")) {
        (token, "HF_TOKEN".to_owned())
    } else {
        let home = text("HF_HOME").map(|home| PathBuf::from(home).join("token"));
        let Some(path) = text("HF_TOKEN_PATH").map(PathBuf::from).or(home).or(beside_cache) else { return Ok(None) };
        // No file is no token.
        let Ok(bytes) = vpt_base::files::read_limited(&path, MAX_TOKEN_BYTES) else { return Ok(None) };
        (String::from_utf8_lossy(&bytes).into_owned(), path.display().to_string())
    };
    let token = token.trim();
    if !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::invalid(from, "holds characters that no token has"));
    }
    Ok(Some(token.to_owned()).filter(|t| !t.is_empty()))
}

/// Which proxy leads to which address.
#[derive(Debug, Default)]
pub(super) struct Proxies {
    http: Option<String>,
    https: Option<String>,
    /// Hosts that are reached without one.
    none: Vec<String>,
}

impl Proxies {
    fn new(text: impl Fn(&str) -> Option<String>) -> Self {
        let either = |name: &str| text(&name.to_lowercase()).or_else(|| text(name)).map(|v| v.trim().to_owned());
        let none = either("NO_PROXY").unwrap_or_default();
        Self {
            http: either("HTTP_PROXY").or_else(|| either("ALL_PROXY")),
            https: either("HTTPS_PROXY").or_else(|| either("ALL_PROXY")),
            none: none.split(',').map(|h| h.trim().to_ascii_lowercase()).filter(|h| !h.is_empty()).collect(),
        }
    }

    /// The proxy for an address of this scheme, host and port.
    pub(super) fn of(&self, scheme: &str, host: &str, port: u16) -> Option<&str> {
        let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
        let excluded = |entry: &String| {
            let (name, only) = match entry.rsplit_once(':') {
                Some((name, digits)) if !name.contains(':') => (name, digits.parse().ok()),
                _ => (entry.as_str(), None),
            };
            let name = name.trim_start_matches("*.").trim_start_matches('.').trim_matches(['[', ']']);
            let inside = host.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'));
            only.is_none_or(|p: u16| p == port) && (name == "*" || (inside && !name.is_empty()))
        };
        if self.none.iter().any(excluded) {
            return None;
        }
        if scheme == "https" { self.https.as_deref() } else { self.http.as_deref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(set: &[(&str, &str)]) -> Result<HubSettings> {
        HubSettings::new(|key| set.iter().find(|(k, _)| *k == key).map(|(_, v)| OsString::from(v)))
    }

    #[test]
    fn the_hub_is_where_the_environment_says() {
        let plain = with(&[("HF_HUB_CACHE", "/c/hub")]).unwrap();
        assert_eq!((plain.endpoint.as_str(), plain.token, plain.cache), (ENDPOINT, None, PathBuf::from("/c/hub")));
        let set = [("HF_HUB_CACHE", "/c"), ("HF_ENDPOINT", "http://127.0.0.1:80/hf/ "), ("HF_TOKEN", " hf_x\n")];
        let set = with(&set).unwrap();
        assert_eq!((set.endpoint.as_str(), set.token.as_deref()), ("http://127.0.0.1:80/hf", Some("hf_x")));
        for (key, value, part) in [
            ("HF_ENDPOINT", "huggingface.co", "HF_ENDPOINT: must be an address"),
            ("HF_ENDPOINT", "https://", "HF_ENDPOINT: must be an address"),
            ("HF_ENDPOINT", "https://me:secret@huggingface.co", "HF_ENDPOINT: must be an address"),
            ("HF_TOKEN", "a b", "HF_TOKEN: holds characters"),
        ] {
            let message = with(&[("HF_HUB_CACHE", "/c"), (key, value)]).unwrap_err().to_string();
            assert!(message.starts_with(part), "{message}");
        }
        assert!(with(&[]).unwrap_err().to_string().contains("where the Hugging Face cache is"));
    }

    #[test]
    fn a_token_that_was_saved_is_used() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().to_str().unwrap();
        assert_eq!(with(&[("HF_HOME", dir)]).unwrap().token, None);
        std::fs::write(home.path().join("token"), "hf_saved\n").unwrap();
        assert_eq!(with(&[("HF_HOME", dir)]).unwrap().token.as_deref(), Some("hf_saved"));
        assert_eq!(with(&[("HF_HOME", dir), ("HF_TOKEN", "hf_set")]).unwrap().token.as_deref(), Some("hf_set"));
    }

    #[test]
    fn offline_is_a_yes() {
        for (value, yes) in [("1", true), ("True", true), ("on", true), ("0", false), ("", false), ("no", false)] {
            assert_eq!(offline(|_| Some(value.into())), yes, "{value}");
        }
        assert!(!offline(|_| None));
    }

    #[test]
    fn proxies_depend_on_scheme_and_host() {
        let proxies = |set: &[(&str, &str)]| {
            Proxies::new(|key| set.iter().find(|(k, _)| *k == key).map(|(_, v)| (*v).to_owned()))
        };
        let two = proxies(&[("HTTPS_PROXY", "http://s"), ("http_proxy", "http://p"), ("HTTP_PROXY", "http://other")]);
        assert_eq!(two.of("https", "hf.co", 443), Some("http://s"));
        assert_eq!(two.of("http", "hf.co", 80), Some("http://p"));
        let all = [("ALL_PROXY", "http://a"), ("NO_PROXY", " local , .hf.co,10.0.0.1:8080,[::1],*.x.org")];
        let all = proxies(&all);
        for (host, port, through) in [
            ("huggingface.co", 443, true),
            ("hf.co", 443, false),
            ("cdn.HF.co", 443, false),
            ("nothf.co", 443, true),
            ("local", 1, false),
            ("10.0.0.1", 8080, false),
            ("10.0.0.1", 80, true),
            ("[::1]", 80, false),
            ("a.x.org", 80, false),
        ] {
            assert_eq!(all.of("https", host, port).is_some(), through, "{host}:{port}");
        }
        assert_eq!(proxies(&[("ALL_PROXY", "http://a"), ("NO_PROXY", "*")]).of("http", "hf.co", 80), None);
        assert_eq!(proxies(&[]).of("http", "hf.co", 80), None);
    }
}
