//! `vpt cluster`: scripts that shells and schedulers take.

use std::fs;
use std::process::Command;

use serde_json::Value;

#[cfg(not(feature = "mpi"))]
use crate::util::finish;
use crate::util::{Sandbox, fixture};

fn line<'a>(script: &'a str, begin: &str) -> &'a str {
    script.lines().find(|line| line.starts_with(begin)).unwrap_or_else(|| panic!("no line {begin} in {script}"))
}

#[test]
fn a_slurm_script_has_the_size_of_its_work() {
    let sandbox = Sandbox::new();
    let grid = [
        "bench",
        "few-shot",
        "--data",
        "my photos,pets",
        "--methods",
        "zero-shot,linear",
        "--shots",
        "1,2",
        "--out",
        "table",
    ];
    let how = ["--max-memory", "2GiB", "--threads", "8"];
    let slurm = ["cluster", "slurm", "--time", "2:00:00", "--sbatch", "account=vision", "--"];
    let script = sandbox.vpt(&[&slurm[..], &grid, &how].concat()).ok().stdout;
    // Two data sets, each with one job without shots and six with.
    assert!(script.starts_with("#!/bin/bash\n# 14 jobs of a grid in 14 tasks."), "{script}");
    for option in [
        "--job-name=few-shot",
        "--array=0-13",
        "--cpus-per-task=8",
        "--mem=2509M",
        "--time=2:00:00",
        "--signal=TERM@90",
        "--requeue",
        "--open-mode=append",
        "--output=few-shot-%A_%a.log",
        "--account=vision",
    ] {
        assert!(script.lines().any(|line| line == format!("#SBATCH {option}")), "no {option} in {script}");
    }
    let command = line(&script, "srun ");
    assert!(command.starts_with("srun vpt bench few-shot --data 'my photos,pets' --methods"), "{command}");
    assert!(command.ends_with(" --shard auto --grace 75"), "{command}");

    let embed = ["cluster", "slurm", "--tasks", "100", "--at-a-time", "10", "--", "vpt", "embed", "--out", "e"];
    let script =
        sandbox.vpt(&[&embed[..], &["--input", "s/{00000..09999}.tar", "--shard", "auto"]].concat()).ok().stdout;
    assert_eq!(line(&script, "#SBATCH --array"), "#SBATCH --array=0-99%10");
    assert!(line(&script, "srun ").contains("--input 's/{00000..09999}.tar' --shard auto --grace"), "{script}");
}

/// What srun and scontrol are asked for, by stand-ins that write it down.
#[test]
#[cfg(unix)]
fn a_script_is_queued_again_where_it_has_saved_and_only_there() {
    let sandbox = Sandbox::new();
    for (name, code) in [("srun", "exit $CODE"), ("scontrol", "exit 0")] {
        let path = sandbox.write(&format!("bin/{name}"), format!("#!/bin/sh\necho {name} \"$@\" >> asked\n{code}\n"));
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(path, mode).unwrap();
    }
    let train = ["cluster", "slurm", "--", "train", "--data", "it's mine", "--out", "runs/a b"];
    sandbox.write("job.sh", sandbox.vpt(&train).ok().stdout);
    let run = |code: &str, restarts: &str| {
        let _ = fs::remove_file(sandbox.path("asked"));
        let path = format!("{}:{}", sandbox.path("bin").display(), std::env::var("PATH").unwrap());
        let mut bash = Command::new("bash");
        bash.arg("job.sh").current_dir(sandbox.path("")).env("PATH", path).env("CODE", code);
        bash.env("SLURM_JOB_ID", "7").env("SLURM_CPUS_PER_TASK", "4").env("SLURM_RESTART_COUNT", restarts);
        let ended = bash.status().expect("this test needs bash").code();
        (ended, fs::read_to_string(sandbox.path("asked")).unwrap())
    };
    let first = "srun vpt train --data it's mine --out runs/a b --grace 75\n";
    assert_eq!(run("0", ""), (Some(0), first.to_owned()));
    assert_eq!(run("75", ""), (Some(75), format!("{first}scontrol requeue 7\n")));
    assert_eq!(run("1", "3"), (Some(1), first.to_owned()));
    assert_eq!(run("75", "100"), (Some(75), first.to_owned()), "there is an end to it");
    sandbox.write("runs/a b/config.toml", "");
    assert_eq!(run("0", "1"), (Some(0), "srun vpt train --resume runs/a b --grace 75\n".to_owned()));
}

