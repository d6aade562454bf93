//! What does hyper cost when it has nothing to do but to send what is in memory? The yardstick for berth: the
//! same HTTP, a table of finished answers, and no more.
//!
//! It is this program, run again with another word, so that its CPU time is counted apart.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::scene::Page;
use crate::server::{Kind, Server, run};
use crate::support::process::{free_port, write};

/// The word for it.
pub(crate) const WORD: &str = "yardstick";
/// Of the pages, in the order of their files.
const INDEX: &str = "pages.json";

type Pages = HashMap<String, (HeaderMap, Bytes)>;
type Index = Vec<(String, Vec<(String, String)>)>;

pub(crate) fn start(pages: &[Page]) -> Server {
    let folder = tempfile::tempdir().unwrap();
    for (number, page) in pages.iter().enumerate() {
        write(&folder.path().join(number.to_string()), &page.body);
    }
    let index: Index = pages.iter().map(|page| (page.path.clone(), page.headers.clone())).collect();
    serde_json::to_writer(File::create(folder.path().join(INDEX)).unwrap(), &index).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(WORD).arg(address.to_string()).arg(folder.path());
    run(Kind::BareHyper, command, address, folder)
}

/// Serves the pages of a folder until it is killed.
pub(crate) fn serve(address: &str, folder: &str) {
    let pages = Arc::new(load(Path::new(folder)));
    Runtime::new().unwrap().block_on(async {
        let listener = TcpListener::bind(address).await.unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let pages = Arc::clone(&pages);
            tokio::spawn(async move {
                let answer = service_fn(|request: Request<_>| {
                    let response = answer(&pages, request.uri().path());
                    async { Ok::<_, Infallible>(response) }
                });
                // Clients leave when they have had enough.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
}

fn answer(pages: &Pages, path: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    match pages.get(path) {
        None => *response.status_mut() = StatusCode::NOT_FOUND,
        Some((headers, body)) => {
            *response.headers_mut() = headers.clone();
            *response.body_mut() = Full::new(body.clone());
        }
    }
    response
}

fn load(folder: &Path) -> Pages {
    let index: Index = serde_json::from_reader(File::open(folder.join(INDEX)).unwrap()).unwrap();
    let page = |(number, (path, headers)): (usize, (String, Vec<(String, String)>))| {
        let body = fs::read(folder.join(number.to_string())).unwrap();
        let header = |(name, value): (String, String)| {
            (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())
        };
        (path, (headers.into_iter().map(header).collect(), body.into()))
    };
    index.into_iter().enumerate().map(page).collect()
}
