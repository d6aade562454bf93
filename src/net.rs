//! Network plumbing: how berth sends an HTTP request to somebody and reads the head of the response.
//!
//! It knows no registry's protocol, no login and no configuration section: `HttpClient` is built from a `ClientConfig`,
//! is asked by `credentials` and `remote`, and says what went wrong by an [`Error`] of its own. It may use what lies on
//! the lowest floors, and [`crate::context`] for the name of one header; it must never use `credentials`, `remote` or `upstream`. The
//! server side, `http`, uses [`tls`] for its own certificates.
//!
//! - `ip_class` says what kind of network an address is in, `guard` which addresses a registry may point to, `lookups`
//!   finds the addresses of names.
//! - `proxy` dials hosts, straight or through an egress proxy; `pool` keeps connections; `client` puts these together.
//! - `tls` has certificates and trust, `client_certificate` the certificate that berth itself shows.
//! - `url`, `timeouts`, `headers` and `user_agent` are types of the configuration; `secret` holds texts that must not be
//!   seen.

pub(crate) mod client;
pub(crate) mod client_certificate;
pub(crate) mod error;
pub(crate) mod guard;
pub(crate) mod headers;
pub(crate) mod ip_class;
pub(crate) mod lookups;
mod pool;
pub(crate) mod proxy;
pub(crate) mod secret;
mod timeouts;
pub mod tls;
pub(crate) mod url;
pub(crate) mod user_agent;

pub(crate) use self::client::{ClientConfig, DialPolicy, HttpClient, RequestEnd, RequestObserver};
pub use self::client_certificate::ClientCertificate;
pub use self::error::{Error, Forbidden};
pub use self::headers::Headers;
pub use self::ip_class::Class;
pub use self::proxy::Proxy;
pub use self::timeouts::Timeouts;
pub use self::tls::{TlsSetupError, pem, trust, x509};
pub use self::url::{EndpointUrl, HostName, InvalidEndpoint};
pub use self::user_agent::UserAgent;
