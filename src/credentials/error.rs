//! Why there is no login.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::net::TlsSetupError;
use crate::oci::Registry;

/// Why a login that should be there is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The cloud, the credential helper or Vault gives none.
    #[error(transparent)]
    NoLogin(#[from] NoLogin),
    /// The task that asks for it was cut off, because all of berth stops.
    #[error("berth stops")]
    Stopped,
}

/// Why a cloud, a credential helper or Vault gave no login. Nothing of what was sent or answered is repeated but an error's
/// code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoLogin {
    /// A file that the platform should have put there is not, or is something else.
    #[error("{} is not {expected}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What was expected there.
        expected: &'static str,
    },
    /// The service was asked and says no.
    #[error("{service} answered with status {status}, {code}")]
    Refused {
        /// Who says no.
        service: &'static str,
        /// The HTTP status.
        status: u16,
        /// Its own word for it.
        code: Arc<str>,
    },
    /// The service was not reached, or not in time.
    #[error("{service} gave no answer: {cause}")]
    Unanswered {
        /// Who was asked.
        service: &'static str,
        /// Why it was in vain.
        cause: Arc<str>,
    },
    /// The service's answer makes no sense.
    #[error("{service} answered with {what}")]
    Malformed {
        /// Who answered.
        service: &'static str,
        /// How.
        what: &'static str,
    },
    /// A credential helper gave none.
    #[error("{program} {what}")]
    Helper {
        /// Which program.
        program: Arc<str>,
        /// How it failed.
        what: &'static str,
    },
    /// Vault was asked and does not give it.
    #[error(transparent)]
    Vault(#[from] VaultProblem),
}

/// Why Vault does not give the login. None of these repeats anything that Vault has said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VaultProblem {
    /// It was not reached, or not in time.
    #[error("Vault gave no answer: {cause}")]
    Unanswered {
        /// Why it was in vain.
        cause: Arc<str>,
    },
    /// It answers as no Vault does.
    #[error("Vault answered with {what}")]
    Nonsense {
        /// How.
        what: &'static str,
    },
    /// 503: it is there and gives out nothing.
    #[error("Vault is sealed or not ready (status 503)")]
    Sealed,
    /// It answers with another place to ask.
    #[error("Vault redirects (status {status}), and tokens are not sent elsewhere")]
    Redirects {
        /// The HTTP status.
        status: u16,
    },
    /// Any other status that says nothing about what was asked.
    #[error("Vault answered with status {status}")]
    Status {
        /// The HTTP status.
        status: u16,
    },
    /// It does not let berth in.
    #[error("Vault refuses the login at {at} (status {status})")]
    LoginRefused {
        /// The path of the login.
        at: Arc<str>,
        /// The HTTP status.
        status: u16,
    },
    /// The token that is configured is none, or over.
    #[error("Vault refuses the configured token")]
    TokenRefused,
    /// The token is good, and may not read the secret.
    #[error("Vault denies access to {path}")]
    PathDenied {
        /// The secret's path.
        path: Arc<str>,
    },
    /// There is no such secret, or it was deleted.
    #[error("Vault has no secret at {path}")]
    NoSecret {
        /// The secret's path.
        path: Arc<str>,
    },
    /// The secret is not what it should be.
    #[error("the secret at {path} has no text as its property `{property}`")]
    Property {
        /// The secret's path.
        path: Arc<str>,
        /// What is missing in it.
        property: &'static str,
    },
    /// The secret says so itself.
    #[error("the secret at {path} is for another registry, or a part of it, as its property `registry` says")]
    OtherRegistry {
        /// The secret's path.
        path: Arc<str>,
    },
}

/// Why a text is no file of logins, or one of them is none. Nothing that may be secret is repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLogins {
    /// The whole has another shape.
    #[error("it is not a Docker config.json: expected {0}")]
    Shape(String),
    /// One that is for this registry.
    #[error("its login for `{key}` {what}")]
    Login {
        /// Under which key it is.
        key: String,
        /// What is the matter with it.
        what: String,
    },
}

/// A login cannot be had as it is configured; the cause names no secret.
#[derive(Debug, thiserror::Error)]
pub enum LoginSetupError {
    /// Azure's registries are asked themselves for their logins, and there is no endpoint.
    #[error("upstream {registry} has no endpoints")]
    NoEndpoints {
        /// The registry.
        registry: Registry,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A file holds something else than expected.
    #[error("{path} is not {expected}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What was expected there.
        expected: &'static str,
    },
    /// What a file of logins has for this registry cannot be read, or the file is none.
    #[error("cannot use {path}: {why}")]
    Logins {
        /// The file.
        path: PathBuf,
        /// The reason.
        why: InvalidLogins,
    },
    /// An environment variable is not set, or not text.
    #[error("the environment variable {name} has no password")]
    Environment {
        /// The variable.
        name: String,
    },
    /// What is configured makes no login.
    #[error("credentials: {0}")]
    Credentials(&'static str),
    /// The authorities that are trusted for Vault cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
}
