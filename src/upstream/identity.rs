//! Whether those who are asked may know who berth is.

pub(super) use crate::net::ClientCertificate;
pub(super) use crate::net::client_certificate::WatchedCertificate as Identity;

use crate::credentials::CredentialsConfig;
use crate::net::Headers;

/// Whether who is asked with these may know who berth is.
pub(super) fn is_known(
    login: Option<&CredentialsConfig>,
    certificate: Option<&ClientCertificate>,
    headers: &Headers,
) -> bool {
    login.is_some() || certificate.is_some() || !headers.is_empty()
}
