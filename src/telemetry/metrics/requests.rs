//! What is counted of every request to berth.
//!
//! To find a family's member by its labels takes a lock and a hash for each, and a hit has a dozen. So members are found
//! once, and are then fields of a table. A member that was not needed yet is not shown.

use std::array;
use std::sync::OnceLock;
use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge};

use super::families::Families;

/// distribution's buckets for request durations, in seconds.
const DURATION_BUCKETS: [f64; 13] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0];
/// The buckets for the time to the first byte, in seconds: a hit takes well under a millisecond, a login some seconds.
const FIRST_BYTE_BUCKETS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 20.0];
/// The statuses that have a place in the table. Others are looked up.
const USUAL_STATUSES: [u16; 4] = [200, 206, 304, 404];

/// What a request was for, as distribution's `handler` label has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// Nothing that there is.
    None,
    /// The API's root, and extensions.
    Base,
    /// The list of repositories.
    Catalog,
    /// A manifest.
    Manifest,
    /// A blob.
    Blob,
    /// A list of tags.
    Tags,
    /// A list of referrers.
    Referrers,
}

impl Handler {
    const COUNT: usize = 7;

    /// Its name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Base => "base",
            Self::Catalog => "catalog",
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
        }
    }
}

/// The method of a request: clients may invent methods, and labels are bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `GET`
    Get,
    /// `HEAD`
    Head,
    /// `POST`
    Post,
    /// `PUT`
    Put,
    /// `PATCH`
    Patch,
    /// `DELETE`
    Delete,
    /// `OPTIONS`
    Options,
    /// Any other.
    Other,
}

impl Verb {
    const COUNT: usize = 8;

    fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Head => "head",
            Self::Post => "post",
            Self::Put => "put",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::Options => "options",
            Self::Other => "other",
        }
    }
}

impl From<&http::Method> for Verb {
    fn from(method: &http::Method) -> Self {
        use http::Method;
        match *method {
            Method::GET => Self::Get,
            Method::HEAD => Self::Head,
            Method::POST => Self::Post,
            Method::PUT => Self::Put,
            Method::PATCH => Self::Patch,
            Method::DELETE => Self::Delete,
            Method::OPTIONS => Self::Options,
            _ => Self::Other,
        }
    }
}

/// Why a request was answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its head, path or parameters are against the protocol.
    Request,
    /// Its path is none of the API's.
    Path,
    /// Its method would change something.
    Method,
    /// It is for a host that the listener does not have.
    Host,
    /// Its address may not connect.
    Address,
    /// It has no login, or a wrong one.
    Login,
    /// Its client takes more than it may.
    ClientLimit,
    /// It has come round in a circle of berths.
    Loop,
    /// The registry that it names is not configured.
    UnknownRegistry,
    /// It names no registry, and there is no default one.
    NoRegistry,
    /// The configuration keeps this repository, or this list, from clients.
    Forbidden,
    /// The range begins behind the end.
    Range,
    /// Upstream has no such thing.
    NotFound,
    /// Upstream denies access.
    Denied,
    /// Upstream refuses the configured login.
    LoginRefused,
    /// No login is issued for upstream.
    NoLogin,
    /// Upstream limits requests.
    Limited,
    /// There is no room for more, here or in the limits for upstream.
    Busy,
    /// Upstream answered with an error.
    Unavailable,
    /// Upstream cannot be reached.
    Unreachable,
    /// Upstream did not answer in time.
    Timeout,
    /// Upstream answered something else than a registry does.
    Malformed,
    /// Upstream sent content with another digest.
    Mismatch,
    /// Upstream's content changed while it was sent.
    Changed,
    /// Upstream points to where it must not lead.
    Misled,
    /// Upstream is known to be down.
    Down,
    /// Upstream is never asked, by configuration.
    Offline,
    /// What is stored is older than it may be.
    TooOld,
    /// The data folder failed.
    Store,
    /// A stored file is damaged.
    Damaged,
    /// File descriptors, ports or memory are used up.
    Local,
    /// The transfer was given up.
    GivenUp,
}

impl Reason {
    /// Every reason, in the order of the variants.
    pub const ALL: [Self; 32] = [
        Self::Request,
        Self::Path,
        Self::Method,
        Self::Host,
        Self::Address,
        Self::Login,
        Self::ClientLimit,
        Self::Loop,
        Self::UnknownRegistry,
        Self::NoRegistry,
        Self::Forbidden,
        Self::Range,
        Self::NotFound,
        Self::Denied,
        Self::LoginRefused,
        Self::NoLogin,
        Self::Limited,
        Self::Busy,
        Self::Unavailable,
        Self::Unreachable,
        Self::Timeout,
        Self::Malformed,
        Self::Mismatch,
        Self::Changed,
        Self::Misled,
        Self::Down,
        Self::Offline,
        Self::TooOld,
        Self::Store,
        Self::Damaged,
        Self::Local,
        Self::GivenUp,
    ];

