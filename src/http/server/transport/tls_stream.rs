//! The stream of a connection with TLS, which encrypts only what its socket takes at once.
//!
//! What is encrypted and not sent stays in memory for as long as the client takes nothing, and so does the piece of a
//! blob that was read for it. Large pieces are worth it only while the socket has room for them: with rustls's own 64 KiB
//! there are four times as many calls to the kernel, and a tenth more CPU time for a blob. So after every write the kernel
//! is asked how much it would take ([`Room`]), and that is what is read and encrypted next. A client that takes nothing
//! leaves two pieces of [`Room::BYTES_MIN`] in memory, and one that keeps up is sent as much at once as ever.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::write_timeout::WriteTimeout;
use crate::cache::Room;

/// Bytes of the shortest write after which the kernel is asked for its room: a small response is not worth another call.
const ASK_BYTES_MIN: usize = 16 * 1024;

/// Socket option for the memory that a socket has and uses (`asm-generic/socket.h`), which rustix does not have. Where it
/// is another number the call fails, and pieces stay small.
const SO_MEMINFO: libc::c_int = 55;
/// The count of numbers that the option gives, and the indexes of the two that are used (`linux/sock_diag.h`).
const MEMINFO_LEN: usize = 9;
const SNDBUF: usize = 3;
const WMEM_QUEUED: usize = 5;

/// A TCP connection with TLS.
pub(crate) struct TlsSocket {
    stream: TlsStream<WriteTimeout<TcpStream>>,
    room: Room,
}

impl TlsSocket {
    /// A connection that keeps `room` up to date.
    pub(crate) fn new(mut stream: TlsStream<WriteTimeout<TcpStream>>, room: Room) -> Self {
        let (socket, session) = stream.get_mut();
        room.set(free_bytes(socket.as_fd()).unwrap_or(0));
        session.set_buffer_limit(Some(room.bytes()));
        Self { stream, room }
    }

    /// Asks the kernel after a write how many bytes the socket would take now.
    fn note(&mut self, wrote: &Poll<io::Result<usize>>) {
        let bytes = match wrote {
            Poll::Ready(Ok(bytes)) => *bytes,
            Poll::Ready(Err(_)) => return,
            Poll::Pending => usize::MAX,
        };
        let (stream, session) = self.stream.get_mut();
        if bytes < ASK_BYTES_MIN {
            self.room.take(bytes);
        } else if session.wants_write() {
            self.room.set(0);
        } else {
            self.room.set(free_bytes(stream.as_fd()).unwrap_or(0));
        }
        session.set_buffer_limit(Some(self.room.bytes()));
    }
}

/// The bytes that a socket would take now. The kernel counts memory rather than content, which is a little less.
fn free_bytes(socket: BorrowedFd<'_>) -> Option<usize> {
    let mut memory = [0_u32; MEMINFO_LEN];
    let mut len = libc::socklen_t::try_from(size_of_val(&memory)).ok()?;
    // SAFETY: the socket is open as long as it is borrowed, and the kernel writes at most `len` bytes to `memory`.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            memory.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if failed != 0 {
        return None;
    }
    let free = memory[SNDBUF].saturating_sub(memory[WMEM_QUEUED]);
    usize::try_from(free / 8 * 7).ok()
}

impl AsyncRead for TlsSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for TlsSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(&wrote);
        wrote
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
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.note(&wrote);
        wrote
    }
}
