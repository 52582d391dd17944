//! The Unix socket: a request is one JSON line, its answers are JSON lines, then `{"done":true}` or `{"error":"..."}`.
//!
//! Who says nothing locks nobody out: a client is let go when it falls silent before it has asked for something, and when there are
//! many like it, the oldest goes for the newest. Who has asked gets a place, or is told that all of them are taken: who reads no further
//! keeps its place only while nobody waits for one, and what is asked by somebody who has gone is not looked for any longer.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::control::{Answer, Answers, Facade, Refusal, Request};
use crate::sync::lock;
use crate::task::{self, WhileHeld};

/// Longest request: an import's batch, or a body to be signed.
const REQUEST_LEN_MAX: u64 = 128 << 20;

/// Commands answered at a time; more wait for [`PLACE_PATIENCE`].
const PLACES: usize = 64;

/// Connections at the most over which nothing has been asked yet, or that wait for a place.
const WAITING_MAX: usize = 64;

/// So long a client may be silent before it has asked for something. Commands ask as soon as they are connected.
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);

/// So long a place is waited for: less than [`SILENCE_MAX`], so that the client hears why.
const PLACE_PATIENCE: Duration = Duration::from_secs(5);

/// Who takes nothing for so long has stopped reading (`less`, Ctrl-Z), and gives its place to whoever waits for one.
const STOPPED_AFTER: Duration = Duration::from_secs(2);

/// Whoever waits for a place looks so often whether somebody has stopped reading.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(200);

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

/// Connections that go when others need what they hold, the oldest first: those over which nothing has been asked yet, or that wait for
/// a place; and those that have stopped reading.
#[derive(Debug, Default)]
struct Waiting(Mutex<VecDeque<CancellationToken>>);

/// One of them; cancelled when it has to go for a newer one.
struct Turn<'w> {
    waiting: &'w Waiting,
    over: CancellationToken,
}

impl Waiting {
    fn join(&self) -> Turn<'_> {
        let over = CancellationToken::new();
        let mut queue = lock(&self.0);
        if queue.len() >= WAITING_MAX
            && let Some(oldest) = queue.pop_front()
        {
            oldest.cancel();
        }
        queue.push_back(over.clone());
        Turn { waiting: self, over }
    }

    /// The oldest has to go, if there is one.
    fn one_goes(&self) {
        if let Some(oldest) = lock(&self.0).pop_front() {
            oldest.cancel();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Cancelled, it is none of those who wait any more: also where it has got its place.
        self.over.cancel();
        lock(&self.waiting.0).retain(|turn| !turn.is_cancelled());
    }
}

/// What the clients share.
struct Desk {
    facade: Arc<Facade>,
    waiting: Waiting,
    places: Semaphore,
    /// Those who have stopped reading.
    stopped: Waiting,
}

/// Answers commands until `shutdown`, and looks every so often whether the socket is still there.
pub async fn serve(
    socket: &tokio::sync::Mutex<Socket>,
    facade: Arc<Facade>,
    look_every: Duration,
    shutdown: CancellationToken,
) {
    let mut socket = socket.lock().await;
    let desk = Arc::new(Desk {
        facade,
        waiting: Waiting::default(),
        places: Semaphore::new(PLACES),
        stopped: Waiting::default(),
    });
    let mut look = tokio::time::interval(look_every);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_there = true;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = look.tick() => was_there = socket.is_there(was_there),
            accepted = socket.listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    // Out of file descriptors: that takes a moment to change.
                    tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                    continue;
                };
                let (desk, shutdown) = (desk.clone(), shutdown.clone());
                task::begin(async move {
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        // A client that goes away in the middle is its own business.
                        _ = desk.converse(stream) => {}
                    }
                });
            }
        }
    }
}

/// What a client asks for, as it says it.
async fn hear(reader: OwnedReadHalf) -> io::Result<String> {
    let mut reader = BufReader::new(reader.take(REQUEST_LEN_MAX));
    let mut line = Vec::new();
    loop {
        let said = tokio::time::timeout(REQUEST_PATIENCE, reader.fill_buf()).await??;
        let end = said.iter().position(|byte| *byte == b'\n');
        let len = end.map_or(said.len(), |end| end + 1);
        line.extend_from_slice(&said[..len]);
        reader.consume(len);
        if end.is_some() || len == 0 {
            return String::from_utf8(line).map_err(io::Error::other);
        }
    }
}

