//! What a file says of itself: the keys that Ultralytics' readers look for, as Python literals that evaluate to nothing but
//! themselves, and one JSON of ours.

use serde_json::{Value, json};

use crate::ExportOptions;
use crate::graph::Graph;
use crate::proto::ProtoMessage;
use vpt_backbone::Backbone;
use vpt_base::Result;
use vpt_image::Preprocess;
use vpt_model::model::task_file::TaskMeta;

/// Version of the JSON under [`KEY`].
const SCHEMA: u32 = 1;
/// The key of our JSON.
pub const KEY: &str = "vpt";
/// The key of the parity figures, which are known once the file is written.
pub const PARITY: &str = "vpt_parity";

/// How images become windows, of a task of pixels: the shorter side is resized to `tiles` windows, which overlap by a third.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Windows<'f> {
    pub(crate) tiles: usize,
    /// The number of each class in masks of the data.
    pub(crate) indices: &'f [u16],
}

/// Facts that the metadata tells.
#[derive(Debug)]
pub(crate) struct Facts<'f> {
    /// `classify`, `multilabel`, `detect`, `segment`, `embed` or `embed-text`.
    pub(crate) task: &'static str,
    /// The method, of a learned task.
    pub(crate) method: Option<String>,
    /// Name and hash of the backbone, and the hash of its identity.
    pub(crate) backbone: (&'f str, &'f str),
    pub(crate) classes: &'f [String],
    /// Side of the images that come in.
    pub(crate) side: usize,
    /// Pixels that the image side is a multiple of.
    pub(crate) stride: usize,
    pub(crate) preprocess: &'f Preprocess,
    pub(crate) temperature: Option<f64>,
    /// BLAKE3 of the task file.
    pub(crate) task_file: Option<&'f str>,
    /// How images become square, of a detector.
    pub(crate) fit: Option<String>,
    pub(crate) windows: Option<Windows<'f>>,
    pub(crate) layout: &'static str,
    pub(crate) half: bool,
    pub(crate) nms: bool,
    pub(crate) inputs: Vec<String>,
    pub(crate) outputs: Vec<String>,
}

impl<'f> Facts<'f> {
    /// Of a file that has this `graph` of `backbone`, for images of `side` pixels; `task` is its kind.
    pub(crate) fn new(
        task: &'static str,
        backbone: &'f Backbone,
        (side, preprocess): (usize, &'f Preprocess),
        options: &ExportOptions,
        graph: &Graph,
    ) -> Result<Self> {
        Ok(Self {
            task,
            method: None,
            backbone: (&backbone.name, backbone.hash()?),
            classes: &[],
            side,
            stride: backbone.spec.patch_size,
            preprocess,
            temperature: None,
            task_file: None,
            fit: None,
            windows: None,
            layout: options.layout.name(),
            half: options.half,
            nms: false,
            inputs: graph.input_names(),
            outputs: graph.output_names(),
        })
    }

    /// The same of the task in a file with this hash.
    pub(crate) fn of_task(self, meta: &'f TaskMeta, task_file: &'f str) -> Self {
        let (classes, temperature) = (&meta.classes[..], meta.temperature);
        Self { method: Some(meta.method.to_string()), classes, temperature, task_file: Some(task_file), ..self }
    }

    /// Keys and values in the order in which they are written.
    pub(crate) fn entries(&self) -> Vec<(&'static str, String)> {
        let dense = ["detect", "segment"].contains(&self.task);
        let task = match self.task {
            "detect" => "detect",
            // Ultralytics' `segment` has a mask for each object.
            "segment" => "semantic",
            _ => "classify",
        };
        let mut entries = Vec::new();
        if !self.task.starts_with("embed") {
            let batch = 1;
            entries.extend([
                ("description", format!("vpt {} on {}", self.method.as_deref().unwrap_or_default(), self.backbone.0)),
                ("author", "vpt".to_owned()),
                ("version", env!("CARGO_PKG_VERSION").to_owned()),
                ("stride", if dense { self.stride } else { 1 }.to_string()),
                ("task", task.to_owned()),
                ("batch", batch.to_string()),
                ("channels", "3".to_owned()),
                ("imgsz", format!("[{0}, {0}]", self.side)),
                ("names", python_dict(self.classes)),
                (
                    "args",
                    format!(
                        "{{'batch': {batch}, 'half': {}, 'dynamic': False, 'simplify': False, 'opset': None, 'nms': {}}}",
                        python_bool(self.half),
                        python_bool(self.nms)
                    ),
                ),
            ]);
            if self.nms {
                entries.push(("end2end", "True".to_owned()));
            }
        }
        entries.push((KEY, self.json().to_string()));
        entries
    }

    fn json(&self) -> Value {
        let (name, identity) = self.backbone;
        let mut json = json!({
            "schema": SCHEMA,
            "vpt": env!("CARGO_PKG_VERSION"),
            "task": self.task,
            "method": self.method,
            "backbone": {"name": name, "identity": identity},
            "classes": self.classes,
            "image_size": self.side,
            "preprocess": self.preprocess,
            "temperature": self.temperature,
            "task_file": self.task_file,
            "layout": self.layout,
            "precision": if self.half { "f16" } else { "f32" },
            "inputs": self.inputs,
            "outputs": self.outputs,
        });
        if let Some(fit) = &self.fit {
            json["fit"] = fit.as_str().into();
        }
        if let Some(Windows { tiles, indices }) = self.windows {
            json["tiles"] = tiles.into();
            json["indices"] = indices.into();
        }
        json
    }
}

/// A `StringStringEntryProto`.
pub(crate) fn entry(key: &str, value: &str) -> ProtoMessage {
    ProtoMessage::default().bytes(1, key).bytes(2, value)
}

fn python_bool(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

/// `{0: 'a', 1: 'b'}`.
fn python_dict(names: &[String]) -> String {
    let entries: Vec<String> =
        names.iter().enumerate().map(|(i, name)| format!("{i}: {}", python_text(name))).collect();
    format!("{{{}}}", entries.join(", "))
}

/// `name` as a Python string literal of ASCII characters: nothing in it ends the literal.
fn python_text(name: &str) -> String {
    let escaped = |c: char| match (c, c as u32) {
        ('\'' | '\\', _) => format!("\\{c}"),
        (' '..='~', _) => c.to_string(),
        (_, number @ 0..0x100) => format!("\\x{number:02x}"),
        (_, number @ 0x100..0x1_0000) => format!("\\u{number:04x}"),
        (_, number) => format!("\\U{number:08x}"),
    };
    format!("'{}'", name.chars().map(escaped).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_literals() {
        assert_eq!(python_text("red circle"), "'red circle'");
        assert_eq!(python_text("it's a \\ trap"), r"'it\'s a \\ trap'");
        assert_eq!(python_text("a\nb\u{e9}\u{4e2d}\u{1f600}\u{0}"), r"'a\x0ab\xe9\u4e2d\U0001f600\x00'");
        let names = ["'}, __import__('os')".to_owned(), String::new()];
        assert_eq!(python_dict(&names), r"{0: '\'}, __import__(\'os\')', 1: ''}");
    }
}
