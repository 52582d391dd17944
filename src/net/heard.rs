//! The status of an answer over HTTP/1.1, heard as it passes.
//!
//! Some heads are answers to everybody else and none to the library that reads them: HTTP/1.0 with a `transfer-encoding`, or a
//! `content-length` that is no number, or is several. Whoever has sent such a head has said whether the event was taken, in its first
//! line. What is heard is that of the answer that is coming in, and of no other: it is forgotten as soon as anything comes, or goes, behind
//! its head.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hyper::StatusCode;

/// Of a line no more is kept: a status stands at its beginning.
const LINE_LEN: usize = 16;

/// Beside a status: its head is there to its end.
const WHOLE: u32 = 1 << 16;

/// The status of the answer whose head has begun to come, or has just come; 0: of none.
#[derive(Debug, Default)]
pub(super) struct Heard(AtomicU32);

impl Heard {
    /// The status, and whether the head has come to its end.
    pub fn status(&self) -> Option<(StatusCode, bool)> {
        let heard = self.0.load(Ordering::SeqCst);
        let status = StatusCode::from_u16((heard & !WHOLE) as u16).ok()?;
        Some((status, heard & WHOLE != 0))
    }

    fn forget(&self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

/// Where in an answer the bytes are that come next.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// In none, or in its body.
    #[default]
    Outside,
    /// In its first line.
    Status,
    /// In the head of an interim answer, behind which there is another.
    Interim,
    /// In its head.
    Head,
}

/// Listens to one connection.
#[derive(Debug, Default)]
pub(super) struct Listener {
    heard: Arc<Heard>,
    part: Part,
    line: Vec<u8>,
}

impl Listener {
    pub fn heard(&self) -> Arc<Heard> {
        self.heard.clone()
    }

    /// Something was sent.
    pub fn sent(&mut self) {
        if self.part == Part::Outside {
            self.heard.forget();
            self.part = Part::Status;
            self.line.clear();
        }
    }

    /// This has come, or, where it is nothing, the end.
    pub fn came(&mut self, bytes: &[u8]) {
        if self.part == Part::Outside {
            self.heard.forget();
            return;
        }
        for byte in bytes {
            match byte {
                b'\n' => self.ended_line(),
                _ if self.line.len() < LINE_LEN => self.line.push(*byte),
                _ => {}
            }
            if self.part == Part::Outside {
                return;
            }
        }
    }

    fn ended_line(&mut self) {
        let is_empty = matches!(*self.line, [] | [b'\r']);
        self.part = match self.part {
            Part::Status | Part::Interim if is_empty => Part::Status,
            Part::Status => match status_of(&self.line) {
                Some(status) if status.is_informational() => Part::Interim,
                Some(status) => {
                    self.heard.0.store(status.as_u16().into(), Ordering::SeqCst);
                    Part::Head
                }
                None => Part::Outside,
            },
            Part::Head if is_empty => {
                self.heard.0.fetch_or(WHOLE, Ordering::SeqCst);
                Part::Outside
            }
            other => other,
        };
        self.line.clear();
    }
}

/// `HTTP/1.1 200 OK`
fn status_of(line: &[u8]) -> Option<StatusCode> {
    let behind = line.strip_prefix(b"HTTP/1.")?;
    let (digits, rest) = behind
        .strip_prefix(b"0 ")
        .or(behind.strip_prefix(b"1 "))?
        .split_at_checked(3)?;
    let is_over = matches!(rest.first(), None | Some(b' ' | b'\r'));
    StatusCode::from_bytes(digits).ok().filter(|_| is_over)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is heard after each piece; below zero: of a head that goes on.
    fn heard(pieces: &[&str]) -> Vec<i32> {
        let mut listener = Listener::default();
        listener.sent();
        let said = |(status, is_whole): (StatusCode, bool)| i32::from(status.as_u16()) * if is_whole { 1 } else { -1 };
        let each = pieces.iter().map(|piece| {
            listener.came(piece.as_bytes());
            listener.heard().status().map_or(0, said)
        });
        each.collect()
    }

    #[test]
    fn a_status_is_heard_when_its_line_is_there_however_it_comes() {
        let old = "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(heard(&[old]), [200]);
        assert_eq!(
            heard(&["HT", "TP/1.1 50", "3\r", "\n", "x: y\n", "\r\n"]),
            [0, 0, 0, -503, -503, 503]
        );
        assert_eq!(heard(&["\r\n\nHTTP/1.1 204 \n\n"]), [204]);
        let interim = "HTTP/1.1 100 Continue\r\n";
        assert_eq!(heard(&[interim, "x: y\r\n\r\nHTTP/1.1 202 Ja\r\n"]), [0, -202]);
        for nonsense in [
            "HTTP/2 200",
            "HTTP/1.1 2000",
            "HTTP/1.1 20x",
            "HTTP/1.1  200",
            "HTTP/1.1",
        ] {
            assert_eq!(heard(&[nonsense, "\r\n", "HTTP/1.1 200 OK\r\n"]), [0; 3], "{nonsense}");
        }
    }

    #[test]
    fn what_is_heard_is_of_the_answer_that_is_coming_in_and_of_no_other() {
        let answer = "HTTP/1.1 200 OK\r\n\r\n";
        for behind in ["", "x", answer] {
            assert_eq!(heard(&[answer, behind]), [200, 0], "{behind:?}");
        }
        let mut listener = Listener::default();
        listener.came(answer.as_bytes());
        assert_eq!(listener.heard().status(), None, "nobody has asked");
        listener.sent();
        listener.came(b"HTTP/1.1 200 OK\r\nx:");
        listener.sent();
        assert!(
            listener.heard().status().is_some(),
            "an answer that is there before all was sent"
        );
        listener.came(b" y\r\n\r\n");
        listener.sent();
        assert_eq!(listener.heard().status(), None, "the next one is asked for");
    }
}
