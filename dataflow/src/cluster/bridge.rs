//! TLS under timely: its threads speak to a local socket, a task carries the bytes through TLS to the peer.
//!
//! timely's network code wants a blocking stream that two threads share, which a TLS session is not. Nothing
//! is buffered here beyond 64 KiB a direction, so a peer that stops reading is felt by timely as before.
//! A connection that ends without TLS's farewell closes the local socket without timely's final message:
//! to timely, and so to `exit_on_panic`, that is a loss.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsStream;
use tracing::debug;

const BUFFER_BYTES: usize = 64 * 1024;
/// For the last bytes to reach the peers, once timely has handed them over.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// The tokio side of a cluster, alive as long as timely's threads are.
pub(super) struct Fabric {
    pub(super) runtime: Runtime,
    bridges: Vec<JoinHandle<()>>,
}

impl Fabric {
    pub(super) fn new() -> io::Result<Fabric> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("cluster-io")
            .enable_all()
            .build()?;
        Ok(Fabric { runtime, bridges: Vec::new() })
    }

    /// The local socket that stands for `remote`.
    pub(super) fn bridge(&mut self, mut remote: TlsStream<TcpStream>) -> io::Result<UnixStream> {
        let (ours, timelys) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let _guard = self.runtime.enter();
        let mut local = tokio::net::UnixStream::from_std(ours)?;
        self.bridges.push(self.runtime.spawn(async move {
            let copied =
                tokio::io::copy_bidirectional_with_sizes(&mut local, &mut remote, BUFFER_BYTES, BUFFER_BYTES).await;
            debug!(?copied, "data connection ended");
        }));
        Ok(timelys)
    }

    /// Waits until what timely has sent is with the peers.
    pub(super) fn drain(self) {
        let Fabric { runtime, bridges } = self;
        runtime.block_on(async {
            for bridge in bridges {
                timeout(DRAIN_LIMIT, bridge).await.ok();
            }
        });
        runtime.shutdown_timeout(Duration::from_secs(1));
    }
}
