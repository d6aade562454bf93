//! A fake registry that speaks HTTP/1.1, misbehaves on command and remembers every request.
//!
//! It is written on the bare socket, because no HTTP library lets a server lie as freely as it must:
//! - `content`: what an honest registry answers, its lists in pages of any kind (`paging`);
//! - `auth`: who may read, and the token endpoint;
//! - `quota`: how many manifests it gives out;
//! - `fault`: what is done to an honest answer, and to which;
//! - `wire`: requests off the socket, answers onto it as they were made to be.
//!
//! What is put in while it runs counts from the next request on.

mod auth;
mod content;
mod fault;
mod paging;
mod quota;
mod wire;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use berth::oci::Digest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

pub(crate) use auth::{Auth, basic};
pub(crate) use fault::{Fault, On};
pub(crate) use paging::Paging;
pub(crate) use wire::Request;

use super::{Blob, Certificate, Image};
use auth::Door;
use content::Content;
use fault::Faults;
use quota::Quota;
use wire::{Answer, Connection};

/// The fake. Dropping it stops it.
pub(crate) struct Upstream {
    shared: Arc<Shared>,
    address: SocketAddr,
    running: Mutex<Option<JoinHandle<()>>>,
}

/// What the connections see.
struct Shared {
    origin: String,
    certificate: Option<Certificate>,
    /// Authorities of the clients that it speaks TLS with; none: with all.
    clients: Mutex<Vec<PathBuf>>,
    /// Whether the certificate that it shows has expired.
    is_expired: AtomicBool,
    content: Mutex<Content>,
    door: Mutex<Door>,
    faults: Mutex<Faults>,
    quota: Mutex<Option<Quota>>,
    requests: Mutex<Vec<Arc<Request>>>,
    connections: AtomicUsize,
}

impl Upstream {
    /// A registry without images, open to all.
    pub(crate) async fn start() -> Self {
        Self::build(None).await
    }

    /// The same over TLS, under an authority that only [`Upstream::ca`] names.
    pub(crate) async fn start_tls() -> Self {
        Self::build(Some(Certificate::new())).await
    }

    /// The same with this certificate.
    pub(crate) async fn start_tls_with(certificate: Certificate) -> Self {
        Self::build(Some(certificate)).await
    }

    /// The same for clients who show a certificate of one of these authorities.
    pub(crate) async fn start_tls_for(clients: &[&Certificate]) -> Self {
        let upstream = Self::start_tls().await;
        *upstream.shared.clients.lock().unwrap() = clients.iter().map(|client| client.ca()).collect();
        upstream
    }

    /// From the next connection on, only clients of this authority are served.
    pub(crate) fn trust_only(&self, client: &Certificate) {
        *self.shared.clients.lock().unwrap() = vec![client.ca()];
    }

