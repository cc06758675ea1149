//! What the server counts, for Prometheus. Labels are bounded: routes as they are declared and status codes; tasks only if asked.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// What [`ServerMetrics::text`] is.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A kind of requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfRoute {
    /// The route as it is declared.
    pub(crate) route: String,
    /// Status of the answer.
    pub(crate) code: u16,
}

/// A word of a few.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfReason {
    pub(crate) reason: &'static str,
}

/// What became of loading a task.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfResult {
    pub(crate) result: &'static str,
}

/// Answers of one task.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfTask {
    pub(crate) task: String,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct ServerMetrics {
    registry: Registry,
    pub(crate) requests: Family<OfRoute, Counter>,
    pub(crate) request_seconds: Histogram,
    pub(crate) queue_seconds: Histogram,
    pub(crate) decode_seconds: Histogram,
    pub(crate) batch_seconds: Histogram,
    pub(crate) batch_images: Histogram,
    pub(crate) batch_tasks: Histogram,
    pub(crate) queue_images: Gauge,
    pub(crate) images: Counter,
    pub(crate) of_tasks: Family<OfTask, Counter>,
    pub(crate) rejected: Family<OfReason, Counter>,
    pub(crate) tasks_loaded: Gauge,
    pub(crate) task_loads: Family<OfResult, Counter>,
    pub(crate) task_bytes: Gauge<i64, std::sync::atomic::AtomicI64>,
    pub(crate) connections: Gauge,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2., 18))
}

fn counts() -> Histogram {
    Histogram::new(exponential_buckets(1., 2., 10))
}

impl ServerMetrics {
    /// All at nothing, for a server on `backbone`.
    pub(crate) fn new(backbone: &str, precision: &str) -> Self {
        let mut registry = Registry::with_prefix("vpt");
        let of_build = [("version", env!("CARGO_PKG_VERSION")), ("backbone", backbone), ("precision", precision)];
        let of_build = of_build.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        registry.register("build", "The program and its backbone", Info::new(of_build));
        let metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            request_seconds: seconds(),
            queue_seconds: seconds(),
            decode_seconds: seconds(),
            batch_seconds: seconds(),
            batch_images: counts(),
            batch_tasks: counts(),
            queue_images: Gauge::default(),
            images: Counter::<u64, AtomicU64>::default(),
            of_tasks: Family::default(),
            rejected: Family::default(),
            tasks_loaded: Gauge::default(),
            task_loads: Family::default(),
            task_bytes: Gauge::default(),
            connections: Gauge::default(),
        };
        registry.register("requests", "Requests by route and status", metrics.requests.clone());
        for (name, help, histogram) in [
            ("request_duration", "From a request's head to its answer", &metrics.request_seconds),
            ("queue_duration", "From the queue into a batch", &metrics.queue_seconds),
            ("decode_duration", "Decoding and preparing the images of a request", &metrics.decode_seconds),
            ("batch_duration", "A batch through backbone and heads", &metrics.batch_seconds),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        registry.register("batch_images", "Images times tasks of a batch", metrics.batch_images.clone());
        registry.register("batch_tasks", "Tasks of a batch", metrics.batch_tasks.clone());
        registry.register("queue_images", "Images times tasks that wait", metrics.queue_images.clone());
        registry.register("images", "Images times tasks that were answered", metrics.images.clone());
        registry.register(
            "task_images",
            "Images that a task has answered, where it is asked for",
            metrics.of_tasks.clone(),
        );
        registry.register("rejected", "Requests that were not answered, by reason", metrics.rejected.clone());
        registry.register("tasks_loaded", "Tasks in memory", metrics.tasks_loaded.clone());
        registry.register("task_loads", "Tasks that were loaded, or could not be", metrics.task_loads.clone());
        registry.register_with_unit("task_memory", "Memory of tasks", Unit::Bytes, metrics.task_bytes.clone());
        registry.register("connections", "Open connections", metrics.connections.clone());
        Self { registry, ..metrics }
    }

    /// One request that was not answered.
    pub(crate) fn reject(&self, reason: &'static str) {
        self.rejected.get_or_create(&OfReason { reason }).inc();
    }

    /// All of it as `OpenMetrics` text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_what_prometheus_reads() {
        let metrics = ServerMetrics::new("clip-nano", "f32");
        metrics.requests.get_or_create(&OfRoute { route: "/v1/predict".to_owned(), code: 200 }).inc();
        metrics.reject("queue_full");
        metrics.queue_seconds.observe(0.01);
        let text = metrics.text();
        for line in [
            r#"vpt_requests_total{route="/v1/predict",code="200"} 1"#,
            r#"vpt_rejected_total{reason="queue_full"} 1"#,
            "vpt_queue_duration_seconds_count 1",
            r#"vpt_build_info{version="0.1.0",backbone="clip-nano",precision="f32"} 1"#,
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
