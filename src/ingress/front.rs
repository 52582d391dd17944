//! What stands before every request of the public listener: who it is from, whether that one may send, and how fast it
//! hears that it failed.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Request, Response};

use super::Ingress;
use crate::ingress::verify::{HASH_HEADER, TIMESTAMP_HEADER};
use crate::listener::abuse::{Guard, PENALTY, Seat, Verdict};
use crate::listener::proxy::Proxies;
use crate::telemetry;

/// The public listener's answers, with the limits for each address around them.
#[derive(Debug, Clone)]
pub struct Front {
    /// Who may speak for others.
    pub proxies: Arc<Proxies>,
    /// The limits.
    pub guard: Arc<Guard>,
    /// Who answers.
    pub ingress: Arc<Ingress>,
}

impl Front {
    /// Answers one request that came over a connection.
    ///
    /// Behind a proxy a network that may not send can't be cut off: others come over the same connection. It is answered like
    /// anybody who can't sign, and learns nothing of the list.
    pub async fn answer<B>(self, mut request: Request<B>, seat: Arc<Seat>) -> Result<Response<Full<Bytes>>, Infallible>
    where
        B: Body<Data = Bytes> + Unpin + Send + 'static,
    {
        let client = self.proxies.client(seat.caller, request.headers());
        if seat.caller.is_proxy && !self.guard.allows(client) {
            telemetry::turned_away("network", client);
            // Without a signature it meets every check in its order, and 401 at the end of them.
            for name in [HASH_HEADER, TIMESTAMP_HEADER] {
                request.headers_mut().remove(name);
            }
        }
        let mut response = self.ingress.answer(request, client, Some(&seat)).await?;
        let status = response.status();
        if status.is_client_error() {
            refuse(&self.guard, client, &seat, &mut response).await;
        }
        Ok(response)
    }
}

/// Lets a refusal wait where its sender keeps failing.
async fn refuse<B>(guard: &Arc<Guard>, client: IpAddr, seat: &Seat, response: &mut Response<B>) {
    match guard.failed(client, Instant::now()) {
        Verdict::AtOnce => return,
        Verdict::Later(waiting) => {
            tokio::time::sleep(PENALTY).await;
            drop(waiting);
        }
        Verdict::Never => seat.close(),
    }
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
}
