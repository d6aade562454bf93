//! Logins: where they come from, what they are used for, how often tokens are asked, and what is never seen of them.

mod clouds;
mod login_check;
mod logins;
mod rotation;
mod vault;

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tempfile::TempPath;

use crate::support::{
    Auth, Berth, Fault, Image, Reply, Setup, Upstream, basic, docker_config, eventually, file_of, together,
};

const REPO: &str = "team/app";
const PASSWORD: &str = "hunter2-is-secret";
/// Every request for a tag asks upstream first.
const ALWAYS_CHECK: &str = "[[tags]]\nmatch = \"*/*:*\"\ncheck_after = \"0s\"";

/// A private registry with one image, and one robot that may read it.
async fn private(auth: Auth) -> (Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[30_000, 300]);
    upstream.image(REPO, "1", &image).auth(auth).user("robot", PASSWORD, "team/");
    (upstream, image)
}

fn with_password_file(upstream: &Upstream, file: &Path) -> Setup {
    let keys = format!("credentials = {{ username = \"robot\", password_file = {file:?} }}");
    Berth::with("r.example", upstream).keys(&keys)
}

async fn tag(berth: &Berth) -> Reply {
    berth.get(&format!("/v2/{REPO}/manifests/1")).await
}

fn rewrite(path: &Path, text: &str) {
    File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// F18: tokens for names that clients invent took ten thousand times what a token server makes of one.
#[tokio::test(flavor = "multi_thread")]
async fn large_tokens_for_invented_names_take_little_memory() {
    const NAMES: usize = 1500;
    let upstream = Upstream::start().await;
    upstream.auth(Auth::Bearer).anonymous("").tokens_have(40_000);
    let berth = Berth::with("r.example", &upstream).start().await;
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", berth.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<usize>().unwrap() / 1024
    };
    let ask = async |from: usize, to: usize| {
        for first in (from..to).step_by(30) {
            let asks: Vec<_> =
                (first..first + 30).map(|name| berth.get(&format!("/v2/app-{name}/tags/list"))).collect();
            for reply in together(30, move |at| asks[at].clone().into_future()).await {
                reply.expect(404);
            }
        }
    };
    // What that many requests at once take is no memory of tokens.
    ask(0, 150).await;
    let before = memory();
    ask(150, NAMES).await;
    let after = memory();
    assert!(upstream.tokens() >= NAMES);
    // Kept they would take 54 MiB.
    assert!(after <= before + 24, "{before} MiB, then {after} MiB");
}

