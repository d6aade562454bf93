//! Logins that clouds issue: what each of their services is asked, byte for byte where a signature depends on it, and
//! that the registry gets what they say. How such logins age is tested in `src/upstream/tests/cloud.rs`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::Response;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use serde_json::{Value, json};

use crate::support::process::{run, tool};
use crate::support::{Asked, Auth, Berth, Cloud, Image, Setup, Upstream, basic, file_of, said};

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
fn amazon(asked: &Asked) -> Response<String> {
    let Keys { id, secret, token } = SESSION;
    let token = token.unwrap();
    let keys = json!({"Code": "Success", "AccessKeyId": id, "SecretAccessKey": secret, "Token": token});
    let with = |name: &str, value: &str| asked.header(name) == Some(value);
    match asked.line().as_str() {
        "POST /" if asked.header("x-amz-target").is_some() => said(200, &authorization_data(asked)),
        "POST /sts" => {
            let keys = format!(
                "<AccessKeyId>{id}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>\
                 <SessionToken>{token}</SessionToken><Expiration>2040-01-01T00:00:00Z</Expiration>"
            );
            let result = format!("<AssumeRoleWithWebIdentityResult><Credentials>{keys}</Credentials>");
            said(
                200,
                &format!("<AssumeRoleWithWebIdentityResponse>{result}</AssumeRoleWithWebIdentityResult>"),
            )
        }
        "GET /agent" if with("authorization", "token of the pod") => said(200, &keys),
        "PUT /latest/api/token" if with("x-aws-ec2-metadata-token-ttl-seconds", "60") => {
            said(200, "of-the-instance")
        }
        path if with("x-aws-ec2-metadata-token", "of-the-instance") => match path {
            "GET /latest/meta-data/iam/security-credentials/" => said(200, "node-role"),
            "GET /latest/meta-data/iam/security-credentials/node-role" => said(200, &keys),
            _ => said(404, ""),
        },
        _ => said(403, ""),
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
    let names = match keys.token {
        Some(_) => "content-type;host;x-amz-date;x-amz-security-token;x-amz-target",
        None => "content-type;host;x-amz-date;x-amz-target",
    };
    assert_eq!(asked.header("x-amz-security-token"), keys.token);
    assert_eq!(
        (asked.body.as_str(), asked.header("content-type")),
        ("{}", Some("application/x-amz-json-1.1"))
    );
    check_signed(asked, keys, names, region, service);
}

/// The same for any POST, of whose headers these are signed.
fn check_signed(asked: &Asked, keys: &Keys, names: &str, region: &str, service: &str) {
    let date = asked.header("x-amz-date").unwrap();
    let day = &date[..8];
    let hash = |text: &str| hex(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref());
    let mut canonical = format!("POST\n{}\n\n", asked.path);
    for name in names.split(';') {
        canonical += &format!("{name}:{}\n", asked.header(name).unwrap());
    }
    canonical += &format!("\n{names}\n{}", hash(&asked.body));
    let hashed = hash(&canonical);
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
    let mut berth = setup.arg("--log-level=trace").start().await;
    berth.pull(REPO, "1", &image).await;
    berth.stop().await;
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
async fn a_profile_may_name_a_role_or_a_program() {
    let cloud = Cloud::start(amazon).await;
    let sts = format!("{}/sts", cloud.url());
    let lines = |asked: &[Asked]| asked.iter().map(Asked::line).collect::<Vec<_>>();
    let role = "role_arn = arn:aws:iam::210987654321:role/images";
    let form =
        "Action=AssumeRole&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A210987654321%3Arole%2Fimages";
    let signed = "content-type;host;x-amz-date";
    let (id, secret) = (LASTING.id, LASTING.secret);
    let robot = format!("aws_access_key_id = {id}\naws_secret_access_key = {secret}\n");

    let config = file_of(&format!(
        "[profile images]\n{role}\nsource_profile = robot\nexternal_id = of-images\n[profile robot]\n{robot}"
    ));
    let keys = format!("profile = \"images\", profile_file = {config:?}");
    let asked = pull_from_ecr(&keys, &[("AWS_ENDPOINT_URL_STS", &sts)], &cloud).await;
    assert_eq!(lines(&asked), ["POST /sts", "POST /"]);
    assert_eq!(asked[0].body, format!("{form}&RoleSessionName=berth&ExternalId=of-images"));
    check_signed(&asked[0], &LASTING, signed, REGION, "sts");
    check_signature(&asked[1], &SESSION, REGION, "ecr");

    // What is in the two usual files counts as one.
    let home = tempfile::tempdir().unwrap();
    let aws = home.path().join(".aws");
    std::fs::create_dir(&aws).unwrap();
    let config = format!("[profile images]\n{role}\nrole_session_name = site\nsource_profile = default\n");
    std::fs::copy(file_of(&config), aws.join("config")).unwrap();
    std::fs::copy(file_of(&format!("[default]\n{robot}")), aws.join("credentials")).unwrap();
    let env =
        [("HOME", home.path().to_str().unwrap()), ("AWS_PROFILE", "images"), ("AWS_ENDPOINT_URL_STS", &sts)];
    let asked = pull_from_ecr("", &env, &cloud).await;
    assert_eq!(asked[0].body, format!("{form}&RoleSessionName=site"));
    check_signed(&asked[0], &LASTING, signed, REGION, "sts");

    let config = file_of(&format!("[images]\n{role}\ncredential_source = Ec2InstanceMetadata\n"));
    let keys = format!("profile = \"images\", profile_file = {config:?}");
    let env = [("AWS_ENDPOINT_URL_STS", &*sts), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &cloud.url())];
    let asked = pull_from_ecr(&keys, &env, &cloud).await;
    assert_eq!(lines(&asked)[3..], ["POST /sts", "POST /"]);
    check_signed(&asked[3], &SESSION, &format!("{signed};x-amz-security-token"), REGION, "sts");

    let printed = file_of(&json!({"Version": 1, "AccessKeyId": id, "SecretAccessKey": secret}).to_string());
    let config = file_of(&format!("[tool]\ncredential_process = /bin/cat {printed:?}\n"));
    let keys = format!("profile = \"tool\", profile_file = {config:?}");
    let asked = pull_from_ecr(&keys, &[], &cloud).await;
    assert_eq!(lines(&asked), ["POST /"]);
    check_signature(&asked[0], &LASTING, REGION, "ecr");
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

/// A key of a service account, as Google writes it, and its public half.
async fn google_key() -> (String, Vec<u8>) {
    let mut generate = tool("openssl");
    generate.args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
    let pem = run(&mut generate).await;
    let der: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let pair = RsaKeyPair::from_pkcs8(&BASE64_STANDARD.decode(der).unwrap()).unwrap();
    let key = json!({
        "type": "service_account",
        "private_key_id": "key-id",
        "private_key": pem,
        "client_email": "berth@project.iam.gserviceaccount.com",
        "token_uri": "https://oauth2.googleapis.com/token",
    });
    (key.to_string(), pair.public().as_ref().to_vec())
}

const GOOGLE_TOKEN: &str = "ya29.access-token";

#[tokio::test]
async fn google_takes_an_assertion_that_the_key_has_signed() {
    let (key, public) = google_key().await;
    let cloud = Cloud::start(|_| {
        said(200, &json!({"access_token": GOOGLE_TOKEN, "expires_in": 3599, "token_type": "Bearer"}))
    })
    .await;
    let (upstream, image) = private(Auth::Bearer, "oauth2accesstoken", GOOGLE_TOKEN).await;
    let file = file_of(&key);
    let token_endpoint = format!("{}/token", cloud.url());
    let mut berth = Berth::with("europe-docker.pkg.dev", &upstream)
        .keys(&format!("credentials.google = {{ key_file = {file:?}, token_endpoint = {token_endpoint:?} }}"))
        .arg("--log-level=trace")
        .start()
        .await;
    berth.pull(REPO, "1", &image).await;
    berth.stop().await;

    let [asked] = cloud.asked().try_into().unwrap();
    assert_eq!(asked.line(), "POST /token");
    assert_eq!(asked.header("content-type"), Some("application/x-www-form-urlencoded"));
    assert_eq!(asked.field("grant_type").unwrap(), "urn:ietf:params:oauth:grant-type:jwt-bearer");
    let assertion = asked.field("assertion").unwrap();
    let (signed, signature) = assertion.rsplit_once('.').unwrap();
    let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap();
    let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public);
    assert_eq!(public.verify(signed.as_bytes(), &signature), Ok(()));
    let part = |part: &str| -> Value {
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    };
    let (header, claims) = signed.split_once('.').unwrap();
    assert_eq!(part(header), json!({"alg": "RS256", "typ": "JWT", "kid": "key-id"}));
    let claims = part(claims);
    assert_eq!(claims["iss"], "berth@project.iam.gserviceaccount.com");
    assert_eq!(claims["aud"], "https://oauth2.googleapis.com/token");
    assert_eq!(claims["scope"], "https://www.googleapis.com/auth/cloud-platform");
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 3600);

    let login = basic("oauth2accesstoken", GOOGLE_TOKEN);
    for request in upstream.requests() {
        assert_eq!(request.header("authorization") == Some(&*login), request.path() == "/token");
    }
    assert!(
        !berth.logs_contain(GOOGLE_TOKEN)
            && !berth.logs_contain(&assertion)
            && !berth.logs_contain("PRIVATE KEY")
    );
}

