//! `environment.json`: what a run ran on, for whoever wants to repeat it or finds that it ran slowly.

use std::fs;

use serde_json::{Value, json};

/// Version of this program, operating system, processor, its vector instructions, threads and memory. Holds no host,
/// user or path name, so that a run folder can be passed on.
pub fn environment(threads: usize) -> Value {
    json!({
        "vpt": env!("CARGO_PKG_VERSION"),
        "optimised": !cfg!(debug_assertions),
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "cpu": proc_field("/proc/cpuinfo", "model name"),
        "vector_instructions": vector_instructions(),
        "cpus": std::thread::available_parallelism().map_or(1, usize::from),
        "threads": threads,
        "memory_bytes": memory_bytes(),
    })
}

/// The value of the first line `field : value` of a file like those in `/proc`.
fn proc_field(path: &str, field: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.trim_start().strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

fn memory_bytes() -> Option<u64> {
    let kib: u64 = proc_field("/proc/meminfo", "MemTotal")?.strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Of the sets that the matrix kernels choose between at run time, those the processor has.
fn vector_instructions() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let sets = [
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("fma", std::arch::is_x86_feature_detected!("fma")),
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
            ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
        ];
        sets.into_iter().filter_map(|(name, present)| present.then_some(name)).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_matters_and_no_host() {
        let environment = environment(2);
        assert_eq!(environment["vpt"], env!("CARGO_PKG_VERSION"));
        assert_eq!(environment["threads"], 2);
        #[cfg(target_os = "linux")]
        assert!(environment["memory_bytes"].as_u64().unwrap() > 1 << 20);
    }
}
