//! What answers mean.

use super::*;

#[tokio::test]
async fn what_an_entry_is_refused_for_may_be_the_sink_s_trouble() {
    let account = account("http://127.0.0.1:1");
    for (code, is_sinks) in [
        ("KmsAccessDenied", true),
        ("AccessDenied", true),
        ("QueueDoesNotExist", true),
        ("InternalError", true),
        ("InvalidMessageContents", false),
        ("MalformedDetail", false),
    ] {
        let answer = account.of_entry(code, "", true);
        assert_eq!(matches!(answer, Answer::Gone(_)), is_sinks, "{code}: {answer:?}");
        assert_eq!(matches!(answer, Answer::Refused(_)), !is_sinks, "{code}: {answer:?}");
    }
}

/// What the sink is told when a service answers so.
async fn judged(status: u16, headers: &[(&'static str, &str)], body: &str) -> Failed {
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()))
        .collect();
    let body = body.to_owned();
    let fake = Fake::start(move |_| (status, headers.clone(), body.clone())).await;
    let account = account(&fake.url);
    account.json("X.Y", "1.0", &json!({})).await.unwrap_err()
}

fn account(url: &str) -> Account {
    let mut faults = Vec::new();
    let table = json!({ "region": "eu-central-1", "endpoint": url, "access_key_id": "AKID", "secret_access_key": "hunter2-secret" });
    let mut table = crate::config::Table::new("sinks[0]", table, &mut faults);
    let access = Access::of(&mut table, "sqs");
    table.finish();
    assert_eq!(faults, []);
    access.account_within(Duration::from_secs(10)).unwrap()
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "a table of answers")]
async fn what_is_the_sink_s_trouble_is_told_from_what_is_an_event_s() {
    for (status, body, part) in [
        (
            400,
            r#"{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"no"}"#,
            "400 QueueDoesNotExist: it is not there",
        ),
        (
            400,
            r#"{"__type":"ThrottlingException"}"#,
            "ThrottlingException: it is asked too much",
        ),
        (
            400,
            r#"{"__type":"UnrecognizedClientException"}"#,
            "does not know these credentials",
        ),
        (
            400,
            r#"{"__type":"ExpiredTokenException"}"#,
            "the session token has ended",
        ),
        (
            400,
            r#"{"__type":"InvalidSignatureException","message":"Signature expired: 1 is now earlier"}"#,
            "clock is wrong",
        ),
        (
            403,
            "<ErrorResponse><Error><Code>SignatureDoesNotMatch</Code><Message>no</Message></Error></ErrorResponse>",
            "secret access key is not the one",
        ),
        (
            403,
            "<Error><Code>AccessDenied</Code><Message>User x may not, hunter2-secret</Message></Error>",
            "grant the right",
        ),
        (
            403,
            "<Error><Code>RequestTimeTooSkewed</Code></Error>",
            "clock is wrong",
        ),
        (404, "<Error><Code>NoSuchBucket</Code></Error>", "make the bucket"),
        (301, "<Error><Code>PermanentRedirect</Code></Error>", "set region"),
        (501, "<Error><Code>NotImplemented</Code></Error>", "conditional writes"),
        (
            503,
            "<Error><Code>SlowDown</Code></Error>",
            "503 SlowDown: it is asked too much",
        ),
        (500, "oh no", "500"),
        (
            400,
            r#"{"__type":"InvalidAddress","message":"The address x is not valid for this endpoint."}"#,
            "no such name",
        ),
        (400, r#"{"__type":"com.amazonaws.sqs#InvalidSecurity"}"#, "no such name"),
        (
            400,
            r#"{"__type":"UnsupportedOperation"}"#,
            "does not know what this sink asks",
        ),
        (
            400,
            r#"{"__type":"UnknownOperationException"}"#,
            "does not know what this sink asks",
        ),
        (
            400,
            "<E><Code>InvalidParameter</Code><Message>Invalid parameter: TopicArn Reason: An ARN must have six parts</Message></E>",
            "no such name",
        ),
        (
            400,
            r#"{"__type":"ValidationException","message":"1 validation error detected: Value 'a at 'x' b' at 'streamName' failed to satisfy constraint"}"#,
            "no such name",
        ),
        (
            400,
            r#"{"__type":"InvalidArgumentException","message":"StreamARN is invalid"}"#,
            "no such name",
        ),
        (400, "<html>Bad Request</html>", "no answer of AWS's"),
        (400, "{}", "no answer of AWS's"),
        (401, "", "grant the right"),
        (429, "", "asked too much"),
        (503, "", "asked too much, or is not well"),
        (404, "<html>nothing", "correct its name, region and endpoint"),
    ] {
        match judged(status, &[("retry-after", "7")], body).await {
            Failed::Sink(unavailable) => {
                assert!(unavailable.reason.contains(part), "{body}: {unavailable}");
                assert!(!unavailable.reason.contains("hunter2"), "{unavailable}");
                assert_eq!(unavailable.after, Some(Duration::from_secs(7)));
            }
            other @ Failed::Content(_) => panic!("{body}: {other:?}"),
        }
    }
    let stale = [("date", "Sun, 06 Nov 1994 08:49:37 GMT")];
    let clock = judged(403, &stale, "<Error><Code>SignatureDoesNotMatch</Code></Error>").await;
    assert!(matches!(clock, Failed::Sink(unavailable) if unavailable.reason.contains("clock")));
    for (status, body, code) in [
        (
            400,
            r#"{"__type":"com.amazonaws.sqs#InvalidMessageContents","message":"bad hunter2-secret"}"#,
            "InvalidMessageContents",
        ),
        (
            400,
            "<E><Code>InvalidParameter</Code><Message>too long</Message></E>",
            "InvalidParameter",
        ),
        (
            400,
            r#"{"__type":"ValidationException","message":"Value 'at 'streamName' x' at 'records.1.member.partitionKey' failed to satisfy constraint"}"#,
            "ValidationException",
        ),
        (413, "", "413"),
    ] {
        match judged(status, &[], body).await {
            Failed::Content(refusal) => {
                assert_eq!(refusal.code, code);
                assert!(!refusal.answer.unwrap_or_default().contains("hunter2"));
            }
            other @ Failed::Sink(_) => panic!("{body}: {other:?}"),
        }
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let gone = account(&format!("http://{nobody}"))
        .json("X.Y", "1.0", &json!({}))
        .await;
    assert!(matches!(gone, Err(Failed::Sink(unavailable)) if unavailable.reason.contains("can't be reached")));
    let unread = judged(200, &[], "<html>").await;
    assert!(matches!(unread, Failed::Sink(unavailable) if unavailable.reason.contains("endpoint")));
}

/// An answer to HEAD has no body, whatever it says.
#[tokio::test]
async fn what_has_no_body_is_told_by_its_status_and_its_head() {
    let now = jiff::fmt::rfc2822::DateTimePrinter::new();
    let date = now.timestamp_to_rfc9110_string(&Timestamp::now()).unwrap();
    let stale = "Sun, 06 Nov 1994 08:49:37 GMT";
    let region = ("x-amz-bucket-region", "eu-west-1");
    for (status, head, says) in [
        (503, vec![], "503: it is asked too much, or is not well"),
        (500, vec![], "the service answered 500"),
        (504, vec![], "the service answered 504"),
        (429, vec![], "429: it is asked too much"),
        (403, vec![("date", &*date)], "403: grant the right"),
        (403, vec![("date", stale)], "403: this machine's clock is wrong"),
        (400, vec![("date", stale)], "400: this machine's clock is wrong"),
        (
            400,
            vec![("date", &date)],
            "400: it does not say why: the session token may have ended",
        ),
        (
            400,
            vec![region],
            "400: the bucket is in the region eu-west-1: set region = \"eu-west-1\"",
        ),
        (301, vec![region], "301: the bucket is in the region eu-west-1"),
        (307, vec![], "307: it is elsewhere"),
        (
            400,
            vec![("x-amz-bucket-region", "eu-central-1")],
            "400: it does not say why",
        ),
        (400, vec![("x-amz-bucket-region", "a\"b")], "400: it does not say why"),
        (404, vec![], "404: it is not there"),
        (405, vec![], "405: it is not there"),
        (407, vec![], "407: correct proxy"),
        (
            403,
            vec![
                ("x-minio-error-code", "InvalidAccessKeyId"),
                ("x-minio-error-desc", "no such key"),
            ],
            "403 InvalidAccessKeyId: AWS does not know these credentials: correct them, or make new ones (no such key)",
        ),
        (
            400,
            vec![("x-minio-error-code", "ExpiredToken")],
            "400 ExpiredToken: the session token has ended",
        ),
    ] {
        let head: Vec<_> = head.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
        let told = head.clone();
        let fake = Fake::start(move |_| (status, head.clone(), String::new())).await;
        let account = account(&fake.url);
        let ask = Ask {
            method: reqwest::Method::HEAD,
            url: account.endpoint.clone(),
            headers: Vec::new(),
            body: bytes::Bytes::new(),
        };
        let reply = account.ask(ask).await.unwrap();
        let Failed::Sink(unavailable) = account.judge(&reply) else {
            panic!("{status} {told:?} is about no event");
        };
        assert!(unavailable.reason.contains(says), "{status} {told:?}: {unavailable}");
        assert!(
            !unavailable.reason.contains(" :") && !unavailable.reason.ends_with(' '),
            "{unavailable}"
        );
    }
    let Failed::Content(refusal) = judged(413, &[], "").await else {
        panic!("what is too long is so");
    };
    assert!(
        matches!(refusal.reject(), crate::sinks::Outcome::Reject { reason } if reason.text.ends_with("refuses it (413)"))
    );
}

#[tokio::test]
async fn what_is_wrong_with_who_lends_keys_is_said_also_where_it_says_nothing() {
    for (status, body, says) in [
        (200, "", "the container's credentials can't be had: its answer is empty"),
        (
            200,
            "<html>",
            "the container's credentials can't be had: the answer is no JSON",
        ),
        (404, "", "the container's credentials can't be had: it answered 404"),
    ] {
        let fake = Fake::start(move |_| (status, Vec::new(), body.to_owned())).await;
        let error = keys(
            Named::default(),
            &[
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &fake.url),
                ("AWS_CONFIG_FILE", "/none"),
                ("AWS_SHARED_CREDENTIALS_FILE", "/none"),
            ],
        )
        .await;
        let error = error.unwrap_err();
        assert!(error.contains(says), "{status} {body}: {error}");
    }
    for (status, body, says) in [
        (
            403,
            "<Error><Code>AccessDenied</Code></Error>",
            "STS answered 403 AccessDenied: look at the role's trust policy",
        ),
        (
            400,
            "<Error><Code>ExpiredToken</Code></Error>",
            "STS answered 400 ExpiredToken: what asks for the role has ended",
        ),
        (
            400,
            "<Error><Code>Throttling</Code></Error>",
            "STS answered 400 Throttling: it is asked too much",
        ),
        (
            403,
            "<Error><Code>SignatureDoesNotMatch</Code></Error>",
            "look at the secret access key, and at this machine's clock",
        ),
        (503, "", "STS answered 503: it is not well, or asked too much"),
        (403, "", "STS answered 403: that is no answer of STS's"),
        (302, "", "STS answered 302: correct region and AWS_ENDPOINT_URL_STS"),
        (407, "", "STS answered 407: correct proxy"),
        (200, "", "STS answered without keys"),
    ] {
        let fake = Fake::start(move |_| (status, Vec::new(), body.to_owned())).await;
        let role = Named {
            id: Some("x".into()),
            secret: Some(Secret::Inline("s".into())),
            role: Some("arn:aws:iam::1:role/x".into()),
            ..Named::default()
        };
        let error = keys(role, &[("AWS_ENDPOINT_URL_STS", &fake.url)]).await.unwrap_err();
        assert!(error.contains(says), "{status} {body}: {error}");
    }
}
