//! An indexed job of Kubernetes'.

use std::fmt::Write;

use clap::Args;
use serde_json::json;

use super::{ClusterJob, JobArgs, SPARE, first_or_again};
use crate::cli::Usage;

/// How often a pod may fail otherwise than by being stopped.
const MOST_FAILURES: u32 = 3;

/// Print a Kubernetes manifest, for kubectl apply
///
/// An indexed job: each pod does a share. A pod that was told to stop and has saved (exit code 75), or that was disrupted, is replaced and does not
/// count as failed; one that was called wrongly (2) is not tried again. Needs Kubernetes 1.31 (`podFailurePolicy`, `backoffLimitPerIndex`).
#[derive(Debug, Args)]
pub(super) struct KubernetesArgs {
    /// Image with the program in it
    #[arg(long, value_name = "IMAGE")]
    image: String,
    /// A persistent volume claim and where it is mounted; what pods share must lie on one, the folder --out above all; may be given many
    /// times
    #[arg(long, value_name = "CLAIM=/PATH")]
    volume: Vec<String>,
    /// Seconds between SIGTERM and the end of a pod
    #[arg(long, value_name = "SECONDS", default_value_t = 90, value_parser = clap::value_parser!(u32).range(5..=3600))]
    grace_period: u32,
    /// Namespace [default: kubectl's]
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    pub(super) job: JobArgs,
}

impl KubernetesArgs {
    /// Seconds from the signal on in which a process must have saved.
    pub(super) fn grace(&self) -> u32 {
        self.grace_period.saturating_sub(SPARE).max(self.grace_period / 2)
    }

    /// The manifest. Values are JSON, which YAML has as part of itself.
    pub(super) fn manifest(&self, job: &ClusterJob) -> Result<String, Usage> {
        let mut volumes = Vec::new();
        for volume in &self.volume {
            match volume.split_once('=') {
                Some((claim, path)) if !claim.is_empty() && path.starts_with('/') => volumes.push((claim, path)),
                _ => return Err(Usage(format!("--volume: `{}` is not CLAIM=/PATH", volume.escape_debug()))),
            }
        }
        let command = match &job.resume {
            None => job.command.clone(),
            Some((folder, again)) => {
                let line = first_or_again(&job.command, folder, again, "exec ");
                vec!["sh".to_owned(), "-c".to_owned(), line]
            }
        };
        let (tasks, at_a_time) = (job.tasks, job.at_a_time);
        let resources = json!({"cpu": job.cpus.to_string(), "memory": format!("{}Mi", job.memory.div_ceil(1 << 20))});
        let namespace =
            self.namespace.as_ref().map(|name| format!("\n  namespace: {}", json!(name))).unwrap_or_default();
        let mut text = format!(
            "# {about}. Apply it with: kubectl apply -f FILE
apiVersion: batch/v1
kind: Job
metadata:
  name: {name}{namespace}
spec:
  completionMode: Indexed
  completions: {tasks}
  parallelism: {at_a_time}
  backoffLimitPerIndex: {MOST_FAILURES}
  maxFailedIndexes: {tasks}
  podFailurePolicy:
    rules:
    # Told to stop, and has saved.
    - action: Ignore
      onExitCodes: {{containerName: vpt, operator: In, values: [75]}}
    # Preempted, or on a node that was drained.
    - action: Ignore
      onPodConditions: [{{type: DisruptionTarget, status: \"True\"}}]
    # Wrong usage does not become right by itself.
    - action: FailIndex
      onExitCodes: {{containerName: vpt, operator: In, values: [2]}}
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: {grace}
      containers:
      - name: vpt
        image: {image}
        command: {command}
        env:
        # How many pods there are, which no variable of Kubernetes' says; JOB_COMPLETION_INDEX says which this is.
        - {{name: VPT_SHARDS, value: \"{tasks}\"}}
        resources:
          requests: {resources}
          limits: {resources}
",
            about = job.about,
            name = json!(job.name),
            grace = self.grace_period,
            image = json!(self.image),
            command = json!(command),
        );
        if !volumes.is_empty() {
            text.push_str("        volumeMounts:\n");
            for (number, (_, path)) in volumes.iter().enumerate() {
                let _ = writeln!(text, "        - {}", json!({"name": format!("volume-{number}"), "mountPath": path}));
            }
            text.push_str("      volumes:\n");
            for (number, (claim, _)) in volumes.iter().enumerate() {
                let source = json!({"claimName": claim});
                let _ = writeln!(
                    text,
                    "      - {}",
                    json!({"name": format!("volume-{number}"), "persistentVolumeClaim": source})
                );
            }
        }
        Ok(text)
    }
}
