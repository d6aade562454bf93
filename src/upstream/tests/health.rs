//! Endpoints that fail: order, retries, time limits, circuits.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::super::{Attempts, Config, Endpoint, Error, Event, Outcome, State, Upstream};
use super::fake::{Fake, Reply};
use super::{client, digest_of, error_of, name, upstream_of, upstream_with};
use crate::oci::Registry;

/// Answers with these statuses, one after the other, and then well; at its base as a registry.
async fn answering(statuses: &'static [u16]) -> Fake {
    let next = AtomicUsize::new(0);
    Fake::start(move |seen| {
        if seen.path == "/v2/" {
            return Reply::ok("{}");
        }
        match statuses.get(next.fetch_add(1, Ordering::SeqCst)) {
            Some(status) => Reply::new(*status, ""),
            None => Reply::ok("content"),
        }
    })
    .await
}

async fn size(upstream: &Upstream) -> Result<u64, Error> {
    upstream.head_blob(&client(), &name("a"), &digest_of(b"content")).await
}

/// A port where nobody listens.
async fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn the_first_endpoint_that_answers_is_used() {
    let (first, second) = (answering(&[]).await, answering(&[]).await);
    let closed = closed_port().await;
    let upstream = upstream_with(&[&closed, &first.url(), &second.url()], |_| {});
    assert_eq!(size(&upstream).await, Ok(7));
    assert_eq!((first.seen().len(), second.seen().len()), (1, 0));
}

#[tokio::test]
async fn an_endpoint_to_avoid_is_asked_last() {
    let (first, second) = (answering(&[]).await, answering(&[]).await);
    let upstream = upstream_with(&[&first.url(), &second.url()], |_| {});
    let endpoint = async |avoid: &[usize]| {
        upstream
            .blob(&client(), &name("a"), &digest_of(b"content"), None, None, avoid)
            .await
            .unwrap()
            .endpoint
    };
    assert_eq!((endpoint(&[]).await, endpoint(&[0]).await, endpoint(&[0, 1]).await), (0, 1, 0));
}

#[tokio::test]
async fn a_mirror_without_the_image_leaves_it_to_the_next_endpoint() {
    let check = async |first: &'static [u16], second: &'static [u16], expected: Result<u64, Error>| {
        let (mirror, registry) = (answering(first).await, answering(second).await);
        let upstream = upstream_with(&[&mirror.url(), &registry.url()], |_| {});
        assert_eq!(size(&upstream).await, expected, "{first:?} {second:?}");
        assert_eq!(
            mirror.count("/v2/a/"),
            2,
            "a word about the image is not asked for twice: by HEAD and GET"
        );
    };
    check(&[404, 404], &[], Ok(7)).await;
    check(&[403, 403], &[], Ok(7)).await;
    check(&[404, 404], &[404, 404], Err(Error::NotFound)).await;
    check(&[403, 403], &[403, 403], Err(Error::Denied)).await;
    // Nobody has said that it is not there.
    check(&[404, 404], &[502, 502, 502], Err(Error::Unavailable { status: 502 })).await;
}

#[tokio::test]
async fn what_passes_is_tried_again() {
    let check = async |statuses: &'static [u16], expected: Result<u64, Error>, requests: usize| {
        let fake = answering(statuses).await;
        assert_eq!(size(&upstream_of(&fake)).await, expected, "{statuses:?}");
        assert_eq!(fake.seen().len(), requests, "{statuses:?}");
    };
    check(&[502], Ok(7), 2).await;
    check(&[408, 429], Ok(7), 3).await;
    check(&[502, 502, 502], Err(Error::Unavailable { status: 502 }), 3).await;
    check(&[410], Err(Error::Unavailable { status: 410 }), 1).await;
}

#[tokio::test]
async fn other_endpoints_come_before_a_second_try() {
    let (first, second) = (answering(&[502]).await, answering(&[502]).await);
    let upstream = upstream_with(&[&first.url(), &second.url()], |_| {});
    assert_eq!(size(&upstream).await, Ok(7));
    assert_eq!((first.seen().len(), second.seen().len()), (2, 1));
}

#[tokio::test]
async fn a_long_retry_after_is_passed_on_and_a_short_one_waited_for() {
    let fake = Fake::start(|_| Reply::new(429, "").with("retry-after", "60")).await;
    let retry_after = Some(Duration::from_secs(60));
    assert_eq!(size(&upstream_of(&fake)).await, Err(Error::Limited { retry_after }));
    assert_eq!(fake.seen().len(), 1);

    let fake = Fake::start(|_| Reply::new(429, "").with("retry-after", "2")).await;
    let upstream = upstream_with(&[&fake.url()], |config| config.timeouts.budget = Duration::from_secs(1));
    let retry_after = Some(Duration::from_secs(2));
    assert_eq!(size(&upstream).await, Err(Error::Limited { retry_after }), "no time for that");
    assert_eq!(fake.seen().len(), 1);
}

