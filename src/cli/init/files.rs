//! The two files that are written here: the configuration, and the API key beside it. Each is replaced as a whole.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use crate::config::{Config, Credentials, Secret};
use crate::framefile;

/// Permission bits of everybody but the owner.
const OTHERS: u32 = 0o077;

/// User and group.
pub(super) type Owner = (u32, u32);

/// Who has a file or a directory.
pub(super) fn owner(path: &Path) -> Option<Owner> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.uid(), metadata.gid()))
}

/// A user of this system by name, from a text like /etc/passwd.
pub(super) fn user_in(passwd: &str, name: &str) -> Option<Owner> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_it = fields.next() == Some(name);
        let mut number = |skip: usize| fields.nth(skip)?.parse().ok();
        is_it.then(|| Some((number(1)?, number(0)?))).flatten()
    })
}

/// Replaces the configuration: mode and owner stay, and a symbolic link still leads to it. A new one may be read by the group
/// of its directory, as the package lays it out.
pub(super) fn write_configuration(path: &Path, text: &str) -> Result<(), String> {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let fail = |error: &dyn std::fmt::Display| format!("{} can't be written: {error}", path.display());
    let (mode, owner) = if let Ok(metadata) = std::fs::metadata(&path) {
        let owner = (metadata.uid(), metadata.gid());
        (metadata.permissions().mode() & 0o7777, Some(owner))
    } else {
        let dir = make_dir_of(&path).map_err(|error| fail(&error))?;
        (0o640, for_group_of(dir))
    };
    framefile::replace_file_as(&path, text.as_bytes(), mode, owner).map_err(|error| fail(&error))
}

/// Makes the directory that a file is to be in, where it is missing.
fn make_dir_of(path: &Path) -> std::io::Result<&Path> {
    let dir = path.parent().unwrap_or(path);
    std::fs::create_dir_all(dir)?;
    Ok(dir)
}

