//! A request that gets no answer: the endpoint may be late, or of no use, or the connection may be dead.
//!
//! After the time that nearly all answers take, the caller is told that this one is late. After some more the endpoint is
//! suspected, and a probe decides: if the endpoint is of no use, the request ends; if it answers, the connection may have
//! been forgotten on the way.

use std::future::pending;
use std::pin::pin;

use http::Method;
use tokio::time::sleep;

use crate::remote::endpoint::Endpoint;
use crate::remote::endpoint::latency::LateSignal;

/// Waits until `endpoint`, to which a request was just sent, turns out to answer nothing at all. Gives the signal `late`
/// when the answer is late.
pub(crate) async fn silence(endpoint: &Endpoint, late: Option<&LateSignal>) {
    let lateness = async {
        sleep(endpoint.late_after()).await;
        if let Some(late) = late {
            late.tell();
        }
        pending().await
    };
    tokio::select! {
        () = lateness => {}
        () = marked_down(endpoint) => {}
    }
}

async fn marked_down(endpoint: &Endpoint) {
    let mut marked_down = pin!(endpoint.marked_down());
    marked_down.as_mut().enable();
    tokio::select! {
        () = marked_down.as_mut() => return,
        () = sleep(endpoint.patience()) => endpoint.suspect(),
    }
    marked_down.await;
}

/// Waits until the connection seems to be dead: a probe of `endpoint` has been answered meanwhile. Never ends for a GET,
/// which may be slow by itself, and which a quota would count twice.
pub(crate) async fn stuck(endpoint: &Endpoint, method: &Method) {
    if *method != Method::HEAD {
        return pending().await;
    }
    let cleared = endpoint.cleared();
    sleep(endpoint.patience()).await;
    cleared.await;
}
