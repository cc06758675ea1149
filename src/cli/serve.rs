//! `vpt serve`: many tasks on one backbone over HTTP.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytesize::ByteSize;
use clap::Args;
use serde::Deserialize;
use serde_json::json;
use vpt::files::read_limited;
use vpt::head::detect::Suppress;
use vpt::serve::{ApiKeys, Ended, ServeConfig, Serving, serve};

use super::output::{Output, message};
use super::{Global, Usage, box_args, one_of, printable, size};

/// Bytes of a configuration file at most.
const MAX_CONFIG: u64 = 1 << 20;

/// Serve many tasks on one frozen backbone over HTTP
///
/// Every task is a small file; one backbone serves all of them, and one batch mixes them. Answers are those of `vpt predict`, to
/// the last bit. Tasks are called by their file's or run's name, loaded when they are first asked, and exchanged when their file
/// changes. The page at / tries them out, /openapi.json describes every address, docs/serve.md has examples.
///
/// SIGTERM ends the server in good order with exit code 0, SIGHUP has it look at the folder of tasks now.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vpt serve --tasks runs
  curl --data-binary @cat.jpg http://127.0.0.1:8484/v1/tasks/photos-vpt-deep-1/predict
  vpt serve --tasks /srv/tasks --backbone clip-vit-b16 --host 0.0.0.0 --api-key-file keys --admin

Each option is also an environment variable (VPT_SERVE_PORT for --port) and a key of the --config file (max_queue = 64); options come
before variables, variables before the file.")]
pub(crate) struct Serve {
    #[command(flatten)]
    settings: ServeSettings,
    /// File with the same settings, as TOML
    #[arg(long, value_name = "FILE", env = "VPT_SERVE_CONFIG")]
    config: Option<PathBuf>,
}

/// What may be set, on the command line, in the environment or in a file.
#[derive(Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ServeSettings {
    /// Task files, run folders, and folders of both
    #[arg(long, value_name = "DIR|FILE", num_args = 1.., env = "VPT_SERVE_TASKS", value_delimiter = ':')]
    tasks: Vec<PathBuf>,
    /// The backbone [default: that of the first task]
    #[arg(long, value_name = "NAME|DIR", env = "VPT_SERVE_BACKBONE")]
    backbone: Option<String>,
    /// Folder to look for known backbones in, before the local Hugging Face cache
    #[arg(long, value_name = "DIR", env = "VPT_SERVE_WEIGHTS_DIR")]
    weights_dir: Option<PathBuf>,
    /// Address to listen at; 0.0.0.0 for all of the machine's [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", env = "VPT_SERVE_HOST")]
    host: Option<String>,
    /// Port to listen at; 0 for any that is free [default: 8484]
    #[arg(long, value_name = "PORT", env = "VPT_SERVE_PORT")]
    port: Option<u16>,
    /// File of keys, one a line, of which requests must bring one [default: everybody may ask]
    #[arg(long, value_name = "FILE", env = "VPT_SERVE_API_KEY_FILE")]
    api_key_file: Option<PathBuf>,
    /// Let clients put tasks into the folder and take them away
    #[arg(long, env = "VPT_SERVE_ADMIN")]
    admin: bool,
    /// Images times tasks that may wait; more are refused with status 429 [default: 512]
    #[arg(long, value_name = "N", env = "VPT_SERVE_MAX_QUEUE", value_parser = count)]
    max_queue: Option<usize>,
    /// Images times tasks that go through the backbone at a time [default: what takes a tenth of a second, going by those before, 32 at the most]
    #[arg(long, value_name = "N", env = "VPT_SERVE_MAX_BATCH", value_parser = count)]
    max_batch: Option<usize>,
    /// How long a batch waits to be filled; what waits is the batch unless set [default: 0]
    #[arg(long, value_name = "MS", env = "VPT_SERVE_BATCH_DELAY_MS", value_parser = milliseconds)]
    batch_delay_ms: Option<f64>,
    /// Memory for tasks; those that were asked longest ago are let go of [default: 1GiB]
    #[arg(long, value_name = "SIZE", env = "VPT_SERVE_TASK_MEMORY", value_parser = size)]
    task_memory: Option<ByteSize>,
    /// Also serve up to N tasks that tune weights (bias, norm, lora, full), each by itself with a copy of what it tunes [default: 0]
    #[arg(long, value_name = "N", env = "VPT_SERVE_ALLOW_TUNED")]
    allow_tuned: Option<usize>,
    /// Detectors: which boxes are one object where they lie on each other: of one class, of any classes (all), or none [default: class]
    #[arg(long, value_name = "WHICH", env = "VPT_SERVE_NMS", value_parser = one_of::<Suppress>(Suppress::NAMES))]
    nms: Option<Suppress>,
    /// Detectors: a box is dropped whose overlap (IoU) with a better one is higher [default: 0.6]
    #[arg(long, value_name = "IOU", env = "VPT_SERVE_NMS_IOU")]
    nms_iou: Option<f64>,
    /// Detectors: most boxes of an image, up to 1000 [default: 100]
    #[arg(long, value_name = "N", env = "VPT_SERVE_MAX_DETECTIONS", value_parser = count)]
    max_detections: Option<usize>,
    /// Largest body of a request [default: 32MiB]
    #[arg(long, value_name = "SIZE", env = "VPT_SERVE_MAX_BODY", value_parser = size)]
    max_body: Option<ByteSize>,
    /// Most pixels of an image [default: 50000000]
    #[arg(long, value_name = "N", env = "VPT_SERVE_MAX_PIXELS", value_parser = count)]
    max_pixels: Option<usize>,
    /// Most images of a request [default: 64]
    #[arg(long, value_name = "N", env = "VPT_SERVE_MAX_IMAGES", value_parser = count)]
    max_images: Option<usize>,
    /// Most open connections [default: 512]
    #[arg(long, value_name = "N", env = "VPT_SERVE_MAX_CONNECTIONS", value_parser = count)]
    max_connections: Option<usize>,
    /// How long a request may take, its body included [default: 30]
    #[arg(long, value_name = "S", env = "VPT_SERVE_TIMEOUT", value_parser = seconds)]
    timeout: Option<f64>,
    /// How often task files are looked at [default: 2]
    #[arg(long, value_name = "S", env = "VPT_SERVE_RESCAN", value_parser = seconds)]
    rescan: Option<f64>,
    /// How long to go on, but not ready, after SIGTERM, while whoever sends requests learns of it [default: 5]
    #[arg(long, value_name = "S", env = "VPT_SERVE_DRAIN_DELAY", value_parser = seconds)]
    drain_delay: Option<f64>,
    /// How long to wait then for what was accepted [default: 20]
    #[arg(long, value_name = "S", env = "VPT_SERVE_DRAIN_TIMEOUT", value_parser = seconds)]
    drain_timeout: Option<f64>,
    /// Count answers by task in /metrics, too
    #[arg(long, env = "VPT_SERVE_METRICS_PER_TASK")]
    metrics_per_task: bool,
    /// No line on stderr for each request
    #[arg(long, env = "VPT_SERVE_NO_ACCESS_LOG")]
    no_access_log: bool,
}

