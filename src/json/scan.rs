//! One pass over a text: checks that it is JSON, and remembers where the fields of its objects are.
//!
//! The grammar is RFC 8259's, with any nesting and without recursion. Every delivery comes through here before anything else is
//! done with it, so it is written for speed: strings, which are most of a delivery, are passed eight bytes at a time.

use super::{first_special, is_white};

/// Where one field of an object is in the text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub name_start: u32,
    pub name_end: u32,
    pub value_start: u32,
    pub value_end: u32,
    /// The index of the next field of the same object, or where that would be. Fields of the value stand in between.
    pub next: u32,
}

/// The fields of every object that is not inside an array, in the order of the text; none where the text is too long to tell
/// their places. `None` where it is not one JSON value.
pub(super) fn fields(text: &[u8]) -> Option<Vec<Field>> {
    // Growing costs; an event's field takes some 32 bytes of text.
    let fields = Vec::with_capacity(text.len().min(64 << 10) / 32);
    let remembers = u32::try_from(text.len()).is_ok();
    let mut scan = Scan::new(text, fields, remembers);
    scan.run()?;
    Some(scan.fields)
}

/// Whether it is one JSON value.
pub(super) fn is_valid(text: &[u8]) -> bool {
    Scan::new(text, Vec::new(), false).run().is_some()
}

/// A bracket that is not closed yet.
#[derive(Debug, Clone, Copy)]
enum Open {
    Array,
    /// An object that is the value of no field, or of one that is not remembered.
    Object,
    /// The object that is the value of this field.
    ValueOf(u32),
}

#[derive(Debug)]
struct Scan<'a> {
    text: &'a [u8],
    at: usize,
    open: Vec<Open>,
    /// How many of the open ones are arrays: nothing inside them is remembered.
    arrays: usize,
    fields: Vec<Field>,
    remembers: bool,
}

impl<'a> Scan<'a> {
    fn new(text: &'a [u8], fields: Vec<Field>, remembers: bool) -> Scan<'a> {
        Scan {
            text,
            at: 0,
            open: Vec::new(),
            arrays: 0,
            fields,
            remembers,
        }
    }

    /// `None` as soon as it is clear that this is no JSON.
    fn run(&mut self) -> Option<()> {
        self.skip_white();
        loop {
            match self.byte()? {
                b'"' => {
                    self.string()?;
                    self.simple_value_ended();
                }
                b'{' => {
                    self.open_object();
                    if self.byte()? != b'}' {
                        self.name()?;
                        continue;
                    }
                }
                b'[' => {
                    self.open_array();
                    if self.byte()? != b']' {
                        continue;
                    }
                }
                first => {
                    match first {
                        b't' => self.literal(b"true")?,
                        b'f' => self.literal(b"false")?,
                        b'n' => self.literal(b"null")?,
                        _ => self.number()?,
                    }
                    self.simple_value_ended();
                }
            }
            if !self.step()? {
                return Some(());
            }
        }
    }

    /// Behind a value: closes what ends here, and goes on to the next value. `false` at the end of the text.
    fn step(&mut self) -> Option<bool> {
        loop {
            self.skip_white();
            let Some(open) = self.open.last().copied() else {
                return (self.at == self.text.len()).then_some(false);
            };
            let byte = self.byte()?;
            self.at += 1;
            match (open, byte) {
                (Open::Array, b',') => {
                    self.skip_white();
                    return Some(true);
                }
                (Open::Object | Open::ValueOf(_), b',') => {
                    self.skip_white();
                    self.name()?;
                    return Some(true);
                }
                (Open::Array, b']') => {
                    self.open.pop();
                    self.arrays -= 1;
                    self.simple_value_ended();
                }
                (Open::Object, b'}') => drop(self.open.pop()),
                (Open::ValueOf(index), b'}') => {
                    self.open.pop();
                    let next = self.fields.len() as u32;
                    let field = &mut self.fields[index as usize];
                    (field.value_end, field.next) = (self.at as u32, next);
                }
                _ => return None,
            }
        }
    }

    fn open_object(&mut self) {
        // Not inside an array, a value's field is the newest one.
        let field = (self.fields.len() as u32).checked_sub(1);
        self.open.push(match field {
            Some(field) if self.arrays == 0 => Open::ValueOf(field),
            _ => Open::Object,
        });
        self.at += 1;
        self.skip_white();
    }

    fn open_array(&mut self) {
        self.open.push(Open::Array);
        self.arrays += 1;
        self.at += 1;
        self.skip_white();
    }

    /// A value that holds no fields ends here.
    fn simple_value_ended(&mut self) {
        if self.arrays == 0
            && let Some(field) = self.fields.last_mut()
        {
            field.value_end = self.at as u32;
        }
    }

    /// A field's name, the colon, and the white space around it.
    fn name(&mut self) -> Option<()> {
        let start = self.at;
        if self.byte()? != b'"' {
            return None;
        }
        self.string()?;
        let end = self.at;
        self.skip_white();
        if self.byte()? != b':' {
            return None;
        }
        self.at += 1;
        self.skip_white();
        if self.remembers && self.arrays == 0 {
            self.fields.push(Field {
                name_start: start as u32,
                name_end: end as u32,
                value_start: self.at as u32,
                // Until it is known.
                value_end: self.at as u32,
                next: self.fields.len() as u32 + 1,
            });
        }
        Some(())
    }

    fn string(&mut self) -> Option<()> {
        let mut at = self.at + 1;
        loop {
            while let Some(word) = self.text.get(at..).and_then(|rest| rest.first_chunk()) {
                let found = first_special(u64::from_le_bytes(*word));
                at += found;
                if found < 8 {
                    break;
                }
            }
            match *self.text.get(at)? {
                b'"' => {
                    self.at = at + 1;
                    return Some(());
                }
                b'\\' => at = self.escape_end(at)?,
                ..0x20 => return None,
                // One of the last seven bytes of the text.
                _ => at += 1,
            }
        }
    }

    /// Behind the escape that begins at `at`. Half a surrogate pair is one, too.
    fn escape_end(&self, at: usize) -> Option<usize> {
        match *self.text.get(at + 1)? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(at + 2),
            b'u' => {
                let digits = self.text.get(at + 2..at + 6)?;
                digits.iter().all(u8::is_ascii_hexdigit).then_some(at + 6)
            }
            _ => None,
        }
    }

    fn literal(&mut self, word: &[u8]) -> Option<()> {
        self.text[self.at..].starts_with(word).then(|| self.at += word.len())
    }

    fn number(&mut self) -> Option<()> {
        self.step_over(b"-");
        if !self.step_over(b"0") {
            self.digits()?;
        }
        if self.step_over(b".") {
            self.digits()?;
        }
        if self.step_over(b"eE") {
            self.step_over(b"+-");
            self.digits()?;
        }
        Some(())
    }

    /// At least one.
    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.byte().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }

    /// Whether one of these stood here.
    fn step_over(&mut self, bytes: &[u8]) -> bool {
        let is_here = self.byte().is_some_and(|byte| bytes.contains(&byte));
        self.at += usize::from(is_here);
        is_here
    }

    fn skip_white(&mut self) {
        while self.byte().is_some_and(is_white) {
            self.at += 1;
        }
    }

    fn byte(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }
}
