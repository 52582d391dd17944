//! Signature Version 4: what proves to AWS that a request is ours, and unchanged.
//!
//! Small enough to be written here: AWS's own crate brings twelve more with it and asks for a newer compiler than we do. The tests hold
//! AWS's published examples.

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};

use super::keys::Keys;
use crate::net::percent::{decoded, encoded};

/// How the signature is called in the head.
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// A request as it is signed.
pub(super) struct Unsigned<'a> {
    pub method: &'a str,
    pub url: &'a Url,
    /// Names in lower case.
    pub headers: &'a [(&'static str, String)],
    /// SHA-256 of the body, in hex.
    pub digest: &'a str,
}

/// What a signature is for.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub region: &'a str,
    pub service: &'a str,
}

/// The headers that a request has to carry besides its own.
pub(super) fn sign(
    request: &Unsigned<'_>,
    keys: &Keys,
    scope: Scope<'_>,
    at: Timestamp,
) -> Vec<(&'static str, String)> {
    let moment = at.strftime("%Y%m%dT%H%M%SZ").to_string();
    let day = &moment[..8];
    let mut own = vec![("x-amz-date", moment.clone())];
    if scope.service == "s3" {
        own.push(("x-amz-content-sha256", request.digest.to_owned()));
    }
    if let Some(token) = &keys.token {
        own.push(("x-amz-security-token", token.expose_secret().to_owned()));
    }
    let mut headers: Vec<(&str, &str)> = request
        .headers
        .iter()
        .chain(&own)
        .map(|(name, value)| (*name, value.trim()))
        .collect();
    let host = host(request.url);
    headers.push(("host", &host));
    headers.sort_unstable();
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let mut lines = String::new();
    for part in headers.iter().flat_map(|(name, value)| {
        [
            name, ":", value, "
",
        ]
    }) {
        lines.push_str(part);
    }
    let canonical = format!(
        "{}\n{}\n{}\n{lines}\n{names}\n{}",
        request.method,
        path(request.url),
        query(request.url),
        request.digest
    );
    let whose = format!("{day}/{}/{}/aws4_request", scope.region, scope.service);
    let text = format!(
        "{ALGORITHM}\n{moment}\n{whose}\n{}",
        hex::encode(Sha256::digest(canonical))
    );
    let mut key = format!("AWS4{}", keys.secret.expose_secret()).into_bytes();
    for part in [day, scope.region, scope.service, "aws4_request", &text] {
        key = mac(&key, part);
    }
    let credential = format!("{}/{whose}", keys.id);
    own.push((
        "authorization",
        format!(
            "{ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature={}",
            hex::encode(key)
        ),
    ));
    own
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return Vec::new();
    };
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// `host`, as the client sends it.
fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or(host.to_owned(), |port| format!("{host}:{port}"))
}

/// The path, each part encoded once. (Services other than S3 want it encoded twice; their requests all go to `/`.)
fn path(url: &Url) -> String {
    let parts: Vec<String> = url.path().split('/').map(|part| encoded(&decoded(part))).collect();
    parts.join("/")
}

fn query(url: &Url) -> String {
    let mut pairs: Vec<(String, String)> = url
        .query_pairs()
        .map(|(name, value)| (encoded(&name), encoded(&value)))
        .collect();
    pairs.sort_unstable();
    let pairs: Vec<String> = pairs
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join("&")
}

/// Headers as a client sends them. What signs comes from files and from others, who may have written anything.
pub(super) fn headers<'a>(pairs: impl Iterator<Item = &'a (&'static str, String)>) -> Result<HeaderMap, String> {
    pairs
        .map(|(name, value)| {
            let mut value = HeaderValue::try_from(value)
                .map_err(|_| format!("the credentials have characters that can't be sent ({name})"))?;
            value.set_sensitive(true);
            Ok((HeaderName::from_static(name), value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(
        (method, url, headers, body): (&str, &str, &[(&'static str, &str)], &str),
        (id, secret): (&str, &str),
        service: &str,
        at: &str,
    ) -> String {
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect();
        let keys = Keys {
            id: id.into(),
            secret: secret.into(),
            token: None,
            expires: None,
        };
        let digest = hex::encode(Sha256::digest(body));
        let url = Url::parse(url).unwrap();
        let unsigned = Unsigned {
            method,
            url: &url,
            headers: &headers,
            digest: &digest,
        };
        let scope = Scope {
            region: "us-east-1",
            service,
        };
        let signed = sign(&unsigned, &keys, scope, at.parse().unwrap());
        let (_, authorization) = signed.iter().find(|(name, _)| *name == "authorization").unwrap();
        authorization.clone()
    }

    /// "Signature Calculations for the Authorization Header: Examples", Amazon S3 API Reference.
    #[test]
    fn the_examples_of_the_s3_reference_come_out() {
        let host = "https://examplebucket.s3.amazonaws.com";
        let put = [
            ("date", "Fri, 24 May 2013 00:00:00 GMT"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ];
        for (method, path, headers, body, expected) in [
            (
                "GET",
                "/test.txt",
                &[("range", "bytes=0-9")][..],
                "",
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                "PUT",
                "/test$file.text",
                &put,
                "Welcome to Amazon S3.",
                "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            ),
            (
                "GET",
                "/?lifecycle",
                &[],
                "",
                "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            ),
            (
                "GET",
                "/?max-keys=2&prefix=J",
                &[],
                "",
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ] {
            let request = (method, &*format!("{host}{path}"), headers, body);
            let keys = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY");
            let signed = signature(request, keys, "s3", "2013-05-24T00:00:00Z");
            assert!(
                signed.ends_with(&format!("Signature={expected}")),
                "{method} {path}: {signed}"
            );
        }
    }

    /// "Signing AWS requests", AWS General Reference.
    #[test]
    fn the_example_of_the_general_reference_comes_out() {
        let signed = signature(
            (
                "GET",
                "https://iam.amazonaws.com/?Action=ListUsers&Version=2010-05-08",
                &[("content-type", "application/x-www-form-urlencoded; charset=utf-8")],
                "",
            ),
            ("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            "iam",
            "2015-08-30T12:36:00Z",
        );
        assert_eq!(
            signed,
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date, \
             Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
        );
    }
}
