//! Rust source cut into words and signs, without comments, strings and numbers' insides: enough to see which paths a
//! file names, and no more.

/// A word (identifier, keyword, number), `::`, or one other character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    pub(crate) text: &'a str,
    /// Counted from one.
    pub(crate) line: usize,
}

/// The tokens of a file.
pub(crate) fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut at = 0;
    while let Some(first) = text[at..].chars().next() {
        let length = skipped(&text[at..]);
        if length > 0 {
            line += text[at..at + length].matches('\n').count();
            at += length;
            continue;
        }
        let length = match first {
            ':' if text[at..].starts_with("::") => 2,
            c if is_word(c) => word(&text[at..]),
            c => c.len_utf8(),
        };
        if !first.is_whitespace() {
            tokens.push(Token { text: &text[at..at + length], line });
        }
        line += usize::from(first == '\n');
        at += length;
    }
    tokens
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn word(text: &str) -> usize {
    text.find(|c| !is_word(c)).unwrap_or(text.len())
}

/// The length of the comment or literal that `text` begins with; zero when it begins with neither.
fn skipped(text: &str) -> usize {
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return nested_comment(text);
    }
    let prefix = word(text);
    match &text[..prefix] {
        "" | "b" | "c" if text[prefix..].starts_with('"') => prefix + quoted(&text[prefix..]),
        "r" | "br" | "cr" => raw_string(text, prefix),
        "" if text.starts_with('\'') => character(text),
        _ => 0,
    }
}

fn nested_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let step = text[at..].chars().next().map_or(1, char::len_utf8);
        match text.get(at..at + 2) {
            Some("/*") => (depth, at) = (depth + 1, at + 2),
            Some("*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += step,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of the literal between double quotes that `text` begins with.
fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn raw_string(text: &str, prefix: usize) -> usize {
    let hashes = text[prefix..].chars().take_while(|&c| c == '#').count();
    let body = prefix + hashes;
    if !text[body..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    text[body + 1..].find(&end).map_or(text.len(), |found| body + 1 + found + end.len())
}

/// The length of a character literal; zero for a lifetime.
fn character(text: &str) -> usize {
    let mut inside = text.chars().skip(1);
    match (inside.next(), inside.next()) {
        (Some('\\'), Some(escape)) => {
            let from = 2 + escape.len_utf8();
            text[from..].find('\'').map_or(text.len(), |end| from + end + 1)
        }
        (Some(c), Some('\'')) => 2 + c.len_utf8(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_not_seen() {
        let cases = [
            ("use a::b; // c::d", "use a :: b ;"),
            ("a /* b /* c */ d */ e", "a e"),
            (r#"x("tokio::y \" z", 'q', '\'', '"', b"w")"#, "x ( , , , , )"),
            ("r#\"a \" b\"# c r\"d\" e", "c e"),
            ("fn f<'a>(x: &'a str)", "fn f < ' a > ( x : & ' a str )"),
            ("r#type; number; b'x'", "r # type ; number ; b"),
            ("é 'é' \"é\" x", "é x"),
        ];
        for (text, wanted) in cases {
            let seen: Vec<&str> = tokens(text).iter().map(|token| token.text).collect();
            assert_eq!(seen.join(" "), wanted, "{text}");
        }
    }

    #[test]
    fn lines_are_counted_through_everything() {
        let text = "a\n/* \n\n */ b \"\n\" c\n// d\ne";
        let lines: Vec<usize> = tokens(text).iter().map(|token| token.line).collect();
        assert_eq!(lines, [1, 4, 5, 7]);
    }
}
