//! Logins that are in Vault: what it is asked, byte for byte where it matters, that the registry gets what is there, and
//! that a Vault in trouble costs nobody a pull. How tokens and look-ups age is tested in `src/upstream/tests/vault.rs`.

use serde_json::json;

use crate::support::{
    Asked, Auth, Berth, Image, JWT, ROLE_ID, SECRET_ID, Setup, Upstream, Vault, basic, eventually, file_of,
};

const REPO: &str = "team/app";
const PASSWORD: &str = "of-vault-is-secret";
const NEW: &str = "new-of-vault-is-secret";
const TOKEN: &str = "hvs.given-is-secret";
const PATH: &str = "secret/data/registries/harbor";

/// A registry with one image that only the login in Vault may read.
async fn private(auth: Auth) -> (Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[30_000, 300]);
    upstream.image(REPO, "1", &image).auth(auth).user("robot", PASSWORD, "team/");
    (upstream, image)
}

fn with_vault(upstream: &Upstream, vault: &Vault, keys: &str) -> Setup {
    let keys = format!(
        "credentials.vault = {{ address = {:?}, path = \"registries/harbor\", {keys} }}",
        vault.url()
    );
    Berth::with("harbor.example", upstream).keys(&keys)
}

/// Pulls with a login that is found this way; returns what Vault was asked.
async fn pull(vault: &Vault, auth: Auth, keys: &str) -> Vec<Asked> {
    let (upstream, image) = private(auth).await;
    let setup = with_vault(&upstream, vault, keys).env("SITE_TOKEN", TOKEN).arg("--log-level=trace");
    let mut berth = setup.start().await;
    let before = vault.asked().len();
    assert_eq!(before, 0, "nobody is asked before it is needed");
    berth.pull(REPO, "1", &image).await;
    berth.stop().await;
    for secret in [PASSWORD, TOKEN, "hvs.", JWT, SECRET_ID] {
        assert!(!berth.logs_contain(secret), "{secret}");
    }
    let login = basic("robot", PASSWORD);
    let proven = upstream.requests().iter().filter(|it| it.header("authorization") == Some(&*login)).count();
    assert!(proven > 0);
    vault.asked()
}

/// What was asked, with the token and the body.
fn seen(asked: &[Asked]) -> Vec<(String, Option<&str>, &str)> {
    asked.iter().map(|it| (it.line(), it.header("x-vault-token"), &*it.body)).collect()
}

#[tokio::test]
async fn a_login_is_in_vault_whoever_berth_is_there() {
    let get = |path: &str| format!("GET /v1/{path}");
    let post = |path: &str| format!("POST /v1/{path}");
    let (look, renew) = (get("auth/token/lookup-self"), post("auth/token/renew-self"));
    let given = || vec![(look.clone(), Some(TOKEN), ""), (renew.clone(), Some(TOKEN), "{}")];
    let then =
        |mut before: Vec<(String, Option<&'static str>, &'static str)>, path: &str, token: &'static str| {
            before.push((get(path), Some(token), ""));
            before
        };

    let file = file_of(&format!("{TOKEN}\n"));
    let vault = Vault::start().await;
    vault.token(TOKEN, PATH).put("registries/harbor", "robot", PASSWORD);
    let asked = pull(&vault, Auth::Basic, &format!("token_file = {file:?}")).await;
    assert_eq!(seen(&asked), then(given(), PATH, TOKEN));
    assert!(asked.iter().all(|it| it.header("x-vault-request") == Some("true")));
    assert!(asked.iter().all(|it| it.header("x-vault-namespace").is_none()));
    assert_eq!(asked[1].header("content-type"), Some("application/json"));

    let vault = Vault::start().await;
    let data = json!({ "registry": "https://harbor.example/v2/", "username": "robot", "password": PASSWORD });
    vault.token(TOKEN, "").namespace("team-a").put_v1("kv/of%20site/registries/harbor", &data);
    let keys = "token_env = \"SITE_TOKEN\", mount = \"kv/of site\", kv_version = 1, namespace = \"team-a\"";
    let asked = pull(&vault, Auth::Bearer, keys).await;
    assert_eq!(seen(&asked), then(given(), "kv/of%20site/registries/harbor", TOKEN));
    assert!(asked.iter().all(|it| it.header("x-vault-namespace") == Some("team-a")));

    let issued = "hvs.issued-is-secret-1";
    let jwt = file_of(&format!("{JWT}\n"));
    let vault = Vault::start().await;
    vault.put("registries/harbor", "robot", PASSWORD);
    let asked =
        pull(&vault, Auth::Basic, &format!("kubernetes = {{ role = \"berth\", token_file = {jwt:?} }}"))
            .await;
    let login = r#"{"jwt":"jwt.of-the.pod-is-secret","role":"berth"}"#;
    assert_eq!(seen(&asked), then(vec![(post("auth/kubernetes/login"), None, login)], PATH, issued));

    let secret_id = file_of(SECRET_ID);
    let vault = Vault::start().await;
    vault.put("registries/harbor", "robot", PASSWORD);
    let role = format!(
        "app_role = {{ role_id = \"{ROLE_ID}\", secret_id_file = {secret_id:?}, mount = \"of/site\" }}"
    );
    let asked = pull(&vault, Auth::Bearer, &role).await;
    let login = r#"{"role_id":"role-id","secret_id":"secret-id-is-secret"}"#;
    assert_eq!(seen(&asked), then(vec![(post("auth/of/site/login"), None, login)], PATH, issued));
}

