//! The listener: connections within a limit, heads within a time, and an end in good order.
//!
//! Told to end, the server says that it is not ready and goes on for a while, because whoever sends requests to it learns of that
//! late. Then it closes the listener, finishes what it has accepted, for so long as it may, and is done. Told twice, it ends at once.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use vpt_backbone::Compute;
use vpt_base::{Error, Result};
use vpt_model::model::BackboneOrigin;
use vpt_model::model::task_file::TaskFile;

use crate::config::ServeConfig;
use crate::cores::Cores;
use crate::metrics::ServerMetrics;
use crate::routes;
use crate::service::Service;
use crate::store::TaskStore;
use crate::task_files;
use crate::upload::HEAD_TIMEOUT;

/// Bytes of a request's head at most.
const MOST_HEAD: usize = 64 << 10;
/// How long the listener waits for a connection that the system has accepted already, before it is closed.
const LAST_LOOK: Duration = Duration::from_millis(20);
/// How long a connection that came at the very end has to send its request.
const FIRST_WORDS: Duration = Duration::from_millis(250);
/// How long to wait where the system has no more room for connections.
const BREATHE: Duration = Duration::from_millis(100);
/// Threads that load tasks and embed texts; each waits most of the time.
const BLOCKING_THREADS: usize = 16;
/// Threads that read and write connections.
const CONNECTION_THREADS: usize = 2;

/// A server that listens.
#[derive(Debug)]
pub struct Serving {
    /// Where.
    pub address: SocketAddr,
    /// The backbone's name.
    pub backbone: String,
    /// Tasks that were found.
    pub tasks: usize,
    /// What may have been meant for tasks, with the reason why it is none.
    pub passed_by: Vec<String>,
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// In good order.
    Drained,
    /// With requests that took too long.
    Late,
    /// At once, since it was told twice; the number of the signal.
    Killed(i32),
}