    /// Its name in metrics, logs and `Cache-Status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "bad_request",
            Self::Path => "no_such_path",
            Self::Method => "method",
            Self::Host => "host",
            Self::Address => "address",
            Self::Login => "login",
            Self::ClientLimit => "client_limit",
            Self::Loop => "loop",
            Self::UnknownRegistry => "unknown_registry",
            Self::NoRegistry => "no_registry",
            Self::Forbidden => "forbidden",
            Self::Range => "range",
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::LoginRefused => "login_refused",
            Self::NoLogin => "no_login",
            Self::Limited => "limited",
            Self::Busy => "busy",
            Self::Unavailable => "unavailable",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Malformed => "malformed",
            Self::Mismatch => "mismatch",
            Self::Changed => "changed",
            Self::Misled => "misled",
            Self::Down => "down",
            Self::Offline => "offline",
            Self::TooOld => "too_old",
            Self::Store => "store",
            Self::Damaged => "damaged",
            Self::Local => "local",
            Self::GivenUp => "given_up",
        }
    }
}

/// A request that is being answered.
pub struct InFlight(IntGauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The families of requests.
pub(super) struct RequestMetrics {
    answered: IntCounterVec,
    duration: HistogramVec,
    first_byte: HistogramVec,
    /// Each is there from the start, so that rates are right.
    refused: [IntCounter; Reason::ALL.len()],
    by_handler: [OfHandler; Handler::COUNT],
}

/// Members of one handler's requests.
struct OfHandler {
    in_flight: IntGauge,
    first_byte: OnceLock<Histogram>,
    by_verb: [OfVerb; Verb::COUNT],
}

/// Members of these with one method.
#[derive(Default)]
struct OfVerb {
    duration: OnceLock<Histogram>,
    answered: [OnceLock<IntCounter>; USUAL_STATUSES.len()],
}

impl RequestMetrics {
    pub(super) fn new(new: &Families<'_>) -> Self {
        let in_flight =
            new.gauges("registry_http_in_flight_requests", "RequestMetrics being answered", &["handler"]);
        let handlers = [
            Handler::None,
            Handler::Base,
            Handler::Catalog,
            Handler::Manifest,
            Handler::Blob,
            Handler::Tags,
            Handler::Referrers,
        ];
        let of_handler = |handler: Handler| OfHandler {
            in_flight: in_flight.with_label_values(&[handler.as_str()]),
            first_byte: OnceLock::new(),
            by_verb: array::from_fn(|_| OfVerb::default()),
        };
        Self {
            answered: new.counters(
                "registry_http_requests_total",
                "RequestMetrics answered",
                &["handler", "code", "method"],
            ),
            duration: new.histogram(
                "registry_http_request_duration_seconds",
                "Time until the last byte of an answer was sent",
                &DURATION_BUCKETS,
                &["handler", "method"],
            ),
            first_byte: new.histogram(
                "berth_first_byte_seconds",
                "Time from a request's head to the first byte of its answer",
                &FIRST_BYTE_BUCKETS,
                &["handler"],
            ),
            refused: {
                let (name, help) = ("berth_refusals_total", "RequestMetrics answered with an error");
                let refused = new.counters(name, help, &["reason"]);
                Reason::ALL.map(|reason| refused.with_label_values(&[reason.as_str()]))
            },
            by_handler: handlers.map(of_handler),
        }
    }

    pub(super) fn in_flight(&self, handler: Handler) -> InFlight {
        let gauge = self.by_handler[handler as usize].in_flight.clone();
        gauge.inc();
        InFlight(gauge)
    }

    pub(super) fn refused(&self, reason: Reason) {
        self.refused[reason as usize].inc();
    }

    pub(super) fn ended(
        &self,
        handler: Handler,
        verb: Verb,
        status: u16,
        first_byte: Duration,
        whole: Duration,
    ) {
        let (of_handler, handler) = (&self.by_handler[handler as usize], handler.as_str());
        let (of_verb, verb) = (&of_handler.by_verb[verb as usize], verb.as_str());
        let counter = || self.answered.with_label_values(&[handler, &status.to_string(), verb]);
        match USUAL_STATUSES.iter().position(|usual| *usual == status) {
            Some(place) => of_verb.answered[place].get_or_init(counter).inc(),
            None => counter().inc(),
        }
        let duration = || self.duration.with_label_values(&[handler, verb]);
        of_verb.duration.get_or_init(duration).observe(whole.as_secs_f64());
        let histogram = || self.first_byte.with_label_values(&[handler]);
        of_handler.first_byte.get_or_init(histogram).observe(first_byte.as_secs_f64());
    }
}