fn count(value: &str) -> Result<usize, String> {
    value.parse().ok().filter(|count| *count > 0).ok_or_else(|| "expected a number from 1 on".to_owned())
}

fn seconds(value: &str) -> Result<f64, String> {
    let sound = |seconds: &f64| (0. ..=86_400.).contains(seconds);
    value.parse().ok().filter(sound).ok_or_else(|| "expected seconds, 0 to 86400".to_owned())
}

fn milliseconds(value: &str) -> Result<f64, String> {
    let sound = |time: &f64| (0. ..=10_000.).contains(time);
    value.parse().ok().filter(sound).ok_or_else(|| "expected milliseconds, 0 to 10000".to_owned())
}

impl ServeSettings {
    /// These, and those of the file where they say nothing.
    fn over(self, file: Self) -> Self {
        Self {
            tasks: if self.tasks.is_empty() { file.tasks } else { self.tasks },
            backbone: self.backbone.or(file.backbone),
            weights_dir: self.weights_dir.or(file.weights_dir),
            host: self.host.or(file.host),
            port: self.port.or(file.port),
            api_key_file: self.api_key_file.or(file.api_key_file),
            admin: self.admin || file.admin,
            max_queue: self.max_queue.or(file.max_queue),
            max_batch: self.max_batch.or(file.max_batch),
            batch_delay_ms: self.batch_delay_ms.or(file.batch_delay_ms),
            task_memory: self.task_memory.or(file.task_memory),
            allow_tuned: self.allow_tuned.or(file.allow_tuned),
            nms: self.nms.or(file.nms),
            nms_iou: self.nms_iou.or(file.nms_iou),
            max_detections: self.max_detections.or(file.max_detections),
            max_body: self.max_body.or(file.max_body),
            max_pixels: self.max_pixels.or(file.max_pixels),
            max_images: self.max_images.or(file.max_images),
            max_connections: self.max_connections.or(file.max_connections),
            timeout: self.timeout.or(file.timeout),
            rescan: self.rescan.or(file.rescan),
            drain_delay: self.drain_delay.or(file.drain_delay),
            drain_timeout: self.drain_timeout.or(file.drain_timeout),
            metrics_per_task: self.metrics_per_task || file.metrics_per_task,
            no_access_log: self.no_access_log || file.no_access_log,
        }
    }

