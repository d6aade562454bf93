//! Lines of a request that end without a carriage return.
//!
//! hyper takes them and does not show them, and another program in front of berth may take such a head otherwise: the
//! answer to such a request is the last of its connection ([`Lines`]), so that nothing can hide behind it. This is no
//! second parser: it looks for one byte.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Whether a line came without a carriage return on a connection. In a body that is as it should be, and costs no more
/// than a new connection. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<AtomicBool>);

impl Lines {
    /// Whether one did.
    pub(crate) fn are_bare(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Looks at bytes that were read behind `before`.
    fn look(&self, before: u8, bytes: &[u8]) {
        let Some(first) = bytes.first() else { return };
        let is_bare = |before: u8, byte: u8| u8::from(byte == b'\n') & u8::from(before != b'\r');
        // Without a branch, so that sixteen bytes are looked at together: a head has a line every thirty bytes.
        let pairs = bytes.iter().zip(&bytes[1..]);
        let found =
            pairs.fold(is_bare(before, *first), |found, (before, byte)| found | is_bare(*before, *byte));
        if found != 0 {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// `stream`, with a look at the lines that come in.
pub(crate) struct Watched<S> {
    stream: S,
    lines: Lines,
    /// The last byte that came.
    last: u8,
}

impl<S> Watched<S> {
    pub(crate) fn new(stream: S, lines: Lines) -> Self {
        Self { stream, lines, last: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let bytes = &buffer.filled()[before..];
        if let Some(last) = bytes.last() {
            self.lines.look(self.last, bytes);
            self.last = *last;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn a_bare_line_is_found_wherever_reads_cut_it() {
        for (text, expected) in [
            ("a\r\nb\r\n\r\n", false),
            ("a\r\nb\n\r\n", true),
            ("\r\n", false),
            ("a\n", true),
            ("\n", true),
            ("\n\n", true),
            ("a\r\r\n", false),
            ("no line", false),
        ] {
            for piece in 1..=text.len() {
                let lines = Lines::default();
                let mut watched = Watched::new(text.as_bytes(), lines.clone());
                let mut read = vec![0; piece];
                while watched.read(&mut read).await.unwrap() > 0 {}
                assert_eq!(lines.are_bare(), expected, "{text:?} in pieces of {piece}");
            }
        }
    }
}