#[tokio::test]
async fn a_login_comes_from_where_the_configuration_says() {
    let password = file_of(&format!("{PASSWORD}\n"));
    let config = file_of(&docker_config(&[("https://r.example/v2/", "robot", PASSWORD)]));
    let auths = BASE64_STANDARD.encode(format!("robot:{PASSWORD}"));
    let dockercfg = file_of(&format!(r#"{{"r.example": {{"auth": "{auths}"}}}}"#));
    let plain = file_of(&format!(
        r#"{{"auths": {{"r.example/team": {{"username": "robot", "password": "{PASSWORD}"}}}}}}"#
    ));
    let check = async |auth: Auth, keys: String| {
        let (upstream, image) = private(auth).await;
        let setup = Berth::with("r.example", &upstream).env("ROBOT", PASSWORD);
        let berth = setup.keys(&format!("credentials = {{ {keys} }}")).start().await;
        berth.pull(REPO, "1", &image).await;
    };
    for auth in [Auth::Basic, Auth::Bearer] {
        check(auth, format!("username = \"robot\", password_file = {password:?}")).await;
        check(auth, "username = \"robot\", password_env = \"ROBOT\"".to_owned()).await;
        check(auth, format!("file = {config:?}")).await;
        check(auth, format!("file = {dockercfg:?}")).await;
        check(auth, format!("file = {plain:?}")).await;
    }
    let identity =
        file_of(&format!(r#"{{"auths": {{"r.example": {{"auth": "", "identitytoken": "{PASSWORD}"}}}}}}"#));
    check(Auth::Bearer, format!("file = {identity:?}")).await;
}

#[tokio::test]
async fn the_longest_path_wins_also_in_a_project_named_like_a_registry() {
    let harbor = Upstream::start().await;
    let (image, other) = (Image::of(1, &[3000]), Image::of(2, &[3000]));
    harbor
        .auth(Auth::Bearer)
        .user("proxy", "secret-1", "docker.io/")
        .user("deep", "secret-2", "docker.io/library/deep")
        .image("docker.io/library/alpine", "1", &image)
        .image("docker.io/library/deep", "1", &other);
    let file = file_of(&docker_config(&[
        ("docker.io", "nobody", "of-docker-hub"),
        ("harbor.example/docker.io", "proxy", "secret-1"),
        ("harbor.example/docker.io/library/deep", "deep", "secret-2"),
    ]));
    let hub = Upstream::start().await;
    let berth = Berth::with("docker.io", &hub)
        .and("harbor.example", &harbor)
        .keys(&format!("credentials = {{ file = {file:?} }}"))
        .start()
        .await;
    for (name, image) in [("alpine", &image), ("deep", &other)] {
        let path = format!("/v2/docker.io/library/{name}/manifests/1?ns=harbor.example");
        assert_eq!(berth.get(&path).await.expect(200), &image.manifest);
        berth.pull(&format!("harbor.example/docker.io/library/{name}"), "1", image).await;
    }
    assert_eq!(hub.connections(), 0);
    let logins: Vec<_> =
        harbor.seen("GET", "/token").iter().map(|it| it.header("authorization").map(str::to_owned)).collect();
    assert_eq!(logins, [Some(basic("proxy", "secret-1")), Some(basic("deep", "secret-2"))]);
}

#[tokio::test]
async fn a_token_is_asked_once_for_many_and_again_when_it_is_refused() {
    let (upstream, image) = private(Auth::Bearer).await;
    let other = Image::of(2, &[3000; 20]);
    upstream.image("team/other", "1", &other);
    let password = file_of(PASSWORD);
    let berth = with_password_file(&upstream, &password).start().await;
    let pull_layers = async || {
        let replies = together(20, |at| berth.head(&other.layers()[at].path("team/other")).into_future());
        assert!(replies.await.iter().all(|reply| reply.status == 200));
    };
    pull_layers().await;
    assert_eq!(upstream.tokens(), 1);
    berth.pull(REPO, "1", &image).await;
    assert_eq!(upstream.tokens(), 2, "another repository, another scope");
    upstream.revoke_tokens();
    pull_layers().await;
    assert_eq!(upstream.tokens(), 3, "one new token for all");
}

#[tokio::test]
async fn a_changed_login_is_used_without_a_restart() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let (upstream, image) = private(auth).await;
        let password = file_of(PASSWORD);
        let berth = with_password_file(&upstream, &password).sections(ALWAYS_CHECK).start().await;
        berth.pull(REPO, "1", &image).await;

        upstream.user("robot", "rotated", "team/");
        rewrite(&password, "rotated\n");
        let new = basic("robot", "rotated");
        eventually("the new login is used", async || {
            assert_eq!(tag(&berth).await.status, 200);
            upstream.requests().iter().any(|it| it.header("authorization") == Some(&*new))
        })
        .await;

        // Neither the old login nor a token that it got is used again.
        upstream.forget_users();
        upstream.user("robot", "rotated", "team/").forget();
        let fresh = tag(&berth).await;
        assert_eq!((fresh.status, fresh.header("cache-status")), (200, Some("berth; hit")));
        let old = basic("robot", PASSWORD);
        assert!(upstream.requests().iter().all(|it| it.header("authorization") != Some(&*old)));
    }
}

#[tokio::test]
async fn a_wrong_login_is_an_outage_and_a_refused_stranger_is_not() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let (upstream, image) = private(auth).await;
        upstream.image("team/other", "1", &Image::of(2, &[3000]));
        let password = file_of(PASSWORD);
        let berth = with_password_file(&upstream, &password).sections(ALWAYS_CHECK).start().await;
        berth.pull(REPO, "1", &image).await;
        upstream.forget_users();
        upstream.revoke_tokens();

        let known = tag(&berth).await;
        assert_eq!(known.expect(200), &image.manifest);
        assert_eq!(known.header("cache-status"), Some("berth; hit; detail=stale"));
        berth.pull(REPO, &image.digest().to_string(), &image).await;
        let unknown = berth.get("/v2/team/other/manifests/1").await;
        assert_eq!((unknown.status, &*unknown.error_code()), (503, "UNAVAILABLE"));
        assert!(unknown.text().contains("credential"), "{}", unknown.text());

        let stranger = Berth::with("r.example", &upstream).start().await;
        let denied = stranger.get("/v2/team/other/manifests/1").await;
        assert_eq!((denied.status, &*denied.error_code()), (404, "DENIED"));
    }
}

