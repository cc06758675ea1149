//! What goes wrong can be told apart by a program: by variant, and by the name of a setting.

#![allow(clippy::unwrap_used, reason = "a test that cannot make its files fails")]

use std::fs;

use vpt::backbone::{Backbone, OpenOptions};
use vpt::config::RunConfig;
use vpt::data::Dataset;
use vpt::data::boxes::BoxDataset;
use vpt::image::decode;
use vpt::methods::Method;
use vpt::model::task_file::TaskFile;
use vpt::{Error, Message};

/// Field and file of an error of a setting.
fn setting(error: &Error) -> Option<(&str, bool)> {
    match error {
        Error::Setting { field, file, .. } => Some((field, file.is_some())),
        _ => None,
    }
}

#[test]
fn a_setting_is_named_as_the_configuration_spells_it() {
    let error =
        RunConfig::default().with_options(|options| options.tokens.prompt_tokens = Some(0)).validate().unwrap_err();
    assert_eq!(setting(&error), Some(("prompt_tokens", false)));
    assert_eq!(error.to_string(), "prompt_tokens: must be at least 1");
    let error = "vpt-deap".parse::<Method>().unwrap_err();
    assert_eq!(setting(&error), Some(("method", false)));

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    fs::write(&path, "head_lr = -1.0\n").unwrap();
    let error = RunConfig::load(&path).unwrap_err();
    assert_eq!(setting(&error), Some(("head_lr", true)));
    assert_eq!(error.to_string(), format!("{}: head_lr: -1 is not a number above 0", path.display()));
}

#[test]
fn other_settings_of_a_message_are_known_as_such() {
    let config = RunConfig { method: Method::FULL, max_memory: Some(1), ..RunConfig::default() };
    let message = config.validate().unwrap_err().message();
    let upper = message.write(str::to_uppercase);
    assert!(upper.starts_with("MAX_MEMORY: not with method full") && upper.ends_with("; see MICRO_BATCH"), "{upper}");
    assert_eq!(message.write(str::to_owned), message.to_string());

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    fs::write(&path, "seed = 1\nmethod = \"vpt-deap\"\n").unwrap();
    let message: Message = RunConfig::load(&path).unwrap_err().message();
    assert!(message.write(|field| format!("<{field}>")).contains(": line 2: <method>: `vpt-deap` is not one of "));
}

#[test]
fn a_file_at_fault_is_told_apart_by_what_it_should_be() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let folder = dir.path().join("backbone");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("config.json"), "{").unwrap();
    let backbone = Backbone::open(folder.to_str().unwrap(), &OpenOptions::default()).unwrap_err();
    assert!(matches!(&backbone, Error::Weights { path, .. } if path.starts_with(&folder)), "{backbone:?}");

    let task = TaskFile::open(&at("task.safetensors", b"nothing of the kind")).unwrap_err();
    assert!(matches!(&task, Error::TaskFile { path, .. } if path.ends_with("task.safetensors")), "{task:?}");

    let image = decode(&at("a.png", b"\x89PNG\r\n\x1a\n and no more")).unwrap_err();
    assert!(matches!(&image, Error::Image { path, .. } if path.ends_with("a.png")), "{image:?}");

    let data = Dataset::open(at("table.csv", b"path,label\n"), 1).unwrap_err();
    assert!(matches!(data, Error::Data { .. }), "{data:?}");
    let boxes = BoxDataset::open(dir.path().join("nowhere"), 1).unwrap_err();
    assert!(matches!(boxes, Error::Data { .. }), "{boxes:?}");

    let absent = decode(&dir.path().join("absent.png")).unwrap_err();
    assert!(matches!(absent, Error::Io { .. }), "{absent:?}");
}