#[tokio::test]
async fn a_vault_in_trouble_costs_nobody_a_pull() {
    let (upstream, _) = private(Auth::Basic).await;
    let vault = Vault::start().await;
    vault.token(TOKEN, "").put("registries/harbor", "robot", PASSWORD);
    let berth = with_vault(&upstream, &vault, "token_env = \"SITE_TOKEN\"").env("SITE_TOKEN", TOKEN);
    let berth = berth.start().await;
    let mut next = 2;
    let mut pull_another = async || {
        let image = Image::of(next, &[3000]);
        upstream.image(REPO, &next.to_string(), &image);
        berth.pull(REPO, &next.to_string(), &image).await;
        next += 1;
    };
    vault.seal(true);
    let cold = berth.get(&format!("/v2/{REPO}/manifests/1")).await;
    assert_eq!((cold.status, &*cold.error_code()), (503, "UNAVAILABLE"));
    assert!(!cold.text().contains("Vault"), "{}", cold.text());
    berth.until_logged("Vault is sealed").await;
    vault.seal(false);
    let path = format!("/v2/{REPO}/manifests/1");
    eventually("Vault is asked again", async || berth.get(&path).await.status == 200).await;

    // It is asked when the registry refuses the login, which by then is a new one nowhere.
    upstream.only_user("robot", NEW, "team/");
    for trouble in ["sealed", "a web page", "deleted", "without a password"] {
        vault.behave();
        vault.seal(trouble == "sealed");
        match trouble {
            "a web page" => vault.answers(200, "<html>"),
            "deleted" => vault.delete("registries/harbor"),
            "without a password" => {
                vault.put_data("registries/harbor", &json!({ "username": "robot" }));
            }
            _ => {}
        }
        let before = vault.asked().len();
        eventually(&format!("it is asked: {trouble}"), async || {
            berth.get(&format!("/v2/{REPO}/manifests/none")).await.expect(503);
            vault.asked().len() > before
        })
        .await;
    }
    upstream.only_user("robot", PASSWORD, "team/");
    eventually("the old login is still in use", async || {
        berth.get(&format!("/v2/{REPO}/manifests/none")).await.status == 404
    })
    .await;
    pull_another().await;

    vault.put("registries/harbor", "robot", NEW);
    upstream.only_user("robot", NEW, "team/");
    eventually("the new login is in use", async || {
        berth.get(&format!("/v2/{REPO}/manifests/other")).await.status == 404
    })
    .await;
    pull_another().await;
}

#[tokio::test]
async fn an_address_in_plain_text_is_on_this_machine() {
    let upstream = Upstream::start().await;
    let keys =
        "credentials.vault = { address = \"http://vault.example:8200\", path = \"a\", token_env = \"T\" }";
    let exit = Berth::with("harbor.example", &upstream).keys(keys).env("T", TOKEN).fail().await;
    assert_eq!(exit.code, Some(2));
    assert!(exit.log().contains("expected https:// in address"), "{}", exit.log());
    let keys =
        "credentials.vault = { address = \"https://vault.example:8200\", path = \"a\", token_env = \"T\" }";
    let exit = Berth::with("harbor.example", &upstream).keys(keys).fail().await;
    assert!(exit.code == Some(2) && exit.log().contains("variable T "), "{}", exit.log());
}
