//! A stream that fails when its client takes nothing for too long.
//!
//! A client that stops reading would otherwise hold its connection, and the blob it reads, for ever. A slow
//! client is no such client: any byte that it takes starts the time anew. The wait for a request is bounded
//! elsewhere, by the time for its head (`activity`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::http::server::activity::Activity;

/// Time that a client may take no byte of what is ready for it.
const TAKES_NOTHING_MAX: Duration = Duration::from_secs(60);

/// `stream`, with a limit on the time that a write may stand still.
pub(crate) struct WriteTimeout<S> {
    stream: S,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
    /// Is told of bytes that are sent, and of writes that stand still.
    activity: Arc<Activity>,
}

impl<S> WriteTimeout<S> {
    pub(crate) fn new(stream: S, activity: Arc<Activity>) -> Self {
        Self { stream, timer: Box::pin(sleep(TAKES_NOTHING_MAX)), waiting: false, activity }
    }

    /// Passes on the result of a write, and fails once it has stood still for too long.
    fn watch<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            if std::mem::take(&mut self.waiting) {
                self.activity.set_blocked(false);
            }
            return result;
        }
        if !self.waiting {
            self.waiting = true;
            self.activity.set_blocked(true);
            self.timer.as_mut().reset(Instant::now() + TAKES_NOTHING_MAX);
        }
        ready!(self.timer.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client took nothing for too long")))
    }

    /// The same for a write of bytes, which is a sign of life. A flush is none: there is one for every byte that comes in.
    fn watch_write(
        &mut self,
        context: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(1..)) = result {
            self.activity.note_written();
        }
        self.watch(context, result)
    }
}

impl<S: AsFd> AsFd for WriteTimeout<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch_write(context, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watch(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.watch_write(context, result)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut_and_a_slow_one_is_not() {
        let (mut client, server) = tokio::io::duplex(10);
        let mut server = WriteTimeout::new(server, Activity::new());
        let slow = tokio::spawn(async move {
            let mut taken = [0; 1];
            for _ in 0..20 {
                sleep(TAKES_NOTHING_MAX / 2).await;
                client.read_exact(&mut taken).await.unwrap();
            }
            client
        });
        server.write_all(&[1; 30]).await.unwrap();
        let _still_connected = slow.await.unwrap();
        let error = server.write_all(&[1; 30]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
