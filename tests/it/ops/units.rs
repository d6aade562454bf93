//! One grammar for sizes, rates, shares and times, in every key that has one (item 10: units).

use std::process::Output;

use tokio::process::Command;

use crate::support::{BERTH, file_of, within_deadline};

/// Every key of this kind, with T for a time, S for a size, R for a rate of bytes and P for one of requests.
const KEYS: &str = "
[http]
drain_seconds = T
limits = { connections = 5, requests_per_second = P, bytes_per_second = R }
[cache]
max_bytes = S
min_free = S
lease_seconds = T
scrub = R
[[tags]]
match = \"docker.io/library/*:*\"
check_after = T
serve_stale = T
[parents]
endpoints = [\"http://site.example:5000\"]
timeouts = { connect_seconds = T, header_seconds = T, idle_seconds = T, token_seconds = T, budget_seconds = T }
[[upstream]]
registry = \"a.example\"
endpoints = [\"https://a.example\"]
limits = { requests_per_second = P, bytes_per_second = R, reserve = \"12.5%\" }
timeouts = { connect_seconds = T, header_seconds = T, idle_seconds = T, token_seconds = T, budget_seconds = T }
[[upstream.fallback]]
endpoints = [\"https://b.example\"]
limits = { requests_per_second = P, bytes_per_second = R, reserve = 20 }
timeouts = { connect_seconds = T, header_seconds = T, idle_seconds = T, token_seconds = T }
";

/// What `check-config` says of a file, and its exit code.
async fn check(toml: &str) -> (Option<i32>, String) {
    let file = file_of(toml);
    let mut command = Command::new(BERTH);
    command.args(["check-config", "--config"]).arg(&file).env_clear().kill_on_drop(true);
    let Output { status, stdout, stderr } =
        within_deadline("berth ends by itself", command.output()).await.unwrap();
    let said = String::from_utf8_lossy(&if status.success() { stdout } else { stderr }).into_owned();
    let is_named = said.contains(file.to_str().unwrap());
    assert!(is_named, "the file is not named: {said}");
    (status.code(), said.replace(file.to_str().unwrap(), ""))
}

#[tokio::test]
async fn every_key_takes_every_spelling_and_is_shown_with_what_it_comes_to() {
    let mut first = None;
    for [time, size, rate, per_second] in [
        ["\"15m\"", "\"1.5GiB\"", "\"1.5GiB/s\"", "\"10/s\""],
        ["900", "1610612736", "1610612736", "10"],
        ["\"900s\"", "\"1536 MiB\"", "\"1536MiB\"", "10.0"],
        ["\"0.25h\"", "\"1.5Gi\"", "\"1.5 Gi /s\"", "\"10\""],
        ["900.0", "1610612736.0", "\"1610612736B\"", "\"10.0 /s\""],
        ["\"14m 60s\"", "\"1610612736\"", "\"1610612736/s\"", "1e1"],
        ["\"900\"", "\"1572864KiB\"", "\"1572864Ki/s\"", "10"],
    ] {
        let toml = KEYS.lines().map(|line| match line.split_once('=') {
            Some(_) => [(" = T", time), (" = S", size), (" = R", rate), (" = P", per_second)]
                .iter()
                .fold(line.to_owned(), |line, (from, to)| line.replace(from, &format!(" = {to}"))),
            None => line.to_owned(),
        });
        let (code, said) = check(&toml.collect::<Vec<_>>().join("\n")).await;
        assert_eq!(code, Some(0), "{time} {size} {rate} {per_second}: {said}");
        assert_eq!(*first.get_or_insert_with(|| said.clone()), said, "{time} {size} {rate} {per_second}");
    }
    let said = first.unwrap();
    for line in [
        "http.drain_seconds 15m",
        "http.limits.connections 5",
        "http.limits.requests_per_second 10/s",
        "http.limits.bytes_per_second 1536MiB/s",
        "cache.max_bytes 1536MiB",
        "cache.min_free 1536MiB",
        "cache.lease_seconds 15m",
        "cache.scrub 1536MiB/s",
        "parents timeouts.token_seconds 15m",
        "upstream a.example limits.bytes_per_second 1536MiB/s",
        "upstream a.example limits.reserve 12.5%",
        "upstream a.example timeouts.budget_seconds 15m",
        "upstream a.example fallback https://b.example limits.reserve 20",
        "upstream a.example fallback https://b.example timeouts.token_seconds 15m",
    ] {
        assert!(said.lines().any(|said| said == line), "{line} in {said}");
    }
    let tags = said.lines().find(|line| line.starts_with("tags docker.io/library/*:*")).unwrap();
    assert!(tags.contains("check_after 15m") && tags.contains("serve_stale 15m"), "{tags}");
}

#[tokio::test]
async fn what_is_in_force_is_shown_without_being_set() {
    let (code, said) = check("[cache]\nscrub = \"off\"").await;
    assert_eq!(code, Some(0), "{said}");
    for line in [
        "http.drain_seconds 25s",
        "cache.max_bytes 80%",
        "cache.min_free 5%",
        "cache.lease_seconds 15m",
        "cache.complete auto",
        "cache.scrub off",
    ] {
        assert!(said.lines().any(|said| said == line), "{line} in {said}");
    }
}

#[tokio::test]
async fn what_is_none_is_refused_with_key_value_and_what_was_expected() {
    let upstream = |keys: &str| {
        format!("[[upstream]]\nregistry = \"a.example\"\nendpoints = [\"https://a.example\"]\n{keys}")
    };
    for (toml, parts) in [
        ("[cache]\nmax_bytes = \"200gib\"".to_owned(), &["line 2", "max_bytes", "200gib", "GiB"][..]),
        ("[cache]\nmax_bytes = 0".to_owned(), &["line 2", "max_bytes", " 0:", "more than nothing"]),
        ("[cache]\nmax_bytes = \"0%\"".to_owned(), &["max_bytes", "0%", "more than nothing"]),
        ("[cache]\nmax_bytes = \"101%\"".to_owned(), &["max_bytes", "101%", "80%"]),
        ("[cache]\nmin_free = -1".to_owned(), &["min_free", "-1", "200GiB"]),
        ("[cache]\nmin_free = nan".to_owned(), &["min_free", "nan"]),
        ("[cache]\nmax_bytes = \"99999999PiB\"".to_owned(), &["max_bytes", "99999999PiB"]),
        ("[cache]\nmax_bytes = 99999999999999999999999".to_owned(), &["line 2", "max_bytes"]),
        ("[cache]\nlease_seconds = \"1 30m\"".to_owned(), &["lease_seconds", "1 30m", "1h 30m"]),
        ("[cache]\nlease_seconds = \"18446744073709551615\"".to_owned(), &["lease_seconds", "1000 years"]),
        ("[cache]\nscrub = \"0/s\"".to_owned(), &["scrub", "0/s", "more than 0", "off"]),
        ("[cache]\nscrub = \"8Mb/s\"".to_owned(), &["scrub", "8Mb/s", "MiB"]),
        (
            "[http]\nlimits = { connections = 1, bytes_per_second = \"fast\" }".to_owned(),
            &["line 2", "limits.bytes_per_second", "fast", "8MiB/s"],
        ),
        (
            "[http]\nlimits = { requests_per_second = \"10/m\", connections = 1 }".to_owned(),
            &["limits.requests_per_second", "10/m", "10/s"],
        ),
        ("[http]\nlimits.requests_per_second = inf".to_owned(), &["limits.requests_per_second", "inf"]),
        ("[http]\nlimits = { connections = 0 }".to_owned(), &["limits.connections", "0"]),
        ("[http]\ndrain_seconds = 1e300".to_owned(), &["drain_seconds", "1e300", "number of seconds"]),
        (
            upstream("timeouts = { connect_seconds = 1, token_seconds = \"soon\" }"),
            &["line 4", "timeouts.token_seconds", "soon", "expected"],
        ),
        (upstream("timeouts = { idle_seconds = 0 }"), &["timeouts.idle_seconds", "more than 0"]),
        (upstream("timeouts = { idle_seconds = \"2h\" }"), &["timeouts.idle_seconds", "2h", "1h"]),
        (upstream("limits = { reserve = \"120%\" }"), &["limits.reserve", "120%", "20%"]),
        (upstream("[upstream.limits]\nreserve = -5"), &["line 5", "reserve", "-5"]),
        (
            "[[tags]]\nmatch = \"*/*:*\"\nserve_stale = \"ever\"".to_owned(),
            &["serve_stale", "ever", "forever"],
        ),
        ("[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"-5m\"".to_owned(), &["check_after", "-5m"]),
    ] {
        let (code, said) = check(&toml).await;
        assert_eq!(code, Some(2), "{toml}: {said}");
        for part in parts {
            assert!(said.contains(part), "{part} in: {said}");
        }
    }
}