/// All that anybody might mistake for harmless: the password, as it is and as it travels.
fn secrets() -> [String; 3] {
    let travelling = BASE64_STANDARD.encode(format!("robot:{PASSWORD}"));
    [PASSWORD.to_owned(), travelling, "of-the-client".to_owned()]
}

#[tokio::test]
async fn secrets_are_never_seen_at_any_log_level() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let (upstream, image) = private(auth).await;
        let store = Upstream::start().await;
        store.image(REPO, "1", &image);
        let signed = format!("{}{}?sig=signature-is-secret", store.url(), image.layer().path(REPO));
        upstream.on("GET", &image.layer().path(REPO)).fault(Fault::RedirectTo(signed));
        let password = file_of(PASSWORD);
        let berth = with_password_file(&upstream, &password)
            .sections(ALWAYS_CHECK)
            .arg("--log-level=trace")
            .start()
            .await;
        let client = |path: &str| berth.get(path).header("authorization", "Bearer of-the-client");
        let mut answers = vec![client(&format!("/v2/{REPO}/manifests/1")).await];
        answers.push(client(&image.layer().path(REPO)).await);
        answers.push(berth.get(&image.config().path(REPO)).basic("robot", "of-the-client").await);
        assert!(answers.iter().all(|reply| reply.status == 200));
        upstream.forget_users();
        upstream.revoke_tokens();
        answers.push(tag(&berth).await);
        answers.push(client("/v2/team/none/manifests/1").await);
        answers.push(berth.admin("/metrics").await);
        assert!(berth.logs_contain("TRACE"), "the level is as low as it gets");

        let mut secrets = Vec::from(secrets());
        secrets.push("signature-is-secret".to_owned());
        secrets.extend(tokens(&upstream));
        for secret in &secrets {
            let seen = berth.logs().into_iter().find(|line| line.contains(secret));
            assert_eq!(seen, None, "{secret} in the log");
            for answer in &answers {
                assert!(!answer.text().contains(secret) && !format!("{:?}", answer.headers).contains(secret));
            }
        }
        for request in upstream.requests().iter().chain(&store.requests()) {
            let sent = format!("{:?}", request.headers);
            assert!(!sent.contains("of-the-client"), "a client's login went upstream: {sent}");
        }
    }
}

/// The tokens that were sent to a registry.
fn tokens(upstream: &Upstream) -> Vec<String> {
    let requests = upstream.requests();
    let sent = requests.iter().filter_map(|it| it.header("authorization")?.strip_prefix("Bearer "));
    sent.map(str::to_owned).collect()
}

/// What `berth check-config` says to a configuration, and its exit code.
async fn check_config(toml: &str, args: &[&str]) -> (Option<i32>, String) {
    let file = file_of(toml);
    let mut berth = tokio::process::Command::new(env!("CARGO_BIN_EXE_berth"));
    berth.arg("check-config").arg("--config").arg(&*file as &Path).args(args).env("ROBOT", PASSWORD);
    let output = berth.output().await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.code(), said)
}

