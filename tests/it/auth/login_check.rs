//! `berth login-check`: each login is tried at its registry, and what is wrong is said with who said so.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;
use tokio::process::Command;

use crate::support::process::{run, tool};
use crate::support::{
    Auth, BERTH, Berth, Cloud, Fault, Image, Said, Upstream, Vault, basic, docker_config, file_of, said,
    within_deadline,
};

const PASSWORD: &str = "hunter2-is-secret";
const WRONG: &str = "wrong-is-secret-too";

/// The section of a registry, at an endpoint, with these keys.
fn section(registry: &str, endpoint: &str, keys: &str) -> String {
    format!("[[upstream]]\nregistry = \"{registry}\"\nendpoints = [\"{endpoint}\"]\n{keys}\n")
}

async fn login_check(toml: &str, registries: &[&str]) -> Said {
    login_check_with("/nowhere", toml, registries).await
}

async fn login_check_with(path: &str, toml: &str, registries: &[&str]) -> Said {
    let file = file_of(toml);
    let mut command = Command::new(BERTH);
    command.args(["login-check", "--config"]).arg(&*file).args(registries).env_clear().kill_on_drop(true);
    let keys = [("AWS_ACCESS_KEY_ID", "AKID"), ("AWS_SECRET_ACCESS_KEY", PASSWORD), ("PATH", path)];
    let output = within_deadline("login-check ends", command.envs(keys).output()).await.unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    for secret in [PASSWORD, WRONG, "Basic ", "Bearer "] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    Said { code: output.status.code(), text }
}

/// A registry that lets in `robot` for `team/`, and `all`.
async fn private(auth: Auth) -> Upstream {
    let upstream = Upstream::start().await;
    upstream.auth(auth).user("robot", PASSWORD, "team/").user("all", PASSWORD, "");
    upstream
}

/// Two logins for one registry, of which `robot` has this password.
fn two_logins(upstream: &Upstream, password: &str) -> (String, tempfile::TempPath) {
    let file =
        file_of(&docker_config(&[("r.example/team", "robot", password), ("r.example", "all", PASSWORD)]));
    (section("r.example", upstream.url(), &format!("credentials = {{ file = {file:?} }}")), file)
}

#[tokio::test]
async fn logins_that_work_are_said_to_for_each_path() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let upstream = private(auth).await;
        let (toml, _file) = two_logins(&upstream, PASSWORD);
        let said = login_check(&toml, &[]).await;
        let at = upstream.url();
        let expected = format!("r.example/team at {at}: works\nr.example at {at}: works\n");
        assert_eq!((said.code, said.text), (Some(0), expected));
        let asked = upstream.requests();
        assert!(asked.iter().all(|it| it.method == "GET" && ["/v2/", "/token"].contains(&it.path())));
        assert_eq!(asked[0].header("authorization"), None, "nothing is sent before it is asked for");
        if auth == Auth::Bearer {
            let tokens = upstream.seen("GET", "/token");
            let scopes: Vec<_> = tokens.iter().map(|it| it.query("scope")).collect();
            assert_eq!(scopes, [Some("repository:team/login-check:pull".to_owned()), None]);
            let logins: Vec<_> = tokens.iter().map(|it| it.header("authorization")).collect();
            let (robot, all) = (basic("robot", PASSWORD), basic("all", PASSWORD));
            assert_eq!(logins, [Some(&*robot), Some(&*all)]);
        }
    }
}

#[tokio::test]
async fn fallbacks_are_tried_each_with_its_own_login() {
    let (open, fallback) = (Upstream::start().await, private(Auth::Basic).await);
    let credentials = |file: &std::path::Path| format!("credentials = {{ file = {file:?} }}");
    let host = fallback.address().to_string();
    // By the name of the registry none is found, and that of the registry is not taken.
    for (key, expected) in
        [(&*host, "works"), ("r.example", "failed: the file of its credentials has no login")]
    {
        let file = file_of(&docker_config(&[(key, "robot", PASSWORD)]));
        let keys =
            format!("[[upstream.fallback]]\nendpoints = [{:?}]\n{}", fallback.url(), credentials(&file));
        let said = login_check(&section("r.example", open.url(), &keys), &[]).await;
        let lines: Vec<_> = said.text.lines().collect();
        assert_eq!(lines[0], format!("r.example at {}: works, without a login", open.url()));
        let of_fallback = format!("r.example at {}: {expected}", fallback.url());
        assert!(lines[1].starts_with(&of_fallback), "{}", said.text);
        assert_eq!((lines.len(), said.code), (2, Some(i32::from(expected != "works"))));
    }
}

