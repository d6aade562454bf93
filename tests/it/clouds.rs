//! Logins that clouds issue: what each of their services is asked, byte for byte where a signature depends on it, and
//! that the registry gets what they say. How such logins age is tested in `src/upstream/tests/cloud.rs`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use crate::support::{Asked, Auth, Berth, Cloud, Image, Setup, Upstream, basic, file_of};

const REPO: &str = "team/app";
/// What Amazon issues.
const PASSWORD: &str = "issued+by/amazon";
const REGION: &str = "eu-central-1";
const ECR: &str = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";

/// Keys that sign, in the shape of one of their sources.
struct Keys {
    id: &'static str,
    secret: &'static str,
    token: Option<&'static str>,
}

const LASTING: Keys = Keys { id: "AKIDLASTING", secret: "secret/of+lasting", token: None };
const SESSION: Keys = Keys { id: "ASIASESSION", secret: "secret/of+session", token: Some("session//token=") };

/// Every service of Amazon that berth may ask.
fn amazon(asked: &Asked) -> (u16, String) {
    let Keys { id, secret, token } = SESSION;
    let token = token.unwrap();
    let keys = json!({"Code": "Success", "AccessKeyId": id, "SecretAccessKey": secret, "Token": token});
    let with = |name: &str, value: &str| asked.header(name) == Some(value);
    match asked.line().as_str() {
        "POST /" if asked.header("x-amz-target").is_some() => (200, authorization_data(asked)),
        "POST /sts" => {
            let keys = format!(
                "<AccessKeyId>{id}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>\
                 <SessionToken>{token}</SessionToken><Expiration>2040-01-01T00:00:00Z</Expiration>"
            );
            let result = format!("<AssumeRoleWithWebIdentityResult><Credentials>{keys}</Credentials>");
            (200, format!("<AssumeRoleWithWebIdentityResponse>{result}</AssumeRoleWithWebIdentityResult>"))
        }
        "GET /agent" if with("authorization", "token of the pod") => (200, keys.to_string()),
        "PUT /latest/api/token" if with("x-aws-ec2-metadata-token-ttl-seconds", "60") => {
            (200, "of-the-instance".to_owned())
        }
        path if with("x-aws-ec2-metadata-token", "of-the-instance") => match path {
            "GET /latest/meta-data/iam/security-credentials/" => (200, "node-role".to_owned()),
            "GET /latest/meta-data/iam/security-credentials/node-role" => (200, keys.to_string()),
            _ => (404, String::new()),
        },
        _ => (403, String::new()),
    }
}

fn authorization_data(asked: &Asked) -> String {
    let ends = SystemTime::now() + Duration::from_secs(12 * 3600);
    let ends = ends.duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let token = BASE64_STANDARD.encode(format!("AWS:{PASSWORD}"));
    let one = json!({"authorizationToken": token, "expiresAt": ends});
    let is_private = asked.header("x-amz-target") == Some(ECR);
    json!({"authorizationData": if is_private { json!([one]) } else { one }}).to_string()
}

