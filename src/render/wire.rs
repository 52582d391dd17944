//! What the daemon and the child that renders say to each other: frames of a length and fields, over a pair of sockets.
//!
//! Neither side believes the other: what can't be read is an end of the connection, and no length is believed beyond [`FRAME_MAX`].

use std::collections::BTreeMap;
use std::io::{self, Read};

use super::{Escape, Fault, Names, Payload, Program, Rendered};
use super::{Template, Transform};

/// Beyond this no frame goes: the longest body there can be, and what is said beside it.
pub(super) const FRAME_MAX: usize = 160 << 20;

/// Builds a frame.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub fn new(kind: u8) -> Writer {
        // Room for the length.
        Writer(vec![0, 0, 0, 0, kind])
    }

    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn number(&mut self, number: usize) {
        self.0
            .extend_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    fn optional(&mut self, text: Option<&str>) {
        self.byte(u8::from(text.is_some()));
        if let Some(text) = text {
            self.bytes(text.as_bytes());
        }
    }

    fn texts<'t>(&mut self, texts: impl IntoIterator<IntoIter: ExactSizeIterator<Item = &'t String>>) {
        let texts = texts.into_iter();
        self.number(texts.len());
        for text in texts {
            self.bytes(text.as_bytes());
        }
    }

    /// The frame, with its length in front.
    pub fn finish(mut self) -> Vec<u8> {
        let len = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&len.to_le_bytes());
        self.0
    }
}

/// Reads the fields of a frame; `None`: there is something else.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<usize> {
        let (number, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*number) as usize)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = self.number()?;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    fn texts(&mut self) -> Option<Vec<String>> {
        let count = self.number()?;
        (0..count).map(|_| self.text().map(str::to_owned)).collect()
    }

    /// A text that may be missing, for its own.
    fn optional(&mut self, text: &mut Option<String>) -> Option<()> {
        if self.byte()? != 0 {
            *text = Some(self.text()?.to_owned());
        }
        Some(())
    }
}

/// The next frame; `None`: the other side has gone.
pub(super) fn read_frame(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut len = [0; 4];
    match from.read_exact(&mut len) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let len = u32::from_le_bytes(len) as usize;
    if len > FRAME_MAX {
        return Err(io::Error::other("a frame is too long"));
    }
    let mut frame = vec![0; len];
    from.read_exact(&mut frame)?;
    Ok(Some(frame))
}

/// What the child is asked, by the first byte of the frame.
pub(super) const PROGRAMS: u8 = 1;
pub(super) const NAMES: u8 = 2;
pub(super) const WORK: u8 = 3;
pub(super) const CHECK: u8 = 4;

/// What it answers.
pub(super) const READY: u8 = 1;
pub(super) const DONE: u8 = 2;
pub(super) const SKIPPED: u8 = 3;
pub(super) const FAULT: u8 = 4;
pub(super) const OVERTIME: u8 = 5;
pub(super) const UNNAMED: u8 = 6;

/// Programs that are added to those which the child has, in order.
pub(super) fn programs(kind: u8, programs: &[&Program]) -> Vec<u8> {
    let mut frame = Writer::new(kind);
    frame.number(programs.len());
    for program in programs {
        let (kind, source) = match program {
            Program::Template(template) => {
                let kind = match template.escape() {
                    Escape::None => 0,
                    Escape::Html => 1,
                    Escape::Slack => 2,
                    Escape::Url => 4,
                    Escape::Json => 5,
                };
                (kind, template.source())
            }
            Program::Transform(transform) => (3, transform.source()),
        };
        frame.byte(kind);
        frame.bytes(source.as_bytes());
    }
    frame.finish()
}

pub(super) fn read_programs(frame: &mut Reader<'_>) -> Option<Vec<Program>> {
    let count = frame.number()?;
    (0..count)
        .map(|_| {
            let kind = frame.byte()?;
            let source = frame.text()?;
            let escape = match kind {
                0 => Escape::None,
                1 => Escape::Html,
                2 => Escape::Slack,
                4 => Escape::Url,
                5 => Escape::Json,
                _ => return Some(Program::Transform(Transform::unchecked(source))),
            };
            Some(Program::Template(Template::unchecked(source, escape)))
        })
        .collect()
}

pub(super) fn names(names: &Names) -> Vec<u8> {
    let mut frame = Writer::new(NAMES);
    frame.number(names.schemas().len());
    for (schema, fields) in names.schemas() {
        frame.bytes(schema.as_bytes());
        frame.number(fields.len());
        for (id, name) in fields {
            frame.bytes(id.as_bytes());
            frame.bytes(name.as_bytes());
        }
    }
    frame.optional(names.lacking.as_deref());
    frame.texts(&names.strangers);
    frame.byte(u8::from(names.is_followed));
    frame.finish()
}