#[tokio::test]
async fn a_login_that_is_refused_is_named_with_who_refused_it() {
    for (auth, party) in [(Auth::Basic, "registry"), (Auth::Bearer, "token server")] {
        let upstream = private(auth).await;
        let (toml, _file) = two_logins(&upstream, WRONG);
        let said = login_check(&toml, &["r.example"]).await;
        assert_eq!(said.code, Some(1), "{}", said.text);
        let lines: Vec<_> = said.text.lines().collect();
        let refused = format!(
            "r.example/team at {}: failed at the {party}: upstream refuses the configured credential; check user name",
            upstream.url()
        );
        assert!(lines[0].starts_with(&refused), "{}", said.text);
        assert_eq!(lines[1..], [format!("r.example at {}: works", upstream.url())]);
    }
}

#[tokio::test]
async fn a_token_server_elsewhere_is_sent_nothing() {
    let (upstream, other) = (private(Auth::Bearer).await, private(Auth::Bearer).await);
    upstream.realm(&other.url().replace("127.0.0.1", "localhost"));
    let (toml, _file) = two_logins(&upstream, PASSWORD);
    let said = login_check(&toml, &[]).await;
    assert_eq!(said.code, Some(1));
    assert!(said.text.contains("token server on another domain, localhost; `realm_hosts`"), "{}", said.text);
    assert_eq!(other.connections(), 0);
}

#[tokio::test]
async fn a_registry_that_is_down_or_none_does_not_hide_the_next() {
    let (down, broken) = (private(Auth::Basic).await, private(Auth::Basic).await);
    let portal = Upstream::start().await;
    let works = private(Auth::Basic).await;
    down.stop().await;
    broken.on("GET", "/v2/").fault(Fault::Status(500));
    portal.on("GET", "/v2/").fault(Fault::Html);
    let password = file_of(PASSWORD);
    let keys = format!("credentials = {{ username = \"robot\", password_file = {password:?} }}");
    let toml = [("down", &down), ("broken", &broken), ("portal", &portal), ("works", &works)]
        .map(|(name, upstream)| section(&format!("{name}.example"), upstream.url(), &keys))
        .concat();
    let said = login_check(&toml, &[]).await;
    assert_eq!(said.code, Some(1));
    let lines: Vec<_> = said.text.lines().collect();
    assert!(lines[0].contains("failed at the registry: upstream cannot be reached: "), "{}", said.text);
    assert!(
        lines[1].contains("failed at the registry: upstream answered with status 500; "),
        "{}",
        said.text
    );
    assert!(
        lines[2].contains("failed at the registry: upstream answered nonsense: a web page; "),
        "{}",
        said.text
    );
    assert_eq!(lines[3..], [format!("works.example at {}: works", works.url())]);
}

