//! Names that are not known: what is said of them, with the known one that was perhaps meant. The one place that says it.

/// The known name nearest to a misspelt one, if one is near enough to be meant.
pub fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    known
        .into_iter()
        .map(|candidate| (strsim::osa_distance(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.chars().count().saturating_sub(1) / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// What is wrong with a name (`there is no sink "adit"`), and behind it the name that was perhaps meant, else those there are.
pub fn unknown<'n>(wrong: impl Into<String>, name: &str, known: impl IntoIterator<Item = &'n str>) -> String {
    let wrong = wrong.into();
    let mut known: Vec<&str> = known.into_iter().collect();
    if let Some(meant) = nearest(name, known.iter().copied()) {
        return format!("{wrong}: did you mean \"{meant}\"?");
    }
    if known.is_empty() {
        return wrong;
    }
    known.sort_unstable();
    known.dedup();
    format!("{wrong}: known here: {}", known.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_perhaps_meant_is_said_else_what_there_is() {
        let said = |name| unknown(format!("there is no sink \"{name}\""), name, ["crm-db", "audit"]);
        assert_eq!(said("adit"), "there is no sink \"adit\": did you mean \"audit\"?");
        assert_eq!(
            said("warehouse"),
            "there is no sink \"warehouse\": known here: audit, crm-db"
        );
        assert_eq!(unknown("there is no sink", "x", []), "there is no sink");
        assert_eq!(nearest("batch", ["path"]), None, "half of a short word is another word");
        assert_eq!(nearest("pth", ["path"]), Some("path"));
    }
}
