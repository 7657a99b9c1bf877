//! Repository patterns: `*` stands for anything within a component, `**` for any components.

/// What may be pulled: `deny` wins over `allow`, an empty `allow` allows all.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    allow: Vec<String>,
    deny: Vec<String>,
}

impl Patterns {
    /// From the configuration.
    pub fn new(allow: &[String], deny: &[String]) -> Self {
        Self { allow: allow.to_vec(), deny: deny.to_vec() }
    }

    /// Whether a repository may be pulled.
    pub fn permits(&self, name: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|p| matches(p, name));
        !any(&self.deny) && (self.allow.is_empty() || any(&self.allow))
    }
}

/// Whether a name fits a pattern.
pub fn matches(pattern: &str, name: &str) -> bool {
    let patterns: Vec<&str> = pattern.split('/').collect();
    let names: Vec<&str> = name.split('/').collect();
    components(&patterns, &names)
}

fn components(patterns: &[&str], names: &[&str]) -> bool {
    match patterns.split_first() {
        None => names.is_empty(),
        Some((&"**", rest)) => (0..=names.len()).any(|skip| components(rest, &names[skip..])),
        Some((first, rest)) => names.split_first().is_some_and(|(name, others)| {
            component(first.as_bytes(), name.as_bytes()) && components(rest, others)
        }),
    }
}

/// One component, by the usual two-pointer walk: linear but for one step back per star.
fn component(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, n));
            p += 1;
        } else if pattern.get(p) == Some(&name[n]) {
            p += 1;
            n += 1;
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (p, n) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&b| b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stay_within_their_component() {
        for (pattern, name, want) in [
            ("library/*", "library/alpine", true),
            ("library/*", "library/a/b", false),
            ("*", "a", true),
            ("*", "a/b", false),
            ("**", "a/b/c", true),
            ("team/**", "team/a/b", true),
            ("team/**", "teams/a", false),
            ("**/app", "x/y/app", true),
            ("a*c", "abbc", true),
            ("a*c", "abcd", false),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, name), want, "{pattern} {name}");
        }
    }

    #[test]
    fn deny_wins_over_allow() {
        let p = Patterns::new(&["library/*".into()], &["library/evil".into()]);
        assert!(p.permits("library/alpine") && !p.permits("library/evil") && !p.permits("other/x"));
        assert!(Patterns::default().permits("anything/at/all"));
    }
}
