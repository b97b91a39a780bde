//! The one public port: accepts connections, finds out what each speaks, and lets none of them linger.
//!
//! HTTP/1.1 and HTTP/2 are told apart by the client's first bytes, gRPC by each request's content type.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Version, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use lifecycle::Service;
use rpc::tls::Public;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tower::ServiceExt as _;

use crate::answers::Answer;
use crate::bodies::{self, Arriving};
use crate::body_room::Sender;
use crate::carried::Carried;
use crate::crowd::{Member, Network, Place, UnderWay};
use crate::edge::Edge;
use crate::error::StartError;
use crate::pace::{Noted, Pace};
use crate::problem::is_grpc;
use crate::settings::{HttpSettings, HttpTlsSettings};
use crate::unread::{Addressee, Whose};

/// For the last bytes of answers, after everything that waits has been told that the gateway stops.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Pause after the operating system would not give a connection (no file handles left, mostly): it needs time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that wait to be accepted: in a full house newcomers do, in turn. Each more would have to knock again, a second later or several.
/// Up to 64 KiB that they have sent wait with each in the kernel, so there are not more of them. Linux takes no more than
/// `net.core.somaxconn`.
const QUEUE: u32 = 1024;
/// What a client may send over HTTP/2 before anyone reads it, bytes: a request's and a connection's. Callers that nobody has
/// vouched for can fill it, so it is no larger than uploads need.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 512 * 1024;
/// What is taken over from a stream's answer before the connection can write it, bytes.
const SEND_BUFFER: usize = 128 * 1024;
/// Requests that a client may take back before they are looked at, and those that may be ended for its errors: more, and
/// the connection ends (CVE-2023-44487, CVE-2025-8671).
const MAX_RESET_STREAMS: usize = 20;
const MAX_ERROR_STREAMS: usize = 128;

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
    let listener = listen(address).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    service.listens("http", bound);
    let tls = certificate(service, &edge.http.tls)?;
    service
        .tasks
        .critical("http", accept(listener, tls, edge.clone(), app));
    Ok(bound)
}

/// As [`TcpListener::bind`] does, but for the queue, which there is of 128.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // For a gateway that starts again where another has just stopped.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUE)
}

/// What the port shows to callers, as it is at each moment.
type Certificate = watch::Receiver<Arc<Public>>;

fn certificate(
    service: &Service,
    tls: &HttpTlsSettings,
) -> Result<Option<Certificate>, StartError> {
    if !tls.is_on() {
        return Ok(None);
    }
    let every = tls.check_every.duration();
    let followed = Public::follow(service, &tls.cert, &tls.key, every);
    Ok(Some(followed.map_err(StartError::HttpTls)?))
}

