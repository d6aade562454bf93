//! What is counted of limits of clients.

use prometheus::IntCounter;

use super::families::Families;

/// What kept a client from having everything at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientLimit {
    /// Its many connections.
    Connections,
    /// Its many requests.
    Requests,
    /// The bytes that it has taken.
    Bytes,
}

impl ClientLimit {
    const ALL: [Self; 3] = [Self::Connections, Self::Requests, Self::Bytes];

    fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Requests => "requests",
            Self::Bytes => "bytes",
        }
    }
}

/// How often each limit was reached.
pub(super) struct ClientMetrics([IntCounter; ClientLimit::ALL.len()]);

impl ClientMetrics {
    pub(super) fn new(new: &Families<'_>) -> Self {
        let (name, help) = ("berth_client_limited_total", "Times that a client's limit was reached");
        let limited = new.counters(name, help, &["limit"]);
        Self(ClientLimit::ALL.map(|limit| limited.with_label_values(&[limit.as_str()])))
    }

    pub(super) fn limited(&self, limit: ClientLimit) {
        self.0[limit as usize].inc();
    }
}
