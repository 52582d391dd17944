//! Who the credentials belong to, as `GET /me/` tells it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::answer::text;
use super::client::{Call, Client};
use super::error::Error;
use crate::json::Node;

/// An organization of Close's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Organization {
    /// `orga_...`
    pub id: String,
    /// `None` where only the id is known.
    pub name: Option<String>,
}

impl std::fmt::Display for Organization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{} (\"{name}\")", self.id),
            None => f.write_str(&self.id),
        }
    }
}

/// Somebody at Close.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::close) struct Identity {
    /// Those the credentials are for, or that their user is in. An API key is for one; who is in several says no more than that
    /// it is one of them. Empty: it is not said.
    pub organizations: Vec<Organization>,
    /// `user_...`
    pub user: Option<String>,
}

impl Identity {
    /// What `/me/` answers.
    fn read(answer: &Bytes) -> Result<Identity, Error> {
        let node = Node::new(text(answer)?);
        let text_at = |node: Node<'_>, key| {
            let text = node.get(key).and_then(Node::as_string);
            // It is shown to people.
            text.map(|text| text.chars().filter(|c| !c.is_control()).take(200).collect::<String>())
        };
        let listed = node.get("organizations").into_iter().flat_map(Node::elements);
        let listed: Vec<Organization> = listed
            .filter_map(|organization| {
                Some(Organization {
                    id: text_at(organization, "id")?,
                    name: text_at(organization, "name"),
                })
            })
            .collect();
        let organizations = match text_at(node, "organization_id") {
            Some(id) => {
                let known = listed.into_iter().find(|organization| organization.id == id);
                vec![known.unwrap_or(Organization { id, name: None })]
            }
            None => listed,
        };
        Ok(Identity {
            organizations,
            user: text_at(node, "id"),
        })
    }

    /// The one organization; `None` where it is not said, or could be one of several.
    pub fn organization(&self) -> Option<&Organization> {
        match self.organizations.as_slice() {
            [one] => Some(one),
            _ => None,
        }
    }

    /// For people.
    pub fn describe(&self) -> Option<String> {
        let organization = self.organization().map(ToString::to_string);
        organization.or_else(|| self.user.clone())
    }
}

impl Client {
    /// Who the credentials belong to. One request, whose answer also tells the time at Close.
    pub async fn identity(&self) -> Result<Identity, Error> {
        Identity::read(&self.send(&Call::get("me/")).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Identity {
        Identity::read(&Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    #[test]
    fn an_organization_is_known_where_there_is_one_only() {
        let one = read(r#"{"id":"user_1","organizations":[{"id":"orga_1","name":"Bolt\u001b"}]}"#);
        assert_eq!(one.describe().as_deref(), Some("orga_1 (\"Bolt\")"));
        let two = read(r#"{"id":"user_1","organizations":[{"id":"orga_1"},{"id":"orga_2","name":"Nut"}]}"#);
        assert_eq!((two.organization(), two.organizations.len()), (None, 2));
        let said =
            read(r#"{"organization_id":"orga_2","organizations":[{"id":"orga_1"},{"id":"orga_2","name":"Nut"}]}"#);
        assert_eq!(said.describe().as_deref(), Some("orga_2 (\"Nut\")"));
        assert_eq!(read(r#"{"id":"user_1"}"#).describe().as_deref(), Some("user_1"));
        assert_eq!(read(r#"{"data":[]}"#), Identity::default());
    }
}
