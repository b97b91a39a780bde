//! What every handler has at hand.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::http::{HeaderMap, Uri, header};
use bytes::Bytes;
use contract::Failure;
use egress::Egress;
use lifecycle::{Health, Tasks};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::body_room::BodyRoom;
use crate::carried::{self, CarriedRoom};
use crate::crowd::{Crowd, Network};
use crate::platform::Platform;
use crate::revoked::OpenKeys;
use crate::room::{self, Class, Place, Room, Share};
use crate::settings::{HttpSettings, Settings};
use crate::unread::Unread;

/// Pictures that are decoded at once, callers' and those of answers in pixels: one takes a core, and up to 16 bytes a pixel for a moment.
const MAX_DECODES: usize = 4;
/// Streams over gRPC that callers without a key have open: health as it changes, and reflection.
const MAX_STREAMS_WITHOUT_KEY: u32 = 256;

/// The gateway's own state: limits and clocks, nothing that a restart would lose.
pub(crate) struct Edge {
    pub(crate) http: HttpSettings,
    pub(crate) platform: Platform,
    /// To pictures that callers name by URL.
    pub(crate) egress: Egress,
    pub(crate) tasks: Tasks,
    pub(crate) health: Health,
    /// Cancelled when waiting requests and streams have to end because the gateway does.
    pub(crate) drained: CancellationToken,
    /// The description of what HTTP callers can reach, once the router that it is made with is there.
    pub(crate) document: OnceLock<Bytes>,
    started: Instant,
    submissions: Room,
    generations: Room,
    reads: Room,
    streams: Room,
    /// The keys of what is open.
    pub(crate) open_keys: OpenKeys,
    uploads: Room,
    /// For pictures by token until they are found: until then whoever asks may have made up task and token.
    pub(crate) searches_by_token: Room,
    /// For streams that anyone may open.
    pub(crate) streams_without_key: Room,
    /// Turns at decoding pictures.
    pub(crate) decodes: Arc<Semaphore>,
    /// Who is connected.
    pub(crate) crowd: Arc<Crowd>,
    /// Room for the bytes of bodies that arrive.
    pub(crate) bodies: Arc<BodyRoom>,
    /// Room for answers with pictures inside, while they are made.
    pub(crate) carried: Arc<CarriedRoom>,
    /// Bytes of answers that are on their way out.
    pub(crate) unread: Arc<Unread>,
}

/// The right to hold one stream of events open.
pub(crate) struct OpenStream {
    _place: Place,
    _share: Share,
}

