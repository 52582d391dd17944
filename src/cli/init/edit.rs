//! The text of the configuration with the answers in it.

use reqwest::Url;
use toml_edit::Value;

use super::answers::{Answers, Https};
use super::document::Editor;
use crate::config::{self, Config, Server};

/// What else is to be changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// What `close.api_key_file` becomes; `None`: as it is.
    pub api_key_file: Option<String>,
    /// `[[close.subscriptions]]` whose keys do not exist, by their index.
    pub dead_keys: Vec<usize>,
}

/// The text of the configuration with the answers in it; what `config` says already is not written again.
pub(super) fn edit(text: &str, config: &Config, answers: &Answers, changes: &Changes) -> Result<String, String> {
    let mut editor = Editor::new(text)?;
    let server = &config.server;
    if let Some(data) = &answers.data
        && *data != config.log.dir
    {
        editor.set("log", "dir", data.display().to_string())?;
    }
    let url = answers.url.url().as_str();
    if server.public_url.as_deref() != Some(url) {
        editor.set("server", "public_url", url)?;
    }
    let path = answers.url.url().path();
    // A proxy may have other paths than what is behind it, where somebody has made it so.
    let known_path = server.public_url.as_deref().and_then(|url| Url::parse(url).ok());
    let is_chosen = known_path.is_some_and(|url| url.path() != server.path);
    if server.path != path && (answers.is_direct() || !is_chosen) {
        editor.set("server", "path", path)?;
    }
    if server.listen != answers.listen {
        editor.set("server", "listen", answers.listen.to_string())?;
    }
    edit_https(&mut editor, server, &answers.https)?;
    if let Some(file) = &changes.api_key_file {
        editor.retire_table("close.oauth")?;
        editor.remove("close", "api_key")?;
        editor.remove("close", "api_key_env")?;
        editor.set("close", "api_key_file", file.as_str())?;
    }
    // From the last on, so that the others keep their numbers.
    for index in changes.dead_keys.iter().rev() {
        editor.retire_entry("close.subscriptions", *index)?;
    }
    Ok(editor.text().to_owned())
}

/// How HTTPS comes about; what the other ways need becomes a comment.
fn edit_https(editor: &mut Editor, server: &Server, https: &Https) -> Result<(), String> {
    match https {
        Https::Acme {
            domains,
            email,
            directory,
        } => {
            editor.retire_table("server.tls")?;
            let known = server.acme.as_ref();
            if known.is_none_or(|acme| acme.domains != *domains) {
                editor.set("server.acme", "domains", list(domains))?;
            }
            if let Some(email) = email
                && known.and_then(|acme| acme.email.as_ref()) != Some(email)
            {
                editor.set("server.acme", "email", email.as_str())?;
            }
            if let Some(directory) = directory
                && !known.is_some_and(|acme| config::acme_directory(directory).is_ok_and(|url| url == acme.directory))
            {
                editor.set("server.acme", "directory", directory.as_str())?;
            }
        }
        Https::Files(files) => {
            editor.retire_table("server.acme")?;
            if server.tls.as_ref() != Some(files) {
                editor.set("server.tls", "cert", files.cert.display().to_string())?;
                editor.set("server.tls", "key", files.key.display().to_string())?;
            }
        }
        Https::Proxy { trusted } => {
            editor.retire_table("server.tls")?;
            editor.retire_table("server.acme")?;
            if let Some(trusted) = trusted {
                editor.set("server", "trusted_proxies", list(trusted))?;
            }
        }
        Https::Plain => {
            editor.retire_table("server.tls")?;
            editor.retire_table("server.acme")?;
        }
    }
    Ok(())
}

fn list(texts: &[String]) -> Value {
    texts.iter().map(String::as_str).collect()
}

/// The text of a configuration that is not there yet: the commented reference, without its sink.
pub(super) fn new_text() -> Result<String, String> {
    let mut editor = Editor::new(include_str!("../../../config/closehook.toml"))?;
    editor.retire_entry("sinks", 0)?;
    Ok(editor.text().to_owned())
}
