//! What is done for a remote behind all requests: endpoints that are down and logins that are refused are probed, a login
//! that ends is renewed, and a certificate whose files change is read again.

use std::future::pending;
use std::panic;
use std::sync::Arc;

use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::remote::endpoint::{Endpoint, Probe};
use crate::remote::error::Error;
use crate::remote::exchange::{Exchange, Target};
use crate::remote::handle::Remote;
use crate::remote::transport::request::ApiRequest;

/// The most probes of one remote at once: those that hang, and one more.
const PROBES_MAX: usize = 8;

/// Looks after `remote`, for ever.
pub(crate) async fn tend(remote: &Arc<Remote>) {
    let watch_identity = async {
        match remote.identity() {
            Some(identity) => identity.watch().await,
            None => pending().await,
        }
    };
    tokio::select! {
        () = probe(remote) => {}
        () = watch_identity => {}
        () = remote.auth().keep_login() => {}
    }
}

/// Asks a mirror for its identity, and looks after it, for ever.
pub(crate) async fn greet_and_tend(remote: Arc<Remote>) {
    if let Some(endpoint) = remote.endpoints().first() {
        let within = remote.transport().client().timeouts.header;
        // Whether it answers does not matter yet.
        let _ = remote.transport().answers((remote.registry(), endpoint), within).await;
    }
    tend(&remote).await;
}

/// Begins every probe when it is due, whether or not earlier ones have their answer yet.
async fn probe(remote: &Arc<Remote>) {
    let (endpoints, mut probes) = (remote.probed(), JoinSet::new());
    loop {
        let Some((due, probe, at)) = endpoints.next_probe() else {
            endpoints.changed().await;
            continue;
        };
        tokio::select! {
            // Something else went down meanwhile, and may be due before this.
            () = endpoints.changed() => continue,
            // One probe fewer; it may also have changed what is due.
            Some(_) = probes.join_next() => continue,
            () = sleep_until(due), if probes.len() < PROBES_MAX => {}
        }
        endpoints.all()[at].probe_begins(&probe);
        let remote = Arc::clone(remote);
        probes.spawn(async move { look_at(&remote, &remote.endpoints()[at], probe).await });
    }
}

/// Carries out one probe, and records what it means.
async fn look_at(remote: &Remote, endpoint: &Endpoint, probe: Probe) {
    let (transport, at) = (remote.transport(), (remote.registry(), endpoint));
    let header = transport.client().timeouts.header;
    match probe {
        Probe::Up => {
            let begun = Instant::now();
            if transport.answers(at, header).await == Some(true) {
                endpoint.probed(begun.elapsed());
                endpoint.succeeded();
            }
        }
        Probe::Look => match transport.answers(at, endpoint.look_within().min(header)).await {
            Some(true) => endpoint.clear_suspicion(),
            Some(false) => endpoint.mark_down(),
            None => {}
        },
        Probe::Login(identity, name) => {
            let deadline = remote.deadline();
            let Ok(there) = remote.name_there(&name) else { return };
            let Ok(login) = remote.auth().login(&there, deadline).await else { return };
            // Without it another login is in force, which has done nothing wrong.
            let Some(login) = login.filter(|login| login.identity() == identity) else {
                return endpoint.login_accepted(&identity);
            };
            let ask = ApiRequest::login(&name);
            let exchange = Exchange::new(Target::new(remote, endpoint), &ask, &there, deadline);
            match exchange.run(Some(&login)).await {
                Err(Error::LoginRefused) => endpoint.login_proven_refused(&identity),
                Ok(_) | Err(Error::NotFound | Error::Denied) => endpoint.login_accepted(&identity),
                // It says nothing about the login.
                Err(_) => {}
            }
        }
    }
}

/// Goes on with the panic of a part that has ended with one: work that has died is a fault of the whole.
pub(crate) fn resurface(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        panic::resume_unwind(panic);
    }
}
