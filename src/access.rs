//! Who is asking at the data plane, and what they may do.
//!
//! A request is judged in two steps, with routing between them. [`Access::authenticate`] says who is asking, by network
//! (`[http] allow`) and by login (`htpasswd`). Then the path becomes a route. Then [`Access::authorize`] says whether this
//! principal may do that to that repository. So a client that is not let in is refused before its path is read, and learns
//! nothing of what there is.
//!
//! So far all principals have the same rights: the repositories that the `repositories` of each `[[upstream]]` let
//! through. Roles, tokens and an audit log have their place here.
//!
//! This room decides and writes no response: `http` uses it, and turns a refusal into one. It uses `oci` for repositories,
//! and `watch` for the file of users, and knows nothing of content.

mod htpasswd;
mod logins;
pub mod networks;
mod password_checks;
mod peers;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use http::HeaderMap;
use ipnet::IpNet;

use crate::oci::Repo;
use crate::oci::route::Registries;

pub use peers::{Peer, Peers};

use htpasswd::Users;
use logins::{CheckResult, UserLogins, basic_login};

/// The rules of one configuration: who is let in, and to which repositories.
pub struct Access {
    allow: Vec<IpNet>,
    logins: Option<Arc<UserLogins>>,
    peers: Peers,
    /// The registries, with the repositories of each that may be pulled.
    registries: Arc<Registries>,
}

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// A client that needs no login.
    Anonymous,
    /// A user of `htpasswd`, by name.
    User(String),
}

/// Why a client is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unauthenticated {
    /// Its address is in no network of `allow`.
    WrongAddress,
    /// It has no login, or a wrong one.
    LoginNeeded,
    /// Its password was not checked, because too many others are waiting to be.
    Busy,
}

/// What a principal wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// To ask whether this is a registry, and what it can do.
    Ping,
    /// To list repositories.
    Catalog,
    /// To read content or lists of one repository.
    Pull,
}

/// The principal may not do that to this repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denied;

/// Checks that `htpasswd` can be read.
///
/// # Errors
/// Names the line, and what was expected.
pub fn check(htpasswd: Option<&Path>) -> anyhow::Result<()> {
    htpasswd.map_or(Ok(()), |path| Users::load(path).map(drop))
}

impl Principal {
    /// The name of the user who has logged in.
    pub fn user(&self) -> Option<&str> {
        match self {
            Self::Anonymous => None,
            Self::User(name) => Some(name),
        }
    }
}

impl Access {
    /// The rules of `allow`, of the users of `htpasswd`, and of `registries`; `peers` may speak for their clients. If the
    /// rules `before` have the same file of users, what is known of their logins is taken over. Must be called in a
    /// runtime.
    ///
    /// # Errors
    /// Names the line of `htpasswd`, and what was expected.
    pub fn load(
        allow: &[IpNet],
        htpasswd: Option<&Path>,
        peers: &[Peer],
        registries: Arc<Registries>,
        before: Option<&Self>,
    ) -> anyhow::Result<Self> {
        let known = before.and_then(|before| before.logins.as_ref());
        let logins = htpasswd.map(|path| match known.filter(|known| known.are_of(path)) {
            Some(known) => Ok(Arc::clone(known)),
            None => UserLogins::load(path).map(Arc::new),
        });
        let (allow, peers) = (allow.to_vec(), Peers::new(peers));
        Ok(Self { allow, logins: logins.transpose()?, peers, registries })
    }

    /// Finds out who is asking, by the address and the headers of a request.
    ///
    /// # Errors
    /// [`Unauthenticated`].
    pub async fn authenticate(
        &self,
        client: IpAddr,
        headers: &HeaderMap,
    ) -> Result<Principal, Unauthenticated> {
        let client = client.to_canonical();
        if !self.allow.is_empty() && !networks::contain(&self.allow, client) {
            return Err(Unauthenticated::WrongAddress);
        }
        let Some(logins) = &self.logins else { return Ok(Principal::Anonymous) };
        let Some((user, password)) = basic_login(headers) else { return Err(Unauthenticated::LoginNeeded) };
        match logins.check(client, &user, password).await {
            CheckResult::Right => Ok(Principal::User(user)),
            CheckResult::Wrong => Err(Unauthenticated::LoginNeeded),
            CheckResult::NotChecked => Err(Unauthenticated::Busy),
        }
    }

