//! A client that costs as little as one can: a blocking socket, and a body that is read and thrown away.

mod tls;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};
use rustls::ClientConfig;

use tls::TlsStream;
pub(crate) use tls::configuration as tls_configuration;

/// Bytes taken from the socket at once.
const BUFFER_BYTES: usize = 256 * 1024;
/// The same at the start of a part, whose first byte is waited for: the buffer of Go's reader.
const PART_BYTES: usize = 4096;
/// distribution answers a request for a manifest of OCI's only if it says so.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, */*";
/// No server is silent for so long, or the run shall fail rather than hang.
const SILENCE: Duration = Duration::from_secs(120);

/// What a client does with a body.
#[derive(Clone)]
pub(crate) enum Reading {
    /// Copies it into its own memory, as every real one does.
    Copy,
    /// Has the kernel drop it, so that the server alone is the limit.
    Discard,
    /// Decrypts it.
    Tls(Arc<ClientConfig>),
}

/// A connection that is kept for one request after another.
pub(crate) struct Client {
    wire: Wire,
    buffer: Vec<u8>,
}

enum Wire {
    Plain { stream: TcpStream, discards: bool },
    Tls(Box<TlsStream>),
}

/// What came of a GET.
pub(crate) struct Got {
    pub(crate) status: u16,
    /// From before the request was sent.
    pub(crate) first_byte: Duration,
    /// Of the body.
    pub(crate) bytes: u64,
}

impl Client {
    /// One that copies.
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::reading(address, &Reading::Copy)
    }

    pub(crate) fn reading(address: SocketAddr, reading: &Reading) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        let wire = match reading {
            Reading::Copy => Wire::Plain { stream, discards: false },
            Reading::Discard => Wire::Plain { stream, discards: true },
            Reading::Tls(config) => Wire::Tls(Box::new(TlsStream::new(stream, config))),
        };
        Self { wire, buffer: vec![0; BUFFER_BYTES] }
    }

    /// A whole body.
    pub(crate) fn get(&mut self, path: &str) -> Got {
        let got = self.fetch(path, None, |_| true);
        assert_eq!(got.status, 200, "{path}");
        got
    }

    /// A body, or a range of it, shown in pieces as it comes; what discards shows the length of pieces alone.
    /// After `false` the rest is not waited for, and this connection is of no more use.
    pub(crate) fn fetch(
        &mut self,
        path: &str,
        range: Option<&str>,
        mut see: impl FnMut(&[u8]) -> bool,
    ) -> Got {
        let asked = Instant::now();
        let is_part = range.is_some();
        let range = range.map(|range| format!("Range: {range}\r\n")).unwrap_or_default();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {ACCEPT}\r\n{range}\r\n");
        self.wire.write_all(request.as_bytes());
        let head = self.read_head(path, if is_part { PART_BYTES } else { BUFFER_BYTES });
        let mut first_byte = (head.bytes > 0).then(|| asked.elapsed());
        let mut bytes = head.bytes as u64;
        let mut go_on = see(&self.buffer[head.end..head.end + head.bytes]);
        while bytes < head.length && go_on {
            let wanted = BUFFER_BYTES.min((head.length - bytes) as usize);
            let count = self.wire.take(&mut self.buffer[..wanted]);
            assert!(count > 0, "{path}: cut after {bytes} of {} bytes", head.length);
            first_byte.get_or_insert_with(|| asked.elapsed());
            bytes += count as u64;
            go_on = see(&self.buffer[..count]);
        }
        Got { status: head.status, first_byte: first_byte.unwrap_or_else(|| asked.elapsed()), bytes }
    }

    /// With no more of what follows than `most` bytes at once.
    fn read_head(&mut self, path: &str, most: usize) -> Head {
        let mut filled = 0;
        loop {
            let count = self.wire.read(&mut self.buffer[filled..BUFFER_BYTES.min(filled + most)]);
            assert!(count > 0, "{path}: no answer");
            filled += count;
            let end = self.buffer[..filled].windows(4).position(|bytes| bytes == b"\r\n\r\n");
            let Some(end) = end else { continue };
            let head = String::from_utf8_lossy(&self.buffer[..end]).to_lowercase();
            let status = head.strip_prefix("http/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let (Some(status), Some(length)) = (status, length) else { panic!("{path}: {head}") };
            return Head { status, length, end: end + 4, bytes: filled - end - 4 };
        }
    }
}

struct Head {
    status: u16,
    /// Of the body.
    length: u64,
    /// Where the body begins in the buffer, and how much of it is there.
    end: usize,
    bytes: usize,
}

impl Wire {
    fn write_all(&mut self, bytes: &[u8]) {
        match self {
            Self::Plain { stream, .. } => stream.write_all(bytes).unwrap(),
            Self::Tls(stream) => stream.write_all(bytes),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> usize {
        match self {
            Self::Plain { stream, .. } => stream.read(buffer).unwrap(),
            Self::Tls(stream) => stream.read(buffer),
        }
    }

    /// Like `read`, but what is read may be of no interest.
    fn take(&mut self, buffer: &mut [u8]) -> usize {
        match self {
            // On a stream, the kernel drops what is "truncated".
            Self::Plain { stream, discards: true } => recv(stream, buffer, RecvFlags::TRUNC).unwrap().1,
            _ => self.read(buffer),
        }
    }
}