    async fn build(certificate: Option<Certificate>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if certificate.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared {
            origin: format!("{scheme}://{address}"),
            certificate,
            clients: Mutex::default(),
            is_expired: AtomicBool::new(false),
            content: Mutex::default(),
            door: Mutex::default(),
            faults: Mutex::default(),
            quota: Mutex::default(),
            requests: Mutex::default(),
            connections: AtomicUsize::new(0),
        });
        let running = Mutex::new(Some(tokio::spawn(accept(listener, Arc::clone(&shared)))));
        Self { shared, address, running }
    }

    /// Takes it down: connections break, new ones are refused.
    pub(crate) async fn stop(&self) {
        let running = self.running.lock().unwrap().take();
        if let Some(running) = running {
            running.abort();
            let _ = running.await;
        }
    }

    /// Brings it back at the same address, with the same content.
    pub(crate) async fn start_again(&self) {
        self.stop().await;
        let listener = TcpListener::bind(self.address).await.unwrap();
        let running = tokio::spawn(accept(listener, Arc::clone(&self.shared)));
        *self.running.lock().unwrap() = Some(running);
    }

    /// `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> &str {
        &self.shared.origin
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The PEM file of the authority to trust, if it speaks TLS.
    pub(crate) fn ca(&self) -> Option<PathBuf> {
        self.shared.certificate.as_ref().map(Certificate::ca)
    }

    // --- what it holds

    /// Tags an image, and holds all that belongs to it.
    pub(crate) fn image(&self, repository: &str, tag: &str, image: &Image) -> &Self {
        self.content().put(repository, Some(tag), image);
        self
    }

    /// Holds an image that has no tag.
    pub(crate) fn untagged(&self, repository: &str, image: &Image) -> &Self {
        self.content().put(repository, None, image);
        self
    }

    /// Tags an image with all of these names.
    pub(crate) fn tags(&self, repository: &str, tags: impl Iterator<Item = String>, image: &Image) -> &Self {
        self.content().put(repository, None, image);
        self.content().tag(repository, tags, image);
        self
    }

    /// Holds a blob that no manifest names.
    pub(crate) fn blob(&self, repository: &str, blob: &Blob) -> &Self {
        self.content().put_blob(repository, blob);
        self
    }

    /// Holds the manifest of an image under a digest that is not its own.
    pub(crate) fn misnamed(&self, repository: &str, digest: &Digest, image: &Image) {
        self.content().put_misnamed(repository, digest, image);
    }

    /// Takes a tag away; the manifest stays.
    pub(crate) fn untag(&self, repository: &str, tag: &str) {
        self.content().untag(repository, tag);
    }

    /// Takes a blob or manifest away.
    pub(crate) fn remove(&self, repository: &str, digest: &Digest) {
        self.content().remove(repository, digest);
    }

    /// Is of the kind that does not know the referrers API.
    pub(crate) fn without_referrers_api(&self) -> &Self {
        self.content().has_referrers_api = false;
        self
    }

    /// Lists at most so many tags or referrers at once.
    pub(crate) fn page_size(&self, entries: usize) -> &Self {
        self.content().page_size = entries;
        self
    }

    /// Leads from one page of tags to the next in this way.
    pub(crate) fn paging(&self, paging: Paging) -> &Self {
        self.content().paging = paging;
        self
    }

    // --- who may read

    /// Asks for a login in this way. Nobody may read anything then but by [`Upstream::user`] and
    /// [`Upstream::anonymous`].
    pub(crate) fn auth(&self, auth: Auth) -> &Self {
        self.door().auth = auth;
        self
    }

    /// Challenges at `/v2/` only: what may not be read is answered with this status, and without a word about logins.
    pub(crate) fn refuses_with(&self, status: u16) -> &Self {
        self.door().refusal = Some(status);
        self
    }

    /// Lets a user read the repositories whose name begins so. The password is an identity token too.
    pub(crate) fn user(&self, name: &str, password: &str, prefix: &str) -> &Self {
        self.door().user(name, password, prefix);
        self
    }

    /// Lets everybody read the repositories whose name begins so; with tokens, by an anonymous one.
    pub(crate) fn anonymous(&self, prefix: &str) -> &Self {
        self.door().anonymous.push(prefix.to_owned());
        self
    }

    /// Lets this user read, and in the same moment no other any more.
    pub(crate) fn only_user(&self, name: &str, password: &str, prefix: &str) {
        let mut door = self.door();
        door.users.clear();
        door.user(name, password, prefix);
    }

    /// Forgets users and anonymous readers: every password is wrong from now on.
    pub(crate) fn forget_users(&self) {
        let mut door = self.door();
        door.users.clear();
        door.anonymous.clear();
    }

    /// Sends clients elsewhere for tokens. Every fake takes the tokens of every other.
    pub(crate) fn realm(&self, url: &str) -> &Self {
        self.door().realm = Some(url.to_owned());
        self
    }

    /// Offers this before Basic, in a line of its own.
    pub(crate) fn offers(&self, challenge: &str) -> &Self {
        self.door().offer = Some(challenge.to_owned());
        self
    }

    /// Says of its tokens that they live so long; `None`: says nothing.
    pub(crate) fn tokens_live(&self, seconds: Option<u64>) -> &Self {
        self.door().expires_in = seconds;
        self
    }

    /// Issues tokens that are so many bytes longer than they need be.
    pub(crate) fn tokens_have(&self, bytes: usize) -> &Self {
        // They are sent in base64.
        self.door().padding = bytes / 4 * 3;
        self
    }

    /// Takes no token any more that was issued before now.
    pub(crate) fn revoke_tokens(&self) {
        self.door().revoke();
    }

    /// Takes no token at all any more, however new: its clock is wrong.
    pub(crate) fn distrust_tokens(&self) {
        self.door().revoke_for_ever();
    }

    /// Gives out so many manifests from now on, as Docker Hub does.
    pub(crate) fn quota(&self, manifests: u64) -> &Self {
        *self.shared.quota.lock().unwrap() = Some(Quota::new(manifests));
        self
    }

    // --- how it misbehaves

    /// Which requests the next fault is for: those of this method (`*` for any) with this part in their
    /// path and query. Requests that lack a login are refused as usual, and do not count.
    pub(crate) fn on(&self, method: &str, part: &str) -> On<'_> {
        On::new(&self.shared.faults, method, part)
    }

    /// Ends all faults.
    pub(crate) fn behave(&self) {
        self.shared.faults.lock().unwrap().clear();
    }

    /// Over TLS: shows new connections a certificate that has expired, or a good one again.
    pub(crate) fn expire(&self, is_expired: bool) {
        self.shared.is_expired.store(is_expired, Ordering::SeqCst);
    }

    // --- what it saw

    /// All requests so far, in order.
    pub(crate) fn requests(&self) -> Vec<Arc<Request>> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The requests of this method (`*` for any) with this part in their path and query.
    pub(crate) fn seen(&self, method: &str, part: &str) -> Vec<Arc<Request>> {
        let mut requests = self.requests();
        requests.retain(|request| request.is(method, part));
        requests
    }

    /// How many of them there are.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        self.seen(method, part).len()
    }

    /// Body bytes sent so far in answer to GETs of this digest, under whatever name.
    pub(crate) fn bytes_sent(&self, digest: &Digest) -> u64 {
        self.seen("GET", &digest.to_string()).iter().map(|request| request.bytes_sent()).sum()
    }

    /// Tokens issued.
    pub(crate) fn tokens(&self) -> usize {
        self.seen("*", "/token").iter().filter(|request| request.status() == 200).count()
    }

    /// Connections accepted.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Forgets what it saw, so that counting starts anew.
    pub(crate) fn forget(&self) {
        self.shared.requests.lock().unwrap().clear();
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.shared.content.lock().unwrap()
    }

    fn door(&self) -> MutexGuard<'_, Door> {
        self.shared.door.lock().unwrap()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(running) = self.running.lock().unwrap().take() {
            running.abort();
        }
    }
}