impl Desk {
    async fn converse(&self, stream: UnixStream) -> io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let turn = self.waiting.join();
        let line = tokio::select! {
            () = turn.over.cancelled() => return Ok(()),
            line = hear(reader) => line?,
        };
        let place = tokio::select! {
            () = turn.over.cancelled() => None,
            place = self.place() => place,
        };
        drop(turn);
        let end = match (Request::read(&line), place) {
            (Err(error), _) => {
                json!({ "error": format!("the daemon does not understand this command ({error}); is it another version?") })
            }
            (Ok(_), None) => json!({ "error": format!(
                "the daemon is answering {PLACES} other commands already, and takes no more: end some (`events tail`, `listen`, or what \
                 reads no further), then try again"
            ) }),
            (Ok(request), Some(_place)) => self.answer(request, &mut writer).await?,
        };
        self.say(&mut writer, format!("{end}\n").as_bytes()).await?;
        writer.shutdown().await
    }

    /// A place, as soon as there is one.
    async fn place(&self) -> Option<SemaphorePermit<'_>> {
        if let Ok(place) = self.places.try_acquire() {
            return Some(place);
        }
        let waiting = async {
            loop {
                self.stopped.one_goes();
                if let Ok(place) = tokio::time::timeout(LOOK_AGAIN_AFTER, self.places.acquire()).await {
                    return place.ok();
                }
            }
        };
        tokio::time::timeout(PLACE_PATIENCE, waiting).await.ok()?
    }

    /// Writes to a client. One that has stopped reading keeps its place while nobody waits for it.
    async fn say(&self, writer: &mut OwnedWriteHalf, bytes: &[u8]) -> io::Result<()> {
        let mut writing = pin!(writer.write_all(bytes));
        if let Ok(written) = tokio::time::timeout(STOPPED_AFTER, &mut writing).await {
            return written;
        }
        let stopped = self.stopped.join();
        tokio::select! {
            written = writing => written,
            () = stopped.over.cancelled() => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Answers a request, up to the last line.
    async fn answer(&self, request: Request, writer: &mut OwnedWriteHalf) -> io::Result<serde_json::Value> {
        // Nothing is begun for somebody who has gone meanwhile.
        self.say(writer, ALIVE).await?;
        let changes_nothing = matches!(request, Request::Ask(_));
        let (out, mut answers) = mpsc::channel(ANSWERS_MAX);
        let facade = self.facade.clone();
        let answering = task::begin(async move { facade.answer(request, &Answers::new(out)).await });
        // What changes something is carried out to its end, whoever goes; a question that nobody waits for any more is not.
        let _answering = changes_nothing.then(|| WhileHeld::of(&answering));
        loop {
            match tokio::time::timeout(ALIVE_EVERY, answers.recv()).await {
                Ok(Some(answer)) => {
                    let line = format!("{{\"answer\":{}}}\n", answer.get());
                    self.say(writer, line.as_bytes()).await?;
                }
                Ok(None) => break,
                Err(_) => self.say(writer, ALIVE).await?,
            }
        }
        Ok(match answering.await {
            Ok(Ok(())) => json!({ "done": true }),
            Ok(Err(refusal)) => json!({ "error": refusal }),
            Err(_) => json!({ "error": "the daemon has a defect here: its log says where" }),
        })
    }
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

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// The daemon gives none, and says why.
    #[error("{0}")]
    Refused(Refusal),
    /// Nothing is heard of it any more.
    #[error("{0}")]
    Gone(String),
}

/// What a line says.
enum Said {
    Item(Result<Answer, Unanswered>),
    /// That it is at work.
    Alive,
    /// That was all.
    Done,
}

fn read(line: &str) -> Said {
    let not_understood = || "the daemon's answer is not understood: is it another version?".to_owned();
    match serde_json::from_slice(line.as_bytes()) {
        Ok(Line {
            answer: Some(answer), ..
        }) => Said::Item(Ok(answer.to_owned())),
        Ok(Line { error: Some(error), .. }) => Said::Item(Err(Unanswered::Refused(error))),
        Ok(Line { done: Some(_), .. }) => Said::Done,
        Ok(Line { alive: Some(_), .. }) => Said::Alive,
        Ok(_) | Err(_) => Said::Item(Err(Unanswered::Refused(not_understood()))),
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
pub async fn ask(dir: &Path, request: &Request) -> io::Result<Option<mpsc::Receiver<Result<Answer, Unanswered>>>> {
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
    task::begin(async move {
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
                Ok(Ok(None) | Err(_)) => Err(Unanswered::Gone("the daemon stopped while it answered".to_owned())),
                Err(_) => Err(Unanswered::Gone(silent())),
            };
            let last = item.is_err();
            if out.send(item).await.is_err() || last {
                return;
            }
        }
    });
    Ok(Some(answers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_those_who_wait_the_oldest_goes_for_the_newest() {
        let waiting = Waiting::default();
        let mut turns: Vec<Turn<'_>> = (0..WAITING_MAX).map(|_| waiting.join()).collect();
        assert!(turns.iter().all(|turn| !turn.over.is_cancelled()));
        let newest = waiting.join();
        assert!(turns[0].over.is_cancelled() && !turns[1].over.is_cancelled() && !newest.over.is_cancelled());
        // Where one has gone by itself there is room, and no other has to.
        turns.pop();
        drop(turns.remove(0));
        let another = waiting.join();
        assert!(turns.iter().all(|turn| !turn.over.is_cancelled()));
        assert!(!newest.over.is_cancelled() && !another.over.is_cancelled());
        drop((turns, newest, another));
        assert!(lock(&waiting.0).is_empty());
    }
}
