//! Logins in a file, re-read when it changes.
//!
//! Secrets of Kubernetes and of password tools are replaced under a running daemon. The file's identity and time are
//! looked at every two seconds at most, off the runtime, and at once when the registry refuses what was in it. A file that
//! has become unreadable leaves the last good logins in force and says so once, because half of a rewrite must not become
//! an outage.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::docker_config::Logins;
use super::error::{Error, LoginSetupError};
use super::login::Login;
use crate::files;
use crate::net::secret::Secret;
use crate::oci::{Registry, RepoName};
use crate::watch::{Stamp, stamp};

/// How long a change of the file may go unseen.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The logins of one registry, from a file.
pub(crate) struct CredentialFile {
    source: Arc<Source>,
    state: Mutex<State>,
    /// Held while the file is looked at, so that what it said before never comes after what it says now.
    looking: tokio::sync::Mutex<()>,
}

/// A file, and how it becomes logins.
struct Source {
    path: PathBuf,
    /// The user whose password is the file; else the file is a `config.json`.
    username: Option<String>,
    registry: Registry,
}

struct State {
    logins: Arc<Logins>,
    stamp: Option<Stamp>,
    checked: Instant,
}

impl CredentialFile {
    /// Loads the logins for `registry` from a file: the password of `username`, or else a `config.json`.
    ///
    /// # Errors
    /// [`LoginSetupError`] when they cannot be read.
    pub(crate) fn load(
        path: &Path,
        username: Option<&str>,
        registry: &Registry,
    ) -> Result<Self, LoginSetupError> {
        let source = Arc::new(Source {
            path: path.to_owned(),
            username: username.map(str::to_owned),
            registry: registry.clone(),
        });
        let stamp = stamp(path).ok();
        let logins = Arc::new(source.read()?);
        let state = Mutex::new(State { logins, stamp, checked: Instant::now() });
        Ok(Self { source, state, looking: tokio::sync::Mutex::default() })
    }

    /// What an operator should know of what is in the file.
    pub(crate) fn warning(&self) -> Option<String> {
        self.source.warning(&self.lock().logins)
    }

    /// The login for a repository, if one applies.
    ///
    /// # Errors
    /// When a credential helper is to have it and fails.
    pub(crate) async fn find(&self, name: &RepoName) -> Result<Option<Login>, Error> {
        let logins = self.logins().await;
        match (logins.find(name), logins.helper()) {
            (Some(login), _) => Ok(Some(login.clone())),
            (None, Some(helper)) => helper.get().await,
            (None, None) => Ok(None),
        }
    }

    /// Whether one may apply to a repository; no helper is asked.
    pub(crate) async fn applies_to(&self, name: &RepoName) -> bool {
        let logins = self.logins().await;
        logins.helper().is_some() || logins.find(name).is_some()
    }

    /// Notes that the registry refused `login`. True if the file has another by now, or a helper may have one.
    pub(crate) async fn refused(&self, login: &Login) -> bool {
        self.look().await;
        let logins = self.logins().await;
        let is_in_file = logins.all().any(|(_, current)| current == login);
        !is_in_file && logins.helper().is_none_or(|helper| helper.refused(login))
    }

    /// What the file says, looked at if it is time to.
    async fn logins(&self) -> Arc<Logins> {
        if self.is_due() {
            self.look().await;
        }
        self.lock().logins.clone()
    }

    /// Reads the file if it has changed.
    async fn look(&self) {
        let _looking = self.looking.lock().await;
        let (source, known) = (Arc::clone(&self.source), self.lock().stamp);
        let found = tokio::task::spawn_blocking(move || source.read_if_changed(known)).await;
        if let Ok(Some((stamp, logins))) = found {
            let mut state = self.lock();
            state.stamp = Some(stamp);
            state.logins = logins.map_or_else(|| state.logins.clone(), Arc::new);
        }
    }

    /// Every login, with the path that it is for, and that of a helper.
    ///
    /// # Errors
    /// When a credential helper is to have one and fails.
    pub(crate) async fn all(&self) -> Result<Vec<(String, Login)>, Error> {
        let logins = self.logins().await;
        let mut all: Vec<_> = logins.all().map(|(path, login)| (path.to_owned(), login.clone())).collect();
        if let Some(helper) = logins.helper()
            && all.iter().all(|(path, _)| !path.is_empty())
        {
            all.extend(helper.get().await?.map(|login| (String::new(), login)));
        }
        Ok(all)
    }

