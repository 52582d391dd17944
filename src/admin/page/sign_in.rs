//! The page that asks for a token. It tells nothing but that it is closehook's.

use askama::Template;

/// The page.
#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignIn<'a> {
    next: &'a str,
    said: &'a str,
}

/// The page as markup: where it goes on to, and what was wrong with the last try; empty: nothing.
pub fn page(next: &str, said: &str) -> String {
    SignIn { next, said }.render().unwrap_or_default()
}
