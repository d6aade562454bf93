//! Who may use the data plane: by network (`allow`) and by name (`htpasswd`).
//!
//! A password check costs tens of milliseconds of CPU by design, so checks run off the runtime, few at a time, and queue
//! by whose they are (`queue`). A login that was right is remembered by its hash, together with the line of the
//! file that it was right for, and never waits; nor does one that was wrong a moment ago. What a client sends here may be
//! its registry's own secret (protocol.md B.7): it is never logged and never kept.
//!
//! The file is looked at in the background: a request never touches it.

mod htpasswd;
mod queue;

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use ipnet::IpNet;
use lru::LruCache;
use tokio::task::{AbortHandle, spawn_blocking};
use tracing::{info, warn};

use super::seats::{Rarely, network};
use crate::bounded;
use crate::oci::{Algorithm, Digest};
use crate::singleflight::SingleFlight;
use crate::sync::lock;
use crate::watch::Watch;

use htpasswd::{Hash, Users, is_cut_by_bcrypt};
use queue::Checks;

/// Memory for logins that were right, and as much for those that were wrong. A user has one right login, so that nobody
/// can push out those of others.
const REMEMBERED_BYTES_MAX: usize = 512 * 1024;
/// What one of them takes: its hash, and the list and the table of the cache.
const REMEMBERED_BYTES: usize = size_of::<Digest>() + 64;
/// Logins that fit into it.
const REMEMBERED_MAX: NonZeroUsize =
    NonZeroUsize::new(REMEMBERED_BYTES_MAX / REMEMBERED_BYTES).expect("not zero");
/// Bytes of a login that are looked at: user and password, encoded.
const LOGIN_BYTES_MAX: usize = 4096;

/// The guard of the data plane.
pub(crate) struct Access {
    allow: Vec<IpNet>,
    logins: Option<Arc<Logins>>,
}

struct Logins {
    path: PathBuf,
    users: Arc<ArcSwap<Users>>,
    /// Reads the file again when it changes; ends with this.
    follower: AbortHandle,
    checked: Arc<Checked>,
    checks: Arc<Checks>,
    /// Checks under way: connections of one client with one login wait for one check.
    under_way: SingleFlight<(IpAddr, Digest), Outcome>,
    cut: Rarely,
}

/// Logins that were checked, each with the bcrypt hash that it was checked against.
struct Checked {
    right: Mutex<LruCache<Digest, ()>>,
    wrong: Mutex<LruCache<Digest, ()>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Right,
    Wrong,
    /// There were too many checks before it.
    NotChecked,
}

/// What the guard says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Come in, under this name if one is asked for.
    Allowed(Option<String>),
    /// Not from this address.
    WrongAddress,
    /// Log in first, or with another password.
    LogIn,
    /// Try again: too many logins are being checked.
    Busy,
}

/// Checks that `htpasswd` can be read.
///
/// # Errors
/// Names the line, and what was expected.
pub(crate) fn check(htpasswd: Option<&Path>) -> anyhow::Result<()> {
    htpasswd.map_or(Ok(()), |path| Users::load(path).map(drop))
}

impl Access {
    /// A guard for `allow` and the users of `htpasswd`. If the guard `before` this one has the same file, it looks
    /// after that already. To be called in a runtime.
    pub(crate) fn load(
        allow: &[IpNet],
        htpasswd: Option<&Path>,
        before: Option<&Self>,
    ) -> anyhow::Result<Self> {
        let known = before.and_then(|before| before.logins.as_ref());
        let logins = htpasswd.map(|path| match known.filter(|known| known.path == path) {
            Some(known) => Ok(Arc::clone(known)),
            None => Logins::load(path).map(Arc::new),
        });
        Ok(Self { allow: allow.to_vec(), logins: logins.transpose()? })
    }

    /// Judges a request of `client`.
    pub(crate) async fn judge(&self, client: IpAddr, headers: &HeaderMap) -> Verdict {
        let client = client.to_canonical();
        if !self.allow.is_empty() && !self.allow.iter().any(|network| network.contains(&client)) {
            return Verdict::WrongAddress;
        }
        let Some(logins) = &self.logins else { return Verdict::Allowed(None) };
        let Some((user, password)) = login(headers) else { return Verdict::LogIn };
        logins.check(client, user, password).await
    }
}

impl Logins {
    fn load(path: &Path) -> anyhow::Result<Self> {
        // Before it is read: what happens to it meanwhile must be noticed.
        let watch = Watch::new(vec![path.to_owned()]);
        let users = Arc::new(ArcSwap::from_pointee(Users::load(path)?));
        let follower = tokio::spawn(follow(watch, path.to_owned(), Arc::clone(&users))).abort_handle();
        let remembered = || Mutex::new(bounded::lru(REMEMBERED_MAX));
        Ok(Self {
            path: path.to_owned(),
            users,
            follower,
            checked: Arc::new(Checked { right: remembered(), wrong: remembered() }),
            checks: Checks::new(),
            under_way: SingleFlight::default(),
            cut: Rarely::default(),
        })
    }

