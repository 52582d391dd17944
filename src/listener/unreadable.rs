//! What can't be read as a request is answered by the HTTP server itself, which hands nothing of it to whoever answers: a bare head
//! without an id. On the way out that is given an id and a body like every other answer's.
//!
//! For the public listener only, whose own answers say nothing of what others have sent: what looks like such a head is one. Where it is
//! not written as a whole and alone it goes out as it is.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Gives an answer its id.
pub type Name = fn() -> String;

/// A connection's stream on which the server's own answers are named.
#[derive(Debug)]
pub struct Named<S> {
    stream: S,
    /// `None`: they stay as they are.
    name: Option<Name>,
    /// Taken over, and not written yet: it goes before everything else.
    ours: Bytes,
}

impl<S> Named<S> {
    /// Of this connection.
    pub fn new(stream: S, name: Option<Name>) -> Named<S> {
        Named {
            stream,
            name,
            ours: Bytes::new(),
        }
    }

    /// What goes out in place of this; `None`: this does.
    fn in_place_of(&self, said: &[u8]) -> Option<Bytes> {
        in_place_of(said, self.name?)
    }
}

impl<S: AsyncWrite + Unpin> Named<S> {
    fn poll_ours(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        while self.ours.has_remaining() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.ours))?;
            if written == 0 {
                return Poll::Ready(Err(Error::from(ErrorKind::WriteZero)));
            }
            self.ours.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

/// The same answer with an id and a body, where it is one that the server has made.
fn in_place_of(said: &[u8], name: Name) -> Option<Bytes> {
    // All others are passed by at the first look.
    if !said.starts_with(b"HTTP/1.1 4") {
        return None;
    }
    let head = std::str::from_utf8(said).ok()?;
    let lines = head.strip_suffix("\r\n\r\n")?;
    if lines.contains("\r\n\r\n") || lines.contains("\r\nx-request-id:") {
        return None;
    }
    let (before, after) = head.split_once("\r\ncontent-length: 0\r\n")?;
    let error = match lines.get(9..12)? {
        "414" => "the address is too long",
        "431" => "the head of the request is too large",
        _ => "the request can't be read",
    };
    let body = format!("{{\"error\":\"{error}\"}}\n");
    let answer = format!(
        "{before}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nx-request-id: {}\r\n{after}{body}",
        body.len(),
        name()
    );
    Some(answer.into())
}

impl<S: AsyncRead + Unpin> AsyncRead for Named<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Named<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        ready!(self.poll_ours(context))?;
        if let Some(ours) = self.in_place_of(bytes) {
            self.ours = ours;
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_ours(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_ours(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        ready!(self.poll_ours(context))?;
        let mut parts = bytes.iter().filter(|part| !part.is_empty());
        if let (Some(alone), None) = (parts.next(), parts.next())
            && let Some(ours) = self.in_place_of(alone)
        {
            self.ours = ours;
            return Poll::Ready(Ok(alone.len()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const OWN: &str =
        "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";

    fn id() -> String {
        "id-1".to_owned()
    }

    /// What comes out at the other end of a pipe that takes little at a time.
    async fn out(name: Option<Name>, parts: &[&str]) -> String {
        let (near, mut far) = tokio::io::duplex(7);
        let writing = async {
            let mut stream = Named::new(near, name);
            for part in parts {
                stream.write_all(part.as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
            }
            stream.shutdown().await.unwrap();
        };
        let mut said = String::new();
        let ((), read) = tokio::join!(writing, far.read_to_string(&mut said));
        read.unwrap();
        said
    }

    #[tokio::test]
    async fn the_server_s_own_answer_gets_an_id_and_a_body() {
        let expected = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-type: application/json\r\n\
            content-length: 49\r\nx-request-id: id-1\r\ndate: x\r\n\r\n{\"error\":\"the head of the request is too large\"}\n";
        let before = "HTTP/1.1 200 OK\r\nx-request-id: id-0\r\ncontent-length: 2\r\n\r\nok";
        assert_eq!(out(Some(id), &[before, OWN]).await, format!("{before}{expected}"));
        assert_eq!(out(None, &[before, OWN]).await, format!("{before}{OWN}"));
        let bare = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
        let said = out(Some(id), &[bare]).await;
        let (head, body) = said.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "{\"error\":\"the request can't be read\"}\n");
        assert!(head.ends_with("\r\nx-request-id: id-1"), "{head}");
        assert!(
            head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())),
            "{head}"
        );
    }

    #[tokio::test]
    async fn all_else_goes_out_as_it_is() {
        for said in [
            "HTTP/1.1 405 Method Not Allowed\r\nx-request-id: id-0\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\nmore\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 5\r\n\r\n",
            "HTTP/1.1 4",
            "",
        ] {
            assert_eq!(out(Some(id), &[said]).await, said);
        }
    }
}
