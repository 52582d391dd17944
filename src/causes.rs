//! An error with what it came of, for people.

/// An error and its causes, each said once: most of our errors say in their own words what they came of, and give it as their source as well,
/// for whoever has to tell one cause from another.
pub(crate) fn said(error: &anyhow::Error) -> String {
    let mut said = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !said.contains(&cause) {
            said.push_str(": ");
            said.push_str(&cause);
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context as _;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{path}: {source}; see to it")]
    struct Told {
        path: &'static str,
        source: io::Error,
    }

    #[test]
    fn each_cause_is_said_once() {
        let denied = || io::Error::from_raw_os_error(13);
        let told = Told {
            path: "/data/lock",
            source: denied(),
        };
        let said_of = said(&anyhow::Error::from(told).context("it is not opened"));
        assert_eq!(
            said_of,
            "it is not opened: /data/lock: Permission denied (os error 13); see to it"
        );
        let untold = Err::<(), _>(denied()).context("it is not opened").unwrap_err();
        assert_eq!(said(&untold), "it is not opened: Permission denied (os error 13)");
    }
}
