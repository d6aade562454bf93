//! Lines of a request that end without a carriage return.
//!
//! hyper accepts such lines and does not report them, and another program in front of berth may read such a head
//! otherwise. So the response to such a request is the last of its connection ([`LineEndings`]), and nothing can hide
//! behind it. This is no second parser: it looks for one byte.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Whether a line on a connection ended without a carriage return. In a body that is normal, and costs the client no more
/// than a new connection. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct LineEndings(Arc<AtomicBool>);

impl LineEndings {
    /// Whether a line ended without a carriage return.
    pub(crate) fn are_bare(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Examines bytes that were read after the byte `before`.
    fn look(&self, before: u8, bytes: &[u8]) {
        let Some(first) = bytes.first() else { return };
        let is_bare = |before: u8, byte: u8| u8::from(byte == b'\n') & u8::from(before != b'\r');
        // Without a branch, so that sixteen bytes are compared at once: a head has a line every thirty bytes.
        let pairs = bytes.iter().zip(&bytes[1..]);
        let found =
            pairs.fold(is_bare(before, *first), |found, (before, byte)| found | is_bare(*before, *byte));
        if found != 0 {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// `stream`, with a check of the lines that are read from it.
pub(crate) struct LineEndingStream<S> {
    stream: S,
    lines: LineEndings,
    /// The last byte that was read.
    last: u8,
}

impl<S> LineEndingStream<S> {
    pub(crate) fn new(stream: S, lines: LineEndings) -> Self {
        Self { stream, lines, last: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LineEndingStream<S> {
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

impl<S: AsyncWrite + Unpin> AsyncWrite for LineEndingStream<S> {
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
                let lines = LineEndings::default();
                let mut watched = LineEndingStream::new(text.as_bytes(), lines.clone());
                let mut read = vec![0; piece];
                while watched.read(&mut read).await.unwrap() > 0 {}
                assert_eq!(lines.are_bare(), expected, "{text:?} in pieces of {piece}");
            }
        }
    }
}
