//! SCRAM (RFC 5802, RFC 7677), as Kafka's brokers know it: without channel binding, names and passwords as the bytes of their text.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, pbkdf2};

/// Rounds that a broker may ask for: more is an attack, or takes longer than anybody waits.
const ROUNDS_MAX: u32 = 1_000_000;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha512,
}

impl Hash {
    fn hmac(self) -> hmac::Algorithm {
        match self {
            Hash::Sha256 => hmac::HMAC_SHA256,
            Hash::Sha512 => hmac::HMAC_SHA512,
        }
    }

    fn digest(self) -> &'static digest::Algorithm {
        match self {
            Hash::Sha256 => &digest::SHA256,
            Hash::Sha512 => &digest::SHA512,
        }
    }

    fn pbkdf2(self) -> pbkdf2::Algorithm {
        match self {
            Hash::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            Hash::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        }
    }
}

/// A conversation that has begun.
pub(super) struct Scram {
    hash: Hash,
    password: String,
    nonce: String,
    first: String,
}

/// What proves who the broker is, too.
pub(super) struct Proof {
    /// The client's last message.
    pub message: String,
    /// What a broker that knows the password says then.
    signature: Vec<u8>,
}

impl Scram {
    /// Begins, with a nonce that nobody can guess.
    pub fn new(hash: Hash, username: &str, password: &str, nonce: &str) -> Scram {
        let name = username.replace('=', "=3D").replace(',', "=2C");
        Scram {
            hash,
            password: password.to_owned(),
            nonce: nonce.to_owned(),
            first: format!("n={name},r={nonce}"),
        }
    }

    /// The client's first message.
    pub fn first(&self) -> String {
        format!("n,,{}", self.first)
    }

    /// The answer to the server's first message. Takes as long as the server's number of rounds says. An error is one sentence.
    pub fn prove(&self, challenge: &str) -> Result<Proof, String> {
        const UNREADABLE: &str = "the broker's challenge can't be read";
        let field = |name: char| {
            let found = challenge.split(',').find(|part| part.starts_with(name));
            found.and_then(|part| part.get(1..)?.strip_prefix('='))
        };
        let nonce = field('r').ok_or(UNREADABLE)?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err("the broker's challenge is not an answer to what it was sent".into());
        }
        let salt = STANDARD.decode(field('s').ok_or(UNREADABLE)?).map_err(|_| UNREADABLE)?;
        let rounds = field('i').and_then(|text| text.parse::<u32>().ok()).ok_or(UNREADABLE)?;
        let rounds = NonZeroU32::new(rounds).filter(|rounds| rounds.get() <= ROUNDS_MAX);
        let rounds = rounds.ok_or("the broker asks for more rounds of hashing than make sense")?;

        let algorithm = self.hash.hmac();
        let mut salted = vec![0; self.hash.digest().output_len()];
        pbkdf2::derive(self.hash.pbkdf2(), rounds, &salt, self.password.as_bytes(), &mut salted);
        let salted = hmac::Key::new(algorithm, &salted);
        let client_key = hmac::sign(&salted, b"Client Key");
        let stored_key = digest::digest(self.hash.digest(), client_key.as_ref());
        let bare = format!("c=biws,r={nonce}");
        let signed = format!("{},{challenge},{bare}", self.first);
        let client_signature = hmac::sign(&hmac::Key::new(algorithm, stored_key.as_ref()), signed.as_bytes());
        let proof: Vec<u8> = std::iter::zip(client_key.as_ref(), client_signature.as_ref())
            .map(|(one, other)| one ^ other)
            .collect();
        let server_key = hmac::sign(&salted, b"Server Key");
        let signature = hmac::sign(&hmac::Key::new(algorithm, server_key.as_ref()), signed.as_bytes());
        Ok(Proof {
            message: format!("{bare},p={}", STANDARD.encode(proof)),
            signature: signature.as_ref().to_vec(),
        })
    }
}

impl Proof {
    /// Whether the server's last message proves that it knows the password.
    pub fn is_proved_by(&self, last: &str) -> bool {
        let signature = last.split(',').find_map(|part| part.strip_prefix("v="));
        let signature = signature.and_then(|text| STANDARD.decode(text).ok());
        signature.is_some_and(|signature| signature == self.signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7677, section 3.
    const CHALLENGE: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    #[test]
    fn the_conversation_is_that_of_the_rfc() {
        let scram = Scram::new(Hash::Sha256, "user", "pencil", "rOprNGfwEbeRWgbNEkqO");
        assert_eq!(scram.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let proof = scram.prove(CHALLENGE).unwrap();
        assert_eq!(
            proof.message,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert!(proof.is_proved_by("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
        assert!(!proof.is_proved_by("v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
        assert!(!proof.is_proved_by("e=invalid-proof"));
        assert_eq!(Scram::new(Hash::Sha256, "a=b,c", "", "x").first(), "n,,n=a=3Db=2Cc,r=x");
    }

    #[test]
    fn a_challenge_that_makes_no_sense_is_not_answered() {
        let scram = Scram::new(Hash::Sha512, "user", "pencil", "rOprNGfwEbeRWgbNEkqO");
        assert!(scram.prove(CHALLENGE).is_ok());
        for bad in [
            "",
            "r=other,s=W22Z,i=4096",
            "r=rOprNGfwEbeRWgbNEkqO,s=W22Z,i=4096",
            "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z",
            "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=0",
            "r=rOprNGfwEbeRWgbNEkqOx,s=W22Z,i=4000000000",
            "r=rOprNGfwEbeRWgbNEkqOx,s=!,i=4096",
        ] {
            assert!(scram.prove(bad).is_err(), "{bad}");
        }
    }
}
