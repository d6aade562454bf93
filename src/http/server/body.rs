//! The body of every answer: bytes at hand, or a blob being read; and the account of what was sent.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::access_log::Account;
use super::activity::UnderWay;
use super::byte_ranges::Framing;
use super::client_limits::Brake;
use super::transport::sendfile::Sending;
use crate::cache::{self, Reading};
use crate::upstream::TagStream;

/// An answer's body. Its length is known, but for that of a long list, and of a blob of which upstream does not say it.
pub(crate) struct Body {
    content: Content,
    /// None where its end is not known before it comes: then it goes out in chunks.
    remaining: Option<u64>,
    /// What frames the parts that are read, if they are several.
    framing: Option<Box<Framing>>,
    /// Closed when the body is dropped: sent whole, or its connection lost.
    account: Option<Box<Account>>,
    /// Holds it back, if its client may not take everything at once.
    brake: Option<Box<Brake>>,
    under_way: Option<UnderWay>,
    _sending: Option<Sending>,
}

enum Content {
    Whole(Bytes),
    Reading(Box<Reading>),
    Next(Pin<Box<dyn Future<Output = (Box<Reading>, Next)> + Send>>),
    List(Box<TagStream>),
    NextOfList(Pin<Box<dyn Future<Output = (Box<TagStream>, Next)> + Send>>),
    Empty,
}

type Next = Result<Option<Bytes>, cache::Error>;

impl Body {
    /// No bytes.
    pub(crate) fn empty() -> Self {
        Self::of(Content::Empty, Some(0))
    }

    /// In the place of a body that HEAD does not have.
    pub(crate) fn of_unknown_length() -> Self {
        Self::of(Content::Empty, None)
    }

    /// These bytes.
    pub(crate) fn whole(bytes: Bytes) -> Self {
        let len = bytes.len() as u64;
        Self::of(Content::Whole(bytes), Some(len))
    }

    /// The bytes that `reading` will give, `len` of them if that is known; `sending` if they are mapped.
    pub(crate) fn reading(reading: Reading, len: Option<u64>, sending: Option<Sending>) -> Self {
        Self { _sending: sending, ..Self::of(Content::Reading(Box::new(reading)), len) }
    }

    /// The parts that `reading` will give, with what frames them; `len` bytes in all.
    pub(crate) fn parts(reading: Reading, framing: Box<Framing>, len: u64, sending: Option<Sending>) -> Self {
        Self { framing: Some(framing), ..Self::reading(reading, Some(len), sending) }
    }

    /// A list as it comes.
    pub(crate) fn list(list: Box<TagStream>) -> Self {
        Self::of(Content::List(list), None)
    }

    fn of(content: Content, remaining: Option<u64>) -> Self {
        Self {
            content,
            remaining,
            framing: None,
            account: None,
            brake: None,
            under_way: None,
            _sending: None,
        }
    }

    /// Bytes that are still to be sent; none where that is not known.
    pub(crate) fn len(&self) -> Option<u64> {
        self.remaining
    }

    /// Keeps `account` of what becomes of this body.
    pub(crate) fn watched(mut self, account: Box<Account>) -> Self {
        self.account = Some(account);
        self
    }

    /// Goes no faster than `brake` lets it.
    pub(crate) fn braked(mut self, brake: Option<Box<Brake>>) -> Self {
        self.brake = brake;
        self
    }

    /// Counts as an answer under way until it is dropped.
    pub(crate) fn under_way(mut self, answer: UnderWay) -> Self {
        self.under_way = Some(answer);
        self
    }

    fn sent(&mut self, bytes: &Bytes) {
        self.remaining = self.remaining.map(|remaining| remaining.saturating_sub(bytes.len() as u64));
        if let Some(account) = &mut self.account {
            account.sent(bytes.len() as u64);
        }
    }

    fn ended(&mut self) {
        if self.remaining.is_none() {
            self.remaining = Some(0);
            self.account.iter_mut().for_each(|account| account.ended());
        }
    }

    /// What stands between two parts, if one is read to its end; before the first and behind the last, too.
    fn frame(&mut self, reading: &mut Reading) -> Option<Bytes> {
        let framing = self.framing.as_mut().filter(|_| reading.is_done())?;
        match reading.next_part() {
            Some(part) => Some(framing.begin(part)),
            None => self.framing.take().map(|framing| framing.end()),
        }
    }

    /// The next bytes, as fast as they are there.
    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, cache::Error>>> {
        loop {
            match std::mem::replace(&mut self.content, Content::Empty) {
                Content::Empty => return Poll::Ready(None),
                Content::Whole(bytes) => {
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Content::Reading(mut reading) => {
                    if reading.is_turn_over() {
                        self.content = Content::Reading(reading);
                        // Behind everybody else who can go on now.
                        context.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    if let Some(bytes) = reading.at_hand() {
                        self.content = Content::Reading(reading);
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                    if self.framing.as_mut().is_some_and(|it| reading.is_done() && it.is_first_over()) {
                        self.content = Content::Reading(reading);
                        // What there is goes out before more is gathered.
                        context.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    if let Some(bytes) = self.frame(&mut reading) {
                        self.content = Content::Reading(reading);
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                    self.content = Content::Next(Box::pin(async move {
                        let next = reading.next().await;
                        (reading, next)
                    }));
                }
                Content::Next(mut next) => {
                    let Poll::Ready((reading, result)) = next.as_mut().poll(context) else {
                        self.content = Content::Next(next);
                        return Poll::Pending;
                    };
                    return self.came(result, Content::Reading(reading));
                }
                Content::List(mut list) => {
                    self.content = Content::NextOfList(Box::pin(async move {
                        let next = list.chunk().await;
                        (list, next.map_err(cache::Error::from))
                    }));
                }
                Content::NextOfList(mut next) => {
                    let Poll::Ready((list, result)) = next.as_mut().poll(context) else {
                        self.content = Content::NextOfList(next);
                        return Poll::Pending;
                    };
                    return self.came(result, Content::List(list));
                }
            }
        }
    }

    /// Goes on with `rest` behind bytes that came; notes why there are none any more, if that is no end.
    fn came(&mut self, next: Next, rest: Content) -> Poll<Option<Result<Bytes, cache::Error>>> {
        match (&next, &mut self.account) {
            (Ok(Some(_)), _) => self.content = rest,
            (Err(error), Some(account)) => account.broke_off(error),
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
        let next = match self.brake.take() {
            None => self.poll_bytes(context),
            Some(mut brake) => {
                let next = brake.poll(context, |context| self.poll_bytes(context));
                self.brake = Some(brake);
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
