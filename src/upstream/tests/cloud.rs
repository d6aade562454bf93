//! Logins that a cloud issues: had once, renewed early, kept when the cloud fails. What each cloud is asked is tested
//! through the front door (`tests/it/auth/clouds.rs`).

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::NamedTempFile;
use tokio::task::JoinSet;
use tokio::time::{advance, pause, resume, timeout};

use super::super::{CredentialsConfig, EcrConfig, Endpoint, Error, NoLogin, Region, Timeouts, Upstream};
use super::fake::{Fake, Reply};
use super::{client, digest_of, error_of, name, upstream_with};

const HOUR: Duration = Duration::from_secs(3600);
const SECRET: &str = "hunter2+secret";

/// Keys of AWS.
fn profile() -> NamedTempFile {
    let mut profile = NamedTempFile::new().unwrap();
    writeln!(profile, "[robot]\naws_access_key_id = AKID\naws_secret_access_key = {SECRET}").unwrap();
    profile
}

fn ecr_login(profile: &NamedTempFile, api: &Fake) -> CredentialsConfig {
    CredentialsConfig::Ecr(EcrConfig {
        region: Region::parse("eu-west-1"),
        profile: Some("robot".into()),
        profile_file: Some(profile.path().into()),
        endpoint: Some(Endpoint::parse(&api.url()).unwrap()),
    })
}

/// An Amazon whose logins are `AWS:1`, `AWS:2` and so on, good for twelve hours, and an ECR of one repository.
struct Amazon {
    api: Fake,
    ecr: Fake,
    _profile: NamedTempFile,
    upstream: Arc<Upstream>,
    /// The number of the only login that the registry takes.
    valid: Arc<AtomicUsize>,
    /// What the API answers instead of a login: a status; 0: a login; 1: nothing, ever.
    failure: Arc<AtomicUsize>,
}

impl Amazon {
    async fn start() -> Self {
        let usual = Timeouts::default();
        Self::start_with((usual.token, usual.budget)).await
    }

