//! One login, and what stands for it where it must not be seen.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;

use crate::net::secret::{self, Secret};
use crate::oci::{Algorithm, Digest};

/// One login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Login {
    /// User name and password, for the registry or for its token server.
    Basic {
        /// Who.
        username: String,
        /// Proof.
        password: Secret,
    },
    /// What `docker login` got for the password: the token server takes it instead.
    IdentityToken(Secret),
    /// A token that the registry takes as it is.
    RegistryToken(Secret),
}

/// A login that was issued, and for how long it is good.
pub(crate) struct IssuedLogin {
    pub(crate) login: Login,
    pub(crate) lifetime: Duration,
}

/// Stands for a login where tokens are kept; another login gives another identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprint(Digest);

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A hash of a poor password can be guessed.
        f.write_str("Identity")
    }
}

impl Login {
    /// What stands for this login.
    pub(crate) fn identity(&self) -> Fingerprint {
        let (kind, username, secret) = match self {
            Self::Basic { username, password } => ("basic", username.as_str(), password),
            Self::IdentityToken(token) => ("identity", "", token),
            Self::RegistryToken(token) => ("registry", "", token),
        };
        let text = format!("{kind}\0{username}\0{}", secret.expose());
        Fingerprint(Digest::of(Algorithm::Sha256, text.as_bytes()))
    }

    /// `Authorization: Basic …`, if this is a name and a password.
    pub(crate) fn to_basic(&self) -> Option<HeaderValue> {
        let Self::Basic { username, password } = self else { return None };
        secret::header("Basic", &STANDARD.encode(format!("{username}:{}", password.expose())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_password_is_another_identity_and_none_prints() {
        let login =
            |password: &str| Login::Basic { username: "u".into(), password: Secret::new(password.into()) };
        assert_ne!(login("hunter2").identity(), login("hunter3").identity());
        let printed = format!("{:?} {:?}", login("hunter2"), login("hunter2").identity());
        assert_eq!(printed, r#"Basic { username: "u", password: Secret } Identity"#);
    }
}
