//! Logins as registries, redirects and people have them: A5, A7, B5 and B9 of the field's reports.

use std::path::Path;

use crate::support::{
    Auth, BERTH, Berth, Certificate, Fault, Image, Setup, Upstream, basic, file_of, within_deadline,
};

const REPO: &str = "team/app";
const PASSWORD: &str = "hunter2-is-secret";

/// A registry with one image, which `robot` may read.
async fn private(auth: Auth) -> (Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[30_000]);
    upstream.image(REPO, "1", &image).auth(auth).user("robot", PASSWORD, "team/");
    (upstream, image)
}

/// With the login of `robot` in a file.
fn with_login(upstream: &Upstream, password: &Path) -> Setup {
    let keys = format!("credentials = {{ username = \"robot\", password_file = {password:?} }}");
    Berth::with("r.example", upstream).keys(&keys)
}

fn tag() -> String {
    format!("/v2/{REPO}/manifests/1")
}

/// A5.
#[tokio::test]
async fn what_is_hidden_from_nobody_is_asked_for_with_the_login() {
    let password = file_of(PASSWORD);
    for auth in [Auth::Basic, Auth::Bearer] {
        for status in [404, 403, 401] {
            let (upstream, image) = private(auth).await;
            upstream.refuses_with(status);
            let berth = with_login(&upstream, &password).start().await;
            berth.pull(REPO, "1", &image).await;
            let knocks = upstream.seen("GET", "/v2/").iter().filter(|it| it.path() == "/v2/").count();
            assert_eq!(knocks, 1, "the scheme is learnt once");
            let stranger = Berth::with("r.example", &upstream).start().await;
            assert_eq!(stranger.get(&tag()).await.status, 404);
        }
    }
}

/// A5.
#[tokio::test]
async fn an_open_door_is_asked_once_in_a_while_only() {
    let (upstream, image) = private(Auth::Open).await;
    let password = file_of(PASSWORD);
    let berth = with_login(&upstream, &password).start().await;
    for name in ["team/none", "team/other", "team/third"] {
        assert_eq!(berth.get(&format!("/v2/{name}/manifests/1")).await.status, 404);
    }
    berth.pull(REPO, "1", &image).await;
    let knocks = upstream.seen("GET", "/v2/").iter().filter(|it| it.path() == "/v2/").count();
    assert_eq!(knocks, 1);
    assert!(upstream.requests().iter().all(|it| it.header("authorization").is_none()));
}

