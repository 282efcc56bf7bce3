//! Reads the expressions that a profile is written in: words, strings and lists.

use crate::limits::MAX_DEPTH;

/// A profile that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Line {line}: {why}")]
pub struct ProfileError {
    pub(super) line: usize,
    pub(super) why: String,
}

/// An expression: a word, a string, or a list.
#[derive(Clone, Debug)]
pub(super) enum Expression {
    Word(String),
    Text(String),
    List(usize, Vec<Expression>),
}

/// Reads expressions.
pub(super) struct Reader<'t> {
    text: std::iter::Peekable<std::str::Chars<'t>>,
    line: usize,
}

impl<'t> Reader<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text: text.chars().peekable(), line: 1 }
    }

    fn fail<T>(&self, why: &str) -> Result<T, ProfileError> {
        Err(ProfileError { line: self.line, why: why.to_owned() })
    }

    fn next(&mut self) -> Option<char> {
        let next = self.text.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    /// Skips blanks and comments; the character after them.
    fn skip(&mut self) -> Option<char> {
        loop {
            match self.text.peek() {
                Some(blank) if blank.is_whitespace() => drop(self.next()),
                Some(';') => while self.next().is_some_and(|character| character != '\n') {},
                other => return other.copied(),
            }
        }
    }

    pub(super) fn all(mut self) -> Result<Vec<Expression>, ProfileError> {
        let mut all = Vec::new();
        while self.skip().is_some() {
            all.push(self.one(0)?);
        }
        Ok(all)
    }

    fn one(&mut self, depth: usize) -> Result<Expression, ProfileError> {
        match self.skip() {
            None => self.fail("it ends too early"),
            Some(')') => self.fail("a ) too many"),
            Some('(') if depth >= MAX_DEPTH => self.fail("lists are too deep"),
            Some('(') => {
                let line = self.line;
                self.next();
                let mut list = Vec::new();
                while self.skip() != Some(')') {
                    list.push(self.one(depth + 1)?);
                }
                self.next();
                Ok(Expression::List(line, list))
            }
            Some('"') => {
                self.next();
                let mut text = String::new();
                loop {
                    match self.next() {
                        None | Some('\n' | '\\') => return self.fail("a string that is no string"),
                        Some('"') => return Ok(Expression::Text(text)),
                        Some(other) => text.push(other),
                    }
                }
            }
            Some(_) => {
                let mut word = String::new();
                while let Some(character) = self.text.peek().copied() {
                    if character.is_whitespace() || "();\"".contains(character) {
                        break;
                    }
                    word.push(character);
                    self.next();
                }
                Ok(Expression::Word(word))
            }
        }
    }
}
