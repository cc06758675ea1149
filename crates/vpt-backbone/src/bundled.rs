//! The backbone inside the binary: clip-nano, so that everything can be tried without a download.

/// Its known name.
pub const NAME: &str = "clip-nano";

/// Its files, as they would lie in a folder: name and content.
const FILES: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("../clip-nano/config.json")),
    ("model.safetensors", include_bytes!("../clip-nano/model.safetensors")),
    ("preprocessor_config.json", include_bytes!("../clip-nano/preprocessor_config.json")),
    ("tokenizer.json", include_bytes!("../clip-nano/tokenizer.json")),
];

/// The content of one of its files.
pub fn file(name: &str) -> Option<&'static [u8]> {
    FILES.iter().find(|(n, _)| *n == name).map(|&(_, bytes)| bytes)
}
