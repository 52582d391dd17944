//! How much may stream at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::http::StatusCode;

use super::refused::Refused;
use crate::sync::lock;

/// Streams at a time.
const STREAMS_MAX: usize = 32;

/// Of these, of one name.
const STREAMS_PER_NAME: usize = 16;

/// Who streams, by name.
#[derive(Debug, Default)]
pub struct Streams(Arc<Mutex<HashMap<String, usize>>>);

/// The place of one stream, until it is dropped.
#[derive(Debug)]
pub struct Streaming {
    all: Arc<Mutex<HashMap<String, usize>>>,
    name: String,
}

impl Streams {
    /// A place.
    pub(super) fn begin(&self, name: &str) -> Result<Streaming, Refused> {
        let mut all = lock(&self.0);
        let own = all.get(name).copied().unwrap_or_default();
        if own >= STREAMS_PER_NAME || all.values().sum::<usize>() >= STREAMS_MAX {
            let message = "too many pages follow what happens at the moment: close some, or try again later";
            return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, message).after(5));
        }
        all.insert(name.to_owned(), own + 1);
        metrics::gauge!("closehook_admin_streams").increment(1.0);
        Ok(Streaming {
            all: self.0.clone(),
            name: name.to_owned(),
        })
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        metrics::gauge!("closehook_admin_streams").decrement(1.0);
        let mut all = lock(&self.all);
        if let Some(own) = all.get_mut(&self.name) {
            *own -= 1;
            if *own == 0 {
                all.remove(&self.name);
            }
        }
    }
}