async fn accept(
    listener: TcpListener,
    tls: Option<Certificate>,
    edge: Arc<Edge>,
    app: App,
) -> io::Result<()> {
    let stop = edge.tasks.stop_token();
    loop {
        // One that has none inside waits here where the house is full, and who comes after it in the operating system's queue, where it costs
        // nothing.
        let next = async {
            let (stream, address) = listener.accept().await?;
            // Nobody makes way for whoever would not be let in.
            if !edge.crowd.may_join(address.ip()) {
                return Ok(None);
            }
            let place = edge.crowd.place(address.ip()).await;
            Ok(place.map(|place| (stream, address.ip(), place)))
        };
        let next: Option<io::Result<_>> = stop.run_until_cancelled(next).await;
        match next {
            None => break,
            Some(Ok(None)) => {}
            Some(Ok(Some((stream, address, place)))) => {
                let (edge, app) = (edge.clone(), app.clone());
                let tls = tls.as_ref().map(|tls| tls.borrow().clone());
                // Whoever has too many already is closed without a word.
                match place {
                    Place::Room(room) => {
                        let Some(member) = edge.crowd.join(room, address) else {
                            continue;
                        };
                        edge.tasks.clone().job("connection", async move {
                            greet(stream, tls, member, &edge, app).await;
                        });
                    }
                    Place::Aside(aside) => {
                        let stop = stop.clone();
                        edge.tasks.clone().job("connection", async move {
                            let room = stop.run_until_cancelled(aside.room()).await.flatten();
                            let member = room.and_then(|room| edge.crowd.join(room, address));
                            if let Some(member) = member {
                                greet(stream, tls, member, &edge, app).await;
                            }
                        });
                    }
                }
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    // Until every connection is gone, then what still waits or streams is ended.
    let grace = edge.http.drain.duration();
    let _ = tokio::time::timeout(grace, edge.crowd.empty()).await;
    edge.drained.cancel();
    Ok(())
}

/// Shakes hands where TLS is spoken, within its time, and serves the connection.
async fn greet(
    stream: TcpStream,
    tls: Option<Arc<Public>>,
    member: Member,
    edge: &Arc<Edge>,
    app: App,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection was gone before it began");
        return;
    }
    let Some(tls) = tls else {
        return connection(stream, member, edge, app).await;
    };
    let limit = edge.http.tls.handshake_timeout.duration();
    let shaking = tokio::time::timeout(limit, tls.accept(stream));
    let stop = edge.tasks.stop_token();
    let outcome = tokio::select! {
        () = stop.cancelled() => return,
        // In a full house whoever has not even shaken hands goes first.
        () = member.line.makes_way.cancelled() => "made_way",
        shaken = shaking => match shaken {
            Ok(Ok(stream)) => {
                handshake("done");
                return connection(stream, member, edge, app).await;
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "a handshake failed");
                "failed"
            }
            Err(_) => "slow",
        },
    };
    handshake(outcome);
}

fn handshake(outcome: &'static str) {
    metrics::counter!("inkstone_gateway_handshakes_total", "outcome" => outcome).increment(1);
}

async fn connection<S>(stream: S, member: Member, edge: &Arc<Edge>, app: App)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let line = &member.line;
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(member.network());
        let router = if is_grpc(request.headers()) {
            &app.grpc
        } else {
            &app.http
        };
        // In a box: what HTTP/2 makes of a request lies at a multiple of 128 bytes, and the allocator's way to such places is long if they are large.
        Box::pin(carry(edge.clone(), router.clone(), line.begin(), request))
    });
    let server = protocols(&edge.http);
    let stream = TokioIo::new(Noted::new(stream, line.clone()));
    let mut serving = pin!(server.serve_connection(stream, service));
    let stop = edge.tasks.stop_token();
    let mut patience = Patience::new(&edge.http);
    let read_timeout = edge.http.read_timeout.duration();
    let mut pace = Pace::new(read_timeout, Instant::now());
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
            () = line.makes_way.cancelled(), if !closing => {
                if line.is_quiet() {
                    return;
                }
                // A request has come just now.
                closing = true;
                serving.as_mut().graceful_shutdown();
            }
            () = tokio::time::sleep_until(patience.next) => {
                match patience.look(line.asked(), Instant::now()) {
                    Verdict::Stay => {}
                    Verdict::Close if closing => {}
                    Verdict::Close => {
                        closing = true;
                        serving.as_mut().graceful_shutdown();
                    }
                    Verdict::Cut => return,
                }
            }
            () = tokio::time::sleep_until(pace.next) => {
                let (written, now) = (line.written.load(Ordering::Relaxed), Instant::now());
                // Of a connection that reads some of its answers, those that it does not read.
                line.answers.give_up_stuck(read_timeout, now);
                if line.leaves_too_much() || pace.is_too_slow(line.owes(), written, now) {
                    metrics::counter!("inkstone_gateway_connections_closed_total", "reason" => "slow_reader").increment(1);
                    return;
                }
            }
        }
    }
}

/// One request from the connection to the router, and its answer back.
async fn carry(
    edge: Arc<Edge>,
    router: Router,
    under_way: UnderWay,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<Answer>, Infallible> {
    let old = request.version() < Version::HTTP_2;
    let waits = request.headers().contains_key(header::EXPECT);
    let (mut head, body) = request.into_parts();
    let (from, sender) = (head.extensions.get::<Network>().copied(), Sender::default());
    let bytes = edge.bodies.body(from, sender.clone());
    head.extensions.insert(sender);
    let (body, rest) = Arriving::new(Body::new(body), waits, bytes);
    let request = hyper::Request::from_parts(head, Body::new(body));
    let mut response = router.oneshot(request).await?;
    let refused = response.status().is_client_error() || response.status().is_server_error();
    // Over HTTP/2 a stream is closed without hurting what was written to it.
    if let (true, true, Some(body)) = (old, refused, rest.take()) {
        let stop = edge.tasks.stop_token();
        edge.tasks.job("linger", async move {
            stop.run_until_cancelled(bodies::linger(body)).await;
        });
    }
    let unread = edge.unread.clone();
    let to = response.extensions_mut().remove::<Addressee>();
    let whose = Whose { to, from };
    let carried = response.extensions_mut().remove::<Carried>();
    Ok(response.map(|body| Answer::new(body, under_way, unread, whose, carried)))
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
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .max_local_error_reset_streams(MAX_ERROR_STREAMS)
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