/// Works out the signature of a request for a token anew, and compares all that was sent.
fn check_signature(asked: &Asked, keys: &Keys, region: &str, service: &str) {
    let date = asked.header("x-amz-date").unwrap();
    let day = &date[..8];
    let names = match keys.token {
        Some(_) => "content-type;host;x-amz-date;x-amz-security-token;x-amz-target",
        None => "content-type;host;x-amz-date;x-amz-target",
    };
    assert_eq!(asked.header("x-amz-security-token"), keys.token);
    assert_eq!(
        (asked.body.as_str(), asked.header("content-type")),
        ("{}", Some("application/x-amz-json-1.1"))
    );
    let mut canonical = "POST\n/\n\n".to_owned();
    for name in names.split(';') {
        canonical += &format!("{name}:{}\n", asked.header(name).unwrap());
    }
    canonical += &format!("\n{names}\n{}", hex(ring::digest::digest(&ring::digest::SHA256, b"{}").as_ref()));
    let hashed = hex(ring::digest::digest(&ring::digest::SHA256, canonical.as_bytes()).as_ref());
    let scope = format!("{day}/{region}/{service}/aws4_request");
    let hmac = |key: &[u8], text: &str| {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key);
        ring::hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
    };
    let mut key = format!("AWS4{}", keys.secret).into_bytes();
    for part in scope.split('/') {
        key = hmac(&key, part);
    }
    let signature = hex(&hmac(&key, &format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{hashed}")));
    let expected = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
        keys.id
    );
    assert_eq!(asked.header("authorization"), Some(&*expected));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A registry with one image that only an issued login may read.
async fn private(auth: Auth, user: &str, password: &str) -> (Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = Image::of(1, &[30_000, 300]);
    upstream.image(REPO, "1", &image).auth(auth).user(user, password, "team/");
    (upstream, image)
}

/// Pulls as an identity of AWS that `keys` and `env` provide; returns what Amazon was asked.
async fn pull_from_ecr(keys: &str, env: &[(&str, &str)], cloud: &Cloud) -> Vec<Asked> {
    let (upstream, image) = private(Auth::Basic, "AWS", PASSWORD).await;
    let keys = format!("credentials.ecr = {{ region = \"{REGION}\", endpoint = {:?}, {keys} }}", cloud.url());
    let setup = Berth::with("ecr.example", &upstream).keys(&keys);
    let setup = env.iter().fold(setup, |setup, (name, value)| setup.env(name, value));
    let before = cloud.asked().len();
    let berth = setup.arg("--log-level=trace").start().await;
    berth.pull(REPO, "1", &image).await;
    let asked = cloud.asked().split_off(before);
    assert_eq!(asked.last().unwrap().header("x-amz-target"), Some(ECR));
    for secret in
        [PASSWORD, SESSION.secret, SESSION.token.unwrap(), LASTING.secret, "of-the-instance", "of the pod"]
    {
        assert!(!berth.logs_contain(secret), "{secret}");
    }
    let issued = basic("AWS", PASSWORD);
    assert!(
        upstream.requests().iter().all(|it| it.header("authorization").is_none_or(|sent| sent == issued))
    );
    asked
}

#[tokio::test]
async fn amazon_is_asked_as_whoever_the_platform_says() {
    let cloud = Cloud::start(amazon).await;
    let url = cloud.url();
    let lines = |asked: &[Asked]| asked.iter().map(Asked::line).collect::<Vec<_>>();

    let env = [("AWS_ACCESS_KEY_ID", LASTING.id), ("AWS_SECRET_ACCESS_KEY", LASTING.secret)];
    let asked = pull_from_ecr("", &env, &cloud).await;
    assert_eq!(lines(&asked), ["POST /"]);
    check_signature(&asked[0], &LASTING, REGION, "ecr");

    let profile = file_of(&format!(
        "[robot]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        LASTING.id, LASTING.secret
    ));
    let keys = format!("profile = \"robot\", profile_file = {profile:?}");
    let asked =
        pull_from_ecr(&keys, &[("AWS_ACCESS_KEY_ID", "other"), ("AWS_SECRET_ACCESS_KEY", "x")], &cloud).await;
    assert_eq!(lines(&asked), ["POST /"]);
    check_signature(&asked[0], &LASTING, REGION, "ecr");

    let token = file_of("pod.identity.token\n");
    let sts = format!("{url}/sts");
    let env = [
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/berth"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
        ("AWS_ENDPOINT_URL_STS", &sts),
    ];
    let asked = pull_from_ecr("", &env, &cloud).await;
    assert_eq!(lines(&asked), ["POST /sts", "POST /"]);
    assert_eq!(
        asked[0].body,
        "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fberth\
         &RoleSessionName=berth&WebIdentityToken=pod.identity.token"
    );
    assert_eq!(asked[0].header("content-type"), Some("application/x-www-form-urlencoded"));
    check_signature(&asked[1], &SESSION, REGION, "ecr");

    let token = file_of("token of the pod\n");
    let agent = format!("{url}/agent");
    let env = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &*agent),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().unwrap()),
    ];
    let asked = pull_from_ecr("", &env, &cloud).await;
    assert_eq!(lines(&asked), ["GET /agent", "POST /"]);
    check_signature(&asked[1], &SESSION, REGION, "ecr");

    let asked = pull_from_ecr("", &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url)], &cloud).await;
    let roles = "GET /latest/meta-data/iam/security-credentials/";
    assert_eq!(lines(&asked), ["PUT /latest/api/token", roles, &format!("{roles}node-role"), "POST /"]);
    check_signature(&asked[3], &SESSION, REGION, "ecr");
}