pub(super) fn read_names(frame: &mut Reader<'_>) -> Option<Names> {
    let mut schemas: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for _ in 0..frame.number()? {
        let fields = schemas.entry(frame.text()?.to_owned()).or_default();
        for _ in 0..frame.number()? {
            let id = frame.text()?.to_owned();
            fields.insert(id, frame.text()?.to_owned());
        }
    }
    let mut names = Names::taken_over(schemas);
    frame.optional(&mut names.lacking)?;
    names.strangers = frame.texts()?.into_iter().collect();
    names.is_followed = frame.byte()? != 0;
    Some(names)
}

/// One event, and what is to be made of it.
#[derive(Debug, Clone)]
pub(super) struct Item<'a> {
    /// Which program makes the payload, if any.
    pub payload: Option<usize>,
    /// Which programs make the texts.
    pub texts: Vec<usize>,
    /// The event object.
    pub event: &'a str,
    /// What else templates see, as JSON.
    pub meta: &'a str,
}

pub(super) fn work(items: &[Item<'_>]) -> Vec<u8> {
    let mut frame = Writer::new(WORK);
    frame.number(items.len());
    for item in items {
        frame.number(item.payload.map_or(0, |program| program + 1));
        frame.number(item.texts.len());
        for program in &item.texts {
            frame.number(*program);
        }
        frame.bytes(item.event.as_bytes());
        frame.bytes(item.meta.as_bytes());
    }
    frame.finish()
}

pub(super) fn read_work<'a>(frame: &mut Reader<'a>) -> Option<Vec<Item<'a>>> {
    let count = frame.number()?;
    (0..count)
        .map(|_| {
            let payload = frame.number()?.checked_sub(1);
            let texts = frame.number()?;
            let texts = (0..texts).map(|_| frame.number()).collect::<Option<_>>()?;
            Some(Item {
                payload,
                texts,
                event: frame.text()?,
                meta: frame.text()?,
            })
        })
        .collect()
}

/// What was made of an event, its texts in the order in which they were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Done(Rendered, Vec<String>),
    Skipped,
    Fault(Fault),
    /// It passed a limit, as the program that runs it has seen by itself: it is blamed for what it does alone.
    Overtime(Fault),
    /// A template wants names of custom fields that are not there: of those with these ids, or of any.
    Unnamed(Vec<String>),
}

impl Reply {
    pub fn frame(&self) -> Vec<u8> {
        match self {
            Reply::Skipped => Writer::new(SKIPPED).finish(),
            Reply::Unnamed(ids) => {
                let mut frame = Writer::new(UNNAMED);
                frame.texts(ids);
                frame.finish()
            }
            Reply::Fault(fault) => fault_frame(FAULT, fault),
            Reply::Overtime(fault) => fault_frame(OVERTIME, fault),
            Reply::Done(rendered, texts) => {
                let mut frame = Writer::new(DONE);
                match &rendered.payload {
                    None => frame.byte(0),
                    Some(payload) => {
                        frame.byte(if matches!(payload, Payload::Text(_)) { 1 } else { 2 });
                        frame.bytes(payload.bytes());
                    }
                }
                frame.number(rendered.headers.len());
                for (name, value) in &rendered.headers {
                    frame.bytes(name.as_bytes());
                    frame.bytes(value.as_bytes());
                }
                frame.optional(rendered.key.as_deref());
                frame.optional(rendered.subject.as_deref());
                frame.texts(texts);
                frame.finish()
            }
        }
    }

    pub fn read(frame: &[u8]) -> Option<Reply> {
        let mut frame = Reader(frame);
        match frame.byte()? {
            SKIPPED => Some(Reply::Skipped),
            FAULT => read_fault(&mut frame).map(Reply::Fault),
            OVERTIME => read_fault(&mut frame).map(Reply::Overtime),
            UNNAMED => frame.texts().map(Reply::Unnamed),
            DONE => {
                let payload = match frame.byte()? {
                    0 => None,
                    1 => Some(Payload::Text(frame.text()?.to_owned().into())),
                    _ => Some(Payload::Json(frame.text()?.to_owned().into())),
                };
                let mut rendered = Rendered {
                    payload,
                    ..Rendered::default()
                };
                for _ in 0..frame.number()? {
                    let name = frame.text()?.to_owned();
                    rendered.headers.insert(name, frame.text()?.to_owned());
                }
                frame.optional(&mut rendered.key)?;
                frame.optional(&mut rendered.subject)?;
                let texts = frame.texts()?;
                Some(Reply::Done(rendered, texts))
            }
            _ => None,
        }
    }
}

