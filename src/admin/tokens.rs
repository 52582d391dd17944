//! The tokens with which somebody signs in, as they are kept while the daemon runs: never as they are, and compared so that the time it
//! takes tells nothing.

use std::collections::HashMap;

use hmac::{Hmac, KeyInit, Mac};
use secrecy::ExposeSecret;
use sha2::Sha256;
use tokio_util::sync::CancellationToken;

use crate::config::{Admin, AdminToken, Fault, May};

/// Longer ones are nobody's.
pub const TOKEN_LEN_MAX: usize = 1024;

/// Shorter ones can be guessed in time: they count, with a warning.
const TOKEN_LEN_GOOD: usize = 16;

/// What a secret is known by. Its key is drawn anew at each start, so that a digest tells nothing outside of this process.
pub type Digest = [u8; 32];

/// Makes digests.
#[derive(Clone)]
pub struct Digester(Hmac<Sha256>);

impl std::fmt::Debug for Digester {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Digester").finish_non_exhaustive()
    }
}

impl Digester {
    /// With a key of its own. An error is one sentence.
    pub fn new() -> Result<Digester, String> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|error| format!("no random number: {error}"))?;
        let mac = Hmac::new_from_slice(&key).map_err(|error| error.to_string())?;
        Ok(Digester(mac))
    }

    /// The digest of a secret.
    pub fn of(&self, secret: &[u8]) -> Digest {
        let mut mac = self.0.clone();
        mac.update(secret);
        mac.finalize().into_bytes().into()
    }
}

/// Whether two digests are equal, in a time that does not tell where they differ.
pub fn is_equal(one: &Digest, other: &Digest) -> bool {
    let differs = one
        .iter()
        .zip(other)
        .fold(0, |differs, (one, other)| differs | (one ^ other));
    std::hint::black_box(differs) == 0
}

/// A token.
#[derive(Debug, Clone)]
pub struct Token {
    /// What it is called.
    pub name: String,
    /// What one may do with it.
    pub may: May,
    /// What it is known by.
    pub digest: Digest,
    /// Cancelled when it counts no more.
    pub over: CancellationToken,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Tokens(Vec<Token>);

impl Tokens {
    /// Fetches what the configuration names. What can't be had is a fault, and does not count.
    pub fn resolve(config: &Admin, digester: &Digester) -> (Tokens, Vec<Fault>) {
        let (mut tokens, mut faults) = (Tokens::default(), Vec::new());
        let mut places: HashMap<Digest, &AdminToken> = HashMap::new();
        for configured in &config.tokens {
            let mut fault = |message: String| {
                let place = configured.place.clone();
                faults.push(Fault { place, message });
            };
            let token = match configured.token.resolve() {
                Ok(token) => token,
                Err(message) => {
                    fault(message);
                    continue;
                }
            };
            let text = token.expose_secret();
            if text.len() > TOKEN_LEN_MAX
                || text.trim() != text
                || !text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
            {
                fault(format!(
                    "is no token: up to {TOKEN_LEN_MAX} letters, digits and other signs of ASCII, without a space at either end"
                ));
                continue;
            }
            let digest = digester.of(text.as_bytes());
            if let Some(other) = places.insert(digest, configured) {
                fault(format!(
                    "is the same as that of \"{}\": the log could not say who acted",
                    other.name
                ));
                continue;
            }
            tokens.0.push(Token {
                name: configured.name.clone(),
                may: configured.may,
                digest,
                over: CancellationToken::new(),
            });
        }
        (tokens, faults)
    }

    /// What is wrong with the tokens of a configuration, as far as it can be seen now.
    pub fn faults(config: &Admin) -> Vec<Fault> {
        match Digester::new() {
            Ok(digester) => Tokens::resolve(config, &digester).1,
            Err(_) => Vec::new(),
        }
    }

    /// What is odd about them but counts, a sentence each.
    pub fn warnings(config: &Admin) -> Vec<String> {
        let is_short = |token: &&AdminToken| {
            let token = token.token.resolve();
            token.is_ok_and(|token| token.expose_secret().len() < TOKEN_LEN_GOOD)
        };
        let short = config.tokens.iter().filter(is_short);
        let warning = |token: &AdminToken| {
            format!(
                "{}: is shorter than {TOKEN_LEN_GOOD} characters and can be guessed: make one with `openssl rand -hex 32`",
                token.place
            )
        };
        short.map(warning).collect()
    }

    /// The one that was presented. Each is compared, whichever it is.
    pub fn find(&self, presented: &Digest) -> Option<&Token> {
        let mut found = None;
        for token in &self.0 {
            if is_equal(&token.digest, presented) {
                found = Some(token);
            }
        }
        found
    }

    /// Takes over from those that counted before: what is as it was goes on, what is not ends.
    pub fn succeed(&mut self, before: &Tokens) {
        for old in &before.0 {
            let same = self.0.iter_mut().find(|token| token.is_as(old));
            match same {
                Some(token) => token.over = old.over.clone(),
                None => old.over.cancel(),
            }
        }
    }
}

impl Token {
    fn is_as(&self, other: &Token) -> bool {
        self.name == other.name && self.may == other.may && is_equal(&self.digest, &other.digest)
    }
}