    /// Fails where a file says what the command line would refuse.
    fn check(&self) -> Result<(), Usage> {
        let counts = [
            ("max_queue", self.max_queue),
            ("max_batch", self.max_batch),
            ("max_pixels", self.max_pixels),
            ("max_images", self.max_images),
            ("max_connections", self.max_connections),
        ];
        if let Some((name, _)) = counts.into_iter().find(|(_, count)| *count == Some(0)) {
            return Err(Usage(format!("{name}: expected a number from 1 on")));
        }
        let times = [
            ("timeout", self.timeout),
            ("rescan", self.rescan),
            ("drain_delay", self.drain_delay),
            ("drain_timeout", self.drain_timeout),
            ("batch_delay_ms", self.batch_delay_ms),
        ];
        let bad = times.into_iter().find(|(_, time)| time.is_some_and(|time| !(0. ..=86_400.).contains(&time)));
        bad.map_or(Ok(()), |(name, _)| Err(Usage(format!("{name}: expected a time from 0 to 86400"))))
    }

    fn config(self, global: &Global) -> anyhow::Result<ServeConfig> {
        let (usual, threads) = (ServeConfig::default(), global.threads());
        let boxes = box_args::options(self.nms, self.nms_iou, self.max_detections);
        boxes.check()?;
        let time = |seconds: Option<f64>, usual| seconds.map_or(usual, Duration::from_secs_f64);
        let bytes = |size: Option<ByteSize>, usual| size.map_or(usual, |size| size.as_u64());
        Ok(ServeConfig {
            tasks: self.tasks,
            backbone: self.backbone,
            weights_dir: self.weights_dir,
            precision: global.asked_precision(),
            threads,
            host: self.host.unwrap_or(usual.host),
            port: self.port.unwrap_or(usual.port),
            keys: self.api_key_file.as_deref().map(ApiKeys::read).transpose()?.unwrap_or_default(),
            admin: self.admin,
            max_queue: self.max_queue.unwrap_or(usual.max_queue),
            max_batch: self.max_batch,
            batch_delay: time(self.batch_delay_ms.map(|time| time / 1e3), usual.batch_delay),
            task_memory: bytes(self.task_memory, usual.task_memory),
            allow_tuned: self.allow_tuned.unwrap_or(usual.allow_tuned),
            boxes,
            max_body: bytes(self.max_body, usual.max_body as u64) as usize,
            max_pixels: self.max_pixels.unwrap_or(usual.max_pixels),
            max_images: self.max_images.unwrap_or(usual.max_images),
            max_connections: self.max_connections.unwrap_or(usual.max_connections),
            timeout: time(self.timeout, usual.timeout),
            rescan: time(self.rescan, usual.rescan),
            drain_delay: time(self.drain_delay, usual.drain_delay),
            drain_timeout: time(self.drain_timeout, usual.drain_timeout),
            metrics_per_task: self.metrics_per_task,
        })
    }
}

pub(crate) fn run(args: Serve, global: &Global, out: Output) -> anyhow::Result<()> {
    // It stays up for long, and one large image must not be paid for ever after.
    vpt::kernel::return_large_blocks();
    let Serve { mut settings, config: file } = args;
    if let Some(path) = &file {
        let bytes = read_limited(path, MAX_CONFIG)?;
        let text = std::str::from_utf8(&bytes).with_context(|| path.display().to_string())?;
        let of_file = toml::from_str(text).with_context(|| path.display().to_string())?;
        settings = settings.over(of_file);
    }
    settings.check()?;
    for path in &settings.tasks {
        std::fs::metadata(path).with_context(|| path.display().to_string())?;
    }
    let is_logged = !settings.no_access_log && !global.quiet;
    let config = settings.config(global)?;
    if config.keys.is_empty() && config.host != "localhost" && !is_loopback(&config.host) && !global.quiet {
        message(&format!("warning: everybody who reaches {} may ask; --api-key-file asks for keys", config.host));
    }
    let log = move |line: &str| {
        if is_logged {
            message(&printable(line));
        }
    };
    let listening = |serving: &Serving| {
        for line in &serving.passed_by {
            log(line);
        }
        let Serving { address, backbone, tasks, .. } = serving;
        let address = format!("http://{address}");
        let told = json!({ "address": address, "backbone": backbone, "tasks": tasks });
        let text = || format!("listening on {address}: {tasks} tasks on {backbone}");
        out.result(&told, text).map_err(|error| vpt::Error::invalid("stdout", error.to_string()))
    };
    match serve(config, Arc::new(log), listening)? {
        Ended::Drained => Ok(()),
        Ended::Late => anyhow::bail!("ended before all requests were answered; --drain-timeout gives them longer"),
        Ended::Killed(signal) => std::process::exit(128 + signal),
    }
}

/// Whether nobody but this machine reaches the address.
fn is_loopback(host: &str) -> bool {
    host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
