//! A client that costs as little as one can: a blocking socket, and a body that is read and thrown away.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Bytes taken from the socket at once.
const BUFFER_BYTES: usize = 256 * 1024;
/// distribution answers a request for a manifest of OCI's only if it says so.
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, */*";

/// A connection that is kept for one request after another.
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// What came of a GET that was answered with 200 and a whole body.
pub(crate) struct Got {
    /// From before the request was sent.
    pub(crate) first_byte: Duration,
    pub(crate) bytes: u64,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: vec![0; BUFFER_BYTES] }
    }

    pub(crate) fn get(&mut self, path: &str) -> Got {
        let asked = Instant::now();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {ACCEPT}\r\n\r\n");
        self.stream.write_all(request.as_bytes()).unwrap();
        let (length, mut bytes) = self.read_head(path);
        let mut first_byte = (bytes > 0).then(|| asked.elapsed());
        while bytes < length {
            let count = self.stream.read(&mut self.buffer).unwrap();
            assert!(count > 0, "{path}: cut after {bytes} of {length} bytes");
            first_byte.get_or_insert_with(|| asked.elapsed());
            bytes += count as u64;
        }
        Got { first_byte: first_byte.unwrap_or_else(|| asked.elapsed()), bytes }
    }

    /// The length of the body, and how much of it came along with the head.
    fn read_head(&mut self, path: &str) -> (u64, u64) {
        let mut filled = 0;
        loop {
            let count = self.stream.read(&mut self.buffer[filled..]).unwrap();
            assert!(count > 0, "{path}: no answer");
            filled += count;
            let end = self.buffer[..filled].windows(4).position(|bytes| bytes == b"\r\n\r\n");
            let Some(end) = end else { continue };
            let head = String::from_utf8_lossy(&self.buffer[..end]).to_lowercase();
            assert!(head.starts_with("http/1.1 200 "), "{path}: {head}");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length = length.unwrap_or_else(|| panic!("{path}: no length: {head}")).parse().unwrap();
            return (length, (filled - end - 4) as u64);
        }
    }
}
