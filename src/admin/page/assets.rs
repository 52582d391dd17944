//! Style, scripts and picture of the page: in the binary, each under a name that changes with its content, so that a browser asks for
//! each only once.

use std::io::Write;
use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

/// One of them.
#[derive(Debug)]
struct Asset {
    /// As it is in the tree.
    name: &'static str,
    /// As it is asked for: with a part of its digest.
    served_as: String,
    kind: &'static str,
    bytes: &'static [u8],
    packed: Vec<u8>,
    etag: String,
}

const JS: &str = "text/javascript; charset=utf-8";

static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    vec![
        asset("page.css", "text/css; charset=utf-8", include_bytes!("assets/page.css")),
        asset("page.js", JS, include_bytes!("assets/page.js")),
        asset("htmx.min.js", JS, include_bytes!("assets/htmx.min.js")),
        asset("hx-sse.min.js", JS, include_bytes!("assets/hx-sse.min.js")),
        asset("icon.svg", "image/svg+xml", include_bytes!("assets/icon.svg")),
    ]
});

fn asset(name: &'static str, kind: &'static str, bytes: &'static [u8]) -> Asset {
    let digest = hex::encode(Sha256::digest(bytes));
    let short = &digest[..12];
    let (stem, end) = name.split_once('.').unwrap_or((name, ""));
    Asset {
        name,
        served_as: format!("{stem}.{short}.{end}"),
        kind,
        bytes,
        packed: packed(bytes).unwrap_or_default(),
        etag: format!("\"{short}\""),
    }
}

fn packed(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Where one of them is.
pub fn href(name: &str) -> String {
    let known = ASSETS.iter().find(|asset| asset.name == name);
    known.map_or_else(String::new, |asset| format!("/assets/{}", asset.served_as))
}

/// Answers for one of them. There is nothing in it that not everybody may know.
pub async fn serve(Path(name): Path<String>, headers: HeaderMap) -> Response {
    let Some(asset) = ASSETS.iter().find(|asset| asset.served_as == name) else {
        return (StatusCode::NOT_FOUND, "there is no such file\n").into_response();
    };
    let says = |name: header::HeaderName, text: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.is_some_and(|value| value.split(',').any(|part| part.trim().starts_with(text)))
    };
    let kept = [
        (header::ETAG, asset.etag.as_str()),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
        (header::CONTENT_TYPE, asset.kind),
        (header::VARY, "accept-encoding"),
    ];
    if says(header::IF_NONE_MATCH, &asset.etag) {
        return (StatusCode::NOT_MODIFIED, kept).into_response();
    }
    if says(header::ACCEPT_ENCODING, "gzip") && !asset.packed.is_empty() {
        return (kept, [(header::CONTENT_ENCODING, "gzip")], asset.packed.as_slice()).into_response();
    }
    (kept, asset.bytes).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// htmx.org 4.0.1 as npm has it. Whoever takes another version writes its digests here.
    const FROM_ELSEWHERE: [(&str, &str); 2] = [
        (
            "htmx.min.js",
            "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130",
        ),
        (
            "hx-sse.min.js",
            "18ef2761356ec1fe0bb6d92612315b37517a7c1e9856b661c5ae81fef239d103",
        ),
    ];

    #[test]
    fn what_is_from_elsewhere_is_what_was_taken() {
        for (name, digest) in FROM_ELSEWHERE {
            let asset = ASSETS.iter().find(|asset| asset.name == name).unwrap();
            assert_eq!(hex::encode(Sha256::digest(asset.bytes)), digest, "{name}");
        }
        let licence = include_str!("assets/LICENSE-htmx");
        assert!(licence.starts_with("Zero-Clause BSD"));
    }

    #[test]
    fn all_of_it_is_small() {
        let whole: usize = ASSETS.iter().map(|asset| asset.packed.len()).sum();
        assert!(whole < 100_000, "{whole} bytes");
        assert!(ASSETS.iter().all(|asset| !asset.packed.is_empty()));
    }

    #[tokio::test]
    async fn each_is_kept_for_ever_under_a_name_of_its_content() {
        for asset in ASSETS.iter() {
            let place = href(asset.name);
            let name = place.strip_prefix("/assets/").unwrap().to_owned();
            let answer = serve(Path(name.clone()), HeaderMap::new()).await;
            assert_eq!(answer.status(), StatusCode::OK);
            assert!(
                answer.headers()[header::CACHE_CONTROL]
                    .to_str()
                    .unwrap()
                    .contains("immutable")
            );
            let mut again = HeaderMap::new();
            again.insert(header::IF_NONE_MATCH, answer.headers()[header::ETAG].clone());
            assert_eq!(serve(Path(name), again).await.status(), StatusCode::NOT_MODIFIED);
        }
        let none = serve(Path("page.css".to_owned()), HeaderMap::new()).await;
        assert_eq!(none.status(), StatusCode::NOT_FOUND);
    }
}
