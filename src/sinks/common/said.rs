//! What a receiver or a program said of an event, as it is kept for people.

use super::secrets::Secrets;
use crate::plain;

/// So much is kept, of its bytes.
pub(in crate::sinks) const LEN_MAX: usize = 2 << 10;

/// Which part is kept of what is longer.
#[derive(Debug, Clone, Copy)]
pub(in crate::sinks) enum Part {
    Beginning,
    End,
}

/// So much has to be at hand of what was said, from its beginning or up to its end: a secret that stands across the end of what is kept
/// is known for one only as a whole.
pub(in crate::sinks) fn wanted_len(secrets: &Secrets) -> usize {
    LEN_MAX + secrets.len_max()
}

/// The text, without what could move a terminal, and without the sender's own secrets, which some send back. `None` where nothing was
/// said.
pub(in crate::sinks) fn cleaned(bytes: &[u8], part: Part, secrets: &Secrets) -> Option<String> {
    let range = match part {
        Part::Beginning => 0..bytes.len().min(LEN_MAX),
        Part::End => bytes.len().saturating_sub(LEN_MAX)..bytes.len(),
    };
    let is_cut = range.start > 0;
    let kept = secrets.hidden_within(bytes, range);
    let mut whole = &kept[..];
    // A character that the cut takes apart is left out.
    while is_cut && let [0x80..=0xbf, rest @ ..] = whole {
        whole = rest;
    }
    if let Err(error) = std::str::from_utf8(whole)
        && error.error_len().is_none()
    {
        whole = &whole[..error.valid_up_to()];
    }
    let text = String::from_utf8_lossy(whole).replace("\r\n", "\n").replace('\t', " ");
    let text = plain::lines(text.trim());
    // Shown escaped, hostile bytes need more room than they had.
    let mut ends = text.char_indices().map(|(at, c)| at..at + c.len_utf8());
    let text = match part {
        Part::Beginning => &text[..ends.take_while(|c| c.end <= LEN_MAX).last()?.end],
        Part::End => &text[ends.find(|c| text.len() - c.start <= LEN_MAX)?.start..],
    };
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> Secrets {
        let mut secrets = Secrets::default();
        secrets.add("hunter22");
        secrets.add("x");
        secrets
    }

    #[test]
    fn what_is_kept_is_short_plain_and_holds_no_secret() {
        let said = |text: &str| cleaned(text.as_bytes(), Part::Beginning, &secrets());
        assert_eq!(said(""), None);
        assert_eq!(said(" \r\n"), None);
        assert_eq!(said("no\r\n\tsuch field\n").unwrap(), "no\n such field");
        assert_eq!(said("\u{1b}[2Ja\u{202e}b\u{9b}").unwrap(), "\\u001b[2Ja\\u202eb\\u009b");
        assert_eq!(said("you sent hunter22, x").unwrap(), "you sent (secret), x");
        assert_eq!(said(&"é".repeat(3000)).unwrap().len(), LEN_MAX);
        assert_eq!(said(&format!("a{}", "é".repeat(3000))).unwrap().len(), LEN_MAX - 1);
        assert!(said(&"\u{1b}".repeat(3000)).unwrap().len() <= LEN_MAX);
        let plain = cleaned(b"a\xff\xfeb", Part::Beginning, &Secrets::default());
        assert_eq!(plain.unwrap(), "a\u{fffd}\u{fffd}b");
    }

    #[test]
    fn the_end_is_kept_as_short_and_as_plain() {
        let said = |text: &str| cleaned(text.as_bytes(), Part::End, &secrets()).unwrap();
        assert_eq!(said(&format!("{}z", "é".repeat(3000))).len(), LEN_MAX - 1);
        let hostile = said(&format!("{}!", "\u{1b}".repeat(3000)));
        assert!(hostile.len() <= LEN_MAX && hostile.ends_with("\\u001b!"), "{hostile}");
    }

    #[test]
    fn a_secret_across_the_end_of_what_is_kept_leaves_nothing_of_itself() {
        for at in LEN_MAX - 9..=LEN_MAX + 1 {
            // However much of it was read.
            for read in at..at + 20 {
                let text = format!("{}hunter22{}", ".".repeat(at), ".".repeat(20));
                let needed = read.max(wanted_len(&secrets())).min(text.len());
                let kept = cleaned(&text.as_bytes()[..needed], Part::Beginning, &secrets()).unwrap();
                assert!(!kept.contains(['h', 'u', 'n']), "{at}: {kept}");
                let text = format!("{}hunter22{}", ".".repeat(20), ".".repeat(at));
                let kept = cleaned(&text.as_bytes()[text.len() - needed..], Part::End, &secrets()).unwrap();
                assert!(!kept.contains(['2', 'n', 'u']), "{at}: {kept}");
            }
        }
        // What is hidden takes less room than it had: what follows does not come into view.
        let long = "hunter22".repeat(300);
        let kept = cleaned(&long.as_bytes()[..wanted_len(&secrets())], Part::Beginning, &secrets()).unwrap();
        assert_eq!(kept, "(secret)");
    }
}