fn for_group_of(dir: &Path) -> Option<Owner> {
    let (_, group) = owner(dir)?;
    is_root().then_some((0, group))
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Where the API key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyPlace {
    pub path: PathBuf,
    /// What `close.api_key_file` has to say; `None`: it says so already.
    pub say: Option<String>,
    /// systemd hands it to the daemon, and nobody but root needs to read the file.
    pub by_systemd: bool,
}

impl KeyPlace {
    /// Where the configuration says, else beside it: `close_api_key`, or `NAME-close_api_key` where several organisations have
    /// configurations in one directory, as the units have it.
    /// `has_unit`: systemd runs the daemon, so that there are credentials.
    pub fn of(config: &Config, file: &Path, has_unit: bool) -> KeyPlace {
        let beside = |name: &str| KeyPlace::named(name, file);
        match &config.close.credentials {
            Some(Credentials::ApiKey(Secret::File(path))) => KeyPlace {
                path: path.clone(),
                say: None,
                by_systemd: false,
            },
            Some(Credentials::ApiKey(Secret::Credential(name))) if has_unit => KeyPlace {
                path: beside(name),
                say: None,
                by_systemd: true,
            },
            _ => {
                let path = beside("close_api_key");
                KeyPlace {
                    say: Some(path.display().to_string()),
                    path,
                    by_systemd: false,
                }
            }
        }
    }

    /// Where a secret of this name is, beside a configuration.
    pub fn named(name: &str, file: &Path) -> PathBuf {
        let organisation = file.file_stem().and_then(|stem| stem.to_str());
        let organisation = organisation.filter(|stem| *stem != "closehook");
        file.with_file_name(organisation.map_or_else(|| name.to_owned(), |stem| format!("{stem}-{name}")))
    }

    /// Puts the key there, for whoever runs the daemon and nobody else.
    pub fn store(&self, key: &SecretString, daemon: Option<Owner>) -> Result<(), String> {
        let owner = daemon.filter(|_| is_root() && !self.by_systemd);
        let content = format!("{}\n", key.expose_secret());
        make_dir_of(&self.path)
            .and_then(|_| framefile::replace_file_as(&self.path, content.as_bytes(), 0o600, owner))
            .map_err(|error| format!("the API key can't be kept in {}: {error}", self.path.display()))
    }

    /// Whether that key is there already, and the daemon can read it.
    pub fn holds(&self, key: &SecretString, daemon: Option<Owner>) -> bool {
        let Ok(metadata) = std::fs::metadata(&self.path) else {
            return false;
        };
        let is_private = metadata.permissions().mode() & OTHERS == 0;
        let known = Secret::File(self.path.clone()).resolve();
        let is_known = known.is_ok_and(|known| known.expose_secret() == key.expose_secret());
        is_private && is_known && !self.is_out_of_reach(daemon)
    }

    /// Whether the daemon can't read the file that is there.
    pub fn is_out_of_reach(&self, daemon: Option<Owner>) -> bool {
        let (Ok(metadata), Some((user, _))) = (std::fs::metadata(&self.path), daemon) else {
            return false;
        };
        let is_private = metadata.permissions().mode() & OTHERS == 0;
        !self.by_systemd && is_private && user != 0 && user != metadata.uid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;

    fn config(text: &str) -> Config {
        Config::of_text(
            &Layers {
                file: Some("closehook.toml".into()),
                ..Layers::new(crate::sinks::REGISTRY, crate::rules::faults)
            },
            text,
        )
        .unwrap()
    }

    #[test]
    fn the_key_is_where_the_configuration_says_or_beside_it() {
        for (text, file, path, say) in [
            (
                "",
                "/etc/closehook/closehook.toml",
                "/etc/closehook/close_api_key",
                true,
            ),
            (
                "",
                "/etc/closehook/acme.toml",
                "/etc/closehook/acme-close_api_key",
                true,
            ),
            (
                "[close]\napi_key = \"x\"",
                "/x/closehook.toml",
                "/x/close_api_key",
                true,
            ),
            (
                "[close]\napi_key_file = \"/run/key\"",
                "/x/closehook.toml",
                "/run/key",
                false,
            ),
            (
                "[close]\napi_key_file = \"credential:close_api_key\"",
                "/etc/closehook/acme.toml",
                "/etc/closehook/acme-close_api_key",
                false,
            ),
        ] {
            let place = KeyPlace::of(&config(text), Path::new(file), true);
            assert_eq!((place.path.to_str(), place.say.is_some()), (Some(path), say), "{text}");
            // Without systemd nobody hands credentials out.
            let place = KeyPlace::of(&config(text), Path::new(file), false);
            assert_eq!(place.say.is_some(), say || text.contains("credential:"), "{text}");
        }
    }

    #[test]
    fn files_keep_their_mode_and_links_and_a_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("closehook.toml"), dir.path().join("link.toml"));
        write_configuration(&file, "a = 1\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o604)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_configuration(&link, "a = 2\n").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "a = 2\n");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o604);
        let place = KeyPlace::of(&config(""), &file, false);
        let key = SecretString::from("api_x");
        assert!(!place.holds(&key, None));
        place.store(&key, None).unwrap();
        assert!(place.holds(&key, None) && !place.holds(&SecretString::from("api_y"), None));
        assert_eq!(
            std::fs::metadata(&place.path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let (user, group) = owner(&place.path).unwrap();
        assert!(place.holds(&key, Some((user, group))));
        let another = Some((user + 1, group));
        assert!(place.is_out_of_reach(another) && !place.holds(&key, another));
        std::fs::set_permissions(&place.path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(!place.holds(&key, None), "others can read it");
    }

    #[test]
    fn users_are_found_by_name() {
        let passwd = "root:x:0:0::/root:/bin/sh\nclosehook:x:998:997::/var/lib/closehook:/usr/sbin/nologin\n";
        assert_eq!(user_in(passwd, "closehook"), Some((998, 997)));
        assert_eq!(user_in(passwd, "nobody"), None);
    }
}