fn fault_frame(kind: u8, fault: &Fault) -> Vec<u8> {
    let mut frame = Writer::new(kind);
    frame.number(fault.program.map_or(0, |program| program + 1));
    frame.optional(fault.place.map(|(line, column)| format!("{line}:{column}")).as_deref());
    frame.bytes(fault.text.as_bytes());
    frame.optional(fault.detail.as_deref());
    frame.finish()
}

fn read_fault(frame: &mut Reader<'_>) -> Option<Fault> {
    let program = frame.number()?.checked_sub(1);
    let mut place = None;
    frame.optional(&mut place)?;
    let place = place.and_then(|place| {
        let (line, column) = place.split_once(':')?;
        Some((line.parse().ok()?, column.parse().ok()?))
    });
    let mut fault = Fault {
        program,
        place,
        text: frame.text()?.to_owned(),
        detail: None,
    };
    frame.optional(&mut fault.detail)?;
    Some(fault)
}

/// The answer to [`PROGRAMS`], [`NAMES`] and [`CHECK`]: all is well, or what is wrong.
pub(super) fn ready(wrong: Option<&Fault>) -> Vec<u8> {
    wrong.map_or_else(|| Writer::new(READY).finish(), |fault| fault_frame(FAULT, fault))
}

pub(super) fn read_ready(frame: &[u8]) -> Option<Result<(), Fault>> {
    let mut frame = Reader(frame);
    match frame.byte()? {
        READY => Some(Ok(())),
        FAULT => read_fault(&mut frame).map(Err),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(frame: &[u8]) -> &[u8] {
        &frame[4..]
    }

    #[test]
    fn what_is_said_is_understood() {
        let item = Item {
            payload: Some(0),
            texts: vec![3, 1],
            event: "{}",
            meta: "{\"seq\":1}",
        };
        let frame = work(&[item.clone(), Item { payload: None, ..item }]);
        let mut reader = Reader(body(&frame));
        assert_eq!(reader.byte(), Some(WORK));
        let items = read_work(&mut reader).unwrap();
        assert_eq!((items[0].payload, items[1].payload), (Some(0), None));
        assert_eq!((&items[1].texts[..], items[1].meta), (&[3, 1][..], "{\"seq\":1}"));
        let rendered = Rendered {
            payload: Some(Payload::Json("{}".into())),
            headers: [("a".to_owned(), "b".to_owned())].into(),
            key: Some(String::new()),
            ..Rendered::default()
        };
        let fault = Fault {
            program: Some(2),
            place: Some((3, 4)),
            text: "no".into(),
            detail: None,
        };
        for reply in [
            Reply::Done(rendered, vec!["x".into(), String::new()]),
            Reply::Skipped,
            Reply::Fault(fault.clone()),
            Reply::Overtime(fault),
            Reply::Unnamed(Vec::new()),
            Reply::Unnamed(vec!["cf_1".into(), "cf_2".into()]),
        ] {
            assert_eq!(Reply::read(body(&reply.frame())), Some(reply));
        }
    }

    #[test]
    fn names_come_over_as_they_are() {
        let field = |id: &str| [(id.to_owned(), format!("Name of {id}"))];
        let known = Names::new([
            ("lead".to_owned(), field("cf_1")),
            ("contact".to_owned(), field("cf_2")),
        ]);
        let mut lacking = Names {
            lacking: Some("nobody has fetched them".into()),
            is_followed: true,
            ..Names::default()
        };
        lacking.estrange(["cf_3".to_owned()].into());
        for sent in [Names::default(), known, lacking] {
            let frame = names(&sent);
            let mut reader = Reader(body(&frame));
            assert_eq!(reader.byte(), Some(NAMES));
            assert_eq!(read_names(&mut reader), Some(sent));
            assert!(reader.0.is_empty());
        }
    }

    #[test]
    fn what_is_no_frame_is_no_panic() {
        let frame = Reply::Done(Rendered::default(), vec!["some text".into()]).frame();
        for len in 0..frame.len() - 4 {
            assert_eq!(Reply::read(&body(&frame)[..len]), None, "cut after {len}");
        }
        let huge = [0xFF; 8];
        assert!(read_frame(&mut &huge[..]).is_err());
        assert!(matches!(read_frame(&mut &huge[..2]), Ok(None)));
    }
}
