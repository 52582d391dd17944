//! The Unix socket: a request is one JSON line, its answers are JSON lines, then `{"done":true}` or `{"error":"..."}`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::control::{Answer, Answers, Facade, Refusal, Request};

/// Longest request: an import's batch, or a body to be signed.
const REQUEST_LEN_MAX: u64 = 128 << 20;

/// Commands served at a time; more wait.
const CONNECTIONS_MAX: usize = 64;

/// Answers on their way at the most; a slow reader slows the reading of the log.
const ANSWERS_MAX: usize = 64;

/// While an answer is being made the daemon says this often that it is at work.
const ALIVE_EVERY: Duration = Duration::from_secs(1);
const ALIVE: &[u8] = b"{\"alive\":true}\n";

/// A daemon that has said nothing for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Pause after a connection that could not be accepted.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Where the socket is in a data directory.
pub fn path(dir: &Path) -> PathBuf {
    dir.join("closehook.sock")
}

/// Longest path the kernel takes for a socket on every system: `sun_path` has 108 bytes, with a zero at the end.
const ADDRESS_LEN_MAX: usize = 107;

/// A path by which the kernel can find the socket. A data directory may lie deeper than a socket's address is long; then it
/// is reached through a descriptor of the directory, which must live as long as the address is used.
struct Address {
    path: PathBuf,
    _dir: Option<std::fs::File>,
}

impl Address {
    fn of(dir: &Path) -> io::Result<Address> {
        use std::os::fd::AsRawFd;
        let path = path(dir);
        if path.as_os_str().len() <= ADDRESS_LEN_MAX {
            return Ok(Address { path, _dir: None });
        }
        let dir = std::fs::File::open(dir)?;
        Ok(Address {
            path: self::path(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd()))),
            _dir: Some(dir),
        })
    }
}

/// Connects to the daemon that has the directory.
pub async fn connect(dir: &Path) -> io::Result<UnixStream> {
    let address = Address::of(dir)?;
    UnixStream::connect(&address.path).await
}

/// So often the daemon looks whether its socket is still where commands look for it.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The daemon's end of the socket.
#[derive(Debug)]
pub struct Socket {
    dir: PathBuf,
    listener: UnixListener,
    /// Which file it is: device and inode.
    id: (u64, u64),
}

impl Socket {
    /// Makes the socket (mode 0600); one that a killed daemon left is replaced. Only for the holder of the directory's lock.
    pub fn bind(dir: &Path) -> io::Result<Socket> {
        let path = path(dir);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&Address::of(dir)?.path)?;
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, permissions)?;
        Ok(Socket {
            dir: dir.to_owned(),
            listener,
            id: id_of(&path)?,
        })
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        path(&self.dir)
    }

    /// Makes it again where somebody has taken it away (what cleans up old files, say): without it nobody can ask the daemon. Gives
    /// whether it is there now; that it is not is said once.
    fn is_there(&mut self, was_there: bool) -> bool {
        match id_of(&self.path()) {
            Ok(id) if id == self.id => return true,
            // What can't be looked at may well be there.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return was_there,
            _ => {}
        }
        let shown = self.path().display().to_string();
        match Socket::bind(&self.dir) {
            Ok(again) => {
                *self = again;
                tracing::warn!(
                    "somebody has removed {shown}, by which commands ask the daemon: it is made again; whatever cleans up there \
                     should leave the data directory alone"
                );
                true
            }
            Err(error) => {
                if was_there {
                    tracing::error!(
                        "{shown}, by which commands ask the daemon, is gone and can't be made again ({error}): this is tried again"
                    );
                }
                false
            }
        }
    }
}

fn id_of(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// Answers commands until `shutdown`, and looks every so often whether the socket is still there.
pub async fn serve(socket: &Mutex<Socket>, facade: Arc<Facade>, look_every: Duration, shutdown: CancellationToken) {
    let mut socket = socket.lock().await;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut look = tokio::time::interval(look_every);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_there = true;
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = look.tick() => was_there = socket.is_there(was_there),
            accepted = socket.listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    // Out of file descriptors: that takes a moment to change.
                    tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                    continue;
                };
                let (facade, shutdown) = (facade.clone(), shutdown.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        // A client that goes away in the middle is its own business.
                        _ = converse(stream, facade) => {}
                    }
                    drop(place);
                });
            }
        }
    }
}

