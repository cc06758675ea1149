#!/usr/bin/env python3
"""Holds what `vpt cluster k8s` prints against the schemas of Kubernetes.

    pip install kubernetes-validate
    python scripts/check_manifest.py target/release/vpt

Strict: a field that Kubernetes does not know is a fault. Exit code 1 if a manifest is not valid.
"""

import subprocess, sys

import kubernetes_validate, yaml

VPT = sys.argv[1]
VERSIONS = ["1.31", "1.33"]
EMBED = ["embed", "--backbone", "b", "--input", "/data/{000..199}.tar", "--out", "/data/e"]
CASES = {
    "embed": ["--tasks", "8", "--at-a-time", "4", "--volume", "data=/data", "--volume", "more=/more", "--", *EMBED],
    "grid": ["--namespace", "lab", "--name", "table-1", "--", "bench", "few-shot", "--data", "d", "--methods", "linear",
             "--out", "o", "--max-memory", "2GiB", "--threads", "3"],
    "train": ["--grace-period", "300", "--", "train", "--data", "it's: {mine}", "--out", "/data/a run"],
}

for name, arguments in CASES.items():
    command = [VPT, "cluster", "k8s", "--image", "registry.example/vpt:1", *arguments]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    manifest = yaml.safe_load(text)
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)
    spec = manifest["spec"]
    container = spec["template"]["spec"]["containers"][0]
    # What the schema does not say.
    assert spec["completionMode"] == "Indexed" and spec["template"]["spec"]["restartPolicy"] == "Never"
    assert {rule["onExitCodes"]["containerName"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule} == {container["name"]}
    assert container["env"][0]["value"] == str(spec["completions"])
    print(f"{name}: valid for {', '.join(VERSIONS)}; {spec['completions']} pods, {container['resources']['limits']}")
