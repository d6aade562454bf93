//! docker-registry's access log: Apache's combined format, one line per answered request, among other lines.
//!
//! ```text
//! 127.0.0.1 - - [22/Nov/2026:04:30:00 +0000] "GET /v2/library/single/manifests/1 HTTP/1.1" 200 527 "" "skopeo/1.9.3"
//! ```

/// One request that the registry answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Behind the question mark.
    pub(crate) query: Option<String>,
    pub(crate) status: u16,
    /// How many bytes of body went out.
    pub(crate) bytes: u64,
    pub(crate) user_agent: String,
}

/// The requests of a log, in the order of their ends.
pub(super) fn requests(log: &str) -> impl Iterator<Item = Request> {
    log.lines().filter_map(parse)
}

fn parse(line: &str) -> Option<Request> {
    let parts: Vec<_> = line.split('"').collect();
    let [_peer_and_time, request, outcome, _referrer, _gap, user_agent, ..] = parts[..] else { return None };
    let (method, target) = request.strip_suffix(" HTTP/1.1")?.split_once(' ')?;
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let (status, bytes) = outcome.trim().split_once(' ')?;
    Some(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.map(str::to_owned),
        status: status.parse().ok()?,
        bytes: bytes.parse().ok()?,
        user_agent: user_agent.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_requests_among_other_lines() {
        let log = concat!(
            "time=\"2026-11-22T04:30:00Z\" level=info msg=\"listening on 127.0.0.1:5000\" go.version=go1.19\n",
            "127.0.0.1 - - [22/Nov/2026:04:30:00 +0000] \"GET /v2/a/manifests/1?ns=x HTTP/1.1\" 200 527 \"\" \"skopeo/1\"\n",
        );
        let expected = Request {
            method: "GET".to_owned(),
            path: "/v2/a/manifests/1".to_owned(),
            query: Some("ns=x".to_owned()),
            status: 200,
            bytes: 527,
            user_agent: "skopeo/1".to_owned(),
        };
        assert_eq!(requests(log).collect::<Vec<_>>(), [expected]);
    }
}
