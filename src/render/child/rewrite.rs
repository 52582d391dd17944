//! A module made into a function whose result is what the module exports by default, every token at its line and, nearly always, column.

/// What the export is called where it has no name of its own.
const NAME: &str = "$main";

/// Exports of this many places are tried: words in comments and strings may look like one.
const PLACES_MAX: usize = 64;

/// The text of the function. `is_whole` says whether a text is one: an `export` that is still in it keeps it from being one.
pub(super) fn factory_of(source: &str, is_whole: impl Fn(&str) -> bool) -> Result<String, &'static str> {
    let places: Vec<(usize, usize)> = exports(source).take(PLACES_MAX).collect();
    if places.is_empty() {
        return Err("it exports no function: write export default function (event, meta) { ... }");
    }
    let mut candidates = places.into_iter().map(|(start, end)| wrapped(source, start, end));
    candidates
        .find(|candidate| is_whole(candidate))
        .ok_or("it is to export one function, by default, and to import nothing")
}

/// Where the words `export default` are, in bytes.
fn exports(source: &str) -> impl Iterator<Item = (usize, usize)> {
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$');
    source.match_indices("export").filter_map(move |(start, word)| {
        if source[..start].chars().next_back().is_some_and(is_word) {
            return None;
        }
        let rest = after_space(&source[start + word.len()..]);
        let end = rest.strip_prefix("default")?;
        if rest.len() == source.len() - start - word.len() || end.chars().next().is_some_and(is_word) {
            return None;
        }
        Some((start, source.len() - end.len()))
    })
}

/// What is behind white space and comments.
fn after_space(text: &str) -> &str {
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let comment = if rest.starts_with("//") {
            rest.find('\n').map(|at| at + 1)
        } else if rest.starts_with("/*") {
            rest.find("*/").map(|at| at + 2)
        } else {
            return rest;
        };
        rest = comment.map_or("", |end| &rest[end..]);
    }
}

/// The text as a function, with these words written over.
fn wrapped(source: &str, start: usize, end: usize) -> String {
    let (before, words, rest) = (&source[..start], &source[start..end], &source[end..]);
    let declared = after_space(rest);
    let gap = &rest[..rest.len() - declared.len()];
    let (name, middle) = match declaration(declared) {
        // A declaration with a name stays one.
        Some((_, Some(name))) => (name, format!("{}{gap}{declared}", blank(words, 0))),
        // The room for a name is there.
        Some((head, None)) => {
            let taken = NAME.len() + 1;
            let (head, tail) = declared.split_at(head);
            (NAME, format!("{}{gap}{head} {NAME}{tail}", blank(words, taken)))
        }
        None => {
            let instead = format!("const {NAME} =");
            (NAME, format!("{instead}{}{rest}", blank(words, instead.len())))
        }
    };
    format!("(function () {{ \"use strict\";\n{before}{middle}\n;return {name};\n}})")
}

/// White space in place of words, less so many characters; line ends stay.
fn blank(words: &str, less: usize) -> String {
    let blank = words.chars().map(|c| if c == '\n' { '\n' } else { ' ' });
    let mut less = less;
    blank
        .filter(|c| {
            let drops = *c == ' ' && less > 0;
            less -= usize::from(drops);
            !drops
        })
        .collect()
}

/// If a declaration of a function or class begins there: where its name belongs, and the name if it has one.
fn declaration(text: &str) -> Option<(usize, Option<&str>)> {
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$');
    let word = |text: &'_ str, word: &str| {
        let rest = text.strip_prefix(word)?;
        (!rest.starts_with(is_word)).then_some(rest.len())
    };
    let behind = |len: usize| &text[text.len() - len..];
    let is_class = word(text, "class").is_some();
    let mut head = if let Some(rest) = word(text, "async") {
        word(behind(rest).trim_start(), "function")?
    } else {
        word(text, "function").or_else(|| word(text, "class"))?
    };
    if let Some(rest) = after_space(behind(head)).strip_prefix('*') {
        head = rest.len();
    }
    let rest = after_space(behind(head));
    let name = rest
        .find(|c| !is_word(c))
        .map(|end| &rest[..end])
        .filter(|name| !name.is_empty());
    let name = name.filter(|name| !(is_class && *name == "extends"));
    Some((text.len() - head, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrap(source: &str) -> String {
        let (start, end) = exports(source).next().unwrap();
        wrapped(source, start, end)
    }

    #[test]
    fn what_is_exported_becomes_the_result_at_the_same_column() {
        for (source, inner, name) in [
            (
                "export default function (event) { x }",
                "         function $main (event) { x }",
                "$main",
            ),
            (
                "export default function f(event) {}",
                "               function f(event) {}",
                "f",
            ),
            (
                "export default (event) => event;",
                "const $main =  (event) => event;",
                "$main",
            ),
            (
                "export default async function (e) {}",
                "         async function $main (e) {}",
                "$main",
            ),
            (
                "export default class extends A {}",
                "         class $main extends A {}",
                "$main",
            ),
            (
                "let a;\nexport\ndefault function* g() {}",
                "let a;\n      \n        function* g() {}",
                "g",
            ),
        ] {
            let expected = format!("(function () {{ \"use strict\";\n{inner}\n;return {name};\n}})");
            assert_eq!(wrap(source), expected, "{source}");
        }
    }

    #[test]
    fn the_real_export_is_found_among_those_that_only_look_like_one() {
        let source = "// export default x\nconst s = 'export default y';\nexport default function () { return s }\n";
        let places: Vec<_> = exports(source).collect();
        assert_eq!(places.len(), 3);
        // Whole is what has no other export than in comments and strings.
        let is_whole = |text: &str| {
            text.lines()
                .all(|line| line.starts_with("//") || line.contains('\'') || !line.contains("export"))
        };
        let factory = factory_of(source, is_whole).unwrap();
        assert!(
            factory.contains("// export default x") && factory.contains("'export default y'"),
            "{factory}"
        );
        assert!(factory_of("const x = 1;", |_| true).is_err());
        assert_eq!(
            exports("exportdefault a; xexport default b; export defaults").count(),
            0
        );
    }
}