#[tokio::test]
async fn a_cloud_that_issues_no_login_is_named() {
    let upstream = private(Auth::Basic).await;
    let cloud = Cloud::start(|_| said(400, r#"{"__type": "AccessDeniedException", "message": "no"}"#)).await;
    let keys = format!("credentials.ecr = {{ region = \"eu-central-1\", endpoint = {:?} }}", cloud.url());
    let said = login_check(&section("ecr.example", upstream.url(), &keys), &[]).await;
    assert_eq!(said.code, Some(1), "{}", said.text);
    assert!(said.text.starts_with("ecr.example: failed at the issuer of logins: "), "{}", said.text);
    assert!(
        said.text.contains("status 400, AccessDeniedException; check what berth runs as"),
        "{}",
        said.text
    );
    assert_eq!((cloud.asked().len(), upstream.connections()), (1, 0));
}

#[tokio::test]
async fn what_is_in_the_way_in_vault_is_named() {
    let upstream = private(Auth::Basic).await;
    let vault = Vault::start().await;
    let token = file_of("hvs.good");
    let check = async |keys: &str, code: i32, expected: &str| {
        let keys = format!(
            "credentials.vault = {{ address = {:?}, path = \"robot\", {} }}",
            vault.url(),
            keys.replace("TOKEN", &format!("token_file = {token:?}"))
        );
        let said = login_check(&section("r.example", upstream.url(), &keys), &[]).await;
        assert_eq!(said.code, Some(code), "{}", said.text);
        assert!(said.text.contains(expected) && !said.text.contains("hvs."), "{}", said.text);
    };
    let failed = "r.example: failed at the issuer of logins: no login is issued for upstream: ";
    let in_vault = |what: &str| format!("{failed}{what}");

    check("TOKEN", 1, &in_vault("Vault refuses the configured token; it may be mistyped")).await;
    vault.token("hvs.good", "secret/data/other");
    let denied =
        "Vault denies access to secret/data/robot; give the token's policy `read` on exactly this path";
    check("TOKEN", 1, &in_vault(denied)).await;
    vault.token("hvs.good", "");
    check("TOKEN", 1, &in_vault("Vault has no secret at secret/data/robot; check `vault.mount`")).await;
    check("mount = \"kv\", kv_version = 1, TOKEN", 1, &in_vault("Vault has no secret at kv/robot; ")).await;
    vault.put_data("robot", &json!({ "username": "robot", "pass": PASSWORD }));
    let property = "the secret at secret/data/robot has no text as its property `password`; put it there";
    check("TOKEN", 1, &in_vault(property)).await;
    vault.put_data("robot", &json!({ "username": "robot", "password": PASSWORD, "registry": "s.example" }));
    check("TOKEN", 1, "is for another registry, or a part of it, as its property `registry` says; check")
        .await;

    vault.put("robot", "robot", WRONG);
    check("TOKEN", 1, "failed at the registry: upstream refuses the configured credential; check user name")
        .await;
    vault.put("robot", "robot", PASSWORD);
    check("TOKEN", 0, &format!("r.example at {}: works\n", upstream.url())).await;

    let login = format!("kubernetes = {{ role = \"other\", token_file = {token:?} }}");
    let refused = "Vault refuses the login at auth/kubernetes/login (status 400); check the role";
    check(&login, 1, &in_vault(refused)).await;
    let login = "kubernetes = { role = \"berth\", token_file = \"/nowhere/token\" }";
    check(login, 1, &in_vault("/nowhere/token is not a token of a Kubernetes account; ")).await;
    vault.seal(true);
    check("TOKEN", 1, &in_vault("Vault is sealed or not ready (status 503); unseal it")).await;
    vault.seal(false);
    let nowhere = section(
        "r.example",
        upstream.url(),
        &format!(
            "credentials.vault = {{ address = \"http://127.0.0.1:1\", path = \"robot\", token_file = {token:?} }}"
        ),
    );
    let said = login_check(&nowhere, &[]).await;
    let unanswered = in_vault("Vault gave no answer: Connection refused");
    assert!(said.code == Some(1) && said.text.contains(&unanswered), "{}", said.text);
    assert!(said.text.contains("; check `vault.address`, the network"), "{}", said.text);
}

#[tokio::test]
async fn registries_without_a_login_are_tried_when_they_are_named() {
    let (open, closed) = (Upstream::start().await, private(Auth::Basic).await);
    let toml =
        [section("open.example", open.url(), ""), section("closed.example", closed.url(), "")].concat();
    let said = login_check(&toml, &[]).await;
    assert_eq!((said.code, &*said.text), (Some(0), "no upstream has credentials\n"));
    assert_eq!(open.connections() + closed.connections(), 0);

    let said = login_check(&toml, &["open.example"]).await;
    let expected = format!("open.example at {}: works, without a login\n", open.url());
    assert_eq!((said.code, said.text), (Some(0), expected));

    let said = login_check(&toml, &["closed.example", "open.example"]).await;
    assert_eq!(said.code, Some(1));
    assert!(said.text.contains("upstream denies access; it wants a login"), "{}", said.text);

    let said = login_check(&toml, &["other.example"]).await;
    assert_eq!((said.code, said.text.contains("other.example")), (Some(2), true), "{}", said.text);
}

#[tokio::test]
async fn a_login_that_cannot_be_tried_is_told_apart_from_one_that_works() {
    let (open, basic) = (Upstream::start().await, private(Auth::Basic).await);
    let password = file_of(PASSWORD);
    let with_password = format!("credentials = {{ username = \"robot\", password_file = {password:?} }}");
    let check = async |upstream: &Upstream, keys: &str, code: i32, part: &str| {
        let said = login_check(&section("r.example", upstream.url(), keys), &[]).await;
        assert_eq!((said.code, said.text.contains(part)), (Some(code), true), "`{part}` in {}", said.text);
    };
    check(&open, &with_password, 0, "not proven").await;
    assert!(open.requests().iter().all(|it| it.header("authorization").is_none()));
    basic.forget();
    let elsewhere = file_of(&docker_config(&[("other.example", "robot", PASSWORD)]));
    check(&basic, &format!("credentials = {{ file = {elsewhere:?} }}"), 1, "has no login for it").await;
    check(&basic, "credentials = { file = '/nowhere/config.json' }", 1, "cannot read").await;
    check(&basic, &format!("offline = true\n{with_password}"), 0, "r.example: skipped").await;
    assert_eq!(basic.requests().len(), 0);
    let token = file_of(&format!(r#"{{"auths": {{"r.example": {{"identitytoken": "{PASSWORD}"}}}}}}"#));
    check(&basic, &format!("credentials = {{ file = {token:?} }}"), 1, "another kind of login").await;
}

#[tokio::test]
async fn a_credential_helper_is_run_where_the_file_has_no_login() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("docker-credential-test");
    let script = format!(
        "#!/bin/sh\n[ \"$1 $(cat)\" = 'get r.example' ] || exit 1\necho '{{\"Username\": \"all\", \"Secret\": \"{PASSWORD}\"}}'\n"
    );
    // A program that this process writes itself could still be open in what another test has forked.
    run(tool("cp").arg(&*file_of(&script)).arg(&program)).await;
    fs::set_permissions(&program, Permissions::from_mode(0o700)).unwrap();
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    for (auth, helpers) in [
        (Auth::Basic, r#""credHelpers": {"r.example": "test"}"#),
        (Auth::Bearer, r#""credsStore": "test", "auths": {"r.example": {}}"#),
    ] {
        let upstream = private(auth).await;
        let image = Image::of(1, &[3000]);
        upstream.image("any/app", "1", &image);
        let file = file_of(&format!("{{{helpers}}}"));
        let keys = format!("credentials = {{ file = {file:?} }}");
        let toml = section("r.example", upstream.url(), &keys);
        let said = login_check_with(&path, &toml, &[]).await;
        assert_eq!((said.code, said.text), (Some(0), format!("r.example at {}: works\n", upstream.url())));
        let said = login_check(&toml, &[]).await;
        assert_eq!(said.code, Some(1));
        assert!(said.text.contains("docker-credential-test is not in PATH; check"), "{}", said.text);
        let setup = Berth::with("r.example", &upstream).keys(&keys).env("PATH", &path);
        setup.start().await.pull("any/app", "1", &image).await;
    }
}

#[tokio::test]
async fn a_login_for_parents_is_tried_there() {
    let (parent, registry) = (private(Auth::Basic).await, Upstream::start().await);
    for (password, code, verdict) in [(PASSWORD, 0, "works"), (WRONG, 1, "failed at the registry")] {
        let file = file_of(password);
        let toml = section("docker.io", registry.url(), "")
            + &format!(
                "[parents]\nendpoints = [{:?}]\ncredentials = {{ username = \"all\", password_file = {file:?} }}\n",
                parent.url()
            );
        let said = login_check(&toml, &[]).await;
        assert_eq!(said.code, Some(code), "{}", said.text);
        let lines: Vec<_> = said.text.lines().collect();
        assert!(lines[0].starts_with(&format!("docker.io at {}: {verdict}", parent.url())), "{}", said.text);
        assert_eq!(lines[1], format!("docker.io at {}: works, without a login", registry.url()));
    }
}

/// A5 of the field's reports.
#[tokio::test]
async fn a_repository_is_asked_for_as_a_pull_would() {
    let hiding = private(Auth::Basic).await;
    hiding.refuses_with(404);
    hiding.image("team/app", "1", &Image::of(1, &[300])).image("other/app", "latest", &Image::of(2, &[300]));
    let file = file_of(&docker_config(&[("r.example", "robot", PASSWORD)]));
    let toml = section("r.example", hiding.url(), &format!("credentials = {{ file = {file:?} }}"));
    let at = hiding.url();
    let check = async |target: &str, code: i32, expected: String| {
        let said = login_check(&toml, &[target]).await;
        assert_eq!(said.code, Some(code), "{}", said.text);
        assert!(said.text.starts_with(&expected), "{}", said.text);
    };
    check("r.example/team/app:1", 0, format!("r.example/team/app at {at}: works\n")).await;
    check("r.example/team/app", 0, format!("r.example/team/app at {at}: works\n")).await;
    check("r.example/team/app:2", 1, format!("r.example/team/app at {at}: failed: it has no such image"))
        .await;
    check("r.example/other/app", 1, format!("r.example/other/app at {at}: failed: it has no such image"))
        .await;
    check("r.example", 0, format!("r.example at {at}: works\n")).await;
    check("s.example/team/app", 2, "berth: no [[upstream]] is configured for s.example".to_owned()).await;

    let open = Upstream::start().await;
    open.image("team/app", "latest", &Image::of(1, &[300]));
    let toml = section("r.example", open.url(), "");
    let said = login_check(&toml, &["r.example/team/app"]).await;
    let expected = format!("r.example/team/app at {}: works, without a login\n", open.url());
    assert_eq!((said.code, said.text), (Some(0), expected));

    for (auth, party) in [(Auth::Basic, "registry"), (Auth::Bearer, "token server")] {
        let upstream = private(auth).await;
        let file = file_of(&docker_config(&[("r.example", "robot", WRONG)]));
        let toml = section("r.example", upstream.url(), &format!("credentials = {{ file = {file:?} }}"));
        let said = login_check(&toml, &["r.example/team/app"]).await;
        let refused = format!("failed at the {party}: upstream refuses the configured credential");
        assert!(said.code == Some(1) && said.text.contains(&refused), "{}", said.text);
    }
}