#[tokio::test]
async fn googles_metadata_server_is_asked_where_there_is_no_key() {
    let cloud = Cloud::start(|asked| match asked.header("metadata-flavor") {
        Some("Google") => said(200, &json!({"access_token": GOOGLE_TOKEN, "expires_in": 1800})),
        _ => said(403, ""),
    })
    .await;
    let (upstream, image) = private(Auth::Bearer, "oauth2accesstoken", GOOGLE_TOKEN).await;
    let berth = Berth::with("gcr.io", &upstream).keys("credentials.google = {}");
    let berth = berth.env("GCE_METADATA_HOST", &cloud.address().to_string()).start().await;
    berth.pull(REPO, "1", &image).await;
    let lines: Vec<_> = cloud.asked().iter().map(Asked::line).collect();
    assert_eq!(lines, ["GET /computeMetadata/v1/instance/service-accounts/default/token"]);
}

/// What Google's token service must be asked for the token of a cluster.
fn check_federation(asked: &Asked) {
    assert_eq!(asked.line(), "POST /v1/token");
    let expected = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("audience", AUDIENCE),
        ("scope", "https://www.googleapis.com/auth/cloud-platform"),
        ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ("subject_token", "of.the.cluster"),
    ];
    for (name, value) in expected {
        assert_eq!(asked.field(name).as_deref(), Some(value));
    }
    assert_eq!(asked.header("authorization"), None);
}