#[test]
fn a_run_on_ranks_is_one_job_of_many_tasks() {
    let sandbox = Sandbox::new();
    let slurm = ["cluster", "slurm", "--ranks", "4", "--cpus", "2", "--memory", "4GiB", "--"];
    let train = ["train", "--data", "photos", "--out", "run", "--shares", "8"];
    let text = sandbox.vpt(&[&slurm[..], &train].concat()).ok().stdout;
    for part in [
        "#SBATCH --ntasks=4\n#SBATCH --cpus-per-task=2\n#SBATCH --mem-per-cpu=2048M\n",
        "then srun --mpi=pmix --kill-on-bad-exit=1 vpt train --resume run --grace 75; else srun --mpi=pmix ",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    let fewer = ["train", "--data", "photos", "--out", "run", "--shares", "2"];
    sandbox.vpt(&[&slurm[..], &fewer].concat()).refuses(&["--ranks: 4 ranks need `--shares 4` or more", "not 2"]);
    let embed = ["embed", "--backbone", "clip-nano", "--input", "a.tar", "--out", "e"];
    sandbox.vpt(&[&slurm[..], &embed].concat()).refuses(&["--ranks: for `train` alone"]);
}

#[test]
#[cfg(not(feature = "mpi"))]
fn processes_that_would_not_share_a_run_are_refused() {
    let sandbox = Sandbox::new();
    let start = |variables: &[(&str, &str)]| {
        let mut command = sandbox.command(&["train", "--data", "nothing"]);
        command.envs(variables.iter().copied());
        finish(command, &["train"])
    };
    start(&[("OMPI_COMM_WORLD_SIZE", "4")]).fails(&["mpirun has started 4 processes", "the feature mpi"]);
    start(&[("SLURM_STEP_ID", "0"), ("SLURM_NTASKS", "2")]).fails(&["srun has started 2 processes"]);
    // A batch script is one process, and torchrun's variables are not MPI's.
    start(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "2"), ("RANK", "0"), ("WORLD_SIZE", "2")]).fails(&["nothing"]);
}

#[test]
fn a_manifest_says_what_exit_codes_mean() {
    let sandbox = Sandbox::new();
    let k8s = ["cluster", "k8s", "--image", "vpt:1", "--tasks", "3", "--volume", "data=/data", "--cpus", "2", "--json"];
    let embed = ["--", "embed", "--backbone", "clip-vit-b32", "--input", "/data/{0..9}.tar", "--out", "/data/e"];
    let said = sandbox.vpt(&[&k8s[..], &embed].concat()).ok().json();
    assert_eq!((said["tasks"].as_u64(), said["cpus"].as_u64()), (Some(3), Some(2)));
    let text = said["script"].as_str().unwrap();
    for part in [
        "completionMode: Indexed\n  completions: 3\n  parallelism: 3\n",
        "    - action: Ignore\n      onExitCodes: {containerName: vpt, operator: In, values: [75]}\n",
        "restartPolicy: Never\n      terminationGracePeriodSeconds: 90\n",
        "- {name: VPT_SHARDS, value: \"3\"}\n",
        "limits: {\"cpu\":\"2\",\"memory\":\"8192Mi\"}\n",
        "- {\"name\":\"volume-0\",\"mountPath\":\"/data\"}\n",
        "- {\"name\":\"volume-0\",\"persistentVolumeClaim\":{\"claimName\":\"data\"}}\n",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    let command = line(text, "        command: ").trim().strip_prefix("command: ").unwrap();
    let words: Vec<String> = serde_json::from_str(command).unwrap();
    assert_eq!(words[..2], ["vpt", "embed"]);
    assert_eq!(words[words.len() - 4..], ["--shard", "auto", "--grace", "75"]);
    assert_eq!(said["command"], serde_json::from_str::<Value>(command).unwrap());
}

#[test]
fn what_cannot_be_shared_is_refused() {
    let sandbox = Sandbox::new();
    let cases: [(&[&str], &[&str]); 7] = [
        (&["slurm", "--", "eval", "--model", "m", "--data", "d"], &["bench few-shot"]),
        (&["slurm", "--", "embed", "--out", "e", "a.png"], &["--input"]),
        (&["slurm", "--", "train"], &["--out"]),
        (&["slurm", "--tasks", "2", "--", "train", "--out", "r"], &["--tasks"]),
        (&["slurm", "--", "bench", "few-shot", "--nonsense"], &["the command behind --", "--nonsense"]),
        (&["slurm", "--", "embed", "--input", "{0..9}.tar", "--out", "e", "--shard", "1/2"], &["--shard"]),
        (&["k8s", "--image", "i", "--volume", "x", "--", "train", "--out", "r"], &["--volume"]),
    ];
    for (args, parts) in cases {
        let all = [&["cluster"], args].concat();
        sandbox.holds(&args.join(" "), || drop(sandbox.vpt(&all).refuses(parts)));
    }
}

/// A process that does not come to an end within its time after SIGTERM ends all the same.
#[test]
#[cfg(unix)]
fn after_sigterm_there_is_an_end() {
    use std::process::Stdio;
    let sandbox = Sandbox::new();
    // A step that takes long: nothing is saved before its end.
    sandbox.colours("colours", 40);
    let clip = fixture("clip");
    let train =
        ["train", "--backbone", &clip, "--data", "colours", "--out", "run", "--method", "vpt-deep", "--threads", "1"];
    let more = ["--image-size", "448", "--batch-size", "200", "--epochs", "1", "--grace", "1"];
    let mut command = sandbox.command(&[&train[..], &more].concat());
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = std::time::Instant::now();
    while !sandbox.path("run/config.toml").exists() {
        assert!(begun.elapsed().as_secs() < 120);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let kill = format!("kill -TERM {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let told = std::time::Instant::now();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // 143 where there was nothing to save yet.
    assert!(matches!(output.status.code(), Some(75 | 143)), "{said}");
    assert!(told.elapsed().as_secs() < 20 && said.contains("interrupted"), "{said}");
}
