//! Connections of callers: accepted while there is room, and known by their certificates before anything else is heard.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use lifecycle::{Tasks, chain};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::metrics;
use crate::tls::{Identity, Security};

/// Open connections of one server; a caller needs one. Beyond them, new ones wait in the operating system's queue.
const MAX_CONNECTIONS: usize = 1024;
/// Handshakes under way at once, each with a little memory and at times a core.
const MAX_HANDSHAKES: usize = 256;
/// How long one may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that the server has not taken up yet.
const READY: usize = 64;
/// Pause after the operating system would not give a connection (no file handles left, mostly): it needs time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection, in the extensions of every request that comes over it.
#[derive(Debug, Clone)]
pub(crate) enum Peer {
    /// Whoever reaches the port.
    Anyone,
    /// Those whom a verified certificate names; never none.
    Named(Arc<[Identity]>),
}

/// A connection that calls may come over.
pub(crate) struct Caller {
    stream: Stream,
    peer: Peer,
    /// When it is cut, whatever streams over it.
    end: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

enum Stream {
    Clear(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

/// Accepts connections until the service stops; they come out of the receiver.
pub(crate) fn accept(
    tasks: &Tasks,
    listener: TcpListener,
    security: Security,
) -> mpsc::Receiver<io::Result<Caller>> {
    let (sender, receiver) = mpsc::channel(READY);
    let stop = tasks.stop_token();
    let own = tasks.clone();
    tasks.critical("grpc connections", async move {
        let accepting = Accepting {
            tasks: own,
            security,
            room: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
            ready: sender,
        };
        stop.run_until_cancelled(accepting.run(listener)).await;
        Ok::<(), Infallible>(())
    });
    receiver
}

struct Accepting {
    tasks: Tasks,
    security: Security,
    room: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    ready: mpsc::Sender<io::Result<Caller>>,
}

impl Accepting {
    async fn run(self, listener: TcpListener) {
        loop {
            match self.next(&listener).await {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection for gRPC");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn next(&self, listener: &TcpListener) -> io::Result<()> {
        // Room first: without it, callers wait in the operating system's queue and cost nothing here.
        let permit = room(&self.room).await?;
        let Some(mutual) = &self.security.mutual else {
            let (stream, _) = listener.accept().await?;
            // One that is gone already is found out when it is read.
            let _ = stream.set_nodelay(true);
            let caller = Caller {
                stream: Stream::Clear(stream),
                peer: Peer::Anyone,
                end: None,
                _permit: permit,
            };
            let taken = self.ready.send(Ok(caller)).await;
            // The server is gone.
            return taken.map_err(|_| io::ErrorKind::BrokenPipe.into());
        };
        let turn = room(&self.handshakes).await?;
        let (stream, address) = listener.accept().await?;
        let acceptor = TlsAcceptor::from(mutual.borrow().server.clone());
        let (ready, cut_after) = (self.ready.clone(), self.security.cut_after);
        let stop = self.tasks.stop_token();
        self.tasks.job("handshake", async move {
            let shaking = shake(acceptor, stream, cut_after, permit);
            let Some(shaken) = stop.run_until_cancelled(shaking).await else {
                return;
            };
            drop(turn);
            match shaken {
                Ok(caller) => {
                    metrics::handshake("done");
                    // The server is gone, and the connection with it.
                    let _ = ready.send(Ok(caller)).await;
                }
                Err(refusal) => {
                    metrics::handshake(refusal.word());
                    tracing::debug!(%address, "no connection: {}", chain(&refusal));
                }
            }
        });
        Ok(())
    }
}

async fn room(semaphore: &Arc<Semaphore>) -> io::Result<OwnedSemaphorePermit> {
    // Only closing the semaphore could fail it, and nobody does.
    let permit = semaphore.clone().acquire_owned().await;
    permit.map_err(io::Error::other)
}

/// Why someone is not let in.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("no handshake within {HANDSHAKE_TIMEOUT:?}")]
    Slow,
    #[error("the handshake failed")]
    Failed(#[from] io::Error),
    #[error("the certificate names none of us")]
    Nameless,
}

impl Refusal {
    fn word(&self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Failed(_) => "failed",
            Self::Nameless => "nameless",
        }
    }
}

async fn shake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    cut_after: Duration,
    permit: OwnedSemaphorePermit,
) -> Result<Caller, Refusal> {
    stream.set_nodelay(true)?;
    let shaking = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
    let stream = shaking.await.map_err(|_| Refusal::Slow)??;
    let certificates = stream.get_ref().1.peer_certificates();
    let named = certificates
        .and_then(|chain| chain.first())
        .map(Identity::of)
        .unwrap_or_default();
    if named.is_empty() {
        return Err(Refusal::Nameless);
    }
    Ok(Caller {
        stream: Stream::Secure(Box::new(stream)),
        peer: Peer::Named(named.into()),
        end: Some(Box::pin(tokio::time::sleep(cut_after))),
        _permit: permit,
    })
}

impl Connected for Caller {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Caller {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &mut this.stream {
            Stream::Clear(stream) => ready!(Pin::new(stream).poll_read(cx, buf))?,
            Stream::Secure(stream) => {
                // A connection is read all the time, so this wakes it in time.
                if let Some(end) = &mut this.end
                    && end.as_mut().poll(cx).is_ready()
                {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                ready!(Pin::new(stream).poll_read(cx, buf))?;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Caller {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Clear(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Secure(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Clear(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Secure(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Clear(stream) => stream.is_write_vectored(),
            Stream::Secure(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Clear(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Secure(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Clear(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Secure(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
