//! Lists of tags: the page that a client asks for, as its registry sends it.
//!
//! A page goes on as it comes, with the registry's own word of where the next one is (`cursor`). It is never put together
//! from others nor cut, so the pages that a client gets are the registry's list, or there is an error. A registry that
//! refuses a page size is asked without one.
//!
//! Of a page, [`HELD_BYTES_MAX`] are in memory at once. One that is longer, because the registry knows no pages or accepts
//! any size, streams through at the speed of its client. The room for such streams is limited, and shared between
//! registries and clients: one that takes long gives way to a request that waits and whose owner has less.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout_at};

use crate::context::RequestContext;
use crate::oci::RepoName;
use crate::oci::tags::TagScan;
use crate::remote::error::Error;
use crate::remote::exchange::Target;
use crate::remote::message::is_page;
use crate::remote::requests::lists::cursor::{self, PageQuery, Source};
use crate::remote::requests::manifests::Freshness;
use crate::remote::transport::request::{ApiRequest, ApiResponse};
use crate::shares::{Limits, Owner, Permit, Shares, To};

/// Bytes of a page that are held in memory: a thousand tags are shorter. The rest is read as it is sent.
const HELD_BYTES_MAX: usize = 64 * 1024;
/// Bytes of the longest page: half a million tags of the greatest length.
const PAGE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How long a long page is sent in any case: ten megabytes at one megabyte in a second.
const STREAM_TIME_SURE: Duration = Duration::from_secs(10);
/// How long a long page is sent after that if no other waits: the same page to the slowest line that images are pulled by.
const STREAM_TIME_MAX: Duration = Duration::from_secs(600);
/// The interval at which a page that takes longer is asked to give way.
const STREAM_ASKED_EVERY: Duration = Duration::from_secs(1);
/// The most long pages that are sent at once. Each takes a connection to its registry, and some buffers.
const STREAMS_MAX: u64 = 64;
/// The most requests that wait for one of these places, of all owners and of one: more would wait for longer than their
/// clients do.
const WAITING_MAX: usize = 256;
const WAITING_OF_ONE_MAX: usize = 64;
/// After how long to come back if there is no room: most pages are sent within a second.
const STREAM_RETRY: Duration = Duration::from_secs(2);

/// The places of long pages, for the whole process, whose memory and descriptors they take.
static STREAMS: LazyLock<Shares> = LazyLock::new(|| {
    Shares::new(Limits { total: STREAMS_MAX, waiting: WAITING_MAX, waiting_of_one: WAITING_OF_ONE_MAX })
});

/// A page of a list of tags.
#[derive(Debug)]
pub struct TagPage {
    /// The JSON of the page.
    pub body: TagBody,
    /// The query by which the client asks for the next page.
    pub next: Option<String>,
    /// Whether a parent has kept the page from before and could not ask the registry.
    pub is_stale: bool,
}

/// The JSON of a page.
#[derive(Debug)]
pub enum TagBody {
    /// The whole page.
    Whole(Bytes),
    /// A long page, of which only the beginning is read.
    Stream(Box<TagStream>),
}

/// A long page that is being read.
#[derive(Debug)]
pub struct TagStream {
    scan: TagScan,
    body: Incoming,
    /// Bytes to send before more is read.
    ready: Vec<u8>,
    /// Bytes that the page may still have.
    left: u64,
    is_over: bool,
    idle: Duration,
    /// When the beginning of the page must have come.
    until: Option<Instant>,
    /// The place of the page, once it is long.
    room: Option<Room>,
}

/// The place of one long page among those at once.
struct Room {
    is_lost: Arc<AtomicBool>,
    /// The task that holds the place, and gives it up in time even if the client reads nothing.
    keeper: AbortHandle,
}

