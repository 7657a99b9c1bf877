//! Who may do what: users and groups, actions, patterns of repositories. Pure.
//!
//! Without a `clients` section everybody who reaches the port may do everything but administer.
//! With one, whatever no rule allows is refused.

use std::sync::Arc;

use crate::config::{Act, Clients};
use crate::patterns;

/// The user that stands for everyone.
const ANONYMOUS: &str = "anonymous";

/// The user that stands for everyone who has logged in.
const ANYONE_KNOWN: &str = "*";

/// Someone as far as rules are concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actor {
    /// `None` for somebody who has not logged in.
    pub user: Option<Arc<str>>,
    /// The groups that came with the login; those of the configuration need not stand here.
    pub groups: Vec<Arc<str>>,
}

/// The rules in force.
#[derive(Clone, Debug, Default)]
pub struct Rules(Option<Vec<Line>>);

#[derive(Clone, Debug)]
struct Line {
    users: Vec<String>,
    groups: Vec<String>,
    acts: Vec<Act>,
    repositories: Vec<String>,
}

impl Rules {
    /// As configured; groups are turned into their users.
    pub fn new(clients: Option<&Clients>) -> Self {
        Self(clients.map(|clients| {
            let members = |groups: &[String]| {
                let known = groups.iter().filter_map(|group| clients.groups.get(group));
                known.flatten().cloned().collect::<Vec<_>>()
            };
            let line = |rule: &crate::config::Rule| Line {
                users: rule.users.iter().cloned().chain(members(&rule.groups)).collect(),
                groups: rule.groups.clone(),
                acts: rule.actions.clone(),
                repositories: rule.repositories.clone(),
            };
            clients.rules.iter().map(line).collect()
        }))
    }

    /// Whether everybody may come in.
    pub fn are_absent(&self) -> bool {
        self.0.is_none()
    }

    /// Whether someone may do something to a repository, by the name that [`qualified`] gives it.
    pub fn permit(&self, actor: &Actor, act: Act, name: &str) -> bool {
        match &self.0 {
            None => act != Act::Admin,
            Some(lines) => lines.iter().any(|line| {
                line.acts.contains(&act)
                    && line.is_for(actor)
                    && line.repositories.iter().any(|pattern| patterns::matches(pattern, name))
            }),
        }
    }
}

impl Line {
    fn is_for(&self, actor: &Actor) -> bool {
        let names = |user: &str| {
            // A name from elsewhere that is one of these words stands for nobody.
            let word = [ANONYMOUS, ANYONE_KNOWN].contains(&user);
            !word && self.users.iter().any(|one| one == user)
        };
        let says = |word: &str| self.users.iter().any(|one| one == word);
        says(ANONYMOUS)
            || actor.user.as_deref().is_some_and(|user| says(ANYONE_KNOWN) || names(user))
            || actor.groups.iter().any(|group| self.groups.iter().any(|one| **one == **group))
    }
}

/// The name that patterns are about: with its upstream before it, or bare where it is hosted. So a
/// rule for `team/**` never opens some upstream's `team/app`.
pub fn qualified(upstream: Option<&str>, repository: &str) -> String {
    match upstream {
        Some(upstream) => format!("{upstream}/{repository}"),
        None => repository.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(yaml: &str) -> Rules {
        Rules::new(Some(&serde_yaml::from_str(yaml).unwrap()))
    }

    fn actor(user: &str, groups: &[&str]) -> Actor {
        Actor {
            user: (!user.is_empty()).then(|| user.into()),
            groups: groups.iter().map(|&g| g.into()).collect(),
        }
    }

    #[test]
    fn whatever_no_rule_allows_is_refused() {
        let rules = rules(
            "groups: {builders: [ci]}\n\
             rules:\n\
             - {users: [anonymous], actions: [pull], repositories: [\"docker.io/library/*\"]}\n\
             - {users: [\"*\"], actions: [pull], repositories: [\"ghcr.io/**\"]}\n\
             - {groups: [builders], actions: [pull, push], repositories: [\"team/**\"]}\n\
             - {users: [root], actions: [admin, delete], repositories: [\"**\"]}",
        );
        for (user, groups, act, name, want) in [
            ("", &[][..], Act::Pull, "docker.io/library/alpine", true),
            ("ci", &[], Act::Pull, "docker.io/library/alpine", true),
            ("", &[], Act::Push, "docker.io/library/alpine", false),
            ("", &[], Act::Pull, "docker.io/other/alpine", false),
            ("", &[], Act::Pull, "ghcr.io/a/b", false),
            ("eve", &[], Act::Pull, "ghcr.io/a/b", true),
            ("ci", &[], Act::Push, "team/app", true),
            ("ci", &[], Act::Delete, "team/app", false),
            ("ci", &[], Act::Pull, "ghcr.io/team/app", true),
            ("ci", &[], Act::Push, "ghcr.io/team/app", false),
            ("eve", &["builders"], Act::Push, "team/app", true),
            ("eve", &[], Act::Push, "team/app", false),
            ("root", &[], Act::Delete, "team/app", true),
            ("root", &[], Act::Pull, "team/app", false),
            ("anonymous", &[], Act::Delete, "team/app", false),
        ] {
            let got = rules.permit(&actor(user, groups), act, name);
            assert_eq!(got, want, "{user} {groups:?} {act:?} {name}");
        }
    }

    #[test]
    fn a_pattern_for_hosted_names_opens_no_upstream() {
        let rules =
            rules("rules: [{users: [anonymous], actions: [pull], repositories: [\"team/**\"]}]");
        let nobody = Actor::default();
        assert!(rules.permit(&nobody, Act::Pull, &qualified(None, "team/app")));
        assert!(!rules.permit(&nobody, Act::Pull, &qualified(Some("docker.io"), "team/app")));
    }

    #[test]
    fn without_clients_everybody_may_all_but_administer() {
        let rules = Rules::new(None);
        assert!(rules.permit(&Actor::default(), Act::Push, "a"));
        assert!(!rules.permit(&Actor::default(), Act::Admin, "a"));
    }
}
