//! The rules of the house that a compiler does not check: layers, homes of heavy crates, sizes, docs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Lines of a file without its tests.
const LINES_MAX: usize = 500;

/// Top-level modules by layer; a module uses lower layers only.
const LAYERS: [&[&str]; 11] = [
    &["fuzz"],
    &["bounded", "clock", "files", "net", "oci", "sync", "units"],
    &["context", "pace", "singleflight", "telemetry", "watch"],
    &["shares"],
    &["parsing"],
    &["store", "upstream"],
    &["cache"],
    &["http"],
    &["config"],
    &["app"],
    &["cli", "main"],
];

/// Crates that have one home, so that they can be replaced by changing one file.
const HOMES: [(&str, &[&str]); 6] = [
    ("sled", &["src/store/index.rs"]),
    ("clap", &["src/cli.rs", "src/main.rs"]),
    (
        "prometheus",
        &[
            "src/telemetry/metrics.rs",
            "src/telemetry/metrics/configuration.rs",
            "src/telemetry/metrics/requests.rs",
            "src/telemetry/metrics/space.rs",
        ],
    ),
    ("toml", &["src/config.rs", "src/cache/freshness.rs"]),
    ("listenfd", &["src/app/held.rs"]),
    ("sd_notify", &["src/app.rs"]),
];

struct Source {
    path: String,
    /// The code, without unit tests.
    code: String,
}

fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    collect(&Path::new(ROOT).join("src"), &mut files);
    files.sort();
    let read = |file: PathBuf| {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
        let path = file.strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned();
        Source { path, code }
    };
    files.into_iter().map(read).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Whether a file holds unit tests only, and is a part of no build.
fn is_tests(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

/// Every `crate::module` that a line of code names.
fn uses(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default();
        for after in line.split("crate::").skip(1) {
            let group = after.strip_prefix('{').map_or_else(
                || vec![after],
                |group| group.split('}').next().unwrap_or_default().split(',').collect(),
            );
            for name in group {
                let name =
                    name.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
                found.push((number + 1, name.to_owned()));
            }
        }
    }
    found
}

#[test]
fn modules_use_lower_layers_only() {
    for Source { path, code } in sources() {
        let own = path.trim_start_matches("src/").split(['/', '.']).next().unwrap();
        if own == "lib" {
            continue;
        }
        let own_layer =
            layer(own).unwrap_or_else(|| panic!("{path}: give `{own}` a layer in tests/it/tidy.rs"));
        for (line, used) in uses(&code) {
            let Some(used_layer) = layer(&used) else { continue };
            assert!(used == own || used_layer < own_layer, "{path}:{line}: `{own}` must not use `{used}`");
        }
    }
}

#[test]
fn heavy_crates_have_one_home() {
    for (name, homes) in HOMES {
        let mut seen = false;
        for Source { path, code } in sources() {
            let code: String = code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
            if code.contains(&format!("{name}::")) {
                assert!(homes.contains(&path.as_str()), "{path} names {name}, whose home is {homes:?}");
                seen = true;
            }
        }
        assert!(seen, "nobody uses {name}: take it out of the list and out of Cargo.toml");
    }
}

#[test]
fn files_are_small_and_say_what_they_are() {
    for Source { path, code } in sources() {
        assert!(code.starts_with("//! "), "{path} does not begin with a doc comment");
        let lines = code.lines().count();
        assert!(is_tests(&path) || lines <= LINES_MAX, "{path} has {lines} lines, more than {LINES_MAX}");
        assert!(!path.ends_with("mod.rs"), "{path}: modules are name.rs and name/");
        for word in ["TODO", "FIXME", "XXX", "unimplemented!"] {
            assert!(!code.contains(word), "{path}: {word} belongs in an issue");
        }
    }
}

#[test]
fn every_metric_is_in_the_readme_and_no_other() {
    let names = |text: &str, quote: char| -> BTreeSet<String> {
        let is_name = |word: &&str| {
            let prefix = ["registry_http_", "registry_proxy_", "registry_storage_", "berth_"];
            let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
            prefix.iter().any(|prefix| word.starts_with(prefix)) && word.chars().all(is_word)
        };
        text.split(quote).filter(is_name).map(str::to_owned).collect()
    };
    let is_metrics = |source: &Source| source.path.starts_with("src/telemetry/metrics");
    let code: String = sources().into_iter().filter(is_metrics).map(|source| source.code).collect();
    let readme = fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    assert_eq!(names(&readme, '`'), names(&code, '"'));
}

#[test]
fn the_top_level_is_what_was_asked_for() {
    let expected = [
        "CHANGELOG.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "benches",
        "config",
        "src",
        "systemd",
        "tests",
    ];
    for entry in fs::read_dir(ROOT).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let is_known = name.starts_with('.') || name == "target" || expected.contains(&name.as_str());
        assert!(is_known, "{name} has no place at the top level");
    }
}