    async fn start_with(timeouts: (Duration, Duration)) -> Self {
        let (valid, failure, issued) = <(Arc<AtomicUsize>, Arc<AtomicUsize>, AtomicUsize)>::default();
        valid.store(1, Ordering::SeqCst);
        let fails = Arc::clone(&failure);
        let api = Fake::start(move |_| {
            let status = fails.load(Ordering::SeqCst);
            if status == 1 {
                return Reply::hang();
            }
            if status != 0 {
                let body = r#"{"__type":"x#AccessDeniedException","message":"of hunter2+secret"}"#;
                return Reply::new(u16::try_from(status).unwrap(), body);
            }
            let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
            let token = STANDARD.encode(format!("AWS:{number}"));
            let ends = (SystemTime::now() + 12 * HOUR).duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
            let one = format!(r#"{{"authorizationToken":"{token}","expiresAt":{ends}}}"#);
            Reply::ok(format!(r#"{{"authorizationData":[{one}]}}"#))
        })
        .await;
        let takes = Arc::clone(&valid);
        let ecr = Fake::start(move |seen| {
            let basic = STANDARD.encode(format!("AWS:{}", takes.load(Ordering::SeqCst)));
            match seen.authorization() {
                Some(sent) if sent == format!("Basic {basic}") => Reply::ok("content"),
                // So ECR says that a token is over.
                Some(_) if seen.path.starts_with("/v2/denied/") => Reply::new(403, r#"{"errors":[]}"#),
                _ => Reply::challenge(r#"Basic realm="ecr",service="ecr.amazonaws.com""#),
            }
        })
        .await;
        let profile = profile();
        let upstream = upstream_with(&[&ecr.url()], |config| {
            config.credentials = Some(ecr_login(&profile, &api));
            (config.timeouts.token, config.timeouts.budget) = timeouts;
        });
        Self { api, ecr, _profile: profile, upstream, valid, failure }
    }

    async fn head(&self, repository: &str) -> Result<u64, Error> {
        self.upstream.head_blob(&client(), &name(repository), &digest_of(b"content")).await
    }

    /// How often it was asked for a login.
    fn asked(&self) -> usize {
        self.api.seen().len()
    }

    fn takes_only(&self, number: usize) {
        self.valid.store(number, Ordering::SeqCst);
    }

    fn fails_with(&self, status: usize) {
        self.failure.store(status, Ordering::SeqCst);
    }
}

/// Lets time pass that nobody waits for.
async fn later(time: Duration) {
    pause();
    advance(time).await;
    resume();
}

#[tokio::test]
async fn twenty_requests_share_one_login_and_nobody_is_asked_before() {
    let amazon = Amazon::start().await;
    assert!(!amazon.upstream.is_public(&name("a")).await);
    assert_eq!(amazon.asked(), 0);
    let mut requests = JoinSet::new();
    for _ in 0..20 {
        let upstream = Arc::clone(&amazon.upstream);
        requests
            .spawn(async move { upstream.head_blob(&client(), &name("a"), &digest_of(b"content")).await });
    }
    while let Some(result) = requests.join_next().await {
        assert_eq!(result.unwrap(), Ok(7));
    }
    assert_eq!(amazon.asked(), 1);
    later(8 * HOUR).await;
    assert_eq!(amazon.head("b").await, Ok(7));
    assert_eq!(amazon.asked(), 1);
}

#[tokio::test]
async fn a_login_is_renewed_behind_before_it_ends() {
    let amazon = Amazon::start().await;
    let running = tokio::spawn(Arc::clone(&amazon.upstream).run(std::future::pending()));
    assert_eq!(amazon.head("a").await, Ok(7));
    later(10 * HOUR).await;
    let renewed = async {
        while amazon.asked() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(30), renewed).await.expect("it is asked without any request");
    amazon.takes_only(2);
    // The renewed login is in use once its answer has been read.
    while amazon.head("a").await.is_err() {}
    assert_eq!(amazon.asked(), 2);
    running.abort();
}

#[tokio::test]
async fn the_old_login_stays_while_the_cloud_fails() {
    let amazon = Amazon::start().await;
    assert_eq!(amazon.head("a").await, Ok(7));
    amazon.fails_with(503);
    later(13 * HOUR).await;
    for _ in 0..20 {
        assert_eq!(amazon.head("a").await, Ok(7), "it is past its end, and the registry takes it");
    }
    // More would take fifteen seconds.
    assert!(amazon.asked() <= 5, "the cloud is left alone for a while, and longer each time");

    amazon.takes_only(2);
    let before = amazon.ecr.seen().len();
    let refused = error_of(amazon.head("a").await);
    assert_eq!((&refused, refused.is_outage()), (&Error::LoginRefused, true));
    assert_eq!(amazon.ecr.seen().len(), before + 1, "what was refused is not shown again at once");
    assert_eq!(amazon.head("denied/a").await, Err(Error::LoginRefused), "it is no word about the image");

    amazon.fails_with(0);
    later(Duration::from_secs(10)).await;
    assert_eq!(amazon.head("a").await, Ok(7));
    amazon.takes_only(3);
    assert_eq!(amazon.head("denied/a").await, Err(Error::Denied), "to a login that lasts it is");
}

#[tokio::test]
async fn a_login_that_is_refused_before_its_end_is_renewed_once() {
    let amazon = Amazon::start().await;
    assert_eq!(amazon.head("a").await, Ok(7));
    amazon.takes_only(2);
    assert_eq!(amazon.head("a").await, Err(Error::LoginRefused), "it is new: another would be refused too");
    assert_eq!(amazon.asked(), 1);

    later(Duration::from_secs(60)).await;
    assert_eq!(amazon.head("a").await, Ok(7));
    assert_eq!(amazon.asked(), 2);
    amazon.takes_only(9);
    let before = amazon.ecr.seen().len();
    assert_eq!(amazon.head("a").await, Err(Error::LoginRefused));
    assert_eq!((amazon.asked(), amazon.ecr.seen().len() - before), (2, 1));
}

#[tokio::test]
async fn without_a_login_the_error_says_who_refused_it_and_no_secret() {
    let amazon = Amazon::start().await;
    amazon.fails_with(400);
    let error = error_of(amazon.head("a").await);
    let code = "AccessDeniedException".into();
    assert_eq!(error, Error::NoLogin(NoLogin::Refused { service: "Amazon ECR", status: 400, code }));
    assert!(error.is_outage() && !format!("{error} {error:?}").contains(SECRET));
    for _ in 0..20 {
        assert_eq!(amazon.head("a").await, Err(error.clone()));
    }
    assert!(amazon.asked() <= 4 && amazon.ecr.seen().is_empty(), "neither is asked in vain");

    amazon.fails_with(0);
    later(Duration::from_secs(10)).await;
    assert_eq!(amazon.head("a").await, Ok(7));
}

#[tokio::test]
async fn a_cloud_that_never_answers_is_found_out_though_no_request_waits_so_long() {
    let amazon = Amazon::start_with((Duration::from_millis(500), Duration::from_millis(20))).await;
    amazon.fails_with(1);
    let mut error = error_of(amazon.head("a").await);
    assert_eq!(error, Error::Timeout);
    // It is one call all the time; one more is for a machine that does much else.
    while error == Error::Timeout && amazon.asked() <= 2 {
        error = error_of(amazon.head("a").await);
    }
    let cause = "not in time".into();
    assert_eq!(error, Error::NoLogin(NoLogin::Unanswered { service: "Amazon ECR", cause }));
}

#[tokio::test]
async fn a_hostile_answer_is_an_error_and_is_not_followed_elsewhere() {
    let elsewhere = Fake::start(|_| Reply::ok("{}")).await;
    let target = elsewhere.url();
    let check = async |answer: &(dyn Fn() -> Reply + Send + Sync), expected: NoLogin| {
        let answers = std::sync::Mutex::new(Some(answer()));
        let api = Fake::start(move |_| answers.lock().unwrap().take().unwrap()).await;
        let (keys, ecr) = (profile(), Fake::start(|_| Reply::ok("content")).await);
        let upstream =
            upstream_with(&[&ecr.url()], |config| config.credentials = Some(ecr_login(&keys, &api)));
        let error = error_of(upstream.head_blob(&client(), &name("a"), &digest_of(b"content")).await);
        assert_eq!(error, Error::NoLogin(expected));
        assert_eq!(ecr.seen().len(), 0);
    };
    let service = "Amazon ECR";
    let malformed = |what| NoLogin::Malformed { service, what };
    let code = "without an error code".into();
    check(&|| Reply::redirect(&target), NoLogin::Refused { service, status: 307, code }).await;
    check(&|| Reply::ok("<html>"), malformed("no JSON")).await;
    check(&|| Reply::ok("{}"), malformed("no token")).await;
    let large = "x".repeat(64 * 1024 + 1);
    check(&|| Reply::ok(large.clone()), malformed("a body larger than any of its kind")).await;
    check(&|| Reply::ok(large.clone()).without_length(), malformed("a body larger than any of its kind"))
        .await;
    assert_eq!(elsewhere.seen().len(), 0);
}