const AUDIENCE: &str = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q";

/// A cluster outside Google, whose tokens Google trusts.
#[tokio::test]
async fn google_takes_the_token_of_another_identity_provider() {
    const ACCOUNT: &str =
        "/v1/projects/-/serviceAccounts/berth@p.iam.gserviceaccount.com:generateAccessToken";
    let cloud = Cloud::start(|asked| match asked.line().as_str() {
        "POST /v1/token" => said(200, &json!({"access_token": "federated", "expires_in": 3599})),
        _ if asked.path == ACCOUNT && asked.header("authorization") == Some("Bearer federated") => {
            said(200, &json!({"accessToken": GOOGLE_TOKEN, "expireTime": "2040-01-01T00:00:00Z"}))
        }
        _ => said(403, ""),
    })
    .await;
    let url = cloud.url();
    let file = |token: &std::path::Path, changes: &Value| {
        let mut file = json!({
            "type": "external_account",
            "audience": AUDIENCE,
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": "https://sts.googleapis.com/v1/token",
            "credential_source": {"file": token},
        });
        file.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        file_of(&file.to_string())
    };
    let pull = async |file: &std::path::Path, password: &str| {
        let (upstream, image) = private(Auth::Bearer, "oauth2accesstoken", password).await;
        let before = cloud.asked().len();
        let keys = format!(
            "credentials.google = {{ key_file = {file:?}, token_endpoint = \"{url}/v1/token\", impersonation_endpoint = {url:?} }}"
        );
        let setup = Berth::with("europe-docker.pkg.dev", &upstream).keys(&keys).arg("--log-level=trace");
        let mut berth = setup.start().await;
        berth.pull(REPO, "1", &image).await;
        berth.stop().await;
        assert!(
            ["federated", GOOGLE_TOKEN, "of.the.cluster"].iter().all(|secret| !berth.logs_contain(secret))
        );
        cloud.asked().split_off(before)
    };
    let token = file_of("of.the.cluster\n");
    let asked = pull(&file(&token, &json!({})), "federated").await;
    assert_eq!(asked.len(), 1);
    check_federation(&asked[0]);

    let token = file_of(r#"{"id_token": "of.the.cluster"}"#);
    let format = json!({"type": "json", "subject_token_field_name": "id_token"});
    let changes = json!({
        "service_account_impersonation_url": format!("https://iamcredentials.googleapis.com{ACCOUNT}"),
        "service_account_impersonation": {"token_lifetime_seconds": 2800},
        "credential_source": {"file": &*token, "format": format},
    });
    let asked = pull(&file(&token, &changes), GOOGLE_TOKEN).await;
    assert_eq!(asked.len(), 2);
    check_federation(&asked[0]);
    assert_eq!(asked[1].header("content-type"), Some("application/json"));
    let body: Value = serde_json::from_str(&asked[1].body).unwrap();
    assert_eq!(
        body,
        json!({"scope": ["https://www.googleapis.com/auth/cloud-platform"], "lifetime": "2800s"})
    );
}

#[tokio::test]
async fn googles_key_is_also_a_password() {
    let (key, _) = google_key().await;
    let (upstream, image) = private(Auth::Bearer, "_json_key", &key).await;
    let file = file_of(&format!("{key}\n"));
    let keys = format!("credentials = {{ username = \"_json_key\", password_file = {file:?} }}");
    Berth::with("gcr.io", &upstream).keys(&keys).start().await.pull(REPO, "1", &image).await;
    let login = basic("_json_key", &key);
    assert_eq!(upstream.seen("GET", "/token")[0].header("authorization"), Some(&*login));
}

/// A token that says of itself until when it is good.
fn jwt(subject: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({"sub": subject, "iat": now, "exp": now + 4500}).to_string();
    format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims))
}

