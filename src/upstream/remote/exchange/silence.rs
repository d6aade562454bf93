//! A request to which nothing is said: is the endpoint late, of no use, or is it the connection?
//!
//! After the time that nearly all answers take, another endpoint may be asked beside it (`hedge`). After some more the
//! endpoint is doubted, and a look at it decides: if it is of no use, the request ends; if it answers, the connection may
//! have been forgotten on the way.

use std::future::pending;
use std::pin::pin;

use http::Method;
use tokio::time::sleep;

use crate::upstream::remote::endpoint::Server;
use crate::upstream::remote::endpoint::latency::Late;

/// Ends when `server`, which says nothing to a request that was just sent, turns out to say nothing at all. Tells when
/// it is late.
pub(in crate::upstream) async fn silence(server: &Server, late: Option<&Late>) {
    let lateness = async {
        sleep(server.late_after()).await;
        if let Some(late) = late {
            late.tell();
        }
        pending().await
    };
    tokio::select! {
        () = lateness => {}
        () = condemnation(server) => {}
    }
}

async fn condemnation(server: &Server) {
    let mut condemned = pin!(server.condemned());
    condemned.as_mut().enable();
    tokio::select! {
        () = condemned.as_mut() => return,
        () = sleep(server.patience()) => server.doubt(),
    }
    condemned.await;
}

/// Ends when it seems to be the connection that says nothing: a look at `server` has been answered meanwhile. A GET may be
/// slow by itself, and be counted twice.
pub(in crate::upstream) async fn stuck(server: &Server, method: &Method) {
    if *method != Method::HEAD {
        return pending().await;
    }
    let acquitted = server.acquitted();
    sleep(server.patience()).await;
    acquitted.await;
}