async fn converse(stream: UnixStream, facade: Arc<Facade>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reader.take(REQUEST_LEN_MAX))
        .read_line(&mut line)
        .await?;
    let end = match Request::read(&line) {
        Err(error) => {
            json!({ "error": format!("the daemon does not understand this command ({error}); is it another version?") })
        }
        Ok(request) => {
            // Nothing is begun for somebody who has gone meanwhile.
            writer.write_all(ALIVE).await?;
            let (out, mut answers) = mpsc::channel(ANSWERS_MAX);
            let answering = tokio::spawn(async move { facade.answer(request, &Answers::new(out)).await });
            loop {
                match tokio::time::timeout(ALIVE_EVERY, answers.recv()).await {
                    Ok(Some(answer)) => {
                        let line = format!("{{\"answer\":{}}}\n", answer.get());
                        writer.write_all(line.as_bytes()).await?;
                    }
                    Ok(None) => break,
                    Err(_) => writer.write_all(ALIVE).await?,
                }
            }
            match answering.await {
                Ok(Ok(())) => json!({ "done": true }),
                Ok(Err(refusal)) => json!({ "error": refusal }),
                Err(_) => json!({ "error": "the daemon has a defect here: its log says where" }),
            }
        }
    };
    writer.write_all(format!("{end}\n").as_bytes()).await?;
    writer.shutdown().await
}

/// A line of the daemon's.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    answer: Option<&'a RawValue>,
    done: Option<bool>,
    error: Option<String>,
    /// It is at work.
    alive: Option<bool>,
}

/// What a line says.
enum Said {
    Item(Result<Answer, Refusal>),
    /// That it is at work.
    Alive,
    /// That was all.
    Done,
}

fn read(line: &str) -> Said {
    let not_understood = || "the daemon's answer is not understood: is it another version?".to_owned();
    match serde_json::from_str(line) {
        Ok(Line {
            answer: Some(answer), ..
        }) => Said::Item(Ok(answer.to_owned())),
        Ok(Line { error: Some(error), .. }) => Said::Item(Err(error)),
        Ok(Line { done: Some(_), .. }) => Said::Done,
        Ok(Line { alive: Some(_), .. }) => Said::Alive,
        Ok(_) | Err(_) => Said::Item(Err(not_understood())),
    }
}

fn silent() -> String {
    format!(
        "the daemon has this directory and does not answer within {} s: it is stopped, or has far too much to do (`systemctl status \
         closehook`, or look at its process); nothing is known of what it was asked",
        SILENCE_MAX.as_secs()
    )
}

/// Asks a running daemon. `None`: none runs.
pub async fn ask(dir: &Path, request: &Request) -> io::Result<Option<mpsc::Receiver<Result<Answer, Refusal>>>> {
    let connected = tokio::time::timeout(SILENCE_MAX, connect(dir)).await;
    let stream = match connected.unwrap_or_else(|_| Err(io::Error::other(silent()))) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let (reader, mut writer) = stream.into_split();
    writer
        .write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes())
        .await?;
    let (out, answers) = mpsc::channel(ANSWERS_MAX);
    tokio::spawn(async move {
        // Kept open: the daemon stops answering when we go.
        let _writer = writer;
        let mut lines = BufReader::new(reader).lines();
        loop {
            let line = tokio::select! {
                line = tokio::time::timeout(SILENCE_MAX, lines.next_line()) => line,
                () = out.closed() => return,
            };
            let item = match line {
                Ok(Ok(Some(line))) => match read(&line) {
                    Said::Item(item) => item,
                    Said::Alive => continue,
                    Said::Done => return,
                },
                Ok(Ok(None) | Err(_)) => Err("the daemon stopped while it answered".to_owned()),
                Err(_) => Err(silent()),
            };
            let last = item.is_err();
            if out.send(item).await.is_err() || last {
                return;
            }
        }
    });
    Ok(Some(answers))
}
