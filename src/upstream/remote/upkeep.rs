//! What is done for a remote behind all requests: endpoints that are down and logins that are refused are probed, a login
//! that ends is renewed, and a certificate whose files change is read again.

use std::future::pending;
use std::panic;
use std::sync::Arc;

use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::upstream::remote::endpoint::{Probe, Server};
use crate::upstream::remote::error::Error;
use crate::upstream::remote::exchange::{Exchange, Target};
use crate::upstream::remote::handle::Remote;
use crate::upstream::remote::transport::request::Ask;

/// Probes of one remote at once: those that hang, and one more.
const PROBES_MAX: usize = 8;

/// Looks after `remote`, for ever.
pub(in crate::upstream) async fn tend(remote: &Arc<Remote>) {
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

/// Asks a mirror who it is, and looks after it, for ever.
pub(in crate::upstream) async fn greet_and_tend(remote: Arc<Remote>) {
    if let Some(server) = remote.endpoints().first() {
        let within = remote.sender().client().timeouts.header;
        // Whether it answers does not matter yet.
        let _ = remote.sender().answers((remote.registry(), server), within).await;
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

/// One probe, and what it means.
async fn look_at(remote: &Remote, server: &Server, probe: Probe) {
    let (sender, at) = (remote.sender(), (remote.registry(), server));
    let header = sender.client().timeouts.header;
    match probe {
        Probe::Up => {
            let begun = Instant::now();
            if sender.answers(at, header).await == Some(true) {
                server.probed(begun.elapsed());
                server.succeeded();
            }
        }
        Probe::Look => match sender.answers(at, server.look_within().min(header)).await {
            Some(true) => server.acquit(),
            Some(false) => server.condemn(),
            None => {}
        },
        Probe::Login(identity, name) => {
            let deadline = remote.deadline();
            let Ok(there) = remote.name_there(&name) else { return };
            let Ok(login) = remote.auth().login(&there, deadline).await else { return };
            // Without it another login is in force, which has done nothing wrong.
            let Some(login) = login.filter(|login| login.identity() == identity) else {
                return server.login_accepted(&identity);
            };
            let ask = Ask::login(&name);
            let exchange = Exchange::new(Target::new(remote, server), &ask, &there, deadline);
            match exchange.run(Some(&login)).await {
                Err(Error::LoginRefused) => server.login_proven_refused(&identity),
                Ok(_) | Err(Error::NotFound | Error::Denied) => server.login_accepted(&identity),
                // It says nothing about the login.
                Err(_) => {}
            }
        }
    }
}

/// Goes on with the panic of a part that has ended with one: work that has died is a fault of the whole.
pub(in crate::upstream) fn resurface(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && let Ok(panic) = error.try_into_panic()
    {
        panic::resume_unwind(panic);
    }
}