/// Accepts until it is aborted, and then takes its connections along.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        shared.connections.fetch_add(1, Ordering::SeqCst);
        stream.set_nodelay(true).unwrap();
        connections.spawn(greet(stream, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn greet(stream: TcpStream, shared: Arc<Shared>) {
    let Some(certificate) = &shared.certificate else {
        return serve(stream, &shared).await;
    };
    let is_expired = shared.is_expired.load(Ordering::SeqCst);
    let clients = shared.clients.lock().unwrap().clone();
    let server = if is_expired { certificate.expired_server() } else { certificate.server(&clients) };
    // A client that does not trust the authority hangs up here, which is its right.
    if let Ok(stream) = TlsAcceptor::from(server).accept(stream).await {
        serve(stream, &shared).await;
    }
}

/// Answers one request after another, until either side has had enough.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send, shared: &Shared) {
    let mut connection = Connection::new(stream);
    while let Ok(Some(request)) = connection.read_request().await {
        let request = Arc::new(request);
        shared.requests.lock().unwrap().push(Arc::clone(&request));
        let answer = shared.answer(&request);
        if connection.write_answer(&request, answer).await.is_err() {
            return;
        }
    }
}

impl Shared {
    fn answer(&self, request: &Request) -> Answer {
        let at_the_door = self.door.lock().unwrap().answer(request, &self.origin);
        let mut answer = match at_the_door {
            Some(refusal) if request.path() != "/token" => return refusal,
            Some(token) => token,
            None => self.content.lock().unwrap().answer(request),
        };
        if let Some(quota) = &mut *self.quota.lock().unwrap() {
            answer = quota.apply(request, answer);
        }
        for fault in self.faults.lock().unwrap().matching(request) {
            fault.befall(&mut answer, request);
        }
        answer
    }
}
