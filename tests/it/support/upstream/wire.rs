//! HTTP/1.1 on the socket: requests as they came, answers exactly as told, even against the protocol.

use std::io;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use berth::oci::Range;
use bytes::Bytes;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufStream,
};

use crate::support::{Gate, Pace};

/// Body bytes between two looks at limits and pace.
const PIECE: u64 = 64 * 1024;

/// A request, and what became of it so far.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query, as they came.
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    status: AtomicU16,
    bytes_sent: AtomicU64,
}

/// How the length of a body is told.
#[derive(Clone, Copy)]
pub(super) enum Framing {
    /// By `Content-Length`, true or not.
    Length(u64),
    Chunked,
    /// Not at all: the end of the connection is the end of the body.
    UntilClose,
}

/// What happens behind some bytes of a body, instead of more of them.
#[derive(Clone)]
pub(super) enum Then {
    Cut,
    Stall,
    /// Wait, and go on.
    Wait(Gate),
}

/// An answer, and how it gets onto the wire.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    /// The whole content; ranges are cut from it here, unless they are ignored.
    pub(super) body: Bytes,
    pub(super) ranges: bool,
    /// `None`: honestly, by `Content-Length`.
    pub(super) framing: Option<Framing>,
    pub(super) before_head: Option<Then>,
    pub(super) delay: Option<Duration>,
    /// After so many bytes of this answer's body.
    pub(super) within_body: Option<(u64, Then)>,
    pub(super) bytes_per_second: Option<u64>,
    pub(super) head_bytes_per_second: Option<u64>,
    /// Instead of everything.
    pub(super) garbage: Option<Bytes>,
}

/// One connection, from the accepting side.
pub(super) struct Connection<S> {
    stream: BufStream<S>,
}

impl Request {
    /// Whether it has this method (`*` for any) and this part in its path and query.
    pub(crate) fn is(&self, method: &str, part: &str) -> bool {
        (method == "*" || self.method == method) && self.target.contains(part)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The path, without the query.
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    pub(crate) fn query(&self, key: &str) -> Option<String> {
        let query = self.target.split_once('?')?.1;
        pairs(query.as_bytes()).find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The status it was answered with; 0 until then.
    pub(crate) fn status(&self) -> u16 {
        self.status.load(Ordering::SeqCst)
    }

    /// Body bytes written to the socket so far.
    pub(crate) fn bytes_sent(&self) -> u64 {
        self.bytes_sent.load(Ordering::SeqCst)
    }

    /// The range that it asks for, if it is one. Of several a fake sends everything, as many registries do.
    pub(crate) fn range(&self) -> Option<Range> {
        self.header("range")?.strip_prefix("bytes=").and_then(Range::parse)
    }
}

/// The fields of a query or a form.
pub(super) fn pairs(text: &[u8]) -> impl Iterator<Item = (String, String)> {
    url::form_urlencoded::parse(text).map(|(name, value)| (name.into_owned(), value.into_owned()))
}

impl Answer {
    pub(super) fn new(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            headers: vec![("Content-Type".to_owned(), content_type.to_owned())],
            body: body.into(),
            ranges: false,
            framing: None,
            before_head: None,
            delay: None,
            within_body: None,
            bytes_per_second: None,
            head_bytes_per_second: None,
            garbage: None,
        }
    }

    /// As registries say no.
    pub(super) fn error(status: u16, code: &str) -> Self {
        let body = serde_json::json!({ "errors": [{ "code": code, "message": "says the fake" }] });
        Self::new(status, "application/json", body.to_string())
    }

    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.set_header(name, value);
        self
    }

    pub(super) fn set_header(&mut self, name: &str, value: &str) {
        self.drop_header(name);
        self.headers.push((name.to_owned(), value.to_string()));
    }

    pub(super) fn drop_header(&mut self, name: &str) {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
    }

    /// Turns it into the 206 or 416 that was asked for. A `Content-Range` that a fault put there stays.
    fn cut_to(&mut self, range: Range) {
        let total = self.body.len() as u64;
        let content_range = match range.resolve(total) {
            Ok(span) => {
                self.status = 206;
                self.body = self.body.slice(span.start as usize..span.end as usize);
                span.content_range(total)
            }
            Err(unsatisfiable) => {
                self.status = 416;
                self.body = Bytes::new();
                unsatisfiable.content_range(total)
            }
        };
        if !self.headers.iter().any(|(name, _)| name == "Content-Range") {
            self.set_header("Content-Range", &content_range);
        }
    }

