//! A session and a server of which each test says what it does. What RabbitMQ does is in `tests/it/sinks_amqp.rs`.

use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::sinks::amqp::message::Message;

/// The server's side of a session.
pub(in crate::sinks::amqp) struct Fake(Wire);

/// Where a [`Fake`] is found.
pub(in crate::sinks::amqp) struct Door(TcpListener);

impl Door {
    pub(in crate::sinks::amqp) async fn open() -> Door {
        Door(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub(in crate::sinks::amqp) fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    pub(in crate::sinks::amqp) async fn accept(&self) -> TcpStream {
        self.0.accept().await.unwrap().0
    }

    fn server(&self) -> Server {
        Server {
            host: "127.0.0.1".into(),
            port: self.port(),
            vhost: "/".into(),
            login: Login::Plain {
                user: "guest".into(),
                password: "hunter22".to_owned().into(),
            },
            tls: None,
            name: "closehook test".into(),
        }
    }
}

impl Fake {
    /// Lets whoever comes in, up to an open channel.
    pub(in crate::sinks::amqp) async fn greet(door: &Door) -> Fake {
        let mut fake = Fake::start(door).await;
        fake.hears().await;
        let tune = connection::Tune {
            channel_max: 2047,
            frame_max: 131_072,
            heartbeat: 60,
        };
        fake.says(on_connection(connection::AMQPMethod::Tune(tune))).await;
        fake.hears().await;
        let AMQPFrame::Method(0, AMQPClass::Connection(connection::AMQPMethod::Open(open))) = fake.hears().await else {
            panic!("no open");
        };
        assert_eq!(open.virtual_host.as_str(), "/");
        fake.says(on_connection(connection::AMQPMethod::OpenOk(connection::OpenOk {})))
            .await;
        fake.open_channel().await;
        fake
    }

    async fn start(door: &Door) -> Fake {
        let mut tcp = door.accept().await;
        let mut header = [0; 8];
        tcp.read_exact(&mut header).await.unwrap();
        assert_eq!(&header, b"AMQP\0\0\x09\x01");
        let mut fake = Fake(Wire::over(Box::new(tcp)));
        fake.0.frame_len_max = 1 << 20;
        let start = connection::Start {
            version_major: 0,
            version_minor: 9,
            server_properties: FieldTable::default(),
            mechanisms: "AMQPLAIN PLAIN".into(),
            locales: "en_US".into(),
        };
        fake.says(on_connection(connection::AMQPMethod::Start(start))).await;
        fake
    }

    async fn open_channel(&mut self) {
        self.hears().await;
        let ok = channel::AMQPMethod::OpenOk(channel::OpenOk {});
        self.says(on_channel(AMQPClass::Channel(ok))).await;
        self.hears().await;
        let ok = confirm::AMQPMethod::SelectOk(confirm::SelectOk {});
        self.says(on_channel(AMQPClass::Confirm(ok))).await;
    }

    pub(in crate::sinks::amqp) async fn says(&mut self, frame: AMQPFrame) {
        self.0.put_frame(&frame).unwrap();
        while self.0.unsent() > 0 {
            self.0.turn().await.unwrap();
        }
    }

    /// The next frame that says something.
    async fn hears(&mut self) -> AMQPFrame {
        loop {
            match self.0.frame().unwrap() {
                Some(AMQPFrame::Heartbeat) => {}
                Some(frame) => return frame,
                None => self.0.turn().await.unwrap(),
            }
        }
    }

    /// Whether what comes next is a message.
    pub(in crate::sinks::amqp) async fn hears_a_message(&mut self) -> bool {
        matches!(self.hears().await, AMQPFrame::Method(CHANNEL, AMQPClass::Basic(_)))
    }

    /// So many messages: their routing keys, and their bodies.
    pub(in crate::sinks::amqp) async fn messages(&mut self, count: usize) -> Vec<(String, Vec<u8>)> {
        let mut messages = Vec::new();
        while messages.len() < count {
            let AMQPFrame::Method(CHANNEL, AMQPClass::Basic(basic::AMQPMethod::Publish(publish))) = self.hears().await
            else {
                panic!("no message");
            };
            assert!(publish.mandatory);
            let AMQPFrame::Header(CHANNEL, header) = self.hears().await else {
                panic!("no head");
            };
            let mut body = Vec::new();
            while (body.len() as u64) < header.body_size {
                let AMQPFrame::Body(CHANNEL, part) = self.hears().await else {
                    panic!("no body");
                };
                body.extend_from_slice(&part);
            }
            messages.push((publish.routing_key.to_string(), body));
        }
        messages
    }

    pub(in crate::sinks::amqp) async fn acks(&mut self, delivery_tag: u64, multiple: bool) {
        let ack = basic::AMQPMethod::Ack(basic::Ack { delivery_tag, multiple });
        self.says(on_channel(AMQPClass::Basic(ack))).await;
    }

    pub(in crate::sinks::amqp) async fn nacks(&mut self, delivery_tag: u64, multiple: bool) {
        let nack = basic::AMQPMethod::Nack(basic::Nack {
            delivery_tag,
            multiple,
            requeue: false,
        });
        self.says(on_channel(AMQPClass::Basic(nack))).await;
    }

    /// Sends a message back, in two frames.
    pub(in crate::sinks::amqp) async fn returns(&mut self, id: &str) {
        let back = basic::AMQPMethod::Return(basic::Return {
            reply_code: 312,
            reply_text: "NO_ROUTE".into(),
            exchange: "close".into(),
            routing_key: "x".into(),
        });
        self.says(on_channel(AMQPClass::Basic(back))).await;
        let header = amq_protocol::frame::AMQPContentHeader {
            class_id: 60,
            body_size: 5,
            properties: basic::AMQPProperties::default().with_message_id(id.into()),
        };
        self.says(AMQPFrame::Header(CHANNEL, header)).await;
        self.says(AMQPFrame::Body(CHANNEL, b"hel".to_vec())).await;
        self.says(AMQPFrame::Body(CHANNEL, b"lo".to_vec())).await;
    }

    pub(in crate::sinks::amqp) async fn blocks(&mut self) {
        let blocked = connection::Blocked {
            reason: "low on memory".into(),
        };
        self.says(on_connection(connection::AMQPMethod::Blocked(blocked))).await;
    }

    pub(in crate::sinks::amqp) async fn unblocks(&mut self) {
        let unblocked = connection::AMQPMethod::Unblocked(connection::Unblocked {});
        self.says(on_connection(unblocked)).await;
    }

    async fn closes_channel(&mut self, code: u16, text: &str) {
        let close = channel::AMQPMethod::Close(channel::Close {
            reply_code: code,
            reply_text: text.into(),
            class_id: 60,
            method_id: 40,
        });
        self.says(on_channel(AMQPClass::Channel(close))).await;
    }
}

fn messages(ids: &[&str]) -> Vec<Message> {
    let message = |(index, id): (usize, &&str)| {
        let publish = basic::AMQPMethod::Publish(basic::Publish {
            exchange: "close".into(),
            routing_key: (*id).into(),
            mandatory: true,
            immediate: false,
        });
        let header = amq_protocol::frame::AMQPContentHeader {
            class_id: 60,
            body_size: 5,
            properties: basic::AMQPProperties::default().with_message_id((*id).into()),
        };
        let mut head = super::super::wire::encoded(&on_channel(AMQPClass::Basic(publish))).unwrap();
        let properties = super::super::wire::encoded(&AMQPFrame::Header(CHANNEL, header)).unwrap();
        head.extend_from_slice(&properties);
        Message {
            index,
            id: (*id).to_owned(),
            head,
            properties_len: properties.len(),
            body: "hello".into(),
        }
    };
    ids.iter().enumerate().map(message).collect()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// A session, and its other side.
async fn pair() -> (Session, Fake) {
    let door = Door::open().await;
    let server = door.server();
    let (session, fake) = tokio::join!(Session::open(&server, soon()), Fake::greet(&door));
    (session.ok().unwrap(), fake)
}

use Fate::{Refused, Returned, Taken};

#[tokio::test]
async fn each_message_has_its_own_fate_however_the_server_confirms_them() {
    let (mut session, mut fake) = pair().await;
    let five = messages(&["a", "b", "c", "d", "e"]);
    let (fared, ()) = tokio::join!(session.publish(&five, soon()), async {
        let came = fake.messages(5).await;
        assert_eq!(came[1], ("b".to_owned(), b"hello".to_vec()));
        // Two come back, and one confirmation is for four of them.
        fake.returns("b").await;
        fake.returns("d").await;
        fake.acks(4, true).await;
        fake.acks(5, false).await;
    });
    let fates: Vec<Fate> = fared.0.into_iter().flatten().collect();
    assert_eq!(
        (fates, fared.1),
        (vec![Taken, Returned, Taken, Returned, Taken], Ok(()))
    );

    // In any order; of equal ids the first one that was not back yet; and the numbers go on.
    let more = messages(&["a", "a", "b", "c"]);
    let (fared, ()) = tokio::join!(session.publish(&more, soon()), async {
        fake.messages(4).await;
        fake.returns("a").await;
        fake.acks(9, false).await;
        fake.acks(6, false).await;
        fake.nacks(8, true).await;
    });
    let fates: Vec<Fate> = fared.0.into_iter().flatten().collect();
    assert_eq!((fates, fared.1), (vec![Returned, Refused, Refused, Taken], Ok(())));

    let last = messages(&["a", "b"]);
    let (fared, ()) = tokio::join!(session.publish(&last, soon()), async {
        fake.messages(2).await;
        // All there are.
        fake.acks(0, true).await;
    });
    assert_eq!(fared, (vec![Some(Taken), Some(Taken)], Ok(())));
}

#[tokio::test]
async fn what_was_confirmed_before_an_end_stays_so() {
    let (mut session, mut fake) = pair().await;
    let three = messages(&["a", "b", "c"]);
    let (fared, ()) = tokio::join!(session.publish(&three, soon()), async {
        fake.messages(3).await;
        fake.acks(1, false).await;
        fake.closes_channel(
            406,
            "PRECONDITION_FAILED - message size 9 is larger than configured max size 5",
        )
        .await;
    });
    let Err(End::Channel(closed)) = &fared.1 else {
        panic!("{:?}", fared.1);
    };
    assert_eq!((closed.code, closed.by_publish), (406, true));
    assert_eq!(fared.0, [Some(Taken), None, None]);
    // The next channel begins anew.
    let (fared, ()) = tokio::join!(session.publish(&three[1..], soon()), async {
        assert!(matches!(
            fake.hears().await,
            AMQPFrame::Method(CHANNEL, AMQPClass::Channel(channel::AMQPMethod::CloseOk(_)))
        ));
        fake.open_channel().await;
        fake.messages(2).await;
        fake.acks(2, true).await;
    });
    assert_eq!(fared, (vec![Some(Taken), Some(Taken)], Ok(())));
    // The connection is cut.
    let (fared, ()) = tokio::join!(session.publish(&three, soon()), async {
        fake.messages(3).await;
        fake.acks(4, true).await;
        drop(fake);
    });
    assert_eq!(fared.0, [Some(Taken), Some(Taken), None]);
    assert!(matches!(fared.1, Err(End::Lost(_))), "{:?}", fared.1);
}

#[tokio::test]
async fn a_server_that_confirms_what_was_not_sent_is_not_believed() {
    let (mut session, mut fake) = pair().await;
    let two = messages(&["a", "b"]);
    let (fared, ()) = tokio::join!(session.publish(&two, soon()), async {
        fake.messages(2).await;
        fake.acks(3, true).await;
    });
    assert_eq!(fared.0, [None, None]);
    assert!(matches!(&fared.1, Err(End::Lost(why)) if why.contains("what was not sent")));
}

#[tokio::test]
async fn a_server_that_is_silent_for_too_long_is_given_up_and_one_that_lives_is_not() {
    let (mut session, mut fake) = pair().await;
    session.beat = Duration::from_millis(200);
    let one = messages(&["a"]);
    let (fared, ()) = tokio::join!(session.publish(&one, soon()), async {
        // For longer than it would be waited for in silence, and it hears of us meanwhile.
        let mut beats = 0;
        while beats < 8 {
            match fake.0.frame().unwrap() {
                Some(AMQPFrame::Heartbeat) => {
                    beats += 1;
                    fake.says(AMQPFrame::Heartbeat).await;
                }
                Some(_) => {}
                None => fake.0.turn().await.unwrap(),
            }
        }
        fake.acks(1, false).await;
    });
    assert_eq!(fared, (vec![Some(Taken)], Ok(())));
    let fared = session.publish(&one, soon()).await;
    assert!(
        matches!(&fared.1, Err(End::Lost(why)) if why.contains("silent")),
        "{:?}",
        fared.1
    );
    assert!(!session.tend());
}

#[tokio::test]
async fn while_nothing_is_to_do_the_server_hears_of_us_and_we_hear_of_it() {
    let (mut session, mut fake) = pair().await;
    session.beat = Duration::from_millis(100);
    let mut beats = 0;
    let heard = async {
        while beats < 3 {
            match fake.0.frame().unwrap() {
                Some(AMQPFrame::Heartbeat) => {
                    beats += 1;
                    fake.says(AMQPFrame::Heartbeat).await;
                }
                _ => fake.0.turn().await.unwrap(),
            }
        }
        fake.blocks().await;
    };
    let tended = async {
        while session.blocked().is_none() {
            assert!(session.tend());
            tokio::task::yield_now().await;
        }
    };
    tokio::join!(heard, tended);
    assert_eq!(session.blocked(), Some("low on memory"));
    drop(fake);
    while session.tend() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn who_is_no_server_of_this_kind_is_told_by_what_it_says() {
    for (says, part) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "does not speak AMQP"),
        (b"AMQP\0\0\x09\0", "another version of AMQP"),
        (b"\x15\x03\x03\0\x02\x02\x46", "use amqps://"),
        (b"\x01\0\0\x7f\xff\xff\xff", "longer than was agreed"),
        (b"\x01\0\0\0\0\0\x04\xff\xff\xff\xff\xce", "can't be read"),
        (b"\x08\0\0\0\0\0\0\xce\x02\0\x07\0\0\0\0\xce", "can't be read"),
        (b"", "closed the connection"),
    ] {
        let door = Door::open().await;
        let server = door.server();
        let (session, ()) = tokio::join!(Session::open(&server, soon()), async {
            let mut tcp = door.accept().await;
            tcp.read_exact(&mut [0; 8]).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut tcp, says).await.unwrap();
        });
        match session.err() {
            Some(End::Lost(why)) => assert!(why.contains(part), "{says:?}: {why}"),
            other => panic!("{says:?}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn nothing_is_waited_for_beyond_the_deadline_whatever_the_server_does() {
    // It says nothing at all; or heartbeats without end; or it lets in and does not confirm.
    let until = || Instant::now() + Duration::from_millis(300);
    let door = Door::open().await;
    let server = door.server();
    let (session, _tcp) = tokio::join!(Session::open(&server, until()), door.accept());
    assert_eq!(session.err(), Some(End::Late));
    let flood = async {
        let mut tcp = door.accept().await;
        let beats = b"\x08\0\0\0\0\0\0\xce".repeat(1000);
        while tokio::io::AsyncWriteExt::write_all(&mut tcp, &beats).await.is_ok() {}
    };
    let (session, ()) = tokio::join!(Session::open(&server, until()), flood);
    assert_eq!(session.err(), Some(End::Late));
    let (mut session, mut fake) = pair().await;
    let one = messages(&["a"]);
    let (fared, _) = tokio::join!(session.publish(&one, until()), fake.messages(1));
    assert_eq!(fared, (vec![None], Err(End::Late)));
}

#[tokio::test]
async fn a_password_is_sent_only_as_it_is_asked_for() {
    let door = Door::open().await;
    let mut server = door.server();
    server.login = Login::External;
    let (session, _fake) = tokio::join!(Session::open(&server, soon()), Fake::start(&door));
    match session.err() {
        Some(End::Lost(why)) => assert!(why.contains("takes no EXTERNAL, but AMQPLAIN PLAIN"), "{why}"),
        other => panic!("{other:?}"),
    }
}
