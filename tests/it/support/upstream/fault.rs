//! Misbehaviour on command: what is done to an honest answer, and to which answers.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;

use super::wire::{Answer, Framing, Request, Then};
use crate::support::Gate;

/// What goes wrong. Faults for one request add up, in the order in which they were asked for.
#[derive(Clone)]
pub(crate) enum Fault {
    // --- another answer
    /// This status, with an OCI error body.
    Status(u16),
    /// 429 with `Retry-After` in seconds.
    Limited(u64),
    /// The same answer with this status.
    As(u16),
    /// 200 with the page of a captive portal.
    Html,
    /// This status, media type and body, as an ingress or a store says it.
    Says(u16, &'static str, &'static str),
    /// 200 with this media type and content.
    Content(&'static str, Bytes),
    /// 307 to the same path at another origin.
    Redirect(String),
    /// 307 to this URL.
    RedirectTo(String),
    /// These bytes instead of HTTP.
    Garbage(&'static [u8]),
    /// Hangs up without a word.
    Hangup,

    // --- another content, honestly framed
    /// The byte at this offset of the content is wrong.
    WrongByte(u64),
    /// So many bytes are missing at the end.
    Short(u64),
    /// So many bytes too many at the end.
    Long(u64),

    // --- another framing
    /// `Content-Length` says so, whatever is sent.
    ClaimLength(u64),
    /// Chunked, without a length.
    Chunked,
    /// Neither length nor chunks: the end of the connection is the end.
    UntilClose,
    /// Range requests get a 200 with everything.
    IgnoreRange,
    /// A header is this instead, or is there at all.
    Header(&'static str, String),
    /// A header is not there.
    WithoutHeader(&'static str),

    // --- another course of events
    /// The connection ends after so many bytes of the body.
    Cut(u64),
    /// Nothing comes after so many bytes of the body.
    Stall(u64),
    /// Nothing comes after so many bytes of the body, until the gate opens.
    HoldAfter(u64, Gate),
    /// Not even a head comes.
    StallHead,
    /// No head comes until the gate opens.
    Hold(Gate),
    /// The head comes late.
    Delay(Duration),
    /// The body comes at so many bytes per second.
    Drip(u64),
    /// The head comes at so many bytes per second.
    DripHead(u64),
}

/// The faults of one fake.
#[derive(Default)]
pub(super) struct Faults(Vec<Rule>);

struct Rule {
    method: String,
    part: String,
    /// How many matching requests there were so far.
    seen: usize,
    /// Which of them, counted from 1, it is for.
    from: usize,
    to: usize,
    fault: Fault,
}

/// Says for which requests a fault is, then which fault.
#[must_use = "name the fault"]
pub(crate) struct On<'a> {
    faults: &'a Mutex<Faults>,
    method: String,
    part: String,
    from: usize,
    to: usize,
}

impl<'a> On<'a> {
    pub(super) fn new(faults: &'a Mutex<Faults>, method: &str, part: &str) -> Self {
        Self { faults, method: method.to_owned(), part: part.to_owned(), from: 1, to: usize::MAX }
    }

    /// Only the n-th from now, counted from 1.
    pub(crate) fn nth(self, n: usize) -> Self {
        Self { from: n, to: n, ..self }
    }

    /// Only the first so many from now.
    pub(crate) fn first(self, count: usize) -> Self {
        Self { to: count, ..self }
    }

    /// All but the first so many from now.
    pub(crate) fn after(self, count: usize) -> Self {
        Self { from: count + 1, ..self }
    }

    pub(crate) fn fault(self, fault: Fault) {
        let Self { faults, method, part, from, to } = self;
        faults.lock().unwrap().0.push(Rule { method, part, seen: 0, from, to, fault });
    }
}

impl Faults {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The faults for a request, which counts as seen by this.
    pub(super) fn matching(&mut self, request: &Request) -> Vec<Fault> {
        let mut matching = Vec::new();
        for rule in self.0.iter_mut().filter(|rule| request.is(&rule.method, &rule.part)) {
            rule.seen += 1;
            if (rule.from..=rule.to).contains(&rule.seen) {
                matching.push(rule.fault.clone());
            }
        }
        matching
    }
}

impl Fault {
    pub(super) fn befall(self, answer: &mut Answer, request: &Request) {
        match self {
            Self::Status(status) => *answer = Answer::error(status, "UNKNOWN"),
            Self::As(status) => answer.status = status,
            Self::Limited(seconds) => {
                *answer = Answer::error(429, "TOOMANYREQUESTS").header("Retry-After", &seconds.to_string());
            }
            Self::Html => *answer = Answer::new(200, "text/html", "<!doctype html><title>Log in</title>"),
            Self::Says(status, media_type, body) => *answer = Answer::new(status, media_type, body),
            Self::Content(media_type, body) => *answer = Answer::new(200, media_type, body),
            Self::Redirect(origin) => redirect(answer, &format!("{origin}{}", request.target)),
            Self::RedirectTo(url) => redirect(answer, &url),
            Self::Garbage(bytes) => answer.garbage = Some(Bytes::from_static(bytes)),
            Self::Hangup => answer.before_head = Some(Then::Cut),
            Self::WrongByte(at) => {
                edit(answer, |body| body.iter_mut().skip(at as usize).take(1).for_each(|byte| *byte ^= 0xff))
            }
            Self::Short(by) => edit(answer, |body| body.truncate(body.len().saturating_sub(by as usize))),
            Self::Long(by) => edit(answer, |body| body.resize(body.len() + by as usize, 0)),
            Self::ClaimLength(length) => answer.framing = Some(Framing::Length(length)),
            Self::Chunked => answer.framing = Some(Framing::Chunked),
            Self::UntilClose => answer.framing = Some(Framing::UntilClose),
            Self::IgnoreRange => {
                answer.ranges = false;
                answer.drop_header("accept-ranges");
            }
            Self::Header(name, value) => answer.set_header(name, &value),
            Self::WithoutHeader(name) => answer.drop_header(name),
            Self::Cut(after) => answer.within_body = Some((after, Then::Cut)),
            Self::Stall(after) => answer.within_body = Some((after, Then::Stall)),
            Self::HoldAfter(after, gate) => answer.within_body = Some((after, Then::Wait(gate))),
            Self::StallHead => answer.before_head = Some(Then::Stall),
            Self::Hold(gate) => answer.before_head = Some(Then::Wait(gate)),
            Self::Delay(delay) => answer.delay = Some(delay),
            Self::Drip(bytes_per_second) => answer.bytes_per_second = Some(bytes_per_second),
            Self::DripHead(bytes_per_second) => answer.head_bytes_per_second = Some(bytes_per_second),
        }
    }
}

fn redirect(answer: &mut Answer, to: &str) {
    *answer = Answer::new(307, "text/plain", "elsewhere").header("Location", to);
}

/// Changes the content of a success; an error keeps its own.
fn edit(answer: &mut Answer, change: impl FnOnce(&mut Vec<u8>)) {
    if answer.status == 200 {
        let mut body = answer.body.to_vec();
        change(&mut body);
        answer.body = body.into();
    }
}
