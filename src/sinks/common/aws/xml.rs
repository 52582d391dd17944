//! As much XML as AWS's answers have: elements without attributes that matter.

/// What is in the first element of this name, as it is written.
pub(in crate::sinks) fn inside<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    all(xml, name).into_iter().next()
}

/// What is in each element of this name, as it is written; none is within another.
pub(in crate::sinks) fn all<'a>(xml: &'a str, name: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{name}"), format!("</{name}>"));
    let mut found = Vec::new();
    let mut rest = xml;
    while let Some(at) = rest.find(&open) {
        rest = &rest[at + open.len()..];
        // The name may be longer.
        if !rest.starts_with(['>', ' ', '/', '\n', '\t', '\r']) {
            continue;
        }
        let Some(end) = rest.find('>') else { break };
        let (head, body) = rest.split_at(end);
        rest = &body[1..];
        if head.ends_with('/') {
            continue;
        }
        let Some(end) = rest.find(&close) else { break };
        found.push(&rest[..end]);
        rest = &rest[end + close.len()..];
    }
    found
}

/// The text of the first element of this name.
pub(in crate::sinks) fn text(xml: &str, name: &str) -> Option<String> {
    let raw = inside(xml, name)?.trim();
    let plain = raw
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&#39;", "'")
        .replace("&amp;", "&");
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_by_their_whole_name() {
        let xml = "<?xml version=\"1.0\"?>\n<Error><CodeName>x</CodeName><Code>No&amp;Such</Code><Empty/><Code >2</Code></Error>";
        assert_eq!(text(xml, "Code").as_deref(), Some("No&Such"));
        assert_eq!(all(xml, "Code"), ["No&amp;Such", "2"]);
        assert_eq!(text(xml, "Empty"), None);
        assert_eq!(text("<Code>cut", "Code"), None);
        assert_eq!(text("<Code", "Code"), None);
    }
}