/// The right to hold one body with pictures in memory.
#[derive(Debug, Clone)]
pub(crate) struct Upload(#[expect(dead_code, reason = "it is held")] Arc<(Place, Share)>);

impl Edge {
    pub(crate) fn new(
        settings: &Settings,
        platform: Platform,
        egress: Egress,
        tasks: Tasks,
        health: Health,
    ) -> Self {
        let http = &settings.http;
        let room = |what, places| Room::new(what, places, http.tenant_share);
        Self {
            platform,
            egress,
            tasks,
            health,
            drained: CancellationToken::new(),
            document: OnceLock::new(),
            started: Instant::now(),
            submissions: room("submissions are under way", http.max_concurrent_requests),
            generations: room("generations are under way", http.max_concurrent_generations),
            reads: room("requests are under way", http.max_concurrent_reads),
            streams: room("streams are open", http.max_event_streams),
            open_keys: OpenKeys::default(),
            uploads: room("pictures arrive at once", http.max_uploads),
            // Whose these are is not known, so it is those of one task that have a share of them.
            searches_by_token: room(
                "pictures are looked for by token",
                room::share(http.max_concurrent_reads, http.tenant_share),
            ),
            // Nor is whose these are; but where from. A setting says how much of everything one address may be, because behind
            // a proxy it is everyone's.
            streams_without_key: Room::shared(
                "streams without a key are open",
                MAX_STREAMS_WITHOUT_KEY,
                room::part(
                    MAX_STREAMS_WITHOUT_KEY,
                    http.max_connections_per_address,
                    http.max_connections,
                ),
            ),
            decodes: Arc::new(Semaphore::new(MAX_DECODES)),
            crowd: Arc::new(Crowd::new(
                http.max_connections,
                http.max_connections_per_address,
            )),
            bodies: Arc::new(BodyRoom::new(http)),
            carried: Arc::new(CarriedRoom::new(
                http.max_carried_bytes,
                http.tenant_share,
                carried::MOST_WAIT,
            )),
            unread: Arc::new(Unread::new(
                http.max_unread_bytes,
                http.tenant_share,
                http.max_unread_bytes_without_key,
                (http.max_connections_per_address, http.max_connections),
            )),
            http: http.clone(),
        }
    }

    /// Whole seconds since the gateway started.
    pub(crate) fn uptime_seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// Where requests of a class have their places.
    pub(crate) fn room(&self, class: Class) -> &Room {
        match class {
            Class::Submission => &self.submissions,
            Class::Generation => &self.generations,
            Class::Read => &self.reads,
        }
    }

    /// One more of a class whose caller is not known yet, to be held until auth has said who it is. One address may have the part of the
    /// places that it may have of connections, and no more than that part of the proofs that auth may be asked to verify just now; and
    /// more, as long as so much is left for those at others: a flood of wrong keys from one address takes neither from them, and a busy caller that is
    /// alone is not held to its part. Behind a proxy, where one address is everyone's, any number.
    pub(crate) fn stranger(
        &self,
        class: Class,
        from: Option<Network>,
    ) -> Result<Option<Share>, Failure> {
        let (some, all) = (
            self.http.max_connections_per_address,
            self.http.max_connections,
        );
        let Some(network) = from.filter(|_| some < all) else {
            return Ok(None);
        };
        let room = self.room(class);
        let (places, proofs) = (room.places(), self.platform.proofs_at_once());
        let most = room::part(places.min(proofs), some, all);
        let rooms = [&self.submissions, &self.generations, &self.reads];
        let asked: u32 = rooms.map(Room::strangers).iter().sum();
        let left = |of| of - room::part(of, some, all);
        let spare = if asked < left(proofs) {
            left(places)
        } else {
            0
        };
        room.share_of_stranger(network, most, spare).map(Some)
    }

    /// Room for one more stream of a tenant's events.
    pub(crate) fn open_stream(&self, tenant: &str) -> Result<OpenStream, Failure> {
        let (place, share) = (self.streams.enter()?, self.streams.share(tenant)?);
        metrics::gauge!("inkstone_gateway_event_streams").increment(1);
        Ok(OpenStream {
            _place: place,
            _share: share,
        })
    }

    /// Room for one more of a tenant's bodies with pictures, for as long as the upload lives.
    pub(crate) fn open_upload(&self, tenant: &str) -> Result<Upload, Failure> {
        let (place, share) = (self.uploads.enter()?, self.uploads.share(tenant)?);
        Ok(Upload(Arc::new((place, share))))
    }

    /// What goes in front of a path that an answer names: scheme and authority, no slash at the end.
    pub(crate) fn public_url(&self, uri: &Uri, headers: &HeaderMap) -> String {
        if !self.http.public_url.is_empty() {
            return self.http.public_url.clone();
        }
        // HTTP/2 has the authority in the URI, HTTP/1.1 in a header.
        let host = uri.authority().map(|a| a.as_str());
        let host = host.or_else(|| headers.get(header::HOST).and_then(|v| v.to_str().ok()));
        let scheme = if self.http.tls.is_on() {
            "https"
        } else {
            "http"
        };
        match host.filter(|host| is_host(host)) {
            Some(host) => format!("{scheme}://{host}"),
            None => format!("{scheme}://{}", self.http.listen),
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        metrics::gauge!("inkstone_gateway_event_streams").decrement(1);
    }
}

/// Whether a text can stand between `http://` and a path without meaning anything else.
fn is_host(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".-:[]_".contains(&b);
    (1..=255).contains(&text.len()) && text.bytes().all(plain)
}

#[cfg(test)]
pub(crate) mod tests {
    use lifecycle::Service;
    use rpc::Security;

    use super::*;

    /// An edge whose services are not there.
    pub(crate) fn edge(service: &Service, storage: &tempfile::TempDir) -> Edge {
        let mut all = vec![(
            "storage.url",
            format!("file://{}", storage.path().display()),
        )];
        // Port 1 answers nobody.
        for key in ["auth.url", "orchestrator.url", "registry.url"] {
            all.push((key, "http://127.0.0.1:1".to_owned()));
        }
        let settings: Settings = settings::load(None, &all).unwrap();
        let (tasks, health) = (service.tasks.clone(), service.health.clone());
        let platform = Platform::new(&settings, &Security::off(), &tasks).unwrap();
        let egress = Egress::new(&settings.egress).unwrap();
        Edge::new(&settings, platform, egress, tasks, health)
    }

    #[test]
    fn a_host_that_could_mean_something_else_is_not_repeated() {
        for good in ["localhost:8080", "[::1]:8080", "images.example.com"] {
            assert!(is_host(good), "{good}");
        }
        for bad in ["", "a/b", "user@host", "a b", "x\"y", "é"] {
            assert!(!is_host(bad), "{bad}");
        }
    }
}
