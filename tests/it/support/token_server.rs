//! The authorization server of a registry with token authentication, as small as docker-registry accepts one.
//!
//! It answers `GET /token?service=…&scope=repository:NAME:pull` with a JWT, signed by `openssl` with RS256,
//! whose `x5c` header carries the certificate that the registry was told to trust. It counts what it issued.
//! With a login it grants nothing to strangers, but answers them with an empty token, as real ones do.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::process::{run, tool, write};

const SERVICE: &str = "registry.test";
const ISSUER: &str = "the tests' token server";

/// Long enough that no token of a test ends by itself, unless the test asks for that.
const LIFETIME: Duration = Duration::from_secs(300);

/// The server, until it is dropped.
pub(crate) struct TokenServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    folder: TempDir,
    login: Option<(&'static str, &'static str)>,
    /// Tokens by scope; a request for several scopes counts under all of them, joined by spaces.
    issued: Mutex<BTreeMap<String, usize>>,
    refused: Mutex<usize>,
}

impl TokenServer {
    /// One that lets anybody do what they ask for, or only who logs in so.
    pub(crate) async fn start(login: Option<(&'static str, &'static str)>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let mut request = tool("openssl");
        request.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=tokens"]);
        run(request.args(["-keyout", "key.pem", "-out", "certificate.pem"]).current_dir(folder.path())).await;
        let shared = Arc::new(Shared { folder, login, issued: Mutex::default(), refused: Mutex::default() });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let task = tokio::spawn(serve(listener, Arc::clone(&shared)));
        Self { address, shared, task }
    }

    /// Who is let in.
    pub(crate) fn login(&self) -> Option<(&'static str, &'static str)> {
        self.shared.login
    }

    /// How many tokens were issued, by scope.
    pub(crate) fn issued(&self) -> BTreeMap<String, usize> {
        self.shared.issued.lock().expect("no test panics within").clone()
    }

    /// How many logins were refused.
    pub(crate) fn refused(&self) -> usize {
        *self.shared.refused.lock().expect("no test panics within")
    }

    /// What the registry's configuration says about it.
    pub(super) fn registry_settings(&self) -> Value {
        json!({
            "realm": format!("http://{}/token", self.address),
            "service": SERVICE,
            "issuer": ISSUER,
            "rootcertbundle": self.shared.certificate(),
        })
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(shared.answer(&request).await) }
            });
            // A client that goes away is not this server's concern.
            http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await.ok();
        });
    }
}

impl Shared {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let query: Vec<(String, String)> =
            url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect();
        let scopes: Vec<_> =
            query.iter().filter(|(key, _)| key == "scope").map(|(_, scope)| scope.as_str()).collect();
        let login = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let expected = self
            .login
            .map(|(user, password)| format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))));
        let granted: &[&str] = match (&expected, login) {
            (None, _) => &scopes,
            (Some(expected), Some(login)) if login == expected => &scopes,
            (Some(_), None) => &[],
            (Some(_), Some(_)) => {
                *self.refused.lock().expect("no test panics within") += 1;
                return respond(
                    StatusCode::UNAUTHORIZED,
                    &json!({"details": "incorrect username or password"}),
                );
            }
        };
        *self.issued.lock().expect("no test panics within").entry(scopes.join(" ")).or_default() += 1;
        let token = self.token(granted).await;
        respond(StatusCode::OK, &json!({"token": token, "expires_in": LIFETIME.as_secs()}))
    }

    /// A JWT that grants these scopes.
    async fn token(&self, scopes: &[&str]) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
        let access: Vec<Value> = scopes.iter().filter_map(|scope| access(scope)).collect();
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [der(&self.certificate())]});
        let claims = json!({
            "iss": ISSUER, "sub": "a test", "aud": SERVICE, "jti": fastrand::u64(..).to_string(),
            "nbf": now.as_secs() - 10, "iat": now.as_secs(), "exp": (now + LIFETIME).as_secs(),
            "access": access,
        });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = URL_SAFE_NO_PAD.encode(self.signature(&signed).await);
        format!("{signed}.{signature}")
    }

    async fn signature(&self, text: &str) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new_in(self.folder.path()).expect("the folder is writable");
        write(file.path(), text);
        let mut sign = tool("openssl");
        sign.args(["dgst", "-sha256", "-sign", "key.pem"]).arg(file.path()).current_dir(self.folder.path());
        sign.output().await.expect("openssl runs").stdout
    }

    fn certificate(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }
}

/// `repository:library/single:pull,push` as a claim.
fn access(scope: &str) -> Option<Value> {
    let (kind, rest) = scope.split_once(':')?;
    let (name, actions) = rest.rsplit_once(':')?;
    Some(json!({"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()}))
}

/// The one certificate of a PEM file, as the Base64 that it is without its frame.
fn der(pem: &Path) -> String {
    let pem = fs::read_to_string(pem).expect("openssl wrote it");
    pem.lines().filter(|line| !line.starts_with("-----")).collect()
}

fn respond(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}
