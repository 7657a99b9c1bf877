//! What of a push is lawful: above all, from where something may be mounted.

use super::{Caller, Doors, spellings};
use crate::config::Act;
use crate::pass::opens;
use crate::route::{Action, Push, Start, Target};

impl Doors {
    /// The same action, without a mount from where the caller may not read: what is not readable is
    /// not there, and the upload begins as if it were not.
    pub fn lawful(&self, caller: &Caller, action: &Action) -> Action {
        let Action::Push(Push::Start(start)) = action else { return action.clone() };
        let may = match &start.mount {
            Some((_, Some(from))) => self.may_take(caller, from.as_str()),
            // Wherever it may be: in a repository that others alone may read, too.
            Some((_, None)) => self.rules.are_absent(),
            None => true,
        };
        let mount = start.mount.clone().filter(|_| may);
        Action::Push(Push::Start(Start { mount, ..start.clone() }))
    }

    fn may_take(&self, caller: &Caller, from: &str) -> bool {
        let opened = caller.access.as_ref().is_none_or(|list| opens(list, &[from], "pull"));
        opened && self.rules.permit(&caller.actor, Act::Pull, from)
    }

    /// The same where the upload is passed on to an upstream, which judges for itself what a caller's
    /// `own` credentials open; ours may open more than the caller may read.
    pub fn lawful_upstream(
        &self,
        caller: &Caller,
        target: &Target,
        start: &Start,
        own: bool,
    ) -> Start {
        let may = match &start.mount {
            Some((_, Some(from))) => {
                let from = Target { repository: from.clone(), ..target.clone() };
                self.allow(caller, &from, Act::Pull).is_ok()
            }
            Some((_, None)) => own || self.rules.are_absent(),
            None => true,
        };
        Start { mount: start.mount.clone().filter(|_| may), ..start.clone() }
    }

    /// Whether the caller came with a token that was asked for to push here.
    pub fn pushes(&self, caller: &Caller, target: &Target) -> bool {
        let names = spellings(target);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        caller.access.as_ref().is_some_and(|list| opens(list, &names, "push"))
    }
}
