//! From the tree to the types, keeping track of the place.
//!
//! A serde deserializer over [`Node`]. It exists so that an error names the place, the key meant
//! by a misspelt one, and the path that must be taken out to look for further faults.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Unexpected, Visitor};

use super::tree::{Node, Origin, Value};

/// Reads a value, or says what is wrong with the first part that is not as it should be.
pub(super) fn read<T: DeserializeOwned>(node: &Node) -> Result<T, Mistake> {
    T::deserialize(node).map_err(|mut mistake| {
        mistake.path.reverse();
        mistake.origin.get_or_insert_with(|| node.origin.clone());
        mistake
    })
}

/// Why a part of the tree does not fit the types.
#[derive(Debug)]
pub(super) struct Mistake {
    /// The keys down to the part that is wrong.
    pub(super) path: Vec<String>,
    pub(super) origin: Option<Origin>,
    pub(super) text: String,
    /// Whether the key itself is wrong rather than its value.
    pub(super) of_key: bool,
    /// The key that was probably meant.
    pub(super) meant: Option<&'static str>,
}

impl Mistake {
    fn new(text: String) -> Self {
        Self { path: Vec::new(), origin: None, text, of_key: false, meant: None }
    }

    fn under(mut self, step: impl Into<String>, origin: &Origin) -> Self {
        self.path.push(step.into());
        self.origin.get_or_insert_with(|| origin.clone());
        self
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Mistake {}

impl de::Error for Mistake {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, wanted: &dyn de::Expected) -> Self {
        // The value itself is not repeated: it may be a secret, and the excerpt shows the place.
        let found = match found {
            Unexpected::Bool(_) => "a truth value stands",
            Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_) => {
                "a number stands"
            }
            Unexpected::Unit | Unexpected::Option => "nothing stands",
            Unexpected::Seq => "a list stands",
            Unexpected::Map | Unexpected::StructVariant => "a map stands",
            _ => "a text stands",
        };
        let wanted = wanted.to_string();
        let (wanted, remedy) = plainly(&wanted);
        Self::new(format!("{found} where {wanted} is wanted{remedy}"))
    }

    fn invalid_value(_: Unexpected<'_>, wanted: &dyn de::Expected) -> Self {
        Self::new(format!("this is out of range; write {}", plainly(&wanted.to_string()).0))
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        let meant = nearest(key, known.iter().copied());
        let remedy = match meant {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("known here: {}", known.join(", ")),
        };
        Self { of_key: true, meant, ..Self::new(format!("unknown key `{key}`; {remedy}")) }
    }

    fn unknown_variant(word: &str, known: &'static [&'static str]) -> Self {
        let remedy = match nearest(word, known.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("write one of: {}", known.join(", ")),
        };
        Self::new(format!("`{word}` is not known here; {remedy}"))
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(format!("the key `{key}` is missing; add it"))
    }
}

/// serde's names for what it wants in words that an operator knows, and how that is written.
fn plainly(wanted: &str) -> (&str, &str) {
    match wanted {
        "a sequence" => ("a list", "; write [ … ] or lines that begin with `- `"),
        "a boolean" => ("true or false", "; write one of the two"),
        "a string" | "path string" => ("a text", "; write it on the same line"),
        "usize" | "u64" | "u32" | "u16" | "u8" => {
            ("a whole number from 0 up", "; write it without quotation marks")
        }
        _ if wanted.starts_with("struct ") || wanted == "a map" => {
            ("a map of keys", "; write `key: value` in lines of their own below")
        }
        _ => (wanted, "; correct it"),
    }
}

