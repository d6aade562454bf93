//! TLS on a blocking socket that takes many records with one system call and decrypts them where they are:
//! rustls's own buffers are filled 4 KiB at a time, and the client would be the limit.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::unbuffered::{AppDataRecord, ConnectionState, UnbufferedStatus};
use rustls::{ClientConfig, RootCertStore, version};

/// Of what comes.
const INCOMING_BYTES: usize = 256 * 1024;
/// Of what goes: a handshake, or a request.
const OUTGOING_BYTES: usize = 16 * 1024;

/// TLS 1.3 with AES-128-GCM and nothing else, for those whom this authority signed.
pub(crate) fn configuration(ca: &Path) -> Arc<ClientConfig> {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![ring::cipher_suite::TLS13_AES_128_GCM_SHA256];
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(provider));
    let config = config.with_protocol_versions(&[&version::TLS13]).unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

/// A connection; the handshake is made with the first write.
pub(super) struct TlsStream {
    stream: TcpStream,
    connection: UnbufferedClientConnection,
    /// What came and is not yet decrypted is in `start..end`.
    incoming: Vec<u8>,
    start: usize,
    end: usize,
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that are to be sent.
    queued: usize,
}

impl TlsStream {
    pub(super) fn new(stream: TcpStream, config: &Arc<ClientConfig>) -> Self {
        let name = ServerName::try_from("localhost").unwrap();
        Self {
            stream,
            connection: UnbufferedClientConnection::new(Arc::clone(config), name).unwrap(),
            incoming: vec![0; INCOMING_BYTES],
            start: 0,
            end: 0,
            outgoing: vec![0; OUTGOING_BYTES],
            queued: 0,
        }
    }

    pub(super) fn write_all(&mut self, bytes: &[u8]) {
        self.advance(Some(bytes), &mut []);
    }

    /// The content of one record at least; 0 at the end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> usize {
        self.advance(None, buffer)
    }

    /// Goes on until the text is sent, or if there is none, until something was read.
    fn advance(&mut self, mut text: Option<&[u8]>, buffer: &mut [u8]) -> usize {
        loop {
            let pending = &mut self.incoming[self.start..self.end];
            let UnbufferedStatus { mut discard, state, .. } = self.connection.process_tls_records(pending);
            let mut count = 0;
            let mut wants_more = false;
            match state.unwrap() {
                ConnectionState::EncodeTlsData(mut state) => {
                    self.queued += state.encode(&mut self.outgoing[self.queued..]).unwrap();
                }
                ConnectionState::TransmitTlsData(state) => {
                    self.stream.write_all(&self.outgoing[..self.queued]).unwrap();
                    self.queued = 0;
                    state.done();
                }
                ConnectionState::WriteTraffic(mut state) => match text.take() {
                    Some(text) => {
                        let length = state.encrypt(text, &mut self.outgoing).unwrap();
                        self.stream.write_all(&self.outgoing[..length]).unwrap();
                        self.start += discard;
                        return 0;
                    }
                    None => wants_more = true,
                },
                ConnectionState::ReadTraffic(mut state) => {
                    while let Some(record) = state.next_record() {
                        let AppDataRecord { discard: further, payload, .. } = record.unwrap();
                        discard += further;
                        buffer[count..count + payload.len()].copy_from_slice(payload);
                        count += payload.len();
                    }
                }
                ConnectionState::BlockedHandshake => wants_more = true,
                ConnectionState::PeerClosed | ConnectionState::Closed => return 0,
                other => panic!("TLS: {other:?}"),
            }
            self.start += discard;
            if count > 0 {
                return count;
            }
            if wants_more && !self.receive() {
                return 0;
            }
        }
    }

    /// Whether anything came.
    fn receive(&mut self) -> bool {
        self.incoming.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let count = self.stream.read(&mut self.incoming[self.end..]).unwrap();
        self.end += count;
        count > 0
    }
}