    /// Whether `principal` may do `action`, to `repository` if it is about one.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn authorize(
        &self,
        principal: &Principal,
        action: Action,
        repository: Option<&Repo>,
    ) -> Result<(), Denied> {
        // All of them have the same rights.
        let (Principal::Anonymous | Principal::User(_)) = principal;
        let may = match action {
            Action::Ping | Action::Catalog => true,
            Action::Pull => repository.is_none_or(|repo| self.registries.may_have(repo)),
        };
        if may { Ok(()) } else { Err(Denied) }
    }

    /// Whether a client that has proven to be `principal` is a berth that may speak for its own clients.
    pub fn is_peer(&self, client: IpAddr, principal: &Principal) -> bool {
        self.peers.have(client, principal.user())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use http::header::AUTHORIZATION;

    use super::*;
    use crate::oci::route::{KnownRegistry, Repositories};
    use crate::oci::{Image, Registry};

    fn basic(login: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, format!("Basic {}", STANDARD.encode(login)).parse().unwrap());
        headers
    }

    fn anna() -> Result<Principal, Unauthenticated> {
        Ok(Principal::User("anna".to_owned()))
    }

    fn access(allow: &[&str], htpasswd: Option<&Path>, repositories: Repositories) -> Access {
        let allow: Vec<_> = allow.iter().map(|network| network.parse().unwrap()).collect();
        let registry = Registry::parse("docker.io").unwrap();
        let known = KnownRegistry { registry, aliases: Vec::new(), hosts: Vec::new(), repositories };
        let registries = Arc::new(Registries::new(vec![known], None).unwrap());
        Access::load(&allow, htpasswd, &[], registries, None).unwrap()
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
        let access = access(&["10.0.0.0/8"], Some(file.path()), Repositories::default());
        let check = async |client: &str, headers: HeaderMap, expected: Result<Principal, Unauthenticated>| {
            let found = access.authenticate(client.parse().unwrap(), &headers).await;
            assert_eq!(found, expected, "{client} {headers:?}");
        };
        check("10.1.2.3", basic("anna:secret"), anna()).await;
        check("::ffff:10.1.2.3", basic("anna:secret"), anna()).await;
        check("192.168.1.1", basic("anna:secret"), Err(Unauthenticated::WrongAddress)).await;
        check("10.1.2.3", basic("anna:wrong"), Err(Unauthenticated::LoginNeeded)).await;
        check("10.1.2.3", basic("bert:secret"), Err(Unauthenticated::LoginNeeded)).await;
        check("10.1.2.3", basic("anna"), Err(Unauthenticated::LoginNeeded)).await;
        check("10.1.2.3", HeaderMap::new(), Err(Unauthenticated::LoginNeeded)).await;
    }

    #[tokio::test]
    async fn one_check_does_for_all_connections_with_a_login() {
        let file = htpasswd(&format!("anna:{}\n", bcrypt::hash("secret", 4).unwrap()));
        let access = Arc::new(access(&[], Some(file.path()), Repositories::default()));
        let authenticate = async |logins: Vec<String>| {
            let asked = logins.into_iter().map(|login| {
                let access = Arc::clone(&access);
                tokio::spawn(
                    async move { access.authenticate("10.0.0.1".parse().unwrap(), &basic(&login)).await },
                )
            });
            let mut found = Vec::new();
            for principal in asked.collect::<Vec<_>>() {
                found.push(principal.await.unwrap());
            }
            found
        };
        // More than may wait for one user, which they would with passwords of their own.
        let found = authenticate(vec!["anna:secret".to_owned(); 100]).await;
        assert!(found.iter().all(|found| *found == anna()), "{found:?}");
        let found = authenticate((0..20).map(|at| format!("anna:{at}")).collect()).await;
        assert!(
            found.contains(&Err(Unauthenticated::Busy)) && found.contains(&Err(Unauthenticated::LoginNeeded)),
            "{found:?}"
        );
        assert_eq!(authenticate(vec!["anna:secret".to_owned()]).await, [anna()], "it is remembered");
    }

    #[tokio::test]
    async fn a_principal_may_pull_what_repositories_let_through() {
        let denied = toml::from_str("deny = ['team/*']").unwrap();
        let access = access(&[], None, denied);
        let check = |action: Action, image: Option<&str>, expected: Result<(), Denied>| {
            let image: Option<Image> = image.map(|image| image.parse().unwrap());
            let repo = image.as_ref().map(|image| &image.repo);
            for principal in [Principal::Anonymous, Principal::User("anna".to_owned())] {
                assert_eq!(access.authorize(&principal, action, repo), expected, "{action:?} {repo:?}");
            }
        };
        check(Action::Pull, Some("library/alpine:3"), Ok(()));
        check(Action::Pull, Some("team/app:1"), Err(Denied));
        check(Action::Pull, None, Ok(()));
        check(Action::Catalog, None, Ok(()));
        check(Action::Ping, None, Ok(()));
    }
}
