//! What the server's errors mean. Each begins with a word in capitals, which is what is gone by.

use crate::plain;
use crate::sinks::Unavailable;

/// Longest text of the server that is passed on.
const TEXT_LEN_MAX: usize = 300;

/// An error as the server said it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    /// `OOM`, `NOPERM`, `ERR`.
    pub(super) code: String,
    /// What follows.
    pub(super) text: String,
}

impl Said {
    pub(super) fn new(code: &str, text: &str) -> Said {
        Said {
            code: plain::line(code).chars().take(TEXT_LEN_MAX).collect(),
            text: plain::line(text).chars().take(TEXT_LEN_MAX).collect(),
        }
    }

    /// The same from one text.
    pub(super) fn parse(text: &str) -> Said {
        let (code, rest) = text.split_once(' ').unwrap_or((text, ""));
        Said::new(code, rest)
    }

    /// Where another node of the cluster has what was asked for.
    pub(super) fn moved_to(&self) -> Option<&str> {
        if self.code != "MOVED" {
            return None;
        }
        self.text.split_whitespace().nth(1)
    }

    /// Whether it is about one of the keys, and not about a command that this user may not give whatever it is for.
    pub(super) fn may_be_about_a_key(&self) -> bool {
        self.code == "CROSSSLOT" || self.code == "NOPERM" && self.text.contains("access")
    }

    /// Whether a text was longer than the server reads.
    pub(super) fn is_about_length(&self) -> bool {
        self.text.contains("invalid bulk length")
    }

    /// Whether it is about the entry that was to be added, or about the stream that it is for: another one may be fine.
    pub(super) fn is_about_an_entry(&self) -> bool {
        self.code == "WRONGTYPE" || self.is_about_the_stream() || self.text.contains("too large to be stored")
    }

    /// Whether no entry can be added to the stream any more.
    pub(super) fn is_about_the_stream(&self) -> bool {
        self.text.contains("exhausted the last possible ID")
    }

    /// Within a script a right that is missing has another name, in Redis and in Valkey.
    fn is_about_rights_of_scripts(&self) -> bool {
        self.text.contains("can't run this command") || self.text.starts_with("ACL failure in script")
    }

    /// What it means to all that is to be delivered.
    pub(super) fn unavailable(&self) -> Unavailable {
        Unavailable::new(match self.advice() {
            Some(advice) => format!("{advice} ({self})"),
            None => format!("the server says: {self}"),
        })
    }

    /// What to do about it.
    fn advice(&self) -> Option<&'static str> {
        Some(match self.code.as_str() {
            "NOAUTH" => {
                "the server demands a password: set password_file, and username where it is not the default user's"
            }
            "WRONGPASS" => "the server refuses user or password: see username and password",
            "NOPERM" => LACKS_A_RIGHT,
            "READONLY" => "the server is a replica and takes no changes: name the primary in url",
            "OOM" => {
                "the server's memory is full (maxmemory): set maxlen, have consumers delete what they are done with, or give it more"
            }
            "LOADING" => "the server is loading its data",
            "MISCONF" => "the server can't save to its disk and takes no changes until it can: see its log",
            "BUSY" => "another script keeps the server busy: SCRIPT KILL there ends it",
            "NOREPLICAS" => "too few replicas are connected there (min-replicas-to-write)",
            "MASTERDOWN" => "the server is a replica whose primary is gone: name the primary in url",
            "CLUSTERDOWN" => "the cluster is down, or parts of it are",
            "MOVED" | "ASK" | "TRYAGAIN" => "the cluster is moving these keys to another node",
            "CROSSSLOT" => ONE_SLOT,
            "DENIED" => "the server takes no connection from here: see its protected-mode, and give it a password",
            "ERR" if self.text.starts_with("max number of clients") => "the server has no connection left (maxclients)",
            "ERR"
                if self.text.contains("AUTH") && self.text.contains("no password is set")
                    || self.text.contains("without any password configured") =>
            {
                "the default user has no password there: leave password out, or set username"
            }
            "ERR" if self.is_about_rights_of_scripts() => LACKS_A_RIGHT,
            "ERR" if self.text.starts_with("unknown command") => {
                "the server lacks a command: Redis 6.2 or newer, or Valkey, is needed, with EVAL, EVALSHA and streams"
            }
            "ERR" if self.text.contains("DB index") => "there is no such database: see the number at the end of url",
            "ERR" if self.is_about_length() => "a text is longer than the server takes (proto-max-bulk-len)",
            _ => return None,
        })
    }
}

const LACKS_A_RIGHT: &str = "the user lacks a right: `closehook sinks types redis` has the line of its ACL";

const ONE_SLOT: &str = "a cluster takes what is written together only into one slot: let stream begin with a name in braces, as in \"{close}:events\"";

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words = [self.code.as_str(), self.text.as_str()];
        f.write_str(words.join(" ").trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_to_do() {
        for (said, part) in [
            ("OOM command not allowed when used memory > 'maxmemory'.", "set maxlen"),
            (
                "READONLY You can't write against a read only replica.",
                "name the primary",
            ),
            ("NOAUTH Authentication required.", "set password_file"),
            ("ERR max number of clients reached", "maxclients"),
            (
                "ERR AUTH <password> called without any password configured for the default user. Are you sure?",
                "leave password out",
            ),
            ("ERR Client sent AUTH, but no password is set", "leave password out"),
            ("CROSSSLOT Keys in request don't hash to the same slot", "in braces"),
            ("WHATEVER\u{1b}[2J else", "the server says: WHATEVER\\u001b[2J else"),
        ] {
            let said = Said::parse(said).unavailable().reason;
            assert!(said.contains(part), "{said}");
        }
        for said in [
            "NOPERM this user has no permissions to run the 'evalsha' command",
            "ERR The user executing the script can't run this command or subcommand",
            "ERR ACL failure in script: User u has no permissions to run the 'xadd' command",
        ] {
            let said = Said::parse(said);
            assert!(said.unavailable().reason.contains("lacks a right"), "{said}");
            assert!(!said.is_about_an_entry(), "{said}");
        }
        for (said, is_about_a_key) in [
            (
                "NOPERM this user has no permissions to access one of the keys used as arguments",
                true,
            ),
            ("NOPERM No permissions to access a key", true),
            ("NOPERM this user has no permissions to run the 'eval' command", false),
            ("CROSSSLOT Keys in request don't hash to the same slot", true),
            ("OOM command not allowed when used memory > 'maxmemory'.", false),
        ] {
            assert_eq!(Said::parse(said).may_be_about_a_key(), is_about_a_key, "{said}");
        }
        let full = Said::parse("ERR The stream has exhausted the last possible ID, unable to add more items");
        assert!(full.is_about_an_entry() && full.is_about_the_stream());
        let moved = Said::parse("MOVED 3999 127.0.0.1:6381");
        assert_eq!(moved.moved_to(), Some("127.0.0.1:6381"));
        assert_eq!(Said::parse("ASK 3999 127.0.0.1:6381").moved_to(), None);
        assert_eq!(Said::parse("LOADING").to_string(), "LOADING");
    }
}
