//! The keys of an AWS identity.

use crate::credentials::service::Environment;
use crate::net::secret::Secret;

/// What requests are signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    pub(crate) id: String,
    pub(crate) secret: Secret,
    /// Proves keys that are good for a time only.
    pub(crate) token: Option<Secret>,
}

impl Keys {
    /// Those in the environment.
    pub(super) fn of(env: Environment<'_>) -> Option<Self> {
        let (id, secret) = (env("AWS_ACCESS_KEY_ID")?, Secret::new(env("AWS_SECRET_ACCESS_KEY")?));
        Some(Self { id, secret, token: env("AWS_SESSION_TOKEN").map(Secret::new) })
    }
}