impl Room {
    fn new(mut permit: Permit) -> Self {
        let is_lost = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_lost);
        let keeper = tokio::spawn(async move {
            sleep(STREAM_TIME_SURE).await;
            let until = Instant::now() + STREAM_TIME_MAX;
            while Instant::now() < until && !permit.give_way(To::Less) {
                sleep(STREAM_ASKED_EVERY).await;
            }
            flag.store(true, Ordering::Release);
        });
        Self { is_lost, keeper: keeper.abort_handle() }
    }

    fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Room")
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl TagStream {
    /// The next bytes; `None` at the end of a whole list.
    ///
    /// # Errors
    /// [`Error`], if the page breaks off or turns out to be something else.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        while self.ready.is_empty() && !self.is_over {
            self.read().await?;
        }
        let ready = std::mem::take(&mut self.ready);
        Ok((!ready.is_empty()).then(|| ready.into()))
    }

    /// Reads the next piece of the page.
    async fn read(&mut self) -> Result<(), Error> {
        const NO_LIST: Error = Error::Malformed("something else than a list of tags");
        if self.room.as_ref().is_some_and(Room::is_lost) {
            return Err(Error::Busy { retry_after: STREAM_RETRY });
        }
        let until = Instant::now() + self.idle;
        let until = self.until.map_or(until, |begun| begun.min(until));
        let frame = timeout_at(until, self.body.frame()).await.map_err(|_| Error::Timeout)?;
        let Some(frame) = frame else {
            self.is_over = true;
            return self.scan.finish().map_err(|_| NO_LIST);
        };
        let Ok(data) = frame.map_err(|error| Error::unreachable(&error))?.into_data() else { return Ok(()) };
        self.left = self.left.checked_sub(data.len() as u64).ok_or(TOO_LONG)?;
        self.scan.read(&data, &mut self.ready).map_err(|_| NO_LIST)
    }
}

const TOO_LONG: Error = Error::Malformed("a longer list of tags than there is");

/// The page of the tags of `name` that `query` means at `target`.
///
/// # Errors
/// [`Error`], as [`Target::exchange`], or if it is no page of such a list.
pub(crate) async fn tags(
    target: Target<'_>,
    context: &RequestContext,
    name: &RepoName,
    query: Option<String>,
    deadline: Instant,
) -> Result<TagPage, Error> {
    let ask = ApiRequest::get(name, "tags/list".to_owned()).along(context);
    let ask = ApiRequest { query, accept: Some("application/json"), ..ask };
    let answer = target.exchange(&ask, deadline).await?;
    let headers = answer.response.headers();
    if is_page(headers) {
        return Err(Error::Malformed("a page instead of a list of tags"));
    }
    let next = cursor::next_page(headers, ask.query.as_deref(), source(target, name))?;
    let remote = target.remote();
    let is_stale = Freshness::of(remote, headers).is_stale;
    let owner = Owner::new(remote.registry(), context.client());
    let body = begin_tags(target, (answer, owner), name, deadline).await?;
    Ok(TagPage { body, next, is_stale })
}

/// Reads a page to its end, or its beginning if it is long.
async fn begin_tags(
    target: Target<'_>,
    (answer, owner): (ApiResponse, Owner),
    name: &RepoName,
    deadline: Instant,
) -> Result<TagBody, Error> {
    // Held until nothing more is asked of it, but for a client that may take its time.
    let (_seat, body) = (answer.seat, answer.response.into_body());
    if body.size_hint().lower() > PAGE_BYTES_MAX {
        return Err(TOO_LONG);
    }
    let (scan, idle) = (TagScan::new(name.as_str()), target.remote().transport().client().timeouts.idle);
    let (ready, left, is_over) = (Vec::new(), PAGE_BYTES_MAX, false);
    let until = Some(deadline);
    let mut stream = TagStream { scan, body, ready, left, is_over, idle, until, room: None };
    while stream.ready.len() <= HELD_BYTES_MAX {
        stream.read().await?;
        if stream.is_over {
            return Ok(TagBody::Whole(stream.ready.into()));
        }
    }
    let busy = Error::Busy { retry_after: STREAM_RETRY };
    let permit = timeout_at(deadline, STREAMS.acquire(owner, 1)).await;
    stream.room = Some(Room::new(permit.map_err(|_| busy.clone())?.map_err(|_| busy)?));
    stream.until = None;
    Ok(TagBody::Stream(Box::new(stream)))
}

/// Whether `target` has sent this cursor, for `name`.
pub(crate) fn has_sent(target: Target<'_>, page: &PageQuery, name: &RepoName) -> bool {
    page.is_of(source(target, name))
}

/// The endpoint as the source of a cursor for `name`.
fn source<'a>(target: Target<'a>, name: &'a RepoName) -> Source<'a> {
    let remote = target.remote();
    Source {
        endpoint: target.endpoint().url(),
        registry: remote.registry(),
        name,
        is_mirror: remote.mirror().is_some(),
    }
}