    fn head(&self) -> String {
        let mut head = format!("HTTP/1.1 {} Fake\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        match self.framing.unwrap_or(Framing::Length(self.body.len() as u64)) {
            Framing::Length(length) => head += &format!("Content-Length: {length}\r\n"),
            Framing::Chunked => head += "Transfer-Encoding: chunked\r\n",
            Framing::UntilClose => head += "Connection: close\r\n",
        }
        head + "\r\n"
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream: BufStream::new(stream) }
    }

    /// The next request; `None` when the client is done.
    pub(super) async fn read_request(&mut self) -> io::Result<Option<Request>> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).await? == 0 {
                return Ok(None);
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let mut words = lines.first().ok_or(io::ErrorKind::InvalidData)?.split(' ');
        let (Some(method), Some(target)) = (words.next(), words.next()) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let header =
            |line: &String| line.split_once(": ").map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut request = Request {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: lines[1..].iter().filter_map(header).collect(),
            body: Vec::new(),
            status: AtomicU16::new(0),
            bytes_sent: AtomicU64::new(0),
        };
        let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        request.body.resize(length, 0);
        self.stream.read_exact(&mut request.body).await?;
        Ok(Some(request))
    }

    /// Writes an answer. An error means that the connection is over, by either side's will.
    pub(super) async fn write_answer(&mut self, request: &Request, mut answer: Answer) -> io::Result<()> {
        if let Some(then) = answer.before_head.take() {
            self.follow(then).await?;
        }
        if let Some(delay) = answer.delay {
            tokio::time::sleep(delay).await;
        }
        if let Some(garbage) = &answer.garbage {
            self.stream.write_all(garbage).await?;
            self.stream.flush().await?;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if let Some(range) = request.range().filter(|_| answer.ranges && answer.status == 200) {
            answer.cut_to(range);
        }
        request.status.store(answer.status, Ordering::SeqCst);
        let head = answer.head();
        let mut pace = answer.head_bytes_per_second.map(Pace::new);
        for piece in head.as_bytes().chunks(if pace.is_some() { 1 } else { head.len() }) {
            if let Some(pace) = &mut pace {
                pace.pass(piece.len()).await;
            }
            self.stream.write_all(piece).await?;
            self.stream.flush().await?;
        }
        if request.method != "HEAD" {
            self.write_body(request, &mut answer).await?;
        }
        let promised = match answer.framing {
            Some(Framing::Length(length)) => length == answer.body.len() as u64 || request.method == "HEAD",
            Some(Framing::UntilClose) => false,
            Some(Framing::Chunked) | None => true,
        };
        if promised { Ok(()) } else { Err(io::ErrorKind::ConnectionAborted.into()) }
    }

    async fn write_body(&mut self, request: &Request, answer: &mut Answer) -> io::Result<()> {
        let mut pace = answer.bytes_per_second.map(Pace::new);
        let chunked = matches!(answer.framing, Some(Framing::Chunked));
        let mut sent = 0;
        loop {
            // A slow body comes in small steps, not in rare large ones.
            let mut piece = answer.bytes_per_second.map_or(PIECE, |pace| PIECE.min(pace / 20).max(1));
            if let Some((after, then)) = &answer.within_body {
                piece = piece.min(after - sent);
                if piece == 0 {
                    let then = then.clone();
                    answer.within_body = None;
                    self.follow(then).await?;
                    continue;
                }
            }
            let rest = &answer.body[sent as usize..];
            let rest = &rest[..rest.len().min(piece as usize)];
            if rest.is_empty() {
                break;
            }
            if let Some(pace) = &mut pace {
                pace.pass(rest.len()).await;
            }
            if chunked {
                self.stream.write_all(format!("{:x}\r\n", rest.len()).as_bytes()).await?;
            }
            self.stream.write_all(rest).await?;
            if chunked {
                self.stream.write_all(b"\r\n").await?;
            }
            self.stream.flush().await?;
            sent += rest.len() as u64;
            request.bytes_sent.store(sent, Ordering::SeqCst);
        }
        if chunked {
            self.stream.write_all(b"0\r\n\r\n").await?;
            self.stream.flush().await?;
        }
        Ok(())
    }

    async fn follow(&mut self, then: Then) -> io::Result<()> {
        match then {
            Then::Cut => Err(io::ErrorKind::ConnectionAborted.into()),
            Then::Stall => Err(self.client_gone().await),
            Then::Wait(gate) => {
                tokio::select! {
                    () = gate.opened() => Ok(()),
                    gone = self.client_gone() => Err(gone),
                }
            }
        }
    }

    /// Waits until the client hangs up; nothing else can come from it now.
    async fn client_gone(&mut self) -> io::Error {
        let _ = self.stream.read_u8().await;
        io::ErrorKind::ConnectionReset.into()
    }
}