/// The known word that is most like `word`, where one is like enough.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const LIKENESS_MIN: f64 = 0.6;
    // The measure takes the product of both lengths, and no word that we know is longer.
    const WORD_BYTES_MAX: usize = 64;
    if word.len() > WORD_BYTES_MAX {
        return None;
    }
    let word = word.to_lowercase().replace(['-', ' '], "_");
    let likeness = |known: &str| {
        let known = known.replace('-', "_");
        // `ttl` is meant to be `tag_ttl`, however many letters are missing.
        let part = word.len() >= 3 && known.split('_').any(|part| part == word);
        let alike = strsim::normalized_damerau_levenshtein(&word, &known);
        if part { alike.max(LIKENESS_MIN) } else { alike }
    };
    known
        .map(|known| (likeness(known), known))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known)
}

/// A plain scalar's type, after YAML's core schema.
fn resolve<'de, V: Visitor<'de>>(text: &'de str, visitor: V) -> Result<V::Value, Mistake> {
    match text {
        "true" | "True" | "TRUE" => return visitor.visit_bool(true),
        "false" | "False" | "FALSE" => return visitor.visit_bool(false),
        _ => {}
    }
    let based = |prefix, radix| {
        text.strip_prefix(prefix).and_then(|digits| u64::from_str_radix(digits, radix).ok())
    };
    if let Some(number) = text.parse().ok().or_else(|| based("0x", 16)).or_else(|| based("0o", 8)) {
        return visitor.visit_u64(number);
    }
    if let Ok(number) = text.parse() {
        return visitor.visit_i64(number);
    }
    // Rust also reads `inf` and `nan`, which are text here.
    match text.parse() {
        Ok(number) if text.bytes().any(|byte| byte.is_ascii_digit()) => visitor.visit_f64(number),
        _ => visitor.visit_borrowed_str(text),
    }
}

impl<'de> de::Deserializer<'de> for &'de Node {
    type Error = Mistake;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.value {
            _ if self.is_null() => visitor.visit_unit(),
            Value::Scalar { text, plain: true } => resolve(text, visitor),
            Value::Scalar { text, plain: false } => visitor.visit_borrowed_str(text),
            Value::List(items) => visitor.visit_seq(Items(items.iter().enumerate())),
            Value::Map(map) => visitor.visit_map(Entries { rest: map.iter(), value: None }),
        }
    }

    /// Where a text is wanted, `007` and `off` are what was written and no number or truth value.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.value {
            Value::Scalar { text, .. } if !self.is_null() => visitor.visit_borrowed_str(text),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        if self.is_null() {
            // A section whose lines are all commented out is no section that was left out: `clients:`
            // with nothing behind it must not open the mirror.
            let text = "nothing stands behind this key; write a value, or remove the key";
            return Err(Mistake::new(text.to_owned()));
        }
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        match &self.value {
            Value::Scalar { text, .. } => {
                let word: StrDeserializer<'_, Mistake> = text.as_str().into_deserializer();
                visitor.visit_enum(word)
            }
            _ => {
                Err(Mistake::new(format!("this is not a word; write one of: {}", words.join(", "))))
            }
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf
        unit unit_struct seq tuple tuple_struct map struct identifier
    }
}

struct Items<'de>(std::iter::Enumerate<std::slice::Iter<'de, Node>>);

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = Mistake;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Mistake> {
        let Some((index, node)) = self.0.next() else { return Ok(None) };
        seed.deserialize(node)
            .map(Some)
            .map_err(|mistake| mistake.under(index.to_string(), &node.origin))
    }
}

struct Entries<'de> {
    rest: std::collections::btree_map::Iter<'de, String, (Origin, Node)>,
    value: Option<(&'de str, &'de Node)>,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = Mistake;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Mistake> {
        let Some((key, (origin, node))) = self.rest.next() else { return Ok(None) };
        self.value = Some((key, node));
        let word: StrDeserializer<'_, Mistake> = key.as_str().into_deserializer();
        seed.deserialize(word).map(Some).map_err(|mistake| mistake.under(key, origin))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mistake> {
        let (key, node) =
            self.value.take().ok_or_else(|| Mistake::new("a value without a key".to_owned()))?;
        seed.deserialize(node).map_err(|mistake| mistake.under(key, &node.origin))
    }
}
