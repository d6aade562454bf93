//! What is wrong with a configuration, said before anything is served: exit code, place, reason.

use std::path::Path;
use std::process::Output;

use tokio::process::Command;

use crate::support::{BERTH, Certificate, file_of, within_deadline};

/// What `berth` with these arguments came to, and what it said.
struct Said {
    code: Option<i32>,
    out: String,
    error: String,
}

async fn berth(arguments: &[&str], variables: &[(&str, &str)]) -> Said {
    let mut command = Command::new(BERTH);
    command.args(arguments).env_clear().envs(variables.iter().copied()).kill_on_drop(true);
    let Output { status, stdout, stderr } =
        within_deadline("berth ends by itself", command.output()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: status.code(), out: text(stdout), error: text(stderr) }
}

/// What `check-config` says of a file; `serve` must say the same and not begin.
async fn check(toml: &str) -> Said {
    let file = file_of(toml);
    let path = file.to_str().unwrap();
    let said = berth(&["check-config", "--config", path], &[]).await;
    if said.code != Some(0) {
        assert!(said.error.contains(path), "the file is not named: {}", said.error);
        assert_eq!(said.out, "");
        let served = berth(&["serve", "--config", path], &[]).await;
        assert_eq!((served.code, served.error), (Some(2), said.error.clone()));
    }
    said
}

async fn expect_refusal(toml: &str, parts: &[&str]) {
    let said = check(toml).await;
    assert_eq!(said.code, Some(2), "{toml}: {}", said.error);
    for part in parts {
        assert!(said.error.contains(part), "{part} in: {}", said.error);
    }
}

#[tokio::test]
async fn without_configuration_the_defaults_are_as_promised() {
    let folder_of = async |variables: &[(&str, &str)]| {
        let said = berth(&["check-config"], variables).await;
        assert_eq!(said.code, Some(0), "{}", said.error);
        for line in
            ["http.listen 127.0.0.1:5000", "admin.listen 127.0.0.1:5001", "default_upstream docker.io"]
        {
            assert!(said.out.lines().any(|said| said == line), "{line} in {}", said.out);
        }
        let upstreams = said.out.lines().filter(|line| line.starts_with("upstream ")).count();
        assert_eq!(upstreams, 10, "{}", said.out);
        let folder = said.out.lines().find_map(|line| line.strip_prefix("data_dir ")).unwrap();
        folder.to_owned()
    };
    assert_eq!(folder_of(&[("XDG_DATA_HOME", "/xdg"), ("HOME", "/home/anna")]).await, "/xdg/berth");
    let is_root = rustix::process::geteuid().is_root();
    let home = if is_root { "/var/lib/berth" } else { "/home/anna/.local/share/berth" };
    assert_eq!(folder_of(&[("HOME", "/home/anna")]).await, home);
    assert_eq!(folder_of(&[("HOME", "/home/anna"), ("XDG_DATA_HOME", "")]).await, home);
    assert_eq!(folder_of(&[("HOME", "/home/anna"), ("XDG_DATA_HOME", "relative")]).await, home);
}

#[tokio::test]
async fn what_is_in_force_is_shown_with_flags_and_variables_applied() {
    let file = file_of(
        "data_dir = \"/file\"\n[admin]\nlisten = \"127.0.0.1:7001\"\nmetrics_listen = \"127.0.0.1:7002\"",
    );
    let arguments =
        ["check-config", "--config", file.to_str().unwrap(), "--upstream=docker.io=http://127.0.0.1:9"];
    let variables = [("BERTH_DATA_DIR", "/variable"), ("BERTH_LISTEN", "127.0.0.1:1,127.0.0.1:2")];
    let said = berth(&arguments, &variables).await;
    assert_eq!(said.code, Some(0), "{}", said.error);
    for line in [
        "data_dir /variable",
        "http.listen 127.0.0.1:1",
        "http.listen 127.0.0.1:2",
        "admin.listen 127.0.0.1:7001",
        "admin.metrics_listen 127.0.0.1:7002",
        "upstream docker.io http://127.0.0.1:9",
    ] {
        assert!(said.out.lines().any(|said| said == line), "{line} in {}", said.out);
    }
}

