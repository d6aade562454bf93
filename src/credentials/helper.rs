//! Logins that a program keeps or makes: Docker's credential helpers, `docker-credential-NAME`.
//!
//! The program is found in `PATH` and run as `docker-credential-NAME get`, without a shell, in berth's own environment.
//! It reads the registry's name and writes a login in JSON. What it says is kept for some minutes, or until the registry
//! refuses it (`renewing`).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::command::{self, Ran};
use super::error::{Error, NoLogin};
use super::login::Login;
use super::renewing::{Answer, Expiring, FRESH, Renewing};
use crate::net::secret::Secret;
use crate::oci::Registry;

/// Longest name; real ones have some ten characters.
const NAME_BYTES_MAX: usize = 64;
/// How long an answer is good. The shortest tokens of clouds live for an hour.
const KEPT: Duration = Duration::from_secs(300);
/// What Docker calls its Hub when it talks to helpers.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// How every helper says that it has no login.
const NOT_FOUND: &str = "credentials not found";
/// The user name that says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// The helper of one registry.
pub(crate) struct Helper {
    program: Arc<Program>,
    /// What it said: a login, or that it has none.
    kept: Renewing<Option<Login>>,
}

/// A program, and what it is asked.
struct Program {
    name: String,
    server: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Reply {
    username: String,
    secret: String,
}

impl Helper {
    /// The helper of that name; `None` if the name could be a path or an option.
    pub(crate) fn named(name: &str, registry: &Registry) -> Option<Self> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_plain) {
            return None;
        }
        let server = if registry.as_str() == Registry::DOCKER_HUB { DOCKER_HUB } else { registry.as_str() };
        Some(Self::new(format!("docker-credential-{name}"), server.to_owned(), registry.clone()))
    }

    fn new(name: String, server: String, registry: Registry) -> Self {
        Self { program: Arc::new(Program { name, server }), kept: Renewing::new(registry, FRESH) }
    }

    /// The login, if the helper has one.
    ///
    /// # Errors
    /// [`NoLogin::Helper`] when it never answered and fails.
    pub(crate) async fn get(&self) -> Result<Option<Login>, Error> {
        let program = Arc::clone(&self.program);
        let ask = |_| async move { Ok(Expiring::new(program.ask().await?, KEPT)) as Answer<_> };
        self.kept.get(ask).await
    }

    /// Notes that the registry refused `login`. True if there may be another.
    pub(crate) fn refused(&self, login: &Login) -> bool {
        self.kept.refused(&Some(login.clone()))
    }
}

impl Program {
    async fn ask(&self) -> Result<Option<Login>, NoLogin> {
        let failed = |what| NoLogin::Helper { program: self.name.as_str().into(), what };
        let ran = command::run(&self.name, &["get"], &self.server).await;
        let Ran { is_success, output } = ran.map_err(failed)?;
        // What else it says may repeat a secret.
        if !is_success {
            let has_none = String::from_utf8_lossy(&output).contains(NOT_FOUND);
            return if has_none { Ok(None) } else { Err(failed("failed")) };
        }
        let Reply { username, secret } =
            serde_json::from_slice(&output).map_err(|_| failed("wrote something else than a login"))?;
        if secret.is_empty() {
            return Ok(None);
        }
        let secret = Secret::new(secret);
        Ok(Some(if username == TOKEN_USER {
            Login::IdentityToken(secret)
        } else {
            Login::Basic { username, password: secret }
        }))
    }
}

impl fmt::Debug for Helper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.program.name)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, Permissions};
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use tokio::time::{advance, pause, resume};

    use super::*;

    /// A helper that notes what it was asked, and answers with what is in a file.
    fn helper(folder: &Path) -> Helper {
        let program = folder.join("helper");
        let here = folder.display();
        let script = format!("#!/bin/sh\n(echo \"$1 $(cat)\") >>{here}/asked\n. {here}/answer\n");
        write(&folder.join("script"), &script);
        // A program that this process writes itself could still be open in what another test has forked.
        let copied = std::process::Command::new("cp").arg(folder.join("script")).arg(&program).status();
        assert!(copied.unwrap().success());
        fs::set_permissions(&program, Permissions::from_mode(0o700)).unwrap();
        let registry = Registry::parse("r.example").unwrap();
        Helper::new(program.to_str().unwrap().to_owned(), "r.example".to_owned(), registry)
    }

    fn write(path: &Path, text: &str) {
        File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    async fn later(time: Duration) {
        pause();
        advance(time).await;
        resume();
    }

    fn login(password: &str) -> Login {
        Login::Basic { username: "u".to_owned(), password: Secret::new(password.to_owned()) }
    }

    #[tokio::test]
    async fn an_answer_is_kept_and_asked_for_anew_when_it_is_old_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let helper = helper(folder.path());
        let answers = |text: &str| write(&folder.path().join("answer"), text);
        let asked = || fs::read_to_string(folder.path().join("asked")).unwrap().lines().count();
        answers(r#"echo '{"ServerURL": "r.example", "Username": "u", "Secret": "one"}'"#);
        for _ in 0..2 {
            assert_eq!(helper.get().await, Ok(Some(login("one"))));
        }
        let text = fs::read_to_string(folder.path().join("asked")).unwrap();
        assert_eq!(text, "get r.example\n");

        answers(r#"echo '{"Username": "u", "Secret": "two"}'"#);
        assert!(!helper.refused(&login("one")), "it was got a moment ago");
        assert_eq!(helper.get().await, Ok(Some(login("one"))));
        later(FRESH).await;
        assert!(helper.refused(&login("one")));
        assert_eq!((helper.get().await, asked()), (Ok(Some(login("two"))), 2));
        assert!(helper.refused(&login("one")), "another has come meanwhile");

        answers("echo oops; exit 1");
        later(KEPT).await;
        assert_eq!((helper.get().await, asked()), (Ok(Some(login("two"))), 3));
        answers(r#"echo '{"Username": "<token>", "Secret": "three"}'"#);
        later(Duration::from_secs(10)).await;
        let token = Login::IdentityToken(Secret::new("three".to_owned()));
        assert_eq!(helper.get().await, Ok(Some(token)));
    }

    #[tokio::test]
    async fn what_is_no_login_is_an_error_that_repeats_nothing() {
        let check = async |answer: &str, expected: Option<&str>| {
            let folder = tempfile::tempdir().unwrap();
            let helper = helper(folder.path());
            write(&folder.path().join("answer"), answer);
            match (helper.get().await, expected) {
                (Ok(None), None) => {}
                (Err(error), Some(expected)) => {
                    let text = error.to_string();
                    assert!(text.ends_with(expected) && !text.contains("hunter2"), "{text}");
                }
                (answered, _) => panic!("{answer}: {answered:?}"),
            }
        };
        check("echo 'credentials not found in native keychain'; exit 1", None).await;
        check(r#"echo '{"Username": "", "Secret": ""}'"#, None).await;
        check("echo hunter2; exit 1", Some("failed")).await;
        check("echo hunter2", Some("wrote something else than a login")).await;
        check("head -c 100000 /dev/zero", Some("wrote too much")).await;
    }

    #[test]
    fn names_are_no_paths() {
        let registry = Registry::parse("r.example").unwrap();
        let check = |name: &str, expected: bool| {
            assert_eq!(Helper::named(name, &registry).is_some(), expected, "{name}");
        };
        check("ecr-login", true);
        check("", false);
        check("../x", false);
        check("a b", false);
        check(&"x".repeat(NAME_BYTES_MAX + 1), false);
    }
}
