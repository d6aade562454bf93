//! Logins: a user and a password against the users of `htpasswd`.
//!
//! A password check costs tens of milliseconds of CPU by design, so checks run off the runtime, few at a time, and queue
//! by their owner (`password_checks`). A right login is remembered by its hash, together with the line of the file that
//! it was right for, and never waits; nor does one that was wrong a moment ago. What a client sends here may be its
//! registry's own secret (protocol.md B.7): it is never logged and never kept.
//!
//! The file is watched in the background: a request never touches it.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use lru::LruCache;
use tokio::task::{AbortHandle, spawn_blocking};
use tracing::{info, warn};

use super::htpasswd::{Hash, Users, is_cut_by_bcrypt};
use super::networks::client_network;
use super::password_checks::PasswordChecks;
use crate::bounded;
use crate::oci::{Algorithm, Digest};
use crate::singleflight::SingleFlight;
use crate::sync::lock;
use crate::telemetry::LogThrottle;
use crate::watch::Watch;

/// Bytes of memory for logins that were right, and as many for those that were wrong. A user has one right login, so that
/// nobody can push out those of others.
const REMEMBERED_BYTES_MAX: usize = 512 * 1024;
/// Bytes that one remembered login takes: its hash, and its entries in the list and the table of the cache.
const REMEMBERED_BYTES: usize = size_of::<Digest>() + 64;
/// Number of logins that are remembered.
const REMEMBERED_MAX: NonZeroUsize =
    NonZeroUsize::new(REMEMBERED_BYTES_MAX / REMEMBERED_BYTES).expect("not zero");
/// Longest encoded login that is read, user and password together, in bytes.
const LOGIN_BYTES_MAX: usize = 4096;

/// The logins of one `htpasswd` file, and what was found out about them.
pub(super) struct UserLogins {
    path: PathBuf,
    users: Arc<ArcSwap<Users>>,
    /// The task that reads the file again when it changes; it ends with this.
    follower: AbortHandle,
    checked: Arc<CheckedLogins>,
    checks: Arc<PasswordChecks>,
    /// Checks in progress: connections of one client with one login wait for one check.
    in_progress: SingleFlight<(IpAddr, Digest), CheckResult>,
    truncated: LogThrottle,
}

/// Logins that were checked, each with the bcrypt hash that it was checked against.
struct CheckedLogins {
    right: Mutex<LruCache<Digest, ()>>,
    wrong: Mutex<LruCache<Digest, ()>>,
}

/// What is known of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CheckResult {
    /// User and password belong together.
    Right,
    /// They do not, or there is no such user.
    Wrong,
    /// The password was not checked: too many checks were waiting.
    NotChecked,
}

impl UserLogins {
    /// The users of `path`, which are read again whenever the file changes. Must be called in a runtime.
    ///
    /// # Errors
    /// Names the line, and what was expected.
    pub(super) fn load(path: &Path) -> anyhow::Result<Self> {
        // Before the file is read: a change meanwhile must be noticed.
        let watch = Watch::new(vec![path.to_owned()]);
        let users = Arc::new(ArcSwap::from_pointee(Users::load(path)?));
        let follower = tokio::spawn(follow(watch, path.to_owned(), Arc::clone(&users))).abort_handle();
        let remembered = || Mutex::new(bounded::lru(REMEMBERED_MAX));
        Ok(Self {
            path: path.to_owned(),
            users,
            follower,
            checked: Arc::new(CheckedLogins { right: remembered(), wrong: remembered() }),
            checks: PasswordChecks::new(),
            in_progress: SingleFlight::default(),
            truncated: LogThrottle::default(),
        })
    }

    /// Whether these are the users of that file.
    pub(super) fn are_of(&self, path: &Path) -> bool {
        self.path == path
    }

    /// Checks a login of `client`, or looks it up.
    pub(super) async fn check(&self, client: IpAddr, user: &str, password: String) -> CheckResult {
        let hash = self.users.load().hash(user);
        if is_cut_by_bcrypt(&password) {
            self.warn_of_truncation(client, user, &hash);
            return CheckResult::Wrong;
        }
        let login = format!("{} {user} {} {password} {}", user.len(), password.len(), hash.text());
        let login = Digest::of(Algorithm::Sha256, login.as_bytes());
        match self.checked.result(&login) {
            Some(result) => result,
            None => self.check_hash(client, user, password, hash, login).await,
        }
    }

    async fn check_hash(
        &self,
        client: IpAddr,
        user: &str,
        password: String,
        hash: Hash,
        login: Digest,
    ) -> CheckResult {
        let (checks, checked, user) = (Arc::clone(&self.checks), Arc::clone(&self.checked), user.to_owned());
        let work = |_| async move {
            let Some(turn) = checks.turn(client, &user).await else { return CheckResult::NotChecked };
            // The same login may have been checked meanwhile, for another address.
            if let Some(result) = checked.result(&login) {
                return result;
            }
            match spawn_blocking(move || hash.is_of(&password)).await {
                Ok(true) => {
                    lock(&checked.right).put(login, ());
                    CheckResult::Right
                }
                Ok(false) => {
                    lock(&checked.wrong).put(login, ());
                    turn.was_wrong();
                    CheckResult::Wrong
                }
                Err(_) => CheckResult::NotChecked,
            }
        };
        let (result, _) = self.in_progress.run((client_network(client), login), work).await;
        result.unwrap_or(CheckResult::NotChecked)
    }

    /// Tells the operator of a password that is wrong only because bcrypt would not see all of it. The user's name is
    /// logged if it is one of the file's: any other may be a secret.
    fn warn_of_truncation(&self, client: IpAddr, user: &str, hash: &Hash) {
        if self.truncated.is_due() {
            let user = if hash.is_of_user() { user } else { "of no user" };
            warn!(%client, user, "a password of more than 72 bytes, or with a zero byte, is refused: bcrypt takes a part of it for the whole");
        }
    }
}

impl Drop for UserLogins {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl CheckedLogins {
    /// What is known of a login.
    fn result(&self, login: &Digest) -> Option<CheckResult> {
        if lock(&self.right).get(login).is_some() {
            return Some(CheckResult::Right);
        }
        lock(&self.wrong).get(login).map(|()| CheckResult::Wrong)
    }
}

/// Reads the users again whenever their file changes.
async fn follow(mut watch: Watch, path: PathBuf, users: Arc<ArcSwap<Users>>) {
    loop {
        watch.changed().await;
        let file = path.clone();
        let loaded =
            spawn_blocking(move || Users::load(&file)).await.unwrap_or_else(|fault| Err(fault.into()));
        match loaded {
            Ok(loaded) => {
                info!(file = %path.display(), users = loaded.count(), "htpasswd has changed and is read again");
                users.store(Arc::new(loaded));
            }
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "htpasswd has changed and cannot be read; the users before stay"
                );
            }
        }
    }
}

/// User and password of a Basic `Authorization` (RFC 7617), if the request has one that can be read.
pub(super) fn basic_login(headers: &HeaderMap) -> Option<(String, String)> {
    let header = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") || encoded.len() > LOGIN_BYTES_MAX {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}
