//! What can go wrong when a request is sent, whoever it is sent to.
//!
//! Nothing here carries a URL: a redirect target's query is a signature, which is a secret. Hosts are named, because a
//! refusal that does not say which host it was about cannot be put right.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::ip_class::Class;

/// Most characters of a lower layer's error that are kept; such texts end up in logs.
const REASON_CHARACTERS_MAX: usize = 200;
/// What is said of a body that is longer than its reader takes.
pub(crate) const TOO_LARGE: &str = "a body larger than any of its kind";

/// Why a request has no response, or a response no whole body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The configuration says that nothing is ever sent.
    #[error("this upstream is offline by configuration")]
    Offline,
    /// Too many names wait to be looked up: nothing was sent.
    #[error("this mirror's own limit for the upstream leaves no room in time")]
    Busy {
        /// The time after which there may be room.
        retry_after: Duration,
    },
    /// This machine has no file descriptor, port or memory left for a connection: nothing was sent.
    #[error("this machine lacks what a connection to upstream needs: {reason}")]
    Local {
        /// What the kernel says.
        reason: Arc<str>,
    },
    /// There is no connection, or it broke.
    #[error("upstream cannot be reached: {reason}")]
    Unreachable {
        /// The lowest cause, shortened.
        reason: Arc<str>,
    },
    /// The response did not come in time.
    #[error("upstream did not answer in time")]
    Timeout,
    /// The body is longer than its reader takes.
    #[error("upstream answered nonsense: {TOO_LARGE}")]
    TooLarge,
    /// The guard forbids the address.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
}

impl Error {
    /// The error of a connection that was not made or that broke. It keeps the lowest cause, says whether that is TLS's or
    /// was met at a proxy, and tells what this machine lacks from what the other side does.
    pub(crate) fn unreachable(error: &(dyn StdError + 'static)) -> Self {
        let (mut lowest, mut where_to) = (error, String::new());
        loop {
            if let Some(error) = lowest.downcast_ref::<io::Error>() {
                if let Some(error) = local(error) {
                    return Self::Local { reason: error.to_string().into() };
                }
                if is_of_tls(error) {
                    where_to += "TLS: ";
                }
            }
            if let Some(proxy) = lowest.downcast_ref::<AtProxy>() {
                where_to += &format!("{proxy}: ");
            }
            // hyper-util's word for it; what is below says so in some languages of the C library's only.
            if lowest.to_string().starts_with("dns error") {
                where_to += "DNS: ";
            }
            let Some(source) = lowest.source() else { break };
            lowest = source;
        }
        let reason = format!("{where_to}{lowest}").chars().take(REASON_CHARACTERS_MAX).collect::<String>();
        Self::Unreachable { reason: reason.into() }
    }
}

/// The guard's refusal to dial an address that a registry points to; it is found again at the bottom of the HTTP library's
/// error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "upstream points to a {class} address, at {host}; `redirect_hosts` or `realm_hosts` may allow the host"
)]
pub struct Forbidden {
    /// The host that was to be dialled.
    pub host: String,
    /// The kind of network that its address is in.
    pub class: Class,
}

/// The egress proxy could not be reached, or does not let berth through: that says nothing about what is behind it.
#[derive(Debug, thiserror::Error)]
#[error("the egress proxy {name}")]
pub(crate) struct AtProxy {
    name: String,
    source: Box<dyn StdError + Send + Sync>,
}

impl AtProxy {
    /// The error `source`, met at the proxy of that name.
    pub(crate) fn new(name: String, source: Box<dyn StdError + Send + Sync>) -> Self {
        Self { name, source }
    }
}

/// What this machine lacks by this error, if that is what it is about. An error that wraps another is not asked for it
/// as a source.
pub(crate) fn local(error: &io::Error) -> Option<&io::Error> {
    const LACKING: [Errno; 5] =
        [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    if error.raw_os_error().is_some_and(|code| LACKING.iter().any(|errno| errno.raw_os_error() == code)) {
        return Some(error);
    }
    error.get_ref()?.downcast_ref::<io::Error>().and_then(local)
}

/// Whether this is about TLS. An error that wraps another is not asked for it as a source.
fn is_of_tls(error: &io::Error) -> bool {
    let of_inner = |inner: &io::Error| is_of_tls(inner);
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<rustls::Error>() || inner.downcast_ref().is_some_and(of_inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_machine_lacks_says_nothing_about_upstream() {
        let check = |error: io::Error, is_local: bool| {
            let wrapped = io::Error::other(io::Error::other(error));
            let judged = Error::unreachable(&wrapped);
            assert_eq!(matches!(judged, Error::Local { .. }), is_local, "{judged}");
        };
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL] {
            check(io::Error::from_raw_os_error(errno.raw_os_error()), true);
        }
        for errno in [Errno::CONNREFUSED, Errno::CONNRESET, Errno::HOSTUNREACH, Errno::NETUNREACH] {
            check(io::Error::from_raw_os_error(errno.raw_os_error()), false);
        }
        check(io::Error::other("handshake"), false);
    }
}
