//! `berth login-check`: whether the configured logins work, asked of their registries.

use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::bail;

use crate::cli::exit::{carry_out, complain};
use crate::cli::output::say;
use crate::config::{self, Overrides};
use crate::oci::image::InvalidImage;
use crate::oci::{Image, Reference, Registry, RepoName};
use crate::upstream::{Config, Error, Found, NoLogin, Party, State, Trial, Upstream, VaultProblem};

/// What is to be tried: all logins of a registry, or what a pull from one of its repositories asks for.
#[derive(Clone, Debug)]
pub(in crate::cli) struct CheckTarget {
    registry: Registry,
    repository: Option<(RepoName, Option<Reference>)>,
}

impl FromStr for CheckTarget {
    type Err = InvalidImage;

    fn from_str(text: &str) -> Result<Self, InvalidImage> {
        let Some((_, last)) = text.rsplit_once('/') else {
            return Ok(Self { registry: Registry::parse(text)?, repository: None });
        };
        let Image { repo, reference } = text.parse()?;
        let reference = Some(reference).filter(|_| last.contains([':', '@']));
        Ok(Self { registry: repo.registry, repository: Some((repo.name, reference)) })
    }
}

/// Tries the logins of the configuration in `file`: those that are `named`, or all.
pub(in crate::cli) fn run(file: Option<&Path>, named: &[CheckTarget]) -> ExitCode {
    let config = config::Config::load(file, &Overrides::default());
    match config.and_then(|config| choose(config.upstreams, named)) {
        Ok(upstreams) => carry_out(try_all(&upstreams, named)),
        Err(error) => complain(&error, 2),
    }
}

/// The upstreams that are named. Without names, those that have credentials, and one for the parents if these have any.
///
/// # Errors
/// When one that is named is not configured.
fn choose(upstreams: Vec<Config>, named: &[CheckTarget]) -> anyhow::Result<Vec<Config>> {
    let is_known = |name: &&CheckTarget| upstreams.iter().any(|upstream| upstream.registry == name.registry);
    if let Some(unknown) = named.iter().find(|name| !is_known(name)) {
        bail!("no [[upstream]] is configured for {}", unknown.registry);
    }
    // All have the same parents.
    let by_parents = upstreams.iter().find(|upstream| upstream.has_login());
    let by_parents = by_parents.map(|upstream| upstream.registry.clone());
    let is_chosen = |upstream: &Config| match named {
        [] => upstream.has_own_login() || by_parents.as_ref() == Some(&upstream.registry),
        named => named.iter().any(|target| target.registry == upstream.registry),
    };
    Ok(upstreams.into_iter().filter(is_chosen).collect())
}

/// Tries what is named of these, and says what came of each. Returns whether there is nothing to put right.
async fn try_all(upstreams: &[Config], named: &[CheckTarget]) -> anyhow::Result<bool> {
    if upstreams.is_empty() {
        say("no upstream has credentials")?;
    }
    let mut is_fine = true;
    for config in upstreams {
        is_fine &= try_one(config, named).await?;
    }
    Ok(is_fine)
}

async fn try_one(config: &Config, named: &[CheckTarget]) -> anyhow::Result<bool> {
    let registry = &config.registry;
    let upstream = match Upstream::build(config, Arc::new(|_, _| {})) {
        Ok(upstream) => upstream,
        Err(error) => {
            say(&format!("{registry}: {:#}", anyhow::Error::from(error)))?;
            return Ok(false);
        }
    };
    if upstream.state() == State::Offline {
        say(&format!("{registry}: skipped, because it is offline by configuration"))?;
        return Ok(true);
    }
    let named: Vec<_> = named.iter().filter(|target| target.registry == *registry).collect();
    let mut trials = Vec::new();
    if named.is_empty() || named.iter().any(|target| target.repository.is_none()) {
        trials = upstream.try_logins().await;
    }
    for (name, reference) in named.iter().filter_map(|target| target.repository.as_ref()) {
        trials.extend(upstream.try_pull(name, reference.as_ref()).await);
    }
    for trial in &trials {
        say(&line(registry, trial, config.has_login()))?;
    }
    Ok(trials.iter().all(|trial| trial.found.is_fine()))
}