/// A5: nothing was sent, so nothing was refused.
#[tokio::test]
async fn a_login_that_was_not_sent_was_not_refused() {
    let (upstream, image) = private(Auth::Basic).await;
    upstream.image("team/other", "1", &Image::of(2, &[300]));
    let token = file_of(&format!(r#"{{"auths": {{"r.example": {{"identitytoken": "{PASSWORD}"}}}}}}"#));
    let setup = Berth::with("r.example", &upstream).keys(&format!("credentials = {{ file = {token:?} }}"));
    let berth = setup.start().await;
    let reply = berth.get(&tag()).await;
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert!(reply.text().contains("no login of the kind that is configured"), "{}", reply.text());
    assert!(upstream.requests().iter().all(|it| it.header("authorization").is_none()));
    drop(image);
}

/// A7.
#[tokio::test]
async fn the_target_of_a_redirect_gives_tokens_to_anybody_and_gets_no_login() {
    let (vanity, image) = private(Auth::Basic).await;
    let target = Upstream::start().await;
    target.image(REPO, "1", &image).auth(Auth::Bearer).anonymous("");
    vanity.on("*", "/manifests/").fault(Fault::Redirect(target.url().to_owned()));
    vanity.on("*", "/blobs/").fault(Fault::Redirect(target.url().to_owned()));
    let password = file_of(PASSWORD);
    for setup in [with_login(&vanity, &password), Berth::with("r.example", &vanity)] {
        let is_stranger = target.tokens() > 0;
        if is_stranger {
            vanity.anonymous("");
        }
        target.forget();
        setup.start().await.pull(REPO, "1", &image).await;
        assert_eq!(target.tokens(), 1, "one token for the whole repository");
        let tokens = target.seen("GET", "/token");
        assert_eq!(tokens[0].query("scope").as_deref(), Some("repository:team/app:pull"));
        assert!(tokens.iter().all(|it| it.header("authorization").is_none()));
        let login = basic("robot", PASSWORD);
        assert!(target.requests().iter().all(|it| it.header("authorization") != Some(&*login)));
    }
}

/// A7.
#[tokio::test]
async fn a_token_server_is_judged_by_the_target_that_names_it() {
    let (vanity, image) = private(Auth::Open).await;
    let (target, other) = (Upstream::start().await, Upstream::start().await);
    target.image(REPO, "1", &image).auth(Auth::Bearer).anonymous("");
    target.realm(&format!("{}/token", other.url().replace("127.0.0.1", "localhost")));
    vanity.on("*", "/manifests/").fault(Fault::Redirect(target.url().to_owned()));
    let berth = Berth::with("r.example", &vanity).start().await;
    assert_eq!(berth.get(&tag()).await.status, 503);
    assert_eq!(other.connections(), 0);
    // A login is what it wants: it has none of ours.
    target.forget_users();
    target.auth(Auth::Basic).user("robot", PASSWORD, "");
    assert_eq!(berth.get(&tag()).await.status, 503);
}

/// B9.
#[tokio::test]
async fn a_server_that_does_not_know_of_its_tls_is_asked_with_it() {
    let upstream = Upstream::start_tls_with(Certificate::new()).await;
    let image = Image::of(1, &[30_000]);
    let plain = upstream.url().replace("https://", "http://");
    upstream.image(REPO, "1", &image).auth(Auth::Bearer).user("robot", PASSWORD, "team/");
    upstream.realm(&format!("{plain}/token"));
    let moved = format!("{plain}{}?moved", image.layer().path(REPO));
    upstream.on("GET", &image.layer().path(REPO)).first(1).fault(Fault::RedirectTo(moved));
    let password = file_of(PASSWORD);
    with_login(&upstream, &password).start().await.pull(REPO, "1", &image).await;
    assert_eq!(upstream.count("GET", "?moved"), 1);
}

/// B9.
#[tokio::test]
async fn a_redirect_away_from_tls_says_what_is_the_matter() {
    let (upstream, plain) = (Upstream::start_tls().await, Upstream::start().await);
    upstream.on("*", "/manifests/").fault(Fault::Redirect(plain.url().to_owned()));
    let berth = Berth::with("r.example", &upstream).start().await;
    assert_eq!(berth.get(&tag()).await.status, 503);
    berth.until_logged("X-Forwarded-Proto").await;
    assert_eq!(plain.connections(), 0);
}

/// What `check-config` says of a file of logins for `r.example`, and its exit code.
async fn check_logins(file: &Path) -> (Option<i32>, String) {
    let toml = file_of(&format!(
        "[[upstream]]\nregistry = \"r.example\"\nendpoints = [\"https://r.example\"]\ncredentials = {{ file = {file:?} }}\n"
    ));
    let mut command = tokio::process::Command::new(BERTH);
    command.args(["check-config", "--config"]).arg(&*toml as &Path).env_clear();
    let output = within_deadline("check-config ends", command.output()).await.unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert!(!text.contains("hunter2"), "{text}");
    (output.status.code(), text)
}

/// B5.
#[tokio::test]
async fn logins_are_read_as_kubernetes_and_docker_write_them() {
    let auth = basic("robot", PASSWORD).replace("Basic ", "");
    let (head, tail) = auth.split_at(8);
    for text in [
        format!(r#"{{"auths": {{"r.example": {{"auth": "{head}\n{tail}\n"}}}}}}"#),
        format!(r#"{{"auths": {{"r.example": {{"auth": "{}"}}}}}}"#, auth.trim_end_matches('=')),
        format!(r#"{{"Auths": {{"https://R.example/v2/": {{"Auth": "{auth}"}}}}}}"#),
        format!("\u{feff}{{\r\n\"auths\": {{\"r.example\": {{\"auth\": \"{auth}\"}}}}}}\r\n"),
    ] {
        let (upstream, image) = private(Auth::Basic).await;
        let file = file_of(&text);
        let keys = format!("credentials = {{ file = {file:?} }}");
        let berth = Berth::with("r.example", &upstream).keys(&keys).start().await;
        berth.pull(REPO, "1", &image).await;
        assert!(!berth.logs_contain("has no login"));
        let (code, said) = check_logins(&file).await;
        assert!(code == Some(0) && !said.contains("warning"), "{said}");
    }
}

/// B5.
#[tokio::test]
async fn a_login_that_cannot_be_read_is_named_by_file_and_key() {
    for (text, expected) in [
        (
            r#"{"auths": {"https://r.example": {"auth": "hunter2!"}}}"#,
            "its login for `https://r.example` cannot be read",
        ),
        (
            r#"{"auths": {"r.example/team": {"username": "hunter2"}}}"#,
            "its login for `r.example/team` has a user",
        ),
        (r#"{"auths": ["hunter2"]}"#, "expected `auths` to be an object"),
        ("apiVersion: v1\nkind: Secret\ndata:\n  .dockerconfigjson: hunter2\n", "this Secret of Kubernetes"),
    ] {
        let file = file_of(text);
        let (code, said) = check_logins(&file).await;
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(file.to_str().unwrap()) && said.contains(expected), "{said}");
    }
}

/// B5.
#[tokio::test]
async fn a_file_without_a_login_for_its_registry_is_a_warning() {
    for text in [
        r#"{"auths": null}"#,
        r#"{"auths": {"other.example": {"auth": "hunter2!"}}}"#,
        r#"{"auths": {"r.example/v1/access-token": {"auth": "dTpw"}}}"#,
    ] {
        let file = file_of(text);
        let (code, said) = check_logins(&file).await;
        let warning = format!("{} has no login for r.example", file.to_str().unwrap());
        assert!(code == Some(0) && said.contains(&warning), "{said}");
        let upstream = Upstream::start().await;
        let keys = format!("credentials = {{ file = {file:?} }}");
        let berth = Berth::with("r.example", &upstream).keys(&keys).start().await;
        berth.until_logged("has no login for r.example").await;
    }
}
