//! Who may use the data plane: by network (`allow`) and by name (`htpasswd`).
//!
//! Passwords are bcrypt only. A check costs tens of milliseconds of CPU by design, so checks run off the
//! runtime, few at a time, and a login that was right is remembered by its hash, together with the line of the
//! file that it was right for. An unknown user costs as much as a wrong password. What a client sends here may be its registry's own secret
//! (protocol.md B.7): it is never logged and never kept.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use ipnet::IpNet;
use lru::LruCache;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::oci::{Algorithm, Digest};
use crate::sync::lock;
use crate::watch::{self, Stamp, stamp};

/// Password checks at once; more wait.
const CHECKS_MAX: usize = 2;
/// How long a login waits for its check; nobody is kept until a container runtime gives up.
const CHECK_WAIT_MAX: Duration = Duration::from_secs(10);
/// Logins remembered as right.
const REMEMBERED_MAX: usize = 1024;
/// Bytes of a login that are looked at; bcrypt itself uses 72 of the password.
const LOGIN_BYTES_MAX: usize = 4096;

/// The guard of the data plane.
pub(crate) struct Access {
    allow: Vec<IpNet>,
    logins: Option<Arc<Logins>>,
}

struct Logins {
    path: PathBuf,
    file: Mutex<Users>,
    /// Hashes of logins that were right, each with the bcrypt hash that it was right for.
    right: Mutex<LruCache<Digest, ()>>,
    checks: Semaphore,
}

struct Users {
    /// bcrypt hash by user.
    hashes: HashMap<String, String>,
    stamp: Option<Stamp>,
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

impl Access {
    /// A guard for `allow` and the users of `htpasswd`. If the guard `before` this one has the same file, it looks
    /// after that already.
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
        logins.check(user, password).await
    }
}

impl Logins {
    fn load(path: &Path) -> anyhow::Result<Self> {
        let users = Users::load(path)?;
        let right = LruCache::new(NonZeroUsize::new(REMEMBERED_MAX).expect("not zero"));
        Ok(Self {
            path: path.to_owned(),
            file: Mutex::new(users),
            right: Mutex::new(right),
            checks: Semaphore::new(CHECKS_MAX),
        })
    }

    async fn check(&self, user: String, password: String) -> Verdict {
        self.reload_if_changed();
        let (hash, is_known) = lock(&self.file).hash(&user);
        let login = format!("{} {user} {} {password} {hash}", user.len(), password.len());
        let login = Digest::of(Algorithm::Sha256, login.as_bytes());
        let was_right = || lock(&self.right).get(&login).is_some();
        if was_right() {
            return Verdict::Allowed(Some(user));
        }
        let Ok(Ok(_permit)) = timeout(CHECK_WAIT_MAX, self.checks.acquire()).await else {
            return Verdict::Busy;
        };
        // Of many connections with one login, the first has checked it for all.
        if was_right() {
            return Verdict::Allowed(Some(user));
        }
        let checking = spawn_blocking(move || bcrypt::verify(password, &hash).unwrap_or(false));
        let is_right = checking.await.unwrap_or(false) && is_known;
        if !is_right {
            return Verdict::LogIn;
        }
        lock(&self.right).put(login, ());
        Verdict::Allowed(Some(user))
    }

    fn reload_if_changed(&self) {
        if stamp(&self.path).ok() == lock(&self.file).stamp {
            return;
        }
        match Users::load(&self.path) {
            Ok(users) => {
                info!(file = %self.path.display(), users = users.hashes.len(), "htpasswd has changed and is read again");
                *lock(&self.file) = users;
            }
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "htpasswd has changed and cannot be read; the users before stay"
                );
                lock(&self.file).stamp = stamp(&self.path).ok();
            }
        }
    }
}

impl Users {
    fn load(path: &Path) -> anyhow::Result<Self> {
        let stamp = stamp(path).ok();
        let text = watch::read_text(path).with_context(|| format!("htpasswd {}", path.display()))?;
        let mut hashes = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let here = || format!("htpasswd {}: line {}", path.display(), number + 1);
            let (user, hash) =
                line.split_once(':').with_context(|| format!("{}: expected user:hash", here()))?;
            if !["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|prefix| hash.starts_with(prefix)) {
                bail!("{}: expected a bcrypt hash, as `htpasswd -B` makes", here());
            }
            hashes.insert(user.to_owned(), hash.to_owned());
        }
        Ok(Self { hashes, stamp })
    }

    /// The hash of a user's password, and whether there is such a user: without, it is the hash of somebody
    /// else, whose check takes as long.
    fn hash(&self, user: &str) -> (String, bool) {
        /// Of nothing that anybody can type, for a file without users.
        const NOBODY: &str = "$2b$10$abcdefghijklmnopqrstuuQ6sVhzcAs1BPvGZvRDEbDKy0v6kBJCi";
        match self.hashes.get(user) {
            Some(hash) => (hash.clone(), true),
            None => (self.hashes.values().next().map_or(NOBODY, String::as_str).to_owned(), false),
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

    #[test]
    fn only_bcrypt_is_taken() {
        let file = htpasswd("anna:$apr1$abc$def\n");
        let error = Access::load(&[], Some(file.path()), None).err().map(|error| error.to_string()).unwrap();
        assert!(error.contains("line 1") && error.contains("bcrypt"), "{error}");
    }
}