/// Entra ID, the metadata service and a registry of Azure in one.
fn azure(image: &Image) -> impl Fn(&Asked) -> Response<String> + use<> {
    let (manifest, media_type) = (String::from_utf8(image.manifest.to_vec()).unwrap(), image.media_type);
    let (refresh, access) = (jwt("refresh"), jwt("access"));
    move |asked| {
        let with = |name: &str, value: &str| asked.field(name).as_deref() == Some(value);
        match asked.path.split('?').next().unwrap() {
            "/msi/token" if asked.header("x-identity-header") != Some("header-is-secret") => said(401, ""),
            "/tenant/oauth2/v2.0/token" | "/metadata/identity/oauth2/token" | "/msi/token" => {
                said(200, &json!({"access_token": "of-entra", "expires_in": "3599", "token_type": "Bearer"}))
            }
            "/oauth2/exchange" if with("access_token", "of-entra") => {
                said(200, &json!({"refresh_token": refresh}))
            }
            "/oauth2/token" if with("refresh_token", &refresh) => said(200, &json!({"access_token": access})),
            path if path.starts_with("/v2/") => {
                if asked.header("authorization") == Some(&*format!("Bearer {access}")) {
                    let mut manifest = said(200, &manifest);
                    manifest.headers_mut().insert("content-type", media_type.parse().unwrap());
                    return manifest;
                }
                let host = asked.header("host").unwrap();
                let scope = format!("repository:{REPO}:pull");
                let challenge = format!(
                    "Bearer realm=\"http://{host}/oauth2/token\",service=\"{host}\",scope=\"{scope}\""
                );
                let mut refusal = said(401, "");
                refusal.headers_mut().insert("www-authenticate", challenge.parse().unwrap());
                refusal
            }
            _ => said(401, &json!({"error": "invalid_client"})),
        }
    }
}

/// Pulls as an identity of Azure; returns what was asked of whom, but for `/v2/`.
async fn pull_from_acr(keys: &str, env: &[(&str, &str)]) -> (Vec<Asked>, String) {
    let image = Image::of(1, &[300]);
    let cloud = Cloud::start(azure(&image)).await;
    let keys = keys.replace("AUTHORITY", &cloud.url());
    let setup =
        Setup::new("x.azurecr.io").endpoint_url(&cloud.url()).keys(&format!("credentials.azure = {keys}"));
    let setup = setup.env("AZURE_POD_IDENTITY_AUTHORITY_HOST", &cloud.url()).arg("--log-level=trace");
    let setup = env
        .iter()
        .fold(setup, |setup, (name, value)| setup.env(name, &value.replace("AUTHORITY", &cloud.url())));
    let mut berth = setup.start().await;
    let manifest = berth.get(&format!("/v2/{REPO}/manifests/1")).await;
    assert_eq!(manifest.expect(200), &image.manifest);
    berth.stop().await;
    let mut asked = cloud.asked();
    asked.retain(|asked| !asked.path.starts_with("/v2/"));
    for secret in ["secret-of-principal", "federated.token", "header-is-secret", "of-entra", &jwt("")[..20]] {
        assert!(!berth.logs_contain(secret), "{secret}");
    }
    (asked, cloud.address().to_string())
}