/// Serves until it is told to end by SIGTERM or SIGINT. `listening` is called once requests are answered, `log` with a line for each of
/// them and for what happens to tasks.
///
/// # Errors
/// There is nothing to listen at, no task or backbone to begin with, or the backbone cannot be opened.
pub fn serve(
    config: ServeConfig,
    log: Arc<dyn Fn(&str) + Send + Sync>,
    listening: impl FnOnce(&Serving) -> Result<()>,
) -> Result<Ended> {
    let listener = listen(&config)?;
    let address = listener.local_addr().map_err(|error| Error::invalid("address", error.to_string()))?;
    let cores = Cores::open(&backbone_of(&config)?)?;
    let backbone = cores.own().name.clone();
    let metrics = Arc::new(ServerMetrics::new(&backbone, cores.own().vit.precision().name()));
    let of_store = log.clone();
    let store = Arc::new(TaskStore::new(&config, cores, metrics.clone(), Box::new(move |line| of_store(line))));
    let serving = Serving { address, backbone, tasks: store.len(), passed_by: store.passed_by() };
    let fault = |error: std::io::Error| Error::invalid("server", error.to_string());
    let service = Arc::new(Service::new(config, store, metrics, log).map_err(fault)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONNECTION_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("http")
        .enable_all()
        .build()
        .map_err(fault)?;
    let ended = runtime.block_on(async {
        let signals = Signals::listen(service.clone()).map_err(fault)?;
        listener.set_nonblocking(true).map_err(fault)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(fault)?;
        listening(&serving)?;
        Ok(accept(listener, service, signals).await)
    });
    runtime.shutdown_background();
    ended
}

/// The socket.
fn listen(config: &ServeConfig) -> Result<TcpListener> {
    let refused = |error: std::io::Error| {
        let message = format!("{}:{} cannot be listened at: {error}", config.host, config.port);
        Error::invalid("address", message)
    };
    let addresses: Vec<SocketAddr> = (config.host.as_str(), config.port).to_socket_addrs().map_err(refused)?.collect();
    TcpListener::bind(&addresses[..]).map_err(refused)
}

/// The backbone that is asked for, or that of the first task; with the number format of that task's run unless one is asked for.
fn backbone_of(config: &ServeConfig) -> Result<BackboneOrigin> {
    let (weights_dir, precision) = (config.weights_dir.clone(), config.precision);
    if let Some(backbone) = config.backbone.clone() {
        return Ok(BackboneOrigin { backbone, weights_dir, precision, compute: Compute::default() });
    }
    let found = task_files::find(&config.tasks);
    let mut refused = None;
    for path in found.tasks.values() {
        match TaskFile::open(path) {
            Ok(file) => {
                let origin = BackboneOrigin::of(&file, path);
                let (weights_dir, precision) = (weights_dir.or(origin.weights_dir), precision.or(origin.precision));
                return Ok(BackboneOrigin { weights_dir, precision, ..origin });
            }
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    let none = || Error::setting("backbone", "there is no task yet that says on which; name it");
    Err(refused.unwrap_or_else(none))
}

/// What the process was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StopSignal {
    Nothing,
    ToEnd,
    /// Once more, by this signal.
    Again(i32),
}

/// Listens to signals.
#[derive(Debug, Clone)]
struct Signals(watch::Receiver<StopSignal>);

impl Signals {
    /// SIGTERM and SIGINT end the server, SIGHUP has it look for tasks.
    #[cfg(unix)]
    fn listen(service: Arc<Service>) -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let (sender, receiver) = watch::channel(StopSignal::Nothing);
        let [mut term, mut int, mut hup] =
            [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?];
        tokio::spawn(async move {
            loop {
                let number = tokio::select! {
                    _ = term.recv() => SignalKind::terminate().as_raw_value(),
                    _ = int.recv() => SignalKind::interrupt().as_raw_value(),
                    _ = hup.recv() => {
                        rescan(&service).await;
                        continue;
                    }
                };
                let again = *sender.borrow() != StopSignal::Nothing;
                let _ = sender.send(if again { StopSignal::Again(number) } else { StopSignal::ToEnd });
            }
        });
        Ok(Self(receiver))
    }

    #[cfg(not(unix))]
    fn listen(_: Arc<Service>) -> std::io::Result<Self> {
        let (sender, receiver) = watch::channel(StopSignal::Nothing);
        tokio::spawn(async move {
            let mut told = StopSignal::ToEnd;
            while tokio::signal::ctrl_c().await.is_ok() {
                let _ = sender.send(told);
                told = StopSignal::Again(2);
            }
        });
        Ok(Self(receiver))
    }

    /// Until the server was told to end.
    async fn first(&mut self) {
        let _ = self.0.wait_for(|told| *told != StopSignal::Nothing).await;
    }

    /// Until it was told so again, with the number of the signal.
    async fn again(&mut self) -> i32 {
        match self.0.wait_for(|told| matches!(told, StopSignal::Again(_))).await.map(|told| *told) {
            Ok(StopSignal::Again(number)) => number,
            // The signals' task never ends.
            _ => std::future::pending().await,
        }
    }
}

/// Looks for tasks on a thread that may wait for the disk.
async fn rescan(service: &Arc<Service>) {
    let service = service.clone();
    let look = move || {
        if let Err(panic) = vpt_base::contain::contain(|| service.store.rescan()) {
            (service.log)(&format!("tasks could not be looked for: {panic}"));
        }
    };
    let _ = tokio::task::spawn_blocking(look).await;
}

/// Accepts connections until the end.
async fn accept(listener: tokio::net::TcpListener, service: Arc<Service>, mut signals: Signals) -> Ended {
    let router = routes::router(service.clone());
    let connections = Arc::new(Semaphore::new(service.config.max_connections));
    let graceful = GracefulShutdown::new();
    let looking = {
        let service = service.clone();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(service.config.rescan.max(Duration::from_millis(50)));
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            ticks.tick().await;
            loop {
                ticks.tick().await;
                rescan(&service).await;
            }
        })
    };
    let mut again = signals.clone();
    let ending = async {
        signals.first().await;
        service.drain();
        (service.log)("told to end: not ready any more");
        tokio::time::sleep(service.config.drain_delay).await;
    };
    tokio::pin!(ending);
    let next = || async {
        let permit = connections.clone().acquire_owned().await;
        (listener.accept().await, permit)
    };
    loop {
        let accepted = tokio::select! {
            accepted = next() => accepted,
            () = &mut ending => break,
            number = again.again() => return Ended::Killed(number),
        };
        match accepted {
            (Ok((stream, _)), Ok(permit)) => connect(stream, &router, &graceful, &service, permit),
            // No more files, or the client has gone already.
            _ => tokio::time::sleep(BREATHE).await,
        }
    }
    // The system may have accepted some more.
    let last = tokio::time::Instant::now() + 10 * LAST_LOOK;
    while tokio::time::Instant::now() < last
        && let Ok((Ok((stream, _)), Ok(permit))) = tokio::time::timeout(LAST_LOOK, next()).await
    {
        connect(stream, &router, &graceful, &service, permit);
    }
    // What has come meanwhile: between the last look and the closing nothing is waited for.
    if let Ok(listener) = listener.into_std() {
        while let Ok((stream, _)) = listener.accept() {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            if let (Ok(stream), Ok(permit)) = (stream, connections.clone().try_acquire_owned()) {
                connect(stream, &router, &graceful, &service, permit);
            }
        }
    }
    looking.abort();
    let all_done = async {
        // A connection whose request is still on its way would be taken for idle and closed.
        tokio::time::sleep(FIRST_WORDS).await;
        graceful.shutdown().await;
        while !service.scheduler.is_idle() {
            tokio::time::sleep(LAST_LOOK).await;
        }
    };
    tokio::select! {
        () = all_done => Ended::Drained,
        () = tokio::time::sleep(service.config.drain_timeout) => Ended::Late,
        number = again.again() => Ended::Killed(number),
    }
}

/// Serves one connection on a task of its own.
fn connect(
    stream: TcpStream,
    router: &Router,
    graceful: &GracefulShutdown,
    service: &Arc<Service>,
    permit: OwnedSemaphorePermit,
) {
    // Answers are small and wanted at once.
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MOST_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
    let connection = graceful.watch(connection);
    let service = service.clone();
    service.metrics.connections.inc();
    tokio::spawn(async move {
        // What goes wrong on a connection is its client's affair.
        let _ = connection.await;
        service.metrics.connections.dec();
        drop(permit);
    });
}
