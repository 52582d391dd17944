//! What the script on the server is told, and what it says.

use std::sync::LazyLock;

use ::redis::{Cmd, Value};

use super::answer::Said;
use super::entry::{BODY, Entry};
use crate::event::Seq;
use crate::sinks::{Mark, Unavailable};

/// All that is ever run there.
const SOURCE: &str = include_str!("script.lua");

static HASH: LazyLock<String> = LazyLock::new(|| ::redis::Script::new(SOURCE).get_hash().to_owned());

/// Whether nothing keeps a sink from writing there; writes nothing.
pub(super) fn look(keys: &[&str]) -> Cmd {
    begin(false, keys, (2, 0), "look")
}

/// Reads the mark and gives it another fence, so that who read it before can't commit any more.
pub(super) fn claim(keys: &[&str], fence: &str) -> Cmd {
    let mut command = begin(false, keys, (2, 0), "claim");
    command.arg(fence);
    command
}

/// `texts`: how many more there will be, and their bytes. Where these are not known, the command is copied as it grows.
fn begin(by_hash: bool, keys: &[&str], texts: (usize, usize), what: &str) -> Cmd {
    const AROUND: usize = 1024;
    let own: usize = keys.iter().map(|key| key.len()).sum();
    let own = own + AROUND + if by_hash { HASH.len() } else { SOURCE.len() };
    let mut command = Cmd::with_capacity(keys.len() + texts.0 + 3, own + texts.1);
    if by_hash {
        command.arg("EVALSHA").arg(HASH.as_str());
    } else {
        command.arg("EVAL").arg(SOURCE);
    }
    command.arg(keys.len()).arg(keys).arg(what);
    command
}

/// Entries that are added together with a mark.
pub(super) struct Adding<'b> {
    /// The key of the mark.
    pub(super) mark_key: &'b str,
    /// The fence that the mark has to have.
    pub(super) fence: &'b str,
    /// The one that it has then.
    pub(super) next: &'b str,
    pub(super) mark: &'b Mark,
    pub(super) moment: &'b str,
    pub(super) maxlen: Option<u64>,
    pub(super) entries: &'b [&'b Entry<'b>],
}

impl Adding<'_> {
    /// The streams, each once, and which one each entry is for.
    pub(super) fn streams(&self) -> (Vec<&str>, Vec<usize>) {
        let mut numbers = std::collections::HashMap::new();
        let mut streams = Vec::new();
        let of = self.entries.iter().map(|entry| {
            *numbers.entry(entry.stream).or_insert_with(|| {
                streams.push(entry.stream);
                streams.len() - 1
            })
        });
        let of = of.collect();
        (streams, of)
    }

    /// `by_hash`: the server knows the script by now.
    pub(super) fn command(&self, by_hash: bool) -> Cmd {
        let (streams, of) = self.streams();
        let mut keys = vec![self.mark_key];
        keys.extend(streams);
        let texts: usize = self.entries.iter().map(|entry| 2 * entry.fields.len() + 4).sum();
        let lens = self.entries.iter().map(|entry| entry.len());
        let mut command = begin(by_hash, &keys, (texts + 8, lens.sum()), "add");
        command
            .arg(self.fence)
            .arg(self.next)
            .arg(&self.mark.epoch)
            .arg(self.mark.seq.0)
            .arg(&self.mark.text)
            .arg(self.moment);
        match self.maxlen {
            Some(maxlen) => command.arg(maxlen),
            None => command.arg(""),
        };
        for (entry, stream) in self.entries.iter().zip(of) {
            command.arg(stream + 1).arg(2 * entry.fields.len() + 2);
            for (name, value) in &entry.fields {
                command.arg(*name).arg(value);
            }
            command.arg(BODY).arg(&entry.body[..]);
        }
        command
    }
}

/// What the script says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// All is added, and the mark moved.
    Added,
    /// The mark has another fence; the one it has, empty where there is no mark.
    Moved(String),
    /// Keys that are something else than they should be: their number, 0 is the mark, and what they are.
    Others(Vec<(usize, String)>),
    /// The entry of this number can't be added, and nothing was.
    Refused(usize, Said),
    /// The mark; `None` where there was none.
    Claimed(Option<Mark>),
    /// Nothing is in the way; whether the stream is there.
    Seen(bool),
}

impl Answer {
    pub(super) fn read(reply: &Value) -> Result<Answer, Unavailable> {
        read(reply)
            .ok_or_else(|| Unavailable::new("the server's answer to the script is none that it gives: is it Redis?"))
    }
}

fn read(reply: &Value) -> Option<Answer> {
    let Value::Array(parts) = reply else { return None };
    let (what, rest) = parts.split_first()?;
    Some(match (text(what)?.as_str(), rest) {
        ("added", []) => Answer::Added,
        ("moved", [fence]) => Answer::Moved(text(fence)?),
        ("others", found) => Answer::Others(
            found
                .chunks(2)
                .map(|pair| Some((number(pair.first()?)?, text(pair.get(1)?)?)))
                .collect::<Option<_>>()?,
        ),
        ("refused", [index, said]) => Answer::Refused(number(index)?, Said::parse(&text(said)?)),
        ("claimed", [epoch, seq, mark]) => {
            let mark = Mark {
                epoch: text(epoch)?,
                seq: Seq(text(seq)?.parse().unwrap_or_default()),
                text: text(mark)?,
            };
            Answer::Claimed(Some(mark).filter(|mark| !mark.text.is_empty()))
        }
        ("seen", [kind]) => Answer::Seen(text(kind)? == "stream"),
        _ => return None,
    })
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        _ => None,
    }
}

fn number(value: &Value) -> Option<usize> {
    match value {
        Value::Int(number) => usize::try_from(*number).ok(),
        _ => None,
    }
}