#[tokio::test]
async fn an_unknown_key_is_an_error_that_names_its_place() {
    expect_refusal("\n\ndata_dirr = \"/x\"", &["line 3", "data_dirr", "expected", "data_dir"]).await;
    expect_refusal("[http]\nlissten = []", &["line 2", "lissten", "listen"]).await;
    expect_refusal("[http.tls]\ncert = \"a\"\nkey = \"b\"\nca = \"c\"", &["line 4", "ca", "client_ca"]).await;
    expect_refusal("[admin]\nport = 1", &["line 2", "port", "listen"]).await;
    expect_refusal("[[tags]]\nmatch = \"*/*:*\"\nttl = 5", &["line 3", "ttl", "check_after"]).await;
    expect_refusal("[cachee]\n", &["line 1", "cachee"]).await;
    expect_refusal(
        "[[upstream]]\nregistry = \"a.example\"\nendpoints = [\"https://a.example\"]\nurl = \"x\"",
        &["line 4", "url", "endpoints"],
    )
    .await;
}

#[tokio::test]
async fn what_may_be_a_secret_is_not_shown_however_wrong_it_stands_there() {
    let upstream = "[[upstream]]\nregistry = \"a.example\"\nendpoints = [\"https://a.example\"]\n";
    let parents = "[parents]\nendpoints = [\"https://a.example\"]\n";
    for (section, keys, part) in [
        (upstream, r#"headers = { Authorization = "Bearer hunter2" }"#, "`Authorization`"),
        (upstream, r#"headers = { X-Key = "hunter2\u0001" }"#, "`X-Key`"),
        (upstream, "[upstream.headers]\nHost = \"hunter2\"", "`Host`"),
        (upstream, r#"headers = "X-Key: a\"hunter2""#, "headers"),
        (upstream, "headers = { X-Key = 8472002 }", "expected a string"),
        (parents, r#"headers = ["X-Key: hunter2"]"#, "headers"),
        (upstream, r#"credentials = { username = "u", password = "hunter2" }"#, "credentials"),
        (upstream, "[upstream.credentials.vault]\naddress = \"hunter2\"", "address"),
        (upstream, r#"proxy = "hunter2@proxy.example""#, "proxy"),
    ] {
        let said = check(&format!("{section}{keys}")).await;
        assert_eq!(said.code, Some(2), "{keys}");
        assert!(said.error.contains("line ") && said.error.contains(part), "{keys}: {}", said.error);
        assert!(!said.error.contains("hunter2") && !said.error.contains("8472002"), "{}", said.error);
    }
}

#[tokio::test]
async fn a_bad_value_is_an_error_that_says_what_was_expected() {
    expect_refusal(
        "[http]\nlisten = [\"everywhere\"]",
        &["line 2", "listen", "everywhere", "socket address"],
    )
    .await;
    expect_refusal("[http]\nlisten = []", &["http.listen", "at least one"]).await;
    expect_refusal("[http]\nallow = [\"10.0.0.0/99\"]", &["line 2", "allow", "10.0.0.0/99"]).await;
    expect_refusal("[http]\ndrain_seconds = \"long\"", &["line 2", "drain_seconds", "long"]).await;
    expect_refusal("[http]\ndrain_seconds = -1", &["line 2", "drain_seconds", "-1"]).await;
    let for_logins = "[http]\nlogin_limits = { requests_per_second = 1 }";
    expect_refusal(for_logins, &["http.login_limits", "expected http.htpasswd"]).await;
    expect_refusal("data_dir = 5", &["line 1", "data_dir", "5"]).await;
    expect_refusal("[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"soon\"", &["line 3", "check_after", "soon"])
        .await;
    expect_refusal("default_upstream = \"nowhere.example\"", &["default_upstream", "nowhere.example"]).await;
    expect_refusal("data_dir = \"/x\" nonsense", &["line 1"]).await;
    let upstream = |rest: &str| format!("[[upstream]]\nregistry = \"a.example\"\n{rest}");
    expect_refusal(&upstream("endpoints = [\"ftp://a.example\"]"), &["line 3", "endpoints", "ftp"]).await;
    expect_refusal(&upstream("endpoints = []"), &["a.example", "endpoints", "at least one"]).await;
    expect_refusal(&upstream(""), &["endpoints"]).await;
    let twice = upstream("endpoints = [\"https://a.example\"]");
    expect_refusal(&format!("{twice}\n{twice}"), &["a.example"]).await;
    expect_refusal(
        &upstream("endpoints = [\"https://a.example\"]\naliases = [\"docker.io\"]"),
        &["docker.io"],
    )
    .await;
}

#[tokio::test]
async fn files_that_it_names_are_read_before_it_begins() {
    expect_refusal("[http]\nhtpasswd = \"/nowhere/htpasswd\"", &["/nowhere/htpasswd"]).await;
    let plain = file_of("anna:$apr1$salt$hash\n");
    expect_refusal(&format!("[http]\nhtpasswd = {plain:?}"), &["line 1", "bcrypt", "htpasswd -B"]).await;
    let certificate = Certificate::new();
    let tls = |cert: &Path, key: &Path| format!("[http]\ntls = {{ cert = {cert:?}, key = {key:?} }}");
    expect_refusal(&tls(Path::new("/nowhere.pem"), &certificate.key()), &["http.tls.cert", "/nowhere.pem"])
        .await;
    expect_refusal(&tls(&certificate.cert(), &certificate.cert()), &["http.tls.key", "private key"]).await;
    let other = Certificate::new();
    expect_refusal(&tls(&certificate.cert(), &other.key()), &["do not belong together"]).await;
    assert_eq!(check(&tls(&certificate.cert(), &certificate.key())).await.code, Some(0));
    let said = berth(&["check-config", "--config", "/nowhere.toml"], &[]).await;
    assert_eq!(said.code, Some(2));
    assert!(said.error.contains("/nowhere.toml"), "{}", said.error);
}

#[tokio::test]
async fn private_images_behind_an_open_door_are_refused() {
    let password = file_of("hush-hush");
    let with = |http: &str| {
        format!(
            "[http]\n{http}\n[[upstream]]\nregistry = \"harbor.example\"\nendpoints = [\"https://harbor.example\"]\n\
             credentials = {{ username = \"robot\", password_file = {password:?} }}"
        )
    };
    let open = "listen = [\"127.0.0.1:0\", \"0.0.0.0:5000\"]";
    expect_refusal(&with(open), &["0.0.0.0:5000", "harbor.example", "http.allow"]).await;
    expect_refusal(&with("listen = [\"[::]:5000\"]"), &["[::]:5000"]).await;
    let htpasswd = file_of("# nobody yet\n");
    let certificate = Certificate::new();
    let (cert, key, ca) = (certificate.cert(), certificate.key(), certificate.ca());
    for guarded in [
        "listen = [\"127.0.0.1:5000\", \"[::1]:5000\"]".to_owned(),
        format!("{open}\nallow = [\"10.0.0.0/8\"]"),
        format!("{open}\nhtpasswd = {htpasswd:?}"),
        format!("{open}\ntls = {{ cert = {cert:?}, key = {key:?}, client_ca = {ca:?} }}"),
    ] {
        let said = check(&with(&guarded)).await;
        assert_eq!(said.code, Some(0), "{guarded}: {}", said.error);
    }
    let tls = format!("{open}\ntls = {{ cert = {cert:?}, key = {key:?} }}");
    expect_refusal(&with(&tls), &["0.0.0.0:5000"]).await;
    // A network that everybody is in guards nothing.
    expect_refusal(&with(&format!("{open}\nallow = [\"0.0.0.0/0\"]")), &["0.0.0.0:5000"]).await;
}

#[tokio::test]
async fn a_wrong_command_line_is_2_and_says_how_it_should_be() {
    for (arguments, part) in [
        (&["serve", "--listen=here"][..], "--listen"),
        (&["serve", "--upstream=docker.io"], "NAME=URL"),
        (&["serve", "--upstream=docker.io=gopher://x"], "NAME=URL"),
        (&["serve", "--nonsense"], "--nonsense"),
        (&["pull"], "pull"),
        (&[], "Usage"),
    ] {
        let said = berth(arguments, &[]).await;
        assert_eq!(said.code, Some(2), "{arguments:?}");
        assert!(said.error.contains(part), "{arguments:?}: {}", said.error);
    }
    let said = berth(&["serve"], &[("BERTH_LISTEN", "here")]).await;
    assert_eq!(said.code, Some(2));
    for arguments in [["--help"], ["--version"]] {
        assert_eq!(berth(&arguments, &[]).await.code, Some(0));
    }
}

#[tokio::test]
async fn a_login_in_a_url_is_refused_and_not_repeated() {
    let toml = "[[upstream]]\nregistry = \"a.example\"\nendpoints = [\"https://robot:hush@a.example\"]";
    let said = check(toml).await;
    assert_eq!(said.code, Some(2));
    assert!(said.error.contains("line 3") && !said.error.contains("hush"), "{}", said.error);
    let said = berth(&["check-config", "--upstream=a.example=https://robot:hush@a.example"], &[]).await;
    assert_eq!(said.code, Some(2));
    assert!(!said.error.contains("hush"), "{}", said.error);
    let said =
        berth(&["check-config"], &[("BERTH_UPSTREAM", "a.example=https://robot:hush@a.example")]).await;
    assert_eq!(said.code, Some(2));
    assert!(!said.error.contains("hush"), "{}", said.error);
}
