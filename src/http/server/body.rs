//! The body of every response: bytes in memory, or a blob being read; and the log of what was sent.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::access_log::RequestLog;
use super::activity::InProgress;
use super::byte_ranges::Framing;
use super::client_limits::Throttle;
use super::transport::sendfile::SendfileGuard;
use crate::cache::{self, BlobReading};
use crate::upstream::TagStream;

/// The body of a response. Its length is known, but for that of a long list, and of a blob whose length upstream does not
/// say.
pub(crate) struct Body {
    content: BodySource,
    /// Bytes that are still to be sent. `None` where the length is not known: the body is then sent in chunks.
    remaining: Option<u64>,
    /// The framing of the parts, if several are read.
    framing: Option<Box<Framing>>,
    /// The log of the request, which is written when the body is dropped: sent whole, or its connection lost.
    log: Option<Box<RequestLog>>,
    /// Slows the body down, if its client may not take everything at once.
    throttle: Option<Box<Throttle>>,
    in_progress: Option<InProgress>,
    _sending: Option<SendfileGuard>,
}

enum BodySource {
    Whole(Bytes),
    BlobReading(Box<BlobReading>),
    Next(Pin<Box<dyn Future<Output = (Box<BlobReading>, NextBytes)> + Send>>),
    List(Box<TagStream>),
    NextOfList(Pin<Box<dyn Future<Output = (Box<TagStream>, NextBytes)> + Send>>),
    Empty,
}

type NextBytes = Result<Option<Bytes>, cache::Error>;

impl Body {
    /// No bytes.
    pub(crate) fn empty() -> Self {
        Self::of(BodySource::Empty, Some(0))
    }

    /// No bytes, in the place of a body of unknown length that HEAD does not send.
    pub(crate) fn of_unknown_length() -> Self {
        Self::of(BodySource::Empty, None)
    }

    /// These bytes.
    pub(crate) fn whole(bytes: Bytes) -> Self {
        let len = bytes.len() as u64;
        Self::of(BodySource::Whole(bytes), Some(len))
    }

    /// The bytes that `reading` will give, `len` of them if that is known; `sending` if they are mapped.
    pub(crate) fn reading(reading: BlobReading, len: Option<u64>, sending: Option<SendfileGuard>) -> Self {
        Self { _sending: sending, ..Self::of(BodySource::BlobReading(Box::new(reading)), len) }
    }

    /// The parts that `reading` will give, with what frames them; `len` bytes in all.
    pub(crate) fn parts(
        reading: BlobReading,
        framing: Box<Framing>,
        len: u64,
        sending: Option<SendfileGuard>,
    ) -> Self {
        Self { framing: Some(framing), ..Self::reading(reading, Some(len), sending) }
    }

    /// A list, as it comes from upstream.
    pub(crate) fn list(list: Box<TagStream>) -> Self {
        Self::of(BodySource::List(list), None)
    }

    fn of(content: BodySource, remaining: Option<u64>) -> Self {
        Self {
            content,
            remaining,
            framing: None,
            log: None,
            throttle: None,
            in_progress: None,
            _sending: None,
        }
    }

    /// Bytes that are still to be sent; `None` where that is not known.
    pub(crate) fn len(&self) -> Option<u64> {
        self.remaining
    }

    /// The same body; `log` notes what becomes of it.
    pub(crate) fn logged(mut self, log: Box<RequestLog>) -> Self {
        self.log = Some(log);
        self
    }

    /// The same body, no faster than `throttle` lets it.
    pub(crate) fn throttled(mut self, throttle: Option<Box<Throttle>>) -> Self {
        self.throttle = throttle;
        self
    }

    /// The same body, which counts as in progress until it is dropped.
    pub(crate) fn in_progress(mut self, response: InProgress) -> Self {
        self.in_progress = Some(response);
        self
    }

    fn sent(&mut self, bytes: &Bytes) {
        self.remaining = self.remaining.map(|remaining| remaining.saturating_sub(bytes.len() as u64));
        if let Some(log) = &mut self.log {
            log.body_sent(bytes.len() as u64);
        }
    }

    fn ended(&mut self) {
        if self.remaining.is_none() {
            self.remaining = Some(0);
            self.log.iter_mut().for_each(|log| log.body_ended());
        }
    }

    /// The framing between two parts, once one is read to its end; also before the first and after the last.
    fn frame(&mut self, reading: &mut BlobReading) -> Option<Bytes> {
        let framing = self.framing.as_mut().filter(|_| reading.is_done())?;
        match reading.next_part() {
            Some(part) => Some(framing.begin(part)),
            None => self.framing.take().map(|framing| framing.end()),
        }
    }

    /// The next bytes, as soon as they are there.
    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, cache::Error>>> {
        loop {
            match std::mem::replace(&mut self.content, BodySource::Empty) {
                BodySource::Empty => return Poll::Ready(None),
                BodySource::Whole(bytes) => {
                    return Poll::Ready(Some(Ok(bytes)));
                }
                BodySource::BlobReading(mut reading) => {
                    if reading.is_turn_over() {
                        self.content = BodySource::BlobReading(reading);
                        // After all others that can go on now.
                        context.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    if let Some(bytes) = reading.at_hand() {
                        self.content = BodySource::BlobReading(reading);
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                    if self.framing.as_mut().is_some_and(|it| reading.is_done() && it.is_first_over()) {
                        self.content = BodySource::BlobReading(reading);
                        // The bytes so far are sent before more are gathered.
                        context.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    if let Some(bytes) = self.frame(&mut reading) {
                        self.content = BodySource::BlobReading(reading);
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                    self.content = BodySource::Next(Box::pin(async move {
                        let next = reading.next().await;
                        (reading, next)
                    }));
                }
                BodySource::Next(mut next) => {
                    let Poll::Ready((reading, result)) = next.as_mut().poll(context) else {
                        self.content = BodySource::Next(next);
                        return Poll::Pending;
                    };
                    return self.read(result, BodySource::BlobReading(reading));
                }
                BodySource::List(mut list) => {
                    self.content = BodySource::NextOfList(Box::pin(async move {
                        let next = list.chunk().await;
                        (list, next.map_err(cache::Error::from))
                    }));
                }
                BodySource::NextOfList(mut next) => {
                    let Poll::Ready((list, result)) = next.as_mut().poll(context) else {
                        self.content = BodySource::NextOfList(next);
                        return Poll::Pending;
                    };
                    return self.read(result, BodySource::List(list));
                }
            }
        }
    }

    /// Goes on with `rest` after bytes that were read; logs an error.
    fn read(&mut self, next: NextBytes, rest: BodySource) -> Poll<Option<Result<Bytes, cache::Error>>> {
        match (&next, &mut self.log) {
            (Ok(Some(_)), _) => self.content = rest,
            (Err(error), Some(log)) => log.body_failed(error),
            (Ok(None), _) | (Err(_), None) => {}
        }
        Poll::Ready(next.transpose())
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = cache::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, cache::Error>>> {
        let next = match self.throttle.take() {
            None => self.poll_bytes(context),
            Some(mut throttle) => {
                let next = throttle.poll(context, |context| self.poll_bytes(context));
                self.throttle = Some(throttle);
                next
            }
        };
        match &next {
            Poll::Ready(Some(Ok(bytes))) => self.sent(bytes),
            Poll::Ready(None) => self.ended(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        next.map_ok(Frame::data)
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.remaining.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}