#[tokio::test]
async fn azures_registries_exchange_a_token_of_the_identity_that_is_there() {
    let check_exchange = |asked: &[Asked], tenant: Option<&str>, service: &str| {
        assert_eq!(asked.len(), 3);
        assert_eq!(asked[1].line(), "POST /oauth2/exchange");
        let field = |at: usize, name: &str| asked[at].field(name);
        assert_eq!(field(1, "grant_type").as_deref(), Some("access_token"));
        assert_eq!(field(1, "service").as_deref(), Some(service));
        assert_eq!(field(1, "tenant").as_deref(), tenant);
        assert_eq!(asked[2].line(), "POST /oauth2/token");
        assert_eq!(field(2, "grant_type").as_deref(), Some("refresh_token"));
        assert_eq!(field(2, "service").as_deref(), Some(service));
        assert_eq!(field(2, "scope").as_deref(), Some("repository:team/app:pull"));
        assert!(asked.iter().all(|asked| asked.header("authorization").is_none()));
    };
    let (secret, token) = (file_of("secret-of-principal\n"), file_of("federated.token\n"));
    let scope = "scope=https%3A%2F%2Fcontainerregistry.azure.net%2F.default";
    let start = format!("grant_type=client_credentials&client_id=app&{scope}");

    let keys = format!(
        "{{ tenant = \"tenant\", client_id = \"app\", client_secret_file = {secret:?}, authority = \"AUTHORITY\" }}"
    );
    let (asked, service) = pull_from_acr(&keys, &[]).await;
    assert_eq!(asked[0].line(), "POST /tenant/oauth2/v2.0/token");
    assert_eq!(asked[0].body, format!("{start}&client_secret=secret-of-principal"));
    check_exchange(&asked, Some("tenant"), &service);

    let env = [
        ("AZURE_TENANT_ID", "tenant"),
        ("AZURE_CLIENT_ID", "app"),
        ("AZURE_FEDERATED_TOKEN_FILE", token.to_str().unwrap()),
    ];
    let (asked, service) = pull_from_acr("{ authority = \"AUTHORITY\" }", &env).await;
    let kind = "urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer";
    assert_eq!(
        asked[0].body,
        format!("{start}&client_assertion_type={kind}&client_assertion=federated.token")
    );
    check_exchange(&asked, Some("tenant"), &service);

    let (asked, service) = pull_from_acr("{ client_id = \"one\" }", &[]).await;
    let query = "api-version=2018-02-01&resource=https%3A%2F%2Fcontainerregistry.azure.net&client_id=one";
    assert_eq!(asked[0].line(), format!("GET /metadata/identity/oauth2/token?{query}"));
    assert_eq!(asked[0].header("metadata"), Some("true"));
    check_exchange(&asked, None, &service);

    let app = [("IDENTITY_ENDPOINT", "AUTHORITY/msi/token"), ("IDENTITY_HEADER", "header-is-secret")];
    let (asked, service) = pull_from_acr("{ client_id = \"one\" }", &app).await;
    assert_eq!(asked[0].line(), format!("GET /msi/token?{}", query.replace("2018-02-01", "2019-08-01")));
    assert_eq!(asked[0].header("metadata"), None);
    check_exchange(&asked, None, &service);
}

#[tokio::test]
async fn a_cloud_that_refuses_is_an_outage_that_the_log_explains() {
    let refusal =
        "<ErrorResponse><Error><Code>AccessDenied</Code><Message>m</Message></Error></ErrorResponse>";
    let cloud = Cloud::start(move |_| said(403, refusal)).await;
    let (upstream, _) = private(Auth::Basic, "AWS", PASSWORD).await;
    let token = file_of("pod.identity.token");
    let setup = |keys: &str| {
        let keys = format!("credentials.ecr = {{ {keys} }}");
        Berth::with("123456789012.dkr.ecr.eu-west-1.amazonaws.com", &upstream).keys(&keys)
    };
    let mut berth = setup("")
        .env("AWS_ROLE_ARN", "arn:r")
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap())
        .env("AWS_ENDPOINT_URL_STS", &cloud.url())
        .start()
        .await;
    let reply = berth.get(&format!("/v2/{REPO}/manifests/1")).await;
    assert_eq!((reply.status, &*reply.error_code()), (503, "UNAVAILABLE"));
    assert!(reply.text().contains("no login") && !reply.text().contains("STS"), "{}", reply.text());
    berth.until_logged("AWS STS answered with status 403, AccessDenied").await;
    berth.stop().await;
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
    check(with("google = { key_file = \"/no/key.json\" }"), "/no/key.json").await;
    let user = file_of("{\"type\": \"authorized_user\"}");
    check(with(&format!("google = {{ key_file = {user:?} }}")), "the key of a Google service account").await;
    let half = with("azure = { client_secret_file = \"/secret\", tenant = \"t\" }");
    check(half, "azure: expected tenant and client_id").await;
    let leaking = with("ecr = { region = \"eu-west-1\" }");
    check(leaking.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://agent.example/"), "plain text").await;
}