    /// Whether it is time to look; the others go on with what there is meanwhile.
    fn is_due(&self) -> bool {
        let mut state = self.lock();
        let now = Instant::now();
        let is_due = now.duration_since(state.checked) >= CHECK_INTERVAL;
        if is_due {
            state.checked = now;
        }
        is_due
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing is left half-done under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    /// What there is now if it has another stamp than `known`; without logins if it cannot be used.
    fn read_if_changed(&self, known: Option<Stamp>) -> Option<(Stamp, Option<Logins>)> {
        // A file that is away, as between two steps of a replacement, is looked at again later.
        let stamp = stamp(&self.path).ok()?;
        if known == Some(stamp) {
            return None;
        }
        match self.read() {
            Ok(logins) => {
                tracing::info!(registry = %self.registry, path = %self.path.display(), "credentials were re-read");
                if let Some(warning) = self.warning(&logins) {
                    tracing::warn!("{warning}");
                }
                Some((stamp, Some(logins)))
            }
            Err(error) => {
                tracing::warn!(registry = %self.registry, %error, "changed credentials cannot be used; the old ones stay");
                Some((stamp, None))
            }
        }
    }

    fn read(&self) -> Result<Logins, LoginSetupError> {
        let unreadable = |source| LoginSetupError::Read { path: self.path.clone(), source };
        let text = files::read_text(&self.path).map_err(unreadable)?;
        let Some(username) = &self.username else {
            let wrong = |why| LoginSetupError::Logins { path: self.path.clone(), why };
            return Logins::parse(&text, &self.registry).map_err(wrong);
        };
        let password = text.trim_end_matches(['\r', '\n']).to_owned();
        if password.is_empty() {
            return Err(LoginSetupError::Content { path: self.path.clone(), expected: "a password" });
        }
        Ok(Logins::single(Login::Basic { username: username.clone(), password: Secret::new(password) }))
    }

    /// What an operator should know of what was read.
    fn warning(&self, logins: &Logins) -> Option<String> {
        logins.is_empty().then(|| {
            format!(
                "{} has no login for {}, so that it is asked as anybody: look at how its host is written there",
                self.path.display(),
                self.registry
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use super::*;

    fn replace(path: &Path, content: &str) {
        let mut file = fs::File::create(path).unwrap();
        file.write_all(content.as_bytes()).unwrap();
    }

    async fn password(credentials: &CredentialFile) -> Option<String> {
        match credentials.find(&RepoName::parse("a/b").unwrap()).await.unwrap()? {
            Login::Basic { password, .. } => Some(password.expose().to_owned()),
            Login::IdentityToken(token) | Login::RegistryToken(token) => Some(token.expose().to_owned()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_re_read_and_a_broken_one_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        replace(&path, "one\n");
        let credentials = CredentialFile::load(&path, Some("u"), &Registry::parse("h").unwrap()).unwrap();
        assert_eq!(password(&credentials).await.as_deref(), Some("one"));

        replace(&path, "other");
        assert_eq!(password(&credentials).await.as_deref(), Some("one"), "not looked at yet");
        tokio::time::advance(CHECK_INTERVAL).await;
        assert_eq!(password(&credentials).await.as_deref(), Some("other"));

        replace(&path, "");
        tokio::time::advance(CHECK_INTERVAL).await;
        assert_eq!(
            password(&credentials).await.as_deref(),
            Some("other"),
            "an empty password is no password"
        );
        fs::remove_file(&path).unwrap();
        tokio::time::advance(CHECK_INTERVAL).await;
        assert_eq!(password(&credentials).await.as_deref(), Some("other"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_seen_even_if_length_and_time_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        replace(&path, "one");
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        let credentials = CredentialFile::load(&path, Some("u"), &Registry::parse("h").unwrap()).unwrap();
        let new = folder.path().join("new");
        replace(&new, "two");
        fs::File::options().write(true).open(&new).unwrap().set_modified(time).unwrap();
        fs::rename(&new, &path).unwrap();
        tokio::time::advance(CHECK_INTERVAL).await;
        assert_eq!(password(&credentials).await.as_deref(), Some("two"));
    }

    #[test]
    fn what_cannot_be_read_at_first_is_an_error_without_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let load = || {
            let loaded = CredentialFile::load(&path, None, &Registry::parse("h").unwrap());
            loaded.map(|_| ()).unwrap_err().to_string()
        };
        assert!(load().starts_with("cannot read"));
        replace(&path, r#"{"auths": "hunter2""#);
        let error = load();
        assert!(error.contains("not a Docker config.json") && !error.contains("hunter2"), "{error}");
    }
}
