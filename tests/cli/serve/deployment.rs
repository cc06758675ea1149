//! The files under `examples/serve`: what they name is there, and they agree with each other.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::client::{Server, old_tasks};
use crate::util::Sandbox;

fn example(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/serve").join(name)).unwrap()
}

/// The options of `vpt serve`, as its help has them.
fn options() -> Vec<String> {
    let help = Sandbox::new().vpt(&["serve", "--help"]).ok().stdout;
    let words = help.split(|c: char| c.is_whitespace() || "=[]<>,".contains(c));
    words.filter(|word| word.starts_with("--")).map(str::to_owned).collect()
}

/// The options among `words` are all there; their values, where they stand behind an equals sign.
fn values<'a>(words: impl Iterator<Item = &'a str>, options: &[String]) -> BTreeMap<&'a str, &'a str> {
    let given = words.filter(|word| word.starts_with("--")).map(|word| word.split_once('=').unwrap_or((word, "")));
    given
        .inspect(|(option, _)| assert!(options.iter().any(|known| known == option), "vpt serve has no {option}"))
        .collect()
}

#[test]
fn the_unit_runs_the_program_with_options_that_it_has() {
    let unit = example("vpt.service");
    let mut sections = BTreeMap::<&str, BTreeMap<&str, &str>>::new();
    let mut section = "";
    for line in unit.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{line} is no setting"));
        assert!(sections.entry(section).or_default().insert(key, value).is_none(), "{key} twice");
    }
    assert_eq!(sections.keys().collect::<Vec<_>>(), [&"Install", &"Service", &"Unit"]);
    let service = &sections["Service"];
    let command = service["ExecStart"];
    assert!(command.starts_with("/usr/local/bin/vpt serve --config /etc/vpt/serve.toml"), "{command}");
    values(command.split_whitespace(), &options());
    let settings: toml::Table = example("vpt.toml").parse().unwrap();
    let seconds = |name: &str| settings[name].as_integer().unwrap();
    let patience: i64 = service["TimeoutStopSec"].parse().unwrap();
    assert!(seconds("drain_delay") + seconds("drain_timeout") < patience);
}

#[test]
fn the_configuration_is_one_that_a_server_takes() {
    let sandbox = Sandbox::new();
    old_tasks(&sandbox, "vit");
    let settings = example("vpt.toml");
    // With this machine's tasks, backbone and port, and the key file that is commented out.
    let backbone = sandbox.path("fixtures/vit").display().to_string();
    let changed = settings
        .replace("/srv/vpt/tasks", &sandbox.path("tasks").display().to_string())
        .replace("\"clip-vit-b16\"", &format!("{backbone:?}"))
        .replace(
            "# api_key_file = \"/etc/vpt/keys\"",
            &format!("api_key_file = {:?}", sandbox.write("keys", "a-key\n")),
        );
    assert_eq!(changed.matches("vpt/tasks").count() + changed.matches("# api").count(), 0);
    sandbox.write("serve.toml", changed);
    let server = Server::start(&sandbox, &["--config", "serve.toml"]);
    server.get("/v1/models").refused(401, "API key");
    server.get("/v2/health/ready").ok();
    server.stop();
}

#[test]
fn the_manifest_names_options_probes_and_ports_that_there_are() {
    let text = example("kubernetes.yaml");
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let kinds: Vec<&str> = documents.iter().map(|document| document["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["Deployment", "Service", "PodDisruptionBudget"]);
    let template = &documents[0]["spec"]["template"];
    let pod = &template["spec"];
    let container = &pod["containers"][0];
    let texts = |value: &'_ Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let (command, args) = (texts(&container["command"]), texts(&container["args"]));
    assert_eq!((command, args[0].as_str()), (vec!["vpt".to_owned()], "serve"));
    let given = values(args.iter().map(String::as_str), &options());
    let second = |name: &str| given[name].parse::<i64>().unwrap();
    assert!(
        second("--drain-delay") + second("--drain-timeout") < pod["terminationGracePeriodSeconds"].as_i64().unwrap()
    );
    assert_eq!(given["--port"], container["ports"][0]["containerPort"].to_string());
    assert_eq!(given["--threads"], container["resources"]["requests"]["cpu"].as_str().unwrap());
    assert_eq!(given["--port"], template["metadata"]["annotations"]["prometheus.io/port"].as_str().unwrap());

    let document = vpt::serve::openapi_document(false);
    let has = |path: &str| assert!(document["paths"][path]["get"].is_object(), "no {path}");
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let get = &container[probe]["httpGet"];
        assert_eq!(get["port"], "http");
        has(get["path"].as_str().unwrap());
    }
    has(template["metadata"]["annotations"]["prometheus.io/path"].as_str().unwrap());

    let mounts = container["volumeMounts"].as_array().unwrap();
    let mounted = |path: &str| mounts.iter().any(|mount| path.starts_with(mount["mountPath"].as_str().unwrap()));
    for option in ["--tasks", "--weights-dir", "--api-key-file"] {
        assert!(mounted(given[option]), "{option}");
    }
    let volumes = pod["volumes"].as_array().unwrap();
    assert!(mounts.iter().all(|mount| volumes.iter().any(|volume| volume["name"] == mount["name"])));
    for document in &documents[1..] {
        let selector = &document["spec"]["selector"];
        let selector = if selector["matchLabels"].is_object() { &selector["matchLabels"] } else { selector };
        assert_eq!(selector, &template["metadata"]["labels"]);
    }
}

#[test]
fn the_clients_ask_addresses_that_there_are() {
    let document = vpt::serve::openapi_document(false);
    let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    for name in ["client.sh", "client.py", "load.py"] {
        let text = example(name);
        // A name in braces stands for a task; what is behind a question mark is no part of the address.
        let asked = text.split("/v1/").skip(1).map(|rest| {
            let end = rest.find(|c: char| c == '"' || c == '?' || c.is_whitespace()).unwrap();
            let parts = rest[..end].split('/').map(|part| if part.contains(['{', '$']) { "{task}" } else { part });
            format!("/v1/{}", parts.collect::<Vec<_>>().join("/"))
        });
        let asked: Vec<String> = asked.collect();
        assert!(!asked.is_empty(), "{name} asks nothing");
        assert!(asked.iter().all(|path| paths.contains(&path)), "{name}: {asked:?}");
    }
}