#[tokio::test]
async fn silence_ends_in_time_and_the_next_endpoint_is_asked() {
    let (silent, good) = (Fake::start(|_| Reply::hang()).await, answering(&[]).await);
    let upstream = upstream_with(&[&silent.url(), &good.url()], |config| {
        config.timeouts.header = Duration::from_millis(100);
    });
    assert_eq!(size(&upstream).await, Ok(7));

    let upstream =
        upstream_with(&[&silent.url()], |config| config.timeouts.budget = Duration::from_millis(200));
    let started = Instant::now();
    assert_eq!(size(&upstream).await, Err(Error::Timeout));
    assert!(started.elapsed() < Duration::from_secs(5));
    let resolved =
        upstream.resolve(&client(), &name("a"), &crate::oci::Tag::parse("t").unwrap(), Attempts::Once).await;
    assert_eq!(resolved, Err(Error::Timeout));
}

#[tokio::test]
async fn a_silent_token_server_and_a_silent_body_end_in_time() {
    let fake = Fake::start(|seen| match seen.path.as_str() {
        path if path.starts_with("/token") => Reply::hang(),
        path if path.contains("manifests") => Reply::ok("{").stalling(100),
        _ => Reply::challenge(&format!(r#"Bearer realm="{}/token""#, seen.base())),
    })
    .await;
    let upstream = upstream_with(&[&fake.url()], |config| {
        config.timeouts.token = Duration::from_millis(100);
        config.timeouts.idle = Duration::from_millis(100);
        config.timeouts.budget = Duration::from_millis(500);
    });
    assert_eq!(size(&upstream).await, Err(Error::Timeout));
    let reference = crate::oci::Reference::parse("t").unwrap();
    assert_eq!(
        error_of(upstream.manifest(&client(), &name("a"), &reference, Attempts::Rounds).await),
        Error::Timeout
    );
}

#[tokio::test]
async fn a_dead_upstream_is_left_alone_until_a_probe_finds_it_alive() {
    let status = Arc::new(AtomicUsize::new(503));
    let now = Arc::clone(&status);
    let fake =
        Fake::start(move |_| Reply::new(u16::try_from(now.load(Ordering::SeqCst)).unwrap(), "content")).await;
    let upstream = upstream_of(&fake);
    assert_eq!(upstream.state(), State::Up);
    let (stop, stopped) = oneshot::channel::<()>();
    let prober = tokio::spawn(Arc::clone(&upstream).run(async { drop(stopped.await) }));
    assert_eq!(size(&upstream).await, Err(Error::Unavailable { status: 503 }));
    while upstream.state() == State::Up {
        tokio::task::yield_now().await;
    }
    let asked = || fake.seen().iter().filter(|seen| seen.path != "/v2/").count();
    let before = asked();
    assert!(matches!(size(&upstream).await, Err(Error::Unreachable { .. })));
    assert_eq!(asked(), before, "clients do not ask");

    status.store(200, Ordering::SeqCst);
    let back = async {
        while upstream.state() == State::Down {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), back).await.unwrap();
    assert_eq!(fake.seen().last().unwrap().path, "/v2/");
    assert_eq!(size(&upstream).await, Ok(7));
    stop.send(()).unwrap();
    prober.await.unwrap();
}

#[tokio::test]
async fn one_broken_image_does_not_close_a_registry() {
    let fake = Fake::start(|_| Reply::new(500, "")).await;
    let upstream = upstream_of(&fake);
    for _ in 0..2 {
        assert_eq!(size(&upstream).await, Err(Error::Unavailable { status: 500 }));
    }
    assert_eq!(upstream.state(), State::Up);
}

#[tokio::test]
async fn every_request_is_observed() {
    let fake = answering(&[404, 404, 429]).await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let observer = {
        let heard = Arc::clone(&heard);
        Arc::new(move |registry: &Registry, event| heard.lock().unwrap().push((registry.clone(), event)))
    };
    let registry = Registry::parse("registry.example.com").unwrap();
    let config = Config::new(registry.clone(), vec![Endpoint::parse(&fake.url()).unwrap()]);
    let upstream = Upstream::build(&config, observer).unwrap();
    assert_eq!(size(&upstream).await, Err(Error::NotFound));
    assert_eq!(size(&upstream).await, Ok(7));
    // With a look at the base, whether it is a registry that says so.
    let outcomes = [Outcome::NotFound, Outcome::NotFound, Outcome::Ok, Outcome::Limited, Outcome::Ok]
        .map(|outcome| (registry.clone(), Event::Ended(outcome)));
    assert_eq!(*heard.lock().unwrap(), outcomes);
}