#[tokio::test]
async fn a_login_in_the_wrong_place_is_refused_and_not_repeated() {
    let upstream = |keys: &str| format!("[[upstream]]\nregistry = \"r.example\"\n{keys}\n");
    let https = "endpoints = [\"https://r.example\"]";
    for (toml, args) in [
        (upstream(&format!("endpoints = [\"https://robot:{PASSWORD}@r.example\"]")), ""),
        (upstream(&format!("endpoints = [\n  \"https://{PASSWORD}@r.example\",\n]")), ""),
        (upstream(&format!("{https}\ncredentials = \"robot:{PASSWORD}\"")), ""),
        (upstream(&format!("{https}\ncredentials = [\"{PASSWORD}\"]")), ""),
        (
            upstream(&format!(
                "{https}\ncredentials = {{ username = \"robot\", password = \"{PASSWORD}\" }}"
            )),
            "",
        ),
        (upstream(&format!("{https}\npassword = \"{PASSWORD}\"")), ""),
        (
            upstream(&format!(
                "{https}\n[upstream.credentials]\nusername = \"robot\"\npassword = \"{PASSWORD}\""
            )),
            "",
        ),
        (upstream(&format!("{https}\n[upstream.credentials]\n\"{PASSWORD}\"")), ""),
        (
            upstream(&format!(
                "{https}\ncredentials = {{ username = \"robot\", password_env = {PASSWORD} }}"
            )),
            "",
        ),
        (upstream(&format!("{https}\n[upstream.credentials]\npassword_file = [\"{PASSWORD}\"]")), ""),
        (String::new(), "https://robot:hunter2-is-secret@r.example"),
    ] {
        let flag = format!("--upstream=r.example={args}");
        let flags = [&*flag];
        let (code, said) = check_config(&toml, if args.is_empty() { &[] } else { &flags }).await;
        assert_eq!(code, Some(2), "{toml}{args}: {said}");
        assert!(!said.contains(PASSWORD), "{toml}{args}: {said}");
    }
    let files = [file_of(&format!("{{\"auths\": {{\"r.example\": \"{PASSWORD}\"")), file_of("")];
    for (file, key) in files.iter().zip(["file", "password_file"]) {
        let user = if key == "file" { "" } else { "username = \"robot\", " };
        let toml = upstream(&format!("{https}\ncredentials = {{ {user}{key} = {file:?} }}"));
        let (code, said) = check_config(&toml, &[]).await;
        assert!(said.contains(&*file.to_string_lossy()) && !said.contains(PASSWORD), "{said}");
        assert_eq!(code, Some(2), "{said}");
    }
    let toml =
        upstream(&format!("{https}\ncredentials = {{ username = \"robot\", password_env = \"ROBOT\" }}"));
    let (code, said) = check_config(&toml, &[]).await;
    assert_eq!((code, said.contains(PASSWORD)), (Some(0), false), "{said}");
}

fn open_door(password: &TempPath, http: &str) -> Setup {
    let keys = format!("credentials = {{ username = \"robot\", password_file = {password:?} }}");
    Setup::new("r.example").endpoint_url("http://127.0.0.1:1").keys(&keys).http(http)
}

#[tokio::test]
async fn private_images_are_not_put_behind_an_open_door() {
    let password = file_of(PASSWORD);
    for listen in ["0.0.0.0:0", "[::]:0", "10.1.2.3:5000"] {
        let exit = open_door(&password, &format!("listen = [\"127.0.0.1:0\", \"{listen}\"]")).fail().await;
        assert_eq!(exit.code, Some(2), "{listen}");
        let log = exit.log();
        assert!(log.contains("r.example") && log.contains("http.allow"), "{log}");
        assert!(!log.contains(PASSWORD));
    }
    open_door(&password, "listen = [\"0.0.0.0:0\"]\nallow = [\"127.0.0.0/8\"]").start().await;
    let public = Setup::new("r.example").endpoint_url("http://127.0.0.1:1");
    public.http("listen = [\"0.0.0.0:0\"]").start().await;
}
