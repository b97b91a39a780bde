//! A way from one process to another that can be cut: a proxy of ours between the two.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use lifecycle::Tasks;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;
/// After a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(10);

/// What becomes of what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// It arrives.
    Open,
    /// It does not, and nobody is told; what is on its way arrives when the link is open again.
    Silent,
    /// Connections end, and new ones end at once.
    Closed,
}

impl Flow {
    /// Of a link that is cut, in silence or so that both ends see it.
    pub(crate) fn cut(silent: bool) -> Self {
        if silent { Self::Silent } else { Self::Closed }
    }
}

/// A listener whose connections lead to one address.
#[derive(Debug)]
pub(crate) struct Link {
    /// Where it listens, on 127.0.0.1.
    pub(crate) port: u16,
    flow: watch::Sender<Flow>,
}

impl Link {
    /// A link to `to`, open.
    ///
    /// # Errors
    /// When no port can be had.
    pub(crate) async fn open(tasks: &Tasks, to: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let (flow, receiver) = watch::channel(Flow::Open);
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, to));
        let (stopping, connections) = (tasks.stopping(), tasks.clone());
        tasks.job("a link", async move {
            tokio::select! {
                () = stopping => {}
                () = accept(listener, to, receiver, connections) => {}
            }
        });
        Ok(Self { port, flow })
    }

    /// Cuts it, or mends it.
    pub(crate) fn set(&self, flow: Flow) {
        self.flow.send_replace(flow);
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, flow: watch::Receiver<Flow>, tasks: Tasks) {
    loop {
        let Ok((caller, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let (flow, stopping) = (flow.clone(), tasks.stopping());
        tasks.job("a connection", async move {
            tokio::select! {
                () = stopping => {}
                _ = carry(caller, to, flow) => {}
            }
        });
    }
}

async fn carry(caller: TcpStream, to: SocketAddr, flow: watch::Receiver<Flow>) -> io::Result<()> {
    let mut closed = flow.clone();
    let closed = closed.wait_for(|flow| *flow == Flow::Closed);
    let through = async {
        opened(flow.clone()).await;
        let callee = TcpStream::connect(to).await?;
        caller.set_nodelay(true)?;
        callee.set_nodelay(true)?;
        let (caller_reads, caller_writes) = caller.into_split();
        let (callee_reads, callee_writes) = callee.into_split();
        either(
            pump(caller_reads, callee_writes, flow.clone()),
            pump(callee_reads, caller_writes, flow.clone()),
        )
        .await
    };
    tokio::select! {
        _ = closed => Ok(()),
        done = through => done,
    }
}

async fn either(
    one: impl Future<Output = io::Result<()>>,
    other: impl Future<Output = io::Result<()>>,
) -> io::Result<()> {
    tokio::select! {
        done = one => done,
        done = other => done,
    }
}

async fn opened(mut flow: watch::Receiver<Flow>) {
    // Fails only when the link is gone; its connections go with it.
    let _ = flow.wait_for(|flow| *flow == Flow::Open).await;
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    flow: watch::Receiver<Flow>,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = from.read(&mut chunk).await?;
        if read == 0 {
            return Ok(());
        }
        opened(flow.clone()).await;
        to.write_all(&chunk[..read]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);
    const NOT: Duration = Duration::from_millis(100);

    async fn echo(listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let (mut reads, mut writes) = stream.into_split();
            let _ = tokio::io::copy(&mut reads, &mut writes).await;
        }
    }

    async fn read(stream: &mut TcpStream) -> io::Result<u8> {
        tokio::time::timeout(SOON, stream.read_u8()).await?
    }

    #[tokio::test]
    async fn a_silent_link_holds_back_and_a_closed_one_breaks() {
        let service = lifecycle::Service::new("test");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap().port();
        service.tasks.job("echo", echo(listener));
        let link = Link::open(&service.tasks, to).await.unwrap();
        let connect = || TcpStream::connect(("127.0.0.1", link.port));
        let mut stream = connect().await.unwrap();
        stream.write_u8(1).await.unwrap();
        assert_eq!(read(&mut stream).await.unwrap(), 1);
        link.set(Flow::Silent);
        stream.write_u8(2).await.unwrap();
        let held = tokio::time::timeout(NOT, stream.read_u8()).await;
        assert!(held.is_err(), "{held:?}");
        link.set(Flow::Open);
        assert_eq!(read(&mut stream).await.unwrap(), 2);
        link.set(Flow::Closed);
        assert!(read(&mut stream).await.is_err());
        let mut refused = connect().await.unwrap();
        assert!(read(&mut refused).await.is_err());
    }
}