    async fn check(&self, client: IpAddr, user: String, password: String) -> Verdict {
        let hash = self.users.load().hash(&user);
        if is_cut_by_bcrypt(&password) {
            self.refuse_cut(client, &user, &hash);
            return Verdict::LogIn;
        }
        let login = format!("{} {user} {} {password} {}", user.len(), password.len(), hash.text());
        let login = Digest::of(Algorithm::Sha256, login.as_bytes());
        let outcome = match self.checked.outcome(&login) {
            Some(outcome) => outcome,
            None => self.check_hash(client, &user, password, hash, login).await,
        };
        match outcome {
            Outcome::Right => Verdict::Allowed(Some(user)),
            Outcome::Wrong => Verdict::LogIn,
            Outcome::NotChecked => Verdict::Busy,
        }
    }

    async fn check_hash(
        &self,
        client: IpAddr,
        user: &str,
        password: String,
        hash: Hash,
        login: Digest,
    ) -> Outcome {
        let (checks, checked, user) = (Arc::clone(&self.checks), Arc::clone(&self.checked), user.to_owned());
        let work = |_| async move {
            let Some(turn) = checks.turn(client, &user).await else { return Outcome::NotChecked };
            // The same login may have been checked meanwhile, for another address.
            if let Some(outcome) = checked.outcome(&login) {
                return outcome;
            }
            match spawn_blocking(move || hash.is_of(&password)).await {
                Ok(true) => {
                    lock(&checked.right).put(login, ());
                    Outcome::Right
                }
                Ok(false) => {
                    lock(&checked.wrong).put(login, ());
                    turn.was_wrong();
                    Outcome::Wrong
                }
                Err(_) => Outcome::NotChecked,
            }
        };
        let (outcome, _) = self.under_way.run((network(client), login), work).await;
        outcome.unwrap_or(Outcome::NotChecked)
    }

    /// A password that is wrong only because bcrypt does not see all of it should not be a riddle. The name is told if it
    /// is one of the file's: any other may be a secret.
    fn refuse_cut(&self, client: IpAddr, user: &str, hash: &Hash) {
        if self.cut.is_time() {
            let user = if hash.is_of_user { user } else { "of no user" };
            warn!(%client, user, "a password of more than 72 bytes, or with a zero byte, is refused: bcrypt takes a part of it for the whole");
        }
    }
}

impl Drop for Logins {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl Checked {
    /// What is known of a login.
    fn outcome(&self, login: &Digest) -> Option<Outcome> {
        if lock(&self.right).get(login).is_some() {
            return Some(Outcome::Right);
        }
        lock(&self.wrong).get(login).map(|()| Outcome::Wrong)
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

/// User and password of a Basic `Authorization`.
fn login(headers: &HeaderMap) -> Option<(String, String)> {
    let header = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") || encoded.len() > LOGIN_BYTES_MAX {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn basic(login: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, format!("Basic {}", STANDARD.encode(login)).parse().unwrap());
        headers
    }

    fn allowed() -> Verdict {
        Verdict::Allowed(Some("anna".to_owned()))
    }

    fn htpasswd(lines: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(lines.as_bytes()).unwrap();
        file
    }

    #[tokio::test]
    async fn networks_and_logins_are_checked() {
        let hash = bcrypt::hash("secret", 4).unwrap();
        let file = htpasswd(&format!("# users\nanna:{hash}\n"));
        let access = Access::load(&["10.0.0.0/8".parse().unwrap()], Some(file.path()), None).unwrap();
        let check = async |client: &str, headers: HeaderMap, expected: Verdict| {
            assert_eq!(
                access.judge(client.parse().unwrap(), &headers).await,
                expected,
                "{client} {headers:?}"
            );
        };
        check("10.1.2.3", basic("anna:secret"), allowed()).await;
        check("::ffff:10.1.2.3", basic("anna:secret"), allowed()).await;
        check("192.168.1.1", basic("anna:secret"), Verdict::WrongAddress).await;
        check("10.1.2.3", basic("anna:wrong"), Verdict::LogIn).await;
        check("10.1.2.3", basic("bert:secret"), Verdict::LogIn).await;
        check("10.1.2.3", basic("anna"), Verdict::LogIn).await;
        check("10.1.2.3", HeaderMap::new(), Verdict::LogIn).await;
    }

    #[tokio::test]
    async fn one_check_does_for_all_connections_with_a_login() {
        let file = htpasswd(&format!("anna:{}\n", bcrypt::hash("secret", 4).unwrap()));
        let access = Access::load(&[], Some(file.path()), None).unwrap();
        let access = Arc::new(access);
        let judge = async |logins: Vec<String>| {
            let judged = logins.into_iter().map(|login| {
                let access = Arc::clone(&access);
                tokio::spawn(async move { access.judge("10.0.0.1".parse().unwrap(), &basic(&login)).await })
            });
            let mut verdicts = Vec::new();
            for verdict in judged.collect::<Vec<_>>() {
                verdicts.push(verdict.await.unwrap());
            }
            verdicts
        };
        // More than may wait for one user, which they would with passwords of their own.
        let verdicts = judge(vec!["anna:secret".to_owned(); 100]).await;
        assert!(verdicts.iter().all(|verdict| *verdict == allowed()), "{verdicts:?}");
        let verdicts = judge((0..20).map(|at| format!("anna:{at}")).collect()).await;
        assert!(verdicts.contains(&Verdict::Busy) && verdicts.contains(&Verdict::LogIn), "{verdicts:?}");
        assert_eq!(judge(vec!["anna:secret".to_owned()]).await, [allowed()], "it is remembered");
    }
}
