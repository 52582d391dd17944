//! The files that AWS's command line keeps: profiles in `~/.aws/config` and `~/.aws/credentials`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::machine::Machine;

/// What the files say of one profile.
pub(super) type Profile = BTreeMap<String, String>;

/// The file of a kind, and whether somebody has named it.
fn path(machine: &Machine, variable: &str, name: &str) -> Option<PathBuf> {
    let named = machine.variable(variable).map(PathBuf::from);
    named.or_else(|| Some(PathBuf::from(machine.variable("HOME")?).join(".aws").join(name)))
}

/// A profile of both files; what the one for credentials says wins. `None` where neither has it.
pub(super) fn read(machine: &Machine, name: &str) -> Result<Option<Profile>, String> {
    let mut found = None;
    let files = [
        (path(machine, "AWS_CONFIG_FILE", "config"), true),
        (path(machine, "AWS_SHARED_CREDENTIALS_FILE", "credentials"), false),
    ];
    for (path, is_config) in files {
        let Some(path) = path else { continue };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("{} can't be read: {error}", path.display())),
        };
        let section = match name {
            name if is_config && name != "default" => format!("profile {name}"),
            name => name.to_owned(),
        };
        if let Some(profile) = section_of(&text, &section) {
            found.get_or_insert_with(Profile::new).extend(profile);
        }
    }
    Ok(found)
}

/// The keys of one section, in lower case.
fn section_of(text: &str, wanted: &str) -> Option<Profile> {
    let mut found: Option<Profile> = None;
    let mut is_within = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(head) = trimmed.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            let words: Vec<&str> = head.0.split_whitespace().collect();
            is_within = words.join(" ") == wanted;
            if is_within {
                found.get_or_insert_with(Profile::new);
            }
        } else if is_within
            // What is indented belongs to the line before it (`s3 =`).
            && !line.starts_with([' ', '\t'])
            && let (Some(profile), Some((key, value))) = (&mut found, line.split_once('='))
        {
            let value = value
                .split(" #")
                .next()
                .unwrap_or_default()
                .split(" ;")
                .next()
                .unwrap_or_default();
            profile.insert(key.trim().to_lowercase(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "\
# theirs
[default]
region = eu-central-1

[profile  work]   ; spaces
role_arn=arn:aws:iam::1:role/x
s3 =
  region = nowhere
source_profile = default # the one above
[sso-session work]
region = us-east-1
";

    #[test]
    fn a_section_is_read_as_aws_s_tools_read_it() {
        let work = section_of(CONFIG, "profile work").unwrap();
        assert_eq!(work["role_arn"], "arn:aws:iam::1:role/x");
        assert_eq!(work["source_profile"], "default");
        assert!(!work.contains_key("region"), "{work:?}");
        assert_eq!(section_of(CONFIG, "default").unwrap()["region"], "eu-central-1");
        assert_eq!(section_of(CONFIG, "work"), None);
    }

    #[test]
    fn both_files_count_and_the_one_for_credentials_wins() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(at("config"), CONFIG).unwrap();
        std::fs::write(
            at("credentials"),
            "[work]\naws_access_key_id = AKID\nrole_arn = other\n",
        )
        .unwrap();
        let machine = Machine::of([
            ("AWS_CONFIG_FILE", at("config")),
            ("AWS_SHARED_CREDENTIALS_FILE", at("credentials")),
        ]);
        let work = read(&machine, "work").unwrap().unwrap();
        assert_eq!((&*work["aws_access_key_id"], &*work["role_arn"]), ("AKID", "other"));
        assert_eq!(read(&machine, "none").unwrap(), None);
        assert_eq!(read(&Machine::of([("HOME", at("nobody"))]), "default").unwrap(), None);
        let unreadable = Machine::of([("AWS_CONFIG_FILE", dir.path().display().to_string())]);
        assert!(read(&unreadable, "default").unwrap_err().contains("can't be read"));
    }
}
