//! The streams beneath HTTP: from the socket to what hyper reads and writes.
//!
//! Without TLS a connection is `line_endings` over `write_timeout` over `sendfile`; with TLS `line_endings` over
//! `tls_stream` over `write_timeout` over the socket.

pub(crate) mod line_endings;
pub(crate) mod sendfile;
#[expect(unsafe_code, reason = "asks the kernel for something that has no safe name")]
pub(crate) mod tls_stream;
pub(crate) mod write_timeout;

use sendfile::Sendfile;

use crate::cache::Room;

/// How a connection takes the bodies of its responses.
#[derive(Clone)]
pub(crate) enum BodyTransport {
    /// Without TLS: the kernel sends mapped files.
    Plain(Sendfile),
    /// With TLS: bytes are encrypted, as many at once as there is room for.
    Tls(Room),
}
