//! A Vault: secrets, tokens and logins, which expires, refuses, rotates and is sealed on command.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use http::Response;
use serde_json::{Value, json};

use super::{Asked, Cloud, said};

/// The account of Kubernetes and the role that it knows.
pub(crate) const JWT: &str = "jwt.of-the.pod-is-secret";
pub(crate) const ROLE: &str = "berth";
pub(crate) const ROLE_ID: &str = "role-id";
pub(crate) const SECRET_ID: &str = "secret-id-is-secret";

/// The fake. Dropping it stops it.
pub(crate) struct Vault {
    cloud: Cloud,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    is_sealed: bool,
    /// Answered to everything.
    answer: Option<(u16, String)>,
    namespace: Option<String>,
    /// By path, below `/v1/`: what is in `data`.
    secrets: HashMap<String, Value>,
    /// What they may read begins so.
    tokens: HashMap<String, String>,
    issued: usize,
}

impl Vault {
    pub(crate) async fn start() -> Self {
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        let cloud = Cloud::start(move |asked| shared.lock().unwrap().answer(asked)).await;
        Self { cloud, state }
    }

    pub(crate) fn url(&self) -> String {
        self.cloud.url()
    }

    /// Everything so far, in order.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.cloud.asked()
    }

    /// Puts a login into version 2 of the engine at `secret`.
    pub(crate) fn put(&self, path: &str, username: &str, password: &str) -> &Self {
        self.put_data(path, &json!({ "username": username, "password": password }))
    }

    /// Puts a secret into version 2 of the engine at `secret`.
    pub(crate) fn put_data(&self, path: &str, data: &Value) -> &Self {
        let data =
            json!({ "data": data, "metadata": { "version": 1, "deletion_time": "", "destroyed": false } });
        self.state().secrets.insert(format!("secret/data/{path}"), data);
        self
    }

    /// Puts a secret at a path of version 1.
    pub(crate) fn put_v1(&self, path: &str, data: &Value) -> &Self {
        self.state().secrets.insert(path.to_owned(), data.clone());
        self
    }

    pub(crate) fn delete(&self, path: &str) {
        self.state().secrets.remove(&format!("secret/data/{path}"));
    }

    /// Knows a token that may read what begins so.
    pub(crate) fn token(&self, token: &str, may_read: &str) -> &Self {
        self.state().tokens.insert(token.to_owned(), may_read.to_owned());
        self
    }

    /// Knows nobody and nothing but in this namespace.
    pub(crate) fn namespace(&self, name: &str) -> &Self {
        self.state().namespace = Some(name.to_owned());
        self
    }

    pub(crate) fn seal(&self, is_sealed: bool) {
        self.state().is_sealed = is_sealed;
    }

    /// Answers this to everything from now on.
    pub(crate) fn answers(&self, status: u16, body: &str) {
        self.state().answer = Some((status, body.to_owned()));
    }

    /// Ends that.
    pub(crate) fn behave(&self) {
        self.state().answer = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn answer(&mut self, asked: &Asked) -> Response<String> {
        if let Some((status, body)) = &self.answer {
            return said(*status, body);
        }
        if self.is_sealed {
            return said(503, r#"{"errors":["Vault is sealed"]}"#);
        }
        if asked.header("x-vault-request") != Some("true")
            || asked.header("x-vault-namespace") != self.namespace.as_deref()
        {
            return denied();
        }
        let body: Value = serde_json::from_str(&asked.body).unwrap_or_default();
        let path = asked.path.strip_prefix("/v1/").unwrap_or_default();
        match (asked.method.as_str(), path) {
            ("POST", "auth/kubernetes/login") if body == json!({ "role": ROLE, "jwt": JWT }) => self.login(),
            ("POST", "auth/of/site/login")
                if body == json!({ "role_id": ROLE_ID, "secret_id": SECRET_ID }) =>
            {
                self.login()
            }
            ("POST", path) if path.ends_with("/login") => {
                said(400, r#"{"errors":["invalid role or secret ID"]}"#)
            }
            (method, path) => match asked.header("x-vault-token").and_then(|token| self.tokens.get(token)) {
                None => denied(),
                Some(may_read) => self.with_token(method, path, may_read),
            },
        }
    }

    fn login(&mut self) -> Response<String> {
        self.issued += 1;
        let token = format!("hvs.issued-is-secret-{}", self.issued);
        self.tokens.insert(token.clone(), String::new());
        let auth = json!({ "client_token": token, "lease_duration": 3600, "renewable": true, "policies": ["berth"] });
        said(200, &json!({ "auth": auth, "data": null }))
    }

    fn with_token(&self, method: &str, path: &str, may_read: &str) -> Response<String> {
        match (method, path) {
            ("GET", "auth/token/lookup-self") => {
                said(200, &json!({ "data": { "ttl": 1800, "renewable": true, "policies": ["berth"] } }))
            }
            ("POST", "auth/token/renew-self") => {
                said(200, &json!({ "auth": { "lease_duration": 3600, "renewable": true } }))
            }
            ("GET", path) if path.starts_with(may_read) => match self.secrets.get(path) {
                Some(data) => said(200, &json!({ "data": data, "lease_duration": 0, "renewable": false })),
                None => said(404, r#"{"errors":[]}"#),
            },
            _ => denied(),
        }
    }
}

fn denied() -> Response<String> {
    said(403, r#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#)
}
