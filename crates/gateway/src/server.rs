//! The one public port: accepts connections, finds out what each speaks, and lets none of them linger.
//!
//! HTTP/1.1 and HTTP/2 are told apart by the client's first bytes, gRPC by each request's content type.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use lifecycle::Service;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::edge::Edge;
use crate::error::StartError;
use crate::problem::is_grpc;
use crate::settings::HttpSettings;

/// For the last bytes of answers, after everything that waits has been told that the gateway stops.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Pause after the operating system would not give a connection (no file handles left, mostly): it needs time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the port serves.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) http: Router,
    pub(crate) grpc: Router,
}

/// Serves until the service stops, and notes the address as `http`.
pub(crate) async fn serve(
    service: &mut Service,
    edge: &Arc<Edge>,
    app: App,
) -> Result<SocketAddr, StartError> {
    let address = edge.http.listen;
    let failed = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    service.listens("http", bound);
    service
        .tasks
        .critical("http", accept(listener, edge.clone(), app));
    Ok(bound)
}

async fn accept(listener: TcpListener, edge: Arc<Edge>, app: App) -> io::Result<()> {
    let most = edge.http.max_connections;
    let room = Arc::new(Semaphore::new(most as usize));
    let stop = edge.tasks.stop_token();
    loop {
        // Room first: without it, clients wait in the operating system's queue and cost nothing here.
        let next = async {
            // Only closing the semaphore could fail it, and nobody does.
            let permit = room
                .clone()
                .acquire_owned()
                .await
                .map_err(io::Error::other)?;
            listener.accept().await.map(|(stream, _)| (stream, permit))
        };
        match stop.run_until_cancelled(next).await {
            None => break,
            Some(Ok((stream, permit))) => {
                let (edge, app) = (edge.clone(), app.clone());
                edge.tasks.clone().job("connection", async move {
                    let _counted = Counted::new(permit);
                    connection(stream, &edge, app).await;
                });
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    drain(&room, most, &edge.drained, edge.http.drain.duration()).await;
    Ok(())
}

/// Waits until every connection is gone, `grace` at most, then ends what still waits or streams.
async fn drain(room: &Semaphore, most: u32, drained: &CancellationToken, grace: Duration) {
    // All the room there is means that no connection holds any.
    let _ = tokio::time::timeout(grace, room.acquire_many(most)).await;
    drained.cancel();
}

/// An open connection, for as long as it is one, however it ends.
struct Counted {
    _permit: OwnedSemaphorePermit,
}

impl Counted {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        metrics::gauge!("inkstone_gateway_connections").increment(1);
        Self { _permit: permit }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!("inkstone_gateway_connections").decrement(1);
    }
}

async fn connection(stream: TcpStream, edge: &Edge, app: App) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection was gone before it began");
        return;
    }
    let asked = Arc::new(AtomicU64::new(0));
    let service = {
        let asked = asked.clone();
        service_fn(move |request: hyper::Request<Incoming>| {
            asked.fetch_add(1, Ordering::Relaxed);
            let app = &app;
            let router = if is_grpc(request.headers()) {
                &app.grpc
            } else {
                &app.http
            };
            router.clone().oneshot(request)
        })
    };
    let server = protocols(&edge.http);
    let mut serving = pin!(server.serve_connection(TokioIo::new(stream), service));
    let stop = edge.tasks.stop_token();
    let mut patience = Patience::new(&edge.http);
    let mut closing = false;
    let last_words = async {
        edge.drained.cancelled().await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    let mut last_words = pin!(last_words);
    loop {
        tokio::select! {
            // Streams that no one reads, or that know no end, do not hold up the stop.
            () = &mut last_words => return,
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended badly");
                }
                return;
            }
            () = stop.cancelled(), if !closing => {
                closing = true;
                serving.as_mut().graceful_shutdown();
            }
            () = tokio::time::sleep_until(patience.next) => {
                match patience.look(asked.load(Ordering::Relaxed), Instant::now()) {
                    Verdict::Stay => {}
                    Verdict::Close if closing => {}
                    Verdict::Close => {
                        closing = true;
                        serving.as_mut().graceful_shutdown();
                    }
                    Verdict::Cut => return,
                }
            }
        }
    }
}

fn protocols(http: &HttpSettings) -> auto::Builder<TokioExecutor> {
    // Validated to be 8 KiB to 1 MiB.
    let header_bytes = http.max_header_bytes.bytes() as u32;
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(http.header_read_timeout.duration())
        .max_buf_size(header_bytes as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(http.keep_alive.duration())
        .keep_alive_timeout(http.keep_alive_timeout.duration())
        .max_concurrent_streams(http.max_streams_per_connection)
        .max_header_list_size(header_bytes);
    builder
}

/// How long a connection is borne that asks for nothing.
struct Patience {
    /// When to look next.
    next: Instant,
    asked: u64,
    asked_at: Instant,
    idle: Duration,
    longest_answer: Duration,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is in use.
    Stay,
    /// It may finish what is under way.
    Close,
    /// It is of no use to anyone.
    Cut,
}

impl Patience {
    fn new(http: &HttpSettings) -> Self {
        let now = Instant::now();
        // No answer may take longer than the longest stream or the longest generation; one that does has a client that
        // does not read.
        let stream = http.stream_timeout.duration();
        let longest_answer = stream.max(http.generation_timeout.duration());
        Self {
            next: now + http.header_read_timeout.duration(),
            asked: 0,
            asked_at: now,
            idle: http.idle_timeout.duration(),
            longest_answer,
        }
    }

    fn look(&mut self, asked: u64, now: Instant) -> Verdict {
        self.next = now + self.idle;
        if asked == 0 {
            // Covers what no protocol's own timer does: a client that never says which protocol it speaks.
            return Verdict::Cut;
        }
        if asked != self.asked {
            self.asked = asked;
            self.asked_at = now;
            return Verdict::Stay;
        }
        if now.duration_since(self.asked_at) > self.longest_answer + self.idle {
            return Verdict::Cut;
        }
        Verdict::Close
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_borne_while_it_asks_and_cut_when_no_answer_can_be_under_way() {
        let now = Instant::now();
        let seconds = Duration::from_secs;
        let mut patience = Patience {
            next: now,
            asked: 0,
            asked_at: now,
            idle: seconds(10),
            longest_answer: seconds(60),
        };
        assert_eq!(patience.look(1, now + seconds(5)), Verdict::Stay);
        assert_eq!(patience.next, now + seconds(15));
        assert_eq!(patience.look(2, now + seconds(15)), Verdict::Stay);
        assert_eq!(patience.look(2, now + seconds(25)), Verdict::Close);
        assert_eq!(patience.look(2, now + seconds(86)), Verdict::Cut);
    }

    #[test]
    fn a_connection_that_never_asks_is_cut_at_the_first_look() {
        let http = settings::load::<crate::Settings>(None, &[]).unwrap().http;
        let mut patience = Patience::new(&http);
        assert_eq!(patience.look(0, patience.next), Verdict::Cut);
    }
}