#[tokio::test]
async fn ecr_public_is_another_service_whose_token_server_takes_the_login() {
    let cloud = Cloud::start(amazon).await;
    let (upstream, image) = private(Auth::Bearer, "AWS", PASSWORD).await;
    let berth = Berth::with("public.ecr.aws", &upstream)
        .keys(&format!("credentials.ecr_public = {{ endpoint = {:?} }}", cloud.url()))
        .env("AWS_ACCESS_KEY_ID", LASTING.id)
        .env("AWS_SECRET_ACCESS_KEY", LASTING.secret)
        .env("AWS_REGION", REGION)
        .start()
        .await;
    berth.pull(REPO, "1", &image).await;
    let [asked] = cloud.asked().try_into().unwrap();
    assert_eq!(asked.header("x-amz-target"), Some("SpencerFrontendService.GetAuthorizationToken"));
    check_signature(&asked, &LASTING, "us-east-1", "ecr-public");
    let issued = basic("AWS", PASSWORD);
    for request in upstream.requests() {
        let is_login = request.header("authorization") == Some(&*issued);
        assert_eq!(is_login, request.path() == "/token", "{}", request.path());
    }
}

#[tokio::test]
async fn a_cloud_that_refuses_is_an_outage_that_the_log_explains() {
    let cloud = Cloud::start(|_| {
        (
            403,
            "<ErrorResponse><Error><Code>AccessDenied</Code><Message>m</Message></Error></ErrorResponse>"
                .into(),
        )
    })
    .await;
    let (upstream, _) = private(Auth::Basic, "AWS", PASSWORD).await;
    let token = file_of("pod.identity.token");
    let setup = |keys: &str| {
        let keys = format!("credentials.ecr = {{ {keys} }}");
        Berth::with("123456789012.dkr.ecr.eu-west-1.amazonaws.com", &upstream).keys(&keys)
    };
    let berth = setup("")
        .env("AWS_ROLE_ARN", "arn:r")
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap())
        .env("AWS_ENDPOINT_URL_STS", &cloud.url())
        .start()
        .await;
    let reply = berth.get(&format!("/v2/{REPO}/manifests/1")).await;
    assert_eq!((reply.status, &*reply.error_code()), (503, "UNAVAILABLE"));
    assert!(reply.text().contains("no login") && !reply.text().contains("STS"), "{}", reply.text());
    assert!(berth.logs_contain("AWS STS answered with status 403, AccessDenied"));
    assert!(!berth.logs_contain("pod.identity.token"));
    assert_eq!(upstream.connections(), 0);
}

/// What cannot work is said before anything is served.
#[tokio::test]
async fn a_login_that_cannot_be_had_is_refused_at_start() {
    let check = async |setup: Setup, part: &str| {
        let exit = setup.fail().await;
        assert_eq!(exit.code, Some(2), "{part}: {}", exit.log());
        assert!(exit.log().contains(part), "{part}: {}", exit.log());
    };
    let with = |keys: &str| {
        Setup::new("r.example")
            .endpoint_url("http://127.0.0.1:1")
            .keys(&format!("credentials = {{ {keys} }}"))
    };
    check(with("ecr = {}"), "AWS_REGION").await;
    check(with("ecr = { region = \"eu west\" }"), "eu-central-1").await;
    check(with("ecr = { region = \"eu-west-1\", profile = \"x\" }"), "profile_file").await;
    check(with("ecr_public = { region = \"eu-west-1\" }"), "ecr_public has no region").await;
    let leaking = with("ecr = { region = \"eu-west-1\" }");
    check(leaking.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://agent.example/"), "plain text").await;
}
