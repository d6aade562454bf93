//! What the servers serve: an upstream to fetch it from, and the same as pages for those that do not fetch.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use bytes::Bytes;

use crate::Bench;
use crate::server::{REPOSITORY, Server};
use crate::support::{Certificate, Image, Upstream};

/// An upstream with its content, and whom to be on the wire.
pub(crate) struct Scene {
    pub(crate) upstream: Upstream,
    /// All that it holds, by path.
    pub(crate) pages: Vec<Page>,
    /// With it, servers speak TLS.
    pub(crate) certificate: Option<Certificate>,
}

/// An answer that is known beforehand.
pub(crate) struct Page {
    pub(crate) path: String,
    pub(crate) body: Bytes,
    /// Without those that every server makes itself.
    pub(crate) headers: Vec<(String, String)>,
}

/// What every server makes itself.
const OWN_HEADERS: [&str; 5] = ["accept-ranges", "connection", "content-length", "date", "server"];

impl Scene {
    pub(crate) fn new(bench: &Bench) -> Self {
        let upstream = bench.runtime.block_on(Upstream::start());
        Self { upstream, pages: Vec::new(), certificate: None }
    }

    pub(crate) fn over_tls(self) -> Self {
        Self { certificate: Some(Certificate::new()), ..self }
    }

    /// Holds an image, as `latest` of the repository and by digest.
    pub(crate) fn hold(&mut self, image: &Image) {
        self.upstream.image(REPOSITORY, "latest", image);
        let blobs = image.blobs.iter().map(|blob| (blob.path(REPOSITORY), blob.content.clone()));
        let all = blobs.chain([(image.path(REPOSITORY), image.manifest.clone())]);
        self.pages.extend(all.map(|(path, body)| Page { path, body, headers: Vec::new() }));
    }

    /// Gives the pages the headers with which berth answers, so that nobody is compared with less. `berth` is
    /// filled by that.
    pub(crate) fn learn_headers(&mut self, berth: &Server) {
        for page in &mut self.pages {
            // Twice: the first answer says that it was a miss.
            head_of(berth, "GET", &page.path);
            page.headers = head_of(berth, "HEAD", &page.path);
        }
    }

    /// Makes sure that a server answers with them.
    pub(crate) fn check_headers(&self, server: &Server) {
        for page in &self.pages {
            assert_eq!(sorted(&head_of(server, "GET", &page.path)), sorted(&page.headers), "{}", page.path);
        }
    }
}

fn sorted(headers: &[(String, String)]) -> Vec<(String, String)> {
    let mut headers: Vec<_> =
        headers.iter().map(|(name, value)| (name.to_lowercase(), value.clone())).collect();
    headers.sort();
    headers
}

fn head_of(server: &Server, method: &str, path: &str) -> Vec<(String, String)> {
    let mut stream = TcpStream::connect(server.address).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&answer[..end]);
    let pairs = head.lines().skip(1).filter_map(|line| line.split_once(": "));
    let pairs = pairs.filter(|(name, _)| !OWN_HEADERS.contains(&name.to_lowercase().as_str()));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}