/// One line that says what came of a trial and what to do about it.
fn line(registry: &Registry, Trial { path, endpoint, found }: &Trial, with_login: bool) -> String {
    let mut line = registry.to_string();
    if !path.is_empty() {
        line += &format!("/{path}");
    }
    if let Some(endpoint) = endpoint {
        line += &format!(" at {endpoint}");
    }
    let verdict = match found {
        Found::Accepted => "works".to_owned(),
        Found::Open => "works, without a login".to_owned(),
        Found::Unproven => {
            format!("not proven: it asks for no login before something is pulled; name what is, as {registry}/team/app")
        }
        Found::Absent => {
            "failed: it has no such image for whom berth is there; check the name, the tag, and what the account may read"
                .to_owned()
        }
        Found::Missing => "failed: the file of its credentials has no login for it; look at the host's name there".to_owned(),
        Found::Unsuited => {
            "failed: the registry asks for another kind of login; it may want a user name and a password, not a token"
                .to_owned()
        }
        Found::Failed { by, error } => {
            format!("failed at the {}: {error}; {}", party(*by), remedy(error, with_login))
        }
    };
    format!("{line}: {verdict}")
}

fn party(party: Party) -> &'static str {
    match party {
        Party::Registry => "registry",
        Party::TokenServer => "token server",
        Party::Issuer => "issuer of logins",
    }
}

/// What the operator can do.
fn remedy(error: &Error, with_login: bool) -> &'static str {
    match error {
        Error::LoginRefused => {
            "check user name and password, or token: it may be mistyped, expired or withdrawn"
        }
        Error::NoLogin(NoLogin::Vault(problem)) => remedy_in_vault(problem),
        Error::NoLogin(_) => {
            "check what berth runs as (keys, role, identity), what that may do, and what `credentials` says"
        }
        Error::Denied if with_login => {
            "check what the account may do, and whether it is blocked or its login is over"
        }
        Error::Denied => "it wants a login, if only at its door: set `credentials`",
        Error::Limited { .. } | Error::Busy { .. } => "try again later",
        Error::NotFound | Error::UnknownRegistry => "there is no registry: check the path in `endpoints`",
        Error::Unreachable { .. } | Error::Timeout => {
            "check `endpoints`, the network, `proxy`, and `ca` for certificates of one's own"
        }
        Error::Loop => "check `endpoints`: this mirror asks itself, by way of another",
        Error::Local { .. } => "raise the limits of what runs berth, such as `ulimit -n`",
        Error::TokenRefused => {
            "compare the clocks of registry and token server, and the key that the registry trusts with that of the server"
        }
        Error::Unavailable { .. } | Error::NotFromRegistry { .. } | Error::Malformed(_) => {
            "check `endpoints`, and what answers there instead of a registry that is well, such as a proxy"
        }
        Error::Refused(_) => "check that this is what its operator wants before anything is allowed",
        Error::Offline
        | Error::NoLength
        | Error::DigestMismatch
        | Error::Changed
        | Error::Unsupported(_)
        | Error::UnknownCursor => "nothing was tried",
    }
}

/// The same where Vault is in the way.
fn remedy_in_vault(problem: &VaultProblem) -> &'static str {
    match problem {
        VaultProblem::Sealed => {
            "unseal it, or wait until it is ready; a running berth keeps the login that it has"
        }
        VaultProblem::Redirects { .. } => {
            "set `vault.address` to the active node, or to what balances between nodes"
        }
        VaultProblem::Unanswered { .. } => {
            "check `vault.address`, the network, and `vault.ca` for certificates of one's own"
        }
        VaultProblem::Nonsense { .. } | VaultProblem::Status { .. } => {
            "check `vault.address`, and whether what answers there is well"
        }
        VaultProblem::LoginRefused { .. } => {
            "check the role or role_id, the file with its proof, and the `mount` of the login; for Kubernetes also which \
             accounts, namespaces and audience the role is bound to"
        }
        VaultProblem::TokenRefused => {
            "it may be mistyped, over or revoked, or of another `vault.namespace`: put a new one there"
        }
        VaultProblem::PathDenied { .. } => {
            "give the token's policy `read` on exactly this path; check `vault.namespace` and `vault.kv_version`, too"
        }
        VaultProblem::NoSecret { .. } => {
            "check `vault.mount`, `vault.path`, `vault.kv_version` and `vault.namespace`, and whether it was deleted"
        }
        VaultProblem::Property { .. } => {
            "put it there: `username` and `password`, and `registry` if you like"
        }
        VaultProblem::OtherRegistry { .. } => "check `vault.path`, or what is in the secret",
    }
}
